//! Calibration: what it promises of one matrix with known statistics, and of the two models.
//! CI runs this at the best CPU level alone: encoding gives the same bits at all.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::Module;
use candle_rbe::archive::{self, CompressOptions, Selection, Stage};
use candle_rbe::encode::{LayerStatistics, MatrixRef, Offer, share};
use candle_rbe::models::{CausalLm, Config, Model, StreamedModel, Walk, Windows, evaluate, own_text};
use candle_rbe::nn::{Calibrate, Calibration, Recorder};
use candle_rbe::{Encoder, EncoderConfig, Linear, Rate, Result, TermChoice};
use std::ops::ControlFlow;
use tokenizers::Tokenizer;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const ROWS: usize = 160;
const COLS: usize = 192;

/// Deterministic and Gaussian enough: sums of twelve uniform numbers.
fn gaussian(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// Inputs that a few directions dominate, and outputs that all matter alike.
fn correlated() -> LayerStatistics {
    let hidden = gaussian(7, 12 * COLS);
    let moment = |n: usize| {
        let (i, j) = (n / COLS, n % COLS);
        let common: f32 = hidden.chunks_exact(COLS).map(|h| h[i] * h[j]).sum();
        common + if i == j { 1.0 } else { 0.0 }
    };
    statistics(&(0..COLS * COLS).map(moment).collect::<Vec<_>>())
}

fn identity() -> LayerStatistics {
    statistics(&(0..COLS * COLS).map(|n| f32::from(u8::from(n / COLS == n % COLS))).collect::<Vec<_>>())
}

fn statistics(moments: &[f32]) -> LayerStatistics {
    let mut statistics = LayerStatistics::new(ROWS, COLS);
    statistics.add(moments, 1.0, &[1.0; ROWS], 1).unwrap();
    statistics
}

fn encoder(bits: f64, term: TermChoice) -> Encoder {
    Encoder::new(EncoderConfig { term, ..Rate::BitsPerWeight(bits).into() }).unwrap()
}

#[test]
fn errors_are_handed_on_to_where_they_hurt_least() {
    let (weights, known) = (gaussian(1, ROWS * COLS), correlated());
    let divergence = |matrix: candle_rbe::codec::Matrix| {
        let decoded = matrix.decode();
        let error: Vec<f32> = weights.iter().zip(&decoded).map(|(w, d)| w - d).collect();
        known.divergence(&error)
    };
    for (bits, term) in [(2.1, TermChoice::Trellis), (4.1, TermChoice::Trellis), (4.2, TermChoice::Planes)] {
        let encoder = encoder(bits, term);
        let plain = encoder.encode_matrix(MatrixRef::new(&weights, ROWS, COLS)).unwrap();
        let calibrated =
            encoder.encode_matrix_calibrated(MatrixRef::new(&weights, ROWS, COLS), &known).unwrap();
        assert!(8 * calibrated.size_in_bytes() <= (bits * (ROWS * COLS) as f64) as usize);
        // The weights' own error grows and is reported as it is.
        assert!(calibrated.relative_error() > plain.relative_error());
        let (plain, calibrated) = (divergence(plain), divergence(calibrated));
        assert!(calibrated < 0.6 * plain, "{term:?} {bits}: {calibrated} against {plain}");
    }
}

#[test]
fn inputs_without_structure_change_nothing() {
    let weights = gaussian(2, ROWS * COLS);
    for (bits, term) in [(2.1, TermChoice::Trellis), (3.1, TermChoice::Trellis), (4.2, TermChoice::Planes)] {
        let encoder = encoder(bits, term);
        let plain = encoder.encode_matrix(MatrixRef::new(&weights, ROWS, COLS)).unwrap();
        let calibrated =
            encoder.encode_matrix_calibrated(MatrixRef::new(&weights, ROWS, COLS), &identity()).unwrap();
        assert_eq!(calibrated.terms(), plain.terms(), "{term:?} {bits}");
    }
}

#[test]
fn the_number_of_threads_does_not_matter() {
    let (weights, known) = (gaussian(3, ROWS * COLS), correlated());
    let bytes = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let encode = || {
            encoder(3.1, TermChoice::Auto)
                .encode_matrix_calibrated(MatrixRef::new(&weights, ROWS, COLS), &known)
        };
        pool.install(encode).unwrap().to_bytes(candle_rbe::codec::matrix::Orientation::Matrix)
    };
    let one = bytes(1);
    for threads in [2, 5] {
        assert_eq!(bytes(threads), one, "{threads} threads");
    }
}

