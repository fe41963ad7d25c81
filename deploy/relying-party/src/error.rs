//! What goes wrong: [`ApiError`] for callers, as Trustee words it, and [`StartError`] for whoever starts the broker.

use peerpods_key_broker::wire::ErrorInfo;

use crate::store::StoreError;

/// An answer that is a refusal. Trustee answers 401 to everything but unknown paths; the name tells which.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// No call with this path.
    #[error("Request path {0} is invalid")]
    InvalidRequestPath(String),
    /// Neither a call of ours nor the plugin `resource`.
    #[error("Plugin {0} not found")]
    PluginNotFound(String),
    /// `/auth` refused.
    #[error("Attestation error: RCAR handshake Auth failed: {0}")]
    Auth(String),
    /// `/attest` refused.
    #[error("Attestation error: RCAR handshake Attest failed: {0}")]
    Attest(String),
    /// An attestation policy that cannot be set.
    #[error("Attestation error: Set Attestation Policy failed: {0}")]
    SetAttestationPolicy(String),
    /// Neither a session that was attested nor a bearer token.
    #[error("Attestation Token not found")]
    TokenNotFound,
    /// A token that is not ours, not whole, or expired.
    #[error("Token Verifier error")]
    TokenVerifier(&'static str),
    /// The resource policy says no.
    #[error("Access denied by policy")]
    PolicyDeny,
    /// The resource policy cannot be evaluated. The reason is logged, not sent.
    #[error("Policy engine error")]
    PolicyEngine(String),
    /// A resource policy that cannot be set.
    #[error("Failed to parse policy: {0}")]
    ParsePolicy(String),
    /// No such resource, or a name that none can have.
    #[error("Plugin internal error")]
    PluginInternal(String),
    /// A reference value that cannot be set or read.
    #[error("RVPS configuration failed: {0}")]
    Rvps(String),
    /// The TEE key of the token cannot be encrypted to.
    #[error("JWE failed")]
    Jwe(String),
    /// No admin token, or not a valid one. The reason is logged, not sent.
    #[error("admin access denied for endpoint {endpoint}")]
    AdminAccess {
        /// The path.
        endpoint: String,
        /// Why.
        reason: &'static str,
    },
    /// The state folder failed. The reason is logged, not sent.
    #[error("Storage failed")]
    Storage(#[from] StoreError),
}

/// Why the broker cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state folder.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file of the state folder that must be there.
    #[error("the state folder has no usable {file}: {reason}")]
    File {
        /// Its name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ApiError {
    /// Status of HTTP.
    pub fn status(&self) -> u16 {
        match self {
            Self::InvalidRequestPath(_) | Self::PluginNotFound(_) => 404,
            Self::Storage(_) => 500,
            _ => 401,
        }
    }

    /// The body.
    pub fn info(&self) -> ErrorInfo {
        let name = match self {
            Self::InvalidRequestPath(_) => "InvalidRequestPath",
            Self::PluginNotFound(_) => "PluginNotFound",
            Self::Auth(_) | Self::Attest(_) | Self::SetAttestationPolicy(_) => "AttestationError",
            Self::TokenNotFound => "TokenNotFound",
            Self::TokenVerifier(_) => "TokenVerifierError",
            Self::PolicyDeny => "PolicyDeny",
            Self::PolicyEngine(_) => "PolicyEngineError",
            Self::ParsePolicy(_) => "ParsePolicyError",
            Self::PluginInternal(_) => "PluginInternalError",
            Self::Rvps(_) => "RvpsError",
            Self::Jwe(_) => "JweError",
            Self::AdminAccess { .. } => "AdminAuthAccess",
            Self::Storage(_) => "StorageError",
        };
        ErrorInfo::new(name, self.to_string())
    }

    /// What is logged besides the detail.
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::TokenVerifier(reason) | Self::AdminAccess { reason, .. } => (*reason).to_owned(),
            Self::PolicyEngine(reason) | Self::PluginInternal(reason) | Self::Jwe(reason) => reason.clone(),
            Self::Storage(error) => error.to_string(),
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_worded_as_by_trustee() {
        let error = ApiError::Auth("KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.1".to_owned());
        assert_eq!(
            serde_json::to_string(&error.info()).unwrap(),
            r#"{"type":"https://github.com/confidential-containers/kbs/errors/AttestationError","detail":"Attestation error: RCAR handshake Auth failed: KBS Client Protocol Version Mismatch: expect =0.4.0 while the request is 0.1.1"}"#
        );
        assert_eq!((error.status(), ApiError::PolicyDeny.status(), ApiError::PluginNotFound(String::new()).status()), (401, 401, 404));
    }
}
