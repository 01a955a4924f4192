// The operator `A = blockdiag(T, .., T_short) D` of one axis, scales and random signs and then an orthonormal transform of each
// block, and its inverse, for many vectors.
//
// A warp takes 256 elements: one whole block of 256, two of 128, and so on; or one of the shorter blocks. The DCT of a power of two
// from 32 on goes through the complex Fourier transform of half as many points (Makhoul, "A fast cosine transform in one and two
// dimensions", 1980), each lane four of them:
//
//     v_j = x_{2j},  v_{n-1-j} = x_{2j+1}             j < n / 2
//     z_m = v_{2m} + i v_{2m+1}                       m < n / 2 = h
//     Z = sum_m z_m exp(-2 pi i k m / h)              steps of four points, the last one of two where they do not fit
//     P = w_k (Z_k + conj Z_{h-k}),  Q = -i u_k (Z_k - conj Z_{h-k}),  a = P + Q,  b = (1 + i) (P - Q) / sqrt2
//     y_k = Re a,  y_{n-k} = -Im a,  y_{h-k} = Re b,  y_{h+k} = Im b
//
// where `w_k = exp(-i pi k / 2n) / sqrt(2n)` and `u_k = exp(-5 i pi k / 2n) / sqrt(2n)`. Its inverse is its transpose: every step's
// own, in the opposite order. Everything else (wavelets, other lengths) is the product with the matrix, which the host made from the
// same definition.
#pragma once
#include "common.cuh"

constexpr int ELEMENTS = 256;
constexpr float HALF_ROOT = 0.707106781f;
// Where instructions are counted (counts.py), kernels are compiled for blocks of `2^COUNTED_LEVELS` alone.
#ifndef COUNTED_LEVELS
#define COUNTED_LEVELS 0
#endif

// Where a point lies in shared memory, and a real element where every fourth is read: in few banks twice.
__device__ constexpr int point_at(int point) { return point + point / 8 * 2; }
__device__ constexpr int element_at(int element) { return element + element / WARP; }
// Floats that a warp needs to transform an item.
constexpr int ITEM_FLOATS = 2 * (ELEMENTS / 2 + ELEMENTS / 2 / 8 * 2);

// What a lane has of an item: every 32nd element.
constexpr int EACH = ELEMENTS / WARP;
struct Eight {
    float values[EACH];

    __device__ __forceinline__ void add(const Eight &other) {
#pragma unroll
        for (int n = 0; n < EACH; ++n) values[n] += other.values[n];
    }
    __device__ __forceinline__ void multiply(const Eight &other) {
#pragma unroll
        for (int n = 0; n < EACH; ++n) values[n] *= other.values[n];
    }
};

// The same as they lie in memory: what is asked for here is waited for where it becomes numbers.
template <class T> struct Loaded {
    T values[EACH];

    __device__ __forceinline__ Eight eight() const {
        Eight eight;
#pragma unroll
        for (int n = 0; n < EACH; ++n) eight.values[n] = to_float(values[n]);
        return eight;
    }
};

// Those of a lane from `first` on; zeros from `end` on.
template <class T> __device__ __forceinline__ Loaded<T> load_raw(const T *from, int first, int end) {
    Loaded<T> loaded = {};
    from += first;
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        if (first + n * WARP < end) loaded.values[n] = __ldg(from + n * WARP);
    }
    return loaded;
}
template <class T> __device__ __forceinline__ Eight load_eight(const T *from, int first, int end) { return load_raw(from, first, end).eight(); }

// And back.
template <class T> __device__ __forceinline__ void store_eight(T *to, int first, int end, const Eight &eight) {
    to += first;
#pragma unroll
    for (int n = 0; n < EACH; ++n) {
        if (first + n * WARP < end) to[n * WARP] = from_float<T>(eight.values[n]);
    }
}