#[test]
fn what_cannot_be_calibrated_is_refused() {
    let weights = gaussian(4, ROWS * COLS);
    let refusal = |config: EncoderConfig, rows: usize, cols: usize, statistics: &LayerStatistics| {
        let encoder = Encoder::new(config).unwrap();
        encoder
            .encode_matrix_calibrated(MatrixRef::new(&weights, rows, cols), statistics)
            .unwrap_err()
            .to_string()
    };
    let bits = EncoderConfig::from(Rate::BitsPerWeight(3.0));
    let error = refusal(bits.clone(), COLS, ROWS, &identity());
    assert!(error.contains("statistics of a weight (160, 192) for one of (192, 160)"), "{error}");
    let error = refusal(bits.clone(), ROWS, COLS, &LayerStatistics::new(ROWS, COLS));
    assert!(error.contains("no token"), "{error}");
    let error = refusal(Rate::RelativeError(0.1).into(), ROWS, COLS, &identity());
    assert!(error.contains("bits per weight only"), "{error}");
    let error = refusal(EncoderConfig { term: TermChoice::Sparse, ..bits }, ROWS, COLS, &identity());
    assert!(error.contains("sparse"), "{error}");

    let mut statistics = LayerStatistics::new(1, 1);
    assert!(statistics.add(&[f32::NAN], 1.0, &[1.0], 1).unwrap_err().to_string().contains("not finite"));
    assert!(statistics.add(&[1.0], 1.0, &[f32::INFINITY], 1).is_err());
    assert_eq!(statistics, LayerStatistics::new(1, 1));
}

#[test]
fn a_budget_goes_where_it_saves_the_most() {
    let offer = |bits_per_weight: f64, divergence: f64| Offer { bits_per_weight, divergence };
    let steep = [offer(1.0, 16.0), offer(2.0, 4.0), offer(3.0, 1.0)];
    let flat = [offer(1.0, 1.6), offer(2.0, 0.4), offer(3.0, 0.1)];
    let taken = |budget: f64| share(&[(10, &steep), (10, &flat)], |bits, _| bits <= budget);
    assert_eq!(taken(20.0), [0, 0]);
    assert_eq!(taken(30.0), [1, 0]);
    assert_eq!(taken(40.0), [2, 0]);
    assert_eq!(taken(55.0), [2, 1]);
    assert_eq!(taken(1e9), [2, 2]);
    // What is too large is passed over, and what builds on it.
    assert_eq!(share(&[(100, &steep), (10, &flat)], |bits, _| bits <= 130.0), [0, 2]);
}

/// Two layers; the logits are those of the second.
struct Mlp(Linear, Linear);

impl Calibrate for Mlp {
    fn record(&self, x: &Tensor, recorder: &mut Recorder) -> candle_core::Result<Tensor> {
        let h = recorder.layer("up.weight", x, self.0.forward(x)?)?.tanh()?;
        recorder.layer("down.weight", &h, self.1.forward(&h)?)
    }
}

#[test]
fn the_divergence_that_is_expected_comes_true() -> Result<()> {
    let device = &Device::Cpu;
    let tensor =
        |seed, rows: usize, cols: usize| Tensor::from_vec(gaussian(seed, rows * cols), (rows, cols), device);
    let (up, down) = ((tensor(11, 96, 64)? * 0.1)?, (tensor(12, 48, 96)? * 0.2)?);
    let x = tensor(13, 4000, 64)?;
    let model = Mlp(Linear::new(up.clone(), None), Linear::new(down.clone(), None));
    let mut calibration = Calibration::new(&model, x.chunk(8, 0)?);
    let predict = |up: &Tensor| -> Result<Tensor> {
        let logits = x.matmul(&up.t()?)?.tanh()?.matmul(&down.t()?)?;
        Ok(candle_nn::ops::log_softmax(&logits, D::Minus1)?)
    };
    let p = predict(&up)?;
    // An error of one part in fifty: well within second order.
    let error = (tensor(14, 96, 64)? * 0.002)?;
    let q = predict(&(&up - &error)?)?;
    let kl = f64::from((p.exp()? * (&p - q)?)?.sum_all()?.to_scalar::<f32>()?) / 4000.0;
    let statistics = calibration.statistics(&["up.weight", "down.weight"])?.expect("a layer of the model");
    assert_eq!((statistics.shape(), statistics.count()), ((96, 64), 4000));
    let expected = statistics.divergence(&error.flatten_all()?.to_vec1()?);
    assert!((expected / kl - 1.0).abs() < 0.15, "{expected} nats expected, {kl} measured");
    assert!(calibration.statistics(&["side.weight"])?.is_none());
    Ok(())
}

