//! EC2's description of an instance to ours.

use aws_sdk_ec2::types::{Instance as Ec2Instance, InstanceStateName};
use peerpods_cloud_api::{Instance, InstanceId, InstanceState, LaunchToken, OwnerTag};

/// Whose it is.
pub(crate) const OWNER: &str = "peerpods:owner";
/// The launch that made it.
pub(crate) const TOKEN: &str = "peerpods:token";

/// Which address nodes use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address {
    Private,
    Public,
}

/// `None` for what is not ours, and for what is gone.
pub(crate) fn instance(described: &Ec2Instance, address: Address) -> Option<Instance> {
    let tag = |key: &str| described.tags().iter().find(|tag| tag.key() == Some(key)).and_then(|tag| tag.value());
    let (owner, token) = (tag(OWNER)?, tag(TOKEN)?);
    if described.client_token() != Some(token) {
        return None;
    }
    let state = match described.state()?.name()? {
        InstanceStateName::Pending => InstanceState::Pending,
        InstanceStateName::Running => InstanceState::Running,
        InstanceStateName::Stopping | InstanceStateName::Stopped => InstanceState::Stopped,
        InstanceStateName::ShuttingDown => InstanceState::Deleting,
        InstanceStateName::Terminated => return None,
        // A state of a later API: it exists, and may not be used.
        _ => InstanceState::Stopped,
    };
    let text = match address {
        Address::Private => described.private_ip_address(),
        Address::Public => described.public_ip_address(),
    };
    Some(Instance {
        id: InstanceId::new(described.instance_id()?).ok()?,
        owner: OwnerTag::new(owner).ok()?,
        token: LaunchToken::new(token).ok()?,
        state,
        address: text.and_then(|text| text.parse().ok()),
    })
}

/// Whether only EC2's memory of it is left.
pub(crate) fn is_gone(described: &Ec2Instance) -> bool {
    described.state().and_then(|state| state.name()) == Some(&InstanceStateName::Terminated)
}

/// Whether an id can be EC2's at all: `i-` and 8 or 17 hex digits ("Resource IDs" of the EC2 user guide).
pub(crate) fn is_instance_id(id: &InstanceId) -> bool {
    let digits = id.as_str().strip_prefix("i-").unwrap_or_default();
    matches!(digits.len(), 8 | 17) && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{InstanceState as Ec2State, Tag};

    use super::*;

    fn described(token: &str, state: InstanceStateName) -> Ec2Instance {
        let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build();
        Ec2Instance::builder()
            .instance_id("i-0123456789abcdef0")
            .client_token(token)
            .tags(tag(OWNER, "cluster-a"))
            .tags(tag(TOKEN, "t1"))
            .state(Ec2State::builder().name(state).build())
            .private_ip_address("10.0.0.5")
            .build()
    }

    #[test]
    fn an_instance_is_ours_when_tags_and_client_token_agree() {
        let ours = instance(&described("t1", InstanceStateName::Running), Address::Private).expect("ours");
        assert_eq!((ours.owner.as_str(), ours.token.as_str(), ours.state), ("cluster-a", "t1", InstanceState::Running));
        assert_eq!(ours.address, Some("10.0.0.5".parse().expect("an address")));
        assert_eq!(instance(&described("t2", InstanceStateName::Running), Address::Private), None, "tags alone are no proof");
        let public = instance(&described("t1", InstanceStateName::Running), Address::Public).expect("ours");
        assert_eq!(public.address, None);
    }

    #[test]
    fn terminated_is_gone_and_unknown_states_are_not_used() {
        assert_eq!(instance(&described("t1", InstanceStateName::Terminated), Address::Private), None);
        let state = |name| instance(&described("t1", name), Address::Private).map(|ours| ours.state);
        assert_eq!(state(InstanceStateName::ShuttingDown), Some(InstanceState::Deleting));
        assert_eq!(state(InstanceStateName::from("hibernating")), Some(InstanceState::Stopped));
    }

    #[test]
    fn ids_have_ec2s_grammar() {
        let is_id = |id: &str| is_instance_id(&InstanceId::new(id).expect("an id"));
        assert!(is_id("i-0123456789abcdef0") && is_id("i-01234567"));
        assert!(!is_id("local-0123") && !is_id("i-") && !is_id("i-0123456789ABCDEF0") && !is_id("../i-01234567"));
    }
}
