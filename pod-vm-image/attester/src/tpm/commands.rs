//! The commands that attestation needs (part 3), marshalled by `tpm2-protocol`.

use peerpods_evidence::tpm::Pcrs;
use peerpods_evidence::tpm::credential::Challenge;
use sha2::{Digest as _, Sha256};
use tpm2_protocol::basic::{TpmInt32, TpmUint16, TpmUint32};
use tpm2_protocol::data::{
    Tpm2bData, Tpm2bEncryptedSecret, Tpm2bIdObject, Tpm2bMaxNvBuffer, Tpm2bNonce, Tpm2bPublic, Tpm2bSensitiveCreate, TpmAlgId, TpmSe,
    TpmSt, TpmaSession, TpmlDigestValues, TpmlPcrSelection, TpmsAttest, TpmsAuthCommand, TpmsPcrSelect, TpmsPcrSelection,
    TpmsSensitiveCreate, TpmtHa, TpmtPublic, TpmtSigScheme, TpmtSignature, TpmtSymDef, TpmuAttest, TpmuHa, TpmuSignature,
};
use tpm2_protocol::frame::{
    TpmActivateCredentialCommand, TpmActivateCredentialResponse, TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmFlushContextCommand,
    TpmFlushContextResponse, TpmFrame, TpmHeader, TpmNvReadCommand, TpmNvReadPublicCommand, TpmNvReadPublicResponse, TpmNvReadResponse,
    TpmNvWriteCommand, TpmNvWriteResponse, TpmPcrExtendCommand, TpmPcrExtendResponse, TpmPcrReadCommand, TpmPcrReadResponse,
    TpmPolicySecretCommand, TpmPolicySecretResponse, TpmQuoteCommand, TpmQuoteResponse, TpmStartAuthSessionCommand,
    TpmStartAuthSessionResponse, TpmUnmarshalBody, tpm_marshal_command,
};
use tpm2_protocol::{TpmError as StructureError, TpmMarshal, TpmUnmarshal as _, TpmWriter};

use super::device::MAX_BYTES;
use super::{TRIES, TpmError, Transport};

/// The whole SHA-256 bank.
pub const ALL_PCRS: [u8; 3] = [0xff; 3];

/// TPM_RS_PW: authorization by a password, which is empty for everything that is used here.
const PASSWORD: u32 = 0x4000_0009;
const HIERARCHY_OWNER: u32 = 0x4000_0001;
const HIERARCHY_NULL: u32 = 0x4000_0007;
const HIERARCHY_ENDORSEMENT: u32 = 0x4000_000b;

/// Bytes of a read of an index; every TPM takes as many.
const NV_CHUNK: u16 = 512;
/// Registers that one PCR_Read gives at most.
const PCRS_PER_READ: usize = 8;

/// A TPM behind a transport.
pub struct Tpm<T> {
    transport: T,
}

/// A quote and the registers that it is of.
pub struct Quote {
    /// Marshalled TPMT_SIGNATURE.
    pub signature: Vec<u8>,
    /// Marshalled TPMS_ATTEST.
    pub message: Vec<u8>,
    /// The bank.
    pub pcrs: Pcrs,
}

impl Quote {
    /// The signature without its structure.
    pub(crate) fn bare_signature(&self) -> Result<Vec<u8>, TpmError> {
        match TpmtSignature::unmarshal(&self.signature) {
            Ok((TpmtSignature { signature: TpmuSignature::Rsassa(rsa), .. }, _)) => Ok(rsa.sig.to_vec()),
            _ => Err(TpmError::Structure { command: "Quote", detail: "the signature is not RSASSA".to_owned() }),
        }
    }
}

impl<T: Transport> Tpm<T> {
    /// A TPM that the firmware has started.
    pub fn new(transport: T) -> Self {
        Self { transport }
    }

