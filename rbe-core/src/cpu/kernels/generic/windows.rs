//! The trellis code by windows of four bits, for sets that look sixteen bytes up in a table of sixteen.
//!
//! The index of a state is linear, and its bits lie so that it needs few look-ups: a window is the four bits that begin with a
//! row's own, and the windows of some rows ahead are the state's other bits.
//!
//! ```text
//!     level  = levels[q0 ^ mix(q at 8)]      value = level + offset
//!     offset = offsets[q at 4]               three bits a row: levels[q0 ^ mix(q at 6)], offsets[q at 3 ^ mix(q at 9)]
//! ```
//!
//! and where a state has more than twelve bits, `mix(q at 12)` in both. From four bits on the offset counts twice at two levels.

use super::decode::PerCode;
use crate::codec::term::trellis::{Code, MAX_BITS};
use crate::cpu::kernels::isa::Bytes;
use crate::cpu::kernels::unroll::{each, per_code};
use crate::cpu::layout::planes::Line;
use crate::cpu::layout::trellis::{BIAS, Bundle, PERIOD};

/// Tables by the value of a window.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct WindowTables {
    /// `level + BIAS` less what is in the offsets.
    levels: [u8; 16],
    /// 255 at levels where the offset counts twice.
    doubled: [u8; 16],
    /// Offsets from the least on.
    offsets: [u8; 16],
    /// What later windows contribute to the level's and to the offset's.
    mix_level: [[u8; 16]; 2],
    mix_offset: [[u8; 16]; 2],
}

static WINDOW_TABLES: PerCode<WindowTables> = per_code!(
    window_tables,
    WindowTables {
        levels: [0; 16],
        doubled: [0; 16],
        offsets: [0; 16],
        mix_level: [[0; 16]; 2],
        mix_offset: [[0; 16]; 2],
    }
);

/// Rows ahead of a row whose windows its state has.
pub(in crate::cpu) const fn rows_ahead(bits: usize, state: usize) -> usize {
    if state > 12 {
        12 / bits
    } else if bits == 3 {
        3
    } else {
        8 / bits
    }
}

const fn window_tables(code: Code) -> WindowTables {
    let windows = code.windows();
    let mut tables = WindowTables {
        levels: [0; 16],
        doubled: [0; 16],
        offsets: [0; 16],
        mix_level: windows.mix_level,
        mix_offset: windows.mix_offset,
    };
    let mut least = 0;
    let mut window = 0;
    while window < 16 {
        least = if windows.offsets[window] < least { windows.offsets[window] } else { least };
        window += 1;
    }
    window = 0;
    while window < 16 {
        let doubled = windows.doubled[window];
        tables.doubled[window] = if doubled { 255 } else { 0 };
        let least_there = if doubled { 2 * least } else { least };
        tables.levels[window] = (windows.levels[window] as i32 + BIAS + least_there as i32) as u8;
        tables.offsets[window] = (windows.offsets[window] - least) as u8;
        window += 1;
    }
    tables
}

/// Look-ups in tables of sixteen bytes, and windows of four bits.
pub(in crate::cpu) trait Windows: Bytes {
    /// As [`load`](Bytes::load), each lane's bytes those of the lane that follows it in its column, which fills so many; after the
    /// last comes the first.
    fn load_next(self, line: &Line, part: usize, lanes: usize) -> Self::Register;
    /// Writes a part of a line.
    fn store(self, bytes: Self::Register, line: &mut Line, part: usize);
    /// A table, for [`look_up`](Self::look_up).
    fn table(self, table: &[u8; 16]) -> Self::Register;
    /// The table's bytes at indices below 16.
    fn look_up(self, table: Self::Register, index: Self::Register) -> Self::Register;
    /// Four bits of each byte from bit `at` on, the last of them those that begin the next.
    fn window_across(self, bytes: Self::Register, next: Self::Register, at: usize) -> Self::Register;
    /// Where either has a bit, but not both.
    fn xor(self, a: Self::Register, b: Self::Register) -> Self::Register;
    /// Sums of bytes.
    fn add(self, a: Self::Register, b: Self::Register) -> Self::Register;
}

/// [`WindowTables`] in registers.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct WindowCode<I: Windows, const BITS: usize, const STATE: usize> {
    isa: I,
    levels: I::Register,
    doubled: I::Register,
    offsets: I::Register,
    mix_level: [I::Register; 2],
    mix_offset: [I::Register; 2],
}

impl<I: Windows, const BITS: usize, const STATE: usize> WindowCode<I, BITS, STATE> {
    #[inline(always)]
    pub(in crate::cpu) fn new(isa: I, code: Code) -> Self {
        let tables = WINDOW_TABLES.of(code);
        Self {
            isa,
            levels: isa.table(&tables.levels),
            doubled: isa.table(&tables.doubled),
            offsets: isa.table(&tables.offsets),
            mix_level: [isa.table(&tables.mix_level[0]), isa.table(&tables.mix_level[1])],
            mix_offset: [isa.table(&tables.mix_offset[0]), isa.table(&tables.mix_offset[1])],
        }
    }

