//! Addresses, routes and permanent neighbours of one link, and the way to another host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope as KernelScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use crate::address::MacAddress;
use crate::error::NetworkError;
use crate::link::Link;
use crate::netlink::{Mode, Netlink, is, refused};
use crate::pod::{Neighbour, Route, RouteScope};

/// How this end reaches the other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Underlay {
    /// The address that the other end sees, unless something in between translates it.
    pub source: Ipv4Addr,
    /// The interface that packets leave by.
    pub interface: String,
    /// The largest IP packet, in bytes, known to get there.
    pub path_mtu: u32,
}

/// Who else may have made a route from the address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrefixRoute {
    /// The kernel adds the route to the address's network.
    Automatic,
    /// All routes are given explicitly.
    Explicit,
}

impl Netlink {
    /// In the kernel's order, IPv4 first, less those of IPv6 that a link makes by itself.
    pub(crate) async fn addresses(&self, link: &Link) -> Result<Vec<IpNet>, NetworkError> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let mut message = AddressMessage::default();
            message.header.family = family;
            let answers = self.dump(RouteNetlinkMessage::GetAddress(message)).await.map_err(refused("list addresses of", &link.name))?;
            found.extend(answers.into_iter().filter_map(|answer| address_of(answer, link)));
        }
        Ok(found)
    }

    pub(crate) async fn ensure_address(&self, link: &Link, address: IpNet, prefix_route: PrefixRoute) -> Result<(), NetworkError> {
        let mut flags = match prefix_route {
            PrefixRoute::Automatic => AddressFlags::empty(),
            PrefixRoute::Explicit => AddressFlags::Noprefixroute,
        };
        if matches!(address, IpNet::V6(_)) {
            // Whoever gave the address has looked for others with it; a second look would make it useless for a second.
            flags |= AddressFlags::Nodad;
        }
        let (host, prefix) = (address.addr(), address.prefix_len());
        let mut message = match host {
            IpAddr::V4(host) => AddressMessageBuilder::<Ipv4Addr>::new().index(link.index).address(host, prefix).build(),
            IpAddr::V6(host) => AddressMessageBuilder::<Ipv6Addr>::new().index(link.index).address(host, prefix).build(),
        };
        if !flags.is_empty() {
            message.attributes.push(AddressAttribute::Flags(flags));
        }
        let sent = self.change(RouteNetlinkMessage::NewAddress(message), Mode::Replace).await;
        sent.map_err(refused("add address", format!("{address} dev {}", link.name)))
    }

    /// The unicast routes out of `link` in the main table, those without a gateway first.
    pub(crate) async fn routes(&self, link: &Link) -> Result<Vec<Route>, NetworkError> {
        let mut routes: Vec<Route> =
            self.main_table().await?.iter().filter(|message| output(message) == Some(link.index)).map(route_of).collect();
        routes.sort_by_key(|route| route.gateway.is_some());
        Ok(routes)
    }

    /// The link of the default route that wins.
    pub(crate) async fn default_link(&self) -> Result<Option<u32>, NetworkError> {
        let table = self.main_table().await?;
        let defaults = table.iter().filter(|message| message.header.destination_prefix_length == 0);
        Ok(defaults.min_by_key(|message| route_of(message).metric).and_then(output))
    }

    pub(crate) async fn ensure_route(&self, link: &Link, route: &Route) -> Result<(), NetworkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = if route.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.kind = RouteType::Unicast;
        message.header.scope = match route.scope {
            RouteScope::Global => KernelScope::Universe,
            RouteScope::Link => KernelScope::Link,
        };
        message.header.flags.set(RouteFlags::Onlink, route.onlink);
        let destination = route.destination.filter(|net| net.prefix_len() > 0);
        message.header.destination_prefix_length = destination.map_or(0, |net| net.prefix_len());
        let attributes = [
            Some(RouteAttribute::Oif(link.index)),
            destination.map(|net| RouteAttribute::Destination(net.addr().into())),
            route.gateway.map(|gateway| RouteAttribute::Gateway(gateway.into())),
            route.source.map(|source| RouteAttribute::PrefSource(source.into())),
            route.metric.map(RouteAttribute::Priority),
            route.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])),
        ];
        message.attributes = attributes.into_iter().flatten().collect();
        let destination = route.destination.map_or_else(|| "default".to_owned(), |net| net.to_string());
        let sent = self.change(RouteNetlinkMessage::NewRoute(message), Mode::Replace).await;
        sent.map_err(refused("add route", format!("{destination} dev {}", link.name)))
    }

    /// The permanent neighbours on `link`.
    pub(crate) async fn neighbours(&self, link: &Link) -> Result<Vec<Neighbour>, NetworkError> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let mut message = NeighbourMessage::default();
            message.header.family = family;
            let answers = self.dump(RouteNetlinkMessage::GetNeighbour(message)).await.map_err(refused("list neighbours on", &link.name))?;
            found.extend(answers.into_iter().filter_map(|answer| neighbour_of(answer, link)));
        }
        Ok(found)
    }

    pub(crate) async fn ensure_neighbour(&self, link: &Link, neighbour: &Neighbour) -> Result<(), NetworkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = if neighbour.address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
        message.header.ifindex = link.index;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(match neighbour.address {
                IpAddr::V4(address) => NeighbourAddress::Inet(address),
                IpAddr::V6(address) => NeighbourAddress::Inet6(address),
            }),
            NeighbourAttribute::LinkLayerAddress(neighbour.mac.as_bytes().to_vec()),
        ];
        let sent = self.change(RouteNetlinkMessage::NewNeighbour(message), Mode::Replace).await;
        sent.map_err(refused("add neighbour", format!("{} dev {}", neighbour.address, link.name)))
    }

    /// What the routing table says about `to`, path MTUs learned from the network included.
    pub(crate) async fn underlay(&self, to: Ipv4Addr) -> Result<Underlay, NetworkError> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build();
        let answers = match self.get(RouteNetlinkMessage::GetRoute(message)).await {
            Err(error) if [Errno::ENETUNREACH, Errno::EHOSTUNREACH].into_iter().any(|number| is(&error, number)) => {
                return Err(NetworkError::NoRoute { to });
            }
            answers => answers.map_err(refused("find the route to", to))?,
        };
        let route =
            answers.into_iter().find_map(|answer| if let RouteNetlinkMessage::NewRoute(route) = answer { Some(route) } else { None });
        let route = route.ok_or(NetworkError::NoRoute { to })?;
        let source = route.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::PrefSource(RouteAddress::Inet(source)) => Some(*source),
            _ => None,
        });
        let link = match output(&route) {
            Some(index) => self.link_by_index(index).await?,
            None => None,
        };
        match (source, link) {
            (Some(source), Some(link)) => Ok(Underlay { source, path_mtu: route_mtu(&route).unwrap_or(link.mtu), interface: link.name }),
            _ => Err(NetworkError::NoRoute { to }),
        }
    }

    /// Of both families, less what a link of IPv6 makes by itself.
    async fn main_table(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut found = Vec::new();
        for family in FAMILIES {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answers = self.dump(RouteNetlinkMessage::GetRoute(message)).await.map_err(refused("list", "routes"))?;
            found.extend(answers.into_iter().filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route) if is_of_main_table(&route) && !is_link_local(&route) => Some(route),
                _ => None,
            }));
        }
        Ok(found)
    }
}

