//! Hidden directories in which outputs are assembled: locked while their run lives, removed by it, or, where it was
//! killed, by the next run that writes the same output.

use super::parent_of;
use crate::{Error, Result};
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{Error as IoError, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tempfile::Builder;

/// The file in a scratch directory whose lock says that its run lives.
const LOCK: &str = "candle-rbe.lock";

/// What an output is called while it is being replaced in two steps by `replace_directory`.
pub(super) const REPLACED: &str = "replaced";

/// What stands behind the output's name and six letters or digits.
const SUFFIX: &str = ".partial";

/// How often a new directory is tried; another run takes away one that is not locked yet.
const ATTEMPTS: usize = 16;

/// The scratch directories of this process, and what is kept beside its outputs.
pub(super) struct Live {
    paths: BTreeSet<PathBuf>,
    /// Files of work that is not finished.
    pub(super) kept: BTreeSet<PathBuf>,
    /// Set by [`abandon_outputs`]: nothing is begun or finished any more.
    abandoned: bool,
}

static LIVE: Mutex<Live> =
    Mutex::new(Live { paths: BTreeSet::new(), kept: BTreeSet::new(), abandoned: false });

pub(super) fn live() -> MutexGuard<'static, Live> {
    // The set is sound after every statement, so a panic elsewhere does not spoil it.
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A hidden directory `.NAME.??????.partial` beside `NAME`, removed when it is dropped.
///
/// What killed runs left under the same name is removed first. A run that lives holds a lock, so its directory stays.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    lock: Option<File>,
}

impl Scratch {
    /// A directory for what is to become `destination`, or for work that is never to have a name.
    ///
    /// # Errors
    /// Nothing can be written beside `destination`; [`abandon_outputs`] has been called.
    pub fn new(destination: impl AsRef<Path>) -> Result<Self> {
        let destination = destination.as_ref();
        sweep(destination);
        Self::without_sweep(destination)
    }

    pub(super) fn without_sweep(destination: &Path) -> Result<Self> {
        let mut prefix = OsString::from(".");
        prefix.push(destination.file_name().unwrap_or_default());
        prefix.push(".");
        let failed = |e| Error::io(destination, e);
        // Held meanwhile, so that an interrupt finds every directory that there is.
        let mut live = live();
        if live.abandoned {
            return Err(failed(stopped()));
        }
        for _ in 0..ATTEMPTS {
            let made = Builder::new().prefix(&prefix).suffix(SUFFIX).tempdir_in(parent_of(destination));
            let path = made.map_err(failed)?.keep();
            match hold(&path) {
                Ok(Some(lock)) => {
                    live.paths.insert(path.clone());
                    return Ok(Self { path, lock: Some(lock) });
                }
                Ok(None) => {}
                Err(e) => {
                    let _ = fs::remove_dir_all(&path);
                    return Err(failed(e));
                }
            }
        }
        Err(failed(IoError::new(ErrorKind::WouldBlock, "other runs keep removing what this one begins")))
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives what was assembled its name by `place`, and removes the directory with what then is in it. An interrupt
    /// comes before or after, not between.
    pub(super) fn finish(mut self, destination: &Path, place: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut live = live();
        if !live.paths.contains(&self.path) {
            return Err(Error::io(destination, stopped()));
        }
        place()?;
        live.paths.remove(&self.path);
        clear(&self.path, self.lock.take());
        Ok(())
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mut live = live();
        if live.paths.remove(&self.path) {
            clear(&self.path, self.lock.take());
        }
    }
}

/// Removes all unfinished outputs of this process; the number of them. For a handler of interrupts, which then ends the
/// process: nothing can be begun or finished any more, and who tries is told so by an error. [`kept_layers`](super::kept_layers)
/// stay.
pub fn abandon_outputs() -> usize {
    let mut live = live();
    live.abandoned = true;
    let paths = std::mem::take(&mut live.paths);
    for path in &paths {
        // Another thread may be creating a file in it; that can happen once or twice, not for ever.
        for _ in 0..ATTEMPTS {
            clear(path, None);
            if !path.exists() {
                break;
            }
        }
    }
    paths.len()
}

fn stopped() -> IoError {
    IoError::new(ErrorKind::Interrupted, "stopped on request; nothing is written")
}

/// Locks a new directory; `None` where another run took it for an abandoned one.
fn hold(directory: &Path) -> std::io::Result<Option<File>> {
    let path = directory.join(LOCK);
    let lock = match File::create_new(&path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        lock => lock?,
    };
    match lock.try_lock() {
        // Who removes an abandoned directory holds the lock until the file is gone.
        Ok(()) => Ok(path.exists().then_some(lock)),
        Err(TryLockError::WouldBlock) => Ok(None),
        // A file system without locks: no other run can lock it either, and so none removes it.
        Err(TryLockError::Error(_)) => Ok(Some(lock)),
    }
}

/// Removes what killed runs left of `destination`, and puts back what one of them had moved aside. What cannot be removed
/// stays: it is in nobody's way.
pub(super) fn sweep(destination: &Path) {
    let Some(name) = destination.file_name() else { return };
    let Ok(entries) = fs::read_dir(parent_of(destination)) else { return };
    for entry in entries.flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_directory && is_scratch(&entry.file_name(), name) {
            remove_abandoned(&entry.path(), destination);
        }
    }
}

