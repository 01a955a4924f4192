//! Where bits are spent: one at a time, where each saves the most squared error.

/// Bits per item by rate and distortion. `curves[i][n]` is item `i`'s squared error with `n` bits a coefficient,
/// and falls less with every bit; `cost(i, n)` is what its bit `n + 1` takes. Bits are added to the `least` that every
/// item has, as long as `fits(cost, error)` allows the sums so far.
pub(super) fn allocate<const N: usize>(
    curves: &[[f64; N]],
    least: u8,
    cost: impl Fn(usize, usize) -> usize,
    mut fits: impl FnMut(usize, f64) -> bool,
) -> Vec<u8> {
    let mut upgrades = Vec::with_capacity(curves.len() * (N - 1));
    for (index, curve) in curves.iter().enumerate() {
        for (n, errors) in curve.windows(2).enumerate().skip(usize::from(least)) {
            let (saved, bits) = (errors[0] - errors[1], cost(index, n));
            upgrades.push((saved / bits as f64, index, bits, saved));
        }
    }
    // An item's savings fall with every bit, so a stable sort keeps its bits in order.
    upgrades.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut bits_of = vec![least; curves.len()];
    let all = |index| (0..usize::from(least)).map(|n| cost(index, n)).sum::<usize>();
    let mut spent: usize = (0..curves.len()).map(all).sum();
    let mut error = curves.iter().map(|curve| curve[usize::from(least)]).sum::<f64>();
    for (_, index, bits, saved) in upgrades {
        if saved <= 0.0 || !fits(spent + bits, error - saved) {
            break;
        }
        spent += bits;
        error -= saved;
        bits_of[index] += 1;
    }
    bits_of
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_go_where_they_save_the_most() {
        let curves = [[16.0, 4.0, 1.0], [160.0, 40.0, 10.0], [0.0, 0.0, 0.0]];
        let bits = |budget: usize| allocate(&curves, 0, |_, _| 8, |spent, _| spent <= budget);
        assert_eq!(bits(7), [0, 0, 0]);
        assert_eq!(bits(8), [0, 1, 0]);
        assert_eq!(bits(16), [0, 2, 0]);
        assert_eq!(bits(24), [1, 2, 0]);
        assert_eq!(bits(1000), [2, 2, 0]);
        assert_eq!(allocate(&curves, 1, |_, _| 8, |spent, _| spent <= 32), [1, 2, 1]);
        // The same savings for twice the bits come later.
        assert_eq!(allocate(&curves, 0, |index, _| [1, 100, 1][index], |spent, _| spent <= 2), [2, 0, 0]);
    }
}
