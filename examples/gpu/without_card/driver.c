// A CUDA driver, cuBLAS and cuRAND that run nothing: device memory is the host's, kernels are not called, and what is asked for is counted.
// So a program that is built for a card runs where there is none. Its results are meaningless; how often it asks for what, how long the host takes and what
// it does while a graph is captured are not.
//
// A launch in a capture is noted and counted again with each launch of its graph. An allocation, a copy, a wait or a launch by Candle there is what a
// driver would not take into a graph of this crate's: it is said at once, and counted as wrong. WITHOUT_CARD_TRACE=1 prints each kernel.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Result;
typedef unsigned long long Pointer;

static struct {
    long launches, own_launches, early, graphs, in_graphs, captures, allocations, copies_in, copies_out, copies, waits, wrong;
} count;
static int capturing, captured, traces;

static void report(void) {
    fprintf(stderr,
            "without a card: %ld launches by Candle, %ld of ours (%ld may begin early), %ld graphs of %ld launches in all, %ld captures, "
            "%ld allocations, copies in %ld, out %ld, within %ld, %ld waits, %ld wrong\n",
            count.launches, count.own_launches, count.early, count.graphs, count.in_graphs, count.captures, count.allocations, count.copies_in,
            count.copies_out, count.copies, count.waits, count.wrong);
}

__attribute__((constructor)) static void begin(void) {
    traces = getenv("WITHOUT_CARD_TRACE") != NULL;
    atexit(report);
}

static void refuse_in_capture(const char *what) {
    if (!capturing) return;
    ++count.wrong;
    fprintf(stderr, "without a card: %s while a graph is captured\n", what);
}

#define NOTHING(NAME) \
    Result NAME(void) { return 0; }

// The card: what an H100 says of itself where somebody asks.
enum { MULTIPROCESSORS = 16, L2_BYTES = 38, MAJOR = 75, MINOR = 76, SHARED_BYTES = 97 };

Result cuDriverGetVersion(int *version) { return *version = 13000, 0; }
Result cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
Result cuDeviceGetName(char *name, int length, int device) { return snprintf(name, (size_t)length, "no card"), 0; }
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case MULTIPROCESSORS: *value = 132; break;
    case L2_BYTES: *value = 50 << 20; break;
    case MAJOR: *value = 9; break;
    case MINOR: *value = 0; break;
    case SHARED_BYTES: *value = 227 * 1024; break;
    default: *value = 1;
    }
    return 0;
}
Result cuFuncGetAttribute(int *value, int attribute, void *function) { return *value = 90, 0; }
Result cuMemGetInfo_v2(size_t *free, size_t *total) { return *free = *total = 80ull << 30, 0; }

// Handles, which nobody looks into.
static __thread void *current;
static Result handle(void **to) { return *to = (void *)8, 0; }
Result cuDevicePrimaryCtxRetain(void **context, int device) { return handle(context); }
Result cuCtxGetCurrent(void **context) { return *context = current, 0; }
Result cuCtxSetCurrent(void *context) { return current = context, 0; }
Result cuDeviceGetMemPool(void **pool, int device) { return handle(pool); }
Result cuMemPoolGetAttribute(void *pool, int attribute, void *value) { return *(uint64_t *)value = 0, 0; }
Result cuEventCreate(void **event, unsigned flags) { return handle(event); }
Result cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) { return *milliseconds = 1.0f, 0; }
Result cuGetErrorString(int error, const char **text) { return *text = "an error", 0; }
Result cuModuleLoad(void **module, const char *name) { return handle(module); }
Result cuModuleLoadData(void **module, const void *data) { return handle(module); }
Result cuModuleGetFunction(void **function, void *module, const char *name) { return *function = strdup(name), 0; }
Result cublasCreate_v2(void **blas) { return handle(blas); }
Result curandCreateGenerator(void **generator, int kind) { return handle(generator); }
NOTHING(cuInit)
NOTHING(cuCtxDestroy_v2)
NOTHING(cuDevicePrimaryCtxRelease_v2)
NOTHING(cuEventDestroy_v2)
NOTHING(cuEventRecord)
NOTHING(cuFuncSetAttribute)
NOTHING(cuMemPoolSetAttribute)
NOTHING(cuMemcpyPeerAsync)
NOTHING(cuModuleUnload)
NOTHING(cuStreamDestroy_v2)
NOTHING(cublasDestroy_v2)
NOTHING(cublasDgemmStridedBatched)
NOTHING(cublasGemmStridedBatchedEx)
NOTHING(cublasSetStream_v2)
NOTHING(curandDestroyGenerator)
NOTHING(curandGenerateNormal)
NOTHING(curandGenerateNormalDouble)
NOTHING(curandGenerateUniform)
NOTHING(curandGenerateUniformDouble)
NOTHING(curandSetPseudoRandomGeneratorSeed)
NOTHING(curandSetStream)

