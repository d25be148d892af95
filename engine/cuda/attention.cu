// Attention of ragged packs, forward and backward, without ever holding a matrix of scores: tiles of TILE rows by TILE keys, accumulation in f32.
//
// q and outputs are [n, heads, size], k and v [n, kv_heads, size]; query head h reads kv head h / (heads / kv_heads).
// spans [n, 6] says who sees whom: row i sees the keys of [0]..[1] (its pack's prefix) and [2]..[3] (its own run), and the key i is seen by
// rows of [4]..[5] at most. size ≤ LONGEST. Every sum has one fixed order: no atomics.
#include "common.cuh"

constexpr int TILE = 32, THREADS = 128, ACROSS = 16, DOWN = THREADS / ACROSS;
constexpr int ROWS = TILE / DOWN, KEYS = TILE / ACROSS;  // of the tile of scores, each thread's part
constexpr int LONGEST = 128, PARTS = LONGEST / ACROSS;   // of a row of values, each thread's part: elements lane, lane + ACROSS, …
constexpr int STRIDE = LONGEST + 1;                      // odd, so that the rows of a tile start in different banks
constexpr int SCORES = TILE + 1;

struct Shape {
    u32 n, heads, kv_heads, size;
};

struct Spans {
    u32 first[2], last[2];
    __device__ bool see(u32 key) const { return (key >= first[0] && key < last[0]) || (key >= first[1] && key < last[1]); }
    __device__ bool meet(u32 from, u32 to) const { return (first[0] < to && from < last[0]) || (first[1] < to && from < last[1]); }
};

__device__ __forceinline__ Spans spans_of(const u32* spans, u32 row, u32 n) {
    Spans s = {{0, 0}, {0, 0}};
    if (row >= n) return s;
    for (int part = 0; part < 2; part++) {
        s.first[part] = spans[(index_t)row * 6 + 2 * part];
        s.last[part] = spans[(index_t)row * 6 + 2 * part + 1];
    }
    return s;
}

// Rows start … start + TILE of one head into shared memory; zeros past the end.
template <typename T>
__device__ void fetch(float* tile, const T* x, u32 start, u32 n, u32 heads, u32 head, u32 size) {
    for (u32 i = threadIdx.x; i < TILE * size; i += THREADS) {
        u32 row = i / size, c = i % size;
        tile[row * STRIDE + c] = start + row < n ? load(x[((index_t)(start + row) * heads + head) * size + c]) : 0.0f;
    }
}

// Whether any row of the tile sees any key of [from, to). Holds a barrier.
__device__ bool any_meets(const Spans* rows, u32 from, u32 to) {
    return __syncthreads_or(threadIdx.x < TILE && rows[threadIdx.x].meet(from, to));
}

// out[a][b] = Σ over c of left[row a][c] · right[key b][c], this thread's part of TILE × TILE.
__device__ __forceinline__ void products(float out[ROWS][KEYS], const float* left, const float* right, u32 size) {
    u32 down = threadIdx.x / ACROSS * ROWS, across = threadIdx.x % ACROSS;
    for (int a = 0; a < ROWS; a++)
        for (int b = 0; b < KEYS; b++) out[a][b] = 0.0f;
    for (u32 c = 0; c < size; c++)
        for (int b = 0; b < KEYS; b++) {
            float r = right[(across + b * ACROSS) * STRIDE + c];
            for (int a = 0; a < ROWS; a++) out[a][b] += left[(down + a) * STRIDE + c] * r;
        }
}

// sum[a][e] += Σ over j of weight(row a, j) · tile[j][element e], this thread's part of TILE × size.
__device__ __forceinline__ void accumulate(float sum[ROWS][PARTS], const float* weights, u32 row_step, u32 j_step, const float* tile, u32 size) {
    u32 down = threadIdx.x / ACROSS * ROWS, across = threadIdx.x % ACROSS;
    for (u32 j = 0; j < TILE; j++) {
        float w[ROWS];
#pragma unroll
        for (int a = 0; a < ROWS; a++) w[a] = weights[(down + a) * row_step + j * j_step];
#pragma unroll
        for (int e = 0; e < PARTS; e++) {
            u32 c = across + e * ACROSS;
            float value = c < size ? tile[j * STRIDE + c] : 0.0f;
#pragma unroll
            for (int a = 0; a < ROWS; a++) sum[a][e] += w[a] * value;
        }
    }
}

