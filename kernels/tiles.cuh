// Products on tensor cores, for terms whose values are integers of at most eight bits: `mma` with 16 rows, 16 columns and 8
// vectors at once.
//
// For blocks of 128 rows and 256, and a multiple of 4 columns. A lane's column group (lane mod 4) and its piece are what `mma` has
// of its left operand in a thread: of four columns two rows of a piece at a time. With 4 pieces a column, lanes from 16 on have
// other columns than the first sixteen; each half then has four of the eight vectors, and what its columns make with the other four is
// nobody's.
//
// Values are exact in half precision. A vector's F32 is the sum of two such numbers, each rounded to the nearest: of its 24 bits the last is
// lost in one of four, and nothing else, down to 2^-40 of the largest. They are two of the eight vectors where there are few (APART), else
// two products with one left operand. A vector is multiplied by a power of two first, which brings its largest number times the largest
// scale to between 2^13 and 2^15; sums by its inverse at the end. That is exact, but for vectors that are nothing but numbers below 2^-110.
//
// A term says of a field in half precision what it is to be multiplied by and what to be added to it, `pair_unit` and `pair_offset`: after the
// product, once a row and once a vector.
#pragma once
#include "ring.cuh"

// One token or two, of 16 bits and in F32.
struct Few {
    static constexpr bool APART = true; // a number's parts are vectors of their own, not products
    static constexpr int EXACT_FROM = 9; // from so many bits a weight on nothing of a sum is left to the tensor core's judgement
    static constexpr int PARTS = 2;
    static constexpr int SETS = 1;   // of eight vectors
    static constexpr int SHARES = 1; // warps that share a scale group, each with so many rows less of every piece
};
struct FewExact {
    static constexpr bool APART = true;
    static constexpr int EXACT_FROM = 1, PARTS = 2, SETS = 1, SHARES = 1;
};
// Up to eight of 16 bits, each number a half alone, as panels have them: what that loses, 2^-12 of it at most, is as much as F16 loses of a
// result, and an eighth of what BF16 does. (With eight bits the compiler spills fewer registers so.)
struct Many {
    static constexpr bool APART = false;
    static constexpr int EXACT_FROM = 8, PARTS = 1, SETS = 1, SHARES = 1;
};
// And in F32.
struct Exact {
    static constexpr bool APART = false;
    static constexpr int EXACT_FROM = 1, PARTS = 2, SETS = 1, SHARES = 1;
};
// Up to sixteen, of 16 bits: every weight is decoded once for all of them.
struct Wide {
    static constexpr bool APART = false;
    static constexpr int EXACT_FROM = 9, PARTS = 1, SETS = 2, SHARES = 1;
};
// Up to 32. Registers have room for the sums of half of the rows.
struct Broad {
    static constexpr bool APART = false;
    static constexpr int EXACT_FROM = 9, PARTS = 1, SETS = 4, SHARES = 2;
};
// No form has more.
constexpr int MOST_VECTORS = 32;
// Rows of a warp in each piece, two by two.
template <class Form> constexpr int PAIRS_OF_ROWS = 16 / Form::SHARES;
template <class Form, int BITS> constexpr bool IS_EXACT = BITS >= Form::EXACT_FROM;
// Vectors that are not staged travel with the words, and a step's scale with it; but one set's, for which registers are too few, is looked up
// a step ahead.
template <class Form> constexpr bool LOOKS_UP = !Form::APART && Form::SETS == 1;
template <class Code, class Form> using RingOf = Ring<Code, Form::SHARES, Form::APART ? 0 : Form::SETS, !Form::APART && !LOOKS_UP<Form>>;

// Where what is known of inputs begins in shared memory: behind the code's table, and the buffers where inputs are transformed.
template <class Code, class Form> constexpr int STAGED = Code::TABLE + (Form::APART ? BUFFERS : 0);

// How the eight vectors of an `mma` are shared out: among the 8 lanes of a column, or twice among its 4.
template <class Form> struct Vectors {
    int each; // 8, or 4 for those of a half of the lanes with columns of their own

    __device__ explicit Vectors(int lanes) : each(lanes) {}
    __device__ bool are_halved() const { return each == 4; }
    // Tokens of a set, and at once.
    __device__ int of_set() const { return Form::APART ? (are_halved() ? 1 : 2) : each; }
    __device__ int tokens() const { return Form::SETS * of_set(); }
};

// The bits of 1 as F32, and so many bits of an F32 below its exponent.
constexpr uint32_t ONE_BITS = 0x3f800000u, BELOW_EXPONENT = 23;

