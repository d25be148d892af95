// The policy distribution of rows of logits, and the gradient of the logits of chosen tokens' log-probabilities. One block a row.
#include "common.cuh"

// z = logits / temperature + bias, p = exp(z − max), and of each row max, Σ p, entropy in nats. `bias` [vocab] is used if `biased` ≠ 0.
template <typename T>
__device__ void policy_rows(const T* logits, const float* bias, float* z, float* p, float* greatest, float* total, float* entropy, u32 vocab,
                            float scale, u32 biased) {
    __shared__ float scratch[BLOCK];
    index_t row = (index_t)blockIdx.x * vocab;
    float top = -INFINITY;
    for (u32 c = threadIdx.x; c < vocab; c += BLOCK) {
        float value = load(logits[row + c]) * scale + (biased ? bias[c] : 0.0f);
        z[row + c] = value;
        top = fmaxf(top, value);
    }
    top = block_max(top, scratch);
    float sum = 0.0f, weighted = 0.0f;
    for (u32 c = threadIdx.x; c < vocab; c += BLOCK) {
        float shifted = z[row + c] - top, power = expf(shifted);
        p[row + c] = power;
        sum += power;
        // 0 · −1e30 is 0; 0 · −∞ would not be.
        if (power > 0.0f) weighted += power * shifted;
    }
    sum = block_sum(sum, scratch);
    weighted = block_sum(weighted, scratch);
    if (threadIdx.x != 0) return;
    greatest[blockIdx.x] = top;
    total[blockIdx.x] = sum;
    entropy[blockIdx.x] = logf(sum) - weighted / sum;
}

// dlogits = (Σ over the row's k targets of factor · [token is the target] − total · p / sum) / temperature.
extern "C" __global__ void LAUNCH_BOUNDS(BLOCK) policy_backward(const float* p, const float* sum, const float* total, const u32* index,
                                                                const float* factor, float* dlogits, u32 vocab, u32 targets, float scale) {
    index_t row = (index_t)blockIdx.x * vocab;
    float share = -total[blockIdx.x] / sum[blockIdx.x] * scale;
    for (u32 c = threadIdx.x; c < vocab; c += BLOCK) dlogits[row + c] = p[row + c] * share;
    __syncthreads();
    // One thread, because several targets of a row may be the same token.
    if (threadIdx.x != 0) return;
    for (u32 k = 0; k < targets; k++) {
        index_t at = (index_t)blockIdx.x * targets + k;
        if (index[at] < vocab) dlogits[row + index[at]] += factor[at] * scale;
    }
}

#define EXPORT(T, SUFFIX)                                                                                                             \
    extern "C" __global__ void LAUNCH_BOUNDS(BLOCK)                                                                                   \
        policy_rows_##SUFFIX(const T* logits, const float* bias, float* z, float* p, float* greatest, float* total, float* entropy,   \
                             u32 vocab, float scale, u32 biased) {                                                                    \
        policy_rows(logits, bias, z, p, greatest, total, entropy, vocab, scale, biased);                                              \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
