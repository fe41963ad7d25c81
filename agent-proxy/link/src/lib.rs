//! One pod's data path: agent connections on a unix socket carried through the tunnel.
//!
//! [`connection::run`] is the data path of one connection, [`serve`](serve()) that of a pod, [`forward`] that of connections to its ports; [`folder`] is what the node daemon and the
//! `peerpods-link` process share. The process is detached from the daemon: it holds the shim's connections, which a Kata shim opens once
//! and never again, so killing or upgrading the daemon is invisible to a running pod. It keeps no state of its own: when it dies, its
//! connections and with them the pod are lost.

pub mod connection;
pub mod dialer;
pub mod folder;
pub mod forward;
pub mod frame;
mod reply;
mod serve;
mod tunnel;

pub use serve::{Counts, serve};
pub use tunnel::TunnelDialer;
