// Products and decoding for terms that store every coefficient in `BITS` bits (planes, trellis).
//
// A scale group is 32 columns of one block row. Its columns are cut into pieces of 32 rows, `BITS` words each, and a thread
// holds one piece of one column at a time: `lanes` threads (a power of two) have a column, so a warp has `slots = 32 / lanes`
// columns at once. Four threads side by side have different columns, as tensor cores want it.
//
//     lane = (slot / 4 * lanes + piece) * 4 + slot mod 4        rows 32 piece .. 32 piece + 31
//     column = (group * slots + slot) * V + v
//
// V columns of a thread (4 where a column has at least 4 pieces, else 1) lie together: load `n` of a group gives lane
// `l` word `n` of each, at `((group * BITS + n) * 32 + l) * V`. So with blocks of 128 and
// 256 every load is 16 bytes a thread and 512 contiguous bytes a warp, and `BITS` of them are in flight at once.
//
// A term gives the value of row `j` of a piece from its words, `Code::value<BITS>(words, next, j)`; `next` is the first
// word of the piece below (the topmost below the last), which the trellis reads on into. `scaled` is the value before it is multiplied by
// `unit`, a power of two, which costs nothing where it is in a factor. Everything is indexed by constants after unrolling, so it stays in
// registers.
#pragma once
#include "ends.cuh"

constexpr int PIECE = 32;
// Distance of two pieces in shared memory, so that the pieces of a column lie in different banks.
constexpr int SINGLE_STRIDE = PIECE + 1;
constexpr int QUAD_STRIDE = PIECE + 4;

// Where a matrix's scale groups are.
struct Strips {
    const uint4 *table; // first word, bits, scale as F32, the code's own; block row by block row
    const uint32_t *words;
    const float *values;      // the code's table, where it has one
    const __half *row_scales; // (block columns, rows), where rows of blocks have their own scale; else null
    float unit;               // multiplies row_scales
    int rows, cols, edge;

    __device__ int per_row() const { return (cols + WARP - 1) / WARP; }
    __device__ Cut row_cut() const { return Cut { rows, edge }; }
    __device__ uint4 entry(int block_row, int scale_group) const { return __ldg(table + (size_t)block_row * per_row() + scale_group); }
    // The scales of the block's rows in the block column of a scale group.
    __device__ const __half *scales_of(const Block &block, int scale_group) const {
        return row_scales + (size_t)(Cut { cols, edge }.holding(scale_group * WARP).index) * rows + block.start;
    }
};

// Threads that share a column of `height` rows. Where they do not fill it exactly, its bits go on after its end with
// those of its beginning, sixteen at least.
__device__ inline int lanes_of(int height) {
    int pieces = height / PIECE;
    if (height % PIECE == 0 && (pieces & (pieces - 1)) == 0) return pieces;
    int lanes = 1;
    while (lanes * PIECE < height + 16) lanes *= 2;
    return lanes;
}

// The bits of a lane's number that are those of its piece.
__device__ inline int piece_bits(int lanes) { return (lanes - 1) * 4; }
__device__ inline int piece_of(int lane, int lanes) { return lane / 4 & (lanes - 1); }
__device__ inline int slot_of(int lane, int lanes) { return lane % 4 + (lane / 4 >> (__ffs(lanes) - 1)) * 4; }
// The lane that has the piece below, the topmost below the last.
__device__ inline int lane_below(int lane, int lanes) {
    return (lane & ~piece_bits(lanes)) | ((lane + 4) & piece_bits(lanes));
}

template <int V> struct Vector;
template <> struct Vector<1> { typedef uint32_t Type; };
template <> struct Vector<4> { typedef uint4 Type; };

__device__ inline void unpack(uint32_t from, uint32_t *to) { to[0] = from; }
__device__ inline void unpack(uint4 from, uint32_t *to) { to[0] = from.x, to[1] = from.y, to[2] = from.z, to[3] = from.w; }

// Calls `f(column, words of the piece, next)` for each of V columns side by side, of whose words `held` has the first of each, then the second.
template <class Code, int BITS, int V, class F> __device__ __forceinline__ void for_each_column(uint32_t (&held)[V * BITS], int below, F f) {
#pragma unroll 1
    for (int v = 0; v < V; ++v) {
        uint32_t own[BITS];
#pragma unroll
        for (int n = 0; n < BITS; ++n) own[n] = held[n * V];
        const uint32_t next = Code::READS_ON ? __shfl_sync(ALL_LANES, own[0], below) : 0;
        f(v, own, next);
        // The next column's words come to the front: one copy of the code for all V.
#pragma unroll
        for (int n = 0; n + 1 < V * BITS; ++n) held[n] = held[n + 1];
    }
}