    /// Makes a primary key in the endorsement hierarchy: its handle and marshalled TPMT_PUBLIC.
    pub(super) fn create_primary(&mut self, template: TpmtPublic) -> Result<(u32, Vec<u8>), TpmError> {
        const NAME: &str = "CreatePrimary";
        let command = TpmCreatePrimaryCommand {
            handles: [TpmUint32::new(HIERARCHY_ENDORSEMENT)],
            in_sensitive: Tpm2bSensitiveCreate { inner: TpmsSensitiveCreate::default() },
            in_public: Tpm2bPublic { inner: template },
            outside_info: Tpm2bData::default(),
            creation_pcr: TpmlPcrSelection::default(),
        };
        let response: TpmCreatePrimaryResponse = self.run(NAME, &command, &[password()])?;
        Ok((response.handles[0].value(), marshal(NAME, &response.out_public.inner)?))
    }

    /// Quotes registers of the SHA-256 bank with the key's own scheme.
    pub fn quote(&mut self, key: u32, extra_data: &[u8], selection: [u8; 3]) -> Result<Quote, TpmError> {
        const NAME: &str = "Quote";
        for _ in 0..TRIES {
            let command = TpmQuoteCommand {
                handles: [TpmUint32::new(key)],
                qualifying_data: Tpm2bData::try_from(extra_data).map_err(structure(NAME))?,
                in_scheme: TpmtSigScheme::default(),
                pcr_select: select(NAME, selection)?,
            };
            let response: TpmQuoteResponse = self.run(NAME, &command, &[password()])?;
            let pcrs = self.read_pcrs()?;
            if is_of(&response.quoted.inner, &pcrs, selection) {
                let (signature, message) = (marshal(NAME, &response.signature)?, marshal(NAME, &response.quoted.inner)?);
                return Ok(Quote { signature, message, pcrs });
            }
        }
        Err(TpmError::Unstable)
    }

    /// The SHA-256 bank.
    pub fn read_pcrs(&mut self) -> Result<Pcrs, TpmError> {
        const NAME: &str = "PCR_Read";
        let mut values = [[0; 32]; 24];
        for (byte, values) in values.chunks_mut(PCRS_PER_READ).enumerate() {
            let mut selection = [0; 3];
            selection[byte] = 0xff;
            let command = TpmPcrReadCommand { handles: [], pcr_selection_in: select(NAME, selection)? };
            let response: TpmPcrReadResponse = self.run(NAME, &command, &[])?;
            if response.pcr_values.len() != values.len() {
                return Err(TpmError::Structure { command: NAME, detail: "it gives other registers".to_owned() });
            }
            for (value, read) in values.iter_mut().zip(response.pcr_values.iter()) {
                *value =
                    read[..].try_into().map_err(|_| TpmError::Structure { command: NAME, detail: "it gives another bank".to_owned() })?;
            }
        }
        Ok(Pcrs::new(values))
    }

    /// Extends a register of the SHA-256 bank.
    pub fn extend(&mut self, pcr: u32, digest: &[u8]) -> Result<(), TpmError> {
        const NAME: &str = "PCR_Extend";
        let digest = TpmuHa::Digest(digest.try_into().map_err(structure(NAME))?);
        let mut digests = TpmlDigestValues::default();
        digests.try_push(TpmtHa { hash_alg: TpmAlgId::Sha256, digest }).map_err(structure(NAME))?;
        let command = TpmPcrExtendCommand { handles: [TpmUint32::new(pcr)], digests };
        self.run::<_, TpmPcrExtendResponse>(NAME, &command, &[password()]).map(drop)
    }

