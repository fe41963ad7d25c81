//! From a pod's manifest to what its policy compares requests with.
//!
//! What the node decides, the policy allows by its form (addresses, generated names); what it cannot know and the manifest's owner must,
//! is an error that says how to state it. What is only unknown is a warning.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU16;

use serde_json::{Value, json};

use super::environment::{self, Environment};
use super::expand::{self, escaped};
use super::image::{ImageConfig, Reference};
use super::manifest::{Container, Workload};
use super::mounts::{self, Mounts};
use super::security;

/// What the command line adds to the manifest.
#[derive(Debug, Default)]
pub(crate) struct Additions {
    /// Image configurations by container.
    pub(crate) image_configs: BTreeMap<String, ImageConfig>,
    /// Further digests of images by container.
    pub(crate) digests: Vec<(String, String)>,
    /// Commands that may run beside the containers' own.
    pub(crate) exec: Vec<Vec<String>>,
    /// Variables that may have any value.
    pub(crate) any_value: BTreeSet<String>,
    /// Ports of the pod that the node may connect to.
    pub(crate) forwarded_ports: BTreeSet<NonZeroU16>,
    /// Whether the node may not see the containers' output.
    pub(crate) deny_output: bool,
}

/// Why there is no policy for a manifest.
#[derive(Debug, thiserror::Error)]
#[error("container {container}: {problem}; next: {next}")]
pub(crate) struct Unclear {
    container: String,
    problem: String,
    next: String,
}

/// The policy's data, and what its owner should know.
#[derive(Debug)]
pub(crate) struct PolicyData {
    /// `policy_data`.
    pub(crate) data: Value,
    /// Sentences.
    pub(crate) warnings: Vec<String>,
}

/// What images get that do not set it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A copied file or folder: the container, a number that tells mounts apart, and the last part of the mount's path.
const COPY: &str = "^/run/kata-containers/shared/containers/[0-9a-f]{64}-[0-9a-f]{16}-";
const ANNOTATIONS: &str = r"^(io\.kubernetes\.(cri|container|pod)\.|io\.katacontainers\.|nerdctl/|peerpods\.io/)";
/// How the kubelet ends containers and what runs in them: TERM, then KILL.
const SIGNALS: [u32; 2] = [15, 9];
/// Devices that every container has, so that naming them asks for nothing.
const DEVICES: [(&str, &str, u32, u32); 7] = [
    ("/dev/console", "c", 5, 1),
    ("/dev/full", "c", 1, 7),
    ("/dev/null", "c", 1, 3),
    ("/dev/random", "c", 1, 8),
    ("/dev/tty", "c", 5, 0),
    ("/dev/urandom", "c", 1, 9),
    ("/dev/zero", "c", 1, 5),
];
/// Of bind mounts: they bind, and take rights away.
const MOUNT_OPTIONS: [&str; 14] = [
    "bind",
    "nodev",
    "noexec",
    "nosuid",
    "private",
    "rbind",
    "relatime",
    "ro",
    "rprivate",
    "rslave",
    "rw",
    "slave",
    "noatime",
    "nosymfollow",
];
/// As the kubelet asks for them in every container that does not want /proc unmasked.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const NAMESPACE: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";

