//! Outputs that appear whole or not at all: assembled beside the destination, synced, and given their name in one step.

mod kept;
mod rename;
mod scratch;

pub(super) use kept::Kept;
pub use kept::kept_layers;
pub use scratch::{Scratch, abandon_outputs};

use super::{Archive, INDEX_FILE, MODEL_FILE};
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// The files of a Hugging Face model directory that travel along when its weights are compressed.
pub const COMPANIONS: [&str; 17] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "README",
    "README.md",
];

/// One output under way, assembled in a [`Scratch`] directory beside its destination. Dropped before
/// [`commit`](Self::commit), it leaves nothing behind but what a calibrated conversion keeps to go on with (hidden files
/// `.NAME.*.layers`, [`kept_layers`]), which goes when the output is there.
///
/// Every path that writes an output goes through here, so that all keep the same promises: what is at the destination stays
/// there, whole, until the new output takes its name in one step; only what `overwrite` allows is replaced, and never a
/// directory that holds anything but a compressed model, an input of the same run, a symbolic link, a device, a FIFO or a
/// socket. All but the last step is checked before the work begins.
///
/// Where the system cannot exchange names (`renameat2` on Linux, `renamex_np` on macOS), a directory is replaced in two steps;
/// if the process is killed between them, the next one that writes the same output puts the old directory back.
#[derive(Debug)]
pub struct Stage {
    scratch: Scratch,
    destination: PathBuf,
    overwrite: bool,
    kind: Kind,
    /// Files of what is kept, to be removed when the output is there.
    kept: Mutex<BTreeSet<PathBuf>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    File,
    Directory,
}

/// What an output is called in its scratch directory.
const OUTPUT: &str = "output";

impl Stage {
    /// Begins a file. `inputs` are the files and directories that the work reads; none of them is ever replaced.
    ///
    /// # Errors
    /// Something is there that is not to be replaced, or nothing can be written beside it.
    pub fn file(destination: impl AsRef<Path>, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        Self::begin(destination.as_ref(), overwrite, inputs, Kind::File)
    }

    /// Begins a model directory; as [`file`](Self::file).
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub fn directory(destination: impl AsRef<Path>, overwrite: bool, inputs: &[&Path]) -> Result<Self> {
        let stage = Self::begin(destination.as_ref(), overwrite, inputs, Kind::Directory)?;
        fs::create_dir(stage.path()).map_err(|e| Error::io(&stage.destination, e))?;
        Ok(stage)
    }