#[test]
fn less_memory_takes_longer_and_changes_nothing() -> Result<()> {
    let device = &Device::Cpu;
    let (up, down) =
        (Tensor::randn(0f32, 0.1, (96, 64), device)?, Tensor::randn(0f32, 0.1, (48, 96), device)?);
    let model = Mlp(Linear::new(up, None), Linear::new(down, None));
    let samples = vec![Tensor::randn(0f32, 1.0, (50, 64), device)?; 3];
    let read = |memory: u64| -> Result<(Vec<LayerStatistics>, usize)> {
        let mut reads = 0;
        let mut calibration = Calibration::new(&model, samples.clone())
            .with_memory(memory)
            .with_progress(|done, of| reads += usize::from(done == of));
        let mut all = Vec::new();
        for names in [&["up.weight", "down.weight"][..], &["down.weight"]] {
            all.extend(calibration.statistics(names)?.cloned());
        }
        drop(calibration);
        Ok((all, reads))
    };
    let ((rich, once), (poor, twice)) = (read(1 << 30)?, read(0)?);
    assert_eq!((rich.len(), once, twice), (2, 1, 2));
    assert!(rich == poor);

    let error = Calibration::new(&model, vec![]).statistics(&["up.weight"]).unwrap_err().to_string();
    assert!(error.contains("without samples"), "{error}");
    Ok(())
}

/// Two layers of one input, and one of what the first makes.
struct Gated([Linear; 3]);

impl Calibrate for Gated {
    fn record(&self, x: &Tensor, recorder: &mut Recorder) -> candle_core::Result<Tensor> {
        let gate = recorder.layer("gate.weight", x, self.0[0].forward(x)?)?;
        let up = recorder.layer("up.weight", x, self.0[1].forward(x)?)?;
        let h = (gate.tanh()? * up)?;
        recorder.layer("down.weight", &h, self.0[2].forward(&h)?)
    }
}

#[test]
fn forwards_alone_show_the_moments_of_inputs() -> Result<()> {
    let device = &Device::Cpu;
    let tensor =
        |seed, rows: usize, cols: usize| Tensor::from_vec(gaussian(seed, rows * cols), (rows, cols), device);
    let layer = |seed, rows, cols| -> candle_core::Result<Linear> {
        Ok(Linear::new(tensor(seed, rows, cols)?, None))
    };
    let model = Gated([layer(1, 40, 24)?, layer(2, 40, 24)?, layer(3, 12, 40)?]);
    let x = tensor(4, 300, 24)?;
    let names = ["down.weight", "gate.weight", "up.weight"];
    let products = x.t()?.matmul(&x)?.to_vec2::<f32>()?;
    let squares = |known: &LayerStatistics| {
        known
            .input_moments()
            .iter()
            .zip(&products)
            .enumerate()
            .all(|(i, (found, row))| (found - f64::from(row[i]) / 300.0).abs() < 1e-4)
    };
    let mut alone = Calibration::new(&model, x.chunk(3, 0)?).of_squares();
    let mut together = Calibration::new(&model, x.chunk(3, 0)?).of_products();
    for (at, shape) in [(0, (12, 40)), (1, (40, 24)), (2, (40, 24))] {
        let known = alone.statistics(&names[at..])?.expect("a layer of the model");
        assert_eq!((known.shape(), known.count(), known.has_products()), (shape, 300, false));
        assert!(at == 0 || squares(known));
        let known = together.statistics(&names[at..])?.expect("a layer of the model");
        assert_eq!((known.shape(), known.count(), known.has_products()), (shape, 300, true));
        assert!(at == 0 || squares(known));
    }
    // An error along what inputs have in common shows in products alone.
    let known = together.statistics(&["gate.weight"])?.expect("a layer of the model");
    let mut error = vec![0.0; 40 * 24];
    error[..2].fill(1.0);
    let expected = f64::from(products[0][0] + products[1][1] + 2.0 * products[0][1]) / 600.0;
    assert!((known.divergence(&error) / expected - 1.0).abs() < 1e-4);
    Ok(())
}

