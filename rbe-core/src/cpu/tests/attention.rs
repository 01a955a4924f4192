//! Attention of one query on every level: against its definition in F64, with what is hidden and what is not a number, and by several
//! threads.

use crate::cpu::attention::run;
use crate::cpu::exec::Exec;
use crate::cpu::features::levels;
use crate::cpu::kernels::Kernels;
use crate::cpu::{Attention, Heads, Pool, Rayon, Serial};

const BATCH: usize = 2;
const KV_HEADS: usize = 2;
/// Elements between heads, and between sequences, that are nobody's: not numbers.
const GAP: usize = 5;

/// Queries, keys and values, and what is added to scores.
struct Case {
    rows: usize,
    keys: usize,
    width: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    bias: Vec<f32>,
}

/// Heads of `len` elements between -1 and 1, with gaps.
fn heads(heads: usize, len: usize, seed: usize) -> Vec<f32> {
    let noise = |n: usize| ((n * 37 + seed) as f32 * 0.71).sin();
    let mut values = Vec::new();
    for sequence in 0..BATCH {
        for head in 0..heads {
            values.extend((0..len).map(|n| noise((sequence * heads + head) * len + n)));
            values.extend([f32::NAN; GAP]);
        }
        values.extend([f32::NAN; GAP]);
    }
    values
}

impl Case {
    fn new(rows: usize, keys: usize, width: usize) -> Self {
        Self {
            rows,
            keys,
            width,
            q: heads(KV_HEADS * rows, width, 1),
            k: heads(KV_HEADS, keys * width, 2),
            v: heads(KV_HEADS, keys * width, 3),
            bias: vec![],
        }
    }

    /// The same with biases of keys, minus infinity for those that `hidden` names in a sequence.
    fn with_bias(self, hidden: impl Fn(usize, usize) -> bool) -> Self {
        let bias = |n: usize| {
            let hidden = hidden(n / self.keys, n % self.keys);
            if hidden { f32::NEG_INFINITY } else { (n as f32 * 0.3).cos() }
        };
        Self { bias: (0..BATCH * self.keys).map(bias).collect(), ..self }
    }

    /// Where a head's elements lie.
    fn at(&self, heads: usize, len: usize, sequence: usize, head: usize) -> usize {
        sequence * (heads * (len + GAP) + GAP) + head * (len + GAP)
    }

    /// An element of a key or a value.
    fn of_key(&self, sequence: usize, kv_head: usize, key: usize, n: usize) -> usize {
        self.at(KV_HEADS, self.keys * self.width, sequence, kv_head) + key * self.width + n
    }

    fn scale(&self) -> f32 {
        2.0 / (self.width as f32).sqrt()
    }

    fn output(&self, exec: Exec) -> Vec<f32> {
        let Self { rows, keys, width, .. } = *self;
        let heads = KV_HEADS * rows;
        let shape = Attention {
            batch: BATCH,
            heads,
            kv_heads: KV_HEADS,
            queries: 1,
            keys,
            width,
            scale: self.scale(),
            causal: keys > 0,
            key_bias: &self.bias,
        };
        let tensor = |values, heads, len| Heads {
            values,
            batch_stride: heads * (len + GAP) + GAP,
            head_stride: len + GAP,
        };
        let (q, kv) = (tensor(&self.q, heads, width), |values| tensor(values, KV_HEADS, keys * width));
        let mut out = vec![f32::NAN; BATCH * heads * width];
        run(exec, &shape, [q, kv(&self.k), kv(&self.v)], &mut out);
        out
    }

    /// The definition.
    fn textbook(&self) -> Vec<f64> {
        let Self { rows, keys, width, .. } = *self;
        let mut out = vec![0.0; BATCH * KV_HEADS * rows * width];
        for (head, out) in out.chunks_exact_mut(width).enumerate() {
            let (sequence, head) = (head / (KV_HEADS * rows), head % (KV_HEADS * rows));
            let query = &self.q[self.at(KV_HEADS * rows, width, sequence, head)..][..width];
            let weight = |key: usize| {
                let k = &self.k[self.of_key(sequence, head / rows, key, 0)..][..width];
                let dot: f64 = query.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                let bias = self.bias.get(sequence * keys + key).map_or(0.0, |bias| f64::from(*bias));
                (dot * f64::from(self.scale()) + bias).exp()
            };
            let weights: Vec<f64> = (0..keys).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            for (key, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight > 0.0) {
                let v = &self.v[self.of_key(sequence, head / rows, key, 0)..][..width];
                out.iter_mut().zip(v).for_each(|(out, v)| *out += weight / sum * f64::from(*v));
            }
        }
        out
    }

