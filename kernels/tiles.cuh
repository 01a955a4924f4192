// Products on tensor cores, for terms whose values are integers of at most eight bits: `mma` with 16 rows, 16 columns and 8
// vectors at once.
//
// For blocks of 128 rows and 256, and a multiple of 4 columns. A lane's column group (lane mod 4) and its piece are what `mma` has of its left operand in a
// thread: of four columns two rows of a piece at a time. With 4 pieces a column, lanes from 16 on have other columns than the first
// sixteen; each half then has four of the eight vectors, zeros for the other half's columns in the other four.
//
// Values are exact in bfloat16, and a vector's F32 is the sum of three such numbers, 8 bits each. They are three of the eight
// vectors where there are few (APART), else three products with one left operand: nothing is lost in either.
#pragma once
#include "groups.cuh"

// Floats from a row to the next and from a piece to the next where warps add up their sums.
constexpr int ROW_STRIDE = 10, PIECE_STRIDE = 32 * ROW_STRIDE + 8, TILE_FLOATS = 8 * PIECE_STRIDE;
constexpr int PARTS = 3;

// How the eight vectors of an `mma` are shared out.
template <bool APART> struct Vectors {
    int halves; // of the lanes with columns of their own
    __device__ explicit Vectors(int lanes) : halves(8 / lanes) {}
    __device__ int each() const { return 8 / halves; }
    // Tokens at once.
    __device__ int tokens() const { return APART ? (halves == 1 ? 2 : 1) : each(); }
    // Where a token's part is.
    __device__ int of(int half, int part, int token) const { return half * each() + part * tokens() + token; }
};

// What a lane has of the right operand: four columns of one vector.
struct Share {
    const float *x; // its token's
    int col;        // the first column in the step's
    int cols;       // a multiple of 4; 0 where the vector is zero
    int part;       // with APART: of the three

    __device__ __forceinline__ float4 load(int first) const {
        return first + col < cols ? __ldg(reinterpret_cast<const float4 *>(x + first + col)) : float4 {0.0f, 0.0f, 0.0f, 0.0f};
    }
};

