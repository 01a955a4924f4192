//! Orthonormal transforms.

/// The orthonormal transform of a block's rows and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Transform {
    /// DCT-II.
    #[default]
    Dct,
    /// Haar wavelet, all levels.
    Haar,
    /// Daubechies' wavelet with four taps (D4), all levels.
    Daubechies4,
}
