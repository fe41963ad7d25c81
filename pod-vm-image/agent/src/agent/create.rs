//! How a container comes into being: storages, root filesystem, specification, first process.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::{Mount, MountBuilder, Spec};
use peerpods_protos::agent::{CreateContainerRequest, Storage};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tokio::sync::watch;
use ttrpc::Code;

use super::Agent;
use crate::confine::{self, PidNamespace, Placement};
use crate::container::{self, Container, Parts};
use crate::failure::{Failure, chain, text};
use crate::oom::OomWatch;
use crate::process::Process;
use crate::runner::PAUSE;
use crate::sandbox::Sandbox;
use crate::{ImageRequest, copy_up, secrets, translate, users};

const GUEST_PULL: &str = "image_guest_pull";
/// A driver option of our own shim: the digest of the image's configuration.
const CONFIG_OPTION: &str = "peerpods.config=";
/// Another: the container whose pid namespace this one joins, where that is not the pause container.
const PID_OPTION: &str = "peerpods.pid-namespace-of=";
/// How containerd, CRI-O and Kata mark the sandbox's own container.
const CONTAINER_TYPES: [(&str, &str); 3] = [
    ("io.kubernetes.cri.container-type", "sandbox"),
    ("io.kubernetes.cri-o.ContainerType", "sandbox"),
    ("io.katacontainers.pkg.oci.container_type", "pod_sandbox"),
];
/// Where the pause process finds itself.
const PAUSE_FILE: &str = "/pause";

/// Creates a container up to its start, or undoes what was done.
pub(super) async fn create(
    agent: &Agent,
    sandbox: &Sandbox,
    request: &CreateContainerRequest,
    mut cancelled: watch::Receiver<bool>,
) -> Result<Container, Failure> {
    let id = &request.container_id;
    let mut parts = Parts {
        id: id.clone(),
        cgroup: agent.hierarchies.cgroup(&Path::new(&agent.config.cgroup_parent).join(id)),
        folder: agent.config.share_dir.join(id),
        copied: agent.config.share_dir.join("shared/containers"),
        bundle: agent.config.run_dir.join("bundles").join(id),
        state_root: agent.config.run_dir.join("containers"),
        mounts: Vec::new(),
        is_pulled: false,
        is_katas: true,
        image_user: String::new(),
    };
    match build(agent, sandbox, request, &mut parts, &mut cancelled).await {
        Ok((init, oom, spec)) => Ok(Container::new(parts, init, oom, &spec)),
        Err(failure) => {
            // Files copied for it stay: the shim may try again with them.
            parts.copied = PathBuf::new();
            if let Err(left) = parts.take_away(agent.rootfs.as_ref()).await {
                tracing::warn!(container_id = id, error = left.message(), "undoing a creation");
            }
            Err(failure)
        }
    }
}

