"""Golden values of every loss and its gradient by the student's logits, from PyTorch's autograd.

    python trainer/tests/golden/losses.py > trainer/tests/golden/losses.json

Written from the formulae, not from the Rust code: whole distributions, boolean masks and autograd
where the Rust code has closed forms on a few tokens.
"""

import json
import torch

torch.manual_seed(20261122)
torch.set_default_dtype(torch.float64)
T, V, H, K = 6, 24, 3, 4
C, ADVANTAGE, LOW, HIGH = 1.0, 5.0, 0.2, 0.28

old = torch.randn(T, V) * 1.5
now = (old + 0.35 * torch.randn(T, V)).requires_grad_()
hints = torch.stack([old + s * torch.randn(T, V) for s in (0.8, 0.5, 1.2)])
base = old + 0.4 * torch.randn(T, V)
tokens = torch.multinomial(old.softmax(-1), 1).squeeze(1)
# A hint that agrees perfectly at one position only: the selections must differ.
hints[2, 1] = old[1]


def log_p(logits):
    return torch.log_softmax(logits, -1)


def own(logits):
    return log_p(logits).gather(-1, tokens[:, None]).squeeze(-1)


def clipped(ratio, advantage):
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - LOW, 1 + HIGH) * advantage)


def result(loss):
    (gradient,) = torch.autograd.grad(loss.sum(), now, retain_graph=True)
    return {"loss": loss.sum().item(), "gradient": gradient.flatten().tolist()}


def top_mask(logits):
    return torch.zeros(logits.shape, dtype=torch.bool).scatter(-1, logits.topk(K).indices, True)


def top_k(select, support):
    student, teachers = top_mask(old), top_mask(hints)
    overlap = (student[None] & teachers).sum(-1)
    if select == "sequence_optimal":
        best = overlap.sum(-1).argmax().expand(T)
    elif select == "token_optimal":
        best = overlap.argmax(0)
    else:
        best = torch.zeros(T, dtype=torch.long)
    teacher = hints[best, torch.arange(T)]
    mask = {
        "student": student,
        "teacher": top_mask(teacher),
        "overlap": student & top_mask(teacher),
    }[support]
    l_old, l_teacher, l_now = log_p(old), log_p(teacher), log_p(now)
    weight = torch.nan_to_num(l_old.masked_fill(~mask, -torch.inf).softmax(-1))
    advantage = weight * (l_teacher - l_old).clamp(-C, C)
    loss = clipped((l_now - l_old).exp(), advantage) * mask
    return result(loss) | {"hints": best.tolist(), "sizes": mask.sum(-1).tolist()}


def tail_kl():
    ids = hints[0].topk(K).indices
    p, q = log_p(now).gather(-1, ids), log_p(hints[0]).gather(-1, ids)

    def with_tail(x):
        rest = torch.log(-torch.expm1(torch.logsumexp(x, -1).clamp(max=-1e-7)))
        return torch.cat([x, rest[:, None]], -1)

    p, q = with_tail(p), with_tail(q)
    return result((p.exp() * (p - q)).sum(-1))


def standardised(rewards):
    rewards = torch.tensor(rewards)
    return ((rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-6)).tolist()


p, q = log_p(now), log_p(hints[0])
d = own(base) - own(now)
advantage = (own(hints[0]) - own(now)).detach().clamp(-ADVANTAGE, ADVANTAGE)
ratio = (own(now) - own(old)).exp()
rewards = [2.0, -0.5, 0.25, 1.75, -1.0]
def rounded(value):
    if isinstance(value, float):
        return round(value, 8)
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


print(json.dumps(rounded({
    "made_with": f"torch {torch.__version__}, losses.py",
    "shape": [T, V, H, K],
    "bounds": {"delta": C, "advantage": ADVANTAGE, "low": LOW, "high": HIGH},
    "tokens": tokens.tolist(),
    "old": old.flatten().tolist(),
    "now": now.flatten().tolist(),
    "hints": hints.flatten().tolist(),
    "base": base.flatten().tolist(),
    "losses": {
        "approved": result(clipped(ratio, torch.tensor(1.0))),
        "corrected": result(clipped(ratio, torch.tensor(-1.0))),
        "token": result(clipped(ratio, advantage)),
        "anchor": result(d.exp() - 1 - d),
        "sft": result(-own(now)),
        "tail": tail_kl(),
        "forward_kl": result((q.exp() * (q - p)).sum(-1)),
        "reverse_kl": result((p.exp() * (p - q)).sum(-1)),
    },
    "top_k": {
        f"{select}/{support}": top_k(select, support)
        for select in ("sequence_optimal", "token_optimal", "shortest")
        for support in ("student", "teacher", "overlap")
    },
    "stepwise": {"rewards": rewards, "advantages": standardised(rewards)},
})))
