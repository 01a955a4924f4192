//! Models of the Hugging Face hub, which is here a server on the loopback.

use super::*;
use candle_core::{Device, Tensor};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_secret";

/// Repositories with their files, and what was asked for: path, range and whether with the token.
#[derive(Default)]
struct Hub {
    files: HashMap<String, Vec<u8>>,
    asked: Mutex<Vec<(String, Option<String>, bool)>>,
    /// Whether the next long answer breaks off.
    breaks: Mutex<bool>,
}

impl Hub {
    /// Listens until the test ends.
    fn start(files: HashMap<String, Vec<u8>>) -> (Arc<Self>, String) {
        let hub = Arc::new(Self { files, ..Self::default() });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let serving = hub.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(stream));
            }
        });
        (hub, address)
    }

    /// Answers one request and closes.
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let path = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
        let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let header = |name: &str| {
            let of = |line: &String| {
                line.split_once(": ")
                    .filter(|(known, _)| known.eq_ignore_ascii_case(name))
                    .map(|(_, v)| v.to_owned())
            };
            headers.iter().find_map(of)
        };
        let range = header("range");
        let known = header("authorization").is_some_and(|said| said == format!("Bearer {TOKEN}"));
        self.asked.lock().unwrap().push((path.clone(), range.clone(), known));
        let (status, more, body, length) = self.answer(&path, range.as_deref(), known);
        let head =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(&body).ok()
    }

    fn answer(&self, path: &str, range: Option<&str>, known: bool) -> (&str, String, Vec<u8>, usize) {
        let nothing = |status| (status, String::new(), vec![], 0);
        if path.contains("/org/gated") && !known {
            return nothing("401 Unauthorized");
        }
        if let Some(asked) = path.strip_prefix("/api/models/") {
            let Some(repository) = asked.strip_suffix("/revision/main") else {
                return nothing("404 Not Found");
            };
            let inside = |name: &String| name.strip_prefix(repository)?.strip_prefix('/').map(str::to_owned);
            let files: Vec<_> = self
                .files
                .keys()
                .filter_map(inside)
                .map(|name| serde_json::json!({"rfilename": name}))
                .collect();
            if files.is_empty() {
                return nothing("404 Not Found");
            }
            let body = serde_json::json!({"sha": COMMIT, "siblings": files}).to_string().into_bytes();
            let length = body.len();
            return ("200 OK", "Content-Type: application/json\r\n".into(), body, length);
        }
        let name = path.trim_start_matches('/').replace(&format!("resolve/{COMMIT}/"), "");
        let Some(file) = self.files.get(&name) else { return nothing("404 Not Found") };
        let range = range.and_then(|range| range.strip_prefix("bytes=")).unwrap_or("0-");
        let (from, to) = range.split_once('-').unwrap();
        let from: usize = from.parse().unwrap();
        let to = to.parse().map_or(file.len(), |to: usize| to + 1);
        let more = format!(
            "ETag: \"{}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
            name.replace('/', "-"),
            to - 1,
            file.len()
        );
        let mut body = file[from..to].to_vec();
        let length = body.len();
        if length > 1 << 20 && std::mem::take(&mut *self.breaks.lock().unwrap()) {
            body.truncate(length / 3);
        }
        ("206 Partial Content", more, body, length)
    }
}

/// The small LLaMA in one file, in two with an index, and behind a gate; GGUF files; what is no model.
fn repositories() -> HashMap<String, Vec<u8>> {
    let books = Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL);
    let read = |name: &str| std::fs::read(books.join(name)).unwrap();
    let mut files = HashMap::new();
    for repository in ["org/books", "org/shards", "org/gated"] {
        for name in ["config.json", "tokenizer.json"] {
            files.insert(format!("{repository}/{name}"), read(name));
        }
    }
    files.insert("org/books/model.safetensors".into(), read("model.safetensors"));
    files.insert("org/gated/model.safetensors".into(), read("model.safetensors"));
    files.insert("org/books/pytorch_model.bin".into(), vec![0; 8]);
    files.insert("org/books/README.md".into(), b"books".to_vec());
    files.insert("org/quantised/a.Q4_0.gguf".into(), b"GGUF".to_vec());
    for part in [1, 3] {
        files.insert(format!("org/split/m-0000{part}-of-00003.gguf"), b"GGUF".to_vec());
        files.insert(format!("org/parts/m-0000{part}-of-00003.gguf"), b"GGUF".to_vec());
    }
    files.insert("org/parts/m-00002-of-00003.gguf".into(), b"GGUF".to_vec());
    files.insert("org/other/pytorch_model.bin".into(), vec![0; 8]);
    files.insert(
        "org/evil/model.safetensors.index.json".into(),
        br#"{"weight_map": {"a": "../../../evil"}}"#.to_vec(),
    );
    let weights = candle_core::safetensors::load(books.join("model.safetensors"), &Device::Cpu).unwrap();
    let room = tempfile::tempdir().unwrap();
    let mut index = serde_json::Map::new();
    for (shard, even) in [("model-1.safetensors", true), ("model-2.safetensors", false)] {
        let mut names: Vec<_> = weights.keys().cloned().collect();
        names.sort();
        let part: HashMap<String, Tensor> = names
            .iter()
            .enumerate()
            .filter(|(at, _)| at.is_multiple_of(2) == even)
            .map(|(_, name)| (name.clone(), weights[name].clone()))
            .collect();
        index.extend(part.keys().map(|name| (name.clone(), shard.into())));
        candle_core::safetensors::save(&part, room.path().join(shard)).unwrap();
        files.insert(format!("org/shards/{shard}"), std::fs::read(room.path().join(shard)).unwrap());
    }
    let index = serde_json::json!({"weight_map": index}).to_string();
    files.insert("org/shards/model.safetensors.index.json".into(), index.into_bytes());
    files
}

