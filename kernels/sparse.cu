// The sparse term: the kept coefficients of one output after another, "lists"; for the transposed product the lists
// are those of the transposed matrix.
//
// Words hold `[position: 16][value: 16]` in the order of their positions along the input, each list filled up to
// whole 16-byte loads with entries of value zero. Where the input is longer than 65,536 a matrix has a set of
// lists for each part of so many, one split of the sum each. Masks hold a bit for each input, 32 to a word, and the
// values of the set bits in order. A warp has one output.
#include "common.cuh"

enum Format { WORD32 = 0, WORD24 = 1, WORD24_MU = 2 };
// Inputs of one set of lists.
constexpr int PART = 1 << 16;
constexpr int PER_LOAD = 4;

// Lists of words of `outs` outputs over `ins` inputs.
struct Lists {
    const uint32_t *starts; // (parts, outs) + 1, in words
    const uint4 *words;
    const float *scales;    // one a block; null in WORD32
    const float *levels;    // of the mu-law's codes
    float unit;
    int format, outs, ins, edge;
    int out_stride, in_stride; // from a block to the next along outputs and inputs, in scales

    __device__ float value(uint32_t word, int out, int in) const {
        if (format == WORD32) return __half2float(__ushort_as_half((unsigned short)(word & 0xffff))) * unit;
        const int out_block = Cut { outs, edge }.holding(out).index, in_block = Cut { ins, edge }.holding(in).index;
        const float scale = __ldg(scales + (size_t)out_block * out_stride + (size_t)in_block * in_stride);
        if (format == WORD24_MU) return __ldg(levels + (word & 0xff)) * scale;
        const float fraction = (float)(word & 511) / 511.0f;
        return (word >> 9 & 1 ? -fraction : fraction) * scale;
    }
};

// Grid: (groups of WARPS outputs, parts, groups of TOKENS tokens); `x` (tokens, ins), `partial` (parts, tokens, outs).
template <int TOKENS> __device__ void words_product(const Lists &at, const float *x, float *partial, int tokens) {
    const int lane = threadIdx.x % WARP, out = blockIdx.x * WARPS + threadIdx.x / WARP;
    const int part = blockIdx.y, token = blockIdx.z * TOKENS;
    if (out >= at.outs) return;
    const uint32_t *starts = at.starts + (size_t)part * at.outs + out;
    const uint32_t end = starts[1] / PER_LOAD;
    float sums[TOKENS] = {};
    for (uint32_t n = starts[0] / PER_LOAD + lane; n < end; n += WARP) {
        const uint4 load = __ldg(at.words + n);
        const uint32_t words[PER_LOAD] = {load.x, load.y, load.z, load.w};
#pragma unroll
        for (int k = 0; k < PER_LOAD; ++k) {
            const int in = part * PART + (int)(words[k] >> 16);
            const float weight = at.value(words[k], out, in);
#pragma unroll
            for (int t = 0; t < TOKENS; ++t) {
                if (token + t < tokens) sums[t] += weight * __ldg(x + (size_t)(token + t) * at.ins + in);
            }
        }
    }
    for (int t = 0; t < TOKENS && token + t < tokens; ++t) {
        const float sum = warp_sum(sums[t]);
        if (lane == 0) partial[((size_t)part * tokens + token + t) * at.outs + out] = sum;
    }
}

// Masks of `outs` outputs over `ins` inputs.
struct Masks {
    const uint32_t *starts; // outs, in values
    const uint32_t *masks;  // (outs, ins / 32 rounded up)
    const __half *values;
    float unit;
    int outs, ins;

    __device__ int width() const { return (ins + WARP - 1) / WARP; }
};

