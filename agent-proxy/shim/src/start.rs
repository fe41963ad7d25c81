//! What containerd asks of the program itself: start a shim, serve, clean up after one that died.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use containerd_shim::asynchronous::publisher::RemotePublisher;
use containerd_shim::asynchronous::{ExitSignal, Shim, spawn};
use containerd_shim::util::write_str_to_file;
use containerd_shim::{Config, Error, Flags, Result, StartOpts, api};

use crate::bundle::SandboxFile;
use crate::daemon::Daemon;
use crate::events::{Events, Publisher};
use crate::process::LOST;
use crate::task::TaskService;
use crate::{cgroup, clock, create};

/// The program in each of its roles.
pub struct PeerShim {
    namespace: String,
    bundle: PathBuf,
    exit: Arc<ExitSignal>,
    publisher: Mutex<Option<Publisher>>,
}

/// How long a clean-up tries to reach the node daemon, which notices by itself that a shim is gone.
const CLEAN_UP: Duration = Duration::from_secs(5);

#[async_trait]
impl Shim for PeerShim {
    type T = TaskService;

    async fn new(_: &str, flags: &Flags, config: &mut Config) -> Self {
        config.no_setup_logger = true;
        config.no_reaper = true;
        config.no_sub_reaper = true;
        let bundle = if flags.bundle.is_empty() { std::env::current_dir().unwrap_or_default() } else { PathBuf::from(&flags.bundle) };
        Self { namespace: flags.namespace.clone(), bundle, exit: Arc::default(), publisher: Mutex::new(None) }
    }

    /// One process serves all containers of a pod: those that are no sandbox are told where it listens.
    async fn start_shim(&mut self, options: StartOpts) -> Result<String> {
        let spec = create::read_spec(Path::new(".")).map_err(|failure| Error::Other(failure.to_string()))?;
        let address = match create::sandbox_of(&spec) {
            Some(sandbox) => containerd_shim::socket_address(&options.address, &options.namespace, &sandbox),
            None => {
                let group = options.id.clone();
                spawn(options, &group, Vec::new()).await?
            }
        };
        write_str_to_file("address", &address).await?;
        Ok(address)
    }

    async fn delete_shim(&mut self) -> Result<api::DeleteResponse> {
        match SandboxFile::read(&self.bundle) {
            Ok(Some(file)) => {
                if let Some(path) = &file.cgroup {
                    cgroup::remove(path);
                }
                if let Err(failure) = Daemon::new(file.hypervisor_socket).stop(&file.sandbox_id, CLEAN_UP).await {
                    eprintln!("peerpods: {failure}; the node daemon stops sandbox {} itself once it runs", file.sandbox_id);
                }
            }
            Ok(None) => {}
            Err(error) => eprintln!("peerpods: the sandbox's file in {} cannot be read: {error}", self.bundle.display()),
        }
        let mut response = api::DeleteResponse::new();
        response.exit_status = LOST;
        response.exited_at = Some(clock::now()).into();
        Ok(response)
    }

    async fn wait(&mut self) {
        self.exit.wait().await;
        let publisher = self.publisher.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(publisher) = publisher {
            publisher.flush().await;
        }
    }

    async fn create_task_service(&self, publisher: RemotePublisher) -> TaskService {
        let (events, task) = Events::new(&publisher.address, &self.namespace);
        *self.publisher.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        TaskService::new(self.namespace.clone(), events, Arc::clone(&self.exit))
    }
}
