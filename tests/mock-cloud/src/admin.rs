//! What a test may ask and tell, as JSON over HTTP.
//!
//! | request | is |
//! |---|---|
//! | `GET /instances` | all instances with their states and parts |
//! | `GET /calls` | the journal |
//! | `GET /summary` | counts: instances by state, parts, calls, faults |
//! | `POST /faults` | one more [`Fault`] |
//! | `DELETE /faults` | no more of them |
//! | `POST /capacity` | `{"type", "zone", "left"}`, `left` null is without end |
//! | `POST /vcpu-quota` | `{"left"}` |
//! | `POST /launches` | `{"count", "tags", "user_data"}`: somebody else launches instances in the same account |
//! | `POST /tags` | `{"instance", "key", "value"}`: somebody puts a tag on an instance |

use std::collections::BTreeMap;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::account::{Launch, State as Life};
use crate::faults::Fault;
use crate::{Call, Cloud};

/// An instance as a test sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceReport {
    /// Its id.
    pub id: String,
    /// Where it is in its life.
    pub state: String,
    /// Its address.
    pub address: std::net::Ipv4Addr,
    /// Its type's name.
    pub instance_type: String,
    /// Its zone.
    pub zone: String,
    /// Whether SEV-SNP is on.
    pub snp: bool,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// What of it exists besides: its volume and its interface.
    pub parts: Vec<String>,
}

/// Counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Instances that exist: neither terminated nor forgotten.
    pub existing: usize,
    /// Instances that were ever made and are still shown.
    pub shown: usize,
    /// Volumes and interfaces that exist.
    pub parts: usize,
    /// Calls by action.
    pub calls: BTreeMap<String, u64>,
    /// Calls that went wrong on demand.
    pub faults_injected: u64,
}

/// All instances.
pub fn instances(cloud: &Cloud) -> Vec<InstanceReport> {
    cloud.account(|account, now| {
        let report = |one: &crate::account::Instance| InstanceReport {
            id: one.id.clone(),
            state: serde_json::to_value(one.state(now)).ok().and_then(|s| s.as_str().map(str::to_owned)).unwrap_or_default(),
            address: one.address,
            instance_type: one.launch.instance_type.name.to_owned(),
            zone: one.launch.subnet.zone.to_owned(),
            snp: one.launch.snp,
            tags: one.tags.clone(),
            parts: if one.has_parts(now) { vec![one.volume(), one.interface()] } else { Vec::new() },
        };
        account.all(now).map(report).collect()
    })
}

/// The counts.
pub fn summary(cloud: &Cloud) -> Summary {
    let mut calls = BTreeMap::new();
    for call in cloud.calls() {
        *calls.entry(call.action).or_default() += 1;
    }
    let faults_injected = cloud.faults_injected();
    cloud.account(|account, now| Summary {
        existing: account.all(now).filter(|one| one.state(now) != Life::Terminated).count(),
        shown: account.all(now).count(),
        parts: account.all(now).filter(|one| one.has_parts(now)).count() * 2,
        calls,
        faults_injected,
    })
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, cloud: Cloud) -> std::io::Result<()> {
    let router = Router::new()
        .route("/instances", get(|State(cloud): State<Cloud>| async move { Json(instances(&cloud)) }))
        .route("/calls", get(|State(cloud): State<Cloud>| async move { Json::<Vec<Call>>(cloud.calls()) }))
        .route("/summary", get(|State(cloud): State<Cloud>| async move { Json(summary(&cloud)) }))
        .route("/faults", post(add_fault).delete(clear_faults))
        .route("/capacity", post(set_capacity))
        .route("/vcpu-quota", post(set_quota))
        .route("/launches", post(launch))
        .route("/tags", post(set_tag))
        .with_state(cloud);
    axum::serve(listener, router).await
}

async fn add_fault(State(cloud): State<Cloud>, Json(fault): Json<Fault>) {
    cloud.add_fault(fault);
}

async fn clear_faults(State(cloud): State<Cloud>) {
    cloud.clear_faults();
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Capacity {
    #[serde(rename = "type")]
    instance_type: String,
    zone: String,
    left: Option<u32>,
}

async fn set_capacity(State(cloud): State<Cloud>, Json(wanted): Json<Capacity>) {
    cloud.account(|account, _| account.set_capacity(&wanted.instance_type, &wanted.zone, wanted.left));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Quota {
    left: Option<u32>,
}

async fn set_quota(State(cloud): State<Cloud>, Json(quota): Json<Quota>) {
    cloud.account(|account, _| account.set_vcpu_quota(quota.left));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForeignLaunch {
    count: u32,
    tags: BTreeMap<String, String>,
    user_data: String,
}

async fn launch(State(cloud): State<Cloud>, Json(wanted): Json<ForeignLaunch>) -> StatusCode {
    let launch = Launch { user_data: wanted.user_data.into_bytes(), ..Launch::of_somebody(wanted.count, wanted.tags) };
    if cloud.launch(launch).await.is_ok() { StatusCode::CREATED } else { StatusCode::CONFLICT }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tag {
    instance: String,
    key: String,
    value: String,
}

async fn set_tag(State(cloud): State<Cloud>, Json(tag): Json<Tag>) -> StatusCode {
    let is_known = cloud.account(|account, now| account.get(&tag.instance, now).is_some());
    cloud.account(|account, _| account.update(&tag.instance, |one| drop(one.tags.insert(tag.key, tag.value))));
    if is_known { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}
