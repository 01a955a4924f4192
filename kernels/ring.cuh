// What is on its way to a warp: the words of its next steps, and their vectors where these are many, copied into shared memory while it
// multiplies with the last ones.
//
// A step is four columns of each lane, 512 bytes for each bit of a weight. A lane copies what it multiplies with itself, so it waits for
// nobody's copies but its own. Where two warps share a scale group by its rows (SHARES), each copies what it multiplies: half of each
// piece's words, one more where their number is odd, and the one that follows where a code reads on.
//
// Two steps are on their way, the second while the first is multiplied: with three to six a product took longer on an H200 (docs/speed.md), where a
// block sent for them before it transformed its inputs. So that nothing waits for a table meanwhile, each lane has one entry of it for 32 scale groups
// of its warp, and the next group's is at hand.
#pragma once
#include "groups.cuh"

// What a step multiplies: columns from `column()` on, a multiple of 16, with so many bits a weight; no bits where nothing is left.
struct Step {
    uint32_t packed, scale;

    __device__ __forceinline__ uint32_t bits() const { return packed & 15; }
    __device__ __forceinline__ int column() const { return (int)(packed & ~15u); }
};

// Where the warps' steps lie in shared memory, as the host has it: floats before them, and bytes of each.
struct Slots {
    int at, bytes;
};
#define SLOTS_PARAMETERS int slots_at, int slot_bytes
#define SLOTS Slots { slots_at, slot_bytes }
constexpr int STAGES = 2;
constexpr uint32_t LOAD = WARP * sizeof(uint4);

