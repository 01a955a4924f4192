// CUDA C++ on a CPU: enough of the language to compile this crate's kernels with g++, unchanged. machine.cpp runs them,
// each CUDA thread in a fiber of its own.
//
// Covered: one dimension of threads, whole warps, dynamic shared memory, barriers of the block and the warp, shuffles
// among all lanes of a warp, one product on tensor cores, the half types, vector types, the few intrinsics in use. What is not here does not compile.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __noinline__ inline
#define __launch_bounds__(...)
// The kernels' only shared memory is `extern __shared__ float4 dynamic_shared[]`; one block runs at a time.
#define __shared__

struct Index {
    unsigned x, y, z;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

// A warp's exchange of so many bytes a lane. Two in turn: a fast lane may write the next value before a slow one has read
// this one.
struct Exchange {
    uint64_t values[2][32][3];
};

namespace machine {
extern Index thread_index, block_index, grid_size;

// Barriers, with their line; every thread of the block, or every lane of the warp, must come to the same one.
void block_barrier(int line);
void warp_barrier(int line);
// Whether any thread of the block came with a condition that holds.
bool block_barrier_or(bool condition, int line);
// What other blocks see: an addition at once, everything else after a fence of both.
int atomic_add(int *to, int value);
void fence();
// A launch that may begin before the one before it has ended waits for that.
void wait_for_launch_before();
// This warp's exchange, and which half of it is this thread's turn.
Exchange &exchange();
int turn();
int lane();
// Copies of sixteen bytes in the background of one thread, and groups of them: the first are waited for until so many are left.
void copy_ahead(void *to, const void *from);
void commit_copies();
void wait_for_copies(int left);

template <class T> T from_lane(T value, int source, int line) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle of at most eight bytes");
    uint64_t(&values)[32][3] = exchange().values[turn()];
    memcpy(values[lane()], &value, sizeof value);
    warp_barrier(line);
    memcpy(&value, values[source & 31], sizeof value);
    return value;
}

inline unsigned most_of_lanes(unsigned value, int line) {
    uint64_t(&values)[32][3] = exchange().values[turn()];
    values[lane()][0] = value;
    warp_barrier(line);
    for (int n = 0; n < 32; ++n) value = std::max(value, (unsigned)values[n][0]);
    return value;
}

// The lower half of a word as a number in half precision, or the upper.
inline float half_of(unsigned pair, int half) {
    const uint16_t bits = (uint16_t)(pair >> 16 * half);
    _Float16 value;
    memcpy(&value, &bits, sizeof value);
    return (float)value;
}
// PTX's mma.m16n8k16: a lane has rows `lane / 4` and 8 below of the left operand and of the sums, and column `lane / 4` of the
// right; of 16 inner elements 2t, 2t + 1, 2t + 8 and 2t + 9, of 8 sums 2t and 2t + 1, where `t = lane % 4`.
inline void mma_halves(float (&sums)[4], const unsigned (&left)[4], unsigned right_low, unsigned right_high, int line) {
    const unsigned own[6] = {left[0], left[1], left[2], left[3], right_low, right_high};
    uint64_t(&values)[32][3] = exchange().values[turn()];
    memcpy(values[lane()], own, sizeof own);
    warp_barrier(line);
    const int group = lane() / 4, t = lane() % 4;
    for (int inner = 0; inner < 16; ++inner) {
        const int among = inner % 8 / 2, upper = inner / 8;
        unsigned row[6], col[2][6];
        memcpy(row, values[4 * group + among], sizeof row);
        for (int n = 0; n < 2; ++n) memcpy(col[n], values[4 * (2 * t + n) + among], sizeof col[n]);
        for (int n = 0; n < 4; ++n) {
            sums[n] += half_of(row[2 * upper + n / 2], inner % 2) * half_of(col[n % 2][4 + upper], inner % 2);
        }
    }
}
} // namespace machine

#define threadIdx (machine::thread_index)
#define blockIdx (machine::block_index)
#define gridDim (machine::grid_size)
#define __syncthreads() machine::block_barrier(__LINE__)
#define __syncthreads_or(condition) machine::block_barrier_or(condition, __LINE__)
#define __threadfence() machine::fence()
#define atomicAdd(to, value) machine::atomic_add(to, value)
#define __syncwarp() machine::warp_barrier(__LINE__)
#define __reduce_max_sync(mask, value) machine::most_of_lanes(value, __LINE__)
#define __shfl_sync(mask, value, source) machine::from_lane(value, source, __LINE__)
#define __shfl_xor_sync(mask, value, distance) machine::from_lane(value, machine::lane() ^ (distance), __LINE__)

