//! From an OCI seccomp profile to a program of the kernel's filter machine, with the meaning that runc and libseccomp give it.
//!
//! * A name that is no system call of an architecture is passed over there, since profiles name those of many kernels.
//! * A rule with the default action says nothing. The first rule without conditions decides its system call; among rules with
//!   conditions the first that matches does. Conditions on the same argument are alternatives, as runc has it for old profiles.
//! * A system call newer than all that the profile names is answered with ENOSYS where the default is a refusal, so that programs
//!   fall back to what the profile's author knew.
//! * A call of an architecture that the profile does not list kills its thread.
//!
//! Deliberately absent: listeners (`SCMP_ACT_NOTIFY`), which would be processes of the node; and the calls that 32-bit x86 makes
//! through `socketcall` and `ipc`, which a profile can only name as such.

mod bpf;
mod syscalls;

use std::collections::BTreeMap;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
};

pub use bpf::Instruction;
use bpf::{Condition, Decision, Operator, Rule, Section};
use syscalls::Table;

/// A compiled profile.
#[derive(Debug)]
pub(super) struct Filter {
    /// For the kernel.
    pub(super) program: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_…`.
    pub(super) flags: u32,
}

/// A profile that cannot be applied.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ProfileError {
    /// No node can listen into a pod VM.
    #[error("seccomp: SCMP_ACT_NOTIFY is not supported in a pod VM")]
    Notify,
    /// There are six.
    #[error("seccomp: system calls have no argument {0}")]
    Argument(usize),
    /// The kernel takes 4096 instructions.
    #[error("seccomp: the profile makes {0} instructions, more than the kernel takes")]
    TooLong(usize),
}

const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const TRACE: u32 = 0x7ff0_0000;
const ERRNO: u32 = 0x0005_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_THREAD: u32 = 0;
const KILL_PROCESS: u32 = 0x8000_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
/// The kernel's `MAX_ERRNO`; it caps what is above.
const MAX_ERRNO: u32 = 4095;
const MAX_INSTRUCTIONS: usize = 4096;
const MAX_ARGUMENTS: usize = 6;

/// Compiles a profile.
pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Filter, ProfileError> {
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let has_arch = |arch: Arch| profile.architectures().iter().flatten().any(|listed| *listed == arch);
    // The native one is always in, as with libseccomp.
    let mut tables = vec![Table::X86_64];
    if has_arch(Arch::ScmpArchX32) {
        tables.push(Table::X32);
    }
    if has_arch(Arch::ScmpArchX86) {
        tables.push(Table::X86);
    }
    let mut sections = Vec::new();
    for table in tables {
        sections.push(section(profile, table, default)?);
    }
    let program = bpf::program(&sections, KILL_THREAD);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(ProfileError::TooLong(program.len()));
    }
    let flag = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 1,
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => 2,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 4,
        // Of listeners only.
        _ => 0,
    };
    Ok(Filter { program, flags: profile.flags().iter().flatten().map(flag).fold(0, |all, one| all | one) })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, ProfileError> {
    use LinuxSeccompAction as A;
    let errno = errno.unwrap_or(EPERM).min(MAX_ERRNO);
    Ok(match action {
        A::ScmpActKill | A::ScmpActKillThread => KILL_THREAD,
        A::ScmpActKillProcess => KILL_PROCESS,
        A::ScmpActTrap => TRAP,
        A::ScmpActErrno => ERRNO | errno,
        A::ScmpActTrace => TRACE | errno,
        A::ScmpActLog => LOG,
        A::ScmpActAllow => ALLOW,
        A::ScmpActNotify => return Err(ProfileError::Notify),
    })
}

fn section(profile: &LinuxSeccomp, table: Table, default: u32) -> Result<Section, ProfileError> {
    let mut decisions: BTreeMap<u32, Decision> = BTreeMap::new();
    let mut last = None;
    for syscall in profile.syscalls().iter().flatten() {
        let numbers: Vec<u32> = syscall.names().iter().flat_map(|name| table.numbers(name)).collect();
        last = last.max(numbers.iter().copied().max());
        let action = action(syscall.action(), syscall.errno_ret())?;
        if action == default {
            continue;
        }
        let rules = rules(syscall, action, table)?;
        for number in numbers {
            add(&mut decisions, number, action, &rules);
        }
    }
    let is_permissive = matches!(default & 0xffff_0000, ALLOW | LOG | TRACE);
    let newer = if is_permissive { default } else { ERRNO | ENOSYS };
    Ok(Section { table, decisions, default, after: last.map(|last| (last, newer)) })
}

/// No rules: the system call is decided whatever its arguments are.
fn add(decisions: &mut BTreeMap<u32, Decision>, number: u32, action: u32, rules: &[Rule]) {
    match decisions.get_mut(&number) {
        Some(Decision::Always(_)) => {}
        Some(Decision::Rules(earlier)) if !rules.is_empty() => earlier.extend_from_slice(rules),
        _ if rules.is_empty() => drop(decisions.insert(number, Decision::Always(action))),
        _ => drop(decisions.insert(number, Decision::Rules(rules.to_vec()))),
    }
}

fn rules(syscall: &LinuxSyscall, action: u32, table: Table) -> Result<Vec<Rule>, ProfileError> {
    let arguments = syscall.args().as_deref().unwrap_or_default();
    let conditions = arguments.iter().map(|argument| condition(argument, table)).collect::<Result<Vec<_>, _>>()?;
    if conditions.is_empty() {
        return Ok(Vec::new());
    }
    let repeats = |condition: &Condition| conditions.iter().filter(|other| other.argument == condition.argument).count() > 1;
    Ok(if conditions.iter().any(repeats) {
        conditions.into_iter().map(|condition| Rule { conditions: vec![condition], action }).collect()
    } else {
        vec![Rule { conditions, action }]
    })
}

fn condition(from: &LinuxSeccompArg, table: Table) -> Result<Condition, ProfileError> {
    use LinuxSeccompOperator as O;
    let argument = u8::try_from(from.index()).ok().filter(|index| usize::from(*index) < MAX_ARGUMENTS);
    let argument = argument.ok_or(ProfileError::Argument(from.index()))?;
    let operator = match from.op() {
        O::ScmpCmpNe => Operator::NotEqual,
        O::ScmpCmpLt => Operator::Less,
        O::ScmpCmpLe => Operator::LessOrEqual,
        O::ScmpCmpEq => Operator::Equal,
        O::ScmpCmpGe => Operator::GreaterOrEqual,
        O::ScmpCmpGt => Operator::Greater,
        O::ScmpCmpMaskedEq => Operator::MaskedEqual(from.value()),
    };
    let value = if matches!(operator, Operator::MaskedEqual(_)) { from.value_two().unwrap_or(0) & from.value() } else { from.value() };
    Ok(Condition { argument, operator, value, is_wide: table != Table::X86 })
}

#[cfg(test)]
mod tests;