/// Makes the data.
pub(crate) fn policy_data(workload: &Workload, additions: &Additions) -> Result<PolicyData, Unclear> {
    let spec = &workload.spec;
    let mut warnings = Vec::new();
    let mut containers = vec![sandbox(workload)];
    let (mut files, mut trees) = (BTreeSet::new(), BTreeSet::new());
    let all = || spec.init_containers.iter().chain(&spec.containers);
    for (name, _) in
        additions.digests.iter().map(|(name, digest)| (name, digest)).chain(additions.image_configs.keys().map(|name| (name, name)))
    {
        if all().all(|container| container.name != *name) {
            let known: Vec<&str> = all().map(|container| container.name.as_str()).collect();
            return Err(unclear(name, "it is not in the manifest", &format!("name one of {}", known.join(", "))));
        }
    }
    for container in all() {
        let (data, mounts) = self::container(workload, container, additions, &mut warnings)?;
        containers.push(data);
        files.extend(mounts.files);
        // A sub path is one file; what is a folder and what a file only the node knows.
        trees.extend(mounts.trees);
    }
    let pod = match (workload.is_template, escaped(&workload.name)) {
        (false, name) => format!("^{name}$"),
        (true, name) => format!("^{name}-[-a-z0-9]+$"),
    };
    let data = json!({
        "common": {
            "annotations": ANNOTATIONS,
            "copy": COPY,
            "devices": DEVICES,
            "env_patterns": environment::common_patterns(spec.enable_service_links),
            "kernel_mounts": {
                "/dev": ["tmpfs"],
                "/dev/mqueue": ["mqueue"],
                "/dev/pts": ["devpts"],
                "/dev/shm": ["tmpfs"],
                "/proc": ["proc"],
                "/sys": ["sysfs"],
                "/sys/fs/cgroup": ["cgroup", "cgroup2"],
            },
            "masked_paths": MASKED,
            "mount_options": MOUNT_OPTIONS,
            "namespace": workload.namespace.as_deref().map_or_else(|| format!("^{NAMESPACE}$"), |name| format!("^{}$", escaped(name))),
            "pod": pod,
            "read_only_paths": READ_ONLY,
            "signals": SIGNALS,
        },
        "allow_input": spec.containers.iter().any(|container| container.stdin),
        "allow_output": !additions.deny_output,
        "forwarded_ports": additions.forwarded_ports,
        "containers": containers,
        "copied_files": files,
        "copied_trees": trees,
        "share_processes": spec.share_process_namespace,
    });
    Ok(PolicyData { data, warnings })
}

/// The pause container, which the guest brings itself.
fn sandbox(workload: &Workload) -> Value {
    let mounts = mounts::of_sandbox();
    json!({
        "name": "sandbox",
        "image": "^pause$",
        "image_name": "^$",
        "OCI": {
            "Annotations": {"io.kubernetes.cri.container-type": "sandbox"},
            "Process": {"Args": ["/pause"], "Cwd": "/", "Env": [], "Terminal": false, "User": {}},
            "Root": {"Readonly": true},
        },
        "allow_escalation": true,
        "capabilities": security::DEFAULT_CAPABILITIES,
        "env_names": ["PATH"],
        "env_patterns": [format!("^{}$", escaped(DEFAULT_PATH)), "^PATH=/bin:/sbin:/usr/bin:/usr/sbin$"],
        "exec_commands": [],
        "mounts": mounts.mounts,
        "privileged": false,
        "seccomp": true,
        "signals": [],
        "storages": mounts.storages,
        "sysctls": security::sysctls(workload, true),
        "termination_log": "",
        "unmasked": true,
    })
}