template <typename T>
__device__ void put(const float sum[ROWS][PARTS], T* x, u32 start, u32 n, u32 heads, u32 head, u32 size) {
    u32 down = threadIdx.x / ACROSS * ROWS, across = threadIdx.x % ACROSS;
#pragma unroll
    for (int a = 0; a < ROWS; a++)
#pragma unroll
        for (int e = 0; e < PARTS; e++) {
            u32 row = start + down + a, c = across + e * ACROSS;
            if (row < n && c < size) store(&x[((index_t)row * heads + head) * size + c], sum[a][e]);
        }
}

// Block (tile of rows, head). `logsum` [heads, n] gets log Σ exp(score); −∞ for a row that sees nothing, whose output is 0.
template <typename T>
__device__ void attend(const T* q, const T* k, const T* v, const u32* spans, T* out, float* logsum, Shape shape, float scale) {
    DYNAMIC_SHARED(memory);
    float *queries = memory, *keys = queries + TILE * STRIDE, *values = keys + TILE * STRIDE, *scores = values + TILE * STRIDE;
    __shared__ Spans rows[TILE];
    __shared__ float greatest[TILE], total[TILE], shrink[TILE];
    u32 start = blockIdx.x * TILE, head = blockIdx.y, kv = head / (shape.heads / shape.kv_heads);
    u32 down = threadIdx.x / ACROSS * ROWS, across = threadIdx.x % ACROSS;
    if (threadIdx.x < TILE) {
        rows[threadIdx.x] = spans_of(spans, start + threadIdx.x, shape.n);
        greatest[threadIdx.x] = -INFINITY;
        total[threadIdx.x] = 0.0f;
    }
    fetch(queries, q, start, shape.n, shape.heads, head, shape.size);
    float sum[ROWS][PARTS] = {};
    __syncthreads();
    for (u32 from = 0; from < shape.n; from += TILE) {
        if (!any_meets(rows, from, from + TILE)) continue;
        fetch(keys, k, from, shape.n, shape.kv_heads, kv, shape.size);
        fetch(values, v, from, shape.n, shape.kv_heads, kv, shape.size);
        __syncthreads();
        float s[ROWS][KEYS];
        products(s, queries, keys, shape.size);
#pragma unroll
        for (int a = 0; a < ROWS; a++)
#pragma unroll
            for (int b = 0; b < KEYS; b++) {
                u32 key = from + across + b * ACROSS;
                scores[(down + a) * SCORES + across + b * ACROSS] = rows[down + a].see(key) ? s[a][b] * scale : -INFINITY;
            }
        __syncthreads();
        if (threadIdx.x < TILE) {
            float* mine = scores + threadIdx.x * SCORES;
            float old = greatest[threadIdx.x], top = old, added = 0.0f;
            for (int j = 0; j < TILE; j++) top = fmaxf(top, mine[j]);
            for (int j = 0; j < TILE; j++) {
                mine[j] = mine[j] == -INFINITY ? 0.0f : expf(mine[j] - top);
                added += mine[j];
            }
            float less = old == -INFINITY ? 0.0f : expf(old - top);
            greatest[threadIdx.x] = top;
            total[threadIdx.x] = total[threadIdx.x] * less + added;
            shrink[threadIdx.x] = less;
        }
        __syncthreads();
#pragma unroll
        for (int a = 0; a < ROWS; a++)
#pragma unroll
            for (int e = 0; e < PARTS; e++) sum[a][e] *= shrink[down + a];
        accumulate(sum, scores, SCORES, 1, values, shape.size);
        __syncthreads();
    }
#pragma unroll
    for (int a = 0; a < ROWS; a++)
#pragma unroll
        for (int e = 0; e < PARTS; e++) sum[a][e] = total[down + a] > 0.0f ? sum[a][e] / total[down + a] : 0.0f;
    put(sum, out, start, shape.n, shape.heads, head, shape.size);
    if (threadIdx.x < TILE && start + threadIdx.x < shape.n)
        logsum[(index_t)head * shape.n + start + threadIdx.x] = greatest[threadIdx.x] + logf(total[threadIdx.x]);
}