#[test]
fn columns_are_scaled_by_what_they_meet() -> Result<()> {
    // Every other input is sixteen times as large.
    let mut known = LayerStatistics::of_squares(ROWS, COLS);
    let squares: Vec<f32> = (0..COLS).map(|n| if n % 2 == 0 { 1.0 } else { 256.0 }).collect();
    known.add_squares(&squares, 1).unwrap();
    let weights = gaussian(1, ROWS * COLS);
    let encoder = encoder(4.1, TermChoice::Auto);
    let (plain, scaled) = (
        encoder.encode_matrix(MatrixRef::new(&weights, ROWS, COLS))?,
        encoder.encode_matrix_calibrated(MatrixRef::new(&weights, ROWS, COLS), &known)?,
    );
    let divergence = |matrix: &candle_rbe::codec::Matrix| {
        let error: Vec<f32> = weights.iter().zip(&matrix.decode()).map(|(w, d)| w - d).collect();
        known.divergence(&error)
    };
    assert!(8.0 * scaled.size_in_bytes() as f64 <= 4.1 * (ROWS * COLS) as f64);
    // (1 + 16)^2 / 4 in place of (1 + 256) / 2.
    let ratio = divergence(&scaled) / divergence(&plain);
    assert!((0.5..0.66).contains(&ratio), "{ratio}");
    Ok(())
}

/// A model of the repository and the first tokens of a text.
fn read(model: &str, text: &str, tokens: usize) -> (Model, Vec<u32>) {
    let dir = format!("{ROOT}/models/{model}");
    let vb = archive::open(&dir, DType::F32, &Device::Cpu).unwrap();
    let tokenizer = Tokenizer::from_file(format!("{dir}/tokenizer.json")).unwrap();
    let text = std::fs::read_to_string(format!("{ROOT}/models/{text}")).unwrap();
    let ids = tokenizer.encode(text, false).unwrap().get_ids()[..tokens].to_vec();
    (Model::load(&dir, vb).unwrap(), ids)
}

#[test]
fn both_models_predict_better_at_the_same_size() -> Result<()> {
    for name in ["llama-books", "gpt2-books"] {
        let (model, text) = read(name, "calibration.txt", 5000);
        let samples = Windows { count: 16, length: 256 }.samples(&text, &Device::Cpu)?;
        let mut calibration = Calibration::new(&model, samples);
        let encoder = encoder(3.02, TermChoice::Auto);
        let options = CompressOptions {
            selection: Selection::new(Some(r"(_proj|c_attn|c_fc)\.weight$"), None)?,
            ..CompressOptions::default()
        };
        let (input, room) = (format!("{ROOT}/models/{name}"), tempfile::tempdir().unwrap());
        let (plain, better) = (room.path().join("plain"), room.path().join("better"));
        let watch = &mut |_: archive::Progress<'_>| ControlFlow::Continue(());
        archive::compress(&input, &plain, &encoder, &options, watch)?;
        let report =
            archive::compress_calibrated(&input, &better, &encoder, &options, &mut calibration, watch)?;
        assert!(report.bits_per_weight <= 3.02, "{}", report.bits_per_weight);

        let (_, text) = read(name, "evaluation.txt", 3000);
        let divergence = |path: &std::path::Path| -> Result<f64> {
            let candidate = Model::load(path, archive::open(path, DType::F32, &Device::Cpu)?)?;
            Ok(evaluate(&model, &candidate, &text, Windows::default(), |_, _| {})?.kl_divergence)
        };
        let (plain, better) = (divergence(&plain)?, divergence(&better)?);
        assert!(better < 0.6 * plain, "{name}: {better} against {plain}");
    }
    Ok(())
}

