//! Provider settings as an operator writes them: serde types only, one module a cloud.

pub mod aws;
pub mod local;
mod secret;

pub use secret::Secret;
