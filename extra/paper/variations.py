"""The table of variations: the ablations that the paper's argument needs, and ten open questions.

A row says its label, what is trained differently (a recipe of recipes.py), and how it is decoded.
VARIATIONS has a function a table, by the name of its JSON file in extra/results. What is not in a
row is as always. Unless a table says so, answers are to test prompts, and an accuracy is the share
of right answers.
"""

from dataclasses import replace

from extra.paper import checkpoints, measures
from extra.paper.measures import Row
from extra.paper.recipes import EXPERTS, PLAIN, PLAIN_LONG, TRAINING, Cdpo, Expert, Sft, Update

FUSED, ALONE, ROUTER = {}, {"use_router": False}, {"use_expert": False}
FIRST = Sft()  # phase 1 as always


def both_lines(label, recipe, prefix="", measure=None, **how):
    """FusionRoute, Eq. (1), and the picked expert alone."""
    lines = {"fusionroute": how, "routing_only": how | ALONE}
    return [Row(label, prefix + line, recipe, how, measure) for line, how in lines.items()]


# --- ablations -----------------------------------------------------------------------------------


def compared(label, first=FIRST, fine=PLAIN, where=Row._field_defaults["where"]):
    """FusionRoute, routing only, phase 1 only and the Fine-tuned Model."""
    last, tuned = Cdpo(first), Cdpo(fine, first, loss="plain", lr=2.5e-5)
    rows = {
        "fusionroute": (last, FUSED),
        "routing_only": (last, ALONE),
        "sft_only": (first, FUSED),
        "fine_tuned": (tuned, ROUTER),
    }
    return [Row(label, line, *what, where=where) for line, what in rows.items()]


def coverage():
    """The share of sub-skills that no expert has: when is choosing enough? (Assumption 4.2)"""
    places = {"gap0": 0, "gap0.1": 0.1, "": 0.25, "gap0.5": 0.5}
    rows = []
    for place, gap in places.items():  # of 8 sub-skills, 10% is 1
        rows += compared(round(8 * gap) / 8, where=(place, gap, checkpoints.SIZE))
    return rows


def sft_size():
    """The size of the router's SFT set: where does a fine-tuned model catch up?"""
    sizes = (600, 2400, 4800)
    return [r for n in sizes for r in compared(n, Sft(samples=n), replace(PLAIN, samples=n))]


def routing():
    """The set S against all positions, and the readings of log pi_agg. Phase 1."""
    rows = []
    names = ("paper", "all", "raw", "renormalised", "mixture", "best", "co_llm", "co_llm_self")
    for loss in names:
        rows.append(Row(loss, "routing_only", Sft(loss=loss), ALONE))
        if not loss.startswith("co_llm"):  # they are not made to be fused
            rows.append(Row(loss, "sft_only", Sft(loss=loss)))
    return rows


def preference():
    """CDPO's bias, its gradient, DPO of the fused policy, no preference; where y_l comes from."""
    recipes = {
        "phase 1 only": Sft(),
        "CDPO": Cdpo(),
        "bias off": Cdpo(loss="plain"),
        "gradient through the bias": Cdpo(loss="gradient"),
        "DPO of the fused policy": Cdpo(loss="fused"),
        "SFT on y_w instead": Cdpo(loss="sft"),
        "no SFT batches": Cdpo(mix=0),
        # These give a pair for more prompts than the fused model's own mistakes: fewer prompts.
        "y_l from experts": Cdpo(rejected="experts", prompts=700),
        "y_l corrupted": Cdpo(rejected="corrupted", prompts=550),
    }
    fine = {
        "fine-tuned, the same pairs": TRAINING["fine_tuned"],
        "fine-tuned, its own mistakes": Cdpo(PLAIN, loss="plain", rejected="router"),
    }
    rows = [Row(label, "fusionroute", recipe) for label, recipe in recipes.items()]
    return rows + [Row(label, "fine_tuned", recipe, ROUTER) for label, recipe in fine.items()]


def scale():
    """Width and layers of router and experts: does the gain grow with them?"""
    places = {"d48": (48, 2), "d72": (72, 3), "": (96, 3)}
    rows = []
    for place, size in places.items():
        rows += compared(f"{size[0]} x {size[1]}", where=(place, 0.25, size))
    return rows


