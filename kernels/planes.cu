// The planes term: every coefficient in `BITS` bits, `scale (2u + 1 - 2^BITS) / 2`.
//
// On the device the planes of a coefficient lie together as one field: a piece's 32 fields of `BITS` bits fill `BITS`
// words exactly. A field becomes a float without a conversion: or'ed into the mantissa of 2^23 it is an integer, of
// which 2^23 + 2^BITS - 1 is subtracted. The factor 1/2 is in the scale. Without its shift a field takes one instruction of three
// operands, if the mask is in the instruction and 2^23 in a register.
#include "tiles.cuh"

struct Planes {
    static constexpr int MAX_BITS = 8;
    static constexpr int MIN_BLOCKS = 2, TILE_BLOCKS = 1;
    static constexpr bool READS_ON = false;
    static constexpr int TABLE = 0;

    uint32_t integer; // the bits of 2^23

    __device__ Planes(float *, const float *) : integer(in_register(0x4b000000u)) {}
    __device__ void begin(uint32_t) {}

    // 2u + 1 - 2^BITS of row j.
    template <int BITS> __device__ __forceinline__ float value(const uint32_t *words, uint32_t, int j) const {
        constexpr uint32_t MASK = (1u << BITS) - 1;
        const int at = j * BITS, word = at / 32, shift = at % 32;
        // Twice the field: shifted by one bit less.
        uint32_t field = words[word] << 1;
        if (shift > 0) {
            const uint32_t high = shift + BITS > 32 ? words[word + 1] : 0;
            field = __funnelshift_r(words[word], high, shift - 1);
        }
        return __uint_as_float(mask_or(field, MASK << 1, integer)) - (8388608.0f + (float)MASK);
    }
    template <int BITS> __device__ __forceinline__ uint32_t raw(const uint32_t *words, uint32_t next, int j) const {
        return __float_as_uint(value<BITS>(words, next, j));
    }
    // Two values as bfloat16: odd integers of eight bits.
    template <int BITS> static __device__ __forceinline__ uint32_t pair(uint32_t low, uint32_t high) {
        return __byte_perm(low, high, 0x7632);
    }
    template <int BITS> static constexpr __device__ int order(int n) { return n; }
};

TILES_KERNELS(planes_tiles, Planes)
PRODUCT_KERNEL(planes_product_1, Planes, 1, false)
PRODUCT_KERNEL(planes_product_4, Planes, 4, false)
PRODUCT_KERNEL(planes_rows_product_1, Planes, 1, true)
TRANSPOSED_KERNEL(planes_transposed_1, Planes, 1)
TRANSPOSED_KERNEL(planes_transposed_4, Planes, 4)
PANEL_KERNEL(planes_panel_f32, Planes, float)
PANEL_KERNEL(planes_panel_f16, Planes, __half)
PANEL_KERNEL(planes_panel_bf16, Planes, __nv_bfloat16)
