use serde_json::json;

use super::*;

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;

fn compiled(profile: serde_json::Value) -> Vec<Instruction> {
    compile(&serde_json::from_value(profile).unwrap()).unwrap().program
}

/// What the kernel would do.
fn run(program: &[Instruction], arch: u32, number: u32, arguments: &[u64]) -> u32 {
    let mut data = [number, arch, 0, 0].to_vec();
    for index in 0..6 {
        let argument = arguments.get(index).copied().unwrap_or(0);
        data.push((argument & 0xffff_ffff) as u32);
        data.push((argument >> 32) as u32);
    }
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let is_true = match code {
            0x20 => {
                accumulator = data[k as usize / 4];
                continue;
            }
            0x54 => {
                accumulator &= k;
                continue;
            }
            0x05 => {
                at += k as usize;
                continue;
            }
            0x06 => return k,
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            other => panic!("operation {other:#x}"),
        };
        at += usize::from(if is_true { jt } else { jf });
    }
}

#[test]
fn listed_calls_are_decided_and_others_get_the_default() {
    let program = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": ["read", "ioctl", "no_such_call"], "action": "SCMP_ACT_ALLOW" },
            { "names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 },
            { "names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS" },
            { "names": ["umask"], "action": "SCMP_ACT_LOG" },
            { "names": ["chroot"], "action": "SCMP_ACT_TRAP" },
            { "names": ["sync"], "action": "SCMP_ACT_TRACE", "errnoRet": 7 },
            { "names": ["write"], "action": "SCMP_ACT_ERRNO" }
        ]
    }));
    let on_64 = |number| run(&program, X86_64, number, &[]);
    assert_eq!([0, 83, 101, 95, 161, 162, 1].map(on_64), [ALLOW, ERRNO | 28, KILL_PROCESS, LOG, TRAP, TRACE | 7, ERRNO | EPERM]);
    assert_eq!(on_64(2), ERRNO | EPERM, "open, not named, older than the last one named");
    assert_eq!(on_64(163), ERRNO | ENOSYS, "newer than the last one named");
    assert_eq!(run(&program, X86, 3, &[]), ALLOW, "read of 32-bit x86");
    assert_eq!(run(&program, X86, 0, &[]), ERRNO | EPERM);
    assert_eq!(run(&program, X86_64, X32_BIT, &[]), ALLOW, "read of X32");
    assert_eq!(run(&program, X86_64, X32_BIT | 514, &[]), ALLOW, "ioctl of X32");
    assert_eq!(run(&program, 0xc000_00b7, 0, &[]), KILL_THREAD, "another architecture");
    assert_eq!(on_64(u32::MAX), ERRNO | ENOSYS, "skipped by a tracer, not X32");
}

#[test]
fn architectures_that_are_not_listed_are_killed() {
    let program = compiled(json!({ "defaultAction": "SCMP_ACT_ALLOW" }));
    assert_eq!(run(&program, X86_64, 0, &[]), ALLOW);
    assert_eq!(run(&program, X86_64, 100_000, &[]), ALLOW, "a permissive default is for newer calls too");
    assert_eq!(run(&program, X86, 0, &[]), KILL_THREAD);
    assert_eq!(run(&program, X86_64, X32_BIT, &[]), KILL_THREAD);
}

