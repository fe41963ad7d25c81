//! The Kata agent protocol and the container runner.
