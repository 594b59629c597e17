"""An external trainer in PyTorch and PEFT: the likelihood of each reply, weighed by its reward, and of
demonstrations; a frozen base teaches with the hint. Runs on a CPU; an example to start from.

    [train]
    engine = "external"
    [train.external]
    command = ["python3", "/path/to/peft_trainer.py"]
"""

import json
import os

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

config = json.load(open(os.environ["HONE_CONFIG"]))
torch.manual_seed(config["seed"] % 2**63)
if config["threads"]:
    torch.set_num_threads(config["threads"])
rows = [json.loads(line) for line in open(os.path.join(config["samples_dir"], "train.jsonl"))]
base = AutoModelForCausalLM.from_pretrained(config["model_dir"], dtype=torch.float32)
if config["incumbent_dir"]:
    model = PeftModel.from_pretrained(base, config["incumbent_dir"], is_trainable=True)
else:
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(
        r=config["rank"], lora_alpha=config["alpha"], target_modules=projections,
        lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"))


def log_probs(prompt, reply):
    logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1:-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None]).squeeze(-1)


trained = [p for p in model.parameters() if p.requires_grad]
optimiser = torch.optim.AdamW(trained, lr=config["learning_rate"], weight_decay=0.0)
for update in range(config["updates"]):
    optimiser.zero_grad()
    total = 0.0
    for row in rows:
        loss = -row["reward"] * log_probs(row["prompt_ids"], row["completion_ids"]).mean()
        (loss / len(rows)).backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimiser.step()
    print(f"update {update + 1} of {config['updates']}: loss {total / len(rows):.4f}", flush=True)
model.save_pretrained(config["adapter_dir"])
