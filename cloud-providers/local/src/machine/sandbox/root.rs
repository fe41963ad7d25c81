//! A sandbox machine's file system: a tmpfs with what a pod VM's init would have made of a bare kernel.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::super::qemu::BOOT_FILES;
use super::cgroups::{Hierarchy, Kind};

const NONE: Option<&str> = None;

/// Builds the root in the machine's folder, out of sight of the host's mount table, and makes it the calling process's.
pub(crate) fn enter(folder: &Path, guest: &Path, hierarchies: &[Hierarchy]) -> Result<(), String> {
    let root = folder.join("root");
    let say = |step: &'static str| move |error: io::Error| format!("{step}: {error}");
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .map_err(io::Error::from)
        .map_err(say("leaving the host's mounts"))?;
    filesystem("tmpfs", &root, MsFlags::empty(), Some("mode=755")).map_err(say("mounting the root"))?;
    folders(&root).map_err(say("making folders"))?;
    bind_guest(guest, &root.join("init")).map_err(say("binding the guest binary"))?;
    kernel_filesystems(&root).map_err(say("mounting proc and sys"))?;
    cgroup_filesystems(&root.join("sys/fs/cgroup"), hierarchies).map_err(say("mounting cgroups"))?;
    devices(&root.join("dev")).map_err(say("making devices"))?;
    boot_files(folder, &root.join("run/peerpods")).map_err(say("handing over boot files"))?;
    pivot(&root).map_err(say("changing the root"))
}

fn folders(root: &Path) -> io::Result<()> {
    for name in ["dev", "etc", "proc", "sys", "run/peerpods/boot", "run/peerpods/scratch", "var"] {
        DirBuilder::new().recursive(true).mode(0o755).create(root.join(name))?;
    }
    for name in ["tmp", "var/tmp"] {
        fs::create_dir(root.join(name))?;
        // The mode of a new folder is cut by the umask.
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o1777))?;
    }
    Ok(())
}

fn bind_guest(guest: &Path, init: &Path) -> io::Result<()> {
    File::create(init)?;
    bind(guest, init)?;
    mount(NONE, init, NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE)?;
    Ok(())
}

fn kernel_filesystems(root: &Path) -> io::Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    filesystem("proc", &root.join("proc"), plain, None)?;
    filesystem("sysfs", &root.join("sys"), plain | MsFlags::MS_RDONLY, None)
}

/// Version 1 controllers each in a folder of its own, or version 2 where there are none; always the machine's own groups only.
fn cgroup_filesystems(target: &Path, hierarchies: &[Hierarchy]) -> io::Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let controllers = |hierarchy: &Hierarchy| match &hierarchy.kind {
        Kind::V1(controllers) => Some(controllers.clone()),
        Kind::Named | Kind::V2 => None,
    };
    let v1: Vec<String> = hierarchies.iter().filter_map(controllers).collect();
    if v1.is_empty() {
        return filesystem("cgroup2", target, plain, None);
    }
    filesystem("tmpfs", target, plain, Some("mode=755"))?;
    for controllers in v1 {
        let folder = target.join(&controllers);
        fs::create_dir(&folder)?;
        filesystem("cgroup", &folder, plain, Some(&controllers))?;
        if controllers.contains(',') {
            for controller in controllers.split(',') {
                symlink(&controllers, target.join(controller))?;
            }
        }
    }
    Ok(())
}

fn devices(dev: &Path) -> io::Result<()> {
    filesystem("tmpfs", dev, MsFlags::MS_NOSUID, Some("mode=755"))?;
    for (name, major, minor) in [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)] {
        let path = dev.join(name);
        mknod(&path, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(major, minor))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    }
    for name in ["pts", "shm"] {
        fs::create_dir(dev.join(name))?;
    }
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    filesystem("devpts", &dev.join("pts"), plain, Some("newinstance,ptmxmode=0666,mode=620"))?;
    filesystem("tmpfs", &dev.join("shm"), plain | MsFlags::MS_NODEV, Some("mode=1777"))?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name))?;
    }
    Ok(())
}

fn boot_files(folder: &Path, run: &Path) -> io::Result<()> {
    for name in BOOT_FILES {
        let file = folder.join("boot").join(name);
        if file.exists() {
            fs::copy(file, run.join("boot").join(name))?;
        }
    }
    File::create(run.join("boot/sandbox"))?;
    bind(&folder.join("scratch"), &run.join("scratch"))
}

fn pivot(root: &Path) -> io::Result<()> {
    std::env::set_current_dir(root)?;
    // The old root lands on top of the new one and is then taken off.
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    std::env::set_current_dir("/")
}

fn filesystem(kind: &str, target: &Path, flags: MsFlags, options: Option<&str>) -> io::Result<()> {
    Ok(mount(Some(kind), target, Some(kind), flags, options)?)
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    Ok(mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)?)
}
