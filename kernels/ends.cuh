// Both ends of a product in its own launch: inputs are transformed by each block that needs them, and results by the last block that
// adds to them.
//
// Nothing waits for another block: each counts itself when its part of a sum is in memory, and the one that finds all others counted
// adds up the parts, in their order, whoever was last. It sets the counter to zero again, for the next launch.
#pragma once
#include "transform.cuh"

// What vectors are made of, as src/cuda/machine.rs numbers it.
enum Element { F32 = 0, F16 = 1, BF16 = 2, COEFFICIENTS = 3 };

// Shared memory in which each warp transforms an item, in floats.
constexpr int BUFFERS = WARPS * ITEM_FLOATS;

// `load_eight` of vector elements from `at` on.
__device__ __forceinline__ Eight load_eight_as(int element, const void *from, size_t at, int first, int end) {
    if (element == F16) return load_eight(static_cast<const __half *>(from) + at, first, end);
    if (element == BF16) return load_eight(static_cast<const __nv_bfloat16 *>(from) + at, first, end);
    return load_eight(static_cast<const float *>(from) + at, first, end);
}
__device__ __forceinline__ void store_as(int element, void *to, size_t at, float value) {
    if (element == F16) static_cast<__half *>(to)[at] = from_float<__half>(value);
    else if (element == BF16) static_cast<__nv_bfloat16 *>(to)[at] = from_float<__nv_bfloat16>(value);
    else static_cast<float *>(to)[at] = value;
}

// A thread's lane, as a number that each item has to ask for again: nothing that depends on it is kept in registers from one item to the
// next, where the products' own do not leave as many.
__device__ __forceinline__ int lane_of_item() { return (int)in_register(threadIdx.x % WARP); }

// The inputs of a product, (tokens, axis.len), or of the type COEFFICIENTS their transform in F32.
struct Inputs {
    const void *x;
    int element;
    Axis axis;

    // Writes staged(t, n), the coefficient of token `token + t` and column `first + n`; zero beyond the matrix. Each warp has its part
    // of `buffers` (BUFFERS); a barrier is to follow.
    template <bool TRANSFORMS>
    __device__ void stage(float *staged, int columns, float *buffers, int first, int token, int tokens) const {
        const int warp = threadIdx.x / WARP, end = min(first + columns, axis.len);
        if (!TRANSFORMS || element == COEFFICIENTS) {
            for (int t = 0; t < tokens; ++t) {
                const float *from = static_cast<const float *>(x) + (size_t)(token + t) * axis.len + first;
                for (int n = threadIdx.x; n < columns; n += THREADS) staged[t * columns + n] = first + n < end ? from[n] : 0.0f;
            }
            return;
        }
        const Cut cut = axis.cut();
        const int begin = axis.index_of(cut.holding(first)), items = axis.index_of(cut.holding(end - 1)) + 1 - begin;
        for (int n = warp; n < items * tokens; n += WARPS) {
            const int t = n / items;
            const size_t row = (size_t)(token + t) * axis.len;
            float *to = staged + t * columns - first;
            transform_item<false, true>(
                axis, axis.item(begin + n - t * items), buffers + warp * ITEM_FLOATS, lane_of_item(),
                [&](int at, int after) {
                    Eight eight = load_eight_as(element, x, row, at, after);
                    eight.multiply(axis.factors(at, after));
                    return eight;
                },
                [&](int at, int after, const Eight &eight) {
#pragma unroll
                    for (int n = 0; n < EACH; ++n) {
                        const int column = at + n * WARP;
                        if (column < after && column >= first && column < end) to[column] = eight.values[n];
                    }
                });
        }
        for (int t = 0; t < tokens; ++t) {
            for (int column = end + threadIdx.x; column < first + columns; column += THREADS) staged[t * columns + column - first] = 0.0f;
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
    // token + here`; shared memory is overwritten.
    __device__ void finish(const Block &block, int token, int here, int tokens) const {
        if (y == nullptr) return;
        int *counter = counters + blockIdx.z * gridDim.x + blockIdx.x;
        __threadfence();
        __syncthreads();
        if (gridDim.y > 1) {
            const bool counted = threadIdx.x == 0 && atomicAdd(counter, 1) + 1 == (int)gridDim.y;
            if (!__syncthreads_or(counted)) return;
            __threadfence();
            if (threadIdx.x == 0) *counter = 0;
        }
        const int warp = threadIdx.x / WARP;
        for (int t = warp; t < here; t += WARPS) {
            const size_t row = (size_t)(token + t) * axis.len;
            Eight factors, addends = {};
            transform_item<true, true>(
                axis, axis.item(block), reinterpret_cast<float *>(dynamic_shared) + warp * ITEM_FLOATS, lane_of_item(),
                [&](int first, int end) {
                    if (addend != nullptr) addends = load_eight(addend + row, first, end);
                    if (bias != nullptr) addends.add(load_eight_as(element, bias, 0, first, end));
                    factors = axis.factors(first, end);
                    return sum_parts<2>(parts + row, all_parts, (size_t)tokens * axis.len, first, end);
                },
                [&](int first, int end, const Eight &eight) {
#pragma unroll
                    for (int n = 0; n < EACH; ++n) {
                        const float sum = eight.values[n] * factors.values[n] + addends.values[n];
                        if (first + n * WARP < end) store_as(element, y, row + first + n * WARP, sum);
                    }
                });
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
