//! Domain types, states, class and configuration grammar of the control plane; no IO.
