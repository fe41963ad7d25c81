//! Rego, by Trustee's names.
//!
//! An attestation policy defines `data.policy.trust_claims`, numbers by AR4SI claim, and may define `data.policy.extensions`; its
//! input is the claims of the evidence, and `query_reference_value(name)` gives a reference value or null. A resource policy
//! defines `data.policy.allow`; its input is the claims of the token, and its data is `plugin`, `resource-path` and `query`.
//! Undefined is no, and so is an error.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value as RegoValue};
use serde_json::Value;

/// Reference values by name.
pub type References = Arc<BTreeMap<String, Value>>;

/// Releases nothing. What a broker has until an admin sets another.
pub const DEFAULT_RESOURCE_POLICY: &str = include_str!("policies/resource.rego");

/// Trusts nothing but what reference values name.
pub const DEFAULT_ATTESTATION_POLICY: &str = include_str!("policies/default_cpu.rego");

/// The package of all policies.
const PACKAGE: &str = "data.policy";
/// How long one evaluation may take. A policy with a million containers takes a second.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Steps between looks at the clock.
const STEPS: NonZeroU32 = NonZeroU32::new(1000).expect("not zero");
/// Characters of an error that are kept; the engine quotes the source.
const MAX_ERROR: usize = 400;

/// A policy that cannot be read or evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(String);

impl PolicyError {
    fn new(error: impl std::fmt::Display) -> Self {
        Self(format!("{error:#}").trim().chars().take(MAX_ERROR).collect())
    }
}

/// Whether a text is a policy.
pub fn check(policy: &str) -> Result<(), PolicyError> {
    engine(policy, &References::default()).map(|_| ())
}

/// Evaluates queries over one input. `None` is undefined.
pub fn evaluate(
    policy: &str,
    input: Value,
    data: Value,
    references: &References,
    queries: &[&str],
) -> Result<Vec<Option<Value>>, PolicyError> {
    let mut engine = engine(policy, references)?;
    engine.set_input(RegoValue::from(input));
    engine.add_data(RegoValue::from(data)).map_err(PolicyError::new)?;
    queries.iter().map(|query| evaluate_one(&mut engine, query)).collect()
}

fn engine(policy: &str, references: &References) -> Result<Engine, PolicyError> {
    let mut engine = Engine::new();
    engine.set_execution_timer_config(ExecutionTimerConfig { limit: TIME_LIMIT, check_interval: STEPS });
    let references = references.clone();
    let query = move |names: Vec<RegoValue>| {
        let value = names.first().and_then(|name| name.as_string().ok()).and_then(|name| references.get(name.as_ref()));
        Ok(value.map_or(RegoValue::Null, |value| RegoValue::from(value.clone())))
    };
    engine.add_extension("query_reference_value".to_owned(), 1, Box::new(query)).map_err(PolicyError::new)?;
    let package = engine.add_policy("policy.rego".to_owned(), policy.to_owned()).map_err(PolicyError::new)?;
    if package != PACKAGE {
        return Err(PolicyError::new(format!("its package is {package}, not {PACKAGE}")));
    }
    Ok(engine)
}

fn evaluate_one(engine: &mut Engine, query: &str) -> Result<Option<Value>, PolicyError> {
    let results = engine.eval_query(query.to_owned(), false).map_err(PolicyError::new)?;
    let value = results.result.into_iter().next().and_then(|row| row.expressions.into_iter().next()).map(|found| found.value);
    match value {
        None | Some(RegoValue::Undefined) => Ok(None),
        Some(value) => serde_json::to_value(&value).map(Some).map_err(PolicyError::new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn allow(policy: &str, input: Value, data: Value) -> Result<Option<Value>, PolicyError> {
        Ok(evaluate(policy, input, data, &References::default(), &["data.policy.allow"])?.remove(0))
    }

    #[test]
    fn default_resource_policy_says_no() {
        let input = json!({ "submods": { "cpu0": { "ear.status": "affirming" } } });
        assert_eq!(allow(DEFAULT_RESOURCE_POLICY, input, json!({ "plugin": "resource" })), Ok(Some(json!(false))));
    }

    #[test]
    fn data_and_input_have_trustees_names() {
        let policy = "package policy\nimport rego.v1\ndefault allow := false\nallow if {\n\tdata.plugin == \"resource\"\n\
            \tdata[\"resource-path\"] == [\"default\", \"key\", \"1\"]\n\tinput.submods.cpu0[\"ear.status\"] == \"affirming\"\n}\n";
        let data = json!({ "plugin": "resource", "resource-path": ["default", "key", "1"], "query": {} });
        let input = |status: &str| json!({ "submods": { "cpu0": { "ear.status": status } } });
        assert_eq!(allow(policy, input("affirming"), data.clone()), Ok(Some(json!(true))));
        assert_eq!(allow(policy, input("warning"), data), Ok(Some(json!(false))));
    }

    #[test]
    fn undefined_is_none_and_errors_are_errors() {
        assert_eq!(allow("package policy\nother := 1", json!({}), json!({})), Ok(None));
        assert_eq!(allow("package policy\nallow if input.absent == 1", json!({}), json!({})), Ok(None));
        for text in ["", "package other\nallow := true", "package policy\nallow := {", "package policy\nallow := no_such_function(1)"] {
            assert!(allow(text, json!({}), json!({})).is_err(), "{text:?}");
        }
        assert!(check("package other").unwrap_err().to_string().contains("data.other"));
    }

    #[test]
    fn reference_values_are_asked_by_name() {
        let references = Arc::new(BTreeMap::from([("svn".to_owned(), json!(["1", "2"]))]));
        let policy = "package policy\nallow if input.svn in query_reference_value(\"svn\")\nunknown := query_reference_value(\"other\")";
        let results = evaluate(policy, json!({ "svn": "2" }), json!({}), &references, &["data.policy.allow", "data.policy.unknown"]);
        assert_eq!(results, Ok(vec![Some(json!(true)), Some(Value::Null)]));
    }
}
