//! Pod VMs as Amazon EC2 instances.
//!
//! A launch is one `RunInstances` with the launch's token as `ClientToken`, so that EC2 itself makes it idempotent. Whatever the instance
//! has (root volume, network interface, public address) is made by that call and goes with the instance: there is nothing beside it to
//! record, to find or to leak. The API is called once for each call of the contract, but for facts that do not change (image, subnets,
//! sizes), which are read once.
//!
//! An instance is ours when its tags name the owner and the launch, and its `ClientToken` is that launch's too: tags can be put on
//! anything later, a `ClientToken` cannot.
//!
//! The SDK's own retries are off: the engine retries, and keeps to the limits.

mod client;
mod error;
mod facts;
mod instance;
mod provider;
mod request;
mod verify;

pub use provider::AwsProvider;
