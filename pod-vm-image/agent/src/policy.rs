//! Agent policy: which requests of the node a pod's owner allows.
//!
//! A policy is a Rego module of package `agent_policy`, as genpolicy writes it and kata-agent evaluates it. For a request the rule with
//! the name of its message is evaluated, with the request as `input` ([`input`]); it must be true, or an object whose `allowed` is
//! true and whose `ops` change what the policy remembers ([`state`]). Everything else is a denial: false, no such rule, an error, too
//! much time. Upstream's escape from that, `AllowRequestsFailingPolicy`, is ignored.
//!
//! One rule is ours, since Kata has no such request: [`PORT_FORWARD`], which genpolicy does not write, so a policy of its makes denies it.
//!
//! Evaluations of one policy run one after the other, on threads for blocking work. What a rule changed stays changed when the request
//! fails afterwards or its client has gone, as upstream. Nothing outlives the agent.
//!
//! The policy itself is trusted as far as its measurement is: a verifier has seen it. The requests are not.

mod input;
mod shape;
mod state;

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protobuf::MessageDyn;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, PolicyLengthConfig};
use serde::Deserialize;
use serde_json::{Value, json};

pub use input::InputError;
pub use state::{MAX_STATE_BYTES, StateError};

/// The rule about connections from the node to a port of the pod (`kubectl port-forward`), with `{"port": NUMBER}` as `input`.
pub const PORT_FORWARD: &str = "PortForwardRequest";

/// Longest policy that is read: more than initdata can carry.
pub const MAX_POLICY_BYTES: usize = 1 << 20;

/// The text of [`AgentPolicy::built_in_default`].
pub const BUILT_IN_DEFAULT: &str = include_str!("policy/built_in_default.rego");
/// The text of [`AgentPolicy::strict_default`].
pub const STRICT_DEFAULT: &str = include_str!("policy/strict_default.rego");

/// A policy with what it remembers. Clones share both.
#[derive(Clone)]
pub struct AgentPolicy {
    evaluator: Arc<Mutex<Evaluator>>,
}

/// A text is not a policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PolicyError {
    /// More than [`MAX_POLICY_BYTES`].
    #[error("the agent policy has {0} bytes; at most {MAX_POLICY_BYTES} are read")]
    TooLong(usize),
    /// A module of another package, whose rules nobody would ask for.
    #[error("the agent policy is of package {0:?} instead of \"agent_policy\"")]
    Package(String),
    /// More brackets or operators within each other than the engine is given.
    #[error("the agent policy is nested too deeply at policy.rego:{0}")]
    TooDeep(usize),
    /// Not Rego; the text says which line.
    #[error("the agent policy does not compile: {0}")]
    Compile(String),
}

/// A request that the policy does not allow. The text names the rule; it goes to the node, which has shown the request and seen the
/// policy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Denied {
    /// The rule says no.
    #[error("{request} is blocked by policy: rule {request} does not allow it{}", printed(prints))]
    Refused {
        /// Name of the message and of the rule.
        request: String,
        /// The end of what the rule printed, at most [`MAX_PRINTS_BYTES`].
        prints: String,
    },
    /// There is no such rule, or it is undefined for this request.
    #[error("{request} is blocked by policy: rule {request} is missing or undefined{}", printed(prints))]
    Undefined {
        /// Name of the message and of the rule.
        request: String,
        /// The end of what the rule printed, at most [`MAX_PRINTS_BYTES`].
        prints: String,
    },
    /// The rule could not be evaluated, or not within [`EVALUATION_LIMIT`].
    #[error("{request} is blocked by policy: rule {request} cannot be evaluated: {reason}")]
    Evaluation {
        /// Name of the message and of the rule.
        request: String,
        /// What went wrong.
        reason: String,
    },
    /// The rule is neither a boolean nor an object with `allowed`.
    #[error("{request} is blocked by policy: rule {request} is neither true nor false nor an object with \"allowed\"")]
    Answer {
        /// Name of the message and of the rule.
        request: String,
    },
    /// The rule allows the request, with a change of state that cannot be made.
    #[error("{request} is blocked by policy: rule {request} cannot change its state")]
    State {
        /// Name of the message and of the rule.
        request: String,
        /// What is wrong with the change.
        #[source]
        source: StateError,
    },
    /// The request cannot be shown to the rule.
    #[error("{request} is blocked by policy: rule {request} cannot judge it")]
    Input {
        /// Name of the message and of the rule.
        request: String,
        /// What is wrong with the request.
        #[source]
        source: InputError,
    },
}

impl Denied {
    /// Whether the policy has said no, or says nothing of such requests; otherwise it could not be asked, or what it says makes no sense.
    pub(crate) fn is_clear(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Undefined { .. })
    }
}

