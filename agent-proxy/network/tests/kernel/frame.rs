//! Frames as no IP stack would send them.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, sendto, socket};
use peerpods_network::MacAddress;

use crate::machine::Machine;

pub(crate) const PAYLOAD: &[u8] = b"hidden";

/// UDP behind the tag of VLAN 0.
pub(crate) fn tagged_udp(to_station: &str, from: (Ipv4Addr, u16), to: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(to) = to else { panic!("{to} is not IPv4") };
    let udp_length = u16::try_from(8 + PAYLOAD.len()).unwrap();
    let mut header = vec![0x45, 0];
    header.extend((20 + udp_length).to_be_bytes());
    header.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    header.extend(from.0.octets());
    header.extend(to.ip().octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&u16::try_from(!((folded & 0xffff) + (folded >> 16)) & 0xffff).unwrap().to_be_bytes());

    let station: MacAddress = to_station.parse().unwrap();
    let mut frame = station.as_bytes().to_vec();
    frame.extend([2, 0, 0, 0, 0, 0x77, 0x81, 0, 0, 0, 8, 0]);
    frame.extend(header);
    // A checksum of zero means none.
    for field in [from.1, to.port(), udp_length, 0] {
        frame.extend(field.to_be_bytes());
    }
    frame.extend(PAYLOAD);
    frame
}

/// Sends a frame as it is, as a workload with CAP_NET_RAW may.
pub(crate) fn send(machine: &Machine, interface: &str, frame: &[u8]) {
    machine.inside(|| {
        let mut links = getifaddrs().unwrap().filter(|link| link.interface_name == interface);
        let link = links.find_map(|link| link.address.and_then(|address| address.as_link_addr().copied())).unwrap();
        let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
        assert_eq!(sendto(socket.as_raw_fd(), frame, &link, MsgFlags::empty()).unwrap(), frame.len());
    });
}
