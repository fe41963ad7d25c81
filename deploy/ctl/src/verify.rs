//! `peerpodctl verify`: what evidence, a token or a key broker is worth, in plain words.
//!
//! Nothing is fetched but from the broker that is named; roots of trust are those of `peerpods-evidence`.

mod kbs;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail, ensure};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::Subcommand;
use peerpods_evidence::tdx::Collateral;
use peerpods_evidence::{Appraisal, ReferenceValues, Register, RootOfTrust, TEES, Trust, appraise};
use serde_json::{Value, json};

/// Longest file that is read.
const MAX_BYTES: u64 = 4 << 20;

/// Evidence, a token, or a key broker.
#[derive(Subcommand)]
pub(crate) enum Verify {
    /// Verify evidence and say what it shows.
    #[command(after_help = "\
Examples:
  peerpodctl verify evidence --tee tpm --report-data 00..(96 digits) evidence.json
  peerpodctl verify evidence --tee snp --report-data 00.. --reference-values values.json --json evidence.json")]
    Evidence {
        /// The format: snp, tdx, az-snp-vtpm, az-tdx-vtpm, snp-tpm, tpm, sample.
        #[arg(long)]
        tee: String,
        /// What the requester had bound into it: at most 48 bytes in hex digits.
        #[arg(long, value_name = "HEX")]
        report_data: String,
        /// JSON of claims and the values that they must have, as an image's manifest.json has them in `measurements`.
        #[arg(long, value_name = "FILE")]
        reference_values: Option<PathBuf>,
        /// A VCEK or VLEK certificate (DER), where the evidence has none.
        #[arg(long, value_name = "FILE")]
        snp_certificate: Vec<PathBuf>,
        /// What Intel says of TDX platforms.
        #[arg(long, value_name = "FILE")]
        tdx_collateral: Option<PathBuf>,
        /// The claims as JSON.
        #[arg(long)]
        json: bool,
        /// The evidence; `-` reads standard input.
        file: PathBuf,
    },
    /// Check a token's signature with the key that it brings, and say what its broker says of the VM.
    #[command(
        after_help = "Example:\n  curl -s 'http://127.0.0.1:8006/aa/token?token_type=kbs' | jq -r .token | peerpodctl verify token -"
    )]
    Token {
        /// The claims as JSON.
        #[arg(long)]
        json: bool,
        /// The token; `-` reads standard input.
        file: PathBuf,
    },
    Kbs(kbs::Kbs),
}

/// Runs the command.
pub(crate) async fn run(command: Verify) -> Result<()> {
    match command {
        Verify::Evidence { tee, report_data, reference_values, snp_certificate, tdx_collateral, json, file } => {
            let trust = Trust {
                snp_certificates: snp_certificate.iter().map(|path| read(path)).collect::<Result<_>>()?,
                tdx_collateral: tdx_collateral.map(|path| anyhow::Ok(Collateral::from_json(&read(&path)?)?)).transpose()?,
                ..Trust::default()
            };
            let appraisal = evidence(&tee, &report_data, &read(&file)?, &trust)?;
            let reference =
                reference_values.map(|path| anyhow::Ok(serde_json::from_slice::<ReferenceValues>(&read(&path)?)?)).transpose()?;
            if let Some(values) = &reference {
                values.check(&appraisal.claims).context("the evidence is genuine, but of another image or platform")?;
            }
            if json {
                println!("{}", serde_json::to_string_pretty(&appraisal.named_claims())?);
            } else {
                print!("{}", in_words(&appraisal, reference.is_some()));
            }
            Ok(())
        }
        Verify::Token { json, file } => {
            let payload = token(&String::from_utf8(read(&file)?).context("the token is not text")?)?;
            if json {
                println!("{}", serde_json::to_string_pretty(&payload)?);
            } else {
                print!("{}", token_in_words(&payload));
            }
            Ok(())
        }
        Verify::Kbs(command) => {
            print!("{}", kbs::run(&command).await?);
            Ok(())
        }
    }
}

fn evidence(tee: &str, report_data: &str, bytes: &[u8], trust: &Trust) -> Result<Appraisal> {
    ensure!(TEES.contains(&tee), "no format is called {tee:?}; there are {}", TEES.join(", "));
    let given = hex::decode(report_data).context("--report-data is not hex digits")?;
    ensure!(given.len() <= 48, "--report-data has {} bytes; at most 48 fit", given.len());
    let mut expected = [0; 48];
    expected[..given.len()].copy_from_slice(&given);
    Ok(appraise(tee, bytes, &expected, trust, SystemTime::now())?)
}

