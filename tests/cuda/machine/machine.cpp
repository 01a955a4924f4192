// A CUDA device on a CPU, driven through a pipe: memory is this process's, kernels are its own functions, each thread
// of a block is a fiber. Blocks run one after another, threads in order or in reverse, and change only at barriers.
//
// What it finds: threads that miss a barrier or come to another one (with both lines), shared or fresh device memory
// read before it is written (all of it is NaN at first), results that depend on the order of threads. Compiled with
// -fsanitize=address,alignment also addresses outside a buffer or the block's shared memory and misaligned loads; with
// -fsanitize=thread, and -DRACES here, every two accesses of threads that no barrier orders, nor, in two blocks of a launch, fences, nor, in two
// launches of which the second waits for the first itself, that.
#include "cuda_cpu.h"
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <map>
#include <set>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#if !defined(__x86_64__)
#error "fibers are switched, and kernels called, as x86-64's System V ABI has it"
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)0)
#endif

#ifdef RACES
extern "C" {
void *__tsan_get_current_fiber();
void *__tsan_create_fiber(unsigned);
void __tsan_switch_to_fiber(void *, unsigned);
void __tsan_acquire(void *);
void __tsan_release(void *);
}
#else
static void *__tsan_get_current_fiber() { return nullptr; }
static void *__tsan_create_fiber(unsigned) { return nullptr; }
static void __tsan_switch_to_fiber(void *, unsigned) {}
static void __tsan_acquire(void *) {}
static void __tsan_release(void *) {}
#endif

constexpr size_t SHARED_BYTES = 227 * 1024, PAGE_BYTES = 4096, STACK_BYTES = 64 * 1024;
constexpr size_t SHARED_PAGES = (SHARED_BYTES + PAGE_BYTES - 1) / PAGE_BYTES;
constexpr int WARP_SIZE = 32, MOST_THREADS = 1024, MOST_WORDS = 40, MOST_FLOATS = 8;
constexpr unsigned SWITCH_WITHOUT_SYNC = 1;

alignas(PAGE_BYTES) float4 dynamic_shared[SHARED_PAGES * PAGE_BYTES / sizeof(float4)];

// ---- fibers ----

// Addresses that stand for barriers: what happens before one is released to it, what happens after acquires it. Two in
// turn, for a thread may come to the next barrier before another has left this one; each block has its own, so that what it does is
// not ordered after what others did.
constexpr int MOST_WARPS = MOST_THREADS / WARP_SIZE, BLOCKS_IN_TURN = 1024;
static char barrier_tags[BLOCKS_IN_TURN][MOST_WARPS + 1][2];
static int block_number;

static char *block_tag(unsigned barrier) { return &barrier_tags[block_number % BLOCKS_IN_TURN][MOST_WARPS][barrier % 2]; }
static char *warp_tag(int warp, unsigned barrier) { return &barrier_tags[block_number % BLOCKS_IN_TURN][warp][barrier % 2]; }

enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

struct Fiber {
    void *stack_pointer, *sanitizer;
    State state;
    int line, turn;
    unsigned block_barriers, warp_barriers; // passed so far
};

struct Warp {
    int waiting, done, line;
};

// Everything a kernel needs of its registers: pushed on the old stack, popped from the new one.
asm(R"(.text
switch_stacks:
    pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
    ret
)");
extern "C" void switch_stacks(void **from, void *to);

// A launch: the function, and its arguments as the ABI passes them. Integers and pointers go through registers and then
// the stack in their own order, up to eight floats through theirs, however the two are mixed.
struct Kernel {
    void (*function)();
    uint64_t words[MOST_WORDS];
    float floats[MOST_FLOATS];
    bool waits; // itself for what launches before it have done

    void call() const {
#define TYPES_8 uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t
#define WORDS_8(n) w[n], w[n + 1], w[n + 2], w[n + 3], w[n + 4], w[n + 5], w[n + 6], w[n + 7]
        typedef void (*Function)(TYPES_8, TYPES_8, TYPES_8, TYPES_8, TYPES_8, float, float, float, float, float, float, float, float);
        const uint64_t *w = words;
        const float *f = floats;
        reinterpret_cast<Function>(function)(WORDS_8(0), WORDS_8(8), WORDS_8(16), WORDS_8(24), WORDS_8(32), f[0], f[1], f[2], f[3],
                                             f[4], f[5], f[6], f[7]);
#undef TYPES_8
#undef WORDS_8
    }
};