// A power of two: times that, what is not farther from zero than `largest`, times a scale as small as `largest_scale`, is less than 2^15.
// Neither it nor its inverse nor its product with the scale is more than F32 holds.
__device__ __forceinline__ float power_for(uint32_t largest, float largest_scale) {
    constexpr int TINY = 17, ALL = 394;
    const int exponents = max((int)(largest >> BELOW_EXPONENT), TINY) + (int)(magnitude(largest_scale) >> BELOW_EXPONENT);
    return __uint_as_float((uint32_t)min(max(ALL - exponents, 1), 253) << BELOW_EXPONENT);
}
__device__ __forceinline__ float inverse_power(float power) { return __uint_as_float(2 * ONE_BITS - __float_as_uint(power)); }

// Four columns of one vector: in F32, or both parts in half precision.
template <bool APART> struct Columns { typedef float4 Type; };
template <> struct Columns<true> { typedef uint2 Type; };

// What a lane has of the right operand: four columns of one vector of each set.
template <class Form> struct Share {
    typedef typename Columns<Form::APART>::Type Columns;

    const float *x; // its token's of the first set, from its first column in a step on; in shared memory with APART, its part
    int next_set;   // from there to the next set's
    int end;        // columns that are there from its own on
    int sets;       // so many of its vectors are not zero

    // Where they are staged.
    __device__ __forceinline__ void load(int column, Columns (&to)[Form::SETS]) const {
        static_assert(!Form::APART || Form::SETS == 1, "one set is staged");
        if constexpr (Form::APART) to[0] = sets > 0 && column < end ? *reinterpret_cast<const uint2 *>(x + column) : uint2 {0, 0};
    }
    // Sends for those that are not: zeros beyond the last column. What is in a place of no vector is nobody's.
    __device__ __forceinline__ void operator()(uint32_t to, int column) const {
        if constexpr (!Form::APART) {
            const bool is_there = column < end;
            const float *from = is_there ? x + column : x;
#pragma unroll
            for (int s = 0; s < Form::SETS; ++s) {
                if (s < sets) copy_ahead_if(is_there, to + s * LOAD, from + s * (ptrdiff_t)next_set);
            }
        }
    }
};

// Two numbers in half precision; what is left of them.
__device__ __forceinline__ uint32_t take_halves(float &low, float &high) {
    const uint32_t halves = halves_of(low, high);
    low -= low_half(halves), high -= high_half(halves);
    return halves;
}

