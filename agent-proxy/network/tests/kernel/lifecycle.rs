//! `ensure` and `remove`, again and again, and in the wrong places.

use std::path::Path;
use std::thread;
use std::time::Duration;

use peerpods_network::guest::{self, LinkConfig};
use peerpods_network::{NetworkError, node};

use crate::machine::Machine;
use crate::traffic::{echo, echo_once};
use crate::world::World;

/// All that `ip` and `tc` know of a machine, without counters.
fn state(machine: &Machine) -> String {
    let listed = machine.ip4("link show\naddress show\nroute show table all\nneighbour show nud permanent");
    let devices = machine.ip("link show");
    let first_lines = devices.lines().filter(|line| !line.starts_with(' '));
    let names = first_lines.map(|line| line.split([':', '@']).nth(1).unwrap().trim());
    let filters = names.map(|name| machine.tc(&format!("filter show dev {name} ingress"))).collect::<String>();
    format!("{listed}{}{filters}", machine.tc("qdisc show"))
}

#[test]
fn ensure_is_idempotent() {
    let world = World::new();
    let pod = world.pod(5);
    let network = pod.connect(&world);
    let before = [&pod.netns, &pod.vm, &pod.inner].map(state);
    pod.connect_node(&world);
    pod.connect_vm(&network);
    assert_eq!([&pod.netns, &pod.vm, &pod.inner].map(state), before);
    assert_eq!(pod.network(&world), network, "inspect does not see what ensure made");
}

#[test]
fn ensure_follows_the_pod_to_another_vm() {
    let world = World::new();
    let pod = world.pod(5);
    pod.connect(&world);
    let other = Machine::new("vm");
    world.attach(&other, 7);
    let network = pod.network(&world);
    let (inspected, path) = (pod.inspect(&world), pod.netns.path());
    world.node.block_on(|| async { node::ensure(&path, "10.93.0.7".parse().unwrap(), pod.vni(), &inspected).await.unwrap() });
    let inner = Machine::reserved("inner");
    let inner_path = inner.path();
    other.block_on(|| async { guest::ensure_at(&inner_path, &network, "eth0", 15150).await.unwrap() });
    let (server, served) = echo_once(&inner, pod.address());
    echo(&world.node, server, 1000);
    served.join().unwrap();
}

#[test]
fn guest_ensure_repairs_what_is_missing() {
    let world = World::new();
    let pod = world.pod(5);
    let network = pod.connect(&world);
    for damage in [
        (&pod.inner, "link del eth0"),
        (&pod.vm, "link del ppvx5005"),
        (&pod.vm, "link set ppveth down"),
        (&pod.inner, "address flush dev eth0"),
        (&pod.inner, "link set eth0 down"),
    ] {
        let (machine, command) = damage;
        machine.ip(command);
        pod.connect_vm(&network);
        let (server, served) = echo_once(&pod.inner, pod.address());
        echo(&world.node, server, 1000);
        served.join().unwrap();
    }
}

#[test]
fn remove_restores_the_pod_on_the_node() {
    let world = World::new();
    let pod = world.pod(5);
    let before = state(&pod.netns);
    pod.connect_node(&world);
    assert_ne!(state(&pod.netns), before);
    let path = pod.netns.path();
    for _ in 0..2 {
        world.node.block_on(|| async { node::remove(&path, pod.vni()).await.unwrap() });
        assert_eq!(state(&pod.netns), before);
    }
    pod.connect(&world);
    let (server, _served) = echo_once(&pod.inner, pod.address());
    echo(&world.node, server, 1000);
}

#[test]
fn filters_of_others_stay() {
    for discipline in ["clsact", "ingress"] {
        let world = World::new();
        let pod = world.pod(5);
        pod.netns.tc(&format!("qdisc add dev eth0 {discipline}"));
        // Something that matches no packet.
        pod.netns.tc("filter add dev eth0 ingress pref 9 protocol ip u32 match ip dst 203.0.113.1 action mirred egress redirect dev lo");
        let before = state(&pod.netns);
        pod.connect(&world);
        let (server, _served) = echo_once(&pod.inner, pod.address());
        echo(&world.node, server, 1000);
        let path = pod.netns.path();
        world.node.block_on(|| async { node::remove(&path, pod.vni()).await.unwrap() });
        assert_eq!(state(&pod.netns), before);
    }
}

