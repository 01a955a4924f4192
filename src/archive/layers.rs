//! Calibrated conversion layer by layer: matrices are encoded in the order in which a forward comes to them, and written in that
//! of the file.

use super::parts::Made;
use super::progress::ProgressReporter;
use super::work::{Matrices, Plan, Work};
use crate::models::Walk;
use crate::{Error, RbeTensor, Result};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

/// What the file of payloads, which has no name, is called in errors.
const NAME: &str = "the file of payloads";

/// Payloads in a file, each written once and read once.
pub(super) struct Payloads {
    file: File,
    /// Of each matrix where its payload lies and how long it is.
    places: Vec<Option<(u64, usize, Made)>>,
    end: u64,
}

impl Payloads {
    fn new(file: File, matrices: usize) -> Self {
        Self { file, places: vec![None; matrices], end: 0 }
    }

    fn keep(&mut self, at: usize, tensor: &RbeTensor, plain: bool) -> Result<()> {
        let (payload, made) = Made::of(tensor, plain)?;
        self.file.write_all(&payload).map_err(|e| Error::io(NAME, e))?;
        self.places[at] = Some((self.end, payload.len(), made));
        self.end += payload.len() as u64;
        Ok(())
    }

    /// The payload of a matrix, and what is reported of it.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn read(&mut self, at: usize) -> Result<(Vec<u8>, Made)> {
        let Some((start, length, made)) = self.places[at].take() else {
            return Err(Error::config("a matrix was not encoded, or is written twice"));
        };
        let mut payload = vec![0; length];
        let read = self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.read_exact(&mut payload));
        read.map_err(|e| Error::io(NAME, e))?;
        Ok((payload, made))
    }
}

/// Encodes all matrices as the plan says: first those that the walk does not come to, then step by step what each step shows, and
/// at last what no token came to.
pub(super) fn encode(
    work: &mut Work,
    matrices: &Matrices,
    plan: &[Plan],
    (mut walk, file): (Walk, File),
    pace: &mut ProgressReporter,
) -> Result<Payloads> {
    let mut payloads = Payloads::new(file, plan.len());
    let plain = work.options.plain;
    let mut make = |at: usize, statistics: Option<&_>, walk: &mut Walk| -> Result<()> {
        let name = matrices.names[at];
        pace.tell(Some((name, matrices.elements(at))))?;
        let tensor = work.encode(matrices, at, &plan[at], statistics)?;
        payloads.keep(at, &tensor, plain)?;
        walk.put(name, &matrices.as_stored(at, tensor)?)
    };
    let met: BTreeSet<String> = walk.names().into_iter().collect();
    let all = || 0..matrices.names.len();
    for at in all().filter(|at| !met.contains(matrices.names[*at])) {
        make(at, None, &mut walk)?;
    }
    let mut left: BTreeSet<usize> = all().filter(|at| met.contains(matrices.names[*at])).collect();
    let at = |name: &str| matrices.position(name);
    while let Some(seen) = walk.step(|name| at(name).is_some())? {
        for (name, statistics) in seen {
            if let Some(at) = at(&name).filter(|at| left.remove(at)) {
                make(at, Some(&statistics), &mut walk)?;
            }
        }
    }
    for at in left {
        make(at, None, &mut walk)?;
    }
    Ok(payloads)
}
