//! Importance matrices of llama.cpp: read in both forms, written in the newer.

use crate::sample::*;
use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use candle_rbe::archive::{self, Archive, CompressOptions, Imatrix, Stage};
use candle_rbe::encode::LayerStatistics;
use candle_rbe::nn::Calibration;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

const UP: &str = "model.layers.0.mlp.up_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const EXPERTS: [&str; 2] = [
    "model.layers.1.block_sparse_moe.experts.0.w1.weight",
    "model.layers.1.block_sparse_moe.experts.1.w1.weight",
];

fn room(kind: &str, names: &[&str]) -> Room {
    let shape = |name: &str| if name == DOWN { (64, 80) } else { (80, 64) };
    let tensor = |name: &&str| ((*name).to_owned(), matrix(shape(name).0, shape(name).1, DType::F32));
    let room = Room::new(&names.iter().map(tensor).collect());
    std::fs::write(room.path("dense/config.json"), format!(r#"{{"model_type": "{kind}"}}"#)).unwrap();
    room
}

/// Mean squares that differ from input to input.
fn means(inputs: usize) -> Vec<f32> {
    (0..inputs).map(|n| 0.25 + (n * n % 17) as f32).collect()
}

/// The older form: each entry with its calls and its means times them.
fn write_dat(path: &Path, entries: &[(&str, i32, Vec<f32>)]) {
    let mut bytes = (entries.len() as u32).to_le_bytes().to_vec();
    for (name, calls, means) in entries {
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(calls.to_le_bytes());
        bytes.extend((means.len() as u32).to_le_bytes());
        bytes.extend(means.iter().flat_map(|mean| (mean * *calls as f32).to_le_bytes()));
    }
    bytes.extend(7i32.to_le_bytes());
    bytes.extend(4i32.to_le_bytes());
    bytes.extend(b"text");
    std::fs::write(path, bytes).unwrap();
}

fn write_gguf(path: &Path, kind: &str, tensors: &[(&str, Vec<f32>, (usize, usize))]) {
    let quantized = tensors.iter().map(|(name, values, shape)| {
        let tensor = Tensor::from_vec(values.clone(), *shape, &Device::Cpu).unwrap();
        (*name, QTensor::quantize(&tensor, GgmlDType::F32).unwrap())
    });
    let quantized: Vec<_> = quantized.collect();
    let tensors: Vec<_> = quantized.iter().map(|(name, tensor)| (*name, tensor)).collect();
    let kind = Value::String(kind.to_owned());
    gguf_file::write(&mut File::create(path).unwrap(), &[("general.type", &kind)], &tensors).unwrap();
}

fn moments(statistics: &BTreeMap<String, LayerStatistics>, name: &str) -> Vec<f32> {
    statistics[name].input_moments().into_iter().map(|moment| moment as f32).collect()
}

#[test]
fn both_forms_say_how_large_inputs_are() {
    let room = room("llama", &[UP, DOWN]);
    let model = Archive::open(room.path("dense")).unwrap();
    let (dat, gguf) = (room.path("imatrix.dat"), room.path("imatrix.gguf"));
    write_dat(&dat, &[("blk.0.ffn_up.weight", 5, means(64)), ("blk.9.ffn_up.weight", 5, means(64))]);
    let sums = |count: f32| means(64).iter().map(|mean| mean * count).collect();
    let counts = "blk.0.ffn_up.weight.counts";
    write_gguf(
        &gguf,
        "imatrix",
        &[("blk.0.ffn_up.weight.in_sum2", sums(32.0), (1, 64)), (counts, vec![32.0], (1, 1))],
    );
    for path in [&dat, &gguf] {
        let statistics = Imatrix::read(path).unwrap().statistics(&model).unwrap();
        assert_eq!(statistics.keys().collect::<Vec<_>>(), [UP], "{path:?}");
        assert_eq!(statistics[UP].shape(), (80, 64));
        assert_eq!(moments(&statistics, UP), means(64), "{path:?}");
        // The columns' scales follow them.
        let mut known = Calibration::known(statistics);
        let options = CompressOptions { overwrite: true, ..selecting("up_proj") };
        let output = room.path("rbe");
        let compress = archive::compress_calibrated;
        compress(room.path("dense"), &output, &encoder(), &options, &mut known, &mut |_| go()).unwrap();
        let with = std::fs::read(output.join("model.safetensors")).unwrap();
        archive::compress(room.path("dense"), &output, &encoder(), &options, &mut |_| go()).unwrap();
        assert_ne!(std::fs::read(output.join("model.safetensors")).unwrap(), with);
    }
}

#[test]
fn experts_have_their_own_and_those_never_asked_have_none() {
    let room = room("mixtral", &EXPERTS);
    let model = Archive::open(room.path("dense")).unwrap();
    let both: Vec<f32> = means(64).into_iter().map(|mean| 3.0 * mean).chain(vec![0.0; 64]).collect();
    let (name, path) = ("blk.1.ffn_gate_exps.weight", room.path("imatrix.gguf"));
    let [sums, counts] = [".in_sum2", ".counts"].map(|end| format!("{name}{end}"));
    write_gguf(&path, "imatrix", &[(&sums, both, (2, 64)), (&counts, vec![3.0, 0.0], (2, 1))]);
    let statistics = Imatrix::read(&path).unwrap().statistics(&model).unwrap();
    assert_eq!(statistics.keys().collect::<Vec<_>>(), [EXPERTS[0]]);
    assert_eq!(moments(&statistics, EXPERTS[0]), means(64));
    // The older form counts them together.
    let path = room.path("imatrix.dat");
    write_dat(&path, &[(name, 2, [means(64), vec![1.0; 64]].concat())]);
    let statistics = Imatrix::read(&path).unwrap().statistics(&model).unwrap();
    assert_eq!(moments(&statistics, EXPERTS[0]), means(64));
    assert_eq!(moments(&statistics, EXPERTS[1]), vec![1.0; 64]);
}

#[test]
fn what_is_written_is_read_again() {
    for (kind, names) in [("llama", &[UP, DOWN]), ("mixtral", &EXPERTS)] {
        let room = room(kind, names);
        let model = Archive::open(room.path("dense")).unwrap();
        let of = |name: &&str| {
            let (outputs, inputs) = if *name == DOWN { (64, 80) } else { (80, 64) };
            let mut statistics = LayerStatistics::of_squares(outputs, inputs);
            statistics.add_squares(&means(inputs), 4).unwrap();
            ((*name).to_owned(), statistics)
        };
        let statistics: BTreeMap<_, _> = names.iter().map(of).collect();
        let path = room.path("imatrix.gguf");
        let stage = Stage::file(&path, false, &[]).unwrap();
        Imatrix::write(&stage, &model, &statistics, "some.txt", (2, 256)).unwrap();
        stage.commit().unwrap();
        let again = Imatrix::read(&path).unwrap().statistics(&model).unwrap();
        assert_eq!(again, statistics, "{kind}");
        let content = Content::read(&mut File::open(&path).unwrap()).unwrap();
        assert_eq!(content.metadata["imatrix.chunk_count"].to_u32().unwrap(), 2);
        let known: Vec<_> = content.tensor_infos.keys().filter(|name| name.ends_with(".in_sum2")).collect();
        assert_eq!(known.len(), if kind == "llama" { 2 } else { 1 }, "{known:?}");
    }
}

#[test]
fn what_is_no_importance_matrix_of_the_model_is_refused() {
    let room = room("llama", &[UP]);
    let model = Archive::open(room.path("dense")).unwrap();
    let path = room.path("imatrix");
    let refusal = || match Imatrix::read(&path) {
        Err(error) => error.to_string(),
        Ok(imatrix) => imatrix.statistics(&model).unwrap_err().to_string(),
    };
    let name = "blk.0.ffn_up.weight";
    write_dat(&path, &[(name, 5, means(60))]);
    assert!(refusal().contains("\"blk.0.ffn_up.weight\" has 60 values") && refusal().contains("takes 64"));
    write_dat(&path, &[("blk.3.ffn_up.weight", 5, means(64))]);
    assert!(refusal().contains("none of its entries is of a layer of"), "{}", refusal());
    write_dat(&path, &[(name, 5, vec![f32::NAN; 64])]);
    assert!(refusal().contains("the entry \"blk.0.ffn_up.weight\" is damaged"), "{}", refusal());
    write_dat(&path, &[(name, 5, means(64))]);
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 3, 4, 9, 40, whole.len() - 13] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert!(refusal().contains("is no importance matrix"), "{cut}: {}", refusal());
    }
    std::fs::write(&path, [&[0xff; 8][..], &whole].concat()).unwrap();
    assert!(refusal().contains("is no importance matrix"), "{}", refusal());
    write_gguf(&path, "model", &[("blk.0.ffn_up.weight", means(64), (1, 64))]);
    assert!(refusal().contains("its general.type is not \"imatrix\""), "{}", refusal());
    write_gguf(&path, "imatrix", &[("blk.0.ffn_up.weight.in_sum2", means(64), (1, 64))]);
    assert!(refusal().contains("is damaged"), "{}", refusal());
    std::fs::write(room.path("dense/config.json"), r#"{"model_type": "unheard"}"#).unwrap();
    write_dat(&path, &[(name, 5, means(64))]);
    assert!(refusal().contains("of the kind \"unheard\""), "{}", refusal());
}
