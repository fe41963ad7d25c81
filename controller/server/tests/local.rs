//! The program over the local provider: real processes, a real bridge, machines made of namespaces. Needs root and busybox.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use futures::StreamExt as _;
use peerpods_claims::{Assignment, ClaimRequest, ClaimState, Client, Mib, PodRef};
use peerpods_tunnel::credential::NodeKey;

const LIMIT: Duration = Duration::from_secs(60);

/// A network namespace, removed when dropped.
struct Netns(String);

impl Netns {
    fn create() -> Self {
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let name = format!("ppctl{}-{}", std::process::id(), NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        run(Command::new("ip").args(["netns", "add", &name]));
        run(Command::new("ip").args(["-n", &name, "link", "set", "lo", "up"]));
        Self(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

/// Killed when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct World {
    netns: Netns,
    folder: tempfile::TempDir,
    node_key: NodeKey,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("pp").tempdir().expect("a folder");
        let path = folder.path().display();
        let text = format!(
            "state_dir = \"{path}/controller\"\nclaims_socket = \"{path}/claims.sock\"\nmetrics = \"127.0.0.1:0\"\n[provider]\nkind = \"local\"\n\
             [provider.local]\nlevel = \"sandbox\"\ninsecure_sandbox = true\nimage = \"/bin/busybox\"\nstate_dir = \"{path}/machines\"\n\
             [class.default]\ntee = \"sample\"\nroot_of_trust = \"insecure\"\n"
        );
        std::fs::write(folder.path().join("controller.toml"), text).expect("written");
        Self { netns: Netns::create(), folder, node_key: NodeKey::generate().expect("a key") }
    }

    fn controller(&self, command: &str) -> Command {
        let mut program = self.netns.command(env!("CARGO_BIN_EXE_peerpods-controller"));
        program.args([command, "--config"]).arg(self.folder.path().join("controller.toml"));
        program
    }

    async fn start(&self) -> (Process, Client) {
        let log = std::fs::File::options().create(true).append(true).open(self.folder.path().join("log")).expect("a log");
        let child = self.controller("run").stdin(Stdio::null()).stderr(log).spawn().expect("starts");
        let mut process = Process(child);
        let client = Client::connect(&self.folder.path().join("claims.sock"));
        let begin = SystemTime::now();
        while let Err(error) = client.get("nobody").await {
            let ended = process.0.try_wait().expect("can be asked");
            assert!(ended.is_none() && begin.elapsed().expect("forward") < LIMIT, "{error}; {ended:?}; log:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (process, client)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn machines(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder.path().join("machines/machines")).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    }

    fn links(&self) -> String {
        let out = self.netns.command("ip").args(["-o", "link"]).output().expect("runs");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn request(&self, name: &str) -> ClaimRequest {
        ClaimRequest {
            key: name.to_owned(),
            pod: PodRef::new("default", name, None).expect("valid"),
            class: None,
            vcpus: 0.0,
            memory: Mib(0),
            image: None,
            instance_type: None,
            node: "node-1".to_owned(),
            node_spki: self.node_key.spki_der().to_vec(),
        }
    }

    async fn assigned(&self, client: &Client, key: &str) -> Assignment {
        let mut states = client.watch(key).await.expect("watches");
        let found = async {
            loop {
                match states.next().await {
                    Some(Ok(claim)) => match claim.state {
                        ClaimState::Assigned(assignment) => return assignment,
                        ClaimState::Pending { .. } => {}
                        other => panic!("{key}: {other:?}; log:\n{}", self.log()),
                    },
                    other => panic!("the watch of {key} ended: {other:?}; log:\n{}", self.log()),
                }
            }
        };
        tokio::time::timeout(LIMIT, found).await.unwrap_or_else(|_| panic!("{key} is not assigned; log:\n{}", self.log()))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A test that failed must not leave machines.
        let _ = self.controller("cleanup").stderr(Stdio::null()).status();
    }
}

fn run(command: &mut Command) {
    let out = command.output().expect("starts");
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

fn can_run() -> bool {
    let is_root = std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    let has_busybox = Path::new("/bin/busybox").is_file();
    if !(is_root && has_busybox) {
        println!("skipped: needs root (is {is_root}) and /bin/busybox (is {has_busybox})");
    }
    is_root && has_busybox
}

#[tokio::test]
async fn machines_outlive_killed_controllers_and_cleanup_removes_all() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let (controller, client) = world.start().await;
    client.claim(world.request("a")).await.expect("claimed");
    client.claim(world.request("b")).await.expect("claimed");
    let before = world.assigned(&client, "a").await;
    world.assigned(&client, "b").await;
    assert_eq!(world.machines().len(), 2);
    // SIGKILL, in the middle of a release.
    client.release("b").await.expect("released");
    drop(controller);

    let (controller, client) = world.start().await;
    let after = world.assigned(&client, "a").await;
    assert_eq!((&before.instance_id, before.address), (&after.instance_id, after.address), "the machine has not changed");
    let mut states = client.watch("b").await.expect("watches");
    let gone = async { while !matches!(states.next().await, Some(Ok(claim)) if claim.state == ClaimState::Gone) {} };
    tokio::time::timeout(LIMIT, gone).await.unwrap_or_else(|_| panic!("b is not gone; log:\n{}", world.log()));
    assert_eq!(world.machines().len(), 1);

    drop(controller);
    assert_eq!(world.machines().len(), 1, "a stopped controller leaves its machines");
    assert!(world.links().contains("peerpods0"));
    run(&mut world.controller("cleanup"));
    assert!(world.machines().is_empty(), "{:?}", world.machines());
    assert!(!world.links().contains("peerpods0"), "{}", world.links());
}

#[tokio::test]
async fn sigterm_stops_the_program_and_not_its_machines() {
    if !can_run() {
        return;
    }
    let world = World::new();
    let (mut controller, client) = world.start().await;
    client.claim(world.request("a")).await.expect("claimed");
    world.assigned(&client, "a").await;
    let _watching = client.watch("a").await.expect("watches");
    run(Command::new("kill").args(["-TERM", &controller.0.id().to_string()]));
    let begin = SystemTime::now();
    let status = loop {
        if let Some(status) = controller.0.try_wait().expect("can be asked") {
            break status;
        }
        assert!(begin.elapsed().expect("forward") < LIMIT, "does not stop; log:\n{}", world.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(status.success(), "{status}; log:\n{}", world.log());
    assert_eq!(world.machines().len(), 1);
    run(&mut world.controller("cleanup"));
    assert!(world.machines().is_empty());
}
