// The operator `A = blockdiag(T, .., T_short) D` of one axis, scales and random signs and then an orthonormal transform of each
// block, and its inverse, for many vectors.
//
// A warp takes 256 elements: one whole block of 256, two of 128, and so on; or one of the shorter blocks. The DCT of a power of
// two is the recursion of Plonka and Tasche ("Fast and numerically stable algorithms for discrete cosine transforms", 2005,
// sections 3 and 4), with `T = sqrt(n) C`, `h = n / 2`, `c_k + i s_k = exp(i pi (2k + 1) / 4n)`:
//
//     T_II(n) x:   u_k = x_k + x_{n-1-k},  v_k = x_k - x_{n-1-k}                          k < h
//                  even coefficients T_II(h) u,  odd coefficients T_IV(h) v
//     T_IV(n) x:   p_k = c_k x_k + s_k x_{n-1-k},  q_k = (-1)^k (c_k x_{n-1-k} - s_k x_k)
//                  P = T_II(h) p,  Q = T_II(h) q
//                  y_0 = sqrt2 P_0,  y_{2m-1} = P_m - Q_{h-m},  y_{2m} = P_m + Q_{h-m},  y_{n-1} = -sqrt2 Q_0
//
// run level by level, in shared memory, all nodes of a level at once; nothing is divided by a number that is not a constant.
// Everything else (wavelets, other lengths) is the product with the matrix, which the host made from the same definition.
#pragma once
#include "common.cuh"

constexpr int ELEMENTS = 256;
constexpr float SQRT2 = 1.41421356f;
// Where instructions are counted (counts.py), kernels are compiled for blocks of `2^COUNTED_LEVELS` alone.
#ifndef COUNTED_LEVELS
#define COUNTED_LEVELS 0
#endif

// Floats that a warp needs to transform an item.
constexpr int ITEM_FLOATS = 2 * ELEMENTS;

// What a lane has of an item: every 32nd element.
constexpr int EACH = ELEMENTS / WARP;
struct Eight {
    float values[EACH];

    __device__ __forceinline__ void add(const Eight &other) {
#pragma unroll
        for (int n = 0; n < EACH; ++n) values[n] += other.values[n];
    }
    __device__ __forceinline__ void multiply(const Eight &other) {
#pragma unroll
        for (int n = 0; n < EACH; ++n) values[n] *= other.values[n];
    }
};

// Those of a lane from `first` on; zeros from `end` on.
template <class T> __device__ __forceinline__ Eight load_eight(const T *from, int first, int end) {
    Eight eight = {};
    from += first;
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        if (first + n * WARP < end) eight.values[n] = to_float(__ldg(from + n * WARP));
    }
    return eight;
}

struct Buffers {
    float *from, *to;
    __device__ void swap() {
        float *other = from;
        from = to, to = other;
        __syncwarp();
    }
};

// Whether node `node` of a level is a T_IV: a path of halves leads to it, and a T_IV is the second half of a T_II.
__device__ inline bool is_fourth(int node) { return (__ffs(~node) - 1) & 1; }

// Pairs of a lane in a level.
constexpr int PAIRS = ELEMENTS / 2 / WARP;

// Pair `n` of a lane's in a level: element `k` of the first half of the run at `base` and one of the second; the run's node.
// Of 32 pairs side by side what depends on the lane is the same for all `n`, and so is most of an address.
struct Pair {
    int base, k, node;

    __device__ __forceinline__ Pair(int n, int level, int levels, int lane) {
        const int half = 1 << (level - 1), nodes = 1 << (levels - level);
        if (half >= WARP) {
            const int run = n * WARP >> (level - 1);
            base = run << level, k = (n * WARP & (half - 1)) + lane, node = run & (nodes - 1);
        } else {
            const int run = lane >> (level - 1);
            base = n * 2 * WARP + (run << level), k = lane & (half - 1);
            node = ((n * WARP >> (level - 1)) & (nodes - 1)) + (run & (nodes - 1));
        }
    }
};

