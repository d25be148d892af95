// Root-mean-square norm over rows: y = x · r · w, r = 1 / sqrt(mean(x²) + eps). Forward and input gradient take one block a row.
#include "common.cuh"

template <typename T>
__device__ float inverse_root(const T* x, u32 columns, float eps, float* scratch) {
    float sum = 0.0f;
    for (u32 c = threadIdx.x; c < columns; c += BLOCK) sum += load(x[c]) * load(x[c]);
    return 1.0f / sqrtf(block_sum(sum, scratch) / columns + eps);
}

template <typename T>
__device__ void rms_norm(const T* x, const T* w, T* y, u32 columns, float eps) {
    __shared__ float scratch[BLOCK];
    index_t row = (index_t)blockIdx.x * columns;
    float r = inverse_root(x + row, columns, eps, scratch);
    for (u32 c = threadIdx.x; c < columns; c += BLOCK) store(&y[row + c], load(x[row + c]) * r * load(w[c]));
}

// dx = r · (w·dy − x · r² · mean(w·dy·x)); keeps r for the gradient of w.
template <typename T>
__device__ void rms_norm_dx(const T* x, const T* w, const T* dy, T* dx, float* inverse, u32 columns, float eps) {
    __shared__ float scratch[BLOCK];
    index_t row = (index_t)blockIdx.x * columns;
    float r = inverse_root(x + row, columns, eps, scratch);
    float sum = 0.0f;
    for (u32 c = threadIdx.x; c < columns; c += BLOCK) sum += load(w[c]) * load(dy[row + c]) * load(x[row + c]);
    float mean = block_sum(sum, scratch) / columns * r * r;
    for (u32 c = threadIdx.x; c < columns; c += BLOCK)
        store(&dx[row + c], r * (load(w[c]) * load(dy[row + c]) - load(x[row + c]) * mean));
    if (threadIdx.x == 0) inverse[blockIdx.x] = r;
}

constexpr int WIDE = 32, DEEP = BLOCK / WIDE;

// dw = Σ over rows of dy · x · r, rows added in one fixed order: a block takes WIDE columns, thread (c, d) the rows d, d + DEEP, …
template <typename T>
__device__ void rms_norm_dw(const T* x, const T* dy, const float* inverse, float* dw, u32 rows, u32 columns) {
    __shared__ float scratch[DEEP][WIDE];
    u32 lane = threadIdx.x % WIDE, depth = threadIdx.x / WIDE, c = blockIdx.x * WIDE + lane;
    float sum = 0.0f;
    if (c < columns)
        for (u32 row = depth; row < rows; row += DEEP)
            sum += load(dy[(index_t)row * columns + c]) * load(x[(index_t)row * columns + c]) * inverse[row];
    scratch[depth][lane] = sum;
    __syncthreads();
    if (depth != 0 || c >= columns) return;
    for (int d = 1; d < DEEP; d++) sum += scratch[d][lane];
    dw[c] = sum;
}

#define EXPORT(T, SUFFIX)                                                                                                             \
    extern "C" __global__ void LAUNCH_BOUNDS(BLOCK) rms_norm_##SUFFIX(const T* x, const T* w, T* y, u32 columns, float eps) {         \
        rms_norm(x, w, y, columns, eps);                                                                                              \
    }                                                                                                                                 \
    extern "C" __global__ void LAUNCH_BOUNDS(BLOCK)                                                                                   \
        rms_norm_dx_##SUFFIX(const T* x, const T* w, const T* dy, T* dx, float* inverse, u32 columns, float eps) {                    \
        rms_norm_dx(x, w, dy, dx, inverse, columns, eps);                                                                             \
    }                                                                                                                                 \
    extern "C" __global__ void LAUNCH_BOUNDS(BLOCK)                                                                                   \
        rms_norm_dw_##SUFFIX(const T* x, const T* dy, const float* inverse, float* dw, u32 rows, u32 columns) {                       \
        rms_norm_dw(x, dy, inverse, dw, rows, columns);                                                                               \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
