//! Domain types of the control plane: pods and claims, classes, states of a pod VM, records of the Journal, configuration.
//!
//! Everything here is a value or a pure function of values; only [`config::load`] reads a file and the environment.
//! Types are parsed at the edge: a value that exists obeys its grammar.

mod choice;
mod class;
pub mod config;
mod ids;
mod record;
pub mod report;
mod state;

pub use choice::{ChoiceError, Demand, choose_instance_type, fitting_instance_types};
pub use class::{Class, ClassError, HostAccess, MAX_REFERENCE_BYTES, MAX_REFERENCES, Pool, RootOfTrust};
pub use ids::{ClaimId, ClaimKey, ClaimRef, ClassName, InvalidId, NodeName, PodRef};
pub use peerpods_cloud_api::{InstanceId, InstanceType, LaunchToken, Mib, OwnerTag, Tee, Zone};
pub use record::{
    ClaimRecord, ClaimStatus, ClassRecord, LaunchKey, LaunchRecord, MAX_RECORD_BYTES, PodVmRecord, Record, RecordError, RecordKey,
    RecordKind,
};
pub use state::PodVmState;
