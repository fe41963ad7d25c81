use std::collections::BTreeMap;
use std::path::Path;

use clap::Parser as _;
use peerpods_recipe::fixture::firmware::{CODE, HAND_OFF, STACK, VARIABLES};
use peerpods_recipe::manifest::{File, Manifest};
use peerpods_recipe::measure::ReferenceValues;
use peerpods_recipe::{disk, fixture, sha256_hex, uki};
use sha2::{Digest as _, Sha256, Sha384};

use super::*;
use crate::{Cli, Command, policy};

const INITDATA: &str = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n\n[data]\n";

/// What is printed for these arguments, of which `DIR` is the folder.
fn measure(folder: &Path, arguments: &str) -> Result<String, MeasureError> {
    let arguments = arguments.replace("DIR", &folder.display().to_string());
    let Command::Measure(command) = Cli::parse_from(["peerpodctl", "measure"].into_iter().chain(arguments.split(' '))).command else {
        panic!("another command");
    };
    run(&command)
}

fn json(folder: &Path, arguments: &str) -> Value {
    serde_json::from_str(&measure(folder, arguments).unwrap()).unwrap()
}

fn write_manifest(folder: &Path, measurements: Option<ReferenceValues>) {
    let listed = |name: &str| {
        let content = std::fs::read(folder.join(name)).ok()?;
        Some((name.to_owned(), File { sha256: sha256_hex(&content), size: content.len() as u64 }))
    };
    let manifest = Manifest {
        version: 1,
        cmdline: "quiet".to_owned(),
        kernel: "7.3.4".to_owned(),
        files: ["uki.efi", "disk.raw"].into_iter().filter_map(listed).collect::<BTreeMap<_, _>>(),
        measurements,
        guest_sha256: String::new(),
        upstream: BTreeMap::new(),
        inputs: Vec::new(),
        unpinned: false,
    };
    std::fs::write(folder.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
}

/// Registers that no image has.
fn told() -> ReferenceValues {
    let mut values = ReferenceValues::default();
    for (name, byte) in [("pcr04", 4), ("pcr09", 9), ("pcr11", 0x11)] {
        values.add(name, &[byte; 32]);
    }
    values
}

/// A folder with a manifest that tells [`told`], and initdata.
fn manifest_alone() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_manifest(folder.path(), Some(told()));
    std::fs::write(folder.path().join("initdata.toml"), INITDATA).unwrap();
    folder
}

/// A whole image, and firmware.
fn image() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (stub, linux) = (fixture::stub(0), fixture::bzimage(b"\x7fELF"));
    let parts =
        uki::Parts { stub: &stub, linux: &linux, initrd: b"initrd", cmdline: "quiet", release: "7.3.4", os_release: "ID=peerpods\n" };
    let uki = uki::build(&parts).unwrap();
    let write = |name: &str, content: &[u8]| std::fs::write(folder.path().join(name), content).unwrap();
    write("uki.efi", &uki);
    write("disk.raw", &disk::build(&uki).unwrap());
    write("snp.fd", &fixture::firmware::snp());
    write("tdx.fd", &fixture::firmware::tdx(&[CODE, VARIABLES, STACK, HAND_OFF]));
    write("initdata.toml", INITDATA.as_bytes());
    write_manifest(folder.path(), None);
    folder
}

#[test]
fn table_tells_registers_and_why_others_are_not_told() {
    let folder = manifest_alone();
    let text = measure(folder.path(), "DIR/manifest.json --tee az-snp-vtpm").unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "MEASUREMENT  OF                                   VALUE".to_owned(),
            format!("pcr04        UKI and kernel                       {}", "04".repeat(32)),
            "pcr08        initdata                             not told: the pod's initdata decides; give --initdata".to_owned(),
            format!("pcr09        command line and initrd              {}", "09".repeat(32)),
            format!("pcr11        the UKI's sections                   {}", "11".repeat(32)),
            "measurement  SEV-SNP: firmware and what it boots  not told: the firmware is Azure's own, which it changes without a word; \
             read it from a machine that you trust"
                .to_owned(),
        ]
    );

    let all = measure(folder.path(), "DIR/manifest.json").unwrap();
    assert_eq!(all.lines().count(), 11, "{all}");
    assert!(all.contains("rtmr_0") && all.contains("memory, devices and firmware's variables decide"), "{all}");
}

