// Both ends of a product in its own launch: inputs are transformed by each block that needs them, and results by the last block that
// adds to them.
//
// Nothing waits for another block: each counts itself when its part of a sum is in memory, and the one that finds all others counted
// adds up the parts, in their order, whoever was last. It sets the counter to zero again, for the next launch.
#pragma once
#include "transform.cuh"

// Shared memory in which each warp transforms an item, in floats.
constexpr int BUFFERS = WARPS * ITEM_FLOATS;

// `load_eight` of vector elements from `at` on.
__device__ __forceinline__ Eight load_eight_as(int element, const void *from, size_t at, int first, int end) {
    if (element == F16) return load_eight(static_cast<const __half *>(from) + at, first, end);
    if (element == BF16) return load_eight(static_cast<const __nv_bfloat16 *>(from) + at, first, end);
    return load_eight(static_cast<const float *>(from) + at, first, end);
}
__device__ __forceinline__ void store_eight_as(int element, void *to, size_t at, int first, int end, const Eight &eight) {
    if (element == F16) store_eight(static_cast<__half *>(to) + at, first, end, eight);
    else if (element == BF16) store_eight(static_cast<__nv_bfloat16 *>(to) + at, first, end, eight);
    else store_eight(static_cast<float *>(to) + at, first, end, eight);
}

// A thread's lane, as a number that each item has to ask for again: nothing that depends on it is kept in registers from one item to the
// next, where the products' own do not leave as many.
__device__ __forceinline__ int lane_of_item() { return (int)in_register(threadIdx.x % WARP); }

// The inputs of a product, (tokens, axis.len), or of the type COEFFICIENTS their transform in F32.
struct Inputs {
    const void *x;
    int element;
    Axis axis;

    // Sends for what `stage` reads.
    __device__ __forceinline__ void send_for_inputs(int first, int columns, int token, int tokens) const {
        const int end = min(first + columns, axis.len), bytes = element == F32 || element == COEFFICIENTS ? 4 : 2;
        for (int t = 0; t < tokens; ++t) {
            send_for(static_cast<const char *>(x) + ((size_t)(token + t) * axis.len + first) * bytes, (end - first) * bytes);
        }
        if (element != COEFFICIENTS) axis.send_for_tables(first, end);
    }

    // Writes staged(t, n), the coefficient of token `token + t` and column `first + n`; zero beyond the matrix. Each warp has its part
    // of `buffers` (BUFFERS); a barrier is to follow. What is farthest from zero of each of at most MOST_MEASURED tokens, in what each warp has
    // of it, goes to largest(t, WARPS) where it is wanted. Zeros take the place of inputs that are not there yet.
    static constexpr int MOST_MEASURED = 2;
    template <bool TRANSFORMS>
    __device__ void stage(float *staged, int columns, float *buffers, int first, int token, int tokens, uint32_t *largest = nullptr,
                          bool are_there = true) const {
        const int warp = threadIdx.x / WARP, end = min(first + columns, axis.len);
        uint32_t most[MOST_MEASURED] = {};
        auto measure = [&](int t, float value) {
#pragma unroll
            for (int n = 0; n < MOST_MEASURED; ++n) most[n] = max(most[n], n == t ? magnitude(value) : 0);
        };
        if (!TRANSFORMS || element == COEFFICIENTS) {
            for (int t = 0; t < tokens; ++t) {
                const float *from = static_cast<const float *>(x) + (size_t)(token + t) * axis.len + first;
                for (int n = threadIdx.x; n < columns; n += THREADS) {
                    const float value = are_there && first + n < end ? from[n] : 0.0f;
                    measure(t, value), staged[t * columns + n] = value;
                }
            }
        } else {
            const int begin = axis.item_holding(first), items = axis.item_holding(end - 1) + 1 - begin;
            for (int n = warp; n < items; n += WARPS) {
                const Item item = axis.item(begin + n);
                const int lane = lane_of_item(), at = item.first + lane;
                const Eight factors = axis.factors(at, item.end);
                transform_item<false>(
                    axis, item, buffers + warp * ITEM_FLOATS, lane, tokens,
                    [&](int t) { return load_eight_as(element, x, (size_t)(token + t) * axis.len, at, are_there ? item.end : 0); },
                    [&](Eight eight) {
                        eight.multiply(factors);
                        return eight;
                    },
                    [&](int t, const Eight &eight) {
                        float *to = staged + t * columns + at - first;
#pragma unroll
                        for (int n = 0; n < EACH; ++n) {
                            const int column = at + n * WARP;
                            if (column < item.end && column >= first && column < end) measure(t, eight.values[n]), to[n * WARP] = eight.values[n];
                        }
                    });
            }
            for (int t = 0; t < tokens; ++t) {
                for (int column = end + threadIdx.x; column < first + columns; column += THREADS) staged[t * columns + column - first] = 0.0f;
            }
        }
        if (largest == nullptr) return;
#pragma unroll
        for (int n = 0; n < MOST_MEASURED; ++n) {
            const uint32_t of_warp = __reduce_max_sync(ALL_LANES, most[n]);
            if (n < tokens && threadIdx.x % WARP == 0) largest[n * WARPS + warp] = of_warp;
        }
    }
};

// The results of a product, (tokens, axis.len).
struct Results {
    float *parts;  // (all_parts, tokens, axis.len), of which this launch writes those from `first_part` on
    int *counters; // zero, one for each block row and group of tokens
    int first_part, all_parts;
    const float *addend; // (tokens, axis.len), or null
    const void *bias;    // (axis.len), or null
    void *y;             // null where another launch adds to the sum after this one
    int element;         // of y and bias
    Axis axis;

