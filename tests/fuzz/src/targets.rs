//! What is fuzzed: whatever the guest, the node, the relying party or an owner's tools read that somebody else wrote.
//!
//! Recorded evidence lies outside the project. `PEERPODS_VECTORS` names its folder; without it these targets have seeds that only look
//! like it, and say so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peerpods_agent::AgentPolicy;
use peerpods_evidence::eventlog::EventLog;
use peerpods_evidence::tdx::Collateral;
use peerpods_evidence::tpm::TpmEvidence;
use peerpods_evidence::{Initdata, TEES, Trust, appraise, snp, tdx};
use peerpods_image::{GpgKeys, ImagePolicy, Lookaside, PullPolicy, Registries, RegistryAuths};
use peerpods_key_broker::wire::Response;
use peerpods_key_broker::{TeeKey, TeeKeyAlgorithm, jwe};
use peerpods_recipe::fixture::{self, firmware};
use peerpods_recipe::{disk, measure, snp as snp_machine, tdx as tdx_machine, uki};
use peerpods_relying_party::{Broker, Call, EvidenceVerifier, Store, state};
use peerpods_tunnel::user_data::UserData;
use serde_json::json;

use crate::Target;

/// What GnuPG 2.2 wrote: `gpg --export` of an Ed25519 key,
const GPG_KEY: &str = "mDMEaw2W8BYJKwYBBAHaRw8BAQdADn+6gwaD4dL75kX0w33QNbqhmhgRNJS5Up2Ou5sHPOy0DGVkMjU1MTlAdGVzdIiQBBMWCAA4FiEE7LvXhF7WdmkOFMqGzhMEJ07ufKIFAmsNlvACGwMFCwkIBwIGFQoJCAsCBBYCAwECHgECF4AACgkQzhMEJ07ufKLKQgEAwCUa9U3zC3OzOycvlnVtPWINadT3WHbUFFeLQxnPxXkBAPqBFp9XuyAqIz0hoewknlJB56ZVzliK5d4vxEqXF0oE";
/// of one with a subkey that signs,
const GPG_SUBKEY: &str = "mDMEaw2W8BYJKwYBBAHaRw8BAQdAzODBtshLseOO8/5p88UCzR9SQwAp46V7Sk5uZMlLM/m0CHN1YkB0ZXN0iJAEExYIADgWIQQd998VoIQHTn9BM5xk2ukDAnJ5kQUCaw2W8AIbAQULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAKCRBk2ukDAnJ5kQVPAP9Z/rEnC0+RHwpDUyGyvRNMotGESe7qoGb1tqcgGwranAD/bP0nM9IFSOF2bYTRxJLGmt1gWFlaZJHCdgo6p5Hzeg+4MwRrDZbwFgkrBgEEAdpHDwEBB0CIGOwC+md253S8tchDeDeqyktoUFIoTStCI5bIGnQv6ojvBBgWCAAgFiEEHfffFaCEB05/QTOcZNrpAwJyeZEFAmsNlvACGwIAgQkQZNrpAwJyeZF2IAQZFggAHRYhBNFyBP9MgFQHdPFS0c6gzjx3HrSJBQJrDZbwAAoJEM6gzjx3HrSJD7wBANDvfCXe28N6Eqr0iFRu2ObTq81UVVTfAFn4YNM6Gf4EAQCKacmqoOG24MLW/yAkRUuauxK86+Ac0hdVdo8TpZzhAIjFAP97AGj4JFr29hmwvX+8SDXbZfEuiozsVsy8mCGf9XvXrQEArxYiJStHsQFvlweFElZN69QDQncYtNwlV0IrAccT0Qs=";
/// `gpg --sign` with the first one,
const GPG_MESSAGE: &str = "owGbwMvMwCF2TphF3e9dzSLG06JJDNm80z5UKyUXZZZkJifmKFkZ1nJ1NLMwiHEwaIspsrzZfb0l7lpZJp/IqTaYNlYmkB5emdQUI1NTQ0uHktTiEgYuTgGYvMEyRobTh37xrUmasXjC5J9tD2zcrs1x1j/w4fDXqbpzX9i28BsZM/zT9r8lLantIaHwrtF6cVGNH+csm4lc7NMM36zn1linIMMMAA==";
/// and the same with `--compress-algo none`.
const GPG_UNCOMPRESSED: &str = "kA0DAAgWzhMEJ07ufKIByxViAGsNlvB7ImNyaXRpY2FsIjoxfQqIgwQAFggAKxYhBOy714Re1nZpDhTKhs4TBCdO7nyiBQJrDZbwDRxlZDI1NTE5QHRlc3QACgkQzhMEJ07ufKIwpgEAy8L6DqximKOQk/mG4DxG1pxDL8Dww/WVLZ3oPYQPMjMA/itP2hsZK0gYIO6BO6NyfE4JmjyRCgeWMeyvCyiuIBwD";
/// What was signed.
const GPG_SIGNED: &[u8] = b"{\"critical\":1}\n";

