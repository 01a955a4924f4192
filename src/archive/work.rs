//! What is done to each matrix of a model: its bits, its scales, its encoding.

use super::Archive;
use super::beside::{is_conv1d, model_type, ties_head};
use super::mix::{Share, mix};
use super::options::CompressOptions;
use super::parts::{Part, is_in_out};
use super::roles::{Depth, Role, layer, share_input};
use super::stage::Kept;
use crate::models::Walk;
use crate::nn::{Calibration, Gathered};
use crate::{Encoder, EncoderConfig, Error, Rate, RbeTensor, Result};
use candle_core::{DType, Tensor};
use rbe_core::codec::AxisScales;
use rbe_core::codec::stack::Stack;
use rbe_core::encode::{
    Importance, LayerStatistics, MatrixRef, Offer, RowScales, Scaling, column_scales, column_squares, share,
};
use std::collections::BTreeMap;

/// The matrices that are compressed, in the order of the file.
pub(super) struct Matrices<'a> {
    archive: &'a Archive,
    parts: &'a [Part<'a>],
    pub names: Vec<&'a str>,
    positions: BTreeMap<&'a str, usize>,
    conv1d: bool,
    tied: bool,
}

impl<'a> Matrices<'a> {
    pub(super) fn new(
        archive: &'a Archive,
        parts: &'a [Part<'a>],
        config: Option<&serde_json::Value>,
    ) -> Self {
        let conv1d = model_type(config) == Some("gpt2");
        let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        let positions = names.iter().enumerate().map(|(at, name)| (*name, at)).collect();
        Self { archive, parts, names, positions, conv1d, tied: ties_head(config) }
    }

    /// Where the matrix of this name stands.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.positions.get(name).copied()
    }

    fn role(&self, at: usize) -> Role {
        Role::of(self.names[at], self.tied)
    }

    /// Its weights.
    pub(super) fn elements(&self, at: usize) -> u64 {
        self.parts[at].elements()
    }

    /// Bits a weight that a stack takes beside its matrices' payloads.
    fn stack_bits(&self, at: usize) -> f64 {
        let Part { entry, .. } = &self.parts[at];
        let header = if entry.stacked { Stack::header_bytes(entry.parts()) } else { 0 };
        8.0 * header as f64 / entry.elements() as f64
    }

    /// Whether the file has the transpose of what a layer multiplies by.
    fn is_in_out(&self, at: usize) -> bool {
        let Part { entry, name, .. } = &self.parts[at];
        match entry.stacked {
            true => is_in_out(self.archive, entry),
            false => self.conv1d && is_conv1d(name),
        }
    }

    /// A matrix as (out, in).
    fn weight(&self, at: usize) -> Result<Tensor> {
        // In its own type: the encoder refuses what F32 cannot hold.
        let Part { entry, index, .. } = &self.parts[at];
        let weight = self.archive.dense_part(entry, *index)?;
        if self.is_in_out(at) { Ok(weight.t()?.contiguous()?) } else { Ok(weight) }
    }

    /// A matrix that was encoded as (out, in), as the file has it; and the other way round.
    pub(super) fn as_stored(&self, at: usize, tensor: RbeTensor) -> Result<RbeTensor> {
        if self.is_in_out(at) { tensor.t() } else { Ok(tensor) }
    }
}

/// What is to be done.
pub(super) struct Work<'a, 'm> {
    pub encoder: &'a Encoder,
    pub options: &'a CompressOptions,
    pub calibration: Option<&'a mut Calibration<'m>>,
    /// Through the model whose layers are to be calibrated one after another, and what keeps their payloads.
    pub walk: Option<(Walk, Kept)>,
}

/// How one matrix is encoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// Bits a weight where that is not the encoder's own rate: a share of the budget.
    bits: Option<f64>,
    /// Its scales; `None` where the encoder is to find them.
    scaling: Option<Scaling>,
}