fn in_words(appraisal: &Appraisal, is_compared: bool) -> String {
    let stands = match appraisal.root_of_trust {
        RootOfTrust::Hardware => "The processor's maker vouches for it.",
        RootOfTrust::CloudTpm => {
            "The processor's maker vouches for the VM's encryption, the cloud's TPM for what booted in it: the cloud is trusted."
        }
        RootOfTrust::Insecure => "Nobody vouches for it who is not the host as well: it protects nothing.",
    };
    let register = match &appraisal.register {
        register if register.is_reset() => "No workload ever ran in this VM: its initdata register is untouched.".to_owned(),
        Register::Sample(Some(digest)) => format!("It was bound with initdata of digest {}.", hex::encode(digest)),
        register => format!("It was bound with initdata: {register}."),
    };
    let image = if is_compared { "Its image is the expected one." } else { "Its image was not compared: give --reference-values." };
    let mut text = format!("The evidence is genuine and made for this request.\n{stands}\n{register}\n{image}\n");
    for (claim, words) in
        [("policy_debug_allowed", "The host may read its memory for debugging."), ("policy_migrate_ma", "It may be migrated by an agent.")]
    {
        if appraisal.claims[claim] == json!(true) {
            text += &format!("{words}\n");
        }
    }
    if let Some(status) = appraisal.claims["tcb_status"].as_str() {
        text += &format!("Its platform's firmware is {status:?} in Intel's words.\n");
    }
    text
}

/// The payload, if the key in the header signed it (RFC 7515, ES256).
fn token(text: &str) -> Result<Value> {
    let text = text.trim();
    let [header, payload, signature] = text.split('.').collect::<Vec<_>>()[..] else { bail!("it is not a token of three parts") };
    let decode = |what: &str, text: &str| URL_SAFE_NO_PAD.decode(text).with_context(|| format!("the token's {what} is not base64url"));
    let header_json: Value = serde_json::from_slice(&decode("header", header)?).context("the token's header is not JSON")?;
    ensure!(header_json["alg"] == "ES256", "the token is signed with {}, not ES256", header_json["alg"]);
    let coordinate = |name: &str| decode("key", header_json["jwk"][name].as_str().context("the token brings no key on P-256")?);
    let point = [&[4][..], &coordinate("x")?, &coordinate("y")?].concat();
    let signed = format!("{header}.{payload}");
    let verified = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed.as_bytes(), &decode("signature", signature)?);
    ensure!(verified.is_ok(), "the token is not signed by the key that it brings");
    serde_json::from_slice(&decode("payload", payload)?).context("the token's payload is not JSON")
}

fn token_in_words(payload: &Value) -> String {
    let mut text = "The token is signed by the key that it brings; whether that is your broker's, only you know.\n".to_owned();
    for (name, module) in payload["submods"].as_object().into_iter().flatten() {
        let status = module["ear.status"].as_str().unwrap_or("unknown");
        let evidence = &module["ear.veraison.annotated-evidence"];
        text += &format!("{name}: {status}.\n");
        for (claim, value) in module["ear.trustworthiness-vector"].as_object().into_iter().flatten() {
            text += &format!("  {claim}: {value}, {}\n", tier(value.as_i64().unwrap_or(99)));
        }
        match evidence["init_data"].as_str() {
            Some(digest) => text += &format!("  bound with initdata: {digest}\n"),
            None => text += "  no initdata was compared: a policy cannot tell whose workload this is\n",
        }
    }
    if let Some(ends) = payload["exp"].as_u64() {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        text += &match ends.checked_sub(now) {
            Some(left) => format!("It ends in {left} s.\n"),
            None => format!("It ended {} s ago.\n", now - ends),
        };
    }
    text
}

/// Section 2.3.1 of draft-ietf-rats-ar4si.
fn tier(value: i64) -> &'static str {
    match value {
        -1..=1 => "no claim",
        -32..=31 => "affirming",
        -96..=95 => "a warning",
        _ => "contradicted",
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_BYTES + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
    };
    read.with_context(|| format!("read {}", path.display()))?;
    ensure!(bytes.len() as u64 <= MAX_BYTES, "{} has more than {MAX_BYTES} bytes", path.display());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_evidence_is_named_worthless() {
        let evidence = super::evidence(
            "sample",
            "07",
            br#"{"svn":"1","report_data":"BwAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#,
            &Trust::default(),
        );
        let text = in_words(&evidence.unwrap(), false);
        assert!(text.contains("it protects nothing") && text.contains("No workload ever ran"), "{text}");
        assert!(super::evidence("sgx", "", b"", &Trust::default()).unwrap_err().to_string().contains("az-snp-vtpm"));
    }

    #[test]
    fn token_with_a_changed_payload_is_refused() {
        use aws_lc_rs::rand::SystemRandom;
        use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = key.public_key().as_ref();
        let b64 = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let header = json!({"alg": "ES256", "jwk": {"x": b64(&point[1..33]), "y": b64(&point[33..])}}).to_string();
        let payload = json!({"submods": {"cpu0": {"ear.status": "affirming"}}}).to_string();
        let signed = format!("{}.{}", b64(header.as_bytes()), b64(payload.as_bytes()));
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        let good = format!("{signed}.{}", b64(signature.as_ref()));
        assert!(token_in_words(&token(&good).unwrap()).contains("cpu0: affirming"));
        let other = good.replace(&b64(payload.as_bytes()), &b64(payload.replace("affirming", "warning").as_bytes()));
        assert!(token(&other).unwrap_err().to_string().contains("not signed"));
    }
}
