"""Recounts tests/fixtures/published_configs.json: the parameters transformers makes of each published configuration (on the meta device, no weights).

    python -m venv V && V/bin/pip install torch transformers && V/bin/python bench/peers/check_published_configs.py tests/fixtures/published_configs.json
"""
import json, sys
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

for case in json.load(open(sys.argv[1])):
    config = dict(case["config"])
    kind = config.pop("model_type")
    config.pop("architectures")
    with torch.device("meta"):
        model = (AutoModelForImageTextToText if kind.endswith("vl") else AutoModelForCausalLM).from_config(CONFIG_MAPPING[kind].from_dict(config))
    model.tie_weights()
    counted = sum(p.numel() for p in model.parameters())
    print(case["name"], counted, "ok" if counted == case["parameters"] else f"BUT THE FILE HAS {case['parameters']}")
