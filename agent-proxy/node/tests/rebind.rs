//! A Bind whose answer was lost, against a real guest endpoint with a real attester.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use peerpods_attester::Attester;
use peerpods_evidence::initdata;
use peerpods_node::ports::{BindFailure, BindObserver, BindTarget, Bound, PodVms as _, TunnelBinder};
use peerpods_tunnel::credential::{BinderCa, NodeKey};
use peerpods_tunnel::guest::{BindHandler, GuestConfig, GuestEndpoint};
use peerpods_tunnel::node::Pin;
use peerpods_tunnel::user_data::UserData;
use peerpods_tunnel::{BindRequest, Pod, Refusal, RefusalCode};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

struct Guest(Mutex<Attester>);

#[async_trait]
impl BindHandler for Guest {
    async fn evidence(&self, report_data: [u8; 48]) -> Result<Vec<u8>, Refusal> {
        self.0.lock().await.evidence(&report_data).map_err(|e| Refusal::new(RefusalCode::EvidenceFailed, e.to_string()))
    }

    async fn activate(&self, _challenge: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        Err(Refusal::new(RefusalCode::EvidenceFailed, "no TPM"))
    }

    async fn bind(&self, request: &BindRequest) -> Result<(), Refusal> {
        let digest = initdata::digest(request.initdata.as_deref()).expect("valid initdata");
        self.0.lock().await.extend_initdata(&digest).map_err(|e| Refusal::new(RefusalCode::MeasurementFailed, e.to_string()))
    }
}

struct Silent;

impl BindObserver for Silent {
    fn evidence_arrived(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn attested(&mut self, _key: Pin) -> Result<(), String> {
        Ok(())
    }
}

struct World {
    binder: TunnelBinder,
    chain: Vec<Vec<u8>>,
}

impl World {
    async fn new() -> Self {
        let ca = BinderCa::generate().expect("a CA");
        let key = NodeKey::generate().expect("a key");
        let chain = ca.issue(key.spki_der(), "i-1", "node-1", SystemTime::now(), Duration::from_secs(60)).expect("a certificate");
        let user_data = UserData { version: 1, binder_ca_sha256: ca.spki_sha256_hex(), tee: "sample".to_owned() };
        let guest = Guest(Mutex::new(Attester::for_tee("sample").expect("an attester")));
        let (endpoint, streams) = GuestEndpoint::new(GuestConfig { user_data, instance_id: "i-1".to_owned() }, guest).expect("an endpoint");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            let _streams = streams;
            endpoint.serve(listener).await
        });
        Self { binder: TunnelBinder::new(key, peerpods_evidence::Trust::default()).with_port(port), chain }
    }

    async fn bind(&self, sandbox_id: &str, attested_key: Option<Pin>) -> Result<Bound, BindFailure> {
        let request = BindRequest {
            version: 1,
            sandbox_id: sandbox_id.to_owned(),
            pod: Pod { namespace: "default".to_owned(), name: "web".to_owned(), uid: None },
            network: serde_json::Value::Null,
            initdata: None,
            agent_keys: vec!["ab".repeat(32)],
        };
        let target = BindTarget {
            instance_id: "i-1",
            address: IpAddr::from([127, 0, 0, 1]),
            tee: "sample",
            root_of_trust: peerpods_evidence::RootOfTrust::Insecure,
            reference_values: &peerpods_evidence::ReferenceValues(std::collections::BTreeMap::new()),
            chain: &self.chain,
            request: &request,
            attested_key,
            deadline: Duration::from_secs(20),
        };
        self.binder.bind(target, &mut Silent).await
    }
}

#[tokio::test]
async fn bind_whose_answer_was_lost_is_answered_again() {
    let world = World::new().await;
    let first = world.bind("s1", None).await.expect("bound");
    let again = world.bind("s1", Some(first.pin)).await.expect("the same answer");
    assert_eq!(first.pin, again.pin);
}

#[tokio::test]
async fn pod_vm_with_a_history_is_not_accepted_as_new() {
    let world = World::new().await;
    world.bind("s1", None).await.expect("bound");
    let failure = world.bind("s2", None).await.expect_err("it has run a workload");
    assert_eq!(failure.during, "attest the pod VM", "{failure:?}");
}

#[tokio::test]
async fn pod_vm_bound_by_another_request_refuses() {
    let world = World::new().await;
    let first = world.bind("s1", None).await.expect("bound");
    let failure = world.bind("s2", Some(first.pin)).await.expect_err("another sandbox has it");
    assert_eq!(failure.during, "bind the pod VM", "{failure:?}");
}

/// A workload with the same initdata can have evidence made with report data of its choice, and whoever relays that has another key.
#[tokio::test]
async fn extended_register_is_believed_of_the_attested_key_alone() {
    let world = World::new().await;
    world.bind("s1", None).await.expect("bound");
    let another = Pin::try_from("cd".repeat(32)).expect("a pin");
    let failure = world.bind("s1", Some(another)).await.expect_err("it is not the pod VM that was attested");
    assert_eq!(failure.during, "attest the pod VM", "{failure:?}");
    assert!(failure.cause.contains("expected reset"), "{failure:?}");
}
