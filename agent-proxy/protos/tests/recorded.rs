//! Recorded traffic of Kata's Rust shim and agent decodes without unknown fields and encodes again to the same bytes.
//!
//! What "the same" means: messages are compared byte for byte, except that entries of one map field are compared as a set, because
//! decoded maps are hash maps. Frames whose recorded payload was cut are counted and left out.

use std::path::{Path, PathBuf};

use peerpods_protos::{agent, health, hypervisor};
use protobuf::reflect::{MessageDescriptor, RuntimeFieldType, RuntimeType};
use protobuf::{MessageDyn, MessageFull};
use serde_json::Value;

/// One field as it stood on the wire: number, wire type, canonical content.
type Field = (u32, u32, Vec<u8>);

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(head)
}

/// The bytes of a message with the entries of each map sorted; an unknown field or bad encoding is an error.
fn canonical(kind: &MessageDescriptor, mut bytes: &[u8]) -> Result<Vec<u8>, String> {
    let bad = || format!("{} is cut short", kind.full_name());
    let mut fields: Vec<(bool, Field)> = Vec::new();
    while !bytes.is_empty() {
        let tag = u32::try_from(varint(&mut bytes).ok_or_else(bad)?).map_err(|_| bad())?;
        let (number, wire) = (tag >> 3, tag & 7);
        let field = kind.field_by_number(number).ok_or_else(|| format!("{} has no field {number}", kind.full_name()))?;
        let content = match wire {
            0 => varint(&mut bytes).ok_or_else(bad)?.to_le_bytes().to_vec(),
            1 => take(&mut bytes, 8).ok_or_else(bad)?.to_vec(),
            5 => take(&mut bytes, 4).ok_or_else(bad)?.to_vec(),
            2 => {
                let len = usize::try_from(varint(&mut bytes).ok_or_else(bad)?).map_err(|_| bad())?;
                let inner = take(&mut bytes, len).ok_or_else(bad)?;
                match field.runtime_field_type() {
                    RuntimeFieldType::Singular(RuntimeType::Message(kind)) | RuntimeFieldType::Repeated(RuntimeType::Message(kind)) => {
                        canonical(&kind, inner)?
                    }
                    _ => inner.to_vec(),
                }
            }
            other => return Err(format!("{} field {number} has wire type {other}", kind.full_name())),
        };
        fields.push((field.is_map(), (number, wire, content)));
    }
    // Map entries of one field stand together; only they may change places.
    for run in fields.chunk_by_mut(|a, b| a.0 && b.0 && a.1.0 == b.1.0) {
        run.sort();
    }
    Ok(fields
        .into_iter()
        .flat_map(|(_, (number, wire, content))| {
            [number.to_le_bytes().to_vec(), wire.to_le_bytes().to_vec(), content.len().to_le_bytes().to_vec(), content].concat()
        })
        .collect())
}

fn message_kind(service: &str, method: &str, is_request: bool) -> Option<MessageDescriptor> {
    let name = match (service, method, is_request) {
        ("hypervisor.Hypervisor", _, true) => format!("{method}Request"),
        ("hypervisor.Hypervisor", _, false) => format!("{method}Response"),
        ("grpc.Health", _, true) => "CheckRequest".into(),
        ("grpc.Health", "Check", false) => "HealthCheckResponse".into(),
        ("grpc.Health", _, false) => "VersionCheckResponse".into(),
        (_, "ReadStdout" | "ReadStderr", true) => "ReadStreamRequest".into(),
        (_, "ReadStdout" | "ReadStderr", false) => "ReadStreamResponse".into(),
        (_, "WriteStdin", true) => "WriteStreamRequest".into(),
        (_, "WriteStdin", false) => "WriteStreamResponse".into(),
        (_, "GetGuestDetails", true) => "GuestDetailsRequest".into(),
        (_, "GetGuestDetails", false) => "GuestDetailsResponse".into(),
        (_, "GetOOMEvent", false) => "OOMEvent".into(),
        (_, _, true) => format!("{method}Request"),
        (_, "WaitProcess" | "StatsContainer", false) => format!("{method}Response"),
        (_, _, false) => return Some(protobuf::well_known_types::empty::Empty::descriptor()),
    };
    let file = match service {
        "hypervisor.Hypervisor" => hypervisor::file_descriptor(),
        "grpc.Health" => health::file_descriptor(),
        _ => agent::file_descriptor(),
    };
    file.message_by_package_relative_name(&name)
}

