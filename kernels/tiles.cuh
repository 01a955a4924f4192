// Products on tensor cores, for terms whose values are integers of at most eight bits: `mma` with 16 rows, 16 columns and 8
// vectors at once.
//
// For blocks of 128 rows and 256, and a multiple of 4 columns. A lane's column group (lane mod 4) and its piece are what `mma` has
// of its left operand in a thread: of four columns two rows of a piece at a time. With 4 pieces a column, lanes from 16 on have
// other columns than the first sixteen; each half then has four of the eight vectors, zeros for the other half's columns in the
// other four.
//
// Values are exact in bfloat16, and a vector's F32 is the sum of three such numbers, 8 bits each. They are three of the eight
// vectors where there are few (APART), else three products with one left operand: nothing is lost in either. Where inputs and results
// have 16 bits, two of them are enough: 16 bits.
#pragma once
#include "ring.cuh"

// One token or two.
struct Few {
    static constexpr bool APART = true; // a number's parts are vectors of their own, not products
    static constexpr int PARTS = 3;
    static constexpr int SETS = 1; // of eight vectors
};
// Up to eight, of 16 bits and in F32.
struct Many {
    static constexpr bool APART = false;
    static constexpr int PARTS = 2, SETS = 1;
};
struct Exact {
    static constexpr bool APART = false;
    static constexpr int PARTS = 3, SETS = 1;
};
// Up to sixteen, of 16 bits: every weight is decoded once for all of them.
struct Wide {
    static constexpr bool APART = false;
    static constexpr int PARTS = 2, SETS = 2;
};

// Where staged inputs begin in shared memory: behind the table and the buffers, which have the same place.
template <class Code> constexpr int STAGED = Code::TABLE > BUFFERS ? Code::TABLE : BUFFERS;

// How the eight vectors of an `mma` are shared out: among the 8 lanes of a column, or twice among its 4.
template <class Form> struct Vectors {
    int each; // 8, or 4 for those of a half of the lanes with columns of their own

    __device__ explicit Vectors(int lanes) : each(lanes) {}
    __device__ bool are_halved() const { return each == 4; }
    // Tokens of a set, and at once.
    __device__ int of_set() const { return Form::APART ? (are_halved() ? 1 : 2) : each; }
    __device__ int tokens() const { return Form::SETS * of_set(); }
};

// What a lane has of the right operand: four columns of one vector of each set.
template <class Form> struct Share {
    const float *x; // its token's of the first set, from its first column in a step on; in shared memory with APART
    int next_set;   // from there to the next set's
    int end;        // columns that are there from its own on
    int sets;       // so many of its vectors are not zero
    int part;       // with APART: of the three

    __device__ __forceinline__ void load(int first, float4 (&to)[Form::SETS]) const {
        const float *own = x + first;
#pragma unroll
        for (int s = 0; s < Form::SETS; ++s) {
            const float4 *from = reinterpret_cast<const float4 *>(own + s * (ptrdiff_t)next_set);
            const bool is_there = s < sets && first < end;
            to[s] = is_there ? (Form::APART ? *from : __ldg(from)) : float4 {0.0f, 0.0f, 0.0f, 0.0f};
        }
    }
};

__device__ __forceinline__ float without_upper_half(float x) {
    return x - __uint_as_float(__float_as_uint(x) & 0xffff0000u);
}
__device__ __forceinline__ uint32_t upper_halves(float low, float high) {
    return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
}

