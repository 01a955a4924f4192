// What lies between the products of one token's way through a decoder: norms and the residual stream, attention, nonlinearities.
//
// All that changes from token to token is in device memory (a position, and turns): a graph of one token's launches serves the next. The residual stream is
// in F32; what goes into products and comes from them, and the cache of keys and values, is of the model's type.
#include "common.cuh"

// The sum over all threads of a block of so many warps, in every one. `room` has a float a warp; a barrier is to lie between two sums in one room.
template <int COUNT> __device__ __forceinline__ float block_sum(float x, float *room) {
    const int lane = threadIdx.x % WARP;
    x = warp_sum(x);
    if (lane == 0) room[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_sum(lane < COUNT ? room[lane] : 0.0f);
}

// A norm of a vector: `(x - mean) / sqrt(variance + eps) * weight + bias`, or without a mean where there is no bias.
struct Norm {
    const float *weight, *bias; // without a weight there is no norm
    float eps;
};
#define NORM_PARAMETERS(NAME) const float *NAME##_weight, const float *NAME##_bias, float NAME##_eps
#define NORM(NAME) Norm { NAME##_weight, NAME##_bias, NAME##_eps }

constexpr int NORM_THREADS = 1024;
constexpr int NORM_WARPS = NORM_THREADS / WARP;

// Elements of a thread that are on their way at once.
constexpr int NORM_AHEAD = 4;

// `visit(n)` for a thread's own elements of `size`.
template <class Visit> __device__ __forceinline__ void for_own(int size, Visit visit) {
#pragma unroll NORM_AHEAD
    for (int n = threadIdx.x; n < size; n += NORM_THREADS) visit(n);
}

// Each thread's part of `own` (size) becomes normed; `room` is that of two sums.
__device__ __forceinline__ void normalize(const Norm &norm, float *own, int size, float *room) {
    float mean = 0.0f;
    if (norm.bias != nullptr) {
        float sum = 0.0f;
        for_own(size, [&](int n) { sum += own[n]; });
        mean = block_sum<NORM_WARPS>(sum, room) / (float)size;
    }
    float squares = 0.0f;
    for_own(size, [&](int n) { squares += (own[n] - mean) * (own[n] - mean); });
    const float scale = 1.0f / sqrtf(block_sum<NORM_WARPS>(squares, room + NORM_WARPS) / (float)size + norm.eps);
    for_own(size, [&](int n) {
        own[n] = (own[n] - mean) * scale * __ldg(norm.weight + n) + (norm.bias != nullptr ? __ldg(norm.bias + n) : 0.0f);
    });
}

// `h = factor inner(y)`, or `h += ..` with `add`, and `x = outer(h)`; without an inner norm `y` itself, without an outer one `h`. One block.
//
//     h        (size), F32
//     x, y     (size), of T
//     shared   h, y (size), sums (4, NORM_WARPS)
template <class T>
__device__ __forceinline__ void add_and_norm(float *h, const T *y, bool add, float factor, const Norm &inner, const Norm &outer, T *x, int size) {
    let_next_launch_begin();
    float *own_h = reinterpret_cast<float *>(dynamic_shared), *own_y = own_h + size, *room = own_y + size;
    // Twice, and first with zeros, while the launch before this one still runs: instructions and weights are in the caches then.
#pragma unroll 1
    for (uint32_t time = 0, times = in_register(2); time < times; ++time) {
        const bool are_there = time > 0;
        if (are_there) wait_for_launch_before();
        // A thread reads and writes its own elements alone.
        for (int first = threadIdx.x; first < size; first += NORM_AHEAD * NORM_THREADS) {
            float from_y[NORM_AHEAD], from_h[NORM_AHEAD];
#pragma unroll
            for (int e = 0; e < NORM_AHEAD; ++e) {
                const int n = first + e * NORM_THREADS;
                from_y[e] = are_there && n < size ? to_float(y[n]) : 0.0f, from_h[e] = are_there && add && n < size ? h[n] : 0.0f;
            }
#pragma unroll
            for (int e = 0; e < NORM_AHEAD; ++e) {
                const int n = first + e * NORM_THREADS;
                if (n < size) own_y[n] = from_y[e], own_h[n] = from_h[e];
            }
        }
        if (inner.weight != nullptr) normalize(inner, own_y, size, room);
        for_own(size, [&](int n) {
            own_h[n] += factor * own_y[n];
            if (are_there) h[n] = own_h[n];
        });
        if (outer.weight != nullptr) {
            __syncthreads();
            normalize(outer, own_h, size, room + 2 * NORM_WARPS);
        }
        if (are_there) for_own(size, [&](int n) { x[n] = from_float<T>(own_h[n]); });
        __syncthreads();
    }
}

// The nonlinearities, as src/cuda/step/decoder.rs numbers them.
enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

__device__ __forceinline__ float activate(int activation, float x) {
    if (activation == SILU) return x / (1.0f + expf(-x));
    if (activation == GELU) return 0.5f * x * (1.0f + erff(x * 0.707106781f));
    if (activation == GELU_TANH) return 0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)));
    return fmaxf(x, 0.0f);
}

