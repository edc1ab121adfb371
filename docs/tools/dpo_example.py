"""The numbers of docs/dpo.md: one preference pair worked out, and what phase 2 did to all of them.

    python -m toy_experts.dpo_example            with OUT/seed0, after both trainings
    python -m toy_experts.dpo_example --seed 3   with another run

Without a run it shows the pair with the weights in toy_experts/weights, and writes nothing. With
one it also trains phase 2 three more times, with other mixes of batches (about three minutes),
writes docs/dpo.json, and fills the marked parts of docs/dpo.md with it.
"""

import json
import re
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from toy_experts.script import load_router, sample

import train_cdpo
from fusionroute import routed_logp, sequence_logp
from toy_experts import pairs as toy_pairs
from toy_experts import script, tasks
from toy_experts.data import Data, scored
from toy_experts.evaluate import table

DOCS = Path(__file__).parent.parent / "docs"


@dataclass
class Settings:
    seed: int = 0       # selects the run
    out: str = "out"    # runs are kept in OUT/seedN/


# --- measuring -----------------------------------------------------------------------------------


def in_twos(answers):
    """Data of chosen, rejected, chosen, ... -> Data of pairs."""
    return Data(*(x.view(-1, 2, *x.shape[1:]) for x in answers))


@torch.no_grad()
def both_logps(router, pairs):
    """log pi_theta and log pi_expert of the chosen and rejected answers, (pairs, 2) each."""
    theta, expert = [], []
    for rows in torch.arange(len(pairs.lengths)).split(64):
        x, mask, logp, _ = pairs.batch(rows, "cpu")                  # (2b, T), (2b, T-1), (.., n)
        logits, w = router(x[:, :-1])                                # (2b, T-1, V), (2b, T-1, n)
        theta.append(sequence_logp(logits, x[:, 1:], mask).view(-1, 2))           # (b, 2)
        expert.append(routed_logp(w, logp, mask).view(-1, 2))                     # (b, 2)
    return torch.cat(theta), torch.cat(expert)


def rounded(x, digits=4):
    return [round(v, digits) for v in x.tolist()] if x.dim() else round(x.item(), digits)


def terms(theta, ref, expert, beta):
    """Eq. (3) of one pair step by step. theta, ref, expert: (2,) chosen, rejected."""
    margin = beta * ((theta[0] - ref[0]) - (theta[1] - ref[1]))
    bias = beta * (expert[0] - expert[1])
    return {"theta": rounded(theta), "ref": rounded(ref), "expert": rounded(expert),
            "margin": rounded(margin), "bias": rounded(bias), "sum": rounded(margin + bias),
            "loss": rounded(F.softplus(-margin - bias)),
            "weight": rounded((-margin - bias).sigmoid())}


def one_pair(pair, router_sft, router, experts, beta):
    """A pair with its six log-probabilities and the terms of Eq. (3), before and after phase 2."""
    data = in_twos(scored(toy_pairs.samples([pair]), experts))
    ref, before = both_logps(router_sft, data)                       # (1, 2) each
    theta, after = both_logps(router, data)
    return {**pair, "before": terms(ref[0], ref[0], before[0], beta),
            "after": terms(theta[0], ref[0], after[0], beta)}


def change(theta, ref, expert, beta):
    """What a training did to the pairs. theta, ref, expert: (pairs, 2)."""
    moved = theta - ref                                              # (pairs, 2)
    margin = beta * (moved[:, 0] - moved[:, 1])                      # (pairs,)
    bias = beta * (expert[:, 0] - expert[:, 1])                      # (pairs,)
    return {"chosen": rounded(moved[:, 0].mean()), "chosen_median": rounded(moved[:, 0].median()),
            "chosen_fell": rounded((moved[:, 0] < 0).float().mean()),
            "rejected": rounded(moved[:, 1].mean()),
            "rejected_fell": rounded((moved[:, 1] < 0).float().mean()),
            "accuracy": rounded((margin > 0).float().mean()),
            "loss": rounded(F.softplus(-margin - bias).mean())}


def lengths(pairs, expert, beta):
    """The answers' lengths in tokens, and the bias by length. expert: (pairs, 2)."""
    n = pairs.mask.sum(-1).float()                                   # (pairs, 2), the end counts
    bias = beta * (expert[:, 0] - expert[:, 1])                      # (pairs,)
    per_token = expert[:, 0] / n[:, 0] - expert[:, 1] / n[:, 1]      # (pairs,)
    groups = {"chosen longer": n[:, 0] > n[:, 1], "equally long": n[:, 0] == n[:, 1],
              "rejected longer": n[:, 0] < n[:, 1]}
    return {"chosen": rounded(n[:, 0].mean()), "rejected": rounded(n[:, 1].mean()),
            "groups": {name: {"pairs": int(g.sum()), "bias": rounded(bias[g].mean()),
                              "negative": rounded((bias[g] < 0).float().mean()),
                              "negative_per_token": rounded((per_token[g] < 0).float().mean())}
                       for name, g in groups.items()}}


