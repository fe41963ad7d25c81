//! What a policy sees of a request: the JSON that kata-agent makes of it.
//!
//! Kata serializes the structures that rust-protobuf generates from its protocol: members have the fields' names as in the `.proto`
//! files (`type` is a keyword in Rust and becomes `type_`), messages that are not set are null, all other fields are there even
//! when empty, enumerations are numbers, and bytes are arrays of numbers. Since that is one rule for all messages, so it is here,
//! by reflection: no field that a request can carry is hidden from a policy. Only CopyFile has a form of its own, upstream's
//! `PolicyCopyFileRequest`.
//!
//! The members of Kata's protocol that ours leaves out do nothing in this agent. Those that rules of genpolicy compare are added
//! with the value that says so.

use peerpods_protos::agent::CopyFileRequest;
use protobuf::MessageDyn;
use protobuf::descriptor::field_descriptor_proto::Type;
use protobuf::reflect::{FieldDescriptor, ReflectFieldRef, ReflectValueRef};
use serde_json::{Map, Value, json};

/// A request has no form that a policy could judge.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InputError {
    /// A field of raw bytes, which would be as many numbers.
    #[error("it carries {0} bytes in one field; at most {MAX_BYTES} are shown to a policy")]
    TooLong(usize),
    /// A symbolic link to something that is no text.
    #[error("its symbolic link has a target that is not UTF-8")]
    SymlinkTarget,
}

/// Shims send standard input in pieces of at most 32 KiB.
const MAX_BYTES: usize = 64 << 10;

/// Type bits of a file's mode, in its words for policies.
const FILE_TYPES: [(u32, &str); 3] = [(0o100_000, "Regular"), (0o040_000, "Directory"), (SYMLINK, "Symlink")];
const TYPE_MASK: u32 = 0o170_000;
const SYMLINK: u32 = 0o120_000;

/// Fields of Kata's newer protocols: message, member, and what it is for a request of ours.
const LEFT_OUT: [(&str, &str, Value); 1] = [("grpc.Storage", "shared", Value::Bool(false))];

/// The document that a policy finds as `input`.
pub(super) fn of(request: &dyn MessageDyn) -> Result<Value, InputError> {
    match request.downcast_ref::<CopyFileRequest>() {
        Some(request) => copy_file(request),
        None => message(request),
    }
}

/// Without the data, unless it is a path.
fn copy_file(request: &CopyFileRequest) -> Result<Value, InputError> {
    let kind = request.file_mode & TYPE_MASK;
    let symlink_target = match kind {
        SYMLINK => Some(std::str::from_utf8(&request.data).map_err(|_| InputError::SymlinkTarget)?),
        _ => None,
    };
    Ok(json!({
        "path": request.path,
        "file_type": FILE_TYPES.iter().find(|(bits, _)| *bits == kind).map_or("Unknown", |(_, name)| name),
        "symlink_target": symlink_target,
        "file_size": request.file_size,
        "file_mode": request.file_mode,
        "dir_mode": request.dir_mode,
        "uid": request.uid,
        "gid": request.gid,
        "offset": request.offset,
    }))
}

fn message(message: &dyn MessageDyn) -> Result<Value, InputError> {
    let descriptor = message.descriptor_dyn();
    let mut members = Map::new();
    for (_, member, value) in LEFT_OUT.iter().filter(|(name, ..)| *name == descriptor.full_name()) {
        members.insert((*member).to_owned(), value.clone());
    }
    for field in descriptor.fields() {
        if let Some(choice) = field.containing_oneof() {
            let member = members.entry(choice.name()).or_insert(Value::Null);
            if let Some(chosen) = field.get_singular(message) {
                *member = json!({ variant(field.name()): value(&chosen)? });
            }
            continue;
        }
        let value = match field.get_reflect(message) {
            ReflectFieldRef::Optional(optional) => match optional.value() {
                Some(set) => value(&set)?,
                None if has_presence(&field) => Value::Null,
                None => value(&field.singular_default_value())?,
            },
            ReflectFieldRef::Repeated(items) => items.into_iter().map(|item| value(&item)).collect::<Result<_, _>>()?,
            ReflectFieldRef::Map(entries) => {
                let entries = entries.into_iter().map(|(key, item)| Ok((key.to_str().unwrap_or_default().to_owned(), value(&item)?)));
                Value::Object(entries.collect::<Result<_, InputError>>()?)
            }
        };
        members.insert(member_name(field.name()), value);
    }
    Ok(Value::Object(members))
}

