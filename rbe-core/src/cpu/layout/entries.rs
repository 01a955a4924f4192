//! Entries of a sparse block, and batches in lanes that they multiply.

use super::lanes::Lanes;

/// Where an entry of a block goes to and where it comes from: its row and column, or the other way around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) struct Place {
    pub to: u8,
    pub from: u8,
}

impl Place {
    pub(in crate::cpu) fn new(row: u8, col: u8, transposed: bool) -> Self {
        if transposed { Self { to: col, from: row } } else { Self { to: row, from: col } }
    }
}

/// A block's part of a batch that lies in lanes, group after group of sixteen vectors.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct LaneInput<'a> {
    /// Begins at the block's first element of the first group.
    pub lanes: &'a [Lanes],
    /// Elements from one group to the next.
    pub stride: usize,
    /// Number of groups.
    pub groups: usize,
}

/// A block's entries sorted by where they go to.
#[derive(Default)]
pub(in crate::cpu) struct SortedEntries {
    /// Where the entries of each target begin; one more than there are targets.
    starts: Vec<u32>,
    /// Where the next entry of each target goes, while they are sorted.
    next: Vec<u32>,
    /// Where an entry comes from, and its value.
    entries: Vec<(u32, f32)>,
}

impl SortedEntries {
    /// Sorts other entries; those of one target keep their order.
    pub(in crate::cpu) fn sort(&mut self, places: &[Place], values: &[f32], targets: usize) {
        let Self { starts, next, entries } = self;
        next.clear();
        next.resize(targets, 0);
        places.iter().for_each(|place| next[usize::from(place.to)] += 1);
        starts.clear();
        let mut end = 0;
        for next in next.iter_mut() {
            starts.push(end);
            end += std::mem::replace(next, end);
        }
        starts.push(end);
        entries.resize(places.len(), (0, 0.0));
        for (place, value) in places.iter().zip(values) {
            let at = &mut next[usize::from(place.to)];
            entries[*at as usize] = (place.from.into(), *value);
            *at += 1;
        }
    }

    /// Targets that have entries, and these.
    #[inline(always)]
    pub(in crate::cpu) fn by_target(&self) -> impl Iterator<Item = (usize, &[(u32, f32)])> {
        let ranges = self.starts.windows(2).enumerate().filter(|(_, range)| range[0] < range[1]);
        ranges.map(|(to, range)| (to, &self.entries[range[0] as usize..range[1] as usize]))
    }
}