/// Within the validity of every recorded certificate: 1 June 2025.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_748_736_000)
}

/// A recording, or what stands in for it.
fn vector(name: &str, otherwise: &[u8]) -> Vec<u8> {
    let beside = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let path = std::env::var_os("PEERPODS_VECTORS").map_or_else(beside, PathBuf::from).join(name);
    std::fs::read(&path).unwrap_or_else(|error| {
        println!("{name} is not here ({error}): that target starts from something shorter");
        otherwise.to_vec()
    })
}

fn target(name: &'static str, seeds: Vec<Vec<u8>>, run: impl Fn(&[u8]) + Send + 'static) -> Target {
    Target { name, seeds, run: Box::new(run) }
}

fn text(name: &'static str, seeds: &[&str], run: impl Fn(&str) + Send + 'static) -> Target {
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect();
    target(name, seeds, move |bytes| run(&String::from_utf8_lossy(bytes)))
}

/// All of them.
///
/// # Panics
/// If a seed cannot be made, which is a defect of this file.
#[must_use]
pub fn targets() -> Vec<Target> {
    let mut all = evidence();
    all.extend(images());
    all.extend(measurements());
    all.extend(keys());
    all.extend(pods());
    all
}

fn evidence() -> Vec<Target> {
    let certificate = vector("snp/vcek.der", b"0\x82\x01\x00");
    let trust = Trust { snp_certificates: vec![certificate.clone()], ..Trust::default() };
    let report = vector("snp/report.bin", &[2; 1184]);
    let quote = vector("tdx/quote_v4.bin", &[4; 632]);
    let tpm = vector("tpm/evidence.json", b"{\"quote\":{}}");
    let sample = br#"{"svn":"1","report_data":"BwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#.to_vec();
    let snp_json = json!({"attestation_report": STANDARD.encode(&report), "cert_chain": []}).to_string();
    let tdx_json = json!({"quote": STANDARD.encode(&quote), "cc_eventlog": null}).to_string();
    let documents = vec![
        snp_json.into_bytes(),
        tdx_json.into_bytes(),
        tpm.clone(),
        sample,
        vector("azure/snp_evidence_v1.json", b"{}"),
        vector("azure/snp_evidence_v2.json", b"{}"),
        vector("azure/tdx_evidence_v1.json", b"{}"),
    ];
    // A change that is accepted must change no claim.
    let genuine = snp::verify_report(&report, &[&certificate], now()).ok().map(|verified| verified.claims());
    let quoted = tdx::verify_quote(&quote, None, now()).ok().map(|verified| verified.claims(None));
    let registers = TpmEvidence::decode(&tpm).and_then(|evidence| evidence.verify()).ok().map(|verified| verified.claims());
    let platform = json!({"tcb_info": {"tcbInfo": {}, "signature": ""}, "qe_identity": {}, "pck_crl": "", "root_crl": ""});
    vec![
        target("evidence of every kind", documents, move |bytes| {
            for tee in TEES {
                let _ = appraise(tee, bytes, &[0; 48], &trust, now());
            }
        }),
        target("SNP reports", vec![report], move |bytes| {
            if let Ok(verified) = snp::verify_report(bytes, &[&certificate], now()) {
                assert_eq!(Some(verified.claims()), genuine, "a changed report is believed");
            }
        }),
        target("TDX quotes", vec![quote], move |bytes| {
            if let Ok(verified) = tdx::verify_quote(bytes, None, now()) {
                assert_eq!(Some(verified.claims(None)), quoted, "a changed quote is believed");
            }
        }),
        target("TPM quotes", vec![tpm], move |bytes| {
            if let Ok(verified) = TpmEvidence::decode(bytes).and_then(|evidence| evidence.verify()) {
                assert_eq!(Some(verified.claims()), registers, "changed evidence is believed");
            }
        }),
        target("event logs", vec![vector("eventlog/ccel_ovmf.bin", &[0; 64]), vector("eventlog/ccel_td.bin", &[0; 64])], |bytes| {
            let _ = EventLog::parse(bytes);
        }),
        target("TDX collateral", vec![platform.to_string().into_bytes()], |bytes| {
            let _ = Collateral::from_json(bytes);
        }),
    ]
}

