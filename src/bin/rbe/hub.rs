//! The Hugging Face hub: a repository's files, kept in the cache that Hugging Face's own tools use.
//!
//! Heeded are `HF_HOME` and `HF_HUB_CACHE` (where the cache is), `HF_TOKEN` or the token that `hf auth login` keeps, `HF_ENDPOINT`
//! (another hub), and `HF_HUB_OFFLINE`.

use crate::source::Repository;
use std::path::PathBuf;

/// Without the feature there is no hub.
#[cfg(not(feature = "hub"))]
pub(crate) fn files(_: &Repository) -> anyhow::Result<PathBuf> {
    anyhow::bail!("this rbe is built without it: build it with the feature `hub`, or download the files")
}

/// The directory of a repository's files, or the one file that is meant: from the cache what is there, the rest from the hub.
#[cfg(feature = "hub")]
pub(crate) fn files(repository: &Repository) -> anyhow::Result<PathBuf> {
    online::files(repository)
}

#[cfg(feature = "hub")]
mod online {
    use super::Repository;
    use crate::bar::Bar;
    use crate::interrupt;
    use anyhow::{Context, bail, ensure};
    use candle_rbe::archive::{COMPANIONS, INDEX_FILE, MODEL_FILE, gguf_parts};
    use hf_hub::api::Progress;
    use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
    use hf_hub::{Cache, CacheRepo, Repo, RepoType};
    use std::collections::BTreeSet;
    use std::env;
    use std::path::{Path, PathBuf};

    /// How often a download that breaks off is taken up again.
    const RETRIES: usize = 3;

    pub(super) fn files(repository: &Repository) -> anyhow::Result<PathBuf> {
        let cache = match env::var_os("HF_HUB_CACHE").filter(|path| !path.is_empty()) {
            Some(path) => Cache::new(path.into()),
            None => Cache::from_env(),
        };
        let named = repo(repository, &repository.revision);
        let kept = cache.repo(named.clone());
        let commit = cache.path().join(named.folder_name()).join("refs").join(named.revision());
        if said("HF_HUB_OFFLINE") {
            // A commit stands for itself.
            let commit = std::fs::read_to_string(commit).unwrap_or_else(|_| repository.revision.clone());
            return complete(kept.pointer_path(commit.trim()), repository)
                .context("HF_HUB_OFFLINE is set, and the cache does not have all of it");
        }
        interrupt::install()?;
        let endpoint = env::var("HF_ENDPOINT").ok().filter(|endpoint| !endpoint.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".into());
        let token =
            env::var("HF_TOKEN").ok().map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let token = token.or_else(|| Cache::from_env().token());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(endpoint.trim_end_matches('/').to_owned())
            .with_token(token)
            .with_retries(RETRIES)
            .with_progress(false)
            .build()?;
        let listed = api.repo(named).info().map_err(|error| refused(&error, &endpoint))?;
        // All files of one commit, whatever the branch is moved to meanwhile.
        let pinned = repo(repository, &listed.sha);
        let (there, kept_commit) = (api.repo(pinned.clone()), cache.repo(pinned));
        kept_commit.create_ref(&listed.sha)?;
        let names: BTreeSet<&str> = listed.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let fetch = Fetch { there, kept: kept_commit, endpoint };
        for name in wanted(repository, &names, &fetch)? {
            fetch.file(&name)?;
        }
        kept.create_ref(&listed.sha)?;
        complete(kept.pointer_path(&listed.sha), repository)
    }

    fn repo(repository: &Repository, revision: &str) -> Repo {
        Repo::with_revision(repository.id.clone(), RepoType::Model, revision.to_owned())
    }

    /// Whether a variable says yes, as Hugging Face's tools take it.
    fn said(variable: &str) -> bool {
        let value = env::var(variable).unwrap_or_default().to_ascii_uppercase();
        ["1", "ON", "YES", "TRUE"].contains(&value.as_str())
    }

    /// The directory of a commit, or the file in it, where it has a model.
    fn complete(directory: PathBuf, repository: &Repository) -> anyhow::Result<PathBuf> {
        if let Some(file) = &repository.file {
            for part in gguf_parts(file) {
                let path = directory.join(part);
                ensure!(path.is_file(), "there is no {}", path.display());
            }
            return Ok(directory.join(file));
        }
        let has_model = [MODEL_FILE, INDEX_FILE].iter().any(|name| directory.join(name).is_file());
        ensure!(has_model, "there is neither {MODEL_FILE} nor {INDEX_FILE} in {}", directory.display());
        Ok(directory)
    }

    /// The files that a model is made of.
    fn wanted(repository: &Repository, names: &BTreeSet<&str>, fetch: &Fetch) -> anyhow::Result<Vec<String>> {
        let ggufs: Vec<&str> = names.iter().copied().filter(|name| name.ends_with(".gguf")).collect();
        if let Some(file) = &repository.file {
            let others = if ggufs.is_empty() { "none".into() } else { ggufs.join(", ") };
            ensure!(
                names.contains(file.as_str()),
                "the repository has no {file}; its GGUF files are: {others}"
            );
            // Of a model in several files all.
            let parts = gguf_parts(file);
            let missing = parts.iter().find(|part| !names.contains(part.as_str()));
            ensure!(
                missing.is_none(),
                "{file} is one of {}, of which the repository has no {}",
                parts.len(),
                missing.map_or("", String::as_str)
            );
            return Ok(parts);
        }
        let companions = COMPANIONS.iter().copied().filter(|name| names.contains(name)).map(str::to_owned);
        let mut wanted: Vec<String> = companions.collect();
        if names.contains(MODEL_FILE) {
            wanted.push(MODEL_FILE.into());
        } else if names.contains(INDEX_FILE) {
            wanted.extend(shards(&fetch.file(INDEX_FILE)?)?);
        } else if let Some(first) = ggufs.first() {
            bail!(
                "it holds GGUF files; name one: {}/{first} (there are {})",
                repository.id,
                ggufs.join(", ")
            );
        } else {
            bail!(
                "it holds neither {MODEL_FILE} nor {INDEX_FILE} nor a GGUF file; weights are read from these alone"
            );
        }
        Ok(wanted)
    }

    /// The files that an index names, its neighbours: the cache is never written beside its place.
    fn shards(index: &Path) -> anyhow::Result<BTreeSet<String>> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        let text = std::fs::read_to_string(index)?;
        let index: Index =
            serde_json::from_str(&text).with_context(|| format!("{INDEX_FILE} is no index"))?;
        let files: BTreeSet<String> = index.weight_map.into_values().collect();
        let is_beside = |file: &&String| !file.starts_with('.') && !file.contains(['/', '\\']);
        match files.iter().find(|file| !is_beside(file)) {
            Some(file) => bail!("{INDEX_FILE} names {file:?}, which is no file beside it"),
            None => Ok(files),
        }
    }

