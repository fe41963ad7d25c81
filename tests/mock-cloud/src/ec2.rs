//! EC2's Query API, version 2016-11-15: forms in, XML out.
//!
//! Source of names, limits and error codes: the Amazon EC2 API reference ("Query API", "Common query parameters", "Error codes").

mod catalog;
mod error;
mod filter;
mod instances;
mod launch;
mod query;
mod signature;
mod xml;

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;

use crate::buckets::Call as Toll;
use crate::faults::Kind;
use crate::{Call, Cloud};
use error::Ec2Error;
use query::Query;
use xml::Element;

const VERSION: &str = "2016-11-15";

/// Larger requests are refused; user data alone may have 16 KiB before it is encoded twice.
const MAX_BODY: usize = 256 << 10;

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, cloud: Cloud) -> std::io::Result<()> {
    let router = Router::new().fallback(respond).layer(DefaultBodyLimit::max(MAX_BODY)).with_state(cloud);
    axum::serve(listener, router).await
}

/// A cloud goes on with a call whose caller hangs up, so the call is a task of its own; it ends by itself.
async fn respond(State(cloud): State<Cloud>, headers: HeaderMap, body: Bytes) -> Response {
    let call = tokio::spawn(async move { serve_call(&cloud, &headers, &body).await });
    call.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

async fn serve_call(cloud: &Cloud, headers: &HeaderMap, body: &[u8]) -> Response {
    let at_ms = u64::try_from(cloud.age().as_millis()).unwrap_or(u64::MAX);
    let query = Query::parse(body);
    let action = query.text("Action").unwrap_or("none").to_owned();
    let fault = cloud.fault(&action);
    let result = match &fault {
        Some(Kind::Refuse { code, status }) => Err(Ec2Error::injected(code, *status)),
        _ => call(cloud, headers, body, &action, &query).await,
    };
    let outcome = result.as_ref().map_or_else(|error| error.code.clone(), |_| "ok".to_owned());
    cloud.record(Call { at_ms, action: action.clone(), parameters: shown(&query), outcome, fault: fault.clone() });
    match fault {
        Some(Kind::FailAfter) => answer(&action, Err(Ec2Error::injected("InternalError", 500))),
        // Whoever serves this sees an error of the body and ends the connection.
        Some(Kind::CloseAfter) => {
            let broken = futures::stream::once(async { Err::<Bytes, _>(std::io::Error::from(std::io::ErrorKind::ConnectionReset)) });
            let body = axum::body::Body::from_stream(broken);
            (StatusCode::OK, [("content-length", HeaderValue::from_static("100000"))], body).into_response()
        }
        Some(Kind::Delay { ms }) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            answer(&action, result)
        }
        _ => answer(&action, result),
    }
}

/// A call that is neither refused on demand nor forgotten.
async fn call(cloud: &Cloud, headers: &HeaderMap, body: &[u8], action: &str, query: &Query) -> Result<Element, Ec2Error> {
    signature::check(headers, body, &cloud.options().access_keys)?;
    if query.text("Version") != Some(VERSION) {
        return Err(Ec2Error::new("NoSuchVersion", 400, format!("the version must be {VERSION}")));
    }
    let toll = match action {
        "RunInstances" => Toll::Launch(query.number("MaxCount")?.unwrap_or(1)),
        "TerminateInstances" => Toll::Delete,
        _ => Toll::Read,
    };
    if !cloud.take(toll) {
        return Err(Ec2Error::new("RequestLimitExceeded", 503, "Request limit exceeded."));
    }
    cloud.pass_time(action == "RunInstances").await;
    match action {
        "RunInstances" => launch::run_instances(cloud, query).await,
        "DescribeInstances" => instances::describe(cloud, query),
        "TerminateInstances" => instances::terminate(cloud, query).await,
        "GetConsoleOutput" => instances::console(cloud, query).await,
        "CreateTags" => instances::create_tags(cloud, query),
        "DescribeVolumes" => instances::describe_volumes(cloud, query),
        "DescribeNetworkInterfaces" => instances::describe_interfaces(cloud, query),
        "DescribeInstanceTypes" => catalog::describe_types(query),
        "DescribeInstanceTypeOfferings" => catalog::describe_offerings(query),
        "DescribeImages" => catalog::describe_images(query),
        "DescribeSubnets" => catalog::describe_subnets(cloud, query),
        "DescribeSecurityGroups" => catalog::describe_groups(query),
        _ => Err(Ec2Error::new("InvalidAction", 400, format!("The action {action} is not valid for this web service."))),
    }
}

fn answer(action: &str, result: Result<Element, Ec2Error>) -> Response {
    let request_id = format!("{:032x}", fastrand::u128(..));
    let (status, text) = match result {
        Ok(content) => (StatusCode::OK, content.into_answer(action, &request_id)),
        Err(error) => (error.status, error.into_answer(&request_id)),
    };
    (status, [("content-type", "text/xml;charset=UTF-8")], text).into_response()
}

/// A call's parameters as the journal keeps them.
fn shown(query: &Query) -> BTreeMap<String, String> {
    let hide = |(key, value): (&String, &String)| {
        let value = match key.as_str() {
            "UserData" => format!("sha256:{}", hex::encode(Sha256::digest(value.as_bytes()))),
            _ => value.clone(),
        };
        (key.clone(), value)
    };
    query.all().map(hide).collect()
}
