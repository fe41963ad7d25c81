//! As much of Kubernetes' manifests as a policy depends on. Members that change what runs and are not understood are refused elsewhere;
//! all others say nothing to the VM.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A pod, or what pods are made from.
#[derive(Debug)]
pub(crate) struct Workload {
    /// Of the pod; its beginning when the pods' names are generated.
    pub(crate) name: String,
    /// Whether names of pods begin with `name` and go on.
    pub(crate) is_template: bool,
    /// As the manifest says; `None` leaves it to who applies it.
    pub(crate) namespace: Option<String>,
    /// Of the pod.
    pub(crate) metadata: Metadata,
    /// Of the pod.
    pub(crate) spec: PodSpec,
}

/// Why a manifest is of no use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    /// Not YAML.
    #[error("the manifest is not YAML: {0}")]
    Yaml(String),
    /// A member has another type.
    #[error("the manifest's {kind} is malformed")]
    Malformed {
        /// Which document.
        kind: String,
        /// What the member should be.
        #[source]
        source: serde_json::Error,
    },
    /// Not exactly one workload.
    #[error(
        "{found} pods or workloads in the manifest; next: give a manifest with one Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob"
    )]
    Count {
        /// How many.
        found: usize,
    },
    /// It has no name.
    #[error("the manifest's {0} has no metadata.name")]
    Nameless(String),
}

/// Metadata of an object.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Metadata {
    /// The object's name.
    pub(crate) name: Option<String>,
    /// What a generated name begins with.
    pub(crate) generate_name: Option<String>,
    /// Its namespace.
    pub(crate) namespace: Option<String>,
    /// Labels.
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// A pod's specification.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec {
    /// What runs.
    pub(crate) containers: Vec<Container>,
    /// What runs before, or beside.
    #[serde(default)]
    pub(crate) init_containers: Vec<Container>,
    /// Whether containers see each other's processes.
    #[serde(default)]
    pub(crate) share_process_namespace: bool,
    /// Set to false, no token is mounted.
    #[serde(default)]
    pub(crate) automount_service_account_token: Option<bool>,
    /// Whose token is mounted.
    #[serde(default)]
    pub(crate) service_account_name: Option<String>,
    /// For all containers.
    #[serde(default)]
    pub(crate) security_context: SecurityContext,
    /// What can be mounted.
    #[serde(default)]
    pub(crate) volumes: Vec<Volume>,
    /// Set to false, containers are not told of services in their environment.
    #[serde(default)]
    pub(crate) enable_service_links: Option<bool>,
}

/// A volume of a pod.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Volume {
    /// Its name in the pod.
    pub(crate) name: String,
    /// A folder that begins empty and that containers share.
    #[serde(default)]
    pub(crate) empty_dir: Option<EmptyDir>,
    /// One of all other kinds.
    #[serde(flatten)]
    pub(crate) other: BTreeMap<String, Value>,
}

/// Where an emptyDir is.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct EmptyDir {
    /// Empty is the disk.
    pub(crate) medium: String,
}

/// A container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Container {
    /// Its name in the pod.
    pub(crate) name: String,
    /// Its image.
    pub(crate) image: String,
    /// Replaces the image's entry point.
    pub(crate) command: Option<Vec<String>>,
    /// Replaces the image's command.
    pub(crate) args: Option<Vec<String>>,
    /// Replaces the image's working directory.
    pub(crate) working_dir: Option<String>,
    /// Environment variables.
    pub(crate) env: Vec<Variable>,
    /// Environment variables by the handful.
    pub(crate) env_from: Vec<Value>,
    /// What is mounted.
    pub(crate) volume_mounts: Vec<VolumeMount>,
    /// Devices of volumes.
    pub(crate) volume_devices: Vec<Value>,
    /// Rights.
    pub(crate) security_context: SecurityContext,
    /// A terminal.
    pub(crate) tty: bool,
    /// Standard input.
    pub(crate) stdin: bool,
    /// Where its last words go.
    pub(crate) termination_message_path: Option<String>,
    /// Checks.
    pub(crate) liveness_probe: Hook,
    /// Checks.
    pub(crate) readiness_probe: Hook,
    /// Checks.
    pub(crate) startup_probe: Hook,
    /// Hooks.
    pub(crate) lifecycle: Lifecycle,
}

/// An environment variable.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Variable {
    /// Its name.
    pub(crate) name: String,
    /// Its value.
    #[serde(default)]
    pub(crate) value: Option<String>,
    /// Where else its value comes from.
    #[serde(default)]
    pub(crate) value_from: Option<ValueFrom>,
}

/// Where a variable's value comes from; one is set.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ValueFrom {
    /// The pod itself.
    pub(crate) field_ref: Option<FieldRef>,
    /// Requests and limits.
    pub(crate) resource_field_ref: Option<Value>,
    /// A Secret.
    pub(crate) secret_key_ref: Option<Value>,
    /// A ConfigMap.
    pub(crate) config_map_key_ref: Option<Value>,
}

/// A member of the pod.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FieldRef {
    /// Such as `status.podIP`.
    pub(crate) field_path: String,
}

/// Where a volume is mounted.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeMount {
    /// The volume.
    pub(crate) name: String,
    /// In the container.
    pub(crate) mount_path: String,
    /// What of the volume; empty is all of it.
    #[serde(default)]
    pub(crate) sub_path: String,
    /// The same, with `$(NAME)` of the environment.
    #[serde(default)]
    pub(crate) sub_path_expr: Option<String>,
    /// Whether the container may not write to it.
    #[serde(default)]
    pub(crate) read_only: bool,
}

