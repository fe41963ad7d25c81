//! What a policy remembers from one request to the next: `data.pstate`.
//!
//! A rule may answer `{"allowed": true, "ops": [...]}`, where the operations are a JSON patch (RFC 6902) of the policy's data. As with
//! kata-agent, `/pstate` begins as an empty object, and a patch is applied when the rule allows the request and before the request
//! acts; unlike there, nothing else can be patched, and the operations are the three that genpolicy's rules are made of.

use serde::Deserialize;
use serde_json::{Value, json};

/// A change that cannot be made. The state is then what it was.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// The operations are no list of `add`, `replace` and `remove`.
    #[error("its operations are malformed: {0}")]
    Malformed(String),
    /// Another part of the data.
    #[error("path {0:?} is not below /pstate")]
    Outside(String),
    /// Nothing is there that could be changed.
    #[error("path {0:?} leads nowhere")]
    NoSuchPath(String),
    /// More would be remembered than [`MAX_STATE_BYTES`].
    #[error("the state would have more than {MAX_STATE_BYTES} bytes")]
    TooLong,
}

/// Longest state, as JSON. genpolicy's rules keep some hundred bytes per container.
pub const MAX_STATE_BYTES: usize = 1 << 20;

/// One operation.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Operation {
    Add { path: String, value: Value },
    Replace { path: String, value: Value },
    Remove { path: String },
}

/// The data document of a new policy.
pub(super) fn initial() -> Value {
    json!({ "pstate": {} })
}

/// The data document after a patch.
pub(super) fn patched(data: &Value, operations: Value) -> Result<Value, StateError> {
    let malformed = |error: serde_json::Error| StateError::Malformed(error.to_string());
    let operations: Vec<Operation> = serde_json::from_value(operations).map_err(malformed)?;
    let mut data = data.clone();
    for operation in operations {
        apply(&mut data, &operation)?;
    }
    if data.to_string().len() > MAX_STATE_BYTES { Err(StateError::TooLong) } else { Ok(data) }
}

fn apply(data: &mut Value, operation: &Operation) -> Result<(), StateError> {
    let (Operation::Add { path, .. } | Operation::Replace { path, .. } | Operation::Remove { path }) = operation;
    if path != "/pstate" && !path.starts_with("/pstate/") {
        return Err(StateError::Outside(path.clone()));
    }
    let nowhere = || StateError::NoSuchPath(path.clone());
    let (parent, name) = path.rsplit_once('/').ok_or_else(nowhere)?;
    let name = name.replace("~1", "/").replace("~0", "~");
    match (data.pointer_mut(parent).ok_or_else(nowhere)?, operation) {
        (Value::Object(members), Operation::Add { value, .. }) => {
            members.insert(name, value.clone());
        }
        (Value::Object(members), Operation::Replace { value, .. }) => *members.get_mut(&name).ok_or_else(nowhere)? = value.clone(),
        (Value::Object(members), Operation::Remove { .. }) => {
            members.remove(&name).ok_or_else(nowhere)?;
        }
        (Value::Array(items), operation) => {
            let end = items.len();
            let index = if name == "-" { end } else { index(&name).filter(|index| *index <= end).ok_or_else(nowhere)? };
            match operation {
                Operation::Add { value, .. } => items.insert(index, value.clone()),
                Operation::Replace { value, .. } => *items.get_mut(index).ok_or_else(nowhere)? = value.clone(),
                Operation::Remove { .. } if index < end => {
                    items.remove(index);
                }
                Operation::Remove { .. } => return Err(nowhere()),
            }
        }
        _ => return Err(nowhere()),
    }
    Ok(())
}

/// Digits without a leading zero.
fn index(name: &str) -> Option<usize> {
    let is_index = name.bytes().all(|byte| byte.is_ascii_digit()) && (name == "0" || !name.starts_with('0'));
    if is_index { name.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(operations: Value) -> Result<Value, StateError> {
        let data = json!({"pstate": {"a": 1, "list": [1, 2], "x/y": {"~": 0}}});
        patched(&data, operations).map(|mut data| data["pstate"].take())
    }

    #[test]
    fn operations_apply_in_their_order() {
        let operations = json!([
            {"op": "add", "path": "/pstate/b", "value": {"c": null}},
            {"op": "replace", "path": "/pstate/a", "value": 2},
            {"op": "add", "path": "/pstate/list/0", "value": 0},
            {"op": "add", "path": "/pstate/list/-", "value": 3},
            {"op": "remove", "path": "/pstate/list/1"},
            {"op": "remove", "path": "/pstate/x~1y/~0"},
            {"op": "add", "path": "/pstate/b/c", "value": "d"},
        ]);
        assert_eq!(after(operations).unwrap(), json!({"a": 2, "b": {"c": "d"}, "list": [0, 2, 3], "x/y": {}}));
        assert_eq!(after(json!([{"op": "add", "path": "/pstate", "value": {}}])).unwrap(), json!({}));
        assert_eq!(patched(&initial(), json!([])), Ok(initial()));
    }

    #[test]
    fn impossible_changes_are_refused() {
        for path in
            ["/pstate/none", "/pstate/none/x", "/pstate/a/x", "/pstate/list/2", "/pstate/list/-", "/pstate/list/01", "/pstate/list/x"]
        {
            assert_eq!(after(json!([{"op": "remove", "path": path}])), Err(StateError::NoSuchPath(path.to_owned())));
            assert_eq!(after(json!([{"op": "replace", "path": path, "value": 0}])), Err(StateError::NoSuchPath(path.to_owned())));
        }
        for path in ["", "/", "pstate/a", "/other", "/pstates", "/pstat"] {
            assert_eq!(after(json!([{"op": "add", "path": path, "value": 0}])), Err(StateError::Outside(path.to_owned())));
        }
        for operations in [json!({}), json!([1]), json!([{"op": "copy", "from": "/pstate/a", "path": "/pstate/b"}]), json!([{"op": "add"}])]
        {
            assert!(matches!(after(operations.clone()), Err(StateError::Malformed(_))), "{operations}");
        }
        let long = json!([{"op": "add", "path": "/pstate/long", "value": "x".repeat(MAX_STATE_BYTES)}]);
        assert_eq!(after(long), Err(StateError::TooLong));
    }
}
