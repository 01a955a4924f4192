// The trellis term: a row's state is the bits from its own on, its value that of an index that is linear in the state.
//
// The index of the codec is brought to another basis, in which it is a sum (modulo 2) of few shifts of the state, each under a
// mask. A shift of the whole stream is that of every state at once: a level's number is four bits wide, so one word has those of
// eight rows, and an offset's number stands in the four bits above. Both together are a byte, four rows a word; with three bits a
// row two, 24 bits apart.
//
// A product of four bytes with four others (`dp4a`) makes an address of a byte: the value of index `i` for lane `l` is the word
// `32 i + l` of shared memory, one look-up without a bank conflict. It has two numbers in half precision, above the value with four bits
// a row and below that with three; 128 indices of one or two bits have their own words behind: 48 KiB. The host makes the table from
// the codec and the shifts (src/cuda/trellis.rs).
#include "panel.cuh"
#include "tiles.cuh"

// For states of 12 bits alone, or of any number.
template <bool LONG> struct Trellis {
    static constexpr int MAX_BITS = 4;
    static constexpr int MIN_BLOCKS = 1, TILE_BLOCKS = LONG ? 1 : 2, PANEL_BLOCKS = 2;
    static constexpr bool READS_ON = true;
    static constexpr int INDICES = 256, COARSE_INDICES = 128, TABLE = (INDICES + COARSE_INDICES) * WARP;
    static constexpr uint32_t NIBBLES = 0x11111111u, EVEN = 0x0f0f0f0fu, ODD = 0xf0f0f0f0u;
    static constexpr int SHORT_STATE = 12;

    uint32_t table; // this lane's address of the first index
    int state_bits = SHORT_STATE;

    // To be followed by a barrier.
    __device__ Trellis(float *shared, const float *values) : table(shared_address(shared) + threadIdx.x % WARP * 4) {
        uint4 *to = reinterpret_cast<uint4 *>(shared);
        for (int n = threadIdx.x; n < TABLE / 4; n += THREADS) {
            const uint32_t entry = __float_as_uint(__ldg(values + n / (WARP / 4)));
            to[n] = uint4 {entry, entry, entry, entry};
        }
    }

    __device__ void begin(uint32_t number) {
        if (LONG) state_bits = (int)number;
    }

    // The stream from bit `at` on: so many words, and the one that follows.
    template <int WORDS> static __device__ __forceinline__ uint32_t from(const uint32_t *words, uint32_t next, int at) {
        if (at < 0) return words[0] << -at;
        const int word = at / 32, shift = at % 32;
        const uint32_t low = word < WORDS ? words[word] : next, high = word + 1 < WORDS ? words[word + 1] : next;
        return shift == 0 ? low : __funnelshift_r(low, high, shift);
    }

    // Of a mask of four bits, the bits that a shift by `shift` brings from the state and not from above it.
    __device__ __forceinline__ uint32_t within(uint32_t mask, int shift) const {
        const int count = min(max(state_bits - shift, 0), 4);
        return mask & ((1u << count) - 1);
    }

    // Indices of four rows, or two, of which row `j` is one: byte `byte_of<BITS>(j)`.
    template <int BITS, int WORDS> __device__ __forceinline__ uint32_t indices(const uint32_t *words, uint32_t next, int j) const {
        if constexpr (BITS == 3) {
            const int at = BITS * (j / 16 * 16 + j % 8);
            // A level's mask and, four bits higher, an offset's, in the lowest byte and the highest; nobody reads the others.
            auto add = [&](uint32_t sum, int shift, uint32_t level, uint32_t offset) {
                const uint32_t mask = within(level, shift) | within(offset, shift + 4) << 4;
                return add_stream<WORDS>(sum, words, next, at + shift, mask * 0x01000001u);
            };
            uint32_t sum = select_bits(EVEN, from<WORDS>(words, next, at), from<WORDS>(words, next, at - 1));
            sum = add(add(add(sum, 4, 12, 14), 3, 8, 0), 7, 7, 0);
            return add(add(add(sum, 12, 15, 0), 11, 14, 1), 10, 0, 3);
        } else {
            const int at = j * BITS, base = at / 32 * 32 + at % 4;
            const bool odd = at / 4 % 2 == 1;
            // An odd row's offset begins a byte: four bits lower it has the place of an even row's.
            const int offset = odd ? base + 4 : base;
            auto add_level = [&](uint32_t sum, int shift, uint32_t mask) {
                return add_stream<WORDS>(sum, words, next, base + shift, within(mask, shift) * NIBBLES);
            };
            auto add_offset = [&](uint32_t sum, int shift, uint32_t mask) {
                return add_stream<WORDS>(sum, words, next, offset + shift, within(mask, shift + 4) * NIBBLES & ODD);
            };
            uint32_t levels = from<WORDS>(words, next, base), offsets = from<WORDS>(words, next, offset);
            if constexpr (BITS == 4) {
                levels = add_level(add_level(add_level(add_level(levels, 6, 12), 9, 15), 11, 15), 14, 3);
                offsets = add_offset(offsets, 7, 14);
                return select_bits(EVEN, odd ? levels >> 4 : levels, offsets);
            } else {
                levels = add_level(add_level(add_level(levels, 7, 14), 6, 12), 9, 7);
                levels = add_level(add_level(levels, 11, 14), 13, 7);
                offsets = add_offset(add_offset(add_offset(offsets, 2, 3), 7, 2), 11, 1);
                return select_bits(EVEN, odd ? levels >> 4 : levels, offsets) & 0x7f7f7f7fu;
            }
        }
    }
    // `sum` and what a mask leaves of the stream from bit `at` on.
    template <int WORDS>
    static __device__ __forceinline__ uint32_t add_stream(uint32_t sum, const uint32_t *words, uint32_t next, int at, uint32_t mask) {
        return !LONG && mask == 0 ? sum : add_masked(sum, from<WORDS>(words, next, at), mask);
    }
    template <int BITS> static constexpr __device__ int byte_of(int j) {
        return BITS == 3 ? j / 8 % 2 * 3 : j * BITS % 32 / 8;
    }

    // The word of row `j`'s value.
    template <int BITS, int WORDS> __device__ __forceinline__ uint32_t raw(const uint32_t *words, uint32_t next, int j) const {
        constexpr uint32_t FIRST = BITS <= 2 ? INDICES * WARP * 4 : 0;
        return shared_word(__dp4a(indices<BITS, WORDS>(words, next, j), WARP * 4u << 8 * byte_of<BITS>(j), table + FIRST));
    }
    template <int BITS> __device__ __forceinline__ float value(const uint32_t *words, uint32_t next, int j) const {
        const uint32_t entry = raw<BITS, BITS>(words, next, j);
        return BITS == 3 ? low_half(entry) : high_half(entry);
    }
    template <int BITS> __device__ __forceinline__ float scaled(const uint32_t *words, uint32_t next, int j) const {
        return value<BITS>(words, next, j);
    }
    template <int BITS> static constexpr __device__ float unit(int) { return 1.0f; }
    // Row `j`'s values of two columns in half precision, as they are.
    static constexpr bool HAS_OFFSET = false;
    template <int BITS, bool EXACT, int WORDS>
    __device__ __forceinline__ uint32_t pair(const uint32_t *low, uint32_t low_next, const uint32_t *high, uint32_t high_next,
                                             int j) const {
        return __byte_perm(raw<BITS, WORDS>(low, low_next, j), raw<BITS, WORDS>(high, high_next, j), BITS == 3 ? 0x5410 : 0x7632);
    }
    // Which two rows come next, so that few words of indices are needed at once.
    template <int BITS, int PAIRS> static constexpr __device__ int order(int n) {
        return BITS == 1   ? PAIRS == 16 ? n % 4 * 4 + n / 4 % 2 * 2 + n / 8 : n % 2 * 4 + n / 2 % 2 * 2 + n / 4
               : BITS == 2 ? n / 8 * 8 + n % 4 * 2 + n % 8 / 4
               : BITS == 3 ? n / 8 * 8 + n % 2 * 4 + n % 8 / 2
                           : n;
    }
};

using ShortTrellis = Trellis<false>;
using AnyTrellis = Trellis<true>;

TILES_KERNELS(trellis_short_tiles, ShortTrellis)
TILES_KERNELS(trellis_tiles, AnyTrellis)
PRODUCT_KERNEL(trellis_product_1, AnyTrellis, 1, false)
PRODUCT_KERNEL(trellis_product_4, AnyTrellis, 4, false)
TRANSPOSED_KERNEL(trellis_transposed_1, AnyTrellis, 1)
TRANSPOSED_KERNEL(trellis_transposed_4, AnyTrellis, 4)
PANEL_KERNEL(trellis_panel_f32, AnyTrellis, float)
PANEL_KERNEL(trellis_panel_f16, AnyTrellis, __half)
PANEL_KERNEL(trellis_panel_bf16, AnyTrellis, __nv_bfloat16)
