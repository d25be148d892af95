// Compares every kernel, compiled for the host, with the same formula written out in f64. Exit code 1 if one is off by more than rounding.
#define QUORUM_HOST
#include <cstdio>

#include "../elementwise.cu"
#undef EXPORT
#include "../rms_norm.cu"
#undef EXPORT
#include "../policy.cu"
#undef EXPORT
#include "../attention.cu"
#undef EXPORT

typedef std::vector<double> Wide;
static int failures = 0;

static double uniform() {
    static uint64_t state = 88172645463325252ull;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (double)(state >> 11) / (double)(1ull << 53) * 2.0 - 1.0;
}

static float to(float*, double x) { return (float)x; }
static bf16 to(bf16*, double x) { return __float2bfloat16((float)x); }
static double from(float x) { return x; }
static double from(bf16 x) { return __bfloat162float(x); }

template <typename T>
static std::vector<T> narrow(const Wide& x) {
    std::vector<T> y;
    for (double value : x) y.push_back(to((T*)nullptr, value));
    return y;
}
template <typename T>
static Wide widen(const std::vector<T>& x) {
    Wide y;
    for (T value : x) y.push_back(from(value));
    return y;
}
// Random values that T holds exactly, so that reference and kernel read the same.
template <typename T>
static Wide random(size_t count, double size = 1.0) {
    Wide x(count);
    for (double& value : x) value = uniform() * size;
    return widen(narrow<T>(x));
}
template <typename T>
static std::vector<T> unset(size_t count) {
    return narrow<T>(Wide(count, NAN));
}

// Largest difference relative to the largest value.
static void compare(const char* name, const Wide& got, const Wide& want, double allowed) {
    double scale = 1e-30, worst = 0.0;
    for (double x : want) scale = std::fmax(scale, std::fabs(x));
    for (size_t i = 0; i < want.size(); i++) {
        double off = std::fabs(got[i] - want[i]) / scale;
        worst = off <= worst ? worst : off;  // keeps a NaN
        if (std::isnan(off)) worst = INFINITY;
    }
    bool good = worst <= allowed && got.size() == want.size();
    failures += !good;
    printf("%-28s %8zu values  off by %.2e of %.0e allowed  %s\n", name, want.size(), worst, allowed, good ? "ok" : "WRONG");
}

static unsigned blocks(size_t threads) { return (unsigned)((threads + BLOCK - 1) / BLOCK); }

template <typename T>
static void check_elementwise(double allowed) {
    u32 n = 7, heads = 3, pairs = 20;
    Wide x = random<T>(n * heads * 2 * pairs), angle = random<float>(n * pairs, 3.0);
    std::vector<float> c, s;
    for (double a : angle) c.push_back((float)cos(a)), s.push_back((float)sin(a));
    for (float sign : {1.0f, -1.0f}) {
        auto in = narrow<T>(x);
        auto out = unset<T>(x.size());
        emulator::launch({blocks(n * heads * pairs), 1, 1}, BLOCK, 0,
                         [&] { rotate(in.data(), c.data(), s.data(), out.data(), n, heads, pairs, sign); });
        Wide want(x.size());
        for (u32 row = 0; row < n * heads; row++)
            for (u32 p = 0; p < pairs; p++) {
                double a = x[row * 2 * pairs + p], b = x[row * 2 * pairs + pairs + p];
                double cosine = c[row / heads * pairs + p], sine = sign * s[row / heads * pairs + p];
                want[row * 2 * pairs + p] = a * cosine - b * sine;
                want[row * 2 * pairs + pairs + p] = b * cosine + a * sine;
            }
        compare("rotate", widen(out), want, allowed);
    }
    u32 m = 77;
    Wide gate_up = random<T>(n * 2 * m, 4.0), d = random<T>(n * m);
    auto in = narrow<T>(gate_up), dy = narrow<T>(d);
    auto y = unset<T>(n * m), again = y, dx = unset<T>(n * 2 * m);
    emulator::launch({blocks(n * m), 1, 1}, BLOCK, 0, [&] { swiglu(in.data(), y.data(), n, m); });
    emulator::launch({blocks(n * m), 1, 1}, BLOCK, 0,
                     [&] { swiglu_backward(in.data(), dy.data(), again.data(), dx.data(), n, m); });
    Wide want(n * m), want_dx(n * 2 * m);
    for (u32 i = 0; i < n * m; i++) {
        u32 at = i / m * 2 * m + i % m;
        double g = gate_up[at], u = gate_up[at + m], e = 1e-6;
        auto silu = [](double t) { return t / (1.0 + exp(-t)); };
        want[i] = silu(g) * u;
        want_dx[at] = d[i] * u * (silu(g + e) - silu(g - e)) / (2 * e);
        want_dx[at + m] = d[i] * silu(g);
    }
    compare("swiglu", widen(y), want, allowed);
    compare("swiglu_backward: y", widen(again), want, allowed);
    compare("swiglu_backward: d gate|up", widen(dx), want_dx, allowed);
}

