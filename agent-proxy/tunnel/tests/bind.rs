//! Bind over loopback: who may bind a pod VM, once, and how everybody else is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::time::{Duration, SystemTime};

use peerpods_tunnel::credential::{BinderCa, Credential, NodeKey};
use peerpods_tunnel::guest::GuestLimits;
use peerpods_tunnel::node::{AgentDialer, BindError, DialError, EvidenceMessage, Pin, Verdict, bind};
use peerpods_tunnel::{Refusal, RefusalCode, ResumeOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use world::{DEADLINE, INSTANCE, PodVm, World, check};

fn refusal(error: BindError) -> RefusalCode {
    match error {
        BindError::Refused(refusal) => refusal.code,
        other => panic!("not a refusal: {other}"),
    }
}

#[tokio::test]
async fn attested_vm_is_bound_and_serves_agent_streams() {
    let world = World::new();
    let mut vm = PodVm::boot(&world.ca).await;
    let bound = world.bind(&vm).await.unwrap();
    let dialer = AgentDialer::new(vm.addr, world.key.clone(), bound.pin, ResumeOptions::default());
    let mut node = dialer.connect().await.unwrap();
    let mut guest = vm.streams.recv().await.unwrap();
    node.write_all(b"ping").await.unwrap();
    let mut read = [0; 4];
    guest.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"ping");
    guest.write_all(b"pong").await.unwrap();
    guest.shutdown().await.unwrap();
    let mut all = Vec::new();
    node.read_to_end(&mut all).await.unwrap();
    assert_eq!(all, b"pong");
}

#[tokio::test]
async fn vm_that_boots_late_is_bound() {
    let world = World::new();
    let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = reserved.local_addr().unwrap();
    drop(reserved);
    let (credential, request) = (world.credential(), world.request());
    let mut binding = std::pin::pin!(bind(addr, INSTANCE, &credential, &request, check, DEADLINE));
    // Refused a few times before there is anybody.
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut binding).await.is_err());
    let listener = TcpListener::bind(addr).await.unwrap();
    let vm = PodVm::boot_on(listener, &world.ca, GuestLimits::default(), ResumeOptions::default());
    binding.await.unwrap();
    assert_eq!(vm.binds_handled(), 1);
}

#[tokio::test]
async fn vm_that_never_answers_is_given_up_at_the_deadline() {
    let world = World::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = silent.local_addr().unwrap();
    let error = bind(addr, INSTANCE, &world.credential(), &world.request(), check, Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, BindError::NeverAnswered { .. }), "{error}");
}

#[tokio::test]
async fn foreign_ca_and_expired_credential_are_refused_before_evidence() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let foreign = BinderCa::generate().unwrap();
    let chain = foreign.issue(world.key.spki_der(), INSTANCE, "node-1", SystemTime::now(), Duration::from_secs(600)).unwrap();
    let foreign = Credential { chain: chain.clone(), key: world.key.clone() };
    // The right CA's certificate next to a leaf of the wrong one.
    let mixed = Credential { chain: vec![chain[0].clone(), world.ca.cert_der().to_vec()], key: world.key.clone() };
    let expired = world.issue(INSTANCE, "node-1", SystemTime::now() - Duration::from_secs(3600));
    let early = world.issue(INSTANCE, "node-1", SystemTime::now() + Duration::from_secs(3600));
    for (what, credential) in [("foreign", foreign), ("mixed", mixed), ("expired", expired), ("early", early)] {
        let error = bind(vm.addr, INSTANCE, &credential, &world.request(), check, DEADLINE).await.unwrap_err();
        assert!(matches!(error, BindError::Credential(_)), "{what}: {error}");
    }
    assert_eq!((vm.evidence_made(), vm.binds_handled()), (0, 0));
    world.bind(&vm).await.unwrap();
}

#[tokio::test]
async fn assignment_of_another_instance_is_refused_before_evidence() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let other = world.issue("i-2", "node-1", SystemTime::now());
    let error = bind(vm.addr, INSTANCE, &other, &world.request(), check, DEADLINE).await.unwrap_err();
    assert_eq!(refusal(error), RefusalCode::WrongInstance);
    assert_eq!(vm.evidence_made(), 0);
}

#[tokio::test]
async fn assignment_of_another_node_is_useless_without_its_key() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let stolen = Credential { chain: world.credential().chain, key: NodeKey::generate().unwrap() };
    let error = bind(vm.addr, INSTANCE, &stolen, &world.request(), check, DEADLINE).await.unwrap_err();
    assert!(matches!(error, BindError::Credential(_)), "{error}");
    // A client that does not check its own credential gets no further.
    let error = world::raw::connect(vm.addr, "peerpods-bind/1", Some(&stolen)).await.unwrap_err();
    assert!(error.to_string().contains("alert"), "{error}");
    assert_eq!(vm.evidence_made(), 0);
}

