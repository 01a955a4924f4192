// Words on their way: those of a warp's next steps, copied into shared memory while it multiplies with the last ones.
//
// A step is four columns of each lane, 512 bytes for each bit of a weight. A lane copies those words that it multiplies with itself, so
// it waits for nobody's copies but its own. The first are on their way while inputs are transformed. Two steps are at once: with four to
// eight a product took longer on an H200, for what a block needs first, its inputs, came after them.
#pragma once
#include "groups.cuh"

// Steps on their way, of each warp.
constexpr int STAGES = 2;

struct Ring {
    const uint2 *table; // of the block row: first word and bits of every second
    const uint4 *words; // this lane's of the first
    uint32_t slot, other; // this lane's place of the oldest step's words, and of the next one's
    const uint4 *from; // this lane's of the next step
    int scale_group, last, step, steps;
    uint2 entry, ahead;

    // `shared` has room for STAGES steps of `most_bits` of each warp.
    __device__ __forceinline__ Ring(const Strips &at, int block_row, int lanes, int first_group, int last_group, const float *shared,
                                    int most_bits)
        : table(reinterpret_cast<const uint2 *>(at.table + (size_t)block_row * at.per_row())),
          words(reinterpret_cast<const uint4 *>(at.words) + threadIdx.x % WARP), scale_group(first_group + threadIdx.x / WARP),
          last(last_group), step(0), steps(lanes / 4) {
        entry = entry_of(scale_group), ahead = entry_of(scale_group + WARPS);
        const uint32_t slot_bytes = most_bits * WARP * sizeof(uint4);
        slot = shared_address(shared) + threadIdx.x / WARP * STAGES * slot_bytes + threadIdx.x % WARP * sizeof(uint4);
        other = slot + slot_bytes;
        skip_empty();
        from = words + entry.x / 4;
        for (int n = 0; n < STAGES; ++n) fill<0>(), swap();
    }

    __device__ __forceinline__ uint2 entry_of(int n) const { return n < last ? __ldg(table + 2 * n) : uint2 {0, 0}; }
    __device__ __forceinline__ void next_group() {
        scale_group += WARPS, entry = ahead;
        ahead = entry_of(scale_group + WARPS);
    }
    __device__ __forceinline__ void skip_empty() {
        while (entry.y == 0 && scale_group < last) next_group();
    }
    __device__ __forceinline__ void swap() {
        const uint32_t before = slot;
        slot = other, other = before;
    }

    // Sends for the words of a step, most likely of as many bits; where there is none it is a step without words.
    template <int LIKELY_BITS> __device__ __forceinline__ void fill() {
        constexpr uint32_t LOAD = WARP * sizeof(uint4);
        if (entry.y == LIKELY_BITS) {
#pragma unroll
            for (int n = 0; n < LIKELY_BITS; ++n) copy_ahead(slot + n * LOAD, from + n * WARP);
        } else {
#pragma unroll 1
            for (uint32_t n = 0; n < entry.y; ++n) copy_ahead(slot + n * LOAD, from + n * WARP);
        }
        commit_copies();
        from += entry.y * WARP;
        if (++step == steps) step = 0, next_group(), skip_empty(), from = words + entry.x / 4;
    }

    // The words of the oldest step, whose place another one's take.
    template <int BITS> __device__ __forceinline__ void take(uint4 (&held)[BITS]) {
        wait_for_copies<STAGES - 1>();
#pragma unroll
        for (int n = 0; n < BITS; ++n) held[n] = shared_quad(slot + n * (WARP * (uint32_t)sizeof(uint4)));
        fill<BITS>();
        swap();
    }
};
