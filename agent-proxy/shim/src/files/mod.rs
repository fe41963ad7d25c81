//! The files of a container that live on the node: copied into the pod VM, and copied again when they change.