// Calls `f(column in the scale group, words of the piece, next)` for every column of the scale group that this thread has a piece of.
template <class Code, int BITS, int V, class F>
__device__ __forceinline__ void for_each_piece(const uint32_t *words, int lanes, int lane, F f) {
    typedef typename Vector<V>::Type Load;
    const int slots = WARP >> (__ffs(lanes) - 1), slot = slot_of(lane, lanes), below = lane_below(lane, lanes);
    const Load *from = reinterpret_cast<const Load *>(words) + lane;
    // The next group's words come meanwhile, where registers have room for both.
    constexpr bool EARLY = V * BITS <= 16;
    Load ahead[BITS];
    auto load = [&] {
#pragma unroll
        for (int n = 0; n < BITS; ++n) ahead[n] = __ldg(from + n * WARP);
        from += BITS * WARP;
    };
    if (EARLY) load();
    for (int group = 0; group < lanes / V; ++group) {
        if (!EARLY) load();
        uint32_t held[V * BITS];
#pragma unroll
        for (int n = 0; n < BITS; ++n) unpack(ahead[n], held + n * V);
        if (EARLY && group + 1 < lanes / V) load();
        for_each_column<Code, BITS, V>(held, below, [&](int v, const uint32_t *own, uint32_t next) { f((group * slots + slot) * V + v, own, next); });
    }
}

// Whether a code has so many bits. Where instructions are counted (counts.py), kernels are compiled for one number of them alone.
#ifdef COUNTED_BITS
template <class Code, int BITS> constexpr bool HAS_BITS = BITS == COUNTED_BITS;
#else
template <class Code, int BITS> constexpr bool HAS_BITS = BITS <= Code::MAX_BITS;
#endif

// What a thread has of a column: the values of its rows.
template <class Code, int BITS> struct Piece {
    const Code &code;
    const uint32_t *words;
    uint32_t next;

    __device__ __forceinline__ float operator()(int j) const { return code.template value<BITS>(words, next, j); }
    __device__ __forceinline__ float scaled(int j) const { return code.template scaled<BITS>(words, next, j); }
    static constexpr __device__ float unit(int j) { return Code::template unit<BITS>(j); }
};

// Calls `f` with `bits` as a constant; nothing for a scale group without bits.
template <class Code, int V, class F>
__device__ __forceinline__ void with_bits(Code code, const uint4 &entry, const uint32_t *words, int lanes, int lane, F f) {
    code.begin(entry.w);
    switch (entry.y) {
#define CASE(BITS) \
    case BITS: \
        if constexpr (HAS_BITS<Code, BITS>) { \
            for_each_piece<Code, BITS, V>(words + entry.x, lanes, lane, [&](int column, const uint32_t *held, uint32_t next) { \
                f(column, Piece<Code, BITS> {code, held, next}); \
            }); \
        } \
        break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
    }
}

// y(token, row) += S(row, column) x(token, column) for the scale groups `first .. last` of one block row.
//
// Grid: (block rows from `first_block_row` on, splits, groups of TOKENS tokens). Every warp takes every eighth scale group; each
// thread sums its 32 rows in registers, the block adds up its threads' sums at the end.
//
//     in        inputs, transformed here where it is one token
//     to        results: this split's part is written, and the results by the last block of each block row
//     shared    buffers of the transforms, then the code's table; x (TOKENS, 32 scale groups), row scales (WARPS, 33 lanes). Then sums
//               (WARPS, 33 lanes), then buffers
template <class Code, int V, int TOKENS, bool ROW_SCALES>
__device__ void sum_rows(Code code, const Strips &at, int block_row, int lanes, const float *x, float *row_scales, int x_stride, int first,
                         int last, float (&sums)[TOKENS][PIECE]) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const Block block = at.row_cut().block(block_row);
    const int height = block.length, piece = piece_of(lane, lanes);
    for (int scale_group = first + warp; scale_group < last; scale_group += WARPS) {
        const uint4 entry = at.entry(block_row, scale_group);
        const float scale = __uint_as_float(entry.z);
        if constexpr (ROW_SCALES) {
            const __half *from = at.scales_of(block, scale_group);
            for (int row = lane; row < lanes * PIECE; row += WARP) {
                const float own = row < height ? __half2float(from[row]) * at.unit : 0.0f;
                row_scales[row / PIECE * SINGLE_STRIDE + row % PIECE] = own;
            }
            __syncwarp();
        }
        const float *own_scales = row_scales + piece * SINGLE_STRIDE;
        const float *own_x = x + (scale_group - first) * WARP;
        with_bits<Code, V>(code, entry, at.words, lanes, lane, [&](int column, auto value) {
            float factors[TOKENS];
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) factors[t] = own_x[t * x_stride + column] * scale;
#pragma unroll
            for (int j = 0; j < PIECE; ++j) {
                float weight = value.scaled(j);
                if constexpr (ROW_SCALES) weight *= own_scales[j];
#pragma unroll
                for (int t = 0; t < TOKENS; ++t) sums[t][j] += weight * (factors[t] * value.unit(j));
            }
        });
        if constexpr (ROW_SCALES) __syncwarp();
    }
}

