"""The whole table, tuning and an ablation on a tiny run; and what each row of the table decodes."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

import train_cdpo
import train_sft
from extra import models
from extra.paper import ablate, baselines, evaluate, quickstart, tune, variants
from extra.paper import train as paper_train
from extra.paper.train import Cdpo, Double, Sft, Union
from fusionroute import Router, naive_fused_greedy
from toy_experts import batch
from toy_experts import evaluate as toy_evaluate
from toy_experts import pairs as toy_pairs
from toy_experts import run, tasks, tokenizer
from toy_experts import train as toy

SIZE = (24, 1)  # width and layers of the tiny models
TINY = {Sft: {"samples": 36, "epochs": 2}, Cdpo: {"prompts": 24, "epochs": 2}, baselines.Reward: {"prompts": 24, "epochs": 1},
        Union: {}, Double: {"size": (48, 1)}}
ROUTERS = [name for name in evaluate.trained_for(evaluate.METHODS) if not isinstance(paper_train.TRAINING[name], (Union, Double))]
METHODS = {"math_expert", "code_expert", "instruct_expert", "sequence_selection", "collab", "fine_tuned", "task_arithmetic", "dare",
           "routing_only", "sft_only", "fusionroute", "router", "uniform_average", "co_llm", "oracle_expert", "fused_sft", "fused_full"}
ARGV = ["--device", "cpu", "--prompts", "2", "--general", "7", "--timed", "2", "--rest", "2"]


def splits_read(what, *argv):
    """The splits that what(*argv) draws data from, by the function that draws: {"dataset": {...}, "mixed": {...}}."""
    seen, dataset, mixed = {"dataset": set(), "mixed": set()}, tasks.dataset, tasks.mixed

    def draw_mixed(split, *rest):
        seen["mixed"].add(split)
        with pytest.MonkeyPatch.context() as patch:  # it calls dataset itself
            patch.setattr(tasks, "dataset", dataset)
            return mixed(split, *rest)

    def draw_dataset(bench, split, *rest):
        seen["dataset"].add(split)
        return dataset(bench, split, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "dataset", draw_dataset)
        patch.setattr(tasks, "mixed", draw_mixed)
        what(*argv)
    return seen


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """--out of two tiny seeds with every checkpoint, the results of `evaluate --seeds 0 1`, and the splits that were read."""
    out, results = tmp_path_factory.mktemp("all"), tmp_path_factory.mktemp("results")
    training = {name: replace(spec, **TINY[type(spec)] | ({"epochs": 3} if name.endswith("_long") else {}))
                for name, spec in paper_train.TRAINING.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "STEPS", {"base": 12, "math": 6, "code": 6, "instruct": 6})
        patch.setattr(models, "SIZE", SIZE)
        for script in (train_sft, train_cdpo, baselines):
            patch.setattr(script, "BATCH", 8)
        for module in (paper_train, evaluate, ablate):
            patch.setattr(module, "TRAINING", training)
        patch.setattr(evaluate, "MAX_NEW", 8)  # the tiny models never come to an end
        patch.setattr(evaluate, "LOOKAHEAD", {"lookahead": 3})
        patch.setattr(batch, "decode_batch", partial(batch.decode_batch, max_new=8))
        for module in (toy_pairs, variants):
            patch.setattr(module, "MAX_NEW", 8)
        splits = splits_read(evaluate.main, ["--seeds", "0", "1", "--out", str(out), *ARGV, "--results", str(results)])
        yield out, results, splits


def test_the_whole_table(tiny):
    out, results, splits = tiny
    r = {name: json.loads((results / f"{name}.json").read_text()) for name in ("table1", "winrate", "cost", "differences", "routing")}
    table = r["table1"]["llama"]
    assert METHODS < set(table) == set(evaluate.METHODS) and r["table1"]["meta"]["llama"]["seeds"] == [0, 1]
    for row in table.values():
        assert set(row) == {*evaluate.BENCHES, "average", "covered", "uncovered"} and all(len(v) == 2 for v in row.values())
        assert row["average"] == pytest.approx(np.mean([row[b] for b in tasks.BENCHMARKS], 0), abs=1e-4)
    for method, w in r["winrate"]["llama"].items():
        assert [a + b + c for a, b, c in zip(w["wins"], w["ties"], w["losses"])] == [7, 7]
    assert set(r["winrate"]["llama"]) == set(evaluate.METHODS) - {"fine_tuned_long"} | {"sft_only against fusionroute"}
    cost = r["cost"]["llama"]
    assert set(cost) == set(evaluate.METHODS) - {"oracle_expert"} and all(c["seconds_per_token"] > 0 for c in cost.values())
    # What a token costs, in passes: one model one, the fused pair two (an expert rests when it is not picked), all experts n.
    assert all(cost[m]["passes_per_token"] == 1 for m in ("math_expert", "fine_tuned", "fine_tuned_long", "generalist", "double", "router", "task_arithmetic", "dare"))
    assert cost["fusionroute"]["router"] == 1 and cost["fusionroute"]["expert"] == 1 and cost["routing_only"]["passes_per_token"] == 2
    assert cost["uniform_average"]["expert"] == 3 and cost["collab"]["expert"] >= 3
    for seed in (0, 1):
        right = json.loads((out / f"seed{seed}" / "table1.json").read_text())["result"]["right"]
        for b in tasks.BENCHMARKS:
            alone = [right[f"{e}_expert"][b] for e in ("math", "code", "instruct")]
            assert right["oracle_expert"][b] == "".join("1" if "1" in column else "0" for column in zip(*alone))
    # Trained on the train split (and pairs on the preference split), measured on the test split, and nothing on another.
    assert splits == {"dataset": {"test"}, "mixed": {"train", "preference", "test"}}


def test_every_checkpoint_was_trained_from_what_its_recipe_says(tiny):
    """Phase 2 continues the right phase 1, and its pairs are the mistakes of the right router."""
    s = models.Settings(0, str(tiny[0]), "cpu")
    loaded = {name: models.load_model(models.folder(s) / f"{name}.pt", "", router=True) for name in ROUTERS}
    fingerprint = {name: run.fingerprint(model) for name, (model, _) in loaded.items()}
    assert len(set(fingerprint.values())) == len(fingerprint)
    for name, (phase1, sampler) in {"router": ("router_sft", "router_sft"), "fine_tuned": ("fine_tuned_sft", "router_sft"),
                                    "fused_full": ("fused_sft", "fused_sft"), "router_long": ("router_sft_long", "router_sft_long"),
                                    "fine_tuned_long": ("fine_tuned_sft_long", "router_sft"), "router_all": ("sft_all", "sft_all")}.items():
        recipe = loaded[name][1]["recipe"]
        assert (recipe["phase1"], recipe["sampler"]) == (fingerprint[phase1], fingerprint[sampler])
    assert loaded["reward"][1]["recipe"]["router_sft"] == fingerprint["router_sft"]
    assert loaded["fine_tuned"][1]["recipe"]["loss"] == loaded["fine_tuned_sft"][1]["recipe"]["loss"] == "plain"
    for name, (_, content) in loaded.items():  # and each log is of that loss
        log = [json.loads(line) for line in (models.folder(s) / f"{name}.log.jsonl").read_text().splitlines()]
        sft = [r for r in log if r.get("kind") == "sft"]
        if name in ("fine_tuned_sft", "fine_tuned", "fine_tuned_sft_long", "fine_tuned_long", "generalist", "double", "fine_tuned_sft_math"):
            assert all(abs(r["loss"] - r["loss_lm"]) < 1e-4 for r in sft)
        elif name in ("router_sft", "router", "fused_full"):
            assert sum(r["loss"] > r["loss_lm"] + 1e-3 for r in sft) > len(sft) / 2
        for r in log:
            if r.get("kind") == "pair" and name in ("router", "fine_tuned", "fused_full"):
                assert (r["bias"] == 0) == (name == "fine_tuned")


def test_phase_2_of_the_tables_is_the_ground_floor_s(tiny, tmp_path, capsys):
    """train_sft.py and train_cdpo.py accept the tables' checkpoints as theirs, and the tables theirs, with the same weights."""
    out, _, _ = tiny
    path = tmp_path / "seed0"
    path.mkdir()
    for name in ("base", *toy.EXPERTS):
        (path / f"{name}.pt").write_bytes((out / "seed0" / f"{name}.pt").read_bytes())
    where = ["--out", str(tmp_path), "--device", "cpu"]
    train_sft.main([*where, "--samples", "36", "--epochs", "2"])
    train_cdpo.main([*where, "--prompts", "24", "--epochs", "2"])
    for name in ("router_sft", "router"):
        ours, theirs = (run.load_model(p / "seed0" / f"{name}.pt", "", router=True)[0] for p in (out, tmp_path))
        assert run.fingerprint(ours) == run.fingerprint(theirs)
    capsys.readouterr()
    train_sft.main(["--out", str(out), "--device", "cpu", "--samples", "36", "--epochs", "2"])
    train_cdpo.main(["--out", str(out), "--device", "cpu", "--prompts", "24", "--epochs", "2"])
    s = models.Settings(0, str(tmp_path), "cpu")
    for name in ("router_sft", "router"):
        paper_train.train(s, name)
    assert capsys.readouterr().out.count("is there already") == 4
    with pytest.raises(run.UserError, match="lr = 0.0002, but 0.1 is asked"):
        paper_train.train(s, "router", replace(paper_train.TRAINING["router"], lr=0.1))