    struct Fetch {
        there: ApiRepo,
        kept: CacheRepo,
        endpoint: String,
    }

    impl Fetch {
        /// A file's path in the cache, to which it is brought where it is not there yet.
        fn file(&self, name: &str) -> anyhow::Result<PathBuf> {
            if let Some(path) = self.kept.get(name) {
                return Ok(path);
            }
            let bar = Download { bar: Bar::new("downloading")?, name: name.to_owned(), done: 0, of: 0 };
            let fetched = self.there.download_with_progress(name, bar);
            fetched
                .map_err(|error| refused(&error, &self.endpoint).context(format!("cannot download {name}")))
        }
    }

    struct Download {
        bar: Bar,
        name: String,
        done: u64,
        of: u64,
    }

    impl Progress for Download {
        fn init(&mut self, size: usize, _: &str) {
            (self.done, self.of) = (0, size as u64);
            self.update(0);
        }

        fn update(&mut self, size: usize) {
            self.done += size as u64;
            self.bar.set(self.done, self.of, self.name.clone());
        }

        fn finish(&mut self) {}
    }

    /// What a hub's answer means, and what to do.
    fn refused(error: &ApiError, endpoint: &str) -> anyhow::Error {
        let ApiError::RequestError(request) = error else { return anyhow::anyhow!("{error}") };
        match &**request {
            ureq::Error::StatusCode(401 | 403) => anyhow::anyhow!(
                "{endpoint} does not let you: there is no such repository, or it takes a token that may read it; accept its terms \
                 there, and set HF_TOKEN or run `hf auth login`"
            ),
            ureq::Error::StatusCode(404) => anyhow::anyhow!("{endpoint} has no such repository or revision"),
            other => anyhow::anyhow!("{endpoint}: {other}"),
        }
    }
}