template <typename T>
static void check_norm(double allowed) {
    for (u32 columns : {24u, 300u, 1000u}) {
        u32 n = 19;
        float eps = 1e-6f;
        Wide x = random<T>(n * columns, 3.0), w = random<T>(columns), d = random<T>(n * columns);
        auto in = narrow<T>(x), weight = narrow<T>(w), dy = narrow<T>(d);
        auto y = unset<T>(x.size()), dx = y;
        auto inverse = unset<float>(n), dw = unset<float>(columns);
        emulator::launch({n, 1, 1}, BLOCK, 0, [&] { rms_norm(in.data(), weight.data(), y.data(), columns, eps); });
        emulator::launch({n, 1, 1}, BLOCK, 0,
                         [&] { rms_norm_dx(in.data(), weight.data(), dy.data(), dx.data(), inverse.data(), columns, eps); });
        emulator::launch({(columns + WIDE - 1) / WIDE, 1, 1}, BLOCK, 0,
                         [&] { rms_norm_dw(in.data(), dy.data(), inverse.data(), dw.data(), n, columns); });
        Wide want(x.size()), want_dx(x.size()), want_dw(columns);
        for (u32 row = 0; row < n; row++) {
            const double *a = &x[row * columns], *g = &d[row * columns];
            double square = 0.0, dot = 0.0;
            for (u32 c = 0; c < columns; c++) square += a[c] * a[c], dot += g[c] * w[c] * a[c];
            double r = 1.0 / sqrt(square / columns + eps);
            for (u32 c = 0; c < columns; c++) {
                want[row * columns + c] = a[c] * r * w[c];
                want_dx[row * columns + c] = r * g[c] * w[c] - a[c] * r * r * r * dot / columns;
                want_dw[c] += g[c] * a[c] * r;
            }
        }
        compare("rms_norm", widen(y), want, allowed);
        compare("rms_norm_dx", widen(dx), want_dx, allowed);
        compare("rms_norm_dw", widen(dw), want_dw, 1e-5);
    }
}