__device__ __forceinline__ float2 product(float2 a, float2 b) { return float2 {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
__device__ __forceinline__ float2 conjugate(float2 a) { return float2 {a.x, -a.y}; }
__device__ __forceinline__ float2 sum(float2 a, float2 b) { return float2 {a.x + b.x, a.y + b.y}; }
__device__ __forceinline__ float2 difference(float2 a, float2 b) { return float2 {a.x - b.x, a.y - b.y}; }

// The Fourier transform of four points, or its transpose without a factor.
template <bool INVERSE> __device__ __forceinline__ void transform_four(float2 (&at)[4]) {
    const float2 a = sum(at[0], at[2]), b = difference(at[0], at[2]), c = sum(at[1], at[3]), d = difference(at[1], at[3]);
    const float2 up = {b.x - d.y, b.y + d.x}, down = {b.x + d.y, b.y - d.x};
    at[0] = sum(a, c), at[1] = INVERSE ? up : down, at[2] = difference(a, c), at[3] = INVERSE ? down : up;
}

// The DCT of blocks of `2^LEVELS` elements side by side, 256 of them together.
template <int LEVELS> struct FastDct {
    static constexpr int LENGTH = 1 << LEVELS, POINTS = LENGTH / 2, LANES = POINTS / 4, QUARTER = POINTS / 2;
    // Steps of four points, and whether one of two is left; steps that turn what they give.
    static constexpr int STEPS = (LEVELS - 1) / 2, TURNED = (LEVELS - 2) / 2;
    static constexpr bool PAIRS = LEVELS % 2 == 0;
    // The host's table (src/cuda/axis.rs) has numbers of each length for all lanes side by side, after those of shorter ones.
    static constexpr int TURNS = 3 * TURNED, NUMBERS = TURNS + 4, FIRST = LEVELS == 5 ? 0 : LEVELS == 6 ? 28 : LEVELS == 7 ? 108 : 268;
    static constexpr int END = FIRST + NUMBERS * LANES;

    int lane; // of the block's
    // Where the lane's first point of each step lies, the output of its two pairs, its first element and the one that mirrors it, and
    // where its block's coefficients begin.
    int points[STEPS], outputs[2], elements[2], coefficients;
    // Of each step but the last without one, the turns of the second point and those after it. Then `w` and `u` of the lane's first pair
    // and its second.
    float2 numbers[NUMBERS];

    __device__ __forceinline__ FastDct(const float2 *table, int lane_of_warp) : lane(lane_of_warp & (LANES - 1)) {
#pragma unroll
        for (int n = 0; n < NUMBERS; ++n) numbers[n] = load_now(table + FIRST + n * LANES + lane);
        const int block = lane_of_warp / LANES;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const int apart = distance(step);
            points[step] = point_at(block * POINTS + lane / apart * apart * 4 + lane % apart);
        }
        const int pairs[2] = {lane, second_pair()};
#pragma unroll
        for (int n = 0; n < 2; ++n) outputs[n] = point_at(block * POINTS + digits_of(pairs[n]) * (PAIRS ? 2 : 1));
        elements[0] = element_at(block * LENGTH + 4 * lane), elements[1] = element_at(block * LENGTH + LENGTH - 1 - 4 * lane);
        coefficients = block * LENGTH;
    }

    // From a point of a step to the lane's next one.
    __device__ __forceinline__ static constexpr int distance(int step) { return POINTS >> (2 * step + 2); }
    __device__ __forceinline__ int point(int step, int n) const { return points[step] + point_at(n * distance(step)); }
    // An output's place has its digits in the opposite order, and half of all outputs later is the next place, or the one after it.
    static constexpr int HALF_LATER = PAIRS ? 1 : 2;
    __device__ __forceinline__ static int digits_of(int k) {
        int reversed = 0;
#pragma unroll
        for (int n = 0; n < STEPS; ++n) reversed = reversed * 4 + (k >> 2 * n & 3);
        return reversed;
    }
    // Elements of point `n` of the first step: the first half of points has the even ones, the second the odd ones, backwards.
    __device__ __forceinline__ int element(int n, int second) const {
        constexpr int NEXT = element_at(LENGTH / 2);
        return n < 2 ? elements[0] + n * NEXT + 2 * second : elements[1] - (n - 2) * NEXT - 2 * second;
    }
    // The lane's second pair; its first is its number, and for lane 0 the two points in its place that have no partner.
    __device__ __forceinline__ int second_pair() const { return lane == 0 ? QUARTER / 2 : QUARTER - lane; }

    template <bool INVERSE> __device__ __forceinline__ void turn(int step, float2 (&at)[4]) const {
        if (step >= TURNED) return;
#pragma unroll
        for (int n = 1; n < 4; ++n) {
            const float2 by = numbers[3 * step + n - 1];
            at[n] = product(at[n], INVERSE ? conjugate(by) : by);
        }
    }

    // The elements of `own`, in natural order, become their DCT.
    __device__ __forceinline__ void forward(float *own) const {
        float2 *at_point = reinterpret_cast<float2 *>(own), at[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) at[n] = float2 {own[element(n, 0)], own[element(n, 1)]};
        __syncwarp();
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            if (step > 0) {
#pragma unroll
                for (int n = 0; n < 4; ++n) at[n] = at_point[point(step, n)];
            }
            transform_four<false>(at);
            turn<false>(step, at);
            // A lane writes where it alone has read.
#pragma unroll
            for (int n = 0; n < 4; ++n) at_point[point(step, n)] = at[n];
            __syncwarp();
        }
        float2 a = at_point[outputs[0]], b = at_point[outputs[0] + HALF_LATER];
        float2 c = at_point[outputs[1]], d = at_point[outputs[1] + HALF_LATER];
        __syncwarp();
        if (PAIRS) {
            const float2 before = a, other = c;
            a = sum(before, b), b = difference(before, b), c = sum(other, d), d = difference(other, d);
        }
        float *to = own + coefficients;
        if (lane == 0) {
            const float2 turn = numbers[TURNS], root = numbers[TURNS + 1];
            to[0] = (a.x + a.y) * root.x, to[POINTS] = (a.x - a.y) * root.x;
            to[QUARTER] = turn.x * b.x - turn.y * b.y, to[POINTS + QUARTER] = turn.y * b.x + turn.x * b.y;
        } else {
            write_pair(to, lane, a, d, numbers[TURNS], numbers[TURNS + 1]);
            d = b;
        }
        write_pair(to, second_pair(), c, d, numbers[TURNS + 2], numbers[TURNS + 3]);
        __syncwarp();
    }
    // Coefficients `k`, `n - k`, `h - k` and `h + k`.
    __device__ __forceinline__ static void write_pair(float *to, int k, float2 z, float2 partner, float2 w, float2 u) {
        const float2 p = product(w, float2 {z.x + partner.x, z.y - partner.y});
        const float2 q = product(u, float2 {z.y + partner.y, partner.x - z.x});
        const float2 a = sum(p, q), b = difference(p, q);
        to[k] = a.x, to[LENGTH - k] = -a.y;
        to[POINTS - k] = (b.x - b.y) * HALF_ROOT, to[POINTS + k] = (b.x + b.y) * HALF_ROOT;
    }

    // And back.
    __device__ __forceinline__ void inverse(float *own) const {
        const float *from = own + coefficients;
        float2 a, b, c, d, last;
        read_pair(from, second_pair(), c, last, numbers[TURNS + 2], numbers[TURNS + 3]);
        if (lane == 0) {
            const float2 turn = numbers[TURNS], root = numbers[TURNS + 1];
            const float zero = from[0], half = from[POINTS], quarter = from[QUARTER], other = from[POINTS + QUARTER];
            a = float2 {(zero + half) * root.x, (zero - half) * root.x};
            b = float2 {turn.x * quarter + turn.y * other, turn.x * other - turn.y * quarter};
            d = last;
        } else {
            read_pair(from, lane, a, d, numbers[TURNS], numbers[TURNS + 1]);
            b = last;
        }
        __syncwarp();
        if (PAIRS) {
            const float2 before = a, other = c;
            a = sum(before, b), b = difference(before, b), c = sum(other, d), d = difference(other, d);
        }
        float2 *at_point = reinterpret_cast<float2 *>(own), at[4];
        at_point[outputs[0]] = a, at_point[outputs[0] + HALF_LATER] = b;
        at_point[outputs[1]] = c, at_point[outputs[1] + HALF_LATER] = d;
        __syncwarp();
#pragma unroll
        for (int step = STEPS - 1; step >= 0; --step) {
#pragma unroll
            for (int n = 0; n < 4; ++n) at[n] = at_point[point(step, n)];
            turn<true>(step, at);
            transform_four<true>(at);
            if (step > 0) {
#pragma unroll
                for (int n = 0; n < 4; ++n) at_point[point(step, n)] = at[n];
            }
            __syncwarp();
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) own[element(n, 0)] = at[n].x, own[element(n, 1)] = at[n].y;
        __syncwarp();
    }
    __device__ __forceinline__ static void read_pair(const float *from, int k, float2 &z, float2 &partner, float2 w, float2 u) {
        const float2 a = {from[k], -from[LENGTH - k]};
        const float c = from[POINTS - k], d = from[POINTS + k];
        const float2 b = {(c + d) * HALF_ROOT, (d - c) * HALF_ROOT};
        const float2 p = product(conjugate(w), sum(a, b)), q = product(conjugate(u), difference(a, b));
        z = float2 {p.x - q.y, p.y + q.x}, partner = float2 {p.x + q.y, q.x - p.y};
    }
};