// Grid: (groups of WARPS outputs, 1, groups of TOKENS tokens); `x` (tokens, ins), `partial` (tokens, outs).
template <int TOKENS> __device__ void masks_product(const Masks &at, const float *x, float *partial, int tokens) {
    const int lane = threadIdx.x % WARP, out = blockIdx.x * WARPS + threadIdx.x / WARP, token = blockIdx.z * TOKENS;
    if (out >= at.outs) return;
    const uint32_t *masks = at.masks + (size_t)out * at.width();
    const uint32_t below = (1u << lane) - 1;
    uint32_t next = at.starts[out];
    float sums[TOKENS] = {};
    for (int first = 0; first < at.width(); first += WARP) {
        // 32 masks in one load; then one after another, a lane for each of its bits.
        const uint32_t held = first + lane < at.width() ? masks[first + lane] : 0;
        const int count = min(WARP, at.width() - first);
        for (int n = 0; n < count; ++n) {
            const uint32_t mask = __shfl_sync(ALL_LANES, held, n);
            if (mask >> lane & 1) {
                const float weight = __half2float(at.values[next + __popc(mask & below)]);
                const float *from = x + (first + n) * WARP + lane;
#pragma unroll
                for (int t = 0; t < TOKENS; ++t) {
                    if (token + t < tokens) sums[t] += weight * from[(size_t)(token + t) * at.ins];
                }
            }
            next += __popc(mask);
        }
    }
    for (int t = 0; t < TOKENS && token + t < tokens; ++t) {
        const float sum = warp_sum(sums[t]) * at.unit;
        if (lane == 0) partial[(size_t)(token + t) * at.outs + out] = sum;
    }
}

// Row `ids[token]` of the matrix from the lists of its columns: each thread has a column and takes what lies in the row's
// block row. `g` is (tokens, longest block), the row's unit vector in the coefficient domain; an id that is no row gives NaN.
// Grid: (tokens, columns / THREADS).
__device__ void words_gather(const Lists &at, const uint32_t *ids, const float *g, float *partial) {
    const int col = blockIdx.y * THREADS + threadIdx.x, token = blockIdx.x;
    if (col >= at.outs) return;
    float sum = __int_as_float(NOT_A_NUMBER);
    if (ids[token] < (uint32_t)at.ins) {
        sum = 0.0f;
        const Block block = Cut { at.ins, at.edge }.holding((int)ids[token]);
        const int first = block.start, part = first / PART;
        const uint32_t *words = reinterpret_cast<const uint32_t *>(at.words);
        const uint32_t *starts = at.starts + (size_t)part * at.outs + col;
        uint32_t low = starts[0], high = starts[1];
        const uint32_t end = high, begin = first - part * PART;
        while (low < high) {
            const uint32_t middle = (low + high) / 2;
            if (words[middle] >> 16 < begin) low = middle + 1;
            else high = middle;
        }
        for (; low < end; ++low) {
            const uint32_t row = (words[low] >> 16) - begin;
            if (row >= (uint32_t)block.length) break;
            sum += at.value(words[low], col, first + (int)row) * g[(size_t)token * longest(at.edge) + row];
        }
    }
    partial[(size_t)token * at.outs + col] = sum;
}

__device__ void masks_gather(const Masks &at, const uint32_t *ids, const float *g, int edge, float *partial) {
    const int col = blockIdx.y * THREADS + threadIdx.x, token = blockIdx.x;
    if (col >= at.outs) return;
    float sum = __int_as_float(NOT_A_NUMBER);
    if (ids[token] < (uint32_t)at.ins) {
        sum = 0.0f;
        const uint32_t *masks = at.masks + (size_t)col * at.width();
        const Block block = Cut { at.ins, edge }.holding((int)ids[token]);
        const int first = block.start / WARP, end = (block.end() + WARP - 1) / WARP;
        uint32_t next = at.starts[col];
        for (int n = 0; n < first; ++n) next += __popc(masks[n]);
        for (int n = first; n < end; ++n) {
            for (uint32_t mask = masks[n]; mask != 0; mask &= mask - 1) {
                const int row = (n - first) * WARP + __ffs((int)mask) - 1;
                sum += __half2float(at.values[next++]) * g[(size_t)token * longest(edge) + row];
            }
        }
    }
    partial[(size_t)token * at.outs + col] = sum * at.unit;
}

// panel(in - first_in, out - first_out) += the coefficient, for the lists of rows; the panel was zeroed or written by
// another term. Grid: (groups of WARPS outputs, parts).
template <class T> __device__ void add_at(T *panel, int first_in, int end_in, int stride, int out, int in, float weight) {
    if (in < first_in || in >= end_in) return;
    T *to = panel + (size_t)(in - first_in) * stride + out;
    *to = from_float<T>(to_float(*to) + weight);
}

