// The basis term, in the weight domain: `sum_k theta_k phi_k(y, x)` with `phi` the functions
// `1, d, d^2, cos(pi x), cos(pi y), cos(2 pi x), cos(2 pi y), cos(pi x) cos(pi y)`, `d = sqrt(x^2 + y^2)`.
//
// A grid holds for each row or column `(coordinate, cos(pi c), cos(2 pi c), 0)`. All functions but `d` split into a part
// of the row and one of the column, so a weight costs a square root and six multiply-adds and is stored nowhere.
#include "common.cuh"

constexpr int FUNCTIONS = 8;

// What is constant along a line of a block: the weights are
// `own + theta_d sqrt(line^2 + x^2) + theta_2 x^2 + theta_cos cos(pi x) + theta_cos2 cos(2 pi x)`.
struct Line {
    float own, squared, d, square, cosine, cosine_2;

    // `transposed` exchanges x and y: the line is a column.
    __device__ Line(const float *theta, const float4 &line, bool transposed) {
        const float along = theta[transposed ? 4 : 3], along_2 = theta[transposed ? 6 : 5];
        const float across = theta[transposed ? 3 : 4], across_2 = theta[transposed ? 5 : 6];
        squared = line.x * line.x;
        own = theta[0] + theta[2] * squared + across * line.y + across_2 * line.z;
        d = theta[1];
        square = theta[2];
        cosine = along + theta[7] * line.y;
        cosine_2 = along_2;
    }

    __device__ float weight(const float4 &at) const {
        const float x_squared = at.x * at.x;
        return own + d * sqrtf(squared + x_squared) + square * x_squared + cosine * at.y + cosine_2 * at.z;
    }
};

// `sums(token, out) = sum over in of the weight times x(token, in)`, a warp for each output. Blocks lie at
// `out_block * out_stride + in_block * in_stride`. Grid: (groups of WARPS outputs, 1, groups of TOKENS tokens).
template <class T, int TOKENS>
__device__ void product(const float *theta, const float4 *out_grid, const float4 *in_grid, int outs, int ins, int edge,
                        int out_stride, int in_stride, int transposed, const T *x, float *sums, int tokens) {
    const int lane = threadIdx.x % WARP, out = blockIdx.x * WARPS + threadIdx.x / WARP, token = blockIdx.z * TOKENS;
    if (out >= outs) return;
    const float4 place = out_grid[out];
    const int out_block = Cut { outs, edge }.holding(out).index;
    const Cut in_cut = { ins, edge };
    float own[TOKENS] = {};
    for (Block block = in_cut.from(0, 0); block.length > 0; block = in_cut.from(block.index + 1, block.end())) {
        const size_t index = (size_t)out_block * out_stride + (size_t)block.index * in_stride;
        const Line line(theta + FUNCTIONS * index, place, transposed);
        for (int in = block.start + lane; in < block.end(); in += WARP) {
            const float weight = line.weight(__ldg(in_grid + in));
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                if (token + t < tokens) own[t] += weight * to_float(x[(size_t)(token + t) * ins + in]);
            }
        }
    }
    for (int t = 0; t < TOKENS && token + t < tokens; ++t) {
        const float sum = warp_sum(own[t]);
        if (lane == 0) sums[(size_t)(token + t) * outs + out] = sum;
    }
}

#define PRODUCT_KERNEL(SUFFIX, T, TOKENS) \
    extern "C" __global__ void __launch_bounds__(THREADS) basis_product_##SUFFIX( \
        const float *theta, const float4 *out_grid, const float4 *in_grid, int outs, int ins, int edge, int out_stride, \
        int in_stride, int transposed, const T *x, float *sums, int tokens) { \
        product<T, TOKENS>(theta, out_grid, in_grid, outs, ins, edge, out_stride, in_stride, transposed, x, sums, tokens); \
    }
PRODUCT_KERNEL(f32_1, float, 1)
PRODUCT_KERNEL(f32_4, float, 4)
PRODUCT_KERNEL(f16_1, __half, 1)
PRODUCT_KERNEL(f16_4, __half, 4)
PRODUCT_KERNEL(bf16_1, __nv_bfloat16, 1)
PRODUCT_KERNEL(bf16_4, __nv_bfloat16, 4)

// The weights of rows: of row `ids[n]`, or of row `n` without ids; NaN for an id that is no row. Grid: (rows, columns / THREADS).
extern "C" __global__ void __launch_bounds__(THREADS)
    basis_rows(const float *theta, const float4 *row_grid, const float4 *col_grid, int rows, int cols, int edge,
               const uint32_t *ids, float *out) {
    const int col = blockIdx.y * THREADS + threadIdx.x;
    const uint32_t row = ids != nullptr ? ids[blockIdx.x] : blockIdx.x;
    if (col >= cols) return;
    float weight = __int_as_float(NOT_A_NUMBER);
    if (row < (uint32_t)rows) {
        const Cut row_cut = { rows, edge }, col_cut = { cols, edge };
        const size_t block = (size_t)row_cut.holding((int)row).index * col_cut.blocks() + col_cut.holding(col).index;
        const Line line(theta + FUNCTIONS * block, row_grid[row], false);
        weight = line.weight(col_grid[col]);
    }
    out[(size_t)blockIdx.x * cols + col] = weight;
}
