//! Mixtures of experts.

use super::*;

#[test]
fn mixtral() -> Result<()> {
    let config = config(
        "mixtral",
        json!({
            "sliding_window": 64, "num_experts_per_tok": 2, "num_local_experts": 5, "use_flash_attn": false,
        }),
    );
    let (ours, weights) = model(&config)?;
    assert_eq!(weights["model.layers.2.block_sparse_moe.experts.4.w2.weight"].dims(), [48, 80]);
    let parsed = parsed::<theirs::mixtral::Config>(&config)?;
    type Mixtral = theirs::mixtral::Model;
    agree!(
        "mixtral",
        &ours,
        Mixtral::new(&parsed, builder(&weights)),
        |model: &mut Mixtral, x: &Tensor, at| { model.forward(x, at) }
    )
}

pub(super) fn qwen3_moe_config(normalized: bool) -> Value {
    config(
        "qwen3_moe",
        json!({
            "attention_bias": false, "max_window_layers": 3, "use_sliding_window": false, "decoder_sparse_step": 2,
            "moe_intermediate_size": 40, "num_experts_per_tok": 3, "num_experts": 7, "norm_topk_prob": normalized,
        }),
    )
}

#[test]
fn qwen3_moe() -> Result<()> {
    for normalized in [true, false] {
        let config = qwen3_moe_config(normalized);
        let (ours, weights) = model(&config)?;
        assert_eq!(weights["model.layers.0.mlp.up_proj.weight"].dims(), [80, 48]);
        assert_eq!(weights["model.layers.1.mlp.experts.6.up_proj.weight"].dims(), [40, 48]);
        let parsed = parsed::<theirs::qwen3_moe::Config>(&config)?;
        type Qwen = theirs::qwen3_moe::ModelForCausalLM;
        agree!(
            "qwen3_moe",
            &ours,
            Qwen::new(&parsed, builder(&weights)),
            |model: &mut Qwen, x: &Tensor, at| { model.forward(x, at) }
        )?;
    }
    Ok(())
}

/// Of experts that no token chose nothing is read, and each is called once for all tokens that did.
#[test]
fn experts_that_are_not_chosen_are_not_touched() -> Result<()> {
    use candle_rbe::nn::ForwardHook;
    use std::sync::{Arc, Mutex};

    #[derive(Debug)]
    struct Note(usize, Arc<Mutex<Vec<(usize, usize)>>>);
    impl ForwardHook for Note {
        fn after(&self, x: &Tensor, y: Tensor) -> candle_core::Result<Tensor> {
            self.1.lock().unwrap().push((self.0, x.dim(0)?));
            Ok(y)
        }
    }
    let mut ours = model(&qwen3_moe_config(true))?.0;
    let notes = Arc::new(Mutex::new(vec![]));
    let mut linears = ours.linears_mut();
    for expert in 0..7 {
        let name = format!("model.layers.1.mlp.experts.{expert}.down_proj.weight");
        let (_, linear) = linears.iter_mut().find(|(known, _)| *known == name).expect("an expert");
        linear.add_forward_hook(Arc::new(Note(expert, notes.clone())));
    }
    assert!(linears.iter().any(|(name, _)| name == "model.layers.1.mlp.gate.weight"));
    ours.forward(&ids(&[3])?, None)?;
    let one: Vec<_> = std::mem::take(&mut *notes.lock().unwrap());
    assert_eq!((one.len(), one.iter().map(|(_, rows)| rows).sum::<usize>()), (3, 3), "{one:?}");
    ours.forward(&ids(&prompt())?, None)?;
    let all = std::mem::take(&mut *notes.lock().unwrap());
    assert_eq!(all.iter().map(|(_, rows)| rows).sum::<usize>(), 3 * TOKENS, "{all:?}");
    assert!(all.len() <= 7, "{all:?}");
    Ok(())
}

/// How a file stacks the experts of a layer.
struct Stacking {
    /// What the stacks are called, and of which experts' layers, side by side, they are.
    stacks: &'static [(&'static str, &'static [&'static str])],
    /// What their names begin with after the layer, and end with.
    before: &'static str,
    end: &'static str,
    in_out: bool,
}

const GATED: &[(&str, &[&str])] =
    &[("gate_up_proj", &["gate_proj", "up_proj"]), ("down_proj", &["down_proj"])];
const APART: &[(&str, &[&str])] =
    &[("gate_proj", &["gate_proj"]), ("up_proj", &["up_proj"]), ("down_proj", &["down_proj"])];
