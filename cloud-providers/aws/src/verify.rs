//! A read-only proof that launches can be served.
//!
//! Everything that is wrong is said at once, each with its setting. The last question is a `RunInstances` that EC2 checks and does not
//! do (`DryRun`): it proves the permissions to launch, to tag and to pass the instance profile. How much of the account's vCPU quota is
//! left, only a launch can tell: EC2's API does not.

use aws_sdk_ec2::Client;
use aws_sdk_ec2::error::ProvideErrorMetadata as _;
use aws_sdk_ec2::types::{ArchitectureValues, BootModeValues, Filter, ImageState, LocationType};
use peerpods_cloud_api::settings::aws::AwsSettings;
use peerpods_cloud_api::{LaunchRequest, LaunchToken, OwnerTag, ProviderError, Tee};

use crate::error::provider_error;
use crate::facts::{Facts, SubnetFacts, read_subnets};
use crate::request;

pub(crate) async fn verify(client: &Client, settings: &AwsSettings, facts: &Facts) -> Result<(), ProviderError> {
    let mut problems = Vec::new();
    // Each finds what it can; only what makes every later question pointless ends it: no credentials, no way to EC2.
    keep(&mut problems, image(client, settings).await)?;
    let subnets = match read_subnets(client, settings).await {
        Ok(subnets) => subnets,
        Err(error) => {
            keep(&mut problems, Err(error))?;
            Vec::new()
        }
    };
    keep(&mut problems, groups(client, settings, &subnets).await)?;
    problems.extend(addresses(&subnets));
    keep(&mut problems, types(client, settings, facts, &subnets).await)?;
    if problems.is_empty() {
        keep(&mut problems, dry_run(client, settings, facts, &subnets).await)?;
    }
    if problems.is_empty() { Ok(()) } else { Err(ProviderError::InvalidRequest { detail: problems.join("; ") }) }
}

/// What can be mended in the settings is collected; the rest ends the questions.
fn keep(problems: &mut Vec<String>, found: Result<Vec<String>, ProviderError>) -> Result<(), ProviderError> {
    match found {
        Ok(found) => problems.extend(found),
        Err(ProviderError::InvalidRequest { detail }) => problems.push(detail),
        Err(other) => return Err(other),
    }
    Ok(())
}

async fn image(client: &Client, settings: &AwsSettings) -> Result<Vec<String>, ProviderError> {
    let id = &settings.image;
    let answer = client.describe_images().image_ids(id).send().await;
    let answer = answer.map_err(|error| match provider_error("DescribeImages", &error) {
        ProviderError::InvalidRequest { detail } => ProviderError::InvalidRequest { detail: format!("provider.aws.image: {detail}") },
        other => other,
    })?;
    let Some(image) = answer.images().first() else {
        return Ok(vec![format!("provider.aws.image: {id} is not an AMI that this account may use in this region")]);
    };
    let mut problems = Vec::new();
    if image.state() != Some(&ImageState::Available) {
        let state = image.state().map_or("unknown", |state| state.as_str());
        problems.push(format!("provider.aws.image: {id} is {state}, not available"));
    }
    if image.architecture() != Some(&ArchitectureValues::X8664) {
        problems.push(format!("provider.aws.image: {id} is not for x86_64"));
    }
    if !matches!(image.boot_mode(), Some(BootModeValues::Uefi | BootModeValues::UefiPreferred)) {
        problems.push(format!("provider.aws.image: {id} does not boot with UEFI, which SEV-SNP and our image need"));
    }
    Ok(problems)
}

fn addresses(subnets: &[SubnetFacts]) -> Vec<String> {
    let mut problems: Vec<String> = subnets
        .iter()
        .filter(|subnet| subnet.free_addresses < 1)
        .map(|subnet| format!("provider.aws.subnets: {} in {} has no free address", subnet.id, subnet.zone))
        .collect();
    if let Some(first) = subnets.first()
        && let Some(other) = subnets.iter().find(|subnet| subnet.vpc != first.vpc)
    {
        problems.push(format!("provider.aws.subnets: {} is in {}, {} in {}", first.id, first.vpc, other.id, other.vpc));
    }
    problems
}