// What a warp transforms at once: blocks of one length side by side, or one block that has a matrix.
struct Item {
    int first, end, length; // of a block
    const float *matrix;    // null where the transform is fast
};

// One axis, in one direction.
struct Axis {
    const uint32_t *signs;     // a bit an element; null without
    const float *scales;       // a number an element; null without
    const float2 *rotations;   // what the fast transform turns by; null where powers of two have matrices too
    const float *whole, *shorter; // matrices `m`, `out_o = sum_i m(i, o) in_i`; those of the shorter blocks one after another
    int len, edge;

    __device__ Cut cut() const { return Cut { len, edge }; }
    // Whether blocks of this length need no matrix.
    __device__ bool is_fast(int length) const { return rotations != nullptr && length >= SHORTEST && (length & (length - 1)) == 0; }
    // Elements of whole blocks, and those of them that a warp takes at once: a power of two.
    __device__ int whole_end() const { return cut().whole() * edge; }
    __device__ int together() const { return rotations != nullptr ? ELEMENTS : edge; }
    __device__ int item_at(int element) const { return element >> (__ffs(together()) - 1); }
    // Items of whole blocks, which those of the shorter ones follow.
    __device__ int groups() const { return item_at(whole_end() + together() - 1); }
    // The number of the item that has an element.
    __device__ int item_holding(int element) const {
        return element < whole_end() ? item_at(element) : groups() + cut().holding(element).index - cut().whole();
    }
    // A block alone.
    __device__ Item item(const Block &block) const {
        const float *matrix = is_fast(block.length) ? nullptr : block.index < cut().whole() ? whole : matrix_of(block);
        return Item { block.start, block.end(), block.length, matrix };
    }
    __device__ Item item(int index) const {
        if (index >= groups()) return item(cut().block(cut().whole() + index - groups()));
        const int first = index * together();
        return Item { first, min(first + together(), whole_end()), edge, rotations != nullptr ? nullptr : whole };
    }
    // The matrix of a shorter block.
    __device__ const float *matrix_of(const Block &block) const {
        const float *matrix = shorter;
        for (int before = cut().whole(); before < block.index; ++before) {
            const int length = cut().block(before).length;
            if (!is_fast(length)) matrix += length * length;
        }
        return matrix;
    }
    // Sends for what transforming elements `first .. end` reads.
    __device__ __forceinline__ void send_for_tables(int first, int end) const {
        send_for(rotations, FastDct<8>::END * (int)sizeof(float2));
        if (signs != nullptr) send_for(signs + first / WARP, (end - first + 7) / 8);
        if (scales != nullptr) send_for(scales + first, (end - first) * (int)sizeof(float));
    }
    // Each element's sign times its scale.
    __device__ __forceinline__ Eight factors(int first, int end) const {
        Eight factors;
        uint32_t words[EACH] = {};
        const int bit = first % WARP; // blocks begin with a word of signs, and eight more follow the last
        if (signs != nullptr) {
            const uint32_t *own = signs + first / WARP;
#pragma unroll
            for (int n = 0; n < EACH; ++n) words[n] = __ldg(own + n);
        }
        if (scales != nullptr) {
            factors = load_eight(scales, first, end);
        } else {
#pragma unroll
            for (int n = 0; n < EACH; ++n) factors.values[n] = 1.0f;
        }
#pragma unroll
        for (int n = 0; n < EACH; ++n) {
            factors.values[n] = __uint_as_float(__float_as_uint(factors.values[n]) ^ (words[n] >> bit << 31));
        }
        return factors;
    }
};