    /// Expects the definition of every level.
    fn check(&self) {
        let expected = self.textbook();
        for level in levels() {
            let kernels = &Kernels::new(level).unwrap();
            let out = self.output(Exec { kernels, pool: &Serial });
            let difference = out.iter().zip(&expected).map(|(a, b)| (f64::from(*a) - b).abs());
            let error = difference.fold(0.0, |a, b| if a >= b { a } else { b });
            assert!(
                error < 1e-6,
                "{level:?}: {} rows, {} keys of {}, {} biases: {error}",
                self.rows,
                self.keys,
                self.width,
                self.bias.len()
            );
        }
    }
}

const WIDTHS: [usize; 6] = [1, 8, 33, 64, 80, 128];
const KEYS: [usize; 8] = [1, 2, 63, 64, 65, 200, 257, 1000];

#[test]
fn one_query_agrees_with_the_definition() {
    for rows in [1, 2, 3, 4, 5, 8] {
        for width in WIDTHS {
            for keys in KEYS {
                Case::new(rows, keys, width).check();
            }
        }
    }
}

#[test]
fn hidden_keys_have_no_part_in_it() {
    for rows in [1, 3, 4] {
        for width in [33, 64] {
            for keys in KEYS {
                // The first keys, more than a part has, and some of the others; in the second sequence all.
                Case::new(rows, keys, width)
                    .with_bias(|sequence, key| sequence == 1 || key % 3 == 1 || key < 2 * keys / 3)
                    .check();
                Case::new(rows, keys, width).with_bias(|_, key| key >= keys / 3).check();
            }
        }
    }
}

#[test]
fn a_query_without_keys_gives_zero() {
    Case::new(3, 0, 8).check();
}

#[test]
fn what_is_not_finite_shows() {
    for level in levels() {
        let kernels = &Kernels::new(level).unwrap();
        for (rows, keys, width) in [(1, 1, 8), (3, 200, 64), (4, 65, 33), (5, 1000, 16)] {
            let heads = KV_HEADS * rows;
            // Where there is to be no number, by the head, those of the second sequence behind the first's, and the column.
            let expect = |case: &Case, what: &str, bad: &dyn Fn(usize, usize) -> bool| {
                let out = case.output(Exec { kernels, pool: &Serial });
                for (n, out) in out.into_iter().enumerate() {
                    let bad = bad(n / width, n % width);
                    assert_eq!(out.is_nan(), bad, "{level:?}, {keys} keys, {what}: {out} at {n}");
                }
            };
            for bad in [f32::NAN, f32::INFINITY] {
                let mut case = Case::new(rows, keys, width);
                let query = case.at(heads, width, 1, heads - 1);
                case.q[query..query + width].fill(bad);
                expect(&case, "a query", &|head, _| head == 2 * heads - 1);
            }
            // Even where all keys are hidden.
            for hidden in [false, true] {
                let mut case = Case::new(rows, keys, width);
                if hidden {
                    case = case.with_bias(|_, _| true);
                }
                let key = case.of_key(0, 1, keys / 2, width - 1);
                case.k[key] = f32::NAN;
                expect(&case, "a key", &|head, _| (rows..heads).contains(&head));
            }
            let mut case = Case::new(rows, keys, width);
            let value = case.of_key(1, 0, keys - 1, width / 2);
            case.v[value] = f32::NAN;
            expect(&case, "a value", &|head, col| (heads..heads + rows).contains(&head) && col == width / 2);
        }
    }
}

/// Calls with one item at a time, the last first.
struct Backwards;

// SAFETY: each item once.
unsafe impl Pool for Backwards {
    fn run(&self, items: usize, f: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        (0..items).rev().for_each(|item| f(item..item + 1));
    }
}

#[test]
fn every_pool_gives_the_same_bits() {
    for level in levels() {
        let kernels = &Kernels::new(level).unwrap();
        for (rows, keys, width) in [(1, 200, 64), (3, 1000, 64), (4, 700, 33), (8, 3000, 80)] {
            let case = Case::new(rows, keys, width);
            let bits = |pool| {
                let out = case.output(Exec { kernels, pool });
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            let alone = bits(&Serial);
            assert!(alone == bits(&Rayon) && alone == bits(&Backwards), "{level:?} {rows} {keys} {width}");
        }
    }
}
