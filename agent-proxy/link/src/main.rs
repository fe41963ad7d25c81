//! One pod's data path: agent connections on a unix socket carried through the tunnel.

use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use peerpods_link::folder::{self, LinkFile, LinkStatus, ProcessIdentity};
use peerpods_link::{TunnelDialer, forward, serve};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

/// Carry one pod's agent connections to its pod VM.
///
/// The node daemon starts one of these per pod, for shims that open the agent socket once and never again (Kata's). It leaves the
/// daemon's session at once and lives until it gets SIGTERM, its folder is removed, or the session with the pod VM is lost, which is
/// then written to status.json. The log goes to standard error.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The pod's folder, which holds link.json
    #[arg(long)]
    dir: PathBuf,
}

/// How often the folder is looked at.
const FOLDER_INTERVAL: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = Args::parse();
    // Out of the daemon's session: what stops the daemon must not stop the pod. Fails only for the first process of a session, which
    // is where this wants to be.
    let _ = rustix::process::setsid();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_max_level(tracing::Level::INFO).init();
    match run(&args.dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(dir: &Path) -> Result<()> {
    let file = LinkFile::read(dir)?;
    let Some(_lock) = folder::lock(dir)? else {
        tracing::info!(sandbox_id = file.sandbox_id, "another link serves this folder; nothing to do");
        return Ok(());
    };
    let dialer = TunnelDialer::new(&file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting the runtime")?;
    let outcome = runtime.block_on(serve_folder(dir, &file, dialer));
    // The status must not promise a socket that is gone; the lock is held until here.
    let _ = std::fs::remove_file(&file.socket);
    outcome
}

async fn serve_folder(dir: &Path, file: &LinkFile, dialer: TunnelDialer) -> Result<()> {
    let mut status = LinkStatus::new(ProcessIdentity::own()?);
    let listener = listen(&file.socket)?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    status.write(dir)?;
    tracing::info!(sandbox_id = file.sandbox_id, instance_id = file.instance_id, address = %file.address, "serving the agent socket");
    let forwarding = forward::serve(file.netns.clone(), dialer.agent_dialer().clone());
    let lost = {
        let status = &mut status;
        let serving = serve(listener, Arc::new(dialer), move |counts| {
            status.connections = counts.connections;
            status.accepted = counts.accepted;
            status.resuming = counts.resuming;
            if let Err(error) = status.write(dir) {
                tracing::warn!(%error, "the daemon sees an old status");
            }
        });
        tokio::select! {
            reason = serving => Some(reason),
            () = forwarding => None,
            _ = terminate.recv() => { tracing::info!("SIGTERM"); None }
            () = folder_gone(dir) => { tracing::info!("the folder is gone"); None }
        }
    };
    if let Some(reason) = lost {
        status.connections = 0;
        status.resuming = 0;
        status.lost = Some(reason);
        status.write(dir)?;
    }
    Ok(())
}

/// Binds under another name first: a shim never finds a socket that does not listen, or one with a wide mode.
fn listen(path: &Path) -> Result<UnixListener> {
    if let Ok(found) = std::fs::symlink_metadata(path)
        && !found.file_type().is_socket()
    {
        bail!("{} exists and is not a socket", path.display());
    }
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let listener = UnixListener::bind(&new).with_context(|| format!("binding {}", new.display()))?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).with_context(|| format!("protecting {}", new.display()))?;
    std::fs::rename(&new, path).with_context(|| format!("moving the socket to {}", path.display()))?;
    Ok(listener)
}

async fn folder_gone(dir: &Path) {
    let mut interval = tokio::time::interval(FOLDER_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if !LinkFile::exists(dir) {
            return;
        }
    }
}
