//! The folders that a kubelet makes for a pod, with the layouts that it gives them.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::World;

/// A kubelet's folder on a node. Paths that it gives are those that containerd sees.
#[derive(Debug, Clone)]
pub struct Kubelet {
    folder: PathBuf,
    /// The same folder for this program: mounts on the node are the node's own.
    reachable: PathBuf,
    /// `nsenter` and its arguments up to the program.
    enter: Vec<std::ffi::OsString>,
}

/// A folder to be mounted into containers.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Where containerd finds it.
    pub path: PathBuf,
    reachable: PathBuf,
}

static NEXT_REVISION: AtomicU32 = AtomicU32::new(1);

impl Kubelet {
    pub(super) fn new(world: &World) -> Result<Self> {
        let folder = world.folder().join("kubelet");
        std::fs::create_dir_all(folder.join("pods"))?;
        let command = world.netns().command("true");
        let mut enter: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).map(ToOwned::to_owned).collect();
        enter.pop();
        Ok(Self { reachable: world.netns().inside(&folder), folder, enter })
    }

    /// The node's folder of log files of a pod.
    pub fn logs(&self, uid: &str) -> Result<PathBuf> {
        let folder = self.folder.join("logs").join(uid);
        std::fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// A file below the pod's folder, such as `etc-hosts`.
    pub fn file(&self, uid: &str, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.folder.join("pods").join(uid).join(name);
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        std::fs::write(&path, content)?;
        // As the kubelet makes its termination logs and hosts files, whatever the umask.
        let mode = if name.starts_with("containers/") { 0o666 } else { 0o644 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        Ok(path)
    }

    /// An emptyDir on disk.
    pub fn empty_dir(&self, uid: &str, name: &str) -> Result<Volume> {
        let volume = self.volume(uid, "kubernetes.io~empty-dir", name)?;
        volume.set_mode(0o777)?;
        Ok(volume)
    }

    /// An emptyDir in memory, with a limit.
    pub fn memory_dir(&self, uid: &str, name: &str, size_kib: u32) -> Result<Volume> {
        let volume = self.volume(uid, "kubernetes.io~empty-dir", name)?;
        self.mount_tmpfs(&volume, &format!("size={size_kib}k,mode=0777"))?;
        volume.set_mode(0o777)?;
        Ok(volume)
    }

    /// A ConfigMap or a downward API volume.
    pub fn config_map(&self, uid: &str, name: &str, files: &[(&str, &str)]) -> Result<Volume> {
        let volume = self.volume(uid, "kubernetes.io~configmap", name)?;
        volume.set_mode(0o777)?;
        volume.write(files)?;
        Ok(volume)
    }

    /// A Secret or a projected volume, which the kubelet keeps in memory.
    pub fn secret(&self, uid: &str, plugin: &str, name: &str, files: &[(&str, &str)]) -> Result<Volume> {
        let volume = self.volume(uid, plugin, name)?;
        self.mount_tmpfs(&volume, "size=1024k")?;
        volume.set_mode(0o1777)?;
        volume.write(files)?;
        Ok(volume)
    }

    /// One folder or file of a volume, mounted where the kubelet mounts a `subPath`.
    pub fn sub_path(&self, uid: &str, volume: &Volume, name: &str, container: &str, below: &str) -> Result<Volume> {
        let relative = Path::new("pods").join(uid).join("volume-subpaths").join(name).join(container).join("0");
        let source = volume.path.join(below);
        let (path, reachable) = (self.folder.join(&relative), self.reachable.join(&relative));
        if volume.reachable.join(below).is_dir() {
            std::fs::create_dir_all(&path)?;
        } else {
            std::fs::create_dir_all(path.parent().context("no folder")?)?;
            std::fs::write(&path, b"")?;
        }
        self.run("mount", &["--bind", &source.display().to_string(), &path.display().to_string()])?;
        Ok(Volume { path, reachable })
    }

    /// Removes a pod's folder and what is mounted in it.
    pub fn forget(&self, uid: &str) {
        let folder = self.folder.join("pods").join(uid);
        let folder = folder.display();
        // From the inside out; the kubelet does the same.
        let script = format!("grep -o ' {folder}[^ ]* ' /proc/self/mountinfo | sort -r | xargs -r umount; rm -rf {folder}");
        let _ = self.run("sh", &["-c", &script]);
    }

    fn volume(&self, uid: &str, plugin: &str, name: &str) -> Result<Volume> {
        let relative = Path::new("pods").join(uid).join("volumes").join(plugin).join(name);
        let volume = Volume { path: self.folder.join(&relative), reachable: self.reachable.join(&relative) };
        std::fs::create_dir_all(&volume.path)?;
        Ok(volume)
    }

    fn mount_tmpfs(&self, volume: &Volume, options: &str) -> Result<()> {
        self.run("mount", &["-t", "tmpfs", "-o", options, "tmpfs", &volume.path.display().to_string()])
    }

    /// Runs a program where containerd's mounts are.
    fn run(&self, program: &str, args: &[&str]) -> Result<()> {
        let mut words = self.enter.iter();
        let out = Command::new(words.next().context("no nsenter")?).args(words).arg(program).args(args).output()?;
        if !out.status.success() {
            bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }
}

impl Volume {
    /// Gives the volume to a group as `fsGroup` does: the group may write, and files inherit it.
    pub fn give_to_group(&self, group: u32) -> Result<()> {
        let mut folders = vec![self.reachable.clone()];
        while let Some(folder) = folders.pop() {
            chown(&folder, None, Some(group))?;
            let mode = std::fs::metadata(&folder)?.permissions().mode();
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode | 0o2070))?;
            for entry in std::fs::read_dir(&folder)?.flatten().filter(|e| !e.path().is_symlink()) {
                if entry.file_type()?.is_dir() {
                    folders.push(entry.path());
                } else {
                    chown(entry.path(), None, Some(group))?;
                    let mode = entry.metadata()?.permissions().mode();
                    std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(mode | 0o060))?;
                }
            }
        }
        Ok(())
    }

    /// A plain file in it.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.reachable.join(name);
        std::fs::create_dir_all(path.parent().context("no folder")?)?;
        std::fs::write(path, content)?;
        Ok(())
    }

    /// A folder in it.
    pub fn folder(&self, name: &str) -> Result<()> {
        Ok(std::fs::create_dir_all(self.reachable.join(name))?)
    }

    /// What a file in it holds, as the node sees it.
    pub fn get(&self, name: &str) -> Result<Vec<u8>> {
        Ok(std::fs::read(self.reachable.join(name))?)
    }

    /// Replaces the whole content at one instant, as the kubelet's atomic writer does: files are links through `..data`, which is
    /// a link to a folder of one revision.
    pub fn write(&self, files: &[(&str, &str)]) -> Result<()> {
        let root = &self.reachable;
        let revision = format!("..2026_01_01_00_00_00.{:010}", NEXT_REVISION.fetch_add(1, Ordering::Relaxed));
        let before = std::fs::read_link(root.join("..data")).ok();
        for (name, content) in files {
            let path = root.join(&revision).join(name);
            std::fs::create_dir_all(path.parent().context("no folder")?)?;
            std::fs::write(&path, content)?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))?;
        }
        std::fs::set_permissions(root.join(&revision), std::fs::Permissions::from_mode(0o755))?;
        symlink(&revision, root.join("..data_tmp"))?;
        std::fs::rename(root.join("..data_tmp"), root.join("..data"))?;
        // The first component of each path is the link that people see.
        let tops: BTreeMap<&str, ()> = files.iter().filter_map(|(name, _)| Some((name.split('/').next()?, ()))).collect();
        for top in tops.keys() {
            if !root.join(top).is_symlink() {
                symlink(Path::new("..data").join(top), root.join(top))?;
            }
        }
        for entry in std::fs::read_dir(root)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with("..") && !tops.contains_key(name.as_str()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        if let Some(before) = before {
            std::fs::remove_dir_all(root.join(before))?;
        }
        Ok(())
    }

    fn set_mode(&self, mode: u32) -> Result<()> {
        Ok(std::fs::set_permissions(&self.reachable, std::fs::Permissions::from_mode(mode))?)
    }
}
