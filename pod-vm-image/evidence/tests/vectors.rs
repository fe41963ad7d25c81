//! Evidence that real hardware made: accepted as it is, refused with any bit flipped.
//!
//! The recordings are not part of the project; where they are absent the tests say so. `PEERPODS_VECTORS` names their folder, by default
//! `shared/vectors` beside the checkout.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use peerpods_evidence::eventlog::{Algorithm, EventLog};
use peerpods_evidence::snp::{SnpEvidence, SnpPolicy, TcbVersion, verify_report};
use peerpods_evidence::tdx::{TcbStatus, TdxPolicy, check_log, verify_quote};
use peerpods_evidence::tpm::TpmEvidence;
use peerpods_evidence::{RootOfTrust, Trust, VerifyError, appraise, azure};
use serde_json::Value;

/// Within the validity of every recorded certificate: 1 June 2025.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_748_736_000)
}

/// A recording, or `None` with a word about it.
fn vector(name: &str) -> Option<Vec<u8>> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let folder = std::env::var_os("PEERPODS_VECTORS").map_or_else(beside, PathBuf::from);
    match std::fs::read(folder.join(name)) {
        Ok(bytes) => Some(bytes),
        // Who names the folder wants them checked.
        Err(error) if std::env::var_os("PEERPODS_VECTORS").is_some() => panic!("{name}: {error}"),
        Err(error) => {
            println!("not checked, {name} is not here: {error}");
            None
        }
    }
}

/// Flips every bit. Each must be refused, but those of `tolerated` bytes, which must change no claim.
fn flip_all<C: PartialEq>(bytes: &[u8], tolerated: &[std::ops::Range<usize>], accept: impl Fn(&[u8]) -> Option<C>) {
    let claims = accept(bytes);
    assert!(claims.is_some(), "the recording itself is accepted");
    let expected: BTreeSet<usize> = tolerated.iter().cloned().flatten().collect();
    assert!(expected.len() <= 64, "{} tolerated bytes", expected.len());
    let mut mutated = bytes.to_vec();
    let mut found = BTreeSet::new();
    for index in 0..bytes.len() {
        for bit in 0..8 {
            mutated[index] ^= 1 << bit;
            if let Some(changed) = accept(&mutated) {
                found.insert(index);
                assert!(Some(changed) == claims, "bit {bit} of byte {index} changes a claim");
            }
            mutated[index] ^= 1 << bit;
        }
    }
    assert!(found.is_subset(&expected), "bytes that should not be tolerated: {:?}", found.difference(&expected).collect::<Vec<_>>());
}

#[test]
fn snp_report_is_accepted_and_every_flipped_bit_refused() {
    let (Some(report), Some(vcek)) = (vector("snp/report.bin"), vector("snp/vcek.der")) else { return };
    let accept = |report: &[u8], vcek: &[u8]| verify_report(report, &[vcek], now()).ok().map(|verified| verified.claims());
    flip_all(&report, &[], |report| accept(report, &vcek));
    flip_all(&vcek, &[], |vcek| accept(&report, vcek));
    let claims = accept(&report, &vcek).unwrap();
    assert_eq!((&claims["reported_tcb_snp"], &claims["reported_tcb_microcode"]), (&8.into(), &115.into()));
    assert_eq!((&claims["policy_debug_allowed"], &claims["policy_abi_minor"]), (&false.into(), &31.into()));
}

#[test]
fn snp_policy_sets_floors_and_forbids_bits() {
    let (Some(report), Some(vcek)) = (vector("snp/report.bin"), vector("snp/vcek.der")) else { return };
    let verified = verify_report(&report, &[&vcek], now()).unwrap();
    assert!(verified.check(&SnpPolicy::default()).is_ok());
    let floor = TcbVersion { microcode: 116, ..TcbVersion::default() };
    let error = verified.check(&SnpPolicy { tcb_floor: floor, ..SnpPolicy::default() }).unwrap_err().to_string();
    assert_eq!(error, "the VM's policy or platform is refused: its microcode has version 115, the floor is 116");
    assert!(verify_report(&report, &[], now()).unwrap_err().to_string().contains("no VCEK or VLEK"));
    let too_late = now() + Duration::from_secs(10 * 365 * 86400);
    assert!(verify_report(&report, &[&vcek], too_late).unwrap_err().to_string().contains("valid from"));
}