/// Whether `entry` is `.NAME.??????.partial`.
fn is_scratch(entry: &OsStr, name: &OsStr) -> bool {
    without_end(entry, name, SUFFIX)
        .is_some_and(|inside| inside.len() == 6 && inside.iter().all(u8::is_ascii_alphanumeric))
}

/// What stands between `.NAME.` and `end` in the name of an entry.
pub(super) fn without_end<'a>(entry: &'a OsStr, name: &OsStr, end: &str) -> Option<&'a [u8]> {
    let entry = entry.as_encoded_bytes().strip_prefix(b".")?;
    let rest = entry.strip_prefix(name.as_encoded_bytes())?.strip_prefix(b".")?;
    rest.strip_suffix(end.as_bytes())
}

fn remove_abandoned(directory: &Path, destination: &Path) {
    let lock = match File::options().read(true).write(true).open(directory.join(LOCK)) {
        Ok(lock) => lock,
        Err(e) => {
            // Killed before it was locked, or about to be: only an empty one can be removed so.
            if e.kind() == ErrorKind::NotFound {
                let _ = fs::remove_dir(directory);
            }
            return;
        }
    };
    // Where the lock cannot be had, its run lives.
    if lock.try_lock().is_err() {
        return;
    }
    let replaced = directory.join(REPLACED);
    if replaced.symlink_metadata().is_ok()
        && destination.symlink_metadata().is_err()
        && fs::rename(&replaced, destination).is_err()
    {
        // It is the only one there is.
        return;
    }
    clear(directory, Some(lock));
}

/// Removes a directory, the lock last: what is not locked is not ours.
fn clear(directory: &Path, lock: Option<File>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.file_name() != LOCK) {
        let _ = match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => fs::remove_dir_all(entry.path()),
            false => fs::remove_file(entry.path()),
        };
    }
    // A directory that is not empty keeps its lock file, by which the next run knows it.
    if fs::read_dir(directory).is_ok_and(|rest| rest.flatten().all(|entry| entry.file_name() == LOCK)) {
        let _ = fs::remove_file(directory.join(LOCK));
    }
    drop(lock);
    let _ = fs::remove_dir(directory);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    }

    /// What a run that was killed leaves: everything but its lock.
    fn killed(destination: &Path, file: &str) {
        let scratch = Scratch::without_sweep(destination).unwrap();
        fs::write(scratch.path().join(file), "half").unwrap();
        fs::create_dir(scratch.path().join("inner")).unwrap();
        fs::write(scratch.path().join("inner/deep"), "half").unwrap();
        let path = scratch.path().to_owned();
        live().paths.remove(&path);
        drop(scratch);
        assert!(path.join(file).exists());
    }

    #[test]
    fn the_next_run_removes_what_a_killed_one_left_and_nothing_else() {
        let room = tempfile::tempdir().unwrap();
        let (out, other) = (room.path().join("out"), room.path().join("out.b"));
        killed(&out, "output");
        killed(&out, "output");
        killed(&other, "output");
        // Of the same name and not ours.
        let theirs = room.path().join(".out.abcdef.partial");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("letters.txt"), "dear").unwrap();
        fs::write(room.path().join(".out.ABCDEF.partial"), "a file").unwrap();
        let alive = Scratch::new(&out).unwrap();
        let left = names(room.path());
        assert_eq!(left.len(), 4, "{left:?}");
        assert!(left.iter().any(|name| name.starts_with(".out.b.")), "{left:?}");
        // Nor what a run holds that lives.
        let second = Scratch::new(&out).unwrap();
        assert!(alive.path().is_dir() && second.path().is_dir() && alive.path() != second.path());
        drop((alive, second));
        assert_eq!(names(&theirs), ["letters.txt"]);
        assert_eq!(names(room.path()).len(), 3);
    }

    #[test]
    fn what_was_moved_aside_when_its_run_was_killed_comes_back() {
        let room = tempfile::tempdir().unwrap();
        let out = room.path().join("out");
        killed(&out, REPLACED);
        sweep(&out);
        assert_eq!(fs::read_to_string(&out).unwrap(), "half");
        // Where the new output has its name already, the old one goes.
        fs::write(&out, "new").unwrap();
        killed(&out, REPLACED);
        sweep(&out);
        assert_eq!(fs::read_to_string(&out).unwrap(), "new");
        assert_eq!(names(room.path()), ["out"]);
    }

    #[test]
    fn runs_that_begin_at_once_do_not_remove_each_other() {
        let room = tempfile::tempdir().unwrap();
        let out = room.path().join("out");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let scratch = Scratch::new(&out).unwrap();
                        fs::write(scratch.path().join("output"), "whole").unwrap();
                        std::thread::yield_now();
                        assert_eq!(fs::read(scratch.path().join("output")).unwrap(), b"whole");
                    }
                });
            }
        });
        assert!(names(room.path()).is_empty());
    }
}