// `out = act(x)`, or `act(x) * up` where there is one. All (size). Grid: (size / THREADS).
template <class T> __device__ __forceinline__ void gate(const T *x, const T *up, T *out, int activation, int size) {
    let_next_launch_begin();
    const int n = blockIdx.x * THREADS + threadIdx.x;
    wait_for_launch_before();
    if (n >= size) return;
    const float scale = up != nullptr ? to_float(up[n]) : 1.0f;
    out[n] = from_float<T>(activate(activation, to_float(x[n])) * scale);
}

// Attention of one token to those before it and itself, and its own key and value into the cache.
//
// A group of lanes has one key at a time, eight elements a lane, and every so manyth key of a split: its scores, their largest so far and the sum
// of values weighed by them stay in registers (online softmax: Milakov and Gimelshein, arXiv 1805.02867). Groups are put together at the end,
// then warps, and by the last block of a head its splits (Flash-Decoding, Dao et al. 2023).
constexpr int EIGHT = 8;

struct Attention {
    int heads, kv_heads, width; // of a head: a multiple of 8, at most 256
    int capacity;               // of the cache, positions
    float scale, softcap;       // no cap: 0
    int window;                 // no window: 0
    int rotated;                // elements of a head that are turned
    int normed;                 // 0 no norm of queries and keys, 1 of each head's, 2 of all heads' together
    float eps;

    __device__ int per_key() const { return heads / kv_heads; }
};

// Eight elements as they lie in memory.
template <class T> struct Eight {
    static constexpr int QUADS = EIGHT * sizeof(T) / sizeof(uint4);
    Quad<T> quads[QUADS];

    __device__ __forceinline__ void load(const T *from) {
#pragma unroll
        for (int n = 0; n < QUADS; ++n) quads[n].bits = reinterpret_cast<const uint4 *>(from)[n];
    }
    __device__ __forceinline__ float operator[](int n) const { return to_float(quads[n / Quad<T>::COUNT].values[n % Quad<T>::COUNT]); }
};

// What a group of lanes knows of the keys that it had: the largest score, and relative to it the sum of weights and that of weighed values.
template <int HEADS> struct Seen {
    float largest[HEADS], weights[HEADS], values[HEADS][EIGHT];

    __device__ __forceinline__ Seen() {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            largest[h] = -INFINITY, weights[h] = 0.0f;
#pragma unroll
            for (int n = 0; n < EIGHT; ++n) values[h][n] = 0.0f;
        }
    }
    // Takes in others: the sums are relative to `other`, the largest of their scores.
    template <class Values> __device__ __forceinline__ void add(int h, float other, float other_weights, const Values &other_values) {
        if (other == -INFINITY) return; // nothing, or a weight of nothing
        const float most = farther(largest[h], other);
        const float own = expf(largest[h] - most), theirs = expf(other - most);
        largest[h] = most, weights[h] = weights[h] * own + other_weights * theirs;
#pragma unroll
        for (int n = 0; n < EIGHT; ++n) values[h][n] = values[h][n] * own + other_values[n] * theirs;
    }
    // Takes in the values of several keys by their scores, which are -INFINITY where there is no key.
    template <int KEYS, class Values> __device__ __forceinline__ void add(int h, const float (&scores)[KEYS], const Values (&of_keys)[KEYS]) {
        float most = largest[h];
#pragma unroll
        for (int k = 0; k < KEYS; ++k) most = farther(most, scores[k]);
        if (most == -INFINITY) return;
        const float own = expf(largest[h] - most);
        largest[h] = most, weights[h] *= own;
#pragma unroll
        for (int n = 0; n < EIGHT; ++n) values[h][n] *= own;
#pragma unroll
        for (int k = 0; k < KEYS; ++k) {
            const float weight = expf(scores[k] - most);
            weights[h] += weight;
#pragma unroll
            for (int n = 0; n < EIGHT; ++n) values[h][n] += weight * of_keys[k][n];
        }
    }
    // The larger, or what is not a number.
    __device__ __forceinline__ static float farther(float a, float b) { return b <= a ? a : b; }
};

