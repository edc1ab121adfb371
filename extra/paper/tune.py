"""The settings of the methods, ours and the baselines', chosen on validation prompts.

A setting's score is the mean accuracy over the five benchmarks, averaged over the seeds 0 and 1;
the tables are of other seeds, and no test prompt is read here. The winners are the settings in
recipes.TRAINING, in methods.py, and the defaults of the lesson (a test compares). Phase 2 is tuned
after the winner of phase 1.

The checkpoints NAME_long are tuned over passes and rates alike. A winner may be at the edge of its
grid (fine_tuned_sft_long: the most passes, the lowest rate), so something better may lie outside.
Not tuned: fine_tuned_sft_math (it has fine_tuned_sft_long's settings), co_llm_self and generalist
with four passes, phase 2 after the long budgets, and the better judge.
"""

import itertools
from dataclasses import replace
from functools import partial

from extra.paper import checkpoints, evaluate, methods
from extra.paper.methods import MAX_NEW
from extra.paper.recipes import TRAINING
from extra.paper.train import load_router, train
from toy_experts import script


def grid(**values):
    return [dict(zip(values, row)) for row in itertools.product(*values.values())]


PHASE1 = grid(lr=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3])
PHASE2 = grid(lr=[2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4])
FUSED, ALONE, ROUTER = {}, {"use_router": False}, {"use_expert": False}
TRAINED = {  # checkpoint: how it is decoded, and what is tried; the rest is as in TRAINING
    "router_sft": (FUSED, PHASE1),
    "fine_tuned_sft": (ROUTER, PHASE1),
    "router": (FUSED, PHASE2),
    "fine_tuned": (ROUTER, PHASE2 + grid(lr=[5e-5, 1e-4, 2e-4], mix=[0])),
    "router_sft_long": (FUSED, grid(epochs=[4, 8, 16], lr=[4e-3])),
    "fine_tuned_sft_long": (
        ROUTER,
        grid(epochs=[4, 8, 16], lr=[2e-3]) + grid(epochs=[16], lr=[1e-3]),
    ),
    "co_llm": (ALONE, grid(lr=[1e-3, 2e-3, 4e-3]) + grid(lr=[1e-3], lr_w=[1e-2])),
    "fused_sft": (
        FUSED,
        grid(loss=["fused", "fused_own"], lr=[1e-3, 4e-3])
        + grid(loss=["fused_own"], lr=[5e-4, 2e-3]),
    ),
    "co_llm_self_long": (ALONE, grid(epochs=[8, 16], lr=[4e-3]) + grid(epochs=[16], lr=[2e-3])),
    "fused_sft_long": (FUSED, grid(epochs=[8, 16], lr=[2e-3]) + grid(epochs=[16], lr=[1e-3])),
    "generalist_long": (ROUTER, grid(epochs=[4, 8, 16], lr=[1e-3]) + grid(epochs=[16], lr=[5e-4])),
}
REWARD = grid(rejected=["fused", "experts"], prefixes=[0, 1])
LOOKAHEAD = grid(lookahead=[4, 8, 16, 32, 64])
MERGED = {
    "task_arithmetic": grid(scale=[0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0]),
    "dare": grid(drop=[0.1, 0.5, 0.9], scale=[0.1, 0.2, 0.3, 0.5, 1.0]),
}


def one_seed(s):
    """{what: [[tried, accuracy], ...]} for one seed, kept in OUT/seedN/tuning.json."""
    checkpoints.ensure(s)
    base = checkpoints.load(s, "base")[0]
    experts = [checkpoints.load(s, e)[0] for e in script.EXPERTS]
    problems = {b: i for b, i in evaluate.draw(s, "validation").items() if b != "general"}
    header = {"prompts": s.prompts, "models": [script.fingerprint(m) for m in (base, *experts)]}
    kept = checkpoints.keep(checkpoints.path(s, "tuning").with_suffix(".json"), header)
    out = {}

    def note(what, tried, recipe, make):
        """Score what make() returns, a decoder, unless this is known already."""
        score = lambda: evaluate.accuracy(s, make(), problems)["average"]
        out.setdefault(what, []).append([tried, kept([what, tried, repr(recipe)], score)])
        print(f"{what} {tried}: {out[what][-1][1]:.3f}", flush=True)

    def trained(recipe, how):
        train(s, recipe)
        router, among, _ = load_router(s, recipe)
        return methods.answering(router, among, **how)

    def reward(recipe):
        return checkpoints.load(s, train(s, recipe), router=True)[0]

    for name, (how, candidates) in TRAINED.items():
        for tried in candidates:
            recipe = replace(TRAINING[name], **tried)
            note(name, tried, recipe, lambda: trained(recipe, how))
    for tried in REWARD:
        r = replace(TRAINING["reward"], **tried)
        select = methods.sequence_selection
        decoder = lambda: partial(select, experts, reward(r), max_new=MAX_NEW)
        note("sequence_selection", tried, r, decoder)
        for look in LOOKAHEAD if tried["prefixes"] else []:  # Collab scores beginnings
            search = methods.collab
            decoder = lambda: partial(search, experts, reward(r), max_new=MAX_NEW, **look)
            note("collab", tried | look, r, decoder)
    for what, candidates in MERGED.items():
        for tried in candidates:
            merge, alone = methods.merge, partial(methods.all_read, rule=methods.first)
            decoder = lambda: partial(alone, [merge(base, experts, **tried)], max_new=MAX_NEW)
            note(what, tried, None, decoder)
    return out


def files(runs, results):
    """file -> its content, from the results of several seeds; and what these were made with."""
    out = {}
    for what, tried in results[0].items():
        rows = []
        for k, (settings, _) in enumerate(tried):
            rows.append({"settings": settings, "accuracy": [r[what][k][1] for r in results]})
        out[what] = {"won": max(rows, key=lambda t: sum(t["accuracy"]))["settings"], "tried": rows}
    return {"tuning": out}, checkpoints.made_with(runs, "validation")
