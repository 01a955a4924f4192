//! What is known of a matrix beside its weights.

use super::calibrate::LayerStatistics;
use super::config::EncoderConfig;
use super::matrix_ref::MatrixRef;
use super::scales::{RowScales, Scaling, column_scales};
use crate::error::{Error, Result};

/// What errors of a matrix `(outputs, inputs)` do to a model, as far as it is known.
#[derive(Clone, Debug, Default)]
pub struct Importance<'a> {
    /// What calibration knows of the layer.
    pub statistics: Option<&'a LayerStatistics>,
    /// Which scales the matrix gets, where [`EncoderConfig::scales`] allows any; `None` for those that follow from the weights and
    /// the statistics.
    pub scaling: Option<Scaling>,
}

impl<'a> Importance<'a> {
    /// What calibration knows.
    pub fn of(statistics: &'a LayerStatistics) -> Self {
        Self { statistics: Some(statistics), scaling: None }
    }

    /// Whether there is nothing but the weights.
    pub(super) fn is_unknown(&self) -> bool {
        self.statistics.is_none() && self.scaling.is_none()
    }

    /// # Errors
    /// When the scales are those of another number of columns.
    pub(super) fn check(&self, cols: usize) -> Result<()> {
        let scales = self.scaling.as_ref().and_then(|scaling| scaling.cols.as_ref());
        match scales.filter(|scales| scales.len() != cols) {
            Some(scales) => {
                Err(Error::shape(format!("scales of {} columns for a matrix of {cols}", scales.len())))
            }
            None => Ok(()),
        }
    }

    /// The scales to be had.
    pub(super) fn scaling(&self, config: &EncoderConfig, weights: MatrixRef) -> Scaling {
        match &self.scaling {
            _ if !config.scales => Scaling::default(),
            Some(scaling) => scaling.clone(),
            None => {
                // Errors that are handed on from column to column are shaped already.
                if self.statistics.is_some_and(LayerStatistics::has_products) {
                    return Scaling::default();
                }
                let inputs = self.statistics.map(LayerStatistics::input_moments);
                let squares = column_squares(weights);
                let cols = column_scales(&squares, inputs.as_deref(), weights.rows());
                Scaling { rows: Some(RowScales::SquareRoot), cols }
            }
        }
    }
}

/// The sum of squares of each column.
pub fn column_squares(weights: MatrixRef) -> Vec<f64> {
    let mut squares = vec![0.0; weights.cols()];
    for row in 0..weights.rows() {
        squares.iter_mut().zip(weights.row(row)).for_each(|(sum, value)| *sum += f64::from(*value).powi(2));
    }
    squares
}
