"""The yardstick of `hone bench trainer`: PyTorch + PEFT on the same model and shapes, one JSON line per request.

Arguments: model directory, threads, f32 or bf16. Reads lines "score B T" or "train B T" on stdin, answers
{"tokens": n, "seconds": s} for one step. In bf16 the adapters are bf16 too, which is the faster way.
"""
import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

torch.set_num_threads(int(sys.argv[2]))
precision = sys.argv[3]
dtype = torch.bfloat16 if precision == "bf16" else torch.float32
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
lora = LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM")
model = get_peft_model(model, lora, autocast_adapter_dtype=False)
vocabulary = model.config.vocab_size
print(json.dumps({"name": "PyTorch " + torch.__version__, "precision": precision, "peak_gflops": 0.0}), flush=True)


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
    started = time.perf_counter()
    step(kind, ids)
    seconds = time.perf_counter() - started
    print(json.dumps({"tokens": ids.numel(), "seconds": seconds}), flush=True)
