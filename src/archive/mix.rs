//! How many bits each matrix of a model gets: by what it is, as its name tells.

use super::roles::{Depth, Role};

/// A matrix that takes a share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub role: Role,
    pub depth: Depth,
    /// Its weights.
    pub weights: u64,
    /// Bits a weight of what it has beside its coefficients' bits.
    pub side_bits: f64,
}

/// How much a model's divergence grows by an error of a weight there, beside one of an average projection, both relative to the size of
/// their matrices: rounded from what noise of the same relative size did to three models (docs/quality.md, "A mix"). `head` is that of the
/// head's.
fn sensitivity(share: &Share, head: f64) -> f64 {
    let role = match share.role {
        Role::Head | Role::TiedTable => head,
        Role::Positions => 5.0,
        Role::Value => 2.5,
        Role::Query => 0.5,
        Role::Table | Role::Projection => 1.0,
    };
    let depth = match share.depth {
        Depth::First => 1.6,
        Depth::Middle => 0.8,
        Depth::Last => 1.2,
    };
    role * depth
}

/// Of a head's weight: all of them together cost about as much as those of all projections together, so each as much more as there
/// are fewer of them. At most what was seen.
fn head_sensitivity(shares: &[Share]) -> f64 {
    let weights = |of: fn(Role) -> bool| -> u64 {
        shares.iter().filter(|share| of(share.role)).map(|share| share.weights).sum()
    };
    let head = weights(|role| matches!(role, Role::Head | Role::TiedTable));
    let projections = weights(|role| matches!(role, Role::Projection | Role::Query | Role::Value));
    (projections as f64 / head.max(1) as f64).clamp(1.0, MOST_OF_A_HEAD)
}

const MOST_OF_A_HEAD: f64 = 6.0;

/// The fewest bits of a matrix are the whole ones of the budget, with this added, less one: what errors do is known for small ones.
const NEARLY: f64 = 0.25;
/// The most bits of a coefficient.
const MOST: f64 = 8.0;

/// The shares of matrices in their order: bits a weight, side information counted, of every matrix, `bits` being the budget of
/// all: one bit after another where it saves the most, an error falling to a quarter with each (Shannon 1959). What is left of the budget at the end, the next in line has a part
/// of a bit for.
pub(super) fn mix(shares: &[Share], bits: f64) -> Vec<f64> {
    let weights = |share: &Share| share.weights as f64;
    let mut left: f64 = shares.iter().map(|share| (bits - share.side_bits) * weights(share)).sum();
    let mean = left / shares.iter().map(weights).sum::<f64>();
    let fewest = ((mean + NEARLY).floor() - 1.0).clamp(mean.min(1.0), MOST);
    let mut all = vec![fewest; shares.len()];
    let head = head_sensitivity(shares);
    left -= shares.iter().map(|share| fewest * weights(share)).sum::<f64>();
    while left > 0.0 {
        let worth = |at: &usize| sensitivity(&shares[*at], head) * (-2.0 * all[*at]).exp2();
        let open = (0..all.len()).filter(|at| all[*at] < MOST);
        // Of equals the first, so that the order of names decides.
        let Some(next) = open.rev().max_by(|a, b| worth(a).total_cmp(&worth(b))) else { break };
        let part = (left / weights(&shares[next])).min(1.0).min(MOST - all[next]);
        all[next] += part;
        left -= part * weights(&shares[next]);
        if part < 1.0 {
            break;
        }
    }
    // What it was, where it is one's alone: sums round.
    let rounded = |bits: f64| (bits * 1e9).round() / 1e9;
    all.iter().zip(shares).map(|(bits, share)| rounded(bits + share.side_bits)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Vec<Share> {
        let share = |role, weights| Share { role, depth: Depth::Middle, weights, side_bits: 0.02 };
        let mut shares = vec![share(Role::TiedTable, 25_000)];
        for _ in 0..4 {
            shares.extend([Role::Query, Role::Value, Role::Projection].map(|role| share(role, 10_000)));
        }
        shares
    }

    #[test]
    fn the_budget_is_spent_where_it_saves_the_most() {
        for bits in [2.02, 3.1, 4.02, 4.5, 6.02] {
            let shares = model();
            let all = mix(&shares, bits);
            let spent: f64 = all.iter().zip(&shares).map(|(bits, share)| bits * share.weights as f64).sum();
            assert!((spent / 145_000.0 - bits).abs() < 1e-8, "{bits}: {all:?}");
            // The table, then values, then projections, then queries.
            let [table, query, value, projection] = [0, 1, 2, 3].map(|at| all[at]);
            assert!(table >= value && value >= projection && projection >= query, "{all:?}");
            assert!(table > projection && table - query <= 3.0, "{all:?}");
        }
    }

    #[test]
    fn a_large_head_gets_as_many_bits_as_projections_and_a_small_one_more() {
        let share = |role, weights| Share { role, depth: Depth::Middle, weights, side_bits: 0.0 };
        let bits = |head| mix(&[share(Role::Head, head), share(Role::Projection, 100_000)], 4.0);
        let [large, small] = [bits(30_000), bits(10_000)];
        assert!(large[0] == 4.0 && large[1] == 4.0, "{large:?}");
        assert!(small[0] == 5.0 && small[1] < 4.0, "{small:?}");
    }

    #[test]
    fn budgets_at_the_ends_are_kept() {
        let shares = model();
        // Less than a bit is the same for all; more than all can take stays.
        assert!(mix(&shares, 0.5).iter().all(|bits| (bits - 0.5).abs() < 1e-9));
        assert!(mix(&shares, 9.0).iter().all(|bits| (bits - 8.02).abs() < 1e-9));
        // Equals have equal bits, but for the last whose part is what is left.
        let equals: Vec<Share> = model().into_iter().filter(|share| share.role == Role::Projection).collect();
        assert!(mix(&equals, 4.02).iter().all(|bits| (bits - 4.02).abs() < 1e-9));
    }
}