fn images() -> Vec<Target> {
    let policy = json!({
        "default": [{"type": "reject"}],
        "transports": {"docker": {
            "a.example": [{"type": "sigstoreSigned", "keyPath": "kbs:///a/b/c", "signedIdentity": {"type": "matchRepository"}}],
            "b.example/x": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "kbs:///a/b/c"}],
        }},
    });
    let auths = r#"{"auths":{"a.example":{"auth":"dXNlcjpwYXNz"},"https://index.docker.io/v1/":{"auth":""}}}"#;
    let registries = "unqualified-search-registries = [\"a.example\"]\n[[registry]]\nprefix = \"a.example\"\nlocation = \"b.example\"\n\
        [[registry.mirror]]\nlocation = \"c.example\"\ninsecure = true\n";
    let cdh = "[kbc]\nname = \"cc_kbc\"\nurl = \"https://a.example\"\n[image]\nimage_security_policy_uri = \"kbs:///a/b/c\"\n\
        authenticated_registry_credentials_uri = \"kbs:///a/b/c\"\nmax_concurrent_layer_downloads_per_image = 3\n";
    let [key, subkey, message, uncompressed] =
        [GPG_KEY, GPG_SUBKEY, GPG_MESSAGE, GPG_UNCOMPRESSED].map(|text| STANDARD.decode(text).expect("base64"));
    let keys = GpgKeys::parse(&key).expect("a key");
    let armored = format!("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{GPG_KEY}\n-----END PGP PUBLIC KEY BLOCK-----\n");
    let signed = message.clone();
    let lookaside = "docker:\n  a.example:\n    lookaside: https://a.example/sigs\ndefault-docker:\n  sigstore: file:///var/lib/x\n";
    vec![
        target("image policies", vec![policy.to_string().into_bytes()], |bytes| {
            let _ = ImagePolicy::parse(bytes);
        }),
        target("registry credentials", vec![auths.into()], |bytes| {
            let _ = RegistryAuths::from_docker_config(bytes);
        }),
        text("registries.conf", &[registries], |text| drop(Registries::parse(text))),
        text("cdh.toml", &[cdh], |text| drop(PullPolicy::from_cdh_toml(text))),
        text("look-aside of signatures", &[lookaside], |text| drop(Lookaside::parse(text))),
        target("GPG keys", vec![key, subkey, armored.into_bytes()], move |bytes| {
            if let Ok(keys) = GpgKeys::parse(bytes) {
                let _ = keys.open(&signed);
            }
        }),
        target("GPG signatures", vec![message, uncompressed], move |bytes| {
            if let Ok(data) = keys.open(bytes) {
                assert_eq!(data, GPG_SIGNED, "a changed message is believed");
            }
        }),
    ]
}

/// What `peerpodctl measure` reads of files that come from elsewhere.
fn measurements() -> Vec<Target> {
    let domain = firmware::tdx(&[firmware::CODE, firmware::VARIABLES, firmware::STACK, firmware::HAND_OFF]);
    let (stub, linux) = (fixture::stub(0), fixture::bzimage(b"\x7fELF"));
    let parts =
        uki::Parts { stub: &stub, linux: &linux, initrd: b"initrd", cmdline: "quiet", release: "7.3.4", os_release: "ID=peerpods\n" };
    let uki = uki::build(&parts).expect("a UKI");
    let cpu = "EPYC-Milan".parse().expect("a processor");
    let told = tdx_machine::mrtd(&domain).expect("a register");
    let (seeds, whole) = (vec![domain.clone(), firmware::snp()], domain);
    vec![
        target("firmware to be measured", seeds, move |bytes| {
            if let Ok(register) = tdx_machine::mrtd(bytes) {
                // The second page is measured, its end with the table that says so included.
                let is_changed = bytes.len() == whole.len() && bytes[0x1000..] != whole[0x1000..];
                assert!(!is_changed || register != told, "changed code measures as before");
            }
            let boot = snp_machine::Boot { kernel: b"kernel", initrd: b"initrd", cmdline: "quiet" };
            let features = snp_machine::ACTIVE;
            let _ = snp_machine::launch_digest(&snp_machine::Machine { firmware: bytes, boot, vcpus: 1, cpu, features });
        }),
        target("images to be measured", vec![uki.clone()], |bytes| {
            let _ = measure::predict(bytes);
        }),
        target("disks to be measured", vec![disk_begin(&uki)], move |bytes| {
            let _ = tdx_machine::registers(&uki, bytes);
        }),
    ]
}

