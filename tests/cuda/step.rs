//! One token through whole models of every kind: the launches of a step against the model on the CPU.

use crate::simulator::{Checks, Order, Simulator, encode};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_rbe::cuda::{Cache, CapturedStep, Decoder, DeviceMatrix, Element, Machine, TokenStep};
use candle_rbe::models::{CausalLm, Config, KvCache, Model};
use candle_rbe::step::NormWeights;
use candle_rbe::{Encoder, EncoderConfig, Linear, Precision, Rate, RbeLinear};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

const CPU: Device = Device::Cpu;
const VOCABULARY: u32 = 61;

/// Values that look random in -1..1 and are the same in every run.
fn pseudo_random(shape: &[usize], seed: usize) -> Tensor {
    let value = |i: usize| (((i + 1) as f64 * 12.9898 + seed as f64 * 78.233).sin() * 43758.5453 % 1.) as f32;
    Tensor::from_vec((0..shape.iter().product()).map(value).collect::<Vec<_>>(), shape, &CPU).unwrap()
}

/// What most families share, and `more`.
fn config(model_type: &str, more: Value) -> Value {
    let mut config = json!({
        "model_type": model_type, "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "hidden_act": "silu", "eos_token_id": null,
    });
    for (name, value) in more.as_object().expect("an object") {
        config[name] = value.clone();
    }
    config
}

/// A model with random weights, its linear layers compressed, of every `transposed`-th one the transpose, and the dense weights.
fn model(config: &Value, transposed: usize) -> (Model, HashMap<String, Tensor>) {
    let (config, map) = (Config::from_json(&config.to_string()).unwrap(), VarMap::new());
    Model::new(config.clone(), VarBuilder::from_varmap(&map, DType::F32, &CPU)).unwrap();
    let shapes: BTreeMap<String, Vec<usize>> =
        map.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.dims().to_vec())).collect();
    let weights: HashMap<_, _> = shapes
        .into_iter()
        .enumerate()
        .map(|(seed, (name, shape))| {
            let value = pseudo_random(&shape, seed);
            let value = match shape[..] {
                [_, columns] => value * (3. / columns as f64).sqrt(),
                _ if (name.contains("norm") || name.contains("ln_")) && !name.ends_with("bias") => {
                    (value * 0.5).unwrap() + 1.
                }
                _ => Ok(value),
            };
            (name, value.unwrap())
        })
        .collect();
    let mut model = Model::new(config, VarBuilder::from_tensors(weights.clone(), DType::F32, &CPU)).unwrap();
    let encoder = Encoder::new(EncoderConfig::from(Rate::BitsPerWeight(6.2))).unwrap();
    for (index, (_, linear)) in model.linears_mut().into_iter().enumerate() {
        let (weight, bias) = (linear.weight().tensor().unwrap().clone(), linear.bias().cloned());
        let compressed = match index % transposed + 1 == transposed {
            false => encoder.encode(&weight).unwrap(),
            true => encoder.encode(&weight.t().unwrap().contiguous().unwrap()).unwrap().t().unwrap(),
        };
        *linear = Linear::from(RbeLinear::new(compressed, bias).with_precision(Precision::Exact));
    }
    (model, weights)
}

/// What a token brings into the model, as `Model` has it.
fn embedding(model: &Model, weights: &HashMap<String, Tensor>, token: u32, position: usize) -> Vec<f32> {
    let table =
        |name: &str| weights.iter().find(|(key, _)| key.ends_with(name)).map(|(_, table)| table.clone());
    let tokens = table("embed_tokens.weight").or(table("wte.weight")).expect("a token table");
    let multiplier = model.config().embedding_multiplier.unwrap_or(1.);
    let own = (tokens.get(token as usize).unwrap() * multiplier).unwrap();
    let own = match table("wpe.weight") {
        Some(positions) => (own + positions.get(position).unwrap()).unwrap(),
        None => own,
    };
    own.to_vec1().unwrap()
}

struct Sample<'m> {
    model: &'m Model,
    weights: HashMap<String, Tensor>,
    machine: Simulator,
    element: Element,
    captured: CapturedStep<Simulator>,
    caches: Vec<Cache<<Simulator as Machine>::Memory>>,
    capacity: usize,
}

fn token(at: usize) -> u32 {
    ((at * at + 3 * at + 5) % VOCABULARY as usize) as u32
}

