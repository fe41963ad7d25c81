//! Frames find their way: from the node's bridge to the pod's IP, which the VM answers.

use std::net::Ipv4Addr;
use std::thread;

use peerpods_network::VXLAN_OVERHEAD;

use crate::machine::Machine;
use crate::traffic::{echo, echo_once, receive, udp};
use crate::world::{BRIDGE, NODE, World};

#[test]
fn pod_ip_is_answered_in_vm() {
    let world = World::new();
    let pod = world.pod(5);
    let network = pod.connect(&world);
    assert_eq!(network.node_address, NODE);
    assert_eq!(network.mtu, 1500);

    let (server, served) = echo_once(&pod.inner, pod.address());
    echo(&world.node, server, 4 << 20);
    assert_eq!(served.join().unwrap().ip(), BRIDGE, "the client's address arrives as it is");

    let neighbour = world.node.ip(&format!("neighbour show {} dev cni0", pod.address()));
    assert!(neighbour.contains(&network.mac.to_string()), "the VM answers ARP with the pod's own address: {neighbour}");
}

#[test]
fn workload_reaches_node() {
    let world = World::new();
    let pod = world.pod(5);
    pod.connect(&world);
    let (server, served) = echo_once(&world.node, BRIDGE);
    echo(&pod.inner, server, 1 << 20);
    assert_eq!(served.join().unwrap().ip(), pod.address());
}

#[test]
fn full_size_packets_need_no_fragments_on_the_underlay() {
    let world = World::new();
    let pod = world.pod(5);
    pod.connect(&world);
    let (inner, inner_address) = udp(&pod.inner, pod.address());
    let (outer, outer_address) = udp(&world.node, BRIDGE);
    // Linux sets "don't fragment" on datagrams that fit. 20 bytes of IP and 8 of UDP fill the packet.
    let payload = vec![7; usize::try_from(1500 - VXLAN_OVERHEAD).unwrap() - 28];
    outer.send_to(&payload, inner_address).unwrap();
    assert_eq!(receive(&inner), (outer_address, payload.len()));
    inner.send_to(&payload, outer_address).unwrap();
    assert_eq!(receive(&outer), (inner_address, payload.len()));
    for machine in [&world.node, &pod.vm] {
        assert_eq!(fragments_made(machine), "0");
    }

    let too_large = vec![7; payload.len() + 1];
    inner.send_to(&too_large, outer_address).unwrap();
    assert_eq!(receive(&outer), (inner_address, too_large.len()));
    assert_eq!(fragments_made(&pod.vm), "0", "the pod's own stack fragments what is larger");
    assert_eq!(fragments_made(&pod.inner), "2");
}

#[test]
fn neighbours_may_send_as_much_as_to_any_pod() {
    let world = World::new();
    let pod = world.pod(5);
    pod.connect(&world);
    let (inner, inner_address) = udp(&pod.inner, pod.address());
    let (outer, outer_address) = udp(&world.node, BRIDGE);
    // The largest packet that the bridge takes, and a datagram in pieces of that size.
    for size in [1500 - 28, 60_000] {
        outer.send_to(&vec![7; size], inner_address).unwrap();
        assert_eq!(receive(&inner), (outer_address, size));
        inner.send_to(&vec![7; size], outer_address).unwrap();
        assert_eq!(receive(&outer), (inner_address, size));
    }
}

#[test]
fn smaller_underlay_makes_the_packets_of_the_pod_smaller() {
    let world = World::new();
    let pod = world.pod(5);
    let network = pod.network(&world);
    // As the VM's network configuration, or a path MTU learned by its kernel, would.
    pod.vm.ip("route replace 10.93.0.1/32 dev eth0 mtu 1400");
    pod.connect_node(&world);
    pod.connect_vm(&network);
    assert!(pod.inner.ip("link show eth0").contains("mtu 1500"));
    assert!(pod.inner.ip("route get 10.88.0.1").contains("mtu 1350"));
    let (server, _served) = echo_once(&pod.inner, pod.address());
    echo(&world.node, server, 1 << 20);
}

#[test]
fn pod_whose_gateway_is_on_no_network_works() {
    let world = World::new();
    let pod = world.bare_pod(5);
    // As Calico does it; the permanent neighbour is as AWS's plugin does it.
    let gateway = Ipv4Addr::new(169, 254, 1, 1);
    world.node.ip(&format!("address add {gateway}/32 dev cni0\nroute add 10.99.0.5/32 dev cni0\nlink set cni0 address 02:00:00:00:00:01"));
    pod.netns.ip(&format!(
        "address add 10.99.0.5/32 dev eth0\nroute add {gateway} dev eth0 scope link\nroute add default via {gateway}\n\
         neighbour add {gateway} lladdr 02:00:00:00:00:01 dev eth0 nud permanent"
    ));
    let network = pod.connect(&world);
    assert_eq!(network.routes.len(), 2);
    assert_eq!(network.neighbours.len(), 1);

    let (server, served) = echo_once(&pod.inner, Ipv4Addr::new(10, 99, 0, 5));
    echo(&world.node, server, 1 << 20);
    served.join().unwrap();
    let (server, served) = echo_once(&world.node, BRIDGE);
    echo(&pod.inner, server, 1000);
    assert_eq!(served.join().unwrap().ip(), Ipv4Addr::new(10, 99, 0, 5));
}

#[test]
fn twenty_pods_are_connected_at_once() {
    let world = World::new();
    let pods: Vec<_> = (10..30).map(|number| world.pod(number)).collect();
    thread::scope(|scope| {
        for pod in &pods {
            let world = &world;
            scope.spawn(move || {
                let network = pod.network(world);
                thread::scope(|scope| {
                    scope.spawn(|| pod.connect_node(world));
                    scope.spawn(|| pod.connect_vm(&network));
                });
                let (server, served) = echo_once(&pod.inner, pod.address());
                echo(&world.node, server, 100_000);
                served.join().unwrap();
            });
        }
    });
    // From one VM to another, by way of the node's bridge.
    let (server, served) = echo_once(&pods[1].inner, pods[1].address());
    echo(&pods[0].inner, server, 100_000);
    assert_eq!(served.join().unwrap().ip(), pods[0].address());
}

/// FragCreates of the first `Ip:` pair of lines.
fn fragments_made(machine: &Machine) -> String {
    let snmp = machine.inside(|| std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = snmp.lines().filter(|line| line.starts_with("Ip:"));
    let names = lines.next().unwrap().split_whitespace();
    let values = lines.next().unwrap().split_whitespace();
    names.zip(values).find(|(name, _)| *name == "FragCreates").unwrap().1.to_owned()
}