#[test]
fn initdata_decides_registers_8_and_3() {
    let folder = manifest_alone();
    let digest = Sha256::digest(INITDATA);
    let pcr08 = Sha256::new().chain_update([0; 32]).chain_update(digest).finalize();
    let rtmr3 = Sha384::new().chain_update([0; 48]).chain_update(digest).chain_update([0; 16]).finalize();
    let told = json(folder.path(), "DIR/manifest.json --initdata DIR/initdata.toml --json");
    assert_eq!(told["measurements"]["pcr08"], json!([hex::encode(pcr08)]));
    assert_eq!(told["measurements"]["rtmr_3"], json!([hex::encode(rtmr3)]));

    std::fs::write(folder.path().join("long.toml"), INITDATA.replace("sha256", "sha384")).unwrap();
    let told = json(folder.path(), "DIR/manifest.json --initdata DIR/long.toml --json");
    assert!(told["not_told"]["pcr08"].as_str().unwrap().contains("--algorithm sha256"), "{told}");
    assert!(told["measurements"]["rtmr_3"].is_array(), "{told}");
}

#[test]
fn firmware_tells_the_registers_of_its_machine() {
    let folder = image();
    let told = json(folder.path(), "DIR --snp-firmware DIR/snp.fd --vcpus 2 --tdx-firmware DIR/tdx.fd --json");
    let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap();
    let (uki, firmware) = (read("uki.efi"), read("snp.fd"));
    let boot = snp::Boot::of_uki(&uki).unwrap();
    let machine = snp::Machine { firmware: &firmware, boot, vcpus: 2, cpu: "EPYC-Milan".parse().unwrap(), features: snp::ACTIVE };
    assert_eq!(told["measurements"]["measurement"], json!([hex::encode(snp::launch_digest(&machine).unwrap())]));
    // Told by another program, see `peerpods_recipe::tdx`.
    let mrtd = "2cf01b99bca2279518f521cbc748d7c5ea3e0b4c5a0ad3d66ffd97806acabb66c730039242184f7b2af175c372c8945e";
    assert_eq!(told["measurements"]["mr_td"], json!([mrtd]));
    let registers = tdx::registers(&uki, &read("disk.raw")).unwrap();
    assert_eq!(told["measurements"]["rtmr_1"], json!([hex::encode(registers.rtmr1)]));
    assert_eq!(told["measurements"]["rtmr_2"], json!([hex::encode(registers.rtmr2)]));
    assert!(told["measurements"].get("rtmr_0").is_none() && told["not_told"].get("rtmr_0").is_some());

    let other = json(folder.path(), "DIR --snp-firmware DIR/snp.fd --vcpus 2 --cmdline noisy --json");
    assert_ne!(other["measurements"]["measurement"], told["measurements"]["measurement"]);
    assert!(other["not_told"]["mr_td"].as_str().unwrap().contains("--tdx-firmware"));
}

#[test]
fn firmware_of_this_machine_tells_nothing_of_a_clouds() {
    let folder = image();
    for (tee, claim) in [("az-snp-vtpm", "measurement"), ("snp-tpm", "measurement"), ("az-tdx-vtpm", "mr_td")] {
        let told = json(folder.path(), &format!("DIR --tee {tee} --snp-firmware DIR/snp.fd --tdx-firmware DIR/tdx.fd --json"));
        assert!(told["not_told"][claim].as_str().unwrap().contains("own"), "{told}");
        assert!(told["measurements"]["pcr11"].is_array(), "{told}");
    }
    let values = json(folder.path(), "DIR --snp-firmware DIR/snp.fd --tdx-firmware DIR/tdx.fd --reference-values");
    assert!(values.get("az_snp_vtpm_measurement").is_none() && values.get("snp_measurement").is_some(), "{values}");
}

#[test]
fn reference_values_have_the_names_of_trustees_policies_and_of_ours() {
    let folder = image();
    let values = json(folder.path(), "DIR --tee tdx --tdx-firmware DIR/tdx.fd --reference-values");
    let names: Vec<&str> = values.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["mr_td", "rtmr_1", "rtmr_2", "tdx_mr_td", "tdx_rtmr_1", "tdx_rtmr_2"]);
    let values = json(folder.path(), "DIR --reference-values");
    for name in ["tpm_pcr04", "tpm_pcr11", "snp_pcr11", "tdx_pcr11", "az_snp_vtpm_pcr09", "snp_tpm_pcr11"] {
        assert_eq!(values[name].as_array().unwrap().len(), 1, "{name}");
    }
    let values = json(folder.path(), "DIR --tee snp --snp-firmware DIR/snp.fd --reference-values");
    assert_eq!(values["snp_launch_measurement"], values["snp_measurement"]);
    assert_eq!(values["snp_measurement"].as_array().unwrap().len(), 2, "hexadecimal and base64");

    let message = json(folder.path(), "DIR --tee tpm --rvps-message");
    assert_eq!((message["version"].as_str(), message["type"].as_str()), (Some("0.1.0"), Some("sample")));
    let payload = STANDARD.decode(message["payload"].as_str().unwrap()).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&payload).unwrap(), json(folder.path(), "DIR --tee tpm --reference-values"));
}