fn container(
    workload: &Workload,
    container: &Container,
    additions: &Additions,
    warnings: &mut Vec<String>,
) -> Result<(Value, Mounts), Unclear> {
    let name = &container.name;
    let config = additions.image_configs.get(name);
    let unclear = |problem: &str, next: &str| unclear(name, problem, next);
    if !container.volume_devices.is_empty() {
        return Err(unclear("it wants a volume as a device, which pod VMs do not have", "mount the volume"));
    }
    let (image, image_name) = images(container, additions)?;
    let environment = Environment::of(workload, container, config, &additions.any_value)
        .map_err(|environment::Unclear { problem, next }| unclear(&problem, &next))?;
    let expanded = |words: &[String]| {
        let words = words.iter().map(|word| expand::text(&expand::expand(word, |name| environment.value(name))));
        let next = "have the program read the variable itself, from its environment";
        words.collect::<Option<Vec<String>>>().ok_or_else(|| unclear("its command has a variable whose value only the node knows", next))
    };
    let args = expanded(&command(container, config).ok_or_else(|| {
        let next = format!(
            "give --image-config {name}=FILE with what `skopeo inspect --config docker://{}` prints, or state command in the manifest",
            container.image
        );
        unclear("its command is the image's, which is not known", &next)
    })?)?;
    if config.is_none() {
        let known = "its working directory, user, environment and stop signal are taken to be the default";
        warnings.push(format!("container {name}: the image's configuration is not known, so {known}; --image-config {name}=FILE gives it"));
    }
    let hooks = [
        &container.liveness_probe,
        &container.readiness_probe,
        &container.startup_probe,
        &container.lifecycle.post_start,
        &container.lifecycle.pre_stop,
    ];
    let commands = hooks.iter().filter_map(|hook| hook.exec.as_ref()).map(|exec| expanded(&exec.command));
    let mut commands: BTreeSet<Vec<String>> = commands.collect::<Result<_, _>>()?;
    commands.extend(additions.exec.iter().cloned());
    let stop_signal = security::stop_signal(container, config).map_err(|name| {
        unclear(&format!("it is to be stopped by {name:?}, which is no signal"), "correct its stopSignal, or its image's")
    })?;
    let mounts =
        mounts::of(workload, container, config, &environment).map_err(|mounts::Unclear { problem, next }| unclear(&problem, next))?;
    let cwd = container.working_dir.clone().or_else(|| config.map(|config| config.working_dir.clone()));
    let cwd = cwd.filter(|cwd| !cwd.is_empty()).unwrap_or_else(|| "/".to_owned());
    let context = &container.security_context;
    let user = security::user(workload, container, config, warnings);
    let (mut required, mut patterns) = environment.rules();
    if environment.value("PATH").is_none() {
        patterns.push(format!("^{}$", escaped(DEFAULT_PATH)));
    }
    if container.tty {
        patterns.push("^TERM=xterm$".to_owned());
    }
    required.sort();
    let data = json!({
        "name": name,
        "image": image,
        "image_name": image_name,
        "OCI": {
            "Annotations": {
                "io.kubernetes.cri.container-name": name,
                "io.kubernetes.cri.container-type": "container",
                "io.kubernetes.cri.image-name": container.image,
            },
            "Process": {"Args": args, "Cwd": cwd, "Env": required, "Terminal": container.tty, "User": user},
            "Root": {"Readonly": context.read_only_root_filesystem},
        },
        "allow_escalation": context.allow_privilege_escalation != Some(false),
        "capabilities": security::capabilities(container),
        "env_names": environment.names(),
        "env_patterns": patterns,
        "exec_commands": commands,
        "mounts": mounts.mounts,
        "privileged": context.privileged,
        "seccomp": security::has_seccomp(workload, container),
        "signals": Vec::from_iter(stop_signal),
        "storages": mounts.storages,
        "sysctls": security::sysctls(workload, false),
        "termination_log": mounts::termination_log(container),
        "unmasked": security::is_unmasked(container),
    });
    Ok((data, mounts))
}

fn unclear(container: &str, problem: &str, next: &str) -> Unclear {
    Unclear { container: container.to_owned(), problem: problem.to_owned(), next: next.to_owned() }
}

/// What the VM pulls, and what the node may call it.
fn images(container: &Container, additions: &Additions) -> Result<(String, String), Unclear> {
    let (name, image) = (&container.name, &container.image);
    let reference = Reference::parse(image);
    let reference = reference.ok_or_else(|| unclear(name, &format!("{image:?} names no image"), "correct its image"))?;
    let given = additions.digests.iter().filter(|(of, _)| of == name).map(|(_, digest)| digest.clone());
    let digests: Vec<String> = reference.digest.iter().cloned().chain(given).collect();
    if digests.is_empty() {
        let next = format!(
            "pin it: `skopeo inspect --format '{{{{.Digest}}}}' docker://{image}` prints its digest, to be put behind it as @sha256:..., or into \
             --digest {name}=sha256:..."
        );
        return Err(unclear(name, &format!("image {image} has no digest, so the node would choose it"), &next));
    }
    Ok((reference.pinned(&digests), reference.named(&digests)))
}

