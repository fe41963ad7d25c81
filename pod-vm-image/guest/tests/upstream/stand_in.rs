//! Small programs that speak upstream's sockets as far as the guest, the node and the pod get to see them.
//!
//! Each writes how it was started to `/stand-in/NAME.json`, and behaves in the way that `/stand-in/NAME` names, if it is there.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::future::pending;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use peerpods_protos::agent::{
    AgentDetails, CreateContainerRequest, CreateSandboxRequest, DestroySandboxRequest, GuestDetailsRequest, GuestDetailsResponse,
};
use peerpods_protos::health::health_check_response::ServingStatus;
use peerpods_protos::health::{CheckRequest, HealthCheckResponse, VersionCheckResponse};
use peerpods_protos::{agent_ttrpc, health_ttrpc};
use protobuf::well_known_types::empty::Empty;
use protobuf::{Message as _, MessageField};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::Notify;
use ttrpc::r#async::{Client, MethodHandler, Server, Service, TtrpcContext};
use ttrpc::{Request, Response};

pub(crate) const NAMES: [&str; 4] = ["attestation-agent", "confidential-data-hub", "api-server-rest", "kata-agent"];
/// A process that a stand-in leaves in its group.
pub(crate) const CHILD: &str = "child-of-a-stand-in";
/// What the data hub's stand-in gives.
pub(crate) const RESOURCE: &str = "the resource";

const FOLDER: &str = "/stand-in";
const HUB: &str = "unix:///run/confidential-containers/cdh.sock";
const INITDATA: &str = "/run/confidential-containers/initdata/initdata.toml";

/// Is the stand-in that the program's name says; `None` for another name.
pub(crate) fn main(program: &OsStr, args: &[String]) -> Option<ExitCode> {
    if program == CHILD {
        return Some(run(async { pending().await }));
    }
    let name = *NAMES.iter().find(|name| Path::new(program).ends_with(format!("usr/local/bin/{name}")))?;
    let link = |path: &str| std::fs::read_link(path).unwrap_or_default().display().to_string();
    let environment: HashMap<String, String> = std::env::vars().collect();
    let told = json!({ "args": args, "environment": environment, "network": link("/proc/self/ns/net"), "stdout": link("/proc/self/fd/1") });
    std::fs::write(format!("{FOLDER}/{name}.json"), told.to_string()).expect("tell");
    let way = std::fs::read_to_string(format!("{FOLDER}/{name}")).unwrap_or_default();
    match way.as_str() {
        "silent" => return Some(run(async { pending().await })),
        "exits with 3" => return Some(ExitCode::from(3)),
        "has a child" => {
            use std::os::unix::process::CommandExt as _;
            #[expect(clippy::zombie_processes, reason = "whoever kills the group is to find it there")]
            Command::new("/proc/self/exe").arg0(CHILD).spawn().expect("child");
        }
        // As kata-agent does with what it finds on a disk.
        "has a disk" if std::fs::write(INITDATA, "another").is_err() => return Some(ExitCode::from(1)),
        _ => {}
    }
    let option = |name: &str| args.iter().position(|arg| arg == name).and_then(|at| args.get(at + 1)).expect(name).clone();
    Some(match name {
        "attestation-agent" => run(attestation_agent(option("--attestation_sock"))),
        "confidential-data-hub" => run(data_hub()),
        "api-server-rest" => run(rest()),
        _ => run(kata_agent(option("--config"), way)),
    })
}

fn run(work: impl Future<Output = ()>) -> ExitCode {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime").block_on(work);
    ExitCode::SUCCESS
}

