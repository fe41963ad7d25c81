//! The agent role: from an anonymous machine to a pod.
//!
//! ```text
//! boot configuration -> own network -> guest channel listens -> Bind (once) -> agent connections
//! ```
//!
//! One tokio runtime, everything in one process: the channel's end, the Bind, the Kata agent, image pulls. Tasks belong to [`run`],
//! which ends when the channel's listener does, on SIGTERM, or with an error; PID 1 then ends the machine. Nothing is recovered: a
//! machine serves one pod and is deleted.

mod attestation;
mod broker;
mod forwarding;
mod initdata;
mod isolation;
mod logs;
mod pod;
mod resolver;
mod rootfs;
mod secrets;
mod workload_api;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};

use anyhow::{Context as _, Result};
use nix::sys::signal::SigSet;
use peerpods_attester::Attester;
use peerpods_tunnel::AgentStream;
use peerpods_tunnel::guest::{GuestConfig, GuestEndpoint};
use peerpods_tunnel::user_data::UserData;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::boot::{self, Lease, Level};
use crate::console;
use attestation::Attestation;
use pod::{BoundPod, PodSetup};

/// The machine's own interface.
const UNDERLAY: &str = "eth0";

/// Runs until the machine should stop.
pub(crate) fn main() -> ExitCode {
    // PID 1 blocks the signals that it reads from a descriptor, and children inherit that.
    if SigSet::all().thread_unblock().is_err() {
        return ExitCode::FAILURE;
    }
    logs::start();
    let result = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let level = Level::detect();
    let told = boot::find_out(level, UNDERLAY).await?;
    let user_data = UserData::decode(&told.user_data)?;
    resolver::write(&told.dns)?;
    console::event("network");

    let tee = user_data.tee.clone();
    let attester = tokio::task::spawn_blocking(move || Attester::for_tee(&tee)).await.context("make the attester")??;
    console::event("attester");
    let (bound, is_bound) = (BoundPod::default(), Arc::new(Notify::new()));
    let setup = PodSetup::new(Attestation::new(attester), UNDERLAY, bound.clone(), is_bound.clone());
    let (endpoint, streams) = GuestEndpoint::new(GuestConfig { user_data, instance_id: told.instance_id }, setup)?;
    let address = (Ipv4Addr::UNSPECIFIED, peerpods_tunnel::PORT);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on port {}", address.1))?;
    console::event_with("listening", u64::from(address.1));
    tokio::select! {
        result = endpoint.serve(listener) => result.context("serve the guest channel"),
        () = serve_agents(streams.agents, bound.clone()) => Ok(()),
        () = serve_workload(bound, is_bound) => Ok(()),
        () = forwarding::serve(streams.forwards) => Ok(()),
        error = kept(told.lease) => Err(error),
        _ = terminate.recv() => Ok(()),
    }
}

/// Keeps the machine's address; returns when that fails for good.
async fn kept(lease: Option<Lease>) -> anyhow::Error {
    match lease {
        Some(lease) => lease.keep().await,
        None => std::future::pending().await,
    }
}

/// Serves the workload API of the pod, once there is one; never ends.
async fn serve_workload(bound: BoundPod, is_bound: Arc<Notify>) {
    is_bound.notified().await;
    let taken = bound.get().and_then(|pod| pod.api.lock().unwrap_or_else(PoisonError::into_inner).take());
    match taken {
        Some((api, listener)) => api.serve(listener).await,
        None => std::future::pending().await,
    }
}

/// Gives every agent stream to the agent, each in a task of this function's.
async fn serve_agents(mut streams: mpsc::Receiver<AgentStream>, bound: BoundPod) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = streams.recv() => match (stream, bound.get()) {
                (Some(stream), Some(pod)) => {
                    let agent = Arc::clone(&pod.agent);
                    connections.spawn(async move { peerpods_agent::serve(&agent, stream).await });
                }
                // The channel admits streams of a bound machine only.
                (Some(_), None) => console::event("stream-before-bind"),
                (None, _) => return,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