    /// Begins a directory for a model that was opened as a directory, a file for one that was a file; `others` are inputs
    /// beside the model.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub fn like(
        input: &Archive,
        destination: impl AsRef<Path>,
        overwrite: bool,
        others: &[&Path],
    ) -> Result<Self> {
        let inputs: Vec<&Path> = inputs(input).chain(others.iter().copied()).collect();
        match input.path().is_dir() {
            true => Self::directory(destination, overwrite, &inputs),
            false => Self::file(destination, overwrite, &inputs),
        }
    }

    fn begin(destination: &Path, overwrite: bool, inputs: &[&Path], kind: Kind) -> Result<Self> {
        let parent = parent_of(destination);
        let Some(name) = destination.file_name() else {
            return Err(Error::file(destination, "is no name for an output; give the output one of its own"));
        };
        if !parent.is_dir() {
            let reason = format!("cannot be created: there is no directory {}", parent.display());
            return Err(Error::file(destination, reason));
        }
        // Without a slash at the end, which would follow a link.
        let destination = parent.join(name);
        scratch::sweep(&destination);
        refuse_kind(&destination, &destination, kind)?;
        refuse_inputs(&destination, inputs)?;
        if !overwrite && destination.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: destination });
        }
        refuse_foreign(&destination, &destination, kind)?;
        let scratch = Scratch::without_sweep(&destination)?;
        Ok(Self { scratch, destination, overwrite, kind, kept: Mutex::default() })
    }

    /// Where to write the output: a file that is not there yet, or a directory that is there and empty.
    pub fn path(&self) -> PathBuf {
        self.scratch.path().join(OUTPUT)
    }

    /// The name that the output is to have.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// A new file for the weights; what was written before is given up.
    pub(super) fn model(&self) -> Result<File> {
        let path = match self.kind {
            Kind::File => self.path(),
            Kind::Directory => self.path().join(MODEL_FILE),
        };
        self.create(&path)
    }

    /// What a run of the conversion that these hexadecimal digits identify has done, to go on with and to add to.
    ///
    /// # Errors
    /// Another run of it is under way; the system's.
    pub(super) fn kept(&self, identity: &str) -> Result<Kept> {
        let path = kept::place(&self.destination, identity);
        let kept = Kept::open(path.clone(), identity)?;
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
        Ok(kept)
    }

    /// Files beside the destination of other conversions to it that did not finish: of other settings, another text or another model.
    pub fn kept_by_others(&self) -> Vec<PathBuf> {
        let own = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept::places(&self.destination).into_iter().filter(|path| !own.contains(path)).collect()
    }

    fn create(&self, path: &Path) -> Result<File> {
        // Removed and not emptied: who has the old file open keeps it whole.
        let removed = match fs::remove_file(path) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        };
        removed.and_then(|()| File::create_new(path)).map_err(|e| Error::io(&self.destination, e))
    }

    /// Copies what lies beside the weights; returns the names of the files copied.
    pub(super) fn copy_companions(&self, from: &Path) -> Result<Vec<String>> {
        if self.kind == Kind::File {
            return Ok(vec![]);
        }
        let mut copied = vec![];
        for name in COMPANIONS {
            let (source, target) = (from.join(name), self.path().join(name));
            if source.is_file() {
                drop(self.create(&target)?);
                fs::copy(&source, &target).map_err(|e| Error::io(&source, e))?;
                copied.push(name.to_owned());
            }
        }
        Ok(copied)
    }

    /// Syncs what was written and gives it its name.
    ///
    /// # Errors
    /// Nothing was written; something came to the destination meanwhile that is not to be replaced; on Windows, a model is loaded
    /// from what is to be replaced; the system's. The destination is then as it was.
    pub fn commit(self) -> Result<()> {
        let (output, Self { scratch, destination, overwrite, kind, kept }) = (self.path(), self);
        let failed = |e| Error::io(&destination, e);
        match kind {
            Kind::File => sync(&output).map_err(failed)?,
            Kind::Directory => {
                for entry in fs::read_dir(&output).map_err(failed)? {
                    sync(&entry.map_err(failed)?.path()).map_err(failed)?;
                }
                sync_directory(&output).map_err(failed)?;
            }
        }
        scratch.finish(&destination, || {
            place(&output, &destination, overwrite, kind)?;
            sync_directory(parent_of(&destination)).map_err(failed)
        })?;
        kept.into_inner().unwrap_or_else(PoisonError::into_inner).iter().for_each(|path| kept::remove(path));
        Ok(())
    }
}

/// Gives `output` the name `destination`.
fn place(output: &Path, destination: &Path, overwrite: bool, kind: Kind) -> Result<()> {
    let failed = |e| Error::io(destination, e);
    match rename::put(output, destination) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(failed(e)),
        Err(_) if !overwrite => return Err(Error::Exists { path: destination.to_owned() }),
        Err(_) => {}
        Ok(()) => return Ok(()),
    }
    let refuse = |path| refuse_kind(path, destination, kind).and(refuse_foreign(path, destination, kind));
    refuse(destination)?;
    match rename::exchange(output, destination) {
        Ok(()) => {
            // What was there is looked at once more, now that nobody else can reach it by its name, before it goes.
            refuse(output).or_else(|refused| {
                rename::exchange(output, destination).map_err(failed)?;
                Err(refused)
            })
        }
        Err(e) if e.kind() != ErrorKind::Unsupported => Err(failed(e)),
        Err(_) => {
            let replaced = match kind {
                Kind::File => rename::replace_file(output, destination),
                Kind::Directory => rename::replace_directory(output, destination),
            };
            let in_use = if cfg!(windows) { &IN_USE[..] } else { &[] };
            replaced.map_err(|e| not_replaced(destination, e, in_use))
        }
    }
}

/// What Windows says of a file that somebody has open or mapped: access denied, a sharing violation, a mapped section.
const IN_USE: [i32; 3] = [5, 32, 1224];