#[test]
fn conditions_compare_64_bits_without_sign() {
    const SAMPLES: [u64; 12] =
        [0, 1, 9, 10, 11, 0xffff_ffff, 1 << 32, (1 << 32) + 10, (5 << 32) + 9, (5 << 32) + 10, (5 << 32) + 11, u64::MAX];
    let holds = |op: &str, argument: u64, value: u64, two: u64| match op {
        "NE" => argument != value,
        "LT" => argument < value,
        "LE" => argument <= value,
        "EQ" => argument == value,
        "GE" => argument >= value,
        "GT" => argument > value,
        _ => argument & value == two & value,
    };
    for op in ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"] {
        for value in SAMPLES {
            for two in if op == "MASKED_EQ" { SAMPLES.to_vec() } else { vec![0] } {
                let argument = json!({ "index": 2, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{op}") });
                let program = compiled(json!({
                    "defaultAction": "SCMP_ACT_ALLOW",
                    "architectures": ["SCMP_ARCH_X86"],
                    "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [argument] }]
                }));
                for sample in SAMPLES {
                    let expected = if holds(op, sample, value, two) { ERRNO | EPERM } else { ALLOW };
                    assert_eq!(run(&program, X86_64, 0, &[7, 7, sample]), expected, "{sample:#x} {op} {value:#x} {two:#x}");
                    let low = |value: u64| value & 0xffff_ffff;
                    let expected = if holds(op, low(sample), low(value), low(two)) { ERRNO | EPERM } else { ALLOW };
                    assert_eq!(run(&program, X86, 3, &[7, 7, sample]), expected, "32 bits: {sample:#x} {op} {value:#x} {two:#x}");
                }
            }
        }
    }
}

#[test]
fn conditions_of_a_rule_must_all_hold_and_rules_are_alternatives() {
    let is = |index: usize, value: u64| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
    let rule = |arguments: serde_json::Value, errno: u32| json!({ "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": arguments });
    let program = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [rule(json!([is(0, 1), is(1, 2)]), 11), rule(json!([is(0, 1)]), 12), rule(json!([is(3, 4), is(3, 5)]), 13)]
    }));
    let at = |arguments: [u64; 4]| run(&program, X86_64, 0, &arguments);
    assert_eq!(at([1, 2, 0, 0]), ERRNO | 11);
    assert_eq!(at([1, 3, 0, 4]), ERRNO | 12);
    assert_eq!([at([0, 2, 0, 4]), at([0, 0, 0, 5])], [ERRNO | 13; 2], "the same argument twice");
    assert_eq!(at([0, 2, 0, 6]), ALLOW);
}

#[test]
fn a_rule_without_conditions_outweighs_those_with() {
    let narrow = json!({ "names": ["read"], "action": "SCMP_ACT_TRAP", "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }] });
    let wide = json!({ "names": ["read"], "action": "SCMP_ACT_KILL_PROCESS" });
    let later = json!({ "names": ["read"], "action": "SCMP_ACT_LOG" });
    for rules in [[&narrow, &wide, &later], [&wide, &narrow, &later]] {
        let program = compiled(json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules }));
        assert_eq!(run(&program, X86_64, 0, &[1]), KILL_PROCESS);
    }
}

#[test]
fn many_calls_with_conditions_need_long_jumps() {
    let names: Vec<&str> = (0..300).filter_map(syscalls_name).collect();
    let argument = json!({ "index": 5, "value": 1, "op": "SCMP_CMP_GE" });
    let program = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{ "names": names, "action": "SCMP_ACT_ALLOW", "args": [argument] }]
    }));
    assert!(program.len() > 1000);
    for number in 0..300 {
        assert_eq!(run(&program, X86_64, number, &[0, 0, 0, 0, 0, 1]), ALLOW, "{number}");
        assert_eq!(run(&program, X86_64, number, &[]), ERRNO | EPERM, "{number}");
    }
}

fn syscalls_name(number: usize) -> Option<&'static str> {
    ::syscalls::x86_64::Sysno::new(number).map(|number| number.name())
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |profile: serde_json::Value| compile(&serde_json::from_value(profile).unwrap()).unwrap_err();
    assert_eq!(refused(json!({ "defaultAction": "SCMP_ACT_NOTIFY" })), ProfileError::Notify);
    let argument = json!([{ "index": 6, "value": 1, "op": "SCMP_CMP_GE" }]);
    let profile =
        json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["read"], "action": "SCMP_ACT_KILL", "args": argument }] });
    assert_eq!(refused(profile), ProfileError::Argument(6));
}
