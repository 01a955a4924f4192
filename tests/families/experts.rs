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

#[test]
fn experts_stacked_in_one_tensor_are_refused_by_name() -> Result<()> {
    let config = qwen3_moe_config(true);
    let mut weights = model(&config)?.1;
    let stack = Tensor::zeros((7, 80, 48), DType::F32, &CPU)?;
    weights.insert("model.layers.1.mlp.experts.gate_up_proj".into(), stack);
    let error =
        Model::new(Config::from_json(&config.to_string())?, builder(&weights)).unwrap_err().to_string();
    let words = "\"model.layers.1.mlp.experts.gate_up_proj\", which stacks all experts; save the model";
    assert!(error.contains(words), "{error}");
    Ok(())
}
