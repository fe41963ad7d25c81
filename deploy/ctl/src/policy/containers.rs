//! From a pod's manifest to what its policy compares requests with.
//!
//! What the node decides, the policy allows by its form (addresses, generated names); what it cannot know and the manifest's owner must,
//! is an error that says how to state it. What is only unknown is a warning.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::environment::{self, Environment};
use super::expand::{self, escaped};
use super::image::{ImageConfig, Reference};
use super::manifest::{Container, Workload};

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

/// containerd's, which every container gets that asks for nothing else.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Mounted into every container.
const COMMON_MOUNTS: [&str; 4] = ["/dev/shm", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"];
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const TERMINATION_LOG: &str = "/dev/termination-log";
/// What images get that do not set it.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// A copied file or folder: the container, a number that tells mounts apart, and the last part of the mount's path.
const COPY: &str = "^/run/kata-containers/shared/containers/[0-9a-f]{64}-[0-9a-f]{16}-";
const ANNOTATIONS: &str = r"^(io\.kubernetes\.(cri|container|pod)\.|io\.katacontainers\.|nerdctl/)";
const NAMESPACE: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";

/// Makes the data.
pub(crate) fn policy_data(workload: &Workload, additions: &Additions) -> Result<PolicyData, Unclear> {
    let spec = &workload.spec;
    let mut warnings = Vec::new();
    let mut containers = vec![sandbox()];
    let mut exec = additions.exec.clone();
    let (mut files, mut trees) = (BTreeSet::from(["hostname".to_owned(), "hosts".to_owned(), escaped("resolv.conf")]), BTreeSet::new());
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
        let (data, commands) = self::container(workload, container, additions, &mut warnings)?;
        containers.push(data);
        exec.extend(commands);
        let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().map(escaped).unwrap_or_default();
        files.insert(last(container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG)));
        // A sub path is one file; what is a folder and what a file only the node knows.
        trees.extend(container.volume_mounts.iter().map(|mount| last(&mount.mount_path)));
    }
    if spec.automount_service_account_token != Some(false) {
        trees.insert(last_of_token());
    }
    exec.sort();
    exec.dedup();
    let pod = match (workload.is_template, escaped(&workload.name)) {
        (false, name) => format!("^{name}$"),
        (true, name) => format!("^{name}-[-a-z0-9]+$"),
    };
    let data = json!({
        "common": {
            "annotations": ANNOTATIONS,
            "copy": COPY,
            "env_patterns": environment::COMMON_PATTERNS,
            "kernel_mounts": ["/dev", "/dev/mqueue", "/dev/pts", "/dev/shm", "/proc", "/sys", "/sys/fs/cgroup"],
            "namespace": workload.namespace.as_deref().map_or_else(|| format!("^{NAMESPACE}$"), |name| format!("^{}$", escaped(name))),
            "pod": pod,
        },
        "allow_input": spec.containers.iter().any(|container| container.stdin),
        "allow_output": !additions.deny_output,
        "containers": containers,
        "copied_files": files,
        "copied_trees": trees,
        "exec_commands": exec,
        "share_processes": spec.share_process_namespace,
    });
    Ok(PolicyData { data, warnings })
}

fn last_of_token() -> String {
    TOKEN.rsplit('/').next().unwrap_or_default().to_owned()
}

/// The pause container, which the guest brings itself.
fn sandbox() -> Value {
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
        "capabilities": DEFAULT_CAPABILITIES,
        "env_patterns": [format!("^{}$", escaped(DEFAULT_PATH)), "^PATH=/bin:/sbin:/usr/bin:/usr/sbin$"],
        "mounts": COMMON_MOUNTS,
    })
}