// The fast transform of one vector's elements in `own`, which lie padded, or of its coefficients, which lie side by side, in place: a function that
// is called, so that those who have called it before find its instructions in the caches (see `tiles` in tiles.cuh).
template <bool INVERSE> __device__ __noinline__ void transform_in_place(const float2 *rotations, float *own, int lane, int length) {
    auto transform = [&](auto dct) {
        if (INVERSE) dct.inverse(own);
        else dct.forward(own);
    };
    if (length == 256) transform(FastDct<8>(rotations, lane));
    else if (length == 128) transform(FastDct<7>(rotations, lane));
    else if (length == 64) transform(FastDct<6>(rotations, lane));
    else transform(FastDct<5>(rotations, lane));
}

// Blocks of `2^LEVELS` elements through the fast transform, of vector after vector: see `transform_item`.
template <bool INVERSE, int LEVELS, class Get, class Make, class Put>
__device__ __forceinline__ void transform_fast(const float2 *rotations, float *own, int lane, int vectors, Get get, Make make, Put put) {
    const FastDct<LEVELS> dct(rotations, lane);
    auto given = get(0);
#pragma unroll 1
    for (int vector = 0; vector < vectors; ++vector) {
        Eight eight = make(given);
        // Elements lie padded, coefficients side by side.
#pragma unroll
        for (int n = 0; n < EACH; ++n) own[INVERSE ? n * WARP + lane : n * element_at(WARP) + lane] = eight.values[n];
        __syncwarp();
        if (vector + 1 < vectors) given = get(vector + 1); // comes meanwhile
        if (INVERSE) dct.inverse(own);
        else dct.forward(own);
#pragma unroll
        for (int n = 0; n < EACH; ++n) eight.values[n] = own[INVERSE ? n * element_at(WARP) + lane : n * WARP + lane];
        put(vector, eight);
        __syncwarp();
    }
}

