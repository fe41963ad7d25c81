//! `/etc/resolv.conf` and `/etc/hosts` of the machine, which image pulls use; pods bring their own.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};

/// Writes both files.
pub(super) fn write(name_servers: &[Ipv4Addr]) -> Result<()> {
    let servers: String = name_servers.iter().map(|address| format!("nameserver {address}\n")).collect();
    std::fs::write("/etc/resolv.conf", servers).context("write /etc/resolv.conf")?;
    std::fs::write("/etc/hosts", "127.0.0.1 localhost\n").context("write /etc/hosts")
}
