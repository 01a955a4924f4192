//! Models that are run: compared, continued, profiled.

use super::*;

#[test]
fn eval_compares_two_models() {
    let rbe = string(compressed());
    let text = "models/evaluation.txt";
    let windows = ["--windows", "2", "--window-tokens", "48"];
    let evaluate =
        |more: &[&str]| json(&[&["eval", MODEL, rbe, "--text", text, "--json"], more, &windows].concat());
    let report = evaluate(&[]);
    let (kl, agreement) = (number(&report, "kl_divergence"), number(&report, "top1_agreement"));
    assert!(kl > 1e-5 && kl < 0.05, "{kl}");
    assert!(agreement > 0.8 && agreement <= 1.0, "{agreement}");
    assert!(number(&report, "max_logit_difference") > 0.01);
    assert!(number(&report, "candidate_bytes") < 0.6 * number(&report, "reference_bytes"));
    for model in ["reference", "candidate"] {
        let perplexity = number(&report[model], "perplexity");
        assert!(perplexity > 10.0 && perplexity < 200.0, "{model}: {perplexity}");
        assert!(number(&report[model], "tokens_per_second") > 0.0);
    }
    let itself = json(&[&["eval", MODEL, MODEL, "--text", text, "--json"], &windows[..]].concat());
    assert_eq!((number(&itself, "kl_divergence"), number(&itself, "top1_agreement")), (0.0, 1.0));
    assert!(
        succeed(&[&["eval", MODEL, rbe, "--text", text], &windows[..]].concat()).contains("KL divergence")
    );
    assert!(fail(&["eval", MODEL, rbe, "--text", "absent.txt"]).contains("cannot read the text absent.txt"));
    assert!(fail(&["eval", MODEL, rbe, "--text", text, "--windows", "100000"]).contains("100000 windows"));
}

