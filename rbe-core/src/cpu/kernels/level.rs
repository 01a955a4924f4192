//! A level: its name, its place, its table.

use super::table::Kernels;

/// Operations that a level has together or not at all, for [`LevelSpec::inherited`]: with sparse terms.
pub(super) const SPARSE: &[&str] = &["sparse", "sparse_transposed", "spmm_min_batch", "spmm", "sddmm"];
/// With planes and trellises beside the products in integers.
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
pub(super) const DECODING: &[&str] = &[
    "planes_transposed",
    "trellis_transposed",
    "trellis_codes",
    "plane_codes",
    "add_codes",
    "trellis_squares",
];
/// Of the search for a trellis' bits.
#[cfg_attr(target_arch = "wasm32", allow(dead_code))]
pub(super) const VITERBI: &[&str] = &["viterbi", "viterbi_bytes"];
/// With many vectors and weights that were decoded before.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(super) const PANELS: &[&str] =
    &["panel_floats", "panel_integers", "round_vector", "round_strip", "panel_cost"];
/// That make bytes of activations.
pub(super) const ACTIVATIONS: &[&str] = &["largest", "quantize_slice"];
/// Between rows and lanes.
pub(super) const LANES: &[&str] = &["rows_to_lanes", "lanes_to_rows"];
/// With floats alone.
pub(super) const FLOATS: &[&str] =
    &["dct2", "dct3", "norm", "norm_gradient", "exp", "silu_mul", "dot", "weigh"];
/// With one position's queries.
pub(super) const ATTENTION: &[&str] = &["attend"];
/// In registers of eight: segments that are transformed by themselves, tiles to rows.
pub(super) const STRIPS: &[&str] = &["dct2_of_strip", "dct3_of_strip", "add_tiles"];

/// A set of instructions and its kernels.
pub(in crate::cpu) struct LevelSpec {
    /// What `RBE_CPU` and people call it.
    pub name: &'static str,
    /// The level that it adds to, whose instructions it needs too.
    pub(super) below: Option<&'static LevelSpec>,
    /// Whether the processor has what it adds.
    pub(super) detect: fn() -> bool,
    pub(super) kernels: &'static Kernels,
    /// The operations that it has from the levels below, by their names in the table, some together: that nothing is so by
    /// oversight.
    #[cfg_attr(not(test), expect(dead_code, reason = "stated for a test"))]
    pub(super) inherited: &'static [&'static [&'static str]],
}

impl LevelSpec {
    /// Whether the processor has its instructions and those of the levels below.
    pub(in crate::cpu) fn is_available(&self) -> bool {
        self.below.is_none_or(LevelSpec::is_available) && (self.detect)()
    }

    /// Its kernels, where the processor has its instructions.
    pub(in crate::cpu) fn kernels(&self) -> Option<&'static Kernels> {
        self.is_available().then_some(self.kernels)
    }
}