// Of a head's elements in `own`, in shared memory, each lane's every 32nd: normed by `weight` (null: not), and the first of them turned. `squares`
// is the mean square of all heads', where that counts. All lanes of a warp.
__device__ __forceinline__ void norm_and_turn(const Attention &at, float *own, const float *weight, float squares, const float *turns, float factor) {
    const int lane = threadIdx.x % WARP;
    __syncwarp();
    if (weight != nullptr) {
        float sum = 0.0f;
        for (int n = lane; n < at.width; n += WARP) sum += own[n] * own[n];
        if (at.normed == 1) squares = warp_sum(sum) / (float)at.width;
        const float scale = 1.0f / sqrtf(squares + at.eps);
        for (int n = lane; n < at.width; n += WARP) own[n] *= scale * __ldg(weight + n);
        __syncwarp();
    }
    const int half = at.rotated / 2;
    for (int n = lane; n < half; n += WARP) {
        const float cosine = turns[n], sine = turns[half + n], a = own[n], b = own[half + n];
        own[n] = a * cosine - b * sine, own[half + n] = b * cosine + a * sine;
    }
    __syncwarp();
    for (int n = lane; n < at.width; n += WARP) own[n] *= factor;
}

// Grid: (splits, groups of HEADS query heads of all key heads).
//
//     position      how many tokens are before this one
//     turns         cosines of its angles, (rotated / 2), and sines
//     q, k, v       (heads, width), (kv_heads, width), of T
//     keys, values  (kv_heads, capacity, width): the token's own are written at its position
//     out           (heads, width)
//     parts         (heads, splits, width + 2), F32; counters one a block of the grid's second side
//     shared        q (HEADS, width), k and v (width); sums of warps (WARPS); then, over all, of each warp (HEADS, width + 2)
template <class T, int HEADS>
__device__ __forceinline__ void attend(const Attention &at, const uint32_t *token_position, const float *turns, const T *q, const T *k, const T *v, T *keys, T *values,
                                       const float *q_weight, const float *k_weight, T *out, float *parts, int *counters) {
    let_next_launch_begin();
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, width = at.width;
    const int groups = (at.per_key() + HEADS - 1) / HEADS, kv_head = blockIdx.y / groups;
    const int head = kv_head * at.per_key() + blockIdx.y % groups * HEADS, here = min(HEADS, (kv_head + 1) * at.per_key() - head);
    float *shared = reinterpret_cast<float *>(dynamic_shared), *own_k = shared + HEADS * width, *own_v = own_k + width, *room = own_v + width;
    // No launch writes these.
    const int position = (int)*token_position, first = at.window > 0 ? max(position + 1 - at.window, 0) : 0;
    send_for(turns, at.rotated * (int)sizeof(float));
    // Lanes of a group, of which the last may have none of the key's elements.
    int lanes = 1;
    while (lanes * EIGHT < width) lanes *= 2;
    const int slot = threadIdx.x / lanes, slots = THREADS / lanes, element = threadIdx.x % lanes * EIGHT;
    const bool has_elements = element < width;
    // Keys before this one, shared out; few among few blocks, since it takes time to put together what these have.
    constexpr int AHEAD = HEADS == 1 ? 4 : 2, FEWEST_ROUNDS = 4;
    const int fewest = FEWEST_ROUNDS * AHEAD * slots, splits = min(max((position - first + fewest - 1) / fewest, 1), (int)gridDim.x);
    if ((int)blockIdx.x >= splits) return;
    const int each = (position - first + splits - 1) / splits;
    const int begin = min(first + (int)blockIdx.x * each, position), end = min(begin + each, position);
    const bool has_own = (int)blockIdx.x == splits - 1;
    keys += (size_t)kv_head * at.capacity * width, values += (size_t)kv_head * at.capacity * width;
    send_for(keys + (size_t)begin * width, (end - begin) * width * (int)sizeof(T));
    send_for(values + (size_t)begin * width, (end - begin) * width * (int)sizeof(T));
    wait_for_launch_before();

    // Several keys are on their way at once, the first of them while queries are prepared.
    Eight<T> key[AHEAD], value[AHEAD];
    auto send_for_keys = [&](int base) {
#pragma unroll
        for (int n = 0; n < AHEAD; ++n) {
            const int at_key = base + n * slots + slot;
            key[n] = {}, value[n] = {};
            if (at_key < end && has_elements) {
                key[n].load(keys + (size_t)at_key * width + element);
                value[n].load(values + (size_t)at_key * width + element);
            }
        }
    };
    send_for_keys(begin);

    // Queries, the key and the value, a warp each.
    float q_squares = 0.0f, k_squares = 0.0f;
    if (at.normed == 2) {
        float q_sum = 0.0f, k_sum = 0.0f;
        for (int n = threadIdx.x; n < at.heads * width; n += THREADS) q_sum += to_float(q[n]) * to_float(q[n]);
        for (int n = threadIdx.x; n < at.kv_heads * width; n += THREADS) k_sum += to_float(k[n]) * to_float(k[n]);
        q_squares = block_sum<WARPS>(q_sum, room) / (float)(at.heads * width);
        __syncthreads();
        k_squares = block_sum<WARPS>(k_sum, room) / (float)(at.kv_heads * width);
    }
    if (warp < here) {
        float *own = shared + warp * width;
        for (int n = lane; n < width; n += WARP) own[n] = to_float(q[(head + warp) * width + n]);
        const float *weight = q_weight == nullptr || at.normed == 1 ? q_weight : q_weight + (head + warp) * width;
        norm_and_turn(at, own, weight, q_squares, turns, at.scale);
    } else if (warp < HEADS) {
        for (int n = lane; n < width; n += WARP) shared[warp * width + n] = 0.0f;
    } else if (warp == HEADS && has_own) {
        for (int n = lane; n < width; n += WARP) own_k[n] = to_float(k[kv_head * width + n]);
        const float *weight = k_weight == nullptr || at.normed == 1 ? k_weight : k_weight + kv_head * width;
        norm_and_turn(at, own_k, weight, k_squares, turns, 1.0f);
        for (int n = lane; n < width; n += WARP) {
            // As the cache has it.
            const T key = from_float<T>(own_k[n]);
            own_k[n] = to_float(key);
            if (blockIdx.y % groups == 0) keys[(size_t)position * width + n] = key;
        }
    } else if (warp == HEADS + 1 && has_own) {
        for (int n = lane; n < width; n += WARP) {
            own_v[n] = to_float(v[kv_head * width + n]);
            if (blockIdx.y % groups == 0) values[(size_t)position * width + n] = from_float<T>(own_v[n]);
        }
    }
    __syncthreads();

    float own_q[HEADS][EIGHT] = {};
    if (has_elements) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            Eight<float> eight;
            eight.load(shared + h * width + element);
#pragma unroll
            for (int n = 0; n < EIGHT; ++n) own_q[h][n] = eight[n];
        }
    }
    Seen<HEADS> seen;
    // Of several keys at once, whose sums over lanes do not wait for each other.
    auto find_scores = [&](int h, const auto &of_keys, auto &scores) {
        constexpr int KEYS = sizeof(scores) / sizeof(scores[0]);
#pragma unroll
        for (int k = 0; k < KEYS; ++k) {
            scores[k] = 0.0f;
#pragma unroll
            for (int n = 0; n < EIGHT; ++n) scores[k] += own_q[h][n] * of_keys[k][n];
        }
        for (int distance = lanes / 2; distance > 0; distance /= 2) {
#pragma unroll
            for (int k = 0; k < KEYS; ++k) scores[k] += __shfl_xor_sync(ALL_LANES, scores[k], distance);
        }
        if (at.softcap > 0.0f) {
#pragma unroll
            for (int k = 0; k < KEYS; ++k) scores[k] = at.softcap * tanhf(scores[k] / at.softcap);
        }
    };
    // All threads go on as long as any has a key: they have shuffles in common.
    for (int base = begin; base < end; base += slots * AHEAD) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float scores[AHEAD];
            find_scores(h, key, scores);
