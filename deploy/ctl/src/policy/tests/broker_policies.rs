//! Policies of a key broker, evaluated as Trustee does.

use regorus::{Engine, Value as RegoValue};
use serde_json::{Value, json};

use super::*;

pub(super) fn pins(tee: Tee, measurements: &str) -> Pins {
    let files = [("policy.rego".to_owned(), "package agent_policy\n".to_owned())];
    Pins {
        measurements: broker::measurements(measurements).unwrap(),
        initdata: initdata::Document::new(initdata::HashAlgorithm::Sha256, files.into()).unwrap(),
        resources: [broker::resource("kbs:///default/key/1").unwrap()].into(),
        tee,
        any_firmware: false,
        accepted_tcb: BTreeSet::new(),
    }
}

fn hex_of(byte: &str, bytes: usize) -> String {
    byte.repeat(bytes)
}

/// As Trustee evaluates it, with its function.
fn evaluated(rego: &str, query: &str, input: &Value, data: &Value, references: &Value) -> Value {
    let mut engine = Engine::new();
    let references = references.clone();
    let lookup = move |names: Vec<RegoValue>| Ok(RegoValue::from(references[names[0].as_string().unwrap().as_ref()].clone()));
    engine.add_extension("query_reference_value".to_owned(), 1, Box::new(lookup)).unwrap();
    engine.add_policy("policy.rego".to_owned(), rego.to_owned()).unwrap();
    engine.set_input(RegoValue::from(input.clone()));
    engine.add_data(RegoValue::from(data.clone())).unwrap();
    serde_json::to_value(engine.eval_rule(query.to_owned()).unwrap()).unwrap()
}

pub(super) fn appraised(pins: &Pins, claims: &Value) -> Value {
    evaluated(&pins.attestation_policy(), "data.policy.trust_claims", claims, &json!({}), &pins.reference_values())
}

pub(super) fn released(pins: &Pins, status: &str, claims: &Value, path: &Value, plugin: &str) -> bool {
    let token = json!({"submods": {"cpu0": {"ear.status": status, "ear.veraison.annotated-evidence": claims}}});
    let data = json!({"plugin": plugin, "resource-path": path, "query": {}});
    evaluated(&pins.resource_policy(), "data.policy.allow", &token, &data, &json!({})) == json!(true)
}

