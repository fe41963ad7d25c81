//! Link requests that only sandbox machines need: a real machine's QEMU makes its own tap.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo};

use super::super::netlink::{Netlink, link_message};

impl Netlink {
    /// A new pair of links; the peer has this hardware address.
    pub(crate) fn create_veth(&mut self, name: &str, peer: &str, peer_mac: [u8; 6]) -> io::Result<()> {
        let peer = link_message(0, vec![LinkAttribute::IfName(peer.to_owned()), LinkAttribute::Address(peer_mac.to_vec())]);
        let attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer)))]),
        ];
        self.create(attributes)
    }

    /// Moves a link to another network namespace under another name.
    pub(crate) fn move_to(&mut self, index: u32, netns: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        let attributes = vec![LinkAttribute::NetNsFd(netns.as_raw_fd()), LinkAttribute::IfName(name.to_owned())];
        self.request(RouteNetlinkMessage::SetLink(link_message(index, attributes)), 0).map(drop)
    }
}
