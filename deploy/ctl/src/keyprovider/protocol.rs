//! ocicrypt's key provider protocol: JSON in, JSON out.
//!
//! Go writes byte strings as base64 and reads arrays of numbers, too; ocicrypt-rs writes and reads arrays. So arrays are written, and both
//! are read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use super::packet::{Packet, WRAP_TYPE};
use crate::key_file::{self, KeyFileError, KeyId};

/// Where keys are.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    /// A folder of keys by the path of their resource; `None` leaves only keys that parameters name.
    pub(crate) folder: Option<PathBuf>,
    /// Whether one that is not there is made.
    pub(crate) may_create: bool,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Operation {
    #[serde(rename = "keywrap")]
    Wrap,
    #[serde(rename = "keyunwrap")]
    Unwrap,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    /// Not the JSON of this protocol.
    #[error("the request is not one of ocicrypt's key provider protocol")]
    Malformed(#[source] serde_json::Error),
    /// Parameters of the request's kind are missing.
    #[error("the request has no {0}")]
    Incomplete(&'static str),
    /// One kind of request came where another belongs.
    #[error("the request says {0}, which is another call's")]
    OtherOperation(&'static str),
    /// There is not exactly one key for this provider.
    #[error("parameters for {found} keys; next: give one --encryption-key provider:attestation-agent:keyid=...::keypath=...")]
    Recipients {
        /// How many there were.
        found: usize,
    },
    /// The parameters of the key.
    #[error("parameters {text:?}: {reason}; next: write keyid=kbs:///default/key/1::keypath=/abs/key::algorithm=A256GCM")]
    Parameters {
        /// As they came.
        text: String,
        /// What is wrong with them.
        reason: String,
    },
    /// A key that has no file.
    #[error("there is no file for key {kid}; next: give --keys DIR with the key at DIR/{path}")]
    NoFile {
        /// The key's name.
        kid: String,
        /// Below the folder.
        path: String,
    },
    /// The key's file.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The packet belongs to another key, or is damaged.
    #[error("key {kid} does not open the packet")]
    WrongKey {
        /// The key's name.
        kid: String,
    },
    /// The cipher refuses.
    #[error("the cipher failed")]
    Cipher,
}

#[derive(Deserialize)]
struct RawRequest {
    op: Operation,
    keywrapparams: Option<WrapParameters>,
    keyunwrapparams: Option<UnwrapParameters>,
}

#[derive(Deserialize)]
struct WrapParameters {
    ec: Option<Config>,
    optsdata: Option<Bytes>,
}

#[derive(Deserialize)]
struct Config {
    /// By the provider's name, what the user wrote behind it.
    #[serde(rename = "Parameters", default)]
    parameters: Option<BTreeMap<String, Vec<Bytes>>>,
}

#[derive(Deserialize)]
struct UnwrapParameters {
    dc: Option<Config>,
    annotation: Option<Bytes>,
}

/// Base64 or numbers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Bytes {
    Text(String),
    Numbers(Vec<u8>),
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    keywrapresults: Option<Wrapped<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keyunwrapresults: Option<Unwrapped<'a>>,
}

#[derive(Serialize)]
struct Wrapped<'a> {
    annotation: &'a [u8],
}

#[derive(Serialize)]
struct Unwrapped<'a> {
    optsdata: &'a [u8],
}

/// The name under which all of the project's tools ask.
const PROVIDER: &str = "attestation-agent";

/// Answers either kind of request.
pub(super) fn answer(request: &[u8], keys: &Keys) -> Result<Vec<u8>, ProtocolError> {
    respond(serde_json::from_slice(request).map_err(ProtocolError::Malformed)?, keys)
}

/// Answers a request of this kind only.
pub(super) fn answer_to(operation: Operation, request: &[u8], keys: &Keys) -> Result<Vec<u8>, ProtocolError> {
    let request: RawRequest = serde_json::from_slice(request).map_err(ProtocolError::Malformed)?;
    if request.op != operation {
        return Err(ProtocolError::OtherOperation(match request.op {
            Operation::Wrap => "keywrap",
            Operation::Unwrap => "keyunwrap",
        }));
    }
    respond(request, keys)
}

fn respond(request: RawRequest, keys: &Keys) -> Result<Vec<u8>, ProtocolError> {
    let answer = match request.op {
        Operation::Wrap => {
            let parameters = request.keywrapparams.ok_or(ProtocolError::Incomplete("keywrapparams"))?;
            let annotation = wrap(parameters, keys)?;
            serde_json::to_vec(&Answer { keywrapresults: Some(Wrapped { annotation: &annotation }), keyunwrapresults: None })
        }
        Operation::Unwrap => {
            let parameters = request.keyunwrapparams.ok_or(ProtocolError::Incomplete("keyunwrapparams"))?;
            let optsdata = unwrap(parameters, keys)?;
            serde_json::to_vec(&Answer { keywrapresults: None, keyunwrapresults: Some(Unwrapped { optsdata: &optsdata }) })
        }
    };
    answer.map_err(ProtocolError::Malformed)
}

