// The operator `A = blockdiag(T, .., T_short) D` of one axis, scales and random signs and then an orthonormal transform of each
// block, and its inverse, for many vectors.
//
// A warp takes 256 elements: one whole block of 256, two of 128, and so on; or one of the shorter blocks. The DCT of a power of
// two is the recursion of Plonka
// and Tasche ("Fast and numerically stable algorithms for discrete cosine transforms", 2005, sections 3 and 4), with
// `T = sqrt(n) C`, `h = n / 2`, `c_k + i s_k = exp(i pi (2k + 1) / 4n)`:
//
//     T_II(n) x:   u_k = x_k + x_{n-1-k},  v_k = x_k - x_{n-1-k}                          k < h
//                  even coefficients T_II(h) u,  odd coefficients T_IV(h) v
//     T_IV(n) x:   p_k = c_k x_k + s_k x_{n-1-k},  q_k = (-1)^k (c_k x_{n-1-k} - s_k x_k)
//                  P = T_II(h) p,  Q = T_II(h) q
//                  y_0 = sqrt2 P_0,  y_{2m-1} = P_m - Q_{h-m},  y_{2m} = P_m + Q_{h-m},  y_{n-1} = -sqrt2 Q_0
//
// run level by level, in shared memory, all nodes of a level at once; nothing is divided by a number that is not a constant. Everything else (wavelets, other lengths) is the
// product with the matrix, which the host made from the same definition.
#include "common.cuh"

constexpr int TRANSFORM_WARPS = 4;
constexpr int ELEMENTS = 256;
constexpr float SQRT2 = 1.41421356f;
// Where instructions are counted (counts.py), kernels are compiled for blocks of `2^COUNTED_LEVELS` alone.
#ifndef COUNTED_LEVELS
#define COUNTED_LEVELS 0
#endif

// Splits of a sum whose loads are in flight at once.
constexpr int SPLITS = 4;

// What a lane has of an item: every 32nd element.
constexpr int EACH = ELEMENTS / WARP;
struct Eight {
    float values[EACH];
};

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
    for (int level = levels; level > 0; --level) split_runs<INVERSE>(at, level, levels, lane, turn_of);
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
    // The item that a block belongs to.
    __device__ int item_of(const Block &block) const {
        return block.index < cut().whole() ? group_of(block.index) : groups() + block.index - cut().whole();
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
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            const int element = min(first + n * WARP, end - 1);
            const uint32_t word = signs != nullptr ? __ldg(signs + element / 32) : 0;
            const float scale = scales != nullptr ? __ldg(scales + element) : 1.0f;
            factors.values[n] = word >> element % 32 & 1 ? -scale : scale;
        }
        return factors;
    }
};

// The item's elements through `T`: `get(first, end)` gives a lane's from `first` on, whatever it likes from `end` on; `put(first,
// end, eight)` takes them.
template <bool INVERSE, class Get, class Put>
__device__ __forceinline__ void transform_item(const Axis &axis, int item, float *own, int lane, Get get, Put put) {
    const int groups = axis.groups(), after_whole = axis.cut().whole() * axis.edge;
    const bool whole = item < groups;
    const Block block = axis.cut().block(whole ? item * axis.together() : axis.cut().whole() + item - groups);
    const int first = block.start, length = COUNTED_LEVELS > 0 ? 1 << COUNTED_LEVELS : block.length;
    const bool fast = COUNTED_LEVELS > 0 || axis.is_fast(length);
    const int end = whole && fast ? min(first + ELEMENTS, after_whole) : block.end();
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
        } else if (length == 128) {
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
        const float *matrix = whole ? axis.whole : axis.matrix_of(block);
        store();
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            const int out = n * WARP + lane;
            float sum = 0.0f;
            for (int in = 0; out < length && in < length; ++in) sum += __ldg(matrix + in * length + out) * at.from[in];
            result.values[n] = sum;
        }
    }
    put(first + lane, end, result);
    __syncwarp();
}

// Grid: (vectors, groups of TRANSFORM_WARPS items). `in` (vectors, len); `out` (vectors, out_stride), times `scale`, zero
// beyond `len`.
template <class In, class Out>
__device__ void analyze(const Axis &axis, const In *in, Out *out, int out_stride, float scale) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, item = blockIdx.y * TRANSFORM_WARPS + warp;
    if (item >= axis.items()) return;
    float *own = reinterpret_cast<float *>(dynamic_shared) + warp * 2 * ELEMENTS;
    in += (size_t)blockIdx.x * axis.len, out += (size_t)blockIdx.x * out_stride;
    transform_item<false>(
        axis, item, own, lane,
        [&](int first, int end) {
            Eight eight = axis.factors(first, end);
#pragma unroll
            for (int n = 0; n < EACH; ++n) eight.values[n] *= to_float(in[min(first + n * WARP, end - 1)]);
            return eight;
        },
        [&](int first, int end, const Eight &eight) {
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                if (first + n * WARP < end) out[first + n * WARP] = from_float<Out>(eight.values[n] * scale);
            }
        });
    if (item == axis.items() - 1) {
        for (int n = axis.len + lane; n < out_stride; n += WARP) out[n] = from_float<Out>(0.0f);
    }
}

