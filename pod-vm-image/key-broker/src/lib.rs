//! The client side of a key broker: KBS protocol 0.4.0 as Trustee speaks it.
//!
//! Request, challenge, attestation, response (RCAR): the client asks for a nonce, has evidence made over the nonce and a fresh key of
//! its own (the TEE key), and gets a token that names that key. With the token it gets resources, each encrypted to the TEE key.
//!
//! * [`wire`]: the messages, byte for byte; [`jcs`]: the form that evidence is bound to.
//! * [`jwe`] and [`tee_key`]: how a resource travels, both directions, since a broker for trials needs the other one.
//! * [`KeyBroker`]: the client. It keeps one token until shortly before it expires, makes one attestation at a time, and gives every
//!   wait a deadline. After a restart it attests anew; nothing is stored.
//!
//! It knows no evidence format: an [`Attester`] is handed in. Resources and TEE keys are zeroized and not printed.

mod client;
mod config;
mod der;
mod error;
mod http;
pub mod jcs;
pub mod jwe;
pub mod tee_key;
mod tls;
mod token;
mod uri;
pub mod wire;

pub use client::{Attester, KeyBroker};
pub use config::{Clock, KeyBrokerConfig, Limits};
pub use error::{BoxError, KeyBrokerError, Refusal};
pub use tee_key::{TeeKey, TeeKeyAlgorithm};
pub use token::Token;
pub use uri::{ResourceUri, ResourceUriError};