// One step down: from runs of `2^level` elements to halves. `turn_of(half, k, n)` is the rotation of `T_IV(2 half)`.
template <bool INVERSE, class Turn>
__device__ __forceinline__ void split_runs(Buffers &at, int level, int levels, int lane, Turn turn_of) {
    const int size = 1 << level, half = size / 2;
    // All loads come first: for all the compiler knows, a store might change what a later one gives.
    float first[PAIRS], second[PAIRS];
#pragma unroll
    for (int n = 0; n < PAIRS; ++n) {
        const Pair pair(n, level, levels, lane);
        // The transpose of T_II takes its own two steps in the opposite order; T_IV is its own transpose.
        const bool transposed = INVERSE && pair.node == 0;
        first[n] = at.from[pair.base + (transposed ? 2 * pair.k : pair.k)];
        second[n] = at.from[pair.base + (transposed ? 2 * pair.k + 1 : size - 1 - pair.k)];
    }
#pragma unroll
    for (int n = 0; n < PAIRS; ++n) {
        const Pair pair(n, level, levels, lane);
        float a = first[n], b = second[n];
        if (level < levels && is_fourth(pair.node)) {
            const float2 turn = turn_of(half, pair.k, n);
            const float p = turn.x * a + turn.y * b, q = turn.x * b - turn.y * a;
            a = p, b = pair.k % 2 == 0 ? q : -q;
        } else if (!(INVERSE && pair.node == 0)) {
            const float sum = a + b;
            b = a - b, a = sum;
        }
        at.to[pair.base + pair.k] = a, at.to[pair.base + half + pair.k] = b;
    }
    at.swap();
}

// One step up: from halves to runs of `2^level`.
template <bool INVERSE> __device__ __forceinline__ void join_runs(Buffers &at, int level, int levels, int lane) {
    const int size = 1 << level, half = size / 2;
    float first[PAIRS], second[PAIRS];
#pragma unroll
    for (int n = 0; n < PAIRS; ++n) {
        const Pair pair(n, level, levels, lane);
        // Of a T_IV the first and the last stand alone: here the last of a pair whose partner is not there.
        const int partner = !is_fourth(pair.node) ? pair.k : pair.k == 0 ? 0 : half - pair.k;
        first[n] = at.from[pair.base + pair.k], second[n] = at.from[pair.base + half + partner];
    }
#pragma unroll
    for (int n = 0; n < PAIRS; ++n) {
        const Pair pair(n, level, levels, lane);
        const int k = pair.k;
        const float a = first[n], b = second[n];
        float *to = at.to + pair.base;
        if (is_fourth(pair.node)) {
            to[k == 0 ? 0 : 2 * k - 1] = k == 0 ? SQRT2 * a : a - b;
            to[k == 0 ? size - 1 : 2 * k] = k == 0 ? -SQRT2 * b : a + b;
        } else if (INVERSE && pair.node == 0) {
            to[k] = a + b, to[size - 1 - k] = a - b;
        } else {
            to[2 * k] = a, to[2 * k + 1] = b;
        }
    }
    at.swap();
}

// `T_II` (or its transpose) of each run of `2^levels` elements of `at.from`; the result lies in `at.from` again.
template <bool INVERSE> __device__ __forceinline__ void fast_dct(Buffers &at, int levels, const float2 *rotations, int lane) {
    auto turn_of = [&](int half, int k, int) { return __ldg(rotations + half + k); };
#pragma unroll 1
    for (int level = levels; level > 0; --level) split_runs<INVERSE>(at, level, levels, lane, turn_of);
#pragma unroll 1
    for (int level = 1; level <= levels; ++level) join_runs<INVERSE>(at, level, levels, lane);
}