def test_a_second_call_computes_nothing_and_another_checkpoint_does(tiny, capsys):
    """Answers are kept a method at a time: another checkpoint makes only those anew that were decoded with it."""
    methods = [*(f"{e}_expert" for e in toy.EXPERTS), "generalist"]
    s = evaluate.Settings(out=str(tiny[0]), device="cpu", prompts=1, general=1)
    first = evaluate.evaluate(s, methods)
    assert "evaluating" in capsys.readouterr().err and set(first["right"]) == {*methods, "oracle_expert"}
    assert evaluate.evaluate(s, methods) == first and "evaluating" not in capsys.readouterr().err
    more = evaluate.evaluate(s, [*methods, "router"])
    assert set(more["right"]) == {*methods, "oracle_expert", "router"} and "0/6" in capsys.readouterr().err
    path = tiny[0] / "seed0" / "generalist.pt"
    content = torch.load(path, weights_only=True)
    changed = deepcopy(content)
    changed["model"]["lm.embed.weight"] += 1
    torch.save(changed, path)
    evaluate.evaluate(s, [*methods, "router"])
    assert "0/6" in capsys.readouterr().err                                       # one method on six benchmarks
    torch.save(content, path)


def test_tuning_and_an_ablation_on_the_tiny_run(tiny, tmp_path, monkeypatch, capsys):
    out, _, _ = tiny
    monkeypatch.setattr(tune, "TRAINED", {"router": ("fusionroute", tune.grid(lr=[1e-4])), "fused_sft": ("fused_sft", tune.grid(loss=["fused"]))})
    monkeypatch.setattr(tune, "REWARD", tune.grid(rejected=["experts"], prefixes=[1]))
    monkeypatch.setattr(tune, "LOOKAHEAD", tune.grid(lookahead=[2]))
    monkeypatch.setattr(tune, "MERGED", {"dare": tune.grid(drop=[0.5], scale=[0.3])})
    argv = ["--seed", "0", "--out", str(out), "--device", "cpu", "--prompts", "3"]
    paper_train.MEMORY.clear()
    splits = splits_read(tune.main, argv)
    assert splits["dataset"] == {"validation"} and splits["mixed"] <= {"train", "preference"}
    first = capsys.readouterr().out
    assert first.count("}: 0.0") == 5 and not (out / "seed0" / "tune.pt").exists()
    tune.main(argv)
    again = capsys.readouterr()
    assert "phase" not in again.err and "tune.pt" not in again.out and all(line in first for line in again.out.splitlines() if line.endswith(": 0.000"))

    monkeypatch.setattr(ablate, "RESULTS", tmp_path)
    cells = [ablate.Cell(name, {"routing_only": (name, ablate.ONLY_EXPERT)}, [(name, Sft(loss=name, **TINY[Sft]))], size=SIZE)
             for name in ("best", "co_llm_self")]
    monkeypatch.setattr(ablate, "ABLATIONS", {"routing": lambda: cells})
    splits = splits_read(ablate.main, ["routing", "--seeds", "0", "1", "--out", str(out), "--device", "cpu", "--prompts", "3"])
    assert splits["dataset"] == {"test"} and splits["mixed"] <= {"train"}
    content = json.loads((tmp_path / "ablation_routing.json").read_text())
    assert [r["label"] for r in content["rows"]] == ["best", "co_llm_self"] and content["meta"]["seeds"] == [0, 1]
    for seed, seconds in content["meta"]["run time in seconds"].items():  # base and experts, which both cells share, count once
        kept = json.loads((out / f"seed{seed}" / "ablation-routing.json").read_text())["result"]
        took = {what: x for cell in kept.values() for what, x in cell["seconds"].items()}
        assert len(took) == 4 + 2 * 2 and seconds == round(sum(took.values()))
    assert all(len(r["methods"]["routing_only"]["average"]) == 2 for r in content["rows"])