fn with_hub(home: &Path, endpoint: &str, arguments: &[&str], more: &[(&str, &str)]) -> Output {
    let mut command = command(arguments);
    for variable in
        ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"]
    {
        command.env_remove(variable);
    }
    command.env("HF_HOME", home).env("HF_ENDPOINT", endpoint).envs(more.iter().copied()).output().unwrap()
}

#[test]
fn models_come_from_a_hub_and_stay() {
    let room = tempfile::tempdir().unwrap();
    let (hub, endpoint) = Hub::start(repositories());
    let prompt = ["-p", "It was a dark evening", "-n", "6"];
    let run_from = |endpoint: &str, model: &str, more: &[(&str, &str)]| {
        with_hub(room.path(), endpoint, &[&["generate", model], &prompt[..]].concat(), more)
    };
    let written = |output: Output| {
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = written(run(&[&["generate", MODEL], &prompt[..]].concat()));

    // Once broken off, it goes on from where it was.
    *hub.breaks.lock().unwrap() = true;
    assert_eq!(written(run_from(&endpoint, "org/books", &[("HF_TOKEN", TOKEN)])), expected);
    let asked = std::mem::take(&mut *hub.asked.lock().unwrap());
    assert!(asked.iter().all(|(.., known)| *known), "{asked:?}");
    let names: Vec<&str> = asked.iter().map(|(path, ..)| path.rsplit('/').next().unwrap()).collect();
    assert!(names.contains(&"README.md") && !names.contains(&"pytorch_model.bin"), "{names:?}");
    let begun = |(path, range, _): &&(String, Option<String>, bool)| {
        let from = range
            .as_deref()
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        path.ends_with("model.safetensors") && from.is_some_and(|from| from > 0)
    };
    assert!(asked.iter().any(|asked| begun(&asked)), "{asked:?}");
    // Then the list of files is looked at, and nothing else.
    assert_eq!(written(run_from(&endpoint, "org/books@main", &[])), expected);
    let asked = std::mem::take(&mut *hub.asked.lock().unwrap());
    assert_eq!(asked.len(), 1, "{asked:?}");

    assert_eq!(written(run_from(&endpoint, "org/shards", &[])), expected);
    // The cache is laid out as Hugging Face's tools have it.
    let snapshot = room.path().join("hub/models--org--shards/snapshots").join(COMMIT);
    assert!(snapshot.join("model-2.safetensors").is_file());
    let out = room.path().join("rbe");
    let arguments =
        ["compress", "org/shards", string(&out), "--bits", "5", "--include", PROJECTIONS, "--weights-only"];
    written(with_hub(room.path(), &endpoint, &arguments, &[]));
    assert!(out.join("tokenizer.json").is_file());

    // Without a hub, by what is there.
    let offline = [("HF_HUB_OFFLINE", "1")];
    let nowhere = "http://127.0.0.1:9";
    for model in ["org/books", &format!("org/books@{COMMIT}")] {
        assert_eq!(written(run_from(nowhere, model, &offline)), expected);
    }
    let refused = |endpoint: &str, model: &str, more: &[(&str, &str)], sentence: &str| {
        let output = run_from(endpoint, model, more);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(sentence), "{model}: {error}\nis not\n{sentence}");
        assert!(
            error.contains(&format!(
                "there is no file or directory {model}, and {model} cannot be had from the hub"
            )),
            "{error}"
        );
    };
    refused(nowhere, "org/absent", &offline, "HF_HUB_OFFLINE is set, and the cache does not have all of it");
    refused(nowhere, "org/absent", &[], nowhere);
    refused(&endpoint, "org/absent", &[], "has no such repository or revision");
    refused(&endpoint, "org/books@v2", &[], "has no such repository or revision");
    refused(&endpoint, "org/gated", &[], "set HF_TOKEN or run `hf auth login`");
    refused(&endpoint, "org/quantised", &[], "it holds GGUF files; name one: org/quantised/a.Q4_0.gguf");
    refused(&endpoint, "org/quantised/b.gguf", &[], "has no b.gguf; its GGUF files are: a.Q4_0.gguf");
    let first = "m-00001-of-00003.gguf is one of 3, of which the repository has no m-00002-of-00003.gguf";
    refused(&endpoint, "org/split/m-00001-of-00003.gguf", &[], first);
    refused(&endpoint, "org/other", &[], "it holds neither model.safetensors nor");
    refused(&endpoint, "org/evil", &[], "\"../../../evil\", which is no file beside it");
    std::fs::write(room.path().join("token"), TOKEN).unwrap();
    assert_eq!(written(run_from(&endpoint, "org/gated", &[])), expected);
    // A file of that name is the file.
    let output = run_from(&endpoint, "org/quantised/a.Q4_0.gguf", &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("a.Q4_0.gguf: is not a GGUF file that can be read"), "{error}");
    // One of several brings all.
    let output = run_from(&endpoint, "org/parts/m-00002-of-00003.gguf", &[]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("m-00001-of-00003.gguf: is not a GGUF file that can be read"), "{error}");
}
