// The planes term: every coefficient in `BITS` bits, `scale (2u + 1 - 2^BITS) / 2`.
//
// On the device the planes of a coefficient lie together as one field: a piece's 32 fields of `BITS` bits fill `BITS`
// words exactly. A field becomes a float without a conversion: or'ed into the mantissa of 2^23 at place `p` it is `2^p u`, of
// which 2^23 + 2^(p-1) (2^BITS - 1) is subtracted. That takes one instruction of three operands, if the mask is in the instruction and
// 2^23 in a register, and leaves the coefficient times `2^p`: its inverse is in the scale. So most fields stay where they are in their
// word, those at its ends in one that is shifted from two neighbours: one shift a word.
//
// For tensor cores the streams of two columns lie side by side, 16 bits of each in a word, and a field of both becomes two numbers
// in bfloat16 as above, with 2^7 in the place of 2^23.
#include "tiles.cuh"

struct Planes {
    static constexpr int MAX_BITS = 8;
    static constexpr int MIN_BLOCKS = 2, TILE_BLOCKS = 2, PANEL_BLOCKS = 2;
    static constexpr bool READS_ON = false;
    static constexpr int TABLE = 0;
    // A mantissa's bits, and those of bfloat16.
    static constexpr int MANTISSA = 23, SHORT_MANTISSA = 7;
    // In bfloat16: 1, 2 and the sign. 127 is 0x42fe.
    static constexpr uint32_t ONE = 0x3f80u, TWO = 0x4000u, MINUS = 0x8000u;

    uint32_t integer, integers; // the bits of 2^23, and twice those of 2^7 in bfloat16

    __device__ Planes(float *, const float *) : integer(in_register(0x4b000000u)), integers(in_register(0x43004300u)) {}
    __device__ void begin(uint32_t) {}

    // Whether a field at bit `at` of its word may stay there.
    template <int BITS> static constexpr __device__ bool stays(int at) { return at > 0 && at + BITS <= MANTISSA; }
    // Where the words of the others begin, so that a field at bit 0 of the next word is the highest.
    template <int BITS> static constexpr int CUT = BITS < 8 ? MANTISSA - BITS : 15;
    // The place of row `j`'s field, from 1 on.
    template <int BITS> static constexpr __device__ int place(int j) {
        const int at = j * BITS % 32;
        return stays<BITS>(at) ? at : at > 0 ? at - CUT<BITS> : BITS < 8 ? 32 - CUT<BITS> : 1;
    }
    // A word that has the field of row `j` in its place; the piece's words follow each other in a circle.
    template <int BITS> static __device__ __forceinline__ uint32_t window(const uint32_t *words, int j) {
        const int at = j * BITS % 32, word = j * BITS / 32;
        if (stays<BITS>(at)) return words[word];
        if (BITS == 8) return at == 0 ? words[word] << 1 : words[word] >> CUT<BITS>;
        const int first = at > 0 ? word : (word + BITS - 1) % BITS;
        return __funnelshift_r(words[first], words[(first + 1) % BITS], CUT<BITS>);
    }

    // 2u + 1 - 2^BITS of row `j`, times `1 / unit(j)`.
    template <int BITS> __device__ __forceinline__ float scaled(const uint32_t *words, uint32_t, int j) const {
        constexpr uint32_t MASK = (1u << BITS) - 1;
        const uint32_t bits = mask_or(window<BITS>(words, j), MASK << place<BITS>(j), integer);
        return __uint_as_float(bits) - (8388608.0f + (float)(MASK << (place<BITS>(j) - 1)));
    }
    template <int BITS> static constexpr __device__ float unit(int j) { return 2.0f / (float)(1u << place<BITS>(j)); }
    template <int BITS> __device__ __forceinline__ float value(const uint32_t *words, uint32_t next, int j) const {
        return scaled<BITS>(words, next, j) * unit<BITS>(j);
    }

    // 2u + 1 - 2^BITS of row `j` of two columns, as bfloat16.
    template <int BITS>
    __device__ __forceinline__ uint32_t pair(const uint32_t *low, uint32_t, const uint32_t *high, uint32_t, int j) const {
        constexpr uint32_t MASK = (1u << BITS) - 1;
        if constexpr (BITS > SHORT_MANTISSA) {
            return __byte_perm(__float_as_uint(value<BITS>(low, 0, j)), __float_as_uint(value<BITS>(high, 0, j)), 0x7632);
        } else {
            auto half = [&](int n) { return __byte_perm(low[n / 2], high[n / 2], n % 2 == 0 ? 0x5410 : 0x7632); };
            auto both = [](uint32_t mask) { return mask * 0x00010001u; };
            constexpr int PLACE = BITS < SHORT_MANTISSA ? 1 : 0;
            const int at = j * BITS % 16, here = 16 - at;
            const uint32_t whole = half(j * BITS / 16), fields = at < PLACE ? whole << PLACE : whole >> (at - PLACE);
            uint32_t bits = mask_or(fields, both((MASK & ((1u << here) - 1)) << PLACE), integers);
            if (BITS > here) bits = mask_or(half(j * BITS / 16 + 1) << (here + PLACE), both((MASK >> here << here) << PLACE), bits);
            if (PLACE == 1) return fma_pair(bits, both(ONE), both(MINUS | (0x4300u + MASK)));
            return fma_pair(fma_pair(bits, both(ONE), both(MINUS | 0x4300u)), both(TWO), both(MINUS | 0x42feu));
        }
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
