//! `RunInstances`, with the checks that EC2 documents.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::error::Ec2Error;
use super::instances::reservation;
use super::query::Query;
use super::xml::Element;
use crate::Cloud;
use crate::account::{Launch, Refusal};
use crate::catalog::{FOREIGN_GROUP, GROUP, IMAGE, LEGACY_IMAGE, Subnet, Type, find_subnet, find_type, is_offered};
use crate::cloud::Problem;

/// Launch templates that the account has: all that they say is said by the call too.
const TEMPLATES: [&str; 2] = ["peerpods", "lt-00000000000000001"];
const KEY_PAIR: &str = "peerpods";
const VOLUME_KINDS: [&str; 7] = ["gp2", "gp3", "io1", "io2", "st1", "sc1", "standard"];

pub(super) async fn run_instances(cloud: &Cloud, query: &Query) -> Result<Element, Ec2Error> {
    let is_dry = query.boolean("DryRun")?.unwrap_or(false);
    let launch = read(query)?;
    query.finish()?;
    check(&launch)?;
    if is_dry {
        return Err(Ec2Error::new("DryRunOperation", 412, "Request would have succeeded, but DryRun flag is set."));
    }
    let made = cloud.launch(launch).await.map_err(|problem| match problem {
        Problem::Refused(refusal) => Ec2Error::from(refusal),
        Problem::Broken(detail) => {
            tracing::error!(detail, "machines cannot be made");
            Ec2Error::new("InternalError", 500, "An internal error has occurred")
        }
    })?;
    if made.is_empty() {
        return Err(Refusal::NoAddress.into());
    }
    Ok(cloud.account(|_, now| reservation(&made, now)))
}

fn read(query: &Query) -> Result<Launch, Ec2Error> {
    let type_name = query.required("InstanceType")?;
    let instance_type = *find_type(type_name).ok_or_else(|| Ec2Error::value("InstanceType", type_name))?;
    let (subnet, public_address, mut parts_go_too) = network_interface(query)?;
    parts_go_too &= root_volume(query)?;
    let mut echo = BTreeMap::new();
    for key in ["KeyName", "IamInstanceProfile.Arn", "IamInstanceProfile.Name", "InstanceInitiatedShutdownBehavior"] {
        if let Some(value) = query.text(key) {
            echo.insert(key.to_owned(), value.to_owned());
        }
    }
    let fingerprint = query.all().filter(|(key, _)| *key != "DryRun").map(|(key, value)| format!("{key}={value}\n")).collect();
    let user_data = match query.text("UserData") {
        Some(text) => BASE64_STANDARD
            .decode(text)
            .map_err(|_| Ec2Error::new("InvalidUserData.Malformed", 400, "Invalid BASE64 encoding of user data."))?,
        None => Vec::new(),
    };
    let launch = Launch {
        token: query.text("ClientToken").map(str::to_owned),
        fingerprint,
        instance_type,
        subnet,
        image: query.required("ImageId")?.to_owned(),
        min: number(query, "MinCount")?,
        max: number(query, "MaxCount")?,
        user_data,
        snp: one_of(query, "CpuOptions.AmdSevSnp", &["disabled", "enabled"])? == Some("enabled"),
        sessions_required: metadata_options(query)?,
        hop_limit: query.number("MetadataOptions.HttpPutResponseHopLimit")?.unwrap_or(2),
        public_address,
        parts_go_too,
        tags: tags(query)?,
        echo,
    };
    check_names(&launch, query)?;
    Ok(launch)
}

/// Names of the account's other things.
fn check_names(launch: &Launch, query: &Query) -> Result<(), Ec2Error> {
    for key in ["LaunchTemplate.LaunchTemplateName", "LaunchTemplate.LaunchTemplateId"] {
        if let Some(name) = query.text(key).filter(|name| !TEMPLATES.contains(name)) {
            let code = "InvalidLaunchTemplateName.NotFoundException";
            return Err(Ec2Error::new(code, 400, format!("The specified launch template, {name}, does not exist.")));
        }
    }
    if let Some(name) = launch.echo.get("KeyName").filter(|name| *name != KEY_PAIR) {
        return Err(Ec2Error::new("InvalidKeyPair.NotFound", 400, format!("The key pair '{name}' does not exist")));
    }
    one_of(query, "InstanceInitiatedShutdownBehavior", &["stop", "terminate"]).map(drop)
}

