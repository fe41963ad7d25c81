//! EC2's errors to the contract's closed vocabulary.
//!
//! Source: "Error codes for the Amazon EC2 API" of the EC2 API reference. Messages are EC2's own; they name ids and parameters, never
//! user data or credentials. They are cut and stripped of control characters all the same.

use std::time::Duration;

use aws_sdk_ec2::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use peerpods_cloud_api::ProviderError;

/// Longer messages of EC2 are encoded authorization failures, which only their account can read.
const MAX_DETAIL: usize = 300;

/// What a failed call means. `action` is the API's name of it.
pub(crate) fn provider_error<E>(action: &str, error: &SdkError<E, HttpResponse>) -> ProviderError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    match error {
        SdkError::TimeoutError(_) => ProviderError::DeadlineExceeded,
        SdkError::DispatchFailure(failure) if failure.is_timeout() => ProviderError::DeadlineExceeded,
        SdkError::ServiceError(service) => {
            let (status, headers) = (service.raw().status().as_u16(), service.raw().headers());
            let retry_after = headers.get("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
            let meta = service.err().meta();
            of_code(action, meta.code().unwrap_or_default(), meta.message().unwrap_or_default(), status, retry_after)
        }
        // An answer that is no answer of EC2's: a proxy, or half of one. What the call did is unknown.
        SdkError::ResponseError(response) => {
            let status = response.raw().status().as_u16();
            ProviderError::Unavailable { detail: format!("{action}: the answer (HTTP {status}) is not EC2's") }
        }
        other => {
            let chain = tidy(&DisplayErrorContext(other).to_string());
            if ["credential", "Credential", "profile"].iter().any(|word| chain.contains(word)) {
                return ProviderError::PermissionDenied { detail: format!("{action}: no credentials: {chain}") };
            }
            ProviderError::Unavailable { detail: format!("{action}: EC2 cannot be reached: {chain}") }
        }
    }
}

/// [`provider_error`] for what EC2 itself has answered.
fn of_code(action: &str, code: &str, message: &str, status: u16, retry_after: Option<Duration>) -> ProviderError {
    let detail = tidy(&format!("{action}: {code}: {message}"));
    match code {
        "RequestLimitExceeded"
        | "Throttling"
        | "ThrottlingException"
        | "RequestThrottled"
        | "EC2ThrottledException"
        | "SlowDown"
        | "BandwidthLimitExceeded" => ProviderError::Throttled { retry_after },
        "IdempotentParameterMismatch" => ProviderError::AlreadyExists { detail },
        // "Unsupported": the type is not offered in this zone, which another zone or type mends.
        "InsufficientInstanceCapacity"
        | "InsufficientHostCapacity"
        | "InsufficientCapacity"
        | "InsufficientReservedInstanceCapacity"
        | "InsufficientFreeAddressesInSubnet"
        | "InsufficientAddressCapacity"
        | "InsufficientVolumeCapacity"
        | "ReservationCapacityExceeded"
        | "Unsupported" => ProviderError::InsufficientCapacity { detail },
        "AuthFailure"
        | "UnauthorizedOperation"
        | "AccessDenied"
        | "AccessDeniedException"
        | "Blocked"
        | "OptInRequired"
        | "PendingVerification"
        | "InvalidClientTokenId"
        | "MissingAuthenticationToken"
        | "SignatureDoesNotMatch"
        | "ExpiredToken"
        | "RequestExpired"
        | "UnrecognizedClientException"
        | "IncompleteSignature"
        | "InvalidSecurity" => ProviderError::PermissionDenied { detail },
        "InternalError" | "InternalFailure" | "InternalServerError" | "ServiceUnavailable" | "Unavailable" => {
            ProviderError::Unavailable { detail }
        }
        code if code.starts_with("InvalidInstanceID.") => ProviderError::NotFound,
        code if code.ends_with("LimitExceeded") => ProviderError::QuotaExceeded { detail },
        "" | "RequestTimeout" if status >= 500 => ProviderError::Unavailable { detail },
        _ if status == 429 => ProviderError::Throttled { retry_after },
        _ if status >= 500 => ProviderError::Unavailable { detail },
        _ if status >= 400 => ProviderError::InvalidRequest { detail },
        _ => ProviderError::Internal { detail },
    }
}

/// Foreign text for people: one line, cut, without control characters.
pub(crate) fn tidy(text: &str) -> String {
    let mut clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_DETAIL).collect();
    if text.chars().count() > MAX_DETAIL {
        clean.push('…');
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: &str, status: u16) -> ProviderError {
        of_code("RunInstances", code, "message", status, Some(Duration::from_secs(7)))
    }

    #[test]
    fn codes_mean_what_the_engine_must_do() {
        for code in ["RequestLimitExceeded", "Throttling"] {
            assert_eq!(of(code, 503), ProviderError::Throttled { retry_after: Some(Duration::from_secs(7)) }, "{code}");
        }
        // EC2 sends want of capacity with status 500, and it is no fault of the service.
        for code in ["InsufficientInstanceCapacity", "Unsupported", "InsufficientFreeAddressesInSubnet"] {
            assert!(matches!(of(code, 500), ProviderError::InsufficientCapacity { .. }), "{code}");
        }
        for code in ["VcpuLimitExceeded", "InstanceLimitExceeded", "VolumeLimitExceeded"] {
            assert!(matches!(of(code, 400), ProviderError::QuotaExceeded { .. }), "{code}");
        }
        for code in ["UnauthorizedOperation", "AuthFailure", "ExpiredToken"] {
            assert!(matches!(of(code, 403), ProviderError::PermissionDenied { .. }), "{code}");
        }
        for code in ["InternalError", "Unavailable", ""] {
            assert!(matches!(of(code, 500), ProviderError::Unavailable { .. }), "{code}");
        }
        assert_eq!(of("InvalidInstanceID.NotFound", 400), ProviderError::NotFound);
        assert_eq!(of("InvalidInstanceID.Malformed", 400), ProviderError::NotFound);
        assert!(matches!(of("IdempotentParameterMismatch", 400), ProviderError::AlreadyExists { .. }));
        assert!(matches!(of("InvalidAMIID.NotFound", 400), ProviderError::InvalidRequest { .. }));
        assert!(matches!(of("SomethingNew", 400), ProviderError::InvalidRequest { .. }));
        assert!(matches!(of("SomethingNew", 599), ProviderError::Unavailable { .. }));
    }

    #[test]
    fn messages_are_cut_and_harmless() {
        let said = of_code("RunInstances", "UnauthorizedOperation", &format!("\x1b[31m{}", "x".repeat(5000)), 403, None);
        let ProviderError::PermissionDenied { detail } = said else { panic!("{said:?}") };
        assert!(detail.chars().count() == MAX_DETAIL + 1 && !detail.contains('\x1b'), "{detail}");
    }
}
