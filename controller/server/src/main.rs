//! `peerpods-controller`: turns claims of nodes into pod VMs.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use peerpods_cloud_local::MACHINE_HELPER;
use peerpods_controller::{clean_up, connect, logging, serve};
use peerpods_controller_api::config::{self, ControllerConfig};
use tokio::signal::unix::{SignalKind, signal};

/// Turns claims of nodes into pod VMs, and deletes what nobody claims any more.
///
/// Nodes call it on a unix socket. It alone holds the cloud's credentials. It records every wish and every launch before it acts, so it
/// may be stopped, killed or upgraded at any time: pod VMs run on, and the next start finishes what was begun.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = r#"A configuration that needs no cloud:

  state_dir = "/var/lib/peerpods/controller"
  claims_socket = "/run/peerpods/claims.sock"
  # admin_socket = "/run/peerpods/admin.sock"   for peerpodctl; otherwise admin.sock in state_dir
  metrics = "127.0.0.1:9464"            # optional
  log = "human"                         # or "json"

  [provider]
  kind = "local"

  [provider.local]
  level = "qemu"
  image = "/usr/share/peerpods/image"   # vmlinux, initrd, manifest.json
  state_dir = "/var/lib/peerpods/machines"

  [class.default]
  tee = "sample"                        # protects nothing: for trials
  root_of_trust = "insecure"

  [class.trusted]                       # annotation peerpods.io/class: trusted
  tee = "sample"
  root_of_trust = "insecure"
  host_access = ["host-path", "privileged"]
  pool = { min = 2, max = 4, ttl_secs = 600 }   # two always wait for pods, two more may

Any key may also be given as an environment variable (PEERPODS_PROVIDER__LOCAL__LEVEL=qemu) or with --set
(--set provider.local.level=qemu); --set wins over the environment, the environment over the file.
RUST_LOG filters log lines, for example RUST_LOG=peerpods_engine=debug,info.

  peerpods-controller config check --config controller.toml    say what is wrong with it
  peerpods-controller run --config controller.toml             serve nodes until SIGTERM
  peerpods-controller cleanup --config controller.toml         delete every pod VM that it owns"#;

const REFERENCE: &str = "# controller.toml\n\nWritten by `peerpods-controller config reference`. Any key may also be set by the environment \
    (`PEERPODS_PROVIDER__LOCAL__LEVEL` is `provider.local.level`) or with `--set`.\n";

#[derive(Subcommand)]
enum Command {
    /// Serve nodes until SIGTERM or SIGINT; pod VMs run on.
    Run(ConfigArgs),
    /// Check or show the configuration; calls nothing and changes nothing.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Delete every pod VM that this controller owns, wait until all are gone, and remove the local provider's bridge.
    ///
    /// The controller must be stopped first. Running pods lose their VMs.
    Cleanup {
        #[command(flatten)]
        config: ConfigArgs,
        /// Give up after this many seconds; what is left is deleted by the next run or cleanup.
        #[arg(long, value_name = "SECONDS", default_value_t = 300)]
        timeout_secs: u64,
    },
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether the configuration is valid.
    Check(ConfigArgs),
    /// Print the configuration that results from file, environment and --set, with secrets hidden.
    Show(ConfigArgs),
    /// Print all keys with what they may be, their defaults and what they are for, as Markdown.
    Reference,
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Set one key, for example --set provider.local.bridge=br1. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    fn load(&self) -> anyhow::Result<ControllerConfig> {
        Ok(config::load(&self.config, "PEERPODS_", &self.set)?)
    }
}

fn main() -> ExitCode {
    // The local provider starts machines through a fresh copy of this program; that role must run before any thread is made.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next() == Some(OsString::from(MACHINE_HELPER)) {
        return peerpods_cloud_local::machine_helper_main(arguments);
    }
    keep_memory_to_ourselves();
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerpods-controller: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// No core file and no debugger of the same user: this process holds the cloud's credentials and the binder CA's key. The machines that
/// it starts inherit the first.
fn keep_memory_to_ourselves() {
    use nix::sys::resource::{Resource, setrlimit};
    if let Err(error) = setrlimit(Resource::RLIMIT_CORE, 0, 0).and(nix::sys::prctl::set_dumpable(false)) {
        eprintln!("peerpods-controller: core files stay possible: {error}");
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    match &cli.command {
        Command::Config(ConfigCommand::Check(args)) => {
            connect(&args.load()?.provider).context("provider")?;
            println!("{} is valid", args.config.display());
            Ok(())
        }
        Command::Config(ConfigCommand::Show(args)) => {
            print!("{}", config::show(&args.load()?)?);
            Ok(())
        }
        Command::Config(ConfigCommand::Reference) => {
            print!("{REFERENCE}{}", config::reference::<ControllerConfig>());
            Ok(())
        }
        Command::Run(args) => {
            let config = args.load()?;
            logging::start(config.log);
            let provider = connect(&config.provider).context("provider")?;
            runtime()?.block_on(async { serve(&config, &provider, terminated()?).await.map_err(anyhow::Error::from) })
        }
        Command::Cleanup { config: args, timeout_secs } => {
            let config = args.load()?;
            logging::start(config.log);
            let provider = connect(&config.provider).context("provider")?;
            let limit = Duration::from_secs(*timeout_secs);
            runtime()?.block_on(clean_up(&config, &provider, limit))?;
            Ok(())
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")
}

/// Done when the process is asked to stop.
fn terminated() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
