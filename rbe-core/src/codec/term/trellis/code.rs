//! The code: from states to values.

use std::ops::RangeInclusive;

/// The most bits a coefficient can have.
pub const MAX_BITS: u8 = 4;
/// The bits a state may have.
pub const STATE_BITS: RangeInclusive<u8> = 12..=16;

/// How many [`STATE_BITS`] there are.
const STATE_SIZES: usize = (*STATE_BITS.end() - *STATE_BITS.start() + 1) as usize;

/// A code of any size of states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Codebook {
    /// What each bit of a state contributes to its index.
    pub columns: [u8; 16],
    /// Numbered by the lower half of an index.
    pub levels: [i8; 16],
    /// Numbered by the upper half.
    pub offsets: &'static [i8],
    /// Whether the offset counts twice at the first level and the last.
    pub doubles: bool,
}

/// Of up to two bits, of three and of four.
///
/// Tables and columns are what coded a Gaussian best in a search over maps that need few instructions. A larger state has the
/// columns of a smaller one.
pub(super) static CODEBOOKS: [Codebook; 3] = [
    Codebook {
        columns: [
            0x0f, 0x0a, 0x08, 0x0e, 0x10, 0x40, 0x70, 0x40, 0x02, 0x09, 0x04, 0x08, 0x4a, 0x07, 0x04, 0x18,
        ],
        levels: [-40, -24, -22, -17, -12, -9, -6, -3, 2, 5, 8, 11, 16, 21, 23, 39],
        offsets: &[-11, -5, -4, 0, 1, 5, 6, 12],
        doubles: false,
    },
    Codebook {
        columns: [
            0x06, 0x0c, 0x08, 0x79, 0x60, 0x40, 0xc1, 0x0f, 0x0c, 0x68, 0x40, 0xc0, 0x0a, 0x04, 0x71, 0x19,
        ],
        levels: [-39, -23, -19, -15, -12, -8, -5, -3, 2, 4, 7, 11, 14, 18, 22, 38],
        offsets: &[-20, -13, -10, -9, -6, -5, -2, 0, 1, 3, 6, 7, 10, 11, 14, 21],
        doubles: false,
    },
    Codebook {
        columns: [
            0x0c, 0x08, 0x09, 0x0f, 0xb0, 0xa0, 0x60, 0x80, 0x09, 0x03, 0x08, 0x05, 0xa7, 0x69, 0x83, 0x08,
        ],
        levels: [-37, -27, -21, -17, -12, -9, -5, -2, 1, 4, 8, 11, 16, 20, 26, 35],
        offsets: &[-13, -9, -6, -4, -4, -2, -1, 0, 1, 2, 3, 5, 5, 7, 10, 14],
        doubles: true,
    },
];

/// What each value of a state's lower byte and of its upper byte contributes to the index.
static CONTRIBUTIONS: [[[u8; 256]; 2]; 3] = {
    let mut all = [[[0; 256]; 2]; 3];
    let mut n = 0;
    while n < 3 * 2 * 256 * 8 {
        let (book, half, byte, bit) = (n / 4096, n / 2048 % 2, n / 8 % 256, n % 8);
        if byte >> bit & 1 == 1 {
            all[book][half][byte] ^= CODEBOOKS[book].columns[8 * half + bit];
        }
        n += 1;
    }
    all
};

/// The value of each index; 0 where there is none.
static VALUES: [[i8; 256]; 3] = {
    let mut all = [[0; 256]; 3];
    let mut n = 0;
    while n < 3 * 256 {
        let (Codebook { levels, offsets, doubles, .. }, index) = (&CODEBOOKS[n / 256], n % 256);
        let (level, offset) = (index % 16, index / 16);
        if offset < offsets.len() {
            let times = if *doubles && (level == 0 || level == 15) { 2 } else { 1 };
            all[n / 256][index] = levels[level] + times * offsets[offset];
        }
        n += 1;
    }
    all
};

/// The map from states to values of one `k` and `L`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    bits: u8,
    state_bits: u8,
}

impl Code {
    /// How many codes there are.
    pub(crate) const COUNT: usize = MAX_BITS as usize * STATE_SIZES;

    /// The code of `bits` (`k`, 1 to [`MAX_BITS`]) a row and `state_bits` (`L`, one of [`STATE_BITS`]).
    ///
    /// # Panics
    /// For other numbers.
    pub fn new(bits: u8, state_bits: u8) -> Self {
        assert!((1..=MAX_BITS).contains(&bits) && STATE_BITS.contains(&state_bits));
        Self { bits, state_bits }
    }

    /// One of all codes, for tables of what they need.
    pub(crate) const fn numbered(number: usize) -> Self {
        assert!(number < Self::COUNT);
        let (bits, state_bits) =
            (number / STATE_SIZES + 1, number % STATE_SIZES + *STATE_BITS.start() as usize);
        Self { bits: bits as u8, state_bits: state_bits as u8 }
    }

    /// The code of `bits` a row with the smallest states, for what is the same with all.
    pub(crate) const fn of_bits(bits: usize) -> Self {
        Self::numbered((bits - 1) * STATE_SIZES)
    }

    /// The number of [`numbered`](Self::numbered).
    pub(crate) const fn number(self) -> usize {
        (self.bits as usize - 1) * STATE_SIZES + (self.state_bits - *STATE_BITS.start()) as usize
    }

    /// Bits of a row.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Bits of a state.
    pub const fn state_bits(self) -> u8 {
        self.state_bits
    }

    /// Its maps and tables.
    pub(super) const fn codebook(self) -> &'static Codebook {
        &CODEBOOKS[self.book()]
    }

    const fn book(self) -> usize {
        match self.bits {
            1 | 2 => 0,
            3 => 1,
            _ => 2,
        }
    }

    /// What a state stands for: in the lower half the number of a level, in the upper that of an offset. Bits above the state
    /// do not matter.
    ///
    /// It is linear: `index(s ^ t) = index(s) ^ index(t)`.
    pub const fn index(self, state: u16) -> u8 {
        let [low, high] = (state & u16::MAX >> (16 - self.state_bits)).to_le_bytes();
        let contributions = &CONTRIBUTIONS[self.book()];
        contributions[0][low as usize] ^ contributions[1][high as usize]
    }

    /// How many indices there are. The value of the last is the negative of that of the first, that of the last but one
    /// of that of the second, and so on.
    #[cfg_attr(not(any(target_arch = "x86_64", test)), allow(dead_code))]
    pub(crate) const fn indices(self) -> usize {
        16 * self.codebook().offsets.len()
    }

    /// The value of an index.
    pub const fn value_of_index(self, index: u8) -> i8 {
        VALUES[self.book()][index as usize]
    }

    /// The value of a state; bits above the state do not matter.
    pub fn value(self, state: u16) -> i8 {
        self.value_of_index(self.index(state))
    }

    /// Sixteen bits from those of row `row` on (rows count around and around); the state is the first `L` of them.
    pub fn state(self, codes: &[u8], row: usize) -> u16 {
        let ahead = 16usize.div_ceil(usize::from(self.bits));
        (row..row + ahead).rev().fold(0, |state, row| self.push(state, codes[row % codes.len()]))
    }

    /// The state of a row from that of the next and its own bits.
    fn push(self, state: u16, code: u8) -> u16 {
        state << self.bits | u16::from(code)
    }

    /// The values of a whole column from each row's own bits.
    pub fn decode(self, codes: &[u8], values: &mut [i8]) {
        let mut state = self.state(codes, 0);
        for (code, value) in codes.iter().zip(values).rev() {
            state = self.push(state, *code);
            *value = self.value(state);
        }
    }
}
