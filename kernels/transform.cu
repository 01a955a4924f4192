// The operator of one axis and its inverse for many vectors, in launches of their own: see `transform.cuh`.
#include "transform.cuh"

constexpr int TRANSFORM_WARPS = 4;

// Grid: (groups of `each` vectors, groups of TRANSFORM_WARPS items). `in` (vectors, len); `out` (vectors, out_stride), times `scale`,
// zero beyond `len`; `largest` (vectors, items), where it is wanted, what is farthest from zero in each item, as `magnitude` has it.
template <class In, class Out>
__device__ void analyze(const Axis &axis, const In *in, Out *out, int out_stride, float scale, uint32_t *largest, int vectors, int each,
                        int items) {
    let_next_launch_begin();
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, index = blockIdx.y * TRANSFORM_WARPS + warp;
    if (index >= items) return;
    float *own = reinterpret_cast<float *>(dynamic_shared) + warp * ITEM_FLOATS;
    const Item item = axis.item(index);
    const int first = item.first + lane, before = blockIdx.x * each, here = min(each, vectors - before);
    in += (size_t)before * axis.len, out += (size_t)before * out_stride;
    Eight factors = axis.factors(first, item.end);
#pragma unroll
    for (int n = 0; n < EACH; ++n) factors.values[n] *= scale;
    transform_item<false>(
        axis, item, own, lane, here,
        [&](int vector) { return load_raw(in + (size_t)vector * axis.len, first, item.end); },
        [&](const Loaded<In> &loaded) {
            Eight eight = loaded.eight();
            eight.multiply(factors);
            return eight;
        },
        [&](int vector, const Eight &eight) {
            store_eight(out + (size_t)vector * out_stride, first, item.end, eight);
            if (largest == nullptr) return;
            uint32_t most = 0;
#pragma unroll
            for (int n = 0; n < EACH; ++n) most = max(most, first + n * WARP < item.end ? magnitude(eight.values[n]) : 0);
            most = __reduce_max_sync(ALL_LANES, most);
            if (lane == 0) largest[(size_t)(before + vector) * items + index] = most;
        });
    if (index == items - 1) {
        for (int vector = 0; vector < here; ++vector) {
            for (int n = axis.len + lane; n < out_stride; n += WARP) out[(size_t)vector * out_stride + n] = from_float<Out>(0.0f);
        }
    }
}

// `in` is a sum of `splits` parts (splits, vectors, in_stride), of one where it is not F32; `out` (vectors, out_stride) is the transform times `scale`
// plus `addend` (vectors, out_stride) and `bias` (len), where there are such. Grid as for `analyze`.
template <class In, class Out>
__device__ void synthesize(const Axis &axis, const In *in, int splits, int in_stride, const float *addend, const Out *bias,
                           Out *out, int out_stride, float scale, int vectors, int each, int items) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, index = blockIdx.y * TRANSFORM_WARPS + warp;
    if (index >= items) return;
    float *own = reinterpret_cast<float *>(dynamic_shared) + warp * ITEM_FLOATS;
    const Item item = axis.item(index);
    const int first = item.first + lane, before = blockIdx.x * each, here = min(each, vectors - before);
    in += (size_t)before * in_stride, out += (size_t)before * out_stride;
    Eight factors = axis.factors(first, item.end), biases = {};
    if (bias != nullptr) biases = load_eight(bias, first, item.end);
#pragma unroll
    for (int n = 0; n < EACH; ++n) factors.values[n] *= scale;
    transform_item<true>(
        axis, item, own, lane, here,
        [&](int vector) {
            const In *own = in + (size_t)vector * in_stride;
            if constexpr (sizeof(In) < sizeof(float)) return load_raw(own, first, item.end);
            else return splits == 1 ? load_raw(own, first, item.end) : sum_parts<2>(own, splits, (size_t)vectors * in_stride, first, item.end);
        },
        [](const Loaded<In> &loaded) { return loaded.eight(); },
        [&](int vector, Eight &eight) {
            eight.multiply(factors);
            eight.add(biases);
            if (addend != nullptr) eight.add(load_eight(addend + (size_t)(before + vector) * out_stride, first, item.end));
            store_eight(out + (size_t)vector * out_stride, first, item.end, eight);
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
    const Item item = axis.item(axis.item_holding((int)id));
    const int first = item.first + lane;
    transform_item<false>(
        axis, item, own, lane, 1,
        [&](int) {
            Eight eight = axis.factors(first, item.end);
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                if (first + n * WARP != (int)id) eight.values[n] = 0.0f;
            }
            return eight;
        },
        [](const Eight &eight) { return eight; },
        [&](int, const Eight &eight) {
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
// As many blocks fit a multiprocessor's registers; src/cuda/axis.rs counts on it.
constexpr int TRANSFORM_BLOCKS = 5;
#define KERNEL extern "C" __global__ void __launch_bounds__(TRANSFORM_WARPS * WARP, TRANSFORM_BLOCKS)

#define ANALYZE(IN_NAME, In, OUT_NAME, Out) \
    KERNEL analyze_##IN_NAME##_##OUT_NAME(AXIS_PARAMETERS, const In *in, Out *out, int out_stride, float scale, uint32_t *largest, \
                                           int vectors, int each, int items) { \
        analyze<In, Out>(AXIS, in, out, out_stride, scale, largest, vectors, each, items); \
    }
ANALYZE(f32, float, f32, float)
ANALYZE(f16, __half, f32, float)
ANALYZE(bf16, __nv_bfloat16, f32, float)
ANALYZE(f16, __half, f16, __half)
ANALYZE(bf16, __nv_bfloat16, bf16, __nv_bfloat16)

#define SYNTHESIZE(IN_NAME, In, OUT_NAME, Out) \
    KERNEL synthesize_##IN_NAME##_##OUT_NAME(AXIS_PARAMETERS, const In *in, int splits, int in_stride, const float *addend, \
                                             const Out *bias, Out *out, int out_stride, float scale, int vectors, int each, int items) { \
        synthesize<In, Out>(AXIS, in, splits, in_stride, addend, bias, out, out_stride, scale, vectors, each, items); \
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
