//! What keys are made as.

use tpm2_protocol::basic::{TpmUint16, TpmUint32};
use tpm2_protocol::data::{
    Tpm2bDigest, Tpm2bPublicKeyRsa, TpmAlgId, TpmaObject, TpmsRsaParms, TpmsSchemeHash, TpmtPublic, TpmtRsaScheme, TpmtSymDef,
    TpmuAsymScheme, TpmuPublicId, TpmuPublicParms, TpmuSymKeyBits, TpmuSymMode,
};

/// PolicySecret(TPM_RH_ENDORSEMENT), by which endorsement keys are used (EK Credential Profile, annex B.6.2).
const EK_POLICY: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52,
    0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

/// Bits of both keys.
const BITS: u16 = 2048;

/// Template L-1 of the EK Credential Profile: RSA 2048, the key that makers certify.
pub(super) fn endorsement_key() -> TpmtPublic {
    let attributes = TpmaObject::FIXED_TPM
        | TpmaObject::FIXED_PARENT
        | TpmaObject::SENSITIVE_DATA_ORIGIN
        | TpmaObject::ADMIN_WITH_POLICY
        | TpmaObject::RESTRICTED
        | TpmaObject::DECRYPT;
    let symmetric =
        TpmtSymDef { algorithm: TpmAlgId::Aes, key_bits: TpmuSymKeyBits::Aes(TpmUint16::new(128)), mode: TpmuSymMode::Aes(TpmAlgId::Cfb) };
    // The template's unique field is a modulus of zeros.
    let unique = [0; BITS as usize / 8];
    rsa(attributes, &EK_POLICY, symmetric, TpmtRsaScheme::default(), &unique)
}

/// RSASSA with SHA-256, which every verifier knows; restricted, so that it signs nothing that only looks like a quote.
pub(super) fn attestation_key() -> TpmtPublic {
    let attributes = TpmaObject::FIXED_TPM
        | TpmaObject::FIXED_PARENT
        | TpmaObject::SENSITIVE_DATA_ORIGIN
        | TpmaObject::USER_WITH_AUTH
        | TpmaObject::NO_DA
        | TpmaObject::RESTRICTED
        | TpmaObject::SIGN_ENCRYPT;
    let scheme = TpmtRsaScheme { scheme: TpmAlgId::Rsassa, details: TpmuAsymScheme::Hash(TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 }) };
    rsa(attributes, &[], TpmtSymDef::default(), scheme, &[])
}

fn rsa(attributes: TpmaObject, policy: &[u8], symmetric: TpmtSymDef, scheme: TpmtRsaScheme, unique: &[u8]) -> TpmtPublic {
    let parameters = TpmsRsaParms { symmetric, scheme, key_bits: TpmUint16::new(BITS), exponent: TpmUint32::new(0) };
    TpmtPublic {
        object_type: TpmAlgId::Rsa,
        name_alg: TpmAlgId::Sha256,
        object_attributes: attributes,
        // Constants of this file, which fit.
        auth_policy: Tpm2bDigest::try_from(policy).unwrap_or_default(),
        parameters: TpmuPublicParms::Rsa(parameters),
        unique: TpmuPublicId::Rsa(Tpm2bPublicKeyRsa::try_from(unique).unwrap_or_default()),
    }
}