// `VECTORS` loads of four columns of a vector travel with each step, before its words; `SCALED` where somebody asks for its scale.
template <class Code, int SHARES, int VECTORS, bool SCALED> struct Ring {
    // Scale groups at once, and words of a piece that a warp has; those that follow them.
    static constexpr int GROUPS = WARPS / SHARES, AFTER = SHARES > 1 && Code::READS_ON ? 1 : 0;
    static constexpr __device__ int own_words(int bits) { return SHARES == 1 ? bits : (bits + 1) / 2; }
    static constexpr uint32_t WORDS_AT = VECTORS * LOAD;

    const Strips &at;
    int block_row, last;  // scale groups are before the last
    uint4 entries;        // of 32 scale groups of the warp, a lane each
    int group;            // how many of the warp's are begun
    uint4 next;           // the next one's entry
    uint32_t from;        // this lane's words of the step to be sent for
    int column, columns;  // the first of it, or of the group after its own where that is done; of each step
    uint32_t bits, scale; // of its group; none where nothing is left
    uint32_t slot, other; // this lane's place of the oldest step, and of the one after it
    int after;            // with AFTER from a lane to the one that has the piece below
    Step oldest, second;

    __device__ __forceinline__ Ring(const Strips &at, int block_row, int lanes, int first_group, int last_group, const Slots &slots)
        : at(at), block_row(block_row), last(last_group), group(0), columns(WARP * 4 >> (__ffs(lanes) - 1)), oldest{}, second{} {
        const int warp = threadIdx.x / WARP, own = warp * STAGES * slots.bytes + threadIdx.x % WARP * (int)sizeof(uint4);
        column = (first_group + warp / SHARES - GROUPS) * WARP;
        slot = shared_address(reinterpret_cast<float *>(dynamic_shared) + slots.at) + own, other = slot + slots.bytes;
        after = lane_below(threadIdx.x % WARP, lanes) - (int)(threadIdx.x % WARP);
        look_up();
        column += WARP;
    }
    // Those of the groups that follow the one that begins with `column`.
    __device__ __forceinline__ void look_up() {
        const int own = column / WARP + (1 + (int)(threadIdx.x % WARP)) * GROUPS;
        entries = own < last ? at.entry(block_row, own) : uint4 {0, 0, 0, 0};
    }
    // The entry of `group`, which is kept by one lane; without bits beyond the last. It is asked for a group ahead, but where registers are
    // few: half of a multiprocessor's, which the sums of eight vectors fill, or a piece's values.
    static constexpr bool AHEAD = VECTORS > 1 || (VECTORS == 0 && !SCALED);
    __device__ __forceinline__ void ask_for_next() {
        next.x = __shfl_sync(ALL_LANES, entries.x, group), next.y = __shfl_sync(ALL_LANES, entries.y, group);
        if (SCALED) next.z = __shfl_sync(ALL_LANES, entries.z, group);
    }
    // The next scale group that has bits, if there is one.
    __device__ __forceinline__ void begin_group() {
        column -= WARP;
        do {
            if (!AHEAD) ask_for_next();
            column += GROUPS * WARP, bits = next.y, scale = next.z;
            from = next.x / 4 + threadIdx.x % WARP;
            if (++group % WARP == 0) look_up();
            if (AHEAD) ask_for_next();
        } while (bits == 0 && column / WARP + GROUPS < last);
        // The second share has the words from the middle on.
        if (SHARES > 1) from += threadIdx.x / WARP % SHARES * (bits / 2) * WARP;
    }
    // Brings the words of the first steps into the second cache, a line of each lane at once.
    __device__ __forceinline__ void send_for_words() const {
        constexpr int LINE = 128;
        for (int n = 0; n * WARP < STAGES * columns; ++n) {
            const uint32_t bytes = __shfl_sync(ALL_LANES, entries.y, n) * (WARP / columns) * LOAD, first = __shfl_sync(ALL_LANES, entries.x, n);
            const char *line_of = reinterpret_cast<const char *>(at.words + first);
            for (uint32_t line = threadIdx.x % WARP * LINE; line < bytes; line += WARP * LINE) send_for_line(line_of + line);
        }
    }
    // Sends for the first steps. `copy(place, column)` sends for the vectors of a step.
    template <class Copy> __device__ __forceinline__ void start(Copy copy) {
        if (AHEAD) ask_for_next();
        begin_group();
        for (int n = 0; n < STAGES; ++n) fill<0>(copy);
    }

    // Sends for the next step, most likely of as many bits, to the place of the oldest one; where there is none it is a step without words.
    template <int LIKELY_BITS, class Copy> __device__ __forceinline__ void fill(Copy copy) {
        const uint4 *own = reinterpret_cast<const uint4 *>(at.words) + from;
        if (VECTORS > 0 && bits > 0) copy(slot, column);
        if (bits == LIKELY_BITS) {
#pragma unroll
            for (int n = 0; n < own_words(LIKELY_BITS); ++n) copy_ahead(slot + WORDS_AT + n * LOAD, own + n * WARP);
        } else {
#pragma unroll 1
            for (uint32_t n = 0; n < own_words(bits); ++n) copy_ahead(slot + WORDS_AT + n * LOAD, own + n * WARP);
        }
        if (AFTER > 0 && bits > 0) {
            // Of the same piece, or the first of the piece below.
            const uint32_t before = threadIdx.x / WARP % SHARES * (bits / 2), count = own_words(bits);
            const int to = before + count < bits ? (int)count * WARP : after - (int)before * WARP;
            copy_ahead(slot + WORDS_AT + count * LOAD, own + to);
        }
        commit_copies();
        const uint32_t place = slot;
        slot = other, other = place;
        oldest = second, second = Step {bits > 0 ? (uint32_t)column | bits : 0, scale};
        from += bits * WARP, column += columns;
        if (column % WARP == 0) begin_group();
    }

    // The words of the oldest step and its vectors, whose place another one's take.
    template <int BITS, class Copy>
    __device__ __forceinline__ void take(Copy copy, uint4 (&held)[own_words(BITS) + AFTER], float4 *vectors) {
        wait_for_copies<STAGES - 1>();
#pragma unroll
        for (int n = 0; n < own_words(BITS) + AFTER; ++n) held[n] = shared_quad(slot + WORDS_AT + n * LOAD);
#pragma unroll
        for (int n = 0; n < VECTORS; ++n) {
            const uint4 four = shared_quad(slot + n * LOAD);
            vectors[n] = float4 {__uint_as_float(four.x), __uint_as_float(four.y), __uint_as_float(four.z), __uint_as_float(four.w)};
        }
        fill<BITS>(copy);
    }
};