fn check_message(kind: &MessageDescriptor, bytes: &[u8]) -> Result<(), String> {
    let message: Box<dyn MessageDyn> = kind.parse_from_bytes(bytes).map_err(|e| e.to_string())?;
    let again = message.write_to_bytes_dyn().map_err(|e| e.to_string())?;
    if canonical(kind, bytes)? != canonical(kind, &again)? || again.len() != bytes.len() {
        return Err(format!("{}: {} became {}", kind.full_name(), hex::encode(bytes), hex::encode(&again)));
    }
    Ok(())
}

/// The frame body around the message has the recorded length.
fn check_body(frame: &Value, payload: &[u8]) -> Result<(), String> {
    use protobuf::Message as _;
    let body = if frame["type"] == 1 {
        let request = ttrpc::proto::Request {
            service: frame["service"].as_str().unwrap_or_default().into(),
            method: frame["method"].as_str().unwrap_or_default().into(),
            timeout_nano: frame["timeout_nano"].as_i64().unwrap_or_default(),
            payload: payload.to_vec(),
            ..Default::default()
        };
        request.compute_size()
    } else {
        let code = frame["status"].as_i64().unwrap_or_default();
        let status = ttrpc::proto::Status {
            code: protobuf::EnumOrUnknown::from_i32(i32::try_from(code).unwrap_or(-1)),
            message: frame["message"].as_str().unwrap_or_default().into(),
            ..Default::default()
        };
        let is_present = code != 0 || frame["empty_status"] == true;
        let status = if is_present { protobuf::MessageField::some(status) } else { protobuf::MessageField::none() };
        ttrpc::proto::Response { status, payload: payload.to_vec(), ..Default::default() }.compute_size()
    };
    if Some(body) == frame["len"].as_u64() { Ok(()) } else { Err(format!("frame body is {body} bytes, recorded {}", frame["len"])) }
}

fn check_file(path: &Path) -> (usize, usize) {
    let (mut checked, mut cut) = (0, 0);
    let text = std::fs::read_to_string(path).expect("the recording is readable");
    for (number, line) in text.lines().enumerate() {
        let frame: Value = serde_json::from_str(line).expect("a recording has one JSON object a line");
        if frame["ev"] != "frame" || frame["sock"] == "cdh" {
            continue;
        }
        if !frame["truncated_from"].is_null() {
            cut += 1;
            continue;
        }
        let payload = hex::decode(frame["payload"].as_str().unwrap_or_default()).expect("payloads are hex");
        let (service, method) = (frame["service"].as_str().expect("has service"), frame["method"].as_str().expect("has method"));
        let kind = message_kind(service, method, frame["type"] == 1).unwrap_or_else(|| panic!("no message for {service}/{method}"));
        check_message(&kind, &payload)
            .and_then(|()| check_body(&frame, &payload))
            .unwrap_or_else(|cause| panic!("{}:{}: {method}: {cause}", path.display(), number + 1));
        checked += 1;
    }
    (checked, cut)
}

#[test]
fn recorded_frames_survive_decoding_and_encoding() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/kata-rs");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        println!("skipped: no recordings in {}", folder.display());
        return;
    };
    let mut total = (0, 0);
    for path in entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "jsonl")) {
        let (checked, cut) = check_file(&path);
        println!("{}: {checked} frames, {cut} cut ones left out", path.display());
        total = (total.0 + checked, total.1 + cut);
    }
    assert!(total.0 > 500, "only {} frames were checked", total.0);
}

#[test]
fn version_1_fixtures_survive_decoding_and_encoding() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/compat/agent/v1");
    let mut checked = 0;
    for entry in std::fs::read_dir(&folder).expect("fixtures are in the tree") {
        let path = entry.expect("folder is readable").path();
        let name = path.file_stem().and_then(|n| n.to_str()).expect("fixtures have names");
        let (package, message) = name.split_once('.').expect("fixtures are named package.Message.hex");
        let files = [agent::file_descriptor(), health::file_descriptor(), hypervisor::file_descriptor()];
        let kind = files
            .iter()
            .filter(|f| f.proto().package() == package)
            .find_map(|f| f.message_by_package_relative_name(message))
            .unwrap_or_else(|| panic!("no message {name}"));
        let bytes = hex::decode(std::fs::read_to_string(&path).expect("fixture is readable").trim()).expect("fixtures are hex");
        check_message(&kind, &bytes).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
        checked += 1;
    }
    assert!(checked >= 4, "only {checked} fixtures were found");
}

#[test]
fn unknown_field_is_reported() {
    let kind = hypervisor::StopVMRequest::descriptor();
    assert!(check_message(&kind, &hex::decode("0a01611201ff").expect("hex")).is_err());
}