#pragma unroll
            for (int n = 0; n < AHEAD; ++n) scores[n] = base + n * slots + slot < end ? scores[n] : -INFINITY;
            seen.add(h, scores, value);
        }
        send_for_keys(base + slots * AHEAD);
    }
    if (has_own) {
        Eight<float> own_key[1] = {}, own_value[1] = {};
        if (has_elements) own_key[0].load(own_k + element), own_value[0].load(own_v + element);
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float scores[1];
            find_scores(h, own_key, scores);
            if (slot == 0) seen.add(h, scores, own_value);
        }
    }
    // The groups of a warp.
    for (int distance = lanes; distance < WARP; distance *= 2) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            const float largest = __shfl_xor_sync(ALL_LANES, seen.largest[h], distance), weights = __shfl_xor_sync(ALL_LANES, seen.weights[h], distance);
            float values_of[EIGHT];
#pragma unroll
            for (int n = 0; n < EIGHT; ++n) values_of[n] = __shfl_xor_sync(ALL_LANES, seen.values[h][n], distance);
            seen.add(h, largest, weights, values_of);
        }
    }
    __syncthreads();
    // Of each warp the sum of weighed values, that of weights and the largest score.
    const int stride = width + 2;
    if (lane < lanes) {
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float *to = shared + (warp * HEADS + h) * stride;
            for (int n = 0; has_elements && n < EIGHT; ++n) to[element + n] = seen.values[h][n];
            if (lane == 0) to[width] = seen.weights[h], to[width + 1] = seen.largest[h];
        }
    }
    __syncthreads();
    // Parts of one head put together: those at `of(part)`, each (width + 2). Returns weighed values' sum, of which `weights` and `largest` are.
    auto together = [&](auto of, int count, int n, float &weights, float &largest) {
        largest = -INFINITY, weights = 0.0f;
        for (int part = 0; part < count; ++part) largest = fmaxf(largest, of(part, width + 1));
        float sum = 0.0f;
        for (int part = 0; part < count; ++part) {
            const float theirs = of(part, width + 1) == -INFINITY ? 0.0f : expf(of(part, width + 1) - largest);
            weights += theirs * of(part, width), sum += theirs * of(part, n);
        }
        return sum;
    };
    for (int n = threadIdx.x; n < here * width; n += THREADS) {
        const int h = n / width, element_of = n % width;
        float weights, largest;
        const auto of_warp = [&](int part, int m) { return shared[(part * HEADS + h) * stride + m]; };
        const float sum = together(of_warp, WARPS, element_of, weights, largest);
        if (splits == 1) {
            out[(size_t)(head + h) * width + element_of] = from_float<T>(sum / weights);
        } else {
            float *part = parts + ((size_t)(head + h) * splits + blockIdx.x) * stride;
            part[element_of] = sum;
            if (element_of == 0) part[width] = weights, part[width + 1] = largest;
        }
    }
    if (splits == 1) return;
    __syncthreads();
    bool counted = false;
    if (threadIdx.x == 0) {
        __threadfence();
        counted = atomicAdd(counters + blockIdx.y, 1) + 1 == splits;
        __threadfence();
        if (counted) counters[blockIdx.y] = 0;
    }
    if (!__syncthreads_or(counted)) return;
    for (int n = threadIdx.x; n < here * width; n += THREADS) {
        const int h = n / width, element_of = n % width;
        float weights, largest;
        const auto of_split = [&](int part, int m) { return __ldcg(parts + ((size_t)(head + h) * splits + part) * stride + m); };
        const float sum = together(of_split, splits, element_of, weights, largest);
        out[(size_t)(head + h) * width + element_of] = from_float<T>(sum / weights);
    }
}

