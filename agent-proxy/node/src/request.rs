//! What a shim asks for: the nine annotations of CreateVM, parsed once into a type that cannot be wrong.
//!
//! Kata's shims send exactly these keys, with empty values for what the pod does not set (the Go shim sends "0" for sizes). Keys that
//! are not known are ignored: they are a newer shim's, and none of ours are lost by it.

use std::collections::HashMap;

use peerpods_controller_api::{InvalidId, Mib, PodRef};
use serde::{Deserialize, Serialize};

/// What a pod VM must be and be given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodRequest {
    /// Virtual processors, fractions allowed; 0 leaves it to the class.
    pub vcpus: f32,
    /// Memory; 0 leaves it to the class.
    pub memory_mib: Mib,
    /// The provider's name of a pod VM image; `None` leaves it to the class.
    pub image: Option<String>,
    /// The provider's name of an instance type; `None` leaves it to the sizes.
    pub instance_type: Option<String>,
    /// The class of pod VM; `None` means "default". Left out then, so that files of version 1 without it stay as they were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// TOML text, measured by the pod VM; `None` means the fixed empty document.
    pub initdata: Option<String>,
}

/// An annotation that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AnnotationError {
    /// It must be there.
    #[error("annotation {key} is missing: the shim must name the pod")]
    Missing {
        /// The annotation.
        key: &'static str,
    },
    /// Its value is out of range or does not parse.
    #[error("annotation {key} = {value:?}: {expected}")]
    Value {
        /// The annotation.
        key: &'static str,
        /// Its value, cut after 80 characters.
        value: String,
        /// What is allowed.
        expected: String,
    },
    /// Not a name that Kubernetes gives.
    #[error("annotations {NAMESPACE} and {NAME} do not name a pod")]
    Pod {
        /// What is wrong.
        #[source]
        source: InvalidId,
    },
    /// The initdata is not what a pod VM would accept.
    #[error("annotation {INITDATA} is not valid initdata")]
    Initdata {
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub(crate) const NAME: &str = "io.kubernetes.cri.sandbox-name";
pub(crate) const NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const MACHINE_TYPE: &str = "io.katacontainers.config.hypervisor.machine_type";
const IMAGE: &str = "io.katacontainers.config.hypervisor.image";
pub(crate) const VCPUS: &str = "io.katacontainers.config.hypervisor.default_vcpus";
pub(crate) const MEMORY: &str = "io.katacontainers.config.hypervisor.default_memory";
pub(crate) const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// Ours. Kata's shims do not pass it on.
const CLASS: &str = "peerpods.io/class";
const GPUS: &str = "io.katacontainers.config.hypervisor.default_gpus";
const GPU_MODEL: &str = "io.katacontainers.config.hypervisor.default_gpu_model";

/// Bind carries initdata in a message of at most 1 MiB, as JSON text whose escapes may double it.
pub(crate) const INITDATA_LIMIT: usize = 384 << 10;
/// Names of images and instance types.
const NAME_LIMIT: usize = 256;
const VCPUS_LIMIT: f32 = 4096.0;

/// Reads the annotations of CreateVM.
pub fn parse(annotations: &HashMap<String, String>) -> Result<(PodRef, PodRequest), AnnotationError> {
    let given = |key: &'static str| annotations.get(key).map(|value| value.trim()).filter(|value| !value.is_empty());
    let required = |key| given(key).ok_or(AnnotationError::Missing { key });
    let (namespace, sandbox_name) = (required(NAMESPACE)?, required(NAME)?);
    let (name_of_pod, uid) = crio_name(sandbox_name, namespace).unwrap_or((sandbox_name, None));
    let pod = PodRef::new(namespace, name_of_pod, uid).map_err(|source| AnnotationError::Pod { source })?;
    let gpus: u32 = given(GPUS).map_or(Ok(0), |value| whole_number(GPUS, value))?;
    if gpus != 0 {
        return Err(refuse(GPUS, given(GPUS).unwrap_or(""), "this version has no pod VMs with GPUs; leave it out"));
    }
    if let Some(model) = given(GPU_MODEL) {
        return Err(refuse(GPU_MODEL, model, "this version has no pod VMs with GPUs; leave it out"));
    }
    let request = PodRequest {
        vcpus: given(VCPUS).map_or(Ok(0.0), vcpus)?,
        memory_mib: Mib(given(MEMORY).map_or(Ok(0), |value| whole_number(MEMORY, value))?),
        image: given(IMAGE).map(|value| name(IMAGE, value)).transpose()?,
        instance_type: given(MACHINE_TYPE).map(|value| name(MACHINE_TYPE, value)).transpose()?,
        class: given(CLASS).map(|value| name(CLASS, value)).transpose()?,
        // Measured byte for byte, so it is not trimmed.
        initdata: annotations.get(INITDATA).filter(|text| !text.trim().is_empty()).map(|text| initdata(text)).transpose()?,
    };
    Ok((pod, request))
}

/// Pod name and UID of CRI-O's name for a sandbox, `k8s_<pod>_<namespace>_<uid>_<attempt>` (cri-o `pkg/sandbox`), which Kata's Go shim
/// passes on where its Rust shim passes on the pod's plain name. No part can hold an underscore, so there is one way to read it.
fn crio_name<'a>(name: &'a str, namespace: &str) -> Option<(&'a str, Option<String>)> {
    match name.split('_').collect::<Vec<_>>()[..] {
        ["k8s", pod, its_namespace, uid, _attempt] if its_namespace == namespace => Some((pod, Some(uid.to_owned()))),
        _ => None,
    }
}