def budget():
    """Four passes over the SFT samples, and what tune.py found best for each method."""
    ways = {
        "fusionroute": ("router", FUSED),
        "routing_only": ("router", ALONE),
        "sft_only": ("router_sft", FUSED),
        "fine_tuned": ("fine_tuned", ROUTER),
        "co_llm_self": ("co_llm_self", ALONE),
        "fused_sft": ("fused_sft", FUSED),
        "generalist": ("generalist", ROUTER),
    }
    rows = []
    for label, tag in ((f"{Sft.epochs} passes", ""), ("tuned budget", "_long")):
        for line, (name, how) in ways.items():
            rows.append(Row(label, line, TRAINING[name + tag], how))
    # The Fine-tuned Model's best budget has the most passes that tune.py tried: twice as many.
    # (Its DPO moves nothing, and is left out.)
    more = replace(PLAIN_LONG, epochs=32)
    return [*rows, Row("32 passes", "fine_tuned", more, ROUTER)]


# --- open questions ------------------------------------------------------------------------------


FIVE = (*map(Expert, ("gsm8k", "math500", "mbpp", "humaneval")), "instruct")
EIGHT = "gsm8k-1 gsm8k-2 math500-1 math500-2 mbpp humaneval ifeval-1 ifeval-2".split()


def experts():
    """(a) The number of experts, and how different they are: where do returns end?

    With one expert there is nothing to choose and L_expert is 0: phase 1 is that of lambda = 0,
    whichever expert it is. The rows "3", "5" and "8" have the same sub-skills and training steps.
    The router starts from the ordinary instruction expert in each row. Phase 1 only.
    """
    rows = []
    for i, e in enumerate(EXPERTS):
        rows += both_lines(f"1 ({e})", Sft(lam=0.0), only=i)
    sets = {"2": ("math", "code"), "3": EXPERTS, "5": FIVE, "8": tuple(map(Expert, EIGHT))}
    for label, names in sets.items():
        rows += both_lines(label, Sft(experts=names), measure=measures.among)
    return rows


def weights():
    """(b) lambda of Eq. (2), beta of Eq. (3), and the share of tokens in the set S of L_expert.

    At lambda 0 nothing trains W: it stays 0, and the first expert is picked always. A token in
    L_expert has the same weight whatever the share. beta is judged after phase 2, the others after
    phase 1.
    """
    lambdas = {"0": 0.0, "1/9": 1 / 9, "1/3": 1 / 3, "1": 1.0, "3": 3.0}
    sets = {
        "1/4 of S": Sft(share=0.25),
        "1/2 of S": Sft(share=0.5),
        "S": Sft(),
        "S + rest/2": Sft(share=1.5),
        "all": Sft(loss="all"),
    }
    rows = []
    for label, lam in lambdas.items():
        rows += both_lines(f"lambda {label}", Sft(lam=lam), "lambda: ")
    for label, recipe in sets.items():
        rows += both_lines(label, recipe, "S: ")
    for beta in (0.01, 0.03, 0.1, 0.3, 1.0):
        rows.append(Row(f"beta {beta:g}", "beta: fusionroute", Cdpo(beta=beta)))
    return rows


def decoding():
    """(c) Decoding that is not greedy: do added logits still help?

    A sum of two models' logits is about twice as large as one model's, which alone makes sampling
    safer. "half the sum" is Eq. (1) with their mean: logits / 2 at a temperature are the logits at
    twice that temperature.
    """
    ways = {
        "greedy": {},
        "T 0.3": {"temperature": 0.3},
        "T 0.7": {"temperature": 0.7},
        "T 1": {"temperature": 1.0},
        "T 1.5": {"temperature": 1.5},
        "T 1, top-p 0.9": {"temperature": 1.0, "top_p": 0.9},
    }
    lines = {"fusionroute": FUSED, "half the sum": FUSED, "routing_only": ALONE, "router": ROUTER}
    rows = []
    for line, part in lines.items():
        for label, how in ways.items():
            if line == "half the sum" and how:
                how = how | {"temperature": 2 * how["temperature"]}
            rows.append(Row(label, line, Cdpo(), part | how))
    return rows


SHIFTS = ("as trained", "new words", "numbers out of range", "new phrasings", "a sixth benchmark")


def shift():
    """(d) Domain shift: prompts that no training saw. See shifted.py."""
    lines = {"fusionroute": FUSED, "routing_only": ALONE, "router": ROUTER}
    return [
        Row(label, line, Cdpo(), how, measures.on_shifted)
        for label in SHIFTS
        for line, how in lines.items()
    ]


def newcomer():
    """(e) An expert that comes after the training (phase 1): which update uses it, and forgets
    nothing?

    "before": two experts. Then the code expert joins, and W gets a row of zeros. Each update is one
    pass over the SFT samples. "from scratch" is what always happens here.
    """
    before = Sft(experts=("math", "instruct"))
    recipes = {
        "before": before,
        "all of W": Update(before),
        "W and theta": Update(before, theta=True),
        "from scratch": Sft(),
    }
    return [
        r for label, x in recipes.items() for r in both_lines(label, x, measure=measures.by_domain)
    ]


