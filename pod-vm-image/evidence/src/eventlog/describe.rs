//! Words for events, as Trustee's claims have them.

use serde_json::{Map, Value, json};

use super::Event;
use crate::bytes::Reader;

const EV_POST_CODE: u32 = 1;
const EV_EVENT_TAG: u32 = 6;
const EV_PLATFORM_CONFIG_FLAGS: u32 = 0x0a;
const EV_IPL: u32 = 0x0d;
const EV_EFI_ACTION: u32 = 0x8000_0007;
const EV_EFI_BOOT_SERVICES_APPLICATION: u32 = 0x8000_0003;
const EV_EFI_PLATFORM_FIRMWARE_BLOB2: u32 = 0x8000_000a;

/// Names of types (profile, table 14).
pub(super) fn type_name(kind: u32) -> String {
    let name = match kind {
        0 => "EV_PREBOOT_CERT",
        EV_POST_CODE => "EV_POST_CODE",
        3 => "EV_NO_ACTION",
        4 => "EV_SEPARATOR",
        5 => "EV_ACTION",
        EV_EVENT_TAG => "EV_EVENT_TAG",
        7 => "EV_S_CRTM_CONTENTS",
        8 => "EV_S_CRTM_VERSION",
        9 => "EV_CPU_MICROCODE",
        EV_PLATFORM_CONFIG_FLAGS => "EV_PLATFORM_CONFIG_FLAGS",
        0x0b => "EV_TABLE_OF_DEVICES",
        0x0c => "EV_COMPACT_HASH",
        EV_IPL => "EV_IPL",
        0x0e => "EV_IPL_PARTITION_DATA",
        0x0f => "EV_NONHOST_CODE",
        0x10 => "EV_NONHOST_CONFIG",
        0x11 => "EV_NONHOST_INFO",
        0x12 => "EV_OMIT_BOOT_DEVICE_EVENTS",
        0x8000_0001 => "EV_EFI_VARIABLE_DRIVER_CONFIG",
        0x8000_0002 => "EV_EFI_VARIABLE_BOOT",
        EV_EFI_BOOT_SERVICES_APPLICATION => "EV_EFI_BOOT_SERVICES_APPLICATION",
        0x8000_0004 => "EV_EFI_BOOT_SERVICES_DRIVER",
        0x8000_0005 => "EV_EFI_RUNTIME_SERVICES_DRIVER",
        0x8000_0006 => "EV_EFI_GPT_EVENT",
        EV_EFI_ACTION => "EV_EFI_ACTION",
        0x8000_0008 => "EV_EFI_PLATFORM_FIRMWARE_BLOB",
        0x8000_0009 => "EV_EFI_HANDOFF_TABLES",
        EV_EFI_PLATFORM_FIRMWARE_BLOB2 => "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
        0x8000_000b => "EV_EFI_HANDOFF_TABLES2",
        0x8000_000c => "EV_EFI_VARIABLE_BOOT2",
        0x8000_0010 => "EV_EFI_HCRTM_EVENT",
        0x8000_00e0 => "EV_EFI_VARIABLE_AUTHORITY",
        0x8000_00e1 => "EV_EFI_SPDM_FIRMWARE_BLOB",
        0x8000_00e2 => "EV_EFI_SPDM_FIRMWARE_CONFIG",
        other => return format!("{other:#010x}"),
    };
    name.to_owned()
}

/// Names of algorithms, as Trustee spells them.
pub(super) fn algorithm_name(id: u16) -> String {
    match id {
        0x0004 => "SHA-1".to_owned(),
        0x000b => "SHA-256".to_owned(),
        0x000c => "SHA-384".to_owned(),
        0x000d => "SHA-512".to_owned(),
        other => format!("{other:#06x}"),
    }
}

/// What the data says, where it has words.
pub(super) fn details(event: &Event) -> Value {
    let text = match event.kind {
        EV_PLATFORM_CONFIG_FLAGS => platform_config(&event.data),
        EV_EFI_PLATFORM_FIRMWARE_BLOB2 => blob_name(&event.data),
        EV_EVENT_TAG => tagged(&event.data),
        EV_IPL => Some(utf16_or_utf8(&event.data)),
        EV_EFI_ACTION | EV_POST_CODE | 5 => Some(printable(&event.data)),
        EV_EFI_BOOT_SERVICES_APPLICATION => return json!({"device_paths": device_paths(&event.data)}),
        _ => None,
    };
    let mut details = Map::new();
    if let Some(text) = text {
        details.insert("string".to_owned(), text.into());
    }
    Value::Object(details)
}

/// TD-shim: a descriptor of 16 bytes, a size, and text.
fn platform_config(data: &[u8]) -> Option<String> {
    let mut reader = Reader::new(data);
    let descriptor = printable(reader.take(16, "descriptor").ok()?);
    let content = reader.sized("content").ok()?;
    let text = std::str::from_utf8(content).ok().map(|text| text.trim_end_matches('\0'));
    match text {
        Some(text) if !text.is_empty() && text.chars().all(|c| !c.is_control()) => Some(format!("{descriptor} {text}")),
        _ => Some(String::new()),
    }
}

/// UEFI_PLATFORM_FIRMWARE_BLOB2: a name with its length in a byte.
fn blob_name(data: &[u8]) -> Option<String> {
    let (length, rest) = data.split_first()?;
    rest.get(..usize::from(*length)).map(printable)
}

/// TCG_PCClientTaggedEvent: a number, a size, and text.
fn tagged(data: &[u8]) -> Option<String> {
    let mut reader = Reader::new(data);
    reader.u32("number").ok()?;
    Some(utf16_or_utf8(reader.sized("content").ok()?))
}

/// UEFI_IMAGE_LOAD_EVENT: the file names of its device path.
fn device_paths(data: &[u8]) -> Vec<String> {
    const MEDIA: u8 = 4;
    const FILE: u8 = 4;
    let mut paths = Vec::new();
    let Some(mut nodes) = data.get(32..) else { return paths };
    while let [kind, subkind, low, high, ..] = nodes {
        let length = usize::from(u16::from_le_bytes([*low, *high]));
        let Some(node) = nodes.get(4..length) else { break };
        if (*kind, *subkind) == (MEDIA, FILE) {
            paths.push(format!("File({})", utf16_or_utf8(node)));
        }
        nodes = &nodes[length..];
    }
    paths
}

fn utf16_or_utf8(bytes: &[u8]) -> String {
    let is_utf16 = bytes.len().is_multiple_of(2) && bytes.chunks_exact(2).take(4).all(|pair| pair[1] == 0);
    if !is_utf16 {
        return printable(bytes);
    }
    let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).take_while(|unit| *unit != 0).collect();
    String::from_utf16_lossy(&units)
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim_end_matches('\0').chars().filter(|c| !c.is_control()).collect()
}
