//! What a conversion has done so far, in a hidden file beside its output that outlives a run which does not finish: the next run
//! of the same conversion goes on with it.
//!
//! The file is a line that says which conversion it is of, then records: the length of a name (4 bytes, little-endian), that of the
//! contents (8), the CRC-32 of these, the name and the contents (4), the name and the contents. A record that is not whole
//! is passed over with all that follows it, as if it had not been written.

use super::scratch::{live, without_end};
use super::{parent_of, sync_directory};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What every file begins with.
const MAGIC: &str = "candle-rbe layers ";
/// What stands behind the output's name and [`DIGITS`] digits.
const SUFFIX: &str = ".layers";
/// How much of what identifies a conversion is in a file's name.
const DIGITS: usize = 16;
/// Bytes in front of a record's name.
const HEAD: usize = 16;
/// The longest name that is believed.
const LONGEST_NAME: usize = 1 << 20;
/// Bytes that are looked through at once.
const CHUNK: u64 = 1 << 20;

/// Contents by their names, kept until the output is there.
#[derive(Debug)]
pub(in crate::archive) struct Kept {
    file: File,
    path: PathBuf,
    /// Where each record's contents lie and how long they are.
    places: BTreeMap<String, (u64, usize)>,
    end: u64,
}

/// The files of unfinished work of this process, from which the same conversion goes on.
///
/// An output that gets its name takes its own away.
pub fn kept_layers() -> Vec<PathBuf> {
    live().kept.iter().filter(|path| path.exists()).cloned().collect()
}

/// Where what belongs to a conversion of this identity (hexadecimal digits) to `destination` is kept.
pub(super) fn place(destination: &Path, identity: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(destination.file_name().unwrap_or_default());
    name.push(format!(".{}{SUFFIX}", identity.get(..DIGITS).unwrap_or(identity)));
    parent_of(destination).join(name)
}

/// All such files of a destination.
pub(super) fn places(destination: &Path) -> Vec<PathBuf> {
    let Some(name) = destination.file_name() else { return vec![] };
    let is_kept = |entry: &OsStr| {
        without_end(entry, name, SUFFIX)
            .is_some_and(|digits| digits.len() == DIGITS && digits.iter().all(u8::is_ascii_hexdigit))
    };
    let entries = fs::read_dir(parent_of(destination)).into_iter().flatten().flatten();
    let mut found: Vec<_> =
        entries.filter(|entry| is_kept(&entry.file_name())).map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Removes a file that is not needed any more. What cannot be removed stays: it is in nobody's way.
pub(super) fn remove(path: &Path) {
    let _ = fs::remove_file(path);
    live().kept.remove(path);
}

impl Kept {
    /// Opens `path` with what a run of the same identity left there.
    ///
    /// # Errors
    /// Another run is writing the file; it is something else; the system's.
    pub(super) fn open(path: PathBuf, identity: &str) -> Result<Self> {
        let failed = |e| Error::io(&path, e);
        if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
            return Err(Error::file(&path, "is no file, and layers are to be kept there; remove it"));
        }
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(failed)?;
        // Where the system has no locks, as before.
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            return Err(Error::file(&path, "is being written by another run; wait for it, or stop it"));
        }
        let line = format!("{MAGIC}{identity}\n");
        let mut found = Vec::new();
        (&mut file).take(line.len() as u64).read_to_end(&mut found).map_err(failed)?;
        let (places, end) = if found == line.as_bytes() {
            list(&file, line.len() as u64).map_err(failed)?
        } else if found.starts_with(MAGIC.as_bytes()) || line.as_bytes().starts_with(&found) {
            let begin = file.set_len(0).and_then(|()| file.rewind());
            let begin = begin.and_then(|()| file.write_all(line.as_bytes())).and_then(|()| file.sync_data());
            begin.and_then(|()| sync_directory(parent_of(&path))).map_err(failed)?;
            (BTreeMap::new(), line.len() as u64)
        } else {
            return Err(Error::file(&path, "is not what is kept of a conversion; remove it"));
        };
        // What a run that was killed had begun to write.
        let cut = file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end)));
        cut.map_err(failed)?;
        if !places.is_empty() {
            live().kept.insert(path.clone());
        }
        Ok(Self { file, path, places, end })
    }

    pub(in crate::archive) fn path(&self) -> &Path {
        &self.path
    }

    pub(in crate::archive) fn has(&self, name: &str) -> bool {
        self.places.contains_key(name)
    }

    /// Adds a record, so that it lasts through a power cut.
    ///
    /// # Errors
    /// The system's.
    pub(in crate::archive) fn keep(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        let mut head = Vec::with_capacity(HEAD + name.len());
        head.extend((name.len() as u32).to_le_bytes());
        head.extend((contents.len() as u64).to_le_bytes());
        let mut checksum = crc32fast::Hasher::new();
        [&head, name.as_bytes(), contents].iter().for_each(|part| checksum.update(part));
        head.extend(checksum.finalize().to_le_bytes());
        head.extend(name.as_bytes());
        let written = self.file.write_all(&head).and_then(|()| self.file.write_all(contents));
        written.and_then(|()| self.file.sync_data()).map_err(|e| Error::io(&self.path, e))?;
        if self.places.is_empty() {
            live().kept.insert(self.path.clone());
        }
        let start = self.end + head.len() as u64;
        self.places.insert(name.to_owned(), (start, contents.len()));
        self.end = start + contents.len() as u64;
        Ok(())
    }

    /// The contents of a record.
    ///
    /// # Errors
    /// There is none of this name; the system's.
    pub(in crate::archive) fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let Some(&(start, length)) = self.places.get(name) else {
            return Err(Error::file(&self.path, Error::config("was not encoded").in_tensor(name)));
        };
        let mut contents = vec![0; length];
        let read = self.file.seek(SeekFrom::Start(start)).and_then(|_| self.file.read_exact(&mut contents));
        // The next is written at the end again.
        let read = read.and_then(|()| self.file.seek(SeekFrom::Start(self.end)));
        read.map_err(|e| Error::io(&self.path, e))?;
        Ok(contents)
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if self.places.is_empty() {
            remove(&self.path);
        }
    }
}

