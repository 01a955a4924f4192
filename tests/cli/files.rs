//! Models as files: compressed, decoded, inspected, verified, pruned.

use super::*;

#[test]
fn compress_reports_what_it_did() {
    let room = tempfile::tempdir().unwrap();
    let out = room.path().join("out");
    let layer = r"layers\.0\..*_proj\.weight$";
    let report = json(&["compress", MODEL, string(&out), "--rel-error", "0.2", "--include", layer, "--json"]);
    assert_eq!(
        (number(&report, "compressed_tensors"), report["tensors"].as_array().unwrap().len()),
        (7.0, 57)
    );
    assert!(number(&report, "relative_error") <= 0.2 && number(&report, "relative_error") > 0.1);
    assert!(number(&report, "bits_per_weight") < 4.0);
    assert_eq!(names(&out), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(names(room.path()), ["out"]);

    let again = fail(&["compress", MODEL, string(&out), "--include", layer]);
    assert!(again.contains("already exists") && again.contains("--force"), "{again}");
    let settings = ["--quality", "fast", "--term", "planes", "--block", "64", "--transform", "haar"];
    let mut arguments = vec!["compress", MODEL, string(&out), "--include", layer, "--force"];
    arguments.extend(settings);
    let text = succeed(&arguments);
    assert!(text.contains("7 of 57 tensors compressed") && text.contains("MB"), "{text}");
    let inspected = json(&["inspect", string(&out), "--json"]);
    let tensors = inspected["tensors"].as_array().unwrap();
    let tensor = tensors.iter().find(|t| t["name"] == "model.layers.0.mlp.up_proj.weight").unwrap();
    let summary = tensor["summary"].as_str().unwrap();
    assert!(summary.contains("planes") && summary.contains("haar") && summary.contains("64"), "{summary}");
}

#[test]
fn files_are_entropy_coded_unless_they_are_to_be_plain() {
    let room = tempfile::tempdir().unwrap();
    let layer = r"layers\.0\.mlp\.up_proj\.weight$";
    let sizes = |name: &str, more: &[&str]| {
        let out = room.path().join(name);
        let arguments = ["compress", MODEL, string(&out), "--include", layer, "--term", "planes"];
        succeed(&[&arguments, more].concat());
        let report = json(&["inspect", string(&out), "--json"]);
        ["compressed_bytes", "plain_bytes", "memory_bytes"].map(|key| number(&report, key))
    };
    let [file, file_plain, file_memory] = sizes("file", &[]);
    let [coded, coded_plain, coded_memory] = sizes("memory", &["--in-memory"]);
    let [plain, plain_plain, plain_memory] = sizes("plain", &["--plain"]);
    assert_eq!((plain, plain_memory), (plain_plain, coded_memory));
    assert!(coded < 0.95 * plain && coded_plain == plain, "{coded} of {plain}");
    // The same file, finer steps, and more planes in memory.
    assert!((file / plain - 1.0).abs() < 0.01 && file_plain > 1.2 * file && file_memory > 1.2 * plain_memory);
    let text = succeed(&["inspect", string(&room.path().join("memory"))]);
    assert!(text.contains("entropy coding saves") && text.contains("in memory"), "{text}");
}

#[test]
fn compress_refuses_what_makes_no_sense() {
    let room = tempfile::tempdir().unwrap();
    let out = room.path().join("out");
    let with = |more: &[&str]| fail(&[&["compress", MODEL, string(&out)], more].concat());
    assert!(with(&["--bits", "4", "--k", "10"]).contains("cannot be used with"));
    assert!(with(&["--bits", "-1"]).contains("must be positive"));
    assert!(with(&["--block", "65"]).contains("32, 64, 128 and 256"));
    assert!(with(&["--include", "("]).contains("not a regular expression"));
    assert!(with(&["--include", "nothing-like-it"]).contains("none of its 57 tensors"));
    let rate = with(&["--bits", "0.001", "--include", r"0\.self_attn\.q_proj"]);
    assert!(rate.contains("\"model.layers.0.self_attn.q_proj.weight\": cannot reach 0.001 bits"), "{rate}");
    let absent = fail(&["compress", "models/absent", string(&out)]);
    assert!(absent.contains("models/absent"), "{absent}");
    assert!(names(room.path()).is_empty());
}

#[test]
fn compress_finds_the_size_for_a_divergence() {
    let room = tempfile::tempdir().unwrap();
    let out = room.path().join("out");
    let asked = [
        "compress",
        MODEL,
        string(&out),
        "--kl",
        "0.0008",
        "--text",
        TEXT,
        "--include",
        r"layers\.0\..*_proj",
    ];
    succeed(&asked);
    assert_eq!(names(room.path()), ["out"]);
    let report = json(&["eval", MODEL, string(&out), "--text", TEXT, "--json"]);
    let found = number(&report, "kl_divergence");
    assert!(found <= 0.0008 && found > 0.0006, "{found}");
    let again = fail(&asked);
    assert!(again.contains("already exists") && again.contains("--force"), "{again}");
    let none = room.path().join("none");
    let beyond = [
        "compress",
        MODEL,
        string(&none),
        "--kl",
        "1e-9",
        "--text",
        TEXT,
        "--include",
        r"layers\.0\..*q_proj",
    ];
    assert!(fail(&beyond).contains("ask for more"));
    assert_eq!(names(room.path()), ["out"]);
    assert!(fail(&["compress", MODEL, string(&none), "--kl", "0.1"]).contains("--text"));
}

#[test]
fn decode_gives_an_ordinary_file() {
    let room = tempfile::tempdir().unwrap();
    let out = room.path().join("decoded.safetensors");
    let report = json(&["decode", string(compressed()), string(&out), "--json"]);
    assert_eq!((number(&report, "tensors"), number(&report, "decoded_tensors")), (57.0, 42.0));
    let bytes = std::fs::read(&out).unwrap();
    let original =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL).join("model.safetensors")).unwrap();
    let decoded = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, view) in safetensors::SafeTensors::deserialize(&original).unwrap().iter() {
        let ours = decoded.tensor(name).unwrap();
        assert_eq!((ours.dtype(), ours.shape()), (view.dtype(), view.shape()), "{name}");
    }
    assert!(fail(&["decode", string(compressed()), string(&out)]).contains("--force"));
    succeed(&["decode", string(compressed()), string(&out), "--force", "--dtype", "f32"]);
    assert!(std::fs::metadata(&out).unwrap().len() > 2 * bytes.len() as u64 - 20_000);
    assert_eq!(names(room.path()), ["decoded.safetensors"]);
}