/// Entry point and arguments by Kubernetes' rules; `None` if the image decides and is not known.
fn command(container: &Container, config: Option<&ImageConfig>) -> Option<Vec<String>> {
    let (command, args) =
        (container.command.as_ref().filter(|words| !words.is_empty()), container.args.as_ref().filter(|words| !words.is_empty()));
    let of = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
    let mut words = match (command, args) {
        (Some(command), args) => [command.clone(), args.cloned().unwrap_or_default()].concat(),
        (None, Some(args)) => [of(&config?.entrypoint), args.clone()].concat(),
        (None, None) => [of(&config?.entrypoint), of(&config?.cmd)].concat(),
    };
    words.shrink_to_fit();
    (!words.is_empty()).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> String {
        format!("sha256:{}", "0a".repeat(32))
    }

    fn data(container: &str, additions: &Additions) -> Result<PolicyData, Unclear> {
        let yaml = format!("kind: Pod\nmetadata: {{name: web}}\nspec:\n  containers:\n  - {{name: app, {container}}}\n");
        policy_data(&Workload::parse(&yaml).unwrap(), additions)
    }

    fn args(container: &str, additions: &Additions) -> Value {
        data(container, additions).unwrap().data["containers"][1]["OCI"]["Process"]["Args"].clone()
    }

    fn configured(json: &str) -> Additions {
        Additions { image_configs: BTreeMap::from([("app".to_owned(), ImageConfig::parse(json).unwrap())]), ..Additions::default() }
    }

    #[test]
    fn command_is_made_by_kubernetes_rules() {
        let image = format!("image: \"a@{}\"", digest());
        let with = configured(r#"{"config":{"Entrypoint":["/e"],"Cmd":["c"]}}"#);
        assert_eq!(args(&image, &with), json!(["/e", "c"]));
        assert_eq!(args(&format!("{image}, args: [x]"), &with), json!(["/e", "x"]));
        assert_eq!(args(&format!("{image}, command: [/x]"), &with), json!(["/x"]));
        assert_eq!(
            args(&format!("{image}, command: [/x], args: [$(A)], env: [{{name: A, value: b}}]"), &Additions::default()),
            json!(["/x", "b"])
        );
        let error = data(&format!("{image}, args: [x]"), &Additions::default()).unwrap_err().to_string();
        assert!(error.contains("--image-config app=FILE") && error.contains("skopeo inspect --config"), "{error}");
        let variable = "env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]";
        let error = data(&format!("{image}, command: [/x, $(A)], {variable}"), &Additions::default()).unwrap_err().to_string();
        assert!(error.contains("only the node knows"), "{error}");
    }

    #[test]
    fn images_without_digest_are_refused_unless_it_is_given() {
        let error = data("image: nginx, command: [/x]", &Additions::default()).unwrap_err().to_string();
        assert!(error.contains("{{.Digest}}' docker://nginx") && error.contains("--digest app="), "{error}");
        let additions = Additions { digests: vec![("app".to_owned(), digest())], ..Additions::default() };
        let data = data("image: nginx, command: [/x]", &additions).unwrap().data;
        assert!(data["containers"][1]["image"].as_str().unwrap().ends_with(&format!("@{}$", digest())));
        let other = Additions { digests: vec![("other".to_owned(), digest())], ..Additions::default() };
        let yaml = "kind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: app, image: a}]}";
        let error = policy_data(&Workload::parse(yaml).unwrap(), &other).unwrap_err().to_string();
        assert!(error.contains("name one of app"), "{error}");
    }

    #[test]
    fn user_is_the_manifests_or_the_images() {
        let image = format!("image: \"a@{}\", command: [/x]", digest());
        let user = |extra: &str, additions: &Additions| {
            let made = data(&format!("{image}{extra}"), additions).unwrap();
            (made.data["containers"][1]["OCI"]["Process"]["User"].clone(), made.warnings.len())
        };
        assert_eq!(user("", &configured(r#"{"config":{"User":"1000:7"}}"#)), (json!({"UID": 1000, "GID": 7}), 0));
        assert_eq!(user("", &configured("{}")), (json!({"UID": 0, "GID": 0}), 0));
        assert_eq!(user("", &configured(r#"{"config":{"User":"web"}}"#)), (json!({}), 1));
        assert_eq!(user(", securityContext: {runAsUser: 5}", &configured(r#"{"config":{"User":"1000:7"}}"#)), (json!({"UID": 5}), 0));
        assert_eq!(user("", &Additions::default()), (json!({}), 2));
    }

    #[test]
    fn capabilities_follow_the_manifest() {
        let set = |context: &str| {
            let image = format!("image: \"a@{}\", command: [/x]", digest());
            let made = data(&format!("{image}, securityContext: {context}"), &Additions::default()).unwrap();
            made.data["containers"][1]["capabilities"].clone()
        };
        assert_eq!(set("{}"), json!(security::DEFAULT_CAPABILITIES));
        assert_eq!(set("{capabilities: {drop: [ALL], add: [CAP_NET_ADMIN]}}"), json!(["NET_ADMIN"]));
        assert_eq!(set("{privileged: true}"), Value::Null);
        assert_eq!(set("{capabilities: {drop: [KILL]}}").as_array().unwrap().len(), 13);
    }
}
