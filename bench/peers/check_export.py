"""Checks that a model directory (exported by Quorum, or any checkpoint) gives the same logits in transformers as in Quorum's engine.

    cargo run --release -p quorum-engine --example logits -- MODEL_DIR OUT.safetensors "What is shown? <image>" IMAGE.png
    python bench/peers/check_export.py MODEL_DIR OUT.safetensors

An exported adapter (coordinator export --adapter) is checked on its base against the dump of the merged export (--dtype f32):

    python bench/peers/check_export.py BASE_DIR MERGED.safetensors --adapter ADAPTER_DIR

Needs torch, transformers and safetensors, for adapters peft. The first command writes token ids, patches and the logits of every prompt position; this script runs
transformers on the same ids and patches (f32, eager attention) and prints the largest difference. Exits with 1 above --tolerance.
"""

import argparse
import sys

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText


def main() -> int:
    args = argparse.ArgumentParser()
    args.add_argument("model")
    args.add_argument("dump")
    args.add_argument("--tolerance", type=float, default=1e-3)
    args.add_argument("--adapter", help="directory of a PEFT adapter to put on the model")
    args = args.parse_args()
    dump = load_file(args.dump)
    config = AutoConfig.from_pretrained(args.model)
    vision = hasattr(config, "vision_config")
    kind = AutoModelForImageTextToText if vision else AutoModelForCausalLM
    model = kind.from_pretrained(args.model, dtype=torch.float32, attn_implementation="eager").eval()
    if args.adapter:
        from peft import PeftModel
        from peft.utils import get_peft_model_state_dict

        model = PeftModel.from_pretrained(model, args.adapter).eval()
        stored = load_file(f"{args.adapter}/adapter_model.safetensors")
        if set(get_peft_model_state_dict(model)) != set(stored):
            print(f"{args.adapter}: its tensors are not those of the adapter peft made of its configuration")
            return 1
    ids = dump["ids"].long()[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "patches" in dump:
        inputs["pixel_values"] = dump["patches"]
        inputs["image_grid_thw"] = dump["grid"].long()
        # transformers 5 falls back to one-axis positions in silence without it.
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    with torch.no_grad():
        logits = model(**inputs).logits[0].float()
    ours = dump["logits"]
    diff = (logits[:, : ours.shape[1]] - ours).abs().max().item()
    same = (logits.argmax(-1) == ours.argmax(-1)).float().mean().item()
    print(f"{args.model}: {ours.shape[0]} positions, largest logit {ours.abs().max():.2f}, largest difference {diff:.2e}, same argmax {same:.4f}")
    return int(diff > args.tolerance)


if __name__ == "__main__":
    sys.exit(main())
