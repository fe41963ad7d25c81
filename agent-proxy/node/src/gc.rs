//! When a sandbox is dead although nobody said so; pure.
//!
//! Neither Kata shim tells the daemon that it has crashed: the Go shim's clean-up aborts before its first call, the Rust shim's makes
//! none. What remains to be seen is that its connections are closed and that its network namespace is gone.

use std::time::Duration;

/// What can be seen of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observation {
    /// Its network namespace.
    pub netns: Netns,
    /// Connections of shims to its link; 0 without a link.
    pub connections: u32,
    /// Whether a shim has ever connected.
    pub was_connected: bool,
    /// Since CreateVM.
    pub age: Duration,
}

/// A sandbox's network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Netns {
    /// It is there.
    Present,
    /// Its path no longer leads to one.
    Gone,
    /// The pod uses the host's.
    Host,
}

/// How long a sandbox must look dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(30);

/// How long a host-network pod, whose namespace says nothing, may be without its first connection: longer than any shim waits for StartVM.
const FIRST_CONNECTION: Duration = Duration::from_secs(1200);

/// Whether a sandbox looks dead at this moment; it is dead when it has looked so for [`DEAD_AFTER`].
pub fn looks_dead(seen: Observation) -> bool {
    if seen.connections > 0 {
        return false;
    }
    match seen.netns {
        Netns::Present => false,
        Netns::Gone => true,
        // Kata's shims never connect again.
        Netns::Host => seen.was_connected || seen.age > FIRST_CONNECTION,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connected_or_namespaced_sandbox_is_alive() {
        for netns in [Netns::Present, Netns::Gone, Netns::Host] {
            for was_connected in [false, true] {
                for age in [Duration::ZERO, FIRST_CONNECTION * 2] {
                    let seen = Observation { netns, connections: 0, was_connected, age };
                    assert!(!looks_dead(Observation { connections: 1, was_connected: true, ..seen }));
                    let expected = netns == Netns::Gone || netns == Netns::Host && (was_connected || age > FIRST_CONNECTION);
                    assert_eq!(looks_dead(seen), expected, "{seen:?}");
                }
            }
        }
    }
}