#[tokio::test]
async fn second_bind_is_answered_if_it_is_the_same_and_refused_if_not() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let first = world.bind(&vm).await.unwrap();
    let again = world.bind(&vm).await.unwrap();
    assert_eq!(first.pin, again.pin);

    let mut other = world.request();
    other.sandbox_id = "sandbox-2".to_owned();
    let error = bind(vm.addr, INSTANCE, &world.credential(), &other, check, DEADLINE).await.unwrap_err();
    assert_eq!(refusal(error), RefusalCode::AlreadyBound);

    let other_node = world.issue(INSTANCE, "node-2", SystemTime::now());
    let error = bind(vm.addr, INSTANCE, &other_node, &world.request(), check, DEADLINE).await.unwrap_err();
    assert_eq!(refusal(error), RefusalCode::AlreadyBound);
    assert_eq!(vm.binds_handled(), 1);
}

#[tokio::test]
async fn failed_bind_spends_the_vm() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    *vm.handler.0.answer.lock().unwrap() = Some(Refusal::new(RefusalCode::MeasurementFailed, "register is stuck"));
    assert_eq!(refusal(world.bind(&vm).await.unwrap_err()), RefusalCode::MeasurementFailed);
    *vm.handler.0.answer.lock().unwrap() = None;
    assert_eq!(refusal(world.bind(&vm).await.unwrap_err()), RefusalCode::MeasurementFailed);
    assert_eq!(vm.binds_handled(), 1);
}

#[tokio::test]
async fn evidence_of_another_connection_or_nonce_is_not_accepted() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let mut seen = Vec::new();
    let error = bind(
        vm.addr,
        INSTANCE,
        &world.credential(),
        &world.request(),
        |message| {
            seen.push(message.evidence.clone());
            Err("only looking".to_owned())
        },
        DEADLINE,
    )
    .await
    .unwrap_err();
    assert!(matches!(&error, BindError::Unverified(why) if why == "only looking"), "{error}");
    // The VM replays what it made for that connection and nonce.
    *vm.handler.0.lie.lock().unwrap() = seen.pop();
    let error = world.bind(&vm).await.unwrap_err();
    assert!(matches!(&error, BindError::Unverified(why) if why == "report data differs"), "{error}");
    assert_eq!(vm.binds_handled(), 0);
}

#[tokio::test]
async fn pod_vm_answers_a_challenge_before_it_gets_its_pod() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let mut seen = Vec::new();
    let ask = |message: &EvidenceMessage| {
        seen.push((check(message)?, message.activated.clone()));
        Ok(if message.activated.is_some() { Verdict::Trusted } else { Verdict::Challenge(b"abc".to_vec()) })
    };
    let bound = bind(vm.addr, INSTANCE, &world.credential(), &world.request(), ask, DEADLINE).await.unwrap();
    assert_eq!(seen, [(Verdict::Trusted, None), (Verdict::Trusted, Some(b"cba".to_vec()))]);
    // The same Bind, with and without a challenge, is the same.
    assert_eq!(world.bind(&vm).await.unwrap().pin, bound.pin);
    assert_eq!((vm.evidence_made(), vm.binds_handled()), (2, 1));
}

#[tokio::test]
async fn challenge_without_the_right_answer_ends_the_bind() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let challenge = || Ok(Verdict::Challenge(vec![1; 300]));
    let ask = |message: &EvidenceMessage| if message.activated.is_some() { Err("wrong".to_owned()) } else { challenge() };
    let again = |_: &EvidenceMessage| challenge();
    let unverified = |error| match error {
        BindError::Unverified(why) => why,
        other => panic!("{other}"),
    };
    let (credential, request) = (world.credential(), world.request());
    assert_eq!(unverified(bind(vm.addr, INSTANCE, &credential, &request, ask, DEADLINE).await.unwrap_err()), "wrong");
    let error = bind(vm.addr, INSTANCE, &credential, &request, again, DEADLINE).await.unwrap_err();
    assert_eq!(unverified(error), "a second challenge on one connection");
    let refuse = |code| *vm.handler.0.no_activation.lock().unwrap() = Some(Refusal::new(code, "unknown field `challenge`"));
    // What a guest says that takes Activate for a Bind.
    refuse(RefusalCode::BadRequest);
    let error = unverified(bind(vm.addr, INSTANCE, &credential, &request, again, DEADLINE).await.unwrap_err());
    assert!(error.contains("use a pod VM image of this node's release"), "{error}");
    refuse(RefusalCode::EvidenceFailed);
    assert_eq!(refusal(bind(vm.addr, INSTANCE, &credential, &request, again, DEADLINE).await.unwrap_err()), RefusalCode::EvidenceFailed);
    assert_eq!(vm.binds_handled(), 0);
    world.bind(&vm).await.unwrap();
}

#[tokio::test]
async fn relay_between_node_and_vm_cannot_pass_the_evidence_on() {
    // A machine in the middle that can speak TLS to both sides: the node sees the relay's key and exporter, the evidence the VM's.
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let relay = PodVm::boot(&world.ca).await;
    let from_vm = std::sync::Mutex::new(Vec::new());
    let look = |message: &EvidenceMessage| {
        *from_vm.lock().unwrap() = message.evidence.clone();
        Err(String::new())
    };
    bind(vm.addr, INSTANCE, &world.credential(), &world.request(), look, DEADLINE).await.unwrap_err();
    *relay.handler.0.lie.lock().unwrap() = Some(from_vm.into_inner().unwrap());
    assert!(matches!(world.bind(&relay).await.unwrap_err(), BindError::Unverified(_)));
}

