"""Checks `coordinator import` on a real GGUF file against independent code: tensors, tokenizer, chat.

    python bench/peers/check_gguf.py FILE.gguf IMPORTED_DIR [--tokenizer OTHER_TOKENIZER_JSON] [--chat]

Needs numpy, regex, tokenizers, torch, transformers and gguf. Tensors are compared bit for bit with gguf's dequantisation, rounded to the
type of the import. Token ids are compared with a BPE written here after llama.cpp's (`llm_tokenizer_bpe`), and with another tokenizer.json
where one is given. `--chat` prints greedy answers, to be read by a person. Exits with 1 if anything differs.
"""

import argparse
import os
import random
import sys

import numpy as np
import regex
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file
from tokenizers import Tokenizer

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CASED = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
QWEN2 = CASED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
WORDS = {"gpt-2": [GPT2], "smollm": [r"\p{N}", GPT2], "qwen2": [QWEN2], "llama-bpe": [QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)]}
HUB = {
    "attn_norm.": "input_layernorm.", "ffn_norm.": "post_attention_layernorm.", "attn_output.": "self_attn.o_proj.",
    "attn_q.": "self_attn.q_proj.", "attn_k.": "self_attn.k_proj.", "attn_v.": "self_attn.v_proj.",
    "attn_q_norm.": "self_attn.q_norm.", "attn_k_norm.": "self_attn.k_norm.",
    "ffn_gate.": "mlp.gate_proj.", "ffn_up.": "mlp.up_proj.", "ffn_down.": "mlp.down_proj.",
}
TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight", "output.weight": "lm_head.weight"}
TEXTS = [
    "", " ", "  ", "\n", "\n\n \n", "a", " a", "a ", "  a  b   c ", "Hello, world!", "What is 3 + 4?", "12345 67 8.90 1,000,000", "½ ² Ⅳ ٣",
    "I'm you're WE'LL it'S they'Ve 'tis '90s", "def f(x):\n    return x**2  # square\n\tpass\r\n", "\t\ttabs\tand  spaces \n  ",
    "naïve café Ångström — “quotes” … ‘x’", "cafe\u0301 e\u0301 \u1100\u1161", "日本語のテキスト、漢字。", "Привет, мир! Ёлка", "مرحبا بالعالم", "हिन्दी नमस्ते",
    "한국어 문장입니다.", "👩‍👩‍👧‍👦 🏳️‍🌈 emoji 😀😀", "\\boxed{42} $x^2 + y^2 = r^2$ \\frac{1}{2}", "http://example.org/a?b=c&d=%20#e", "A\u00a0B\u2003C\u200bD",
    "<|im_start|>user\nhi<|im_end|>\n", "<|endoftext|><|im_end|>", "< |im_start|>", "$$$+++===~~~^^^|||", "x=1;y=2;;;z!!!", "ß ŉ ǆ ﬁ İ ı", "\x00\x01\x7f", "0x1F 1e-5 3.14",
]  # fmt: skip


def tensors(path, directory):
    reader = GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    arch = field("general.architecture")
    files = [f for f in os.listdir(directory) if f.endswith(".safetensors")]
    ours = {k: v for f in files for k, v in load_file(os.path.join(directory, f)).items()}
    bad = 0
    for t in reader.tensors:
        name = TOP.get(t.name)
        if name is None:
            _, layer, rest = t.name.split(".", 2)
            name = f"model.layers.{layer}." + next(hub + rest[len(g):] for g, hub in HUB.items() if rest.startswith(g))
        w = dequantize(t.data, t.tensor_type).astype(np.float32).reshape(t.shape.tolist()[::-1])
        if arch == "llama" and (".attn_q." in t.name or ".attn_k." in t.name):
            heads = field(f"{arch}.attention.head_count" + ("_kv" if ".attn_k." in t.name else ""))
            w = w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)
        mine = ours.pop(name)
        if not torch.equal(torch.from_numpy(np.ascontiguousarray(w)).to(mine.dtype), mine):
            bad += 1
            print("differs:", t.name, t.tensor_type.name)
    print(f"tensors: {len(reader.tensors)} compared, {bad} differ, {len(ours)} without a source")
    return bad + len(ours)


