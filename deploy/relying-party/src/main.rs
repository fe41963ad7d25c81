//! `peerpods-relying-party`: a small key broker and verifier for trials.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use peerpods_evidence::Trust;
use peerpods_evidence::tdx::Collateral;
use peerpods_key_broker::ResourceUri;
use peerpods_relying_party::client::Admin;
use peerpods_relying_party::{Broker, EvidenceVerifier, Folder, Listening, Store, Tls, issue_admin_token, serve, state};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// A small key broker with its verifier, for trials. It speaks the protocol of Trustee's KBS; production uses Trustee.
///
/// It releases nothing until you set a resource policy.
#[derive(Parser)]
#[command(name = "peerpods-relying-party", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  peerpods-relying-party init --state kbs --name kbs.example.org      make keys and a certificate, once
  peerpods-relying-party serve --state kbs --listen 0.0.0.0:8080      serve until SIGTERM
  peerpods-relying-party set-resource --state kbs --url https://kbs.example.org:8080 default/key/1 key.bin
  peerpods-relying-party set-resource-policy --state kbs --url https://kbs.example.org:8080 policy.rego

Guests pin kbs/tls-certificate.pem. RUST_LOG filters log lines, for example RUST_LOG=debug.";

#[derive(Subcommand)]
enum Command {
    /// Make a state folder: admin key, token key, TLS key and certificate.
    Init {
        /// The folder to make.
        #[arg(long)]
        state: PathBuf,
        /// DNS name or address in the certificate; may be given more than once.
        #[arg(long = "name", default_values = ["localhost", "127.0.0.1", "::1"])]
        names: Vec<String>,
    },
    /// Serve until SIGTERM or SIGINT.
    Serve {
        /// The folder that `init` made.
        #[arg(long)]
        state: PathBuf,
        /// Address and port.
        #[arg(long, default_value = "127.0.0.1:8080")]
        listen: SocketAddr,
        /// Plain HTTP: initdata, evidence and tokens are readable on the way; resources that guests get are not. Administer it from the same machine.
        #[arg(long)]
        insecure_http: bool,
        /// A VCEK or VLEK certificate (DER) of an SNP host that hands over none; repeat it for more.
        #[arg(long = "snp-certificate", value_name = "FILE")]
        snp_certificates: Vec<PathBuf>,
        /// What Intel says of TDX platforms: JSON with TCB info, identity of the quoting enclave and revocation lists.
        #[arg(long, value_name = "FILE")]
        tdx_collateral: Option<PathBuf>,
        /// An attestation key (DER SubjectPublicKeyInfo) of a TPM that its cloud vouches for, for snp-tpm; repeat it for more.
        #[arg(long = "tpm-key", value_name = "FILE")]
        tpm_keys: Vec<PathBuf>,
    },
    /// Print a token for administration.
    AdminToken {
        #[command(flatten)]
        key: AdminKey,
        /// Seconds until it ends.
        #[arg(long, default_value_t = 3600)]
        lifetime_secs: u32,
    },
    /// Make or replace a resource.
    SetResource {
        #[command(flatten)]
        target: Target,
        /// `repository/type/tag`, with or without `kbs:///` before it.
        resource: String,
        /// Its content; `-` reads standard input.
        file: PathBuf,
    },
    /// Remove a resource.
    DeleteResource {
        #[command(flatten)]
        target: Target,
        /// `repository/type/tag`, with or without `kbs:///` before it.
        resource: String,
    },
    /// Replace the Rego policy that decides on resources (`data.policy.allow`).
    SetResourcePolicy {
        #[command(flatten)]
        target: Target,
        /// The policy; `-` reads standard input.
        file: PathBuf,
    },
    /// Replace the Rego policy that appraises evidence (`data.policy.trust_claims`).
    SetAttestationPolicy {
        #[command(flatten)]
        target: Target,
        /// Which one.
        #[arg(long, default_value = "default_cpu")]
        id: String,
        /// The policy; `-` reads standard input.
        file: PathBuf,
    },
    /// Set a reference value, for twelve months.
    SetReferenceValue {
        #[command(flatten)]
        target: Target,
        /// Its name, as policies ask for it.
        name: String,
        /// JSON, for example '["abcd"]' or 4.
        value: String,
    },
}

/// Which key signs.
#[derive(Args)]
struct AdminKey {
    /// The state folder, with its admin-key.pem.
    #[arg(long, required_unless_present = "key")]
    state: Option<PathBuf>,
    /// Another private key: PKCS#8 PEM, Ed25519 or P-256.
    #[arg(long)]
    key: Option<PathBuf>,
}

/// Which broker, and as whom.
#[derive(Args)]
struct Target {
    /// The broker.
    #[arg(long, default_value = "https://127.0.0.1:8080")]
    url: String,
    /// The state folder: its admin key signs a token, its certificate is pinned.
    #[arg(long)]
    state: Option<PathBuf>,
    /// A token for administration, in place of the state folder's key.
    #[arg(long, env = "PEERPODS_ADMIN_TOKEN", hide_env_values = true, required_unless_present = "state")]
    token: Option<String>,
    /// PEM certificate to pin, in place of the state folder's.
    #[arg(long)]
    certificate: Option<PathBuf>,
}

