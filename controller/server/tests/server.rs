//! A whole controller but for the cloud: Claims over a real unix socket, the redb Journal, the binder CA, metrics off.

#[path = "../../engine/tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use peerpods_claims::{Assignment, Claim, ClaimError, ClaimRequest, ClaimState, Client, Mib, PodRef};
use peerpods_cloud_api::ProviderError;
use peerpods_controller::{Provider, ServerError, StateDir, clean_up, serve};
use peerpods_controller_api::config::{self, ControllerConfig};
use peerpods_tunnel::credential::NodeKey;
use support::{FakeCloud, Fault};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

struct World {
    folder: tempfile::TempDir,
    cloud: Arc<FakeCloud>,
    node_key: NodeKey,
}

struct Controller {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), ServerError>>,
    client: Client,
}

const LIMIT: Duration = Duration::from_secs(30);

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, cloud: FakeCloud::new(), node_key: NodeKey::generate().expect("a key") }
    }

    fn config(&self) -> ControllerConfig {
        let folder = self.folder.path().display();
        let text = format!(
            "state_dir = \"{folder}/controller\"\nclaims_socket = \"{folder}/claims.sock\"\n[provider]\nkind = \"local\"\n\
             [provider.local]\nlevel = \"qemu\"\nimage = \"/image\"\nstate_dir = \"{folder}/machines\"\n\
             [class.default]\ntee = \"sample\"\nroot_of_trust = \"insecure\"\n"
        );
        config::load_from(&text, "controller.toml", "PEERPODS_", &[], &[]).expect("loads")
    }

    fn provider(&self) -> Provider {
        Provider::new(Arc::clone(&self.cloud) as _)
    }

    async fn start(&self) -> Controller {
        let (config, provider) = (self.config(), self.provider());
        let (stop, stopped) = oneshot::channel();
        let socket = config.claims_socket.clone();
        let task = tokio::spawn(async move { serve(&config, &provider, async { drop(stopped.await) }).await });
        let client = Client::connect(&socket);
        let served = async {
            while client.get("nobody").await.is_err() {
                assert!(!task.is_finished(), "the controller ended");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(LIMIT, served).await.expect("the controller serves");
        Controller { stop, task, client }
    }

    fn request(&self, name: &str) -> ClaimRequest {
        ClaimRequest {
            key: format!("node-1/default/{name}"),
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
}

impl Controller {
    async fn stop(self) {
        self.stop.send(()).expect("still runs");
        tokio::time::timeout(LIMIT, self.task).await.expect("stops").expect("no panic").expect("stops cleanly");
    }

    async fn until(&self, key: &str, is_so: impl Fn(&ClaimState) -> bool) -> ClaimState {
        let mut states = self.client.watch(key).await.expect("watches");
        let found = async {
            loop {
                match states.next().await {
                    Some(Ok(Claim { state, .. })) if is_so(&state) => return state,
                    Some(Ok(_)) => {}
                    other => panic!("the watch of {key} ended: {other:?}"),
                }
            }
        };
        tokio::time::timeout(LIMIT, found).await.expect("the claim gets there")
    }

    async fn assigned(&self, key: &str) -> Assignment {
        match self.until(key, |state| !matches!(state, ClaimState::Pending { .. })).await {
            ClaimState::Assigned(assignment) => assignment,
            other => panic!("{key} is not assigned: {other:?}"),
        }
    }
}

/// Text of the leaf certificate, for names that stand in it as they are.
fn holds(assignment: &Assignment, text: &str) -> bool {
    assignment.chain[0].windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn claim_comes_with_a_fresh_certificate_for_instance_and_node() {
    let world = World::new();
    let controller = world.start().await;
    let request = world.request("web");
    controller.client.claim(request.clone()).await.expect("claimed");
    let first = controller.assigned(&request.key).await;
    assert_eq!((first.tee.as_str(), first.valid_secs, first.chain.len()), ("sample", 3600, 2));
    assert!(holds(&first, &format!("peerpods://instance/{}", first.instance_id)) && holds(&first, "peerpods://node/node-1"));
    let again = controller.client.get(&request.key).await.expect("answers");
    let ClaimState::Assigned(second) = again.state else { panic!("is assigned") };
    assert_ne!(first.chain[0], second.chain[0], "each answer has a certificate of its own");
    assert_eq!(first.chain[1], second.chain[1]);

    let bad = ClaimRequest { node_spki: vec![1, 2, 3], ..world.request("bad") };
    let error = controller.client.claim(bad).await.expect_err("is no key");
    assert!(matches!(&error, ClaimError::Invalid { detail } if detail.contains("node_spki")), "{error}");

    controller.client.release(&request.key).await.expect("released");
    controller.until(&request.key, |state| *state == ClaimState::Gone).await;
    assert_eq!(world.cloud.instances(), []);
    controller.stop().await;
}

#[tokio::test]
async fn restart_keeps_assignments_and_finishes_releases() {
    let world = World::new();
    let controller = world.start().await;
    let (kept, released) = (world.request("kept"), world.request("released"));
    for request in [&kept, &released] {
        controller.client.claim(request.clone()).await.expect("claimed");
    }
    let before = controller.assigned(&kept.key).await;
    controller.assigned(&released.key).await;
    controller.client.release(&released.key).await.expect("released");
    controller.stop().await;
    assert!(!world.cloud.instances().is_empty(), "a controller that stops leaves machines running");

    let controller = world.start().await;
    let after = controller.assigned(&kept.key).await;
    assert_eq!((before.instance_id, before.address, &before.chain[1]), (after.instance_id, after.address, &after.chain[1]));
    controller.until(&released.key, |state| *state == ClaimState::Gone).await;
    assert_eq!(world.cloud.created(), 2);
    controller.stop().await;
}

#[tokio::test]
async fn failed_launch_is_told_with_its_cause() {
    let world = World::new();
    world.cloud.fail_next("launch", Fault::Before, ProviderError::QuotaExceeded { detail: "vCPUs".to_owned() });
    let controller = world.start().await;
    let request = world.request("web");
    controller.client.claim(request.clone()).await.expect("claimed");
    let state = controller.until(&request.key, |state| !matches!(state, ClaimState::Pending { .. })).await;
    assert_eq!(state, ClaimState::Failed { during: "launching".to_owned(), cause: "quota exceeded: vCPUs".to_owned() });
    controller.stop().await;
}

#[tokio::test]
async fn provider_that_cannot_serve_stops_the_start_with_its_reason() {
    let world = World::new();
    world.cloud.fail_next("verify", Fault::Before, ProviderError::PermissionDenied { detail: "ec2:RunInstances".to_owned() });
    let error = serve(&world.config(), &world.provider(), std::future::pending()).await.expect_err("cannot serve");
    assert!(matches!(error, ServerError::VerifyProvider(_)), "{error}");
}

#[tokio::test]
async fn cleanup_deletes_everything_and_nothing_of_others() {
    let world = World::new();
    let controller = world.start().await;
    for name in ["a", "b", "c"] {
        controller.client.claim(world.request(name)).await.expect("claimed");
    }
    controller.assigned("node-1/default/a").await;
    let error = clean_up(&world.config(), &world.provider(), LIMIT).await.expect_err("the controller runs");
    assert!(chain(&error).contains("another controller is using it"), "{}", chain(&error));
    controller.stop().await;

    let owner = StateDir::open(Path::new(&world.config().state_dir)).expect("opens").owner;
    world.cloud.plant("i-forgotten", &owner);
    world.cloud.fail_next("delete", Fault::Before, ProviderError::Throttled { retry_after: None });
    clean_up(&world.config(), &world.provider(), LIMIT).await.expect("everything goes");
    assert_eq!(world.cloud.instances(), []);
    clean_up(&world.config(), &world.provider(), LIMIT).await.expect("again is no error");
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What the admin socket answers to this request line.
async fn ask_admin(world: &World, line: &str) -> String {
    let mut stream = tokio::net::UnixStream::connect(world.config().admin_socket()).await.expect("connects");
    stream.write_all(format!("{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await.expect("is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("is answered");
    answer
}

#[tokio::test]
async fn operators_see_and_delete_over_a_socket_of_their_own() {
    let world = World::new();
    let controller = world.start().await;
    let socket = world.config().admin_socket();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket).expect("is there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let request = world.request("web");
    controller.client.claim(request.clone()).await.expect("claimed");
    let id = controller.assigned(&request.key).await.instance_id;
    let answer = ask_admin(&world, "GET /v1/state").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("application/json"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let report: peerpods_controller_api::report::StateReport = serde_json::from_str(body).expect("a report");
    assert_eq!((report.claims.len(), report.pod_vms[0].instance_id.as_str()), (1, id.as_str()));
    for (line, status) in [
        ("GET /", 404),
        ("POST /v1/state", 405),
        ("PUT /v1/pod-vms/i-1", 405),
        ("GET /v1/pod-vms/i-1/console", 501),
        ("DELETE /v1/pod-vms/i-none", 404),
        ("DELETE /v1/pod-vms/%00", 400),
        ("DELETE /v1/pod-vms/", 400),
    ] {
        let answer = ask_admin(&world, line).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
    }
    let answer = ask_admin(&world, &format!("DELETE /v1/pod-vms/{id}")).await;
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    controller.until(&request.key, |state| matches!(state, ClaimState::Failed { .. })).await;
    controller.client.release(&request.key).await.expect("released");
    controller.until(&request.key, |state| *state == ClaimState::Gone).await;
    controller.stop().await;
}
