//! Pods that are not served, or no longer.

use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use peerpods_protos::agent::DestroySandboxRequest;
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::with_duration;

use crate::stand_in::{CHILD, NAMES};
use crate::world::{LIMIT, Machine};

fn refused(machine: &mut Machine) -> String {
    match machine.bind(None) {
        Ok(_) => panic!("bound: {:#?}", machine.seen),
        Err(error) => error.to_string(),
    }
}

pub(crate) fn missing_program_ends_the_machine_before_it_is_bound() {
    for name in NAMES {
        let mut machine = Machine::boot_with(|root| std::fs::remove_file(root.join("usr/local/bin").join(name)).expect("remove"));
        machine.wait_for(&format!("the upstream profile needs /usr/local/bin/{name}: No such file"));
        assert_eq!(machine.end(), "peerpods: stopped: agent exited with code 1");
    }
}

pub(crate) fn marker_of_another_release_is_refused() {
    for (marker, why) in [("version = 2\n", "has version 2"), ("version = 1\nnew = 1\n", "parse /etc/peerpods/upstream.toml")] {
        let mut machine = Machine::boot_with(|root| std::fs::write(root.join("etc/peerpods/upstream.toml"), marker).expect("marker"));
        machine.wait_for(why);
        machine.end();
    }
}

pub(crate) fn program_that_does_not_answer_is_named_and_nothing_is_left() {
    let mut machine = Machine::boot(&[("attestation-agent", "has a child"), ("confidential-data-hub", "silent")]);
    let why = refused(&mut machine);
    assert!(why.contains("confidential-data-hub does not answer at /run/confidential-containers/cdh.sock within 10 s"), "{why}");
    let began = SystemTime::now();
    let left = || [NAMES[0], NAMES[1], CHILD].map(|name| machine.processes(name).len());
    while left() != [0; 3] {
        assert!(began.elapsed().unwrap_or_default() < LIMIT, "still there: {:?}", left());
        std::thread::yield_now();
    }
    kill(machine.init(), None).expect("the machine is there to say why");
    assert!(!machine.path("stand-in/kata-agent.json").exists(), "what comes after is not started");
}

pub(crate) fn program_that_exits_at_once_is_named_with_its_code() {
    for name in ["attestation-agent", "kata-agent"] {
        let mut machine = Machine::boot(&[(name, "exits with 3")]);
        let why = refused(&mut machine);
        assert!(why.contains(&format!("{name} exited with code 3")), "{why}");
        machine.wait_for(&format!("peerpods: {name}-exited 3 "));
    }
}

pub(crate) fn agent_without_policy_is_refused() {
    let mut machine = Machine::boot(&[("kata-agent", "has no policy")]);
    let why = refused(&mut machine);
    assert!(why.contains("without the feature agent-policy"), "{why}");
}

pub(crate) fn disk_with_initdata_does_not_replace_what_was_measured() {
    let mut machine = Machine::boot(&[("kata-agent", "has a disk")]);
    let why = refused(&mut machine);
    assert!(why.contains("kata-agent exited with code 1"), "{why}");
    assert!(!machine.path("run/confidential-containers/initdata/initdata.toml").exists());
}

pub(crate) fn program_that_dies_ends_the_machine_and_is_named() {
    for name in NAMES {
        let mut machine = Machine::boot(&[]);
        machine.bind(None).expect("bound");
        let [process] = machine.processes(name)[..] else { panic!("one {name}") };
        kill(process, Signal::SIGKILL).expect("kill");
        machine.wait_for(&format!("peerpods: {name}-killed 9 "));
        assert_eq!(machine.end(), "peerpods: stopped: agent exited with code 1");
    }
}

pub(crate) fn destroyed_sandbox_ends_the_machine() {
    let mut machine = Machine::boot(&[]);
    let node = machine.bind(None).expect("bound");
    node.run(|dialer| async move {
        let agent = AgentServiceClient::new(Client::new(Socket::new(dialer.connect().await.expect("stream"))));
        // The answer and the end race each other, as they do upstream.
        let _ = agent.destroy_sandbox(with_duration(Duration::from_secs(20)), &DestroySandboxRequest::new()).await;
    });
    machine.wait_for("peerpods: kata-agent-exited 0 ");
    machine.end();
}
