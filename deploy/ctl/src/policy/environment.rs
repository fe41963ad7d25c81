//! A container's environment: what it must be, and the forms that what the node adds may have.

use std::collections::{BTreeMap, BTreeSet};

use super::expand::{self, Part, escaped};
use super::image::ImageConfig;
use super::manifest::{Container, ValueFrom, Variable, Workload};

/// Variables of one container by name.
#[derive(Debug)]
pub(crate) struct Environment {
    /// The last of a name decides, as in Kubernetes.
    variables: BTreeMap<String, Vec<Part>>,
}

/// A variable whose value nobody stated.
#[derive(Debug)]
pub(crate) struct Unclear {
    /// What is not known.
    pub(crate) problem: String,
    /// What to do.
    pub(crate) next: String,
}

/// What Kubernetes adds for each service, behind its name.
const SERVICE_PATTERNS: [&str; 5] = [
    "_SERVICE_HOST=[0-9a-f.:]+$",
    "_SERVICE_PORT(_[A-Z0-9_]+)?=[0-9]{1,5}$",
    r"_PORT=(tcp|udp|sctp)://[0-9a-f.:\[\]]+$",
    r"_PORT_[0-9]{1,5}_(TCP|UDP|SCTP)=(tcp|udp|sctp)://[0-9a-f.:\[\]]+$",
    "_PORT_[0-9]{1,5}_(TCP|UDP|SCTP)_(PROTO=(tcp|udp|sctp)|PORT=[0-9]{1,5}|ADDR=[0-9a-f.:]+)$",
];
const HOSTNAME: &str = "^HOSTNAME=[a-z0-9]([-.a-z0-9]*[a-z0-9])?$";

const ADDRESS: &str = "[0-9a-f.:]+";
const ADDRESSES: &str = "[0-9a-f.:,]+";
const NAME: &str = "[a-z0-9]([-.a-z0-9]*[a-z0-9])?";
const UID: &str = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}";
/// What the guest opens, and whose signature it checks.
const SEALED: &str = r"sealed\.[0-9A-Za-z_-]+\.[0-9A-Za-z_-]+\.[0-9A-Za-z_-]+";
const ANYTHING: &str = "(?s:.*)";

/// What the node may add under names that neither manifest nor image have. Without service links that is the API server alone.
pub(super) fn common_patterns(has_service_links: Option<bool>) -> Vec<String> {
    let service = if has_service_links == Some(false) { "KUBERNETES" } else { "[A-Z_][A-Z0-9_]*" };
    std::iter::once(HOSTNAME.to_owned()).chain(SERVICE_PATTERNS.iter().map(|form| format!("^{service}{form}"))).collect()
}

impl Environment {
    /// Of a container: the image's, and over it the manifest's.
    pub(crate) fn of(
        workload: &Workload,
        container: &Container,
        config: Option<&ImageConfig>,
        any_value: &BTreeSet<String>,
    ) -> Result<Self, Unclear> {
        if !container.env_from.is_empty() {
            return Err(Unclear {
                problem: "envFrom takes whatever variables the node says".to_owned(),
                next: "list them under env, each by its name".to_owned(),
            });
        }
        let mut own = Self { variables: BTreeMap::new() };
        for variable in &container.env {
            let value = own.stated(workload, variable, any_value)?;
            own.variables.insert(variable.name.clone(), value);
        }
        for variable in config.and_then(|config| config.env.as_ref()).into_iter().flatten() {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            own.variables.entry(name.to_owned()).or_insert_with(|| vec![Part::Text(value.to_owned())]);
        }
        for name in any_value {
            own.variables.entry(name.clone()).or_insert_with(|| vec![Part::Pattern(ANYTHING.to_owned())]);
        }
        Ok(own)
    }

    /// The value of a variable, as far as it is known.
    pub(crate) fn value(&self, name: &str) -> Option<Vec<Part>> {
        self.variables.get(name).cloned()
    }

    /// What manifest and image define, and the node may not define otherwise.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.variables.keys().map(String::as_str).collect()
    }

    /// Variables that must be there exactly so, and regular expressions for others.
    pub(crate) fn rules(&self) -> (Vec<String>, Vec<String>) {
        let (mut exact, mut patterns) = (Vec::new(), Vec::new());
        for (name, value) in &self.variables {
            match expand::text(value) {
                Some(text) => exact.push(format!("{name}={text}")),
                None => patterns.push(format!("^{}={}$", escaped(name), expand::pattern(value))),
            }
        }
        (exact, patterns)
    }

    fn stated(&self, workload: &Workload, variable: &Variable, any_value: &BTreeSet<String>) -> Result<Vec<Part>, Unclear> {
        if any_value.contains(&variable.name) {
            return Ok(vec![Part::Pattern(ANYTHING.to_owned())]);
        }
        match &variable.value_from {
            None => Ok(expand::expand(variable.value.as_deref().unwrap_or_default(), |name| self.value(name))),
            Some(from) => from_elsewhere(workload, &variable.name, from).map(|part| vec![part]),
        }
    }
}

