"""What transformers and PEFT compute for a model directory and an adapter directory of ours.

Usage: reference.py MODEL ADAPTER OUT PROMPT_IDS RESPONSE_IDS MESSAGES TEXT
Writes gradient.safetensors (of minus the summed ln p of the response, by PEFT's names),
logits.safetensors and tokens.json into OUT.
"""

import json
import sys

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

model_dir, adapter_dir, out = sys.argv[1:4]
prompt, response, messages = (json.loads(text) for text in sys.argv[4:7])

torch.manual_seed(0)
base = AutoModelForCausalLM.from_pretrained(
    model_dir, dtype=torch.float32, attn_implementation="eager"
)
model = PeftModel.from_pretrained(base, adapter_dir, is_trainable=True).eval()
logits = model(torch.tensor([prompt + response])).logits[0]
rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
loss = -rows.gather(1, torch.tensor(response)[:, None]).sum()
loss.backward()

trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
gradient = {n.replace(".default", ""): p.grad.contiguous() for n, p in trained.items()}
save_file(gradient, f"{out}/gradient.safetensors")
save_file({"logits": logits.detach().contiguous()}, f"{out}/logits.safetensors")

tokenizer = AutoTokenizer.from_pretrained(model_dir)
rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
with open(f"{out}/tokens.json", "w") as file:
    json.dump({"rendered": rendered, "ids": tokenizer(sys.argv[7])["input_ids"]}, file)
