// The trellis term: a row's state is the bits from its own on, its value that of an xorshift's top bits.
//
// A funnel shift cuts the state out of two words; bits above it fall out at the top of the word that is shifted. The strip's
// own number has `32 - L` and the three shifts, a byte each. The top bit is the sign, the next six or, with more than two
// bits, seven are the index of a magnitude. The tables lie in shared memory once for every lane, entry `i` of lane `l`
// at `32 i + l`, so that 32 lanes that read 32 different entries read 32 different banks: 24 KiB a block.
#include "groups.cuh"

struct Trellis {
    static constexpr int MAX_BITS = 4;
    static constexpr int COARSE_BITS = 2;
    static constexpr bool READS_ON = true;
    static constexpr int COARSE_MAGNITUDES = 64, FINE_MAGNITUDES = 128;
    static constexpr int TABLE = (COARSE_MAGNITUDES + FINE_MAGNITUDES) * WARP;

    const float *table; // of this lane: the magnitudes of up to two bits, then those of more
    uint32_t unused = 0, left = 0, right = 0, last = 0;

    // To be followed by a barrier.
    __device__ Trellis(float *shared, const float *magnitudes) : table(shared + threadIdx.x % WARP) {
        for (int n = threadIdx.x; n < TABLE; n += THREADS) shared[n] = magnitudes[n / WARP];
    }

    __device__ void begin(uint32_t number) {
        unused = number & 0xff, left = number >> 8 & 0xff, right = number >> 16 & 0xff, last = number >> 24;
    }

    template <int BITS> __device__ __forceinline__ float value(const uint32_t *words, uint32_t next, int j) const {
        const int at = j * BITS, word = at / 32, shift = at % 32;
        uint32_t x = words[word];
        if (shift > 0) x = __funnelshift_r(x, word + 1 < BITS ? words[word + 1] : next, shift);
        x <<= unused;
        x ^= x << left;
        x ^= x >> right;
        x ^= x << last;
        const float magnitude = BITS <= COARSE_BITS ? table[x >> 20 & (COARSE_MAGNITUDES - 1) * WARP]
                                                    : table[COARSE_MAGNITUDES * WARP + (x >> 19 & (FINE_MAGNITUDES - 1) * WARP)];
        return __uint_as_float(__float_as_uint(magnitude) ^ (x & 0x80000000u));
    }
};

PRODUCT_KERNEL(trellis_product_1, Trellis, 1, false)
PRODUCT_KERNEL(trellis_product_4, Trellis, 4, false)
TRANSPOSED_KERNEL(trellis_transposed_1, Trellis, 1)
TRANSPOSED_KERNEL(trellis_transposed_4, Trellis, 4)
PANEL_KERNEL(trellis_panel_f32, Trellis, float)
PANEL_KERNEL(trellis_panel_f16, Trellis, __half)
PANEL_KERNEL(trellis_panel_bf16, Trellis, __nv_bfloat16)
