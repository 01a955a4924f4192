// Words on their way: those of a warp's next steps, copied into shared memory while it multiplies with the last ones.
//
// A step is four columns of each lane, 512 bytes for each bit of a weight. A lane copies those words that it multiplies with itself, so
// it waits for nobody's copies but its own. Where two warps share a scale group by its rows (SHARES), each copies what it multiplies: half of
// each piece's words, one more where their number is odd. The first are on their way while inputs are transformed. Two steps are at once: with four to
// eight a product took longer on an H200, for what a block needs first, its inputs, came after them.
#pragma once
#include "groups.cuh"

// Steps on their way, of each warp.
constexpr int STAGES = 2;

// What a step multiplies: columns from `column()` on, a multiple of 16, with so many bits a weight; no bits where nothing is left.
struct Step {
    uint32_t packed;

    __device__ __forceinline__ uint32_t bits() const { return packed & 15; }
    __device__ __forceinline__ int column() const { return (int)(packed & ~15u); }
};

template <int SHARES> struct Ring {
    // Scale groups at once, and words of a piece that a warp has.
    static constexpr int GROUPS = WARPS / SHARES;
    static constexpr __device__ int own_words(int bits) { return SHARES == 1 ? bits : (bits + 1) / 2; }

    const uint2 *table;   // of the block row: first word and bits of every second
    const uint4 *words;   // this lane's of the first
    uint32_t slot, other; // this lane's place of the oldest step's words, and of the next one's
    Step oldest, second;  // steps on their way
    const uint4 *from;    // this lane's of the next step
    int scale_group, last, step, steps;
    uint2 entry, ahead;

    // `shared` has room for STAGES steps of `most_bits` of each warp.
    __device__ __forceinline__ Ring(const Strips &at, int block_row, int lanes, int first_group, int last_group, const float *shared,
                                    int most_bits)
        : table(reinterpret_cast<const uint2 *>(at.table + (size_t)block_row * at.per_row())), words(reinterpret_cast<const uint4 *>(at.words) + threadIdx.x % WARP),
          oldest{}, second{}, scale_group(first_group + threadIdx.x / WARP / SHARES), last(last_group), step(0), steps(lanes / 4) {
        entry = entry_of(scale_group), ahead = entry_of(scale_group + GROUPS);
        const uint32_t slot_bytes = own_words(most_bits) * WARP * sizeof(uint4);
        slot = shared_address(shared) + threadIdx.x / WARP * STAGES * slot_bytes + threadIdx.x % WARP * sizeof(uint4);
        other = slot + slot_bytes;
        skip_empty();
        begin_group();
        static_assert(STAGES == 2, "a slot for the oldest step and one for the next");
        for (int n = 0; n < STAGES; ++n) fill<0>();
    }

    __device__ __forceinline__ uint2 entry_of(int n) const { return n < last ? __ldg(table + 2 * n) : uint2 {0, 0}; }
    // A step's scale, its bits, and the code's own number.
    __device__ __forceinline__ uint2 rest_of(const Step &step) const { return __ldg(table + step.column() / WARP * 2 + 1); }
    __device__ __forceinline__ void next_group() {
        scale_group += GROUPS, entry = ahead;
        ahead = entry_of(scale_group + GROUPS);
    }
    // The second share has the words from the middle on.
    __device__ __forceinline__ void begin_group() {
        from = words + entry.x / 4;
        if (SHARES > 1) from += threadIdx.x / WARP % SHARES * (entry.y / 2) * WARP;
    }
    __device__ __forceinline__ void skip_empty() {
        while (entry.y == 0 && scale_group < last) next_group();
    }

    // Sends for the words of a step, most likely of as many bits, to the place of the oldest one; where there is none it is a step without
    // words.
    template <int LIKELY_BITS> __device__ __forceinline__ void fill() {
        constexpr uint32_t LOAD = WARP * sizeof(uint4);
        if (entry.y == LIKELY_BITS) {
#pragma unroll
            for (int n = 0; n < own_words(LIKELY_BITS); ++n) copy_ahead(slot + n * LOAD, from + n * WARP);
        } else {
#pragma unroll 1
            for (uint32_t n = 0; n < own_words(entry.y); ++n) copy_ahead(slot + n * LOAD, from + n * WARP);
        }
        commit_copies();
        const uint32_t before = slot;
        slot = other, other = before;
        oldest = second, second = Step {(uint32_t)(scale_group * WARP + step * 16) | entry.y};
        from += entry.y * WARP;
        if (++step == steps) step = 0, next_group(), skip_empty(), begin_group();
    }

    // The words of the oldest step, whose place another one's take.
    template <int BITS> __device__ __forceinline__ void take(uint4 (&held)[own_words(BITS)]) {
        wait_for_copies<STAGES - 1>();
#pragma unroll
        for (int n = 0; n < own_words(BITS); ++n) held[n] = shared_quad(slot + n * (WARP * (uint32_t)sizeof(uint4)));
        fill<BITS>();
    }
};
