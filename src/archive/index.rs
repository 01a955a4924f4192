//! The index of a model in several files: which file holds which tensor.

use crate::{Error, Result, file};
use std::collections::BTreeMap;
use std::path::{Component, Path};

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Which file holds which tensor, every file being one directly in the index's own directory.
pub(super) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = file::read_text(path)?;
    let mut index: Index =
        serde_json::from_str(&text).map_err(|e| Error::file(path, format!("not a valid index: {e}")))?;
    for (name, file) in &mut index.weight_map {
        let plain = plain_name(file).map_err(|reason| {
            Error::file(path, format!("tensor {name:?} is said to be in {file:?}, {reason}"))
        })?;
        *file = plain;
        if !path.with_file_name(&*file).is_file() {
            return Err(Error::file(path, format!("names {file:?}, and there is no such file beside it")));
        }
    }
    if index.weight_map.is_empty() {
        return Err(Error::file(path, "names no tensor"));
    }
    Ok(index.weight_map)
}

/// The name of a file in the index's own directory, of which `./` says no more; or what is wrong with it.
fn plain_name(file: &str) -> Result<String, &'static str> {
    // Windows separates with it, other systems have it in names.
    if file.contains('\\') {
        return Err("outside this directory: a backslash separates on some systems");
    }
    let mut names = vec![];
    for part in Path::new(file).components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => names.push(name),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err("outside this directory");
            }
        }
    }
    match (&names[..], names.len()) {
        ([name], _) => Ok(name.to_string_lossy().into_owned()),
        (_, 0) => Err("which names no file"),
        _ => Err("in a directory below; a shard lies beside its index"),
    }
}