// One step: of four columns the piece's 32 rows. `sums[s][m]` are rows `2m` and `2m + 1` of two vectors. `fetch()` is called in its midst,
// for the next step's vectors.
template <class Code, int BITS, class Form, class Fetch>
__device__ __forceinline__ void multiply(const Code &code, const uint4 (&held)[BITS], int below, const float4 (&x)[Form::SETS],
                                         float scale, int part, float (&sums)[Form::SETS][16][4], Fetch fetch) {
    constexpr int PRODUCTS = Form::APART ? 1 : Form::PARTS;
    uint32_t words[4][BITS], next[4];
#pragma unroll
    for (int n = 0; n < BITS; ++n) {
        words[0][n] = held[n].x, words[1][n] = held[n].y, words[2][n] = held[n].z, words[3][n] = held[n].w;
    }
#pragma unroll
    for (int v = 0; v < 4; ++v) next[v] = Code::READS_ON ? __shfl_sync(ALL_LANES, words[v][0], below) : 0;
    uint32_t right[Form::SETS][PRODUCTS][2];
#pragma unroll
    for (int s = 0; s < Form::SETS; ++s) {
        float factors[4] = {x[s].x * scale, x[s].y * scale, x[s].z * scale, x[s].w * scale};
        if constexpr (Form::APART) {
#pragma unroll
            for (int n = 1; n < Form::PARTS; ++n) {
                if (part < n) continue;
#pragma unroll
                for (int v = 0; v < 4; ++v) factors[v] = without_upper_half(factors[v]);
            }
        }
#pragma unroll
        for (int n = 0; n < PRODUCTS; ++n) {
            right[s][n][0] = upper_halves(factors[0], factors[1]), right[s][n][1] = upper_halves(factors[2], factors[3]);
#pragma unroll
            for (int v = 0; v < 4; ++v) factors[v] = without_upper_half(factors[v]);
        }
    }
    // Two rows of products in turn where registers have room for both: one's sums are ready when they are added to again.
    constexpr int TURNS = Form::SETS;
#pragma unroll
    for (int n = 0; n < 16; n += TURNS) {
        uint32_t left[TURNS][4];
#pragma unroll
        for (int t = 0; t < TURNS; ++t) {
#pragma unroll
            for (int e = 0; e < 4; ++e) { // rows in turn, then the next two columns
                const int row = 2 * Code::template order<BITS>(n + t) + e % 2, col = e / 2 * 2;
                left[t][e] = code.template pair<BITS>(words[col], next[col], words[col + 1], next[col + 1], row);
            }
        }
#pragma unroll
        for (int p = 0; p < PRODUCTS; ++p) {
#pragma unroll
            for (int t = 0; t < TURNS; ++t) {
                const int m = Code::template order<BITS>(n + t);
#pragma unroll
                for (int s = 0; s < Form::SETS; ++s) mma_bf16(sums[s][m], left[t], right[s][p][0], right[s][p][1]);
            }
        }
        if (n == 8) fetch();
    }
}

// The scale groups from `scale_group` on, every eighth, as long as they have `BITS` bits; the first that has not.
template <class Code, int BITS, class Form>
__device__ __forceinline__ int multiply_groups(Code &code, Ring &ring, const uint4 *table, int lanes, const Share<Form> &share,
                                               int scale_group, int last, float (&sums)[Form::SETS][16][4]) {
    const int below = lane_below(threadIdx.x % WARP, lanes), steps = lanes / 4;
    // A scale group of no bits stands for what is not there.
    auto entry_of = [&](int n) { return n < last ? __ldg(table + n) : uint4 {0, 0, 0, 0}; };
    uint4 entry = entry_of(scale_group), ahead = entry_of(scale_group + WARPS);
    code.begin(entry.w);
    float4 x[Form::SETS];
    share.load(scale_group * WARP, x);
    int step = 0;
#pragma unroll 1
    for (bool more = true; more;) {
        const float scale = __uint_as_float(entry.z);
        if (++step == steps) {
            step = 0, scale_group += WARPS, entry = ahead;
            ahead = entry_of(scale_group + WARPS);
            more = entry.y == BITS;
        }
        uint4 held[BITS];
        ring.take(held);
        float4 fetched[Form::SETS];
        multiply<Code, BITS, Form>(code, held, below, x, scale, share.part, sums,
                                   [&] { share.load(scale_group * WARP + step * 16, fetched); });
#pragma unroll
        for (int s = 0; s < Form::SETS; ++s) x[s] = fetched[s];
    }
    return scale_group;
}

// What a block multiplies: scale groups `first .. last` of one block row with `here` vectors from `token` on.
template <class Form> struct Tile {
    Block block;
    int lanes;
    Vectors<Form> vectors;
    int token, here, first, last;

    __device__ __forceinline__ Tile(const Strips &at, int block_row, int tokens, int strips_per_block)
        : block(at.row_cut().block(block_row)), lanes(lanes_of(block.length)), vectors(lanes), token(blockIdx.z * vectors.tokens()),
          here(min(vectors.tokens(), tokens - token)), first(blockIdx.y * strips_per_block),
          last(min(first + strips_per_block, at.per_row())) {}
};