fn vcpus(value: &str) -> Result<f32, AnnotationError> {
    match value.parse::<f32>() {
        Ok(vcpus) if vcpus.is_finite() && (0.0..=VCPUS_LIMIT).contains(&vcpus) => Ok(vcpus),
        _ => Err(refuse(VCPUS, value, "must be a number of processors from 0 to 4096, such as 2 or 1.5")),
    }
}

fn whole_number(key: &'static str, value: &str) -> Result<u32, AnnotationError> {
    value.parse().map_err(|_| refuse(key, value, if key == MEMORY { "must be a whole number of MiB" } else { "must be a whole number" }))
}

fn name(key: &'static str, value: &str) -> Result<String, AnnotationError> {
    let is_valid = value.len() <= NAME_LIMIT && value.bytes().all(|b| b.is_ascii_graphic());
    if is_valid {
        Ok(value.to_owned())
    } else {
        Err(refuse(key, value, "must be a name of at most 256 printable characters without spaces"))
    }
}

fn initdata(text: &str) -> Result<String, AnnotationError> {
    if text.len() > INITDATA_LIMIT {
        return Err(refuse(INITDATA, text, &format!("is {} bytes long; at most {INITDATA_LIMIT} are allowed", text.len())));
    }
    peerpods_evidence::Initdata::parse(text).map_err(|source| AnnotationError::Initdata { source: source.into() })?;
    Ok(text.to_owned())
}

pub(crate) fn refuse(key: &'static str, value: &str, expected: &str) -> AnnotationError {
    AnnotationError::Value { key, value: value.chars().take(80).collect(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nine keys as Kata's Rust shim 4.1 sends them for a pod without annotations.
    fn plain() -> HashMap<String, String> {
        [
            (NAME, "web"),
            (NAMESPACE, "default"),
            (MACHINE_TYPE, ""),
            (IMAGE, ""),
            (VCPUS, "1"),
            (MEMORY, "2048"),
            (INITDATA, ""),
            (GPUS, "0"),
            (GPU_MODEL, ""),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    fn with(key: &str, value: &str) -> HashMap<String, String> {
        let mut annotations = plain();
        annotations.insert(key.to_owned(), value.to_owned());
        annotations
    }

    #[test]
    fn plain_pod_is_understood() {
        let (pod, request) = parse(&plain()).expect("valid");
        assert_eq!(pod.to_string(), "default/web");
        assert_eq!(
            request,
            PodRequest { vcpus: 1.0, memory_mib: Mib(2048), image: None, instance_type: None, class: None, initdata: None }
        );
    }

    #[test]
    fn names_of_crio_are_understood() {
        let uid = "0f1e2d3c-0000-4000-8000-000000000001";
        // As the Go shim sends it on a node of CRI-O, then as the Rust shim does.
        let (pod, _) = parse(&with(NAME, &format!("k8s_web-0_default_{uid}_3"))).expect("valid");
        assert_eq!((pod.namespace(), pod.name(), pod.uid()), ("default", "web-0", Some(uid)));
        let (pod, _) = parse(&with(NAME, "web-0")).expect("valid");
        assert_eq!((pod.name(), pod.uid()), ("web-0", None));
        for other in [format!("k8s_web-0_elsewhere_{uid}_3"), "k8s_web-0_default".to_owned(), format!("k8s_a_b_default_{uid}_3")] {
            let (pod, _) = parse(&with(NAME, &other)).expect("valid");
            assert_eq!((pod.name(), pod.uid()), (other.as_str(), None), "not a name of that form");
        }
    }

    #[test]
    fn a_class_is_asked_for_by_name() {
        let (_, request) = parse(&with(CLASS, "confidential")).expect("valid");
        assert_eq!(request.class.as_deref(), Some("confidential"));
    }

    #[test]
    fn fractions_of_processors_are_kept() {
        for (text, expected) in [("2.5", 2.5), ("0", 0.0), ("1", 1.0), ("", 0.0)] {
            let (_, request) = parse(&with(VCPUS, text)).expect("valid");
            assert!((request.vcpus - expected).abs() < f32::EPSILON, "{text}");
        }
    }

    #[test]
    fn bad_values_name_their_key() {
        for (key, value) in [
            (VCPUS, "many"),
            (VCPUS, "NaN"),
            (VCPUS, "inf"),
            (VCPUS, "-1"),
            (VCPUS, "1e9"),
            (MEMORY, "1.5"),
            (MEMORY, "-1"),
            (MEMORY, "99999999999"),
            (GPUS, "1"),
            (GPUS, "x"),
            (GPU_MODEL, "h100"),
            (IMAGE, "a b"),
            (MACHINE_TYPE, "\u{1b}[31m"),
            (INITDATA, "not = [toml"),
        ] {
            let error = parse(&with(key, value)).expect_err(value);
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn initdata_is_kept_byte_for_byte_and_limited() {
        let text = "algorithm = \"sha384\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = '''\nx = 1\n'''\n\n";
        let (_, request) = parse(&with(INITDATA, text)).expect("valid");
        assert_eq!(request.initdata.as_deref(), Some(text));
        let long = format!("{text}# {}", "x".repeat(INITDATA_LIMIT));
        assert!(parse(&with(INITDATA, &long)).expect_err("too long").to_string().contains("at most"));
    }

    #[test]
    fn pod_must_be_named_and_unknown_keys_are_ignored() {
        for key in [NAME, NAMESPACE] {
            let mut annotations = plain();
            annotations.remove(key);
            assert!(parse(&annotations).expect_err("missing").to_string().contains(key));
            assert!(parse(&with(key, "  ")).is_err());
        }
        assert!(parse(&with("io.katacontainers.config.hypervisor.new_key", "x")).is_ok());
    }
}