template <class T>
__device__ void words_panel(const Lists &at, T *panel, int first_out, int end_out, int first_in, int end_in, int stride) {
    const int lane = threadIdx.x % WARP, out = first_out + blockIdx.x * WARPS + threadIdx.x / WARP, part = blockIdx.y;
    if (out >= end_out) return;
    const uint32_t *starts = at.starts + (size_t)part * at.outs + out;
    const uint32_t *words = reinterpret_cast<const uint32_t *>(at.words);
    for (uint32_t n = starts[0] + lane; n < starts[1]; n += WARP) {
        // Filling entries repeat the position before them: two threads must not add to one place.
        if (n > starts[0] && words[n] >> 16 == words[n - 1] >> 16) continue;
        const int in = part * PART + (int)(words[n] >> 16);
        add_at(panel, first_in, end_in, stride, out - first_out, in, at.value(words[n], out, in));
    }
}

template <class T>
__device__ void masks_panel(const Masks &at, T *panel, int first_out, int end_out, int first_in, int end_in, int stride) {
    const int lane = threadIdx.x % WARP, out = first_out + blockIdx.x * WARPS + threadIdx.x / WARP;
    if (out >= end_out) return;
    const uint32_t *masks = at.masks + (size_t)out * at.width();
    uint32_t next = at.starts[out];
    for (int n = 0; n < at.width(); ++n) {
        const uint32_t mask = masks[n];
        if (mask >> lane & 1) {
            const float weight = __half2float(at.values[next + __popc(mask & ((1u << lane) - 1))]) * at.unit;
            add_at(panel, first_in, end_in, stride, out - first_out, n * WARP + lane, weight);
        }
        next += __popc(mask);
    }
}

#define LISTS_PARAMETERS \
    const uint32_t *starts, const uint4 *words, const float *scales, const float *levels, float unit, int format, int outs, \
        int ins, int edge, int out_stride, int in_stride
#define LISTS Lists { starts, words, scales, levels, unit, format, outs, ins, edge, out_stride, in_stride }
#define MASKS_PARAMETERS \
    const uint32_t *starts, const uint32_t *masks, const __half *values, float unit, int outs, int ins
#define MASKS Masks { starts, masks, values, unit, outs, ins }
#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)

KERNEL sparse_words_product_1(LISTS_PARAMETERS, const float *x, float *partial, int tokens) {
    words_product<1>(LISTS, x, partial, tokens);
}
KERNEL sparse_words_product_4(LISTS_PARAMETERS, const float *x, float *partial, int tokens) {
    words_product<4>(LISTS, x, partial, tokens);
}
KERNEL sparse_masks_product_1(MASKS_PARAMETERS, const float *x, float *partial, int tokens) {
    masks_product<1>(MASKS, x, partial, tokens);
}
KERNEL sparse_masks_product_4(MASKS_PARAMETERS, const float *x, float *partial, int tokens) {
    masks_product<4>(MASKS, x, partial, tokens);
}
KERNEL sparse_words_gather(LISTS_PARAMETERS, const uint32_t *ids, const float *g, float *partial) {
    words_gather(LISTS, ids, g, partial);
}
KERNEL sparse_masks_gather(MASKS_PARAMETERS, const uint32_t *ids, const float *g, int edge, float *partial) {
    masks_gather(MASKS, ids, g, edge, partial);
}

#define PANEL_KERNELS(SUFFIX, T) \
    KERNEL sparse_words_panel_##SUFFIX(LISTS_PARAMETERS, T *out, int first_out, int end_out, int first_in, int end_in, \
                                       int stride) { \
        words_panel<T>(LISTS, out, first_out, end_out, first_in, end_in, stride); \
    } \
    KERNEL sparse_masks_panel_##SUFFIX(MASKS_PARAMETERS, T *out, int first_out, int end_out, int first_in, int end_in, \
                                       int stride) { \
        masks_panel<T>(MASKS, out, first_out, end_out, first_in, end_in, stride); \
    }
PANEL_KERNELS(f32, float)
PANEL_KERNELS(f16, __half)
PANEL_KERNELS(bf16, __nv_bfloat16)