template <class Code, int TOKENS, bool ROW_SCALES>
__device__ __forceinline__ void product(const Strips &at, int first_block_row, const Inputs &in, const Results &to, int tokens, int strips_per_block) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int block_row = first_block_row + blockIdx.x, split = blockIdx.y, token = blockIdx.z * TOKENS;
    const int first = split * strips_per_block, last = min(first + strips_per_block, at.per_row());
    const Block block = at.row_cut().block(block_row);
    const int height = block.length, lanes = lanes_of(height);
    float *shared = reinterpret_cast<float *>(dynamic_shared);

    const int x_stride = strips_per_block * WARP, here = min(TOKENS, tokens - token);
    float *staged = shared + max(Code::TABLE, BUFFERS);
    in.template stage<TOKENS == 1>(staged, x_stride, shared, first * WARP, token, here);
    for (int n = here * x_stride + threadIdx.x; n < TOKENS * x_stride; n += THREADS) staged[n] = 0.0f;
    float *row_scales = staged + TOKENS * x_stride + warp * lanes * SINGLE_STRIDE;
    __syncthreads();
    Code code(shared, at.values);
    __syncthreads();

    float sums[TOKENS][PIECE];
#pragma unroll
    for (int t = 0; t < TOKENS; ++t)
#pragma unroll
        for (int j = 0; j < PIECE; ++j) sums[t][j] = 0.0f;
    if (lanes >= 4) {
        sum_rows<Code, 4, TOKENS, ROW_SCALES>(code, at, block_row, lanes, staged, row_scales, x_stride, first, last, sums);
    } else {
        sum_rows<Code, 1, TOKENS, ROW_SCALES>(code, at, block_row, lanes, staged, row_scales, x_stride, first, last, sums);
    }

    // Over the columns of a warp by shuffles, over the warps in shared memory.
    float *own = shared + (warp * lanes + piece_of(lane, lanes)) * SINGLE_STRIDE;
#pragma unroll
    for (int t = 0; t < TOKENS; ++t) {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < PIECE; ++j) {
            float sum = sums[t][j];
            for (int distance = 1; distance < WARP; distance *= 2) {
                if ((distance & piece_bits(lanes)) == 0) sum += __shfl_xor_sync(ALL_LANES, sum, distance);
            }
            if (slot_of(lane, lanes) == 0) own[j] = sum;
        }
        __syncthreads();
        if (token + t >= tokens) continue;
        float *out = to.part(tokens, token + t) + block.start;
        for (int row = threadIdx.x; row < height; row += THREADS) {
            float sum = 0.0f;
            for (int w = 0; w < WARPS; ++w) {
                sum += shared[(w * lanes + row / PIECE) * SINGLE_STRIDE + row % PIECE];
            }
            out[row] = sum;
        }
    }
    to.finish(block, token, here, tokens);
}

// The factors of a scale group's rows for all tokens, scales multiplied in: `staged` is (TOKENS, 36 lanes), zero below the block.
template <int TOKENS>
__device__ void stage_rows(const Strips &at, float *staged, const float *g, size_t g_stride, int tokens, const Block &block,
                           int scale_group, float scale, int lanes, int lane) {
    const int height = block.length;
    for (int row = lane; row < lanes * PIECE; row += WARP) {
        float own = scale;
        if (at.row_scales != nullptr && row < height) {
            own = __half2float(at.scales_of(block, scale_group)[row]) * at.unit;
        }
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            const bool inside = row < height && t < tokens;
            staged[(t * lanes + row / PIECE) * QUAD_STRIDE + row % PIECE] = inside ? own * g[t * g_stride + row] : 0.0f;
        }
    }
}

// columns(TOKENS, 32) += the scale group's share; each column's pieces are added up by shuffles.
template <class Code, int V, int TOKENS>
__device__ void sum_columns(Code code, const uint4 &entry, const uint32_t *words, int lanes, int lane, const float *staged,
                            float *columns) {
    const int piece = piece_of(lane, lanes);
    with_bits<Code, V>(code, entry, words, lanes, lane, [&](int column, auto value) {
        float sums[TOKENS] = {};
#pragma unroll
        for (int j = 0; j < PIECE; j += 4) {
            const float weights[4] = {value(j), value(j + 1), value(j + 2), value(j + 3)};
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                const float4 g = *reinterpret_cast<const float4 *>(staged + (t * lanes + piece) * QUAD_STRIDE + j);
                sums[t] += weights[0] * g.x + weights[1] * g.y + weights[2] * g.z + weights[3] * g.w;
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; ++t) {
            for (int distance = 4; distance < 4 * lanes; distance *= 2) {
                sums[t] += __shfl_xor_sync(ALL_LANES, sums[t], distance);
            }
            if (piece == 0) columns[t * WARP + column] += sums[t];
        }
    });
}

