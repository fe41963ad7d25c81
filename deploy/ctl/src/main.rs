//! `peerpodctl`: what a controller has, and what a pod's owner needs before it starts, for people.
//!
//! It reads the controller's admin socket; nothing is kept. Tables are for people, `--json` is for programs: it prints the same
//! [`report`](peerpods_controller_api::report) types that the socket gives.
//!
//! The owner's side ([`initdata`], [`policy`], [`image`], [`measure`], [`keyprovider`], [`secret`], [`verify`]) works on files alone: no
//! controller, no registry and, but for `verify kbs`, no key broker is spoken to.

mod admin;
mod explain;
mod image;
mod initdata;
mod input;
mod key_file;
mod keyprovider;
mod measure;
mod p256;
mod pem;
mod policy;
mod secret;
mod table;
mod verify;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use peerpods_controller_api::report::StateReport;
use peerpods_controller_api::{Class, Demand, Mib, fitting_instance_types};
use serde_json::Value;

use admin::Admin;

/// List, explain and delete what a controller has; make what confidential pods need.
#[derive(Parser)]
#[command(name = "peerpodctl", version, after_help = EXAMPLES)]
struct Cli {
    /// The controller's admin socket.
    #[arg(long, global = true, env = "PEERPODS_ADMIN_SOCKET", default_value = "/var/lib/peerpods/controller/admin.sock")]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  peerpodctl vm list --watch                      pod VMs, again whenever something changes
  peerpodctl vm console local-0123456789ab        the end of what a pod VM wrote to its console
  peerpodctl claim explain default/web            why a pod has no pod VM yet
  peerpodctl class check default --vcpus 2        what a pod of that size would get

  peerpodctl measure image                        what evidence of an image will show
  peerpodctl policy generate --pod pod.yaml       hold the node to a manifest
  peerpodctl initdata new --policy policy.rego    what the pod brings to its VM
  peerpodctl image encrypt app encrypted --key-id kbs:///default/key/1
  peerpodctl verify token token.jwt               what a key broker says of a VM

Each command's --help has examples.";

#[derive(Subcommand)]
enum Command {
    /// Pod VMs.
    #[command(subcommand)]
    Vm(Vm),
    /// Classes: what is offered to pods.
    #[command(subcommand)]
    Class(Classes),
    /// Claims: what nodes want for their pods.
    #[command(subcommand)]
    Claim(Claims),
    #[command(subcommand)]
    Initdata(initdata::Initdata),
    #[command(subcommand)]
    Policy(policy::Policy),
    #[command(subcommand)]
    Image(image::Image),
    Measure(measure::Measure),
    #[command(name = "keyprovider")]
    KeyProvider(keyprovider::KeyProvider),
    #[command(subcommand)]
    Secret(secret::Secret),
    #[command(subcommand)]
    Verify(verify::Verify),
}

#[derive(Subcommand)]
enum Vm {
    /// All pod VMs.
    List(Output),
    /// One pod VM.
    Show {
        /// Its id, as `vm list` shows it.
        id: String,
    },
    /// The end of what it wrote to its console. Written by the guest.
    Console {
        /// Its id.
        id: String,
    },
    /// Delete it, whoever has it; a pod that runs in it fails.
    Delete {
        /// Its id.
        id: String,
    },
}

#[derive(Subcommand)]
enum Classes {
    /// All classes.
    List(Output),
    /// What a pod of that class and size would get.
    Check {
        /// The class's name.
        name: String,
        /// Virtual processors, fractions allowed.
        #[arg(long, default_value_t = 0.0)]
        vcpus: f32,
        /// Memory in MiB.
        #[arg(long, value_name = "MIB", default_value_t = 0)]
        memory: u32,
        /// An instance type by name, which then decides alone.
        #[arg(long)]
        instance_type: Option<String>,
    },
}

#[derive(Subcommand)]
enum Claims {
    /// All claims.
    List(Output),
    /// How one claim stands, why, and what to do.
    Explain {
        /// Its key, or its pod as NAMESPACE/NAME.
        claim: String,
    },
}

#[derive(Args)]
struct Output {
    /// JSON for programs.
    #[arg(long)]
    json: bool,
    /// Print again whenever something changes, until interrupted.
    #[arg(long)]
    watch: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerpodctl: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let admin = Admin::new(cli.socket);
    match cli.command {
        Command::Vm(Vm::List(output)) => list(&admin, &output, table::pod_vms, |state| serde_json::to_value(&state.pod_vms)).await,
        Command::Class(Classes::List(output)) => list(&admin, &output, table::classes, |state| serde_json::to_value(&state.classes)).await,
        Command::Claim(Claims::List(output)) => list(&admin, &output, table::claims, |state| serde_json::to_value(&state.claims)).await,
        Command::Verify(command) => verify::run(command).await,
        Command::Vm(Vm::Show { id }) => {
            let state = admin.state().await?;
            let Some(pod_vm) = state.pod_vms.iter().find(|pod_vm| pod_vm.instance_id.as_str() == id) else {
                bail!("there is no pod VM {id}; `peerpodctl vm list` shows those that there are");
            };
            println!("{}", serde_json::to_string_pretty(pod_vm)?);
            Ok(())
        }
        Command::Vm(Vm::Console { id }) => {
            print!("{}", admin.console(&id).await?);
            Ok(())
        }
        Command::Vm(Vm::Delete { id }) => {
            print!("{}", admin.delete(&id).await?);
            Ok(())
        }
        Command::Class(Classes::Check { name, vcpus, memory, instance_type }) => {
            let state = admin.state().await?;
            let demand = Demand { vcpus, memory: Mib(memory), instance_type: instance_type.as_deref() };
            print!("{}", check(&state, &name, &demand)?);
            Ok(())
        }
        Command::Claim(Claims::Explain { claim }) => {
            print!("{}", explain::explain(&admin.state().await?, &claim)?);
            Ok(())
        }
        Command::Initdata(command) => print(&initdata::run(&command)?),
        Command::Policy(command) => print(&policy::run(&command)?),
        Command::Image(command) => print(&image::run(&command)?),
        Command::Measure(command) => print(&measure::run(&command)?),
        Command::KeyProvider(command) => Ok(keyprovider::run(command).await?),
        Command::Secret(command) => print(&secret::run(&command)?),
    }
}

/// A pipe that is closed early, as by `head`, is an error like any other.
fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// How often a watch looks.
const WATCH: Duration = Duration::from_secs(1);

async fn list(
    admin: &Admin,
    output: &Output,
    table: fn(&StateReport) -> String,
    json: fn(&StateReport) -> serde_json::Result<Value>,
) -> Result<()> {
    let mut last = String::new();
    loop {
        let state = admin.state().await?;
        let text = if output.json { format!("{}\n", json(&state)?) } else { table(&state) };
        if text != last {
            // One table from the next.
            let gap = if last.is_empty() || output.json { "" } else { "\n" };
            print!("{gap}{text}");
            last = text;
        }
        if !output.watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH).await;
    }
}