const MIXTRAL: &[(&str, &[&str])] = &[("gate_up_proj", &["w1", "w3"]), ("down_proj", &["w2"])];
const MIXTRAL_APART: &[(&str, &[&str])] = &[("w1", &["w1"]), ("w2", &["w2"]), ("w3", &["w3"])];

impl Stacking {
    /// The weights of a model with the experts of every layer stacked.
    fn of(&self, weights: &HashMap<String, Tensor>, count: usize) -> Result<HashMap<String, Tensor>> {
        let mut all = HashMap::new();
        let is_expert = |name: &str| name.contains(".experts.");
        for (name, weight) in weights.iter().filter(|(name, _)| !is_expert(name)) {
            let router = name.replace(".block_sparse_moe.gate.", &format!(".{}.gate.", self.before));
            all.insert(router, weight.clone());
        }
        let layers: std::collections::BTreeSet<&str> =
            weights.keys().filter_map(|name| name.split_once(".experts.")).map(|(layer, _)| layer).collect();
        for layer in layers {
            for (stack, parts) in self.stacks {
                let expert = |index: usize| -> Result<Tensor> {
                    let part =
                        |part: &&str| weights[&format!("{layer}.experts.{index}.{part}.weight")].clone();
                    let joined = Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0)?;
                    Ok(if self.in_out { joined.t()?.contiguous()? } else { joined })
                };
                let experts = (0..count).map(expert).collect::<Result<Vec<_>>>()?;
                let (layer, _) = layer.rsplit_once('.').expect("a module");
                let name = format!("{layer}.{}.experts.{stack}{}", self.before, self.end);
                all.insert(name, Tensor::stack(&experts, 0)?);
            }
        }
        Ok(all)
    }
}

fn mixtral_config() -> Value {
    config("mixtral", json!({"num_experts_per_tok": 2, "num_local_experts": 5}))
}

fn stackings() -> [(Value, usize, Stacking); 7] {
    let stacking = |stacks, before, end, in_out| Stacking { stacks, before, end, in_out };
    let qwen = || qwen3_moe_config(true);
    [
        (qwen(), 7, stacking(GATED, "mlp", "", false)),
        (qwen(), 7, stacking(GATED, "mlp", "", true)),
        (qwen(), 7, stacking(GATED, "mlp", ".weight", true)),
        (qwen(), 7, stacking(APART, "mlp", ".weight", false)),
        (mixtral_config(), 5, stacking(MIXTRAL, "block_sparse_moe", "", true)),
        (mixtral_config(), 5, stacking(MIXTRAL, "mlp", "", false)),
        (mixtral_config(), 5, stacking(MIXTRAL_APART, "block_sparse_moe", ".weight", false)),
    ]
}

#[test]
fn experts_in_stacks_are_the_experts_apart() -> Result<()> {
    let tokens = ids(&prompt())?;
    for (config, count, stacking) in stackings() {
        let (mut apart, weights) = model(&config)?;
        let stacked = stacking.of(&weights, count)?;
        let mut ours = Model::new(Config::from_json(&config.to_string())?, builder(&stacked))?;
        assert_close("stacked", &ours.forward(&tokens, None)?, &apart.forward(&tokens, None)?);
        // Each linear layer of an expert is there under the stack's name and its number.
        let name = |stack: &str, index: usize| {
            format!("model.layers.1.{}.experts.{stack}{}.{index}", stacking.before, stacking.end)
        };
        let pattern = regex::Regex::new(&apart.config().projections())?;
        let linears: HashMap<String, Vec<usize>> = ours
            .linears_mut()
            .into_iter()
            .map(|(name, linear)| (name, linear.weight().dims().to_vec()))
            .collect();
        for (stack, parts) in stacking.stacks {
            let rows: usize = linears[&name(stack, count - 1)][0] / parts.len();
            let one = format!(".experts.0.{}.weight", parts[0]);
            let (_, part) =
                apart.linears_mut().into_iter().find(|(name, _)| name.ends_with(&one)).expect("one");
            assert_eq!(rows, part.weight().dims()[0], "{stack}");
            let tensor = name(stack, 0);
            assert!(pattern.is_match(tensor.strip_suffix(".0").expect("a number")), "{tensor}");
        }
        assert!(
            pattern.is_match("model.layers.0.self_attn.q_proj.weight")
                && !pattern.is_match("model.norm.weight")
        );
    }
    Ok(())
}