def test_the_other_family_and_another_size(tiny, tmp_path):
    """A run of Gemma-2's architecture is kept apart, is trained and loaded by the same scripts, and is not taken for a Llama."""
    s = models.Settings(0, str(tmp_path), "cpu", "gemma")
    models.ensure(s)
    for name in ("router_sft", "router"):
        paper_train.train(s, name)
    assert {p.name for p in (tmp_path / "gemma" / "seed0").glob("*.pt")} == {
        "base.pt", "math.pt", "code.pt", "instruct.pt", "router_sft.pt", "router.pt"}
    router, experts, _ = models.load_router(s, "router")
    assert router.lm.config.gelu and router.lm.config.window == 32 and all(e.config == router.lm.config for e in experts)
    assert router.lm.config.d_model == 24 and router.lm.config.head_dim == 32
    with pytest.raises(run.UserError, match="d_model = 24, but 48 is asked"):
        models.ensure(s, size=(48, 1))
    with pytest.raises(run.UserError, match="gap = 0.25, but 0.5 is asked"):
        models.ensure(s, gap=0.5)
    with pytest.raises(run.UserError, match="not a router"):
        models.load_model(tmp_path / "gemma" / "seed0" / "math.pt", "x", router=True)
    with pytest.raises(run.UserError, match="--family gemma"):
        models.load_router(models.Settings(1, str(tmp_path), "cpu", "gemma"), "router")