fn wrap(parameters: WrapParameters, keys: &Keys) -> Result<Vec<u8>, ProtocolError> {
    let options = parameters.optsdata.ok_or(ProtocolError::Incomplete("optsdata"))?.decode("optsdata")?;
    let mut all = parameters.ec.and_then(|config| config.parameters).unwrap_or_default();
    // Another provider's name is right when it is the only one: names are the user's choice.
    let given = match all.remove(PROVIDER) {
        Some(given) => given,
        None if all.len() == 1 => all.into_values().next().unwrap_or_default(),
        None => Vec::new(),
    };
    let [recipient] = <[Bytes; 1]>::try_from(given).map_err(|given| ProtocolError::Recipients { found: given.len() })?;
    let text = String::from_utf8_lossy(&recipient.decode("Parameters")?).into_owned();
    let recipient = Recipient::parse(&text).map_err(|reason| ProtocolError::Parameters { text, reason })?;
    let path = match recipient.path {
        Some(path) => path,
        None => keys.path(&recipient.id)?,
    };
    let (key, is_new) = key_file::read_or_create(&path, keys.may_create)?;
    if is_new {
        eprintln!("peerpodctl: made key {} for {}; register it with the key broker", path.display(), recipient.id.as_str());
    }
    let packet = Packet::seal(&options, &key, recipient.id.as_str()).map_err(|_| ProtocolError::Cipher)?;
    serde_json::to_vec(&packet).map_err(ProtocolError::Malformed)
}

fn unwrap(parameters: UnwrapParameters, keys: &Keys) -> Result<Zeroizing<Vec<u8>>, ProtocolError> {
    let annotation = parameters.annotation.ok_or(ProtocolError::Incomplete("annotation"))?.decode("annotation")?;
    let packet: Packet = serde_json::from_slice(&annotation).map_err(ProtocolError::Malformed)?;
    let id = KeyId::parse(&packet.kid).map_err(|reason| ProtocolError::Parameters { text: packet.kid.clone(), reason })?;
    let path = match named_path(parameters.dc, &id)? {
        Some(path) => path,
        None => keys.path(&id)?,
    };
    let key = key_file::read(&path)?;
    packet.open(&key).map_err(|_| ProtocolError::WrongKey { kid: packet.kid })
}

/// The key's file, if the user names it as for wrapping: `--decryption-key provider:attestation-agent:keyid=...::keypath=...`.
fn named_path(config: Option<Config>, id: &KeyId) -> Result<Option<PathBuf>, ProtocolError> {
    for given in config.and_then(|config| config.parameters).unwrap_or_default().into_values().flatten() {
        let text = String::from_utf8_lossy(&given.decode("Parameters")?).into_owned();
        // Behind a provider's name alone skopeo writes `Enabled`, and ocicrypt-rs the name.
        if !text.contains('=') {
            continue;
        }
        let recipient = Recipient::parse(&text).map_err(|reason| ProtocolError::Parameters { text, reason })?;
        if recipient.id == *id && recipient.path.is_some() {
            return Ok(recipient.path);
        }
    }
    Ok(None)
}

impl Keys {
    fn path(&self, id: &KeyId) -> Result<PathBuf, ProtocolError> {
        let path = id.resource_path();
        let missing = || ProtocolError::NoFile { kid: id.as_str().to_owned(), path: path.to_owned() };
        Ok(self.folder.as_ref().ok_or_else(missing)?.join(path))
    }
}

impl Bytes {
    fn decode(self, member: &'static str) -> Result<Zeroizing<Vec<u8>>, ProtocolError> {
        match self {
            Self::Numbers(bytes) => Ok(Zeroizing::new(bytes)),
            Self::Text(mut text) => {
                let bytes = STANDARD.decode(&text).map(Zeroizing::new).map_err(|_| ProtocolError::Incomplete(member));
                text.zeroize();
                bytes
            }
        }
    }
}

/// For whom a key is wrapped.
#[derive(Debug, PartialEq, Eq)]
struct Recipient {
    id: KeyId,
    /// `None` looks in the folder of keys.
    path: Option<PathBuf>,
}

impl Recipient {
    /// Reads `name=value` parts with `::` between them. Names that are not known are refused, so that none is wrapped otherwise than asked.
    fn parse(text: &str) -> Result<Self, String> {
        let (mut id, mut path) = (None, None);
        for part in text.split("::").filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').ok_or_else(|| format!("{part:?} is not NAME=VALUE"))?;
            match name {
                "keyid" => id = Some(KeyId::parse(value)?),
                "keypath" if Path::new(value).is_absolute() => path = Some(PathBuf::from(value)),
                "keypath" => return Err(format!("keypath {value:?} is not absolute")),
                "algorithm" if value == WRAP_TYPE => {}
                "algorithm" => return Err(format!("algorithm {value:?} is not {WRAP_TYPE}, the only one that guests read")),
                "sample" if value == "false" => {}
                "sample" => return Err("the sample key is known to everyone".to_owned()),
                _ => return Err(format!("{name:?} is not known")),
            }
        }
        Ok(Self { id: id.ok_or("there is no keyid")?, path })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const ID: &str = "kbs:///default/key/1";