#[test]
fn snp_evidence_is_the_same_after_trustees_json() {
    let (Some(report), Some(vcek)) = (vector("snp/report.bin"), vector("snp/vcek.der")) else { return };
    let evidence = SnpEvidence { report, certificates: vec![vcek] };
    let json = evidence.encode().unwrap();
    assert_eq!(SnpEvidence::decode(&json).unwrap(), evidence);
    let value: Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(value["cert_chain"][0]["cert_type"], "VCEK");
    let error = appraise("snp", &json, &[0; 48], &Trust::default(), now()).unwrap_err();
    assert!(matches!(error, VerifyError::ReportData), "{error}");
}

#[test]
fn tdx_quote_is_accepted_and_every_flipped_bit_refused() {
    let Some(quote) = vector("tdx/quote_v4.bin") else { return };
    flip_all(&quote, &[], |quote| verify_quote(quote, None, now()).ok().map(|verified| verified.claims(None)));
    let verified = verify_quote(&quote, None, now()).unwrap();
    let error = verified.check(&TdxPolicy::default()).unwrap_err().to_string();
    assert_eq!(error, "the trust domain or its platform is refused: it may be debugged");
    let lenient = TdxPolicy { is_debug_allowed: true, ..TdxPolicy::default() };
    assert!(verified.check(&lenient).is_ok());
    for (change, named) in [
        ((|body| body.td_attributes[3] |= 0x20) as fn(&mut peerpods_evidence::tdx::TdBody), "migrated"),
        (|body| body.mrsigner_seam[0] = 1, "TDX module"),
        (|body| body.seam_attributes[7] = 1, "TDX module"),
    ] {
        let mut other = verified.clone();
        change(&mut other.quote.body);
        assert!(other.check(&lenient).unwrap_err().to_string().contains(named), "{named}");
    }
    let strict = TdxPolicy { statuses: Some(vec![TcbStatus::UpToDate]), ..lenient };
    assert!(verified.check(&strict).unwrap_err().to_string().contains("give the verifier Intel's collateral"));
}

#[test]
fn tdx_claims_are_those_that_trustee_derives() {
    let (Some(quote), Some(log)) = (vector("tdx/quote_v4.bin"), vector("eventlog/ccel_td.bin")) else { return };
    let Some(expected) = vector("tdx/claims_expected_sample.json") else { return };
    let expected: Value = serde_json::from_slice(&expected).unwrap();
    let log = EventLog::parse(&log).unwrap();
    let verified = verify_quote(&quote, None, now()).unwrap();
    // The two recordings are of different boots, so they are put side by side and not held together.
    assert!(check_log(&log, &verified.quote.body).is_err());
    let claims = verified.claims(Some(&log));
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&claims[name], value, "{name}");
    }
}

#[test]
fn event_log_of_another_boot_is_refused() {
    let (Some(quote), Some(log)) = (vector("tdx/quote_v4.bin"), vector("eventlog/ccel_ovmf.bin")) else { return };
    let log = EventLog::parse(&log).unwrap();
    assert!(log.replay(Algorithm::Sha384).unwrap().len() > 1);
    let verified = verify_quote(&quote, None, now()).unwrap();
    assert!(check_log(&log, &verified.quote.body).is_err());
}