// One step: of four columns the piece's 32 rows. `sums[s][m]` are rows `2m` and `2m + 1` of two vectors, `offsets[s]` what is to be added to
// all rows of these. Scales are those of each set.
template <class Code, int BITS, class Form, int HELD>
__device__ __forceinline__ void multiply(const Code &code, const uint4 (&held)[HELD], int below,
                                         const typename Share<Form>::Columns (&x)[Form::SETS], const float (&scales)[Form::SETS],
                                         float (&sums)[Form::SETS][PAIRS_OF_ROWS<Form>][4], float (&offsets)[Form::SETS][4]) {
    constexpr int PRODUCTS = Form::APART ? 1 : Form::PARTS;
    constexpr int WORDS = RingOf<Code, Form>::own_words(BITS);
    uint32_t words[4][WORDS], next[4] = {};
#pragma unroll
    for (int n = 0; n < WORDS; ++n) {
        words[0][n] = held[n].x, words[1][n] = held[n].y, words[2][n] = held[n].z, words[3][n] = held[n].w;
    }
    if constexpr (Code::READS_ON && Form::SHARES > 1) {
        next[0] = held[WORDS].x, next[1] = held[WORDS].y, next[2] = held[WORDS].z, next[3] = held[WORDS].w;
    } else if constexpr (Code::READS_ON) {
#pragma unroll
        for (int v = 0; v < 4; ++v) next[v] = __shfl_sync(ALL_LANES, words[v][0], below);
    }
    if constexpr (Form::SHARES > 1 && BITS % 2 == 1) {
        // The second share begins in the middle of a word.
        const uint32_t before = threadIdx.x / WARP % Form::SHARES * 16;
#pragma unroll
        for (int v = 0; v < 4; ++v) {
#pragma unroll
            for (int n = 0; n < WORDS; ++n) words[v][n] = __funnelshift_r(words[v][n], n + 1 < WORDS ? words[v][n + 1] : next[v], before);
            next[v] >>= before;
        }
    }
    uint32_t right[Form::SETS][PRODUCTS][2];
#pragma unroll
    for (int s = 0; s < Form::SETS; ++s) {
        if constexpr (Form::APART) {
            right[s][0][0] = x[s].x, right[s][0][1] = x[s].y;
        } else {
            float factors[4] = {x[s].x * scales[s], x[s].y * scales[s], x[s].z * scales[s], x[s].w * scales[s]};
#pragma unroll
            for (int n = 0; n < PRODUCTS; ++n) {
                right[s][n][0] = take_halves(factors[0], factors[1]), right[s][n][1] = take_halves(factors[2], factors[3]);
            }
        }
    }
    // Two rows of products in turn where registers have room for both: one's sums are ready when they are added to again.
    constexpr int TURNS = Form::SETS > 1 ? 2 : 1;
#pragma unroll
    for (int n = 0; n < PAIRS_OF_ROWS<Form>; n += TURNS) {
        uint32_t left[TURNS][4];
#pragma unroll
        for (int t = 0; t < TURNS; ++t) {
#pragma unroll
            for (int e = 0; e < 4; ++e) { // rows in turn, then the next two columns
                const int row = 2 * Code::template order<BITS, PAIRS_OF_ROWS<Form>>(n + t) + e % 2, col = e / 2 * 2;
                left[t][e] = code.template pair<BITS, IS_EXACT<Form, BITS>, WORDS>(words[col], next[col], words[col + 1], next[col + 1], row);
            }
        }
#pragma unroll
        for (int p = 0; p < PRODUCTS; ++p) {
#pragma unroll
            for (int t = 0; t < TURNS; ++t) {
                const int m = Code::template order<BITS, PAIRS_OF_ROWS<Form>>(n + t);
#pragma unroll
                for (int s = 0; s < Form::SETS; ++s) mma_halves(sums[s][m], left[t], right[s][p][0], right[s][p][1]);
            }
        }
    }
    if constexpr (Code::HAS_OFFSET) {
        constexpr uint32_t OFFSET = Code::template pair_offset<BITS, IS_EXACT<Form, BITS>>();
        const uint32_t left[4] = {OFFSET, OFFSET, OFFSET, OFFSET};
#pragma unroll
        for (int p = 0; p < PRODUCTS; ++p) {
#pragma unroll
            for (int s = 0; s < Form::SETS; ++s) mma_halves(offsets[s], left, right[s][p][0], right[s][p][1]);
        }
    }
}