    /// The content of an index, authorized by the index itself or by its owner.
    pub fn nv_read(&mut self, index: u32) -> Result<Vec<u8>, TpmError> {
        const NAME: &str = "NV_Read";
        let index = TpmUint32::new(index);
        let public: TpmNvReadPublicResponse = self.run("NV_ReadPublic", &TpmNvReadPublicCommand { handles: [index] }, &[])?;
        let size = public.nv_public.inner.data_size.value();
        let mut content = Vec::new();
        let mut authority = index;
        while content.len() < usize::from(size) {
            let offset = u16::try_from(content.len()).unwrap_or(u16::MAX);
            let part = TpmUint16::new(NV_CHUNK.min(size - offset));
            let command = |authority| TpmNvReadCommand { handles: [authority, index], size: part, offset: TpmUint16::new(offset) };
            let mut read: Result<TpmNvReadResponse, _> = self.run(NAME, &command(authority), &[password()]);
            if read.is_err() && authority == index {
                authority = TpmUint32::new(HIERARCHY_OWNER);
                read = self.run(NAME, &command(authority), &[password()]);
            }
            let data = read?.data;
            if data.is_empty() {
                return Err(TpmError::Structure { command: NAME, detail: "it gives nothing".to_owned() });
            }
            content.extend_from_slice(&data);
        }
        Ok(content)
    }

    /// Writes an index that the owner may write, which must exist.
    pub fn nv_write(&mut self, index: u32, content: &[u8]) -> Result<(), TpmError> {
        const NAME: &str = "NV_Write";
        let command = TpmNvWriteCommand {
            handles: [TpmUint32::new(HIERARCHY_OWNER), TpmUint32::new(index)],
            data: Tpm2bMaxNvBuffer::try_from(content).map_err(structure(NAME))?,
            offset: TpmUint16::new(0),
        };
        self.run::<_, TpmNvWriteResponse>(NAME, &command, &[password()]).map(drop)
    }

    /// Opens a credential that was made for this pair of keys.
    pub(super) fn activate(&mut self, ak: u32, ek: u32, challenge: &Challenge) -> Result<Vec<u8>, TpmError> {
        const NAME: &str = "ActivateCredential";
        let session = self.start_policy_session()?;
        let result = self.endorse(session).and_then(|()| {
            let command = TpmActivateCredentialCommand {
                handles: [TpmUint32::new(ak), TpmUint32::new(ek)],
                credential_blob: Tpm2bIdObject::try_from(&challenge.credential[..]).map_err(structure(NAME))?,
                secret: Tpm2bEncryptedSecret::try_from(&challenge.encrypted_secret[..]).map_err(structure(NAME))?,
            };
            let policy = TpmsAuthCommand { session_handle: TpmUint32::new(session), ..password() };
            let response: TpmActivateCredentialResponse = self.run(NAME, &command, &[password(), policy])?;
            Ok(response.cert_info.to_vec())
        });
        if result.is_err() {
            // After success the TPM has ended it by itself. A session that stays would only be one of few.
            let flush = TpmFlushContextCommand { handles: [], flush_handle: TpmUint32::new(session) };
            let _ = self.run::<_, TpmFlushContextResponse>("FlushContext", &flush, &[]);
        }
        result
    }

    fn start_policy_session(&mut self) -> Result<u32, TpmError> {
        const NAME: &str = "StartAuthSession";
        let command = TpmStartAuthSessionCommand {
            handles: [TpmUint32::new(HIERARCHY_NULL); 2],
            nonce_caller: Tpm2bNonce::try_from(&[0; 16][..]).map_err(structure(NAME))?,
            encrypted_salt: Tpm2bEncryptedSecret::default(),
            session_type: TpmSe::Policy,
            symmetric: TpmtSymDef::default(),
            auth_hash: TpmAlgId::Sha256,
        };
        let response: TpmStartAuthSessionResponse = self.run(NAME, &command, &[])?;
        Ok(response.handles[0].value())
    }

    /// PolicySecret of the endorsement hierarchy, which the endorsement key's policy asks for.
    fn endorse(&mut self, session: u32) -> Result<(), TpmError> {
        let command = TpmPolicySecretCommand {
            handles: [TpmUint32::new(HIERARCHY_ENDORSEMENT), TpmUint32::new(session)],
            nonce_tpm: Tpm2bNonce::default(),
            cp_hash_a: tpm2_protocol::data::Tpm2bDigest::default(),
            policy_ref: Tpm2bNonce::default(),
            expiration: TpmInt32::new(0),
        };
        self.run::<_, TpmPolicySecretResponse>("PolicySecret", &command, &[password()]).map(drop)
    }