#[test]
fn stacks_of_another_shape_are_refused_by_name() -> Result<()> {
    let (config, count, stacking) = stackings().into_iter().next().expect("one");
    let weights = model(&config)?.1;
    let stack = "model.layers.1.mlp.experts.gate_up_proj";
    let refused = |shape: &[usize]| -> Result<String> {
        let mut stacked = stacking.of(&weights, count)?;
        stacked.insert(stack.into(), Tensor::zeros(shape, DType::F32, &CPU)?);
        Ok(Model::new(Config::from_json(&config.to_string())?, builder(&stacked)).unwrap_err().to_string())
    };
    let error = refused(&[7, 79, 48])?;
    assert!(error.contains(stack) && error.contains("expected [7, 80, 48], or [7, 48, 80]"), "{error}");
    let error = refused(&[6, 80, 48])?;
    assert!(error.contains("the file holds [6, 80, 48]"), "{error}");
    assert!(refused(&[80, 48])?.contains("it has three sides"));
    // Both ways in one layer.
    assert!(refused(&[7, 48, 80])?.contains("as all of the layer's stacks"));
    let mut stacked = stacking.of(&weights, count)?;
    stacked.remove("model.layers.1.mlp.experts.down_proj");
    let error =
        Model::new(Config::from_json(&config.to_string())?, builder(&stacked)).unwrap_err().to_string();
    assert!(error.contains("model.layers.1.mlp.experts.down_proj"), "{error}");
    Ok(())
}

/// A stack is one payload, expert by expert: the model on it is that on the decoded weights, whichever way it lies; calibrated too.
#[test]
fn stacks_compress_expert_by_expert() -> Result<()> {
    use candle_rbe::archive::{self, Archive, CompressOptions, Selection, Stage};
    use candle_rbe::models::Walk;
    use candle_rbe::nn::{decoded_weights, layer_counts};
    use candle_rbe::{Encoder, EncoderConfig, Rate};
    use std::ops::ControlFlow;

    let go = |_: archive::Progress<'_>| ControlFlow::Continue(());
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(5.1)))?;
    let tokens = ids(&prompt())?;
    for (at, calibrated) in [(0, false), (1, false), (4, true)] {
        let room = tempfile::tempdir()?;
        let [from, to, back] = ["dense", "rbe", "back"].map(|name| room.path().join(name));
        let (config, count, stacking) = stackings().into_iter().nth(at).expect("one");
        let weights = stacking.of(&model(&config)?.1, count)?;
        std::fs::create_dir(&from)?;
        std::fs::write(from.join("config.json"), config.to_string())?;
        candle_core::safetensors::save(&weights, from.join("model.safetensors"))?;
        let selection = Selection::new(Some(&Config::read(&from)?.projections()), None)?;
        let options = CompressOptions { selection, ..CompressOptions::default() };
        let report = if calibrated {
            let stage = Stage::directory(&to, false, &[&from])?;
            let vb = archive::open(&from, DType::F32, &CPU)?;
            let walk = Walk::new(Config::read(&from)?, vb, vec![tokens.clone()])?;
            let report =
                archive::compress_layer_by_layer(&from, &stage, &encoder, &options, walk, &mut { go })?;
            stage.commit()?;
            report
        } else {
            archive::compress(&from, &to, &encoder, &options, &mut { go })?
        };
        assert!(report.bits_per_weight <= 5.1, "{}", report.bits_per_weight);
        let stack = format!("model.layers.1.{}.experts.gate_up_proj", stacking.before);
        let line = report.tensors.iter().find(|line| line.name == stack).expect("a stack");
        assert!(line.compressed && line.summary.starts_with(&format!("{count} of ")), "{}", line.summary);
        let checked = archive::verify(&to, &from)?;
        assert_eq!(checked.problems, 0, "{:?}", checked.tensors);
        assert!(checked.tensors.iter().any(|line| line.name == stack && line.relative_error.is_some()));

        candle_rbe::set_default_layer_config(candle_rbe::LayerConfig {
            precision: candle_rbe::Precision::Exact,
            ..Default::default()
        });
        let decoded = || {
            decoded_weights()
                .iter()
                .filter(|weight| weight.name == stack)
                .map(|weight| weight.times)
                .sum::<u64>()
        };
        let before = decoded();
        let ours = Model::load(&to, archive::open(&to, DType::F32, &CPU)?)?;
        let ours_logits = ours.forward(&tokens, None)?;
        assert_eq!(decoded(), before, "the stack was decoded");
        assert!(layer_counts().iter().any(|layer| layer.layer == format!("{stack}.0")));
        archive::decode(&to, &back, &Default::default(), &mut { go })?;
        let dense = Model::load(&from, archive::open(&back, DType::F32, &CPU)?)?;
        assert_close("a compressed stack", &ours_logits, &dense.forward(&tokens, None)?);

        // By its name it is the decoded tensor; its parts are those of that.
        let (archive, vb) = (Archive::open(&to)?, archive::open(&to, DType::F32, &CPU)?);
        let entry = archive.entry(&stack)?;
        let whole = vb.get(weights[&stack].dims(), &stack)?;
        assert_eq!((entry.parts(), entry.shape.as_slice()), (count, whole.dims()));
        let same = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
        assert_eq!(same(&archive.part(entry, 2)?.dequantize()?, &whole.get(2)?)?, 0.0);
        assert_eq!(same(&whole, &archive::open(&back, DType::F32, &CPU)?.get(whole.dims(), &stack)?)?, 0.0);
        assert!(archive.rbe(entry).unwrap_err().to_string().contains("Archive::part"));
        assert!(
            archive
                .part(entry, count)
                .unwrap_err()
                .to_string()
                .contains(&format!("none of the number {count}"))
        );
        let sharded = archive::open_sharded(&to, DType::F32, &CPU)?;
        for (dim, size) in [(0, count), (1, 2)] {
            let shard = candle_nn::var_builder::Shard { dim, rank: 1, world_size: size };
            let length = whole.dim(dim)? / size;
            let part = sharded.get_with_hints((), &stack, shard)?;
            assert_eq!(same(&part, &whole.narrow(dim, length, length)?.contiguous()?)?, 0.0);
        }
    }
    Ok(())
}