#[test]
fn inspect_lists_every_tensor() {
    let report = json(&["inspect", string(compressed()), "--json"]);
    assert_eq!(
        (number(&report, "compressed_tensors"), report["tensors"].as_array().unwrap().len()),
        (42.0, 57)
    );
    let (bits, memory) = (number(&report, "bits_per_weight"), number(&report, "memory_bits_per_weight"));
    assert!(bits > 4.5 && bits <= 5.0 && memory >= bits, "{bits}, {memory}");
    assert!(number(&report, "plain_bytes") >= number(&report, "compressed_bytes"));
    let text = succeed(&["inspect", string(compressed())]);
    assert_eq!(text.lines().count(), 1 + 57 + 2);
    let line = text.lines().find(|line| line.starts_with("model.layers.5.mlp.down_proj.weight ")).unwrap();
    assert!(line.contains("256 x 768") && line.contains("trellis"), "{line}");
    assert!(succeed(&["inspect", MODEL]).contains("nothing is compressed"));
    assert!(fail(&["inspect", "models"]).contains("holds neither model.safetensors nor"));
    assert!(fail(&["inspect", "Cargo.toml"]).contains("Cargo.toml: not a valid safetensors file"));
}

#[test]
fn verify_passes_the_original_and_fails_anything_else() {
    let rbe = string(compressed());
    let report = json(&["verify", rbe, "--against", MODEL, "--json"]);
    assert_eq!(number(&report, "problems"), 0.0);
    assert!(number(&report, "largest_relative_error") < 0.1);
    assert!(succeed(&["verify", rbe, "--against", MODEL]).contains("over all compressed tensors"));

    let room = tempfile::tempdir().unwrap();
    let damaged = room.path().join("damaged.safetensors");
    let mut bytes = std::fs::read(compressed().join("model.safetensors")).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&damaged, bytes).unwrap();
    let output = run(&["verify", string(&damaged), "--against", MODEL, "--json"]);
    assert!(!output.status.success());
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(number(&report, "problems"), 1.0);
    assert!(String::from_utf8(output.stderr).unwrap().contains("1 of 57 tensors do not verify"));
    let text = String::from_utf8(run(&["verify", string(&damaged), "--against", MODEL]).stdout).unwrap();
    assert!(text.contains("PROBLEM: ") && text.contains("checksum"), "{text}");
    assert!(!run(&["verify", rbe, "--against", "models/gpt2-books"]).status.success());
}