template <typename T>
static void check_policy(double) {
    u32 n = 9, vocab = 611, k = 3;
    float scale = 1.0f / 0.7f;
    Wide logits = random<T>(n * vocab, 8.0);
    auto in = narrow<T>(logits);
    std::vector<float> bias(vocab), p = unset<float>(n * vocab), z = p, top = unset<float>(n), sum = top, entropy = top, total(n);
    for (u32 c = 5; c < vocab; c += 50) bias[c] = -60.0f;
    emulator::launch({n, 1, 1}, BLOCK, 0, [&] {
        policy_rows(in.data(), bias.data(), z.data(), p.data(), top.data(), sum.data(), entropy.data(), vocab, scale, 1);
    });
    std::vector<u32> index(n * k);
    std::vector<float> factor(n * k), dlogits = unset<float>(n * vocab);
    for (u32 i = 0; i < n * k; i++) {
        index[i] = i % 4 == 1 ? index[i - 1] : (i * 131 + 7) % vocab;  // some targets twice
        factor[i] = (float)uniform();
        total[i / k] += factor[i];
    }
    emulator::launch({n, 1, 1}, BLOCK, 0, [&] {
        policy_backward(p.data(), sum.data(), total.data(), index.data(), factor.data(), dlogits.data(), vocab, k, scale);
    });
    Wide want_z(n * vocab), want_p(n * vocab), want_top(n), want_sum(n), want_entropy(n), want_d(n * vocab);
    for (u32 row = 0; row < n; row++) {
        double greatest = -INFINITY, power_sum = 0.0;
        for (u32 c = 0; c < vocab; c++) {
            want_z[row * vocab + c] = logits[row * vocab + c] * scale + bias[c];
            greatest = std::fmax(greatest, want_z[row * vocab + c]);
        }
        for (u32 c = 0; c < vocab; c++) power_sum += want_p[row * vocab + c] = exp(want_z[row * vocab + c] - greatest);
        for (u32 c = 0; c < vocab; c++) {
            double share = want_p[row * vocab + c] / power_sum, sums = 0.0;
            if (share > 0.0) want_entropy[row] -= share * log(share);
            for (u32 i = 0; i < k; i++) sums += factor[row * k + i] * ((index[row * k + i] == c) - share);
            want_d[row * vocab + c] = sums * scale;
        }
        want_top[row] = greatest, want_sum[row] = power_sum;
    }
    compare("policy_rows: z", widen(z), want_z, 1e-6);
    compare("policy_rows: p", widen(p), want_p, 1e-5);
    compare("policy_rows: max", widen(top), want_top, 1e-6);
    compare("policy_rows: sum", widen(sum), want_sum, 1e-5);
    compare("policy_rows: entropy", widen(entropy), want_entropy, 1e-5);
    compare("policy_backward", widen(dlogits), want_d, 1e-5);
}

// Packs of a prefix and branches that see it, or runs that see themselves alone; `loose` rows at the end belong to none.
static std::vector<u32> make_spans(const std::vector<std::vector<u32>>& packs, bool causal, u32 loose) {
    std::vector<u32> spans;
    u32 start = 0;
    for (const auto& pack : packs) {
        u32 end = start, prefix = start + pack[0];
        for (u32 len : pack) end += len;
        u32 run = start;
        for (size_t part = 0; part < pack.size(); part++) {
            for (u32 i = run; i < run + pack[part]; i++) {
                u32 seen_to = part == 0 ? end : run + pack[part];
                u32 row[6] = {start, part == 0 ? start : prefix, run, causal ? i + 1 : run + pack[part], causal ? i : part == 0 ? start : run, seen_to};
                spans.insert(spans.end(), row, row + 6);
            }
            run += pack[part];
        }
        start = end;
    }
    for (u32 i = 0; i < loose * 6; i++) spans.push_back(0);
    return spans;
}