    fn keys(folder: &Path) -> Keys {
        Keys { folder: Some(folder.to_owned()), may_create: false }
    }

    fn ask(request: &Value, keys: &Keys) -> Result<Value, ProtocolError> {
        answer(request.to_string().as_bytes(), keys).map(|answer| serde_json::from_slice(&answer).unwrap())
    }

    fn wrapping(parameters: &[&str]) -> Value {
        let parameters: Vec<String> = parameters.iter().map(|text| STANDARD.encode(text)).collect();
        json!({"op": "keywrap", "keywrapparams": {"ec": {"Parameters": {PROVIDER: parameters}}, "optsdata": STANDARD.encode("x")}, "keyunwrapparams": {"dc": null, "annotation": null}})
    }

    #[test]
    fn key_of_a_path_wraps_and_the_folders_key_unwraps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("default/key/1");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, [7; 32]).unwrap();
        let wrapped =
            ask(&wrapping(&[&format!("keyid={ID}::keypath={}", path.display())]), &Keys { folder: None, may_create: false }).unwrap();
        let packet: Vec<u8> = serde_json::from_value(wrapped["keywrapresults"]["annotation"].clone()).unwrap();
        let shown: Value = serde_json::from_slice(&packet).unwrap();
        assert_eq!((&shown["kid"], &shown["wrap_type"]), (&json!(ID), &json!("A256GCM")));
        assert!(wrapped.get("keyunwrapresults").is_none());
        for annotation in [json!(STANDARD.encode(&packet)), json!(packet)] {
            let request = json!({"op": "keyunwrap", "keyunwrapparams": {"annotation": annotation}});
            assert_eq!(ask(&request, &keys(folder.path())).unwrap(), json!({"keyunwrapresults": {"optsdata": [b'x']}}));
        }
        let by_name = |parameters: &str| {
            let dc = json!({"Parameters": {PROVIDER: [STANDARD.encode(parameters)]}});
            ask(&json!({"op": "keyunwrap", "keyunwrapparams": {"dc": dc, "annotation": packet}}), &Keys { folder: None, may_create: false })
        };
        assert!(by_name(&format!("keyid={ID}::keypath={}", path.display())).is_ok());
        assert!(matches!(by_name("Enabled"), Err(ProtocolError::NoFile { .. })));
        let other = format!("keyid=kbs:///default/key/2::keypath={}", path.display());
        assert!(matches!(by_name(&other), Err(ProtocolError::NoFile { .. })));
        assert!(matches!(by_name("keypath=relative"), Err(ProtocolError::Parameters { .. })));
        let request = json!({"op": "keyunwrap", "keyunwrapparams": {"annotation": packet}});
        assert!(matches!(ask(&request, &Keys { folder: None, may_create: true }), Err(ProtocolError::NoFile { .. })));
        std::fs::write(&path, [8; 32]).unwrap();
        assert!(matches!(ask(&request, &keys(folder.path())), Err(ProtocolError::WrongKey { kid }) if kid == ID));
    }

    #[test]
    fn odd_requests_are_refused_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let keys = keys(folder.path());
        for (parameters, named) in [
            (vec![], "parameters for 0 keys"),
            (vec!["keyid=a", "keyid=b"], "parameters for 2 keys"),
            (vec!["keyid=default/key/1"], "does not begin with kbs://"),
            (vec!["keypath=/k"], "there is no keyid"),
            (vec!["keyid=kbs:///default/key/1::keypath=k"], "not absolute"),
            (vec!["keyid=kbs:///default/key/1::algorithm=A256CTR"], "only one that guests read"),
            (vec!["sample=true"], "known to everyone"),
            (vec!["keyid=kbs:///default/key/1::x=y"], "\"x\" is not known"),
            (vec!["keyid=kbs:///default/key/1"], "--create"),
        ] {
            let error = ask(&wrapping(&parameters), &keys).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(matches!(ask(&json!({"op": "keywrap"}), &keys), Err(ProtocolError::Incomplete("keywrapparams"))));
        assert!(matches!(ask(&json!({"op": "other"}), &keys), Err(ProtocolError::Malformed(_))));
        assert!(matches!(answer(b"", &keys), Err(ProtocolError::Malformed(_))));
    }

    #[test]
    fn other_names_of_the_provider_are_as_good() {
        let folder = tempfile::tempdir().unwrap();
        let mut request = wrapping(&[&format!("keyid={ID}")]);
        let parameters = request["keywrapparams"]["ec"]["Parameters"][PROVIDER].take();
        request["keywrapparams"]["ec"]["Parameters"] = json!({"mine": parameters});
        assert!(ask(&request, &Keys { may_create: true, ..keys(folder.path()) }).is_ok());
    }
}