async fn build(
    agent: &Agent,
    sandbox: &Sandbox,
    request: &CreateContainerRequest,
    parts: &mut Parts,
    cancelled: &mut watch::Receiver<bool>,
) -> Result<(Arc<Process>, Arc<OomWatch>, Spec), Failure> {
    let from = request.OCI.as_ref().ok_or_else(|| Failure::invalid("the request has no OCI specification"))?;
    let mut spec = translate::spec(from)?;
    let is_pause = is_pause(request, &spec);
    let placement = place(agent, sandbox, request, parts)?;

    let (roots, others): (Vec<&Storage>, Vec<&Storage>) = request.storages.iter().partition(|storage| storage.driver == GUEST_PULL);
    for storage in &others {
        parts.mounts.extend(agent.volumes.ensure(storage)?);
    }
    let [root] = roots[..] else { return Err(Failure::invalid(format!("{} storages of driver {GUEST_PULL} instead of one", roots.len()))) };
    bring_root(agent, root, is_pause, parts, cancelled).await?;
    for (storage, path) in others.iter().filter_map(|storage| Some((storage, copy_up::source(storage)?.to_owned()))) {
        let (root, target) = (parts.rootfs(), PathBuf::from(&storage.mount_point));
        let filled = tokio::task::spawn_blocking(move || copy_up::fill(&root, &path, &target)).await;
        let failed = |error: &dyn std::error::Error| Failure::because("filling a volume of the image", error);
        filled.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
    }

    for mount in spec.mounts().iter().flatten().filter(|mount| mount.typ().as_deref() == Some("bind")) {
        agent.volumes.check_source(mount.source().as_deref().unwrap_or(Path::new("")))?;
    }
    if !is_pause {
        let folder = parts.bundle.join("unsealed");
        secrets::open(&mut spec, &parts.copied, &folder, agent.secrets.as_ref(), cancelled).await?;
    }
    let bad_spec = |error: oci_spec::OciSpecError| Failure::because("making the specification", &error);
    if is_pause {
        become_pause(&mut spec, &agent.config.runner).map_err(|error| Failure::because("making the pause container", &error))?;
    } else {
        add_resolv_conf(&mut spec, sandbox).map_err(bad_spec)?;
        if let Some(mut process) = spec.process().clone() {
            users::resolve(&parts.rootfs(), &parts.image_user, &mut process)?;
            spec.set_process(Some(process));
        }
        let cwd = spec.process().as_ref().map(|process| process.cwd().clone()).unwrap_or_default();
        // Before the root becomes read-only; below a mount the runner makes it.
        ensure_folder(&parts.rootfs(), &cwd).map_err(|error| Failure::not_created(&format!("error during container init: {error}")))?;
    }
    confine::place(&mut spec, &placement, &agent.grants).map_err(bad_spec)?;
    let capabilities = spec.process().as_ref().and_then(|process| process.capabilities().clone());
    let mut process = spec.process().clone().unwrap_or_default();
    let confinement = confine::take_confinement(&mut process);
    spec.set_process(Some(process));
    fs::create_dir_all(&parts.bundle).map_err(|error| Failure::because("making the bundle", &error))?;
    spec.save(parts.bundle.join("config.json")).map_err(bad_spec)?;
    if let Some(mut process) = spec.process().clone() {
        process.set_capabilities(capabilities);
        spec.set_process(Some(process));
    }

    let terminal = from.Process.as_ref().is_some_and(|process| process.Terminal) && !is_pause;
    let oom = Arc::new(OomWatch::new(&parts.id, parts.cgroup.clone(), agent.oom_events.clone()));
    let watch = oom.clone();
    let init = Process::build(&agent.config.runner, parts.create_command(terminal, confinement), move || watch.check()).await;
    let init = init.map_err(|reason| Failure::not_created(&reason))?;
    if let Some(process) = from.Process.as_ref() {
        container::set_size(&init, process);
    }
    Ok((init, oom, spec))
}

/// The agent has a pause process of its own; the image of the node's configuration is never pulled.
fn is_pause(request: &CreateContainerRequest, spec: &Spec) -> bool {
    let annotations = spec.annotations().clone().unwrap_or_default();
    CONTAINER_TYPES.iter().any(|(key, value)| annotations.get(*key).is_some_and(|found| found == value))
        || request.storages.iter().any(|storage| storage.driver == GUEST_PULL && storage.source == "pause")
}

fn place(agent: &Agent, sandbox: &Sandbox, request: &CreateContainerRequest, parts: &Parts) -> Result<Placement, Failure> {
    let pid = if request.sandbox_pidns && request.container_id != sandbox.id() {
        let options = request.storages.iter().filter(|storage| storage.driver == GUEST_PULL).flat_map(|storage| &storage.driver_options);
        let of = options.filter_map(|option| option.strip_prefix(PID_OPTION)).next_back().unwrap_or(sandbox.id());
        let no_such = || Failure::new(Code::FAILED_PRECONDITION, format!("no container {of} whose pid namespace could be shared"));
        let other = agent.container(of).ok_or_else(no_such)?;
        PidNamespace::Of(PathBuf::from(format!("/proc/{}/ns/pid", other.init.pid())))
    } else {
        PidNamespace::New
    };
    Ok(Placement {
        ipc: sandbox.ipc(),
        uts: sandbox.uts(),
        network: agent.config.pod_netns.clone(),
        pid,
        cgroup: parts.cgroup.path(),
        cgroup_v1_folders: parts.cgroup.v1_folders(),
        rootfs: parts.rootfs(),
    })
}