/// Measurements and the claims of evidence that has them, for each kind.
fn cases() -> Vec<(Pins, Value)> {
    let (a, b, long) = (hex_of("0a", 32), hex_of("0b", 32), hex_of("0c", 48));
    let header = json!({"tee_type": "81000000", "vendor_id": "939a7233f79c4ca9940a0db3957f0607"});
    let registers = json!({"pcr04": [a], "pcr09": a, "pcr11": [hex_of("0f", 32), b.clone()]});
    let with = |more: Value| {
        let mut all = registers.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all.to_string()
    };
    let base64 = "DAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM";
    let tpm = json!({"pcr04": a, "pcr09": a, "pcr11": b, "pcr07": "00", "ak_public": "TUlJ"});
    let snp = json!({"measurement": base64, "policy_debug_allowed": false, "policy_migrate_ma": false, "reported_tcb_snp": 8});
    let intel = json!({"td_attributes": {"debug": false}, "tcb_status": "UpToDate", "collateral_expiration_status": "0"});
    let and = |claims: &Value, more: Value| {
        let mut all = claims.clone();
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let case = |tee: Tee, measurements: &str, claims: Value| {
        let pins = pins(tee, measurements);
        let register = pins.initdata.registers();
        let (mut claims, init_data) = (
            claims,
            match tee {
                Tee::Sample | Tee::Snp => hex::encode(register.host_data),
                // Whatever the host likes.
                Tee::Tdx => hex_of("00", 48),
                _ => hex::encode(register.pcr08.unwrap()),
            },
        );
        if tee == Tee::Tdx {
            claims["quote"]["body"]["rtmr_3"] = hex::encode(register.rtmr3.unwrap()).into();
        }
        (pins, json!({tee.name(): claims, "init_data": init_data}))
    };
    vec![
        case(Tee::Sample, r#"{"svn":["1"]}"#, json!({"svn": "1"})),
        case(Tee::Tpm, &registers.to_string(), tpm.clone()),
        case(Tee::Tpm, &registers.to_string(), json!({"tpm": tpm})),
        case(Tee::Tpm, &with(json!({"ak_public": "TUlJ"})), tpm.clone()),
        case(Tee::Snp, &json!({"measurement": [long], "reported_tcb_snp": [8, "9"]}).to_string(), snp.clone()),
        case(
            Tee::AzSnpVtpm,
            &with(json!({"measurement": [long], "reported_tcb_snp": 8})),
            and(&snp, json!({"policy_debug_allowed": "false", "policy_migrate_ma": "false", "reported_tcb_snp": "8", "tpm": tpm})),
        ),
        case(Tee::SnpTpm, &with(json!({"ak_public": ["TUlJ", "TUlK"], "reported_tcb_snp": 8})), and(&snp, json!({"tpm": tpm}))),
        case(
            Tee::Tdx,
            &json!({"mr_td": [long], "rtmr_1": [long], "rtmr_2": long}).to_string(),
            and(&intel, json!({"quote": {"header": header, "body": {"mr_td": long, "rtmr_1": long, "rtmr_2": long}}})),
        ),
        case(
            Tee::AzTdxVtpm,
            &with(json!({"mr_td": [long]})),
            and(&intel, json!({"quote": {"header": header, "body": {"mr_td": long}}, "tpm": tpm})),
        ),
    ]
}

#[test]
fn broker_policies_are_as_reviewed() {
    for (pins, _) in cases().into_iter().filter(|(pins, _)| matches!(pins.tee, Tee::AzSnpVtpm | Tee::Tdx)) {
        pins.check().unwrap();
        let name = pins.tee.name();
        golden(&format!("{name}-attestation-policy.rego"), &pins.attestation_policy());
        golden(&format!("{name}-resource-policy.rego"), &pins.resource_policy());
        golden(&format!("{name}-reference-values.json"), &format!("{:#}\n", pins.reference_values()));
    }
}

#[test]
fn measured_images_are_affirmed_and_get_their_resources() {
    for (pins, claims) in cases() {
        let tee = pins.tee.name();
        pins.check().unwrap();
        assert_eq!(appraised(&pins, &claims), json!({"hardware": 2, "executables": 3, "configuration": 2}), "{tee}");
        assert!(released(&pins, "affirming", &claims, &json!(["default", "key", "1"]), "resource"), "{tee}");
        assert!(released(&pins, "affirming", &claims, &json!("default/key/1"), "resource"), "{tee}");
    }
}

#[test]
fn other_images_and_initdata_get_nothing() {
    let path = json!(["default", "key", "1"]);
    for (pins, claims) in cases() {
        let tee = pins.tee.name();
        // One changed value after the other.
        let mut text = Vec::new();
        leaves(&claims, String::new(), &mut text);
        // The host chooses what Trustee calls a trust domain's init_data; its RTMR 3 is what is pinned.
        let is_open = |pointer: &str| {
            let claim = pointer.rsplit('/').next().unwrap();
            claim == "pcr07"
                || (claim == "init_data" && tee == "tdx")
                || (matches!(claim, "ak_public" | "measurement") && !pins.measurements.contains_key(claim))
        };
        for pointer in text.iter().filter(|pointer| !is_open(pointer)) {
            let other = match claims.pointer(pointer).unwrap() {
                Value::Bool(value) => json!(!value),
                Value::String(value) if value == "false" => json!("true"),
                _ => json!("00"),
            };
            let claims = changed(&claims, pointer, &other);
            let trust = appraised(&pins, &claims);
            let is_affirmed = trust.as_object().unwrap().values().all(|value| value.as_u64().unwrap() < 32);
            assert!(!is_affirmed || !released(&pins, "affirming", &claims, &path, "resource"), "{tee} {pointer}");
        }
        assert!(!released(&pins, "warning", &claims, &path, "resource"), "{tee}");
        assert!(!released(&pins, "affirming", &claims, &json!(["default", "key", "2"]), "resource"), "{tee}");
        assert!(!released(&pins, "affirming", &claims, &path, "pkcs11"), "{tee}");
        assert!(!released(&pins, "affirming", &json!({}), &path, "resource"), "{tee}");
        // Without reference values, and with evidence of another kind.
        let nothing = evaluated(&pins.attestation_policy(), "data.policy.trust_claims", &claims, &json!({}), &json!({}));
        assert_eq!(nothing["executables"], 33, "{tee}");
        let other = json!({"cca": {}, "init_data": ""});
        assert_eq!(appraised(&pins, &other), json!({"hardware": 97, "executables": 33, "configuration": 36}), "{tee}");
    }
}

fn leaves(value: &Value, pointer: String, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| leaves(value, format!("{pointer}/{name}"), found)),
        _ => found.push(pointer),
    }
}