#[test]
fn layer_by_layer_whole_models_predict_better_at_the_same_size() -> Result<()> {
    for name in ["llama-books", "gpt2-books"] {
        let (model, text) = read(name, "calibration.txt", 5000);
        let windows = Windows { count: 16, length: 256 }.samples(&text, &Device::Cpu)?;
        let input = format!("{ROOT}/models/{name}");
        let walk =
            Walk::new(model.config().clone(), archive::open(&input, DType::F32, &Device::Cpu)?, windows)?;
        let (encoder, options) = (encoder(3.02, TermChoice::Auto), CompressOptions::default());
        let room = tempfile::tempdir().unwrap();
        let (plain, better) = (room.path().join("plain"), room.path().join("better"));
        let mut steps = 0;
        let watch = &mut |step: archive::Progress<'_>| {
            steps += usize::from(!step.name.is_empty());
            ControlFlow::Continue(())
        };
        let before = archive::compress(&input, &plain, &encoder, &options, watch)?;
        let stage = Stage::directory(&better, false, &[])?;
        let report = archive::compress_layer_by_layer(&input, &stage, &encoder, &options, walk, watch)?;
        stage.commit()?;
        // Every matrix once, and the same ones.
        assert_eq!(steps, 2 * report.compressed_tensors);
        assert_eq!(report.compressed_tensors, before.compressed_tensors);
        assert!(report.bits_per_weight <= 3.02, "{}", report.bits_per_weight);
        // What is reported is the distance from the model's own weights, not from what was aimed at.
        assert_eq!(archive::verify(&better, &input)?.problems, 0);

        let (_, text) = read(name, "evaluation.txt", 3000);
        let divergence = |path: &std::path::Path| -> Result<f64> {
            let candidate = Model::load(path, archive::open(path, DType::F32, &Device::Cpu)?)?;
            Ok(evaluate(&model, &candidate, &text, Windows::default(), |_, _| {})?.kl_divergence)
        };
        let (plain, better) = (divergence(&plain)?, divergence(&better)?);
        assert!(better < 0.8 * plain, "{name}: {better} against {plain}");
    }
    Ok(())
}

/// A conversion layer by layer that is stopped when it has encoded so many matrices: the bytes of the output, what is kept in
/// its place, and the weights that it found done.
fn stopped_after(
    most: usize,
    model: &str,
    bits: f64,
    output: &std::path::Path,
) -> Result<(Option<Vec<u8>>, Vec<std::path::PathBuf>, u64)> {
    let (input, (_, text)) = (format!("{ROOT}/models/{model}"), read(model, "calibration.txt", 800));
    let windows = Windows { count: 4, length: 128 }.samples(&text, &Device::Cpu)?;
    let walk = Walk::new(Config::read(&input)?, archive::open(&input, DType::F32, &Device::Cpu)?, windows)?;
    let selection =
        Selection::new(Some(r"(layers|h)\.[01]\.(self_attn|attn|mlp\.down_proj|mlp\.c_proj)|wpe"), None)?;
    let options = CompressOptions { selection, ..CompressOptions::default() };
    let (mut kept, mut encoded) = (0, 0);
    let watch = &mut |step: archive::Progress<'_>| {
        kept = step.weights_kept;
        encoded += usize::from(step.weights_done > step.weights_kept);
        if encoded >= most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let stage = Stage::directory(output, false, &[])?;
    let report = archive::compress_layer_by_layer(
        &input,
        &stage,
        &encoder(bits, TermChoice::Auto),
        &options,
        walk,
        watch,
    );
    let whole = match report {
        Err(error) => {
            assert!(error.to_string().contains("stopped on request"), "{error}");
            None
        }
        Ok(_) => {
            stage.commit()?;
            Some(std::fs::read(output.join("model.safetensors")).unwrap())
        }
    };
    let mine = archive::kept_layers().into_iter().filter(|path| path.parent() == output.parent());
    Ok((whole, mine.collect(), kept))
}

#[test]
fn what_is_stopped_goes_on_where_it_was_and_ends_the_same() -> Result<()> {
    for model in ["llama-books", "gpt2-books"] {
        let room = tempfile::tempdir().unwrap();
        let (once, often) = (room.path().join("once"), room.path().join("often"));
        let (whole, kept, _) = stopped_after(usize::MAX, model, 3.02, &once)?;
        assert!(whole.is_some() && kept.is_empty());
        // Between two matrices of one input, and between layers.
        let mut done = 0;
        for most in [2, 1] {
            let (none, kept, found) = stopped_after(most, model, 3.02, &often)?;
            assert!(none.is_none() && kept.len() == 1 && !often.exists());
            assert!(if most == 2 { found == 0 } else { found > done }, "{found} after {done}");
            done = found;
        }
        // Killed while it wrote.
        let (_, kept, _) = stopped_after(2, model, 3.02, &often)?;
        let file = std::fs::File::options().write(true).open(&kept[0]).unwrap();
        file.set_len(file.metadata().unwrap().len() - 100).unwrap();
        drop(file);
        // Other settings have nothing of it.
        let (_, both, found) = stopped_after(1, model, 3.5, &often)?;
        assert_eq!((both.len(), found), (2, 0));
        let (other, left, found) = stopped_after(usize::MAX, model, 3.02, &often)?;
        assert!(found > 0 && other == whole, "{model}: another output than of a run that was not stopped");
        assert_eq!((left.len(), left.contains(&kept[0])), (1, false));
    }
    Ok(())
}

