//! The machine's file systems.

use std::ffi::CStr;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_bind, mount_move};

use super::{Stop, failed};

const QUIET: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Where, what, how, options. Parents first.
const MOUNTS: &[(&str, &str, MountFlags, &CStr)] = &[
    ("/proc", "proc", QUIET, c""),
    ("/sys", "sysfs", QUIET, c""),
    ("/dev", "devtmpfs", MountFlags::NOSUID.union(MountFlags::NOEXEC), c"mode=0755"),
    ("/dev/pts", "devpts", MountFlags::NOSUID.union(MountFlags::NOEXEC), c"gid=5,mode=0620,ptmxmode=0666"),
    ("/dev/shm", "tmpfs", QUIET, c"mode=1777"),
    // Container root file systems and the runner's files live below /run: programs and devices are meant to work there.
    ("/run", "tmpfs", MountFlags::empty(), c"mode=0755"),
    ("/tmp", "tmpfs", MountFlags::NOSUID.union(MountFlags::NODEV), c"mode=1777"),
    ("/sys/fs/cgroup", "cgroup2", QUIET, c"nsdelegate,memory_recursiveprot"),
];

/// Controllers that containers' cgroups use. Those that this kernel lacks are left out.
const CONTROLLERS: &[&str] = &["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

const NEW_ROOT: &str = "/sysroot";

/// Mounts everything.
pub(super) fn mount_all() -> Result<(), Stop> {
    leave_initial_root().map_err(|e| failed("mounts", "root", &e.into()))?;
    for (path, kind, flags, options) in MOUNTS {
        make_folder(path).map_err(|e| failed("mounts", *path, &e.into()))?;
        match mount(*kind, *path, *kind, *flags, *options) {
            // Kernels may mount devtmpfs by themselves.
            Ok(()) | Err(Errno::BUSY) => {}
            Err(e) => return Err(failed("mounts", *path, &e.into())),
        }
    }
    for controller in CONTROLLERS {
        let _ = std::fs::write("/sys/fs/cgroup/cgroup.subtree_control", format!("+{controller}"));
    }
    Ok(())
}

/// Puts a mount of its own over the initial root: containers are started with `pivot_root`, which refuses to leave the initial one.
fn leave_initial_root() -> Result<(), Errno> {
    make_folder(NEW_ROOT)?;
    mount_bind("/", NEW_ROOT)?;
    rustix::process::chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")
}

fn make_folder(path: &str) -> Result<(), Errno> {
    match rustix::fs::mkdir(path, Mode::from(0o755)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
