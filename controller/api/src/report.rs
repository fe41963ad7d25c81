//! What a controller shows to people, as its admin socket gives it: `GET /v1/state`.

use std::net::IpAddr;

use peerpods_cloud_api::InstanceState;
use serde::{Deserialize, Serialize};

use crate::{ClaimKey, ClassName, ClassRecord, InstanceId, InstanceType, LaunchToken, Mib, NodeName, PodRef, Tee, Zone};

/// The path of [`StateReport`] on the admin socket; `DELETE /v1/pod-vms/ID` deletes a pod VM.
pub const STATE_PATH: &str = "/v1/state";
/// Starts the path of one pod VM.
pub const POD_VM_PATH: &str = "/v1/pod-vms/";
/// Ends the path of its console.
pub const CONSOLE_SUFFIX: &str = "/console";

/// Everything at one moment. A reader passes over fields that it does not know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StateReport {
    /// All claims by key.
    pub claims: Vec<ClaimReport>,
    /// All pod VMs by id.
    pub pod_vms: Vec<PodVmReport>,
    /// Launches that the cloud has not answered, or whose pod VMs are not all recorded.
    pub launches: Vec<LaunchReport>,
    /// What is offered.
    pub classes: Vec<ClassRecord>,
    /// What the cloud offers; `None` until it has been asked.
    pub instance_types: Option<Vec<InstanceType>>,
}

/// A node's wish for a pod VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClaimReport {
    /// What the node calls it.
    pub key: ClaimKey,
    /// The pod.
    pub pod: PodRef,
    /// The node.
    pub node: NodeName,
    /// The class asked for.
    pub class: ClassName,
    /// Virtual processors asked for; 0 means any.
    pub vcpus: f32,
    /// Memory asked for; 0 means any.
    pub memory_mib: Mib,
    /// Instance type asked for.
    pub instance_type: Option<String>,
    /// `pending`, `assigned`, `failed` or `released`.
    pub status: String,
    /// What it waits for, or why it failed.
    pub detail: Option<String>,
    /// Its pod VM.
    pub instance_id: Option<InstanceId>,
}

/// One pod VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodVmReport {
    /// The cloud's name of it.
    pub instance_id: InstanceId,
    /// Its class.
    pub class: ClassName,
    /// Its TEE.
    pub tee: Tee,
    /// Its size.
    pub instance_type: String,
    /// Where it was launched.
    pub zone: Option<Zone>,
    /// The image that was asked for.
    pub image: Option<String>,
    /// `launching`, `running`, `claimed` or `deleting`.
    pub state: String,
    /// What the cloud last said of it; `None` when it has not been seen.
    pub cloud_state: Option<InstanceState>,
    /// Where nodes reach it.
    pub address: Option<IpAddr>,
    /// The claim that it serves.
    pub claim: Option<ClaimKey>,
    /// Why the last call for it failed, while it is being tried again.
    pub detail: Option<String>,
}

/// A launch under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchReport {
    /// Its token.
    pub token: LaunchToken,
    /// Its class.
    pub class: ClassName,
    /// Its size.
    pub instance_type: String,
    /// Where.
    pub zone: Option<Zone>,
    /// How many.
    pub count: u32,
    /// Why it was refused, or failed and is being tried again.
    pub detail: Option<String>,
}