// `in` is a sum of `splits` parts (splits, vectors, in_stride); `out` (vectors, out_stride) is the transform times `scale`
// plus `addend` (vectors, out_stride), where there is one.
template <class In, class Out>
__device__ void synthesize(const Axis &axis, const In *in, int splits, int in_stride, const float *addend, Out *out,
                           int out_stride, float scale) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, item = blockIdx.y * TRANSFORM_WARPS + warp;
    if (item >= axis.items()) return;
    float *own = reinterpret_cast<float *>(dynamic_shared) + warp * 2 * ELEMENTS;
    const size_t split_stride = (size_t)gridDim.x * in_stride;
    in += (size_t)blockIdx.x * in_stride, out += (size_t)blockIdx.x * out_stride;
    if (addend != nullptr) addend += (size_t)blockIdx.x * out_stride;
    Eight factors;
    transform_item<true>(
        axis, item, own, lane,
        [&](int first, int end) {
            factors = axis.factors(first, end);
            Eight sums = {};
            // All loads of some splits, and then their sums: else each would be waited for.
#pragma unroll 1
            for (int split = 0; split < splits; split += SPLITS) {
                In loaded[SPLITS][EACH];
#pragma unroll
                for (int s = 0; s < SPLITS; ++s) {
                    const In *from = in + min(split + s, splits - 1) * split_stride;
#pragma unroll
                    for (int n = 0; n < EACH; ++n) loaded[s][n] = __ldg(from + min(first + n * WARP, end - 1));
                }
#pragma unroll
                for (int s = 0; s < SPLITS; ++s) {
#pragma unroll
                    for (int n = 0; n < EACH; ++n) sums.values[n] += split + s < splits ? to_float(loaded[s][n]) : 0.0f;
                }
            }
            return sums;
        },
        [&](int first, int end, const Eight &eight) {
            Eight addends = {};
            if (addend != nullptr) {
#pragma unroll
                for (int n = 0; n < EACH; ++n) addends.values[n] = __ldg(addend + min(first + n * WARP, end - 1));
            }
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                const float sum = eight.values[n] * scale * factors.values[n] + addends.values[n];
                if (first + n * WARP < end) out[first + n * WARP] = from_float<Out>(sum);
            }
        });
}

// `out(vector, 0 .. longest) = A e_id` in the block of row `ids[vector]`, whose product with the block row is that row. For
// an id that is no row nothing is written. Grid: (vectors), one warp.
__device__ void analyze_unit(const Axis &axis, const uint32_t *ids, float *out) {
    const int lane = threadIdx.x;
    float *own = reinterpret_cast<float *>(dynamic_shared);
    out += (size_t)blockIdx.x * longest(axis.edge);
    const uint32_t id = ids[blockIdx.x];
    if (id >= (uint32_t)axis.len) return;
    const Block block = axis.cut().holding((int)id);
    transform_item<false>(
        axis, axis.item_of(block), own, lane,
        [&](int first, int end) {
            Eight eight = axis.factors(first, end);
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                if (first + n * WARP != (int)id) eight.values[n] = 0.0f;
            }
            return eight;
        },
        [&](int first, int, const Eight &eight) {
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                const int element = first + n * WARP;
                if (element >= block.start && element < block.end()) out[element - block.start] = eight.values[n];
            }
        });
}

#define AXIS_PARAMETERS \
    const uint32_t *signs, const float *scales, const float2 *rotations, const float *whole, const float *shorter, int len, int edge
#define AXIS Axis { signs, scales, rotations, whole, shorter, len, edge }
#define KERNEL extern "C" __global__ void __launch_bounds__(TRANSFORM_WARPS * WARP)

#define ANALYZE(IN_NAME, In, OUT_NAME, Out) \
    KERNEL analyze_##IN_NAME##_##OUT_NAME(AXIS_PARAMETERS, const In *in, Out *out, int out_stride, float scale) { \
        analyze<In, Out>(AXIS, in, out, out_stride, scale); \
    }
ANALYZE(f32, float, f32, float)
ANALYZE(f16, __half, f32, float)
ANALYZE(bf16, __nv_bfloat16, f32, float)
ANALYZE(f16, __half, f16, __half)
ANALYZE(bf16, __nv_bfloat16, bf16, __nv_bfloat16)

#define SYNTHESIZE(IN_NAME, In, OUT_NAME, Out) \
    KERNEL synthesize_##IN_NAME##_##OUT_NAME(AXIS_PARAMETERS, const In *in, int splits, int in_stride, const float *addend, \
                                             Out *out, int out_stride, float scale) { \
        synthesize<In, Out>(AXIS, in, splits, in_stride, addend, out, out_stride, scale); \
    }
SYNTHESIZE(f32, float, f32, float)
SYNTHESIZE(f32, float, f16, __half)
SYNTHESIZE(f32, float, bf16, __nv_bfloat16)
SYNTHESIZE(f16, __half, f16, __half)
SYNTHESIZE(bf16, __nv_bfloat16, bf16, __nv_bfloat16)

// `out(col, row) = in(row, col)`, `in` (rows, stride) of which `cols` count. Grid: (rows / 32, cols / 32), one warp.
KERNEL transpose_f32(const float *in, float *out, int rows, int cols, int stride) {
    constexpr int PADDED = WARP + 1;
    float *tile = reinterpret_cast<float *>(dynamic_shared);
    const int lane = threadIdx.x, row = blockIdx.x * WARP, col = blockIdx.y * WARP;
    for (int n = 0; n < WARP && row + n < rows; ++n) {
        if (col + lane < cols) tile[n * PADDED + lane] = in[(size_t)(row + n) * stride + col + lane];
    }
    __syncwarp();
    for (int n = 0; n < WARP && col + n < cols; ++n) {
        if (row + lane < rows) out[(size_t)(col + n) * rows + row + lane] = tile[lane * PADDED + n];
    }
}

KERNEL analyze_unit(AXIS_PARAMETERS, const uint32_t *ids, float *out) {
    analyze_unit(AXIS, ids, out);
}