impl<'m> Sample<'m> {
    /// A step of a model that has seen what `cache` holds.
    fn new(
        model: &'m Model,
        weights: &HashMap<String, Tensor>,
        cache: &KvCache,
        machine: &Simulator,
        element: Element,
    ) -> Self {
        let on_device = |tensor: &candle_rbe::RbeTensor| {
            let matrix = DeviceMatrix::new(machine.clone(), &tensor.to_matrix().unwrap()).unwrap();
            Some(Arc::new(matrix))
        };
        let decoder = model.device_decoder(machine.clone(), element, &on_device).unwrap().expect("a decoder");
        let captured = CapturedStep::new(Arc::new(decoder)).unwrap();
        let capacity = cache.len() + 8;
        let caches = captured.step().device().decoder().layers.iter().enumerate().map(|(layer, of)| {
            let (heads, width) = (of.heads.kv_heads, of.heads.width);
            let filled = |held: Option<Tensor>| {
                // What no token has written is not to be read.
                let rest = Tensor::full(f32::NAN, (1, heads, capacity - cache.len(), width), &CPU).unwrap();
                let all = match held {
                    Some(held) => Tensor::cat(&[&held, &rest], 2).unwrap(),
                    None => rest,
                };
                let values = all.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                machine.upload(&encode(&values, element)).unwrap()
            };
            let (keys, values) = cache.layer(layer).unwrap().unzip();
            Cache { keys: filled(keys), values: filled(values) }
        });
        let caches = caches.collect();
        machine.wait().unwrap();
        Self {
            model,
            weights: weights.clone(),
            machine: machine.clone(),
            element,
            captured,
            caches,
            capacity,
        }
    }

    fn step(&self) -> &TokenStep<Simulator> {
        self.captured.step()
    }

    /// What brings a token to the device.
    fn bring(&self, position: usize) -> impl Fn(&TokenStep<Simulator>) -> candle_rbe::Result<()> + use<> {
        let embedding =
            encode(&embedding(self.model, &self.weights, token(position), position), self.element);
        let now = TokenStep::<Simulator>::now_bytes(position as u32, &self.model.turns(position));
        let machine = self.machine.clone();
        move |step| {
            machine.overwrite(step.embedding(), &embedding)?;
            machine.overwrite(step.now(), &now)
        }
    }

    /// Gives the caches more room.
    fn grow(&mut self) {
        let larger = self.capacity + 9;
        let heads: Vec<_> = self.step().device().decoder().layers.iter().map(|of| of.heads.clone()).collect();
        let grown = |memory, (kv_heads, width): (usize, usize)| {
            let values = self.machine.values(memory, self.element);
            let rest = vec![f32::NAN; (larger - self.capacity) * width];
            let rows = values.chunks_exact(values.len() / kv_heads);
            let all: Vec<f32> = rows.flat_map(|row| [row, &rest].concat()).collect();
            self.machine.upload(&encode(&all, self.element)).unwrap()
        };
        let caches = self.caches.iter().zip(&heads).map(|(cache, heads)| {
            let sides = (heads.kv_heads, heads.width);
            Cache { keys: grown(&cache.keys, sides), values: grown(&cache.values, sides) }
        });
        self.caches = caches.collect();
        self.capacity = larger;
    }

    /// The state on the device against what the model says.
    fn compare(&self, expected: &Tensor, what: &str) {
        let ours = self.machine.values(self.step().out(), self.element);
        let expected = expected.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let far = |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
        let error = ours.iter().zip(&expected).map(far).fold(0., f32::max) / largest;
        let bound = match self.element {
            Element::F32 => 1e-4,
            Element::F16 => 1e-2,
            Element::BF16 => 5e-2,
        };
        println!("{what}: {error:.1e}");
        assert_eq!(ours.len(), expected.len(), "{what}");
        assert!(error <= bound, "{what}: {error:e}");
    }
}

