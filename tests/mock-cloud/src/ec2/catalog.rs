//! What the region has.

use super::error::Ec2Error;
use super::filter::Filter;
use super::query::Query;
use super::xml::Element;
use crate::Cloud;
use crate::catalog::{FOREIGN_GROUP, GROUP, IMAGE, LEGACY_IMAGE, SUBNETS, TYPES, Type, VPC, find_type, is_offered};

/// The account that owns all of it.
pub(super) const ACCOUNT: &str = "123456789012";

pub(super) fn describe_types(query: &Query) -> Result<Element, Ec2Error> {
    let (names, filters, page) = (query.list("InstanceType"), Filter::all(query)?, query.page(100)?);
    query.finish()?;
    if let Some(unknown) = names.iter().find(|name| find_type(name).is_none()) {
        let said = format!("The following supplied instance types do not exist: [{unknown}]");
        return Err(Ec2Error::new("InvalidInstanceType", 400, said));
    }
    let mut types = Vec::new();
    for one in TYPES.iter().filter(|one| names.is_empty() || names.iter().any(|name| name == one.name)) {
        let mut is_chosen = true;
        for filter in &filters {
            is_chosen &= match filter.name.as_str() {
                "instance-type" => filter.matches([one.name]),
                "processor-info.supported-features" => filter.matches(one.has_snp.then_some("amd-sev-snp")),
                "processor-info.supported-architecture" => filter.matches([one.architecture]),
                _ => return Err(filter.unknown()),
            };
        }
        if is_chosen {
            types.push(one);
        }
    }
    let (types, answer) = page.cut(types, Element::new("answer"));
    Ok(answer.list("instanceTypeSet", types.into_iter().map(described_type)))
}

fn described_type(one: &Type) -> Element {
    let processor = Element::new("processorInfo").list("supportedArchitectures", [Element::text_item(one.architecture)]);
    let processor = match one.has_snp {
        true => processor.list("supportedFeatures", [Element::text_item("amd-sev-snp")]),
        false => processor,
    };
    let vcpus = Element::new("vCpuInfo").text("defaultVCpus", one.vcpus).text("defaultCores", one.vcpus / 2);
    let item = Element::item()
        .text("instanceType", one.name)
        .text("currentGeneration", true)
        .text("bareMetal", false)
        .text("hypervisor", "nitro")
        .child(processor)
        .child(vcpus)
        .child(Element::new("memoryInfo").text("sizeInMiB", one.memory_mib));
    match one.gpus {
        0 => item,
        gpus => item.child(Element::new("gpuInfo").list("gpus", [Element::item().text("name", "T4").text("count", gpus)])),
    }
}

pub(super) fn describe_offerings(query: &Query) -> Result<Element, Ec2Error> {
    let (location, filters, page) = (query.text("LocationType"), Filter::all(query)?, query.page(1000)?);
    query.finish()?;
    if location != Some("availability-zone") {
        return Err(Ec2Error::value("LocationType", location.unwrap_or_default()));
    }
    let mut offerings = Vec::new();
    for subnet in &SUBNETS {
        for one in TYPES.iter().filter(|one| is_offered(one, subnet.zone)) {
            let mut is_chosen = true;
            for filter in &filters {
                is_chosen &= match filter.name.as_str() {
                    "location" => filter.matches([subnet.zone]),
                    "instance-type" => filter.matches([one.name]),
                    _ => return Err(filter.unknown()),
                };
            }
            if is_chosen {
                let item = Element::item().text("instanceType", one.name).text("locationType", "availability-zone");
                offerings.push(item.text("location", subnet.zone));
            }
        }
    }
    let (offerings, answer) = page.cut(offerings, Element::new("answer"));
    Ok(answer.list("instanceTypeOfferingSet", offerings))
}

