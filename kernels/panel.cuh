// The coefficients themselves, column by column, for a dense product: panel(column - first_strip * 32, row - first_row).
//
// Grid: (splits of the scale groups, block rows of the panel), as many blocks as a device has at once: each warp takes the split's scale
// groups in turn, whose words are on their way meanwhile. Each thread writes its 32 rows, 16 bytes at a time.
//
//     panel    (columns, stride); stride and block rows are multiples of 32, rows below the matrix become zero
//     add      whether another term has been there
#pragma once
#include "ring.cuh"

// What a panel is and which part of it a warp writes.
template <class T> struct Panel {
    T *to;            // of the panel's first column, the block's first row
    int first_column, end_column; // of the matrix
    int stride, height, add;
    const __half *row_scales; // of the block's rows, or null
    float unit;

    __device__ bool has(int column) const { return column < end_column; }
    __device__ T *column(int column) const { return to + (size_t)(column - first_column) * stride; }
};

__device__ __forceinline__ uint4 select(bool condition, const uint4 &a, const uint4 &b) {
    return uint4 {condition ? a.x : b.x, condition ? a.y : b.y, condition ? a.z : b.z, condition ? a.w : b.w};
}
// What the lane four further has, or four before.
__device__ __forceinline__ uint4 from_lane_4(const uint4 &own) {
    return uint4 {__shfl_xor_sync(ALL_LANES, own.x, 4), __shfl_xor_sync(ALL_LANES, own.y, 4), __shfl_xor_sync(ALL_LANES, own.z, 4),
                  __shfl_xor_sync(ALL_LANES, own.w, 4)};
}

// A piece's values of one column, where nothing but one scale multiplies them and all rows are there. Of two pieces of 16-bit values, one
// below the other, a store takes sixteen bytes of each lane that lie side by side: sectors of 32 bytes are written whole. All lanes come
// here; a column that is not there is not written.
template <class T, class Value> __device__ __forceinline__ void write_whole(T *to, bool is_there, int piece, Value value) {
    constexpr int COUNT = Quad<T>::COUNT;
    auto quad_of = [&](int first) {
        Quad<T> quad;
#pragma unroll
        for (int n = 0; n < COUNT; ++n) quad.values[n] = from_float<T>(value(first + n));
        return quad.bits;
    };
    if constexpr (sizeof(T) == 2) {
        const bool lower = piece % 2 == 1;
        T *upper_to = to - (lower ? PIECE - COUNT : 0), *lower_to = to + (lower ? COUNT : PIECE);
#pragma unroll
        for (int j = 0; j < PIECE; j += 2 * COUNT) {
            const uint4 upper = quad_of(j), below = quad_of(j + COUNT), other = from_lane_4(select(lower, upper, below));
            if (is_there) *reinterpret_cast<uint4 *>(upper_to + j) = select(lower, other, upper);
            if (is_there) *reinterpret_cast<uint4 *>(lower_to + j) = select(lower, below, other);
        }
    } else {
#pragma unroll
        for (int j = 0; j < PIECE; j += COUNT) {
            const uint4 quad = quad_of(j);
            if (is_there) *reinterpret_cast<uint4 *>(to + j) = quad;
        }
    }
}

// And any other: some rows are not there, have scales of their own, or have values of another term.
template <class T, class Value> __device__ __forceinline__ void write_any(const Panel<T> &panel, T *to, int piece, float scale, Value value) {
#pragma unroll
    for (int j = 0; j < PIECE; j += Quad<T>::COUNT) {
        Quad<T> quad;
        quad.bits = panel.add ? *reinterpret_cast<const uint4 *>(to + j) : uint4 {0, 0, 0, 0};
#pragma unroll
        for (int n = 0; n < Quad<T>::COUNT; ++n) {
            const int row = piece * PIECE + j + n;
            float weight = 0.0f;
            if (row < panel.height) weight = value(j + n) * (panel.row_scales != nullptr ? __half2float(panel.row_scales[row]) * panel.unit : scale);
            quad.values[n] = from_float<T>(to_float(quad.values[n]) + weight);
        }
        *reinterpret_cast<uint4 *>(to + j) = quad.bits;
    }
}

// A scale group in any block, by itself.
template <class Code, int V, class T>
__device__ void write_group(Code code, const Strips &at, const Panel<T> &panel, const uint4 &entry, int scale_group, int lanes, int lane) {
    const int piece = piece_of(lane, lanes);
    with_bits<Code, V>(code, entry, at.words, lanes, lane, [&](int column, auto value) {
        column += scale_group * WARP;
        if (panel.has(column) && piece * PIECE < panel.height) {
            write_any(panel, panel.column(column) + piece * PIECE, piece, __uint_as_float(entry.z), value);
        }
    });
}

