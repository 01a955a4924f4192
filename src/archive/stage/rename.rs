//! The steps by which a finished output takes its name.

use super::scratch::REPLACED;
use std::fs;
use std::io::{ErrorKind, Result};
use std::path::Path;

/// Gives `from` the name `to`, which nothing has; [`ErrorKind::AlreadyExists`] where something has it.
pub(super) fn put(from: &Path, to: &Path) -> Result<()> {
    match system::put(from, to) {
        Err(e) if e.kind() == ErrorKind::Unsupported => put_without_system(from, to),
        done => done,
    }
}

/// Lets `from` and `to`, which are both there, change names: at no moment is there nothing under either name.
/// [`ErrorKind::Unsupported`] where the system or the file system cannot.
pub(super) fn exchange(from: &Path, to: &Path) -> Result<()> {
    system::exchange(from, to)
}

/// Puts the file `from` in the place of the file `to`, in one step.
pub(super) fn replace_file(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to)
}

/// Puts the directory `from` in the place of the directory `to` where names cannot be exchanged. Between the two steps
/// nothing has the name `to`; what had it is then `replaced` beside `from`, and the next run puts it back.
pub(super) fn replace_directory(from: &Path, to: &Path) -> Result<()> {
    let aside = from.with_file_name(REPLACED);
    fs::rename(to, &aside)?;
    fs::rename(from, to).or_else(|e| {
        fs::rename(&aside, to)?;
        Err(e)
    })
}

/// A file system without hard links, or a directory: looked up first, and renamed.
fn put_without_system(from: &Path, to: &Path) -> Result<()> {
    if from.is_file() {
        match fs::hard_link(from, to) {
            Ok(()) => return fs::remove_file(from),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(e),
            Err(_) => {}
        }
    }
    match to.symlink_metadata() {
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
mod system {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    use std::io::{Error, ErrorKind, Result};
    use std::path::Path;

    pub(super) fn put(from: &Path, to: &Path) -> Result<()> {
        rename(from, to, RenameFlags::NOREPLACE)
    }

    pub(super) fn exchange(from: &Path, to: &Path) -> Result<()> {
        rename(from, to, RenameFlags::EXCHANGE)
    }

    fn rename(from: &Path, to: &Path, flags: RenameFlags) -> Result<()> {
        // What kernels and file systems say that do not know the flag.
        let unknown = [Errno::NOSYS, Errno::INVAL, Errno::NOTSUP, Errno::OPNOTSUPP];
        renameat_with(CWD, from, CWD, to, flags).map_err(|e| match unknown.contains(&e) {
            true => Error::new(ErrorKind::Unsupported, Error::from(e)),
            false => e.into(),
        })
    }
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
mod system {
    use std::io::{ErrorKind, Result};
    use std::path::Path;

    pub(super) fn put(_: &Path, _: &Path) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }

    pub(super) fn exchange(_: &Path, _: &Path) -> Result<()> {
        Err(ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_putting_a_new_name_spares_what_is_there() {
        let room = tempfile::tempdir().unwrap();
        let path = |name: &str| room.path().join(name);
        for way in [put, put_without_system] {
            fs::write(path("from"), "new").unwrap();
            fs::write(path("to"), "old").unwrap();
            fs::create_dir(path("from-directory")).unwrap();
            for to in ["to", "from-directory"] {
                assert_eq!(way(&path("from"), &path(to)).unwrap_err().kind(), ErrorKind::AlreadyExists);
            }
            assert_eq!(
                way(&path("from-directory"), &path("to")).unwrap_err().kind(),
                ErrorKind::AlreadyExists
            );
            assert_eq!(fs::read_to_string(path("to")).unwrap(), "old");
            way(&path("from"), &path("file")).unwrap();
            way(&path("from-directory"), &path("directory")).unwrap();
            assert_eq!(fs::read_to_string(path("file")).unwrap(), "new");
            assert!(path("directory").is_dir() && !path("from").exists());
            fs::remove_file(path("file")).unwrap();
            fs::remove_dir(path("directory")).unwrap();
        }
    }

    #[test]
    fn two_steps_put_a_directory_in_the_place_of_another() {
        let room = tempfile::tempdir().unwrap();
        let (work, to) = (room.path().join("work"), room.path().join("to"));
        fs::create_dir_all(work.join("output")).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(to.join("a"), "old").unwrap();
        // What fails half way is taken back.
        assert!(replace_directory(&work.join("absent"), &to).is_err());
        assert_eq!(fs::read_to_string(to.join("a")).unwrap(), "old");
        replace_directory(&work.join("output"), &to).unwrap();
        assert!(fs::read_dir(&to).unwrap().next().is_none());
        assert_eq!(fs::read_to_string(work.join("replaced/a")).unwrap(), "old");
    }
}
