//! Answers that the link gives in the agent's place: Health.Check while the tunnel is resuming, and refusals.

use bytes::Bytes;
use peerpods_protos::health::HealthCheckResponse;
use peerpods_protos::health::health_check_response::ServingStatus;
use protobuf::Message as _;
use ttrpc::proto::{Code, Request, Response, Status};

use crate::frame::{BODY_LIMIT, Frame, FrameKind};

/// No Health.Check is longer; bodies above this are not decoded.
const HEALTH_CHECK_LIMIT: usize = 256;

const RESPONSE: u8 = 2;

/// Whether a frame calls `grpc.Health/Check`.
pub(crate) fn is_health_check(frame: &Frame) -> bool {
    if frame.header.kind != Ok(FrameKind::Request) || frame.body().len() > HEALTH_CHECK_LIMIT {
        return false;
    }
    Request::parse_from_bytes(frame.body()).is_ok_and(|request| request.service == "grpc.Health" && request.method == "Check")
}

/// The frame that says SERVING on that stream.
pub(crate) fn serving(stream_id: u32) -> Bytes {
    let mut health = HealthCheckResponse::new();
    health.status = ServingStatus::SERVING.into();
    let mut response = Response::new();
    // Writing to memory cannot fail; an empty payload would decode as UNKNOWN, never as SERVING.
    response.payload = health.write_to_bytes().unwrap_or_default();
    encode(stream_id, &response)
}

/// The frame that ends a call with an error.
pub(crate) fn refusal(stream_id: u32, code: Code, message: &str) -> Bytes {
    let mut status = Status::new();
    status.code = code.into();
    status.message = message.to_owned();
    let mut response = Response::new();
    response.status = Some(status).into();
    encode(stream_id, &response)
}

fn encode(stream_id: u32, response: &Response) -> Bytes {
    let body = response.write_to_bytes().unwrap_or_default();
    debug_assert!(body.len() <= BODY_LIMIT, "our own answers are short");
    let mut frame = u32::try_from(body.len()).unwrap_or(0).to_be_bytes().to_vec();
    frame.extend(stream_id.to_be_bytes());
    frame.extend([RESPONSE, 0]);
    frame.extend(body);
    Bytes::from(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameReader;

    async fn request(service: &str, method: &str) -> Frame {
        let mut request = Request::new();
        request.service = service.to_owned();
        request.method = method.to_owned();
        request.timeout_nano = 90_000_000_000;
        let body = request.write_to_bytes().expect("encodes");
        let mut bytes = u32::try_from(body.len()).expect("short").to_be_bytes().to_vec();
        bytes.extend([0, 0, 0, 5, 1, 0]);
        bytes.extend(body);
        FrameReader::new(&bytes[..]).next().await.expect("valid").expect("a frame")
    }

    #[tokio::test]
    async fn only_health_check_is_recognised() {
        assert!(is_health_check(&request("grpc.Health", "Check").await));
        assert!(!is_health_check(&request("grpc.Health", "Version").await));
        assert!(!is_health_check(&request("grpc.AgentService", "Check").await));
    }

    #[tokio::test]
    async fn serving_has_the_bytes_that_agents_send() {
        let bytes = serving(5);
        let frame = FrameReader::new(&bytes[..]).next().await.expect("valid").expect("a frame");
        assert_eq!((frame.header.stream_id, frame.header.kind), (5, Ok(FrameKind::Response)));
        let response = Response::parse_from_bytes(frame.body()).expect("a response");
        let recorded = include_str!("../../../tests/compat/agent/v1/grpc.HealthCheckResponse.hex").trim();
        let hex: String = response.payload.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, recorded);
    }
}
