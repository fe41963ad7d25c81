//! What end-to-end tests, the demo and long runs have in common: a world of real processes.
//!
//! A [`World`] is one node on this machine: a network namespace with a controller, a node daemon, a registry and a
//! bridge that pods are attached to as a CNI plugin would. [`KataShim`] asks for peer pods as Kata's Rust shim does; a [`Rig`] has a
//! containerd beside it, which is asked through [`Cri`] as a kubelet asks.
//! Everything is removed when the world is dropped; [`Leftovers`] asks the kernel whether that is true.

mod condition;
mod confidential;
mod containerd;
mod cri;
mod folders;
mod image;
mod kata;
mod leftovers;
mod mock_cloud;
mod netns;
mod process;
mod recording;
mod registry;
mod replay;
mod scenario;
mod world;

pub use condition::{eventually, eventually_async};
pub use confidential::{CosignKey, RelyingParty, TeeUnderTest};
pub use containerd::{Gate, Handler, Kubelet, Rig, RigOptions, Version, Volume};
pub use cri::{Cri, Outcome, PortStream, Session, v1};
pub use folders::{binaries_folder, image_folder, trixie_folder};
pub use image::{Image, Layer};
pub use kata::{ContainerIo, ContainerRequest, KataShim};
pub use leftovers::Leftovers;
pub use mock_cloud::{MockCloud, SECRET};
pub use netns::{Netns, PodNetns};
pub use process::Process;
pub use recording::{Event, read_recording, recordings_folder};
pub use registry::Registry;
pub use replay::Replay;
pub use scenario::{Container, Naming, Pod, Running, RunningPod, Scenario, Story};
pub use world::{Cloud, Level, World, WorldOptions};