class Reference:
    """llama.cpp's byte-level BPE, from the metadata alone."""

    def __init__(self, path):
        field = lambda key: GGUFReader(path).fields["tokenizer.ggml." + key].contents()
        tokens, kinds = field("tokens"), field("token_type")
        self.words, self.ids = WORDS[field("pre")], {t: i for i, t in enumerate(tokens) if kinds[i] != 5}
        self.ranks = {tuple(m.split(" ")): i for i, m in enumerate(field("merges"))}
        special = sorted((t for t, k in zip(tokens, kinds) if k in (3, 4)), key=len, reverse=True)
        self.special, self.texts = regex.compile("|".join(map(regex.escape, special))), set(special)
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [b for b in range(256) if b not in visible]
        self.bytes = {b: chr(b) for b in visible} | {b: chr(256 + i) for i, b in enumerate(hidden)}

    def encode(self, text):
        ids, at = [], 0
        for m in self.special.finditer(text):
            ids += self.plain(text[at:m.start()]) + [self.ids[m.group()]]
            at = m.end()
        return ids + self.plain(text[at:])

    def plain(self, text):
        pieces = [text] if text else []
        for pattern in self.words:
            pieces = [p for piece in pieces for p in self.cut(pattern, piece)]
        return [self.ids[t] for p in pieces for t in self.merge([self.bytes[b] for b in p.encode()]) if t in self.ids]

    @staticmethod
    def cut(pattern, text):
        at = 0
        for m in regex.finditer(pattern, text):
            yield from (x for x in (text[at:m.start()], m.group()) if x)
            at = m.end()
        if text[at:]:
            yield text[at:]

    def merge(self, parts):
        while len(parts) > 1:
            rank, i = min((self.ranks.get(pair, 1 << 60), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == 1 << 60:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        return parts


def samples():
    rng = random.Random(7)
    alphabet = "aZ é0 1\n\t.,'’-_$+<ñ漢٣😀sS" + "  "
    mixed = ["".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 40))) for _ in range(120)]
    joined = [" ".join(rng.sample(TEXTS, 3)) for _ in range(60)]
    return TEXTS + mixed + joined


def tokens(path, directory, other):
    import unicodedata

    ours, reference, bad = Tokenizer.from_file(os.path.join(directory, "tokenizer.json")), Reference(path), 0
    composes = ours.normalizer is not None
    for text in samples():
        mine = ours.encode(text, add_special_tokens=False).ids
        # llama.cpp leaves out the composition to NFC that the models' own tokenizers have.
        want = {"llama.cpp": reference.encode(unicodedata.normalize("NFC", text) if composes else text)}
        if other:
            want["the other"] = other.encode(text, add_special_tokens=False).ids
        for who, ids in want.items():
            if ids != mine:
                bad += 1
                print(f"differs from {who}: {text!r}\n  ours {mine}\n  want {ids}")
        back = ours.decode(mine, skip_special_tokens=False)
        if back != (unicodedata.normalize("NFC", text) if composes else text):
            print(f"does not round-trip: {text!r} -> {back!r}")
    print(f"tokenizer: {len(samples())} texts, {bad} differ")
    return bad


def chat(directory, questions=("What is 3 + 4?", "What is the capital of France?")):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for question in questions:
        messages = [{"role": "user", "content": question}]
        x = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        y = model.generate(**x, max_new_tokens=40, do_sample=False)[0, x["input_ids"].shape[1] :]
        print(repr(question), "->", repr(tokenizer.decode(y)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("directory")
    parser.add_argument("--tokenizer")
    parser.add_argument("--chat", action="store_true")
    args = parser.parse_args()
    other = Tokenizer.from_file(args.tokenizer) if args.tokenizer else None
    bad = tensors(args.file, args.directory) + tokens(args.file, args.directory, other)
    if args.chat:
        chat(args.directory)
    sys.exit(1 if bad else 0)


main()