async fn bring_root(
    agent: &Agent,
    storage: &Storage,
    is_pause: bool,
    parts: &mut Parts,
    cancelled: &mut watch::Receiver<bool>,
) -> Result<(), Failure> {
    let target = parts.rootfs();
    if Path::new(&storage.mount_point) != target {
        return Err(Failure::invalid(format!("the root filesystem belongs to {}, not to {}", target.display(), storage.mount_point)));
    }
    fs::create_dir_all(&target).map_err(|error| Failure::because("making the root's folder", &error))?;
    if is_pause {
        return Ok(());
    }
    parts.is_pulled = true;
    let config_digest = storage.driver_options.iter().find_map(|option| option.strip_prefix(CONFIG_OPTION)).map(str::to_owned);
    parts.is_katas = config_digest.is_none();
    let image = ImageRequest { reference: storage.source.clone(), config_digest };
    tokio::select! {
        pulled = agent.rootfs.pull(&image, &parts.id, &target) => {
            parts.image_user = pulled.map_err(|error| Failure::internal(chain(&error)))?.user;
            Ok(())
        }
        _ = cancelled.wait_for(|cancelled| *cancelled) => Err(Failure::cancelled()),
    }
}

/// Runs the runner's own program, bound into an otherwise empty root, without any capability.
fn become_pause(spec: &mut Spec, runner: &[std::ffi::OsString]) -> io::Result<()> {
    let (program, args) = runner.split_first().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let program = fs::canonicalize(program)?;
    let mut command = vec![PAUSE_FILE.to_owned()];
    command.extend(args.iter().map(|arg| arg.to_string_lossy().into_owned()));
    command.push(PAUSE.to_owned());
    if let Some(mut process) = spec.process().clone() {
        let mut none = oci_spec::runtime::LinuxCapabilities::default();
        none.set_bounding(Some([].into()))
            .set_effective(Some([].into()))
            .set_permitted(Some([].into()))
            .set_inheritable(Some([].into()))
            .set_ambient(Some([].into()));
        process.set_args(Some(command)).set_cwd("/".into()).set_terminal(Some(false));
        process.set_capabilities(Some(none)).set_no_new_privileges(Some(true));
        spec.set_process(Some(process));
    }
    let mount = bind(&program, Path::new(PAUSE_FILE), &["bind", "ro"]).map_err(io::Error::other)?;
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    mounts.push(mount);
    spec.set_mounts(Some(mounts));
    Ok(())
}

/// A container for which the shim brings no resolv.conf gets the sandbox's.
fn add_resolv_conf(spec: &mut Spec, sandbox: &Sandbox) -> Result<(), oci_spec::OciSpecError> {
    const TARGET: &str = "/etc/resolv.conf";
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    if let Some(file) = sandbox.resolv_conf()
        && mounts.iter().all(|mount| mount.destination() != Path::new(TARGET))
    {
        mounts.push(bind(file, Path::new(TARGET), &["rbind", "rprivate", "ro"])?);
        spec.set_mounts(Some(mounts));
    }
    Ok(())
}

fn bind(source: &Path, destination: &Path, options: &[&str]) -> Result<Mount, oci_spec::OciSpecError> {
    let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
    MountBuilder::default().destination(destination).source(source).typ("bind").options(options).build()
}

/// Makes a folder of the container's root as the container would see it: its links lead to places in the root. What does not work is
/// told as runc tells it.
fn ensure_folder(root: &Path, folder: &Path) -> Result<(), String> {
    let failed = |path: &Path, error: Errno| format!("mkdir {}: {}", path.display(), text(error));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty()).map_err(|error| failed(root, error))?;
    let open = |path: &Path| rustix::fs::openat2(&root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS);
    let mut path = PathBuf::from("/");
    let mut parent = open(&path).map_err(|error| failed(&path, error))?;
    for name in folder.strip_prefix("/").map_err(|_| format!("Cwd {} is no absolute path", folder.display()))? {
        path.push(name);
        let opened = match open(&path) {
            Err(Errno::NOENT) => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)).and_then(|()| open(&path)),
            result => result,
        };
        parent = opened.map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn working_directory_is_made_inside_the_root() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/data", root.path().join("link")).unwrap();
        fs::create_dir(root.path().join("data")).unwrap();
        ensure_folder(root.path(), Path::new("/link/a/b")).unwrap();
        assert!(root.path().join("data/a/b").is_dir());
        ensure_folder(root.path(), Path::new("/link/a/b")).unwrap();
        ensure_folder(root.path(), Path::new("/")).unwrap();
        assert!(ensure_folder(root.path(), Path::new("relative")).is_err());
    }
}
