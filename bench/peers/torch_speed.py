"""The PyTorch side of `quorum-bench train|decode`: one thread, process CPU time, one JSON line a workload.

    python -m venv V && V/bin/pip install torch transformers && V/bin/python bench/peers/torch_speed.py T [repeats]

T: a lean hand-written Qwen2 loop (fused AdamW, scaled_dot_product_attention, preallocated cache), the fastest plain PyTorch we know.
V: Qwen2.5-VL of transformers with sdpa. The shapes are those of bench/configs, the workloads those of bench/src/speed.rs.
"""
import json, os, statistics, sys, time
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1")
import torch
import torch.nn.functional as F
torch.set_num_threads(1)
HERE = os.path.dirname(os.path.abspath(__file__))


class Lean(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.kv, self.dim = c["num_attention_heads"], c["num_key_value_heads"], c["hidden_size"] // c["num_attention_heads"]
        h, m, rows = c["hidden_size"], c["intermediate_size"], (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * self.dim
        new = lambda *shape: torch.nn.Parameter(torch.randn(*shape) * 0.02)
        self.embed, self.norm = new(c["vocab_size"], h), torch.nn.Parameter(torch.ones(h))
        self.layers = torch.nn.ModuleList()
        for _ in range(c["num_hidden_layers"]):
            layer = torch.nn.Module()
            layer.n1, layer.n2 = torch.nn.Parameter(torch.ones(h)), torch.nn.Parameter(torch.ones(h))
            layer.qkv, layer.bias, layer.out = new(rows, h), torch.nn.Parameter(torch.zeros(rows)), new(h, h)
            layer.up, layer.down = new(2 * m, h), new(h, m)
            self.layers.append(layer)
        f = torch.outer(torch.arange(1024.0), 1e6 ** (-torch.arange(0, self.dim, 2) / self.dim))
        self.register_buffer("cos", torch.cat([f, f], -1).cos())
        self.register_buffer("sin", torch.cat([f, f], -1).sin())

    def rotate(self, x, at):
        half = x.shape[-1] // 2
        return x * self.cos[at] + torch.cat([-x[..., half:], x[..., :half]], -1) * self.sin[at]

    def forward(self, ids, cache=None, start=0, last=False):
        b, t = ids.shape
        x, at = F.embedding(ids, self.embed), slice(start, start + t)
        for i, l in enumerate(self.layers):
            h = F.rms_norm(x, (x.shape[-1],), l.n1, 1e-6)
            qkv = F.linear(h, l.qkv, l.bias).view(b, t, -1, self.dim).transpose(1, 2)
            q, k, v = qkv.split([self.heads, self.kv, self.kv], 1)
            q, k = self.rotate(q, at), self.rotate(k, at)
            if cache is not None:
                kc, vc = cache[i]
                kc[:, :, at], vc[:, :, at] = k, v
                k, v = kc[:, :, : start + t], vc[:, :, : start + t]
            if cache is not None and t == 1:
                o = F.scaled_dot_product_attention(q.reshape(b, self.kv, -1, self.dim), k, v).reshape(b, self.heads, 1, self.dim)
            else:
                o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + F.linear(o.transpose(1, 2).reshape(b, t, -1), l.out)
            gate, up = F.linear(F.rms_norm(x, (x.shape[-1],), l.n2, 1e-6), l.up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, l.down)
        if last:
            x = x[:, -1:]
        return F.linear(F.rms_norm(x, (x.shape[-1],), self.norm, 1e-6), self.embed)

    @torch.inference_mode()
    def decode(self, ids, new):
        b, t = ids.shape
        empty = lambda: torch.empty(b, self.kv, t + new, self.dim)
        cache = [(empty(), empty()) for _ in self.layers]
        logits, out = self(ids, cache, 0, True)[:, -1], []
        for i in range(new):
            out.append(torch.multinomial(F.softmax(logits, -1), 1))
            if i + 1 < new:
                logits = self(out[-1], cache, t + i, True)[:, -1]
        return torch.cat(out, 1)


def step(model, ids, **inputs):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, weight_decay=0.01, fused=True)
    def run():
        logits = model(ids) if not inputs else model(input_ids=ids, **inputs).logits
        loss = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return run


def measure(bench, config, tokens, repeats, work):
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append((time.process_time() - start) * 1e3)
    median = statistics.median(times)
    print(json.dumps({"peer": f"torch {torch.__version__}", "bench": bench, "config": config, "tokens": tokens, "cpu_ms_median": median,
                      "cpu_ms_best": min(times), "tokens_per_cpu_second": tokens / median * 1e3}), flush=True)


def text(config, repeats):
    model = Lean(config)
    train, prompt = torch.randint(0, 500, (32, 96)), torch.randint(0, 500, (64, 32))
    measure("train", "T", 32 * 96, repeats, step(model, train))
    measure("decode", "T", 64 * 48, repeats, lambda: model.decode(prompt, 48))


def vision(config, repeats):
    from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration as Model
    model = Model._from_config(AutoConfig.from_pretrained(os.path.join(HERE, "..", "configs", "V")), attn_implementation="sdpa", dtype=torch.float32)
    image = torch.tensor([507, 510, 510, 510, 510, 508])
    def inputs(rows, length):
        ids = torch.cat([image.expand(rows, -1), torch.randint(0, 500, (rows, length))], 1)
        return dict(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=torch.randn(rows * 16, 1176),
                    image_grid_thw=torch.tensor([[1, 4, 4]]).expand(rows, -1).contiguous(), mm_token_type_ids=(ids == 510).int())
    train = inputs(32, 64)
    ids = train.pop("input_ids")
    measure("train", "V", ids.numel(), repeats, step(model, ids, **train))
    g = model.generation_config
    g.eos_token_id, g.pad_token_id, g.temperature, g.top_k, g.top_p, g.repetition_penalty = None, 0, 1.0, 0, 1.0, 1.0
    prompt = inputs(64, 32)
    def generate():
        with torch.inference_mode():
            model.generate(**prompt, do_sample=True, max_new_tokens=48, use_cache=True)
    measure("decode", "V", 64 * 48, repeats, generate)


if __name__ == "__main__":
    name, repeats = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9
    config = json.load(open(os.path.join(HERE, "..", "configs", name, "config.json")))
    {"T": text, "V": vision}[name](config, repeats)
