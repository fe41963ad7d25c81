//! The few link requests that machines need, one blocking rtnetlink socket.
//!
//! Blocking and without a runtime because a machine's own first process, which is single-threaded, uses it too.
//! The socket belongs to the network namespace in which it was opened, whatever its thread enters later.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoBridgePort, InfoKind, InfoPortData, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily as Family, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket};

/// A socket in one network namespace.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

/// What we want to know of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) mac: Vec<u8>,
    pub(crate) is_bridge: bool,
}

impl Netlink {
    /// A socket in the calling thread's network namespace.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket(Family::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The link of this name.
    pub(crate) fn find(&mut self, name: &str) -> io::Result<Option<Link>> {
        let message = RouteNetlinkMessage::GetLink(link_message(0, vec![LinkAttribute::IfName(name.to_owned())]));
        match self.request(message, 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(link) => Some(parse(&link)),
                _ => None,
            })),
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A new bridge with this hardware address.
    pub(crate) fn create_bridge(&mut self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        let attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ];
        self.create(attributes)
    }

    /// Gives a link an address with a network of this prefix length around it, if it has not got it.
    pub(crate) fn ensure_address(&mut self, index: u32, address: Ipv4Addr, prefix_len: u8) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix_len;
        message.header.index = index;
        message.attributes = vec![AddressAttribute::Local(IpAddr::V4(address)), AddressAttribute::Address(IpAddr::V4(address))];
        self.request(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_REPLACE).map(drop)
    }

    /// Brings a link up.
    pub(crate) fn set_up(&mut self, index: u32) -> io::Result<()> {
        let mut message = link_message(index, Vec::new());
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(message), 0).map(drop)
    }

    /// Makes a link a port of the bridge.
    pub(crate) fn attach(&mut self, index: u32, bridge: u32) -> io::Result<()> {
        let message = link_message(index, vec![LinkAttribute::Controller(bridge)]);
        self.request(RouteNetlinkMessage::SetLink(message), 0).map(drop)
    }

    /// Keeps a bridge's port from the other ports of its kind: only the bridge itself and ordinary ports hear it.
    pub(crate) fn isolate(&mut self, index: u32) -> io::Result<()> {
        let info = vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Isolated(true)])),
        ];
        let message = link_message(index, vec![LinkAttribute::LinkInfo(info)]);
        self.request(RouteNetlinkMessage::NewLink(message), 0).map(drop)
    }

    /// Deletes a link; one that is not there is fine.
    pub(crate) fn delete(&mut self, name: &str) -> io::Result<()> {
        let Some(link) = self.find(name)? else { return Ok(()) };
        match self.request(RouteNetlinkMessage::DelLink(link_message(link.index, Vec::new())), 0) {
            Err(error) if error.raw_os_error() != Some(Errno::ENODEV as i32) => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes a link that must not be there yet.
    pub(crate) fn create(&mut self, attributes: Vec<LinkAttribute>) -> io::Result<()> {
        self.request(RouteNetlinkMessage::NewLink(link_message(0, attributes)), NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    /// Sends one request and collects what comes back until it is acknowledged.
    pub(crate) fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answers = Vec::new();
        // One link with all its attributes is 2 KiB; the kernel never puts more than 32 KiB into one datagram.
        let mut buffer = vec![0; 64 << 10];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
                let step = usize::try_from(answer.header.length).unwrap_or(usize::MAX).next_multiple_of(4).max(16);
                rest = rest.get(step..).unwrap_or_default();
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
    }
}

/// A message about the link of this index, or with index 0 about the one that the attributes name.
pub(crate) fn link_message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn parse(message: &LinkMessage) -> Link {
    let mut link = Link { index: message.header.index, mac: Vec::new(), is_bridge: false };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Address(mac) => link.mac.clone_from(mac),
            LinkAttribute::LinkInfo(infos) => link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge)),
            _ => {}
        }
    }
    link
}