/// How long the token of one command lasts.
const COMMAND_LIFETIME: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peerpods-relying-party: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Init { state, names } => {
            state::init(&state, &names)?;
            println!("{} is ready. Guests pin {}.", state.display(), state.join(state::TLS_CERTIFICATE).display());
            Ok(())
        }
        Command::Serve { state, listen, insecure_http, snp_certificates, tdx_collateral, tpm_keys } => {
            let trust = trust(&snp_certificates, tdx_collateral.as_deref(), &tpm_keys)?;
            serve_until_stopped(&state, listen, insecure_http, trust).await
        }
        Command::AdminToken { key, lifetime_secs } => {
            let lifetime = Duration::from_secs(lifetime_secs.into());
            println!("{}", admin_token(key.state.as_deref(), key.key.as_deref(), lifetime)?);
            Ok(())
        }
        Command::SetResource { target, resource, file } => target.admin()?.set_resource(&uri(&resource)?, read(&file)?).await,
        Command::DeleteResource { target, resource } => target.admin()?.delete_resource(&uri(&resource)?).await,
        Command::SetResourcePolicy { target, file } => target.admin()?.set_resource_policy(&text(&file)?).await,
        Command::SetAttestationPolicy { target, id, file } => target.admin()?.set_attestation_policy(&id, &text(&file)?).await,
        Command::SetReferenceValue { target, name, value } => {
            let value = serde_json::from_str(&value).context("the value is no JSON; text is written as '\"text\"'")?;
            target.admin()?.set_reference_value(&name, &value).await
        }
    }
}

/// Reads what verifiers of hardware trust beside the makers' roots.
fn trust(snp_certificates: &[PathBuf], tdx_collateral: Option<&Path>, tpm_keys: &[PathBuf]) -> Result<Trust> {
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    Ok(Trust {
        snp_certificates: snp_certificates.iter().map(|path| read(path)).collect::<Result<_>>()?,
        tdx_collateral: tdx_collateral.map(|path| anyhow::Ok(Collateral::from_json(&read(path)?)?)).transpose()?,
        tpm_keys: tpm_keys.iter().map(|path| read(path)).collect::<Result<_>>()?,
        ..Trust::default()
    })
}

async fn serve_until_stopped(state: &Path, listen: SocketAddr, insecure_http: bool, trust: Trust) -> Result<()> {
    let store = Store::open(state)?;
    let tls = if insecure_http { None } else { Some(tls(&store)?) };
    let broker = Broker::open(store, Arc::new(EvidenceVerifier::new(trust)), Arc::new(SystemTime::now))?;
    let listening = Listening::bind(listen, tls).await.with_context(|| format!("cannot listen on {listen}"))?;
    let scheme = if insecure_http { "http" } else { "https" };
    tracing::warn!("evidence of `sample` is accepted, which anybody can write: what a policy releases to it is public");
    println!("listening on {scheme}://{}", listening.address()?);
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let signalled = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    };
    tokio::join!(serve(Arc::new(broker), listening, stop.clone()), signalled);
    Ok(())
}

fn tls(store: &Store) -> Result<Tls> {
    let file = |name: &str| store.read(Folder::Top, name)?.with_context(|| format!("the state folder has no {name}"));
    Tls::from_pem(&file(state::TLS_CERTIFICATE)?, &file(state::TLS_KEY)?)
        .map_err(|error| anyhow::anyhow!(error).context("cannot use the state folder's certificate and key"))
}

impl Target {
    fn admin(&self) -> Result<Admin> {
        let token = match (&self.token, &self.state) {
            (Some(token), _) => token.trim().to_owned(),
            (None, state) => admin_token(state.as_deref(), None, COMMAND_LIFETIME)?,
        };
        let certificate = self.certificate.clone().or_else(|| self.state.as_ref().map(|state| state.join(state::TLS_CERTIFICATE)));
        let certificate = certificate.filter(|_| self.url.starts_with("https:")).map(|path| read(&path)).transpose()?;
        Admin::new(&self.url, certificate.as_deref(), token)
    }
}

/// Reads the key without opening the folder, which a running broker has.
fn admin_token(state: Option<&Path>, key: Option<&Path>, lifetime: Duration) -> Result<String> {
    let path = match (key, state) {
        (Some(key), _) => key.to_owned(),
        (None, Some(state)) => state.join(state::ADMIN_KEY),
        (None, None) => bail!("give --state or --key"),
    };
    let pem = zeroize::Zeroizing::new(read(&path)?);
    issue_admin_token(&pem, lifetime, SystemTime::now()).map_err(|reason| anyhow::anyhow!("cannot use {}: {reason}", path.display()))
}

fn uri(resource: &str) -> Result<ResourceUri> {
    let uri = if resource.contains("://") { resource.parse() } else { ResourceUri::from_path(resource) };
    uri.with_context(|| format!("cannot use {resource:?}"))
}

fn text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).with_context(|| format!("{} is no UTF-8", path.display()))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut content).context("cannot read standard input")?;
    } else {
        content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(content)
}