template <typename T>
static void check_attention(const char* what, const std::vector<u32>& spans, u32 heads, u32 kv_heads, u32 size, double allowed) {
    u32 n = (u32)spans.size() / 6, group = heads / kv_heads;
    float scale = 1.0f / sqrtf((float)size);
    Wide q = random<T>(n * heads * size, 2.0), k = random<T>(n * kv_heads * size, 2.0), v = random<T>(n * kv_heads * size);
    Wide d = random<T>(n * heads * size);
    Wide out(q.size()), dq(q.size()), dk(k.size()), dv(k.size());
    for (u32 h = 0; h < heads; h++)
        for (u32 i = 0; i < n; i++) {
            Wide p(n);
            double sum = 0.0, delta = 0.0;
            auto at = [&](u32 row, u32 head, u32 of, u32 c) { return ((size_t)row * of + head) * size + c; };
            auto sees = [&](u32 j) {
                const u32* s = &spans[i * 6];
                return (j >= s[0] && j < s[1]) || (j >= s[2] && j < s[3]);
            };
            for (u32 j = 0; j < n; j++) {
                if (!sees(j)) continue;
                double score = 0.0;
                for (u32 c = 0; c < size; c++) score += q[at(i, h, heads, c)] * k[at(j, h / group, kv_heads, c)];
                sum += p[j] = exp(score * scale);
            }
            for (u32 j = 0; j < n; j++) {
                if (!sees(j)) continue;
                p[j] /= sum;
                for (u32 c = 0; c < size; c++) out[at(i, h, heads, c)] += p[j] * v[at(j, h / group, kv_heads, c)];
            }
            for (u32 c = 0; c < size; c++) delta += d[at(i, h, heads, c)] * out[at(i, h, heads, c)];
            for (u32 j = 0; j < n; j++) {
                if (!sees(j)) continue;
                double dp = 0.0;
                for (u32 c = 0; c < size; c++) dp += d[at(i, h, heads, c)] * v[at(j, h / group, kv_heads, c)];
                double ds = p[j] * (dp - delta) * scale;
                for (u32 c = 0; c < size; c++) {
                    dq[at(i, h, heads, c)] += ds * k[at(j, h / group, kv_heads, c)];
                    dk[at(j, h / group, kv_heads, c)] += ds * q[at(i, h, heads, c)];
                    dv[at(j, h / group, kv_heads, c)] += p[j] * d[at(i, h, heads, c)];
                }
            }
        }
    auto tq = narrow<T>(q), tk = narrow<T>(k), tv = narrow<T>(v), td = narrow<T>(d), exact = narrow<T>(out);
    auto o = unset<T>(q.size()), gq = o, gk = unset<T>(k.size()), gv = gk;
    auto logsum = unset<float>(heads * n), delta = logsum;
    Shape shape{n, heads, kv_heads, size};
    unsigned tiles = (n + TILE - 1) / TILE;
    size_t forward = (3 * TILE * STRIDE + TILE * SCORES) * 4, backward = (4 * TILE * STRIDE + 2 * TILE * SCORES) * 4;
    emulator::launch({tiles, heads, 1}, THREADS, forward,
                     [&] { attend(tq.data(), tk.data(), tv.data(), spans.data(), o.data(), logsum.data(), shape, scale); });
    emulator::launch({blocks(n * heads), 1, 1}, BLOCK, 0, [&] { attend_delta(o.data(), td.data(), delta.data(), shape); });
    emulator::launch({tiles, heads, 1}, THREADS, backward, [&] {
        attend_dq(tq.data(), tk.data(), tv.data(), td.data(), spans.data(), logsum.data(), delta.data(), gq.data(), shape, scale);
    });
    emulator::launch({tiles, kv_heads, 1}, THREADS, backward, [&] {
        attend_dkv(tq.data(), tk.data(), tv.data(), td.data(), spans.data(), logsum.data(), delta.data(), gk.data(), gv.data(), shape, scale);
    });
    printf("%s: %u rows, %u heads on %u, size %u\n", what, n, heads, kv_heads, size);
    compare("attend", widen(o), out, allowed);
    compare("attend_dq", widen(gq), dq, allowed);
    compare("attend_dkv: dk", widen(gk), dk, allowed);
    compare("attend_dkv: dv", widen(gv), dv, allowed);
}

template <typename T>
static void check_all(const char* type, double allowed) {
    printf("== %s\n", type);
    check_elementwise<T>(allowed);
    check_norm<T>(allowed);
    check_policy<T>(allowed);
    check_attention<T>("causal packs", make_spans({{37, 11, 30}, {5, 1}, {70}}, true, 0), 4, 2, 32, allowed * 4);
    check_attention<T>("windows", make_spans({{16}, {64}, {3}, {31}}, false, 0), 2, 2, 80, allowed * 4);
    check_attention<T>("prefix with branches, all seen", make_spans({{20, 9, 9}}, false, 0), 2, 1, 128, allowed * 4);
    check_attention<T>("rows that see nothing", make_spans({{33, 2}}, true, 40), 6, 2, 64, allowed * 4);
}

int main() {
    check_all<float>("f32", 2e-6);
    check_all<bf16>("bf16", 4e-3);
    printf(failures ? "%d comparisons are WRONG\n" : "all comparisons agree\n", failures);
    return failures != 0;
}