impl Work<'_, '_> {
    /// A plan for each matrix.
    pub(super) fn plan(&mut self, matrices: &Matrices) -> Result<Vec<Plan>> {
        let Rate::BitsPerWeight(bits) = self.encoder.config().rate else {
            return match self.gathered().filter(|gathered| *gathered != Gathered::Squares) {
                None if self.walk.is_none() => Ok(vec![Plan::default(); matrices.names.len()]),
                _ => Err(Error::config(format!(
                    "calibration towards {}; it shares out bits: ask for bits per weight",
                    self.encoder.config().rate
                ))),
            };
        };
        if self.gathered() == Some(Gathered::Guided) {
            let bits = self.offered(matrices, bits)?;
            return Ok(bits.into_iter().map(|bits| Plan { bits, scaling: None }).collect());
        }
        let scalings = self.scalings(matrices)?;
        let layers = matrices.names.iter().filter_map(|name| layer(name)).max().map_or(0, |last| last + 1);
        let shares = (0..matrices.names.len()).map(|at| {
            let (rows, cols) = matrices.parts[at].entry.matrix().unwrap_or((1, 1));
            let side_bits = side_bits(rows, cols, &scalings[at]) + matrices.stack_bits(at);
            let depth = Depth::of(matrices.names[at], layers);
            Share { role: matrices.role(at), depth, weights: matrices.elements(at), side_bits }
        });
        let shares = shares.collect::<Vec<_>>();
        let all = match self.encoder.config().mix {
            true => mix(&shares, bits).into_iter().map(Some).collect(),
            false => vec![None; shares.len()],
        };
        let plan = all.into_iter().zip(scalings);
        Ok(plan.map(|(bits, scaling)| Plan { bits, scaling: Some(scaling) }).collect())
    }
}

/// Bits a weight beside those of coefficients: a number of bits and a scale for each sixteen columns of a block, four bits for a scale
/// of a row or column.
fn side_bits(rows: usize, cols: usize, scaling: &Scaling) -> f64 {
    let (height, width) = (rows as f64, cols as f64);
    let scale_groups = (rows.div_ceil(256) * cols.div_ceil(16)) as f64;
    let of_rows = if scaling.rows.is_some() { 4.0 / width } else { 0.0 };
    let of_cols = if scaling.cols.is_some() { 4.0 / height } else { 0.0 };
    24.0 * scale_groups / (height * width) + of_rows + of_cols
}

impl Work<'_, '_> {
    fn gathered(&self) -> Option<Gathered> {
        self.calibration.as_ref().map(|calibration| calibration.gathered())
    }

    /// The scales of every matrix: those of columns once for all layers of one input.
    fn scalings(&mut self, matrices: &Matrices) -> Result<Vec<Scaling>> {
        let mut columns = BTreeMap::new();
        (0..matrices.names.len())
            .map(|at| {
                let name = matrices.names[at];
                let scaling = self.scaling(matrices, at, &mut columns);
                scaling.map_err(|error| error.in_tensor(name))
            })
            .collect()
    }

    fn scaling(
        &mut self,
        matrices: &Matrices,
        at: usize,
        columns: &mut BTreeMap<Vec<String>, Option<AxisScales>>,
    ) -> Result<Scaling> {
        let role = matrices.role(at);
        if !self.encoder.config().scales {
            return Ok(Scaling::default());
        }
        if role == Role::Positions {
            return Ok(Scaling { rows: Some(RowScales::SquareRoot), cols: None });
        }
        let rows = if role.has_tokens() { RowScales::Full } else { RowScales::SquareRoot };
        // Errors that are handed on from column to column need no scales for what columns meet.
        let hands_on = self.gathered() == Some(Gathered::Products);
        let inputs = match &mut self.calibration {
            Some(calibration) if !hands_on => calibration.statistics(&matrices.names[at..])?,
            _ => None,
        };
        let inputs = inputs.map(|statistics| statistics.input_moments());
        if role.has_tokens() && inputs.is_none() {
            return Ok(Scaling { rows: Some(rows), cols: None });
        }
        let group = share_input(matrices.names[at]);
        if let Some(cols) = columns.get(&group) {
            return Ok(Scaling { rows: Some(rows), cols: cols.clone() });
        }
        let (mut squares, mut height) = (Vec::new(), 0);
        for at in group.iter().filter_map(|name| matrices.position(name)) {
            let weight = matrices.weight(at)?;
            let (rows, cols) = weight.dims2()?;
            let values = weight.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let own = column_squares(MatrixRef::new(&values, rows, cols));
            squares.resize(cols, 0.0);
            squares.iter_mut().zip(own).for_each(|(sum, own)| *sum += own);
            height += rows;
        }
        let cols = match inputs {
            Some(inputs) if inputs.len() != squares.len() => {
                let reason =
                    format!("statistics of {} inputs for a weight of {}", inputs.len(), squares.len());
                return Err(Error::shape(reason));
            }
            inputs => column_scales(&squares, inputs.as_deref(), height),
        };
        columns.insert(group, cols.clone());
        Ok(Scaling { rows: Some(rows), cols })
    }

