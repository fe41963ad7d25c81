//! The node daemon: hypervisor service, claims, attest and Bind, pod network.