/// So many tokens of a model that has seen `seen`, each against the model on the CPU.
fn agree(what: &str, config: &Value, machine: &Simulator, element: Element, seen: usize, tokens: usize) {
    let (model, weights) = model(config, 2);
    let mut cache = model.new_cache();
    let ids = |tokens: &[u32]| Tensor::new(tokens, &CPU).unwrap().unsqueeze(0).unwrap();
    if seen > 0 {
        let before: Vec<_> = (0..seen).map(token).collect();
        model.hidden_states(&ids(&before), Some(&mut cache)).unwrap();
    }
    let sample = Sample::new(&model, &weights, &cache, machine, element);
    for position in seen..seen + tokens {
        sample.bring(position)(sample.step()).unwrap();
        let before = machine.allocations();
        sample.step().run(&sample.caches, sample.capacity).unwrap();
        assert_eq!(machine.allocations(), before, "{what}: a step allocates nothing");
        let expected = model.hidden_states(&ids(&[token(position)]), Some(&mut cache)).unwrap();
        sample.compare(&expected, &format!("{what}, {element:?}, position {position}"));
    }
}

fn gemma(model_type: &str) -> Value {
    let caps = match model_type {
        "gemma2" => json!({"attn_logit_softcapping": 9.0, "final_logit_softcapping": 20.0}),
        _ => json!({"attn_logit_softcapping": null, "final_logit_softcapping": null}),
    };
    let mut more = json!({
        "sliding_window": 37, "query_pre_attn_scalar": 8, "hidden_activation": "gelu_pytorch_tanh",
    });
    more.as_object_mut().expect("an object").extend(caps.as_object().cloned().unwrap_or_default());
    config(model_type, more)
}

/// One of each thing that families differ in.
fn families() -> Vec<(&'static str, Value)> {
    let granite = json!({
        "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "attention_multiplier": 0.1,
    });
    vec![
        ("llama", config("llama", json!({}))),
        ("llama with biases", config("llama", json!({"attention_bias": true, "mlp_bias": true}))),
        (
            "one head of keys",
            config("llama", json!({"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 24})),
        ),
        ("a key for each head", config("llama", json!({"num_key_value_heads": 4, "head_dim": 64}))),
        (
            "SmolLM2's sides",
            config(
                "llama",
                json!({
                    "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
                    "num_hidden_layers": 1,
                }),
            ),
        ),
        (
            "primes",
            config(
                "llama",
                json!({"hidden_size": 61, "intermediate_size": 97, "num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": 8}),
            ),
        ),
        ("mistral", config("mistral", json!({"sliding_window": 50}))),
        ("qwen2", config("qwen2", json!({}))),
        ("qwen3", config("qwen3", json!({}))),
        ("phi3", config("phi3", json!({"partial_rotary_factor": 0.5}))),
        ("gemma2", gemma("gemma2")),
        ("gemma3", gemma("gemma3_text")),
        ("olmo2", config("olmo2", json!({}))),
        ("granite", config("granite", granite)),
        (
            "gpt2",
            json!({
                "model_type": "gpt2", "vocab_size": VOCABULARY, "n_positions": 512, "n_embd": 48, "n_layer": 2, "n_head": 3,
                "layer_norm_epsilon": 1e-5,
            }),
        ),
    ]
}

#[test]
fn a_token_goes_through_every_kind_of_model() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    for (what, config) in families() {
        agree(what, &config, &machine, Element::F32, 0, 2);
        agree(what, &config, &machine, Element::F32, 150, 2);
    }
}

#[test]
fn a_token_goes_through_in_every_type_with_a_long_past() {
    let Some(machine) = Simulator::start(Checks::None, Order::Backward) else { return };
    // Several keys a thread: heads that are wide.
    for heads in [1, 2, 4] {
        let config =
            config("llama", json!({"num_key_value_heads": heads, "head_dim": 128, "num_hidden_layers": 1}));
        for element in [Element::F32, Element::F16, Element::BF16] {
            agree(&format!("{heads} heads of keys"), &config, &machine, element, 333, 1);
        }
    }
}

#[test]
fn a_step_reads_and_writes_what_is_its_own() {
    for (checks, order) in [(Checks::Addresses, Order::Forward), (Checks::Races, Order::Backward)] {
        let Some(machine) = Simulator::start(checks, order) else { return };
        for (what, config) in
            families().into_iter().filter(|(what, _)| ["one head of keys", "olmo2", "gpt2"].contains(what))
        {
            agree(what, &config, &machine, Element::F16, 150, 2);
        }
    }
}

#[test]
fn tokens_after_the_first_are_a_graph() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let sides =
        json!({"hidden_size": 256, "intermediate_size": 512, "num_key_value_heads": 4, "head_dim": 64});
    let (model, weights) = model(&config("llama", sides), usize::MAX);
    let mut cache = model.new_cache();
    let ids = |tokens: &[u32]| Tensor::new(tokens, &CPU).unwrap().unsqueeze(0).unwrap();
    model.hidden_states(&ids(&[7, 8, 9]), Some(&mut cache)).unwrap();
    let mut sample = Sample::new(&model, &weights, &cache, &machine, Element::F16);
    // The first norm, and of each layer four products, attention, a gate and two norms: queries, keys and values are one, and so are a gate
    // and what it scales.
    let all = 1 + 2 * (4 + 1 + 1 + 2);
    let mut position = 3;
    // Runs one token, and says how many launches were asked for: none of a graph that is there.
    let mut take = |sample: &mut Sample<'_>| {
        let (bring, before) = (sample.bring(position), machine.launches());
        sample.captured.run(bring, &sample.caches, sample.capacity).unwrap();
        let launches = machine.launches() - before;
        let expected = model.hidden_states(&ids(&[token(position)]), Some(&mut cache)).unwrap();
        sample.compare(&expected, &format!("position {position}"));
        position += 1;
        launches
    };
    // One by one, captured, and run again.
    assert_eq!([0; 4].map(|_| take(&mut sample)), [all, all, 0, 0]);
    // In a larger cache another is captured.
    sample.grow();
    assert_eq!([0; 3].map(|_| take(&mut sample)), [all, 0, 0]);
    // Another thread begins with its own.
    let in_another = std::thread::scope(|scope| {
        scope.spawn(|| [0; 3].map(|_| take(&mut sample))).join().expect("it runs")
    });
    assert_eq!(in_another, [all, all, 0]);
    assert_eq!(take(&mut sample), all);
    assert!(format!("{:?}", sample.captured).contains("one by one"));
}

