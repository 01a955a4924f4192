//! The clock that forwards and conversions are timed with.
//!
//! `std` has one everywhere but on `wasm32-unknown-unknown`, where asking it for the time panics: that target promises no
//! system at all. There the feature `js` brings the host's clock; without it times are zero, and nothing else changes.

#[cfg(not(all(target_family = "wasm", target_os = "unknown")))]
pub(crate) use std::time::Instant;

#[cfg(all(target_family = "wasm", target_os = "unknown", feature = "js"))]
pub(crate) use web_time::Instant;

#[cfg(all(target_family = "wasm", target_os = "unknown", not(feature = "js")))]
pub(crate) use stopped::Instant;

/// Whether times are measured.
pub(crate) const RUNS: bool =
    cfg!(any(not(all(target_family = "wasm", target_os = "unknown")), feature = "js"));

/// A clock that stands still, where there is none.
#[cfg(all(target_family = "wasm", target_os = "unknown", not(feature = "js")))]
mod stopped {
    use std::time::Duration;

    /// A moment that is as good as any other.
    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Instant;

    impl Instant {
        pub(crate) fn now() -> Self {
            Self
        }

        pub(crate) fn elapsed(self) -> Duration {
            Duration::ZERO
        }
    }
}
