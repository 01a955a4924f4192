// The trellis term: a row's state is the sixteen bits from its own on, its value `VALUES[M state / 2^8 mod 2^8]`.
//
// A funnel shift cuts the state out of two words; bits above it fall out of the product with `M 2^16`, the strip's own
// number. The table lies in shared memory once for every lane, entry `i` of lane `l` at `32 i + l`, so that 32 lanes
// that read 32 different entries read 32 different banks: 32 KiB a block.
#include "strips.cuh"

struct Trellis {
    static constexpr int MAX_BITS = 4;
    static constexpr bool READS_ON = true;
    static constexpr int ENTRIES = 256;
    static constexpr int TABLE = ENTRIES * WARP;

    const float *table; // of this lane
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
        return table[state * multiplier >> 19 & (ENTRIES - 1) * WARP];
    }
};

PRODUCT_KERNEL(trellis_product_1, Trellis, 1, false)
PRODUCT_KERNEL(trellis_product_4, Trellis, 4, false)
TRANSPOSED_KERNEL(trellis_transposed_1, Trellis, 1)
TRANSPOSED_KERNEL(trellis_transposed_4, Trellis, 4)
PANEL_KERNEL(trellis_panel_f32, Trellis, float)
PANEL_KERNEL(trellis_panel_f16, Trellis, __half)
PANEL_KERNEL(trellis_panel_bf16, Trellis, __nv_bfloat16)
