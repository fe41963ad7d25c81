//! One pod's data path: agent connections on a unix socket carried through the tunnel.