// The item's elements of so many vectors, one at least, through `T`: `get(vector)` asks for a lane's, of which `make` makes an Eight, whatever
// it likes beyond the item's end; `put(vector, eight)` takes them. `own`, in shared memory, has room for ITEM_FLOATS. With CALLED the fast
// transform is the function above.
template <bool INVERSE, bool CALLED = false, class Get, class Make, class Put>
__device__ __forceinline__ void transform_item(const Axis &axis, const Item &item, float *own, int lane, int vectors, Get get, Make make,
                                               Put put) {
    const int count = item.end - item.first, length = COUNTED_LEVELS > 0 ? 1 << COUNTED_LEVELS : item.length;
    auto without_rest = [&](const auto &given) {
        Eight eight = make(given);
#pragma unroll
        for (int n = 0; n < EACH; ++n) eight.values[n] = n * WARP + lane < count ? eight.values[n] : 0.0f;
        return eight;
    };
    if (CALLED && item.matrix == nullptr) {
        for (int vector = 0; vector < vectors; ++vector) {
            Eight eight = without_rest(get(vector));
#pragma unroll
            for (int n = 0; n < EACH; ++n) own[INVERSE ? n * WARP + lane : n * element_at(WARP) + lane] = eight.values[n];
            __syncwarp();
            transform_in_place<INVERSE>(axis.rotations, own, lane, length);
#pragma unroll
            for (int n = 0; n < EACH; ++n) eight.values[n] = own[INVERSE ? n * element_at(WARP) + lane : n * WARP + lane];
            put(vector, eight);
            __syncwarp();
        }
        return;
    }
    if (COUNTED_LEVELS > 0 || item.matrix == nullptr) {
        if (length == 256) transform_fast<INVERSE, 8>(axis.rotations, own, lane, vectors, get, make, put); // all of it is there
        else if (length == 128) transform_fast<INVERSE, 7>(axis.rotations, own, lane, vectors, get, without_rest, put);
        else if (length == 64) transform_fast<INVERSE, 6>(axis.rotations, own, lane, vectors, get, without_rest, put);
        else transform_fast<INVERSE, 5>(axis.rotations, own, lane, vectors, get, without_rest, put);
        return;
    }
    for (int vector = 0; vector < vectors; ++vector) {
        const Eight given = without_rest(get(vector));
#pragma unroll
        for (int n = 0; n < EACH; ++n) own[n * WARP + lane] = given.values[n];
        __syncwarp();
        Eight eight = {};
        // All outputs of a lane at once: their loads do not wait for each other.
#pragma unroll 2
        for (int in = 0; in < length; ++in) {
            const float *row = item.matrix + in * length;
#pragma unroll
            for (int n = 0; n < EACH; ++n) eight.values[n] += __ldg(row + min(n * WARP + lane, length - 1)) * own[in];
        }
        put(vector, eight);
        __syncwarp();
    }
}

// The sums of `splits` parts for a lane's elements from `first` on, `stride` elements from a part to the next; in their order.
template <int SPLITS> __device__ __forceinline__ Loaded<float> sum_parts(const float *in, int splits, size_t stride, int first, int end) {
    Loaded<float> sums = {};
    // All loads of `SPLITS`, and then their sums: else each would be waited for.
#pragma unroll 1
    for (int split = 0; split < splits; split += SPLITS) {
        float loaded[SPLITS][EACH] = {};
#pragma unroll
        for (int s = 0; s < SPLITS; ++s) {
            const float *from = in + min(split + s, splits - 1) * stride + first;
#pragma unroll
            for (int n = 0; n < EACH; ++n) {
                if (first + n * WARP < end) loaded[s][n] = __ldcg(from + n * WARP);
            }
        }
#pragma unroll
        for (int s = 0; s < SPLITS; ++s) {
#pragma unroll
            for (int n = 0; n < EACH; ++n) sums.values[n] += split + s < splits ? loaded[s][n] : 0.0f;
        }
    }
    return sums;
}
