"""The figures of docs/dpo.md: one preference pair worked out, and what phase 2 did to all of them.

    python -m docs.tools.dpo_example            with OUT/seed0, after both trainings
    python -m docs.tools.dpo_example --seed 3   with another run

With a run it trains phase 2 three more times, with other mixes of batches (about three minutes),
writes docs/dpo.json, and fills the marked places of docs/dpo.md with it.
"""

import json
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import train_cdpo
from docs.tools.pages import fill, percent, table
from fusionroute import routed_logp, sequence_logp
from toy_experts import script
from toy_experts.data import scored
from toy_experts.experts import sft_samples

DOCS = Path(__file__).parents[1]


@dataclass
class Settings:
    seed: int = 0  # selects the run
    out: str = "out"  # runs are kept in OUT/seedN/


# --- measuring -----------------------------------------------------------------------------------


@torch.no_grad()
def both_logps(router, pairs):
    """log pi_theta and log pi_expert of the chosen and rejected answers, (pairs, 2) each."""
    theta, expert = [], []
    for rows in torch.arange(len(pairs.lengths)).split(64):
        x, mask, logp, _ = pairs.batch(rows, "cpu")  # (2b, T), (2b, T-1), (.., n)
        logits, w = router(x[:, :-1])  # (2b, T-1, V), (2b, T-1, n)
        theta.append(sequence_logp(logits, x[:, 1:], mask).view(-1, 2))  # (b, 2)
        expert.append(routed_logp(w, logp, mask).view(-1, 2))  # (b, 2)
    return torch.cat(theta), torch.cat(expert)


def rounded(x, digits=4):
    return [round(v, digits) for v in x.tolist()] if x.dim() else round(x.item(), digits)


def terms(theta, ref, expert, beta):
    """Eq. (3) of one pair step by step. theta, ref, expert: (2,) chosen, rejected."""
    margin = beta * ((theta[0] - ref[0]) - (theta[1] - ref[1]))
    bias = beta * (expert[0] - expert[1])
    return {
        "theta": rounded(theta),
        "ref": rounded(ref),
        "expert": rounded(expert),
        "margin": rounded(margin),
        "bias": rounded(bias),
        "sum": rounded(margin + bias),
        "loss": rounded(F.softplus(-margin - bias)),
        "weight": rounded((-margin - bias).sigmoid()),
    }


def one_pair(pair, router_sft, router, experts, beta):
    """A pair with its six log-probabilities and the terms of Eq. (3), before and after phase 2."""
    data, ref = train_cdpo.scored_pairs([pair], experts, router_sft.lm)  # ref (1, 2)
    _, before = both_logps(router_sft, data)  # (1, 2)
    theta, after = both_logps(router, data)  # (1, 2) each
    return {
        **pair,
        "before": terms(ref[0], ref[0], before[0], beta),
        "after": terms(theta[0], ref[0], after[0], beta),
    }


def change(theta, ref):
    """What a training did to the pairs. theta, ref: (pairs, 2)."""
    moved = theta - ref  # (pairs, 2)
    return {
        "chosen": rounded(moved[:, 0].mean()),
        "chosen_median": rounded(moved[:, 0].median()),
        "chosen_fell": rounded((moved[:, 0] < 0).float().mean()),
        "rejected": rounded(moved[:, 1].mean()),
        "accuracy": rounded((moved[:, 0] > moved[:, 1]).float().mean()),
    }


def lengths(pairs, expert, beta):
    """The bias by the answers' lengths in tokens. expert: (pairs, 2)."""
    n = pairs.mask.sum(-1).float()  # (pairs, 2), the end counts
    bias = beta * (expert[:, 0] - expert[:, 1])  # (pairs,)
    per_token = expert[:, 0] / n[:, 0] - expert[:, 1] / n[:, 1]  # (pairs,)
    groups = {
        "chosen longer": n[:, 0] > n[:, 1],
        "equally long": n[:, 0] == n[:, 1],
        "rejected longer": n[:, 0] < n[:, 1],
    }
    return {
        name: {
            "pairs": int(g.sum()),
            "bias": rounded(bias[g].mean()),
            "negative": rounded((bias[g] < 0).float().mean()),
            "negative_per_token": rounded((per_token[g] < 0).float().mean()),
        }
        for name, g in groups.items()
    }