// The next steps, as long as they have `BITS` bits. Vectors are multiplied by `powers`; `has_sums` where sums are not zero.
template <class Code, int BITS, class Form>
__device__ __forceinline__ void multiply_steps(Code &code, RingOf<Code, Form> &ring, const Strips &at, int block_row, int lanes,
                                               const Share<Form> &share, const float (&powers)[Form::SETS], bool has_sums,
                                               float (&sums)[Form::SETS][PAIRS_OF_ROWS<Form>][4]) {
    constexpr int SUMS = PAIRS_OF_ROWS<Form> * 4;
    const int below = lane_below(threadIdx.x % WARP, lanes);
    if constexpr (Code::READS_ON) code.begin(at.entry(block_row, ring.oldest.column() / WARP).w);
    float offsets[Form::SETS][4] = {};
    // Sums in the units of so many bits.
    if constexpr (Code::HAS_OFFSET) {
        if (has_sums) {
#pragma unroll
            for (int n = 0; n < Form::SETS * SUMS; ++n) {
                const int m = n % SUMS / 4;
                sums[n / SUMS][m][n % 4] *= 1.0f / Code::template pair_unit<BITS, IS_EXACT<Form, BITS>>(2 * m + n % 4 / 2);
            }
        }
    }
    uint32_t looked_up = 0;
    auto look_up = [&] { looked_up = at.entry(block_row, ring.oldest.column() / WARP).z; };
    if (LOOKS_UP<Form>) look_up();
#pragma unroll 1
    do {
        float scales[Form::SETS];
#pragma unroll
        for (int s = 0; s < Form::SETS; ++s) scales[s] = __uint_as_float(LOOKS_UP<Form> ? looked_up : ring.oldest.scale) * powers[s];
        typename Share<Form>::Columns x[Form::SETS];
        uint4 held[RingOf<Code, Form>::own_words(BITS) + RingOf<Code, Form>::AFTER];
        if constexpr (Form::APART) {
            share.load(ring.oldest.column(), x);
            ring.template take<BITS>(share, held, nullptr);
        } else {
            ring.template take<BITS>(share, held, x);
            if (LOOKS_UP<Form> && ring.oldest.bits() == BITS) look_up();
        }
        multiply<Code, BITS, Form>(code, held, below, x, scales, sums, offsets);
    } while (ring.oldest.bits() == BITS);
    if constexpr (Code::HAS_OFFSET) {
#pragma unroll
        for (int n = 0; n < Form::SETS * SUMS; ++n) {
            const int m = n % SUMS / 4;
            float &sum = sums[n / SUMS][m][n % 4];
            sum = sum * Code::template pair_unit<BITS, IS_EXACT<Form, BITS>>(2 * m + n % 4 / 2) + offsets[n / SUMS][n % 2];
        }
    }
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

// Which vectors are a lane's.
template <class Form> struct Own {
    int half, part, token; // of the lanes with columns of their own; of the numbers' parts; of each set

    __device__ __forceinline__ explicit Own(const Vectors<Form> &vectors) {
        // With APART all parts of a vector follow each other, of each the tokens.
        const int vector = threadIdx.x % WARP / 4;
        half = vector >= vectors.each ? 1 : 0;
        const int rest = vector - half * vectors.each;
        part = !Form::APART ? 0 : vectors.are_halved() ? rest : rest / 2;
        token = rest - part * vectors.of_set();
    }
    // Of all sets, so many of its vectors are not zero.
    __device__ __forceinline__ int sets(const Tile<Form> &tile) const {
        int sets = 0;
#pragma unroll
        for (int s = 0; s < Form::SETS; ++s) sets += part < Form::PARTS && token + s * tile.vectors.of_set() < tile.here ? 1 : 0;
        return sets;
    }
};

// Inputs that were transformed by another launch: behind all of them it has left what is farthest from zero of each vector in each item. `most`,
// in shared memory, becomes that of each of the tile's vectors; each warp finds some, and a barrier is to follow.
template <class Form>
__device__ __forceinline__ void find_most(const Strips &at, const Tile<Form> &tile, const Inputs &in, int tokens, uint32_t *most) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, items = in.axis.item_holding(at.cols - 1) + 1;
    const float *behind = static_cast<const float *>(in.x) + (size_t)tokens * at.cols;
    const uint32_t *from = reinterpret_cast<const uint32_t *>(behind) + (size_t)tile.token * items;
    // All loads of a warp's vectors at once.
    constexpr int EACH_WARP = MOST_VECTORS / WARPS;
    uint32_t found[EACH_WARP] = {};
    for (int n = lane; n < items; n += WARP) {
#pragma unroll
        for (int v = 0; v < EACH_WARP; ++v) {
            const int vector = v * WARPS + warp;
            if (vector < tile.here) found[v] = max(found[v], __ldg(from + (size_t)vector * items + n));
        }
    }
#pragma unroll
    for (int v = 0; v < EACH_WARP; ++v) {
        const uint32_t of_warp = __reduce_max_sync(ALL_LANES, found[v]);
        if (lane == 0) most[v * WARPS + warp] = of_warp;
    }
}
template <class Form>
__device__ __forceinline__ void find_powers(const Tile<Form> &tile, const uint32_t *most, float largest_scale, float (&powers)[Form::SETS]) {
    const Own<Form> own(tile.vectors);
#pragma unroll
    for (int s = 0; s < Form::SETS; ++s) powers[s] = power_for(most[own.token + s * tile.vectors.of_set()], largest_scale);
}
// A lane's share of them.
template <class Form> __device__ __forceinline__ Share<Form> share_of(const Strips &at, const Tile<Form> &tile, const Inputs &in) {
    const Own<Form> own(tile.vectors);
    const int col = (threadIdx.x % 4 + own.half * 4) * 4;
    const float *x = static_cast<const float *>(in.x) + (size_t)(tile.token + own.token) * at.cols + col;
    return {x, tile.vectors.of_set() * at.cols, at.cols - col, own.sets(tile)};
}