// delta [heads, n] = Σ over a row of out · d_out. One warp's worth of rows a block would do; one thread a row and head is simple and enough.
template <typename T>
__device__ void attend_delta(const T* out, const T* d_out, float* delta, Shape shape) {
    index_t i = (index_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= (index_t)shape.n * shape.heads) return;
    float sum = 0.0f;
    for (u32 c = 0; c < shape.size; c++) sum += load(out[i * shape.size + c]) * load(d_out[i * shape.size + c]);
    delta[i % shape.heads * shape.n + i / shape.heads] = sum;
}

// Probabilities p and score gradients ds = p · (d_out·v − delta) · scale of a tile, into shared memory. Barriers: none; the caller's.
__device__ __forceinline__ void gradients(float* p, float* ds, const float* queries, const float* keys, const float* d_rows, const float* values,
                                          const Spans* rows, const float* logsum, const float* delta, u32 from, u32 size, float scale) {
    u32 down = threadIdx.x / ACROSS * ROWS, across = threadIdx.x % ACROSS;
    float s[ROWS][KEYS], d[ROWS][KEYS];
    products(s, queries, keys, size);
    products(d, d_rows, values, size);
#pragma unroll
    for (int a = 0; a < ROWS; a++)
#pragma unroll
        for (int b = 0; b < KEYS; b++) {
            u32 row = down + a, key = across + b * ACROSS;
            float probability = rows[row].see(from + key) ? expf(s[a][b] * scale - logsum[row]) : 0.0f;
            p[row * SCORES + key] = probability;
            ds[row * SCORES + key] = probability * (d[a][b] - delta[row]) * scale;
        }
}

// What the backward kernels share: four tiles and two matrices of scores, then what belongs to the rows of a tile.
struct Workspace {
    float *queries, *keys, *values, *d_rows, *p, *ds;
    __device__ Workspace(float* memory)
        : queries(memory), keys(queries + TILE * STRIDE), values(keys + TILE * STRIDE), d_rows(values + TILE * STRIDE),
          p(d_rows + TILE * STRIDE), ds(p + TILE * SCORES) {}
};

__device__ __forceinline__ void describe(Spans* rows, float* sums, float* deltas, const u32* spans, const float* logsum, const float* delta,
                                         u32 start, u32 head, u32 n) {
    if (threadIdx.x >= TILE) return;
    u32 row = start + threadIdx.x;
    rows[threadIdx.x] = spans_of(spans, row, n);
    sums[threadIdx.x] = row < n ? logsum[(index_t)head * n + row] : 0.0f;
    deltas[threadIdx.x] = row < n ? delta[(index_t)head * n + row] : 0.0f;
}

// Block (tile of rows, head).
template <typename T>
__device__ void attend_dq(const T* q, const T* k, const T* v, const T* d_out, const u32* spans, const float* logsum, const float* delta, T* dq,
                          Shape shape, float scale) {
    DYNAMIC_SHARED(memory);
    Workspace w(memory);
    __shared__ Spans rows[TILE];
    __shared__ float sums[TILE], deltas[TILE];
    u32 start = blockIdx.x * TILE, head = blockIdx.y, kv = head / (shape.heads / shape.kv_heads);
    describe(rows, sums, deltas, spans, logsum, delta, start, head, shape.n);
    fetch(w.queries, q, start, shape.n, shape.heads, head, shape.size);
    fetch(w.d_rows, d_out, start, shape.n, shape.heads, head, shape.size);
    float sum[ROWS][PARTS] = {};
    __syncthreads();
    for (u32 from = 0; from < shape.n; from += TILE) {
        if (!any_meets(rows, from, from + TILE)) continue;
        fetch(w.keys, k, from, shape.n, shape.kv_heads, kv, shape.size);
        fetch(w.values, v, from, shape.n, shape.kv_heads, kv, shape.size);
        __syncthreads();
        gradients(w.p, w.ds, w.queries, w.keys, w.d_rows, w.values, rows, sums, deltas, from, shape.size, scale);
        __syncthreads();
        accumulate(sum, w.ds, SCORES, 1, w.keys, shape.size);
        __syncthreads();
    }
    put(sum, dq, start, shape.n, shape.heads, head, shape.size);
}