    fn run<C: TpmFrame, R: TpmUnmarshalBody>(
        &mut self,
        name: &'static str,
        command: &C,
        sessions: &[TpmsAuthCommand],
    ) -> Result<R, TpmError> {
        let mut buffer = [0; MAX_BYTES];
        let mut writer = TpmWriter::new(&mut buffer);
        let tag = if sessions.is_empty() { TpmSt::NoSessions } else { TpmSt::Sessions };
        tpm_marshal_command(command, tag, sessions, &mut writer).map_err(structure(name))?;
        let answer = self.transport.transmit(writer.as_bytes()).map_err(|source| TpmError::Device { action: name, source })?;
        let (handles, parameters) = take_apart::<R>(name, &answer)?;
        R::unmarshal_body(handles, parameters).map_err(structure(name))
    }
}

/// Handles and parameters of an answer (part 1, "Response structure"): tag, size, code, handles, and with sessions the parameters' size.
fn take_apart<'a, R: TpmHeader>(name: &'static str, answer: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), TpmError> {
    let short = || TpmError::Structure { command: name, detail: "the answer is cut off".to_owned() };
    let number = |at: usize| answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_be_bytes).ok_or_else(short);
    let code = number(6)?;
    if code != 0 {
        return Err(TpmError::Refused { command: name, code });
    }
    if usize::try_from(number(2)?) != Ok(answer.len()) {
        return Err(short());
    }
    let has_sessions = answer.first() == Some(&0x80) && answer.get(1) == Some(&2);
    let handles = answer_handles::<R>() * 4;
    let (handles, rest) = answer.get(10..).and_then(|body| body.split_at_checked(handles)).ok_or_else(short)?;
    if !has_sessions {
        return Ok((handles, rest));
    }
    let (size, rest) = rest.split_at_checked(4).ok_or_else(short)?;
    let size = size.try_into().map(u32::from_be_bytes).ok().and_then(|size| usize::try_from(size).ok()).ok_or_else(short)?;
    Ok((handles, rest.get(..size).ok_or_else(short)?))
}

fn answer_handles<R: TpmHeader>() -> usize {
    R::HANDLES
}

fn password() -> TpmsAuthCommand {
    TpmsAuthCommand {
        session_handle: TpmUint32::new(PASSWORD),
        nonce: Tpm2bNonce::default(),
        session_attributes: TpmaSession::default(),
        hmac: tpm2_protocol::data::Tpm2bAuth::default(),
    }
}

fn select(name: &'static str, selection: [u8; 3]) -> Result<TpmlPcrSelection, TpmError> {
    let pcr_select = TpmsPcrSelect::try_from(&selection[..]).map_err(structure(name))?;
    let mut list = TpmlPcrSelection::default();
    list.try_push(TpmsPcrSelection { hash: TpmAlgId::Sha256, pcr_select }).map_err(structure(name))?;
    Ok(list)
}

/// Whether the quoted digest is of these values.
fn is_of(attest: &TpmsAttest, pcrs: &Pcrs, selection: [u8; 3]) -> bool {
    let TpmuAttest::Quote(quoted) = &attest.attested else { return false };
    let is_selected = |index: &usize| selection[index / 8] & (1 << (index % 8)) != 0;
    let mut digest = Sha256::new();
    (0..24).filter(is_selected).filter_map(|index| pcrs.get(index)).for_each(|value| digest.update(value));
    digest.finalize()[..] == quoted.pcr_digest[..]
}

fn marshal(name: &'static str, value: &impl TpmMarshal) -> Result<Vec<u8>, TpmError> {
    let mut buffer = [0; MAX_BYTES];
    let mut writer = TpmWriter::new(&mut buffer);
    value.marshal(&mut writer).map_err(structure(name))?;
    Ok(writer.as_bytes().to_vec())
}

fn structure(command: &'static str) -> impl Fn(StructureError) -> TpmError {
    move |error| TpmError::Structure { command, detail: error.to_string() }
}