__device__ __forceinline__ float without_upper_half(float x) {
    return x - __uint_as_float(__float_as_uint(x) & 0xffff0000u);
}
__device__ __forceinline__ uint32_t upper_halves(float low, float high) {
    return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

// One step: of four columns the piece's 32 rows. `sums[m]` are rows `2m` and `2m + 1` of two vectors. `fetch(n)` is called for each
// `n < BITS` as soon as words enough are done with to have room for load `n` of the next step, and `fetch(BITS)` for its vectors.
template <class Code, int BITS, bool APART, class Fetch>
__device__ __forceinline__ void multiply(const Code &code, const uint4 (&held)[BITS], int below, const float4 &x, float scale,
                                         int part, float (&sums)[16][4], Fetch fetch) {
    uint32_t words[4][BITS], next[4];
#pragma unroll
    for (int n = 0; n < BITS; ++n) {
        words[0][n] = held[n].x, words[1][n] = held[n].y, words[2][n] = held[n].z, words[3][n] = held[n].w;
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) next[v] = Code::READS_ON ? __shfl_sync(ALL_LANES, words[v][0], below) : 0;
    float factors[4] = {x.x * scale, x.y * scale, x.z * scale, x.w * scale};
    uint32_t right[APART ? 1 : PARTS][2];
    if constexpr (APART) {
#pragma unroll
        for (int n = 1; n < PARTS; ++n) {
            if (part < n) continue;
#pragma unroll
            for (int v = 0; v < 4; ++v) factors[v] = without_upper_half(factors[v]);
        }
    }
#pragma unroll
    for (int n = 0; n < (APART ? 1 : PARTS); ++n) {
        right[n][0] = upper_halves(factors[0], factors[1]), right[n][1] = upper_halves(factors[2], factors[3]);
#pragma unroll
        for (int v = 0; v < 4; ++v) factors[v] = without_upper_half(factors[v]);
    }
#pragma unroll
    for (int n = 0; n < 16; ++n) {
        const int m = Code::template order<BITS>(n);
        uint32_t left[4];
#pragma unroll
        for (int e = 0; e < 4; ++e) { // rows in turn, then the next two columns
            const int row = 2 * m + e % 2, col = e / 2 * 2;
            left[e] = Code::template pair<BITS>(code.template raw<BITS>(words[col], next[col], row),
                                                code.template raw<BITS>(words[col + 1], next[col + 1], row));
        }
#pragma unroll
        for (int p = 0; p < (APART ? 1 : PARTS); ++p) mma_bf16(sums[m], left, right[p][0], right[p][1]);
        // Few words do not wait for room.
        if (BITS <= 2 ? n < BITS : (n + 1) * BITS / 16 > n * BITS / 16) fetch(BITS <= 2 ? n : n * BITS / 16);
        if (n == 8) fetch(BITS);
    }
}

// The scale groups from `scale_group` on, every eighth, as long as they have `BITS` bits; the first that has not.
template <class Code, int BITS, bool APART>
__device__ __forceinline__ int multiply_groups(Code &code, const Strips &at, const uint4 *table, int lanes, const Share &share,
                                               int scale_group, int last, float (&sums)[16][4]) {
    const int lane = threadIdx.x % WARP, below = lane_below(lane, lanes), steps = lanes / 4;
    const uint4 *words = reinterpret_cast<const uint4 *>(at.words) + lane;
    // A scale group of no bits stands for what is not there.
    auto entry_of = [&](int n) { return n < last ? __ldg(table + n) : uint4 {0, 0, 0, 0}; };
    uint4 entry = entry_of(scale_group), ahead = entry_of(scale_group + WARPS);
    code.begin(entry.w);
    uint4 held[BITS];
    float4 x = share.load(scale_group * WARP);
#pragma unroll
    for (int n = 0; n < BITS; ++n) held[n] = __ldcs(words + entry.x / 4 + n * WARP);
    int step = 0;
#pragma unroll 1
    for (bool more = true; more;) {
        const float scale = __uint_as_float(entry.z);
        if (++step == steps) {
            step = 0, scale_group += WARPS, entry = ahead;
            ahead = entry_of(scale_group + WARPS);
            more = entry.y == BITS;
        }
        const uint4 *from = words + entry.x / 4 + step * (BITS * WARP);
        uint4 fetched[BITS]; // nothing where there is no more
        float4 fetched_x;
        multiply<Code, BITS, APART>(code, held, below, x, scale, share.part, sums, [&](int n) {
            if (n == BITS) fetched_x = share.load(scale_group * WARP + step * 16);
            else if (more) fetched[n] = __ldcs(from + n * WARP);
        });
        x = fetched_x;
#pragma unroll
        for (int n = 0; n < BITS; ++n) held[n] = fetched[n];
    }
    return scale_group;
}

// y(token, row) += S(row, column) x(token, column) for the scale groups of one split of one block row, as `product`.
//
//     shared    the code's table; then half of the warps' sums
template <class Code, bool APART>
__device__ void tiles(const Strips &at, int first_block_row, const float *x, float *partial, int tokens, int strips_per_block) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, block_row = first_block_row + blockIdx.x;
    const Block block = at.row_cut().block(block_row);
    const int height = block.length, lanes = lanes_of(height);
    const Vectors<APART> vectors(lanes);
    const int token = blockIdx.z * vectors.tokens(), first = blockIdx.y * strips_per_block;
    if (token >= tokens) return; // blocks of 256 rows take more at once than those of 128
    const int last = min(first + strips_per_block, at.per_row()), here = min(vectors.tokens(), tokens - token);
    float *shared = reinterpret_cast<float *>(dynamic_shared);
    Code code(shared, at.values);

    const int vector = lane / 4, half = vector / vectors.each(), rest = vector - half * vectors.each();
    const int part = APART ? rest / vectors.tokens() : 0, own = rest - part * vectors.tokens();
    const bool is_there = own < here && part < PARTS;
    const Share share = {x + (size_t)(token + own) * at.cols, (lane % 4 + half * 4) * 4, is_there ? at.cols : 0, part};
    __syncthreads();

    float sums[16][4] = {};
    const uint4 *table = at.table + (size_t)block_row * at.per_row();
    for (int scale_group = first + warp; scale_group < last;) {
        switch (__ldg(table + scale_group).y) {
#define CASE(BITS) \
    case BITS: \
        if constexpr (HAS_BITS<Code, BITS>) { \
            scale_group = multiply_groups<Code, BITS, APART>(code, at, table, lanes, share, scale_group, last, sums); \
        } \
        break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
        default: scale_group += WARPS;
        }
    }

    // Warp `n` and warp `n + 4`, and then what is left of the four, of the halves and of the parts.
    float *own_sums = shared + warp % (WARPS / 2) * TILE_FLOATS + lane / 4 * PIECE_STRIDE + lane % 4 * 2;
    for (int upper = 1; upper >= 0; --upper) {
        __syncthreads();
        if (warp / (WARPS / 2) == upper) {
#pragma unroll
            for (int n = 0; n < PIECE; ++n) {
                float2 *to = reinterpret_cast<float2 *>(own_sums + n * ROW_STRIDE);
                float2 sum = {sums[n / 2][n % 2 * 2], sums[n / 2][n % 2 * 2 + 1]};
                if (upper == 0) sum.x += to->x, sum.y += to->y;
                *to = sum;
            }
        }
    }
    __syncthreads();
    for (int t = 0; t < here; ++t) {
        float *out = partial + ((size_t)blockIdx.y * tokens + token + t) * at.rows + block.start;
        for (int row = threadIdx.x; row < height; row += THREADS) {
            float sum = 0.0f;
            for (int w = 0; w < WARPS / 2; ++w) {
                for (int h = 0; h < vectors.halves; ++h) {
                    const float *from = shared + w * TILE_FLOATS + (h * lanes + row / PIECE) * PIECE_STRIDE + row % PIECE * ROW_STRIDE;
                    for (int p = 0; p < (APART ? PARTS : 1); ++p) sum += from[vectors.of(h, p, t)];
                }
            }
            out[row] = sum;
        }
    }
}

// For one token or two (`few`), and for up to eight.
#define TILES_KERNEL(NAME, CODE, APART) \
    extern "C" __global__ void __launch_bounds__(THREADS, CODE::TILE_BLOCKS) \
        NAME(STRIPS_PARAMETERS, int first_block_row, const float *x, float *partial, int tokens, int strips_per_block) { \
        tiles<CODE, APART>(STRIPS_ARGUMENTS, first_block_row, x, partial, tokens, strips_per_block); \
    }
#define TILES_KERNELS(NAME, CODE) TILES_KERNEL(NAME##_few, CODE, true) TILES_KERNEL(NAME##_many, CODE, false)