def test_quickstart_publishes_the_ground_floor_s_table(tiny, tmp_path, capsys):
    out, _, _ = tiny
    argv = ["--out", str(out), "--device", "cpu", "--prompts", "2", "--results", str(tmp_path)]
    with pytest.raises(run.UserError, match="two runs or more"):
        quickstart.main(argv)
    toy_evaluate.main([*argv[:-2], "--seed", "1"])
    capsys.readouterr()
    quickstart.main(argv)
    said, r = capsys.readouterr(), json.loads((tmp_path / "quickstart.json").read_text())
    assert "evaluating" not in said.err and "| fusionroute" in said.out  # the first, refused call has kept its evaluate.json
    assert set(r["seeds"]) == {"0", "1"} and r["seeds"]["0"] == {m: row["average"] for m, row in r["accuracy"].items()}
    assert r["example"].startswith("$ python decode.py") and set(r["accuracy"]["fusionroute"]) == {*tasks.BENCHMARKS, "average", "general"}
    path = Path(out) / "seed0" / "evaluate.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"meta": content["meta"] | {"made_from": {}}}))
    quickstart.main(argv)
    assert "evaluating" in capsys.readouterr().err  # of other weights: computed anew


# --- what a row is --------------------------------------------------------------------------------------------------------------------------