pub(super) fn describe_images(query: &Query) -> Result<Element, Ec2Error> {
    let (ids, page) = (query.list("ImageId"), query.page(1000)?);
    Filter::none(query)?;
    query.finish()?;
    for id in &ids {
        if !id.starts_with("ami-") {
            return Err(Ec2Error::new("InvalidAMIID.Malformed", 400, format!("Invalid id: \"{id}\" (expecting \"ami-...\")")));
        }
        if ![IMAGE, LEGACY_IMAGE].contains(&id.as_str()) {
            return Err(Ec2Error::not_found("AMIID", id));
        }
    }
    let all = [(IMAGE, "uefi", Some("v2.0")), (LEGACY_IMAGE, "legacy-bios", None)];
    let images = all.into_iter().filter(|(id, ..)| ids.is_empty() || ids.iter().any(|wanted| wanted == id));
    let images = images.map(|(id, boot_mode, tpm)| {
        let ebs = Element::new("ebs").text("snapshotId", "snap-00000000000000001").text("volumeSize", 1).text("volumeType", "gp3");
        Element::item()
            .text("imageId", id)
            .text("imageState", "available")
            .text("imageOwnerId", ACCOUNT)
            .text("isPublic", false)
            .text("architecture", "x86_64")
            .text("imageType", "machine")
            .text("rootDeviceType", "ebs")
            .text("rootDeviceName", "/dev/xvda")
            .text("virtualizationType", "hvm")
            .text("enaSupport", true)
            .text("bootMode", boot_mode)
            .maybe("tpmSupport", tpm)
            .list("blockDeviceMapping", [Element::item().text("deviceName", "/dev/xvda").child(ebs)])
    });
    let (images, answer) = page.cut(images.collect(), Element::new("answer"));
    Ok(answer.list("imagesSet", images))
}

pub(super) fn describe_subnets(cloud: &Cloud, query: &Query) -> Result<Element, Ec2Error> {
    let (ids, page) = (query.list("SubnetId"), query.page(1000)?);
    Filter::none(query)?;
    query.finish()?;
    if let Some(unknown) = ids.iter().find(|id| !SUBNETS.iter().any(|subnet| subnet.id == **id)) {
        return Err(Ec2Error::not_found("SubnetID", unknown));
    }
    let chosen = SUBNETS.iter().filter(|subnet| ids.is_empty() || ids.iter().any(|id| id == subnet.id));
    let subnets = chosen.map(|subnet| {
        Element::item()
            .text("subnetId", subnet.id)
            .text("state", "available")
            .text("vpcId", VPC)
            .text("cidrBlock", format!("{}/20", subnet.network))
            .text("availableIpAddressCount", cloud.account(|account, now| account.free_addresses(subnet, now)))
            .text("availabilityZone", subnet.zone)
            .text("mapPublicIpOnLaunch", false)
    });
    let (subnets, answer) = page.cut(subnets.collect(), Element::new("answer"));
    Ok(answer.list("subnetSet", subnets))
}

pub(super) fn describe_groups(query: &Query) -> Result<Element, Ec2Error> {
    let (ids, page) = (query.list("GroupId"), query.page(1000)?);
    Filter::none(query)?;
    query.finish()?;
    if let Some(unknown) = ids.iter().find(|id| ![GROUP, FOREIGN_GROUP].contains(&id.as_str())) {
        return Err(Ec2Error::not_found("Group", unknown));
    }
    let all = [(GROUP, VPC), (FOREIGN_GROUP, "vpc-000000000000000ff")];
    let chosen = all.into_iter().filter(|(id, _)| ids.is_empty() || ids.iter().any(|wanted| wanted == id));
    let groups = chosen.map(|(id, vpc)| {
        let item = Element::item().text("ownerId", ACCOUNT).text("groupId", id).text("groupName", "pod-vms");
        item.text("groupDescription", "of pod VMs").text("vpcId", vpc)
    });
    let (groups, answer) = page.cut(groups.collect(), Element::new("answer"));
    Ok(answer.list("securityGroupInfo", groups))
}
