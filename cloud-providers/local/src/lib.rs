//! Local machines (QEMU, namespaces) and the provider that launches pod VMs on them.