def test_what_each_row_decodes(monkeypatch):
    """Every method against its definition, token by token without caches, on models of which no two answer alike."""
    monkeypatch.setattr(evaluate, "MAX_NEW", 7)
    monkeypatch.setattr(evaluate, "LOOKAHEAD", {"lookahead": 3})
    end, prompts = tokenizer.END, [tokenizer.encode_prompt(x) for x in ("What is 38 mod 5?", "Write green.", "Mia has 14 pens.")]

    def model():
        gpt = models.new_gpt("llama", SIZE).eval().requires_grad_(False)
        for p in gpt.blocks.parameters():
            p.mul_(3)  # so that the answer depends on more than the last token
        return gpt

    def router(n):
        r = Router(model(), n).requires_grad_(False)
        torch.nn.init.normal_(r.W.weight)
        return r

    m = {name: model() for name in ("base", "math", "code", "instruct")}
    m |= {name: router({"reward": 1, "co_llm_self": 4}.get(name, 3)) for name in ROUTERS}
    m["experts"] = experts = [m["math"], m["code"], m["instruct"]]

    def greedy(logits_of):
        def answer(prompt):
            text = list(prompt)
            while len(text) < len(prompt) + 7:
                token = int(logits_of(torch.tensor([text])).argmax())
                if token == end:
                    break
                text.append(token)
            return text[len(prompt):]
        return answer

    def alone(gpt):
        return greedy(lambda ids: gpt(ids)[0][0, -1])

    def picked(name, choices):
        return greedy(lambda ids: choices[int(m[name](ids)[1][0, -1].argmax())](ids)[0][0, -1])

    def fused(name):
        return lambda prompt: naive_fused_greedy(m[name], experts, prompt, end, 7)[0]

    def own(ids):
        return m["router"](ids)[0][0, -1].log_softmax(-1)

    merge = baselines.merge
    definition = {
        "math_expert": alone(m["math"]), "code_expert": alone(m["code"]), "instruct_expert": alone(m["instruct"]),
        "sequence_selection": lambda p: baselines.sequence_selection(experts, m["reward"], [p], end, 7)[0],
        "collab": lambda p: baselines.collab(experts, m["reward"], [p], end, 7, 3)[0],
        "fine_tuned": alone(m["fine_tuned"].lm), "router": alone(m["router"].lm),
        "task_arithmetic_paper": alone(merge(m["base"], experts, 1.0)), "task_arithmetic": alone(merge(m["base"], experts, 0.5)),
        "dare_paper": alone(merge(m["base"], experts, 1.0, 0.9)), "dare": alone(merge(m["base"], experts, 0.5, 0.1)),
        "routing_only": picked("router", experts), "sft_only": fused("router_sft"), "fusionroute": fused("router"),
        "uniform_average": greedy(lambda ids: sum(e(ids)[0][0, -1].log_softmax(-1) for e in experts)),
        "co_llm": picked("co_llm", experts), "co_llm_self": picked("co_llm_self", [*experts, m["co_llm_self"].lm]),
        "fused_sft": fused("fused_sft"), "fused_full": fused("fused_full"),
        "fusionroute_long": fused("router_long"), "sft_long": fused("router_sft_long"), "fusionroute_all": fused("router_all"),
        "sft_all": fused("sft_all"), "fine_tuned_long": alone(m["fine_tuned_long"].lm),
        "fine_tuned_sft_long": alone(m["fine_tuned_sft_long"].lm), "generalist": alone(m["generalist"].lm),
        "double": alone(m["double"].lm),
        "two_fine_tuned": greedy(lambda ids: sum(m[f"fine_tuned_sft_{x}"](ids)[0][0, -1].log_softmax(-1) for x in ("long", "math"))),
        "router_mean": greedy(lambda ids: own(ids) + sum(e(ids)[0][0, -1].log_softmax(-1) for e in experts) / 3),
        **{f"router_{name}": greedy(lambda ids, e=m[name]: own(ids) + e(ids)[0][0, -1].log_softmax(-1)) for name in ("math", "code", "instruct")},
        "router_random": lambda p: baselines.all_read([m["router"], *experts], [p], end, 7, baselines.plus_random(0))[0],
        "selection_lm": lambda p: baselines.sequence_selection(experts, m["fine_tuned_long"].lm, [p], end, 7, **evaluate.JUDGE)[0],
        "collab_lm": lambda p: baselines.collab(experts, m["fine_tuned_long"].lm, [p], end, 7, 3, **evaluate.JUDGE)[0],
    }
    ways = evaluate.decoders(m, evaluate.METHODS)
    assert set(ways) == set(definition) == set(evaluate.METHODS) - {"oracle_expert"}
    assert ways.pop("router_random")(prompts[:1]) == [definition.pop("router_random")(prompts[0])]  # its coin goes on from row to row
    with torch.no_grad():
        expected = {method: [answer(p) for p in prompts] for method, answer in definition.items()}
    single = {method: expected[method] for method in expected if method not in ("sequence_selection", "selection_lm")}  # they repeat an expert's answers
    assert len({str(answers) for answers in single.values()}) == len(single)
    for method, decoder in ways.items():
        assert decoder(prompts) == expected[method], method