// Inputs that are staged in shared memory, transformed there: each four columns of a token become their parts in half precision.
template <class Code, class Form> struct Staged {
    float *x;          // (tokens at once, columns)
    uint32_t *largest; // (tokens at once, WARPS): what is farthest from zero
    int columns;

    __device__ __forceinline__ Staged(int strips_per_block, int here)
        : x(reinterpret_cast<float *>(dynamic_shared) + STAGED<Code, Form>), columns(strips_per_block * WARP) {
        largest = reinterpret_cast<uint32_t *>(x + here * columns);
    }
    // A barrier after each.
    __device__ __forceinline__ void stage(const Tile<Form> &tile, const Inputs &in, bool are_there) const {
        in.template stage<true>(x, columns, buffers(), tile.first * WARP, tile.token, tile.here, largest, are_there);
    }
    __device__ __forceinline__ static float *buffers() { return reinterpret_cast<float *>(dynamic_shared) + Code::TABLE; }
    __device__ __forceinline__ void halve(const Tile<Form> &tile, const uint4 *table, float largest_scale) const {
        for (int t = 0; t < tile.here; ++t) {
            const float power = power_of(t, largest_scale);
            for (int n = 4 * threadIdx.x; n < columns; n += 4 * THREADS) {
                const int scale_group = tile.first + n / WARP;
                const float scale = scale_group < tile.last ? __uint_as_float(__ldg(&table[scale_group].z)) * power : 0.0f;
                float4 &four = *reinterpret_cast<float4 *>(x + t * columns + n);
                float a = four.x * scale, b = four.y * scale, c = four.z * scale, d = four.w * scale;
                uint4 parts;
                parts.x = take_halves(a, b), parts.y = take_halves(c, d);
                parts.z = halves_of(a, b), parts.w = halves_of(c, d);
                *reinterpret_cast<uint4 *>(&four) = parts;
            }
        }
    }
    __device__ __forceinline__ float power_of(int t, float largest_scale) const {
        uint32_t most = 0;
#pragma unroll
        for (int w = 0; w < WARPS; ++w) most = max(most, largest[t * WARPS + w]);
        return power_for(most, largest_scale);
    }
    __device__ __forceinline__ Share<Form> share(const Strips &at, const Tile<Form> &tile, float largest_scale, float (&powers)[Form::SETS]) const {
        const Own<Form> own(tile.vectors);
        const int col = (threadIdx.x % 4 + own.half * 4) * 4, sets = own.sets(tile);
        powers[0] = power_of(min(own.token, tile.here - 1), largest_scale);
        // As far as the block multiplies.
        const int end = min(at.cols, tile.last * WARP) - col;
        return {x + own.token * columns - tile.first * WARP + col + own.part * 2, 0, end, sets};
    }
};

// The sum over four lanes side by side.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Writes the block's part of the results. Each warp adds up what all warps have of four rows of every piece: `rows[v]` are a lane's of
// two vectors, those of its place among four lanes, in the piece of these.
template <class Form>
__device__ __forceinline__ void add_warps(const Tile<Form> &tile, const Results &to, int tokens, const float (&powers)[Form::SETS],
                                          const float (&sums)[Form::SETS][PAIRS_OF_ROWS<Form>][4]) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, quarter = lane % 4;
    const bool halved = tile.vectors.are_halved();
    float4 *shared = reinterpret_cast<float4 *>(dynamic_shared);
    // Where parts are vectors, half of all vectors or more are nothing.
    const bool has_sums = !Form::APART || (halved ? quarter == lane / 16 * 2 : quarter < 2);
