//! Inputs: seeds with a few changes, now and then something else altogether.

use fastrand::Rng;

/// Longest input; longer ones are what limits of sizes are for, which unit tests cover.
const MAX_BYTES: usize = 1 << 16;

/// Pieces that mean something to one parser or another.
const WORDS: [&[u8]; 20] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"\\u0000",
    b",",
    b":",
    b".",
    b"=",
    b"null",
    b"true",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"''",
    b"\n",
    b"\0",
    b"\xff\xff\xff\xff",
];

/// Writes the next input over `input`.
pub(crate) fn mutate(random: &mut Rng, seeds: &[Vec<u8>], input: &mut Vec<u8>) {
    input.clear();
    if seeds.is_empty() || random.u8(..) == 0 {
        input.resize_with(random.usize(..512), || random.u8(..));
        return;
    }
    input.extend_from_slice(&seeds[random.usize(..seeds.len())]);
    for _ in 0..=random.u8(..8) {
        change(random, seeds, input);
    }
    input.truncate(MAX_BYTES);
}

fn change(random: &mut Rng, seeds: &[Vec<u8>], input: &mut Vec<u8>) {
    if input.is_empty() {
        input.push(random.u8(..));
        return;
    }
    let at = random.usize(..input.len());
    let to = (at + random.usize(..64)).min(input.len());
    match random.u8(..9) {
        0 => input[at] ^= 1 << random.u8(..8),
        1 => input[at] = random.u8(..),
        2 => input.truncate(at),
        3 => drop(input.drain(at..to)),
        4 => input.extend_from_within(at..to),
        5 => insert(input, at, WORDS[random.usize(..WORDS.len())]),
        // Lengths and counts, in both orders of bytes.
        6 => {
            let number = [0, 1, u32::from(u16::MAX), u32::MAX, 1 << 31, u32::try_from(input.len()).unwrap_or(0)][random.usize(..6)];
            let bytes = if random.bool() { number.to_le_bytes() } else { number.to_be_bytes() };
            let length = 4.min(input.len() - at);
            input[at..at + length].copy_from_slice(&bytes[4 - length..]);
        }
        // Deep nesting.
        7 => insert(input, at, &WORDS[random.usize(..4)].repeat(random.usize(1..2000))),
        _ => {
            let other = &seeds[random.usize(..seeds.len())];
            let from = random.usize(..=other.len());
            let piece = other[from..(from + random.usize(..256)).min(other.len())].to_vec();
            insert(input, at, &piece);
        }
    }
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    drop(input.splice(at..at, piece.iter().copied()));
}
