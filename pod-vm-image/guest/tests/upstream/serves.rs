//! A pod that is served.

use std::time::Duration;

use peerpods_protos::agent::{CreateContainerRequest, CreateSandboxRequest, ExecProcessRequest};
use peerpods_protos::agent_ttrpc::AgentServiceClient;
use peerpods_protos::health::CheckRequest;
use peerpods_protos::health_ttrpc::HealthClient;
use peerpods_protos::oci::{Linux, LinuxNamespace, Process, Spec, User};
use protobuf::{Message, MessageField};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use ttrpc::r#async::Client;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::with_duration;

use crate::stand_in::{NAMES, RESOURCE};
use crate::world::{Machine, inside};

const CALL: Duration = Duration::from_secs(20);
const POLICY: &str = "package agent_policy\ndefault CreateContainerRequest := true\nAllowTeeKeypair := true\n";

fn initdata() -> String {
    format!(
        "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"http://kbs\"\n'''\n\
         \"cdh.toml\" = '''\n[kbc]\nname = \"cc_kbc\"\nurl = \"http://kbs\"\n'''\n\"policy.rego\" = '''\n{POLICY}'''\n"
    )
}

pub(crate) fn programs_are_started_in_order_with_upstreams_sockets_and_files() {
    let mut machine = Machine::boot(&[]);
    let initdata = initdata();
    machine.bind(Some(&initdata)).expect("bound");
    machine.wait_for("peerpods: bound ");
    let events = machine.seen.iter().filter_map(|line| line.strip_prefix("peerpods: ")?.split(' ').next());
    let events: Vec<&str> = events.skip_while(|event| *event != "bind").collect();
    assert_eq!(events, ["bind", "attestation-agent", "confidential-data-hub", "api-server-rest", "kata-agent", "bound"]);

    let args = |name: &str| machine.told(name)["args"].to_string();
    assert_eq!(
        args("attestation-agent"),
        r#"["--attestation_sock","unix:///run/confidential-containers/attestation-agent/attestation-agent.sock","-c","/run/confidential-containers/initdata/aa.toml"]"#
    );
    assert_eq!(args("confidential-data-hub"), r#"["-c","/run/confidential-containers/initdata/cdh.toml"]"#);
    assert_eq!(args("api-server-rest"), r#"["--features","all"]"#, "the policy allows it");
    assert_eq!(args("kata-agent"), r#"["--config","/run/peerpods/upstream/agent.toml"]"#);
    let environment = machine.told("confidential-data-hub")["environment"].clone();
    let ocicrypt = std::fs::read(machine.path(environment["OCICRYPT_KEYPROVIDER_CONFIG"].as_str().expect("set"))).expect("file");
    let ocicrypt: serde_json::Value = serde_json::from_slice(&ocicrypt).expect("JSON");
    assert_eq!(ocicrypt["key-providers"]["attestation-agent"]["ttrpc"], "unix:///run/confidential-containers/cdh.sock");

    let read = |path: &str| std::fs::read_to_string(machine.path(path)).expect(path);
    assert_eq!(read("/run/confidential-containers/initdata/initdata.toml"), initdata);
    assert_eq!(read("/run/confidential-containers/initdata/aa.toml"), "[token_configs.kbs]\nurl = \"http://kbs\"\n");
    assert_eq!(read("/run/peerpods/upstream/policy.rego"), POLICY);

    let network = |name: &str| machine.told(name)["network"].clone();
    let own = std::fs::read_link(format!("/proc/{}/ns/net", machine.init())).expect("network").display().to_string();
    for name in NAMES {
        assert_eq!(network(name) == own, name != "api-server-rest", "{name}");
        assert_eq!(machine.told(name)["stdout"], "/dev/null", "{name}: the console is the host's");
    }
}

pub(crate) fn requests_reach_katas_agent_with_the_pods_network() {
    let mut machine = Machine::boot(&[]);
    let node = machine.bind(None).expect("bound");
    let mut create = CreateContainerRequest::new();
    create.container_id = "c1".to_owned();
    let namespaces = vec![LinuxNamespace { Type: "ipc".to_owned(), ..Default::default() }];
    let user = User { UID: 0x7fff_fff8, ..Default::default() };
    let process = Process { User: MessageField::some(user), ..Default::default() };
    let linux = Linux { Namespaces: namespaces, ..Default::default() };
    create.OCI = MessageField::some(Spec { Linux: MessageField::some(linux), Hostname: "web".to_owned(), ..Default::default() });
    let mut expected = create.clone();
    let network = LinuxNamespace { Type: "network".to_owned(), Path: "/run/peerpods/netns/pod".to_owned(), ..Default::default() };
    expected.OCI.as_mut().expect("spec").Linux.as_mut().expect("linux").Namespaces.push(network);

    let (version, refused) = node.run(|dialer| async move {
        let connect = async || Client::new(Socket::new(dialer.connect().await.expect("stream")));
        let (first, second) = (connect().await, connect().await);
        let agent = AgentServiceClient::new(first.clone());
        let mut sandbox = CreateSandboxRequest::new();
        sandbox.hostname = "web".to_owned();
        sandbox.dns = vec!["nameserver 10.96.0.10".to_owned()];
        agent.create_sandbox(with_duration(CALL), &sandbox).await.expect("sandbox");
        agent.create_container(with_duration(CALL), &create).await.expect("container");
        let exec = ExecProcessRequest { process: MessageField::some(process), ..Default::default() };
        let refused = agent.exec_process(with_duration(CALL), &exec).await.expect_err("refused").to_string();
        // Upstream's own socket would be gone since CreateSandbox; another stream and the first one work on.
        let third = connect().await;
        let mut versions = Vec::new();
        for client in [first, second, third] {
            let health = HealthClient::new(client);
            health.check(with_duration(CALL), &CheckRequest::new()).await.expect("health");
            versions.push(health.version(with_duration(CALL), &CheckRequest::new()).await.expect("version").agent_version);
        }
        (versions, refused)
    });
    assert_eq!(version, ["stand-in"; 3]);
    assert!(refused.contains("runAsUser"), "{refused}");
    let came = std::fs::read(machine.path("stand-in/CreateContainer")).expect("recorded");
    assert_eq!(CreateContainerRequest::parse_from_bytes(&came).expect("request"), expected);
    let came = std::fs::read(machine.path("stand-in/CreateSandbox")).expect("recorded");
    let came = CreateSandboxRequest::parse_from_bytes(&came).expect("request");
    assert_eq!((came.hostname.as_str(), came.dns.len()), ("web", 0));
}

pub(crate) fn resources_reach_the_pod_and_nobody_else() {
    let mut machine = Machine::boot(&[]);
    let node = machine.bind(None).expect("bound");
    assert_eq!(machine.told("api-server-rest")["args"].to_string(), r#"["--features","resource"]"#);
    let [rest] = machine.processes("api-server-rest")[..] else { panic!("one REST server") };
    let answer = inside(rest, || async {
        let mut stream = tokio::net::TcpStream::connect("127.0.0.1:8006").await.expect("connect");
        stream.write_all(b"GET /cdh/resource/default/key/1 HTTP/1.1\r\n\r\n").await.expect("ask");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("answer");
        answer
    });
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(RESOURCE), "{answer}");
    let forwarded = node.run(|dialer| async move { dialer.forward(8006).await.map(drop).map_err(|error| error.to_string()) });
    assert!(forwarded.is_err(), "the node gets nothing of it");
}
