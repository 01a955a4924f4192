// CUDA C++ on a CPU: enough of the language to compile this crate's kernels with g++, unchanged. machine.cpp runs them,
// each CUDA thread in a fiber of its own.
//
// Covered: one dimension of threads, whole warps, dynamic shared memory, barriers of the block and the warp, shuffles
// among all lanes of a warp, the half types, vector types, the few intrinsics in use. What is not here does not compile.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
// The kernels' only shared memory is `extern __shared__ float4 dynamic_shared[]`; one block runs at a time.
#define __shared__

struct Index {
    unsigned x, y, z;
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

// A warp's exchange of eight bytes a lane. Two in turn: a fast lane may write the next value before a slow one has read
// this one.
struct Exchange {
    uint64_t values[2][32];
};

namespace machine {
extern Index thread_index, block_index, grid_size;

// Barriers, with their line; every thread of the block, or every lane of the warp, must come to the same one.
void block_barrier(int line);
void warp_barrier(int line);
// This warp's exchange, and which half of it is this thread's turn.
Exchange &exchange();
int turn();
int lane();

template <class T> T from_lane(T value, int source, int line) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle of at most eight bytes");
    uint64_t(&values)[32] = exchange().values[turn()];
    memcpy(&values[lane()], &value, sizeof value);
    warp_barrier(line);
    memcpy(&value, &values[source & 31], sizeof value);
    return value;
}
} // namespace machine

#define threadIdx (machine::thread_index)
#define blockIdx (machine::block_index)
#define gridDim (machine::grid_size)
#define __syncthreads() machine::block_barrier(__LINE__)
#define __syncwarp() machine::warp_barrier(__LINE__)
#define __shfl_sync(mask, value, source) machine::from_lane(value, source, __LINE__)
#define __shfl_xor_sync(mask, value, distance) machine::from_lane(value, machine::lane() ^ (distance), __LINE__)

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
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T> inline T __ldg(const T *from) { return *from; }

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
