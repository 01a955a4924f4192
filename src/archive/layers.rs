//! Calibrated conversion layer by layer: matrices are encoded in the order in which a forward comes to them, and written in that
//! of the file. What is encoded is kept, so that a run that was interrupted is gone on with.

use super::options::CompressOptions;
use super::parts::Made;
use super::progress::ProgressReporter;
use super::stage::Kept;
use super::work::{Matrices, Plan, Work};
use super::{Archive, beside};
use crate::models::Walk;
use crate::{Encoder, Error, RbeTensor, Result};
use rbe_core::cpu::level;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;

/// Payloads that are kept, and what is reported of each matrix.
pub(super) struct Payloads {
    kept: Kept,
    made: Vec<Option<Made>>,
}

impl Payloads {
    /// The payload of a matrix, and what is reported of it.
    ///
    /// # Errors
    /// It was not encoded, or is read twice; the system's.
    pub(super) fn read(&mut self, name: &str, at: usize) -> Result<(Vec<u8>, Made)> {
        let Some(made) = self.made[at].take() else {
            return Err(Error::config("was not encoded, or is written twice").in_tensor(name));
        };
        Ok((self.kept.read(name)?, made))
    }

    /// A matrix of which the payload is kept.
    ///
    /// # Errors
    /// The payload is none; the system's.
    fn tensor(&mut self, name: &str, at: usize) -> Result<RbeTensor> {
        let tensor = RbeTensor::from_bytes(&self.kept.read(name)?).map_err(|e| {
            let reason = format!("{}; remove the file to begin anew", e.in_tensor(name));
            Error::file(self.kept.path(), reason)
        })?;
        self.made[at] = Some(Made::of_tensor(&tensor));
        Ok(tensor)
    }
}

/// What makes a conversion the same as another, as hexadecimal digits: then what one has encoded the other may use.
pub(super) fn identity(
    archive: &Archive,
    encoder: &Encoder,
    options: &CompressOptions,
    walk: &Walk,
) -> Result<String> {
    let mut digest = Sha256::new();
    let CompressOptions { selection, overwrite: _, plain } = options;
    let settings = format!(
        "{} {:?}\n{:?}\n{selection:?} plain {plain}\n{}\n",
        env!("CARGO_PKG_VERSION"),
        level(),
        encoder.config(),
        walk.settings(),
    );
    digest.update(settings);
    walk.tokens_of_windows()?.iter().for_each(|tokens| {
        digest.update((tokens.len() as u64).to_le_bytes());
        tokens.iter().for_each(|token| digest.update(token.to_le_bytes()));
    });
    let mut add = |path: &Path| -> std::io::Result<()> {
        let mut file = File::open(path)?;
        digest.update(file.metadata()?.len().to_le_bytes());
        std::io::copy(&mut file, &mut digest).map(drop)
    };
    let config = beside::config_file(archive);
    for path in archive.files().chain(config.as_deref()) {
        add(path).map_err(|e| Error::io(path, e))?;
    }
    Ok(digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Encodes all matrices as the plan says: first those that the walk does not come to, then step by step what each step shows, and
/// at last what no token came to. What is kept already is not encoded again: the walk goes through it, and no products are summed up.
pub(super) fn encode(
    work: &mut Work,
    matrices: &Matrices,
    plan: &[Plan],
    (mut walk, kept): (Walk, Kept),
    pace: &mut ProgressReporter,
) -> Result<Payloads> {
    let before: BTreeSet<&str> = matrices.names.iter().copied().filter(|name| kept.has(name)).collect();
    let mut payloads = Payloads { kept, made: vec![None; plan.len()] };
    let plain = work.options.plain;
    let mut make = |at: usize, statistics: Option<&_>, walk: &mut Walk| -> Result<()> {
        let (name, weights) = (matrices.names[at], matrices.elements(at));
        if before.contains(name) {
            pace.tell_of_kept(name, weights)?;
        } else {
            pace.tell(Some((name, weights)))?;
            let tensor = work.encode(matrices, at, &plan[at], statistics)?;
            payloads.kept.keep(name, &Made::of(&tensor, plain)?.0)?;
        }
        // As it is read back, whoever has written it.
        walk.put(name, &matrices.as_stored(at, payloads.tensor(name, at)?)?)
    };
    let met: BTreeSet<String> = walk.names().into_iter().collect();
    let all = || 0..matrices.names.len();
    for at in all().filter(|at| !met.contains(matrices.names[*at])) {
        make(at, None, &mut walk)?;
    }
    let mut left: BTreeSet<usize> = all().filter(|at| met.contains(matrices.names[*at])).collect();
    while let Some(names) = walk.go_on()? {
        let of_step: Vec<usize> = names.iter().filter_map(|name| matrices.position(name)).collect();
        if of_step.iter().all(|at| before.contains(matrices.names[*at])) {
            for at in of_step.into_iter().filter(|at| left.remove(at)) {
                make(at, None, &mut walk)?;
            }
            continue;
        }
        for (name, statistics) in walk.seen()? {
            if let Some(at) = matrices.position(&name).filter(|at| left.remove(at)) {
                make(at, Some(&statistics), &mut walk)?;
            }
        }
    }
    for at in left {
        make(at, None, &mut walk)?;
    }
    Ok(payloads)
}
