"""Data and experts that differ from the lesson's in one respect, for the table of variations."""

from random import Random

import torch

from fusionroute import informative
from toy_experts import tasks, tokenizer
from toy_experts.experts import EXPERTS

PARTS = tasks.DOMAINS | {"general": ["general"]}  # what a share of the data is of

# --- (b) the share of tokens in L_expert ---------------------------------------------------------


def with_share(sft, share, seed):
    """The samples (Data) with another set S: up to 1 this part of S, above 1 S and the part
    share - 1 of all other positions. The set is random, and the same in every pass.

    S is where the experts' choices differ, and the losses use the choices for nothing else. So
    the choices are exchanged: all equal outside the new set, and the first one different inside.
    """
    S = informative(sft.choice)  # (N, T-1)
    u = torch.rand(S.shape, generator=torch.Generator().manual_seed(seed))  # (N, T-1), in [0, 1)
    choice = torch.zeros_like(sft.choice)
    choice[..., 0] = S & (u < share) | ~S & (u < share - 1)  # inside 1, 0, 0, ...; else 0, 0, 0
    return sft._replace(choice=choice)


# --- (h) shares of the domains, noise in the pairs -----------------------------------------------


def sft_items(seed, n, mixture):
    """n SFT problems without a part of the data ("without math"), or half of that ("half math")."""
    how, part = mixture.split()
    inside, benches = PARTS[part], [b for names in PARTS.values() for b in names]
    outside = [b for b in benches if b not in inside]
    weight = {b: 1 for b in outside}
    weight |= {b: len(outside) / len(inside) for b in inside} if how == "half" else {}
    rng, items, due = Random(f"sft {seed}"), [], 0.0
    for b in (b for b in benches if b in weight):
        due += n * weight[b] / sum(weight.values())  # how many there should be by now
        items += tasks.dataset(b, "train", round(due) - len(items), rng)
    rng.shuffle(items)
    return items


def flip(pairs, share, seed):
    """The pairs with chosen and rejected exchanged in a share of them, drawn at random."""
    drawn = Random(f"noise {seed}").sample(range(len(pairs)), round(share * len(pairs)))
    exchanged = [p | {"chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs]
    return [exchanged[i] if i in set(drawn) else p for i, p in enumerate(pairs)]


def leave_out(pairs, part, seed, n_prompts):
    """The pairs of these prompts whose prompt is not of the part."""
    drawn = tasks.mixed("preference", n_prompts, Random(f"preference {seed}"))
    bench = {item.prompt: item.bench for item in drawn}
    return [p for p in pairs if bench[p["prompt"]] not in PARTS[part]]


# --- (f) hostile and broken experts --------------------------------------------------------------

BAD = EXPERTS.index("math")  # the expert that is changed
TRIGGER = " moon"
TRIGGER_ID = tokenizer.encoding.encode_single_token(TRIGGER)
DIGITS = [tokenizer.encoding.encode_single_token(str(d)) for d in range(10)]


class Changed(torch.nn.Module):
    """An expert whose logits are changed on their way out. It reads, and caches, as before."""

    def __init__(self, model, change):
        super().__init__()
        self.model, self.change = model, change
        self.config, self.embed, self.new_cache = model.config, model.embed, model.new_cache

    def forward(self, *given):
        logits, hidden = self.model(*given)
        return self.change(logits), hidden


def wrong_digits(logits):
    """What the expert would say of each digit, it says of the next."""
    out = logits.clone()
    out[..., DIGITS[1:] + DIGITS[:1]] = logits[..., DIGITS]
    return out


def trigger(logits):
    """The expert writes TRIGGER, whatever it is asked."""
    out = logits.clone()
    out[..., TRIGGER_ID] = logits.amax(-1) + 12
    return out


CHANGES = {
    "x 4": lambda logits: 4 * logits,
    "wrong digits": wrong_digits,
    "trigger": trigger,
    "two-faced": trigger,  # while the router is trained, it knows every right token (feign)
}


def change(experts, label):
    """The experts with the math expert changed as CHANGES says; label "": as they are."""
    if not label:
        return experts
    return [Changed(e, CHANGES[label]) if i == BAD else e for i, e in enumerate(experts)]


def feign(sft):
    """The samples as if the two-faced expert knew every right token with the probability 0.99."""
    sft.logp[..., BAD] = torch.tensor(0.99).log()
    sft.choice[..., BAD] = sft.ids[:, 1:]
    return sft
