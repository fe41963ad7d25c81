//! `peerpods-mock-cloud`: a cloud for tests.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use peerpods_cloud_api::Limits;
use peerpods_cloud_api::settings::local::{Accelerator, Firmware, Level, LocalSettings};
use peerpods_cloud_local::MACHINE_HELPER;
use peerpods_mock_cloud::faults::Span;
use peerpods_mock_cloud::{Options, Server, ServerOptions, catalog};
use tokio::signal::unix::{SignalKind, signal};

/// A cloud for tests: EC2's API in front, and behind it nothing, namespaces, or QEMU.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = r#"  peerpods-mock-cloud serve                                       instances that are nothing, for API tests
  peerpods-mock-cloud serve --realistic                           with EC2's limits and latencies
  peerpods-mock-cloud serve --backend qemu --image target/podvm-image --state-dir /tmp/machines
                                                                  pod VMs; needs root, and a network namespace of its own:
                                                                  it takes 169.254.169.254 and UDP port 67

The first line of output is JSON with the addresses of the EC2 API and of the admin API. Point a client at it with
AWS_ENDPOINT_URL=…, AWS_REGION=eu-west-1 and any access key. Types keep EC2's names and promises; the machines behind are smaller.

The admin API: GET /instances /calls /summary; POST /faults /capacity /vcpu-quota /tags; DELETE /faults. For example
  curl -H 'content-type: application/json' -d '{"action":"RunInstances","kind":"fail-after","times":2}' ADMIN/faults"#;

#[derive(Subcommand)]
enum Command {
    /// Serve until SIGTERM or SIGINT, then delete all machines.
    Serve(Box<Serve>),
}

#[derive(clap::Args)]
struct Serve {
    /// Where EC2's API listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Where the admin API listens.
    #[arg(long, default_value = "127.0.0.1:0")]
    admin: SocketAddr,
    /// What instances are.
    #[arg(long, value_enum, default_value_t = Backend::None)]
    backend: Backend,
    /// The pod VM image's folder (qemu), or the guest binary (sandbox).
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,
    /// Where machines keep their files.
    #[arg(long, value_name = "FOLDER")]
    state_dir: Option<PathBuf>,
    /// Boot the image's disk through UEFI, as EC2 does, instead of its kernel.
    #[arg(long)]
    firmware: bool,
    /// EC2's limits and latencies instead of none.
    #[arg(long)]
    realistic: bool,
    /// How many of a thousand calls go wrong by chance.
    #[arg(long, default_value_t = 0)]
    faults_per_mille: u32,
    /// For how many milliseconds after a launch reads may miss an instance.
    #[arg(long, default_value_t = 0)]
    stale_ms: u64,
    /// What chance derives from.
    #[arg(long, default_value_t = 2026)]
    seed: u64,
    /// An access key that is allowed, as ID:SECRET; without any, all are. May be repeated.
    #[arg(long, value_name = "ID:SECRET")]
    access_key: Vec<String>,
    /// How long a DHCP lease lasts, in seconds.
    #[arg(long, default_value_t = 3600)]
    lease_secs: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Backend {
    /// Nothing: states change with time.
    None,
    /// Namespaces of this kernel that run the guest binary.
    Sandbox,
    /// QEMU machines that boot the pod VM image.
    Qemu,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next() == Some(OsString::from(MACHINE_HELPER)) {
        return peerpods_cloud_local::machine_helper_main(arguments);
    }
    let Cli { command: Command::Serve(serve) } = Cli::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::INFO).init();
    match run(&serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerpods-mock-cloud: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(serve: &Serve) -> Result<()> {
    let options = options(serve)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let server = Server::start(options).await?;
        println!("{}", serde_json::to_string(server.addresses())?);
        eprintln!("settings for a controller:\n{}", snippet(&server.addresses().ec2));
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        server.run(stop).await
    })
}

fn options(serve: &Serve) -> Result<ServerOptions> {
    let mut cloud = Options {
        stale: Duration::from_millis(serve.stale_ms),
        seed: serve.seed,
        faults_per_mille: serve.faults_per_mille,
        ..Options::default()
    };
    if serve.realistic {
        // As measured by many: tens of milliseconds for a read, about a second for a launch, some more until it runs.
        let (call, launch, pending) = (Span::ms(40, 150), Span::ms(500, 1200), Span::ms(3000, 8000));
        cloud = Options { limits: Limits::EC2, call, launch, pending, shutting_down: Span::ms(2000, 20_000), ..cloud };
    }
    for key in &serve.access_key {
        let (id, secret) = key.split_once(':').context("--access-key is not ID:SECRET")?;
        cloud.access_keys.insert(id.to_owned(), secret.to_owned());
    }
    let level = match serve.backend {
        Backend::None => None,
        Backend::Sandbox => Some(Level::Sandbox),
        Backend::Qemu => Some(Level::Qemu),
    };
    ensure!(level.is_none() || (serve.image.is_some() && serve.state_dir.is_some()), "this backend needs --image and --state-dir");
    let absolute = |path: &Option<PathBuf>| std::path::absolute(path.clone().unwrap_or_default());
    let machines = match level {
        None => None,
        Some(level) => Some(LocalSettings {
            level,
            insecure_sandbox: level == Level::Sandbox,
            image: absolute(&serve.image)?,
            state_dir: absolute(&serve.state_dir)?,
            bridge: "mockcloud0".to_owned(),
            gateway: std::net::Ipv4Addr::new(10, 93, 0, 1),
            scratch_mib: peerpods_cloud_api::Mib(8192),
            accelerator: Accelerator::Auto,
            firmware: if serve.firmware { Firmware::Uefi } else { Firmware::None },
            measured: false,
            tsc_khz: None,
        }),
    };
    let lease = Duration::from_secs(serve.lease_secs);
    Ok(ServerOptions { cloud, ec2: serve.listen, admin: serve.admin, machines, lease })
}

fn snippet(endpoint: &str) -> String {
    let (region, image, group) = (catalog::REGION, catalog::IMAGE, catalog::GROUP);
    let subnets: Vec<&str> = catalog::SUBNETS.iter().map(|subnet| subnet.id).collect();
    format!(
        "[provider]\nkind = \"aws\"\n\n[provider.aws]\nendpoint = \"{endpoint}\"\nregion = \"{region}\"\naccess_key_id = \"any\"\n\
         secret_access_key = \"any\"\nimage = \"{image}\"\nsubnets = {subnets:?}\nsecurity_groups = [\"{group}\"]"
    )
}
