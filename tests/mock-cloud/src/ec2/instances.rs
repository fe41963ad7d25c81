//! Instances and their parts as EC2 describes them.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::catalog::ACCOUNT;
use super::error::Ec2Error;
use super::filter::Filter;
use super::query::Query;
use super::xml::Element;
use crate::Cloud;
use crate::account::{Instance, State};
use crate::catalog::{GROUP, IMAGE, VPC};

pub(super) fn describe(cloud: &Cloud, query: &Query) -> Result<Element, Ec2Error> {
    let (ids, filters) = (query.list("InstanceId"), Filter::all(query)?);
    if !ids.is_empty() && query.text("MaxResults").is_some() {
        let said = "The parameter instancesSet cannot be used with the parameter maxResults";
        return Err(Ec2Error::new("InvalidParameterCombination", 400, said));
    }
    let page = query.page(1000)?;
    query.finish()?;
    let all: Vec<Instance> = cloud.account(|account, now| account.all(now).cloned().collect());
    let all: Vec<Instance> = all.into_iter().filter(|one| !cloud.misses(one)).collect();
    check_ids(&ids, |id| all.iter().any(|one| one.id == id))?;
    let now = Instant::now();
    let mut chosen = Vec::new();
    for one in all.into_iter().filter(|one| ids.is_empty() || ids.contains(&one.id)) {
        if matches_all(&one, &filters, now)? {
            chosen.push(one);
        }
    }
    let (chosen, answer) = page.cut(chosen, Element::new("answer"));
    let mut reservations: BTreeMap<String, Vec<Instance>> = BTreeMap::new();
    for one in chosen {
        reservations.entry(one.reservation.clone()).or_default().push(one);
    }
    let item = |instances: &Vec<Instance>| {
        let as_item = Element::item().text("reservationId", &instances[0].reservation).text("ownerId", ACCOUNT).list("groupSet", []);
        as_item.list("instancesSet", instances.iter().map(|one| described(one, now)))
    };
    Ok(answer.list("reservationSet", reservations.values().map(item)))
}

/// What `RunInstances` answers.
pub(super) fn reservation(instances: &[Instance], now: Instant) -> Element {
    let id = instances.first().map(|one| one.reservation.clone()).unwrap_or_default();
    let answer = Element::new("answer").text("reservationId", id).text("ownerId", ACCOUNT).list("groupSet", []);
    answer.list("instancesSet", instances.iter().map(|one| described(one, now)))
}

pub(super) async fn terminate(cloud: &Cloud, query: &Query) -> Result<Element, Ec2Error> {
    let ids = query.list("InstanceId");
    query.finish()?;
    if ids.is_empty() {
        return Err(Ec2Error::new("MissingParameter", 400, "The request must contain the parameter InstanceId"));
    }
    let before = cloud.account(|account, now| {
        check_ids(&ids, |id| account.get(id, now).is_some())?;
        Ok::<Vec<Instance>, Ec2Error>(ids.iter().filter_map(|id| account.get(id, now).cloned()).collect())
    })?;
    cloud.terminate(&ids).await;
    let item = |one: &Instance| {
        let previous = one.state(Instant::now());
        let current = cloud.account(|account, now| account.get(&one.id, now).map(|one| one.state(now)));
        Element::item()
            .text("instanceId", &one.id)
            .child(state("currentState", current.unwrap_or(State::Terminated)))
            .child(state("previousState", previous))
    };
    Ok(Element::new("answer").list("instancesSet", before.iter().map(item)))
}

pub(super) async fn console(cloud: &Cloud, query: &Query) -> Result<Element, Ec2Error> {
    let id = query.required("InstanceId")?.to_owned();
    let _ = query.boolean("Latest")?;
    query.finish()?;
    cloud.account(|account, now| check_ids(std::slice::from_ref(&id), |id| account.get(id, now).is_some()))?;
    let output = BASE64_STANDARD.encode(cloud.console(&id).await);
    Ok(Element::new("answer").text("instanceId", id).text("timestamp", timestamp(Duration::ZERO)).text("output", output))
}

