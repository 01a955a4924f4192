// The trellis term: a row's state is the sixteen bits from its own on, its value that of the top bits of `M state`.
//
// A funnel shift cuts the state out of two words; bits above it fall out of the product with `M 2^16`, the strip's own
// number. With up to two bits the product's top seven are the index of a value, with more the first is the sign and the
// next seven the index of a magnitude. The tables of 128 lie in shared memory once for every lane, entry `i` of lane `l`
// at `32 i + l`, so that 32 lanes that read 32 different entries read 32 different banks: 32 KiB a block.
#include "strips.cuh"

struct Trellis {
    static constexpr int MAX_BITS = 4;
    static constexpr int COARSE_BITS = 2;
    static constexpr bool READS_ON = true;
    static constexpr int ENTRIES = 128;
    static constexpr int TABLE = 2 * ENTRIES * WARP;

    const float *table; // of this lane: the values of up to two bits, then the magnitudes of more
    uint32_t multiplier = 0;

    // To be followed by a barrier.
    __device__ Trellis(float *shared, const float *values) : table(shared + threadIdx.x % WARP) {
        for (int n = threadIdx.x; n < TABLE; n += THREADS) shared[n] = values[n / WARP];
    }

    __device__ void begin(uint32_t number) { multiplier = number; }

    template <int BITS> __device__ __forceinline__ float value(const uint32_t *words, uint32_t next, int j) const {
        const int at = j * BITS, word = at / 32, shift = at % 32;
        uint32_t state = words[word];
        if (shift > 0) state = __funnelshift_r(state, word + 1 < BITS ? words[word + 1] : next, shift);
        const uint32_t product = state * multiplier;
        if (BITS <= COARSE_BITS) return table[product >> 20 & (ENTRIES - 1) * WARP];
        const float magnitude = table[ENTRIES * WARP + (product >> 19 & (ENTRIES - 1) * WARP)];
        return __uint_as_float(__float_as_uint(magnitude) ^ (product & 0x80000000u));
    }
};

PRODUCT_KERNEL(trellis_product_1, Trellis, 1, false)
PRODUCT_KERNEL(trellis_product_4, Trellis, 4, false)
TRANSPOSED_KERNEL(trellis_transposed_1, Trellis, 1)
TRANSPOSED_KERNEL(trellis_transposed_4, Trellis, 4)
PANEL_KERNEL(trellis_panel_f32, Trellis, float)
PANEL_KERNEL(trellis_panel_f16, Trellis, __half)
PANEL_KERNEL(trellis_panel_bf16, Trellis, __nv_bfloat16)
