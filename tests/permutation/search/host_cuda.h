// Runs CUDA C++ on the host, one thread at a time: enough of the language for cuda/search.cu, for tests without a GPU.
//
// Every CUDA thread of a block is a fiber (ucontext). A fiber runs until it meets a barrier or an exchange of its warp, and
// goes on when all that must meet it have; if nobody can go on, the launch reports a deadlock. Blocks run one by one.

#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static
#define __align__(bytes) __attribute__((aligned(bytes)))
#define DYNAMIC_SHARED(name) int* name = host_shared.data()

struct uint3_ { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return uint4{x, y, z, w}; }

static uint3_ threadIdx, blockIdx, blockDim, gridDim;
static std::vector<int> host_shared;
static const int HOST_GARBAGE = -0x5a5a5a5a;

enum Wait { NOTHING, BLOCK, WARP, FINISHED };
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    Wait wait = NOTHING;
    int value = 0;
};
static std::vector<Fiber>* host_fibers;
static ucontext_t host_scheduler;
static unsigned host_current;
static const std::function<void()>* host_body;

static void host_yield(Wait wait) {
    Fiber& fiber = (*host_fibers)[host_current];
    fiber.wait = wait;
    swapcontext(&fiber.context, &host_scheduler);
}
static void host_entry() {
    (*host_body)();
    host_yield(FINISHED);
}
static inline void __syncthreads() { host_yield(BLOCK); }
static int host_values[32][32];  // of each warp, what its lanes gave when all had come
static inline const int* host_exchange(int value) {
    (*host_fibers)[host_current].value = value;
    host_yield(WARP);
    return host_values[host_current / 32];
}
static inline int __reduce_min_sync(unsigned, int value) {
    const int* values = host_exchange(value);
    int smallest = values[0];
    for (int lane = 1; lane < 32; lane++) smallest = values[lane] < smallest ? values[lane] : smallest;
    return smallest;
}
static inline unsigned __reduce_add_sync(unsigned, unsigned value) {
    const int* values = host_exchange((int)value);
    unsigned sum = 0;
    for (int lane = 0; lane < 32; lane++) sum += (unsigned)values[lane];
    return sum;
}
static inline int __shfl_sync(unsigned, int value, int lane) { return host_exchange(value)[lane]; }
static inline void __syncwarp() { __reduce_min_sync(0xffffffffu, 0); }
static inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
    unsigned long long before = *address;
    *address += value;
    return before;
}

// Lets everybody go who waits for a barrier that all have reached. Returns whether anybody may.
static bool host_release(std::vector<Fiber>& fibers) {
    bool any = false;
    for (size_t first = 0; first < fibers.size(); first += 32) {
        bool all = true;
        size_t end = first + 32 < fibers.size() ? first + 32 : fibers.size();
        for (size_t t = first; t < end; t++) all = all && fibers[t].wait == WARP;
        if (!all) continue;
        for (size_t t = first; t < end; t++) {
            host_values[first / 32][t - first] = fibers[t].value;
            fibers[t].wait = NOTHING;
        }
        any = true;
    }
    bool all = true;
    bool waiting = false;
    for (Fiber& fiber : fibers) {
        all = all && (fiber.wait == BLOCK || fiber.wait == FINISHED);
        waiting = waiting || fiber.wait == BLOCK;
    }
    if (all && waiting) {
        for (Fiber& fiber : fibers)
            if (fiber.wait == BLOCK) fiber.wait = NOTHING;
        any = true;
    }
    return any;
}

// Returns 0, or 1 for a deadlock.
static int host_launch(const int* grid, int threads, int shared_bytes, const std::function<void()>& body) {
    std::vector<Fiber> fibers(threads);
    for (Fiber& fiber : fibers) fiber.stack.resize(64 << 10);
    host_fibers = &fibers;
    host_body = &body;
    blockDim = {(unsigned)threads, 1, 1};
    gridDim = {(unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2]};
    for (int block = 0; block < grid[0] * grid[1] * grid[2]; block++) {
        // Shared memory starts as garbage, as it does on a device: negative, so that a minimum over it is wrong. The end
        // is where an overrun would show.
        host_shared.assign(shared_bytes / 4 + 512, HOST_GARBAGE);
        for (int t = 0; t < threads; t++) {
            Fiber& fiber = fibers[t];
            fiber.wait = NOTHING;
            getcontext(&fiber.context);
            fiber.context.uc_stack.ss_sp = fiber.stack.data();
            fiber.context.uc_stack.ss_size = fiber.stack.size();
            fiber.context.uc_link = nullptr;
            makecontext(&fiber.context, host_entry, 0);
        }
        bool running = true;
        while (running) {
            running = false;
            for (int t = 0; t < threads; t++) {
                if (fibers[t].wait != NOTHING) continue;
                running = true;
                host_current = t;
                threadIdx = {(unsigned)t, 0, 0};
                blockIdx = {(unsigned)(block % grid[0]), (unsigned)(block / grid[0] % grid[1]),
                            (unsigned)(block / grid[0] / grid[1])};
                swapcontext(&host_scheduler, &fibers[t].context);
            }
            running = host_release(fibers) || running;
        }
        for (Fiber& fiber : fibers)
            if (fiber.wait != FINISHED) return 1;
        for (int k = 0; k < 512; k++)
            if (host_shared[shared_bytes / 4 + k] != HOST_GARBAGE) return 2;
    }
    return 0;
}
