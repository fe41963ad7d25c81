//! Pull, verify and unpack OCI images within a memory budget; takes a ResourceSource, knows no broker.