fn container(
    workload: &Workload,
    container: &Container,
    additions: &Additions,
    warnings: &mut Vec<String>,
) -> Result<(Value, Vec<Vec<String>>), Unclear> {
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
        let known = "its working directory, user and environment are taken to be the default";
        warnings.push(format!("container {name}: the image's configuration is not known, so {known}; --image-config {name}=FILE gives it"));
    }
    let hooks = [
        &container.liveness_probe,
        &container.readiness_probe,
        &container.startup_probe,
        &container.lifecycle.post_start,
        &container.lifecycle.pre_stop,
    ];
    let commands = hooks.iter().filter_map(|hook| hook.exec.as_ref()).map(|exec| expanded(&exec.command)).collect::<Result<_, _>>()?;
    let cwd = container.working_dir.clone().or_else(|| config.map(|config| config.working_dir.clone()));
    let cwd = cwd.filter(|cwd| !cwd.is_empty()).unwrap_or_else(|| "/".to_owned());
    let context = &container.security_context;
    let user = user(workload, container, config, warnings);
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
        "capabilities": capabilities(container),
        "env_patterns": patterns,
        "mounts": mounts(workload, container, config),
    });
    Ok((data, commands))
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

/// Members of `User` that are known.
fn user(workload: &Workload, container: &Container, config: Option<&ImageConfig>, warnings: &mut Vec<String>) -> Value {
    let (own, pod) = (&container.security_context, &workload.spec.security_context);
    let image = config.map(|config| config.user.as_str());
    let (image_user, image_group) = match image.map(|user| user.split_once(':').unwrap_or((user, ""))) {
        Some(("", _)) => (Some(0), Some(0)),
        Some((user, group)) => (user.parse::<u32>().ok(), group.parse::<u32>().ok()),
        None => (None, None),
    };
    let uid = own.run_as_user.or(pod.run_as_user).or(image_user);
    let gid = own.run_as_group.or(pod.run_as_group).or(image_group.filter(|_| own.run_as_user.or(pod.run_as_user).is_none()));
    if uid.is_none() {
        let name = &container.name;
        warnings.push(format!("container {name}: the node decides as which user it runs; securityContext.runAsUser states it"));
    }
    let members = [("UID", uid), ("GID", gid)];
    Value::Object(members.into_iter().filter_map(|(name, id)| Some((name.to_owned(), json!(id?)))).collect())
}

/// Null is all of them.
fn capabilities(container: &Container) -> Value {
    let context = &container.security_context;
    let plain = |names: &[String]| names.iter().map(|name| name.trim_start_matches("CAP_").to_owned()).collect::<BTreeSet<_>>();
    let (add, drop) = (plain(&context.capabilities.add), plain(&context.capabilities.drop));
    if context.privileged || add.contains("ALL") {
        return Value::Null;
    }
    let kept = DEFAULT_CAPABILITIES.iter().filter(|name| !drop.contains("ALL") && !drop.contains(**name));
    let all: BTreeSet<String> = kept.map(|name| (*name).to_owned()).chain(add).collect();
    json!(all)
}

fn mounts(workload: &Workload, container: &Container, config: Option<&ImageConfig>) -> BTreeSet<String> {
    let mut mounts: BTreeSet<String> = COMMON_MOUNTS.iter().map(|path| (*path).to_owned()).collect();
    mounts.insert(container.termination_message_path.clone().unwrap_or_else(|| TERMINATION_LOG.to_owned()));
    if workload.spec.automount_service_account_token != Some(false) {
        mounts.insert(TOKEN.to_owned());
    }
    mounts.extend(container.volume_mounts.iter().map(|mount| mount.mount_path.clone()));
    mounts.extend(config.and_then(|config| config.volumes.as_ref()).into_iter().flat_map(|volumes| volumes.keys().cloned()));
    mounts
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
        assert_eq!(set("{}"), json!(DEFAULT_CAPABILITIES));
        assert_eq!(set("{capabilities: {drop: [ALL], add: [CAP_NET_ADMIN]}}"), json!(["NET_ADMIN"]));
        assert_eq!(set("{privileged: true}"), Value::Null);
        assert_eq!(set("{capabilities: {drop: [KILL]}}").as_array().unwrap().len(), 13);
    }
}