/// What is told goes into policies as it is, and these ask for no value that is not among ours but the TCB status, which no image has.
#[test]
fn policies_ask_for_what_is_told() {
    let folder = image();
    let firmware = "--snp-firmware DIR/snp.fd --tdx-firmware DIR/tdx.fd";
    for tee in ["tpm", "snp", "tdx"] {
        let told = json(folder.path(), &format!("DIR --tee {tee} {firmware} --json"));
        std::fs::write(folder.path().join("measurements.json"), told["measurements"].to_string()).unwrap();
        let arguments = format!(
            "peerpodctl policy generate --tee {tee} --measurements DIR/measurements.json --initdata DIR/initdata.toml \
             --resource default/key/1 --out DIR/{tee}"
        )
        .replace("DIR", &folder.path().display().to_string());
        let Command::Policy(command) = Cli::parse_from(arguments.split(' ')).command else { panic!("another command") };
        policy::run(&command).unwrap();
        let asked = std::fs::read(folder.path().join(tee).join("reference-values.json")).unwrap();
        let asked: BTreeMap<String, Value> = serde_json::from_slice(&asked).unwrap();
        let values = json(folder.path(), &format!("DIR --tee {tee} {firmware} --reference-values"));
        assert!(!asked.is_empty());
        for (name, value) in asked.into_iter().filter(|(name, _)| !name.ends_with("_tcb_status")) {
            assert_eq!(values[&name], value, "{tee} {name}");
        }
    }
}

#[test]
fn images_that_are_not_what_their_manifest_lists_are_refused() {
    let folder = image();
    write_manifest(folder.path(), Some(told()));
    assert!(matches!(measure(folder.path(), "DIR"), Err(MeasureError::Image(ImageError::OtherMeasurements(_)))));
    std::fs::write(folder.path().join("disk.raw"), b"other").unwrap();
    assert!(matches!(measure(folder.path(), "DIR"), Err(MeasureError::Image(ImageError::Changed(path))) if path.ends_with("disk.raw")));
    std::fs::write(folder.path().join("uki.efi"), b"other").unwrap();
    assert!(matches!(measure(folder.path(), "DIR"), Err(MeasureError::Image(ImageError::Changed(path))) if path.ends_with("uki.efi")));
    write_manifest(folder.path(), None);
    assert!(matches!(measure(folder.path(), "DIR"), Err(MeasureError::Image(ImageError::Uki { .. }))));
    assert!(matches!(measure(folder.path(), "DIR/manifest.json"), Err(MeasureError::Image(ImageError::NoMeasurements(_)))));
    assert!(matches!(measure(folder.path(), "DIR/initdata.toml"), Err(MeasureError::Image(ImageError::Manifest { .. }))));
}

#[test]
fn what_cannot_be_told_is_an_error_that_says_why() {
    let folder = manifest_alone();
    let said = measure(folder.path(), "DIR/manifest.json --tee snp --reference-values").unwrap_err().to_string();
    assert!(said.contains("measurement: firmware decides") && said.contains("--snp-firmware"), "{said}");
    let said = measure(folder.path(), "DIR/manifest.json --tee sample").unwrap_err().to_string();
    assert!(said.contains("give another --tee"), "{said}");
    for (name, firmware) in [("snp.fd", fixture::firmware::snp()), ("tdx.fd", fixture::firmware::tdx(&[CODE]))] {
        std::fs::write(folder.path().join(name), firmware).unwrap();
    }
    let told = json(folder.path(), "DIR/manifest.json --snp-firmware DIR/snp.fd --tdx-firmware DIR/tdx.fd --json");
    for claim in ["measurement", "rtmr_1", "rtmr_2"] {
        assert!(told["not_told"][claim].as_str().unwrap().contains("give the image's folder"), "{told}");
    }
    assert!(told["measurements"]["mr_td"].is_array(), "{told}");
    let error = measure(folder.path(), "DIR/manifest.json --tdx-firmware DIR/snp.fd").unwrap_err();
    let said = format!("{:#}", anyhow::Error::from(error));
    assert!(said.contains("snp.fd measures") && said.contains("not built for TDX"), "{said}");
}
