#!/usr/bin/env python3
"""What the kernels cost, counted in the machine code for an H100: instructions a weight in the hot loops, by the unit that runs
them, and the time that the busiest unit sets for 8192 x 8192 weights; registers, shared memory, and the warps that a multiprocessor has
at once by them; the clocks of a warp alone through a transform; what attention takes an element of a key. Fails where a count is above its ceiling.

    kernels/counts.py NVCC NVDISASM [part of a kernel's name ...]

Kernels are compiled with COUNTED_BITS or COUNTED_LEVELS, so that they have one number of bits or one length of blocks alone.
"""
import collections
import concurrent.futures
import pathlib
import re
import subprocess
import sys
import tempfile

CLOCK, MULTIPROCESSORS, BANDWIDTH, WEIGHTS = 1.755e9, 132, 3.0e12, 8192 * 8192
# Instructions that a multiprocessor starts in a clock, by unit. Products of four bytes (IDP) go where IMAD does.
RATES = {"all": 128, "integer": 64, "FMA": 128, "IMAD, IDP": 64, "look-ups": 32}
INTEGER = set("LOP3 SHF LEA PRMT IADD3 ISETP SEL VIADD SGXT IABS PLOP3 FSEL FSETP VIMNMX FMNMX BREV FLO POPC F2FP".split())
FMA = set("FFMA FADD FMUL HFMA2 HADD2 HMUL2".split())
# Clocks until a result can be used: an estimate, for warps that are alone.
LATENCIES = {"LDG": 500, "LDS": 30, "SHFL": 25, "LDC": 40, "S2R": 25, "MUFU": 20, "FLO": 15, "I2F": 15, "F2F": 15}
LATENCY, BARRIER = 5, 20
# Of a multiprocessor: registers, bytes of shared memory, of which each block takes some more, and warps; warps of a block.
REGISTERS, SHARED, SHARED_EACH, MOST_WARPS, WARPS = 65536, 228 * 1024, 1024, 64, 8

# Shared memory of a block with 8192 columns: the trellis' table, with few vectors buffers and a split's inputs, the warps' rings, whose steps
# have words of four bits, or half of them and what follows, and vectors; or what is more, the warps' sums.
TABLE, SUMS, STAGED = 384 * 32 * 4, 8 * 32 * 64 * 4, 8 * 320 * 4 + 2 * 32 * 128
ring = lambda loads: 2 * 8 * loads * 512
# Source, kernel, bits, weights of a thread in a pass of its loop, bytes of shared memory; the most instructions and integer operations a
# weight and registers, the fewest warps on a multiprocessor.
LOOPS = [
    ("trellis", "trellis_short_tiles_few", 4, 128, TABLE + STAGED + ring(4), 4.5, 1.95, 128, 16),
    ("trellis", "trellis_short_tiles_many", 4, 128, TABLE + ring(4 + 1), 4.8, 2.05, 128, 16),
    ("trellis", "trellis_short_tiles_exact", 4, 128, TABLE + ring(4 + 1), 5.0, 2.1, 128, 16),
    ("trellis", "trellis_short_tiles_wide", 4, 128, TABLE + ring(4 + 2), 4.95, 2.05, 255, 8),
    ("trellis", "trellis_short_tiles_broad", 4, 64, TABLE + ring(3 + 4), 6.7, 2.65, 255, 8),
    ("trellis", "trellis_tiles_few", 4, 128, TABLE + STAGED + ring(4), 5.1, 2.6, 255, 8),
    ("trellis", "trellis_short_tiles_few", 3, 128, TABLE + STAGED + ring(4), 7.0, 4.4, 128, 16),
    ("trellis", "trellis_short_tiles_few", 2, 128, TABLE + STAGED + ring(4), 5.2, 2.5, 128, 16),
    ("planes", "planes_product_1", 4, 32, 8 * 320 * 4 + 16 * 128, 4.2, 1.5, 128, 16),
    ("planes", "planes_tiles_few", 4, 128, SUMS, 1.4, 0.95, 128, 16),
    ("planes", "planes_tiles_few_exact", 4, 128, SUMS, 1.95, 0.95, 128, 16),
    ("planes", "planes_tiles_many", 4, 128, SUMS, 1.65, 1.02, 128, 16),
    ("planes", "planes_tiles_exact", 4, 128, SUMS, 2.4, 1.05, 128, 16),
    ("planes", "planes_tiles_wide", 4, 128, SUMS, 1.85, 1.0, 255, 8),
    ("planes", "planes_tiles_broad", 4, 64, ring(2 + 4), 3.4, 1.45, 255, 8),
]
# Kernel, binary logarithm of the block's length, the most microseconds of a warp alone.
TRANSFORMS = [("analyze_f32_f32", 8, 5.0), ("synthesize_f32_f32", 8, 5.0), ("analyze_f32_f32", 7, 5.0)]
# Kernel, query heads and elements of keys of a thread in a pass of its loop; the most instructions an element, of all its heads, without those
# of loops in it (a score's sum over lanes), and registers. The time is that of 4096 keys of 32 heads of 128 elements.
ATTENTION, KEYS = [("attend_1_f16", 1, 32, 8.2, 128), ("attend_4_f16", 4, 16, 14.5, 128)], 4096 * 32 * 128


