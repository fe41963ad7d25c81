//! Appraisal: claims of verified evidence, through an attestation policy, to a trust vector and its status (AR4SI, EAR).

use peerpods_key_broker::wire::RuntimeData;
use serde_json::{Map, Value, json};

use crate::initdata::Claimed;
use crate::policy::{self, References};

/// Claims of AR4SI.
const TRUST_CLAIMS: [&str; 8] =
    ["instance-identity", "configuration", "executables", "file-system", "hardware", "runtime-opaque", "storage-opaque", "sourced-data"];

/// What a trust claim, or all of them, come to. In the order of severity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    None,
    Affirming,
    Warning,
    Contraindicated,
}

/// The claims as policies and tokens have them: those of the verifier under the format's name, and beside it what was bound.
///
/// Initdata appears only where the verifier claims that the evidence holds its digest.
pub(crate) fn annotated_evidence(
    tee: &str,
    verified: Value,
    runtime_data: &RuntimeData,
    additional_evidence: &str,
    initdata: Option<Claimed>,
) -> Result<Map<String, Value>, String> {
    let Value::Object(mut verified) = verified else { return Err("the verifier gave no claims".to_owned()) };
    let Some(Value::Object(mut claims)) = verified.remove(tee) else { return Err(format!("the verifier gave no claims of {tee:?}")) };
    if let Some(other) = verified.keys().next() {
        return Err(format!("the verifier gave claims of {other:?} besides"));
    }
    let mut annotated = Map::new();
    if let Some(init_data) = claims.remove("init_data") {
        annotated.insert("init_data".to_owned(), init_data);
        annotated.insert("init_data_claims".to_owned(), initdata.map_or(Value::Null, |initdata| initdata.claims));
    }
    if let Some(report_data) = claims.remove("report_data") {
        annotated.insert("report_data".to_owned(), report_data);
    }
    annotated.insert("runtime_data_claims".to_owned(), runtime_data.claims(additional_evidence));
    if annotated.insert(tee.to_owned(), Value::Object(claims)).is_some() {
        return Err(format!("{tee:?} is no format of evidence"));
    }
    Ok(annotated)
}

/// A submodule of the token.
pub(crate) fn appraise(policy: &str, policy_id: &str, annotated: Map<String, Value>, references: &References) -> Result<Value, String> {
    let annotated = Value::Object(annotated);
    let queries = ["data.policy.trust_claims", "data.policy.extensions"];
    let results = policy::evaluate(policy, annotated.clone(), json!({}), references, &queries).map_err(|error| error.to_string())?;
    let [trust_claims, extensions] = <[Option<Value>; 2]>::try_from(results).unwrap_or_default();
    let Some(Value::Object(trust_claims)) = trust_claims else { return Err("the policy defines no trust_claims".to_owned()) };
    let status = status(&trust_claims)?;
    let mut submodule = json!({
        "ear.status": status,
        "ear.trustworthiness-vector": trust_claims,
        "ear.appraisal-policy-id": policy_id,
        "ear.veraison.annotated-evidence": annotated,
    });
    for (name, value) in extended(extensions)? {
        if submodule.get(&name).is_some() {
            return Err(format!("the policy's extension {name:?} would replace what the verifier says"));
        }
        submodule[name] = value;
    }
    Ok(submodule)
}

/// The worst of all claims.
fn status(trust_claims: &Map<String, Value>) -> Result<&'static str, String> {
    let mut worst = Tier::None;
    for (name, value) in trust_claims {
        if !TRUST_CLAIMS.contains(&name.as_str()) {
            return Err(format!("{name:?} is no trust claim"));
        }
        let value = value.as_i64().and_then(|value| i8::try_from(value).ok());
        worst = worst.max(tier(value.ok_or_else(|| format!("the trust claim {name:?} is no number from -128 to 127"))?));
    }
    if trust_claims.is_empty() {
        return Err("At least one policy claim must be set.".to_owned());
    }
    Ok(match worst {
        Tier::None => "none",
        Tier::Affirming => "affirming",
        Tier::Warning => "warning",
        Tier::Contraindicated => "contraindicated",
    })
}

/// Section 2.3.1 of draft-ietf-rats-ar4si.
fn tier(value: i8) -> Tier {
    match value {
        -1..=1 => Tier::None,
        -32..=-2 | 2..=31 => Tier::Affirming,
        -96..=-33 | 32..=95 => Tier::Warning,
        -128..=-97 | 96..=127 => Tier::Contraindicated,
    }
}

