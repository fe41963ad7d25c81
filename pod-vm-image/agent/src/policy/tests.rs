//! What policies allow: requests as shims send them, changed one part at a time.

use peerpods_protos::agent::{
    CopyFileRequest, CreateContainerRequest, ExecProcessRequest, RemoveContainerRequest, SharedMount, Storage, StringUser,
    WriteStreamRequest,
};
use peerpods_protos::oci;
use proptest::prelude::*;
use protobuf::{Message as _, MessageField};

use super::*;

const SAMPLE: &str = include_str!("tests/sample.rego");

fn sample() -> AgentPolicy {
    AgentPolicy::parse(SAMPLE).unwrap()
}

fn rules(text: &str) -> AgentPolicy {
    AgentPolicy::parse(&format!("package agent_policy\n{text}")).unwrap()
}

fn ask(policy: &AgentPolicy, request: &dyn MessageDyn) -> Result<(), Denied> {
    policy.check(request.descriptor_dyn().name(), &input::of(request).unwrap())
}

/// Messages that the agent's service takes, by name, and what else is put to a policy.
fn request_names() -> Vec<String> {
    let file = peerpods_protos::agent::file_descriptor();
    let service = &file.proto().service[0];
    let messages = service.method.iter().map(|method| method.input_type().rsplit('.').next().unwrap());
    messages.chain([PORT_FORWARD]).map(str::to_owned).collect()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// The second container of the sample, exactly as it says.
fn server() -> CreateContainerRequest {
    let process = oci::Process {
        User: MessageField::some(oci::User { UID: 1000, ..Default::default() }),
        Args: texts(&["/bin/server", "--port", "8080"]),
        Env: texts(&["PATH=/usr/bin:/bin", "MODE=production", "SERVER_PORT=443"]),
        Cwd: "/srv".into(),
        ..Default::default()
    };
    let mount = oci::Mount {
        destination: "/etc/hosts".into(),
        source: "/run/kata-containers/shared/containers/abc-0123456789abcdef-hosts".into(),
        type_: "bind".into(),
        options: texts(&["rbind", "ro"]),
        ..Default::default()
    };
    let linux = oci::Linux { Resources: MessageField::some(oci::LinuxResources::new()), ..Default::default() };
    let annotations = [("io.kubernetes.cri.container-type", "container"), ("io.kubernetes.cri.container-name", "server")];
    let spec = oci::Spec {
        Version: "1.1.0".into(),
        Process: MessageField::some(process),
        Root: MessageField::some(oci::Root { Path: "/run/kata-containers/abc/rootfs".into(), ..Default::default() }),
        Mounts: vec![mount],
        Annotations: annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        Linux: MessageField::some(linux),
        ..Default::default()
    };
    let root = Storage {
        driver: "image_guest_pull".into(),
        source: "registry.example/server@sha256:0a1b".into(),
        fstype: "overlay".into(),
        ..Default::default()
    };
    CreateContainerRequest { container_id: "abc".into(), storages: vec![root], OCI: MessageField::some(spec), ..Default::default() }
}

fn exec(container: &str, args: &[&str]) -> ExecProcessRequest {
    let process = oci::Process { Args: texts(args), ..Default::default() };
    ExecProcessRequest { container_id: container.into(), process: MessageField::some(process), ..Default::default() }
}

#[test]
fn built_in_default_allows_every_request() {
    let policy = AgentPolicy::built_in_default().unwrap();
    for name in request_names() {
        assert_eq!(policy.check(&name, &json!({})), Ok(()), "{name}");
    }
    assert!(matches!(policy.check("OtherRequest", &json!({})), Err(Denied::Undefined { .. })));
}

#[test]
fn strict_default_denies_what_reaches_into_containers() {
    let policy = AgentPolicy::strict_default().unwrap();
    let denied = ["CopyFileRequest", "ExecProcessRequest", PORT_FORWARD, "SetPolicyRequest", "WriteStreamRequest"];
    for name in request_names() {
        assert_eq!(policy.check(&name, &json!({})).is_err(), denied.contains(&name.as_str()), "{name}");
    }
    assert!(ask(&policy, &exec("abc", &["sh"])).is_err());
    assert!(ask(&policy, &WriteStreamRequest { data: b"input".to_vec(), ..Default::default() }).is_err());
    assert_eq!(ask(&policy, &server()), Ok(()));
}

#[test]
fn strict_default_lets_the_kubelets_own_files_in() {
    let policy = AgentPolicy::strict_default().unwrap();
    let copy = |name: &str, mode: u32, data: &str| {
        let path = format!("/run/kata-containers/shared/containers/{}-0123456789abcdef-{name}", "a".repeat(64));
        let request = CopyFileRequest { path, file_mode: mode, data: data.as_bytes().to_vec(), ..Default::default() };
        ask(&policy, &request).is_ok()
    };
    let (file, folder, link, whiteout) = (0o100_644, 0o040_755, 0o120_777, 0o020_000);
    for name in ["hosts", "hostname", "resolv.conf", "termination-log", "serviceaccount/..2026_01_01/token"] {
        assert!(copy(name, file, "anything"), "{name}");
    }
    assert!(copy("serviceaccount", folder, "") && copy("serviceaccount/..2026_01_01", folder, ""));
    assert!(copy("serviceaccount/..data", link, "..2026_01_01") && copy("serviceaccount/token", whiteout, ""));
    for name in
        ["config/app.conf", "hosts/x", "xhosts", "resolv_conf", "serviceaccount/../x", "serviceaccounts/x", "hosts\n", "serviceaccount/"]
    {
        assert!(!copy(name, file, ""), "{name:?}");
    }
    assert!(!copy("hosts", link, "..data") && !copy("hosts", folder, ""));
    assert!(!copy("serviceaccount/..data", link, "../x") && !copy("serviceaccount/..data", link, "/etc/shadow"));
    let other = CopyFileRequest { path: "/run/kata-containers/shared/containers/hosts".into(), file_mode: file, ..Default::default() };
    assert!(ask(&policy, &other).is_err());
}

type Change = fn(&mut CreateContainerRequest);

#[test]
fn container_is_allowed_exactly_as_specified() {
    assert_eq!(ask(&sample(), &server()), Ok(()));
    let changes: [(&str, Change); 13] = [
        ("argument", |request| request.OCI.as_mut().unwrap().Process.as_mut().unwrap().Args[2] = "8081".into()),
        ("more arguments", |request| request.OCI.as_mut().unwrap().Process.as_mut().unwrap().Args.push("--debug".into())),
        ("variable", |request| request.OCI.as_mut().unwrap().Process.as_mut().unwrap().Env[1] = "MODE=debug".into()),
        ("port", |request| request.OCI.as_mut().unwrap().Process.as_mut().unwrap().Env[2] = "SERVER_PORT=x".into()),
        ("user", |request| request.OCI.as_mut().unwrap().Process.as_mut().unwrap().User.as_mut().unwrap().UID = 0),
        ("image", |request| request.storages[0].source = "registry.example/server@sha256:0a1c".into()),
        ("storage", |request| request.storages.push(Storage::new())),
        ("mount's source", |request| request.OCI.as_mut().unwrap().Mounts[0].source = "/etc/hosts".into()),
        ("mounts", |request| request.OCI.as_mut().unwrap().Mounts.push(oci::Mount::new())),
        ("annotation", |request| drop(request.OCI.as_mut().unwrap().Annotations.insert("other".into(), String::new()))),
        ("hooks", |request| request.OCI.as_mut().unwrap().Hooks = MessageField::some(oci::Hooks::new())),
        ("user by name", |request| request.string_user = MessageField::some(StringUser::new())),
        ("shared mount", |request| request.shared_mounts.push(SharedMount::new())),
    ];
    for (change, make) in changes {
        let mut request = server();
        make(&mut request);
        assert!(matches!(ask(&sample(), &request), Err(Denied::Refused { .. })), "{change}");
    }
    assert!(ask(&sample(), &CreateContainerRequest::new()).is_err());
}

#[test]
fn policy_remembers_its_containers() {
    let policy = sample();
    let probe = exec("abc", &["/bin/probe", "--live"]);
    assert!(ask(&policy, &probe).is_err(), "before the container");
    assert_eq!(ask(&policy, &server()), Ok(()));
    assert_eq!(ask(&policy, &server()), Ok(()), "again");
    assert_eq!(ask(&policy.clone(), &probe), Ok(()));
    assert!(ask(&policy, &exec("abc", &["/bin/sh"])).is_err());
    assert!(ask(&policy, &exec("def", &["/bin/probe", "--live"])).is_err());
    let removal = RemoveContainerRequest { container_id: "abc".into(), ..Default::default() };
    assert_eq!(ask(&policy, &removal), Ok(()));
    assert!(ask(&policy, &probe).is_err(), "after the container");
    assert!(matches!(ask(&policy, &removal), Err(Denied::State { source: StateError::NoSuchPath(_), .. })));
}

#[test]
fn state_changes_only_with_an_allowed_request() {
    let add =
        |allowed: bool| format!("{{\"allowed\": {allowed}, \"ops\": [{{\"op\": \"add\", \"path\": \"/pstate/seen\", \"value\": true}}]}}");
    let rego = format!("A := {}\nB := {}\nSeen := data.pstate.seen\nC := {{\"allowed\": true, \"ops\": null}}", add(false), add(true));
    let policy = rules(&rego);
    assert!(matches!(policy.check("A", &json!({})), Err(Denied::Refused { .. })));
    assert!(matches!(policy.check("Seen", &json!({})), Err(Denied::Undefined { .. })));
    assert_eq!(policy.check("B", &json!({})), Ok(()));
    assert_eq!(policy.check("C", &json!({})), Ok(()));
    assert_eq!(policy.check("Seen", &json!({})), Ok(()));
}

#[test]
fn denial_names_the_rule_and_tells_the_last_prints() {
    let rego = "default ExecProcessRequest := false\nExecProcessRequest if { print(\"first\", input.long); print(\"last\"); false }";
    let denied = rules(rego).check("ExecProcessRequest", &json!({"long": "ä".repeat(5000)})).unwrap_err();
    let text = denied.to_string();
    assert!(text.starts_with("ExecProcessRequest is blocked by policy: rule ExecProcessRequest does not allow it: "), "{text}");
    assert!(text.ends_with("last") && text.len() < MAX_PRINTS_BYTES + 100, "{text}");
    let denied = rules("A := true").check("ExecProcessRequest", &json!({})).unwrap_err();
    assert!(denied.to_string().contains("rule ExecProcessRequest is missing"), "{denied}");
    let denied = rules("A := true").check("A.B\"]", &json!({})).unwrap_err();
    assert!(matches!(denied, Denied::Undefined { .. }), "{denied}");
}

/// genpolicy writes no such rule.
#[tokio::test]
async fn ports_are_forwarded_only_by_a_rule_that_says_so() {
    let denied = sample().ask(PORT_FORWARD, json!({"port": 8080})).await.unwrap_err();
    assert!(denied.to_string().contains("rule PortForwardRequest is missing"), "{denied}");
    let one = rules("default PortForwardRequest := false\nPortForwardRequest if input.port == 8080");
    assert_eq!(one.ask(PORT_FORWARD, json!({"port": 8080})).await, Ok(()));
    assert!(matches!(one.ask(PORT_FORWARD, json!({"port": 8081})).await, Err(Denied::Refused { .. })));
}

#[test]
fn clear_denials_are_told_from_broken_rules() {
    let policy = rules("default No := false\nConflict := true if input.a\nConflict := false if input.b\nText := \"true\"");
    let is_clear = |name: &str| policy.check(name, &json!({"a": true, "b": true})).unwrap_err().is_clear();
    assert!(is_clear("No") && is_clear("Missing"));
    assert!(!is_clear("Conflict") && !is_clear("Text"));
}

#[test]
fn what_is_no_clear_yes_is_a_denial() {
    let policy = rules(
        "default AllowRequestsFailingPolicy := true\nText := \"true\"\nNumber := 1\nList := [true]\nEmpty := {}\nNull := null\n\
         Odd := {\"allowed\": \"true\"}\nBad := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/x\", \"value\": 1}]}\n\
         Conflict := true if input.a\nConflict := false if input.b\nUndefined if input.none",
    );
    for name in ["Text", "Number", "List", "Empty", "Null", "Odd", "Bad", "Conflict", "Undefined", "Missing"] {
        assert!(policy.check(name, &json!({"a": true, "b": true})).is_err(), "{name}");
    }
    assert_eq!(policy.check("Conflict", &json!({"a": true})), Ok(()), "after an error");
}

#[test]
fn evaluation_ends_in_time() {
    let rego =
        "package agent_policy\nSlow if { some i in numbers.range(1, 3000); some j in numbers.range(1, 3000); i * j == -1 }\nFast := true";
    let policy = AgentPolicy::new(Evaluator::parse(rego, Duration::from_millis(50)).unwrap());
    assert!(matches!(policy.check("Slow", &json!({})), Err(Denied::Evaluation { .. })));
    assert_eq!(policy.check("Fast", &json!({})), Ok(()));
}

#[test]
fn replacement_is_the_policys_own_decision() {
    let open = "package agent_policy\ndefault SetPolicyRequest := true";
    let closed = "package agent_policy\ndefault SetPolicyRequest := false\ndefault A := true";
    let policy = AgentPolicy::parse(open).unwrap();
    assert!(matches!(policy.replace("package other"), Err(ReplaceError::Policy(PolicyError::Package(_)))));
    policy.clone().replace(closed).unwrap();
    assert_eq!(policy.check("A", &json!({})), Ok(()));
    assert!(matches!(policy.replace(open), Err(ReplaceError::Denied(Denied::Refused { .. }))));
    assert!(matches!(sample().replace(open), Err(ReplaceError::Denied(_))));
}

#[test]
fn texts_that_are_no_policies_are_refused() {
    let compile = |text: &str| match AgentPolicy::parse(text).unwrap_err() {
        PolicyError::Compile(reason) => reason,
        other => panic!("{other}"),
    };
    assert_eq!(AgentPolicy::parse(&" ".repeat(MAX_POLICY_BYTES + 1)).unwrap_err(), PolicyError::TooLong(MAX_POLICY_BYTES + 1));
    assert_eq!(AgentPolicy::parse("package coco_policy\nA := true").unwrap_err(), PolicyError::Package("coco_policy".into()));
    assert_eq!(AgentPolicy::parse("package agent_policy.more").unwrap_err(), PolicyError::Package("agent_policy.more".into()));
    let reason = compile("package agent_policy\n\ndefault A := true\nB := := 1\n");
    assert!(reason.contains("policy.rego:4"), "{reason}");
    assert!(compile("package agent_policy\nA if { x == 1 }").contains("policy.rego:2"));
    for text in ["", "\0", "package", "{\"allow\": true}", "package agent_policy\nA := \"\n", &format!("package {}", "x".repeat(70_000))] {
        assert!(compile(text).len() <= MAX_REASON_BYTES);
    }
}

#[test]
fn nested_policies_need_no_more_stack_than_there_is() {
    for (open, close) in [("(", ")"), ("[", "]"), ("{", "}"), ("{1: ", "}"), ("{x | x := ", "}"), ("f(", ")")] {
        let nested = |count: usize| format!("package agent_policy\nf(x) := x\nA := {}1{}", open.repeat(count), close.repeat(count));
        assert_eq!(AgentPolicy::parse(&nested(1000)).unwrap_err(), PolicyError::TooDeep(3), "{open}");
        let _ = AgentPolicy::parse(&nested(if open.ends_with('(') { 15 } else { 8 })).map(|policy| policy.check("A", &json!({})));
    }
    for (before, after) in
        [("- ", ""), ("", " + 1"), ("", "[0]"), ("", " | {1}"), ("", ".a"), ("", " in [1]"), ("", " == 1"), ("not ", ""), ("", ":=a")]
    {
        let chain = |count: usize| format!("package agent_policy\nA := {}a{}", before.repeat(count), after.repeat(count));
        assert_eq!(AgentPolicy::parse(&chain(1000)).unwrap_err(), PolicyError::TooDeep(2), "{before}{after}");
        for count in [60, 90, 180, 380] {
            let _ = AgentPolicy::parse(&chain(count)).map(|policy| policy.check("A", &json!({})));
        }
    }
}

#[tokio::test]
async fn messages_are_judged_as_they_come() {
    let policy = rules("default WriteStreamRequest := false\nWriteStreamRequest if input.data == [104, 105]");
    policy.permit(&WriteStreamRequest { data: b"hi".to_vec(), ..Default::default() }).await.unwrap();
    let denied = policy.permit(&WriteStreamRequest { data: vec![0; 1 << 20], ..Default::default() }).await.unwrap_err();
    assert!(matches!(denied, Denied::Input { source: InputError::TooLong(_), .. }));
}

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    let member = prop_oneof![".{0,6}", "OCI|Process|Args|Env|Mounts|storages|path|file_type|symlink_target|container_id|data"];
    leaf.prop_recursive(5, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map(member.clone(), inner, 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_input_has_a_decision(name in prop_oneof![".{0,20}", "(CreateContainer|ExecProcess|CopyFile|RemoveContainer)Request"], input in documents()) {
        for policy in [AgentPolicy::built_in_default(), AgentPolicy::strict_default(), AgentPolicy::parse(SAMPLE)] {
            let _ = policy.unwrap().check(&name, &input);
        }
    }

    #[test]
    fn any_message_has_a_decision(position in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = server().write_to_bytes().unwrap();
        let position = position.index(bytes.len());
        bytes[position] = byte;
        if let Ok(request) = CreateContainerRequest::parse_from_bytes(&bytes) {
            let _ = ask(&sample(), &request);
        }
    }

    #[test]
    fn any_text_is_a_policy_or_not(start in any::<prop::sample::Index>(), cut in 0_usize..80, text in "[ -~\n]{0,40}") {
        let start = SAMPLE.floor_char_boundary(start.index(SAMPLE.len()));
        let end = SAMPLE.floor_char_boundary((start + cut).min(SAMPLE.len()));
        let _ = AgentPolicy::parse(&format!("{}{text}{}", &SAMPLE[..start], &SAMPLE[end..]));
        let _ = AgentPolicy::parse(&text);
    }
}