// The rotations that a lane needs for runs of `2^LEVELS`: two of T_IV(128), one of each that is shorter, none of the longest.
template <int LEVELS> struct Turns {
    float2 longest[2], rest[6];

    __device__ __forceinline__ Turns(const float2 *rotations, int lane) {
        if (LEVELS == 8) longest[0] = load_now(rotations + 64 + lane), longest[1] = load_now(rotations + 96 + lane);
#pragma unroll
        for (int n = 0; n < 6; ++n) rest[n] = load_now(rotations + (1 << n) + (lane & ((1 << n) - 1)));
    }
    __device__ __forceinline__ float2 operator()(int half, int, int n) const {
        return half == 64   ? longest[n % 2]
               : half == 32 ? rest[5]
               : half == 16 ? rest[4]
               : half == 8  ? rest[3]
               : half == 4  ? rest[2]
               : half == 2  ? rest[1]
                            : rest[0];
    }
};

// The same with the run's length as a constant, and all steps without a loop.
template <bool INVERSE, int LEVELS> __device__ __forceinline__ void fast_dct_of(Buffers &at, const Turns<LEVELS> &turns, int lane) {
#pragma unroll
    for (int level = LEVELS; level > 0; --level) split_runs<INVERSE>(at, level, LEVELS, lane, turns);
#pragma unroll
    for (int level = 1; level <= LEVELS; ++level) join_runs<INVERSE>(at, level, LEVELS, lane);
}

// What a warp transforms at once: blocks of one length side by side, or one block that has a matrix.
struct Item {
    int first, end, length; // of a block
    const float *matrix;    // null where the transform is fast
};

// One axis, in one direction.
struct Axis {
    const uint32_t *signs;     // a bit an element; null without
    const float *scales;       // a number an element; null without
    const float2 *rotations;   // `(c_k, s_k)` of `T_IV(2h)` at `h + k`; null where powers of two have matrices too
    const float *whole, *shorter; // matrices `m`, `out_o = sum_i m(i, o) in_i`; those of the shorter blocks one after another
    int len, edge;

    __device__ Cut cut() const { return Cut { len, edge }; }
    // Whether blocks of this length need no matrix.
    __device__ bool is_fast(int length) const { return rotations != nullptr && (length & (length - 1)) == 0; }
    // Blocks that a warp takes at once.
    __device__ int together() const { return rotations != nullptr ? ELEMENTS >> (__ffs(edge) - 1) : 1; }
    // Groups of whole blocks.
    __device__ int groups() const { return group_of(cut().whole() + together() - 1); }
    // `together` is a power of two.
    __device__ int group_of(int block) const { return block >> (__ffs(together()) - 1); }
    // What warps share out among them: groups of whole blocks, then the shorter blocks.
    __device__ int items() const { return groups() + cut().blocks() - cut().whole(); }
    // The number of the item that a block belongs to.
    __device__ int index_of(const Block &block) const {
        return block.index < cut().whole() ? group_of(block.index) : groups() + block.index - cut().whole();
    }
    // A block alone.
    __device__ Item item(const Block &block) const {
        const float *matrix = is_fast(block.length) ? nullptr : block.index < cut().whole() ? whole : matrix_of(block);
        return Item { block.start, block.end(), block.length, matrix };
    }
    __device__ Item item(int index) const {
        const bool several = index < groups();
        Item found = item(cut().block(several ? index * together() : cut().whole() + index - groups()));
        if (several && found.matrix == nullptr) found.end = min(found.first + ELEMENTS, cut().whole() * edge);
        return found;
    }
    // The matrix of a shorter block.
    __device__ const float *matrix_of(const Block &block) const {
        const float *matrix = shorter;
        for (int before = cut().whole(); before < block.index; ++before) {
            const int length = cut().block(before).length;
            if (!is_fast(length)) matrix += length * length;
        }
        return matrix;
    }
    // Each element's sign times its scale.
    __device__ __forceinline__ Eight factors(int first, int end) const {
        Eight factors;
        uint32_t words[EACH] = {};
        const int word = first / WARP, bit = first % WARP; // blocks begin with a word of signs
        if (signs != nullptr) {
#pragma unroll
            for (int n = 0; n < EACH; ++n) words[n] = __ldg(signs + min(word + n, (end - 1) / WARP));
        }
        if (scales != nullptr) {
            factors = load_eight(scales, first, end);
        } else {
#pragma unroll
            for (int n = 0; n < EACH; ++n) factors.values[n] = 1.0f;
        }
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            if (words[n] >> bit & 1) factors.values[n] = -factors.values[n];
        }
        return factors;
    }
};

