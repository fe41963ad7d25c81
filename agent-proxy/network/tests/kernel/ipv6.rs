//! Pods with addresses of IPv6, alone or beside those of IPv4.

use std::net::Ipv6Addr;

use crate::machine::Machine;
use crate::traffic::{echo, echo_once, listen, reaches};
use crate::world::{Pod, World};

const BRIDGE: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 1);
const POD: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, 5);
/// As in the code.
const GUARD: u16 = 0x5050;

/// As a bridge plugin leaves a pod that has such an address.
fn add_ipv6(world: &World, pod: &Pod) {
    world.node.ip(&format!("address add {BRIDGE}/64 dev cni0 nodad"));
    pod.netns.ip(&format!("address add {POD}/64 dev eth0 nodad\nroute add default via {BRIDGE}"));
}

fn dual() -> (World, Pod) {
    let world = World::new();
    let pod = world.pod(5);
    add_ipv6(&world, &pod);
    (world, pod)
}

/// Addresses and routes, less what every link of IPv6 makes by itself.
fn shown(machine: &Machine) -> Vec<String> {
    let addresses = machine.ip6("address show dev eth0");
    let routes = machine.ip6("route show\nneighbour show nud permanent");
    let addresses = addresses.lines().filter_map(|line| line.trim().strip_prefix("inet6 ")?.split_whitespace().next());
    let words = |line: &str| {
        let known = ["proto", "kernel", "static", "boot", "pref", "medium"];
        line.split_whitespace().filter(|word| !known.contains(word)).collect::<Vec<_>>().join(" ")
    };
    let lines = routes.lines().map(words).chain(addresses.map(str::to_owned));
    let mut lines: Vec<String> = lines.filter(|line| !line.contains("fe80::/64 dev eth0") && !line.starts_with("fe80:")).collect();
    lines.sort();
    lines
}

#[test]
fn vm_shows_what_the_node_shows() {
    let (world, pod) = dual();
    pod.netns
        .ip("link set eth0 mtu 1400\nroute add fd00:99::/64 via fd00:88::2 metric 7\nneighbour add fd00:88::1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
    let network = pod.connect(&world);
    assert_eq!(network.version, 2);
    assert_eq!(shown(&pod.inner), shown(&pod.netns));
    // A second time nothing changes.
    pod.connect_vm(&network);
    assert_eq!(shown(&pod.inner), shown(&pod.netns));
    assert_eq!(pod.network(&world), network, "inspect does not see what ensure made");
}

#[test]
fn devices_of_ours_have_no_address() {
    let (world, pod) = dual();
    pod.connect(&world);
    let vxlan = format!("ppvx{}", pod.vni());
    for (machine, device) in [(&pod.netns, vxlan.as_str()), (&pod.vm, &vxlan), (&pod.vm, "ppveth")] {
        assert!(!machine.ip6(&format!("address show dev {device}")).contains("inet6"), "{device}");
    }
}

#[test]
fn both_families_carry_connections_both_ways() {
    let (world, pod) = dual();
    pod.connect(&world);
    for at in [POD.into(), std::net::IpAddr::from(pod.address())] {
        let (server, served) = echo_once(&pod.inner, at);
        echo(&world.node, server, 1_000_000);
        served.join().unwrap();
    }
    let (server, served) = echo_once(&world.node, BRIDGE);
    echo(&pod.inner, server, 1_000_000);
    assert_eq!(served.join().unwrap().ip(), POD);
}

#[test]
fn pod_of_ipv6_alone_is_connected() {
    let world = World::new();
    let pod = world.bare_pod(5);
    add_ipv6(&world, &pod);
    pod.connect(&world);
    let (server, served) = echo_once(&pod.inner, POD);
    echo(&world.node, server, 1_000_000);
    served.join().unwrap();
}

#[test]
fn routes_of_a_narrow_path_keep_what_ipv6_needs() {
    let (world, pod) = dual();
    let network = pod.network(&world);
    pod.connect_node(&world);
    for end in [&pod.vm, &world.node] {
        end.ip("link set eth0 mtu 1300");
    }
    pod.connect_vm(&network);
    let routes = pod.inner.ip6("route show default");
    assert!(routes.contains("mtu 1280"), "{routes}");
    let (server, served) = echo_once(&world.node, BRIDGE);
    echo(&pod.inner, server, 100_000);
    served.join().unwrap();
}

#[test]
fn workload_cannot_reach_metadata_services_of_ipv6() {
    let (world, pod) = dual();
    pod.connect(&world);
    for metadata in ["fd00:ec2::254", "fd20:ce::254"] {
        let metadata: Ipv6Addr = metadata.parse().unwrap();
        world.node.ip(&format!("address add {metadata}/128 dev cni0 nodad"));
        let (_listener, server) = listen(&world.node, (metadata, 0));
        assert!(!reaches(&pod.inner, server), "{metadata}");
    }
    let (_listener, server) = listen(&world.node, ("fd20:ce::254".parse::<Ipv6Addr>().unwrap(), 0));
    pod.vm.tc(&format!("filter del dev ppveth ingress pref {GUARD}"));
    assert!(reaches(&pod.inner, server), "only the guard was in the way");
}

#[test]
fn pod_without_ipv6_sends_none() {
    let world = World::new();
    let pod = world.pod(5);
    let network = pod.connect(&world);
    assert_eq!(network.version, 1, "older images read this");
    world.node.ip(&format!("address add {BRIDGE}/64 dev cni0 nodad"));
    pod.inner.ip(&format!("address add {POD}/64 dev eth0 nodad"));
    let (_listener, server) = listen(&world.node, (BRIDGE, 0));
    assert!(!reaches(&pod.inner, server));
    pod.vm.tc(&format!("filter del dev ppveth ingress pref {GUARD}"));
    assert!(reaches(&pod.inner, server), "only the guard was in the way");
}
