"""extra/results/bench.json, bench-gemma.json and equality.json as Markdown, for docs/speed.md."""

from toy_experts.evaluate import table

FORMULA = {"expert": "1", "router": "1", "plain": "1 + 1", "plain_in_a_batch": "1 + 1", "plain_by_model.py": "1 + 1",
           "block": "(1/G + m/K) / f", "block_without_guesses": "(1 + m/K) / f", "expert_with_guesses": "1/G", "all_experts": "1 + n",
           "sequence_selection": "n + n/T", "collab": "n (1 + d L)", "hf": "1"}
TURNS = "experts/other picks for each prompt/16/block_over_2_experts"
TARGETS = [  # what this project has set itself: name, where it stands in the file, at least (1) or at most (-1), how much
    ("toy: block over one expert alone", "decode/toy/methods/block/over_expert", 1, 0.9),
    ("large: block over one expert alone", "decode/large/methods/block/over_expert", 1, 0.9),
    ("toy: block with 16 experts in turn, over 2", f"decode/toy/{TURNS}", 1, 0.9),
    ("large: block with 16 experts in turn, over 2", f"decode/large/{TURNS}", 1, 0.9),
    ("toy: one expert, ours over Hugging Face", "decode/toy/methods/expert/over_hf", 1, 3.0),
    ("large: one expert, ours over Hugging Face", "decode/large/methods/expert/over_hf", 1, 1.0),
    *((f"{name.replace('_', ' ')}, {n} expert{'s' * (n > 1)}", f"training/{name}_spread/{n}", -1, 1.05)
      for name in ("phase1_over_sft", "phase2_over_dpo") for n in (1, 3, 8, 16))]


def ratio(x):
    return "-" if not x else f"{x['median']:.2f} ({x['low']:.2f} to {x['high']:.2f})" if isinstance(x, dict) else f"{x:.2f}"


def fair(size, m):
    """Rows that put block decoding beside one expert with the same help: both with the same guesses, then both without. m: the methods.
    In a file that was made before rounds were compared, the first is the quotient of the medians over one expert alone."""
    if "expert_with_guesses" not in m:
        return []
    x, y = m["block"].get("over_expert_with_guesses"), m["block_without_guesses"]["over_expert"]
    quotient = m["block"]["over_expert"]["median"] / m["expert_with_guesses"]["over_expert"]["median"]
    return [[f"{size}: block over one expert, both with guesses", "-", *(measured(x) if x else (f"{quotient:.3f}", "-")), ""],
            [f"{size}: block over one expert, both without", "-", *measured(y), ""]]


def measured(x):
    return f"{x['median']:.3f}", f"{x['low']:.2f} to {x['high']:.2f}"


def targets(r):
    """Which targets are reached. The unrounded medians are compared."""
    rows = [["", "target", "median", "lowest to highest round", ""]]
    for name, path, sign, asked in TARGETS:
        x = r
        for key in path.split("/"):
            x = x.get(key) if x else None
        if x:
            word = "reached" if sign * (x["median"] - asked) >= 0 else "**missed**"
            rows.append([name, f"{'at least' if sign > 0 else 'at most'} {asked:g}", *measured(x), word])
            if path.endswith("/block/over_expert"):
                size = path.split("/")[1]
                rows += fair(size, r["decode"][size]["methods"])
    return "\n".join(table(rows))


def methods(d):
    """A row for each decoder; d: size -> its section."""
    rows = [["method", "passes a token", *(f"{size}: {x}" for size in d for x in ("passes", "tokens/s", "over one expert", "model says"))]]
    for name, formula in FORMULA.items():
        cells = []
        for m in (x["methods"].get(name) for x in d.values()):
            p = (m or {}).get("passes")
            cells += ["-"] * 4 if not m else [
                " + ".join(f"{p[k]:.2f}" for k in ("router", "experts", "reward") if p[k] or k != "reward") if p else "-",
                f"{m['tokens_per_second']['median']:.3g}", ratio(m["over_expert"]), ratio(m.get("predicted_over_expert"))]
        if set(cells) != {"-"}:
            rows.append([name.replace("_", " "), formula, *cells])
    return "\n".join(table(rows))


