"""The command: whole tiny runs, which splits they read, the files, and a user's mistakes."""

import json
from dataclasses import replace

import numpy as np
import pytest

import train_cdpo
import train_sft
from decode import METHODS
from extra.paper import __main__ as command
from extra.paper import checkpoints, evaluate, methods, rows, table, train, tune
from extra.paper.measures import Row
from extra.paper.recipes import TRAINING, Cdpo, Sft
from tests.conftest import STEPS
from tests.paper.conftest import SIZE, small
from toy_experts import decode_batch, pairs, script, tasks
from toy_experts import evaluate as lesson_table
from toy_experts import experts as toy

ONE = (
    *(f"{e}_expert" for e in script.EXPERTS),
    "fusionroute",
    "sft_only",
    "fine_tuned_long",
    "fine_tuned",
    "sequence_selection",
    "collab",
    "generalist",
    "dare",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of two tiny seeds, trained by small recipes. Everything is as always otherwise."""
    patch = pytest.MonkeyPatch()
    patch.setattr(toy, "STEPS", STEPS)
    patch.setattr(checkpoints.ensure, "__defaults__", (0.25, SIZE))
    recipes = {name: small(recipe) for name, recipe in TRAINING.items()}
    for name, recipe in recipes.items():
        patch.setitem(TRAINING, name, recipe)
    for module in (train_sft, train_cdpo):
        patch.setattr(module, "BATCH", 8)
    for module in (methods, table, tune):
        patch.setattr(module, "MAX_NEW", 8)  # untrained models never stop
    patch.setattr(pairs, "MAX_NEW", 8)
    patch.setattr(table, "TIMED", 1)
    for name in [m for m in methods.METHODS if m not in ONE]:
        patch.delitem(methods.METHODS, name)
    out = tmp_path_factory.mktemp("out")
    for seed in (0, 1):
        s = checkpoints.Settings(seed, str(out), "cpu")
        checkpoints.ensure(s)
        train.train(s, TRAINING["router"])
    yield out, tmp_path_factory.mktemp("results")
    patch.undo()


def run(name, tiny, *more, seeds=("0", "1")):
    out, results = tiny
    flags = ["--out", str(out), "--results", str(results), "--device", "cpu", "--prompts", "2"]
    command.main([name, *flags, "--seeds", *seeds, *more])
    return json.loads((results / f"{name}.json").read_text())


@pytest.fixture
def splits(monkeypatch):
    """The splits that are drawn from: by dataset, and by mixed."""
    seen, dataset, mixed = {"dataset": set(), "mixed": set()}, tasks.dataset, tasks.mixed

    def draw_mixed(split, *rest):
        seen["mixed"].add(split)
        with pytest.MonkeyPatch.context() as patch:  # it calls dataset itself
            patch.setattr(tasks, "dataset", dataset)
            return mixed(split, *rest)

    def draw_dataset(bench, split, *rest):
        seen["dataset"].add(split)
        return dataset(bench, split, *rest)

    monkeypatch.setattr(tasks, "dataset", draw_dataset)
    monkeypatch.setattr(tasks, "mixed", draw_mixed)
    return seen


def test_the_whole_table(tiny, splits):
    """Trained on the train split (pairs: preference), measured on the test split, no other."""
    r = run("table1", tiny, "--general", "5")
    assert splits == {"dataset": {"test"}, "mixed": {"train", "preference", "test"}}
    assert set(r["llama"]) == set(ONE) and r["meta"]["llama"]["seeds"] == [0, 1]
    for row in r["llama"].values():
        assert set(row) == {*evaluate.BENCHES, "average", "covered", "uncovered"}
        means = np.mean([row[b] for b in tasks.BENCHMARKS], 0)
        assert row["average"] == pytest.approx(means, abs=1e-4)
    win = json.loads((tiny[1] / "winrate.json").read_text())["llama"]["sft_only"]
    assert len(win) == 2 and all(10 * x == round(10 * x) for x in win)  # of 5 prompts
    s = checkpoints.Settings(0, str(tiny[0]), "cpu")
    print_of = lambda name: script.fingerprint(checkpoints.load(s, name, router=True)[0])
    for name, (first, sampler) in {
        "router": ("router_sft",) * 2,
        "fine_tuned": ("fine_tuned_sft", "router_sft"),
    }.items():
        recipe = checkpoints.load(s, name, router=True)[1]["recipe"]
        assert recipe["phase1"] == print_of(first) and recipe["models"][-1] == print_of(sampler)


def test_the_tables_routers_are_the_lesson_s(tiny, tmp_path):
    """train_sft.py and train_cdpo.py make the same weights, and accept the tables' as theirs."""
    out = tiny[0]
    (tmp_path / "seed0").mkdir()
    for name in ("base", *script.EXPERTS):
        content = (out / "seed0" / f"{name}.pt").read_bytes()
        (tmp_path / "seed0" / f"{name}.pt").write_bytes(content)
    for folder in (tmp_path, out):
        where = ["--out", str(folder), "--device", "cpu", "--epochs", "2"]
        train_sft.main([*where, "--samples", "36"])
        train_cdpo.main([*where, "--prompts", "24"])
    for name in ("router_sft", "router"):
        both = [
            script.load_model(p / "seed0" / f"{name}.pt", "", router=True)[0]
            for p in (out, tmp_path)
        ]
        assert len(set(map(script.fingerprint, both))) == 1


def test_tuning(tiny, splits, monkeypatch):
    """Each candidate's score on validation prompts is kept; the best mean over the seeds wins."""
    monkeypatch.setattr(tune, "TRAINED", {"router": ({}, tune.grid(lr=[1e-4, 2e-4]))})
    monkeypatch.setattr(tune, "REWARD", tune.grid(rejected=["experts"], prefixes=[1]))
    monkeypatch.setattr(tune, "LOOKAHEAD", tune.grid(lookahead=[2]))
    monkeypatch.setattr(tune, "MERGED", {"dare": tune.grid(drop=[0.5], scale=[0.3])})
    scores, trained = iter(range(100)), []
    judged = lambda s, decoder, problems: (
        trained.append((s.seed, decoder))
        or {"average": {0: 0.1, 1: -0.3}.get(s.seed) * next(scores)}
    )
    monkeypatch.setattr(evaluate, "accuracy", judged)
    r = run("tuning", tiny)["llama"]
    assert splits["dataset"] == {"validation"} and splits["mixed"] <= {"train", "preference"}
    assert set(r) == {"router", "sequence_selection", "collab", "dare"}
    assert [t["settings"] for t in r["router"]["tried"]] == [{"lr": 1e-4}, {"lr": 2e-4}]
    assert r["router"]["tried"][1]["accuracy"] == pytest.approx([0.1, -0.3 * 6])
    assert r["router"]["won"] == {"lr": 1e-4} and len(trained) == 10
    run("tuning", tiny)
    assert len(trained) == 10  # nothing is computed twice


def test_an_ablation_and_an_open_question(tiny, splits, monkeypatch):
    first = small(Sft())
    changed = replace(first, changed="x 4")
    tables = {
        "ablation_data": [
            ("a", "fusionroute", small(Cdpo()), {}),
            ("a", "fine_tuned", first, {"use_expert": False}),
        ],
        "open_data": [("b", "sampled", first, {"temperature": 1.0}), ("c", "there", changed, {})],
    }
    where = "", 0.25, SIZE
    made = {n: lambda of=of: [Row(*row, where=where) for row in of] for n, of in tables.items()}
    monkeypatch.setattr(rows, "VARIATIONS", made)
    named = lambda r: [(x["label"], x["line"]) for x in r["rows"]]
    r = run("ablation_data", tiny)
    assert named(r) == [("a", "fusionroute"), ("a", "fine_tuned")]
    assert all(len(r["rows"][1][x]) == 2 for x in ("average", "general", "uncovered"))
    r = run("open_data", tiny)
    assert named(r) == [("b", "sampled"), ("c", "there")]
    assert splits["dataset"] == {"test"} and splits["mixed"] <= {"train", "preference"}
    assert r["meta"]["seeds"] == [0, 1] and r["meta"]["prompts per benchmark"] == 2


def test_delta_and_the_lesson_s_table(tiny, splits, monkeypatch):
    monkeypatch.setattr("extra.paper.delta.Cdpo", lambda: small(Cdpo()))
    groups = run("delta", tiny)["groups"]
    assert set(groups) == {"covered", "uncovered", "general"}
    for both in groups.values():
        assert all(len(row["Delta"]) == 2 for row in both.values())
    short = lambda *given, **how: decode_batch.answers(*given, max_new=6, **how)
    monkeypatch.setattr(lesson_table, "answers", short)
    methods = run("quickstart", tiny)["methods"]
    assert splits["dataset"] == {"test"} and list(methods) == list(METHODS)
    for row in methods.values():
        assert row["average"] == row["seeds"][:1] and len(row["seeds"]) == 2
        mean = np.mean([row[b] for b in tasks.BENCHMARKS])
        assert row["average"] == pytest.approx([mean], abs=1e-3)


def test_the_other_family_is_kept_apart(tmp_path, monkeypatch):
    """Gemma-2's architecture: trained and loaded by the same functions, not taken for a Llama."""
    monkeypatch.setattr(toy, "STEPS", STEPS)
    s = checkpoints.Settings(0, str(tmp_path), "cpu", "gemma", prompts=2)
    checkpoints.ensure(s, size=SIZE)
    train.train(s, small(Cdpo()))
    folder = tmp_path / "gemma" / "seed0"
    assert len(list(folder.glob("*.pt"))) == 6
    router, experts, _ = train.load_router(s, small(Cdpo()))
    assert router.lm.config.window == 32 and all(e.config == router.lm.config for e in experts)
    with pytest.raises(script.UserError, match="size"):
        checkpoints.ensure(s, size=(48, 1))
    with pytest.raises(script.UserError, match="gap = 0.25, but 0.5 is asked"):
        checkpoints.ensure(s, gap=0.5, size=SIZE)
    with pytest.raises(script.UserError, match="--family gemma"):
        checkpoints.load(replace(s, seed=1), "router", router=True)


def test_a_family_s_results_leave_the_other_s_alone(tmp_path):
    path = tmp_path / "table1.json"
    command.write_family(path, "llama", [1], {"seeds": [0]})
    command.write_family(path, "gemma", [2], {"seeds": [1]})
    command.write_family(path, "llama", [3], {"seeds": [2]})
    metas = {"llama": {"seeds": [2]}, "gemma": {"seeds": [1]}}
    assert json.loads(path.read_text()) == {"llama": [3], "gemma": [2], "meta": metas}
    path.write_text("{")
    with pytest.raises(script.UserError, match="damaged"):
        command.write_family(path, "gemma", [2], {})
    assert path.read_text() == "{"


def test_what_is_kept_is_of_the_same_header(tmp_path):
    path, counted = tmp_path / "x.json", []
    compute = lambda: counted.append(1) or {"found": len(counted)}
    for header, key, expected in (("a", [1], 1), ("a", [1], 1), ("a", [2], 2), ("b", [1], 3)):
        assert checkpoints.keep(path, header)(key, compute) == {"found": expected}
    path.write_text("{")
    assert checkpoints.keep(path, "b")([1], compute) == {"found": 4}


def test_mistakes(tmp_path):
    def refused(*argv):
        with pytest.raises(script.UserError) as caught:
            command.main([*argv, "--out", str(tmp_path)])
        return str(caught.value)

    assert "two or more" in refused("table1", "--seeds", "1", "1")
    assert "two or more" in refused("tuning", "--seeds", "1")
    assert "--rest is 3" in refused("table1", "--seeds", "0", "1", "--rest", "3")
    assert "--prompts" in refused("table1", "--prompts", "0")
    assert "llama, gemma" in refused("table1", "--family", "bert")
    assert "open_data" in refused("everything")
    assert not list(tmp_path.iterdir())
