//! One rtnetlink socket, bound to the network namespace in which it was opened.

use std::fmt::Display;
use std::io;

use futures::StreamExt;
use futures::channel::mpsc::UnboundedReceiver;
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::sys::SocketAddr;
use rtnetlink::{Handle, MulticastGroup};
use tokio::task::JoinHandle;

use crate::error::NetworkError;

/// A socket with the task that drives it; dropping it ends both.
pub(crate) struct Netlink {
    handle: Handle,
    driver: JoinHandle<()>,
}

/// What the kernel tells without being asked.
pub(crate) type Events = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

/// What a request does if its object exists, or does not.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mode {
    /// Fails with EEXIST if it is there.
    Create,
    /// Creates it, or makes the one that is there like this.
    Replace,
    /// For requests that change or delete: fails if it is not there.
    Existing,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace; needs the context of a tokio runtime.
    pub(crate) fn here() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, driver: tokio::spawn(connection) })
    }

    /// As [`Netlink::here`], with the arrival, change and departure of links from now on.
    pub(crate) fn here_with_link_events() -> io::Result<(Self, Events)> {
        let (connection, handle, events) = rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
        Ok((Self { handle, driver: tokio::spawn(connection) }, events))
    }

    /// Sends a request that changes something and waits for the kernel's answer.
    pub(crate) async fn change(&self, message: RouteNetlinkMessage, mode: Mode) -> io::Result<()> {
        let flags = match mode {
            Mode::Create => NLM_F_CREATE | NLM_F_EXCL,
            Mode::Replace => NLM_F_CREATE | NLM_F_REPLACE,
            Mode::Existing => 0,
        };
        self.exchange(message, NLM_F_ACK | flags).await.map(drop)
    }

    /// Asks for one object.
    pub(crate) async fn get(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, 0).await
    }

    /// Asks for all objects of a kind.
    pub(crate) async fn dump(&self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_DUMP).await
    }

    async fn exchange(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut handle = self.handle.clone();
        let mut answers = handle.request(request).map_err(io::Error::other)?;
        let mut objects = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(object) => objects.push(object),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                _ => {}
            }
        }
        Ok(objects)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// [`Netlink::here`] with an error for callers of this crate.
pub(crate) fn own() -> Result<Netlink, NetworkError> {
    Netlink::here().map_err(refused("open", "rtnetlink socket"))
}

/// Names the operation and its subject in front of the kernel's error; for `map_err`.
pub(crate) fn refused(operation: &'static str, subject: impl Display) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Request { operation, subject: subject.to_string(), source }
}

/// Whether the kernel answered with this error number.
pub(crate) fn is(error: &io::Error, number: nix::errno::Errno) -> bool {
    error.raw_os_error() == Some(number as i32)
}