def choices(x):
    """Block size, longest guess and where drafts end, best first."""
    rows = [["tokens of a block", "of a guess", "a draft ends below", "over one expert"]]
    for name, r in sorted(x["choices"].items(), key=lambda item: -item[1]["median"]):
        rows.append([*name.split(", "), ratio(r) if r["low"] < r["high"] else ratio(r["median"])])
    return "\n".join(table(rows))


def crowd(experts):
    """A table of the ratios to 2 experts."""
    rows = [["experts", *next(iter(experts.values()))]]
    for kind, x in experts.items():
        rows += [[f"{how}, {kind}", *(ratio(y[f"{how}_over_2_experts"]["median"]) for y in x.values())] for how in ("plain", "block")]
        rows.append([f"experts that are picked at all, {kind}", *(f"{y['picked']}" for y in x.values())])
        rows.append([f"expert passes a token in blocks, {kind}", *(f"{y['expert_passes']:.2f}" for y in x.values())])
    return "\n".join(table(rows))


def block_line(size, x):
    """What block decoding did, in the letters of the cost model."""
    return (f"Block decoding, {size} ({x['parameters'] / 1e6:.1f} million parameters a model; blocks of {x['block'][0]}, guesses of "
            f"up to {x['block'][1]}): f = {x['kept_of_drafted']:.2f} of the drafted tokens kept, {x['tokens_a_block']:.1f} tokens a "
            f"block, {x['router_passes']:.2f} router and {x['expert_passes']:.2f} expert passes a token; so G = "
            f"{1 / (x['router_passes'] * x['kept_of_drafted']):.2f}, K = {x['tokens_a_block'] / x['kept_of_drafted']:.1f} and m = "
            f"{x['expert_passes'] * x['tokens_a_block']:.2f}. One pass over T tokens costs, in passes over one: "
            + ", ".join(f"{c:.2f} (T = {T})" for T, c in x["width_cost"].items()) + ".")


def head(meta):
    return (f"{meta['machine']}, {meta['threads']} threads, torch {meta['torch']}, "
            + (f"the trained run of seed {meta['seed']}" if meta["trained"] else "random weights that share a base")
            + f"; {meta['seconds']} seconds. Ratios: median (lowest to highest) of the rounds.")


def hf_line(size, x):
    m = x["methods"]
    return ("Tokens/s over Hugging Face's greedy `generate` with the weights of one expert, "
            f"{size}: our loop {ratio(m['expert']['over_hf'])},"
            f" with guesses {ratio(m['expert_with_guesses'].get('over_hf'))}; FusionRoute in blocks {ratio(m['block']['over_hf'])}."
            if "hf" in m else "Hugging Face's `generate` was not there to be compared with.")


