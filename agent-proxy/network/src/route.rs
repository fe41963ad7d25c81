//! IPv4 addresses, routes and permanent neighbours of one link, and the way to another host.

use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteScope as KernelScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::{AddressMessageBuilder, RouteMessageBuilder};
use serde::{Deserialize, Serialize};

use crate::address::{Ipv4Net, MacAddress};
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
    /// In the kernel's order, which is the order in which they were added.
    pub(crate) async fn addresses(&self, link: &Link) -> Result<Vec<Ipv4Net>, NetworkError> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        let answers = self.dump(RouteNetlinkMessage::GetAddress(message)).await.map_err(refused("list addresses of", &link.name))?;
        Ok(answers.into_iter().filter_map(|answer| address_of(answer, link)).collect())
    }

    pub(crate) async fn ensure_address(&self, link: &Link, address: Ipv4Net, prefix_route: PrefixRoute) -> Result<(), NetworkError> {
        let mut message = AddressMessageBuilder::<Ipv4Addr>::new().index(link.index).address(address.address(), address.prefix()).build();
        if prefix_route == PrefixRoute::Explicit {
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
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
        let mut builder = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(link.index).scope(match route.scope {
            RouteScope::Global => KernelScope::Universe,
            RouteScope::Link => KernelScope::Link,
        });
        if let Some(destination) = route.destination {
            builder = builder.destination_prefix(destination.address(), destination.prefix());
        }
        if let Some(gateway) = route.gateway {
            builder = builder.gateway(gateway);
        }
        if let Some(source) = route.source {
            builder = builder.pref_source(source);
        }
        if let Some(metric) = route.metric {
            builder = builder.priority(metric);
        }
        if let Some(mtu) = route.mtu {
            builder.get_mut().attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        }
        if route.onlink {
            builder = builder.onlink();
        }
        let destination = route.destination.map_or_else(|| "default".to_owned(), |net| net.to_string());
        let sent = self.change(RouteNetlinkMessage::NewRoute(builder.build()), Mode::Replace).await;
        sent.map_err(refused("add route", format!("{destination} dev {}", link.name)))
    }

    /// The permanent neighbours on `link`.
    pub(crate) async fn neighbours(&self, link: &Link) -> Result<Vec<Neighbour>, NetworkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        let answers = self.dump(RouteNetlinkMessage::GetNeighbour(message)).await.map_err(refused("list neighbours on", &link.name))?;
        Ok(answers.into_iter().filter_map(|answer| neighbour_of(answer, link)).collect())
    }

    pub(crate) async fn ensure_neighbour(&self, link: &Link, neighbour: &Neighbour) -> Result<(), NetworkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.ifindex = link.index;
        message.header.state = NeighbourState::Permanent;
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet(neighbour.address)),
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

    async fn main_table(&self) -> Result<Vec<RouteMessage>, NetworkError> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet;
        let answers = self.dump(RouteNetlinkMessage::GetRoute(message)).await.map_err(refused("list", "routes"))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewRoute(route)
                    if route.header.table == RouteHeader::RT_TABLE_MAIN && route.header.kind == RouteType::Unicast =>
                {
                    Some(route)
                }
                _ => None,
            })
            .collect())
    }
}

fn address_of(answer: RouteNetlinkMessage, link: &Link) -> Option<Ipv4Net> {
    let RouteNetlinkMessage::NewAddress(message) = answer else { return None };
    if message.header.index != link.index {
        return None;
    }
    // The local address is the own one; the other differs from it on point-to-point links only.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })?;
    Ipv4Net::new(local, message.header.prefix_len)
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
            NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)) => address = Some(*destination),
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
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                route.destination = Ipv4Net::new(*address, message.header.destination_prefix_length);
            }
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => route.gateway = Some(*gateway),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)) => route.source = Some(*source),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            _ => {}
        }
    }
    route
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
