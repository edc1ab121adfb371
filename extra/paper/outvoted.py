"""Why is the router as a choice ahead of Eq. (1)? Where they part, and who wanted the right token.

Co-LLM-style with the router as a choice writes one model's token. Eq. (1) writes the token with
the highest sum. Take the prompts that one of them answers rightly and the other wrongly. The first
token at which the wrong answer leaves the right one is the mistake. Up to there both have written
the same. So we can ask each model there which token it would have written itself.

The right answer of the other method stands for "right": a problem may have other right answers.
"""

import time

import torch

from extra.paper import checkpoints, evaluate
from extra.paper.methods import fused
from extra.paper.recipes import TRAINING
from extra.paper.train import load_router, train
from toy_experts import judge, tokenizer

LOST = {  # Eq. (1) is wrong: who wanted the right token?
    "the router, outvoted by the expert": lambda router, expert: router and not expert,
    "the expert, outvoted by the router": lambda router, expert: expert and not router,
    "neither": lambda router, expert: not router and not expert,
}


def parting(wrong, right):
    """The first position at which two answers (token ids, the end included) differ."""
    return next((k for k, (a, b) in enumerate(zip(wrong, right)) if a != b), None)


@torch.no_grad()
def wanted(models, prompt, answer, k):
    """The token that each model would write itself after prompt and answer[:k] (token ids), and
    the pick there of the first model, a router."""
    router, *others = models
    ids = torch.tensor([prompt + answer[:k]])  # (1, T)
    logits, w = router(ids)  # (1, T, V), (1, T, n)
    own = [int(logits[0, -1].argmax())] + [int(m(ids)[0][0, -1].argmax()) for m in others]
    return own, int(w[0, -1].argmax())


def one_seed(s):
    """{"lost": {who: prompts}, "won": {"all": prompts}} of all test prompts, and the seconds."""
    begun = time.time()
    checkpoints.ensure(s)
    for name in ("router_sft", "router", "co_llm_self"):
        train(s, TRAINING[name])
    router, experts, _ = load_router(s, TRAINING["router"])
    chooser, choices, _ = load_router(s, TRAINING["co_llm_self"])
    lost, won = dict.fromkeys(LOST, 0), {"all": 0}
    for items in evaluate.draw(s).values():
        sums = evaluate.in_batches(fused(router, experts), items)
        chosen = evaluate.in_batches(fused(chooser, choices, use_router=False), items)
        for item, a, b in zip(items, sums, chosen):
            is_right = judge.check(item, a.text()), judge.check(item, b.text())
            won["all"] += is_right == (True, False)
            if is_right == (False, True):
                prompt, k = tokenizer.encode_prompt(item.prompt), parting(a.tokens, b.tokens)
                own, pick = wanted([router, *experts], prompt, a.tokens, k)
                votes = own[0] == b.tokens[k], own[1 + pick] == b.tokens[k]
                lost[next(who for who, rule in LOST.items() if rule(*votes))] += 1
    print(f"seed {s.seed}: {lost} {won}")
    return {"lost": lost, "won": won, "seconds": time.time() - begun}


def files(runs, results):
    """file -> its content, from the results of several seeds; and what these were made with."""
    rows = {}
    for part in ("lost", "won"):
        rows[part] = {who: [r[part][who] for r in results] for who in results[0][part]}
    seconds = {"seconds": round(sum(r["seconds"] for r in results))}
    return {"outvoted": {"groups": rows}}, checkpoints.made_with(runs) | seconds
