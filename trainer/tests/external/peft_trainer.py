"""An external trainer in PyTorch and PEFT: the likelihood of each reply, weighed by its reward; the frozen base,
told the hint, teaches on the same reply; demonstrations are learned as they are. Runs on a CPU; an example to start from.

    [train]
    engine = "external"
    [train.external]
    command = ["python3", "/path/to/peft_trainer.py"]
"""

import json
import os

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

config = json.load(open(os.environ["HONE_CONFIG"]))
torch.manual_seed(config["seed"] % 2**63)
if config["threads"]:
    torch.set_num_threads(config["threads"])
rows = [json.loads(line) for line in open(os.path.join(config["samples_dir"], "train.jsonl"))]
tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(config["model_dir"], "tokenizer.json"))
base = AutoModelForCausalLM.from_pretrained(config["model_dir"], dtype=torch.float32)
if config["incumbent_dir"]:
    model = PeftModel.from_pretrained(base, config["incumbent_dir"], is_trainable=True)
else:
    projections = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(
        r=config["rank"], lora_alpha=config["alpha"], target_modules=projections,
        lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"))


def ids(text):
    return tokenizer.encode(text, add_special_tokens=False)


def log_probs(prompt, reply):
    logits = model(torch.tensor([prompt + reply])).logits[0, len(prompt) - 1:-1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(reply)[:, None]).squeeze(-1)


def taught(row):
    """How much likelier the base finds each token of the reply once it was told the hint."""
    with torch.no_grad(), model.disable_adapter():
        return log_probs(ids(row["teacher_prompt_text"]), row["completion_ids"])


def loss_of(row):
    prompt, reply = row["prompt_ids"], row["completion_ids"]
    own = log_probs(prompt, reply)
    loss = -config["weight_rl"] * row["reward"] * own.mean()
    if row["teacher_prompt_text"]:
        loss = loss - config["weight_opd"] * ((taught(row) - own.detach()) * own).mean()
    if row["demonstration"]:
        loss = loss - config["weight_sft"] * log_probs(prompt, ids(row["demonstration"])).mean()
    return loss


hinted, shown = (sum(bool(row[key]) for row in rows) for key in ("teacher_prompt_text", "demonstration"))
print(f"{len(rows)} samples, {hinted} with a hint, {shown} with a demonstration", flush=True)
trained = [p for p in model.parameters() if p.requires_grad]
optimiser = torch.optim.AdamW(trained, lr=config["learning_rate"], weight_decay=0.0)
for update in range(config["updates"]):
    optimiser.zero_grad()
    total = 0.0
    for row in rows:
        loss = loss_of(row)
        (loss / len(rows)).backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimiser.step()
    print(f"update {update + 1} of {config['updates']}: loss {total / len(rows):.4f}", flush=True)
model.save_pretrained(config["adapter_dir"])
