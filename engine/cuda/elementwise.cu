// Rotary embedding and SwiGLU. One thread an output pair or element.
#include "common.cuh"

// Rotates (x[i], x[i + pairs]) of each head of x [n, heads, 2·pairs] by the angle of table row n; `sign` −1 turns back (the gradient).
template <typename T>
__device__ void rotate(const T* x, const float* cosine, const float* sine, T* y, u32 rows, u32 heads, u32 pairs, float sign) {
    index_t i = (index_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= (index_t)rows * heads * pairs) return;
    u32 pair = (u32)(i % pairs);
    index_t head = i / pairs, angle = head / heads * pairs + pair;
    index_t left = head * 2 * pairs + pair, right = left + pairs;
    float c = cosine[angle], s = sign * sine[angle];
    float a = load(x[left]), b = load(x[right]);
    store(&y[left], a * c - b * s);
    store(&y[right], b * c + a * s);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// y [n, m] = silu(gate) · up of rows gate|up [n, 2m].
template <typename T>
__device__ void swiglu(const T* gate_up, T* y, u32 rows, u32 m) {
    index_t i = (index_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= (index_t)rows * m) return;
    index_t at = i / m * 2 * m + i % m;
    float g = load(gate_up[at]);
    store(&y[i], g * sigmoid(g) * load(gate_up[at + m]));
}

// The activation once more, and the gradient of gate|up from that of the activation.
template <typename T>
__device__ void swiglu_backward(const T* gate_up, const T* d, T* y, T* d_gate_up, u32 rows, u32 m) {
    index_t i = (index_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= (index_t)rows * m) return;
    index_t at = i / m * 2 * m + i % m;
    float g = load(gate_up[at]), u = load(gate_up[at + m]), s = sigmoid(g), dy = load(d[i]);
    store(&y[i], g * s * u);
    store(&d_gate_up[at], dy * u * s * (1.0f + g * (1.0f - s)));
    store(&d_gate_up[at + m], dy * g * s);
}

#define EXPORT(T, SUFFIX)                                                                                                             \
    extern "C" __global__ void LAUNCH_BOUNDS(BLOCK) rotate_##SUFFIX(const T* x, const float* cosine, const float* sine, T* y,         \
                                                                    u32 rows, u32 heads, u32 pairs, float sign) {                     \
        rotate(x, cosine, sine, y, rows, heads, pairs, sign);                                                                         \
    }                                                                                                                                 \
    extern "C" __global__ void LAUNCH_BOUNDS(BLOCK) swiglu_##SUFFIX(const T* gate_up, T* y, u32 rows, u32 m) {                        \
        swiglu(gate_up, y, rows, m);                                                                                                  \
    }                                                                                                                                 \
    extern "C" __global__ void LAUNCH_BOUNDS(BLOCK)                                                                                   \
        swiglu_backward_##SUFFIX(const T* gate_up, const T* d, T* y, T* d_gate_up, u32 rows, u32 m) {                                 \
        swiglu_backward(gate_up, d, y, d_gate_up, rows, m);                                                                           \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
