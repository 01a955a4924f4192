//! The `rbe` program under faults: what it must not replace, what it leaves when it is killed or interrupted, and what it says
//! of inputs and settings that are not what they should be, before the work.
#![cfg(all(feature = "cli", unix))]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MODEL: &str = "models/llama-books";
const TEXT: &str = "models/evaluation.txt";
/// A compression that takes a moment.
const LITTLE: [&str; 2] = ["--include", r"layers\.0\.self_attn\.q_proj"];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rbe"));
    // Candle's errors carry a backtrace of many lines where it is asked for.
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_BACKTRACE");
    command
}

fn output(arguments: &[&str]) -> Output {
    command(arguments).stdin(Stdio::null()).output().unwrap()
}

fn succeed(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Standard error of a run that fails with one sentence and nothing on standard output.
fn fail(arguments: &[&str]) -> String {
    let output = output(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("error: ") && text.lines().count() == 1, "{text}");
    text
}

/// A process that is ended when the test is.
struct Running(Child);

impl Running {
    fn start(arguments: &[&str]) -> Self {
        Self(command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// Until `there` says so, while the process runs.
    fn wait_for<T>(&mut self, mut there: impl FnMut() -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(found) = there() {
                return found;
            }
            assert!(self.0.try_wait().unwrap().is_none(), "it ended before");
            assert!(start.elapsed() < Duration::from_secs(300), "it did not come");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut errors = String::new();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut errors).unwrap();
        (self.0.wait().unwrap().code(), errors)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Room(TempDir);

impl Room {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn string(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn names(&self) -> Vec<String> {
        names(self.0.path())
    }

    /// The hidden directory of a run, where there is one that is locked.
    fn hidden(&self) -> Option<PathBuf> {
        let hidden = self.names().into_iter().find(|name| name.ends_with(".partial"))?;
        let path = self.path(&hidden);
        path.join("candle-rbe.lock").exists().then_some(path)
    }

    /// A copy of the dense model with its configuration changed.
    fn model(&self, name: &str, config: impl FnOnce(String) -> String) -> String {
        std::fs::create_dir(self.path(name)).unwrap();
        for file in ["model.safetensors", "tokenizer.json"] {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL).join(file);
            std::os::unix::fs::symlink(source, self.path(name).join(file)).unwrap();
        }
        let text =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL).join("config.json"));
        std::fs::write(self.path(name).join("config.json"), config(text.unwrap())).unwrap();
        self.string(name)
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A safetensors file of one empty tensor, or of bytes, by name.
fn file(path: &Path, names: &[&str]) {
    let empty = |name: &&str| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![1], &[7]).unwrap();
        (name.to_string(), view)
    };
    safetensors::serialize_to_file(names.iter().map(empty), None, path).unwrap();
}

#[test]
fn a_search_for_a_divergence_replaces_only_what_a_compression_would() {
    let room = Room::new();
    let out = room.string("out");
    let within = |output: &str| {
        let arguments = ["compress", MODEL, output, "--kl", "0.5", "--text", TEXT, "--force"];
        fail(&[&arguments[..], &LITTLE].concat())
    };
    std::fs::create_dir(room.path("out")).unwrap();
    std::fs::write(room.path("out/letters.txt"), "dear").unwrap();
    assert!(within(&out).contains("letters.txt"));
    assert_eq!(names(&room.path("out")), ["letters.txt"]);
    // A model that was not made here, and an input, are as foreign.
    let dense = room.model("dense", |config| config);
    let before = names(&room.path("dense"));
    assert!(within(&dense).contains("not overwritten"));
    let arguments = ["compress", &dense, &dense, "--kl", "0.5", "--text", TEXT, "--force"];
    assert!(fail(&arguments).contains("is the input itself"));
    assert_eq!(names(&room.path("dense")), before);
    let text = room.string("text");
    std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join(TEXT), &text).unwrap();
    let weights = format!("{MODEL}/model.safetensors");
    let profile = ["profile", MODEL, "--text", &text, "--svg", &text, "--force"];
    assert!(fail(&profile).contains("is the input itself"));
    assert!(fail(&["decode", MODEL, "/dev/null", "--force"]).contains("/dev/null: is a device"));
    assert!(fail(&["compress", &weights, "/dev/null", "--force"]).contains("/dev/null: is a device"));
    assert_eq!(room.names(), ["dense", "out", "text"]);
}

#[test]
fn a_run_that_is_killed_is_cleared_away_by_the_next_and_one_that_lives_is_not() {
    let room = Room::new();
    let out = room.string("out");
    let mut killed = Running::start(&["compress", MODEL, &out]);
    let left = killed.wait_for(|| room.hidden());
    killed.signal("-KILL");
    drop(killed);
    assert!(left.is_dir() && room.names().len() == 1);
    let mut alive = Running::start(&["compress", MODEL, &out]);
    let mine = alive.wait_for(|| room.hidden().filter(|path| *path != left));
    // Held where it is, so that it cannot be done before the next one.
    alive.signal("-STOP");
    assert!(!left.exists());
    succeed(&[&["compress", MODEL, &out], &LITTLE[..]].concat());
    assert!(mine.is_dir(), "the directory of a run that lives was removed");
    assert_eq!(room.names().len(), 2, "{:?}", room.names());
    alive.signal("-TERM");
    alive.signal("-CONT");
    let (status, errors) = alive.end();
    assert_eq!((status, room.names()), (Some(130), vec!["out".to_owned()]), "{errors}");
}

#[test]
fn an_interrupt_at_any_time_leaves_nothing() {
    // While a model is being compressed for a divergence, and while it is compared.
    let room = Room::new();
    let out = room.string("out");
    let arguments = ["compress", MODEL, &out, "--kl", "1e-7", "--text", TEXT];
    let arguments = [&arguments[..], &LITTLE].concat();
    for compared in [false, true] {
        let mut rbe = Running::start(&arguments);
        rbe.wait_for(|| {
            let hidden = room.hidden()?;
            let weights = std::fs::read(hidden.join("output/model.safetensors")).unwrap_or_default();
            // The header's length is written last.
            let whole = weights.get(..8).is_some_and(|length| length != [b' '; 8] && length != [0; 8]);
            (!compared || whole).then_some(())
        });
        rbe.signal("-INT");
        let (status, errors) = rbe.end();
        assert_eq!(status, Some(130), "{errors}");
        assert!(errors.contains("stopped on request; nothing is written"), "{errors}");
        assert!(room.names().is_empty(), "{:?}", room.names());
    }
}

#[test]
fn an_interrupted_calibration_goes_on_where_it_was() {
    let room = Room::new();
    let part =
        ["--include", r"layers\.[01]\.self_attn", "--calibrate", "models/calibration.txt", "--samples", "2"];
    let (once, twice) = (room.string("once"), room.string("twice"));
    let [once, twice] = [&once, &twice].map(|output| [&["compress", MODEL, output][..], &part].concat());
    succeed(&once);
    let kept =
        || room.names().into_iter().find(|name| name.starts_with(".twice.") && name.ends_with(".layers"));
    // Killed, interrupted: after a matrix or more.
    for signal in ["-KILL", "-INT"] {
        let mut rbe = Running::start(&twice);
        let before = kept().map_or(200, |name| std::fs::metadata(room.path(&name)).unwrap().len());
        rbe.wait_for(|| (std::fs::metadata(room.path(&kept()?)).ok()?.len() > before).then_some(()));
        rbe.signal(signal);
        let (status, errors) = rbe.end();
        if signal == "-INT" {
            assert_eq!(status, Some(130), "{errors}");
            assert!(errors.contains("nothing is written") && errors.contains(&kept().unwrap()), "{errors}");
            assert!(errors.contains("the same command goes on"), "{errors}");
            assert_eq!(room.names().len(), 2, "{:?}", room.names());
        }
    }
    succeed(&twice);
    assert_eq!(room.names(), ["once", "twice"]);
    let file = |output: &str| std::fs::read(room.path(output).join("model.safetensors")).unwrap();
    assert!(file("once") == file("twice"), "another output than of a run that was not interrupted");
}

#[test]
fn an_interrupt_ends_a_program_that_nobody_listens_to() {
    let room = Room::new();
    let out = room.string("out");
    let mut rbe = command(&["compress", MODEL, &out]);
    let mut rbe = rbe.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // A terminal that is closed.
    drop(rbe.stderr.take());
    while room.hidden().is_none() {
        assert!(rbe.try_wait().unwrap().is_none(), "done before it was interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-HUP", &rbe.id().to_string()]).status().unwrap().success());
    let ended = (0..6000).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        rbe.try_wait().unwrap()
    });
    rbe.kill().unwrap();
    assert_eq!(ended.expect("it goes on for a minute").code(), Some(130));
    assert!(room.names().is_empty(), "{:?}", room.names());
}