def figures(r):
    """What bench.json says, as Markdown."""
    d, t = r["decode"], r["training"]
    toy, large = d["toy"], d.get("large")
    said = [head(r["meta"]), targets(r), methods(d)]
    if "lookahead" in r["meta"]:
        said.append(f"Collab looks {r['meta']['lookahead']} tokens ahead, as in the tables of extra/paper.")
    if large:
        said.append("At large size one expert, block and Hugging Face answered all prompts, the others one of each benchmark.")
    for size, x in d.items():
        said += [block_line(size, x), hf_line(size, x)]
    if "one_pass" in toy:
        passes = "; ".join(f"{name} {x['operations']} operations, {x['microseconds']:.0f} microseconds"
                           for name, x in toy["one_pass"].items())
        said.append(f"A pass of the toy model over one token: {passes}"
                    + (f"; of a large model {large['calls_a_pass']} operations." if large else "."))
    if large:
        rows = [["T", *next(iter(large["matrices"].values()))]]
        rows += [[name, *(f"{ms:.0f}" for ms in x.values())] for name, x in large["matrices"].items()]
        said += ["Milliseconds of all matrices in the blocks of a large model, over T tokens:", "\n".join(table(rows))]
    for size, x in d.items():
        few = "; one prompt of each benchmark, once" * (size == "large")
        said += [f"What blocks could be, {size} (used: {', '.join(map(str, x['block']))}, {r['meta']['sure']:g}{few}):", choices(x)]
    for size, x in d.items():
        said += [f"Tokens/s over those with 2 experts, {size}:", crowd(x["experts"])]
    u = toy["unrelated"]
    said.append("The worst case, unrelated random models and guesses that are never right: "
                f"{u['router_passes']:.2f} + {u['expert_passes']:.2f} passes a token, "
                f"{ratio(u['block_over_plain'])} of the plain loop's tokens/s.")
    if large:
        x = large["floor"]
        said.append(f"The floor at large size: this machine reads {x['gigabytes_per_second']:.1f} GB/s, so one expert can give at most "
                    f"{x['expert_tokens_per_second']:.1f} tokens/s without guesses (measured: {x['expert_of_floor']:.2f} of it), and block "
                    f"decoding, with its passes a token, {x['block_tokens_per_second']:.1f} ({x['block_of_floor']:.2f}).")
    rows = [["training, n experts", *t["phase1_over_sft"]]]
    for name in ("phase1_over_sft", "phase2_over_dpo"):
        rows.append([name.replace("_", " ") + ", time of a step", *(ratio(x) for x in t[f"{name}_spread"].values())])
        if t["memory"]:
            rows.append([name.replace("_", " ") + ", peak memory", *(ratio(x) for x in t["memory"][name].values())])
    said += ["\n".join(table(rows)), "Tokens/s of phase 1 over a plain loop of the same model with torch's own attention and AdamW: "
             f"{ratio(t['phase1_over_plain_loop'])}."]
    if u := t.get("utilisation"):
        said.append(f"Router training in bfloat16 with {u['parameters'] / 1e9:.2f} billion parameters on {u['device']}: "
                    f"{u['tokens_per_second']['median']:.0f} tokens/s, {ratio(u['mfu'])} of the data sheet's operations, "
                    f"{ratio(u['of_measured_matmul'])} of a large matmul's.")
    passes, one = toy["router_passes"] + toy["expert_passes"], 3350 / 16
    said.append("Three 8B experts and an 8B router in bf16 (16 GB each, 64 GB in all) on one GPU that reads 3350 GB/s: one expert alone at "
                f"most {one:.0f} tokens/s, plain fused {one / 2:.0f}, all experts {one / 4:.0f}, and block decoding {one / passes:.0f} if "
                f"drafts and guesses were as good as the toy's ({passes:.2f} passes a token), "
                f"{one / sum(toy['methods']['block_without_guesses']['passes'].values()):.0f} without any guess.")
    return "\n\n".join(said)


def gemma(r):
    """What bench-gemma.json says, as Markdown."""
    toy = r["decode"]["toy"]
    return "\n\n".join([head(r["meta"]), targets(r), methods(r["decode"]), block_line("Gemma-2", toy), hf_line("Gemma-2", toy)])


PAGES = {"figures": figures, "gemma": gemma}
COMMAND = {"figures": "python -m extra.paper.bench", "gemma": "python -m extra.paper.bench --family gemma",
           "equality": "python -m extra.speed.equal"}


def equal_lines(r):
    """What equality.json says, as Markdown."""
    said, rows = [], [["family", "seed", "test prompts", "answers equal", "tokens", "passes a token", "nearest tie: tokens, w",
                       "rounding moves them by"]]
    for family, part in r.items():
        for seed, e in part["seeds"].items():
            rows.append([family, seed, f"{e['prompts']}", f"{e['prompts'] - e['different']}", f"{e['tokens']}",
                         f"{e['router_passes']:.2f} + {e['expert_passes']:.2f}",
                         *(", ".join(f"{x:.1e}" for x in e[name]) for name in ("least_gap", "largest_rounding"))])
        runs = part["seeds"].values()
        total, same = (sum(e["prompts"] - e["different"] * k for e in runs) for k in (0, 1))
        asked, other = (sum(e["bfloat16"][k] for e in runs) for k in (0, 1))
        said.append(f"{family.capitalize()}: {same} of {total} answers equal the plain loop's (in batches) in every token, every pick "
                    f"and every expert's own choice. With the models rounded to bfloat16, {asked - other} of {asked} have the same tokens.")
    said.append("The prompts are the test prompts of each family's seeds, drawn as extra/paper draws them. The nearest tie is that of all places of all answers; rounding was "
                "measured on every tenth answer.")
    return "\n\n".join([" ".join(said), "\n".join(table(rows))])