// A lane's share of the inputs, with APART of those that are transformed here; a barrier is to follow.
template <class Code, class Form>
__device__ __forceinline__ Share<Form> share_of(const Strips &at, const Tile<Form> &tile, const Inputs &in, int strips_per_block) {
    const Vectors<Form> &vectors = tile.vectors;
    const int lane = threadIdx.x % WARP;
    // With APART all parts of a vector follow each other, of each the tokens.
    const int vector = lane / 4, half = vector >= vectors.each ? 1 : 0, rest = vector - half * vectors.each;
    const int part = !Form::APART ? 0 : vectors.are_halved() ? rest : rest / 2, own = rest - part * vectors.of_set();
    // Of the first set, and of each one more as many later; inputs are staged as far as the block multiplies.
    int sets = 0;
#pragma unroll
    for (int s = 0; s < Form::SETS; ++s) sets += part < Form::PARTS && own + s * vectors.of_set() < tile.here ? 1 : 0;
    const int end = Form::APART ? min(at.cols, tile.last * WARP) : at.cols;
    const int col = (lane % 4 + half * 4) * 4;
    Share<Form> share = {nullptr, vectors.of_set() * at.cols, end - col, sets, part};
    if constexpr (Form::APART) {
        float *shared = reinterpret_cast<float *>(dynamic_shared), *staged = shared + STAGED<Code>;
        const int columns = strips_per_block * WARP, first = tile.first * WARP;
        in.template stage<true>(staged, columns, shared, first, tile.token, tile.here);
        share.x = staged + own * columns - first + col;
    } else {
        share.x = static_cast<const float *>(in.x) + (size_t)(tile.token + own) * at.cols + col;
    }
    return share;
}

// The sum over four lanes side by side.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Writes the block's part of the results. Each warp adds up what all warps have of four rows of every piece: `rows[v]` are a lane's of
// two vectors, those of its place among four lanes, in the piece of these.
template <class Form>
__device__ __forceinline__ void add_warps(const Tile<Form> &tile, const Results &to, int tokens, const float (&sums)[Form::SETS][16][4]) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, quarter = lane % 4;
    const bool halved = tile.vectors.are_halved();
    float4 *shared = reinterpret_cast<float4 *>(dynamic_shared);
#pragma unroll
    for (int s = 0; s < Form::SETS; ++s) {
        __syncthreads();
#pragma unroll
        for (int m = 0; m < 16; ++m) shared[(warp * 16 + m) * WARP + lane] = float4 {sums[s][m][0], sums[s][m][1], sums[s][m][2], sums[s][m][3]};
        __syncthreads();
        float rows[2][4] = {};
#pragma unroll
        for (int w = 0; w < WARPS; ++w) {
#pragma unroll
            for (int n = 0; n < 2; ++n) {
                const float4 other = shared[(w * 16 + 2 * warp + n) * WARP + lane];
                rows[0][2 * n] += other.x, rows[1][2 * n] += other.y, rows[0][2 * n + 1] += other.z, rows[1][2 * n + 1] += other.w;
            }
        }
        // A half's vectors are of its own lanes' columns; what is elsewhere is nothing.
        const int half = halved ? lane / 16 : 0, place = quarter - 2 * half;
        if constexpr (Form::APART) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                if (halved) { // parts one after another
                    const float own = place == 0 ? rows[0][n] + rows[1][n] : place == 1 ? rows[0][n] : 0.0f;
                    rows[0][n] = quad_sum(own);
                    rows[0][n] += __shfl_xor_sync(ALL_LANES, rows[0][n], 16);
                } else { // two tokens of each part
                    rows[0][n] = quad_sum(rows[0][n]), rows[1][n] = quad_sum(rows[1][n]);
                }
                if (quarter == 1) rows[0][n] = rows[1][n];
            }
        } else if (halved) {
#pragma unroll
            for (int v = 0; v < 2; ++v) {
#pragma unroll
                for (int n = 0; n < 4; ++n) rows[v][n] += __shfl_xor_sync(ALL_LANES, rows[v][n], 18);
            }
        }
        const int row = tile.block.start + (lane / 4 & (halved ? 3 : 7)) * PIECE + 4 * warp;