#[test]
fn levels_that_are_not_there_are_named_at_the_start() {
    for level in ["", "fastest", "AVX2", if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" }] {
        let output = command(&["inspect", MODEL]).env("RBE_CPU", level).output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains(&format!("RBE_CPU is {level:?}; this processor has scalar")), "{errors}");
    }
    let output = command(&["inspect", MODEL]).env("RBE_CPU", "scalar").output().unwrap();
    assert!(output.status.success());
}

#[test]
fn names_of_any_length_and_content_are_listed() {
    let room = Room::new();
    let long = "n".repeat(1 << 16);
    let nasty = "a\u{1b}[2J\u{9b}31m\u{7}\r\nb\u{202e}";
    file(&room.path("odd"), &[&long, nasty]);
    let odd = room.string("odd");
    let table = succeed(&["inspect", &odd]);
    assert!(table.contains(&long) && table.contains(r"a\u{1b}[2J\u{9b}31m\u{7}\r\nb\u{202e}"), "{table}");
    let json = succeed(&["inspect", &odd, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(report["tensors"][0]["name"], nasty);
    // An index that names a file so, and a path.
    std::fs::create_dir(room.path("sharded")).unwrap();
    let index = serde_json::json!({ "weight_map": { nasty: nasty } });
    std::fs::write(room.path("sharded/model.safetensors.index.json"), index.to_string()).unwrap();
    let errors = [
        fail(&["inspect", &room.string("sharded")]),
        fail(&["inspect", &room.string(nasty)]),
        fail(&["verify", &odd, "--against", &room.string(nasty)]),
        fail(&["compress", &odd, &room.string("out")]),
    ];
    let verified = output(&["verify", &odd, "--against", &odd]);
    let more = [verified.stdout, verified.stderr].concat();
    for text in errors.into_iter().chain([table, json, String::from_utf8(more).unwrap()]) {
        assert!(!text.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{text:?}");
    }
}

#[test]
fn a_fifo_is_not_waited_for() {
    let room = Room::new();
    let fifo = |name: &str| {
        assert!(Command::new("mkfifo").arg(room.path(name)).status().unwrap().success());
        room.string(name)
    };
    let alone = fifo("alone");
    assert!(fail(&["inspect", &alone]).contains("is a device, a FIFO or a socket"));
    assert!(fail(&["compress", &alone, &room.string("out")]).contains("is a device, a FIFO or a socket"));
    std::fs::create_dir(room.path("model")).unwrap();
    fifo("model/model.safetensors");
    assert!(fail(&["inspect", &room.string("model")]).contains("is a device, a FIFO or a socket"));
    std::fs::create_dir(room.path("sharded")).unwrap();
    fifo("sharded/model.safetensors.index.json");
    assert!(fail(&["inspect", &room.string("sharded")]).contains("is a device, a FIFO or a socket"));
    let model = room.model("config", |config| config);
    std::fs::remove_file(room.path("config/config.json")).unwrap();
    fifo("config/config.json");
    assert!(fail(&["generate", &model, "-p", "x"]).contains("is a device, a FIFO or a socket"));
    std::fs::remove_file(room.path("config/tokenizer.json")).unwrap();
    fifo("config/tokenizer.json");
    assert!(fail(&["generate", &model, "-p", "x"]).contains("tokenizer.json"));
}

#[test]
fn what_would_fail_after_the_work_is_said_before_it() {
    let room = Room::new();
    let text = room.string("short");
    std::fs::write(&text, "It was a dark evening.").unwrap();
    let out = room.string("out");
    let start = Instant::now();
    // All matrices: were they compressed first, that would take long.
    let within = |model: &str, text: &str, output: &str| {
        fail(&["compress", model, output, "--kl", "0.5", "--text", text])
    };
    assert!(within(MODEL, &text, &out).contains("too short for 8 windows of 128"));
    assert!(within(MODEL, &room.string("absent"), &out).contains("cannot read the text"));
    let nowhere = room.string("no/such/out");
    assert!(within(MODEL, &text, &nowhere).contains("there is no directory"));
    for command in ["--calibrate", "--text"] {
        // The output comes first, whatever else is wrong.
        let more = if command == "--text" { vec!["--kl", "0.5"] } else { vec![] };
        let arguments = [&["compress", MODEL, &nowhere, command, &text][..], &more].concat();
        assert!(fail(&arguments).contains("there is no directory"));
    }
    let unknown = room.model("unknown", |config| config.replace("\"llama\"", "\"mamba\""));
    assert!(within(&unknown, TEXT, &out).contains("model_type \"mamba\""));
    let wrong =
        room.model("wrong", |config| config.replace("\"hidden_size\":", "\"hidden_size\": null, \"was\":"));
    assert!(within(&wrong, TEXT, &out).contains("hidden_size: invalid type: null"));
    let huge = room.model("huge", |config| {
        config.replace(
            "\"num_attention_heads\":",
            "\"head_dim\": 4611686018427387904, \"num_attention_heads\":",
        )
    });
    for arguments in [vec!["generate", &huge, "-p", "x"], vec!["eval", &huge, &huge, "--text", TEXT]] {
        assert!(fail(&arguments).contains("head_dim is 4611686018427387904"));
    }
    let narrow = room.model("narrow", |config| {
        let json: serde_json::Value = serde_json::from_str(&config).unwrap();
        let context = json["max_position_embeddings"].to_string();
        config.replace(&format!("\"max_position_embeddings\": {context}"), "\"max_position_embeddings\": 100")
    });
    assert!(
        within(&narrow, TEXT, &out).contains("128 tokens are more than the model's context of 100 positions")
    );
    let long = "word ".repeat(200);
    let prompt = fail(&["generate", &narrow, "-p", &long]);
    assert!(prompt.contains("and the model's context 100 positions"), "{prompt}");
    assert!(!room.path("out").exists());
    assert!(start.elapsed() < Duration::from_secs(600));
    // A plain compression does not run the model, and tells that it could not.
    let arguments = [&["compress", &unknown, &out], &LITTLE[..]].concat();
    let done = output(&arguments);
    assert!(done.status.success());
    assert!(
        String::from_utf8(done.stderr)
            .unwrap()
            .contains("note: no model of this program will run the output")
    );
}

#[test]
fn a_tokenizer_larger_than_the_vocabulary_is_found_before_the_work() {
    let room = Room::new();
    // The same weights with the last half of the vocabulary cut off.
    let model = room.model("small", |config| config);
    let weights = std::fs::read(room.path("small/model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let mut kept = Vec::new();
    let mut half = 0;
    for (name, view) in tensors.iter() {
        let (mut shape, mut bytes) = (view.shape().to_vec(), view.data());
        if name == "model.embed_tokens.weight" || name == "lm_head.weight" {
            half = shape[0] / 2;
            bytes = &bytes[..bytes.len() / shape[0] * half];
            shape[0] = half;
        }
        kept.push((name, safetensors::tensor::TensorView::new(view.dtype(), shape, bytes).unwrap()));
    }
    std::fs::remove_file(room.path("small/model.safetensors")).unwrap();
    safetensors::serialize_to_file(kept, None, &room.path("small/model.safetensors")).unwrap();
    let config = std::fs::read_to_string(room.path("small/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["vocab_size"] = half.into();
    std::fs::write(room.path("small/config.json"), config.to_string()).unwrap();
    let out = room.string("out");
    for more in [&["--kl", "0.5", "--text", TEXT][..], &["--calibrate", TEXT]] {
        let error = fail(&[&["compress", &model, &out], more].concat());
        assert!(
            error.contains(&format!("is not in the vocabulary of {half}; the tokenizer is not")),
            "{error}"
        );
    }
    let error = fail(&["eval", &model, &model, "--text", TEXT]);
    assert!(error.contains("is not in the vocabulary"), "{error}");
}

#[test]
fn files_that_stand_for_a_model_are_told_from_one() {
    let room = Room::new();
    let hint = |name: &str, bytes: &[u8], words: &str| {
        std::fs::write(room.path(name), bytes).unwrap();
        let error = fail(&["inspect", &room.string(name)]);
        assert!(error.contains(words), "{error}");
    };
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    hint("pointer", pointer, "git lfs pull");
    hint("torch.bin", b"PK\x03\x04and so on, and on", "save the model as safetensors");
    hint("pickle.bin", b"\x80\x02and so on, and on", "save the model as safetensors");
    hint("model.gguf", b"GGUF\x03\0\0\0and so on", "GGUF");
    hint("page", b"<!DOCTYPE html><html></html>", "web page");
    for (directory, inside, words) in [
        ("torch", "pytorch_model.bin", "save the model as safetensors"),
        ("adapter", "adapter_model.safetensors", "merge it into its base model"),
        ("other", "weights.safetensors", "name that file"),
        ("gguf", "model.Q4_K.gguf", "name that file, which `rbe compress` and `rbe decode` take"),
    ] {
        std::fs::create_dir(room.path(directory)).unwrap();
        std::fs::write(room.path(directory).join(inside), "x").unwrap();
        let error = fail(&["inspect", &room.string(directory)]);
        assert!(
            error.contains("holds neither") && error.contains(inside) && error.contains(words),
            "{error}"
        );
    }
    let model = room.model("model", |config| config);
    std::fs::write(room.path("model/config.json"), pointer).unwrap();
    assert!(fail(&["generate", &model, "-p", "x"]).contains("git lfs pull"));
    std::fs::remove_file(room.path("model/tokenizer.json")).unwrap();
    std::fs::write(room.path("model/tokenizer.json"), pointer).unwrap();
    assert!(fail(&["generate", &model, "-p", "x"]).contains("git lfs pull"));
    // The same tensors under other prefixes.
    for (stored, words) in [
        ("base_model.model.model.embed_tokens.weight", "with \"base_model.model.\" before it"),
        ("embed_tokens.weight", "without \"model.\" before it"),
    ] {
        let model = room.model(stored, |config| config);
        std::fs::remove_file(room.path(stored).join("model.safetensors")).unwrap();
        file(&room.path(stored).join("model.safetensors"), &[stored]);
        let error = fail(&["generate", &model, "-p", "x"]);
        assert!(error.contains(words) && error.contains("another prefix"), "{error}");
    }
}
