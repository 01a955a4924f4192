//! The code by windows of four bits: a row's own bits and some that follow, and the windows of rows ahead of it.

use super::code::Code;

/// What windows of a state say of its value, each table by the window's four bits:
///
/// ```text
///     l = window at starts[0][0]  ^  mix_level[0][at starts[0][1]]   ^  mix_level[1][at starts[0][2]]
///     o = window at starts[1][0]  ^  mix_offset[0][at starts[1][1]]  ^  mix_offset[1][at starts[1][2]]
///     value = levels[l] + offsets[o], or levels[l] + 2 offsets[o] where doubled[l]
/// ```
///
/// A window that begins with bit 12 counts for states of more than twelve bits, the second of an offset with three bits a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// The bits of a state that windows begin with: those of levels, and those of offsets.
    pub starts: [[u8; 3]; 2],
    /// Levels.
    pub levels: [i8; 16],
    /// Levels at which the offset counts twice.
    pub doubled: [bool; 16],
    /// Offsets.
    pub offsets: [i8; 16],
    /// What the later windows change a level's to.
    pub mix_level: [[u8; 16]; 2],
    /// What the later windows change an offset's to.
    pub mix_offset: [[u8; 16]; 2],
}

impl Code {
    /// The code by windows.
    pub const fn windows(self) -> Windows {
        let book = self.codebook();
        let starts = if self.bits() == 3 { [[0, 6, 12], [3, 9, 12]] } else { [[0, 8, 12], [4, 4, 12]] };
        let mut windows = Windows {
            starts,
            levels: [0; 16],
            doubled: [false; 16],
            offsets: [0; 16],
            mix_level: [[0; 16]; 2],
            mix_offset: [[0; 16]; 2],
        };
        let mut window = 0;
        while window < 16 {
            let level = self.half_index(0, starts[0][0], window, 16);
            windows.levels[window as usize] = book.levels[level as usize];
            windows.doubled[window as usize] = book.doubles && (level == 0 || level == 15);
            let offset = self.half_index(1, starts[1][0], window, 16);
            windows.offsets[window as usize] = book.offsets[offset as usize];
            let mut n = 0;
            while n < 2 {
                // Three bits a row: the windows overlap, and bit 12 is the last's.
                let end = if n == 0 { 12 } else { 16 };
                windows.mix_level[n][window as usize] =
                    self.window_of(0, starts[0][0], self.half_index(0, starts[0][n + 1], window, end));
                if starts[1][n + 1] != starts[1][0] {
                    windows.mix_offset[n][window as usize] =
                        self.window_of(1, starts[1][0], self.half_index(1, starts[1][n + 1], window, end));
                }
                n += 1;
            }
            window += 1;
        }
        windows
    }

    /// What a window's bits below `end` contribute to the lower half of the index or to the upper.
    const fn half_index(self, half: u32, start: u8, window: u8, end: u8) -> u8 {
        let state = (window as u32) << start & ((1 << end) - 1);
        self.index(state as u16) >> (4 * half) & 15
    }

    /// The first window that contributes what is wanted.
    const fn window_of(self, half: u32, start: u8, wanted: u8) -> u8 {
        let mut window = 0;
        while self.half_index(half, start, window, 16) != wanted {
            window += 1;
        }
        window
    }
}
