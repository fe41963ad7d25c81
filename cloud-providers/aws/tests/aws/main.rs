//! The provider, the real SDK and the mock cloud's EC2, over HTTP.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod calls;
mod conformance;
mod faults;
mod secrets;
mod verify;
mod world;