#[test]
fn another_thread_waits_for_the_last_ones_token() {
    let Some(machine) = Simulator::start_with_streams() else { return };
    let (model, weights) = model(&config("llama", json!({})), usize::MAX);
    let mut cache = model.new_cache();
    let mut state_of = |tokens: &[u32]| {
        let ids = Tensor::new(tokens, &CPU).unwrap().unsqueeze(0).unwrap();
        model.hidden_states(&ids, Some(&mut cache)).unwrap()
    };
    state_of(&[7, 8, 9]);
    let mut seen = model.new_cache();
    let before = Tensor::new(&[[7u32, 8, 9]], &CPU).unwrap();
    model.hidden_states(&before, Some(&mut seen)).unwrap();
    let mut sample = Sample::new(&model, &weights, &seen, &machine, Element::F32);
    for position in 3..6 {
        let expected = state_of(&[token(position)]);
        // Nobody has waited for the last thread's.
        let sample = &mut sample;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                sample.captured.run(sample.bring(position), &sample.caches, sample.capacity).unwrap();
                if position == 5 {
                    sample.compare(&expected, "the last thread's");
                }
            });
        });
    }
}

#[test]
fn what_the_kernels_do_not_take_goes_another_way() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let on_device = |tensor: &candle_rbe::RbeTensor| {
        Some(Arc::new(DeviceMatrix::new(machine.clone(), &tensor.to_matrix().unwrap()).unwrap()))
    };
    let has_decoder =
        |model: &Model| model.device_decoder(machine.clone(), Element::F32, &on_device).unwrap().is_some();
    let config = |head_dim: usize| config("llama", json!({"head_dim": head_dim}));
    let (mut compressed, _) = model(&config(16), usize::MAX);
    assert!(has_decoder(&compressed));
    assert!(!has_decoder(&model(&config(12), usize::MAX).0), "heads of twelve elements");
    let (_, linear) = compressed.linears_mut().swap_remove(3);
    *linear = Linear::new(linear.weight().tensor().unwrap().clone(), None);
    assert!(!has_decoder(&compressed), "a dense layer");
    let norm = NormWeights { weight: vec![], bias: None, eps: 0. };
    let wide = |hidden| Decoder {
        hidden,
        layers: vec![],
        norm: norm.clone(),
        residual_multiplier: 1.,
        rotations: vec![],
    };
    // A block of this machine has 99 KiB.
    assert!(wide(12_000).fits(&machine) && !wide(13_000).fits(&machine));
}