#[test]
fn every_flipped_bit_of_a_log_that_is_hashed_is_refused() {
    let (Some(quote), Some(log)) = (vector("tdx/quote_v4.bin"), vector("eventlog/ccel_td.bin")) else { return };
    let mut body = verify_quote(&quote, None, now()).unwrap().quote.body;
    let parsed = EventLog::parse(&log).unwrap();
    for (register, value) in parsed.replay(Algorithm::Sha384).unwrap() {
        body.rtmrs[usize::try_from(register).unwrap() - 1] = value.try_into().unwrap();
    }
    check_log(&parsed, &body).unwrap();
    // Digests and the registers that they go into; what events say of themselves is marked in the claims as measured or not.
    let mut offset = 32 + usize::try_from(u32::from_le_bytes(log[28..32].try_into().unwrap())).unwrap();
    for event in &parsed.events {
        let digest = offset + 14..offset + 14 + event.digests[0].1.len();
        for index in (offset..offset + 4).chain(digest.clone()) {
            for bit in 0..8 {
                let mut mutated = log.clone();
                mutated[index] ^= 1 << bit;
                let is_accepted = EventLog::parse(&mutated).is_ok_and(|log| check_log(&log, &body).is_ok());
                assert!(!is_accepted, "byte {index}");
            }
        }
        if event.is_data_measured(Algorithm::Sha384) && !event.data.is_empty() {
            let mut mutated = log.clone();
            mutated[digest.end + 4] ^= 1;
            assert!(
                !EventLog::parse(&mutated)
                    .unwrap()
                    .events
                    .iter()
                    .filter(|e| e.data != event.data)
                    .all(|e| e.is_data_measured(Algorithm::Sha384))
            );
        }
        offset = digest.end + 4 + event.data.len();
    }
}

#[test]
fn azure_snp_evidence_is_accepted_and_every_flipped_bit_refused() {
    let user_data = "982f5c6e45df0ed3f10b6f60b02f0c8390e281300f3805e2279c16168cd6ae9aa398f647caa2338748cd0fd9f5f819ef";
    let requests = [("azure/snp_evidence_v1.json", b"challenge".to_vec()), ("azure/snp_evidence_v2.json", hex::decode(user_data).unwrap())];
    for (name, request) in requests {
        let Some(json) = vector(name) else { continue };
        let accept = |json: &[u8]| azure::verify_snp(json, &request, &SnpPolicy::default(), now()).ok().map(|verified| verified.claims());
        flip_all(&json, &[], accept);
        assert!(accept(&json).unwrap()["tpm"]["pcr08"].is_string());
    }
    let Some(json) = vector(requests_v2()) else { return };
    let request: [u8; 48] = hex::decode(user_data).unwrap().try_into().unwrap();
    let appraisal = appraise("az-snp-vtpm", &json, &request, &Trust::default(), now()).unwrap();
    assert_eq!(appraisal.root_of_trust, RootOfTrust::Hardware);
    assert!(appraise("az-snp-vtpm", &json, &[1; 48], &Trust::default(), now()).is_err());
    assert!(appraise("az-tdx-vtpm", &json, &request, &Trust::default(), now()).is_err());
}

fn requests_v2() -> &'static str {
    "azure/snp_evidence_v2.json"
}

#[test]
fn azure_tdx_evidence_is_accepted_and_every_flipped_bit_refused() {
    let Some(json) = vector("azure/tdx_evidence_v1.json") else { return };
    // In the TDREPORT its version, of which two are known, and its MAC, which only the machine itself could check: 48 letters of base64.
    let text = String::from_utf8(json.clone()).unwrap();
    let begin = text.find("hcl_report").unwrap() + text[text.find("hcl_report").unwrap()..].find("SENM").unwrap();
    let letters = |from: usize, to: usize| begin + from / 3 * 4..begin + to.div_ceil(3) * 4;
    let report = 32;
    let tolerated = [letters(report, report + 3), letters(report + 224, report + 256)];
    let accept =
        |json: &[u8]| azure::verify_tdx(json, b"challenge", &TdxPolicy::default(), None, now()).ok().map(|verified| verified.claims());
    flip_all(&json, &tolerated, accept);
}

#[test]
fn tpm_evidence_is_accepted_and_every_flipped_bit_refused() {
    let Some(json) = vector("tpm/evidence.json") else { return };
    let accept = |json: &[u8]| TpmEvidence::decode(json).and_then(|evidence| evidence.verify()).ok().map(|verified| verified.claims());
    flip_all(&json, &[], accept);
    let claims = accept(&json).unwrap();
    assert_eq!(claims["pcr17"], "f".repeat(64));
    assert_eq!(claims["report_data"].as_str().unwrap().len(), 128);
}
