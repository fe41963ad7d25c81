//! Who the process is: owner of its streams, groups, capabilities.
//!
//! libcontainer changes the user ids and is told nothing of capabilities; it therefore leaves them all, permitted and effective.
//! What is done here follows runc's order: the bounding set, the ambient one, and only then what the process may do; a filter
//! of system calls in between where loading it takes a capability.

use std::io;

use nix::unistd::{Gid, setgroups};
use oci_spec::runtime::User;
use rustix::fs::{FileType, fchown, fstat, makedev};
use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
};

use crate::control::CapabilityMasks;

/// What a step was, and how it failed.
pub(super) type Failed = (&'static str, io::Error);

/// Gives the standard streams to the user, so that it can open `/dev/stdout`.
pub(super) fn own_streams(user: &User) -> Result<(), Failed> {
    let null = makedev(1, 3);
    let failed = |error: Errno| ("chown of a standard stream", error.into());
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let stat = fstat(stream).map_err(failed)?;
        let is_null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == null;
        if is_null || stat.st_uid == user.uid() {
            continue;
        }
        match fchown(stream, Some(rustix::fs::Uid::from_raw(user.uid())), None) {
            // As runc has it: a stream may be of a file system that knows no owners.
            Ok(()) | Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

/// Sets the supplementary groups, to none if none are given.
pub(super) fn set_groups(user: &User) -> Result<(), Failed> {
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups).map_err(|error| ("setgroups", error.into()))
}

/// Runs something with the effective capabilities that the process will have, and all others out of reach meanwhile.
pub(super) fn with_effective<T>(masks: &CapabilityMasks, run: impl FnOnce() -> T) -> Result<T, Failed> {
    let failed = |error: Errno| ("capset", error.into());
    let all = capabilities(None).map_err(failed)?;
    set_capabilities(None, CapabilitySets { effective: all.permitted & set(masks.effective), ..all }).map_err(failed)?;
    let result = run();
    set_capabilities(None, CapabilitySets { effective: all.permitted, ..all }).map_err(failed)?;
    Ok(result)
}

/// Limits what any program that the process executes can have. The process itself still can all.
pub(super) fn bound(masks: &CapabilityMasks) -> Result<(), Failed> {
    for capability in set(!masks.bounding).iter() {
        // EINVAL: the kernel does not know it.
        match capability_is_in_bounding_set(capability) {
            Ok(true) => {
                let removed = remove_capability_from_bounding_set(capability);
                removed.map_err(|error| ("dropping a capability of the bounding set", error.into()))?;
            }
            Ok(false) | Err(Errno::INVAL) => {}
            Err(error) => return Err(("reading the bounding set", error.into())),
        }
    }
    let failed = |error: Errno| ("capset", error.into());
    let all = capabilities(None).map_err(failed)?;
    let inheritable = set(masks.inheritable);
    set_capabilities(None, CapabilitySets { effective: all.permitted, permitted: all.permitted, inheritable }).map_err(failed)?;
    let failed = |error: Errno| ("setting the ambient capabilities", error.into());
    clear_ambient_capability_set().map_err(failed)?;
    for capability in (set(masks.ambient) & all.permitted & inheritable).iter() {
        configure_capability_in_ambient_set(capability, true).map_err(failed)?;
    }
    Ok(())
}

/// Gives up what the process is not to have.
pub(super) fn limit(masks: &CapabilityMasks) -> Result<(), Failed> {
    let sets = CapabilitySets { effective: set(masks.effective), permitted: set(masks.permitted), inheritable: set(masks.inheritable) };
    set_capabilities(None, sets).map_err(|error| ("capset", error.into()))
}

fn set(mask: u64) -> CapabilitySet {
    CapabilitySet::from_bits_truncate(mask)
}
