//! Writes programs of the kernel's filter machine (classic BPF).
//!
//! For each architecture a search tree over ranges of numbers leads to a decision, so that a call passes about ten comparisons
//! whatever the profile's length. All jumps lead forward; the short ones reach 255 instructions and are replaced by long ones where
//! that is too little.

use std::collections::BTreeMap;

use super::syscalls::{Table, X32_BIT};

/// One instruction, as the kernel's `sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip when a comparison is true.
    pub jt: u8,
    /// And when it is false.
    pub jf: u8,
    /// The operation's number.
    pub k: u32,
}

/// The part of a program for one architecture.
#[derive(Debug)]
pub(super) struct Section {
    /// The architecture.
    pub(super) table: Table,
    /// What is decided otherwise than by default.
    pub(super) decisions: BTreeMap<u32, Decision>,
    /// For everything else.
    pub(super) default: u32,
    /// The last number that the profile knows, and the action for those after it.
    pub(super) after: Option<(u32, u32)>,
}

/// What is decided about a system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Whatever its arguments are.
    Always(u32),
    /// The first rule that matches; the default where none does.
    Rules(Vec<Rule>),
}

/// An action under conditions that must all hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    /// At least one.
    pub(super) conditions: Vec<Condition>,
    /// What then happens.
    pub(super) action: u32,
}

/// A condition on an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// 0 to 5.
    pub(super) argument: u8,
    /// How to compare.
    pub(super) operator: Operator,
    /// With what.
    pub(super) value: u64,
    /// Whether arguments have 64 bits.
    pub(super) is_wide: bool,
}

/// A comparison of an argument with a value, without sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Only these bits of the argument.
    MaskedEqual(u64),
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where `struct seccomp_data` has the number, the architecture and the arguments.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;
/// What a tracer leaves that wants a call skipped.
const SKIPPED: u32 = u32::MAX;

/// Where a comparison of a condition leads.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// The condition holds.
    Holds,
    /// It does not.
    Fails,
}

/// The whole program. `foreign` is for calls of other architectures.
pub(super) fn program(sections: &[Section], foreign: u32) -> Vec<Instruction> {
    let body = |section: &Section| {
        let mut code = vec![load(NUMBER)];
        code.extend(tree(&ranges(section)));
        code
    };
    let mut program = vec![load(ARCH)];
    for section in sections.iter().filter(|section| section.table != Table::X32) {
        let mut code = Vec::new();
        if section.table == Table::X86_64 {
            let short = sections.iter().find(|other| other.table == Table::X32).map_or(vec![ret(foreign)], body);
            code.push(load(NUMBER));
            code.push(jump(JUMP_EQUAL, SKIPPED, 1, 0));
            code.push(jump(JUMP_GREATER_OR_EQUAL, X32_BIT, 1, 0));
            code.push(skip(short.len()));
            code.extend(short);
        }
        code.extend(body(section));
        program.push(jump(JUMP_EQUAL, section.table.audit_arch(), 1, 0));
        program.push(skip(code.len()));
        program.extend(code);
    }
    program.push(ret(foreign));
    program
}

/// The first number of each range, and its code; neighbours of the same decision are joined.
fn ranges(section: &Section) -> Vec<(u32, Vec<Instruction>)> {
    let mut ranges: Vec<(u32, Vec<Instruction>)> = Vec::new();
    let mut add = |start: u32, code: Vec<Instruction>| {
        if let Some((begun, last)) = ranges.last_mut() {
            if *begun == start {
                *last = code;
                return;
            }
            if *last == code {
                return;
            }
        }
        ranges.push((start, code));
    };
    add(0, vec![ret(section.default)]);
    for (number, decision) in &section.decisions {
        add(*number, decide(decision, section.default));
        if let Some(next) = number.checked_add(1) {
            add(next, vec![ret(section.default)]);
        }
    }
    if let Some((last, action)) = section.after
        && let Some(next) = last.checked_add(1)
    {
        add(next, vec![ret(action)]);
    }
    ranges
}

/// Finds the range that a number is in.
fn tree(ranges: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    let [(_, only)] = ranges else {
        let (left, right) = ranges.split_at(ranges.len() / 2);
        let Some((pivot, _)) = right.first() else { return Vec::new() };
        let (left, right) = (tree(left), tree(right));
        let mut code = match u8::try_from(left.len()) {
            Ok(length) => vec![jump(JUMP_GREATER_OR_EQUAL, *pivot, length, 0)],
            Err(_) => vec![jump(JUMP_GREATER_OR_EQUAL, *pivot, 0, 1), skip(left.len())],
        };
        code.extend(left);
        code.extend(right);
        return code;
    };
    only.clone()
}