/// In the order in which addresses and routes are told.
const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

fn is_of_main_table(route: &RouteMessage) -> bool {
    route.header.table == RouteHeader::RT_TABLE_MAIN && route.header.kind == RouteType::Unicast
}

fn is_link_local(route: &RouteMessage) -> bool {
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => to.is_unicast_link_local(),
        _ => false,
    })
}

fn address_of(answer: RouteNetlinkMessage, link: &Link) -> Option<IpNet> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    if message.header.index != link.index {
        return None;
    }
    // The local address is the own one; the other differs from it on point-to-point links, and is the only one in IPv6.
    let is_ipv6 = message.header.family == AddressFamily::Inet6;
    let address = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        AddressAttribute::Address(address) if is_ipv6 => Some(*address),
        _ => None,
    })?;
    let is_own = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    if is_own { None } else { IpNet::new(address, message.header.prefix_len).ok() }
}

fn neighbour_of(answer: RouteNetlinkMessage, link: &Link) -> Option<Neighbour> {
    let RouteNetlinkMessage::NewNeighbour(message) = answer else { return None };
    if message.header.ifindex != link.index || message.header.state != NeighbourState::Permanent {
        return None;
    }
    let mut address = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)) => address = Some(IpAddr::V4(*destination)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(destination)) => address = Some(IpAddr::V6(*destination)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = MacAddress::from_bytes(bytes).ok(),
            _ => {}
        }
    }
    Some(Neighbour { address: address?, mac: mac? })
}

fn route_of(message: &RouteMessage) -> Route {
    let mut route = Route {
        destination: None,
        gateway: None,
        scope: match message.header.scope {
            KernelScope::Universe | KernelScope::Site => RouteScope::Global,
            _ => RouteScope::Link,
        },
        onlink: message.header.flags.contains(RouteFlags::Onlink),
        source: None,
        metric: None,
        mtu: route_mtu(message),
    };
    if message.header.address_family == AddressFamily::Inet6 && message.header.destination_prefix_length == 0 {
        route.destination = IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0).ok();
    }
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.destination = ip_of(address).and_then(|address| IpNet::new(address, message.header.destination_prefix_length).ok());
            }
            RouteAttribute::Gateway(gateway) => route.gateway = ip_of(gateway),
            RouteAttribute::PrefSource(source) => route.source = ip_of(source),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            _ => {}
        }
    }
    route
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

fn output(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None })
}

fn route_mtu(message: &RouteMessage) -> Option<u32> {
    let metrics = message
        .attributes
        .iter()
        .find_map(|attribute| if let RouteAttribute::Metrics(metrics) = attribute { Some(metrics) } else { None })?;
    metrics.iter().find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None })
}