    /// What calibration offers each matrix of the budget; `None` for one that it has no statistics of.
    fn offered(&mut self, matrices: &Matrices, bits: f64) -> Result<Vec<Option<f64>>> {
        let names = &matrices.names;
        let Some(calibration) = &mut self.calibration else { return Ok(vec![None; names.len()]) };
        let mut offers: Vec<(u64, Vec<Offer>)> = Vec::new();
        for at in 0..names.len() {
            let mut offer = || -> Result<_> {
                let Some(statistics) = calibration.statistics(&names[at..])? else { return Ok(Vec::new()) };
                let weight = matrices.weight(at)?;
                let mut offers = self.encoder.offers(&weight, statistics)?;
                // Far below the others the expectation does not hold; see `FARTHEST`.
                offers.retain(|offer| offer.bits_per_weight >= bits - FARTHEST);
                Ok(offers)
            };
            offers.push((matrices.elements(at), offer().map_err(|e| e.in_tensor(names[at]))?));
        }
        let (some, matrices): (Vec<usize>, Vec<(u64, &[Offer])>) = offers
            .iter()
            .enumerate()
            .filter(|(_, (_, offers))| !offers.is_empty())
            .map(|(at, (weights, offers))| (at, (*weights, &offers[..])))
            .unzip();
        let budget = bits * matrices.iter().map(|(weights, _)| *weights as f64).sum::<f64>();
        let mut rates = vec![None; names.len()];
        for ((at, taken), (_, offers)) in
            some.into_iter().zip(share(&matrices, |spent, _| spent <= budget)).zip(&matrices)
        {
            rates[at] = Some(offers[taken].bits_per_weight);
        }
        Ok(rates)
    }

    /// Encodes a matrix as its plan says, by the statistics that are given or, without, by those of the calibration.
    pub(super) fn encode(
        &mut self,
        matrices: &Matrices,
        at: usize,
        plan: &Plan,
        given: Option<&LayerStatistics>,
    ) -> Result<RbeTensor> {
        let name = matrices.names[at];
        let mut encode = || -> Result<RbeTensor> {
            let weight = matrices.weight(at)?;
            let statistics = match (given, &mut self.calibration) {
                (None, Some(calibration)) => calibration.statistics(&matrices.names[at..])?,
                (given, _) => given,
            };
            let importance = Importance { statistics, scaling: plan.scaling.clone() };
            let own = match self.encoder.config().rate {
                Rate::BitsPerWeight(bits) if matrices.stack_bits(at) > 0.0 => Some(bits),
                _ => None,
            };
            let tensor = match plan.bits.or(own) {
                Some(bits) => {
                    let rate = Rate::BitsPerWeight(bits - matrices.stack_bits(at));
                    let config = EncoderConfig { rate, ..self.encoder.config().clone() };
                    Encoder::new(config)?.encode_for(&weight, &importance)?
                }
                None => self.encoder.encode_for(&weight, &importance)?,
            };
            matrices.as_stored(at, tensor)
        };
        encode().map_err(|e| e.in_tensor(name))
    }
}

/// How many bits fewer than the budget's a matrix gets at most. What errors do to predictions is known to second
/// order: of matrices with few bits it expects too little.
const FARTHEST: f64 = 0.5;
