//! [`PodNetwork`] as JSON: it survives the way, version 1 stays readable, and nothing odd gets in.

#![allow(clippy::unwrap_used, reason = "clippy.toml allows it in tests, but not in what they share")]

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use peerpods_network::{IpNet, MacAddress, Neighbour, PodNetwork, Route, RouteScope, VERSION};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Value, json};

fn v1(name: &str) -> Value {
    golden("v1", name)
}

fn golden(version: &str, name: &str) -> Value {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat/pod-network").join(version);
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

fn refusal(value: Value) -> String {
    serde_json::from_value::<PodNetwork>(value).unwrap_err().to_string()
}

fn full() -> PodNetwork {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let host = |text: &str| text.parse::<IpAddr>().unwrap();
    let route = Route { destination: None, gateway: None, scope: RouteScope::Global, onlink: false, source: None, metric: None, mtu: None };
    PodNetwork {
        version: 1,
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
        node_address: Ipv4Addr::new(10, 93, 0, 1),
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
fn version_2_adds_ipv6_and_nothing_else() {
    let net = |text: &str| text.parse::<IpNet>().unwrap();
    let mut dual = full();
    dual.version = VERSION;
    dual.addresses.push(net("fd00:88::5/64"));
    let route = |destination, gateway: Option<&str>| Route {
        destination: Some(net(destination)),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        scope: RouteScope::Global,
        onlink: false,
        source: None,
        metric: Some(256),
        mtu: None,
    };
    dual.routes.extend([route("fd00:88::/64", None), route("::/0", Some("fd00:88::1"))]);
    dual.neighbours.push(Neighbour { address: "fd00:88::1".parse().unwrap(), mac: "02:00:00:00:00:01".parse().unwrap() });
    assert!(dual.has_ipv6());
    assert_eq!(serde_json::to_value(&dual).unwrap(), golden("v2", "dual.json"));
    assert_eq!(serde_json::from_value::<PodNetwork>(golden("v2", "dual.json")).unwrap(), dual);
    let mut as_version_1 = golden("v2", "dual.json");
    as_version_1["version"] = json!(1);
    assert!(refusal(as_version_1).contains("IPv4 only"));
}

#[test]
fn bad_fields_of_ipv6_are_refused_by_name() {
    for (field, bad) in [
        ("version", json!(3)),
        ("addresses", json!(["::1/64"])),
        ("addresses", json!(["ff02::1/64"])),
        ("routes", json!([{ "destination": "fd00::1/64", "scope": "global" }])),
        ("routes", json!([{ "destination": "fd00::/64", "gateway": "10.88.0.1", "scope": "global" }])),
        ("routes", json!([{ "gateway": "fd00::1", "scope": "global" }])),
        ("mtu", json!(1279)),
    ] {
        let mut value = golden("v2", "dual.json");
        value[field] = bad.clone();
        let error = refusal(value);
        assert!(error.contains(field), "{field} {bad}: {error}");
    }
}

#[test]
fn bad_fields_are_refused_by_name() {
    let route = json!({ "scope": "global", "gateway": "10.0.0.1" });
    for (field, bad) in [
        ("version", json!(3)),
        ("version", json!(0)),
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

fn any_ip(is_ipv6: bool) -> BoxedStrategy<IpAddr> {
    if is_ipv6 {
        any::<u128>().prop_map(|bits| Ipv6Addr::from(bits).into()).boxed()
    } else {
        any::<u32>().prop_map(|bits| Ipv4Addr::from(bits).into()).boxed()
    }
}

fn any_net(is_ipv6: bool) -> impl Strategy<Value = IpNet> {
    let longest = if is_ipv6 { 128_u8 } else { 32 };
    (any_ip(is_ipv6), 0..=longest).prop_map(|(address, prefix)| IpNet::new(address, prefix).unwrap())
}

prop_compose! {
    fn any_mac()(first in any::<u8>(), rest in any::<[u8; 5]>()) -> MacAddress {
        let mut bytes = vec![first & 0xfe | 0x02];
        bytes.extend(rest);
        MacAddress::from_bytes(&bytes).unwrap()
    }
}

/// Of the classes A to C, less loopback; of unique local addresses.
fn any_host(is_ipv6: bool) -> BoxedStrategy<IpAddr> {
    if is_ipv6 {
        any::<u64>().prop_map(|low| Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(low)).into()).boxed()
    } else {
        any_ipv4_host().prop_map(IpAddr::from).boxed()
    }
}

fn any_ipv4_host() -> impl Strategy<Value = Ipv4Addr> {
    (1_u32 << 24..127 << 24).prop_map(Ipv4Addr::from)
}

fn any_address() -> impl Strategy<Value = IpNet> {
    any::<bool>().prop_flat_map(any_host).prop_flat_map(|host| {
        let longest = if host.is_ipv6() { 128_u8 } else { 32 };
        (0..=longest).prop_map(move |prefix| IpNet::new(host, prefix).unwrap())
    })
}

fn any_route() -> impl Strategy<Value = Route> {
    let addresses = any::<bool>().prop_flat_map(|is_ipv6| {
        let destination = any_net(is_ipv6).prop_map(|net| net.trunc());
        // Without a destination it is a route of IPv4.
        let destination = if is_ipv6 { destination.prop_map(Some).boxed() } else { option::of(destination).boxed() };
        (destination, option::of(any_ip(is_ipv6)), option::of(any_ip(is_ipv6)))
    });
    let rest = (any::<bool>(), any::<bool>(), option::of(any::<u32>()), option::of(any::<u32>()));
    (addresses, rest).prop_map(|((destination, gateway, source), (is_link, onlink, metric, mtu))| {
        let scope = if is_link { RouteScope::Link } else { RouteScope::Global };
        Route { destination, gateway, scope, onlink, source, metric, mtu }
    })
}

fn any_neighbour() -> impl Strategy<Value = Neighbour> {
    (any::<bool>().prop_flat_map(any_ip), any_mac()).prop_map(|(address, mac)| Neighbour { address, mac })
}

prop_compose! {
    fn any_network()(
        interface in "[a-z][a-z0-9.-]{0,14}".prop_filter("loopback", |name| name != "lo"),
        mac in any_mac(),
        addresses in vec(any_address(), 1..=16),
        routes in vec(any_route(), 0..12),
        neighbours in vec(any_neighbour(), 0..12),
        mtu in 1280..=65535_u32,
        vni in 1..1_u32 << 24,
        node_address in any_ipv4_host(),
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
    fn addresses_survive_as_text(net in any_address(), mac in any_mac()) {
        prop_assert_eq!(net.to_string().parse::<IpNet>().unwrap(), net);
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