#define ADD_AND_NORM(NAME, T) \
    extern "C" __global__ void __launch_bounds__(NORM_THREADS) \
        add_and_norm_##NAME(float *h, const T *y, int add, float factor, NORM_PARAMETERS(inner), NORM_PARAMETERS(outer), T *x, int size) { \
        add_and_norm<T>(h, y, add != 0, factor, NORM(inner), NORM(outer), x, size); \
    }
ADD_AND_NORM(f32, float)
ADD_AND_NORM(f16, __half)
ADD_AND_NORM(bf16, __nv_bfloat16)

#define GATE(NAME, T) \
    extern "C" __global__ void __launch_bounds__(THREADS) gate_##NAME(const T *x, const T *up, T *out, int activation, int size) { \
        gate<T>(x, up, out, activation, size); \
    }
GATE(f32, float)
GATE(f16, __half)
GATE(bf16, __nv_bfloat16)

#define ATTEND(NAME, T, HEADS) \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) \
        attend_##HEADS##_##NAME(const uint32_t *token_position, const float *turns, const T *q, const T *k, const T *v, T *keys, T *values, const float *q_weight, \
                                const float *k_weight, T *out, float *parts, int *counters, int heads, int kv_heads, int width, \
                                int capacity, float scale, float softcap, int window, int rotated, int normed, float eps) { \
        const Attention at {heads, kv_heads, width, capacity, scale, softcap, window, rotated, normed, eps}; \
        attend<T, HEADS>(at, token_position, turns, q, k, v, keys, values, q_weight, k_weight, out, parts, counters); \
    }
ATTEND(f32, float, 1)
ATTEND(f16, __half, 1)
ATTEND(bf16, __nv_bfloat16, 1)
ATTEND(f32, float, 4)
ATTEND(f16, __half, 4)
ATTEND(bf16, __nv_bfloat16, 4)