#define mma_halves(sums, left, right_low, right_high) machine::mma_halves(sums, left, right_low, right_high, __LINE__)

using std::max;
using std::min;

template <class To, class From> inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __uint_as_float(unsigned bits) { return bits_of<float>(bits); }
inline unsigned __float_as_uint(float value) { return bits_of<unsigned>(value); }
inline float __int_as_float(int bits) { return bits_of<float>(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return (unsigned)(((uint64_t)high << 32 | low) >> (shift & 31));
}
// Each byte of four by what a digit says of two words' eight.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned digits) {
    const uint64_t bytes = (uint64_t)high << 32 | low;
    unsigned word = 0;
    for (int n = 0; n < 4; ++n) word |= (unsigned)(bytes >> 8 * (digits >> 4 * n & 7) & 0xff) << 8 * n;
    return word;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int n = 0; n < 4; ++n) sum += (a >> 8 * n & 0xff) * (b >> 8 * n & 0xff);
    return sum;
}
// What kernels/common.cuh has of a card's own instructions.
inline unsigned add_masked(unsigned a, unsigned b, unsigned mask) { return a ^ (b & mask); }
inline unsigned select_bits(unsigned mask, unsigned a, unsigned b) { return (a & mask) | (b & ~mask); }
inline unsigned mask_or(unsigned bits, unsigned mask, unsigned also) { return (bits & mask) | also; }
inline float2 load_now(const float2 *at) { return *at; }
// Brings nothing to where it could be seen too early, so it races with no write.
#ifdef __SANITIZE_THREAD__
inline void send_for_line(const void *) {}
#else
inline void send_for_line(const void *at) { (void)*(const volatile char *)at; }
#endif
inline void let_next_launch_begin() {}
inline void wait_for_launch_before() { machine::wait_for_launch_before(); }
inline unsigned in_register(unsigned number) { return number; }
extern float4 dynamic_shared[];
inline unsigned shared_address(const void *at) { return (const char *)at - (const char *)dynamic_shared; }
inline unsigned shared_word(unsigned address) { return *(const unsigned *)((const char *)dynamic_shared + address); }
// Copies that are on their way arrive when they are waited for, and not before.
inline void copy_ahead(unsigned to, const uint4 *from) { machine::copy_ahead((char *)dynamic_shared + to, from); }
inline void copy_ahead_if(bool is_there, unsigned to, const void *from) {
    static const uint4 nothing = {0, 0, 0, 0};
    machine::copy_ahead((char *)dynamic_shared + to, is_there ? from : &nothing);
}
inline void commit_copies() { machine::commit_copies(); }
template <int LEFT> inline void wait_for_copies() { machine::wait_for_copies(LEFT); }
inline uint4 shared_quad(unsigned address) { return *(const uint4 *)((const char *)dynamic_shared + address); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T> inline T __ldg(const T *from) { return *from; }
template <class T> inline T __ldcg(const T *from) { return *from; }
template <class T> inline T __ldcs(const T *from) { return *from; }

struct __half {
    _Float16 value;
};
inline float __half2float(__half x) { return (float)x.value; }
inline __half __float2half(float x) { return {(_Float16)x}; }
inline __half __ushort_as_half(unsigned short bits) { return bits_of<__half>(bits); }

struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float((unsigned)x.bits << 16); }
inline __nv_bfloat16 __float2bfloat16(float x) {
    if (x != x) return {0x7fff};
    const unsigned bits = bits_of<unsigned>(x);
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)}; // to nearest, ties to even
}
inline unsigned halves_of(float low, float high) {
    return (unsigned)bits_of<uint16_t>((_Float16)low) | (unsigned)bits_of<uint16_t>((_Float16)high) << 16;
}
inline float low_half(unsigned halves) { return machine::half_of(halves, 0); }
inline float high_half(unsigned halves) { return machine::half_of(halves, 1); }
inline unsigned add_halves(unsigned a, unsigned b) {
    // Exact in F32 but for the last rounding.
    return halves_of(low_half(a) + low_half(b), high_half(a) + high_half(b));
}
