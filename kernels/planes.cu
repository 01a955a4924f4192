// The planes term: every coefficient in `BITS` bits, `scale (2u + 1 - 2^BITS) / 2`.
//
// On the device the planes of a coefficient lie together as one field: a piece's 32 fields of `BITS` bits fill `BITS`
// words exactly. A field becomes a float without a conversion: or'ed into the mantissa of 2^23 at place `p` it is `2^p u`, of
// which 2^23 + 2^(p-1) (2^BITS - 1) is subtracted. That takes one instruction of three operands, if the mask is in the instruction and
// 2^23 in a register, and leaves the coefficient times `2^p`: its inverse is in the scale. So most fields stay where they are in their
// word, those at its ends in one that is shifted from two neighbours: one shift a word.
//
// For tensor cores the streams of two columns lie side by side, two bytes of each in a word, from any byte on: a window, in which a
// field of both is masked where it is. A half has ten bits of mantissa, so that most fields may stay where they are. Such a field alone is
// a number as well, of those that are too small for an exponent: `2^(p - 24) u`; one integer operation for two coefficients. What is to
// be subtracted, `2^BITS - 1` times the sum of inputs, is the same of each row and one product more; the factors `2^(25 - p)` are a
// row's, when all is added up.
//
// How a tensor core aligns such products before it adds them is not said anywhere. It keeps 24 bits at least; if it counts the zeros before
// a field with them, those of the lowest one are ten more than a sum's own, which is lost on a result of 16 bits and not on one of 32.
// There (EXACT) the field is or'ed into the mantissa of 2^10, of which 2^10 and half of the field's range are subtracted.
#include "panel.cuh"
#include "tiles.cuh"

struct Planes {
    static constexpr int MAX_BITS = 8;
    static constexpr int MIN_BLOCKS = 2, TILE_BLOCKS = 2, PANEL_BLOCKS = 2;
    static constexpr bool READS_ON = false;
    static constexpr int TABLE = 0;
    // A mantissa's bits, and those of a half.
    static constexpr int MANTISSA = 23, HALF_MANTISSA = 10;
    // In half precision: 2^10, -2^10, 1.
    static constexpr uint32_t INTEGER = 0x6400u, MINUS_INTEGER = 0xe400u, ONE = 0x3c00u;

    uint32_t integer, integers; // the bits of 2^23, and twice those of 2^10 in half precision

    __device__ Planes(float *, const float *) : integer(in_register(0x4b000000u)), integers(in_register(both(INTEGER))) {}
    static constexpr __device__ uint32_t both(uint32_t half) { return half * 0x00010001u; }
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

    // The byte in which row `j`'s field begins, and its bit there; so far it is shifted to lie in a half's mantissa.
    template <int BITS> static constexpr __device__ int byte_of(int j) { return j * BITS / 8; }
    template <int BITS> static constexpr __device__ int bit_of(int j) { return j * BITS % 8; }
    template <int BITS> static constexpr __device__ int shift_of(int j) { return bit_of<BITS>(j) + BITS <= HALF_MANTISSA ? 0 : 4; }
    template <int BITS> static constexpr __device__ int half_place(int j) { return bit_of<BITS>(j) - shift_of<BITS>(j); }

    // Row `j` of two columns in half precision, which `pair_unit` and what is to be added to it, `pair_offset` in the same precision,
    // make `2u + 1 - 2^BITS`.
    template <int BITS, bool EXACT, int WORDS>
    __device__ __forceinline__ uint32_t pair(const uint32_t *low, uint32_t, const uint32_t *high, uint32_t, int j) const {
        constexpr uint32_t MASK = (1u << BITS) - 1;
        const int byte = byte_of<BITS>(j), word = byte / 4, place = half_place<BITS>(j);
        uint32_t window;
        if (byte % 4 < 3) {
            window = __byte_perm(low[word], high[word], byte % 4 * 0x1111 + 0x5410);
        } else if (bit_of<BITS>(j) + BITS <= 8) {
            window = __byte_perm(low[word], high[word], 0x7733);
        } else {
            window = __byte_perm(__funnelshift_r(low[word], low[word + 1], 24), __funnelshift_r(high[word], high[word + 1], 24), 0x5410);
        }
        window >>= shift_of<BITS>(j);
        if (!EXACT) return window & both(MASK << place);
        return add_halves(mask_or(window, both(MASK << place), integers), both(MINUS_INTEGER | 1u << (place + BITS - 1)));
    }
    template <int BITS, bool EXACT> static constexpr __device__ float pair_unit(int j) {
        return EXACT ? 2.0f / (float)(1 << half_place<BITS>(j)) : (float)(1 << (25 - half_place<BITS>(j)));
    }
    static constexpr bool HAS_OFFSET = true;
    template <int BITS, bool EXACT> static constexpr __device__ uint32_t pair_offset() {
        // 1, or what is below 2^BITS: an exponent and the highest bits of the mantissa.
        return EXACT ? both(ONE) : both(0x8000u | (14u + BITS) << HALF_MANTISSA | ((1u << (BITS - 1)) - 1) << (HALF_MANTISSA + 1 - BITS));
    }
    template <int BITS, int PAIRS> static constexpr __device__ int order(int n) { return n; }
};

TILES_KERNELS(planes_tiles, Planes)
TILES_KERNEL(planes_tiles_few_exact, Planes, FewExact, Planes::TILE_BLOCKS)
PRODUCT_KERNEL(planes_product_1, Planes, 1, false)
PRODUCT_KERNEL(planes_product_4, Planes, 4, false)
PRODUCT_KERNEL(planes_rows_product_1, Planes, 1, true)
TRANSPOSED_KERNEL(planes_transposed_1, Planes, 1)
TRANSPOSED_KERNEL(planes_transposed_4, Planes, 4)
PANEL_KERNEL(planes_panel_f32, Planes, float)
PANEL_KERNEL(planes_panel_f16, Planes, __half)
PANEL_KERNEL(planes_panel_bf16, Planes, __nv_bfloat16)
