//! A mock cloud beside a node: EC2's API, and pod VMs behind it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::binaries_folder;
use crate::world::Level;
use crate::{Netns, Process, eventually};

/// A running mock cloud.
pub struct MockCloud {
    process: Process,
    ec2: String,
    admin: SocketAddr,
}

/// The access key that it knows.
pub(crate) const KEY_ID: &str = "AKIAEXAMPLEOFAWORLD0";

/// The key's secret, which must turn up nowhere.
pub const SECRET: &str = "canary-secret-of-a-provider-1c5e90";

impl MockCloud {
    /// Starts it in the node's namespace, where it becomes the network of its machines.
    pub(crate) fn start(netns: &Netns, folder: &Path, level: Level, image: &Path, extra: &[String]) -> Result<Self> {
        let level = match level {
            Level::Qemu => "qemu",
            Level::Sandbox => "sandbox",
        };
        let mut command = netns.command(binaries_folder()?.join("peerpods-mock-cloud"));
        command.args(["serve", "--backend", level, "--access-key", &format!("{KEY_ID}:{SECRET}"), "--image"]).arg(image);
        command.arg("--state-dir").arg(folder.join("machines")).args(extra);
        let mut process = Process::start("mock-cloud", folder, &mut command)?;
        let log = folder.join("mock-cloud.log");
        let addresses: Value = eventually("the mock cloud serves", Duration::from_secs(30), || {
            process.check_alive()?;
            let text = std::fs::read_to_string(&log)?;
            let line = text.lines().find(|line| line.starts_with('{')).context("no addresses yet")?;
            Ok(serde_json::from_str(line)?)
        })?;
        let url = |key: &str| addresses[key].as_str().map(str::to_owned).context("an address");
        let admin = url("admin")?.trim_start_matches("http://").parse()?;
        Ok(Self { process, ec2: url("ec2")?, admin })
    }

    /// The EC2 API's address.
    pub fn ec2(&self) -> &str {
        &self.ec2
    }

    /// Asks the admin API.
    pub fn get(&self, netns: &Netns, path: &str) -> Result<Value> {
        let answer = netns.http_get(self.admin, path)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
        ensure!(head.contains(" 200 "), "{path}: {head}");
        Ok(serde_json::from_str(body)?)
    }

    /// Tells the admin API something.
    pub fn post(&self, netns: &Netns, path: &str, body: &Value) -> Result<()> {
        let (admin, body) = (self.admin, body.to_string());
        let request = format!(
            "POST {path} HTTP/1.0\r\nHost: {admin}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = netns.run(move || -> Result<String> {
            use std::io::{Read as _, Write as _};
            let mut stream = std::net::TcpStream::connect_timeout(&admin, Duration::from_secs(5))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })??;
        if !answer.lines().next().is_some_and(|line| line.contains(" 20")) {
            bail!("{path}: {answer}");
        }
        Ok(())
    }

    /// How many instances exist, and how many volumes and interfaces.
    pub fn existing(&self, netns: &Netns) -> Result<(u64, u64)> {
        let summary = self.get(netns, "/summary")?;
        let number = |key: &str| summary[key].as_u64().context("a number");
        Ok((number("existing")?, number("parts")?))
    }

    pub(crate) fn check_alive(&mut self) -> Result<()> {
        self.process.check_alive()
    }

    pub(crate) fn terminate(self) -> Result<()> {
        self.process.terminate()
    }
}
