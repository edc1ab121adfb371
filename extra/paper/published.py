"""What the tables and the ledger share: the paper's own figures, the names of the rows, the results of extra/results/, and how figures are written."""

import json
from pathlib import Path
from statistics import mean, stdev

from extra.common import FAMILIES, RESULTS
from toy_experts import run

PAPER_WING = Path(__file__).parent
ROOT = PAPER_WING.parent.parent
THIS = "python -m extra.paper.report"
BENCHES = ["toy-gsm8k", "toy-math500", "toy-mbpp", "toy-humaneval", "toy-ifeval"]
COMMAND = {"llama": "python -m extra.paper.evaluate --seeds {seeds}",
           "gemma": "python -m extra.paper.evaluate --family gemma --prompts 150 --general 250 --seeds {seeds}"}
SOURCE = {"llama": "Table 1, Llama-3 8B", "gemma": "Table 2, Gemma-2 2B"}

PAPER = {"llama": {  # the paper's tables, per cent: GSM8K, MATH500, MBPP, HumanEval, IFEval, average
    "math_expert": (86, 36, 23, 37, 31, 42.6), "code_expert": (52, 15, 34, 66, 48, 43.0), "instruct_expert": (74, 27, 36, 52, 67, 51.2),
    "sequence_selection": (76, 31, 21, 45, 50, 46.6), "collab": (82, 32, 28, 54, 55, 50.2), "fine_tuned": (75, 26, 36, 58, 72, 53.6),
    "dare_paper": (75, 28, 23, 26, 32, 36.8), "task_arithmetic_paper": (82, 32, 24, 39, 35, 42.4),
    "routing_only": (82, 32, 26, 56, 65, 52.2), "fusionroute": (82, 33, 36, 63, 69, 56.6),
}, "gemma": {
    "math_expert": (67, 27, 22, 36, 47, 39.8), "code_expert": (39, 16, 27, 41, 52, 35.0), "instruct_expert": (19, 8, 23, 34, 61, 29.0),
    "sequence_selection": (62, 24, 27, 37, 54, 40.8), "collab": (52, 22, 26, 35, 45, 36.0), "fine_tuned": (54, 17, 24, 34, 68, 39.4),
    "dare_paper": (36, 10, 14, 16, 36, 22.4), "task_arithmetic_paper": (43, 15, 14, 28, 34, 26.8),
    "routing_only": (62, 23, 23, 33, 51, 38.4), "fusionroute": (65, 22, 25, 40, 61, 42.6),
}}
NAMES = {
    "math_expert": "math expert", "code_expert": "code expert", "instruct_expert": "instruction expert",
    "sequence_selection": "Sequence Selection", "collab": "Collab", "fine_tuned": "Fine-tuned Model",
    "task_arithmetic_paper": "TaskArithmetic, scale 1", "task_arithmetic": "TaskArithmetic, tuned", "dare_paper": "DARE, p 0.9, scale 1",
    "dare": "DARE, tuned", "routing_only": "routing only", "sft_only": "phase 1 only", "fusionroute": "**FusionRoute**",
    "router": "router alone",
    "uniform_average": "product of experts (no router)", "co_llm": "Co-LLM-style routing", "co_llm_self": "Co-LLM-style, the router a choice",
    "oracle_expert": "oracle expert (a bound)",
    "fused_sft": "through the fusion, phase 1", "fused_full": "through the fusion, both",
    "fusionroute_long": "FusionRoute, tuned budget", "sft_long": "phase 1 only, tuned budget",
    "fine_tuned_long": "Fine-tuned Model, tuned budget", "fine_tuned_sft_long": "its phase 1 only", "generalist": "generalist (a bound)",
    "double": "one model of twice the size", "two_fine_tuned": "sum of two models, tuned budget",
    "fusionroute_all": "L_expert everywhere, both", "sft_all": "L_expert everywhere, phase 1", "router_mean": "router + mean of experts",
    "router_math": "router + math expert", "router_code": "router + code expert", "router_instruct": "router + instruction expert",
    "router_random": "router + random expert in S", "selection_lm": "Sequence Selection, better judge", "collab_lm": "Collab, better judge",
}
ABLATIONS = {
    "coverage": "The share of sub-skills that no expert has. At 0 choosing among experts is enough, and the router's own logits add nothing on the "
                "benchmarks; every sub-skill that is missing is lost to routing only, whereas FusionRoute keeps most of those that the router's "
                "data has (Assumption 4.2 of the paper, seen from both sides). Its lead over the fine-tuned model is smallest where the experts know least.",
    "data": "How many SFT samples the router and the fine-tuned model are trained on; phase 2 is unchanged. FusionRoute borrows what the experts "
            "know; the fine-tuned model must learn everything from these samples. With few samples it learns little; with the most it is level "
            "with FusionRoute on the general prompts, and its accuracy is close.",
    "routing": "Phase 1 with other rules for L_expert (variants.py has each in a few lines). routing only shows what the rule is for; "
               "phase 1 only adds the router's logits. The paper's restriction to S makes no difference to routing only, and here phase 1 fares no "
               "worse without it (CLAIMS.md has more seeds). Raw weights fail, as their loss has no lower bound. co_llm trains no language model for "
               "fusing; co_llm_self may pick the router itself as well.",
    "preference": "Phase 2 with other losses (variants.PAIR_LOSSES) and other sources of y_l (variants.SOURCES), after the same phase 1. "
                  "\"SFT on y_w instead\" takes as many steps on the same prompts without any y_l. The bias, the paper's novelty, makes no difference "
                  "that can be seen here, nor does the policy that DPO is applied to. Pairs whose y_l is a corrupted right answer did "
                  "worse here; CLAIMS.md says whether these seeds can show it. "
                  "The two fine-tuned rows differ in more than their pairs: the first has the rate tuned for it, the second phase 2's default.",
    "budget": "Passes over the SFT samples: four as on the ground floor, and the passes and the rate that were best for each method on validation prompts "
              "(tune.py; phase 2 as always). The Fine-tuned Model's best budget is at the edge of what was tried, so it gets twice the passes in the last row. The "
              "generalist is one model that was trained on the data of all experts, for as many steps as all of them together, then on the SFT samples: "
              "the paper's premise denies it these data, so it is a bound and not a rival.",
    "scale": "Width and layers of base, experts and router alike, everything else as always; settings were tuned at the largest size only, which may "
             "be what the small fine-tuned models suffer from.",
}


