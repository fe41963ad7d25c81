//! [`PodNetwork`] as JSON: it survives the way, version 1 stays readable, and nothing odd gets in.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in tests, but not in what they share")]

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use peerpods_network::{Ipv4Net, MacAddress, Neighbour, PodNetwork, Route, RouteScope, VERSION};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

fn v1(name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat/pod-network/v1");
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

fn refusal(value: Value) -> String {
    serde_json::from_value::<PodNetwork>(value).unwrap_err().to_string()
}

fn full() -> PodNetwork {
    let net = |text: &str| text.parse::<Ipv4Net>().unwrap();
    let host = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    let route = Route { destination: None, gateway: None, scope: RouteScope::Global, onlink: false, source: None, metric: None, mtu: None };
    PodNetwork {
        version: VERSION,
        interface: "eth0".to_owned(),
        mac: "0a:58:0a:58:00:05".parse().unwrap(),
        addresses: vec![net("10.88.0.5/16"), net("10.88.9.5/24")],
        routes: vec![
            Route { destination: Some(net("10.88.0.0/16")), scope: RouteScope::Link, source: Some(host("10.88.0.5")), ..route.clone() },
            Route { gateway: Some(host("10.88.0.1")), ..route.clone() },
            Route {
                destination: Some(net("192.0.2.0/24")),
                gateway: Some(host("198.51.100.1")),
                onlink: true,
                metric: Some(7),
                mtu: Some(1400),
                ..route
            },
        ],
        neighbours: vec![Neighbour { address: host("10.88.0.1"), mac: "02:00:00:00:00:01".parse().unwrap() }],
        mtu: 1500,
        vni: 5005,
        node_address: host("10.93.0.1"),
    }
}

#[test]
fn version_1_is_read_and_written_as_ever() {
    assert_eq!(serde_json::from_value::<PodNetwork>(v1("full.json")).unwrap(), full());
    assert_eq!(serde_json::to_value(full()).unwrap(), v1("full.json"));
    let minimal: PodNetwork = serde_json::from_value(v1("minimal.json")).unwrap();
    assert_eq!(serde_json::to_value(minimal).unwrap(), v1("minimal.json"));
}

#[test]
fn bad_fields_are_refused_by_name() {
    let route = json!({ "scope": "global", "gateway": "10.0.0.1" });
    for (field, bad) in [
        ("version", json!(2)),
        ("interface", json!("")),
        ("interface", json!("lo")),
        ("interface", json!("..")),
        ("interface", json!("a/b")),
        ("interface", json!("sixteen-letters-")),
        ("interface", json!("eth 0")),
        ("addresses", json!([])),
        ("addresses", json!(["127.0.0.1/8"])),
        ("addresses", json!(vec!["10.0.0.1/8"; 17])),
        ("routes", json!([{ "destination": "10.0.0.1/8", "scope": "link" }])),
        ("routes", json!(vec![&route; 257])),
        ("neighbours", json!(vec![json!({ "address": "10.0.0.1", "mac": "02:00:00:00:00:01" }); 257])),
        ("mtu", json!(575)),
        ("mtu", json!(65536)),
        ("vni", json!(0)),
        ("vni", json!(1 << 24)),
        ("node_address", json!("0.0.0.0")),
        ("node_address", json!("224.0.0.1")),
    ] {
        let mut value = v1("full.json");
        value[field] = bad.clone();
        let error = refusal(value);
        assert!(error.contains(field), "{field} {bad}: {error}");
    }
}

#[test]
fn unknown_and_missing_fields_are_refused() {
    for field in ["version", "interface", "mac", "addresses", "routes", "neighbours", "mtu", "vni", "node_address"] {
        let mut value = v1("full.json");
        value.as_object_mut().unwrap().remove(field);
        assert!(refusal(value).contains(field));
    }
    let mut value = v1("full.json");
    value["sidecar"] = json!(1);
    assert!(refusal(value).contains("sidecar"));
    let mut value = v1("full.json");
    value["routes"][0]["table"] = json!(254);
    assert!(refusal(value).contains("table"));
}

// ---------------------------------------------------------------------------

prop_compose! {
    fn any_net()(address in any::<u32>(), prefix in 0..=32_u8) -> Ipv4Net {
        Ipv4Net::new(address.into(), prefix).unwrap()
    }
}

prop_compose! {
    fn any_destination()(address in any::<u32>(), prefix in 0..=32_u8) -> Ipv4Net {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
        Ipv4Net::new((address & mask).into(), prefix).unwrap()
    }
}

prop_compose! {
    fn any_mac()(first in any::<u8>(), rest in any::<[u8; 5]>()) -> MacAddress {
        let mut bytes = vec![first & 0xfe | 0x02];
        bytes.extend(rest);
        MacAddress::from_bytes(&bytes).unwrap()
    }
}

/// Of the classes A to C, less loopback.
fn any_host() -> impl Strategy<Value = Ipv4Addr> {
    (1_u32 << 24..127 << 24).prop_map(Ipv4Addr::from)
}

prop_compose! {
    fn any_route()(
        destination in option::of(any_destination()),
        gateway in option::of(any::<u32>()),
        is_link in any::<bool>(),
        onlink in any::<bool>(),
        source in option::of(any::<u32>()),
        metric in option::of(any::<u32>()),
        mtu in option::of(any::<u32>()),
    ) -> Route {
        let scope = if is_link { RouteScope::Link } else { RouteScope::Global };
        Route { destination, gateway: gateway.map(Into::into), scope, onlink, source: source.map(Into::into), metric, mtu }
    }
}

prop_compose! {
    fn any_network()(
        interface in "[a-z][a-z0-9.-]{0,14}".prop_filter("loopback", |name| name != "lo"),
        mac in any_mac(),
        addresses in vec((any_host(), 0..=32_u8).prop_map(|(host, prefix)| Ipv4Net::new(host, prefix).unwrap()), 1..=16),
        routes in vec(any_route(), 0..12),
        neighbours in vec((any::<u32>(), any_mac()).prop_map(|(address, mac)| Neighbour { address: address.into(), mac }), 0..12),
        mtu in 576..=65535_u32,
        vni in 1..1_u32 << 24,
        node_address in any_host(),
    ) -> PodNetwork {
        PodNetwork { version: VERSION, interface, mac, addresses, routes, neighbours, mtu, vni, node_address }
    }
}

proptest! {
    #[test]
    fn pod_network_survives_the_way(network in any_network()) {
        let text = serde_json::to_string(&network).unwrap();
        prop_assert_eq!(serde_json::from_str::<PodNetwork>(&text).unwrap(), network);
    }

    #[test]
    fn addresses_survive_as_text(net in any_net(), mac in any_mac()) {
        prop_assert_eq!(net.to_string().parse::<Ipv4Net>().unwrap(), net);
        prop_assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
    }

    /// The node is not trusted: whatever it sends is refused or in bounds, and never a panic.
    #[test]
    fn what_is_read_is_in_bounds(field in 0..9_usize, text in ".{0,20}", number in any::<u64>()) {
        let names = ["version", "interface", "mac", "addresses", "routes", "neighbours", "mtu", "vni", "node_address"];
        for replacement in [json!(text), json!(number), json!([text]), json!([{ "destination": text, "scope": "link" }])] {
            let mut value = v1("full.json");
            value[names[field]] = replacement;
            if let Ok(network) = serde_json::from_value::<PodNetwork>(value) {
                prop_assert!(network.check().is_ok());
            }
        }
    }
}
