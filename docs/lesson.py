# The lesson as a notebook. `python -m docs.tools.lesson` makes lesson.ipynb from this file.
# ruff: noqa: E402

# %% [markdown]
# # FusionRoute in one notebook
#
# Three small language models are frozen: the **experts** (math, code, instructions). A fourth one,
# the **router**, picks an expert for every token and adds its own logits. Here you see both, token
# by token, and work out both training losses by hand. All models are the trained ones that come
# with the repository, and a CPU is enough. The paper is
# [arXiv 2601.05106](https://arxiv.org/abs/2601.05106).

# %%
# Works in a clone. On a hosted runtime it fetches the code and keeps the torch that is there.
import os
import subprocess
import sys

REPOSITORY = "https://github.com/OWNER/fusionroute"
if os.path.exists("lesson.ipynb"):  # opened in docs/
    os.chdir("..")
if not os.path.exists("fusionroute.py"):
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, "fusionroute"], check=True)
    os.chdir("fusionroute")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "tiktoken>=0.13,<1", "tqdm"], check=True)
sys.path.insert(0, os.getcwd())

# %%
import json
import math

import matplotlib.pyplot as plt
import torch

import fusionroute
from theory import toy_mdp
from toy_experts import tokenizer
from toy_experts.data import answer_only, pack
from toy_experts.script import EXPERTS, WEIGHTS, load_router

torch.set_grad_enabled(False)  # this notebook trains nothing
torch.manual_seed(0)
router, experts, _ = load_router(WEIGHTS, "router", "cpu", "get the repository again")


def text(token):
    return "(end)" if token == tokenizer.END else repr(tokenizer.encoding.decode([token]))


# %% [markdown]
# ## 1. Eq. (1), token by token
#
#     log pi_final = log pi_theta + log pi_expert        (up to a constant)        Eq. (1)
#
# The router reads the text so far. It gives logits for the next token, and one number w_i for each
# expert. The expert with the largest w_i reads the text, too. Their log-probabilities are added,
# and the token with the largest sum is written.

# %%
prompt = (
    "Tom has 21 eggs. He loses 3 of them. Then he gives 7 away. How many eggs are there now? "
    "Finish with the word done."
)
ids, steps = tokenizer.encode_prompt(prompt), []
start = len(ids)
while len(steps) < 96 and ids[-1] != tokenizer.END:
    x = torch.tensor([ids])  # (1, T)
    router_logits, w = router(x)  # (1, T, V), (1, T, n)
    pick = int(w[0, -1].argmax())  # I*
    expert_logits, _ = experts[pick](x)  # (1, T, V)
    theta = router_logits[0, -1].log_softmax(-1)  # (V,) log pi_theta
    expert = expert_logits[0, -1].log_softmax(-1)  # (V,) log pi_expert
    token = int((theta + expert).argmax())  # Eq. (1), greedy
    steps.append({"token": token, "pick": pick, "theta": theta, "expert": expert})
    ids.append(token)

print(tokenizer.encoding.decode(ids[start:-1]))

# %% [markdown]
# Which expert was picked for which token? The last column is what this expert would have written
# by itself, where that differs: there the router has changed the token.

# %%
for i, step in enumerate(steps):
    alone = int(step["expert"].argmax())
    changed = "" if alone == step["token"] else f"   not {text(alone)}"
    print(f"{i:2d}  {EXPERTS[step['pick']]:9s} {text(step['token']):12s}{changed}")

# %% [markdown]
# One changed token as a picture. Each panel has the same candidates. A bar that is too short to be
# seen is a probability near 1. The right panel is the sum of the other two: the largest sum wins.

# %%
changed = [i for i, s in enumerate(steps) if int(s["expert"].argmax()) != s["token"]]
step = steps[changed[-1]]
total = step["theta"] + step["expert"]  # (V,)
candidates = total.topk(6).indices.tolist()[::-1]
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), sharey=True, layout="constrained")
names = ["log pi_theta (router)", f"log pi_{EXPERTS[step['pick']]} (expert)", "their sum"]
for axis, name, values in zip(axes, names, [step["theta"], step["expert"], total]):
    axis.barh([text(t) for t in candidates], values[candidates])
    axis.set_title(name)
plt.show()

# %% [markdown]
# `fusionroute.naive_fused_greedy` is the same loop, and [decode.py](../decode.py) is the same loop
# with caches. **Try:** remove "Finish with the word done." from the prompt. Which token changes?

# %%
answer, picks = fusionroute.naive_fused_greedy(router, experts, ids[:start], tokenizer.END, 96)
assert answer == ids[start:-1] and picks == [s["pick"] for s in steps]

# %% [markdown]
# ## 2. Both losses by hand
#
# ### Phase 1, Eq. (2)
#
#     L_SFT = L_LM + lambda * L_expert
#
# L_LM is the usual cross-entropy of the router. L_expert is summed over S, the places where the
# experts would write different tokens: there the router learns whom to pick. The batch has two
# samples. The loops below use plain numbers; the last line compares with the function that
# [train_sft.py](../train_sft.py) calls.