fn check(state: &StateReport, name: &str, demand: &Demand<'_>) -> Result<String> {
    let Some(record) = state.classes.iter().find(|record| record.name.as_str() == name) else {
        let offered: Vec<&str> = state.classes.iter().map(|record| record.name.as_str()).collect();
        bail!("class {name:?} is not offered; offered: {}", offered.join(", "));
    };
    let types = state.instance_types.as_ref().context("the cloud has not told its instance types yet; try again in a moment")?;
    let class: &Class = &record.class;
    let fitting = fitting_instance_types(types, class, demand)?;
    let mut text = format!("class {name} serves it, the first that has room:\n");
    for fit in fitting {
        for zone in class.places() {
            let zone = zone.map_or_else(String::new, |zone| format!(" in {zone}"));
            text += &format!("  {}: {} vCPUs, {}{zone}\n", fit.name, fit.vcpus, fit.memory);
        }
    }
    if let Some(pool) = class.pool {
        text += &format!("{} pod VMs of its cheapest size are kept waiting\n", pool.min);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// Commands that do something, by their path.
    fn leaves(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            if sub.has_subcommands() { leaves(sub, &path, found) } else { found.push((path, sub.clone())) }
        }
    }

    #[test]
    fn help_of_the_owners_commands_has_examples_of_them() {
        Cli::command().debug_assert();
        let mut found = Vec::new();
        leaves(&Cli::command(), "peerpodctl", &mut found);
        let of_owner = ["initdata", "policy", "image", "measure", "keyprovider", "secret"];
        let found: Vec<_> =
            found.into_iter().filter(|(path, _)| of_owner.iter().any(|name| path.split(' ').nth(1) == Some(name))).collect();
        assert_eq!(found.len(), 11);
        for (path, mut command) in found {
            let help = command.render_long_help().to_string();
            let words = path.trim_start_matches("peerpodctl ");
            assert!(help.contains("Examples:") && help.contains(words), "{path}: {help}");
        }
    }
}