fn from_elsewhere(workload: &Workload, name: &str, from: &ValueFrom) -> Result<Part, Unclear> {
    let pattern = |pattern: &str| Ok(Part::Pattern(pattern.to_owned()));
    let unclear = |problem: String, next: String| Err(Unclear { problem, next });
    let any = format!("or let the node choose it with --allow-env {name}");
    if from.secret_key_ref.is_some() {
        return pattern(SEALED);
    }
    if from.resource_field_ref.is_some() {
        return pattern("[0-9]+");
    }
    if from.config_map_key_ref.is_some() {
        let next = format!("state it as value in the manifest, {any}");
        return unclear(format!("variable {name} is a ConfigMap's, which the node chooses"), next);
    }
    let path = from.field_ref.as_ref().map_or("", |field| field.field_path.as_str());
    let of_map = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix("['")).and_then(|rest| rest.strip_suffix("']"));
    let metadata = &workload.metadata;
    let known = match path {
        "metadata.name" if !workload.is_template => Some(workload.name.as_str()),
        "metadata.name" => return pattern(&format!("{}-[-a-z0-9]+", escaped(&workload.name))),
        "metadata.namespace" if workload.namespace.is_some() => workload.namespace.as_deref(),
        "metadata.namespace" | "spec.nodeName" => return pattern(NAME),
        "metadata.uid" => return pattern(UID),
        "spec.serviceAccountName" => Some(workload.spec.service_account_name.as_deref().unwrap_or("default")),
        "status.podIP" | "status.hostIP" => return pattern(ADDRESS),
        "status.podIPs" | "status.hostIPs" => return pattern(ADDRESSES),
        _ => match (of_map("metadata.labels"), of_map("metadata.annotations")) {
            (Some(key), _) => metadata.labels.get(key).map(String::as_str),
            (_, Some(key)) => metadata.annotations.get(key).map(String::as_str),
            _ => None,
        },
    };
    match known {
        Some(known) => Ok(Part::Text(known.to_owned())),
        None => unclear(
            format!("variable {name} is {path:?} of the pod, which is not known"),
            format!("state it as value in the manifest, {any}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(env: &str, config: Option<&str>, any: &[&str]) -> Result<(Vec<String>, Vec<String>), Unclear> {
        let yaml =
            format!("kind: Pod\nmetadata: {{name: web, labels: {{app: shop}}}}\nspec:\n  containers:\n  - {{name: a, image: i, {env}}}\n");
        let workload = Workload::parse(&yaml).unwrap();
        let config = config.map(|json| ImageConfig::parse(json).unwrap());
        let any = any.iter().map(|name| (*name).to_owned()).collect();
        Environment::of(&workload, &workload.spec.containers[0], config.as_ref(), &any).map(|environment| environment.rules())
    }

    #[test]
    fn manifest_goes_over_image_and_is_expanded() {
        let config = r#"{"config":{"Env":["PATH=/bin","MODE=image"]}}"#;
        let (exact, patterns) =
            rules("env: [{name: MODE, value: prod}, {name: URL, value: \"http://$(MODE)\"}, {name: EMPTY}]", Some(config), &[]).unwrap();
        assert_eq!(exact, ["EMPTY=", "MODE=prod", "PATH=/bin", "URL=http://prod"]);
        assert!(patterns.is_empty());
    }

    #[test]
    fn without_service_links_only_the_api_server_is_told_of() {
        let all = common_patterns(None);
        assert_eq!(all, common_patterns(Some(true)));
        assert!(all.iter().any(|pattern| pattern == "^[A-Z_][A-Z0-9_]*_SERVICE_HOST=[0-9a-f.:]+$"), "{all:?}");
        let few = common_patterns(Some(false));
        assert!(few.len() == all.len() && few[1..].iter().all(|pattern| pattern.starts_with("^KUBERNETES_")), "{few:?}");
    }

    #[test]
    fn values_of_the_node_have_their_form() {
        let field = |path: &str| format!("env: [{{name: V, valueFrom: {{fieldRef: {{fieldPath: \"{path}\"}}}}}}]");
        assert_eq!(rules(&field("metadata.name"), None, &[]).unwrap().0, ["V=web"]);
        assert_eq!(rules(&field("metadata.labels['app']"), None, &[]).unwrap().0, ["V=shop"]);
        assert_eq!(rules(&field("spec.serviceAccountName"), None, &[]).unwrap().0, ["V=default"]);
        assert_eq!(rules(&field("status.podIP"), None, &[]).unwrap().1, ["^V=[0-9a-f.:]+$"]);
        assert!(rules(&field("metadata.labels['other']"), None, &[]).unwrap_err().next.contains("--allow-env V"));
        let secret = "env: [{name: V, valueFrom: {secretKeyRef: {name: s, key: k}}}]";
        assert!(rules(secret, None, &[]).unwrap().1[0].starts_with(r"^V=sealed\."));
        assert_eq!(rules(secret, None, &["V"]).unwrap().1, ["^V=(?s:.*)$"]);
    }

    #[test]
    fn values_that_the_node_would_choose_are_refused() {
        let map = "env: [{name: V, valueFrom: {configMapKeyRef: {name: m, key: k}}}]";
        assert!(rules(map, None, &[]).unwrap_err().problem.contains("ConfigMap"));
        assert!(rules(map, None, &["V"]).is_ok());
        assert!(rules("envFrom: [{configMapRef: {name: m}}]", None, &[]).unwrap_err().problem.contains("envFrom"));
    }
}