def hostile():
    """(f) Hostile and broken experts: how far does routing protect, how far do added logits, and
    who can make the router always choose it?

    The math expert's logits are changed (altered.CHANGES): after phase 1, or from the beginning.
    The two-faced expert knows every right token while the router is trained.
    """
    after, there, picks = "exchanged after phase 1: ", "there in phase 1: ", measures.with_picks
    rows = both_lines("honest", Sft(), after, picks)
    for label in ("x 4", "wrong digits", "trigger"):
        rows += both_lines(label, Sft(), after, picks, changed=label)
    for label in ("trigger", "two-faced"):
        rows += both_lines(label, Sft(changed=label), there, picks, changed=label)
    return rows


def objectives():
    """(g) Other objectives for phase 2, with the same experts as a bias (losses.py).

    Each objective's beta (REINFORCE has none) is chosen among three on validation prompts of the
    same seed; the column beta says which.
    """
    betas = {
        "CDPO": ("paper", (0.03, 0.1, 0.3)),
        "IPO": ("ipo", (0.1, 0.5, 2.0)),
        "hinge": ("hinge", (0.03, 0.1, 0.3)),
        "SimPO": ("simpo", (1.0, 2.0, 5.0)),
    }
    rows = [Row("phase 1 only", "fusionroute", Sft())]
    for label, (loss, values) in betas.items():
        rows.append(Row(label, "fusionroute", tuple(Cdpo(loss=loss, beta=b) for b in values)))
    return [*rows, Row("REINFORCE", "fusionroute", Cdpo(loss="reinforce"))]


def data():
    """(h) Noise in the pairs, and shares of the domains in the pairs and in the SFT samples.

    Pairs without a part: as many passes over the others. SFT without a part: as many samples.
    """
    both = {"as always": Cdpo()}
    both |= {f"{share:.0%} flipped": Cdpo(flipped=share) for share in (0.1, 0.2, 0.3, 0.4)}
    both |= {f"pairs without {part}": Cdpo(without=part) for part in ("math", "general")}
    first = {
        "as always": Sft(),
        "SFT without math": Sft(items="without math"),
        "SFT without general": Sft(items="without general"),
        "SFT: half math": Sft(items="half math"),
    }
    rows = [Row(label, "both phases", recipe) for label, recipe in both.items()]
    return rows + [Row(label, "phase 1 only", recipe) for label, recipe in first.items()]


def other(expert, family, size):
    """An expert of another architecture, from a base of its own, on the same documents."""
    return Expert(expert, start=Expert("base", None, size, family))


def router_size():
    """(i) The size of the router: what does a smaller one cost in quality, and save? Phase 1 only.

    Learning rates were tuned for the ordinary size.
    """
    rows = []
    for width, layers in ((96, 3), (72, 3), (48, 4), (24, 4)):
        size = width, layers
        start = other("instruct", "llama", size) if size != checkpoints.SIZE else "instruct"
        for line, how in (("fusionroute", FUSED), ("routing_only", ALONE), ("router", ROUTER)):
            rows.append(Row(f"{width} x {layers}", line, Sft(start=start), how, measures.with_cost))
    return rows


def mixed():
    """(j) Experts of different sizes and of both families under one router. Phase 1 only."""
    small = other("math", "llama", (72, 3))
    gemma = other("code", "gemma", checkpoints.SIZE)
    sets = {
        "all ordinary": EXPERTS,
        "math smaller": (small, "code", "instruct"),
        "code of Gemma-2": ("math", gemma, "instruct"),
        "both": (small, gemma, "instruct"),
    }
    rows = []
    for label, names in sets.items():
        rows += both_lines(label, Sft(experts=names))
        rows.append(Row(label, "best expert", Sft(experts=names), {}, measures.of_best_expert))
    return rows


VARIATIONS = {
    "ablation_coverage": coverage,
    "ablation_data": sft_size,
    "ablation_routing": routing,
    "ablation_preference": preference,
    "ablation_scale": scale,
    "ablation_budget": budget,
    "open_experts": experts,
    "open_weights": weights,
    "open_decoding": decoding,
    "open_shift": shift,
    "open_newcomer": newcomer,
    "open_hostile": hostile,
    "open_objectives": objectives,
    "open_data": data,
    "open_router_size": router_size,
    "open_mixed": mixed,
}
