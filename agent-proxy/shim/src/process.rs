//! One process of a container, from its request to its deletion.

use std::sync::{Mutex, PoisonError};

use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use peerpods_protos::oci;
use tokio::sync::{RwLock, watch};

use crate::failure::Failure;
use crate::stdio::{Address, Opened, Stdio, Streams};

/// How a process is.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Not started.
    Created,
    /// Being started: a second start is refused.
    Starting,
    /// Started.
    Running,
    /// Over.
    Exited(Exit),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Exit {
    /// Exit status; 128 + signal when a signal ended it.
    pub status: u32,
    /// When.
    pub at: Timestamp,
}

/// The status of a process whose pod VM is gone, as for one that was killed.
pub const LOST: u32 = 137;

/// A container's first process, or an exec.
#[derive(Debug)]
pub struct Process {
    /// Who it is.
    pub address: Address,
    /// Where its streams go.
    pub stdio: Stdio,
    /// What an exec runs; `None` for the first process.
    pub exec: Option<oci::Process>,
    /// How it is; the owner of the change is whoever starts or supervises it.
    pub state: watch::Sender<State>,
    /// Held for reading while a signal is on its way, for writing while the end is told: containerd hangs up once it knows of the end, and
    /// a Kill whose answer is still to come would fail by that.
    pub signals: RwLock<()>,
    io: Mutex<Io>,
}

#[derive(Debug)]
enum Io {
    Opened(Box<Opened>),
    Running(std::sync::Arc<Streams>),
    Closed,
}

impl Process {
    /// A process that is to be started.
    pub fn new(address: Address, stdio: Stdio, exec: Option<oci::Process>, opened: Opened) -> Self {
        Self {
            address,
            stdio,
            exec,
            state: watch::Sender::new(State::Created),
            signals: RwLock::new(()),
            io: Mutex::new(Io::Opened(Box::new(opened))),
        }
    }

    /// Whether it is the container's first one.
    pub fn is_init(&self) -> bool {
        self.address.exec_id.is_empty()
    }

    /// Created -> Starting.
    pub fn begin_start(&self) -> Result<(), Failure> {
        let mut result = Ok(());
        self.state.send_if_modified(|state| {
            let is_created = *state == State::Created;
            if is_created {
                *state = State::Starting;
            } else {
                result = Err(Failure::precondition(format!("process {} cannot be started twice", self.name())));
            }
            is_created
        });
        result
    }

    /// What is carried must be taken by [`Process::carried`].
    pub fn take_opened(&self) -> Option<Opened> {
        let mut io = self.lock();
        match std::mem::replace(&mut *io, Io::Closed) {
            Io::Opened(opened) => Some(*opened),
            other => {
                *io = other;
                None
            }
        }
    }

    /// The streams are at work.
    pub fn carried(&self, streams: Streams) -> std::sync::Arc<Streams> {
        let streams = std::sync::Arc::new(streams);
        *self.lock() = Io::Running(std::sync::Arc::clone(&streams));
        streams
    }

    /// The streams, if they are at work.
    pub fn streams(&self) -> Option<std::sync::Arc<Streams>> {
        match &*self.lock() {
            Io::Running(streams) => Some(std::sync::Arc::clone(streams)),
            _ => None,
        }
    }

    /// Lets go of the streams.
    pub fn close(&self) {
        *self.lock() = Io::Closed;
    }

    /// The end, if it has come.
    pub fn exit(&self) -> Option<Exit> {
        match &*self.state.borrow() {
            State::Exited(exit) => Some(exit.clone()),
            _ => None,
        }
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let State::Exited(exit) = &*state.borrow_and_update() {
                return exit.clone();
            }
            if state.changed().await.is_err() {
                return Exit { status: LOST, at: crate::clock::now() };
            }
        }
    }

    /// For messages.
    pub fn name(&self) -> String {
        if self.is_init() {
            self.address.container_id.clone()
        } else {
            format!("{} of {}", self.address.exec_id, self.address.container_id)
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Io> {
        self.io.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