// x(token, column) += S(row, column) g(token, row) for the block rows of one split. With `ids`, token `t` is row `ids[t]`
// of the matrix asked for: only its block row counts, and `g` is (tokens, longest); an id that is no row gives NaN.
//
// Grid: (groups of WARPS scale groups, splits, groups of TOKENS tokens). Each warp has one scale group and no need of the others.
//
//     g         (tokens, rows), or (tokens, longest block)
//     partial   (splits, tokens, cols)
//     shared    the code's table; for each warp g (TOKENS, 36 max_lanes), columns (TOKENS, 32)
template <class Code, int TOKENS>
__device__ __forceinline__ void transposed(const Strips &at, const float *g, const uint32_t *ids, float *partial, int tokens,
                           int rows_per_split, int max_lanes) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int scale_group = blockIdx.x * WARPS + warp, split = blockIdx.y, token = blockIdx.z * TOKENS;
    float *shared = reinterpret_cast<float *>(dynamic_shared);
    Code code(shared, at.values);
    __syncthreads();
    if (scale_group >= at.per_row()) return;

    const int staged_len = TOKENS * max_lanes * QUAD_STRIDE;
    float *staged = shared + Code::TABLE + warp * (staged_len + TOKENS * WARP);
    float *columns = staged + staged_len;
    int first = split * rows_per_split, last = min(first + rows_per_split, at.row_cut().blocks());
    float zero = 0.0f;
    if (ids != nullptr) {
        const bool is_row = ids[token] < (uint32_t)at.rows;
        first = is_row ? at.row_cut().holding((int)ids[token]).index : 0;
        last = is_row ? first + 1 : 0;
        zero = is_row ? 0.0f : __int_as_float(NOT_A_NUMBER);
    }
    for (int t = 0; t < TOKENS; ++t) columns[t * WARP + lane] = zero;
    for (int block_row = first; block_row < last; ++block_row) {
        const uint4 entry = at.entry(block_row, scale_group);
        const Block block = at.row_cut().block(block_row);
        const int lanes = lanes_of(block.length);
        const size_t g_stride = ids != nullptr ? longest(at.edge) : at.rows;
        const float *own_g = g + token * g_stride + (ids != nullptr ? 0 : block.start);
        __syncwarp();
        stage_rows<TOKENS>(at, staged, own_g, g_stride, tokens - token, block, scale_group, __uint_as_float(entry.z), lanes, lane);
        __syncwarp();
        if (lanes >= 4) {
            sum_columns<Code, 4, TOKENS>(code, entry, at.words, lanes, lane, staged, columns);
        } else {
            sum_columns<Code, 1, TOKENS>(code, entry, at.words, lanes, lane, staged, columns);
        }
    }
    __syncwarp();
    const int col = scale_group * WARP + lane;
    for (int t = 0; t < TOKENS && token + t < tokens; ++t) {
        if (col < at.cols) partial[((size_t)split * tokens + token + t) * at.cols + col] = columns[t * WARP + lane];
    }
}

// The entry points of a term.
#define STRIPS_PARAMETERS \
    const uint4 *table, const uint32_t *words, const float *values, const __half *row_scales, float unit, int rows, \
        int cols, int edge
#define STRIPS_ARGUMENTS Strips { table, words, values, row_scales, unit, rows, cols, edge }

// Two blocks fit a multiprocessor's registers, but where the sums of four tokens need most of a thread's 255.
#define PRODUCT_KERNEL(NAME, CODE, TOKENS, ROW_SCALES) \
    extern "C" __global__ void __launch_bounds__(THREADS, TOKENS == 1 ? CODE::MIN_BLOCKS : 1) \
        NAME(STRIPS_PARAMETERS, ENDS_PARAMETERS, int first_block_row, int tokens, int strips_per_block) { \
        product<CODE, TOKENS, ROW_SCALES>(STRIPS_ARGUMENTS, first_block_row, INPUTS, RESULTS, tokens, strips_per_block); \
    }
#define TRANSPOSED_KERNEL(NAME, CODE, TOKENS) \
    extern "C" __global__ void __launch_bounds__(THREADS, CODE::MIN_BLOCKS) \
        NAME(STRIPS_PARAMETERS, const float *g, const uint32_t *ids, float *partial, int tokens, int rows_per_split, \
             int max_lanes) { \
        transposed<CODE, TOKENS>(STRIPS_ARGUMENTS, g, ids, partial, tokens, rows_per_split, max_lanes); \
    }
