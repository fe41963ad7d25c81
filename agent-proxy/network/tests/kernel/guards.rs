//! What must not pass does not, and would pass without the guard under test.

use std::net::Ipv4Addr;

use crate::frame;
use crate::machine::Machine;
use crate::traffic::{listen, passes, reaches, receive, udp};
use crate::world::{CHANNEL_PORT, Pod, World};

const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// As in the code: the guard and the channel's guard.
const GUARD: u16 = 0x5050;
const CHANNEL_GUARD: u16 = 0x5051;

fn lift(machine: &Machine, device: &str, priority: u16) {
    machine.tc(&format!("filter del dev {device} ingress pref {priority}"));
}

fn connected() -> (World, Pod) {
    let world = World::new();
    let pod = world.pod(5);
    pod.connect(&world);
    (world, pod)
}

#[test]
fn workload_cannot_reach_metadata_service() {
    let (world, pod) = connected();
    world.node.ip(&format!("address add {METADATA}/32 dev cni0"));
    let (_listener, server) = listen(&world.node, (METADATA, 0));
    assert!(!reaches(&pod.inner, server));
    lift(&pod.vm, "ppveth", GUARD);
    assert!(reaches(&pod.inner, server), "only the guard was in the way");
}

#[test]
fn workload_cannot_hide_an_address_behind_a_vlan_tag() {
    let (world, pod) = connected();
    world.node.ip(&format!("address add {METADATA}/32 dev cni0\nlink set cni0 address 02:00:00:00:00:01"));
    let (socket, server) = udp(&world.node, METADATA);
    let (own, _) = udp(&world.node, METADATA);
    // VLAN 0 is a priority tag, which the receiving kernel takes off.
    let tagged = frame::tagged_udp("02:00:00:00:00:01", (pod.address(), 9), server);
    let send = || frame::send(&pod.inner, "eth0", &tagged);
    let mark = || assert_ne!(own.send_to(b"marker", server).unwrap(), 0);
    assert!(!passes(send, mark, &socket));
    lift(&pod.vm, "ppveth", GUARD);
    // The marker comes a shorter way, so this time it says nothing.
    frame::send(&pod.inner, "eth0", &tagged);
    assert_eq!(receive(&socket).1, frame::PAYLOAD.len(), "only the guard was in the way");
}

#[test]
fn workload_cannot_reach_its_own_vm() {
    let (world, pod) = connected();
    // The worst case: the node forwards to the cloud's network and hides the pod behind no other address.
    pod.vm.ip("route add 10.88.0.0/16 via 10.93.0.1");
    let (_channel, channel) = listen(&pod.vm, (pod.vm_address(), CHANNEL_PORT));
    let (_other, other) = listen(&pod.vm, (pod.vm_address(), 0));
    assert!(!reaches(&pod.inner, channel));
    assert!(!reaches(&pod.inner, other), "other ports are of no use to it either");
    assert!(reaches(&world.node, channel), "the node still reaches the channel");

    lift(&pod.vm, "ppveth", GUARD);
    assert!(reaches(&pod.inner, other), "only the first guard was in the way");
    assert!(!reaches(&pod.inner, channel), "the second one stands for packets that come back from the network");
    lift(&pod.vm, "eth0", CHANNEL_GUARD);
    assert!(reaches(&pod.inner, channel), "only the two guards were in the way");
}

#[test]
fn vxlan_from_another_host_is_ignored() {
    let (world, pod) = connected();
    let third = Machine::new("third");
    world.attach(&third, 9);
    let mac = pod.inspect(&world).mac;
    third.ip(&format!(
        "link add vx type vxlan id {} remote {} dstport 4789 dev eth0\nlink set vx up\naddress add 10.88.0.77/16 dev vx\n\
         neighbour add {} lladdr {mac} dev vx nud permanent",
        pod.vni(),
        pod.vm_address(),
        pod.address(),
    ));
    let (socket, address) = udp(&pod.inner, pod.address());
    let (intruder, _) = udp(&third, Ipv4Addr::new(10, 88, 0, 77));
    let (node, _) = udp(&world.node, Ipv4Addr::UNSPECIFIED);
    let send = || assert_ne!(intruder.send_to(b"intruder", address).unwrap(), 0);
    let mark = || assert_ne!(node.send_to(b"marker", address).unwrap(), 0);
    assert!(!passes(send, mark, &socket));
    lift(&pod.vm, "eth0", GUARD);
    assert!(passes(send, mark, &socket), "only the guard was in the way");
}

#[test]
fn workload_cannot_lift_the_guards() {
    let (world, pod) = connected();
    world.node.ip(&format!("address add {METADATA}/32 dev cni0"));
    let (_listener, server) = listen(&world.node, (METADATA, 0));
    // All that CAP_NET_ADMIN can do to the interface: other addresses, another station, filters of its own.
    pod.inner.ip("link set eth0 down\nlink set eth0 address 02:00:00:00:00:99 mtu 1200\nlink set eth0 up\nroute add 10.88.0.0/16 dev eth0\nroute add default via 10.88.0.1");
    pod.inner.tc("qdisc add dev eth0 ingress");
    pod.inner.tc("qdisc del dev eth0 ingress");
    let (_reachable, bridge) = listen(&world.node, (crate::world::BRIDGE, 0));
    assert!(reaches(&pod.inner, bridge), "the workload may do that");
    assert!(!reaches(&pod.inner, server));
}

#[test]
fn workload_cannot_use_ipv6() {
    let (world, pod) = connected();
    world.node.ip("address add fd00::1/64 dev cni0 nodad");
    pod.inner.ip("address add fd00::5/64 dev eth0 nodad");
    let listener = world.node.inside(|| std::net::TcpListener::bind("[fd00::1]:0").unwrap());
    assert!(!reaches(&pod.inner, listener.local_addr().unwrap()));
    lift(&pod.vm, "ppveth", GUARD);
    assert!(reaches(&pod.inner, listener.local_addr().unwrap()), "only the guard was in the way");
}
