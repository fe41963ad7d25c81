//! Links: found, made, changed and deleted.

use std::net::Ipv4Addr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};
use nix::errno::Errno;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use crate::VXLAN_PORT;
use crate::address::MacAddress;
use crate::error::NetworkError;
use crate::netlink::{Mode, Netlink, is, refused};
use crate::netns::Netns;

/// What is needed to know of a link.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) mtu: u32,
    pub(crate) is_ethernet: bool,
    /// `None` for links without a station's address.
    pub(crate) mac: Option<MacAddress>,
    /// `None` for hardware.
    kind: Option<InfoKind>,
    data: Option<InfoData>,
}

/// A VXLAN device with one remote end, which learns nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Vxlan {
    pub(crate) vni: u32,
    pub(crate) local: Ipv4Addr,
    pub(crate) remote: Ipv4Addr,
}

impl Link {
    pub(crate) fn is_veth(&self) -> bool {
        self.kind == Some(InfoKind::Veth)
    }

    pub(crate) fn is_any_vxlan(&self) -> bool {
        self.kind == Some(InfoKind::Vxlan)
    }

    /// Whether this device is `wanted` in everything that decides where frames go.
    pub(crate) fn is_vxlan(&self, wanted: Vxlan) -> bool {
        let Some(InfoData::Vxlan(data)) = &self.data else { return false };
        let needed = [
            InfoVxlan::Id(wanted.vni),
            InfoVxlan::Group(wanted.remote),
            InfoVxlan::Local(wanted.local),
            InfoVxlan::Port(VXLAN_PORT),
            InfoVxlan::Learning(false),
        ];
        needed.iter().all(|attribute| data.contains(attribute))
    }

    fn from_message(message: LinkMessage) -> Self {
        let header = &message.header;
        let mut link = Self {
            index: header.index,
            name: String::new(),
            mtu: 0,
            is_ethernet: header.link_layer_type == LinkLayerType::Ether && !header.flags.contains(LinkFlags::Loopback),
            mac: None,
            kind: None,
            data: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(bytes) => link.mac = MacAddress::from_bytes(&bytes).ok(),
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(kind) => link.kind = Some(kind),
                            LinkInfo::Data(data) => link.data = Some(data),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        link
    }
}

impl Netlink {
    pub(crate) async fn links(&self) -> Result<Vec<Link>, NetworkError> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default())).await.map_err(refused("list", "links"))?;
        Ok(answers.into_iter().filter_map(link_of).collect())
    }

    /// `None` if there is no link of that name.
    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        let message = LinkUnspec::new_with_name(name).build();
        match self.get(RouteNetlinkMessage::GetLink(message)).await {
            Ok(answers) => Ok(answers.into_iter().find_map(link_of)),
            Err(error) if is(&error, Errno::ENODEV) => Ok(None),
            Err(error) => Err(refused("read link", name)(error)),
        }
    }

    pub(crate) async fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetworkError> {
        let message = LinkUnspec::new_with_index(index).build();
        match self.get(RouteNetlinkMessage::GetLink(message)).await {
            Ok(answers) => Ok(answers.into_iter().find_map(link_of)),
            Err(error) if is(&error, Errno::ENODEV) => Ok(None),
            Err(error) => Err(refused("read link", index)(error)),
        }
    }

    /// Makes sure that the device `name` is `vxlan`. It is made in `inside`, or in this socket's namespace if that is
    /// `None`; encapsulated packets leave and arrive in this socket's namespace. `there` is a socket where the device is.
    ///
    /// A device is made inside at once, never moved there, so no failure can leave one behind under another name.
    pub(crate) async fn ensure_vxlan(
        &self,
        there: &Netlink,
        inside: Option<&Netns>,
        name: &str,
        vxlan: Vxlan,
        mtu: u32,
    ) -> Result<Link, NetworkError> {
        if let Some(link) = there.link(name).await? {
            if link.is_vxlan(vxlan) {
                there.set_link(LinkUnspec::new_with_index(link.index).mtu(mtu), &link.name).await?;
                return Ok(link);
            }
            there.delete_link(&link).await?;
        }
        let mut builder = LinkVxlan::new(name, vxlan.vni)
            .remote(vxlan.remote)
            .local(vxlan.local)
            .port(VXLAN_PORT)
            .learning(false)
            .append_extra_attribute(LinkAttribute::Mtu(mtu));
        if let Some(netns) = inside {
            builder = builder.setns_by_fd(netns.raw_fd());
        }
        let created = self.change(RouteNetlinkMessage::NewLink(builder.build()), Mode::Create).await;
        match (created, there.link(name).await?) {
            // Also if another task was faster with the same device.
            (_, Some(link)) if link.is_vxlan(vxlan) => Ok(link),
            (Err(error), _) if is(&error, Errno::EEXIST) => Err(NetworkError::VniInUse { vni: vxlan.vni }),
            (Err(error), _) => Err(refused("create link", name)(error)),
            (Ok(()), _) => Err(NetworkError::ReadInterface { interface: name.to_owned(), problem: "is not the VXLAN device just made" }),
        }
    }

    /// Makes a pair of veth devices, `name` here and `peer` with `mac` in `inside`; both are down.
    pub(crate) async fn create_veth(&self, name: &str, inside: &Netns, peer: &str, mac: MacAddress, mtu: u32) -> Result<(), NetworkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(peer)
            .mtu(mtu)
            .address(mac.as_bytes().to_vec())
            .setns_by_fd(inside.raw_fd())
            .build();
        let pair = LinkVeth::new(name, "").mtu(mtu).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
        self.change(RouteNetlinkMessage::NewLink(pair), Mode::Create).await.map_err(refused("create link", name))
    }

    /// Applies `change`, which names its link by index; `name` is for the error.
    pub(crate) async fn set_link(&self, change: LinkMessageBuilder<LinkUnspec>, name: &str) -> Result<(), NetworkError> {
        self.change(RouteNetlinkMessage::SetLink(change.build()), Mode::Existing).await.map_err(refused("change link", name))
    }

    pub(crate) async fn set_up(&self, link: &Link) -> Result<(), NetworkError> {
        self.set_link(LinkUnspec::new_with_index(link.index).up(), &link.name).await
    }

    /// Brings up a device that only passes frames on: without an address of its own, so that the kernel says nothing through it.
    pub(crate) async fn set_up_mute(&self, link: &Link) -> Result<(), NetworkError> {
        let no_address = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)])]);
        let change = LinkUnspec::new_with_index(link.index).append_extra_attribute(no_address);
        match self.change(RouteNetlinkMessage::SetLink(change.build()), Mode::Existing).await {
            // A kernel without IPv6 has nothing to say.
            Err(error) if is(&error, Errno::EAFNOSUPPORT) => {}
            changed => changed.map_err(refused("change link", &link.name))?,
        }
        self.set_up(link).await
    }

    /// A link that is gone already counts as deleted.
    pub(crate) async fn delete_link(&self, link: &Link) -> Result<(), NetworkError> {
        let message = LinkUnspec::new_with_index(link.index).build();
        match self.change(RouteNetlinkMessage::DelLink(message), Mode::Existing).await {
            Err(error) if !is(&error, Errno::ENODEV) => Err(refused("delete link", &link.name)(error)),
            _ => Ok(()),
        }
    }
}

/// The link in an answer or event of the kernel, if that is what it is.
pub(crate) fn link_of(message: RouteNetlinkMessage) -> Option<Link> {
    match message {
        RouteNetlinkMessage::NewLink(link) => Some(Link::from_message(link)),
        _ => None,
    }
}
