//! Generated policies over evidence that real hardware made, as `peerpods-evidence` verifies it.
//!
//! The recordings are not part of the project: `PEERPODS_VECTORS` names their folder. They were bound with no initdata of ours, so where the
//! register's value counts it is put in; every other claim is as recorded.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use peerpods_evidence::snp::SnpPolicy;
use peerpods_evidence::tdx::{TdxPolicy, verify_quote};
use peerpods_evidence::{Trust, appraise, azure};
use serde_json::{Value, json};

use super::broker_policies::{appraised, pins, released};
use super::*;

/// Within the validity of every recorded certificate: 1 June 2025.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_748_736_000)
}

/// A recording. Without the folder there is none, and the test says so; in it none may be missing.
fn vector(name: &str) -> Option<Vec<u8>> {
    let Some(folder) = std::env::var_os("PEERPODS_VECTORS") else {
        println!("not checked: PEERPODS_VECTORS does not name the folder of recorded evidence");
        return None;
    };
    let path = PathBuf::from(folder).join(name);
    Some(std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
}

/// The claims as a broker has them, bound with the initdata of `pins`.
fn annotated(pins: &Pins, mut claims: Value) -> Value {
    let registers = pins.initdata.registers();
    claims.as_object_mut().unwrap().remove("init_data");
    let init_data = if pins.tee == Tee::Tdx {
        claims["quote"]["body"]["rtmr_3"] = hex::encode(registers.rtmr3.unwrap()).into();
        "00".repeat(48)
    } else {
        hex::encode(registers.pcr08.unwrap())
    };
    json!({ pins.tee.name(): claims, "init_data": init_data })
}

/// The evidence's own values as measurements.
fn measured(claims: &Value, paths: &[&str]) -> String {
    let value = |path: &str| claims.pointer(path).unwrap_or_else(|| panic!("{path}")).clone();
    Value::Object(paths.iter().map(|path| (path.rsplit('/').next().unwrap().to_owned(), value(path))).collect()).to_string()
}

/// Whether the pod gets its key with a token that a broker with these policies would issue.
fn is_released(pins: &Pins, claims: &Value) -> bool {
    let trust = appraised(pins, claims);
    let status =
        if trust.as_object().unwrap().values().all(|value| (2..32).contains(&value.as_i64().unwrap())) { "affirming" } else { "warning" };
    released(pins, status, claims, &json!("default/key/1"), "resource")
}

/// The key is released, and no more when one of these claims has another value.
fn check_pins(pins: &Pins, claims: &Value, pointers: &[&str]) {
    let tee = pins.tee.name();
    pins.check().unwrap();
    assert_eq!(appraised(pins, claims), json!({"hardware": 2, "executables": 3, "configuration": 2}), "{tee}");
    assert!(is_released(pins, claims), "{tee}");
    for pointer in pointers {
        let pointer = if *pointer == "/init_data" { (*pointer).to_owned() } else { format!("/{tee}{pointer}") };
        let other = match claims.pointer(&pointer).unwrap_or_else(|| panic!("{pointer}")) {
            Value::Bool(value) => json!(!value),
            Value::Number(number) => json!(number.as_u64().unwrap() ^ 1),
            // No register of the recordings is that, and some are zeros.
            _ => json!("ab".repeat(32)),
        };
        assert!(!is_released(pins, &changed(claims, &pointer, &other)), "{pointer}");
    }
}

const BOOT: [&str; 3] = ["/tpm/pcr04", "/tpm/pcr09", "/tpm/pcr11"];
const TCB: [&str; 4] = ["/reported_tcb_bootloader", "/reported_tcb_microcode", "/reported_tcb_snp", "/reported_tcb_tee"];

#[test]
fn azure_snp_evidence_gets_its_key_by_every_pinned_value() {
    let Some(json) = vector("azure/snp_evidence_v2.json") else { return };
    let request = "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef";
    let request: [u8; 48] = hex::decode(request).unwrap().try_into().unwrap();
    let trust = Trust { snp: SnpPolicy::default(), ..Trust::default() };
    let claims = appraise("az-snp-vtpm", &json, &request, &trust, now()).unwrap().claims;
    let pinned = [&BOOT[..], &TCB, &["/measurement"]].concat();
    let pins = pins(Tee::AzSnpVtpm, &measured(&claims, &pinned));
    assert!(pins.warnings().is_empty());
    let others = ["/init_data", "/policy_debug_allowed", "/policy_migrate_ma"];
    check_pins(&pins, &annotated(&pins, claims), &[&pinned[..], &others].concat());
}

#[test]
fn azure_tdx_evidence_gets_its_key_by_every_pinned_value() {
    let Some(json) = vector("azure/tdx_evidence_v1.json") else { return };
    let claims = azure::verify_tdx(&json, b"challenge", &TdxPolicy::default(), None, now()).unwrap().claims();
    let pinned = [&BOOT[..], &["/quote/body/mr_td", "/quote/body/mr_seam"]].concat();
    let mut pins = pins(Tee::AzTdxVtpm, &measured(&claims, &pinned));
    let claims = annotated(&pins, claims);
    // Nothing was recorded of what Intel said of the platform, and a policy that accepts no such platform denies it.
    pins.check().unwrap();
    assert!(!is_released(&pins, &claims));
    pins.accepted_tcb.insert(TcbStatus::Unknown);
    let others = ["/init_data", "/tcb_status", "/td_attributes/debug", "/quote/header/tee_type", "/quote/header/vendor_id"];
    check_pins(&pins, &claims, &[&pinned[..], &others].concat());
}

#[test]
fn tdx_evidence_gets_its_key_by_every_pinned_value() {
    let Some(quote) = vector("tdx/quote_v4.bin") else { return };
    let claims = verify_quote(&quote, None, now()).unwrap().claims(None);
    let pinned = ["/quote/body/mr_td", "/quote/body/rtmr_1", "/quote/body/rtmr_2"];
    let mut pins = pins(Tee::Tdx, &measured(&claims, &pinned));
    pins.accepted_tcb.insert(TcbStatus::Unknown);
    let recorded = annotated(&pins, claims);
    // The recorded domain lets debuggers in.
    assert_eq!(appraised(&pins, &recorded)["configuration"], 36);
    assert!(!is_released(&pins, &recorded));
    let claims = changed(&recorded, "/tdx/td_attributes/debug", &json!(false));
    let others = ["/quote/body/rtmr_3", "/tcb_status", "/td_attributes/debug", "/quote/header/tee_type", "/quote/header/vendor_id"];
    check_pins(&pins, &claims, &[&pinned[..], &others].concat());
    pins.accepted_tcb.clear();
    assert!(!is_released(&pins, &claims));
}
