//! A level: its name, its place, its table.

use super::table::Kernels;

/// A set of instructions and its kernels.
pub(in crate::cpu) struct LevelSpec {
    /// What `RBE_CPU` and people call it.
    pub name: &'static str,
    /// The level that it adds to, whose instructions it needs too.
    pub(super) below: Option<&'static LevelSpec>,
    /// Whether the processor has what it adds.
    pub(super) detect: fn() -> bool,
    pub(super) kernels: &'static Kernels,
    /// The operations that it has from the levels below, by their names in the table: that nothing is so by oversight.
    #[cfg_attr(not(test), expect(dead_code, reason = "stated for a test"))]
    pub(super) inherited: &'static [&'static str],
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