/// A policy could not take another's place.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplaceError {
    /// The present policy does not allow it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The other one is none.
    #[error(transparent)]
    Policy(#[from] PolicyError),
}

/// What a denial tells of a rule's prints, in bytes. Pod events hold 1 KiB; the rest is for the node's log.
pub const MAX_PRINTS_BYTES: usize = 2048;
/// For one evaluation. genpolicy's rules take milliseconds; the shims give up on most requests after 30 s.
pub const EVALUATION_LIMIT: Duration = Duration::from_secs(5);

/// For waiting until other evaluations are done, too.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// Steps between two looks at the clock.
const STEPS_PER_CHECK: NonZeroU32 = NonZeroU32::MIN.saturating_add(63);
/// Upstream's limits of lines, which environment variables of some images need; the engine's own are below.
const LENGTHS: PolicyLengthConfig = PolicyLengthConfig {
    max_col: NonZeroU32::MIN.saturating_add((64 << 10) - 1),
    max_file_bytes: NonZeroUsize::MIN.saturating_add(MAX_POLICY_BYTES - 1),
    max_lines: NonZeroUsize::MIN.saturating_add(200_000 - 1),
};
const PACKAGE: &str = "data.agent_policy";
const FILE: &str = "policy.rego";
/// How the engine says that; only the words of a denial depend on it.
const NO_SUCH_RULE: &str = "not a valid rule path";
const SET_POLICY: &str = "SetPolicyRequest";
const MAX_REASON_BYTES: usize = 1024;

impl AgentPolicy {
    /// Compiles a policy; the text may be anything.
    pub fn parse(rego: &str) -> Result<Self, PolicyError> {
        Ok(Self::new(Evaluator::parse(rego, EVALUATION_LIMIT)?))
    }

    /// For a pod without initdata: everything is allowed. Fails only if the program was built with a broken policy.
    pub fn built_in_default() -> Result<Self, PolicyError> {
        Self::parse(BUILT_IN_DEFAULT)
    }

    /// For a pod whose initdata has no policy: no execs, no standard input, no forwarded ports, no files but the kubelet's own, no other
    /// policy. Fails only if the program was built with a broken policy.
    pub fn strict_default() -> Result<Self, PolicyError> {
        Self::parse(STRICT_DEFAULT)
    }

    /// Decides about a request, and remembers what the rule says. `request_name` is the name of its message, such as
    /// `ExecProcessRequest`; `input` is the document that the rule sees.
    pub fn check(&self, request_name: &str, input: &Value) -> Result<(), Denied> {
        self.with(request_name, |evaluator| evaluator.check(request_name, input))
    }

    /// The same without holding up the caller's thread, and within a limit of time.
    pub async fn ask(&self, request_name: &str, input: Value) -> Result<(), Denied> {
        let (policy, request) = (self.clone(), request_name.to_owned());
        let check = tokio::task::spawn_blocking(move || policy.check(&request, &input));
        let failed = |reason: String| Denied::Evaluation { request: request_name.to_owned(), reason };
        match tokio::time::timeout(CHECK_LIMIT, check).await {
            Ok(Ok(decision)) => decision,
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no decision within {} s", CHECK_LIMIT.as_secs()))),
        }
    }

    /// Decides about a message as it came.
    pub(crate) async fn permit(&self, request: &dyn MessageDyn) -> Result<(), Denied> {
        let name = request.descriptor_dyn().name().to_owned();
        let input = input::of(request).map_err(|source| Denied::Input { request: name.clone(), source })?;
        self.ask(&name, input).await
    }

    /// Puts another policy in place of this one and its clones, if this one allows that; it begins with nothing to remember.
    pub(crate) fn replace(&self, rego: &str) -> Result<(), ReplaceError> {
        self.with(SET_POLICY, |evaluator| {
            evaluator.check(SET_POLICY, &json!({ "policy": rego }))?;
            *evaluator = Evaluator::parse(rego, EVALUATION_LIMIT)?;
            Ok(())
        })
    }

    fn new(evaluator: Evaluator) -> Self {
        Self { evaluator: Arc::new(Mutex::new(evaluator)) }
    }

    fn with<E: From<Denied>>(&self, request: &str, act: impl FnOnce(&mut Evaluator) -> Result<(), E>) -> Result<(), E> {
        let mut evaluator = self.evaluator.lock().map_err(|_| {
            let reason = "an earlier evaluation broke off".to_owned();
            Denied::Evaluation { request: request.to_owned(), reason }
        })?;
        act(&mut evaluator)
    }
}

impl fmt::Debug for AgentPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AgentPolicy").finish_non_exhaustive()
    }
}