/// A disk's partition table, and no more.
fn disk_begin(uki: &[u8]) -> Vec<u8> {
    let mut disk = disk::build(uki).expect("a disk");
    disk.truncate(34 * 512);
    disk
}

fn keys() -> Vec<Target> {
    let mut all = Vec::new();
    for (name, algorithm) in [("JWE to an EC key", TeeKeyAlgorithm::EcdhEsP256), ("JWE to an RSA key", TeeKeyAlgorithm::RsaOaep256)] {
        let key = TeeKey::generate(algorithm).expect("a key");
        let seed = jwe::encrypt(&key.public().expect("its public part"), b"the only plaintext").expect("a JWE");
        all.push(target(name, vec![serde_json::to_vec(&seed).expect("JSON")], move |bytes| {
            let Ok(response) = serde_json::from_slice::<Response>(bytes) else { return };
            if let Ok(plaintext) = jwe::decrypt(&key, &response) {
                assert_eq!(plaintext.as_slice(), b"the only plaintext", "a changed JWE opens as something else");
            }
        }));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("state");
    drop(state::init(&path, &["127.0.0.1".to_owned()]).expect("a relying party"));
    let store = Store::open(&path).expect("its state");
    let broker = Broker::open(store, Arc::new(EvidenceVerifier::default()), Arc::new(now)).expect("a broker");
    let seeds = [
        json!({"version": "0.4.0", "tee": "sample", "extra-params": ""}),
        json!({"tee-pubkey": {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": "", "y": ""}, "tee-evidence": {}}),
    ];
    all.push(target("calls of the relying party", seeds.iter().map(|seed| seed.to_string().into_bytes()).collect(), move |bytes| {
        // Lives as long as the broker.
        let _ = &folder;
        let call = |method: &str, path: &str, cookie: Option<String>| Call {
            method: method.to_owned(),
            path: path.to_owned(),
            query: BTreeMap::new(),
            cookie,
            bearer: Some(String::from_utf8_lossy(bytes).into_owned()),
            body: bytes.to_vec().into(),
        };
        let _ = broker.handle(&call("POST", "auth", None));
        let _ = broker.handle(&call("POST", "attest", Some(String::from_utf8_lossy(bytes).into_owned())));
        let _ = broker.handle(&call("POST", "resource-policy", None));
        let outcome = broker.handle(&call("GET", "resource/default/key/1", None));
        assert!(outcome.is_err(), "a resource without a token");
    }));
    all
}

fn pods() -> Vec<Target> {
    let initdata = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"https://a.example\"\n'''\n\
        \"policy.rego\" = '''\npackage agent_policy\n'''\n";
    let policy = "package agent_policy\n\ndefault CopyFileRequest := false\n\nCopyFileRequest if {\n\tinput.path == \"/x\"\n\
        \tregex.match(\"^a+$\", input.name)\n\tsome i\n\tinput.list[i] == count(input.list)\n}\n";
    let input = json!({"path": "/x", "name": "aaa", "list": [1, 2, 3]});
    let user_data = UserData::new("ab".repeat(32), "tpm").encode();
    vec![
        text("initdata", &[initdata], |text| {
            if let Ok(parsed) = Initdata::parse(text) {
                let _ = peerpods_evidence::initdata::digest(Some(text));
                drop(parsed);
            }
        }),
        text("agent policies", &[policy], move |text| {
            if let Ok(policy) = AgentPolicy::parse(text) {
                let _ = policy.check("CopyFileRequest", &input);
            }
        }),
        target("user data", vec![user_data], |bytes| {
            if let Ok(data) = UserData::decode(bytes) {
                let _ = data.binder_ca_fingerprint();
            }
        }),
    ]
}
