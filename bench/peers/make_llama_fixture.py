"""Makes tests/fixtures/llama_text (SmolLM2-like: tied, grouped heads, ChatML) and tests/fixtures/llama_rope (llama3 rope scaling, head size of
its own, attention biases, own head), with the outputs of transformers on them: logits, greedy tokens, GRPO losses and gradients, AdamW steps;
and tests/fixtures/rope_expected.json, rotary frequencies of every rope scaling we read.

    python -m venv V && V/bin/pip install torch transformers && V/bin/python bench/peers/make_llama_fixture.py tests/fixtures

Weights are random, but every norm and bias is off its default. The schema is that of the other text fixtures.
"""
import json, math, os, sys
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="")
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
PAD, BOS, EOS = 0, 1, 2
CORPUS = """system user assistant
You are a helpful AI assistant named SmolLM, trained by Hugging Face
Answer with a number. The answer is the sum of the two numbers, so the answer is \\boxed{12}.
Tom has some apples and buys more apples. How many apples does Tom have now? How many are there in total?
Sara has a box with pens and gives some of the pens to a friend. How many pens are left in the box?
First we add the numbers, then we subtract what was given away. Therefore there are 7 left.
"""
# The template of SmolLM2-Instruct.
TEMPLATE = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CASES = [
    {"name": "q1", "messages": [{"role": "user", "content": "Tom has 3 apples and buys 14 more. How many now?"}]},
    {"name": "q2", "messages": [{"role": "system", "content": "Answer with a number."}, {"role": "user", "content": "7 + 8?"},
                                {"role": "assistant", "content": "\\boxed{15}"}, {"role": "user", "content": "Naïve 角A: why?"}]},
    {"name": "q3", "messages": [{"role": "user", "content": "Hi"}]},
]
COMMON = dict(vocab_size=384, num_hidden_layers=2, hidden_size=48, intermediate_size=104, hidden_act="silu", rms_norm_eps=1e-5, max_position_embeddings=2048,
              bos_token_id=BOS, eos_token_id=EOS, pad_token_id=EOS, initializer_range=0.04, mlp_bias=False, use_cache=True)
MODELS = {
    "llama_text": dict(COMMON, num_attention_heads=6, num_key_value_heads=2, attention_bias=False, rope_theta=100000.0, rope_scaling=None, tie_word_embeddings=True),
    # A short original context, so that the prompts reach all three bands of wavelengths.
    "llama_rope": dict(COMMON, num_attention_heads=4, num_key_value_heads=2, head_dim=16, attention_bias=True, rope_theta=500000.0, tie_word_embeddings=False,
                       rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}),
}


def dump(value, *path, **options):
    with open(os.path.join(*path), "w") as f:
        json.dump(value, f, ensure_ascii=False, **options)


def tokenizer(out):
    """SmolLM2's pipeline (single digits, then byte-level)."""
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=COMMON["vocab_size"], special_tokens=[AddedToken(s, special=True, normalized=False) for s in SPECIALS],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(CORPUS.splitlines(keepends=True), trainer)
    assert t.get_vocab_size() == COMMON["vocab_size"]
    t.save(os.path.join(out, "tokenizer.json"), pretty=False)
    dump({"add_prefix_space": False, "bos_token": "<|im_start|>", "chat_template": TEMPLATE, "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>",
          "model_max_length": 2048, "pad_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<|endoftext|>"}, out, "tokenizer_config.json", indent=2)