def measure(folder, s):
    """Everything that the page says, as a dict."""
    hint = f"run bash run.sh{script.flags(s)}"
    router_sft, experts, phase1 = load_router(folder, "router_sft", "cpu", hint)
    router, _, phase2 = load_router(folder, "router", "cpu", hint)
    recipe = train_cdpo.Settings(**{k: v for k, v in phase2["recipe"].items() if k != "phase1"})
    if not (folder / "pairs.jsonl").exists():
        raise script.UserError(f"there is no {folder / 'pairs.jsonl'}: {hint}")
    found = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    log = [json.loads(line) for line in (folder / "router.log.jsonl").read_text().splitlines()]
    pairs = in_twos(scored(toy_pairs.samples(found), experts))
    ref, expert = both_logps(router_sft, pairs)                      # (pairs, 2) each
    bias = recipe.beta * (expert[:, 0] - expert[:, 1])               # (pairs,)
    theta, after = both_logps(router, pairs)

    items = tasks.mixed("train", phase1["recipe"]["samples"], Random(f"sft {s.seed}"))
    sft = scored([sample(item) for item in items], experts)
    rows = [{"batches": "pairs and SFT", "epochs": recipe.epochs,
             **change(theta, ref, after, recipe.beta)}]
    for kinds, epochs in (("pairs only", 1), ("pairs and SFT", 3), ("pairs only", 3)):
        other = train_cdpo.Settings(**asdict(recipe) | {"epochs": epochs * recipe.epochs})
        plan = train_cdpo.make_plan(other, sft.lengths, pairs.lengths)
        if kinds == "pairs only":
            plan = [step for step in plan if step[0] == "pair"]
        print(f"phase 2 again: {kinds}, {other.epochs} passes over the pairs")
        torch.manual_seed(s.seed)
        torch.set_flush_denormal(True)
        moved = deepcopy(router_sft).requires_grad_(True)
        train_cdpo.train(other, moved, sft, pairs, ref, plan)
        theta, after = both_logps(moved, pairs)
        rows.append({"batches": kinds, "epochs": other.epochs,
                     **change(theta, ref, after, recipe.beta)})
    first = next(record for record in log if record["kind"] == "pair")
    return {"seed": s.seed, "beta": recipe.beta, "torch": torch.__version__.split("+")[0],
            "made_from": {name: script.fingerprint(model) for name, model in (
                ("router_sft", router_sft), ("router", router))},
            "pair": one_pair(found[len(found) // 2], router_sft, router, experts, recipe.beta),
            "first": first,
            "start": {"pairs": len(found), "bias": rounded(bias.mean()),
                      "negative": rounded((bias < 0).float().mean()),
                      "loss": rounded(F.softplus(-bias).mean()),
                      "ref_prefers_chosen": rounded((ref[:, 0] > ref[:, 1]).float().mean())},
            "changes": rows, "length": lengths(pairs, expert, recipe.beta)}


# --- the page ------------------------------------------------------------------------------------


def signed(x, digits=2):
    return f"{x:+.{digits}f}"


def percent(x):
    return f"{100 * x:.0f}%"


def pair_block(p, beta):
    """The pair, its six log-probabilities, and the arithmetic of Eq. (3), before and after."""
    def row(side, i):
        return [side, *(f"{p[when][k][i]:.2f}" for when, k in (
            ("before", "ref"), ("before", "expert"), ("after", "theta"), ("after", "expert")))]

    rows = [["log-probability", "reference", "experts, before", "router, after", "experts, after"],
            row("chosen", 0), row("rejected", 1)]
    lines = ["```", f"prompt:    {p['prompt']!r}", f"chosen:    {p['chosen']!r}",
             f"rejected:  {p['rejected']!r}", "```", "", *table(rows), "",
             "```"]
    for when in ("before", "after"):
        t = p[when]
        (tc, tr), (rc, rr), (ec, er) = t["theta"], t["ref"], t["expert"]
        lines += [f"{when}", f"  margin = {beta} * [({tc:.2f} - {rc:.2f}) - ({tr:.2f} - {rr:.2f})]"
                  .replace("- -", "+ ") + f" = {t['margin']:.3f}",
                  f"  bias   = {beta} * ({ec:.2f} - {er:.2f})".replace("- -", "+ ")
                  + f" = {t['bias']:.3f}",
                  f"  loss   = -log sigmoid({t['margin']:.3f} + {t['bias']:.3f})"
                  .replace("+ -", "- ") + f" = log(1 + e^{-t['sum']:.3f}) = {t['loss']:.3f}",
                  f"  weight = sigmoid({-t['sum']:.3f}) = {t['weight']:.3f}",
                  f"  log pi_theta + log pi_expert: chosen {tc + ec:.2f}, rejected {tr + er:.2f}"]
    return lines + ["```"]


def weights_block():
    rows = [["margin + bias", *(f"{z:+d}" for z in (-4, -2, 0, 2, 4))],
            ["loss", *(f"{F.softplus(torch.tensor(-float(z))):.3f}" for z in (-4, -2, 0, 2, 4))],
            ["weight", *(f"{torch.tensor(-float(z)).sigmoid():.3f}" for z in (-4, -2, 0, 2, 4))]]
    return table(rows)


def first_block(d):
    f, s = d["first"], d["start"]
    return ["```", f"step {f['step'] + 1} pair  loss {f['loss']:.3f}  margin {f['margin']:.3f}  "
            f"bias {f['bias']:.3f}", "```", "",
            f"Over all {s['pairs']} pairs, at the start: the mean bias is {s['bias']:.2f}, the "
            f"bias is negative for {percent(s['negative'])}, and the mean loss is {s['loss']:.2f}. "
            f"A pair with this mean bias would pull with weight sigmoid({-s['bias']:.2f}) = "
            f"{torch.tensor(-s['bias']).sigmoid():.3f}, and its margin must pass {-s['bias']:.2f} "
            "before the sum is positive."]


def changes_block(d):
    rows = [["phase 2 with", "passes", "chosen, mean", "chosen, median", "chosen fell",
             "rejected, mean", "margin > 0"]]
    for i, c in enumerate(d["changes"]):
        rows.append([c["batches"] + (" (the run)" if i == 0 else ""), str(c["epochs"]),
                     signed(c["chosen"]), signed(c["chosen_median"]), percent(c["chosen_fell"]),
                     signed(c["rejected"]), percent(c["accuracy"])])
    return table(rows)


def length_block(d):
    x = d["length"]
    rows = [["", "pairs", "mean bias", "bias < 0", "< 0 if divided by length"]]
    for name, g in x["groups"].items():
        rows.append([name, str(g["pairs"]), signed(g["bias"]), percent(g["negative"]),
                     percent(g["negative_per_token"])])
    return [f"A chosen answer has {x['chosen']:.1f} tokens on average, a rejected one "
            f"{x['rejected']:.1f}.", "", *table(rows)]


def blocks(d):
    """name -> the lines of that marked part of docs/dpo.md."""
    return {"weights": weights_block(), "pair": pair_block(d["pair"], d["beta"]),
            "first": first_block(d), "changes": changes_block(d), "length": length_block(d)}


def filled(page, parts):
    """The page with its marked parts written anew. UserError unless each is there exactly once."""
    for name, lines in parts.items():
        begin, end = f"<!-- begin: {name}, written by python -m toy_experts.dpo_example -->", \
            f"<!-- end: {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise script.UserError(f"docs/dpo.md: the lines {begin} and {end} must be there once each")
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        text = "\n".join([begin, *lines, end])
        page = re.sub(pattern, lambda _: text, page, flags=re.S)
    return page


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    folder = script.run_dir(s)
    if not script.flags(s) and not (folder / "router.pt").exists():
        router_sft, experts, _ = load_router(script.WEIGHTS, "router_sft", "cpu", "run bash run.sh")
        router, _, last = load_router(script.WEIGHTS, "router", "cpu", "run bash run.sh")
        pair, beta = json.loads((script.WEIGHTS / "pair.json").read_text()), last["recipe"]["beta"]
        print("(there is no run in out/seed0 yet: this is the pair of toy_experts/weights)")
        return print("\n".join(pair_block(one_pair(pair, router_sft, router, experts, beta), beta)))
    d = measure(folder, s)
    page = filled((DOCS / "dpo.md").read_text(), blocks(d))
    script.write(DOCS / "dpo.json", json.dumps(d, indent=1) + "\n")
    script.write(DOCS / "dpo.md", page)
    print("\n".join(pair_block(d["pair"], d["beta"])))
    print("saved docs/dpo.json and docs/dpo.md")


if __name__ == "__main__":
    script.run(main)