async fn groups(client: &Client, settings: &AwsSettings, subnets: &[SubnetFacts]) -> Result<Vec<String>, ProviderError> {
    let answer = client.describe_security_groups().set_group_ids(Some(settings.security_groups.clone())).send().await;
    let answer = answer.map_err(|error| match provider_error("DescribeSecurityGroups", &error) {
        ProviderError::InvalidRequest { detail } => {
            ProviderError::InvalidRequest { detail: format!("provider.aws.security_groups: {detail}") }
        }
        other => other,
    })?;
    let Some(vpc) = subnets.first().map(|subnet| subnet.vpc.as_str()) else { return Ok(Vec::new()) };
    let foreign = answer.security_groups().iter().filter(|group| group.vpc_id() != Some(vpc));
    let say = |id: Option<&str>| format!("provider.aws.security_groups: {} is not of the subnets' {vpc}", id.unwrap_or("one"));
    Ok(foreign.map(|group| say(group.group_id())).collect())
}

/// Whether each type exists, and is offered in each subnet's zone.
async fn types(client: &Client, settings: &AwsSettings, facts: &Facts, subnets: &[SubnetFacts]) -> Result<Vec<String>, ProviderError> {
    let offered = facts.types(client, settings).await?;
    let mut problems = Vec::new();
    if !offered.iter().any(|one| one.tees.contains(&Tee::Snp)) {
        tracing::warn!("none of provider.aws.instance_types has SEV-SNP: only classes with tee = \"sample\" can be served");
    }
    for subnet in subnets {
        let filter = |name: &str, values: Vec<String>| Filter::builder().name(name).set_values(Some(values)).build();
        let mut pages = client
            .describe_instance_type_offerings()
            .location_type(LocationType::AvailabilityZone)
            .filters(filter("location", vec![subnet.zone.to_string()]))
            .filters(filter("instance-type", settings.instance_types.clone()))
            .into_paginator()
            .send();
        let mut here = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| provider_error("DescribeInstanceTypeOfferings", &error))?;
            here.extend(page.instance_type_offerings().iter().filter_map(|one| Some(one.instance_type()?.as_str().to_owned())));
        }
        let missing: Vec<&str> =
            settings.instance_types.iter().map(String::as_str).filter(|name| !here.iter().any(|h| h == name)).collect();
        if missing.len() == settings.instance_types.len() {
            problems.push(format!("provider.aws.instance_types: none is offered in {}, the zone of {}", subnet.zone, subnet.id));
        } else if !missing.is_empty() {
            tracing::warn!(zone = %subnet.zone, types = missing.join(", "), "not offered in this zone");
        }
    }
    Ok(problems)
}

/// Asks for a launch that EC2 only checks.
async fn dry_run(client: &Client, settings: &AwsSettings, facts: &Facts, subnets: &[SubnetFacts]) -> Result<Vec<String>, ProviderError> {
    let offered = facts.types(client, settings).await?;
    let best = offered.iter().find(|one| one.tees.contains(&Tee::Snp)).or(offered.first());
    let (Some(best), Some(subnet)) = (best, subnets.first()) else { return Ok(Vec::new()) };
    let name = |what: &str| ProviderError::Internal { detail: format!("{what} of a dry run") };
    let request = LaunchRequest {
        token: LaunchToken::new("peerpods-verify").map_err(|_| name("token"))?,
        owner: OwnerTag::new("peerpods-verify").map_err(|_| name("owner"))?,
        instance_type: best.name.clone(),
        zone: None,
        image: None,
        tee: best.tees.first().copied().unwrap_or(Tee::Sample),
        count: 1,
        user_data: Vec::new(),
    };
    let image = facts.image(client, &settings.image).await?;
    match request::run_instances(settings, &request, &image, subnet).dry_run(true).send_with(client).await {
        Err(error) if error.code() == Some("DryRunOperation") => Ok(Vec::new()),
        Err(error) => match provider_error("RunInstances (dry run)", &error) {
            ProviderError::PermissionDenied { detail } => Err(ProviderError::PermissionDenied {
                detail: format!(
                    "{detail}; the controller needs ec2:RunInstances, ec2:CreateTags and, for an instance profile, iam:PassRole"
                ),
            }),
            other => Err(other),
        },
        Ok(_) => Err(ProviderError::Internal { detail: "a dry run was not only checked".to_owned() }),
    }
}
