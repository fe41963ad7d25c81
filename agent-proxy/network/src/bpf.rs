//! The guards as classic BPF, run by cls_bpf on the frames that arrive at a device.
//!
//! A guard answers "drop" or "no opinion"; the filters behind it go on in the second case. Classic BPF needs no bpf(2)
//! and no verifier log, and cls_bpf alone can drop: the action `gact` that u32 would need is not in every kernel.
//! Offsets count from the Ethernet header; cls_bpf puts it back in front for programs on ingress. They are never
//! relative to the network header, since such loads fail for frames that a driver left in page fragments.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::VXLAN_PORT;

/// A program in the kernel's form: `struct sock_filter` after `struct sock_filter`, in the machine's byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program(Vec<u8>);

/// Drops everything that a pod must not send: frames other than ARP and untagged IP, and IP to one of the forbidden
/// addresses. Without `forbidden_ipv6` the pod has no IPv6, and all of it is dropped.
///
/// Tagged frames are refused because the receiving kernel takes VLAN 0 for no VLAN, behind the back of a check on the
/// address. Ports are not looked at, since a later IP fragment has none.
pub(crate) fn workload_guard(forbidden: &[Ipv4Addr], forbidden_ipv6: Option<&[Ipv6Addr]>) -> Program {
    let mut code = vec![
        test(EQUAL, load(HALF, ANCILLARY + VLAN_TAG_PRESENT), 0, On::Next, On::Drop),
        test(EQUAL, load(HALF, ANCILLARY + PROTOCOL), ETHERTYPE_ARP, On::Pass, On::Next),
    ];
    if let Some(forbidden) = forbidden_ipv6 {
        let mut block = vec![test(AT_LEAST, Some(LOAD_LENGTH), ETHERNET + IPV6_HEADER, On::Next, On::Drop)];
        block.extend(forbidden.iter().flat_map(not_to));
        block.push(test(AT_LEAST, None, 0, On::Pass, On::Pass));
        // Where it is skipped, the protocol is still loaded.
        code.push(test(EQUAL, None, ETHERTYPE_IPV6, On::Next, On::Skip(block.len())));
        code.extend(block);
    }
    code.push(test(EQUAL, None, ETHERTYPE_IPV4, On::Next, On::Drop));
    code.push(test(AT_LEAST, Some(LOAD_LENGTH), ETHERNET + IPV4_HEADER, On::Next, On::Drop));
    let destination = load(WORD, ETHERNET + IPV4_DESTINATION);
    code.extend(one_of(destination, forbidden, On::Drop));
    assemble(&code)
}

/// Drops VXLAN that does not come from `node`, and VLAN tags, which nothing on the VM's own interface uses.
pub(crate) fn vxlan_guard(node: Ipv4Addr) -> Program {
    let mut code = transport_to(PROTOCOL_UDP, u32::from(VXLAN_PORT));
    code.push(test(EQUAL, load(WORD, ETHERNET + IPV4_SOURCE), u32::from(node), On::Pass, On::Drop));
    assemble(&code)
}

/// Drops TCP to `port` that comes from one of `pod`: what a workload sent to its own VM by way of a service's address,
/// which the node translated.
pub(crate) fn channel_guard(port: u16, pod: &[Ipv4Addr]) -> Program {
    let mut code = transport_to(PROTOCOL_TCP, u32::from(port));
    code.extend(one_of(load(WORD, ETHERNET + IPV4_SOURCE), pod, On::Drop));
    assemble(&code)
}

impl Program {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// In instructions.
    pub(crate) fn len(&self) -> u16 {
        u16::try_from(self.0.len() / 8).unwrap_or(u16::MAX)
    }
}

// ---------------------------------------------------------------------------

const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_ARP: u32 = 0x0806;
const ETHERTYPE_IPV6: u32 = 0x86dd;
const ETHERTYPE_VLAN: u32 = 0x8100;
const ETHERTYPE_VLAN_OUTER: u32 = 0x88a8;
const PROTOCOL_TCP: u32 = 6;
const PROTOCOL_UDP: u32 = 17;

