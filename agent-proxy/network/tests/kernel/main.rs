//! The pod network on this machine's kernel: every "host" and "VM" is a network namespace of its own.
//!
//! Set-up and observation go through Debian's `ip` and `tc`, an independent hand beside the netlink code under test.
//! All of it needs root; without root every test fails with that reason.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in tests, but not in what they share")]

mod forward;
mod frame;
mod guards;
mod ipv6;
mod lifecycle;
mod machine;
mod path;
mod shapes;
mod traffic;
mod world;
