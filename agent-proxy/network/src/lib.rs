//! The pod network: inspect a network namespace, VXLAN, both ends; netlink only.