pub(super) fn create_tags(cloud: &Cloud, query: &Query) -> Result<Element, Ec2Error> {
    let ids = query.list("ResourceId");
    let mut tags = Vec::new();
    for tag in query.structures("Tag") {
        let value = query.text(&format!("{tag}Value")).unwrap_or_default().to_owned();
        tags.push((query.required(&format!("{tag}Key"))?.to_owned(), value));
    }
    query.finish()?;
    cloud.account(|account, now| {
        check_ids(&ids, |id| account.get(id, now).is_some())?;
        for id in &ids {
            account.update(id, |one| one.tags.extend(tags.clone()));
        }
        Ok(Element::new("answer").text("return", true))
    })
}

pub(super) fn describe_volumes(cloud: &Cloud, query: &Query) -> Result<Element, Ec2Error> {
    let parts = parts(cloud, query, 1)?;
    let item = |one: &Instance| {
        let is_left = cloud.account(|_, now| one.state(now) == State::Terminated);
        let item = Element::item().text("volumeId", one.volume()).text("status", if is_left { "available" } else { "in-use" });
        item.text("encrypted", true).text("availabilityZone", one.launch.subnet.zone).child(tag_set(&one.launch.tags[1]))
    };
    Ok(Element::new("answer").list("volumeSet", parts.iter().map(item)))
}

pub(super) fn describe_interfaces(cloud: &Cloud, query: &Query) -> Result<Element, Ec2Error> {
    let parts = parts(cloud, query, 2)?;
    let item = |one: &Instance| {
        let is_left = cloud.account(|_, now| one.state(now) == State::Terminated);
        let item = Element::item().text("networkInterfaceId", one.interface()).text("subnetId", one.launch.subnet.id);
        item.text("status", if is_left { "available" } else { "in-use" }).child(tag_set(&one.launch.tags[2]))
    };
    Ok(Element::new("answer").list("networkInterfaceSet", parts.iter().map(item)))
}

/// Instances that have a volume and an interface whose tags match.
fn parts(cloud: &Cloud, query: &Query, kind: usize) -> Result<Vec<Instance>, Ec2Error> {
    let filters = Filter::all(query)?;
    query.finish()?;
    let all: Vec<Instance> = cloud.account(|account, now| account.all(now).filter(|one| one.has_parts(now)).cloned().collect());
    let mut chosen = Vec::new();
    for one in all {
        let mut is_chosen = true;
        for filter in &filters {
            let Some(key) = filter.name.strip_prefix("tag:") else { return Err(filter.unknown()) };
            is_chosen &= filter.matches(one.launch.tags[kind].get(key).map(String::as_str));
        }
        if is_chosen {
            chosen.push(one);
        }
    }
    Ok(chosen)
}

/// EC2 refuses a whole call for one id that it does not know.
fn check_ids(ids: &[String], is_known: impl Fn(&str) -> bool) -> Result<(), Ec2Error> {
    for id in ids {
        let digits = id.strip_prefix("i-").unwrap_or_default();
        if !matches!(digits.len(), 8 | 17) || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Ec2Error::new("InvalidInstanceID.Malformed", 400, format!("Invalid id: \"{id}\"")));
        }
        if !is_known(id) {
            let said = format!("The instance ID '{id}' does not exist");
            return Err(Ec2Error::new("InvalidInstanceID.NotFound", 400, said));
        }
    }
    Ok(())
}

