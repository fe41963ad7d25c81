use axum::http::StatusCode;

use super::xml::Element;
use crate::account::Refusal;

/// An error as EC2 answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ec2Error {
    pub(super) code: String,
    pub(super) status: StatusCode,
    message: String,
}

impl Ec2Error {
    pub(super) fn new(code: &str, status: u16, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { code: code.to_owned(), status, message: message.into() }
    }

    /// One that a test has asked for.
    pub(super) fn injected(code: &str, status: u16) -> Self {
        Self::new(code, status, "injected")
    }

    /// A value that is not allowed.
    pub(super) fn value(parameter: &str, value: &str) -> Self {
        Self::new("InvalidParameterValue", 400, format!("Invalid value '{value}' for {parameter}."))
    }

    /// An id that names nothing.
    pub(super) fn not_found(kind: &str, id: &str) -> Self {
        Self::new(&format!("Invalid{kind}.NotFound"), 400, format!("The ID '{id}' does not exist"))
    }

    pub(super) fn into_answer(self, request_id: &str) -> String {
        let error = Element::new("Error").text("Code", self.code).text("Message", self.message);
        let errors = Element::new("Errors").child(error);
        Element::new("Response").child(errors).text("RequestID", request_id).to_document()
    }
}

impl From<Refusal> for Ec2Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::TokenTaken => Self::new(
                "IdempotentParameterMismatch",
                400,
                "Arguments on this idempotent request are inconsistent with arguments used in previous request(s).",
            ),
            Refusal::TokenOver => {
                Self::new("IdempotentInstanceTerminated", 400, "The instances of a previous request with this token are terminated.")
            }
            // EC2 sends this one with a status of the service's own.
            Refusal::NoCapacity => Self::new(
                "InsufficientInstanceCapacity",
                500,
                "We currently do not have sufficient capacity in the Availability Zone you requested.",
            ),
            Refusal::NoAddress => {
                Self::new("InsufficientFreeAddressesInSubnet", 400, "The specified subnet does not have enough free addresses.")
            }
            Refusal::Quota => {
                Self::new("VcpuLimitExceeded", 400, "You have requested more vCPU capacity than your current vCPU limit allows.")
            }
        }
    }
}
