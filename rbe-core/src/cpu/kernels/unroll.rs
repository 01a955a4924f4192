//! Loops over constants, for kernels whose state must stay in registers, and tables of them.

/// Calls `$f::<PLANES, BATCH>` for run-time numbers of planes and the most digits that fit.
macro_rules! dispatch {
    ($planes:expr, $batch:expr, $f:ident $args:tt, $choices:tt) => {
        $crate::cpu::kernels::unroll::dispatch!($planes, $batch, $f $args, $choices, 1 2 3 4 5 6 7 8)
    };
    ($planes:expr, $batch:expr, $f:ident $args:tt, $choices:tt, $($p:literal)*) => {
        match $planes {
            $($p => $crate::cpu::kernels::unroll::dispatch_batch!($p, $batch, $f $args, $choices),)*
            other => unreachable!("{other} planes"),
        }
    };
}
pub(super) use dispatch;

/// The second half of [`dispatch`].
macro_rules! dispatch_batch {
    ($p:literal, $batch:expr, $f:ident $args:tt, [$($v:literal),*]) => {
        match $batch {
            $(n if n >= $v => $f::<$p, $v> $args,)*
            _ => unreachable!("no digits"),
        }
    };
}
pub(super) use dispatch_batch;

/// Calls `$f::<BITS, STATE>` for a trellis's code, `STATE` being 12 or, for all larger states, 16.
macro_rules! dispatch_code {
    ($code:expr, $f:ident $args:tt) => {
        match ($code.bits(), $code.state_bits()) {
            (1, 12) => $f::<1, 12> $args,
            (2, 12) => $f::<2, 12> $args,
            (3, 12) => $f::<3, 12> $args,
            (4, 12) => $f::<4, 12> $args,
            (1, _) => $f::<1, 16> $args,
            (2, _) => $f::<2, 16> $args,
            (3, _) => $f::<3, 16> $args,
            (4, _) => $f::<4, 16> $args,
            (other, _) => unreachable!("a trellis of {other} bits"),
        }
    };
}
pub(super) use dispatch_code;

/// A [`PerCode`](super::generic::decode::PerCode), `$of` being what makes a code's of it and `$first` anything.
macro_rules! per_code {
    ($of:ident, $first:expr) => {{
        let mut all = [$first; Code::COUNT];
        let mut number = 0;
        while number < Code::COUNT {
            all[number] = $of(Code::numbered(number));
            number += 1;
        }
        PerCode(all)
    }};
}
pub(super) use per_code;

/// Evaluates `$body` for every number of a list, as the constant `$n`: loops over registers must not be left to the
/// optimiser's budget.
macro_rules! each {
    ($n:ident in [$($value:literal)*] $body:expr) => {
        [$({
            const $n: usize = $value;
            $body
        }),*]
    };
}
pub(super) use each;