/// Places by name, and where they end.
type Places = (BTreeMap<String, (u64, usize)>, u64);

/// The records that are whole, from `start` on.
fn list(file: &File, start: u64) -> std::io::Result<Places> {
    let length = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let (mut places, mut end) = (BTreeMap::new(), start);
    let mut head = [0; HEAD];
    while end + HEAD as u64 <= length {
        reader.read_exact(&mut head)?;
        let [name_length, low, high, checksum] =
            std::array::from_fn(|n| u32::from_le_bytes([0, 1, 2, 3].map(|m| head[4 * n + m])));
        let contents = u64::from(low) | u64::from(high) << 32;
        let start = end + HEAD as u64 + u64::from(name_length);
        let Some(next) = start.checked_add(contents).filter(|next| *next <= length) else { break };
        if name_length as usize > LONGEST_NAME {
            break;
        }
        let mut name = vec![0; name_length as usize];
        reader.read_exact(&mut name)?;
        let mut found = crc32fast::Hasher::new();
        found.update(&head[..HEAD - 4]);
        found.update(&name);
        let (mut left, mut chunk) = (contents, Vec::new());
        while left > 0 {
            chunk.resize(left.min(CHUNK) as usize, 0);
            reader.read_exact(&mut chunk)?;
            found.update(&chunk);
            left -= chunk.len() as u64;
        }
        let (true, Ok(name)) = (found.finalize() == checksum, String::from_utf8(name)) else { break };
        places.insert(name, (start, contents as usize));
        end = next;
    }
    Ok((places, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef01";

    #[test]
    fn the_next_run_finds_what_was_kept_but_for_what_is_not_whole() {
        let room = tempfile::tempdir().unwrap();
        let path = place(&room.path().join("out"), ONE);
        assert_eq!(path, room.path().join(".out.0123456789abcdef.layers"));
        let open = || Kept::open(path.clone(), ONE).unwrap();
        let mut kept = open();
        kept.keep("a", &[1; 30]).unwrap();
        kept.keep("b", &[2; 40]).unwrap();
        assert_eq!(kept.read("a").unwrap(), [1; 30]);
        // Who has read goes on to write at the end.
        kept.keep("c", &[3; 50]).unwrap();
        let whole = kept.end as usize;
        let error = Kept::open(path.clone(), ONE).unwrap_err().to_string();
        assert!(error.contains("another run"), "{error}");
        drop(kept);
        assert_eq!(
            (places(&room.path().join("out")), kept_layers().contains(&path)),
            (vec![path.clone()], true)
        );
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes.len(), whole);
        let damaged = |at: usize| {
            let mut bytes = bytes.clone();
            bytes[at] ^= 4;
            bytes
        };
        let first = whole - 50 - 1 - HEAD;
        let cuts = [1, 50, 51, 50 + HEAD].map(|cut| bytes[..whole - cut].to_vec());
        let damages = [first, first + 5, first + 11, first + 12, first + HEAD, whole - 1].map(damaged);
        for file in cuts.into_iter().chain(damages) {
            fs::write(&path, file).unwrap();
            let mut kept = open();
            assert_eq!((kept.has("b"), kept.has("c")), (true, false));
            assert_eq!(kept.read("b").unwrap(), [2; 40]);
            assert!(kept.read("c").is_err());
            kept.keep("c", &[3; 50]).unwrap();
            drop(kept);
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        // Damage in front of it takes along what follows; one of the first line everything.
        for (at, left) in [(MAGIC.len() + ONE.len() + 1 + HEAD + 9, false), (MAGIC.len(), false)] {
            fs::write(&path, damaged(at)).unwrap();
            assert_eq!(open().has("b"), left);
        }
        assert!(!path.exists(), "a file without a record stays");
    }

    #[test]
    fn what_is_something_else_is_not_written_to() {
        let room = tempfile::tempdir().unwrap();
        let path = place(&room.path().join("out"), ONE);
        fs::write(&path, "a letter").unwrap();
        let error = Kept::open(path.clone(), ONE).unwrap_err().to_string();
        assert!(error.contains("remove it"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"a letter");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(Kept::open(path.clone(), ONE).unwrap_err().to_string().contains("is no file"));
        fs::write(room.path().join(".out.other.layers"), "").unwrap();
        assert_eq!(places(&room.path().join("out")), [path]);
    }
}