def checkpoint(out, config, seed):
    """bf16 weights under the hub's names, config.json in the hub's form and as transformers 5 writes it."""
    hub = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **config, "torch_dtype": "bfloat16"}
    dump(hub, out, "config.json", indent=2)
    dump({"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}, out, "generation_config.json", indent=2)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(out))
    g = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, p in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        noise = torch.randn(p.shape, generator=g)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * noise
        elif name.endswith("bias"):
            value = 0.3 * noise
        elif "embed" in name or "lm_head" in name:
            value = 0.5 * noise
        else:
            value = noise * 1.4 / math.sqrt(p.shape[-1])
        tensors[name] = value.to(torch.bfloat16).contiguous()
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    model.config.save_pretrained(os.path.join(out, "tmp"))
    os.replace(os.path.join(out, "tmp", "config.json"), os.path.join(out, "config_transformers5.json"))
    os.rmdir(os.path.join(out, "tmp"))


class Model:
    def __init__(self, path, dtype, attention):
        self.m = LlamaForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention).eval()
        # torch drops the gradient of the padding row, which here is the end-of-turn token of every prompt.
        self.m.model.embed_tokens.padding_idx = None

    def logits(self, ids, mask):
        position = (mask.cumsum(-1) - 1).clamp(min=0)
        return self.m(input_ids=ids, attention_mask=mask, position_ids=position, use_cache=False).logits

    def one(self, ids):
        ids = torch.tensor([ids])
        return self.logits(ids, torch.ones_like(ids))[0]

    @torch.no_grad()
    def greedy(self, ids, n=16, penalty=1.0):
        ids, margins, start = list(ids), [], len(ids)
        for _ in range(n):
            row = self.one(ids)[-1].float()
            seen = torch.tensor(sorted(set(ids)))
            row[seen] = torch.where(row[seen] < 0, row[seen] * penalty, row[seen] / penalty)
            top = row.topk(2)
            margins.append((top.values[0] - top.values[1]).item())
            ids.append(top.indices[0].item())
        return ids[start:], min(margins)


def gathered(logits, ids, temperature=1.0):
    return torch.log_softmax(logits[:, :-1] / temperature, -1).gather(-1, ids[:, 1:, None])[..., 0]


def padded(rows, left, value):
    n = max(map(len, rows))
    fill = lambda r: [value] * (n - len(r))
    return torch.tensor([fill(r) + r if left else r + fill(r) for r in rows]), torch.tensor([[0] * (n - len(r)) + [1] * len(r) if left else [1] * len(r) + [0] * (n - len(r)) for r in rows])


def policy_loss(lp, old, ref, advantage, mask, v, longest):
    """Clipped policy gradient plus beta times the k3 estimate of the KL divergence; returns the loss and what is worth knowing about it."""
    a, ratio = advantage[:, None], torch.exp(lp - old)
    low, high = 1 - v["lo"], 1 + v["hi"]
    pg = torch.maximum(-a * ratio, -a * ratio.clamp(low, high))
    if "dual" in v:
        pg = torch.where(a < 0, torch.minimum(pg, -a * v["dual"]), pg)
    d = ref - lp
    d = d.clamp(-20, 20) if v.get("kl_clamp") else d
    kl = torch.exp(d) - d - 1
    kl = kl.clamp(-10, 10) if v.get("kl_clamp") else kl
    token = (pg + v["beta"] * kl) * mask
    loss = {"token-mean": lambda: token.sum() / mask.sum(), "seq-mean-token-mean": lambda: (token.sum(-1) / mask.sum(-1)).mean(),
            "dr_grpo": lambda: token.sum() / (mask.shape[0] * longest)}[v["agg"]]()
    mean = lambda x: ((x * mask).sum() / mask.sum()).item()
    clipped = ((ratio < low) & (a < 0)) | ((ratio > high) & (a > 0))
    return loss, {"kl_mean": mean(kl), "clip_frac": mean(clipped.float()), "ratio_mean": mean(ratio), "pg_mean": mean(pg)}


VARIANTS = [
    dict(name="on_policy_beta0_grpo", old="self", lo=0.2, hi=0.2, beta=0.0, agg="seq-mean-token-mean", grads=True),
    dict(name="on_policy_kl_token_mean", old="self", lo=0.2, hi=0.2, beta=0.01, agg="token-mean"),
    dict(name="off_policy_clip_kl_token_mean", old="old", lo=0.2, hi=0.2, beta=0.01, agg="token-mean", grads=True),
    dict(name="off_policy_clip_kl_dr_grpo", old="old", lo=0.2, hi=0.2, beta=0.01, agg="dr_grpo"),
    dict(name="off_policy_cliphigher_dual_kl_token_mean", old="old", lo=0.2, hi=0.3, beta=0.01, agg="token-mean", dual=3.0, kl_clamp=True, grads=True),
]


def parameters(model):
    return [(n, p) for n, p in sorted(model.named_parameters()) if not (n == "lm_head.weight" and model.config.tie_word_embeddings)]


def gradients(model):
    out = {}
    for name, p in parameters(model):
        g = p.grad.detach().double().reshape(-1)
        wave = torch.cos(0.37 * torch.arange(g.numel(), dtype=torch.float64) + 0.1)
        out[name] = {"norm": g.norm().item(), "dot": (g * wave).sum().item()}
    return out


def grpo(model, prompts, seed, tensors, group=3, lengths=(9, 5, 12)):
    g = torch.Generator().manual_seed(seed)
    rows, completions, longest = [], [], max(lengths)
    for q, ids in enumerate(prompts):
        for k in range(group):
            n, done = lengths[(k + q) % len(lengths)], []
            for t in range(n):
                with torch.no_grad():
                    row = model.one(list(ids) + done)[-1]
                row[:len(SPECIALS)] = -1e30
                done.append(EOS if t == n - 1 and n < longest else torch.multinomial(F.softmax(row, -1), 1, generator=g).item())
            rows.append(list(ids))
            completions.append(done)
    prompt_ids, prompt_mask = padded(rows, True, PAD)
    ids, mask = padded(completions, False, PAD)
    whole = (torch.cat([prompt_ids, ids], 1), torch.cat([prompt_mask, mask], 1))
    at = prompt_ids.shape[1] - 1
    current = lambda temperature=1.0: gathered(model.logits(*whole), whole[0], temperature)[:, at:]
    advantage, weight = torch.tensor([1.25, -0.75, 0.5, -1.5, 0.25, 2.0]), mask.float()
    with torch.no_grad():
        base, warm = current(), current(0.7)
    noise = torch.Generator().manual_seed(seed + 1)
    while True:  # every ratio stays away from the clip bounds, where rounding could choose the branch
        old, ref = base + 0.35 * torch.randn(base.shape, generator=noise), base + 0.3 * torch.randn(base.shape, generator=noise)
        if min((torch.exp(base - old) - bound).abs().min().item() for bound in (0.8, 1.2, 1.3, 3.0)) > 4e-3:
            break
    tensors.update({f"grpo.{k}": v for k, v in dict(prompt_ids=prompt_ids, prompt_mask=prompt_mask, completion_ids=ids, completion_mask=mask, advantages=advantage,
                    old_logps=old * weight, ref_logps=ref * weight, logps=base * weight).items()})
    tensors["grpo.logps_temp0.7"] = warm * weight
    losses = {}
    for v in VARIANTS:
        model.m.zero_grad(set_to_none=True)
        lp = current()
        loss, stats = policy_loss(lp, lp.detach() if v["old"] == "self" else old, ref, advantage, weight, v, longest)
        loss.backward()
        grads = gradients(model.m)
        total = math.sqrt(sum(x["norm"] ** 2 for x in grads.values()))
        losses[v["name"]] = {**{k: x for k, x in v.items() if k not in ("name", "grads")}, "loss": loss.item(), **stats, "grad_total_norm": total}
        if v.get("grads"):
            losses[v["name"]]["grads"] = grads
    return {"prompts": [0, 1], "G": group, "pad_id": PAD, "losses": losses, "adamw": adamw(model, current, old, ref, advantage, weight, longest)}


def adamw(model, current, old, ref, advantage, weight, longest):
    v = next(v for v in VARIANTS if v["name"] == "off_policy_clip_kl_token_mean")
    before = {n: p.detach().clone() for n, p in parameters(model.m)}
    optimizer = torch.optim.AdamW(model.m.parameters(), lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, foreach=False)
    history = []
    for step in range(4):
        model.m.zero_grad(set_to_none=True)
        loss, _ = policy_loss(current(), old, ref, advantage, weight, v, longest)
        history.append({"loss": loss.item()})
        if step < 3:
            loss.backward()
            history[-1]["grad_norm_before_clip"] = torch.nn.utils.clip_grad_norm_(model.m.parameters(), 1.0).item()
            optimizer.step()
    moved = {n: (p.detach() - before[n]).double().norm().item() for n, p in parameters(model.m)}
    return {"lr": 1e-4, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01, "decay_applies_to": "all parameters", "max_grad_norm": 1.0,
            "loss_variant": v["name"], "history": history, "param_delta_norm_after_3_steps": moved}


def build(root, name, config):
    out = os.path.join(root, name)
    os.makedirs(out, exist_ok=True)
    tokenizer(out)
    tok = AutoTokenizer.from_pretrained(out)
    render = lambda c: tok.apply_chat_template(c["messages"], tokenize=False, add_generation_prompt=True)
    ids = [tok(render(c), add_special_tokens=False)["input_ids"] for c in CASES]
    for seed in range(2026, 2126):  # until no greedy choice is a near tie
        checkpoint(out, config, seed)
        model = Model(out, torch.float32, "eager")
        greedy = [model.greedy(i) for i in ids]
        if all(m >= 0.015 and len(set(t)) >= 7 and min(t) >= len(SPECIALS) for t, m in greedy):
            break
    else:
        raise SystemExit("no seed without a near tie")
    exact = Model(out, torch.float64, "sdpa")
    tensors, cases = {}, []
    for case, i, (tokens, margin) in zip(CASES, ids, greedy):
        with torch.no_grad():
            logits = model.one(i)
            error = (logits.double() - exact.one(i)).abs().max().item()
        assert error < 1e-4, error
        n = case["name"]
        tensors[f"{n}.last_logits"] = logits[-1].clone()
        tensors[f"{n}.token_logps"] = gathered(logits[None], torch.tensor([i]))[0]
        if n == "q3":
            tensors[f"{n}.logits_tail24"] = logits[-24:].clone()
        cases.append({**case, "images": [], "rendered_text": render(case), "input_ids": i, "n_tokens": len(i), "max_abs_diff_float64": error,
                      "greedy_16": tokens, "greedy_min_margin": margin})
        penalised, margin = model.greedy(i, penalty=1.05)
        if margin > 0.01:
            cases[-1]["greedy_16_repetition_penalty_1.05"] = penalised
    stop = greedy[0][0][4]
    cut = lambda t: t[:t.index(stop) + 1] + [PAD] * (15 - t.index(stop)) if stop in t else t
    result = {"kind": "llama", "seed": seed, "weights_dtype": "bfloat16", "compute": "float32 CPU, eager", "eos_ids": [EOS], "pad_id": PAD,
              "versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "cases": cases,
              "batch_left_pad": {"cases": [c["name"] for c in CASES], "greedy_16": [t for t, _ in greedy], "eos_override": {"eos_token_id": stop, "output": [cut(t) for t, _ in greedy]}},
              "rope_inverse_frequencies": model.m.model.rotary_emb.inv_freq.tolist(), "grpo": grpo(model, ids[:2], 1000 + seed, tensors)}
    save_file({k: v.contiguous() for k, v in tensors.items()}, os.path.join(out, "expected.safetensors"))
    dump(result, out, "expected.json", separators=(",", ":"))
    print(name, "seed", seed, "margins", [round(m, 3) for _, m in greedy], {k: round(v["grad_total_norm"], 4) for k, v in result["grpo"]["losses"].items()})


ROPES = [
    {"type": "linear", "factor": 2.5},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
    {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25, "truncate": False},
]


def ropes(root):
    """What transformers makes of each scaling, for a head of 64 in a model of 131,072 positions."""
    cases = []
    for scaling in ROPES:
        for theta in (10000.0, 1000000.0):
            config = {"model_type": "llama", "vocab_size": 16, "hidden_size": 128, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
                      "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": theta, "rope_scaling": scaling}
            rope = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(LlamaConfig.from_dict(json.loads(json.dumps(config))))
            cases.append({"config": config, "inverse_frequencies": rope.inv_freq.tolist(), "amplitude": rope.attention_scaling})
    dump(cases, root, "rope_expected.json", separators=(",", ":"))


if __name__ == "__main__":
    ropes(sys.argv[1])
    for name, config in MODELS.items():
        build(sys.argv[1], name, config)
