//! The agent role: from an anonymous machine to a pod.
//!
//! ```text
//! boot configuration -> own network -> guest channel listens -> Bind (once) -> agent connections
//! ```
//!
//! One tokio runtime, everything in one process: the channel's end, the Bind, the Kata agent, image pulls; the last two are programs of
//! their own in the upstream profile ([`crate::upstream`]). Tasks belong to [`run`], which ends when the channel's listener does, on
//! SIGTERM, or with an error; PID 1 then ends the machine. Nothing is recovered: a machine serves one pod and is deleted.

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
mod upstream;
mod workload_api;

use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError};

use anyhow::{Context as _, Result};
use nix::sys::signal::SigSet;
use peerpods_attester::{Attester, Paths};
use peerpods_tunnel::AgentStream;
use peerpods_tunnel::guest::{GuestConfig, GuestEndpoint};
use peerpods_tunnel::user_data::UserData;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::boot::{self, Lease, Level};
use crate::upstream::Upstream;
use crate::{console, sev_guest};
use attestation::Attestation;
use pod::{BoundPod, Pod, PodAgent, PodSetup, PodWork};

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
    let upstream = Upstream::find()?;
    let level = Level::detect();
    let told = boot::find_out(level, UNDERLAY).await?;
    let user_data = UserData::decode(&told.user_data)?;
    resolver::write(&told.dns)?;
    console::event("network");

    let tee = user_data.tee.clone();
    let attester = tokio::task::spawn_blocking(move || Attester::with_paths(&tee, &Paths::default(), &sev_guest::open))
        .await
        .context("make the attester")??;
    console::event("attester");
    let (bound, is_bound) = (BoundPod::default(), Arc::new(Notify::new()));
    let setup = PodSetup::new(Attestation::new(attester), UNDERLAY, upstream, bound.clone(), is_bound.clone());
    let (endpoint, streams) = GuestEndpoint::new(GuestConfig { user_data, instance_id: told.instance_id }, setup)?;
    let address = (Ipv4Addr::UNSPECIFIED, peerpods_tunnel::PORT);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on port {}", address.1))?;
    console::event_with("listening", u64::from(address.1));
    tokio::select! {
        result = endpoint.serve(listener) => result.context("serve the guest channel"),
        () = serve_agents(streams.agents, bound.clone()) => Ok(()),
        error = work_for_pod(bound.clone(), is_bound) => Err(error),
        () = forwarding::serve(streams.forwards, bound) => Ok(()),
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

/// Does what the pod needs beside its agent, once there is a pod; returns when that is at an end, which it should not be.
async fn work_for_pod(bound: BoundPod, is_bound: Arc<Notify>) -> anyhow::Error {
    is_bound.notified().await;
    let taken = bound.get().and_then(|pod| pod.work.lock().unwrap_or_else(PoisonError::into_inner).take());
    match taken {
        Some(PodWork::Api(api, listener)) => {
            api.serve(listener).await;
            anyhow::anyhow!("the workload API ended")
        }
        Some(PodWork::Upstream(mut components)) => components.ended().await.into(),
        None => std::future::pending().await,
    }
}

/// Gives every agent stream to the agent, each in a task of this function's.
async fn serve_agents(mut streams: mpsc::Receiver<AgentStream>, bound: BoundPod) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = streams.recv() => match (stream, bound.get()) {
                (Some(stream), Some(Pod { agent: PodAgent::Ours(agent), .. })) => {
                    let agent = Arc::clone(agent);
                    connections.spawn(async move { peerpods_agent::serve(&agent, stream).await });
                }
                (Some(stream), Some(Pod { agent: PodAgent::Katas, .. })) => { connections.spawn(crate::upstream::serve(stream)); }
                // The channel admits streams of a bound machine only.
                (Some(_), None) => console::event("stream-before-bind"),
                (None, _) => return,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}