// The item's elements through `T`: `get(first, end)` gives a lane's from `first` on, whatever it likes from `end` on; `put(first,
// end, eight)` takes them. `own`, in shared memory, has room for ITEM_FLOATS. SHORT is less code: no steps of 128 without a loop.
template <bool INVERSE, bool SHORT, class Get, class Put>
__device__ __forceinline__ void transform_item(const Axis &axis, const Item &item, float *own, int lane, Get get, Put put) {
    const int first = item.first, end = item.end, length = COUNTED_LEVELS > 0 ? 1 << COUNTED_LEVELS : item.length;
    const bool fast = COUNTED_LEVELS > 0 || item.matrix == nullptr;
    Buffers at = {own, own + ELEMENTS};
    const Eight given = get(first + lane, end);
    auto store = [&] {
#pragma unroll
        for (int n = 0; n < EACH; ++n) at.from[n * WARP + lane] = first + n * WARP + lane < end ? given.values[n] : 0.0f;
        __syncwarp();
    };
    Eight result;
    if (fast) {
        if (length == 256) {
            const Turns<8> turns(axis.rotations, lane);
            store();
            fast_dct_of<INVERSE, 8>(at, turns, lane);
        } else if (length == 128 && !SHORT) {
            const Turns<7> turns(axis.rotations, lane);
            store();
            fast_dct_of<INVERSE, 7>(at, turns, lane);
        } else {
            store();
            fast_dct<INVERSE>(at, __ffs(length) - 1, axis.rotations, lane);
        }
        const float norm = rsqrtf((float)length);
#pragma unroll
        for (int n = 0; n < EACH; ++n) result.values[n] = at.from[n * WARP + lane] * norm;
    } else {
        store();
        result = Eight {};
        // All outputs of a lane at once: their loads do not wait for each other.
#pragma unroll 2
        for (int in = 0; in < length; ++in) {
            const float *row = item.matrix + in * length;
#pragma unroll
            for (int n = 0; n < EACH; ++n) result.values[n] += __ldg(row + min(n * WARP + lane, length - 1)) * at.from[in];
        }
    }
    // Compared again, and not kept in predicates meanwhile.
    put(first + lane, (int)in_register(end), result);
    __syncwarp();
}

// The sums of `splits` parts for a lane's elements from `first` on, `stride` elements from a part to the next; in their order.
template <int SPLITS, class In> __device__ __forceinline__ Eight sum_parts(const In *in, int splits, size_t stride, int first, int end) {
    Eight sums = {};
    // All loads of `SPLITS`, and then their sums: else each would be waited for.
#pragma unroll 1
    for (int split = 0; split < splits; split += SPLITS) {
        In loaded[SPLITS][EACH] = {};
#pragma unroll
        for (int s = 0; s < SPLITS; ++s) {
            const In *from = in + min(split + s, splits - 1) * stride + first;
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                if (first + n * WARP < end) loaded[s][n] = __ldcg(from + n * WARP);
            }
        }
#pragma unroll
        for (int s = 0; s < SPLITS; ++s) {
#pragma unroll
            for (int n = 0; n < EACH; ++n) sums.values[n] += split + s < splits ? to_float(loaded[s][n]) : 0.0f;
        }
    }
    return sums;
}