# %%
samples = [
    (prompt, "After losing, 21 - 3 = 18. After losing, 18 - 7 = 11. The answer is 11.\ndone"),
    ("Write green, lamp and river in double quotes.", '"green" "lamp" "river"'),
]
encoded = [answer_only(tokenizer.encode_prompt(q), tokenizer.encode_answer(a)) for q, a in samples]
x, mask, lengths = pack(encoded)  # (B, T), (B, T), (B,)
logp, choice = fusionroute.score(experts, x, lengths)  # (B, T-1, n) twice
logits, w = router(x[:, :-1])  # (B, T-1, V), (B, T-1, n)

loss_lm = loss_expert = tokens = 0
for b in range(len(samples)):
    for t in range(int(lengths[b]) - 1):
        if mask[b, t + 1]:  # the target is a token of the answer
            tokens += 1
            target = int(x[b, t + 1])
            loss_lm -= float(logits[b, t].log_softmax(-1)[target])
            if len(set(choice[b, t].tolist())) > 1:  # the experts disagree: this place is in S
                weight = w[b, t].softmax(-1).tolist()
                loss_expert -= sum(weight[i] * float(logp[b, t, i]) for i in range(len(experts)))
by_hand = loss_lm / tokens + 1 / 3 * loss_expert / tokens
theirs, terms = fusionroute.sft_loss(logits, w, x[:, 1:], mask[:, 1:], logp, choice, lam=1 / 3)
print(f"L_LM {loss_lm / tokens:.4f}   L_expert {loss_expert / tokens:.4f}   L_SFT {by_hand:.4f}")
assert math.isclose(loss_expert / tokens, float(terms["loss_expert"]), rel_tol=1e-4)
assert math.isclose(by_hand, float(theirs), rel_tol=1e-4)

# %% [markdown]
# ### Phase 2, Eq. (3)
#
#     margin = beta * [log pi_theta/pi_ref(chosen) - log pi_theta/pi_ref(rejected)]
#     bias   = beta * [log pi_expert(chosen) - log pi_expert(rejected)]
#     L_CDPO = -log sigmoid(margin + stopgrad(bias))
#
# The margin is DPO's ([docs/dpo.md](dpo.md)). The bias says how much the picked experts prefer the
# chosen answer by themselves. pi_ref is the router after phase 1.

# %%
reference, _, _ = load_router(WEIGHTS, "router_sft", "cpu", "get the repository again")
pair = json.loads((WEIGHTS / "pair.json").read_text())
beta, sums = 0.1, {}
for side in ("chosen", "rejected"):
    question, reply = tokenizer.encode_prompt(pair["prompt"]), tokenizer.encode_answer(pair[side])
    x = torch.tensor([question + reply])  # (1, T)
    logits, w = router(x[:, :-1])  # (1, T-1, V), (1, T-1, n)
    ref_logits, _ = reference(x[:, :-1])  # (1, T-1, V)
    expert_logits = [expert(x[:, :-1])[0] for expert in experts]  # n times (1, T-1, V)
    theta = ref = routed = 0
    for t in range(len(question) - 1, x.size(1) - 1):
        target = int(x[0, t + 1])
        theta += float(logits[0, t].log_softmax(-1)[target])
        ref += float(ref_logits[0, t].log_softmax(-1)[target])
        routed += float(expert_logits[int(w[0, t].argmax())][0, t].log_softmax(-1)[target])
    sums[side] = theta, ref, routed
    print(f"{side:9s} theta {theta:7.2f}  ref {ref:7.2f}  experts {routed:7.2f}  {pair[side]!r}")

(theta_w, ref_w, expert_w), (theta_l, ref_l, expert_l) = sums["chosen"], sums["rejected"]
margin = beta * ((theta_w - ref_w) - (theta_l - ref_l))
bias = beta * (expert_w - expert_l)
by_hand = math.log(1 + math.exp(-(margin + bias)))
print(f"margin {margin:.3f}   bias {bias:.3f}   L_CDPO {by_hand:.4f}")
six = [torch.tensor([v]) for v in (theta_w, theta_l, ref_w, ref_l, expert_w, expert_l)]
assert math.isclose(by_hand, float(fusionroute.cdpo_loss(*six, beta)[0]), rel_tol=1e-4)

# %% [markdown]
# ## 3. Why choosing is not enough
#
# A world of three tokens and answers of six. At a *covered* place one expert favours the right
# token; at the others both favour the same wrong one. How far from the best does the best choice of
# an expert stay, and how far the best added logits of at most 2? Exact numbers, no training
# ([theory/](../theory/README.md)).

# %%
for coverage in (1.0, 0.9, 0.5, 0.0):
    choosing, added = toy_mdp.mean_loss(coverage, 0), toy_mdp.mean_loss(coverage, 2.0)
    print(f"covered {coverage:4.0%}   choosing loses {choosing:.3f}   added logits {added:.3f}")

# %% [markdown]
# ## Where to go next
#
# - The method: [fusionroute.py](../fusionroute.py), and the model: [model.py](../model.py).
# - Both trainings: [train_sft.py](../train_sft.py), [train_cdpo.py](../train_cdpo.py).
# - Decoding with caches: [decode.py](../decode.py).
# - Write it yourself: [exercises/](../exercises/README.md).