def load():
    """name -> the content of results/name.json, for every file that this page is made from."""
    names = ["table1", "differences", "winrate", "routing", "cost", "tuning", "bench", "quickstart", "delta"] + [
        f"ablation_{n}" for n in ABLATIONS]
    try:
        r = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in names}
    except (OSError, ValueError) as e:
        raise run.UserError(f"extra/results/ is not complete ({e}): run {' and '.join(COMMAND.values())} (with the seeds), python -m extra.paper.tune "
                            "--seeds 0 1, python -m extra.paper.quickstart, python -m extra.paper.bench, and the ablations") from e
    for family in FAMILIES:
        if family not in r["table1"]:
            raise run.UserError(f"extra/results/table1.json has no {family}: run {COMMAND[family]}")
    return r


def command(r, family):
    """What makes the tables of a family."""
    meta = r["table1"]["meta"][family]
    others = len(meta.get("seeds of the other rows", meta["seeds"]))
    return COMMAND[family].format(seeds=" ".join(map(str, meta["seeds"]))) + f" --rest {others}" * (others < len(meta["seeds"]))


def rival(r, family):
    """The Fine-tuned Model that win rates are against: the one with its own best budget, where it was measured."""
    return "fine_tuned_long" if "fine_tuned_long" in r["table1"][family] else "fine_tuned"


def spread(values):
    return f"{100 * mean(values):.1f} ± {100 * stdev(values):.1f}"


def signed(d, points=True):
    """A mean with its interval, in percentage points."""
    sign = "+" if points else ""
    return f"{100 * d['mean']:{sign}.1f} [{100 * d['low']:{sign}.1f}, {100 * d['high']:{sign}.1f}]"