def measure(folder, s):
    """All figures of the page, as a dict."""
    hint = f"run bash run.sh{script.flags(s)}"
    router_sft, experts, phase1 = script.load_router(folder, "router_sft", "cpu", hint)
    router, _, phase2 = script.load_router(folder, "router", "cpu", hint)
    recipe = train_cdpo.Settings(**{k: v for k, v in phase2["recipe"].items() if k != "phase1"})
    found = script.read_lines(folder / "pairs.jsonl", hint, ["prompt", "chosen", "rejected"])
    log = script.read_lines(folder / "router.log.jsonl", hint, ["kind"])
    pairs, ref = train_cdpo.scored_pairs(found, experts, router_sft.lm)  # ref (pairs, 2)
    _, expert = both_logps(router_sft, pairs)  # (pairs, 2)
    bias = recipe.beta * (expert[:, 0] - expert[:, 1])  # (pairs,)
    theta, _ = both_logps(router, pairs)

    sft = scored(sft_samples(phase1["recipe"]["samples"], s.seed), experts)
    first_row = {"batches": "pairs and SFT", "epochs": recipe.epochs}
    rows = [first_row | change(theta, ref)]
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
        theta, _ = both_logps(moved, pairs)
        rows.append({"batches": kinds, "epochs": other.epochs} | change(theta, ref))
    first = next(record for record in log if record["kind"] == "pair")
    return {
        "seed": s.seed,
        "beta": recipe.beta,
        "torch": torch.__version__.split("+")[0],
        "made_from": {
            name: script.fingerprint(model)
            for name, model in (("router_sft", router_sft), ("router", router))
        },
        "pair": one_pair(found[len(found) // 2], router_sft, router, experts, recipe.beta),
        "first": first,
        "start": {
            "pairs": len(found),
            "bias": rounded(bias.mean()),
            "negative": rounded((bias < 0).float().mean()),
            "loss": rounded(F.softplus(-bias).mean()),
        },
        "changes": rows,
        "length": lengths(pairs, expert, recipe.beta),
    }


# --- the page ------------------------------------------------------------------------------------


def difference(a, b):
    """a - b as the page writes it, "-8.56 + 8.56": no minus before a minus."""
    return f"{a:.2f} - {b:.2f}".replace("- -", "+ ")


def pair_block(p, beta):
    """The pair, its six log-probabilities, and the arithmetic of Eq. (3), before and after."""
    rows = [["log-probability", "reference", "experts, before", "router, after", "experts, after"]]
    for i, side in enumerate(("chosen", "rejected")):
        before, after = p["before"], p["after"]
        four = before["ref"][i], before["expert"][i], after["theta"][i], after["expert"][i]
        rows.append([side, *(f"{x:.2f}" for x in four)])
    lines = [
        "```",
        f"prompt:    {p['prompt']!r}",
        f"chosen:    {p['chosen']!r}",
        f"rejected:  {p['rejected']!r}",
        "```",
        "",
        *table(rows),
        "",
        "```",
    ]
    for when in ("before", "after"):
        t = p[when]
        (tc, tr), (rc, rr), (ec, er) = t["theta"], t["ref"], t["expert"]
        both = f"{t['margin']:.3f} + {t['bias']:.3f}".replace("+ -", "- ")
        lines += [
            when,
            f"  margin = {beta} * [({difference(tc, rc)}) - ({difference(tr, rr)})]"
            f" = {t['margin']:.3f}",
            f"  bias   = {beta} * ({difference(ec, er)}) = {t['bias']:.3f}",
            f"  loss   = -log sigmoid({both}) = log(1 + e^{-t['sum']:.3f}) = {t['loss']:.3f}",
            f"  weight = sigmoid({-t['sum']:.3f}) = {t['weight']:.3f}",
            f"  log pi_theta + log pi_expert: chosen {tc + ec:.2f}, rejected {tr + er:.2f}",
        ]
    return "\n".join([*lines, "```"])


def weights_table():
    """The loss and the weight of a pair for some values of margin + bias."""
    z = torch.tensor([-4.0, -2.0, 0.0, 2.0, 4.0])
    rows = [["margin + bias", *(f"{x:+.0f}" for x in z)]]
    rows.append(["loss", *(f"{x:.3f}" for x in F.softplus(-z))])
    rows.append(["weight", *(f"{x:.3f}" for x in (-z).sigmoid())])
    return "\n".join(table(rows))


def changes_table(changes):
    """What each of the four trainings did to the pairs."""
    rows = [["phase 2 with", "passes", "chosen, mean", "chosen, median", "chosen fell"]]
    rows[0] += ["rejected, mean", "margin > 0"]
    for i, c in enumerate(changes):
        name = c["batches"] + (" (the run)" if i == 0 else "")
        rows.append([name, str(c["epochs"]), f"{c['chosen']:+.2f}", f"{c['chosen_median']:+.2f}"])
        rows[-1] += [f"{percent(c['chosen_fell'])}%", f"{c['rejected']:+.2f}"]
        rows[-1] += [f"{percent(c['accuracy'])}%"]
    return "\n".join(table(rows))


def length_table(groups):
    """The bias of pairs whose chosen answer is longer, equally long or shorter."""
    rows = [["", "pairs", "mean bias", "bias < 0", "< 0 if divided by length"]]
    for name, g in groups.items():
        shares = [f"{percent(g[key])}%" for key in ("negative", "negative_per_token")]
        rows.append([name, str(g["pairs"]), f"{g['bias']:+.2f}", *shares])
    return "\n".join(table(rows))


def places(d):
    """The marked places of docs/dpo.md: key -> text."""
    first, start = d["first"], d["start"]
    return {
        "pair": pair_block(d["pair"], d["beta"]),
        "weights": weights_table(),
        "changes": changes_table(d["changes"]),
        "length": length_table(d["length"]),
        "first_step": str(first["step"] + 1),
        "first_loss": f"{first['loss']:.3f}",
        "first_margin": f"{first['margin']:.3f}",
        "first_bias": f"{first['bias']:.3f}",
        "pairs": str(start["pairs"]),
        "mean_bias": f"{start['bias']:.2f}",
        "negative_biases": f"{percent(start['negative'])}%",
        "mean_loss": f"{start['loss']:.2f}",
    }


def main(argv=None):
    s = script.settings(Settings, __doc__, argv)
    folder = script.run_dir(s)
    figures = measure(folder, s)
    page = fill((DOCS / "dpo.md").read_text(encoding="utf-8"), places(figures).__getitem__)
    script.write(DOCS / "dpo.json", json.dumps(figures, indent=1) + "\n")
    script.write(DOCS / "dpo.md", page)
    print(pair_block(figures["pair"], figures["beta"]))
    print("saved docs/dpo.json and docs/dpo.md")


if __name__ == "__main__":
    script.run(main)
