//! The attester against a real software TPM: what it makes is verified, what it extends is predicted.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use peerpods_attester::tpm::{Tpm, TpmAttester, Transport};
use peerpods_evidence::tpm::credential::challenge;
use peerpods_evidence::{InitdataState, RootOfTrust, Trust, VerifyError, appraise};

/// A TPM in a process of its own, which ends with it.
struct Swtpm {
    process: Child,
    socket: UnixStream,
    _folder: tempfile::TempDir,
}

impl Swtpm {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("s");
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear,not-need-init", "--server"])
            .arg(format!("type=unixio,path={}", path.display()))
            .arg("--tpmstate")
            .arg(format!("dir={}", folder.path().display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("swtpm: install Debian's package swtpm");
        Self { process, socket: connect(&path), _folder: folder }
    }
}

/// Waits until the socket is there.
fn connect(path: &Path) -> UnixStream {
    let mut last = None;
    for _ in 0..1000 {
        match UnixStream::connect(path) {
            Ok(socket) => {
                socket.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
                return socket;
            }
            Err(error) => last = Some(error),
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("swtpm does not listen: {last:?}");
}

impl Transport for Swtpm {
    fn transmit(&mut self, command: &[u8]) -> io::Result<Vec<u8>> {
        self.socket.write_all(command)?;
        let mut answer = vec![0; 10];
        self.socket.read_exact(&mut answer)?;
        let length = u32::from_be_bytes([answer[2], answer[3], answer[4], answer[5]]);
        answer.resize(usize::try_from(length).unwrap_or(usize::MAX).min(4096), 0);
        self.socket.read_exact(&mut answer[10..])?;
        Ok(answer)
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

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