def functions(assembly):
    """Of each function the instructions, each with whether it has a condition, and the place of each label."""
    found, name = {}, None
    for line in map(str.strip, assembly.splitlines()):
        if section := re.match(r"\.text\.(\w+):", line):
            name = section[1]
            found[name] = ([], {})
        elif name and (label := re.match(r"(\.L_x_\d+):", line)):
            found[name][1][label[1]] = len(found[name][0])
        elif name and (instruction := re.match(r"/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?(.*?)\s*;", line)):
            conditional = instruction[1] is not None or re.match(r"BRA\S* !?U?P\d", instruction[2]) is not None
            found[name][0].append((instruction[2], conditional))
    return found


def unit(instruction):
    return re.split(r"[.\s]", instruction)[0]


def followers(instructions, labels):
    """What may come after each instruction. BRA.DIV is for warps whose lanes are apart, which here none is."""
    found = []
    for n, (instruction, conditional) in enumerate(instructions):
        jump = re.match(r"BRA(?!\.DIV)\b.*?(\.L_x_\d+)", instruction)
        ends = (jump or unit(instruction) in ("EXIT", "RET")) and not conditional
        found.append(([] if ends else [n + 1]) + ([labels[jump[1]]] if jump else []))
    return found


def reached(after, closed):
    """The instructions that a warp comes to where one is closed to it."""
    found, ahead = set(), [0]
    while ahead:
        n = ahead.pop()
        if n != closed and n not in found and n < len(after):
            found.add(n)
            ahead += after[n]
    return found


def hot_loop(instructions, labels):
    """Of the loops that decode most the smallest, without the loops in it, which are for words of another number of bits."""
    after = followers(instructions, labels)
    ever = reached(after, None)
    # A jump back closes a loop where only its target leads to it.
    back = [(start, end) for end in sorted(ever) for start in after[end] if start <= end]
    loops = [(start, end) for start, end in back if end not in reached(after, start)]

    def body(start, end):
        inner = [(a, b) for a, b in loops if (a, b) != (start, end) and start <= a and b <= end]
        return [instructions[n][0] for n in range(start, end + 1) if not any(a <= n <= b for a, b in inner)]

    # Tensor cores do nothing else; without them decoding is what there is most of in a loop without another.
    if any(unit(name) == "HMMA" for name, _ in instructions):
        multiplies = {"HMMA"}
    else:
        multiplies = {"LOP3", "SHF", "IDP", "FFMA"}
        loops = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [body(*loop) for loop in loops]
    count = lambda body: sum(unit(instruction) in multiplies for instruction in body)
    most = max(map(count, bodies))
    return min((body for body in bodies if count(body) == most), key=len)


def clocks(instructions):
    """Of a warp alone: an instruction a clock, in order, each when its operands are there. Jumps are not taken."""
    ready, now = collections.Counter(), 0
    for instruction in instructions:
        name, _, operands = instruction.partition(" ")
        registers = re.findall(r"\bR\d+\b", operands)
        now = max([now + 1] + [ready[register] for register in registers])
        if unit(name) in ("WARPSYNC", "BAR"):
            now += BARRIER
        stores = unit(name) in ("STS", "STG", "ISETP", "FSETP", "BRA")
        if registers and not stores:
            ready[registers[0]] = now + LATENCIES.get(unit(name), LATENCY)
    return now


def warps_at_once(registers, shared):
    """Warps that a multiprocessor has at once."""
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * WARPS)
    return WARPS * min(by_registers, SHARED // (shared + SHARED_EACH), MOST_WARPS // WARPS)


def compiled(tools, folder, source, macro):
    nvcc, nvdisasm = tools
    out = pathlib.Path(folder) / f"{source}-{macro}.cubin"
    path = pathlib.Path(__file__).parent / f"{source}.cu"
    command = [nvcc, "-cubin", "-O3", "-std=c++17", "-arch", "sm_90", "-Xptxas", "-v", f"-D{macro}", "-o", out, path]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    registers, name = {}, None
    for line in done.stderr.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)'", line):
            name = entry[1]
        elif used := re.search(r"Used (\d+) registers", line):
            registers[name] = int(used[1])
    assembly = subprocess.run([nvdisasm, out], capture_output=True, text=True, check=True).stdout
    return functions(assembly), registers