#pragma unroll
        for (int v = 0; v < (Form::APART ? 1 : 2); ++v) {
            const int own = Form::APART ? quarter : 2 * quarter + v, token = s * tile.vectors.of_set() + own;
            if (own >= tile.vectors.of_set() || half > 0 || token >= tile.here) continue;
            float *out = to.part(tokens, tile.token + token) + row;
            if (to.axis.len % 4 == 0) {
                *reinterpret_cast<float4 *>(out) = float4 {rows[v][0], rows[v][1], rows[v][2], rows[v][3]};
            } else {
#pragma unroll
                for (int n = 0; n < 4; ++n) out[n] = rows[v][n];
            }
        }
    }
}

// y(token, row) += S(row, column) x(token, column) for the scale groups of one split of one block row, as `product`.
//
//     in        inputs; with APART they are transformed here
//     shared    buffers of the transforms, then the code's table; with APART x (tokens at once, 32 scale groups); from `ring_at` on the
//               warps' rings. Over all of it then the warps' sums, and then buffers
template <class Code, class Form>
__device__ __forceinline__ void tiles(const Strips &at, int first_block_row, const Inputs &in, const Results &to, int tokens, int strips_per_block,
                      int ring_at, int most_bits) {
    const int block_row = first_block_row + blockIdx.x;
    float sums[Form::SETS][16][4] = {};
    {
        const Tile<Form> tile(at, block_row, tokens, strips_per_block);
        if (tile.here <= 0) return; // blocks of 256 rows take more at once than those of 128
        // Ahead of the weights, which are many: behind them it would come late.
        if constexpr (Form::APART) in.send_for_inputs(tile.first * WARP, strips_per_block * WARP, tile.token, tile.here);
        if (to.y != nullptr) to.axis.send_for_tables(tile.block.start, tile.block.end());
        Ring ring(at, block_row, tile.lanes, tile.first, tile.last, reinterpret_cast<float *>(dynamic_shared) + ring_at, most_bits);
        const Share<Form> share = share_of<Code>(at, tile, in, strips_per_block);
        if (Form::APART) __syncthreads();
        Code code(reinterpret_cast<float *>(dynamic_shared), at.values);
        __syncthreads();
        const uint4 *table = at.table + (size_t)block_row * at.per_row();
        for (int scale_group = tile.first + threadIdx.x / WARP; scale_group < tile.last;) {
            switch (__ldg(table + scale_group).y) {
#define CASE(BITS) \
    case BITS: \
        if constexpr (HAS_BITS<Code, BITS>) { \
            scale_group = multiply_groups<Code, BITS, Form>(code, ring, table, tile.lanes, share, scale_group, tile.last, sums); \
        } \
        break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
            default: scale_group += WARPS;
            }
        }
    }
    // Found again, and not kept in registers that the loop has other use for.
    const Tile<Form> tile(at, first_block_row + (int)in_register(blockIdx.x), tokens, strips_per_block);
    add_warps(tile, to, tokens, sums);
    to.finish(tile.block, tile.token, tile.here, tokens);
}

#define TILES_KERNEL(NAME, CODE, FORM, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) \
        NAME(STRIPS_PARAMETERS, ENDS_PARAMETERS, int first_block_row, int tokens, int strips_per_block, int ring_at, int most_bits) { \
        tiles<CODE, FORM>(STRIPS_ARGUMENTS, first_block_row, INPUTS, RESULTS, tokens, strips_per_block, ring_at, most_bits); \
    }
#define TILES_KERNELS(NAME, CODE) \
    TILES_KERNEL(NAME##_few, CODE, Few, CODE::TILE_BLOCKS) \
    TILES_KERNEL(NAME##_many, CODE, Many, CODE::TILE_BLOCKS) \
    TILES_KERNEL(NAME##_exact, CODE, Exact, CODE::TILE_BLOCKS) \
    TILES_KERNEL(NAME##_wide, CODE, Wide, 1)