/// Length of the Ethernet header.
const ETHERNET: u32 = 14;
/// Length of the shortest IPv4 header, and offsets in it.
const IPV4_HEADER: u32 = 20;
const IPV4_FRAGMENT: u32 = 6;
const IPV4_PROTOCOL: u32 = 9;
const IPV4_SOURCE: u32 = 12;
const IPV4_DESTINATION: u32 = 16;
/// Length of the IPv6 header, and offset in it.
const IPV6_HEADER: u32 = 40;
const IPV6_DESTINATION: u32 = 24;
/// The bits of the fragment field that hold the offset.
const FRAGMENT_OFFSET: u32 = 0x1fff;
/// In TCP and UDP alike.
const DESTINATION_PORT: u32 = 2;

/// SKF_AD_OFF and what it offers of the socket buffer: the protocol is that behind a tag which the kernel took off.
const ANCILLARY: u32 = 0xffff_f000;
const PROTOCOL: u32 = 0;
const VLAN_TAG_PRESENT: u32 = 48;

/// TC_ACT_UNSPEC: the next filter decides. TC_ACT_SHOT: drop.
const NO_OPINION: u32 = u32::MAX;
const DROP: u32 = 2;

/// BPF_LD with BPF_ABS and the width; BPF_LD|BPF_LEN; BPF_LD|BPF_H|BPF_IND; BPF_LDX|BPF_B|BPF_MSH.
const WORD: u16 = 0x20;
const HALF: u16 = 0x28;
const BYTE: u16 = 0x30;
const LOAD_LENGTH: Load = Load { code: 0x80, k: 0 };
const HALF_BEHIND_X: u16 = 0x48;
const X_IS_HEADER_LENGTH: u16 = 0xb1;

/// BPF_JMP|BPF_K with BPF_JEQ, BPF_JGE, BPF_JSET.
const EQUAL: u16 = 0x15;
const AT_LEAST: u16 = 0x35;
const ANY_BIT: u16 = 0x45;

/// BPF_RET|BPF_K.
const RETURN: u16 = 0x06;

#[derive(Debug, Clone, Copy)]
struct Load {
    code: u16,
    k: u32,
}

/// Loads a value, if there is a load, and compares it, or the last value loaded, with `k`.
#[derive(Debug, Clone, Copy)]
struct Test {
    x: Option<Load>,
    load: Option<Load>,
    code: u16,
    k: u32,
    yes: On,
    no: On,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Next,
    /// So many tests after the next one are left out.
    Skip(usize),
    Pass,
    Drop,
}

fn load(width: u16, k: u32) -> Option<Load> {
    Some(Load { code: width, k })
}

fn test(code: u16, load: Option<Load>, k: u32, yes: On, no: On) -> Test {
    Test { x: None, load, code, k, yes, no }
}

/// One test per address, on one load.
fn one_of(mut load: Option<Load>, addresses: &[Ipv4Addr], yes: On) -> Vec<Test> {
    addresses.iter().map(|address| test(EQUAL, load.take(), u32::from(*address), yes, On::Next)).collect()
}

/// Drops IPv6 to that address and goes on with the rest.
fn not_to(address: &Ipv6Addr) -> Vec<Test> {
    let octets = address.octets();
    let (words, _) = octets.as_chunks::<4>();
    let offsets = (ETHERNET + IPV6_DESTINATION..).step_by(4);
    let last = words.len() - 1;
    let compare = |(index, (word, offset)): (usize, (&[u8; 4], u32))| {
        let (yes, no) = if index == last { (On::Drop, On::Next) } else { (On::Next, On::Skip(last - index)) };
        test(EQUAL, load(WORD, offset), u32::from_be_bytes(*word), yes, no)
    };
    words.iter().zip(offsets).enumerate().map(compare).collect()
}

/// Goes on for packets of `protocol` to `port`, has no opinion on others, and drops tagged frames.
/// Later fragments carry no port; without the first one, which is judged, they never become a packet.
fn transport_to(protocol: u32, port: u32) -> Vec<Test> {
    let x = Some(Load { code: X_IS_HEADER_LENGTH, k: ETHERNET });
    let destination = load(HALF_BEHIND_X, ETHERNET + DESTINATION_PORT);
    vec![
        test(EQUAL, load(HALF, ANCILLARY + PROTOCOL), ETHERTYPE_VLAN, On::Drop, On::Next),
        test(EQUAL, None, ETHERTYPE_VLAN_OUTER, On::Drop, On::Next),
        test(EQUAL, None, ETHERTYPE_IPV4, On::Next, On::Pass),
        test(EQUAL, load(BYTE, ETHERNET + IPV4_PROTOCOL), protocol, On::Next, On::Pass),
        test(ANY_BIT, load(HALF, ETHERNET + IPV4_FRAGMENT), FRAGMENT_OFFSET, On::Pass, On::Next),
        Test { x, ..test(EQUAL, destination, port, On::Next, On::Pass) },
    ]
}