fn value(value: &ReflectValueRef<'_>) -> Result<Value, InputError> {
    Ok(match value {
        ReflectValueRef::U32(number) => (*number).into(),
        ReflectValueRef::U64(number) => (*number).into(),
        ReflectValueRef::I32(number) | ReflectValueRef::Enum(_, number) => (*number).into(),
        ReflectValueRef::I64(number) => (*number).into(),
        ReflectValueRef::F32(number) => (*number).into(),
        ReflectValueRef::F64(number) => (*number).into(),
        ReflectValueRef::Bool(is_true) => (*is_true).into(),
        ReflectValueRef::String(text) => (*text).into(),
        ReflectValueRef::Bytes(bytes) if bytes.len() > MAX_BYTES => return Err(InputError::TooLong(bytes.len())),
        ReflectValueRef::Bytes(bytes) => (*bytes).into(),
        ReflectValueRef::Message(inner) => message(&**inner)?,
    })
}

/// Whether the field knows "not set" from "empty".
fn has_presence(field: &FieldDescriptor) -> bool {
    field.proto().type_() == Type::TYPE_MESSAGE || field.proto().proto3_optional()
}

/// As rust-protobuf names the field.
fn member_name(field: &str) -> String {
    if field == "type" { "type_".to_owned() } else { field.to_owned() }
}

/// As rust-protobuf names a choice: its field in camel case.
fn variant(field: &str) -> String {
    let capital = |word: &str| word.chars().take(1).flat_map(char::to_uppercase).chain(word.chars().skip(1)).collect::<String>();
    field.split('_').map(capital).collect()
}

#[cfg(test)]
mod tests {
    use peerpods_protos::agent::{
        Device, ExecProcessRequest, MemAgentMemcgConfig, SetGuestDateTimeRequest, Storage, StringUser, UpdateInterfaceRequest,
        WriteStreamRequest,
    };
    use peerpods_protos::oci::linux_syscall::ErrnoRet;
    use peerpods_protos::oci::{LinuxSyscall, Mount, Process};
    use peerpods_protos::types::{IPAddress, IPFamily, Interface};
    use protobuf::{EnumOrUnknown, MessageField};

    use super::*;

    #[test]
    fn unset_messages_are_null_and_empty_fields_are_there() {
        let mut request = ExecProcessRequest { container_id: "c".into(), ..Default::default() };
        let bare = json!({
            "container_id": "c", "exec_id": "", "string_user": null, "process": null, "stdin_port": 0, "stdout_port": 0, "stderr_port": 0,
        });
        assert_eq!(of(&request).unwrap(), bare);
        request.process = MessageField::some(Process { Args: vec!["ls".into()], OOMScoreAdj: -5, ..Default::default() });
        request.string_user = MessageField::some(StringUser::new());
        let full = of(&request).unwrap();
        assert_eq!(full["string_user"], json!({"uid": "", "gid": "", "additionalGids": []}));
        let process = json!({
            "Terminal": false, "ConsoleSize": null, "User": null, "Args": ["ls"], "Env": [], "Cwd": "", "Capabilities": null,
            "Rlimits": [], "NoNewPrivileges": false, "ApparmorProfile": "", "OOMScoreAdj": -5, "SelinuxLabel": "",
        });
        assert_eq!(full["process"], process);
    }