def test_tuning_judges_each_checkpoint_as_its_row_decodes(monkeypatch, tmp_path):
    """fused_sft and router by Eq. (1), fine_tuned by its language model, co_llm by its picks; co_llm_self may pick itself."""
    how, among = {}, {}

    class Named(str):
        lm = "itself"

    def traces(router, experts, **options):
        how[router], among[router] = options, experts
        return lambda prompts: []

    monkeypatch.setattr(tune, "train", lambda s, checkpoint, tried: Named(checkpoint))
    monkeypatch.setattr(evaluate, "traces", traces)
    monkeypatch.setattr(evaluate, "in_batches", lambda decoder, items: decoder(items) or [[]] * len(items))
    monkeypatch.setattr(models, "ensure", lambda s: None)
    monkeypatch.setattr(paper_train, "train", lambda s, name: None)
    monkeypatch.setattr(models, "load_router", lambda s, name: (None, [], None))
    monkeypatch.setattr(models, "load_model", lambda *given, **named: (None, {}))
    monkeypatch.setattr(models, "load_experts", lambda s, hint: [])
    run.prepare(toy.Settings(0, str(tmp_path)))
    tune.tune(tune.Settings(out=str(tmp_path), prompts=1), list(tune.TRAINED))
    assert how == {"router_sft": {}, "router": {}, "fused_sft": {}, "fine_tuned_sft": {"use_expert": False},
                   "fine_tuned": {"use_expert": False}, "co_llm": {"use_router": False}, "router_sft_long": {},
                   "fine_tuned_sft_long": {"use_expert": False}, "co_llm_self_long": {"use_router": False}, "fused_sft_long": {},
                   "generalist_long": {"use_expert": False}}
    assert among == {name: ["itself"] if name == "co_llm_self_long" else [] for name in how}


# --- how answers are counted ----------------------------------------------------------------------------------------------------------------


def test_in_batches_gives_each_item_its_own_answer():
    items = tasks.mixed("train", 60, Random(0))
    said = evaluate.in_batches(lambda prompts: [list(reversed(p)) for p in prompts], items, size=7)
    assert said == [list(reversed(tokenizer.encode_prompt(item.prompt))) for item in items]


