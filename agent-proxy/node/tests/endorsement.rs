//! A TPM whose endorsement key is known, asked by Bind whose its attestation key is: a real guest endpoint over a software TPM. The SNP
//! report beside its quote is none, so every Bind ends at the evidence; what it was refused for shows how far it came.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use peerpods_attester::tpm::{Tpm, TpmAttester};
use peerpods_evidence::snp::SnpEvidence;
use peerpods_evidence::snp_tpm::SnpTpmEvidence;
use peerpods_evidence::tpm::credential::Challenge;
use peerpods_evidence::tpm::rsa_of;
use peerpods_evidence::{ReferenceValues, RootOfTrust, Trust};
use peerpods_node::ports::{BindObserver, BindTarget, PodVms as _, TunnelBinder};
use peerpods_tunnel::credential::{BinderCa, NodeKey};
use peerpods_tunnel::guest::{BindHandler, GuestConfig, GuestEndpoint};
use peerpods_tunnel::node::Pin;
use peerpods_tunnel::user_data::UserData;
use peerpods_tunnel::{BindRequest, Pod, Refusal};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

#[path = "../../../pod-vm-image/attester/tests/software/mod.rs"]
mod software;
use software::Swtpm;

struct Guest {
    tpm: Mutex<TpmAttester<Swtpm>>,
    asked: Arc<AtomicUsize>,
    answers: Answers,
}

#[derive(Clone, Copy)]
enum Answers {
    Right,
    /// As a machine in front of somebody else's TPM.
    Wrong,
}

#[async_trait]
impl BindHandler for Guest {
    async fn evidence(&self, report_data: [u8; 48]) -> Result<Vec<u8>, Refusal> {
        let tpm = self.tpm.lock().await.evidence(&report_data).expect("a quote");
        let snp = SnpEvidence { report: software::unsigned_report(), certificates: Vec::new() };
        Ok(SnpTpmEvidence { snp, tpm }.encode().expect("encodes"))
    }

    async fn activate(&self, challenge: Vec<u8>) -> Result<Vec<u8>, Refusal> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        match self.answers {
            Answers::Right => Ok(self.tpm.lock().await.activate(&Challenge::decode(&challenge).expect("decodes")).expect("opens")),
            Answers::Wrong => Ok(vec![0; 32]),
        }
    }

    async fn bind(&self, _request: &BindRequest) -> Result<(), Refusal> {
        panic!("no Bind follows evidence without a report")
    }
}

struct Silent;

impl BindObserver for Silent {
    fn evidence_arrived(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn attested(&mut self, _key: Pin) -> Result<(), String> {
        panic!("nothing was attested")
    }
}

/// How often the TPM was asked, and why the evidence was refused.
async fn refused(answers: Answers, is_known: bool, root_of_trust: RootOfTrust) -> (usize, String) {
    let ca = BinderCa::generate().expect("a CA");
    let key = NodeKey::generate().expect("a key");
    let chain = ca.issue(key.spki_der(), "i-1", "node-1", SystemTime::now(), Duration::from_secs(60)).expect("a certificate");
    let mut tpm = TpmAttester::new(Tpm::new(Swtpm::start()), None).expect("keys");
    let ek = tpm.evidence(&[0; 48]).expect("a quote").ek.expect("an endorsement key");
    let trust = Trust { tpm_keys: is_known.then(|| rsa_of(&ek).expect("RSA").to_spki()).into_iter().collect(), ..Trust::default() };

    let asked = Arc::new(AtomicUsize::new(0));
    let guest = Guest { tpm: Mutex::new(tpm), asked: asked.clone(), answers };
    let user_data = UserData { version: 1, binder_ca_sha256: ca.spki_sha256_hex(), tee: "snp-tpm".to_owned() };
    let (endpoint, streams) = GuestEndpoint::new(GuestConfig { user_data, instance_id: "i-1".to_owned() }, guest).expect("an endpoint");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let serving = tokio::spawn(async move {
        let _streams = streams;
        endpoint.serve(listener).await
    });
    let request = BindRequest {
        version: 1,
        sandbox_id: "s1".to_owned(),
        pod: Pod { namespace: "default".to_owned(), name: "web".to_owned(), uid: None },
        network: serde_json::Value::Null,
        initdata: None,
        agent_keys: vec!["ab".repeat(32)],
    };
    let target = BindTarget {
        instance_id: "i-1",
        address: IpAddr::from([127, 0, 0, 1]),
        tee: "snp-tpm",
        root_of_trust,
        reference_values: &ReferenceValues::default(),
        chain: &chain,
        request: &request,
        attested_key: None,
        deadline: Duration::from_secs(20),
    };
    let failure = TunnelBinder::new(key, trust).with_port(port).bind(target, &mut Silent).await.expect_err("no report");
    serving.abort();
    (asked.load(Ordering::SeqCst), failure.cause)
}

#[tokio::test]
async fn tpm_of_a_known_endorsement_key_must_answer() {
    let (asked, cause) = refused(Answers::Wrong, true, RootOfTrust::CloudTpm).await;
    assert!(asked == 1 && cause.contains("the attestation key is not of the TPM with this key"), "{asked}: {cause}");
    let (asked, cause) = refused(Answers::Right, true, RootOfTrust::CloudTpm).await;
    assert!(asked == 1 && cause.contains("the SNP part"), "{asked}: {cause}");
}

#[tokio::test]
async fn nothing_is_asked_where_the_answer_would_not_matter() {
    for (is_known, root_of_trust) in [(false, RootOfTrust::CloudTpm), (true, RootOfTrust::Insecure)] {
        let (asked, cause) = refused(Answers::Right, is_known, root_of_trust).await;
        assert!(asked == 0 && cause.contains("the SNP part"), "{asked}: {cause}");
    }
}
