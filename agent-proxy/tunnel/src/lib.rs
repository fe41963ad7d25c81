//! Attested, resumable TLS stream, both ends; knows no evidence format.
