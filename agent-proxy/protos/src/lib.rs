//! ttrpc definitions and generated code: hypervisor, agent, health, node; no logic.
