//! Ethernet addresses as text, which JSON carries, and as the kernel's bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

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
