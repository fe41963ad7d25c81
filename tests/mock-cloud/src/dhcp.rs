//! The network's DHCP server: each machine gets its own address, always the same, for a lease that it must renew.
//!
//! An answer goes to the network's broadcast address: the machine has no address yet, and another machine's hardware address is not
//! its own. A machine is known by its hardware address, which the local machines derive from their address.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode};
use dhcproto::{Decodable as _, Decoder, Encodable as _};
use tokio::net::UdpSocket;

use crate::Cloud;

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// The largest message that is read; the protocol's own limit is 576 unless negotiated.
const LARGEST: usize = 1500;

/// How the network is told to its machines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Network {
    /// Its router, which is this host.
    pub(crate) gateway: Ipv4Addr,
    /// How long a lease lasts.
    pub(crate) lease: Duration,
}

pub(crate) async fn listen() -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, SERVER_PORT)).await?;
    socket.set_broadcast(true)?;
    Ok(socket)
}

/// Serves until dropped.
pub(crate) async fn serve(socket: UdpSocket, cloud: Cloud, network: Network) -> std::io::Result<()> {
    let mut bytes = vec![0; LARGEST];
    loop {
        let (length, _) = socket.recv_from(&mut bytes).await?;
        let Ok(question) = Message::decode(&mut Decoder::new(&bytes[..length])) else { continue };
        let Some(answer) = answer(&question, &cloud, network) else { continue };
        let Ok(bytes) = answer.to_vec() else { continue };
        let [a, b, c, _] = network.gateway.octets();
        let to = SocketAddrV4::new(Ipv4Addr::new(a, b, c, 255), CLIENT_PORT);
        // The bridge may be gone with its last machine.
        if let Err(error) = socket.send_to(&bytes, SocketAddr::V4(to)).await {
            tracing::debug!(%error, "a DHCP answer is not sent");
        }
    }
}

fn answer(question: &Message, cloud: &Cloud, network: Network) -> Option<Message> {
    let kind = match question.opts().msg_type()? {
        MessageType::Discover => MessageType::Offer,
        MessageType::Request => MessageType::Ack,
        _ => return None,
    };
    // 02:70 and the address.
    let [0x02, 0x70, a, b, c, d] = *question.chaddr() else { return None };
    let address = Ipv4Addr::new(a, b, c, d);
    cloud.by_address(address)?;
    let mut answer = Message::default();
    answer
        .set_opcode(Opcode::BootReply)
        .set_xid(question.xid())
        .set_flags(Flags::default().set_broadcast())
        .set_yiaddr(address)
        .set_siaddr(network.gateway)
        .set_chaddr(question.chaddr());
    let seconds = u32::try_from(network.lease.as_secs()).unwrap_or(u32::MAX);
    let options = answer.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(network.gateway));
    options.insert(DhcpOption::AddressLeaseTime(seconds));
    options.insert(DhcpOption::SubnetMask(Ipv4Addr::new(255, 255, 255, 0)));
    options.insert(DhcpOption::Router(vec![network.gateway]));
    options.insert(DhcpOption::DomainNameServer(vec![network.gateway]));
    options.insert(DhcpOption::InterfaceMtu(1500));
    Some(answer)
}