// Memory is zero at first; so are the results of kernels that do not run.
Result cuMemAllocAsync(Pointer *memory, size_t bytes, void *stream) {
    refuse_in_capture("an allocation"), ++count.allocations;
    *memory = (Pointer)(uintptr_t)calloc(1, bytes);
    return *memory != 0 ? 0 : 2;
}
Result cuMemAlloc_v2(Pointer *memory, size_t bytes) { return cuMemAllocAsync(memory, bytes, NULL); }
Result cuMemFreeAsync(Pointer memory, void *stream) { return refuse_in_capture("a release"), free((void *)(uintptr_t)memory), 0; }
Result cuMemFree_v2(Pointer memory) { return cuMemFreeAsync(memory, NULL); }
static Result copy(void *to, const void *from, size_t bytes, long *counted) {
    refuse_in_capture("a copy"), ++*counted;
    return memcpy(to, from, bytes), 0;
}
Result cuMemcpyHtoDAsync_v2(Pointer to, const void *from, size_t bytes, void *stream) {
    return copy((void *)(uintptr_t)to, from, bytes, &count.copies_in);
}
Result cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t bytes, void *stream) {
    return copy(to, (const void *)(uintptr_t)from, bytes, &count.copies_out);
}
Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void *stream) {
    return copy((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes, &count.copies);
}
Result cuMemsetD8Async(Pointer to, unsigned char value, size_t bytes, void *stream) {
    refuse_in_capture("a filling");
    // What is allocated is zero already, and a card fills faster.
    if (value != 0) memset((void *)(uintptr_t)to, value, bytes);
    return 0;
}

static Result waits(void) { return refuse_in_capture("waiting"), ++count.waits, 0; }
Result cuCtxSynchronize(void) { return waits(); }
Result cuStreamSynchronize(void *stream) { return waits(); }
Result cuEventSynchronize(void *event) { return waits(); }
Result cuStreamWaitEvent(void *stream, void *event, unsigned flags) { return waits(); }

// Candle launches by the one, this crate by the other.
Result cuLaunchKernel(const char *name) {
    refuse_in_capture("a launch by Candle"), ++count.launches;
    if (traces) fprintf(stderr, "%s\n", name);
    return 0;
}
struct Config {
    unsigned grid[3], block[3], shared_bytes;
    void *stream, *attributes;
    unsigned attribute_count;
};
Result cuLaunchKernelEx(const struct Config *config, const char *name) {
    ++count.own_launches, count.early += config->attribute_count, captured += capturing;
    if (traces) fprintf(stderr, "%s, %u by %u by %u blocks%s\n", name, config->grid[0], config->grid[1], config->grid[2], capturing ? ", captured" : "");
    return 0;
}

// A graph is how many launches it has.
Result cuStreamBeginCapture_v2(void *stream, int mode) { return capturing = 1, captured = 0, ++count.captures, 0; }
Result cuStreamEndCapture(void *stream, void **graph) { return capturing = 0, *graph = (void *)(intptr_t)(captured + 1), 0; }
Result cuStreamIsCapturing(void *stream, int *status) { return *status = capturing, 0; }
Result cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) { return *made = graph, 0; }
Result cuGraphLaunch(void *graph, void *stream) {
    ++count.graphs, count.in_graphs += (intptr_t)graph - 1;
    if (traces) fprintf(stderr, "a graph of %ld launches\n", (long)(intptr_t)graph - 1);
    return 0;
}
NOTHING(cuGraphDestroy)
NOTHING(cuGraphExecDestroy)