fn number(query: &Query, key: &str) -> Result<u32, Ec2Error> {
    query.required(key)?;
    Ok(query.number(key)?.unwrap_or(0))
}

fn one_of<'a>(query: &'a Query, key: &str, allowed: &[&str]) -> Result<Option<&'a str>, Ec2Error> {
    match query.text(key) {
        Some(value) if !allowed.contains(&value) => Err(Ec2Error::value(key, value)),
        value => Ok(value),
    }
}

/// The subnet, whether there is a public address, and whether the interface goes with the instance.
fn network_interface(query: &Query) -> Result<(Subnet, bool, bool), Ec2Error> {
    let find = |id: &str| find_subnet(id).copied().ok_or_else(|| Ec2Error::not_found("SubnetID", id));
    let check_groups = |ids: Vec<String>| match ids.iter().find(|id| *id != GROUP) {
        Some(id) if id == FOREIGN_GROUP => {
            let said = format!("Security group {id} and the subnet belong to different networks.");
            Err(Ec2Error::new("InvalidParameter", 400, said))
        }
        Some(id) => Err(Ec2Error::not_found("Group", id)),
        None => Ok(()),
    };
    match query.structures("NetworkInterface").as_slice() {
        [] => {
            check_groups(query.list("SecurityGroupId"))?;
            Ok((find(query.text("SubnetId").unwrap_or("subnet-0000000000000000a"))?, false, true))
        }
        [one] => {
            let field = |name: &str| format!("{one}{name}");
            if query.number(&field("DeviceIndex"))? != Some(0) {
                return Err(Ec2Error::new("MissingParameter", 400, "The request must contain the parameter DeviceIndex"));
            }
            check_groups(query.list(&field("SecurityGroupId")))?;
            let subnet = find(query.required(&field("SubnetId"))?)?;
            let is_public = query.boolean(&field("AssociatePublicIpAddress"))?.unwrap_or(false);
            Ok((subnet, is_public, query.boolean(&field("DeleteOnTermination"))?.unwrap_or(true)))
        }
        _ => Err(Ec2Error::new("InvalidInterface", 400, "this cloud gives an instance one interface")),
    }
}

/// Whether the volume goes with the instance.
fn root_volume(query: &Query) -> Result<bool, Ec2Error> {
    let mut goes_too = true;
    for one in query.structures("BlockDeviceMapping") {
        let field = |name: &str| format!("{one}Ebs.{name}");
        let invalid = |said: &str| Err(Ec2Error::new("InvalidBlockDeviceMapping", 400, said));
        let device = query.required(&format!("{one}DeviceName"))?;
        if device != "/dev/xvda" {
            return invalid("the image has the device /dev/xvda alone");
        }
        if query.number(&field("VolumeSize"))?.is_some_and(|size| !(1..=16_384).contains(&size)) {
            return invalid("The volume's size must be 1 to 16384 GiB and not less than the snapshot's.");
        }
        let kind = one_of(query, &field("VolumeType"), &VOLUME_KINDS)?.unwrap_or("gp2");
        for (key, kinds) in [("Iops", &["gp3", "io1", "io2"][..]), ("Throughput", &["gp3"][..])] {
            if query.number(&field(key))?.is_some() && !kinds.contains(&kind) {
                let said = format!("The parameter {key} is not supported for {kind} volumes.");
                return Err(Ec2Error::new("InvalidParameterCombination", 400, said));
            }
        }
        let (encrypted, key) = (query.boolean(&field("Encrypted"))?, query.text(&field("KmsKeyId")));
        if key.is_some() && encrypted != Some(true) {
            return Err(Ec2Error::new("InvalidParameterDependency", 400, "KmsKeyId needs Encrypted"));
        }
        goes_too &= query.boolean(&field("DeleteOnTermination"))?.unwrap_or(true);
    }
    Ok(goes_too)
}