    // This split's part of a token's sums.
    __device__ float *part(int tokens, int token) const {
        return parts + ((size_t)(first_part + blockIdx.y) * tokens + token) * axis.len;
    }

    // To be called by all threads of each block (block row, split, group of tokens) once they wrote its part for tokens `token ..
    // token + here`; shared memory is overwritten: BUFFERS, and 256 floats for each token.
    __device__ void finish(const Block &block, int token, int here, int tokens) const {
        if (y == nullptr) return;
        int *counter = counters + blockIdx.z * gridDim.x + blockIdx.x;
        __syncthreads();
        if (gridDim.y > 1) {
            // One thread's fences order what all have written or read by the barriers before and after.
            bool counted = false;
            if (threadIdx.x == 0) {
                __threadfence();
                counted = atomicAdd(counter, 1) + 1 == (int)gridDim.y;
                __threadfence();
                if (counted) *counter = 0;
            }
            if (!__syncthreads_or(counted)) return;
        }
        float *shared = reinterpret_cast<float *>(dynamic_shared), *sums = shared + BUFFERS;
        // What is a warp's is on its way together with the parts.
        const int warp = threadIdx.x / WARP, count = (here - warp + WARPS - 1) / WARPS;
        const Item item = axis.item(block);
        const int lane = lane_of_item(), first = block.start + lane;
        Eight factors = {}, biases = {};
        if (count > 0) {
            factors = axis.factors(first, item.end);
            if (bias != nullptr) biases = load_eight_as(element, bias, 0, first, item.end);
        }
        static_assert(THREADS == ELEMENTS, "a thread for each row");
        if (threadIdx.x < block.length) {
            const float *from = parts + (size_t)token * axis.len + block.start + threadIdx.x;
            if (here == 1) sum_parts_of<1, 16>(from, sums + threadIdx.x, here, tokens);
            else sum_parts_of<4, 4>(from, sums + threadIdx.x, here, tokens);
        }
        __syncthreads();
        if (count <= 0) return;
        transform_item<true, true>(
            axis, item, shared + warp * ITEM_FLOATS, lane, count,
            [&](int n) {
                Eight eight;
#pragma unroll
                for (int e = 0; e < EACH; ++e) eight.values[e] = sums[(warp + n * WARPS) * ELEMENTS + e * WARP + lane];
                return eight;
            },
            [](const Eight &eight) { return eight; },
            [&](int n, Eight &eight) {
                const size_t at = (size_t)(token + warp + n * WARPS) * axis.len;
                eight.multiply(factors);
                eight.add(biases);
                if (addend != nullptr) eight.add(load_eight(addend + at, first, item.end));
                store_eight_as(element, y, at, first, item.end, eight);
            });
    }
    // Brings the instructions of the transform into the caches: some block of these rows will come to it. `own` has room for ITEM_FLOATS; all
    // lanes of a warp.
    __device__ void rehearse(const Block &block, float *own) const {
        if (y == nullptr || !axis.is_fast(block.length)) return;
        for (int n = threadIdx.x % WARP; n < ITEM_FLOATS; n += WARP) own[n] = 0.0f;
        __syncwarp();
        transform_in_place<true>(axis.rotations, own, threadIdx.x % WARP, block.length);
    }
    // The sums of all parts of a row, in their order, for each token; `TOKENS` times `PARTS` loads do not wait for each other.
    template <int TOKENS, int PARTS> __device__ __forceinline__ void sum_parts_of(const float *from, float *sums, int here, int tokens) const {
        const size_t stride = (size_t)tokens * axis.len;
#pragma unroll 1
        for (int token = 0; token < here; token += TOKENS) {
            float sum[TOKENS] = {};
#pragma unroll 1
            for (int part = 0; part < all_parts; part += PARTS) {
                float loaded[TOKENS][PARTS];
#pragma unroll
                for (int t = 0; t < TOKENS; ++t) {
#pragma unroll
                    for (int n = 0; n < PARTS; ++n) {
                        const bool is_there = token + t < here && part + n < all_parts;
                        loaded[t][n] = is_there ? __ldcg(from + (part + n) * stride + (size_t)(token + t) * axis.len) : 0.0f;
                    }
                }
#pragma unroll
                for (int t = 0; t < TOKENS; ++t) {
#pragma unroll
                    for (int n = 0; n < PARTS; ++n) sum[t] += loaded[t][n];
                }
            }
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                if (token + t < here) sums[(token + t) * ELEMENTS] = sum[t];
            }
        }
    }
};

// Both, for the axes of columns and rows.
#define ENDS_PARAMETERS \
    const void *x, int x_element, const uint32_t *x_signs, const float *x_scales, const float2 *x_rotations, const float *x_whole, \
        const float *x_shorter, float *parts, int *counters, int first_part, int all_parts, const float *addend, const void *bias, \
        void *y, int y_element, const uint32_t *y_signs, const float *y_scales, const float2 *y_rotations, const float *y_whole, \
        const float *y_shorter
#define INPUTS Inputs { x, x_element, Axis { x_signs, x_scales, x_rotations, x_whole, x_shorter, cols, edge } }
#define RESULTS \
    Results { \
        parts, counters, first_part, all_parts, addend, bias, y, y_element, \
            Axis { y_signs, y_scales, y_rotations, y_whole, y_shorter, rows, edge } \
    }
