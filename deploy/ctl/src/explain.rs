//! A claim in words: how it stands, why, and what to do.

use anyhow::{Result, bail};
use peerpods_controller_api::report::{ClaimReport, StateReport};

use crate::table::clean;

/// Explains the claim with that key, or of that pod.
pub(crate) fn explain(state: &StateReport, wanted: &str) -> Result<String> {
    let is_it = |claim: &&ClaimReport| claim.key.as_str() == wanted || claim.pod.to_string() == wanted;
    let found: Vec<&ClaimReport> = state.claims.iter().filter(is_it).collect();
    if found.is_empty() {
        bail!(
            "there is no claim {wanted:?}; `peerpodctl claim list` shows those that there are. A pod without a claim has not reached its \
             node's daemon, or is gone: `kubectl describe pod` and `peerpods-node list` on its node say more"
        );
    }
    Ok(found.into_iter().map(|claim| one(state, claim)).collect::<Vec<_>>().join("\n"))
}

fn one(state: &StateReport, claim: &ClaimReport) -> String {
    let ClaimReport { key, pod, node, class, status, .. } = claim;
    let mut lines = vec![format!("claim {key} of pod {pod} on node {node} is {status}"), format!("  asks for {}", wish(claim))];
    if let Some(detail) = &claim.detail {
        lines.push(format!("  {detail}"));
    }
    let pod_vm = claim.instance_id.as_ref().and_then(|id| state.pod_vms.iter().find(|pod_vm| pod_vm.instance_id == *id));
    if let Some(pod_vm) = pod_vm {
        let address = pod_vm.address.map_or_else(|| "no address yet".to_owned(), |address| address.to_string());
        let cloud = pod_vm.cloud_state.map_or_else(|| "not seen".to_owned(), |state| format!("{state:?}").to_lowercase());
        lines.push(format!(
            "  pod VM {}: {}, {address}, {}; the cloud says: {cloud}",
            pod_vm.instance_id, pod_vm.state, pod_vm.instance_type
        ));
        lines.extend(pod_vm.detail.as_ref().map(|detail| format!("  trying again: {detail}")));
    } else if status == "pending" {
        for launch in state.launches.iter().filter(|launch| launch.class == *class) {
            let zone = launch.zone.as_ref().map_or_else(String::new, |zone| format!(" in {zone}"));
            let detail = launch.detail.as_ref().map_or_else(|| "asked for".to_owned(), |detail| format!("trying again: {detail}"));
            lines.push(format!("  launch of {} {}{zone}: {detail}", launch.count, launch.instance_type));
        }
    }
    lines.push(format!("  next: {}", next(claim)));
    lines.iter().map(|line| clean(line) + "\n").collect()
}

fn wish(claim: &ClaimReport) -> String {
    let mut wish = format!("class {}", claim.class);
    if claim.vcpus > 0.0 {
        wish += &format!(", {} vCPUs", claim.vcpus);
    }
    if claim.memory_mib.0 > 0 {
        wish += &format!(", {}", claim.memory_mib);
    }
    if let Some(name) = &claim.instance_type {
        wish += &format!(", instance type {name}");
    }
    wish
}

fn next(claim: &ClaimReport) -> String {
    match claim.status.as_str() {
        "assigned" => format!("nothing here; `peerpods-node list` on {} says how far the pod is", claim.node),
        "failed" => "the pod is told so, and Kubernetes tries again with another claim; mend the cause, or delete the pod".to_owned(),
        "released" => "nothing; it is forgotten when everything made for it is gone".to_owned(),
        _ if claim.detail.as_ref().is_some_and(|detail| detail.contains("trying again")) => {
            "nothing, if the cause passes by itself; it is tried again until the pod is deleted".to_owned()
        }
        _ => "nothing; the cloud has been asked".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(claim: &str) -> StateReport {
        let text = format!(
            r#"{{"claims":[{{"key":"u-1","pod":{{"namespace":"default","name":"web"}},"node":"n1","class":"default","vcpus":1.5,
            "memory_mib":512,"instance_type":null,{claim}}}],
            "pod_vms":[{{"instance_id":"i-1","class":"default","tee":"snp","instance_type":"small","zone":null,"image":null,
            "state":"claimed","cloud_state":"running","address":"10.0.0.1","claim":"u-1","detail":null}}],
            "launches":[{{"token":"t","class":"default","instance_type":"small","zone":"a","count":3,"detail":"throttled"}}],
            "classes":[],"instance_types":null,"of a later version":1}}"#
        );
        serde_json::from_str(&text).expect("valid")
    }

    #[test]
    fn claims_are_explained_by_key_and_by_pod() {
        let assigned = state(r#""status":"assigned","detail":null,"instance_id":"i-1""#);
        for wanted in ["u-1", "default/web"] {
            let text = explain(&assigned, wanted).expect("found");
            for words in
                ["is assigned", "class default, 1.5 vCPUs, 512 MiB", "i-1: claimed, 10.0.0.1, small; the cloud says: running", "on n1"]
            {
                assert!(text.contains(words), "{words} is not in {text}");
            }
        }
        assert!(explain(&assigned, "default/other").expect_err("none").to_string().contains("claim list"));
    }

    #[test]
    fn what_is_waited_for_and_why_it_failed_is_said() {
        let pending = state(r#""status":"pending","detail":"intended (trying again: throttled)","instance_id":null"#);
        let text = explain(&pending, "u-1").expect("found");
        assert!(text.contains("launch of 3 small in a: trying again: throttled") && text.contains("tried again until"), "{text}");
        let failed = state(r#""status":"failed","detail":"launching: the quota \u001b[2Jis used up","instance_id":null"#);
        let text = explain(&failed, "u-1").expect("found");
        assert!(text.contains("the quota  [2Jis used up") && text.contains("mend the cause") && !text.contains("launch of"), "{text}");
    }
}
