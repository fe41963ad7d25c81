//! A cloud for tests: EC2's Query API and metadata service in front, and behind them nothing, namespaces, or QEMU.
//!
//! ```text
//!  real client (aws-sdk-ec2, boto3) --HTTP--> ec2 front --> cloud: account, limits, faults, journal --> machines (crate cloud-local)
//!  pod VM --DHCP, IMDSv2--> metadata --------------------------^                                          namespaces | QEMU
//!  test --HTTP/JSON--> admin ----------------------------------^
//! ```
//!
//! `account` knows no words of EC2's and no clock: another cloud's API becomes another front end over it. Time is tokio's, so that the
//! library also runs in virtual time.
//!
//! What is deliberately absent: everything of EC2 that a pod VM provider does not call. Unknown actions, parameters and filters are
//! refused, as EC2 refuses them, never ignored: a client cannot pass here with something that this cloud has not looked at.
//! The journal of calls holds hashes where user data and credentials were.

pub mod account;
pub mod admin;
mod buckets;
pub mod catalog;
mod cloud;
mod dhcp;
mod ec2;
pub mod faults;
mod journal;
mod machines;
mod metadata;
mod serve;

pub use cloud::{Cloud, Options};
pub use journal::Call;
pub use machines::Machines;
pub use serve::{Addresses, Server, ServerOptions};
