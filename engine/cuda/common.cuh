// What all kernels share: element types, reductions over a block, the names they are exported under.
// QUORUM_HOST compiles the same kernels as C++ for a machine without a GPU (check/): arithmetic and barriers are the same, speed and races are not.
#pragma once
#ifdef QUORUM_HOST
#include "check/host.h"
#else
#include <cuda_bf16.h>
#define LAUNCH_BOUNDS(threads) __launch_bounds__(threads)
#define DYNAMIC_SHARED(name) extern __shared__ float name[]
#endif

typedef unsigned int u32;
typedef unsigned char u8;
typedef __nv_bfloat16 bf16;

__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ float load(bf16 x) { return __bfloat162float(x); }
__device__ __forceinline__ void store(float* at, float x) { *at = x; }
__device__ __forceinline__ void store(bf16* at, float x) { *at = __float2bfloat16(x); }

// Index of an element: tensors may hold more than 2³² of them.
typedef unsigned long long index_t;

constexpr int BLOCK = 256;

// Sum over the BLOCK threads of a block, the same value in each, added in one fixed order. Holds two barriers.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    __syncthreads();
    scratch[threadIdx.x] = value;
    __syncthreads();
    for (u32 half = BLOCK / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
        __syncthreads();
    }
    return scratch[0];
}

__device__ __forceinline__ float block_max(float value, float* scratch) {
    __syncthreads();
    scratch[threadIdx.x] = value;
    __syncthreads();
    for (u32 half = BLOCK / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) scratch[threadIdx.x] = fmaxf(scratch[threadIdx.x], scratch[threadIdx.x + half]);
        __syncthreads();
    }
    return scratch[0];
}
