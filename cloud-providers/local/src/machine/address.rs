use std::collections::HashSet;
use std::net::Ipv4Addr;

/// A free address of the gateway's /24, looked for from `start` on so that one just given back is not the next to be given out.
pub(crate) fn allocate(gateway: Ipv4Addr, used: &HashSet<Ipv4Addr>, start: u8) -> Option<Ipv4Addr> {
    let [a, b, c, _] = gateway.octets();
    let hosts = (start..=u8::MAX).chain(0..start).filter(|host| (1..=254).contains(host));
    hosts.map(|host| Ipv4Addr::new(a, b, c, host)).find(|address| *address != gateway && !used.contains(address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn allocation_gives_every_host_address_once_and_then_none(gateway: u8, start: u8) {
            let gateway = Ipv4Addr::new(10, 93, 0, gateway);
            let mut used = HashSet::new();
            while let Some(address) = allocate(gateway, &used, start) {
                prop_assert!(address != gateway && (1..=254).contains(&address.octets()[3]));
                prop_assert!(used.insert(address));
            }
            let expected = if (1..=254).contains(&gateway.octets()[3]) { 253 } else { 254 };
            prop_assert_eq!(used.len(), expected);
        }
    }
}