fn matches_all(one: &Instance, filters: &[Filter], now: Instant) -> Result<bool, Ec2Error> {
    let mut is_chosen = true;
    for filter in filters {
        let address = one.address.to_string();
        is_chosen &= match filter.name.as_str() {
            "instance-id" => filter.matches([one.id.as_str()]),
            "instance-state-name" => filter.matches([name_of(one.state(now)).1]),
            "client-token" => filter.matches(one.launch.token.as_deref()),
            "instance-type" => filter.matches([one.launch.instance_type.name]),
            "subnet-id" => filter.matches([one.launch.subnet.id]),
            "availability-zone" => filter.matches([one.launch.subnet.zone]),
            "vpc-id" => filter.matches([VPC]),
            "image-id" => filter.matches([one.launch.image.as_str()]),
            "private-ip-address" => filter.matches([address.as_str()]),
            "tag-key" => filter.matches(one.tags.keys().map(String::as_str)),
            name => match name.strip_prefix("tag:") {
                Some(key) => filter.matches(one.tags.get(key).map(String::as_str)),
                None => return Err(filter.unknown()),
            },
        };
    }
    Ok(is_chosen)
}

/// Codes of `InstanceState` in the API reference.
fn name_of(state: State) -> (u32, &'static str) {
    match state {
        State::Pending => (0, "pending"),
        State::Running => (16, "running"),
        State::ShuttingDown => (32, "shutting-down"),
        State::Terminated => (48, "terminated"),
    }
}

fn state(element: &str, state: State) -> Element {
    let (code, name) = name_of(state);
    Element::new(element).text("code", code).text("name", name)
}

fn tag_set(tags: &BTreeMap<String, String>) -> Element {
    let items = tags.iter().map(|(key, value)| Element::item().text("key", key).text("value", value));
    items.fold(Element::new("tagSet"), Element::child)
}

fn timestamp(ago: Duration) -> String {
    OffsetDateTime::from(SystemTime::now() - ago).format(&Rfc3339).unwrap_or_default()
}

fn described(one: &Instance, now: Instant) -> Element {
    let (launch, life) = (&one.launch, one.state(now));
    let has_ended = life == State::Terminated;
    let cpu = Element::new("cpuOptions")
        .text("coreCount", launch.instance_type.vcpus / 2)
        .text("threadsPerCore", 2)
        .maybe("amdSevSnp", launch.snp.then_some("enabled"));
    let metadata = Element::new("metadataOptions")
        .text("state", "applied")
        .text("httpTokens", if launch.sessions_required { "required" } else { "optional" })
        .text("httpPutResponseHopLimit", launch.hop_limit)
        .text("httpEndpoint", "enabled");
    let volume = Element::new("ebs").text("volumeId", one.volume()).text("status", "attached");
    let interface = Element::item().text("networkInterfaceId", one.interface()).text("subnetId", launch.subnet.id).text("status", "in-use");
    let parts = |item: Element| if has_ended { Vec::new() } else { vec![item] };
    Element::item()
        .text("instanceId", &one.id)
        .text("imageId", &launch.image)
        .child(state("instanceState", life))
        .text("amiLaunchIndex", one.index)
        .text("instanceType", launch.instance_type.name)
        .text("launchTime", timestamp(now.saturating_duration_since(one.created)))
        .child(Element::new("placement").text("availabilityZone", launch.subnet.zone).text("tenancy", "default"))
        .maybe("subnetId", (!has_ended).then_some(launch.subnet.id))
        .maybe("vpcId", (!has_ended).then_some(VPC))
        .maybe("privateIpAddress", (!has_ended).then_some(one.address))
        .maybe("ipAddress", one.public_address(now))
        .maybe("keyName", launch.echo.get("KeyName"))
        .list("groupSet", parts(Element::item().text("groupId", GROUP).text("groupName", "pod-vms")))
        .text("architecture", launch.instance_type.architecture)
        .text("rootDeviceType", "ebs")
        .text("rootDeviceName", "/dev/xvda")
        .list("blockDeviceMapping", parts(Element::item().text("deviceName", "/dev/xvda").child(volume)))
        .text("virtualizationType", "hvm")
        .maybe("clientToken", launch.token.as_deref())
        .child(tag_set(&one.tags))
        .text("hypervisor", "xen")
        .list("networkInterfaceSet", parts(interface))
        .text("enaSupport", true)
        .child(cpu)
        .child(metadata)
        .text("bootMode", if launch.image == IMAGE { "uefi" } else { "legacy-bios" })
}
