//! One container of the pod: its processes and what the node keeps for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use crate::failure::Failure;
use crate::files::Watcher;
use crate::process::Process;
use crate::stand_in::StandIn;

/// A container that the agent knows.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its folder on the node.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: Arc<Process>,
    /// Whether it is frozen.
    pub is_paused: AtomicBool,
    /// Where its termination message goes on the node.
    pub termination_log: Option<PathBuf>,
    /// Keeps its files up to date.
    pub watcher: Mutex<Option<Watcher>>,
    stand_in: StandIn,
    execs: Mutex<BTreeMap<String, Arc<Process>>>,
}

impl Container {
    /// A container without execs.
    pub fn new(
        id: String,
        bundle: PathBuf,
        init: Arc<Process>,
        termination_log: Option<PathBuf>,
        watcher: Option<Watcher>,
        stand_in: StandIn,
    ) -> Self {
        let (is_paused, watcher, execs) = (AtomicBool::new(false), Mutex::new(watcher), Mutex::default());
        Self { id, bundle, init, is_paused, termination_log, watcher, stand_in, execs }
    }

    /// The process id that containerd knows it by.
    pub fn pid(&self) -> u32 {
        self.stand_in.pid()
    }

    /// The first process for an empty id, or an exec.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, Failure> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        self.lock().get(exec_id).cloned().ok_or_else(|| Failure::not_found(&format!("exec {exec_id} of container {}", self.id)))
    }

    /// Adds an exec.
    pub fn add(&self, exec: Arc<Process>) -> Result<(), Failure> {
        let mut execs = self.lock();
        let id = exec.address.exec_id.clone();
        if execs.contains_key(&id) {
            return Err(Failure::new(containerd_shim_protos::ttrpc::Code::ALREADY_EXISTS, format!("exec {id}: already exists")));
        }
        execs.insert(id, exec);
        Ok(())
    }

    /// Forgets an exec.
    pub fn remove(&self, exec_id: &str) {
        self.lock().remove(exec_id);
    }

    /// All processes, the first one last: containerd hears of its end after that of its execs.
    pub fn processes(&self) -> Vec<Arc<Process>> {
        self.lock().values().cloned().chain([Arc::clone(&self.init)]).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
