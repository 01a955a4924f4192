//! The machine finds what it is there to find.

use crate::simulator::{Checks, Memory, Order, Simulator, encode};
use candle_rbe::cuda::{Element, Machine};

const THREADS: usize = 256;
const SHARED_BYTES: usize = 4 * THREADS;

fn memory(machine: &Simulator) -> Memory {
    let values: Vec<f32> = (0..THREADS).map(|n| n as f32).collect();
    machine.upload(&encode(&values, Element::F32)).unwrap()
}

/// What goes wrong in a kernel, on a machine of its own.
fn fault(checks: Checks, kernel: &str) -> Option<String> {
    let machine = Simulator::start(checks, Order::Forward)?;
    let memory = memory(&machine);
    let blocks = if kernel.starts_with("last_block") { 2 } else { 1 };
    // What waits has something to wait for.
    if kernel.starts_with("waits") {
        machine.run("reverse", 1, THREADS, SHARED_BYTES, &memory).unwrap();
    }
    let done = machine.run(kernel, blocks, THREADS, SHARED_BYTES, &memory).err();
    Some(done.map_or_else(String::new, |error| error.to_string()))
}

#[test]
fn a_kernel_without_fault_passes_every_check() {
    for checks in [Checks::None, Checks::Addresses, Checks::Races] {
        for kernel in ["reverse", "last_block_adds_up", "waits_and_adds"] {
            assert_eq!(fault(checks, kernel).unwrap_or_default(), "", "{checks:?} {kernel}");
        }
    }
}

#[test]
fn each_fault_is_found() {
    for (checks, kernel, words) in [
        (Checks::None, "barrier_for_half", "a barrier"),
        (Checks::None, "shuffle_after_leaving", "left the kernel"),
        (Checks::None, "no_such_kernel", "no kernel named"),
        (Checks::Addresses, "beyond_the_buffer", "use-after-poison"),
        (Checks::Addresses, "beyond_shared", "use-after-poison"),
        (Checks::Addresses, "misaligned", "misaligned"),
        (Checks::Races, "reverse_without_barrier", "data race"),
        (Checks::Races, "last_one_wins", "data race"),
        (Checks::Races, "last_block_adds_up_without_fences", "data race"),
        (Checks::Races, "waits_after_reading", "data race"),
    ] {
        let Some(found) = fault(checks, kernel) else { return };
        assert!(found.contains(words), "{kernel}: {found}");
    }
}

#[test]
fn the_order_of_threads_shows_in_what_depends_on_it() {
    let orders = [Order::Forward, Order::Backward];
    let last = orders.map(|order| {
        let machine = Simulator::start(Checks::None, order)?;
        let memory = memory(&machine);
        machine.run("last_one_wins", 1, THREADS, SHARED_BYTES, &memory).unwrap();
        Some(machine.values(&memory, Element::F32)[0])
    });
    assert!(last == [None, None] || last == [Some(THREADS as f32 - 1.0), Some(0.0)], "{last:?}");
}

#[test]
fn shared_memory_that_nobody_wrote_is_nan() {
    let Some(machine) = Simulator::start(Checks::None, Order::Forward) else { return };
    let memory = memory(&machine);
    machine.run("reverse_without_barrier", 1, THREADS, SHARED_BYTES, &memory).unwrap();
    assert!(machine.values(&memory, Element::F32).iter().any(|x| x.is_nan()));
}