// What a thread does in one block is not before what it does in the next: neighbours have two fibers in turn.
struct Place {
    char *stack;
    void *sanitizer;
};
static Place places[2][MOST_THREADS];
static Fiber fibers[MOST_THREADS];
static Warp warps[MOST_WARPS];
alignas(PAGE_BYTES) static Exchange exchanges[MOST_WARPS];
static_assert(sizeof exchanges % PAGE_BYTES == 0, "whole pages");
static Kernel kernel;
static int threads, current, step, at_block_barrier, done;
static void *host_stack, *host_sanitizer;
static bool any_thread[2]; // of a barrier with a condition, and of the next one
static char block_begin, launch_ends[2], fences; // of a launch and the one before it, in turn
static unsigned launch_number;
static std::string fault;

namespace machine {
Index thread_index, block_index, grid_size;
int turn() { return fibers[current].turn ^= 1; }
int lane() { return current % WARP_SIZE; }
Exchange &exchange() { return exchanges[current / WARP_SIZE]; }
} // namespace machine

static void leave_for(void *sanitizer, void *stack_pointer) {
    void **own = &fibers[current].stack_pointer;
    __tsan_switch_to_fiber(sanitizer, SWITCH_WITHOUT_SYNC);
    switch_stacks(own, stack_pointer);
}

static void fail(const std::string &what, int line) {
    const Index &block = machine::block_index;
    fault = what + " at line " + std::to_string(line) + ", thread " + std::to_string(current) + " of block " +
            std::to_string(block.x) + "," + std::to_string(block.y) + "," + std::to_string(block.z);
    leave_for(host_sanitizer, host_stack);
}

// Goes on with the next thread that can.
static void next_thread(int line) {
    for (int n = 1, other = current; n <= threads; ++n) {
        other = step > 0 ? (other + 1 < threads ? other + 1 : 0) : other > 0 ? other - 1 : threads - 1;
        if (fibers[other].state != READY) continue;
        if (other == current) return;
        const int own = current;
        void *sanitizer = fibers[other].sanitizer;
        __tsan_switch_to_fiber(sanitizer, SWITCH_WITHOUT_SYNC);
        current = other, machine::thread_index.x = other;
        switch_stacks(&fibers[own].stack_pointer, fibers[other].stack_pointer);
        return;
    }
    fail("threads wait for each other: a barrier that not all reach", line);
}

static void check_block_barrier(int line) {
    if (at_block_barrier == 0 || at_block_barrier + done < threads) return;
    for (int n = 0; n < threads; ++n) {
        if (fibers[n].state != AT_BLOCK_BARRIER) continue;
        if (fibers[n].line != line && line != 0) fail("a barrier while others wait at line " + std::to_string(fibers[n].line), line);
        fibers[n].state = READY;
    }
    at_block_barrier = 0;
}

void machine::block_barrier(int line) { block_barrier_or(false, line); }

bool machine::block_barrier_or(bool condition, int line) {
    Fiber &own = fibers[current];
    own.state = AT_BLOCK_BARRIER, own.line = line, ++at_block_barrier;
    const unsigned turn = own.block_barriers++ % 2;
    // Who comes first to a barrier has left the last one, whose answer everybody waits to read before the next one.
    if (at_block_barrier == 1) any_thread[turn] = false;
    any_thread[turn] |= condition;
    char *tag = block_tag(turn);
    __tsan_release(tag);
    check_block_barrier(line);
    next_thread(line);
    __tsan_acquire(tag);
    return any_thread[turn];
}

int machine::atomic_add(int *to, int value) {
    const int before = *to;
    *to = before + value;
    return before;
}

void machine::fence() {
    __tsan_release(&fences);
    __tsan_acquire(&fences);
}

void machine::warp_barrier(int line) {
    Warp &warp = warps[current / WARP_SIZE];
    if (warp.done > 0) fail("a warp's barrier that lanes have left the kernel before", line);
    if (warp.waiting > 0 && warp.line != line) fail("a warp's barrier while lanes wait at line " + std::to_string(warp.line), line);
    warp.line = line;
    Fiber &own = fibers[current];
    own.state = AT_WARP_BARRIER;
    char *tag = warp_tag(current / WARP_SIZE, own.warp_barriers++);
    __tsan_release(tag);
    if (++warp.waiting == WARP_SIZE) {
        warp.waiting = 0;
        const int first = current / WARP_SIZE * WARP_SIZE;
        for (int n = first; n < first + WARP_SIZE; ++n) fibers[n].state = READY;
    }
    next_thread(line);
    __tsan_acquire(tag);
}

