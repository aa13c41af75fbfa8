//! Changing inputs without a fuzzer's guidance: for the bounded run.

/// Pieces that parsers stumble over.
const PIECES: &[&[u8]] = &[
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b"null",
    b"true",
    b":",
    b",",
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800",
    b"\n",
    b"\t",
    b"  ",
    b"- ",
    b"&a",
    b"*a",
    b"<<",
    b"!!",
    b"---\n",
    b"%",
    b"..",
    b"/",
    b"~",
    b"$patch",
    b"metadata",
    b"name",
    b"1e400",
    b"-0",
    b"9223372036854775808",
    b"0.1",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"((((((((((",
    b"[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":",
];

/// A small generator of numbers (splitmix64): the same seed gives the same run.
pub struct Dice(u64);

impl Dice {
    /// Begins at a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, or zero.
    pub fn below(&mut self, limit: usize) -> usize {
        let limit = u64::try_from(limit).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.roll() % limit).unwrap_or_default()
    }

    /// So many bytes.
    pub fn bytes(&mut self, many: usize) -> Vec<u8> {
        (0..many).map(|_| self.roll().to_le_bytes()[0]).collect()
    }
}

/// The longest input that mutations lead to.
const LONGEST: usize = 16 << 10;

/// An input made of others, or of nothing.
pub fn input(dice: &mut Dice, known: &[Vec<u8>]) -> Vec<u8> {
    if known.is_empty() || dice.below(4) == 0 {
        let many = dice.below(512);
        return dice.bytes(many);
    }
    let mut input = known[dice.below(known.len())].clone();
    for _ in 0..=dice.below(4) {
        change(dice, &mut input, known);
    }
    input.truncate(LONGEST);
    input
}

fn change(dice: &mut Dice, input: &mut Vec<u8>, known: &[Vec<u8>]) {
    let at = dice.below(input.len() + 1);
    let end = (at + dice.below(32)).min(input.len());
    match dice.below(7) {
        0 if !input.is_empty() => {
            let at = at.min(input.len() - 1);
            input[at] ^= 1 << dice.below(8);
        }
        1 => drop(input.drain(at..end)),
        2 => {
            let piece = input[at..end].to_vec();
            for _ in 0..dice.below(20) {
                input.splice(at..at, piece.iter().copied());
            }
        }
        3 => {
            let other = &known[dice.below(known.len())];
            let from = dice.below(other.len() + 1);
            input.splice(at..end, other[from..].iter().copied());
        }
        4 => drop(input.splice(at..end, dice.bytes(4))),
        _ => {
            let piece = PIECES[dice.below(PIECES.len())];
            input.splice(at..at, piece.iter().copied());
        }
    }
}
