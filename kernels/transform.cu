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

// One step down: from runs of `2^level` elements to halves.
template <bool INVERSE> __device__ __forceinline__ void split_runs(Buffers &at, int level, int levels, const float2 *rotations, int lane) {
    const int size = 1 << level, half = size / 2;
#pragma unroll
    for (int n = 0; n < ELEMENTS / 2 / WARP; ++n) {
        const Pair pair(n, level, levels, lane);
        const int base = pair.base, k = pair.k, node = pair.node;
        // The transpose of T_II takes its own two steps in the opposite order; T_IV is its own transpose.
        const bool transposed = INVERSE && node == 0;
        float a = at.from[base + (transposed ? 2 * k : k)];
        float b = at.from[base + (transposed ? 2 * k + 1 : size - 1 - k)];
        if (is_fourth(node)) {
            const float2 turn = __ldg(rotations + half + k);
            const float p = turn.x * a + turn.y * b, q = turn.x * b - turn.y * a;
            a = p, b = k % 2 == 0 ? q : -q;
        } else if (!transposed) {
            const float sum = a + b;
            b = a - b, a = sum;
        }
        at.to[base + k] = a, at.to[base + half + k] = b;
    }
    at.swap();
}

// One step up: from halves to runs of `2^level`.
template <bool INVERSE> __device__ __forceinline__ void join_runs(Buffers &at, int level, int levels, int lane) {
    const int size = 1 << level, half = size / 2;
#pragma unroll
    for (int n = 0; n < ELEMENTS / 2 / WARP; ++n) {
        const Pair pair(n, level, levels, lane);
        const int base = pair.base, k = pair.k, node = pair.node;
        const float *first = at.from + base, *second = first + half;
        float *to = at.to + base;
        if (is_fourth(node)) {
            // The first and the last stand alone.
            const bool alone = k == 0;
            const float a = first[k] * (alone ? SQRT2 : 1.0f), b = alone ? 0.0f : second[half - k];
            to[alone ? 0 : 2 * k - 1] = a - b;
            to[alone ? size - 1 : 2 * k] = alone ? -SQRT2 * second[0] : a + b;
        } else if (INVERSE && node == 0) {
            to[k] = first[k] + second[k], to[size - 1 - k] = first[k] - second[k];
        } else {
            to[2 * k] = first[k], to[2 * k + 1] = second[k];
        }
    }
    at.swap();
}

// `T_II` (or its transpose) of each run of `2^levels` elements of `at.from`; the result lies in `at.from` again.
template <bool INVERSE> __device__ __forceinline__ void fast_dct(Buffers &at, int levels, const float2 *rotations, int lane) {
    for (int level = levels; level > 0; --level) split_runs<INVERSE>(at, level, levels, rotations, lane);
    for (int level = 1; level <= levels; ++level) join_runs<INVERSE>(at, level, levels, lane);
}

// The same with the run's length as a constant, and all steps without a loop.
template <bool INVERSE, int LEVELS>
__device__ __forceinline__ void fast_dct_of(Buffers &at, const float2 *rotations, int lane) {
#pragma unroll
    for (int level = LEVELS; level > 0; --level) split_runs<INVERSE>(at, level, LEVELS, rotations, lane);
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
    // The element's sign times its scale.
    __device__ float factor(int element) const {
        const float scale = scales != nullptr ? __ldg(scales + element) : 1.0f;
        return signs != nullptr && (signs[element / 32] >> element % 32 & 1) ? -scale : scale;
    }
};

// The item's elements through `T`; `get(element)` and `put(element, value)` see each element of the vector once.
template <bool INVERSE, class Get, class Put>
__device__ __forceinline__ void transform_item(const Axis &axis, int item, float *own, int lane, Get get, Put put) {
    const int groups = axis.groups(), after_whole = axis.cut().whole() * axis.edge;
    const bool whole = item < groups;
    const Block block = axis.cut().block(whole ? item * axis.together() : axis.cut().whole() + item - groups);
    const int first = block.start;
    Buffers at = {own, own + ELEMENTS};
    const int length = COUNTED_LEVELS > 0 ? 1 << COUNTED_LEVELS : block.length;
    if (COUNTED_LEVELS > 0 || axis.is_fast(length)) {
        const int end = whole ? min(first + ELEMENTS, after_whole) : block.end();
        for (int n = lane; n < ELEMENTS; n += WARP) at.from[n] = first + n < end ? get(first + n) : 0.0f;
        __syncwarp();
        switch (length) {
        case 256: fast_dct_of<INVERSE, 8>(at, axis.rotations, lane); break;
        case 128: fast_dct_of<INVERSE, 7>(at, axis.rotations, lane); break;
        default: fast_dct<INVERSE>(at, __ffs(length) - 1, axis.rotations, lane);
        }
        const float norm = rsqrtf((float)length);
        for (int n = lane; n < ELEMENTS && first + n < end; n += WARP) put(first + n, at.from[n] * norm);
    } else {
        const int len = block.length;
        const float *matrix = whole ? axis.whole : axis.matrix_of(block);
        for (int n = lane; n < len; n += WARP) at.from[n] = get(first + n);
        __syncwarp();
        for (int out = lane; out < len; out += WARP) {
            float sum = 0.0f;
            for (int in = 0; in < len; ++in) sum += __ldg(matrix + in * len + out) * at.from[in];
            put(first + out, sum);
        }
    }
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
        axis, item, own, lane, [&](int n) { return to_float(in[n]) * axis.factor(n); },
        [&](int n, float value) { out[n] = from_float<Out>(value * scale); });
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
    transform_item<true>(
        axis, item, own, lane,
        [&](int n) {
            float sum = 0.0f;
            for (int split = 0; split < splits; ++split) sum += to_float(in[split * split_stride + n]);
            return sum;
        },
        [&](int n, float value) {
            const float sum = value * scale * axis.factor(n) + (addend != nullptr ? addend[n] : 0.0f);
            out[n] = from_float<Out>(sum);
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
    const float factor = axis.factor((int)id);
    transform_item<false>(
        axis, axis.item_of(block), own, lane, [&](int n) { return n == (int)id ? factor : 0.0f; },
        [&](int n, float value) {
            if (n >= block.start && n < block.end()) out[n - block.start] = value;
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
