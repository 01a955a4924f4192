// Kernels with one fault each, and one without, to see that the machine finds them.
#include "../../../kernels/common.cuh"

extern "C" __global__ void reverse(float *values) {
    float *shared = reinterpret_cast<float *>(dynamic_shared);
    shared[threadIdx.x] = values[threadIdx.x];
    __syncthreads();
    values[threadIdx.x] = shared[THREADS - 1 - threadIdx.x];
}

// Reads what another thread writes, with no barrier between.
extern "C" __global__ void reverse_without_barrier(float *values) {
    float *shared = reinterpret_cast<float *>(dynamic_shared);
    shared[threadIdx.x] = values[threadIdx.x];
    values[threadIdx.x] = shared[THREADS - 1 - threadIdx.x];
}

// All threads write one place.
extern "C" __global__ void last_one_wins(float *values) { values[0] = (float)threadIdx.x; }

// The last of two blocks adds up what both wrote, with fences between or without.
template <bool FENCED> __device__ void add_up(float *values) {
    int *counter = reinterpret_cast<int *>(values); // the first is zero
    if (threadIdx.x < 2) values[1 + 2 * blockIdx.x + threadIdx.x] = 1.0f;
    if (FENCED) __threadfence();
    __syncthreads();
    if (!__syncthreads_or(threadIdx.x == 0 && atomicAdd(counter, 1) + 1 == (int)gridDim.x)) return;
    if (FENCED) __threadfence();
    if (threadIdx.x == THREADS / 2) values[5] = values[1] + values[2] + values[3] + values[4];
}
extern "C" __global__ void last_block_adds_up(float *values) { add_up<true>(values); }
extern "C" __global__ void last_block_adds_up_without_fences(float *values) { add_up<false>(values); }

// Waits for the launch before it, or reads what that has written first. Each block's threads read another one's.
extern "C" __global__ void waits_and_adds(float *values) {
    wait_for_launch_before();
    if (blockIdx.x == 0) values[threadIdx.x] += 1.0f;
}
extern "C" __global__ void waits_after_reading(float *values) {
    const float early = values[THREADS - 1 - threadIdx.x];
    wait_for_launch_before();
    if (early < 0.0f) values[threadIdx.x] = early;
}

extern "C" __global__ void barrier_for_half(float *values) {
    if (threadIdx.x < THREADS / 2) __syncthreads();
    values[threadIdx.x] += warp_sum(values[threadIdx.x]);
    if (threadIdx.x >= THREADS / 2) __syncthreads();
}

extern "C" __global__ void shuffle_after_leaving(float *values) {
    if (threadIdx.x % WARP == 0) return;
    values[threadIdx.x] = warp_sum(values[threadIdx.x]);
}

extern "C" __global__ void beyond_the_buffer(float *values) { values[threadIdx.x + 1] = 0.0f; }

extern "C" __global__ void beyond_shared(float *values) {
    float *shared = reinterpret_cast<float *>(dynamic_shared);
    shared[threadIdx.x + 1] = values[threadIdx.x];
}

extern "C" __global__ void misaligned(float *values) {
    values[threadIdx.x] = reinterpret_cast<const float4 *>(values + 1)[0].x;
}