#[tokio::test]
async fn client_without_certificate_is_refused_with_an_alert() {
    let world = World::new();
    let mut vm = PodVm::boot(&world.ca).await;
    for alpn in ["peerpods-bind/1", "peerpods-agent/1", "peerpods-forward/1"] {
        let error = world::raw::connect(vm.addr, alpn, None).await.unwrap_err();
        assert!(error.to_string().contains("CertificateRequired"), "{alpn}: {error}");
    }
    assert_eq!(vm.evidence_made(), 0);
    assert!(vm.streams.try_recv().is_err());
}

#[tokio::test]
async fn unknown_service_is_refused_with_an_alert() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    for (alpn, alert) in [("peerpods-bind/0", "NoApplicationProtocol"), ("h2", "NoApplicationProtocol"), ("", "AccessDenied")] {
        let error = world::raw::connect(vm.addr, alpn, Some(&world.credential())).await.unwrap_err();
        assert!(error.to_string().contains(alert), "{alpn}: {error}");
    }
}

#[tokio::test]
async fn agent_stream_is_refused_before_bind_and_to_unlisted_keys() {
    let world = World::new();
    let mut vm = PodVm::boot(&world.ca).await;
    let vm_pin = {
        let mut pin = None;
        let look = |_: &EvidenceMessage| Err(String::new());
        bind(vm.addr, INSTANCE, &world.credential(), &world.request(), look, DEADLINE).await.unwrap_err();
        pin.get_or_insert(world::raw::pin_of(vm.addr, &world.credential()).await).to_owned()
    };
    let dial = |key: &NodeKey, pin| AgentDialer::new(vm.addr, key.clone(), pin, ResumeOptions::default());
    let error = dial(&world.key, vm_pin).connect().await.unwrap_err();
    assert!(matches!(error, DialError::Refused(_)), "{error}");
    let bound = world.bind(&vm).await.unwrap();
    assert_eq!(bound.pin, vm_pin);
    let error = dial(&NodeKey::generate().unwrap(), bound.pin).connect().await.unwrap_err();
    assert!(matches!(error, DialError::Refused(_)), "{error}");
    let error = dial(&world.key, Pin([0; 32])).connect().await.unwrap_err();
    assert!(matches!(error, DialError::WrongKey { .. }), "{error}");
    assert!(vm.streams.try_recv().is_err());
    dial(&world.key, bound.pin).connect().await.unwrap();
}

#[tokio::test]
async fn oversize_and_malformed_messages_are_refused_in_words() {
    let world = World::new();
    let vm = PodVm::boot(&world.ca).await;
    let say = async |length: u32, body: &[u8]| {
        let mut stream = world::raw::connect(vm.addr, "peerpods-bind/1", Some(&world.credential())).await.unwrap();
        stream.write_all(&length.to_be_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        world::raw::read_answer(&mut stream).await
    };
    assert!(say(u32::MAX, b"").await.contains("bad-request"));
    assert!(say(4, b"null").await.contains("bad-request"));
    let later = br#"{"version":9,"nonce":"x"}"#;
    assert!(say(u32::try_from(later.len()).unwrap(), later).await.contains("unsupported-version"));
    assert_eq!(vm.evidence_made(), 0);

    let mut request = world.request();
    request.initdata = Some("x".repeat(2 << 20));
    let error = bind(vm.addr, INSTANCE, &world.credential(), &request, check, DEADLINE).await.unwrap_err();
    assert_eq!(refusal(error), RefusalCode::BadRequest);
    let mut request = world.request();
    request.agent_keys = vec!["zz".to_owned()];
    let error = bind(vm.addr, INSTANCE, &world.credential(), &request, check, DEADLINE).await.unwrap_err();
    assert_eq!(refusal(error), RefusalCode::BadRequest);
    // None of this has spent the VM.
    world.bind(&vm).await.unwrap();
}

#[tokio::test]
async fn flood_of_handshakes_is_cut_and_a_patient_node_gets_through() {
    let world = World::new();
    let limits = GuestLimits { handshakes_per_sec: 5, handshake_burst: 5, concurrent: 4, ..GuestLimits::default() };
    let vm = PodVm::boot_with(&world.ca, limits, ResumeOptions::default()).await;
    // Silent connections fill the slots, loud ones empty the bucket.
    let mut flood = Vec::new();
    for _ in 0..50 {
        flood.push(tokio::net::TcpStream::connect(vm.addr).await.unwrap());
    }
    let mut dropped = 0;
    for stream in &mut flood {
        let read = tokio::time::timeout(Duration::from_millis(50), stream.read_u8()).await;
        dropped += usize::from(read.is_ok());
    }
    assert!(dropped >= 45, "only {dropped} of 50 were dropped");
    assert_eq!(vm.evidence_made(), 0);
    drop(flood);
    world.bind(&vm).await.unwrap();
}
