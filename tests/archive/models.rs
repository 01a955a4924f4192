//! Candle's `VarBuilder` over compressed models, and unmodified models over that.

use crate::sample::*;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_rbe::RbeTensor;
use candle_rbe::archive::{self, Archive, DecodeOptions, Dtype};
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use std::path::Path;

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/llama-books");

fn logits(vb: VarBuilder, ids: &Tensor) -> Vec<f32> {
    let config = std::fs::read(Path::new(LLAMA).join("config.json")).unwrap();
    let config = serde_json::from_slice::<LlamaConfig>(&config).unwrap().into_config(false);
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    let model = Llama::load(vb, &config).unwrap();
    model.forward(ids, 0, &mut cache).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn an_unmodified_llama_runs_on_a_compressed_model() {
    let room = tempfile::tempdir().unwrap();
    let (rbe, decoded) = (room.path().join("rbe"), room.path().join("decoded"));
    archive::compress(LLAMA, &rbe, &encoder(), &selecting("_proj"), &mut |_| go()).unwrap();
    let options = DecodeOptions { dtype: Some(Dtype::F32), overwrite: false };
    archive::decode(&rbe, &decoded, &options, &mut |_| go()).unwrap();

    let ids = Tensor::new(&[[17u32, 300, 45, 2024, 9, 1111, 512, 33]], &Device::Cpu).unwrap();
    let load = |path: &Path| logits(archive::open_decoded(path, DType::F32, &Device::Cpu).unwrap(), &ids);
    let ours = load(&rbe);
    let dense = std::fs::read(&decoded).unwrap();
    let file = logits(VarBuilder::from_buffered_safetensors(dense, DType::F32, &Device::Cpu).unwrap(), &ids);
    let original = load(Path::new(LLAMA));
    assert_eq!(ours.len(), 4096);
    assert_eq!(ours, file, "decoding on load and decoding to a file differ");
    let largest = original.iter().zip(&ours).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(largest > 1e-3 && largest < 3.0, "the logits differ from the uncompressed model's by {largest}");
}

#[test]
fn a_var_builder_serves_what_the_file_holds() {
    let tensors = tensors(DType::F16);
    let room = Room::compressed(&tensors);
    let vb = archive::open(room.path("rbe"), DType::F32, &Device::Cpu).unwrap();
    assert!(vb.contains_tensor("embed.weight.rbe") && !vb.contains_tensor("embed.weight"));
    assert!(vb.contains_tensor("types.weight") && !vb.contains_tensor("types.weight.rbe"));
    assert!(!vb.contains_tensor("nothing") && !vb.contains_tensor("embed"));
    let layer = vb.pp("layers").pp(0).pp("up_proj");
    let payload = layer.get_unchecked_dtype("weight.rbe", DType::U8).unwrap().to_vec1::<u8>().unwrap();
    assert_eq!(RbeTensor::from_bytes(&payload).unwrap().shape().dims(), [80, 64]);
    assert_eq!(layer.get(80, "bias").unwrap().dtype(), DType::F32);

    let text = |result: candle_core::Result<Tensor>| result.unwrap_err().to_string();
    let hint = text(layer.get((80, 64), "weight"));
    assert!(hint.contains("\"layers.0.up_proj.weight\"") && hint.contains("open_decoded"), "{hint}");
    assert!(hint.contains("model.safetensors"), "{hint}");
    assert!(text(layer.get(81, "bias")).contains("shape mismatch for layers.0.up_proj.bias"));
    assert!(text(layer.get_unchecked_dtype("weight.rbe", DType::F32)).contains("it is U8"));
    assert!(text(layer.get(1, "gain")).contains("no tensor named \"layers.0.up_proj.gain\""));
}

#[test]
fn a_decoding_var_builder_serves_the_model_s_own_names() {
    let tensors = tensors(DType::F16);
    let room = Room::compressed(&tensors);
    let archive = Archive::open(room.path("rbe")).unwrap();
    let vb = archive::open_decoded(room.path("rbe"), DType::F32, &Device::Cpu).unwrap();
    for (name, original) in &tensors {
        assert!(vb.contains_tensor(name), "{name}");
        assert!(!vb.contains_tensor(&format!("{name}.rbe")), "{name}");
        let served = vb.get(original.shape(), name).unwrap();
        assert_eq!(served.dtype(), DType::F32);
        let expected = archive.tensor(archive.entry(name).unwrap(), &Device::Cpu).unwrap();
        assert_eq!(relative_error(&expected, &served), 0.0, "{name}");
    }
    let error = vb.get((64, 80), "layers.0.up_proj.weight").unwrap_err().to_string();
    assert!(error.contains("shape mismatch"), "{error}");
    assert!(vb.get(3, "nothing").unwrap_err().to_string().contains("no tensor named \"nothing\""));
}
