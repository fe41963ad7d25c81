//! The agent policy: rules that are the same for all pods, and a pod's data as JSON behind them, where Trustee finds it.

use serde_json::Value;

/// The text of a policy.
pub(crate) fn render(data: &Value) -> String {
    format!("{}{}policy_data := {data:#}\n", include_str!("agent.rego"), include_str!("linux.rego"))
}