#[test]
fn measurements_that_pin_nothing_are_refused() {
    let refused = |tee: Tee, measurements: &str| pins(tee, measurements).check().unwrap_err().to_string();
    let a = hex_of("0a", 32);
    let boot = json!({"pcr04": a, "pcr09": a, "pcr11": a});
    let boot_and = |claim: &str, value: &str| {
        let mut all = boot.clone();
        all[claim] = value.into();
        all
    };
    for (tee, measurements, named) in [
        (Tee::Tpm, json!({"ak_public": "x"}), "needs pcr04"),
        (Tee::Tpm, json!({"pcr04": a, "pcr11": a}), "needs pcr09"),
        (Tee::Tpm, json!({"pcr04": a, "pcr09": a}), "needs pcr11"),
        (Tee::Tpm, json!({"pcr24": a}), "has no claim \"pcr24\""),
        (Tee::Tpm, json!({"rtmr_1": a}), "known: pcr00 to pcr23"),
        (Tee::Tpm, json!({"pcr04": "0A"}), "not lower-case hexadecimal"),
        (Tee::AzSnpVtpm, boot.clone(), "--any-firmware"),
        (Tee::AzTdxVtpm, boot.clone(), "needs mr_td"),
        (Tee::SnpTpm, boot.clone(), "needs ak_public"),
        (Tee::Snp, json!({"reported_tcb_snp": 8}), "needs measurement"),
        (Tee::Snp, json!({"measurement": a, "reported_tcb_snp": 256}), "not a number below 256"),
        (Tee::Snp, json!({"measurement": a, "reported_tcb_other": 8}), "has no claim"),
        (Tee::Tdx, json!({"rtmr_1": a, "rtmr_2": a}), "needs mr_td"),
        (Tee::Tdx, json!({"mr_td": a, "rtmr_2": a}), "needs rtmr_1"),
        (Tee::Tdx, json!({"mr_td": a, "rtmr_1": a}), "needs rtmr_2"),
        (Tee::Tdx, json!({"tcb_status": "00"}), "has no claim \"tcb_status\""),
        (Tee::AzSnpVtpm, boot_and("tcb_status", "00"), "has no claim \"tcb_status\""),
        (Tee::Sample, json!({}), "such as svn"),
    ] {
        let error = refused(tee, &measurements.to_string());
        assert!(error.contains(named), "{error}");
    }
    for odd in ["[]", "{\"a\":[]}", "{\"a\":true}", "{\"a b\":[\"1\"]}", "{\"a\":[[1]]}", "{"] {
        assert!(broker::measurements(odd).is_err(), "{odd}");
    }
    let mut longer = pins(Tee::Tpm, &boot.to_string());
    longer.initdata = initdata::Document::new(initdata::HashAlgorithm::Sha384, [("a".to_owned(), "b".to_owned())].into()).unwrap();
    assert!(matches!(longer.check(), Err(broker::BrokerError::Algorithm)));
    let mut open = pins(Tee::AzSnpVtpm, &boot_and("reported_tcb_snp", "8").to_string());
    open.any_firmware = true;
    open.check().unwrap();
    assert_eq!(open.warnings().len(), 1);
    open.accepted_tcb.insert(TcbStatus::OutOfDate);
    assert!(matches!(open.check(), Err(broker::BrokerError::NoTcbStatus("az-snp-vtpm"))));
    open.accepted_tcb.clear();
    open.resources.clear();
    assert!(matches!(open.check(), Err(broker::BrokerError::NoResource)));
    assert!(broker::resource("default/key").is_err());
}

#[test]
fn platforms_are_up_to_date_or_of_an_accepted_status() {
    let (mut pins, claims) = cases().into_iter().find(|(pins, _)| pins.tee == Tee::Tdx).unwrap();
    let of = |status: &str| changed(&claims, "/tdx/tcb_status", &json!(status));
    let is_trusted = |pins: &Pins, claims: &Value| {
        let is_affirmed = appraised(pins, claims)["hardware"] == 2;
        assert_eq!(is_affirmed, released(pins, "affirming", claims, &json!("default/key/1"), "resource") && is_affirmed);
        is_affirmed
    };
    assert!(is_trusted(&pins, &claims) && !is_trusted(&pins, &of("SWHardeningNeeded")) && !is_trusted(&pins, &of("Unknown")));
    pins.accepted_tcb.insert(TcbStatus::SwHardeningNeeded);
    pins.check().unwrap();
    assert!(pins.warnings()[0].contains("SWHardeningNeeded"));
    assert!(is_trusted(&pins, &claims) && is_trusted(&pins, &of("SWHardeningNeeded")));
    assert!(!is_trusted(&pins, &of("OutOfDate")) && !is_trusted(&pins, &of("Revoked")));
    // Collateral that has expired says nothing of today.
    assert!(!is_trusted(&pins, &changed(&claims, "/tdx/collateral_expiration_status", &json!("1"))));
    let mut without = of("Unknown");
    without["tdx"].as_object_mut().unwrap().remove("collateral_expiration_status");
    assert!(!is_trusted(&pins, &without));
    pins.accepted_tcb = BTreeSet::from([TcbStatus::Unknown]);
    assert!(is_trusted(&pins, &without) && is_trusted(&pins, &claims) && !is_trusted(&pins, &of("SWHardeningNeeded")));
}