    /// The window of a row.
    #[inline(always)]
    pub(in crate::cpu) fn window(self, bytes: &PeriodBytes<I>, row: usize) -> I::Register {
        let (byte, at) = (BITS * row / 8, BITS * row % 8);
        let here = bytes.get::<BITS>(byte);
        if at <= 4 {
            let here = if at == 0 { here } else { self.isa.shift_right(here, at) };
            self.isa.and(here, self.isa.splat(0x0f))
        } else {
            self.isa.window_across(here, bytes.get::<BITS>(byte + 1), at)
        }
    }

    /// The codes of a row, by its window and those of the rows ahead of it.
    #[inline(always)]
    pub(in crate::cpu) fn codes(
        self,
        windows: &[I::Register; PERIOD + MOST_AHEAD],
        row: usize,
    ) -> I::Register {
        let isa = self.isa;
        let at = |start: u8| windows[row + usize::from(start) / BITS];
        let [level_starts, offset_starts] = const { Code::of_bits(BITS).windows().starts };
        let mut level = isa.xor(at(0), isa.look_up(self.mix_level[0], at(level_starts[1])));
        let mut offset = at(offset_starts[0]);
        if BITS == 3 {
            offset = isa.xor(offset, isa.look_up(self.mix_offset[0], at(offset_starts[1])));
        }
        if STATE > 12 {
            level = isa.xor(level, isa.look_up(self.mix_level[1], at(level_starts[2])));
            offset = isa.xor(offset, isa.look_up(self.mix_offset[1], at(offset_starts[2])));
        }
        let offset = isa.look_up(self.offsets, offset);
        let mut code = isa.add(isa.look_up(self.levels, level), offset);
        if BITS == usize::from(MAX_BITS) {
            code = isa.add(code, isa.and(offset, isa.look_up(self.doubled, level)));
        }
        code
    }
}

/// The most rows ahead: those of twelve bits, one a row.
pub(in crate::cpu) const MOST_AHEAD: usize = 12;

/// A part of the lines of one register's groups, and of the two bytes that follow each period.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct PeriodBytes<'a, I: Windows> {
    isa: I,
    lines: &'a [Line],
    part: usize,
    following: [I::Register; 2],
}

impl<'a, I: Windows> PeriodBytes<'a, I> {
    #[inline(always)]
    pub(in crate::cpu) fn new(isa: I, bundle: Bundle<'a>, bits: usize, part: usize) -> Self {
        if bundle.packing.is_full() {
            return Self::of_full(isa, &bundle.lines[..2 * bits], part, bundle.packing.tiles());
        }
        let (lines, after) = bundle.lines.split_at(2 * bits);
        Self { isa, lines, part, following: [isa.load(&after[0], part), isa.load(&after[1], part)] }
    }

    /// [`new`](Self::new) of columns that fill so many lanes.
    #[inline(always)]
    pub(in crate::cpu) fn of_full(isa: I, lines: &'a [Line], part: usize, lanes: usize) -> Self {
        let following = [isa.load_next(&lines[0], part, lanes), isa.load_next(&lines[1], part, lanes)];
        Self { isa, lines, part, following }
    }

    #[inline(always)]
    fn get<const BITS: usize>(&self, byte: usize) -> I::Register {
        if byte < 2 * BITS {
            self.isa.load(&self.lines[byte], self.part)
        } else {
            self.following[byte - 2 * BITS]
        }
    }
}

/// The codes of one register's groups: `codes[s * stride]` has row `s` of each lane's period.
#[inline(always)]
pub(in crate::cpu) fn decode_bundle<I: Windows, const BITS: usize, const STATE: usize>(
    isa: I,
    bundle: Bundle,
    codes: &mut [Line],
    stride: usize,
) {
    assert!(codes.len() > (PERIOD - 1) * stride && bundle.lines.len() >= 2 * BITS);
    let code = WindowCode::<I, BITS, STATE>::new(isa, bundle.code);
    for part in 0..I::PARTS {
        let bytes = PeriodBytes::new(isa, bundle, BITS, part);
        let mut windows = [code.window(&bytes, 0); PERIOD + MOST_AHEAD];
        each!(ROW in [1 2 3 4 5 6 7 8 9 10 11] if ROW < rows_ahead(BITS, STATE) {
            windows[ROW] = code.window(&bytes, ROW);
        });
        each!(ROW in [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] {
            let ahead = const { ROW + rows_ahead(BITS, STATE) };
            windows[ahead] = code.window(&bytes, ahead);
            // SAFETY: there are as many lines, by the assertion above.
            let line = unsafe { codes.get_unchecked_mut(ROW * stride) };
            isa.store(code.codes(&windows, ROW), line, part);
        });
    }
}