#[test]
fn a_model_makes_a_text_of_its_own() -> Result<()> {
    let (model, real) = read("llama-books", "evaluation.txt", 2000);
    let windows = Windows { count: 8, length: 128 };
    let own = own_text(&model, windows, 1, |_, _| {})?;
    assert_eq!(own.dims(), [8, 128]);
    let again = own_text(&model, windows, 1, |_, _| {})?;
    let ids = |texts: &Tensor| -> Result<Vec<u32>> { Ok(texts.flatten_all()?.to_vec1()?) };
    assert_eq!(ids(&own)?, ids(&again)?);
    assert_ne!(ids(&own)?, ids(&own_text(&model, windows, 2, |_, _| {})?)?);
    // Its inputs are nearer to those of a real text than those of random tokens are.
    let random = (0..8u32).map(|window| {
        let ids: Vec<u32> = (0..128).map(|n| (window * 128 + n).wrapping_mul(2_654_435_761) >> 20).collect();
        Ok(Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)
    });
    let random = random.collect::<Result<Vec<_>>>()?;
    let real = windows.samples(&real, &Device::Cpu)?;
    let name = "model.layers.3.mlp.down_proj.weight";
    let moments = |texts: Vec<Tensor>| -> Result<Vec<f64>> {
        let mut calibration = Calibration::new(&model, texts).of_squares();
        Ok(calibration.statistics(&[name])?.expect("a layer of the model").input_moments())
    };
    let real = moments(real)?;
    let off = |texts| -> Result<f64> {
        let other = moments(texts)?;
        Ok(real.iter().zip(other).map(|(real, other)| (real / other).ln().powi(2)).sum())
    };
    let (near, far) = (off(vec![own])?, off(random)?);
    assert!(near < 0.6 * far, "{near} {far}");
    assert!(own_text(&model, Windows { count: 1, length: 513 }, 1, |_, _| {}).is_err());
    Ok(())
}

#[test]
fn a_streamed_model_is_the_same_model() -> Result<()> {
    for name in ["llama-books", "gpt2-books"] {
        let (model, text) = read(name, "evaluation.txt", 600);
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(name);
        let weights = archive::open(&directory, DType::F32, &Device::Cpu)?;
        let streamed = StreamedModel::new(Config::read(&directory)?, weights)?;
        let ids = Tensor::cat(&Windows { count: 2, length: 100 }.samples(&text, &Device::Cpu)?, 0)?;
        let apart = (model.forward(&ids, None)? - streamed.forward(&ids, None)?)?.abs()?.max_all()?;
        assert_eq!(apart.to_scalar::<f32>()?, 0.0, "{name}");
        let squares = streamed.input_squares(std::slice::from_ref(&ids))?;
        let mut calibration = Calibration::new(&model, vec![ids]).of_squares();
        let layers: Vec<&str> = squares.keys().map(String::as_str).collect();
        for (at, layer) in layers.iter().enumerate() {
            let known = calibration.statistics(&layers[at..])?.expect("a layer of the model");
            assert_eq!(squares[*layer].input_moments(), known.input_moments(), "{name} {layer}");
        }
        // All layers and the head.
        let expected = model.clone().linears_mut().len() + model.tied_table().iter().len();
        assert_eq!(layers.len(), expected, "{name}");
    }
    Ok(())
}

#[test]
fn a_text_too_short_is_refused_with_the_numbers() {
    let (_, text) = read("llama-books", "calibration.txt", 200);
    let error = Windows { count: 1, length: 256 }.samples(&text, &Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("200 tokens is too short for 1 windows of 256"), "{error}");
}
