//! End-to-end tests and the demo over real processes.