def main():
    tools, wanted = sys.argv[1:3], sys.argv[3:]
    chosen = lambda kernel: not wanted or any(part in kernel for part in wanted)
    loops = [loop for loop in LOOPS if chosen(loop[1])]
    transforms = [transform for transform in TRANSFORMS if chosen(transform[0])]
    sources = [(source, f"COUNTED_BITS={bits}") for source, _, bits, *_ in loops]
    sources += [("transform", f"COUNTED_LEVELS={levels}") for _, levels, _ in transforms]
    attention = [row for row in ATTENTION if chosen(row[0])]
    sources += [("step", "COUNTED_BITS=0") for _ in attention]
    failures = []
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        jobs = {key: pool.submit(compiled, tools, folder, *key) for key in dict.fromkeys(sources)}
        code = {key: job.result() for key, job in jobs.items()}

    columns = "kernel, bits, instructions, integer, FMA, IMAD and IDP, look-ups, registers, KiB, warps, bound by, us, its bytes' us"
    print("|" + "".join(f" {column} |" for column in columns.split(", ")) + "\n|" + 13 * "---|")
    for source, kernel, bits, per, shared, most, most_integer, most_registers, fewest_warps in loops:
        found, registers = code[source, f"COUNTED_BITS={bits}"]
        body = hot_loop(*found[kernel])
        names = collections.Counter(map(unit, body))
        several = lambda units: sum(n for name, n in names.items() if name in units) / per
        counts = dict(zip(RATES, [len(body) / per, several(INTEGER), several(FMA), several({"IMAD", "IDP"}), several({"LDS"})]))
        slowest = max(RATES, key=lambda unit: counts[unit] / RATES[unit])
        bound = WEIGHTS * counts[slowest] / RATES[slowest] / MULTIPROCESSORS / CLOCK * 1e6
        warps = warps_at_once(registers[kernel], shared)
        cells = [f"{n:.2f}" for n in counts.values()]
        cells += [str(registers[kernel]), f"{shared / 1024:.0f}", str(warps), slowest, f"{bound:.1f}"]
        print(f"| {kernel} | {bits} | {' | '.join(cells)} | {WEIGHTS * bits / 8 / BANDWIDTH * 1e6:.1f} |")
        for what, have, ceiling in [
            ("instructions a weight", counts["all"], most),
            ("integer operations a weight", counts["integer"], most_integer),
            ("registers", registers[kernel], most_registers),
            ("accesses to spilled registers a weight", several({"LDL", "STL"}), 0.15),
        ]:
            if have > ceiling:
                failures.append(f"{kernel}, {bits} bits: {have:.2f} {what}; {ceiling} are allowed")
        if warps < fewest_warps:
            failures.append(f"{kernel}, {bits} bits: {warps} warps on a multiprocessor; {fewest_warps} are the least")

    print("\n| kernel | block | instructions | registers | clocks of a warp alone | us |\n|---|---|---|---|---|---|")
    for kernel, levels, most in transforms:
        found, registers = code["transform", f"COUNTED_LEVELS={levels}"]
        instructions = [instruction for instruction, _ in found[kernel][0]]
        alone = clocks(instructions)
        time = alone / CLOCK * 1e6
        print(f"| {kernel} | {1 << levels} | {len(instructions)} | {registers[kernel]} | {alone} | {time:.1f} |")
        if time > most:
            failures.append(f"{kernel}, blocks of {1 << levels}: {time:.1f} us; {most} are allowed")

    print("\n| kernel | heads of a key | instructions | registers | bound, us | bytes, us |\n|---|---|---|---|---|---|")
    for kernel, heads, per, most, most_registers in attention:
        found, registers = code["step", "COUNTED_BITS=0"]
        count = len(hot_loop(*found[kernel])) / per
        bound, moved = KEYS * count / RATES["all"] / MULTIPROCESSORS / CLOCK * 1e6, 4 * KEYS / BANDWIDTH * 1e6
        print(f"| {kernel} | {heads} | {count:.1f} | {registers[kernel]} | {bound:.1f} | {moved:.1f} |")
        for what, have, ceiling in [("instructions an element", count, most), ("registers", registers[kernel], most_registers)]:
            if have > ceiling:
                failures.append(f"{kernel}: {have:.2f} {what}; {ceiling} are allowed")
    sys.exit("\n".join(failures) or None)


if __name__ == "__main__":
    main()
