//! A cloud network with a node and VMs on it, and pods that a bridge plugin attached to the node.

use std::net::Ipv4Addr;

use peerpods_network::node::{self, Inspected};
use peerpods_network::{PodNetwork, guest};

use crate::machine::Machine;

pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 1);
pub(crate) const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
pub(crate) const CHANNEL_PORT: u16 = 15150;

/// The cloud's network 10.93.0.0/24 and a node 10.93.0.1 with the pods' bridge 10.88.0.1/16. The node forwards.
pub(crate) struct World {
    wire: Machine,
    pub(crate) node: Machine,
}

/// A pod on the node, and the VM it is meant for: number n has VM 10.93.0.n and pod 10.88.0.n.
pub(crate) struct Pod {
    pub(crate) number: u8,
    /// The pod's netns on the node.
    pub(crate) netns: Machine,
    /// The VM's root netns.
    pub(crate) vm: Machine,
    /// The pod's netns in the VM; made by the code under test.
    pub(crate) inner: Machine,
}

impl World {
    pub(crate) fn new() -> Self {
        let world = Self { wire: Machine::new("wire"), node: Machine::new("node") };
        world.wire.ip("link add br0 type bridge\nlink set br0 up");
        world.attach(&world.node, 1);
        world.node.ip("link add cni0 type bridge\nlink set cni0 up\naddress add 10.88.0.1/16 dev cni0");
        world.node.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        world
    }

    /// Gives `machine` an eth0 with 10.93.0.`number` on the cloud's network.
    pub(crate) fn attach(&self, machine: &Machine, number: u8) {
        let wire = &self.wire;
        wire.ip(&format!("link add w{number} type veth peer name eth0 netns {}\nlink set w{number} master br0 up", machine.name()));
        machine.ip(&format!("link set eth0 up\naddress add 10.93.0.{number}/24 dev eth0"));
    }

    /// A pod as a bridge plugin leaves it, and its VM.
    pub(crate) fn pod(&self, number: u8) -> Pod {
        let pod = self.bare_pod(number);
        pod.netns.ip(&format!("address add 10.88.0.{number}/16 brd + dev eth0\nroute add default via 10.88.0.1"));
        pod
    }

    /// A pod whose interface has no address yet.
    pub(crate) fn bare_pod(&self, number: u8) -> Pod {
        let pod = Pod { number, netns: Machine::new("pod"), vm: Machine::new("vm"), inner: Machine::reserved("inner") };
        self.attach(&pod.vm, number);
        let name = pod.netns.name();
        self.node.ip(&format!("link add p{number} type veth peer name eth0 netns {name}\nlink set p{number} master cni0 up"));
        pod.netns.ip("link set eth0 up");
        pod
    }
}

impl Pod {
    pub(crate) fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, 0, self.number)
    }

    pub(crate) fn vm_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 93, 0, self.number)
    }

    pub(crate) fn vni(&self) -> u32 {
        5000 + u32::from(self.number)
    }

    pub(crate) fn inspect(&self, world: &World) -> Inspected {
        let path = self.netns.path();
        world.node.block_on(|| async move { node::inspect(&path).await.unwrap() })
    }

    /// What the node would send to the VM.
    pub(crate) fn network(&self, world: &World) -> PodNetwork {
        let inspected = self.inspect(world);
        let underlay = world.node.block_on(|| node::underlay(self.vm_address())).unwrap();
        inspected.pod_network(self.vni(), &underlay)
    }

    pub(crate) fn connect_node(&self, world: &World) {
        let inspected = self.inspect(world);
        let path = self.netns.path();
        world.node.block_on(|| async { node::ensure(&path, self.vm_address(), self.vni(), &inspected).await.unwrap() });
    }

    pub(crate) fn connect_vm(&self, network: &PodNetwork) {
        let inner = self.inner.path();
        self.vm.block_on(|| async { guest::ensure_at(&inner, network, "eth0", CHANNEL_PORT).await.unwrap() });
    }

    /// Both ends, node first.
    pub(crate) fn connect(&self, world: &World) -> PodNetwork {
        let network = self.network(world);
        self.connect_node(world);
        self.connect_vm(&network);
        network
    }
}