// A scale group without bits, a column at a time.
template <class T> __device__ __forceinline__ void write_zeros(const Panel<T> &panel, int scale_group, int lane) {
    const int filled = (panel.height + PIECE - 1) / PIECE * PIECE;
    for (int column = scale_group * WARP; !panel.add && column < (scale_group + 1) * WARP && panel.has(column); ++column) {
        for (int row = lane; row < filled; row += WARP) panel.column(column)[row] = from_float<T>(0.0f);
    }
}

// The next steps, as long as they have `BITS` bits, of a block whose pieces are whole.
template <class Code, int BITS, class T>
__device__ __forceinline__ void write_steps(Code &code, Ring<Code, 1, 0, true> &ring, const Strips &at, int block_row, const Panel<T> &panel,
                                            int lanes) {
    const int lane = threadIdx.x % WARP, piece = piece_of(lane, lanes), below = lane_below(lane, lanes);
    code.begin(at.entry(block_row, ring.oldest.column() / WARP).w);
    const auto no_vectors = [](uint32_t, int) {};
#pragma unroll 1
    do {
        const float scale = __uint_as_float(ring.oldest.scale);
        const int first = ring.oldest.column() + slot_of(lane, lanes) * 4;
        uint4 loaded[BITS];
        ring.template take<BITS>(no_vectors, loaded, nullptr);
        uint32_t held[4 * BITS];
#pragma unroll
        for (int n = 0; n < BITS; ++n) unpack(loaded[n], held + 4 * n);
        for_each_column<Code, BITS, 4>(held, below, [&](int v, const uint32_t *own, uint32_t next) {
            const Piece<Code, BITS> value {code, own, next};
            const bool is_there = panel.has(first + v);
            T *to = is_there ? panel.column(first + v) + piece * PIECE : panel.to;
            // With many bits units are many, each times the scale a register.
            write_whole(to, is_there, piece, [&](int j) { return BITS > 5 ? value(j) * scale : value.scaled(j) * (value.unit(j) * scale); });
        });
    } while (ring.oldest.bits() == BITS);
}

template <class Code, class T>
__device__ __forceinline__ void panel(const Strips &at, T *out, int first_strip, int end_strip, int strips_per_block, int first_block_row,
                                      int stride, int add, const Slots &slots) {
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, block_row = first_block_row + blockIdx.y;
    const int first = first_strip + blockIdx.x * strips_per_block, last = min(first + strips_per_block, end_strip);
    const Block block = at.row_cut().block(block_row);
    const int height = block.length, lanes = lanes_of(height);
    const bool is_whole = lanes >= 4 && height % PIECE == 0 && at.row_scales == nullptr && !add;
    T *to = out + block.start - at.row_cut().block(first_block_row).start;
    Panel<T> panel {to, first_strip * WARP, at.cols, stride, height, add, nullptr, at.unit};
    float *shared = reinterpret_cast<float *>(dynamic_shared);
    if (!is_whole) {
        Code code(shared, at.values);
        __syncthreads();
        for (int scale_group = first + warp; scale_group < last; scale_group += WARPS) {
            const uint4 entry = at.entry(block_row, scale_group);
            panel.row_scales = at.row_scales != nullptr ? at.scales_of(block, scale_group) : nullptr;
            if (entry.y == 0) write_zeros(panel, scale_group, lane);
            else if (lanes >= 4) write_group<Code, 4>(code, at, panel, entry, scale_group, lanes, lane);
            else write_group<Code, 1>(code, at, panel, entry, scale_group, lanes, lane);
        }
        return;
    }
    Ring<Code, 1, 0, true> ring(at, block_row, lanes, first, last, slots);
    ring.start([](uint32_t, int) {});
    Code code(shared, at.values);
    __syncthreads();
    for (int scale_group = first + warp; scale_group < last; scale_group += WARPS) {
        if (at.entry(block_row, scale_group).y == 0) write_zeros(panel, scale_group, lane);
    }
    while (ring.oldest.bits() != 0) {
        switch (ring.oldest.bits()) {
#define CASE(BITS) \
    case BITS: \
        if constexpr (HAS_BITS<Code, BITS>) write_steps<Code, BITS>(code, ring, at, block_row, panel, lanes); \
        break;
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8)
#undef CASE
        }
    }
}

#define PANEL_KERNEL(NAME, CODE, T) \
    extern "C" __global__ void __launch_bounds__(THREADS, CODE::PANEL_BLOCKS) \
        NAME(STRIPS_PARAMETERS, T *out, int first_strip, int end_strip, int strips_per_block, int first_block_row, int stride, int add, \
             SLOTS_PARAMETERS) { \
        panel<CODE, T>(STRIPS_ARGUMENTS, out, first_strip, end_strip, strips_per_block, first_block_row, stride, add, SLOTS); \
    }
