"""Compares our tokenizer and chat template with Hugging Face's on a model directory (config.json, tokenizer.json, chat template; no weights).

    python -m venv V && V/bin/pip install transformers jinja2 && cargo build --release -p quorum-model --example tokenize
    V/bin/python bench/peers/check_tokenizer.py DIR target/release/examples/tokenize

Prints how many texts and conversations agree, and every one that does not.
"""
import json, os, random, subprocess, sys
os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import PreTrainedTokenizerFast

WORDS = ["angle", "Find", "the", "x", "y^2", "triangle", "don't", "WE'LL", "l'été", "naïve", "Straße", "Привет", "мир", "你好", "世界", "角A等于60度", "こんにちは", "한국어", "مرحبا", "שלום", "नमस्ते", "ไทย", "🙂", "👨‍👩‍👧", "e\u0301", "ﬁ", "½", "①", "Ⅷ", "٣", "12345", "3.14159", "1e-6", "0x1F", "\\frac{1}{2}", "\\boxed{42}", "$x_1$", "a+b=c", "==", "!=", "...", "?!", "—", "“quoted”", "<image>", "<b>", "</s>", "&amp;", "foo_bar", "camelCase", "http://a.b/c?d=e#f", "me@x.org", "\t", "\n", "\n\n", "\r\n", "  ", "   ", "\u00a0", "\u200b", "\u3000", "\ufeff", "\u0000", "\x7f", "def f(x):\n    return x\n", "{\"a\": [1, 2]}"]
FIXED = ["", " ", "\n", "a", " a", "a ", "'s", "it's 's", "I'M", "\u0130stanbul", "ǅ", "\ud7a3", "𝕏 𝟙", "A" * 300, "1" * 50, " " * 70, "\n" * 20 + "x", "=" * 40, "z\u0301\u0302\u0303", "\u1e9b\u0323", "\uac00\u11a8", "Å Å", "<|im_end|>", "<|endoftext|>x", "a<|im_start|>user\n", "<think>\nhm\n</think>", "<tool_call>{}</tool_call>"]
CONVERSATIONS = [[{"role": "user", "content": c}] for c in ("Hi", "What is 7 + 8?", " padded \n", "角A等于60度, why?")] + [
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Bye"}]]


def texts(n=230):
    rng = random.Random(7)
    made = [rng.choice(["", " "]).join(rng.choice(WORDS) for _ in range(rng.randint(1, 14))) for _ in range(n - len(FIXED))]
    return FIXED + made


def main(folder, program):
    settings = json.load(open(os.path.join(folder, "tokenizer_config.json")))
    theirs = PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"), chat_template=settings.get("chat_template"),
                                     **{k: v for k, v in settings.items() if k in ("bos_token", "eos_token", "pad_token", "unk_token") and v})
    inputs = texts() + (CONVERSATIONS if theirs.chat_template else [])
    lines = "".join(json.dumps(t) + "\n" for t in inputs)
    ours = subprocess.run([program, folder], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    wrong = 0
    for given, line in zip(inputs, ours, strict=True):
        text = given if isinstance(given, str) else theirs.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        want = {"decoded": theirs.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False), "ids": ids}
        if json.loads(line) != want:
            wrong += 1
            print("differs:", json.dumps(given), line[:200], json.dumps(want)[:200])
    print(f"{len(inputs) - wrong} of {len(inputs)} agree")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main(*sys.argv[1:3])