/// Whether the metadata service insists on sessions.
fn metadata_options(query: &Query) -> Result<bool, Ec2Error> {
    one_of(query, "MetadataOptions.HttpEndpoint", &["enabled", "disabled"])?;
    one_of(query, "MetadataOptions.InstanceMetadataTags", &["enabled", "disabled"])?;
    Ok(one_of(query, "MetadataOptions.HttpTokens", &["optional", "required"])? == Some("required"))
}

/// Tags of the instance, of its volume and of its interface.
fn tags(query: &Query) -> Result<[BTreeMap<String, String>; 3], Ec2Error> {
    let mut tags: [BTreeMap<String, String>; 3] = Default::default();
    for one in query.structures("TagSpecification") {
        let kind = query.required(&format!("{one}ResourceType"))?;
        let place = ["instance", "volume", "network-interface"].iter().position(|known| *known == kind);
        let place = place.ok_or_else(|| Ec2Error::value("ResourceType", kind))?;
        for tag in query.structures(&format!("{one}Tag")) {
            let (key, value) = (query.required(&format!("{tag}Key"))?, query.text(&format!("{tag}Value")).unwrap_or_default());
            if key.is_empty() || key.len() > 128 || value.len() > 256 || key.starts_with("aws:") {
                return Err(Ec2Error::value("Tag", key));
            }
            if tags[place].insert(key.to_owned(), value.to_owned()).is_some() {
                return Err(Ec2Error::new("InvalidParameterValue", 400, format!("Duplicate tag key '{key}' specified.")));
            }
        }
        if tags[place].len() > 50 {
            return Err(Ec2Error::new("TagLimitExceeded", 400, "The maximum number of Tags for a resource has been reached."));
        }
    }
    Ok(tags)
}

/// What does not go together.
fn check(launch: &Launch) -> Result<(), Ec2Error> {
    let (one, zone): (&Type, &str) = (&launch.instance_type, launch.subnet.zone);
    let combination = |said: String| Err(Ec2Error::new("InvalidParameterCombination", 400, said));
    if !launch.image.starts_with("ami-") {
        let said = format!("Invalid id: \"{}\" (expecting \"ami-...\")", launch.image);
        return Err(Ec2Error::new("InvalidAMIID.Malformed", 400, said));
    }
    if ![IMAGE, LEGACY_IMAGE].contains(&launch.image.as_str()) {
        return Err(Ec2Error::not_found("AMIID", &launch.image));
    }
    if one.architecture != "x86_64" {
        let said =
            format!("The architecture '{}' of the instance type does not match the architecture 'x86_64' of the AMI.", one.architecture);
        return Err(Ec2Error::new("InvalidParameterValue", 400, said));
    }
    if launch.snp && !one.has_snp {
        return combination(format!("The instance type {} does not support AMD SEV-SNP.", one.name));
    }
    if launch.snp && launch.image == LEGACY_IMAGE {
        return combination("AMD SEV-SNP needs an AMI whose boot mode is uefi or uefi-preferred.".to_owned());
    }
    if launch.min == 0 || launch.max < launch.min {
        return Err(Ec2Error::value("MinCount", &launch.min.to_string()));
    }
    if launch.user_data.len() > 16_384 {
        return Err(Ec2Error::new("InvalidParameterValue", 400, "User data is limited to 16384 bytes."));
    }
    if launch.token.as_ref().is_some_and(|token| token.is_empty() || token.len() > 64 || !token.is_ascii()) {
        return Err(Ec2Error::new("InvalidParameterValue", 400, "The client token must have 1 to 64 ASCII characters."));
    }
    if !(1..=64).contains(&launch.hop_limit) {
        return Err(Ec2Error::value("HttpPutResponseHopLimit", &launch.hop_limit.to_string()));
    }
    if !is_offered(one, zone) {
        let said = format!("Your requested instance type ({}) is not supported in your requested Availability Zone ({zone}).", one.name);
        return Err(Ec2Error::new("Unsupported", 400, said));
    }
    Ok(())
}
