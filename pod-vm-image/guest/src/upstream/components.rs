//! The four programs: where they are, how they are started, when they are there.

use std::io;
use std::path::Path;

use peerpods_network::POD_NETNS;
use tokio::net::UnixStream;
use tokio::process::Command;

use super::files;

/// Where the pod finds the REST server, on its loopback; upstream's and our own API's alike.
const REST_PORT: u16 = 8006;

const ATTESTATION_AGENT_SOCKET: &str = "/run/confidential-containers/attestation-agent/attestation-agent.sock";
const DATA_HUB_SOCKET: &str = "/run/confidential-containers/cdh.sock";
/// Not below `/run/kata-containers`, as upstream has it: the agent empties that folder in CreateSandbox, its own socket with it.
pub(super) const AGENT_SOCKET: &str = "/run/peerpods/upstream/kata-agent.sock";

/// One of the programs, in the order in which they are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Component {
    /// Makes evidence and gets tokens for it.
    AttestationAgent,
    /// Gets resources, opens secrets, pulls images.
    ConfidentialDataHub,
    /// Answers the pod over HTTP.
    ApiServerRest,
    /// Runs the containers. Last: it looks for the data hub's socket once, when it starts.
    KataAgent,
}

/// What the REST server offers to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Features {
    /// Resources, as kata-agent itself starts it.
    Resource,
    /// Evidence and tokens too, with which the TEE's private key comes.
    All,
}

/// How a program shows that it is there.
enum Door {
    Socket(&'static str),
    /// A TCP port on the pod's loopback.
    Pod(u16),
}

impl Component {
    pub(super) const ALL: [Self; 4] = [Self::AttestationAgent, Self::ConfidentialDataHub, Self::ApiServerRest, Self::KataAgent];

    /// Its name, which is also the console's event for "it is there".
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AttestationAgent => "attestation-agent",
            Self::ConfidentialDataHub => "confidential-data-hub",
            Self::ApiServerRest => "api-server-rest",
            Self::KataAgent => "kata-agent",
        }
    }

    /// The console's event for "it exited", with its code.
    pub(super) fn exited(self) -> &'static str {
        match self {
            Self::AttestationAgent => "attestation-agent-exited",
            Self::ConfidentialDataHub => "confidential-data-hub-exited",
            Self::ApiServerRest => "api-server-rest-exited",
            Self::KataAgent => "kata-agent-exited",
        }
    }

    /// The console's event for "it was killed", with the signal.
    pub(super) fn killed(self) -> &'static str {
        match self {
            Self::AttestationAgent => "attestation-agent-killed",
            Self::ConfidentialDataHub => "confidential-data-hub-killed",
            Self::ApiServerRest => "api-server-rest-killed",
            Self::KataAgent => "kata-agent-killed",
        }
    }

    pub(super) fn program(self) -> &'static str {
        match self {
            Self::AttestationAgent => "/usr/local/bin/attestation-agent",
            Self::ConfidentialDataHub => "/usr/local/bin/confidential-data-hub",
            Self::ApiServerRest => "/usr/local/bin/api-server-rest",
            Self::KataAgent => "/usr/local/bin/kata-agent",
        }
    }

    /// Whether it belongs into the pod's network.
    pub(super) fn is_in_pod(self) -> bool {
        self == Self::ApiServerRest
    }

    /// Its command line and environment.
    pub(super) fn command(self, features: Features) -> Command {
        let mut command = Command::new(self.program());
        command.env_clear().env("PATH", "/usr/local/bin").env("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt");
        match self {
            // Not `--initdata-toml`: it would bind initdata a second time, which extends a TPM's register again and fails on TDX.
            Self::AttestationAgent => {
                command.args(["--attestation_sock", &format!("unix://{ATTESTATION_AGENT_SOCKET}")]).args(configuration(files::AA));
            }
            Self::ConfidentialDataHub => {
                command.env("OCICRYPT_KEYPROVIDER_CONFIG", files::OCICRYPT).args(configuration(files::CDH));
            }
            Self::ApiServerRest => {
                command.args(["--features", if features == Features::All { "all" } else { "resource" }]);
            }
            Self::KataAgent => {
                command.args(["--config", files::AGENT]);
            }
        }
        command
    }

    /// Whether it answers; an error says why not yet.
    pub(super) async fn knock(self) -> io::Result<()> {
        match self.door() {
            Door::Socket(path) => UnixStream::connect(path).await.map(drop),
            Door::Pod(port) => peerpods_network::forward::connect(Path::new(POD_NETNS), port).await.map(drop),
        }
    }

    fn door(self) -> Door {
        match self {
            Self::AttestationAgent => Door::Socket(ATTESTATION_AGENT_SOCKET),
            Self::ConfidentialDataHub => Door::Socket(DATA_HUB_SOCKET),
            Self::ApiServerRest => Door::Pod(REST_PORT),
            Self::KataAgent => Door::Socket(AGENT_SOCKET),
        }
    }
}

impl std::fmt::Display for Component {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::fmt::Display for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => f.write_str(path),
            Self::Pod(port) => write!(f, "127.0.0.1:{port} in the pod's network"),
        }
    }
}

impl Component {
    /// Where it answers, in words.
    pub(super) fn address(self) -> String {
        self.door().to_string()
    }
}

/// `-c FILE` for a file that initdata has brought, as kata-agent decides it.
fn configuration(file: &'static str) -> Vec<&'static str> {
    if Path::new(file).exists() { vec!["-c", file] } else { Vec::new() }
}