struct Evaluator {
    engine: Engine,
    /// The engine's data document.
    data: Value,
}

/// The answer of a rule that remembers.
#[derive(Deserialize)]
struct Answer {
    allowed: bool,
    ops: Option<Value>,
}

impl Evaluator {
    fn parse(rego: &str, limit: Duration) -> Result<Self, PolicyError> {
        if rego.len() > MAX_POLICY_BYTES {
            return Err(PolicyError::TooLong(rego.len()));
        }
        if let Some(line) = shape::too_deep(rego) {
            return Err(PolicyError::TooDeep(line));
        }
        let compile = |error: &dyn fmt::Display| PolicyError::Compile(head(error.to_string().trim(), MAX_REASON_BYTES).to_owned());
        let mut engine = Engine::new();
        engine.set_gather_prints(true);
        engine.set_strict_builtin_errors(false);
        engine.set_policy_length_config(LENGTHS);
        engine.set_execution_timer_config(ExecutionTimerConfig { limit, check_interval: STEPS_PER_CHECK });
        let package = engine.add_policy(FILE.to_owned(), rego.to_owned()).map_err(|error| compile(&error))?;
        if package != PACKAGE {
            return Err(PolicyError::Package(package.trim_start_matches("data.").to_owned()));
        }
        let data = state::initial();
        engine.add_data(regorus::Value::from(data.clone())).map_err(|error| compile(&error))?;
        // The first evaluation analyses all rules, so what cannot be evaluated at all is found here.
        engine.set_input(regorus::Value::new_object());
        let query = format!("{PACKAGE}.AllowRequestsFailingPolicy");
        let results = engine.eval_query(query, false).map_err(|error| compile(&error))?;
        let mut answers = results.result.iter().flat_map(|result| &result.expressions);
        if answers.any(|answer| answer.value == regorus::Value::Bool(true)) {
            tracing::warn!("the agent policy's AllowRequestsFailingPolicy is ignored: requests that fail it are denied");
        }
        Ok(Self { engine, data })
    }

    fn check(&mut self, name: &str, input: &Value) -> Result<(), Denied> {
        let request = name.to_owned();
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(Denied::Undefined { request, prints: String::new() });
        }
        // A broken rule says nothing of what an earlier one printed.
        drop(self.engine.take_prints());
        // Without an input, a rule that forbids something could not find it.
        let input = regorus::Value::from(input.clone());
        if input == regorus::Value::Undefined {
            return Err(Denied::Evaluation { request, reason: "the request is no JSON to the engine".to_owned() });
        }
        self.engine.set_input(input);
        let evaluated = self.engine.eval_rule(format!("{PACKAGE}.{name}"));
        let prints = self.engine.take_prints().unwrap_or_default().join(" ");
        let prints = tail(&prints, MAX_PRINTS_BYTES).to_owned();
        let answer = match evaluated {
            Ok(regorus::Value::Bool(true)) => return Ok(()),
            Ok(regorus::Value::Bool(false)) => return Err(Denied::Refused { request, prints }),
            Ok(regorus::Value::Undefined) => return Err(Denied::Undefined { request, prints }),
            Ok(value @ regorus::Value::Object(_)) => value,
            Ok(_) => return Err(Denied::Answer { request }),
            Err(error) if error.to_string() == NO_SUCH_RULE => return Err(Denied::Undefined { request, prints }),
            Err(error) => {
                let reason = head(error.to_string().trim(), MAX_REASON_BYTES).to_owned();
                return Err(Denied::Evaluation { request, reason });
            }
        };
        let answer = serde_json::to_value(&answer).and_then(serde_json::from_value);
        let Ok(Answer { allowed, ops }) = answer else { return Err(Denied::Answer { request }) };
        if !allowed {
            return Err(Denied::Refused { request, prints });
        }
        match ops {
            Some(ops) if ops != json!([]) => self.remember(ops).map_err(|source| Denied::State { request, source }),
            _ => Ok(()),
        }
    }

    /// Changes the state. Should the engine refuse the new one, it has none and so allows nothing that asks for it.
    fn remember(&mut self, operations: Value) -> Result<(), StateError> {
        let data = state::patched(&self.data, operations)?;
        self.engine.clear_data();
        self.engine.add_data(regorus::Value::from(data.clone())).map_err(|error| StateError::Malformed(error.to_string()))?;
        self.data = data;
        Ok(())
    }
}

fn printed(prints: &str) -> String {
    if prints.is_empty() { String::new() } else { format!(": {prints}") }
}

/// The beginning of a text.
fn head(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The end of a text.
fn tail(text: &str, bytes: usize) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..]
}

#[cfg(test)]
mod tests;
