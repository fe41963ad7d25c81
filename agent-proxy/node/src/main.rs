//! The node daemon's command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use peerpods_controller_api::config::{self, LogFormat};
use peerpods_node::config::Config;
use peerpods_node::daemon;
use peerpods_node::install::command::{InstallArgs, Place, install, uninstall};
use peerpods_node::list::{Listed, table};
use peerpods_node::store::Store;
use tracing_subscriber::EnvFilter;

/// Make peer pods of this node's sandboxes: serve Kata's shims, claim pod VMs from the controller, attest and bind them, connect the
/// pods' networks.
///
/// Point the shim's `remote_hypervisor_socket` at `hypervisor_socket`. The daemon may be stopped, killed and upgraded at any time: running
/// pods do not notice, and what was on its way goes on with the next start. Each pod's data path is a process of its own, peerpods-link;
/// a service manager must therefore stop this process alone (systemd: KillMode=process).
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve shims until SIGTERM
    Run(ConfigArgs),
    /// Show the node's sandboxes, their state and how long each phase took; works without a running daemon
    List {
        #[command(flatten)]
        config: ConfigArgs,
        /// One JSON array instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Add the runtime and the snapshotter to containerd's configuration, and show every change
    ///
    /// Run it again after an upgrade or when a setting has changed; it changes only what differs. `uninstall` brings back the file as it
    /// was, byte for byte, or takes out our entries alone when somebody else has changed the file since. containerd is not restarted.
    Install {
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        install: InstallArgs,
    },
    /// Undo `install`
    Uninstall(Place),
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

const REFERENCE: &str = "# node.toml\n\nWritten by `peerpods-node config reference`. Any key may also be set by the environment \
    (`PEERPODS_START_TIMEOUT_SECS`) or with `--set`.\n";

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say what is wrong with the configuration, or nothing
    Check(ConfigArgs),
    /// Print the configuration as it is used, after environment and --set
    Show(ConfigArgs),
    /// Print all keys with what they may be, their defaults and what they are for, as Markdown
    Reference,
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration: node, state_dir, pods_dir, hypervisor_socket, claims_socket [, link, start_timeout_secs, takeover_secs, metrics, log]
    #[arg(long, value_name = "FILE", default_value = "/etc/peerpods/node.toml")]
    config: PathBuf,
    /// Override one key, as in --set start_timeout_secs=120; PEERPODS_START_TIMEOUT_SECS=120 does the same
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(&self) -> Result<Config> {
        Ok(config::load(&self.config, "PEERPODS_", &self.set)?)
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerpods-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Run(args) => {
            let config = args.load()?;
            start_log(config.log);
            // Two threads: the daemon waits for others most of the time, and each thread costs memory.
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("starting the runtime")?;
            runtime.block_on(daemon::run(&config))
        }
        Command::List { config, json } => {
            let loaded = Store::look(&config.load()?.state_dir)?;
            for file in &loaded.damaged {
                eprintln!("{} is damaged: {}", file.path.display(), file.cause);
            }
            if json {
                let listed: Vec<Listed<'_>> = loaded.records.iter().map(Listed::new).collect();
                println!("{}", serde_json::to_string_pretty(&listed)?);
            } else {
                print!("{}", table(&loaded.records));
            }
            Ok(())
        }
        Command::Install { config, install: args } => install(&args, &config.load()?, &mut std::io::stdout()),
        Command::Uninstall(place) => uninstall(&place, &mut std::io::stdout()),
        Command::Config(ConfigCommand::Check(args)) => args.load().map(drop),
        Command::Config(ConfigCommand::Reference) => {
            print!("{REFERENCE}{}", config::reference::<Config>());
            Ok(())
        }
        Command::Config(ConfigCommand::Show(args)) => {
            print!("{}", config::show(&args.load()?)?);
            Ok(())
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match format {
        LogFormat::Human => log.init(),
        LogFormat::Json => log.json().init(),
    }
}
