//! What layers have done so far.

use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

/// What a compressed layer has done since it was made, or since [`reset_layer_counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Forward passes.
    pub calls: u64,
    /// Vectors multiplied.
    pub tokens: u64,
    /// Multiply-adds with coefficients or, of decoded blocks, with weights; transforms are not counted.
    pub multiply_adds: u64,
    /// Coefficients unpacked from the compressed form, once for all vectors of a call.
    pub unpacked: u64,
    /// Bytes of weights read: compressed ones, or decoded blocks.
    pub weight_bytes: u64,
    /// Decoded blocks that the cache held.
    pub cache_hits: u64,
    /// Decoded blocks that it did not hold.
    pub cache_misses: u64,
    /// Time spent in forward passes; zero where there is no clock, on `wasm32-unknown-unknown` without the feature `js`.
    pub nanoseconds: u64,
}

impl Counts {
    /// Time spent in forward passes.
    pub fn time(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds)
    }

    /// The share of decoded blocks that the cache held; `None` where no block was asked for.
    pub fn hit_rate(&self) -> Option<f64> {
        let asked = self.cache_hits + self.cache_misses;
        (asked > 0).then(|| self.cache_hits as f64 / asked as f64)
    }
}

/// One layer's [`Counts`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerCounts {
    /// The weight's path, as the `VarBuilder` had it.
    pub layer: String,
    /// What it has done.
    #[serde(flatten)]
    pub counts: Counts,
}

/// The counters of one layer and its clones.
#[derive(Debug, Default)]
pub(super) struct Counters {
    calls: AtomicU64,
    tokens: AtomicU64,
    multiply_adds: AtomicU64,
    unpacked: AtomicU64,
    weight_bytes: AtomicU64,
    cache_hits: AtomicU64,
    cache_misses: AtomicU64,
    nanoseconds: AtomicU64,
}

impl Counters {
    /// One forward pass of `tokens` vectors.
    pub(super) fn call(&self, tokens: usize, multiply_adds: usize, weight_bytes: usize, time: Duration) {
        let add = |counter: &AtomicU64, n: u64| counter.fetch_add(n, Ordering::Relaxed);
        add(&self.calls, 1);
        add(&self.tokens, tokens as u64);
        add(&self.multiply_adds, multiply_adds as u64);
        add(&self.weight_bytes, weight_bytes as u64);
        add(&self.nanoseconds, u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Coefficients unpacked.
    pub(super) fn unpack(&self, coefficients: usize) {
        self.unpacked.fetch_add(coefficients as u64, Ordering::Relaxed);
    }

    pub(super) fn hit(&self) {
        self.cache_hits.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn miss(&self, coefficients: usize) {
        self.cache_misses.fetch_add(1, Ordering::Relaxed);
        self.unpack(coefficients);
    }

    fn all(&self) -> [&AtomicU64; 8] {
        [
            &self.calls,
            &self.tokens,
            &self.multiply_adds,
            &self.unpacked,
            &self.weight_bytes,
            &self.cache_hits,
            &self.cache_misses,
            &self.nanoseconds,
        ]
    }

    pub(super) fn counts(&self) -> Counts {
        let [calls, tokens, multiply_adds, unpacked, weight_bytes, cache_hits, cache_misses, nanoseconds] =
            self.all().map(|counter| counter.load(Ordering::Relaxed));
        Counts { calls, tokens, multiply_adds, unpacked, weight_bytes, cache_hits, cache_misses, nanoseconds }
    }
}

/// The layers that were made under a name and are still there, in the order in which they were made.
static LAYERS: Mutex<Vec<(String, Weak<Counters>)>> = Mutex::new(Vec::new());

/// Lists counters under a layer's name.
pub(super) fn register(layer: String, counters: &Arc<Counters>) {
    let mut layers = LAYERS.lock().unwrap_or_else(PoisonError::into_inner);
    layers.retain(|(_, counters)| counters.strong_count() > 0);
    layers.push((layer, Arc::downgrade(counters)));
}

/// What every compressed layer that came from a `VarBuilder` and still exists has done, of all models in the process.
pub fn layer_counts() -> Vec<LayerCounts> {
    let layers = LAYERS.lock().unwrap_or_else(PoisonError::into_inner);
    let counts = |(layer, counters): &(String, Weak<Counters>)| {
        Some(LayerCounts { layer: layer.clone(), counts: counters.upgrade()?.counts() })
    };
    layers.iter().filter_map(counts).collect()
}

/// Sets the counts of all these layers to zero.
pub fn reset_layer_counts() {
    let layers = LAYERS.lock().unwrap_or_else(PoisonError::into_inner);
    for counters in layers.iter().filter_map(|(_, counters)| counters.upgrade()) {
        counters.all().iter().for_each(|counter| counter.store(0, Ordering::Relaxed));
    }
}
