"""results/bench.json as Markdown, for docs/speed.md."""

from report import table

FORMULA = {"expert": "1", "router": "1", "plain": "1 + 1", "block": "(1/G + m/K) / f", "block_without_guesses": "(1 + m/K) / f",
           "expert_with_guesses": "1/G", "all_experts": "1 + n", "sequence_selection": "n + n/T", "collab": "n (1 + d L)", "hf": "1"}


def ratio(x):
    return "-" if not x else f"{x['median']:.2f} ({x['low']:.2f} to {x['high']:.2f})" if isinstance(x, dict) else f"{x:.2f}"


def figures(r):
    """What bench.json says, as Markdown."""
    meta, d, t, sizes = r["meta"], r["decode"], r["training"], [k for k in ("toy", "large") if k in r["decode"]]
    toy, large = d["toy"], d.get("large")
    columns = [f"{k}: {x}" for k in sizes for x in ("tokens/s", "over one expert", "model says")]
    rows = [["method", "passes a token", "measured: router + experts + reward", *columns]]
    for name in FORMULA:
        if name in toy["methods"]:
            passes = toy["methods"][name].get("passes")
            rows.append([name.replace("_", " "), FORMULA[name], " + ".join(f"{x:.2f}" for x in passes.values()) if passes else "-"])
            for m in (d[k]["methods"][name] for k in sizes):
                rows[-1] += [f"{m['tokens_per_second']['median']:.3g}", ratio(m["over_expert"]), ratio(m.get("predicted_over_expert"))]
    said = [f"{meta['machine']}, {meta['threads']} threads, torch {meta['torch']}, "
            + (f"the trained run of seed {meta['seed']}" if meta["trained"] else "random weights that share a base")
            + f"; {meta['seconds']} seconds. Ratios: median (lowest to highest) of the rounds.", "\n".join(table(rows))]
    for k in sizes:
        x = d[k]
        said.append(f"Block decoding, {k} ({x['parameters'] / 1e6:.1f} million parameters a model; blocks of {x['block'][0]}, guesses of "
                    f"up to {x['block'][1]}): f = {x['kept_of_drafted']:.2f} of the drafted tokens kept, {x['tokens_a_block']:.1f} tokens a "
                    f"block, {x['router_passes']:.2f} router and {x['expert_passes']:.2f} expert passes a token; so G = "
                    f"{1 / (x['router_passes'] * x['kept_of_drafted']):.2f}, K = {x['tokens_a_block'] / x['kept_of_drafted']:.1f} and m = "
                    f"{x['expert_passes'] * x['tokens_a_block']:.2f}. A pass over one token is {x['calls_a_pass']} operations of torch. One "
                    "over T tokens costs, in passes over one: " + ", ".join(f"{c:.2f} (T = {T})" for T, c in x["width_cost"].items()) + ".")
        said.append("Tokens/s over Hugging Face's greedy `generate` with the weights of one expert, "
                    f"{k}: our loop {ratio(x['over_hf'])}, with guesses {ratio(x['with_guesses_over_hf'])}; FusionRoute in blocks "
                    f"{ratio(x['block_over_hf'])}.")
    one = toy["one_pass"]
    said.append("A pass of the toy model over one token: " + "; ".join(
        f"{name} {x['operations']} operations, {x['microseconds']:.0f} microseconds" for name, x in one.items()) + ".")
    if large:
        rows = [["T", *next(iter(large["matrices"].values()))]] + [[name, *(f"{ms:.0f}" for ms in x.values())] for name, x in large["matrices"].items()]
        said += ["Milliseconds of all matrices in the blocks of a large model, over T tokens:", "\n".join(table(rows))]
    said.append("Block size and longest guess at toy size, over one expert: "
                + ", ".join(f"{name}: {x['median']:.2f}" for name, x in toy["blocks_over_expert"].items()) + ".")
    if large:
        said.append("The same at large size: " + ", ".join(f"{name.removeprefix('block ')}: {ratio(m['over_expert']['median'])}"
                                                           for name, m in large["methods"].items() if name.startswith("block ")) + ".")
    rows = [["experts", *(f"{n}" for n in toy["experts"]["picks as trained"])]]
    for kind, x in toy["experts"].items():
        rows += [[f"{how}, {kind}", *(ratio(y[f"{how}_over_2_experts"]["median"]) for y in x.values())] for how in ("plain", "block")]
        rows.append([f"expert passes a token in blocks, {kind}", *(f"{y['expert_passes']:.2f}" for y in x.values())])
    said += ["Tokens/s over those with 2 experts:", "\n".join(table(rows))]
    u = toy["unrelated"]
    said.append("The worst case, unrelated random models and guesses that are never right: "
                f"{u['router_passes']:.2f} + {u['expert_passes']:.2f} passes a token, "
                f"{ratio(u['block_over_plain'])} of the plain loop's tokens/s.")
    if large:
        x = large["floor"]
        said.append(f"The floor at large size: this machine reads {x['gigabytes_per_second']:.1f} GB/s, so one expert can give at most "
                    f"{x['expert_tokens_per_second']:.1f} tokens/s (measured: {x['expert_of_floor']:.2f} of it) and block decoding "
                    f"{x['block_tokens_per_second']:.1f} ({x['block_of_floor']:.2f}).")
    rows = [["training, n experts", *t["phase1_over_sft"]]]
    for name in ("phase1_over_sft", "phase2_over_dpo"):
        rows.append([name.replace("_", " ") + ", time of a step", *(ratio(x) for x in t[f"{name}_spread"].values())])
        if t["memory"]:
            rows.append([name.replace("_", " ") + ", peak memory", *(ratio(x) for x in t["memory"][name].values())])
    said += ["\n".join(table(rows)), "Tokens/s of phase 1 over a plain loop of the same model with torch's own attention and AdamW: "
             f"{ratio(t['phase1_over_plain_loop'])}."]
    passes, one = toy["router_passes"] + toy["expert_passes"], 3350 / 16
    said.append("Three 8B experts and an 8B router in bf16 (16 GB each, 64 GB in all) on one GPU that reads 3350 GB/s: one expert alone at "
                f"most {one:.0f} tokens/s, plain fused {one / 2:.0f}, all experts {one / 4:.0f}, and block decoding {one / passes:.0f} if "
                f"drafts and guesses were as good as the toy world's ({passes:.2f} passes a token), "
                f"{one / (1 + toy['expert_passes']):.0f} without any guess.")
    return "\n\n".join(said)


def equal_lines(r):
    """What equality.json says, as Markdown."""
    rows = [["seed", "test prompts", "answers equal", "tokens", "passes a token", "nearest tie: tokens, w", "rounding moves them by"]]
    for seed, e in r["seeds"].items():
        rows.append([seed, f"{e['prompts']}", f"{e['prompts'] - e['different']}", f"{e['tokens']}",
                     f"{e['router_passes']:.2f} + {e['expert_passes']:.2f}",
                     *(", ".join(f"{x:.1e}" for x in e[name]) for name in ("least_gap", "largest_rounding"))])
    total, same = (sum(e["prompts"] - e["different"] * k for e in r["seeds"].values()) for k in (0, 1))
    count = r["meta"]
    return (f"{same} of {total} answers equal the plain loop's (in batches) in every token, every pick and every expert's own choice. The "
            f"prompts are all that evaluate.py tests on: of each seed {count['prompts']} a benchmark and {count['general']} general ones. "
            "The nearest tie is that of all places of all answers; rounding was measured on every tenth answer.\n\n"
            + "\n".join(table(rows)))