// Block (tile of keys, kv head): adds up what all rows of all query heads of that kv head say.
template <typename T>
__device__ void attend_dkv(const T* q, const T* k, const T* v, const T* d_out, const u32* spans, const float* logsum, const float* delta, T* dk,
                           T* dv, Shape shape, float scale) {
    DYNAMIC_SHARED(memory);
    Workspace w(memory);
    __shared__ Spans rows[TILE];
    __shared__ float sums[TILE], deltas[TILE];
    __shared__ u32 seen_from[TILE], seen_to[TILE];
    u32 from = blockIdx.x * TILE, kv = blockIdx.y, group = shape.heads / shape.kv_heads;
    fetch(w.keys, k, from, shape.n, shape.kv_heads, kv, shape.size);
    fetch(w.values, v, from, shape.n, shape.kv_heads, kv, shape.size);
    if (threadIdx.x < TILE) {
        u32 key = from + threadIdx.x;
        seen_from[threadIdx.x] = key < shape.n ? spans[(index_t)key * 6 + 4] : shape.n;
        seen_to[threadIdx.x] = key < shape.n ? spans[(index_t)key * 6 + 5] : 0;
    }
    __syncthreads();
    u32 first = shape.n, last = 0;
    for (int j = 0; j < TILE; j++) {
        first = min(first, seen_from[j]);
        last = max(last, seen_to[j]);
    }
    float sum_k[ROWS][PARTS] = {}, sum_v[ROWS][PARTS] = {};
    for (u32 start = first / TILE * TILE; start < last; start += TILE) {
        for (u32 head = kv * group; head < (kv + 1) * group; head++) {
            describe(rows, sums, deltas, spans, logsum, delta, start, head, shape.n);
            __syncthreads();
            if (!any_meets(rows, from, from + TILE)) break;
            fetch(w.queries, q, start, shape.n, shape.heads, head, shape.size);
            fetch(w.d_rows, d_out, start, shape.n, shape.heads, head, shape.size);
            __syncthreads();
            gradients(w.p, w.ds, w.queries, w.keys, w.d_rows, w.values, rows, sums, deltas, from, shape.size, scale);
            __syncthreads();
            accumulate(sum_v, w.p, 1, SCORES, w.d_rows, shape.size);
            accumulate(sum_k, w.ds, 1, SCORES, w.queries, shape.size);
            __syncthreads();
        }
        __syncthreads();
    }
    put(sum_k, dk, from, shape.n, shape.kv_heads, kv, shape.size);
    put(sum_v, dv, from, shape.n, shape.kv_heads, kv, shape.size);
}

#define EXPORT(T, SUFFIX)                                                                                                             \
    extern "C" __global__ void LAUNCH_BOUNDS(THREADS)                                                                                 \
        attend_##SUFFIX(const T* q, const T* k, const T* v, const u32* spans, T* out, float* logsum, u32 n, u32 heads, u32 kv_heads,  \
                        u32 size, float scale) {                                                                                      \
        attend(q, k, v, spans, out, logsum, Shape{n, heads, kv_heads, size}, scale);                                                  \
    }                                                                                                                                 \
    extern "C" __global__ void LAUNCH_BOUNDS(BLOCK)                                                                                   \
        attend_delta_##SUFFIX(const T* out, const T* d_out, float* delta, u32 n, u32 heads, u32 size) {                               \
        attend_delta(out, d_out, delta, Shape{n, heads, heads, size});                                                                \
    }                                                                                                                                 \
    extern "C" __global__ void LAUNCH_BOUNDS(THREADS)                                                                                 \
        attend_dq_##SUFFIX(const T* q, const T* k, const T* v, const T* d_out, const u32* spans, const float* logsum,                 \
                           const float* delta, T* dq, u32 n, u32 heads, u32 kv_heads, u32 size, float scale) {                        \
        attend_dq(q, k, v, d_out, spans, logsum, delta, dq, Shape{n, heads, kv_heads, size}, scale);                                  \
    }                                                                                                                                 \
    extern "C" __global__ void LAUNCH_BOUNDS(THREADS)                                                                                 \
        attend_dkv_##SUFFIX(const T* q, const T* k, const T* v, const T* d_out, const u32* spans, const float* logsum,                \
                            const float* delta, T* dk, T* dv, u32 n, u32 heads, u32 kv_heads, u32 size, float scale) {                \
        attend_dkv(q, k, v, d_out, spans, logsum, delta, dk, dv, Shape{n, heads, kv_heads, size}, scale);                             \
    }
EXPORT(float, f32)
EXPORT(bf16, bf16)