// Copies of a thread that are on their way, in their order, and of which group each is. As with stacks, neighbours have two in turn.
struct Copy {
    void *to;
    const void *from;
    int group;
};
constexpr int MOST_COPIES = 64, COPY_BYTES = 16;
struct Copies {
    Copy at[MOST_COPIES];
    int first, count, groups; // groups committed so far
};
static Copies copies[2][MOST_THREADS];
static int copies_turn;

// From now on nobody may count on what was there.
void machine::copy_ahead(void *to, const void *from) {
    Copies &own = copies[copies_turn][current];
    if (own.count == MOST_COPIES) fail("more copies on their way than the machine counts", 0);
    memset(to, 0xff, COPY_BYTES);
    own.at[(own.first + own.count++) % MOST_COPIES] = {to, from, own.groups};
}

void machine::commit_copies() { ++copies[copies_turn][current].groups; }

void machine::wait_for_copies(int left) {
    Copies &own = copies[copies_turn][current];
    for (; own.count > 0 && own.at[own.first].group < own.groups - left; own.first = (own.first + 1) % MOST_COPIES, --own.count) {
        memcpy(own.at[own.first].to, own.at[own.first].from, COPY_BYTES);
    }
}

// What launches before this one have done is before what a thread does from here on.
void machine::wait_for_launch_before() { __tsan_acquire(&launch_ends[(launch_number + 1) % 2]); }

static void thread_main() {
    __tsan_acquire(&block_begin);
    if (!kernel.waits) machine::wait_for_launch_before();
    kernel.call();
    if (copies[copies_turn][current].count > 0) fail("a thread ends with copies on their way", 0);
    fibers[current].state = DONE, ++done;
    Warp &warp = warps[current / WARP_SIZE];
    if (++warp.done > 0 && warp.waiting > 0) fail("a lane leaves while others wait in a warp's barrier", warp.line);
    check_block_barrier(0);
    __tsan_release(&launch_ends[launch_number % 2]);
    if (done == threads) leave_for(host_sanitizer, host_stack);
    next_thread(0);
}

static void run_block(size_t shared_bytes) {
    ++block_number;
#ifdef RACES
    // Memory that no other block had.
    const int protection = PROT_READ | PROT_WRITE, kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
    if (mmap(dynamic_shared, sizeof dynamic_shared, protection, kind, -1, 0) == MAP_FAILED) abort();
    if (mmap(exchanges, sizeof exchanges, protection, kind, -1, 0) == MAP_FAILED) abort();
#endif
    memset(dynamic_shared, 0xff, sizeof dynamic_shared); // NaN
    ASAN_POISON_MEMORY_REGION((char *)dynamic_shared + shared_bytes, sizeof dynamic_shared - shared_bytes);
    at_block_barrier = done = 0;
    __tsan_release(&block_begin);
    copies_turn = (machine::block_index.x + machine::block_index.y + machine::block_index.z) % 2;
    Place *own = places[copies_turn];
    for (int n = 0; n < threads; ++n) {
        Place &place = own[n];
        if (place.stack == nullptr) {
            place.stack = (char *)mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (place.stack == MAP_FAILED) abort();
            place.sanitizer = __tsan_create_fiber(0);
        }
        // As switch_stacks left it: six registers, where to go, and the place of a return address above.
        void **top = reinterpret_cast<void **>(place.stack + STACK_BYTES);
        *--top = nullptr, *--top = reinterpret_cast<void *>(thread_main);
        fibers[n] = {top - 6, place.sanitizer, READY, 0, 0, 0, 0};
        copies[copies_turn][n].first = copies[copies_turn][n].count = copies[copies_turn][n].groups = 0;
        warps[n / WARP_SIZE].waiting = warps[n / WARP_SIZE].done = 0;
    }
    current = step > 0 ? 0 : threads - 1;
    machine::thread_index = {(unsigned)current, 0, 0};
    host_sanitizer = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(fibers[current].sanitizer, 0);
    switch_stacks(&host_stack, fibers[current].stack_pointer);
    ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, sizeof dynamic_shared);
}

static std::string launch(const std::string &name, const Index &grid, int block, size_t shared_bytes, bool reversed) {
    kernel.function = reinterpret_cast<void (*)()>(dlsym(RTLD_DEFAULT, name.c_str()));
    if (kernel.function == nullptr) return "no kernel named " + name;
    if (block == 0 || block > MOST_THREADS || block % WARP_SIZE != 0) return "a block of " + std::to_string(block) + " threads";
    if (shared_bytes > SHARED_BYTES) return std::to_string(shared_bytes) + " bytes of shared memory";
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) return "a grid no device takes";
    threads = block, step = reversed ? -1 : 1, fault.clear(), machine::grid_size = grid, ++launch_number;
    const unsigned blocks = grid.x * grid.y * grid.z;
    for (unsigned n = 0; n < blocks && fault.empty(); ++n) {
        const unsigned index = reversed ? blocks - 1 - n : n;
        machine::block_index = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
        run_block(shared_bytes);
    }
    return fault.empty() ? "" : name + ": " + fault;
}