/// A method that answers every request with one field of text or bytes.
struct Fixed(&'static str);

#[async_trait]
impl MethodHandler for Fixed {
    async fn handler(&self, _ctx: TtrpcContext, _request: Request) -> ttrpc::Result<Response> {
        let mut response = Response::new();
        let length = u8::try_from(self.0.len()).expect("short");
        response.payload = [&[0x0a, length], self.0.as_bytes()].concat();
        Ok(response)
    }
}

fn service(name: &str, method: &str, answer: &'static str) -> HashMap<String, Service> {
    let handler: Box<dyn MethodHandler + Send + Sync> = Box::new(Fixed(answer));
    [(name.to_owned(), Service { methods: [(method.to_owned(), handler)].into(), streams: HashMap::new() })].into()
}

async fn call(socket: &str, service: &str, method: &str) -> Vec<u8> {
    let client = Client::connect(socket).await.expect("connect");
    let mut request = Request::new();
    request.service = service.to_owned();
    request.method = method.to_owned();
    request.timeout_nano = i64::try_from(Duration::from_secs(10).as_nanos()).expect("short");
    client.request(request).await.expect("answer").payload
}

fn folder_of(socket: &str) {
    let path = Path::new(socket.trim_start_matches("unix://"));
    std::fs::create_dir_all(path.parent().expect("folder")).expect("folder");
}

async fn attestation_agent(socket: String) {
    folder_of(&socket);
    let service = service("attestation_agent.AttestationAgentService", "GetTeeType", "sample");
    let mut server = Server::new().bind(&socket).expect("bind").register_service(service);
    server.start().await.expect("serve");
    pending().await
}

async fn data_hub() {
    folder_of(HUB);
    let mut server = Server::new()
        .bind(HUB)
        .expect("bind")
        .register_service(service("api.GetResourceService", "GetResource", RESOURCE))
        .register_service(service("api.ImagePullService", "PullImage", "sha256:00"));
    server.start().await.expect("serve");
    pending().await
}

/// Answers one GET a connection with what the data hub says.
async fn rest() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8006").await.expect("bind");
    loop {
        let (stream, _) = listener.accept().await.expect("accept");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        while stream.read_line(&mut line).await.is_ok_and(|length| length > 2) {}
        if line.starts_with("GET /cdh/resource/") {
            let answer = call(HUB, "api.GetResourceService", "GetResource").await;
            let body = String::from_utf8_lossy(&answer[2..]).into_owned();
            let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).await;
        }
    }
}

async fn kata_agent(config: String, way: String) {
    let settings: toml::Table = std::fs::read_to_string(config).expect("settings").parse().expect("TOML");
    let setting = |name: &str| settings[name].as_str().expect("text").to_owned();
    // Upstream aborts without it, and looks for the data hub at this time only.
    assert!(std::fs::read_to_string(setting("policy_file")).expect("policy").contains("package agent_policy"));
    Client::connect(HUB).await.expect("the data hub");
    let destroyed = Arc::new(Notify::new());
    let agent = Arc::new(KataAgent { has_policy: way != "has no policy", destroyed: Arc::clone(&destroyed) });
    let mut server = Server::new()
        .bind(&setting("server_addr"))
        .expect("bind")
        .register_service(agent_ttrpc::create_agent_service(agent.clone()))
        .register_service(health_ttrpc::create_health(agent));
    server.start().await.expect("serve");
    destroyed.notified().await;
    server.shutdown().await.expect("shutdown");
}

struct KataAgent {
    has_policy: bool,
    destroyed: Arc<Notify>,
}

#[async_trait]
impl agent_ttrpc::AgentService for KataAgent {
    async fn get_guest_details(&self, _: &TtrpcContext, _: GuestDetailsRequest) -> ttrpc::Result<GuestDetailsResponse> {
        let mut details = AgentDetails::new();
        details.extra_features = self.has_policy.then(|| "agent-policy".to_owned()).into_iter().chain(["seccomp".to_owned()]).collect();
        Ok(GuestDetailsResponse { agent_details: MessageField::some(details), ..Default::default() })
    }

    async fn create_sandbox(&self, _: &TtrpcContext, request: CreateSandboxRequest) -> ttrpc::Result<Empty> {
        std::fs::write(format!("{FOLDER}/CreateSandbox"), request.write_to_bytes().expect("bytes")).expect("record");
        // As upstream does it, with its socket if that were there.
        for entry in std::fs::read_dir("/run/kata-containers").expect("folder") {
            let _ = std::fs::remove_dir_all(entry.expect("entry").path());
        }
        Ok(Empty::new())
    }

    async fn create_container(&self, _: &TtrpcContext, request: CreateContainerRequest) -> ttrpc::Result<Empty> {
        std::fs::write(format!("{FOLDER}/CreateContainer"), request.write_to_bytes().expect("bytes")).expect("record");
        call(HUB, "api.ImagePullService", "PullImage").await;
        Ok(Empty::new())
    }

    async fn destroy_sandbox(&self, _: &TtrpcContext, _: DestroySandboxRequest) -> ttrpc::Result<Empty> {
        self.destroyed.notify_one();
        Ok(Empty::new())
    }
}

#[async_trait]
impl health_ttrpc::Health for KataAgent {
    async fn check(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<HealthCheckResponse> {
        Ok(HealthCheckResponse { status: ServingStatus::SERVING.into(), ..Default::default() })
    }

    async fn version(&self, _: &TtrpcContext, _: CheckRequest) -> ttrpc::Result<VersionCheckResponse> {
        Ok(VersionCheckResponse { agent_version: "stand-in".to_owned(), ..Default::default() })
    }
}