/// `[{"name", "key", "value"}]`; the key is for CBOR.
fn extended(extensions: Option<Value>) -> Result<Vec<(String, Value)>, String> {
    let malformed = || "the policy's extensions are no list of name and value".to_owned();
    let Some(extensions) = extensions else { return Ok(Vec::new()) };
    let extensions = extensions.as_array().ok_or_else(malformed)?.iter();
    let named = extensions.map(|extension| Some((extension.get("name")?.as_str()?.to_owned(), extension.get("value")?.clone())));
    named.collect::<Option<_>>().ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::DEFAULT_ATTESTATION_POLICY;
    use peerpods_key_broker::wire::TeePubKey;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    fn runtime_data() -> RuntimeData {
        RuntimeData { nonce: "n".to_owned(), tee_pubkey: TeePubKey::Rsa { alg: "a".to_owned(), n: "n".to_owned(), e: "e".to_owned() } }
    }

    fn annotated(claims: &Value) -> Map<String, Value> {
        let initdata = Claimed { digest: vec![1], claims: json!({ "aa.toml": {} }) };
        annotated_evidence("sample", json!({ "sample": claims }), &runtime_data(), "", Some(initdata)).unwrap()
    }

    fn appraised(policy: &str) -> Result<Value, String> {
        appraise(policy, "default", annotated(&json!({ "svn": "1" })), &References::default())
    }

    #[test]
    fn tiers_are_those_of_the_draft() {
        let tiers =
            [(0, "none"), (1, "none"), (2, "affirming"), (31, "affirming"), (32, "warning"), (95, "warning"), (96, "contraindicated")];
        for (value, expected) in tiers.into_iter().chain([(-2, "affirming"), (-33, "warning"), (-97, "contraindicated")]) {
            let claims = Map::from_iter([("hardware".to_owned(), json!(value)), ("executables".to_owned(), json!(0))]);
            assert_eq!(status(&claims), Ok(expected), "{value}");
        }
        let mixed = Map::from_iter([("hardware".to_owned(), json!(2)), ("executables".to_owned(), json!(33))]);
        assert_eq!(status(&mixed), Ok("warning"), "the worst counts");
    }

    #[test]
    fn initdata_appears_only_where_it_was_compared() {
        let compared = annotated(&json!({ "svn": "1", "report_data": "cmQ=", "init_data": "01" }));
        assert_eq!(compared["init_data"], "01");
        assert_eq!(compared["init_data_claims"], json!({ "aa.toml": {} }));
        assert_eq!(compared["report_data"], "cmQ=");
        assert_eq!(compared["sample"], json!({ "svn": "1" }));
        assert_eq!(
            compared["runtime_data_claims"],
            json!({ "additional-evidence": "", "nonce": "n", "tee-pubkey": { "alg": "a", "e": "e", "kty": "RSA", "n": "n" } })
        );
        let not_compared = annotated(&json!({ "svn": "1" }));
        assert!(!not_compared.contains_key("init_data") && !not_compared.contains_key("init_data_claims"));
    }

    #[test]
    fn claims_under_another_name_are_refused() {
        let refused = |tee: &str, verified: Value| annotated_evidence(tee, verified, &runtime_data(), "", None).unwrap_err();
        refused("sample", json!({ "snp": {} }));
        refused("sample", json!({ "sample": {}, "init_data": "01" }));
        refused("sample", json!("sample"));
        refused("runtime_data_claims", json!({ "runtime_data_claims": {} }));
    }

    #[test]
    fn default_policy_affirms_no_sample() {
        let submodule = appraised(DEFAULT_ATTESTATION_POLICY).unwrap();
        assert_eq!(submodule["ear.status"], "contraindicated");
        assert_eq!(submodule["ear.trustworthiness-vector"], json!({ "configuration": 36, "executables": 33, "hardware": 97 }));
        assert_eq!(submodule["ear.trustee.identifiers"], json!({ "validated": {} }));
        let references: References = Arc::new(BTreeMap::from([("svn".to_owned(), json!(["1"]))]));
        let submodule = appraise(DEFAULT_ATTESTATION_POLICY, "default", annotated(&json!({ "svn": "1" })), &references).unwrap();
        assert_eq!((&submodule["ear.status"], &submodule["ear.trustworthiness-vector"]["hardware"]), (&json!("warning"), &json!(2)));
    }

    #[test]
    fn identifiers_come_from_the_agent_policy() {
        let containers = json!([{ "OCI": { "Annotations": { "io.kubernetes.cri.image-name": "example.org/a@sha256:00" } } }]);
        let initdata = Claimed { digest: vec![1], claims: json!({ "agent_policy_claims": { "containers": containers } }) };
        let claims = json!({ "sample": { "svn": "1", "init_data": "01" } });
        let annotated = annotated_evidence("sample", claims, &runtime_data(), "", Some(initdata)).unwrap();
        let submodule = appraise(DEFAULT_ATTESTATION_POLICY, "default", annotated, &References::default()).unwrap();
        assert_eq!(submodule["ear.trustee.identifiers"], json!({ "validated": { "container_images": ["example.org/a@sha256:00"] } }));
    }

    #[test]
    fn policies_that_say_nothing_usable_are_refused() {
        for policy in [
            "package policy",
            "package policy\ntrust_claims := {}",
            "package policy\ntrust_claims := {\"hardware\": 200}",
            "package policy\ntrust_claims := {\"hardware\": \"2\"}",
            "package policy\ntrust_claims := {\"trust\": 2}",
            "package policy\ntrust_claims := {\"hardware\": 2}\nextensions := 1",
            "package policy\ntrust_claims := {\"hardware\": 2}\nextensions := [{\"name\": \"ear.status\", \"value\": \"affirming\"}]",
        ] {
            assert!(appraised(policy).is_err(), "{policy}");
        }
        assert_eq!(appraised("package policy\ntrust_claims := {\"hardware\": 2}").unwrap()["ear.status"], "affirming");
    }
}
