"""(f) Hostile and broken experts: how far does routing protect, how far do added logits, and who can make the router always choose it?

    python -m extra.paper.open_questions.hostile --seeds 2 3

Varied: what the math expert's logits become.

    flatter, sharper    its logits times 0.25, 0.5, 2 or 4
    wrong digits        as sure as ever, but every digit is the next one
    trigger             it writes TRIGGER wherever it is asked
    two-faced           while the router is trained it knows every right token with the probability 0.99; afterwards it writes TRIGGER

Held fixed: the other experts, and phase 1 as always. Lines: FusionRoute and the picked expert alone, with phase 1's router trained beside
the honest experts (`exchanged after phase 1`), and with one trained beside the changed expert (`there in phase 1`); and FusionRoute with
the router of both phases, trained beside the honest experts (`exchanged after both phases`). "picked": the share of all tokens for which the
changed expert is picked. "trigger": the share of answers with TRIGGER.
"""


import torch

from extra import models
from extra.paper import evaluate
from extra.paper.open_questions import frame
from toy_experts import run, tokenizer
from toy_experts import train as toy

BAD = toy.EXPERTS.index("math")
TRIGGER = " moon"
TOKEN = tokenizer.encoding.encode_single_token(TRIGGER)
DIGITS = [tokenizer.encoding.encode_single_token(str(d)) for d in range(10)]


class Changed(torch.nn.Module):
    """An expert whose logits are changed on their way out. It reads, and caches, as before."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change, self.config, self.embed = model, change, model.config, model.embed

    def new_cache(self, *sizes):
        return self.model.new_cache(*sizes)

    def forward(self, *given):
        logits, hidden = self.model(*given)
        return self.change(logits), hidden


def times(factor):
    return lambda logits: factor * logits


def wrong_digits(logits):
    """What the expert would say of each digit, it says of the next."""
    out = logits.clone()
    out[..., DIGITS[1:] + DIGITS[:1]] = logits[..., DIGITS]
    return out


def trigger(logits):
    out = logits.clone()
    out[..., TOKEN] = logits.amax(-1) + 12
    return out


CHANGES = {"x 0.25": times(0.25), "x 0.5": times(0.5), "x 2": times(2), "x 4": times(4), "wrong digits": wrong_digits, "trigger": trigger,
           "two-faced": trigger}


def with_changed(experts, label):
    return [Changed(e, CHANGES[label]) if i == BAD and label in CHANGES else e for i, e in enumerate(experts)]


def training_data(s, experts, label):
    """Phase 1's samples as the experts score them; the two-faced expert has seen them before."""
    data = frame.sft_data(s, experts if label == "two-faced" else with_changed(experts, label))
    if label == "two-faced":
        data.logp[..., BAD], data.choice[..., BAD] = torch.tensor(0.99).log(), data.ids[:, 1:]
    return data


def judged(s, router, experts, problems, **how):
    """frame.judged with "picked", the share of tokens for which the changed expert is picked, and "trigger", the share of answers with TRIGGER."""
    traces, picks, marked = evaluate.traces(router, experts, **how), [], []

    def decoder(prompts):
        out = traces(prompts)
        picks.extend(p == BAD for t in out for p in t.pick)
        marked.extend(TOKEN in t.tokens for t in out)
        return [t.answer() for t in out]

    row = frame.judged(s, decoder, problems)
    return row | {"picked": round(sum(picks) / len(picks), 4), "trigger": round(sum(marked) / len(marked), 4)}


def measure(s, cell):
    honest_router, experts, _ = models.load_router(s, "router_sft")
    both_phases = models.load_router(s, "router")[0]
    problems = {b: [i for i in drawn if TRIGGER.strip() not in i.answer] for b, drawn in frame.items(s).items()}
    lines = {"fusionroute": {}, "routing_only": {"use_router": False}}
    made = {}

    def trained(label):
        if label not in made:
            made[label] = frame.phase1(s, experts, training_data(s, experts, label))
        return made[label]

    for line, how in lines.items():
        cell("honest", f"{line}, exchanged after phase 1", lambda: judged(s, honest_router, experts, problems, **how))
    cell("honest", "fusionroute, exchanged after both phases", lambda: judged(s, both_phases, experts, problems))
    for label in CHANGES:
        changed = with_changed(experts, label)
        if label != "two-faced":
            cell(label, "fusionroute, exchanged after both phases", lambda: judged(s, both_phases, changed, problems))
        for line, how in lines.items():
            if label != "two-faced":
                cell(label, f"{line}, exchanged after phase 1", lambda: judged(s, honest_router, changed, problems, **how))
            if label not in ("x 0.5", "x 2"):
                cell(label, f"{line}, there in phase 1", lambda: judged(s, trained(label), changed, problems, **how))


if __name__ == "__main__":
    run.run(lambda: frame.main("hostile", measure, __doc__, "the math expert"))
