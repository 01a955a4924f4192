// The trellis term: a row's state is the bits from its own on, its value a level and an offset, each one of sixteen.
//
// A funnel shift cuts the state out of two words, a mask takes away what is above it; the scale group's own number has its bits. The
// level's number is the lowest four bits, changed by those from bit 8 on, the offset's the four from bit 4 on; with three bits a
// row bits 6 and 3, and those from bit 9 on change the offset. States of more than twelve bits change both by bits 12 to 15.
// What four bits change others to is a word of sixteen times four bits. The tables lie in shared memory once for every lane,
// entry `i` of lane `l` at `32 i + l`, so that 32 lanes that read 32 different entries read 32 different banks: 18 KiB a block.
#include "groups.cuh"

struct Trellis {
    static constexpr int MAX_BITS = 4;
    static constexpr int MIN_BLOCKS = 1; // two would leave 128 registers a thread, and some would spill
    static constexpr bool READS_ON = true;
    static constexpr int BOOKS = 3, LEVELS = 0, TIMES = 16, OFFSETS = 32, BOOK = 48;
    static constexpr int TABLE = BOOKS * BOOK * WARP;

    const float *table; // of this lane: each book's levels, how often its offsets count, offsets
    const uint64_t *mixes; // of each book: two for the level, two for the offset
    uint32_t state_bits = 0;

    // To be followed by a barrier.
    __device__ Trellis(float *shared, const float *tables) :
        table(shared + threadIdx.x % WARP), mixes(reinterpret_cast<const uint64_t *>(tables + BOOKS * BOOK)) {
        for (int n = threadIdx.x; n < TABLE; n += THREADS) shared[n] = tables[n / WARP];
    }

    __device__ void begin(uint32_t number) { state_bits = number; }

    static __device__ __forceinline__ uint32_t nibble(uint64_t table, uint32_t window) {
        return (uint32_t)(table >> 4 * (window & 15));
    }

    template <int BITS> __device__ __forceinline__ float value(const uint32_t *words, uint32_t next, int j) const {
        constexpr int book = BITS <= 2 ? 0 : BITS - 2, start = BITS == 3 ? 3 : 4;
        const uint64_t *mix = mixes + 4 * book;
        const int at = j * BITS, word = at / 32, shift = at % 32;
        uint32_t state = words[word];
        if (shift > 0) state = __funnelshift_r(state, word + 1 < BITS ? words[word + 1] : next, shift);
        state &= (1u << state_bits) - 1;
        uint32_t level = state ^ nibble(__ldg(mix), state >> 2 * start), offset = state >> start;
        if constexpr (BITS == 3) offset ^= nibble(__ldg(mix + 2), state >> 9);
        if (state_bits > 12) {
            level ^= nibble(__ldg(mix + 1), state >> 12);
            offset ^= nibble(__ldg(mix + 3), state >> 12);
        }
        const float *own = table + book * BOOK * WARP;
        const float to = own[(LEVELS + (level & 15)) * WARP], by = own[(OFFSETS + (offset & 15)) * WARP];
        if constexpr (BITS == MAX_BITS) return to + own[(TIMES + (level & 15)) * WARP] * by;
        return to + by;
    }
};

PRODUCT_KERNEL(trellis_product_1, Trellis, 1, false)
PRODUCT_KERNEL(trellis_product_4, Trellis, 4, false)
TRANSPOSED_KERNEL(trellis_transposed_1, Trellis, 1)
TRANSPOSED_KERNEL(trellis_transposed_4, Trellis, 4)
PANEL_KERNEL(trellis_panel_f32, Trellis, float)
PANEL_KERNEL(trellis_panel_f16, Trellis, __half)
PANEL_KERNEL(trellis_panel_bf16, Trellis, __nv_bfloat16)
