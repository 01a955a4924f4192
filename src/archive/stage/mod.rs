//! Outputs that appear whole or not at all: assembled beside the destination, synced, renamed.

use super::MODEL_FILE;
use crate::{Error, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tempfile::{Builder, NamedTempFile, TempDir};

/// The files of a Hugging Face model directory that travel along when its weights are compressed.
pub(super) const COMPANIONS: [&str; 17] = [
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

/// One output under way. Dropped before [`Stage::commit`], it leaves nothing behind.
pub(super) struct Stage {
    work: Work,
    destination: PathBuf,
    overwrite: bool,
}

enum Work {
    File(NamedTempFile),
    Directory(TempDir),
}

impl Stage {
    /// Begins a file.
    pub(super) fn file(destination: &Path, overwrite: bool) -> Result<Self> {
        let parent = prepare(destination, overwrite)?;
        if destination.is_dir() {
            let hint =
                format!("is a directory; name a file, such as {}", destination.join(MODEL_FILE).display());
            return Err(Error::file(destination, hint));
        }
        let work = builder(destination, |builder| builder.tempfile_in(parent), FILE_MODE)
            .map_err(|e| Error::io(destination, e))?;
        Ok(Self { work: Work::File(work), destination: destination.to_owned(), overwrite })
    }

    /// Begins a model directory.
    pub(super) fn directory(destination: &Path, overwrite: bool) -> Result<Self> {
        let parent = prepare(destination, overwrite)?;
        refuse_foreign(destination)?;
        let work = builder(destination, |builder| builder.tempdir_in(parent), DIRECTORY_MODE)
            .map_err(|e| Error::io(destination, e))?;
        Ok(Self { work: Work::Directory(work), destination: destination.to_owned(), overwrite })
    }

    /// The file that takes the weights.
    pub(super) fn model(&self) -> Result<File> {
        match &self.work {
            Work::File(temp) => temp.as_file().try_clone().map_err(|e| Error::io(&self.destination, e)),
            Work::Directory(temp) => {
                let path = temp.path().join(MODEL_FILE);
                File::create_new(&path).map_err(|e| Error::io(path, e))
            }
        }
    }

    /// Copies what lies beside the weights; returns the names of the files copied.
    pub(super) fn copy_companions(&self, from: &Path) -> Result<Vec<String>> {
        let Work::Directory(temp) = &self.work else { return Ok(vec![]) };
        let mut copied = vec![];
        for name in COMPANIONS {
            let (source, target) = (from.join(name), temp.path().join(name));
            if source.is_file() {
                fs::copy(&source, &target).map_err(|e| Error::io(&source, e))?;
                File::open(&target).and_then(|file| file.sync_all()).map_err(|e| Error::io(&target, e))?;
                copied.push(name.to_owned());
            }
        }
        Ok(copied)
    }

    /// Syncs the finished weights and gives the output its name.
    pub(super) fn commit(self, model: File) -> Result<()> {
        let Self { work, destination, overwrite } = self;
        let failed = |e: std::io::Error| match e.kind() {
            // It appeared while the output was being made.
            std::io::ErrorKind::AlreadyExists => Error::Exists { path: destination.clone() },
            _ => Error::io(&destination, e),
        };
        model.sync_all().map_err(failed)?;
        drop(model);
        match work {
            Work::File(temp) if overwrite => drop(temp.persist(&destination).map_err(|e| failed(e.error))?),
            Work::File(temp) => drop(temp.persist_noclobber(&destination).map_err(|e| failed(e.error))?),
            Work::Directory(temp) => {
                sync_directory(temp.path()).map_err(failed)?;
                replace_directory(temp, &destination, overwrite)?;
            }
        }
        sync_directory(parent_of(&destination)).map_err(failed)
    }
}

/// Refuses an existing destination before hours of work, and says where the output is to be assembled.
fn prepare(destination: &Path, overwrite: bool) -> Result<&Path> {
    if !overwrite && destination.symlink_metadata().is_ok() {
        return Err(Error::Exists { path: destination.to_owned() });
    }
    let parent = parent_of(destination);
    if destination.file_name().is_none() || !parent.is_dir() {
        let reason = format!("cannot be created: there is no directory {}", parent.display());
        return Err(Error::file(destination, reason));
    }
    Ok(parent)
}

/// An existing directory is replaced only where it holds nothing but a model: `--force` must not cost a home.
fn refuse_foreign(destination: &Path) -> Result<()> {
    let Ok(kind) = destination.symlink_metadata() else { return Ok(()) };
    if !kind.is_dir() {
        return Err(Error::file(
            destination,
            "is not a directory, so no model directory replaces it; remove it",
        ));
    }
    for entry in fs::read_dir(destination).map_err(|e| Error::io(destination, e))? {
        let entry = entry.map_err(|e| Error::io(destination, e))?;
        let name = entry.file_name();
        let known = name.to_str().is_some_and(|name| name == MODEL_FILE || COMPANIONS.contains(&name));
        if !known || entry.path().is_dir() {
            let reason =
                format!("holds {name:?}, which is no part of a compressed model; it is not overwritten");
            return Err(Error::file(destination, reason));
        }
    }
    Ok(())
}

/// Renames the assembled directory into place; what it replaces is put back should that fail.
fn replace_directory(temp: TempDir, destination: &Path, overwrite: bool) -> Result<()> {
    let failed = |e| Error::io(destination, e);
    if destination.symlink_metadata().is_ok() {
        if !overwrite {
            return Err(Error::Exists { path: destination.to_owned() });
        }
        refuse_foreign(destination)?;
        let aside =
            builder(destination, |b| b.tempdir_in(parent_of(destination)), DIRECTORY_MODE).map_err(failed)?;
        let old = aside.path().join("replaced");
        fs::rename(destination, &old).map_err(failed)?;
        if let Err(e) = fs::rename(temp.path(), destination) {
            fs::rename(&old, destination).map_err(failed)?;
            return Err(failed(e));
        }
    } else {
        fs::rename(temp.path(), destination).map_err(failed)?;
    }
    // Renamed away, so there is nothing left to remove under the temporary name.
    let _ = temp.keep();
    Ok(())
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Rights before the process's own mask; a temporary file's usual 0600 would outlive the rename.
const FILE_MODE: u32 = 0o666;
const DIRECTORY_MODE: u32 = 0o777;

fn builder<T>(
    destination: &Path,
    make: impl FnOnce(&Builder) -> std::io::Result<T>,
    mode: u32,
) -> std::io::Result<T> {
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(destination.file_name().unwrap_or_default());
    prefix.push(".");
    let mut builder = Builder::new();
    builder.prefix(&prefix).suffix(".partial");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(mode));
    #[cfg(not(unix))]
    let _ = mode;
    make(&builder)
}

/// Makes a rename last through a power cut, where the system lets directories be synced.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = entries.collect();
        names.sort();
        names
    }

    fn fill(stage: Stage, text: &str) -> Result<()> {
        let mut model = stage.model()?;
        model.write_all(text.as_bytes()).unwrap();
        stage.commit(model)
    }

    #[test]
    fn a_dropped_stage_leaves_nothing() {
        let room = tempfile::tempdir().unwrap();
        for begin in [Stage::file, Stage::directory] {
            let stage = begin(&room.path().join("a"), false).unwrap();
            stage.model().unwrap().write_all(b"half").unwrap();
            assert_eq!(names(room.path()).len(), 1);
            drop(stage);
            assert!(names(room.path()).is_empty());
        }
    }

    #[test]
    fn outputs_get_their_names_and_old_ones_stay_until_asked() {
        let room = tempfile::tempdir().unwrap();
        let (file, directory) = (room.path().join("a"), room.path().join("b"));
        fill(Stage::file(&file, false).unwrap(), "one").unwrap();
        fill(Stage::directory(&directory, false).unwrap(), "one").unwrap();
        assert!(matches!(Stage::file(&file, false), Err(Error::Exists { .. })));
        assert!(matches!(Stage::directory(&directory, false), Err(Error::Exists { .. })));
        fill(Stage::file(&file, true).unwrap(), "two").unwrap();
        fill(Stage::directory(&directory, true).unwrap(), "two").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(fs::read_to_string(directory.join(MODEL_FILE)).unwrap(), "two");
        assert_eq!(names(room.path()), ["a", "b"]);
    }

    #[test]
    fn what_appears_meanwhile_is_not_overwritten() {
        let room = tempfile::tempdir().unwrap();
        let (file, directory) = (room.path().join("a"), room.path().join("b"));
        let (one, two) = (Stage::file(&file, false).unwrap(), Stage::directory(&directory, false).unwrap());
        fs::write(&file, "theirs").unwrap();
        fs::create_dir(&directory).unwrap();
        assert!(matches!(fill(one, "ours"), Err(Error::Exists { .. })));
        assert!(matches!(fill(two, "ours"), Err(Error::Exists { .. })));
        assert_eq!(fs::read_to_string(&file).unwrap(), "theirs");
        assert!(names(&directory).is_empty());
        assert_eq!(names(room.path()), ["a", "b"]);
    }

    #[test]
    fn a_directory_of_anything_else_is_never_replaced() {
        let room = tempfile::tempdir().unwrap();
        let home = room.path().join("home");
        fs::create_dir(&home).unwrap();
        fs::write(home.join("letters.txt"), "dear").unwrap();
        let error = Stage::directory(&home, true).err().unwrap().to_string();
        assert!(error.contains("letters.txt"), "{error}");
        assert_eq!(names(&home), ["letters.txt"]);
    }

    #[cfg(unix)]
    #[test]
    fn rights_are_those_of_any_new_file() {
        use std::os::unix::fs::MetadataExt;
        let room = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(room.path().join(name)).unwrap().mode() & 0o777;
        fs::write(room.path().join("plain"), "").unwrap();
        fs::create_dir(room.path().join("plain-directory")).unwrap();
        fill(Stage::file(&room.path().join("a"), false).unwrap(), "").unwrap();
        fill(Stage::directory(&room.path().join("b"), false).unwrap(), "").unwrap();
        assert_eq!(mode("a"), mode("plain"));
        assert_eq!(mode("b"), mode("plain-directory"));
    }
}
