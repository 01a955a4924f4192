//! Memory that is kept from one product to the next.

use crate::error::Result;
use std::sync::Arc;

/// One memory, and those that were too small. They are never freed: a graph that was captured with one may be run again. All of them
/// together are smaller than the last, as each is twice as large as the one before or more.
#[derive(Debug)]
pub struct Kept<M> {
    memories: Vec<Arc<M>>,
    bytes: usize,
}

impl<M> Default for Kept<M> {
    fn default() -> Self {
        Self { memories: Vec::new(), bytes: 0 }
    }
}

impl<M> Kept<M> {
    /// The memory, of `bytes` at least; `allocate` makes one of so many where there is none yet.
    ///
    /// # Errors
    /// Those of `allocate`.
    pub fn get(&mut self, bytes: usize, allocate: impl FnOnce(usize) -> Result<M>) -> Result<Arc<M>> {
        /// Products of common models need no more.
        const LEAST: usize = 1 << 20;
        match self.memories.last() {
            Some(memory) if bytes <= self.bytes => Ok(memory.clone()),
            _ => {
                let larger = bytes.max(2 * self.bytes).max(LEAST);
                let memory = Arc::new(allocate(larger)?);
                self.memories.push(memory.clone());
                self.bytes = larger;
                Ok(memory)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_memory_is_kept_until_more_is_asked_for_and_then_still() {
        let (mut kept, mut sizes) = (Kept::default(), Vec::new());
        let memories: Vec<_> = [3, 1 << 20, 7, (1 << 20) + 1, 5 << 20, 2 << 20]
            .into_iter()
            .map(|bytes| {
                let memory = kept.get(bytes, |bytes| {
                    sizes.push(bytes);
                    Ok(bytes)
                });
                memory.unwrap()
            })
            .collect();
        assert_eq!(sizes, [1 << 20, 2 << 20, 5 << 20]);
        assert!(Arc::ptr_eq(&memories[0], &memories[2]) && Arc::ptr_eq(&memories[4], &memories[5]));
        drop(memories);
        assert!(kept.memories.iter().all(|memory| Arc::strong_count(memory) == 1));
        assert_eq!(kept.memories.len(), 3);
    }

    #[test]
    fn a_card_that_has_no_more_keeps_what_it_has() {
        let mut kept = Kept::default();
        kept.get(1, Ok).unwrap();
        kept.get(2 << 20, |_| Err(Error::config("no memory left"))).unwrap_err();
        assert_eq!(*kept.get(1, |_| Err(Error::config("asked for again"))).unwrap(), 1 << 20);
    }
}