#pragma unroll
    for (int s = 0; s < Form::SETS; ++s) {
        __syncthreads();
#pragma unroll
        for (int m = 0; m < PAIRS_OF_ROWS<Form>; ++m) {
            const int own = warp / Form::SHARES * 16 + warp % Form::SHARES * PAIRS_OF_ROWS<Form> + m;
            if (has_sums) shared[own * WARP + lane] = float4 {sums[s][m][0], sums[s][m][1], sums[s][m][2], sums[s][m][3]};
        }
        __syncthreads();
        float rows[2][4] = {};
        if (has_sums) {
#pragma unroll
            for (int w = 0; w < WARPS / Form::SHARES; ++w) {
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const float4 other = shared[(w * 16 + 2 * warp + n) * WARP + lane];
                    rows[0][2 * n] += other.x, rows[1][2 * n] += other.y, rows[0][2 * n + 1] += other.z, rows[1][2 * n + 1] += other.w;
                }
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
            const float unit = inverse_power(__shfl_sync(ALL_LANES, powers[s], 4 * own)); // that lane has a part of the same token
#pragma unroll
            for (int n = 0; n < 4; ++n) rows[v][n] *= unit;
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

// y(token, row) += S(row, column) x(token, column) for the scale groups of one split of one block row, as `product`. Nothing but the matrix is
// read before `wait_for_launch_before`.
//
//     in        inputs; with APART they are transformed here
//     shared    the code's table; with APART buffers of the transforms, x (tokens at once, 32 scale groups) and what is farthest from
//               zero (tokens at once, WARPS), without that of each vector (MOST_VECTORS); then the warps' rings, at `slots`.
//               Over all of it then the warps' sums, and then buffers
template <class Code, class Form>
__device__ __forceinline__ void tiles(const Strips &at, int first_block_row, const Inputs &in, const Results &to, int tokens, int strips_per_block,
                                      const Slots &slots, float largest_scale) {
    let_next_launch_begin();
    const int block_row = first_block_row + blockIdx.x;
    float sums[Form::SETS][PAIRS_OF_ROWS<Form>][4] = {}, powers[Form::SETS];
    {
        const Tile<Form> tile(at, block_row, tokens, strips_per_block);
        if (tile.here <= 0) return; // blocks of 256 rows take more at once than those of 128
        RingOf<Code, Form> ring(at, block_row, tile.lanes, tile.first, tile.last, slots);
        // Ahead of the weights, which are many: behind them it would come late.
        if constexpr (Form::APART) in.send_for_inputs(tile.first * WARP, strips_per_block * WARP, tile.token, tile.here);
        if (to.y != nullptr) to.axis.send_for_tables(tile.block.start, tile.block.end());
        Share<Form> share = {};
        if constexpr (Form::APART) ring.start(share);
        else ring.send_for_words(); // its vectors may not be there yet
        const uint4 *table = at.table + (size_t)block_row * at.per_row();
        const Staged<Code, Form> staged(strips_per_block, tile.here);
        uint32_t *most = reinterpret_cast<uint32_t *>(dynamic_shared) + STAGED<Code, Form>;
        Code code(reinterpret_cast<float *>(dynamic_shared), at.values);
        if constexpr (Form::APART) {
            // Twice, and first with zeros, while the launch before this one still runs: instructions and tables are in the caches then. To wait
            // for them took most of the time of a warp that runs through its transform once (docs/speed.md).
#pragma unroll 1
            for (uint32_t time = 0, times = in_register(2); time < times; ++time) {
                const bool are_there = time > 0;
                if (are_there) wait_for_launch_before();
                else if (threadIdx.x / WARP == WARPS - 1) to.rehearse(tile.block, staged.buffers() + (WARPS - 1) * ITEM_FLOATS);
                staged.stage(tile, in, are_there);
                __syncthreads();
                staged.halve(tile, table, largest_scale);
                share = staged.share(at, tile, largest_scale, powers);
                __syncthreads();
            }
        } else {
            wait_for_launch_before();
            share = share_of(at, tile, in);
            ring.start(share);
            find_most(at, tile, in, tokens, most);
            __syncthreads();
            find_powers(tile, most, largest_scale, powers);
        }
        bool has_sums = false;
        while (ring.oldest.bits() != 0) {
            switch (ring.oldest.bits()) {
#define CASE(BITS) \
    case BITS: \
        if constexpr (HAS_BITS<Code, BITS>) { \
            multiply_steps<Code, BITS, Form>(code, ring, at, block_row, tile.lanes, share, powers, has_sums, sums); \
            has_sums = true; \
        } \
        break;
                CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
            }
        }
    }
    // Found again, and not kept in registers that the loop has other use for.
    const Tile<Form> tile(at, first_block_row + (int)in_register(blockIdx.x), tokens, strips_per_block);
    add_warps(tile, to, tokens, powers, sums);
    to.finish(tile.block, tile.token, tile.here, tokens);
}

#define TILES_KERNEL(NAME, CODE, FORM, BLOCKS) \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) \
        NAME(STRIPS_PARAMETERS, ENDS_PARAMETERS, int first_block_row, int tokens, int strips_per_block, SLOTS_PARAMETERS, \
             float largest_scale) { \
        tiles<CODE, FORM>(STRIPS_ARGUMENTS, first_block_row, INPUTS, RESULTS, tokens, strips_per_block, SLOTS, largest_scale); \
    }
#define TILES_KERNELS(NAME, CODE) \
    TILES_KERNEL(NAME##_few, CODE, Few, CODE::TILE_BLOCKS) \
    TILES_KERNEL(NAME##_many, CODE, Many, CODE::TILE_BLOCKS) \
    TILES_KERNEL(NAME##_exact, CODE, Exact, CODE::TILE_BLOCKS) \
    TILES_KERNEL(NAME##_wide, CODE, Wide, 1) \
    TILES_KERNEL(NAME##_broad, CODE, Broad, 1)