/// Lays the tests out one after the other, with the two returns behind them.
fn assemble(tests: &[Test]) -> Program {
    let size = |test: &Test| 1 + usize::from(test.load.is_some()) + usize::from(test.x.is_some());
    // Where each test begins, and behind the last one the return that passes.
    let starts: Vec<usize> = std::iter::once(0)
        .chain(tests.iter().scan(0, |at, test| {
            *at += size(test);
            Some(*at)
        }))
        .collect();
    let pass = starts[tests.len()];
    let mut code = Vec::new();
    let mut emit = |operation: u16, yes: u8, no: u8, k: u32| {
        code.extend_from_slice(&operation.to_ne_bytes());
        code.extend_from_slice(&[yes, no]);
        code.extend_from_slice(&k.to_ne_bytes());
    };
    for (index, test) in tests.iter().enumerate() {
        for load in [test.x, test.load].into_iter().flatten() {
            emit(load.code, 0, 0, load.k);
        }
        // Offsets count from the instruction behind the jump; the tests are few enough for a byte.
        let behind = starts[index + 1];
        let jump = |on| {
            let target = match on {
                On::Next => behind,
                On::Skip(tests) => starts[index + 1 + tests],
                On::Pass => pass,
                On::Drop => pass + 1,
            };
            u8::try_from(target - behind).unwrap_or(u8::MAX)
        };
        emit(test.code, jump(test.yes), jump(test.no), test.k);
    }
    emit(RETURN, 0, 0, NO_OPINION);
    emit(RETURN, 0, 0, DROP);
    Program(code)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    const VM: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 5);
    const NODE: Ipv4Addr = Ipv4Addr::new(10, 93, 0, 1);
    const POD: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 5);
    const METADATA_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    const OTHER_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);

    /// A frame as the filters see it: a tag that the kernel took off is beside the bytes.
    #[derive(Debug, Clone)]
    struct Frame {
        is_tagged: bool,
        protocol: u16,
        bytes: Vec<u8>,
    }

    /// Runs a program as the kernel does; `None` is a load outside the frame, which ends it with "accept".
    fn run(program: &Program, frame: &Frame) -> Option<u32> {
        let code: Vec<&[u8]> = program.as_bytes().chunks(8).collect();
        let byte = |at: u32| frame.bytes.get(usize::try_from(at).unwrap()).copied().map(u32::from);
        let half = |at| Some(byte(at)? << 8 | byte(at + 1)?);
        let (mut a, mut x, mut at) = (0, 0, 0);
        loop {
            let k = u32::from_ne_bytes(code[at][4..].try_into().unwrap());
            let (yes, no) = (usize::from(code[at][2]), usize::from(code[at][3]));
            let jump = |is_true| if is_true { yes } else { no };
            let mut skip = 0;
            match u16::from_ne_bytes([code[at][0], code[at][1]]) {
                HALF if k == ANCILLARY + PROTOCOL => a = u32::from(frame.protocol),
                HALF if k == ANCILLARY + VLAN_TAG_PRESENT => a = u32::from(frame.is_tagged),
                BYTE => a = byte(k)?,
                HALF => a = half(k)?,
                WORD => a = half(k)? << 16 | half(k + 2)?,
                HALF_BEHIND_X => a = half(x + k)?,
                X_IS_HEADER_LENGTH => x = (byte(k)? & 0xf) * 4,
                0x80 => a = u32::try_from(frame.bytes.len()).unwrap(),
                EQUAL => skip = jump(a == k),
                AT_LEAST => skip = jump(a >= k),
                ANY_BIT => skip = jump(a & k != 0),
                RETURN => return Some(k),
                code => panic!("unknown instruction {code:#x}"),
            }
            at += 1 + skip;
        }
    }

    fn drops(program: &Program, frame: &Frame) -> bool {
        run(program, frame) == Some(DROP)
    }

    prop_compose! {
        /// Mostly IPv4 with the addresses and ports that matter, with options, in fragments or cut short.
        fn any_frame()(
            is_tagged in prop::bool::weighted(0.1),
            protocol in select(vec![0x0800, 0x0800, 0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8, 0x0004]),
            words in 5..=15_u8,
            fragment in select(vec![0_u16, 0x4000, 0x2000, 0x2001, 0x0100]),
            transport in select(vec![6_u8, 17, 1]),
            source in select(vec![NODE, POD, VM, METADATA]),
            destination in select(vec![NODE, POD, VM, METADATA]),
            port in select(vec![VXLAN_PORT, 15150, 80]),
            to in select(vec![METADATA_IPV6, OTHER_IPV6, Ipv6Addr::LOCALHOST]),
            changed in option::of((0..16_usize, any::<u8>())),
            rest in vec(any::<u8>(), 4..64),
            length in 14..200_usize,
        ) -> Frame {
            let mut bytes = vec![0; 14];
            bytes.extend([0x40 | words, 0, 0, 0, 0, 0]);
            bytes.extend(fragment.to_be_bytes());
            bytes.extend([64, transport, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(destination.octets());
            bytes.resize(14 + 4 * usize::from(words), 0);
            bytes.extend([0x30, 0x39]);
            bytes.extend(port.to_be_bytes());
            bytes.extend(rest);
            if protocol == 0x86dd {
                let mut to = to.octets();
                if let Some((at, byte)) = changed {
                    to[at] = byte;
                }
                bytes.resize(bytes.len().max(54), 0);
                bytes[38..54].copy_from_slice(&to);
            }
            bytes.truncate(length);
            Frame { is_tagged, protocol, bytes }
        }
    }

    /// The fields that the guards are about, read the plain way; `None` where the frame ends before the ports.
    fn ports_of(frame: &Frame) -> Option<(u8, [u8; 4], u16)> {
        let ip = frame.bytes.get(14..)?;
        let header = 4 * usize::from(ip.first()? & 0xf);
        let is_first = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]) & 0x1fff == 0;
        let port = u16::from_be_bytes([*ip.get(header + 2)?, *ip.get(header + 3)?]);
        (frame.protocol == 0x0800 && is_first).then_some((ip[9], ip[12..16].try_into().unwrap(), port))
    }

    fn has_tag(frame: &Frame) -> bool {
        matches!(frame.protocol, 0x8100 | 0x88a8)
    }

    proptest! {
        #[test]
        fn workload_sends_arp_and_permitted_ip_only(frame in any_frame(), has_ipv6 in any::<bool>()) {
            let permitted = match frame.protocol {
                _ if frame.is_tagged => false,
                0x0806 => true,
                0x0800 if frame.bytes.len() >= 34 => !matches!(frame.bytes[30..34], [169, 254, 169, 254] | [10, 93, 0, 5]),
                0x86dd if frame.bytes.len() >= 54 => {
                    let to = Ipv6Addr::from(<[u8; 16]>::try_from(&frame.bytes[38..54]).unwrap());
                    has_ipv6 && to != METADATA_IPV6 && to != OTHER_IPV6
                }
                _ => false,
            };
            let forbidden_ipv6 = [METADATA_IPV6, OTHER_IPV6];
            let guard = workload_guard(&[METADATA, VM], has_ipv6.then_some(&forbidden_ipv6[..]));
            prop_assert_eq!(drops(&guard, &frame), !permitted);
        }

        #[test]
        fn vxlan_comes_from_the_node_only(frame in any_frame()) {
            let is_foreign = matches!(ports_of(&frame), Some((17, source, VXLAN_PORT)) if source != NODE.octets());
            prop_assert_eq!(drops(&vxlan_guard(NODE), &frame), is_foreign || has_tag(&frame));
        }

        #[test]
        fn channel_is_closed_to_the_pod(frame in any_frame()) {
            let is_pod = matches!(ports_of(&frame), Some((6, source, 15150)) if source == POD.octets() || source == METADATA.octets());
            prop_assert_eq!(drops(&channel_guard(15150, &[POD, METADATA]), &frame), is_pod || has_tag(&frame));
        }
    }

    #[test]
    fn jumps_stay_inside_for_the_most_addresses() {
        let many: Vec<Ipv4Addr> = (0..40).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        let mut frame = Frame { is_tagged: false, protocol: 0x0800, bytes: vec![0x45; 34] };
        frame.bytes[30..].copy_from_slice(&[10, 0, 0, 39]);
        assert!(drops(&workload_guard(&many, None), &frame));
        frame.bytes[33] = 40;
        assert_eq!(run(&workload_guard(&many, None), &frame), Some(NO_OPINION));
    }
}