def test_routing_shares_by_hand():
    """S and the shares count the answer's tokens, the prompt's not at all."""
    experts = [models.new_gpt("llama", SIZE).eval().requires_grad_(False) for _ in range(3)]
    items = tasks.mixed("train", 6, Random(0))
    answers = [batch.Trace(tokens=tokenizer.encode_answer(item.answer), pick=[k % 3] * len(tokenizer.encode_answer(item.answer))) for k, item in enumerate(items)]
    inside = []
    for item, trace in zip(items, answers):
        text = tokenizer.encode_prompt(item.prompt)
        for token in trace.tokens:
            inside.append(len({int(e(torch.tensor([text]))[0][0, -1].argmax()) for e in experts}) > 1)
            text.append(token)
    picks = [p for t in answers for p in t.pick]
    in_S = [p for p, s in zip(picks, inside) if s]
    got = evaluate.routing(experts, items, answers)
    assert 0 < len(in_S) < len(picks) and got["S_share"] == round(len(in_S) / len(picks), 4)
    assert got["all"] == {e: round(picks.count(i) / len(picks), 4) for i, e in enumerate(toy.EXPERTS)}
    assert got["S"] == {e: round(in_S.count(i) / len(in_S), 4) for i, e in enumerate(toy.EXPERTS)}


def test_what_an_ablation_counts(monkeypatch, tmp_path):
    """Averages, uncovered sub-skills and win rates by hand: fusionroute answers all but every second one right, the other none."""
    s = ablate.Settings(out=str(tmp_path), device="cpu", prompts=4)
    cell = ablate.Cell("x", {"fusionroute": ("router", {}), "fine_tuned": ("fine_tuned", ablate.ONLY_ROUTER)}, [])
    monkeypatch.setattr(models, "ensure", lambda *given: None)
    monkeypatch.setattr(run, "load", lambda *given: {"seconds": 1})
    monkeypatch.setattr(models, "load_router", lambda here, name: (name, [torch.nn.Linear(1, 1)], None))
    monkeypatch.setattr(evaluate, "traces", lambda router, experts, **how: router)
    held = {b: tasks.held_out(b, 0.25, 0) for b in tasks.BENCHMARKS}
    items = {b: tasks.dataset(b, "test", 4, Random(f"test {b} 0")) for b in evaluate.BENCHES}
    half = {id_: k % 2 == 0 for drawn in items.values() for k, id_ in enumerate(i.prompt for i in drawn)}

    class Said:
        def __init__(self, text):
            self.said = text

        def text(self):
            return self.said

    monkeypatch.setattr(evaluate, "in_batches", lambda who, drawn: [Said(i.answer if who == "router" and half[i.prompt] else "") for i in drawn])
    got = ablate.measure(s, cell)["methods"]
    right = [half[i.prompt] for b in tasks.BENCHMARKS for i in items[b] if i.skill in held[b]]
    assert got["fusionroute"]["average"] == 0.5 and got["fusionroute"]["general"] == 0.5 and got["fine_tuned"]["average"] == 0
    if right:
        assert got["fusionroute"]["uncovered"] == pytest.approx(np.mean(right), abs=1e-4)
    assert got["fusionroute"]["win_rate"] == 0.75 and "win_rate" not in got["fine_tuned"]  # two wins, two ties
    assert len(right) not in (0, 20)


def test_neighbours_by_hand():
    item = lambda prompt: tasks.Item("", "", "", prompt, "", "", None)
    train = [item("What is 38 mod 5?"), item("Write green and lamp.")]
    test = [item("What is 39 mod 5?"), item("What is 38 mod 5?"), item("What is 49 mod 5?"), item("Write green and river."), item("Write green lamp.")]
    assert evaluate.neighbours(test[:1], train) == 1 and evaluate.neighbours(test[2:3], train) == 0
    assert evaluate.neighbours(test, train) == 3 / 5  # a token less is not a token exchanged
    assert evaluate.space("toy-math500", "test", 300) < 300
