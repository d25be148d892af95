"""The PyTorch side of engine/examples/gpu_speed.rs: the same model shape and workloads in bf16 on one GPU, one JSON line a workload.

    python3 bench/peers/torch_gpu_speed.py CONFIG_JSON [seconds] [train|decode] [device]

A lean hand-written Qwen2 loop: scaled_dot_product_attention, preallocated cache, decoding with CUDA graphs off and on, activation checkpointing by block
when training (as Quorum does), fused AdamW timed apart.
"""
import json, sys, time
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

ROWS, PROMPT, NEW = 64, 256, 128
BATCH, FIRST, REST = 8, 256, 768


class Lean(torch.nn.Module):
    def __init__(self, c, device, dtype):
        super().__init__()
        self.heads, self.kv = c["num_attention_heads"], c["num_key_value_heads"]
        self.dim, self.theta = c["hidden_size"] // self.heads, c.get("rope_theta", 1e6)
        h, m, rows = c["hidden_size"], c["intermediate_size"], (self.heads + 2 * self.kv) * self.dim
        new = lambda *shape: torch.nn.Parameter(torch.randn(*shape, device=device, dtype=dtype) * 0.02)
        one = lambda n: torch.nn.Parameter(torch.ones(n, device=device, dtype=dtype))
        self.embed, self.norm = new(c["vocab_size"], h), one(h)
        self.layers = torch.nn.ModuleList()
        for _ in range(c["num_hidden_layers"]):
            layer = torch.nn.Module()
            layer.n1, layer.n2, layer.qkv, layer.out = one(h), one(h), new(rows, h), new(h, h)
            layer.bias = torch.nn.Parameter(torch.zeros(rows, device=device, dtype=dtype))
            layer.up, layer.down = new(2 * m, h), new(h, m)
            self.layers.append(layer)
        f = torch.outer(torch.arange(4096.0), self.theta ** (-torch.arange(0, self.dim, 2) / self.dim))
        self.register_buffer("cos", torch.cat([f, f], -1).cos().to(device, dtype))
        self.register_buffer("sin", torch.cat([f, f], -1).sin().to(device, dtype))

    def rotate(self, x, cos, sin):
        half = x.shape[-1] // 2
        return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

    def block(self, x, l, cos, sin, cache=None, at=None, mask=None):
        b, t, _ = x.shape
        qkv = F.linear(F.rms_norm(x, (x.shape[-1],), l.n1, 1e-6), l.qkv, l.bias).view(b, t, -1, self.dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv, self.kv], 1)
        q, k = self.rotate(q, cos, sin), self.rotate(k, cos, sin)
        if cache is not None:
            cache[0].index_copy_(2, at, k)
            cache[1].index_copy_(2, at, v)
        if mask is not None:
            o = F.scaled_dot_product_attention(q, *cache, attn_mask=mask, enable_gqa=True)
        else:
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + F.linear(o.transpose(1, 2).reshape(b, t, -1), l.out)
        gate, up = F.linear(F.rms_norm(x, (x.shape[-1],), l.n2, 1e-6), l.up).chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, l.down)

    def hidden(self, ids, train):
        x, cos, sin = F.embedding(ids, self.embed), self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for l in self.layers:
            x = checkpoint(self.block, x, l, cos, sin, use_reentrant=False) if train else self.block(x, l, cos, sin)
        return F.rms_norm(x, (x.shape[-1],), self.norm, 1e-6)


def sync(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def best(budget, device, run):
    begin, result = time.time(), float("inf")
    run()
    while True:
        sync(device)
        start = time.time()
        run()
        sync(device)
        result = min(result, time.time() - start)
        if time.time() - begin > budget:
            return result


def say(workload, seconds, **more):
    print(json.dumps({"workload": workload, "seconds": round(seconds, 4), **more}), flush=True)


def decode(model, c, budget, device, graphs):
    dtype = model.embed.dtype
    ids = torch.arange(ROWS * PROMPT, device=device).view(ROWS, PROMPT) * 7919 % c["vocab_size"]
    caches = [[torch.zeros(ROWS, model.kv, PROMPT + NEW, model.dim, device=device, dtype=dtype) for _ in range(2)] for _ in model.layers]
    token, at = torch.zeros(ROWS, 1, dtype=torch.long, device=device), torch.zeros(1, dtype=torch.long, device=device)
    columns = torch.arange(PROMPT + NEW, device=device)

    def draw(x):
        p = torch.softmax(F.linear(F.rms_norm(x[:, -1], (x.shape[-1],), model.norm, 1e-6), model.embed).float(), -1)
        token.copy_((p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True))

    def step():
        x, mask = F.embedding(token, model.embed), (columns <= at).view(1, 1, 1, -1)
        for l, cache in zip(model.layers, caches):
            x = model.block(x, l, model.cos[at], model.sin[at], cache, at, mask)
        draw(x)
        at.add_(1)

    graph = None
    if graphs:
        step()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()

    def run():
        x = F.embedding(ids, model.embed)
        first = torch.arange(PROMPT, device=device)
        for l, cache in zip(model.layers, caches):
            x = model.block(x, l, model.cos[:PROMPT], model.sin[:PROMPT], cache, first)
        draw(x)
        at.fill_(PROMPT)
        for _ in range(NEW - 1):
            graph.replay() if graph else step()

    with torch.no_grad():
        seconds = best(budget, device, run)
    say("decode" + (", captured graph" if graphs else ""), seconds, tokens_per_second=round(ROWS * NEW / seconds, 1))


def train(model, c, budget, device):
    tokens = BATCH * (FIRST + REST)
    ids = torch.arange(tokens, device=device).view(BATCH, -1) * 7919 % c["vocab_size"]

    def whole():
        model.zero_grad(set_to_none=True)
        x = model.hidden(ids, True)[:, FIRST - 1 : -1]
        head = lambda h, t: F.cross_entropy(F.linear(h, model.embed).float(), t, reduction="sum")
        loss = sum(checkpoint(head, row, targets, use_reentrant=False) for row, targets in zip(x, ids[:, FIRST:]))
        (loss / (BATCH * REST)).backward()

    seconds = best(budget, device, whole)
    say("forward and backward", seconds, tokens_per_second=round(tokens / seconds, 1))


def main():
    with open(sys.argv[1]) as file:
        c = json.load(file)
    budget = float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    only = sys.argv[3] if len(sys.argv) > 3 else ""
    device = sys.argv[4] if len(sys.argv) > 4 else "cuda"
    torch.manual_seed(1)
    model = Lean(c, device, torch.bfloat16)
    if only != "train":
        decode(model, c, budget, device, False)
        if device.startswith("cuda"):
            decode(model, c, budget, device, True)
    if only != "decode":
        train(model, c, budget, device)
    if device.startswith("cuda"):
        say("peak memory", 0.0, gigabytes=round(torch.cuda.max_memory_allocated() / 1e9, 2))


main()
