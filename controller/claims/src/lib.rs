//! The service nodes call: claim, watch, release; proto, conversions, client.