#[test]
fn generate_continues_a_prompt() {
    let prompt = "It was a dark evening";
    let write = |model: &str, more: &[&str]| {
        let arguments = [&["generate", model, "--prompt", prompt, "-n", "12"], more].concat();
        let output = run(&arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let dense = write(MODEL, &[]);
    assert!(dense.starts_with(prompt) && dense.len() > prompt.len() + 20 && dense.ends_with('\n'), "{dense}");
    assert_eq!(dense, write(MODEL, &[]));
    assert!(write(string(compressed()), &[]).starts_with(prompt));
    let sampled = |seed| write(MODEL, &["--temperature", "1.2", "--seed", seed]);
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
    assert!(fail(&["generate", MODEL, "-p", "x", "--device", "gpu"]).contains("cuda:N"));
    if !cfg!(feature = "cuda") {
        let commands: [&[&str]; 2] =
            [&["generate", MODEL, "-p", "x"], &["eval", MODEL, MODEL, "--text", "models/evaluation.txt"]];
        for command in commands {
            let error = fail(&[command, &["--device", "cuda"]].concat());
            assert!(error.contains("--features cli,cuda"), "{error}");
        }
    }
    assert!(fail(&["generate", MODEL, "-p", "x", "--temperature", "0"]).contains("number above 0"));
    assert!(fail(&["generate", "models", "-p", "x"]).contains("tokenizer.json"));
}

/// A copy of the small LLaMA with one of its files changed.
fn changed(room: &Path, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(MODEL);
    let to = room.join(file.replace('.', "-"));
    std::fs::create_dir_all(&to).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let before = std::fs::read(to.join(file)).unwrap_or_default();
    std::fs::write(to.join(file), change(before)).unwrap();
    to
}

#[test]
fn a_model_whose_logits_are_not_finite_says_so() {
    let room = tempfile::tempdir().unwrap();
    let broken = changed(room.path(), "model.safetensors", |mut bytes| {
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let norm = file.tensor("model.norm.weight").unwrap().data().as_ptr();
        let at = norm as usize - bytes.as_ptr() as usize;
        assert!(at >= header);
        // A NaN in F16.
        bytes[at..at + 2].copy_from_slice(&[0, 0x7e]);
        bytes
    });
    let broken = string(&broken);
    for more in [&[][..], &["--temperature", "1"]] {
        let output = run(&[&["generate", broken, "-p", "It was", "-n", "5"], more].concat());
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("the model's logit of token 0 is NaN"), "{text}");
    }
    let eval = fail(&["eval", MODEL, broken, "--text", TEXT, "--windows", "1"]);
    assert!(eval.contains("the model's logit of token 0 is NaN"), "{eval}");
    let out = room.path().join("out");
    let compress = fail(&["compress", broken, string(&out), "--include", PROJECTIONS]);
    assert!(
        compress.contains("logit of token 0 is NaN") && compress.contains("--weights-only"),
        "{compress}"
    );
    let compress = fail(&["compress", broken, string(&out), "--include", PROJECTIONS, "--weights-only"]);
    assert!(compress.contains("tensor \"model.norm.weight\": holds 1 NaN of 256 values"), "{compress}");
    assert!(!out.exists());
    let verify = run(&["verify", broken, "--against", broken]);
    assert_eq!(verify.status.code(), Some(1));
    assert!(String::from_utf8(verify.stdout).unwrap().contains("PROBLEM: holds 1 NaN of 256 values"));
    let output = run(&["decode", broken, string(&out)]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("warning: tensor \"model.norm.weight\" holds 1 NaN"), "{text}");
}

#[test]
fn windows_begin_with_what_generation_puts_before_a_prompt() {
    let room = tempfile::tempdir().unwrap();
    let template = changed(room.path(), "tokenizer.json", |bytes| {
        let mut tokenizer: Value = serde_json::from_slice(&bytes).unwrap();
        let bos = "<|endoftext|>";
        tokenizer["post_processor"] = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [0], "tokens": [bos]}},
        });
        serde_json::to_vec(&tokenizer).unwrap()
    });
    let asked = changed(room.path(), "tokenizer_config.json", |_| {
        br#"{"add_bos_token": true, "bos_token": {"content": "<|endoftext|>"}}"#.to_vec()
    });
    let perplexity = |model: &str| {
        let report = json(&[
            "eval",
            model,
            model,
            "--text",
            TEXT,
            "--windows",
            "2",
            "--window-tokens",
            "32",
            "--json",
        ]);
        number(&report["reference"], "perplexity")
    };
    let generate = |model: &str| {
        String::from_utf8(run(&["generate", model, "-p", "It was", "-n", "12"]).stdout).unwrap()
    };
    let (plain, started) = (perplexity(MODEL), perplexity(string(&template)));
    assert!((plain - started).abs() > 0.01, "{plain} {started}");
    assert_eq!(perplexity(string(&asked)), started);
    assert_ne!(generate(MODEL), generate(string(&template)));
    assert_eq!(generate(string(&asked)), generate(string(&template)));
    // Said so, there is none.
    let neither = template.join("tokenizer_config.json");
    std::fs::write(&neither, r#"{"add_bos_token": false, "bos_token": "<|endoftext|>"}"#).unwrap();
    assert_eq!(perplexity(string(&template)), plain);
    assert_eq!(generate(string(&template)), generate(MODEL));
    // Asked for, and no one knows which.
    std::fs::write(asked.join("tokenizer_config.json"), r#"{"add_bos_token": true}"#).unwrap();
    assert_eq!(perplexity(string(&asked)), started, "config.json names it");
    std::fs::write(asked.join("config.json"), {
        let config = std::fs::read_to_string(asked.join("config.json")).unwrap();
        config.replace("\"bos_token_id\": 0,", "")
    })
    .unwrap();
    let error = fail(&["generate", string(&asked), "-p", "x"]);
    assert!(error.contains("names a BOS token"), "{error}");
}

#[test]
fn a_text_ends_where_either_configuration_says() {
    let room = tempfile::tempdir().unwrap();
    let written = |model: &str| {
        let output = run(&["generate", model, "-p", "It was a dark evening", "-n", "12"]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{text}");
        assert!(text.starts_with("5 tokens read, "), "{text}");
        let (before, _) = text.split_once(" written, ").unwrap();
        before.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    assert_eq!(written(MODEL), 12);
    // Every token but the model's own ends it.
    let ids: Vec<u32> = (1..4096).collect();
    let stopped = changed(room.path(), "generation_config.json", |_| {
        serde_json::json!({"eos_token_id": ids}).to_string().into_bytes()
    });
    assert_eq!(written(string(&stopped)), 0);
}

/// Standard output of `generate`.
fn written(model: &str, more: &[&str]) -> String {
    let output = run(&[&["generate", model, "-n", "12"], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn generation_config_says_how_tokens_are_chosen_unless_a_flag_does() {
    let room = tempfile::tempdir().unwrap();
    let with = |config: Value| {
        let model = changed(room.path(), "generation_config.json", |_| config.to_string().into_bytes());
        string(&model).to_owned()
    };
    let write =
        |model: &str, more: &[&str]| written(model, &[&["-p", "It was a dark evening"], more].concat());
    let (plain, hot) = (write(MODEL, &[]), write(MODEL, &["--temperature", "1.5"]));
    assert_ne!(plain, hot);
    assert_eq!(write(&with(serde_json::json!({"temperature": 1.5})), &[]), plain, "no do_sample");
    let sampling = with(serde_json::json!({"do_sample": true, "temperature": 1.5, "top_k": 0}));
    assert_eq!(write(&sampling, &[]), hot);
    assert_eq!(write(&sampling, &["--greedy"]), plain);
    assert_eq!(write(&sampling, &["--top-k", "1"]), plain);
    assert_eq!(write(&sampling, &["--top-p", "1e-9"]), plain);
    assert_eq!(write(&with(serde_json::json!({"do_sample": true, "top_k": 1})), &[]), plain);
    assert_ne!(write(MODEL, &["--temperature", "1.5", "--top-k", "3"]), hot);
    assert!(fail(&["generate", MODEL, "-p", "x", "--top-p", "1.5"]).contains("at most 1"));
    assert!(
        fail(&["generate", MODEL, "-p", "x", "--greedy", "--top-k", "2"]).contains("cannot be used with")
    );
    let penalty = with(serde_json::json!({"repetition_penalty": 1.1, "num_beams": 1}));
    let notes = String::from_utf8(run(&["generate", &penalty, "-p", "x", "-n", "1"]).stderr).unwrap();
    assert!(notes.contains("asks for repetition_penalty 1.1; that is not done here"), "{notes}");
}

#[test]
fn a_text_ends_before_a_stop_string() {
    let prompt = "It was a dark evening";
    let write = |more: &[&str]| written(MODEL, &[&["-p", prompt], more].concat());
    let whole = write(&[]);
    let new = whole[prompt.len()..].trim_end_matches('\n');
    let words: Vec<&str> = new.split_whitespace().collect();
    let word = words[words.len() / 2];
    let end = prompt.len() + new.find(word).unwrap();
    assert_eq!(write(&["--stop", word]), format!("{}\n", &whole[..end]));
    assert_eq!(write(&["--stop", "\u{1f980}", "--stop", word]), format!("{}\n", &whole[..end]));
    assert_eq!(write(&["--stop", "\u{1f980}"]), whole);
    assert_eq!(write(&["--stop", prompt]), whole, "the prompt's own text ends nothing");
    assert!(fail(&["generate", MODEL, "-p", "x", "--stop", ""]).contains("empty string"));
}

#[test]
fn a_conversation_is_written_by_the_chat_template() {
    let room = tempfile::tempdir().unwrap();
    let template = "{% for m in messages %}{{ m['role'] }}: {{ m.content.strip() }}\n{% endfor %}\
                    {% if add_generation_prompt %}It was{% endif %}";
    let model = changed(room.path(), "chat_template.jinja", |_| template.into());
    let model = string(&model);
    let answer = written(model, &["--chat", "-p", " What was it? ", "--system", "Be brief."]);
    let text = "system: Be brief.\nuser: What was it?\nIt was";
    let whole = written(MODEL, &["-p", text]);
    assert_eq!(format!("{text}{answer}"), whole, "the answer alone is written");
    assert!(answer.len() > 10);
    assert_ne!(written(model, &["--chat", "-p", "What was it?"]), answer);
    assert!(fail(&["generate", model, "-p", "x", "--system", "y"]).contains("--chat"));
    assert!(fail(&["generate", MODEL, "-p", "x", "--chat"]).contains("has no chat template"));
    let refusing = changed(room.path(), "chat_template.jinja", |_| "{{ raise_exception('no user') }}".into());
    let error = fail(&["generate", string(&refusing), "-p", "x", "--chat"]);
    assert!(error.contains("the chat template fails: no user"), "{error}");
}

#[test]
fn shells_complete_every_command_and_flag() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = succeed(&["completions", shell]);
        for word in ["compress", "generate", "top-p", "completions"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    assert!(fail(&["completions", "dos"]).contains("possible values"));
}

#[test]
fn a_model_of_another_kind_is_told_what_works() {
    let room = tempfile::tempdir().unwrap();
    let other = changed(room.path(), "config.json", |_| br#"{"model_type": "mamba"}"#.into());
    let error = fail(&["generate", string(&other), "-p", "x"]);
    for words in ["\"mamba\"", "supported are", "smollm3", "candle_rbe::candle_nn", "`rbe decode`"] {
        assert!(error.contains(words), "{words}: {error}");
    }
}

#[test]
fn demo_shows_both_models_side_by_side() {
    let text = succeed(&["demo", "-n", "8"]);
    for expected in
        ["perplexity", "KL divergence", "tokens written per second", "original:", "compressed:", "MB"]
    {
        assert!(text.contains(expected), "{expected} in {text}");
    }
    let mut elsewhere = command(&["demo"]);
    let room = tempfile::tempdir().unwrap();
    let output = elsewhere.current_dir(room.path()).output().unwrap();
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("root of the repository"));
}

#[test]
fn profile_counts_every_layer() {
    let (room, model) = (tempfile::tempdir().unwrap(), string(compressed()));
    let picture = room.path().join("profile.svg");
    let arguments =
        ["profile", model, "--text", TEXT, "--tokens", "20", "-n", "3", "--svg", string(&picture)];
    let table = succeed(&arguments);
    assert!(table.contains("model.layers.5.mlp.down_proj") && table.contains("20 tokens read and 3 written"));
    assert!(std::fs::read_to_string(&picture).unwrap().contains("model.layers.5.mlp.down_proj"));
    assert!(fail(&arguments).contains("already exists"));
    let mut again = arguments.to_vec();
    again.push("--force");
    succeed(&again);
    assert_eq!(names(room.path()), ["profile.svg"]);
    let report =
        json(&["profile", model, "--text", TEXT, "--tokens", "20", "-n", "3", "--mode", "full:1", "--json"]);
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 42);
    for layer in layers {
        // The prompt, and two of the tokens written after it.
        assert_eq!((number(layer, "calls"), number(layer, "tokens")), (3.0, 22.0));
        assert!(number(layer, "nanoseconds") > 0.0);
        // One MiB holds every block of these, decoded before the counting began.
        assert!(number(layer, "cache_hits") > 0.0 && number(layer, "cache_misses") == 0.0);
    }
    assert!(fail(&["profile", MODEL, "--text", TEXT]).contains("has no compressed layer"));
    assert!(fail(&["profile", model, "--text", TEXT, "--mode", "half"]).contains("full:MIB"));
}

#[test]
fn an_importance_matrix_stands_in_for_a_run() {
    let room = tempfile::tempdir().unwrap();
    let (imatrix, output) = (room.path().join("imatrix.gguf"), room.path().join("rbe"));
    let said = succeed(&["imatrix", MODEL, string(&imatrix)]);
    assert!(said.contains("the inputs of 43 layers over 16 windows of 128 tokens"), "{said}");
    let error = fail(&["imatrix", MODEL, string(&imatrix), "--text", TEXT]);
    assert!(error.contains("exists"), "{error}");
    let compress = |flags: &[&str]| {
        let arguments = ["compress", MODEL, string(&output), "--force", "--include", "layers.0.mlp"];
        succeed(&[&arguments, flags].concat());
        std::fs::read(output.join("model.safetensors")).unwrap()
    };
    // It was made as the default makes its own.
    assert_eq!(compress(&["--imatrix", string(&imatrix)]), compress(&[]));
    succeed(&["imatrix", MODEL, string(&imatrix), "--text", TEXT, "--samples", "4", "--force"]);
    assert_ne!(compress(&["--imatrix", string(&imatrix)]), compress(&["--weights-only"]));
}
