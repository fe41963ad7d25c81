//! What `inspect` makes of interfaces as different CNI plugins leave them.

use peerpods_network::{NetworkError, Route, RouteScope, node};

use crate::machine::Machine;
use crate::world::World;

#[test]
fn everything_of_the_interface_is_read() {
    let world = World::new();
    let pod = world.pod(5);
    pod.netns.ip("link set eth0 address 0a:58:0a:58:00:05 mtu 1400\naddress add 10.88.9.5/24 dev eth0\n\
         route add 10.96.0.0/12 via 10.88.0.1 metric 7 mtu 1300\nroute add 192.0.2.0/24 via 198.51.100.1 dev eth0 onlink src 10.88.0.5\n\
         neighbour add 10.88.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent\n\
         neighbour add 10.88.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud reachable");
    let inspected = pod.inspect(&world);
    assert_eq!((inspected.interface.as_str(), inspected.mtu), ("eth0", 1400));
    assert_eq!(inspected.mac.to_string(), "0a:58:0a:58:00:05");
    assert_eq!(inspected.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.88.0.5/16", "10.88.9.5/24"]);
    assert_eq!(inspected.neighbours.len(), 1);
    let onlink = Route {
        destination: Some("192.0.2.0/24".parse().unwrap()),
        gateway: Some("198.51.100.1".parse().unwrap()),
        scope: RouteScope::Global,
        onlink: true,
        source: Some("10.88.0.5".parse().unwrap()),
        metric: None,
        mtu: None,
    };
    assert!(inspected.routes.contains(&onlink), "{:?}", inspected.routes);
    let with_gateway: Vec<bool> = inspected.routes.iter().map(|route| route.gateway.is_some()).collect();
    assert_eq!(with_gateway, [false, false, true, true, true], "routes can be added in this order");
}

#[test]
fn vm_shows_the_same_network_as_the_node() {
    let world = World::new();
    let pod = world.pod(5);
    pod.netns.ip(
        "link set eth0 mtu 1400\naddress add 10.88.9.5/24 brd + dev eth0\nroute add 10.96.0.0/12 via 10.88.0.1 metric 7 mtu 1300\n\
         route add 192.0.2.0/24 via 198.51.100.1 dev eth0 onlink src 10.88.0.5\n\
         neighbour add 10.88.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent",
    );
    pod.connect(&world);
    let shown = |machine: &Machine| {
        let routes = machine.ip("route show\nneighbour show nud permanent");
        let addresses = machine.ip("address show dev eth0");
        let addresses = addresses.lines().filter(|line| line.trim().starts_with("inet "));
        // Who added a route, and for whom, are the differences.
        let plain = |line: &str| {
            line.replace(" proto kernel", "").replace(" proto static", "").replace(" proto boot", "").replace(" noprefixroute", "")
        };
        let mut lines: Vec<String> = routes.lines().chain(addresses).map(|line| plain(line).trim().to_owned()).collect();
        lines.sort();
        lines
    };
    assert_eq!(shown(&pod.inner), shown(&pod.netns));
}

#[test]
fn only_interface_is_found_without_a_default_route() {
    let world = World::new();
    let pod = world.bare_pod(5);
    pod.netns.ip("address add 10.88.0.5/16 dev eth0");
    assert_eq!(pod.inspect(&world).interface, "eth0");
}

#[test]
fn default_route_decides_between_interfaces() {
    let world = World::new();
    let pod = world.pod(5);
    pod.netns.ip("link add net1 type veth peer name net2\naddress add 192.0.2.1/24 dev net1\nlink set net1 up\nroute add default via 192.0.2.9 dev net1 metric 50");
    assert_eq!(pod.inspect(&world).interface, "eth0");
}

#[test]
fn interfaces_without_a_default_route_are_ambiguous() {
    let world = World::new();
    let pod = world.bare_pod(5);
    pod.netns.ip("address add 10.88.0.5/16 dev eth0\nlink add net1 type veth peer name net2");
    let path = pod.netns.path();
    let result = world.node.block_on(|| async { node::inspect(&path).await });
    assert!(matches!(&result, Err(NetworkError::FindInterface { candidates, .. }) if candidates.len() == 3), "{result:?}");
}

#[test]
fn interface_without_an_address_is_refused() {
    let world = World::new();
    let pod = world.bare_pod(5);
    let path = pod.netns.path();
    let result = world.node.block_on(|| async { node::inspect(&path).await });
    assert!(matches!(&result, Err(NetworkError::ReadInterface { interface, .. }) if interface == "eth0"), "{result:?}");
}
