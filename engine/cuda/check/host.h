// Runs kernels as C++ on a machine without a GPU: blocks one after another, the threads of a block as fibers that change at barriers.
// What it shows: the arithmetic, the indexing, that every thread reaches every barrier. What it cannot show: speed, races, memory order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __forceinline__ inline
// Blocks run one at a time, so what a block shares may be static.
#define __shared__ static
#define LAUNCH_BOUNDS(threads)
#define DYNAMIC_SHARED(name) float* name = emulator::shared.data()

using std::max;
using std::min;

struct Index {
    unsigned x, y, z;
};
inline Index blockIdx, threadIdx;

// bfloat16 as the GPU rounds it: to nearest, ties to even.
struct __nv_bfloat16 {
    uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) {
    uint32_t wide = (uint32_t)x.bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return {(uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

namespace emulator {

constexpr size_t STACK = 64 << 10;
inline std::vector<float> shared;
inline std::vector<ucontext_t> fibers;
inline std::vector<std::vector<char>> stacks;
inline std::vector<char> ended;
inline ucontext_t scheduler;
inline const std::function<void()>* kernel;
inline unsigned current;
inline int vote, result;

inline void enter() {
    (*kernel)();
    ended[current] = 1;
    swapcontext(&fibers[current], &scheduler);
}

// A round lets each thread run up to its next barrier; threads that have returned are left out, as on a GPU.
inline void run_block(unsigned threads) {
    ended.assign(threads, 0);
    for (unsigned t = 0; t < threads; t++) {
        getcontext(&fibers[t]);
        fibers[t].uc_stack.ss_sp = stacks[t].data();
        fibers[t].uc_stack.ss_size = STACK;
        fibers[t].uc_link = nullptr;
        makecontext(&fibers[t], enter, 0);
    }
    for (bool any = true; any;) {
        any = false;
        vote = 0;
        for (current = 0; current < threads; current++) {
            if (ended[current]) continue;
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &fibers[current]);
            any |= !ended[current];
        }
        result = vote;
    }
}

inline void launch(Index grid, unsigned threads, size_t shared_bytes, const std::function<void()>& call) {
    kernel = &call;
    shared.assign(shared_bytes / 4 + 1, NAN);  // as undefined as on the device
    fibers.resize(threads);
    if (stacks.size() < threads) stacks.resize(threads, std::vector<char>(STACK));
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < grid.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < grid.x; blockIdx.x++) run_block(threads);
}

}  // namespace emulator

inline void __syncthreads() {
    unsigned me = emulator::current;
    swapcontext(&emulator::fibers[me], &emulator::scheduler);
}
inline int __syncthreads_or(int value) {
    emulator::vote |= value != 0;
    __syncthreads();
    return emulator::result;
}
