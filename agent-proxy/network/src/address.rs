//! Addresses as text: what JSON carries and the kernel's bytes.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An IPv4 address with the length of its network's prefix, as `10.88.0.2/16`.
///
/// Host bits are kept: as an interface's address they are the host, as a route's destination they must be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Net {
    address: Ipv4Addr,
    prefix: u8,
}

/// An Ethernet address of one station, as `02:42:0a:58:00:02`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Text, or bytes of the kernel, that is not an address of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not {wanted}")]
pub struct InvalidAddress {
    text: String,
    wanted: &'static str,
}

impl Ipv4Net {
    /// `None` if the prefix is longer than 32 bits.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        (prefix <= 32).then_some(Self { address, prefix })
    }

    /// The address, host bits included.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The length of the prefix in bits, 0 to 32.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether `address` is in this network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (u32::from(address) ^ u32::from(self.address)) & self.mask() == 0
    }

    /// Whether all bits behind the prefix are zero.
    pub fn is_network(self) -> bool {
        u32::from(self.address) & !self.mask() == 0
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Ipv4Net {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAddress { text: text.to_owned(), wanted: "an IPv4 address with a prefix length" };
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let prefix = match prefix.as_bytes() {
            [b'0'..=b'9'] | [b'1'..=b'9', b'0'..=b'9'] => prefix.parse().map_err(|_| invalid())?,
            _ => return Err(invalid()),
        };
        Self::new(address.parse().map_err(|_| invalid())?, prefix).ok_or_else(invalid)
    }
}

impl TryFrom<String> for Ipv4Net {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Ipv4Net> for String {
    fn from(net: Ipv4Net) -> Self {
        net.to_string()
    }
}

// ---------------------------------------------------------------------------

impl MacAddress {
    /// From the bytes of the kernel; refuses group addresses and zero, which no station has.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidAddress> {
        match <[u8; 6]>::try_from(bytes) {
            Ok(mac) if mac[0] & 1 == 0 && mac != [0; 6] => Ok(Self(mac)),
            _ => Err(InvalidAddress { text: format!("{bytes:02x?}"), wanted: "the Ethernet address of a station" }),
        }
    }

    /// In transmission order.
    pub fn as_bytes(&self) -> &[u8; 6] {
        &self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAddress { text: text.to_owned(), wanted: "the Ethernet address of a station" };
        let bytes = text
            .split(':')
            .map(|part| match part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                true => u8::from_str_radix(part, 16).map_err(|_| invalid()),
                false => Err(invalid()),
            })
            .collect::<Result<Vec<u8>, _>>()?;
        Self::from_bytes(&bytes).map_err(|_| invalid())
    }
}

impl TryFrom<String> for MacAddress {
    type Error = InvalidAddress;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_contains_its_hosts_and_no_others() {
        let net: Ipv4Net = "10.88.0.2/16".parse().unwrap();
        assert!(net.contains(Ipv4Addr::new(10, 88, 255, 255)));
        assert!(!net.contains(Ipv4Addr::new(10, 89, 0, 0)));
        let all: Ipv4Net = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::new(255, 0, 0, 1)) && all.is_network());
        let host: Ipv4Net = "10.0.0.1/32".parse().unwrap();
        assert!(host.contains(Ipv4Addr::new(10, 0, 0, 1)) && !host.contains(Ipv4Addr::new(10, 0, 0, 0)) && host.is_network());
    }

    #[test]
    fn bad_networks_are_refused() {
        for text in
            ["10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/+8", "10.0.0.1/08", "10.0.0/8", "::1/64", "10.0.0.1/8/8", "10.0.0.1/256"]
        {
            assert!(text.parse::<Ipv4Net>().is_err(), "{text}");
        }
    }

    #[test]
    fn bad_stations_are_refused() {
        for text in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "00:00:00:00:00:00",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "+2:00:00:00:00:01",
            "2:0:0:0:0:1",
        ] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
        assert_eq!("0A:58:0a:58:00:02".parse::<MacAddress>().unwrap().to_string(), "0a:58:0a:58:00:02");
    }
}
