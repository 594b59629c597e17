"""The yardstick of `hone bench trainer`: PyTorch + PEFT on the same model and shapes, one JSON line per request.

Reads lines "score B T" or "train B T" on stdin, answers {"tokens_per_second": x} for one step after one warm-up step.
"""
import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

torch.set_num_threads(int(sys.argv[2]))
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"))
vocabulary = model.config.vocab_size
print(json.dumps({"torch": torch.__version__}), flush=True)


def logprobs(ids):
    logits = model(ids).logits[:, :-1]
    return torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def step(kind, ids):
    if kind == "score":
        with torch.no_grad():
            logprobs(ids)
        return
    model.zero_grad(set_to_none=True)
    (-logprobs(ids).mean()).backward()


for line in sys.stdin:
    kind, batch, length = line.split()
    ids = torch.randint(0, vocabulary, (int(batch), int(length)))
    step(kind, ids)
    started = time.perf_counter()
    step(kind, ids)
    seconds = time.perf_counter() - started
    print(json.dumps({"tokens_per_second": ids.numel() / seconds}), flush=True)