#[test]
fn missing_netns_is_an_error_of_its_own() {
    let world = World::new();
    let pod = world.pod(5);
    let inspected = pod.inspect(&world);
    let folder = tempfile::tempdir().unwrap();
    let no_namespace = folder.path().join("file");
    std::fs::write(&no_namespace, "").unwrap();
    for path in [&folder.path().join("nothing"), &no_namespace, Path::new("/run/netns/ppn-none")] {
        world.node.block_on(|| async {
            let results = [
                node::inspect(path).await.map(drop),
                node::ensure(path, pod.vm_address(), 1, &inspected).await,
                node::remove(path, 1).await,
            ];
            for result in results {
                assert!(matches!(&result, Err(NetworkError::NetnsMissing { path: named }) if named == path), "{result:?}");
            }
        });
    }
}

#[test]
fn vni_of_another_pod_is_refused() {
    let world = World::new();
    let (pod, other) = (world.pod(5), world.pod(6));
    pod.connect_node(&world);
    let (inspected, path) = (other.inspect(&world), other.netns.path());
    let result = world.node.block_on(|| async { node::ensure(&path, other.vm_address(), pod.vni(), &inspected).await });
    assert!(matches!(result, Err(NetworkError::VniInUse { vni: 5005 })), "{result:?}");
}

#[test]
fn vm_without_a_way_to_the_node_is_refused() {
    let world = World::new();
    let pod = world.pod(5);
    let network = pod.network(&world);
    let nowhere = Machine::new("nowhere");
    nowhere.ip("link add eth0 type veth peer name other");
    let inner = Machine::reserved("inner");
    let path = inner.path();
    let result = nowhere.block_on(|| async { guest::ensure_at(&path, &network, "eth0", 15150).await });
    assert!(matches!(result, Err(NetworkError::NoRoute { to }) if to == network.node_address), "{result:?}");
}

#[test]
fn bring_up_waits_for_the_interface() {
    let vm = Machine::new("vm");
    let config: LinkConfig =
        LinkConfig { address: "10.93.0.5/24".parse().unwrap(), gateway: Some("10.93.0.1".parse().unwrap()), dns: Vec::new(), mtu: 1400 };
    thread::scope(|scope| {
        let waiting = scope.spawn(|| vm.block_on(|| guest::bring_up("eth0", &config, Duration::from_secs(20))));
        vm.ip("link add other type veth peer name eth0\nlink set other up");
        waiting.join().unwrap().unwrap();
    });
    vm.block_on(|| guest::bring_up("eth0", &config, Duration::from_secs(20))).unwrap();
    let shown = vm.ip("address show dev eth0\nroute show\nlink show lo");
    for part in ["10.93.0.5/24", "mtu 1400", "default via 10.93.0.1 dev eth0", "10.93.0.0/24 dev eth0 proto kernel", "LOOPBACK,UP"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn bring_up_takes_a_gateway_outside_the_network() {
    let vm = Machine::new("vm");
    vm.ip("link add other type veth peer name eth0\nlink set other up");
    let config =
        LinkConfig { address: "10.93.0.5/32".parse().unwrap(), gateway: Some("10.93.0.1".parse().unwrap()), dns: Vec::new(), mtu: 1460 };
    vm.block_on(|| guest::bring_up("eth0", &config, Duration::from_secs(20))).unwrap();
    assert!(vm.ip("route show").contains("default via 10.93.0.1 dev eth0"));
}

#[test]
fn bring_up_gives_up_at_its_deadline() {
    let vm = Machine::new("vm");
    let config = LinkConfig { address: "10.93.0.5/24".parse().unwrap(), gateway: None, dns: Vec::new(), mtu: 1500 };
    let result = vm.block_on(|| guest::bring_up("eth0", &config, Duration::from_millis(50)));
    assert!(matches!(&result, Err(NetworkError::InterfaceMissing { name, .. }) if name == "eth0"), "{result:?}");
}