/// Rights of a pod or a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct SecurityContext {
    /// User.
    pub(crate) run_as_user: Option<u32>,
    /// Group.
    pub(crate) run_as_group: Option<u32>,
    /// Whether the root file system is read only.
    pub(crate) read_only_root_filesystem: bool,
    /// Everything is allowed.
    pub(crate) privileged: bool,
    /// Set to false, processes never gain rights.
    pub(crate) allow_privilege_escalation: Option<bool>,
    /// Which are added and dropped.
    pub(crate) capabilities: Capabilities,
    /// Which system calls are let through.
    pub(crate) seccomp_profile: Option<SeccompProfile>,
    /// How /proc is seen: Default or Unmasked.
    pub(crate) proc_mount: Option<String>,
    /// Kernel settings of the pod.
    pub(crate) sysctls: Vec<Sysctl>,
}

/// Which system calls are let through.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SeccompProfile {
    /// RuntimeDefault, Localhost or Unconfined.
    #[serde(rename = "type")]
    pub(crate) kind: String,
}

/// A kernel setting.
#[derive(Debug, Deserialize)]
pub(crate) struct Sysctl {
    /// With dots.
    pub(crate) name: String,
    /// As it is written.
    pub(crate) value: String,
}

/// Linux capabilities, without `CAP_`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Capabilities {
    /// Beside the default.
    pub(crate) add: Vec<String>,
    /// From the default.
    pub(crate) drop: Vec<String>,
}

/// A probe or a hook.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Hook {
    /// By a command in the container.
    pub(crate) exec: Option<Exec>,
}

/// A command.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Exec {
    /// With its arguments.
    pub(crate) command: Vec<String>,
}

/// Hooks of a container's life.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Lifecycle {
    /// After the start.
    pub(crate) post_start: Hook,
    /// Before the end.
    pub(crate) pre_stop: Hook,
    /// What ends it, in place of the image's.
    pub(crate) stop_signal: Option<String>,
}

/// Kinds that hold a pod's template, and where.
const TEMPLATES: [(&str, &str); 6] = [
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

#[derive(Deserialize)]
struct Pod {
    #[serde(default)]
    metadata: Metadata,
    spec: PodSpec,
}

impl Workload {
    /// Reads a manifest; documents of other kinds are passed over.
    pub(crate) fn parse(yaml: &str) -> Result<Self, ManifestError> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).map_err(|error| ManifestError::Yaml(error.to_string()))?;
        let mut found = Vec::new();
        for document in &documents {
            let kind = document["kind"].as_str().unwrap_or_default();
            if kind == "Pod" {
                found.push((kind, document.clone()));
            } else if let Some((_, path)) = TEMPLATES.iter().find(|(name, _)| *name == kind) {
                found.push((kind, document.pointer(path).cloned().unwrap_or_default()));
            }
        }
        let [(kind, pod)] = <[(&str, Value); 1]>::try_from(found).map_err(|found| ManifestError::Count { found: found.len() })?;
        let malformed = |source| ManifestError::Malformed { kind: kind.to_owned(), source };
        let pod: Pod = serde_json::from_value(without_nulls(pod)).map_err(malformed)?;
        let outer = documents.iter().find(|document| document["kind"] == kind).map(|document| &document["metadata"]);
        let outer: Metadata = serde_json::from_value(without_nulls(outer.cloned().unwrap_or_default())).map_err(malformed)?;
        let generated = outer.generate_name.is_some() && outer.name.is_none();
        let name = outer.name.or(outer.generate_name).ok_or_else(|| ManifestError::Nameless(kind.to_owned()))?;
        Ok(Self {
            name: name.trim_end_matches('-').to_owned(),
            is_template: kind != "Pod" || generated,
            namespace: outer.namespace.or_else(|| pod.metadata.namespace.clone()),
            metadata: pod.metadata,
            spec: pod.spec,
        })
    }
}

/// To Kubernetes null is the same as not there.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => Value::Object(
            members.into_iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name, without_nulls(value))).collect(),
        ),
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        Value::Null => Value::Object(serde_json::Map::new()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_templates_are_found_among_others() {
        let service = "kind: Service\nmetadata: {name: s}\n---\n";
        let pod = "kind: Pod\nmetadata:\n  name: web\n  namespace: shop\n  annotations:\nspec:\n  containers:\n  - name: a\n    image: i\n    args: [\"1\"]\n    env: null\n";
        let workload = Workload::parse(&format!("{service}{pod}")).unwrap();
        assert_eq!((workload.name.as_str(), workload.is_template, workload.namespace.as_deref()), ("web", false, Some("shop")));
        assert_eq!(workload.spec.containers[0].args.as_deref(), Some(&["1".to_owned()][..]));

        let job =
            "kind: CronJob\nmetadata: {name: j}\nspec: {jobTemplate: {spec: {template: {spec: {containers: [{name: a, image: i}]}}}}}\n";
        let workload = Workload::parse(job).unwrap();
        assert!(workload.is_template && workload.namespace.is_none());
        let generated = pod.replace("name: web", "generateName: web-");
        let workload = Workload::parse(&generated).unwrap();
        assert!(workload.is_template && workload.name == "web");
    }

    #[test]
    fn odd_manifests_are_refused() {
        let pod = "kind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: a, image: i}]}\n";
        assert!(matches!(Workload::parse("kind: Service"), Err(ManifestError::Count { found: 0 })));
        assert!(matches!(Workload::parse(&format!("{pod}---\n{pod}")), Err(ManifestError::Count { found: 2 })));
        assert!(matches!(Workload::parse("a: [1"), Err(ManifestError::Yaml(_))));
        assert!(matches!(Workload::parse(&pod.replace("{name: web}", "{}")), Err(ManifestError::Nameless(_))));
        let error = Workload::parse(&pod.replace("image: i", "image: i, args: x")).unwrap_err();
        assert!(matches!(error, ManifestError::Malformed { .. }));
    }
}