fn decide(decision: &Decision, default: u32) -> Vec<Instruction> {
    let rules = match decision {
        Decision::Always(action) => return vec![ret(*action)],
        Decision::Rules(rules) => rules,
    };
    let mut code: Vec<Instruction> = rules.iter().flat_map(rule).collect();
    code.push(ret(default));
    code
}

/// Six conditions of at most seven instructions: every jump in here is short.
fn rule(rule: &Rule) -> Vec<Instruction> {
    let conditions: Vec<_> = rule.conditions.iter().map(condition).collect();
    let mut rest: usize = conditions.iter().map(Vec::len).sum();
    let mut code = Vec::new();
    for condition in conditions {
        let length = condition.len();
        rest -= length;
        for (index, (mut instruction, holds, fails)) in condition.into_iter().enumerate() {
            let left = length - index - 1;
            let offset = |to: To| match to {
                To::Next => 0,
                To::Holds => left,
                // Past the rule's return.
                To::Fails => left + rest + 1,
            };
            instruction.jt = u8::try_from(offset(holds)).unwrap_or(u8::MAX);
            instruction.jf = u8::try_from(offset(fails)).unwrap_or(u8::MAX);
            code.push(instruction);
        }
    }
    code.push(ret(rule.action));
    code
}

/// Instructions, and where each leads when its comparison is true and when it is false.
fn condition(condition: &Condition) -> Vec<(Instruction, To, To)> {
    let offset = ARGUMENTS + 8 * u32::from(condition.argument);
    let (high, low) = halves(condition.value);
    let plain = |instruction| (instruction, To::Next, To::Next);
    let compare = |code, k, holds, fails| (jump(code, k, 0, 0), holds, fails);
    let mut code = Vec::new();
    if let Operator::MaskedEqual(mask) = condition.operator {
        let (mask_high, mask_low) = halves(mask);
        if condition.is_wide && mask_high != 0 {
            code.extend([plain(load(offset + 4)), plain(and(mask_high)), compare(JUMP_EQUAL, high, To::Next, To::Fails)]);
        }
        code.extend([plain(load(offset)), plain(and(mask_low)), compare(JUMP_EQUAL, low, To::Next, To::Fails)]);
        return code;
    }
    if condition.is_wide {
        code.push(plain(load(offset + 4)));
        match condition.operator {
            Operator::Equal | Operator::MaskedEqual(_) => code.push(compare(JUMP_EQUAL, high, To::Next, To::Fails)),
            Operator::NotEqual => code.push(compare(JUMP_EQUAL, high, To::Next, To::Holds)),
            Operator::Greater | Operator::GreaterOrEqual => {
                code.extend([compare(JUMP_GREATER, high, To::Holds, To::Next), compare(JUMP_EQUAL, high, To::Next, To::Fails)])
            }
            Operator::Less | Operator::LessOrEqual => {
                code.extend([compare(JUMP_GREATER, high, To::Fails, To::Next), compare(JUMP_EQUAL, high, To::Next, To::Holds)])
            }
        }
    }
    code.push(plain(load(offset)));
    code.push(match condition.operator {
        Operator::Equal | Operator::MaskedEqual(_) => compare(JUMP_EQUAL, low, To::Next, To::Fails),
        Operator::NotEqual => compare(JUMP_EQUAL, low, To::Fails, To::Next),
        Operator::Greater => compare(JUMP_GREATER, low, To::Next, To::Fails),
        Operator::GreaterOrEqual => compare(JUMP_GREATER_OR_EQUAL, low, To::Next, To::Fails),
        Operator::Less => compare(JUMP_GREATER_OR_EQUAL, low, To::Fails, To::Next),
        Operator::LessOrEqual => compare(JUMP_GREATER, low, To::Fails, To::Next),
    });
    code
}

fn halves(value: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = value.to_be_bytes();
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

fn load(offset: u32) -> Instruction {
    jump(LOAD, offset, 0, 0)
}

fn and(mask: u32) -> Instruction {
    jump(AND, mask, 0, 0)
}

fn ret(action: u32) -> Instruction {
    jump(RETURN, action, 0, 0)
}

fn skip(count: usize) -> Instruction {
    jump(JUMP, u32::try_from(count).unwrap_or(u32::MAX), 0, 0)
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}