// ---- memory ----

// A device's memories lie near each other, and so do these: one after another in a range that is never used twice. What is between two of them,
// and what was freed, is nobody's.
constexpr size_t MEMORY_BYTES = 12ull << 30, ALIGNED = 256, APART = PAGE_BYTES;
static char *memory_end, *memory_limit;
static std::map<uint64_t, size_t> memories;

static void *allocate(size_t bytes) {
    if (memory_end == nullptr) {
        const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void *all = mmap(nullptr, MEMORY_BYTES, PROT_READ | PROT_WRITE, kind, -1, 0);
        if (all == MAP_FAILED) abort();
        memory_end = (char *)all, memory_limit = memory_end + MEMORY_BYTES;
        ASAN_POISON_MEMORY_REGION(memory_end, APART);
        memory_end += APART;
    }
    const size_t with_rest = (bytes + ALIGNED - 1) / ALIGNED * ALIGNED + APART;
    if (with_rest > (size_t)(memory_limit - memory_end)) abort();
    char *memory = memory_end;
    memory_end += with_rest;
    ASAN_POISON_MEMORY_REGION(memory + bytes, with_rest - bytes);
    memories[reinterpret_cast<uint64_t>(memory)] = bytes;
    return memory;
}

static void release(uint64_t address) {
    const auto found = memories.find(address);
    if (found == memories.end()) abort();
    const uint64_t first = (address + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES, end = (address + found->second) / PAGE_BYTES * PAGE_BYTES;
    if (end > first) madvise(reinterpret_cast<void *>(first), end - first, MADV_DONTNEED);
    ASAN_POISON_MEMORY_REGION(reinterpret_cast<void *>(address), found->second);
    memories.erase(found);
}

// ---- the pipe ----

static void read_all(void *to, size_t bytes) {
    for (size_t have = 0; have < bytes;) {
        const ssize_t got = read(0, (char *)to + have, bytes - have);
        if (got <= 0) exit(0); // the other end is gone
        have += got;
    }
}

static void write_all(const void *from, size_t bytes) {
    for (size_t gone = 0; gone < bytes;) {
        const ssize_t put = write(1, (const char *)from + gone, bytes - gone);
        if (put <= 0) exit(0);
        gone += put;
    }
}

static uint64_t read_word() {
    uint64_t word;
    read_all(&word, sizeof word);
    return word;
}

static void write_word(uint64_t word) { write_all(&word, sizeof word); }

// The host does nothing after a launch until it says so.
static void host_waits() {
    for (char &end : launch_ends) __tsan_acquire(&end);
}

int main() {
    std::set<void *> fresh; // no launch knows of
    for (;;) {
        switch (read_word()) {
        case 'A': { // allocate: bytes -> address. What nobody wrote is NaN.
            const size_t bytes = read_word();
            void *memory = allocate(bytes);
            memset(memory, 0xff, bytes);
            fresh.insert(memory);
            write_word(reinterpret_cast<uint64_t>(memory));
            break;
        }
        case 'F': // free: address
            host_waits();
            release(read_word());
            break;
        case 'W': { // write: address, bytes, the bytes
            char *to = reinterpret_cast<char *>(read_word());
            if (!fresh.erase(to)) host_waits();
            read_all(to, read_word());
            break;
        }
        case 'R': { // read: address, bytes -> the bytes
            const char *from = reinterpret_cast<const char *>(read_word());
            host_waits();
            write_all(from, read_word());
            break;
        }
        case 'L': { // launch: name, grid, block, shared bytes, order, whether it waits, integers, floats -> what went wrong
            std::string name(read_word(), 0);
            read_all(&name[0], name.size());
            Index grid;
            read_all(&grid, sizeof grid);
            const uint64_t block = read_word(), shared_bytes = read_word(), reversed = read_word();
            kernel.waits = read_word() != 0;
            const uint64_t words = read_word(), floats = read_word();
            if (words > MOST_WORDS || floats > MOST_FLOATS) abort();
            read_all(kernel.words, words * sizeof *kernel.words);
            read_all(kernel.floats, floats * sizeof *kernel.floats);
            const std::string wrong = launch(name, grid, (int)block, shared_bytes, reversed != 0);
            write_word(wrong.size());
            write_all(wrong.data(), wrong.size());
            break;
        }
        default:
            abort();
        }
    }
}
