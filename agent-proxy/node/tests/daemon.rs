//! The real program with its real socket, without a controller.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use peerpods_protos::hypervisor::{CreateVMRequest, StartVMRequest, StopVMRequest, VersionRequest};
use peerpods_protos::hypervisor_ttrpc::HypervisorClient;
use ttrpc::context::with_duration;

struct Daemon {
    child: Child,
}

impl Daemon {
    fn start(dir: &Path) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log");
        let child = command(dir, &["run"]).stdin(Stdio::null()).stderr(log).spawn().expect("started");
        Self { child }
    }

    async fn client(&self, dir: &Path) -> HypervisorClient {
        let address = format!("unix://{}", dir.join("hypervisor.sock").display());
        let limit = SystemTime::now() + Duration::from_secs(20);
        loop {
            match ttrpc::asynchronous::Client::connect(&address).await {
                Ok(client) => return HypervisorClient::new(client),
                Err(error) => assert!(SystemTime::now() < limit, "{error}: {}", log(dir)),
            }
            tokio::task::yield_now().await;
        }
    }

    fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("waited");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerpods-node"));
    command.args(args).arg("--config").arg(dir.join("node.toml"));
    command
}

fn output(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().expect("ran")
}

fn log(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("log")).unwrap_or_default()
}

fn prepare(extra: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("tempdir");
    let dir = folder.path().display();
    // Any program will do as link: no sandbox gets that far.
    let text = format!(
        "node = \"node-1\"\nstate_dir = \"{dir}/node\"\npods_dir = \"{dir}/pods\"\nhypervisor_socket = \"{dir}/hypervisor.sock\"\nclaims_socket = \"{dir}/claims.sock\"\nlink = \"/proc/self/exe\"\nmetrics = \"127.0.0.1:0\"\n{extra}\n"
    );
    std::fs::write(folder.path().join("node.toml"), text).expect("written");
    folder
}

fn create_request(id: &str) -> CreateVMRequest {
    let mut request = CreateVMRequest::new();
    request.id = id.to_owned();
    for (key, value) in [("io.kubernetes.cri.sandbox-name", "web"), ("io.kubernetes.cri.sandbox-namespace", "default")] {
        request.annotations.insert(key.to_owned(), value.to_owned());
    }
    request
}

fn deadline() -> ttrpc::context::Context {
    with_duration(Duration::from_secs(20))
}

fn list(dir: &Path) -> serde_json::Value {
    let out = output(dir, &["list", "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).expect("JSON")
}

#[tokio::test]
async fn daemon_serves_shims_is_killed_and_goes_on() {
    let folder = prepare("");
    let dir = folder.path();
    assert_eq!(list(dir), serde_json::json!([]), "before the first start");
    let daemon = Daemon::start(dir);
    let client = daemon.client(dir).await;
    let mode = std::fs::metadata(dir.join("hypervisor.sock")).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(client.version(deadline(), &VersionRequest::new()).await.expect("answered").version, env!("CARGO_PKG_VERSION"));

    let reply = client.create_vm(deadline(), &create_request("s1")).await.expect("created");
    assert_eq!(reply.agentSocketPath, dir.join("pods/s1/agent.ttrpc").display().to_string());
    let mut start = StartVMRequest::new();
    start.id = "s1".to_owned();
    let error = client.start_vm(with_duration(Duration::from_secs(2)), &start).await.expect_err("no controller");
    assert!(error.to_string().contains("has not given a pod VM yet") && error.to_string().contains("controller is unavailable"), "{error}");
    let second = output(dir, &["run"]);
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another peerpods-node"), "{}", String::from_utf8_lossy(&second.stderr));

    daemon.kill();
    assert!(dir.join("hypervisor.sock").exists(), "left behind");
    let listed = list(dir);
    assert_eq!((&listed[0]["sandbox_id"], &listed[0]["state"]), (&"s1".into(), &"claiming".into()), "{listed}");
    let daemon = Daemon::start(dir);
    let client = loop {
        // The dead daemon's socket refuses until the new one has replaced it.
        let client = daemon.client(dir).await;
        if client.version(deadline(), &VersionRequest::new()).await.is_ok() {
            break client;
        }
    };
    for id in ["s1", "s1", "s1", "unknown", "../etc"] {
        let mut stop = StopVMRequest::new();
        stop.id = id.to_owned();
        let began = SystemTime::now();
        client.stop_vm(with_duration(Duration::from_secs(1)), &stop).await.expect("stopped");
        assert!(began.elapsed().expect("forwards") < Duration::from_millis(100));
    }
    assert_eq!(list(dir)[0]["state"], "stopping", "the controller must still be told");
    let error = client.create_vm(deadline(), &create_request("s1")).await.expect_err("stopped");
    assert!(error.to_string().contains("was stopped"), "{error}");
    let table = output(dir, &["list"]);
    assert!(String::from_utf8_lossy(&table.stdout).contains("default/web"));
}

#[tokio::test]
async fn bad_requests_are_answered_with_the_key_or_path_that_is_wrong() {
    let folder = prepare("");
    let dir = folder.path();
    let daemon = Daemon::start(dir);
    let client = daemon.client(dir).await;
    let mut request = create_request("s1");
    request.annotations.insert("io.katacontainers.config.hypervisor.default_vcpus".to_owned(), "many".to_owned());
    let error = client.create_vm(deadline(), &request).await.expect_err("refused");
    assert!(error.to_string().contains("default_vcpus"), "{error}");
    let mut request = create_request("s1");
    request.networkNamespacePath = "/var/run/netns/absent".to_owned();
    let error = client.create_vm(deadline(), &request).await.expect_err("refused");
    assert!(error.to_string().contains("/var/run/netns/absent"), "{error}");
    let error = client.create_vm(deadline(), &create_request("../x")).await.expect_err("refused");
    assert!(error.to_string().contains("sandbox id"), "{error}");
    assert_eq!(list(dir), serde_json::json!([]));
}

#[test]
fn configuration_is_checked_and_shown() {
    let folder = prepare("takeover_secs = 7");
    let dir = folder.path();
    assert!(output(dir, &["config", "check"]).status.success());
    let shown = output(dir, &["config", "show", "--set", "start_timeout_secs=120"]);
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("takeover_secs = 7") && shown.contains("start_timeout_secs = 120"), "{shown}");
    let folder = prepare("colour = \"red\"");
    let wrong = output(folder.path(), &["config", "check"]);
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("colour"), "{}", String::from_utf8_lossy(&wrong.stderr));
}

#[test]
fn the_settings_reference_is_what_the_program_says() {
    let said = Command::new(env!("CARGO_BIN_EXE_peerpods-node")).args(["config", "reference"]).output().expect("ran").stdout;
    let written = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("SETTINGS.md")).unwrap_or_default();
    assert!(written == said, "SETTINGS.md is old: peerpods-node config reference > agent-proxy/node/SETTINGS.md");
}
