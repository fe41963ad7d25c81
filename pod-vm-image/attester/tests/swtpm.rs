//! The attester against a real software TPM: what it makes is verified, what it extends is predicted.

mod software;

use peerpods_attester::tpm::{Tpm, TpmAttester};
use peerpods_evidence::snp::SnpEvidence;
use peerpods_evidence::snp_tpm::SnpTpmEvidence;
use peerpods_evidence::tpm::credential::{Challenge, challenge};
use peerpods_evidence::tpm::rsa_of;
use peerpods_evidence::{Endorsement, InitdataState, RootOfTrust, Trust, VerifyError, appraise};
use software::Swtpm;

#[test]
fn evidence_of_a_tpm_is_verified_and_bound_to_its_request() {
    let mut attester = TpmAttester::new(Tpm::new(Swtpm::start()), None).expect("keys");
    let evidence = attester.evidence(&[5; 48]).expect("a quote");
    let appraisal = appraise("tpm", &evidence.encode(), &[5; 48], &Trust::default(), std::time::SystemTime::now()).expect("genuine");
    assert_eq!(appraisal.root_of_trust, RootOfTrust::Insecure);
    assert!(appraisal.register.check(&InitdataState::Reset).is_ok());
    let other = appraise("tpm", &evidence.encode(), &[6; 48], &Trust::default(), std::time::SystemTime::now());
    assert!(matches!(other, Err(VerifyError::ReportData)));
}

#[test]
fn credential_opens_in_the_tpm_of_its_endorsement_key_and_in_no_other() {
    let mut one = TpmAttester::new(Tpm::new(Swtpm::start()), None).expect("keys");
    let mut other = TpmAttester::new(Tpm::new(Swtpm::start()), None).expect("keys");
    let keys = |attester: &mut TpmAttester<Swtpm>| {
        let evidence = attester.evidence(&[0; 48]).expect("a quote");
        (evidence.ek.expect("an endorsement key"), evidence.ak.expect("an attestation key"))
    };
    let ((ek, ak), (_, foreign_ak)) = (keys(&mut one), keys(&mut other));
    let (good, secret) = challenge(&ek, &ak).expect("a challenge");
    assert_eq!(one.activate(&good).expect("opens"), secret);
    assert!(other.activate(&good).is_err(), "another TPM opens it");
    let (relayed, _) = challenge(&ek, &foreign_ak).expect("a challenge");
    assert!(one.activate(&relayed).is_err(), "it opens for another attestation key");
    assert_eq!(one.activate(&good).expect("sessions were given back"), secret);
}

/// The SNP part is none: who vouches for the TPM does not depend on it.
#[test]
fn attestation_key_is_trusted_once_the_tpm_of_a_trusted_endorsement_key_has_answered() {
    let mut attester = TpmAttester::new(Tpm::new(Swtpm::start()), None).expect("keys");
    let tpm = attester.evidence(&[5; 48]).expect("a quote");
    let spki = |public: &Option<Vec<u8>>| rsa_of(public.as_ref().expect("a key")).expect("RSA").to_spki();
    let (ek, ak) = (spki(&tpm.ek), tpm.ak_public.clone());
    let snp = SnpEvidence { report: software::unsigned_report(), certificates: Vec::new() };
    let evidence = SnpTpmEvidence { snp, tpm }.encode().expect("encodes");
    let trusting = |keys: &[&Vec<u8>]| Trust { tpm_keys: keys.iter().map(|key| (*key).clone()).collect(), ..Trust::default() };
    let of = |trust: &Trust| Endorsement::of("snp-tpm", &evidence, trust).expect("RSA keys");

    let trust = trusting(&[&ek]);
    let asked = of(&trust).expect("a challenge");
    let answer = attester.activate(&Challenge::decode(&asked.challenge()).expect("decodes")).expect("opens");
    assert_eq!(asked.trust(&answer, &trust).expect("right").tpm_keys, [ek.clone(), ak.clone()]);
    assert!(of(&trust).expect("another challenge").trust(&answer, &trust).is_err(), "an old answer");
    assert!(of(&trust).expect("another challenge").trust(&[], &trust).is_err());
    for trust in [trusting(&[]), trusting(&[&ak]), trusting(&[&ak, &ek]), trusting(&[&vec![1]])] {
        assert!(of(&trust).is_none(), "nothing to ask");
    }
    assert!(Endorsement::of("tpm", &evidence, &trust).expect("nothing").is_none());
    assert!(Endorsement::of("snp-tpm", b"{", &trust).expect("nothing").is_none());
}

/// The registers after the guest's own extension are what the verifier predicts, for any digest.
#[test]
fn eighteen_extensions_are_what_was_predicted() {
    for run in 0..18u8 {
        let mut attester = TpmAttester::new(Tpm::new(Swtpm::start()), None).expect("keys");
        let digest: [u8; 32] = std::array::from_fn(|index| run.wrapping_mul(31) ^ u8::try_from(index).unwrap_or(0));
        attester.extend_initdata(&digest).expect("extends");
        let evidence = attester.evidence(&[run; 48]).expect("a quote").encode();
        let appraisal = appraise("tpm", &evidence, &[run; 48], &Trust::default(), std::time::SystemTime::now()).expect("genuine");
        assert!(appraisal.register.check(&InitdataState::Extended(digest.to_vec())).is_ok(), "{}", appraisal.register);
        assert!(appraisal.register.check(&InitdataState::Reset).is_err());
        let predicted = peerpods_evidence::register::pcr_after(&digest).expect("fits");
        assert_eq!(appraisal.claims["pcr08"], hex::encode(predicted));
    }
}
