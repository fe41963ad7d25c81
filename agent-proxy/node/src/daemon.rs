//! `peerpods-node run`: the parts put together.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use peerpods_claims::Client;
use peerpods_protos::hypervisor_ttrpc::create_hypervisor;
use peerpods_protos::node_ttrpc::create_node;
use peerpods_tunnel::credential::NodeKey;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, TrustConfig};
use crate::containerd::Resolver;
use crate::driver::{Context, Timing};
use crate::http;
use crate::metrics::Metrics;
use crate::node_service::NodeService;
use crate::ports::{Kernel, LinkProcesses, Ports, TunnelBinder};
use crate::registry::Registry;
use crate::service::HypervisorService;
use crate::snapshotter::{self, Snapshotter};
use crate::store::Store;

/// Serves shims until SIGTERM or SIGINT. Pods stay: links hold their connections, and the next daemon goes on from the files.
pub async fn run(config: &Config) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    for dir in [&config.state_dir, &config.pods_dir] {
        make_dir(dir)?;
    }
    let _lock = lock(&config.state_dir)?;
    let store = Store::open(&config.state_dir)?;
    let loaded = store.load()?;
    store.tidy(&loaded.damaged)?;

    let trust = config.trust.as_ref().map(TrustConfig::read).transpose()?.unwrap_or_default();
    let (node_key, key_path) = node_key(&config.state_dir)?;
    let links = LinkProcesses::new(config.link.clone(), config.pods_dir.clone(), key_path)?;
    let ports = Ports {
        claims: Arc::new(Client::connect(&config.claims_socket)),
        pod_vms: Arc::new(TunnelBinder::new(node_key.clone(), trust)),
        networks: Arc::new(Kernel),
        links: Arc::new(links),
    };
    let node_key_pem = node_key.to_pem().to_string();
    let metrics = Metrics::default();
    let timing = Timing::new(config.start_timeout(), config.takeover());
    let context = Context { ports, store, timing, node: config.node.clone(), node_key, metrics: metrics.clone() };
    let registry = Registry::start(Arc::new(context), loaded.records);

    let metrics_task = match config.metrics {
        None => None,
        Some(address) => {
            let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("metrics = {address}: cannot listen"))?;
            tracing::info!(address = %listener.local_addr()?, "serving /metrics");
            let registry = Arc::clone(&registry);
            Some(tokio::spawn(http::serve(listener, move || metrics.encode(registry.states().into_iter()))))
        }
    };
    let images = Arc::new(Resolver::new(config.containerd_socket.clone()));
    let snapshotter_task = match &config.snapshotter {
        None => None,
        Some(snapshotter) => {
            let store = snapshotter::open(&snapshotter.state_dir)?;
            let listener = listen(&snapshotter.socket)?;
            tracing::info!(socket = %snapshotter.socket.display(), "serving containerd's snapshotter");
            let users: Arc<dyn snapshotter::ImageUsers> = images.clone();
            Some(tokio::spawn(snapshotter::serve(listener, Snapshotter::new(store, users))))
        }
    };
    let node_service = NodeService::new(Arc::clone(&registry), node_key_pem, images, config.start_timeout());
    let service = HypervisorService::new(Arc::clone(&registry), config.start_timeout());
    let listener = listen(&config.hypervisor_socket)?;
    let mut server = ttrpc::r#async::Server::new()
        .add_listener(listener.into())
        .register_service(create_hypervisor(Arc::new(service)))
        .register_service(create_node(Arc::new(node_service)));
    server.start().await.context("starting the hypervisor service")?;
    tracing::info!(socket = %config.hypervisor_socket.display(), node = %config.node, "serving shims");

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("shutting down; pods stay");
    server.stop_listen().await;
    registry.shut_down().await;
    if let Some(task) = snapshotter_task {
        task.abort();
    }
    if let Some(task) = metrics_task {
        task.abort();
    }
    let _ = std::fs::remove_file(&config.hypervisor_socket);
    Ok(())
}

fn make_dir(dir: &Path) -> Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).with_context(|| format!("making {}", dir.display()))
}

/// One daemon a folder; the lock goes with the process.
fn lock(state_dir: &Path) -> Result<File> {
    let path = state_dir.join("lock");
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("another peerpods-node uses {}: stop it, or give this one a state_dir of its own", state_dir.display())
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
    }
}

/// The node's key: made once, because pod VMs that are bound know it.
fn node_key(state_dir: &Path) -> Result<(NodeKey, PathBuf)> {
    let path = state_dir.join("node-key.pem");
    match std::fs::read_to_string(&path) {
        Ok(pem) => {
            let key = NodeKey::from_pem(&pem);
            let key = key.with_context(|| format!("{} is damaged: stop this node's peer pods, then remove it", path.display()))?;
            return Ok((key, path));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    }
    let key = NodeKey::generate().context("making the node's key")?;
    let temporary = state_dir.join("node-key.tmp");
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(key.to_pem().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        File::open(state_dir)?.sync_all()
    };
    write().with_context(|| format!("writing {}", path.display()))?;
    Ok((key, path))
}

/// The name appears only when the socket listens with mode 0600; one that a dead daemon left is replaced.
fn listen(path: &Path) -> Result<UnixListener> {
    if let Ok(found) = std::fs::symlink_metadata(path)
        && !found.file_type().is_socket()
    {
        bail!("hypervisor_socket: {} exists and is not a socket", path.display());
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
    }
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new).with_context(|| format!("binding {}", new.display()))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).with_context(|| format!("protecting {}", new.display()))?;
    std::fs::rename(&new, path).with_context(|| format!("moving the socket to {}", path.display()))?;
    Ok(listener)
}
