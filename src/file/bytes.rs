//! The bytes of a file, mapped where the system has memory maps, or held in memory; shared, and cut into parts without a copy.

#[cfg(any(unix, windows))]
use memmap2::Mmap;
use std::fs::File;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// A part of a file's bytes, or all of them. Clones and [parts](Self::part) share the map, which lasts as long as one of them.
#[derive(Clone)]
pub(crate) struct Bytes {
    whole: Arc<Whole>,
    range: Range<usize>,
}

enum Whole {
    #[cfg(any(unix, windows))]
    Mapped(Mmap),
    Held(Vec<u8>),
}

impl Whole {
    fn bytes(&self) -> &[u8] {
        match self {
            #[cfg(any(unix, windows))]
            Self::Mapped(map) => map,
            Self::Held(bytes) => bytes,
        }
    }
}

impl Bytes {
    /// All bytes of a file.
    ///
    /// # Errors
    /// The system's.
    #[cfg(any(unix, windows))]
    pub(crate) fn of(file: &File) -> std::io::Result<Self> {
        // SAFETY: the map is read only. That nobody writes over the file or truncates it meanwhile is the caller's part, as
        // with every memory map; this crate replaces files by renaming, never in place.
        #[allow(unsafe_code)]
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self { range: 0..map.len(), whole: Arc::new(Whole::Mapped(map)) })
    }

    /// Where there are no memory maps the file is read.
    #[cfg(not(any(unix, windows)))]
    pub(crate) fn of(mut file: &File) -> std::io::Result<Self> {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes)?;
        Ok(bytes.into())
    }

    /// Those of a range in these.
    ///
    /// # Panics
    /// When there are not so many.
    pub(crate) fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len(), "{range:?} of {} bytes", self.len());
        let first = self.range.start;
        Self { whole: self.whole.clone(), range: first + range.start..first + range.end }
    }

    /// Gives the memory that the map takes back to the system, all of it, for pages come into memory with others that are looked at; who
    /// looks at bytes again has them read again. What is held stays.
    pub(crate) fn give_back(&self) {
        #[cfg(unix)]
        if let Whole::Mapped(map) = &*self.whole {
            // SAFETY: the map is read only, so its pages hold nothing but what the file has. A system that refuses the advice
            // does without it.
            #[allow(unsafe_code)]
            let advice = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
            drop(advice);
        }
    }
}

impl From<Vec<u8>> for Bytes {
    /// Takes them over.
    fn from(mut bytes: Vec<u8>) -> Self {
        bytes.shrink_to_fit();
        Self { range: 0..bytes.len(), whole: Arc::new(Whole::Held(bytes)) }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.whole.bytes()[self.range.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn parts_are_where_they_lie() {
        let content: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        for bytes in [Bytes::of(&file).unwrap(), Bytes::from(content.clone())] {
            let part = bytes.part(5000..90_000);
            let inner = part.part(1..60_001);
            drop((bytes, part.clone()));
            for _ in 0..2 {
                assert_eq!((&*part, &*inner), (&content[5000..90_000], &content[5001..65_001]));
                part.give_back();
            }
            assert!(part.part(85_000..85_000).is_empty());
            assert!(std::panic::catch_unwind(|| part.part(0..85_001)).is_err());
        }
    }
}