/// The error of a destination that was not replaced; `in_use` are the system's errors that say that somebody has it.
fn not_replaced(destination: &Path, error: std::io::Error, in_use: &[i32]) -> Error {
    match error.raw_os_error().is_some_and(|code| in_use.contains(&code)) {
        true => Error::file(
            destination,
            format!(
                "cannot be replaced while it is in use ({error}): a model that is loaded from it, here or in another program, \
                 keeps the file; drop the model first, or choose another output"
            ),
        ),
        false => Error::io(destination, error),
    }
}

/// What a conversion reads of a model: its files, and the directory that they lie in.
pub(super) fn inputs(archive: &Archive) -> impl Iterator<Item = &Path> {
    archive.files().chain([archive.path()])
}

/// To write over an input would be to lose it.
fn refuse_inputs(destination: &Path, inputs: &[&Path]) -> Result<()> {
    let Ok(there) = destination.canonicalize() else { return Ok(()) };
    let name = there.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let is_companion = COMPANIONS.contains(&name) || name == INDEX_FILE;
    let inputs: Vec<PathBuf> = inputs.iter().filter_map(|input| input.canonicalize().ok()).collect();
    if inputs.contains(&there) {
        return Err(Error::file(destination, "is the input itself; choose another output"));
    }
    for input in inputs {
        if input.starts_with(&there) {
            return Err(Error::file(destination, "holds an input; choose another output"));
        }
        // A model's configuration is read too.
        let beside = if input.is_dir() { Some(&*input) } else { input.parent() };
        if is_companion && there.parent() == beside {
            return Err(Error::file(destination, "is a part of the input; choose another output"));
        }
    }
    Ok(())
}

/// Refuses to replace what is no file, or no directory. `found` is looked at, `destination` is the name in errors.
fn refuse_kind(found: &Path, destination: &Path, kind: Kind) -> Result<()> {
    let Ok(there) = found.symlink_metadata() else { return Ok(()) };
    let there = there.file_type();
    let reason = match kind {
        _ if there.is_symlink() => {
            "is a symbolic link, and those are not replaced; name what it leads to, or remove it".to_owned()
        }
        Kind::File if there.is_file() => return Ok(()),
        Kind::Directory if there.is_dir() => return Ok(()),
        Kind::File if there.is_dir() => {
            format!("is a directory; name a file, such as {}", destination.join(MODEL_FILE).display())
        }
        Kind::Directory if there.is_file() => {
            "is not a directory, so no model directory replaces it; remove it".to_owned()
        }
        _ => {
            "is a device, a FIFO or a socket, and those are never replaced; choose another output".to_owned()
        }
    };
    Err(Error::file(destination, reason))
}

/// An existing directory is replaced only where it is empty or holds a compressed model and nothing else: `--force` must
/// not cost a home, nor a model that was not made here.
fn refuse_foreign(found: &Path, destination: &Path, kind: Kind) -> Result<()> {
    if kind == Kind::File || found.symlink_metadata().is_err() {
        return Ok(());
    }
    let refuse = |reason: String| Err(Error::file(destination, format!("{reason}; it is not overwritten")));
    let mut empty = true;
    for entry in fs::read_dir(found).map_err(|e| Error::io(destination, e))? {
        let entry = entry.map_err(|e| Error::io(destination, e))?;
        let name = entry.file_name();
        let known = name.to_str().is_some_and(|name| name == MODEL_FILE || COMPANIONS.contains(&name));
        if !known || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            return refuse(format!("holds {name:?}, which is no part of a compressed model"));
        }
        empty = false;
    }
    if empty {
        return Ok(());
    }
    if !found.join(MODEL_FILE).exists() {
        return refuse(format!("holds files and no {MODEL_FILE}, so it is no compressed model"));
    }
    match Archive::open(found.join(MODEL_FILE)) {
        Ok(archive) if archive.is_compressed() => Ok(()),
        Ok(_) => refuse("holds a model that is not compressed".into()),
        Err(_) => refuse(format!("holds a {MODEL_FILE} that cannot be read as a compressed model")),
    }
}

/// Makes a file's contents last through a power cut.
fn sync(path: &Path) -> std::io::Result<()> {
    // Windows asks for the right to write; elsewhere a file may be synced that nobody may write.
    File::options().read(true).write(cfg!(windows)).open(path)?.sync_all()
}

/// Makes a rename last through a power cut, where the system lets directories be synced.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests;