/// A conversion that is interrupted takes back what it had begun to write.
#[cfg(unix)]
#[test]
fn an_interrupted_conversion_leaves_nothing_behind() {
    let room = tempfile::tempdir().unwrap();
    let out = room.path().join("out");
    let names = || std::fs::read_dir(room.path()).unwrap().count();
    let mut rbe = command(&["compress", MODEL, string(&out), "--bits", "4.02"]);
    let mut rbe = rbe.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // It has begun when the hidden name is there, long before it is done.
    while names() == 0 {
        assert!(rbe.try_wait().unwrap().is_none(), "done before it was interrupted");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &rbe.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = rbe.wait_with_output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{errors}");
    assert!(errors.contains("stopped on request; nothing is written"), "{errors}");
    assert_eq!(names(), 0);
}

/// A limit on the size of files stands for a disk that fills up; the shell sets it, and has the program told by an
/// error instead of a signal.
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_is_an_error_and_leaves_nothing() {
    let room = tempfile::tempdir().unwrap();
    let limited = |arguments: &[&str]| {
        let script = "trap '' XFSZ; ulimit -f 6000; exec \"$0\" \"$@\"";
        let output = Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_rbe")])
            .args(arguments)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(names(room.path()).is_empty(), "{:?}", names(room.path()));
        String::from_utf8(output.stderr).unwrap()
    };
    let out = room.path().join("out");
    let layer = r"layers\.0\.self_attn\.q_proj";
    let directory = limited(&["compress", MODEL, string(&out), "--include", layer]);
    let file = limited(&["decode", string(compressed()), string(&out)]);
    for error in [directory, file] {
        assert!(error.contains(string(&out)) && error.contains("too large"), "{error}");
    }
}

#[test]
fn pruning_takes_coefficients_away_and_says_what_that_cost() {
    let room = tempfile::tempdir().unwrap();
    let path = |name: &str| room.path().join(name);
    let (sparse, pruned) = (path("sparse"), path("pruned"));
    succeed(&["compress", MODEL, string(&sparse), "--k", "300", "--term", "sparse", "--include", "k_proj"]);
    let arguments =
        ["prune", string(&sparse), string(&pruned), "--threshold", "0.1", "--against", MODEL, "--json"];
    let report = json(&arguments);
    assert_eq!(report.as_object().unwrap().len(), 6);
    let number = |tensor: &Value, key: &str| tensor[key].as_f64().unwrap();
    for (name, tensor) in report.as_object().unwrap() {
        let (before, after) = (number(tensor, "coefficients_before"), number(tensor, "coefficients_after"));
        assert!(0.0 < after && after < before, "{name}: {before} {after}");
        assert!(number(tensor, "bytes_after") < number(tensor, "bytes_before"));
        assert!(number(tensor, "error_after") > number(tensor, "error_before"));
        assert_eq!(tensor["measured"], true);
    }
    // What was measured is what the file says and what the original confirms.
    let verified = json(&["verify", string(&pruned), "--against", MODEL, "--json"]);
    assert!(verified.is_object());
    let bound = json(&["prune", string(&sparse), string(&path("bound")), "--threshold", "0.1", "--json"]);
    for (name, tensor) in report.as_object().unwrap() {
        assert!(number(&bound[name], "error_after") >= number(tensor, "error_after"));
    }
    assert!(fail(&arguments).contains("already exists"));
    let dense = fail(&["prune", MODEL, string(&path("x")), "--threshold", "1"]);
    assert!(dense.contains("sparse term"), "{dense}");
    let negative = fail(&["prune", string(&sparse), string(&path("y")), "--threshold=-1"]);
    assert!(negative.contains("at least 0"), "{negative}");
}

#[test]
fn block_edges_are_tried_and_ranked() {
    let arguments =
        ["blocks", MODEL, "--include", "q_proj", "--samples", "2", "--bits", "4.1", "--term", "planes"];
    let report = json(&[&arguments[..], &["--json"]].concat());
    let edges = report["edges"].as_array().unwrap();
    let scores: Vec<f64> = edges.iter().map(|edge| edge["score"].as_f64().unwrap()).collect();
    assert!(edges.len() == 4 && scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    assert!(scores.iter().all(|score| (0.0..=1.0).contains(score)));
    // Accuracy alone ranks by the error alone.
    let only = [&arguments[..], &["--memory", "0", "--speed", "0", "--json"]].concat();
    let report = json(&only);
    let errors: Vec<f64> =
        report["edges"].as_array().unwrap().iter().map(|e| e["relative_error"].as_f64().unwrap()).collect();
    assert!(errors.is_sorted(), "{errors:?}");
    assert!(fail(&["blocks", MODEL, "--memory=-1"]).contains("at least 0"));
    assert!(fail(&["blocks", MODEL, "--include", "nothing"]).contains("no matrix"));
}

/// Kernels that are matrices, and experts in one tensor, wherever a file is taken.
#[test]
fn kernels_and_stacks_are_matrices_to_every_command() {
    let room = tempfile::tempdir().unwrap();
    let [dense, out, back] =
        ["dense.safetensors", "rbe.safetensors", "back.safetensors"].map(|name| room.path().join(name));
    let (dense, out, back) = (string(&dense), string(&out), string(&back));
    let numbers = |shape: &[usize]| {
        let values = (0..shape.iter().product::<usize>()).map(|n| ((n * n + 7 * n) as f32 * 0.618).sin());
        candle_core::Tensor::from_vec(values.collect::<Vec<_>>(), shape, &candle_core::Device::Cpu).unwrap()
    };
    let tensors = [
        ("mlp.experts.down_proj", numbers(&[5, 40, 64])),
        ("mlp.experts.down_proj_bias", numbers(&[64, 40])),
        ("patch_embed.proj.weight", numbers(&[48, 3, 4, 4])),
    ];
    candle_core::safetensors::save(&tensors.into(), dense).unwrap();
    let report = json(&["compress", dense, out, "--bits", "4.5", "--json"]);
    assert_eq!(report["compressed_tensors"], 2);
    assert!(report["bits_per_weight"].as_f64().unwrap() <= 4.5, "{report}");
    let inspected = json(&["inspect", out, "--json"]);
    let lines = inspected["tensors"].as_array().unwrap();
    let [stack, bias, kernel] = &lines[..] else { panic!("{inspected}") };
    assert_eq!(
        (&stack["shape"], &kernel["shape"]),
        (&serde_json::json!([5, 40, 64]), &serde_json::json!([48, 3, 4, 4]))
    );
    assert!(stack["summary"].as_str().unwrap().starts_with("5 of "), "{stack}");
    assert!(stack["memory_bytes"].as_u64() > kernel["memory_bytes"].as_u64() && bias["compressed"] == false);
    assert!((stack["bits_per_weight"].as_f64().unwrap() - 4.5).abs() < 0.3, "{stack}");
    succeed(&["verify", out, "--against", dense]);
    succeed(&["decode", out, back]);
    let again = candle_core::safetensors::load(back, &candle_core::Device::Cpu).unwrap();
    assert_eq!(again["patch_embed.proj.weight"].dims(), [48, 3, 4, 4]);
    let edges = json(&["blocks", dense, "--bits", "4.5", "--samples", "2", "--term", "planes", "--json"]);
    assert_eq!(edges["edges"].as_array().unwrap().len(), 4);
}

#[test]
fn rows_that_lost_more_than_the_rest_are_told() {
    let room = tempfile::tempdir().unwrap();
    let (dense, out) = (room.path().join("dense.safetensors"), room.path().join("rbe.safetensors"));
    // Row 40 is a thousandth of the others, with whom it shares scales.
    let value = |n: usize| ((n * n + 7 * n) as f32 * 0.618).sin() * if n / 64 == 40 { 1e-3 } else { 1.0 };
    let values: Vec<f32> = (0..64 * 64).map(value).collect();
    let weight = candle_core::Tensor::from_vec(values, (64, 64), &candle_core::Device::Cpu).unwrap();
    candle_core::safetensors::save(&[("table.weight", weight)].into(), &dense).unwrap();
    let output = run(&["compress", string(&dense), string(&out), "--bits", "4.1"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && text.contains("\"table.weight\" has a row with a relative"), "{text}");
    let report = json(&["inspect", string(&out), "--json"]);
    assert!(number(&report["tensors"][0], "worst_row_error") > 3.0);
    assert!(number(&report["tensors"][0], "worst_block_error") < 0.2);
    let text = succeed(&["verify", string(&out), "--against", string(&dense)]);
    assert!(text.contains("ok, but row 40 has a relative error of"), "{text}");
    let report = json(&["verify", string(&out), "--against", string(&dense), "--json"]);
    assert_eq!(report["tensors"][0]["worst_row"][0], 40);
}
