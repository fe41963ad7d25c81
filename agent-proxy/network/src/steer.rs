//! A BPF program of type `sk_lookup` that hands connections to a loopback to one listening socket.
//!
//! The interface is linux/bpf.h and Documentation/bpf/prog_sk_lookup.rst, there since Linux 5.9. The program is twenty instructions,
//! written out here: the crates for BPF load objects, and making one needs a compiler for another target.

use std::ffi::c_long;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use nix::libc;

use crate::netns::Netns;

/// The program's attachment; dropping it lets the netns look sockets up by itself again.
#[derive(Debug)]
pub(crate) struct Steering {
    _link: OwnedFd,
}

impl Steering {
    /// From now on `listener`, which is in `netns`, takes all TCP connections there to 127.0.0.0/8.
    pub(crate) fn attach(netns: &Netns, listener: &TcpListener) -> io::Result<Self> {
        let map = make_map()?;
        put(&map, listener.as_raw_fd())?;
        let program = load(&program(map.as_raw_fd()))?;
        let link = [descriptor(program.as_raw_fd()), descriptor(netns.raw_fd()), SK_LOOKUP_ATTACH, 0];
        Ok(Self { _link: bpf_fd(LINK_CREATE, &link)? })
    }
}

// ---------------------------------------------------------------------------

/// Commands of bpf(2).
const MAP_CREATE: c_long = 0;
const MAP_UPDATE_ELEM: c_long = 2;
const PROG_LOAD: c_long = 5;
const LINK_CREATE: c_long = 28;

/// BPF_MAP_TYPE_SOCKMAP, BPF_PROG_TYPE_SK_LOOKUP, and BPF_SK_LOOKUP of enum bpf_attach_type.
const SOCKMAP: u32 = 15;
const SK_LOOKUP_PROGRAM: u32 = 30;
const SK_LOOKUP_ATTACH: u32 = 36;

/// Offsets in struct bpf_sk_lookup.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;

const AF_INET: i32 = 2;
const IPPROTO_TCP: i32 = 6;
/// SK_PASS: go on, with the socket that was assigned if there is one.
const PASS: i32 = 1;

/// Helpers, by their numbers in enum bpf_func_id.
const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// Opcodes of linux/bpf.h and linux/bpf_common.h.
const LOAD_WORD: u8 = 0x61;
const STORE_WORD_OF: u8 = 0x62;
const LOAD_MAP: u8 = 0x18;
const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const ADD: u8 = 0x07;
const AND_32: u8 = 0x54;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const JUMP_IF_EQUAL: u8 = 0x15;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// The offset of a jump that is not laid out yet; all go to the instruction that sets the result.
const TO_PASS: i16 = i16::MAX;
/// BPF_PSEUDO_MAP_FD: the constant is a descriptor.
const MAP_DESCRIPTOR: u8 = 1;
/// The frame pointer.
const FRAME: u8 = 10;

/// struct bpf_insn.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Destination in the lower four bits, source in the upper ones; little-endian machines only.
    registers: u8,
    offset: i16,
    constant: i32,
}

#[cfg(not(target_endian = "little"))]
compile_error!("the order of an instruction's registers is that of little-endian machines");

fn op(code: u8, to: u8, from: u8, offset: i16, constant: i32) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, constant }
}

/// Passes everything on but TCP over IPv4 to 127.0.0.0/8, to which it assigns the map's socket.
fn program(map: RawFd) -> Vec<Instruction> {
    // In network order, as the field is.
    let first_byte = i32::from_ne_bytes([0xff, 0, 0, 0]);
    let loopback = i32::from_ne_bytes([127, 0, 0, 0]);
    let mut program = vec![
        op(MOVE_REGISTER, 6, 1, 0, 0),
        op(LOAD_WORD, 2, 6, FAMILY, 0),
        op(JUMP_UNLESS_EQUAL, 2, 0, TO_PASS, AF_INET),
        op(LOAD_WORD, 2, 6, PROTOCOL, 0),
        op(JUMP_UNLESS_EQUAL, 2, 0, TO_PASS, IPPROTO_TCP),
        op(LOAD_WORD, 2, 6, LOCAL_IP4, 0),
        op(AND_32, 2, 0, 0, first_byte),
        op(JUMP_UNLESS_EQUAL, 2, 0, TO_PASS, loopback),
        // r7 = the socket at key 0.
        op(STORE_WORD_OF, FRAME, 0, -4, 0),
        op(MOVE_REGISTER, 2, FRAME, 0, 0),
        op(ADD, 2, 0, 0, -4),
        op(LOAD_MAP, 1, MAP_DESCRIPTOR, 0, map),
        op(0, 0, 0, 0, 0),
        op(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        op(JUMP_IF_EQUAL, 0, 0, TO_PASS, 0),
        op(MOVE_REGISTER, 7, 0, 0, 0),
        op(MOVE_REGISTER, 1, 6, 0, 0),
        op(MOVE_REGISTER, 2, 7, 0, 0),
        op(MOVE, 3, 0, 0, 0),
        op(CALL, 0, 0, 0, SK_ASSIGN),
        op(MOVE_REGISTER, 1, 7, 0, 0),
        op(CALL, 0, 0, 0, SK_RELEASE),
        op(MOVE, 0, 0, 0, PASS),
        op(EXIT, 0, 0, 0, 0),
    ];
    let pass = program.len() - 2;
    for (at, instruction) in program.iter_mut().enumerate().filter(|(_, instruction)| instruction.offset == TO_PASS) {
        instruction.offset = i16::try_from(pass - (at + 1)).unwrap_or(TO_PASS);
    }
    program
}

fn make_map() -> io::Result<OwnedFd> {
    let (key_size, value_size, entries) = (4_u32, 4, 1);
    bpf_fd(MAP_CREATE, &[SOCKMAP, key_size, value_size, entries])
}

fn put(map: &OwnedFd, socket: RawFd) -> io::Result<()> {
    let (key, value) = (0_u32, descriptor(socket));
    // Map, key, value, flags; the map's descriptor is followed by four bytes of padding.
    let attributes = [u64::from(descriptor(map.as_raw_fd())), (&raw const key) as u64, (&raw const value) as u64, 0];
    bpf(MAP_UPDATE_ELEM, &attributes).map(drop)
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    /// The beginning of the attributes of BPF_PROG_LOAD.
    #[repr(C)]
    struct Attributes {
        program_type: u32,
        instruction_count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        expected_attach_type: u32,
    }
    let attributes = Attributes {
        program_type: SK_LOOKUP_PROGRAM,
        instruction_count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: *b"peerpods_local\0\0",
        interface: 0,
        expected_attach_type: SK_LOOKUP_ATTACH,
    };
    bpf_fd(PROG_LOAD, &attributes)
}

/// A command whose result is a new descriptor.
fn bpf_fd<A>(command: c_long, attributes: &A) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    #[allow(unsafe_code, reason = "bpf(2) gives a bare number")]
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it. It closes on exec, as all of bpf(2) do.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `A` is a prefix of `union bpf_attr` for `command`; the kernel takes the rest for zero.
fn bpf<A>(command: c_long, attributes: &A) -> io::Result<RawFd> {
    #[allow(unsafe_code, reason = "bpf(2) has no safe interface")]
    // SAFETY: the kernel reads `size_of::<A>()` initialised bytes and what its pointers name, all of which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { RawFd::try_from(result).map_err(io::Error::other) }
}

fn descriptor(fd: RawFd) -> u32 {
    u32::try_from(fd).unwrap_or(u32::MAX)
}