    #[test]
    fn names_and_numbers_are_katas() {
        let mount = Mount { type_: "bind".into(), ..Default::default() };
        assert_eq!(of(&mount).unwrap(), json!({"destination": "", "source": "", "type_": "bind", "options": []}));
        assert_eq!(of(&Device::new()).unwrap()["type_"], "");
        assert_eq!(of(&SetGuestDateTimeRequest { Sec: i64::MIN, ..Default::default() }).unwrap()["Sec"], i64::MIN);
        let storage = of(&Storage { driver: "local".into(), ..Default::default() }).unwrap();
        assert_eq!((&storage["driver"], &storage["fs_group"], &storage["shared"]), (&json!("local"), &Value::Null, &json!(false)));
        let address = IPAddress { family: EnumOrUnknown::new(IPFamily::v6), ..Default::default() };
        let interface = Interface { IPAddresses: vec![address], hwAddr: "02:00".into(), ..Default::default() };
        let request = UpdateInterfaceRequest { interface: MessageField::some(interface), ..Default::default() };
        let shown = of(&request).unwrap();
        assert_eq!(shown["interface"]["hwAddr"], "02:00");
        assert_eq!(shown["interface"]["IPAddresses"], json!([{"family": 1, "address": "", "mask": ""}]));
    }

    #[test]
    fn choices_and_optional_fields_are_there_or_null() {
        let mut syscall = LinuxSyscall::new();
        assert_eq!(of(&syscall).unwrap()["ErrnoRet"], Value::Null);
        syscall.ErrnoRet = Some(ErrnoRet::Errnoret(0));
        assert_eq!(of(&syscall).unwrap()["ErrnoRet"], json!({"Errnoret": 0}));
        let config = MemAgentMemcgConfig { swap: Some(false), ..Default::default() };
        let shown = of(&config).unwrap();
        assert_eq!((&shown["disabled"], &shown["swap"]), (&Value::Null, &json!(false)));
    }

    #[test]
    fn bytes_are_numbers_up_to_a_limit() {
        let mut request = WriteStreamRequest { data: vec![0, 255], ..Default::default() };
        assert_eq!(of(&request).unwrap()["data"], json!([0, 255]));
        request.data = vec![0; MAX_BYTES + 1];
        assert_eq!(of(&request), Err(InputError::TooLong(MAX_BYTES + 1)));
    }

    #[test]
    fn copied_files_are_shown_without_their_data() {
        let request = |mode, data: &[u8]| CopyFileRequest { path: "/p".into(), file_mode: mode, data: data.to_vec(), ..Default::default() };
        let file = of(&request(0o100_644, &[0xff])).unwrap();
        let expected = json!({
            "path": "/p", "file_type": "Regular", "symlink_target": null, "file_size": 0, "file_mode": 0o100_644, "dir_mode": 0, "uid": 0,
            "gid": 0, "offset": 0,
        });
        assert_eq!(file, expected);
        assert_eq!(of(&request(0o120_777, b"..data/a")).unwrap()["symlink_target"], "..data/a");
        assert_eq!(of(&request(0o120_777, &[0xff])), Err(InputError::SymlinkTarget));
        for (mode, name) in [(0o040_755, "Directory"), (0o020_000, "Unknown"), (0, "Unknown"), (0o140_000, "Unknown")] {
            assert_eq!(of(&request(mode, b"")).unwrap()["file_type"], name, "{mode:o}");
        }
    }

    #[test]
    fn only_type_is_a_keyword_of_rust() {
        const KEYWORDS: [&str; 20] = [
            "as", "box", "const", "crate", "enum", "final", "fn", "for", "impl", "in", "let", "match", "mod", "move", "priv", "pub", "ref",
            "static", "use", "where",
        ];
        for file in
            [peerpods_protos::agent::file_descriptor(), peerpods_protos::oci::file_descriptor(), peerpods_protos::types::file_descriptor()]
        {
            for message in file.messages() {
                for field in message.fields() {
                    assert!(!KEYWORDS.contains(&field.name()), "{}", field.full_name());
                }
            }
        }
    }
}
