//! Where a model is read from: a path, a repository of the Hugging Face hub, or a GGUF file that is a directory for the time of
//! a command.

use crate::bar::Bar;
use crate::hub;
use crate::interrupt;
use anyhow::Context;
use candle_rbe::archive::{self, Scratch};
use std::path::{Path, PathBuf};

/// A model directory or a safetensors file.
pub(crate) struct Source {
    path: PathBuf,
    /// What goes when the command ends.
    _scratch: Option<Scratch>,
}

impl Source {
    /// What a user named; a GGUF file is unpacked where temporary files lie.
    pub(crate) fn open(given: &Path) -> anyhow::Result<Self> {
        Self::beside(given, &std::env::temp_dir().join("rbe"))
    }

    /// The same; a GGUF file is unpacked beside `output`, where there is room for what comes of it.
    pub(crate) fn beside(given: &Path, output: &Path) -> anyhow::Result<Self> {
        let path = local(given)?;
        if !archive::is_gguf(&path) {
            return Ok(Self { path, _scratch: None });
        }
        interrupt::install()?;
        let cannot = || format!("cannot read {}", given.display());
        let scratch = Scratch::new(output).with_context(cannot)?;
        let directory = scratch.path().join("model");
        std::fs::create_dir(&directory).with_context(cannot)?;
        let bar = Bar::new("unpacking")?;
        archive::unpack_gguf(&path, &directory, &mut |step| bar.step(step)).with_context(cannot)?;
        Ok(Self { path: directory, _scratch: Some(scratch) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The path of what a user named: as it is where there is something, else that of a repository's files.
pub(crate) fn local(given: &Path) -> anyhow::Result<PathBuf> {
    match given.to_str().and_then(Repository::named).filter(|_| given.symlink_metadata().is_err()) {
        Some(repository) => hub::files(&repository).with_context(|| {
            format!("there is no file or directory {0}, and {0} cannot be had from the hub", given.display())
        }),
        None => Ok(given.to_owned()),
    }
}

/// A repository of the hub, as it is written: `org/name`, `org/name@revision`, `org/name/file.gguf`.
#[derive(Debug, PartialEq)]
pub(crate) struct Repository {
    /// `org/name`.
    pub(crate) id: String,
    /// A branch, tag or commit.
    pub(crate) revision: String,
    /// The one file that is meant.
    pub(crate) file: Option<String>,
}

impl Repository {
    fn named(text: &str) -> Option<Self> {
        let is_name = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let parts: Vec<&str> = text.split('/').collect();
        let (org, name, file) = match parts[..] {
            [org, name] => (org, name, None),
            [org, name, file] if file.ends_with(".gguf") && is_name(file) => (org, name, Some(file)),
            _ => return None,
        };
        let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
        ([org, name, revision].into_iter().all(is_name)).then(|| Self {
            id: format!("{org}/{name}"),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_are_known_by_how_they_are_written() {
        let known = |text: &str| {
            Repository::named(text).map(|found| (found.id, found.revision, found.file.unwrap_or_default()))
        };
        let expected = |id: &str, revision: &str, file: &str| Some((id.into(), revision.into(), file.into()));
        assert_eq!(known("org/a-name_1.5"), expected("org/a-name_1.5", "main", ""));
        assert_eq!(known("org/name@v1.0"), expected("org/name", "v1.0", ""));
        assert_eq!(known("org/name/a.Q4_K.gguf"), expected("org/name", "main", "a.Q4_K.gguf"));
        assert_eq!(known("org/name@x/a.gguf"), expected("org/name", "x", "a.gguf"));
        for path in
            ["name", "/org/name", "./name", "../name", "a/b/c", "org/", "a/b@", "org/na me", "a/b/../c.gguf"]
        {
            assert_eq!(known(path), None, "{path}");
        }
    }
}