/// One damaged expert is told of by its number, and the others are read; without its metadata a stack knows its shape.
#[test]
fn an_expert_is_read_alone() -> Result<()> {
    use candle_rbe::archive::{self, Archive, CompressOptions};
    use candle_rbe::{Encoder, EncoderConfig, Rate};
    use std::ops::ControlFlow;

    let room = tempfile::tempdir()?;
    let [dense, small, bare] = ["dense", "small", "bare"].map(|name| room.path().join(name));
    let stack = pseudo_random(&[3, 40, 64], 1)?;
    candle_core::safetensors::save(&HashMap::from([("experts.up_proj", stack)]), &dense)?;
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(4.6)))?;
    let options = CompressOptions::default();
    archive::compress(&dense, &small, &encoder, &options, &mut |_| ControlFlow::Continue(()))?;
    let archive = Archive::open(&small)?;
    let entry = archive.entry("experts.up_proj")?;
    let decoded = archive.tensor(entry, &CPU)?;
    let mut payload = archive.bytes(entry).to_vec();
    let second = {
        let stack = candle_rbe::codec::stack::Stack::from_bytes(&payload)?;
        payload.len() - stack.parts()[2].len() - 9
    };
    let write = |payload: &[u8]| -> Result<Archive> {
        let payload = Tensor::from_slice(payload, payload.len(), &CPU)?;
        candle_core::safetensors::save(&HashMap::from([("experts.up_proj.rbe", payload)]), &bare)?;
        Ok(Archive::open(&bare)?)
    };
    let plain = write(&payload)?;
    let entry = plain.entry("experts.up_proj")?;
    assert_eq!(
        (entry.shape.as_slice(), entry.parts(), entry.dtype),
        (&[3, 40, 64][..], 3, archive::Dtype::F32)
    );
    assert_eq!((plain.tensor(entry, &CPU)? - decoded)?.abs()?.max_all()?.to_scalar::<f32>()?, 0.0);
    payload[second] ^= 1;
    let damaged = write(&payload)?;
    let entry = damaged.entry("experts.up_proj")?;
    assert!(damaged.part(entry, 0).is_ok() && damaged.part(entry, 2).is_ok());
    let error = damaged.part(entry, 1).unwrap_err().to_string();
    assert!(error.contains("\"experts.up_proj\": matrix 1: ") && error.contains("checksum"), "{error}");
    assert!(damaged.tensor(entry, &CPU).unwrap_err().to_string().contains("matrix 1"));
    let checked = archive::verify(&bare, &dense)?;
    assert!(checked.tensors[0].problem.as_ref().is_some_and(|problem| problem.contains("matrix 1")));
    Ok(())
}
