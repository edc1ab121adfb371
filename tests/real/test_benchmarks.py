"""Real text: the whole run on a tiny random model and made-up sets in the real ones' forms."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from docs.tools import real_text
from extra.real import benchmark_data, benchmark_table, benchmarks, smollm2
from extra.real.data import Encoder
from extra.real.loading import load_experts, load_tokenizer
from extra.real.modeling import FusionRoute
from tests.real.conftest import WORDS, lines, main, make, refused
from tests.real.test_smollm2 import in_this_process

IFEVAL = 2 if find_spec("lm_eval") else 0
SMALL = f"--expert 4 --router 2 --pairs 2 --valid 2 --tests 4 --answers 1 --ifeval {IFEVAL}"
SMALL = f"{SMALL} --max_new 4 --max_ifeval 5 --batch 4 --lr_w 0.1".split()


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with the eight files."""
    at = tmp_path_factory.mktemp("sets")
    gsm8k = [{"question": f"{i} and {i}?", "answer": f"<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"}
             for i in range(90)]  # fmt: skip
    lines(at / "gsm8k-train.jsonl", gsm8k[:80])
    lines(at / "gsm8k-test.jsonl", gsm8k[80:])
    numbers = [5, *range(11, 16), *range(511, 515), *range(601, 640)]
    mbpp = [
        {
            "task_id": i,
            "text": f"Add {i}.",
            "code": f"def f(x):\r\n  return x + {i}",
            "test_setup_code": "",
            "test_list": [f"assert f(1) == {i + 1}", f"assert f(2) == {i + 2}"],
        }
        for i in numbers
    ]
    lines(at / "mbpp.jsonl", mbpp)
    human = [
        {
            "prompt": f'def g{i}(x):\n    """Add {i}."""\n',
            "canonical_solution": f"    return x + {i}\n",
            "test": f"def check(f):\n    assert f(1) == {i + 1}\n",
            "entry_point": f"g{i}",
        }
        for i in range(5)
    ]
    lines(at / "humaneval.jsonl", human)
    made = lambda what, n: [
        {"instruction": f"{what} {i}", "input": "x" * (i % 2), "response": f"it is {i}"}
        for i in range(n)
    ]
    (at / "codegen-instruct.json").write_text(json.dumps(made("code", 30)))
    (at / "roleplay.json").write_text(json.dumps(made("play", 60)))
    seeds = [
        {"instruction": r["instruction"], "instances": [{"input": "", "output": r["response"]}]}
        for r in made("seed", 9)
    ]
    lines(at / "seed-tasks.jsonl", seeds)
    kinds = ["en:punctuation:no_comma", "en:length_constraints:number_words"]
    few = {"relation": "at least", "num_words": 3}
    asked = [
        {"prompt": f"Say {i}.", "instruction_id_list": kinds, "kwargs": [{}, few]} for i in range(5)
    ]
    asked[4] |= {"instruction_id_list": ["en:length_constraints:number_sentences"], "kwargs": [few]}
    lines(at / "ifeval.jsonl", asked)
    return at


@pytest.fixture(scope="module")
def done(sets, tmp_path_factory):
    """The whole run. Its folder; result.json is in it."""
    at = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(at)
        patch.setattr(benchmarks, "RESULT", at / "result.json")
        patch.setattr(smollm2, "measured", in_this_process)
        make("smollm2", max_position_embeddings=1024)
        AcceleratorState._reset_state(True)  # earlier tests in this process had no --bf16
        main("benchmarks", "--data", sets, "--out", "run", *SMALL)
    AcceleratorState._reset_state(True)
    return at


def test_no_sample_is_in_two_parts_and_each_set_keeps_its_own_split(sets):
    found = benchmark_data.samples(sets)
    prompts = [x["prompt"] for some in found.values() for x in some]
    assert len(prompts) == len(set(prompts)) > 200
    assert all("#### 1" in x["completion"] for x in found["math", "test"])  # 160 to 178
    numbers = {int(x["prompt"].split()[1][:-1]) for x in found["code", "test"][:5]}
    assert numbers == set(range(11, 16))
    assert not any("<<" in x["completion"] for x in found["math", "expert"])
    assert not any("\r" in x["completion"] for x in found["code", "expert"])
    some = benchmark_data.draw(found, "test", 4, ["code"])
    assert [x["set"] for x in some] == ["mbpp", "humaneval"] * 2


def test_right_answers_are_right_and_others_are_not(sets):
    found = benchmark_data.samples(sets)
    for domain in ("math", "code"):
        for x in found[domain, "test"]:
            assert benchmark_data.right(x, x["completion"])
            assert not benchmark_data.right(x, x["completion"].replace("return", "return 1 +")[:-1])
    x = next(x for x in found["code", "test"] if x["set"] == "humaneval")
    whole = x["prompt"].partition("\n\n")[2] + x["completion"]
    assert benchmark_data.right(x, whole) and benchmark_data.right(x, f"```python\n{whole}\n```")
    assert benchmark_data.final_number("#### 1,234") == 1234 != benchmark_data.final_number("1234")


def test_an_answer_to_ifeval_is_right_if_it_follows_all_instructions(sets):
    pytest.importorskip("lm_eval", reason='pip install "lm_eval[ifeval]"')
    asked = benchmark_data.samples(sets)["general", "asked"]
    assert len(asked) == 4  # one needs data that must be downloaded
    right = [benchmark_data.right(asked[0], x) for x in ("so it is", "so, it is", "it is", "")]
    assert right == [True, False, False, False]


@pytest.mark.parametrize(
    "code", ["while True: pass", "x = ' ' * (1 << 32)", "import sys; sys.exit(0)", "1 / 0", "f("]
)
def test_code_that_runs_away_or_leaves_early_does_not_pass(code):
    assert not benchmark_data.passes(code, seconds=1)
    assert benchmark_data.passes("assert 1 + 1 == 2")


def test_the_whole_run(done):
    result = json.loads((done / "result.json").read_text())
    assert set(result["rows"]) == {*benchmarks.ROWS, "oracle", "own"}
    for row, found in result["rows"].items():
        for measure in ("bits", "bits at T", "right"):
            mean, low, high = found[measure]["all"]
            assert low <= mean <= high
            per_domain = [found[measure][d][0] for d in benchmark_data.DOMAINS]
            assert mean == pytest.approx(sum(per_domain) / 3, abs=1e-3)
        if row != "oracle":
            assert found["T"] in benchmarks.TEMPERATURES
    assert result["rows"]["fusionroute"]["lead, bits"]["all"] == [0, 0, 0]
    gap, choosing = (result["rows"][row] for row in ("gap", "gap_routing_only"))
    difference = choosing["bits"]["code"][0] - gap["bits"]["code"][0]
    assert choosing["lead, bits"]["code"][0] == pytest.approx(difference, abs=1e-3)
    assert len(result["rows"]["fusionroute"]["seeds, bits"]) == 2 == len(result["pairs"])
    assert min(result["pairs"]) > 0 and result["sizes"]["all"]["problems"] == 12
    assert result["answers"]["tuned/humaneval"]["of"] == 1
    assert not IFEVAL or result["answers"]["base/ifeval"]["of"] == IFEVAL
    assert sum(result["facts"]["all"]["pick"][1]) == pytest.approx(1, abs=1e-3)


def test_without_experts_phase_2_is_dpo_and_co_llm_may_choose_itself(done):
    log = lambda name: [json.loads(x) for x in (done / f"run/seed0/{name}/log.jsonl").open()]
    pairs = [r for r in log("tuned") if r["kind"] == "pair"]
    assert pairs and all(r["bias"] == 0 for r in pairs)
    assert all(r["bias"] != 0 for r in log("router") if r["kind"] == "pair")
    for r in log("co_llm"):
        assert sum(v for k, v in r.items() if k.startswith("route_")) == pytest.approx(1, abs=1e-3)
    assert "route_itself" in log("co_llm")[0]
    logits, w = torch.zeros(1, 1, 4), torch.tensor([[[0.0, 0.0]]])
    start = torch.tensor([[[-1.0, -9.0]]])  # an expert's, and the router's as it started
    yes, first = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=torch.long)
    loss, _ = benchmarks.co_llm_loss(logits, w, first, yes, start, None, None)
    mixture = (math.exp(-1) + 1 / 4) / 2  # the router's own place is its own: 1/4 of four tokens
    assert float(loss) == pytest.approx(-math.log(1 / 4) - math.log(mixture))


def test_the_tables_of_the_page_have_every_row(done):
    result = json.loads((done / "result.json").read_text())
    assert set(real_text.NAMES) == set(result["rows"])
    assert len(real_text.bits(result).splitlines()) == 2 + len(real_text.NAMES)
    leads = {"tuned": [1, 0.5, 2], "co_llm": [1, 0.5, 2], "math": [0.1, -1, 1]}
    leads["code"] = [0.003, 0.002, 0.004]  # no larger than rounding
    for row, lead in leads.items():
        result["rows"][row]["lead, bits"]["all"] = lead
    said = {
        line.split("|")[1].strip(): line.split("|")[2]
        for line in real_text.claims(result).splitlines()
    }
    assert said["of the Fine-tuned Model"].strip() == "holds"
    assert said["the Co-LLM-style router is ahead of FusionRoute"].strip() == "does not"
    assert said["FusionRoute is ahead of the math expert"].strip() == "cannot be said"
    assert said["of the code expert"].strip() == "cannot be said"
    cell = {"right": 2, "of": 4, "interval": [0, 1], "which": "1010"}  # one alone, one FusionRoute
    result["answers"] |= {f"{method}/ifeval": cell for method in real_text.ANSWERING}
    result["answers"]["fusionroute/ifeval"] = cell | {"right": 3, "which": "1101"}
    fused, *others = real_text.answers(result).splitlines()[2:]
    assert "of 1 [0.0, 97.5]" in fused and "3 of 4" in fused and fused.split("|")[-2].strip() == ""
    assert all(row.split("|")[-2].strip() == "1, 2" for row in others)
    three = {k: v for k, v in result["answers"].items() if "ifeval" not in k}
    assert "IFEval" not in real_text.answers({"answers": three})
    assert real_text.picture(result).count("<circle") == 2 * len(real_text.NAMES) - 1
    assert real_text.facts(result).count(" and ") == 4 * 6  # two seeds
    said = real_text.filled(
        "<!--=rows/math/bits/all-->?<!--/--> <!--=facts/all/S%-->?<!--/-->", result
    )
    mean, low, high = result["rows"]["math"]["bits"]["all"]
    assert f"-->{mean:.3f} [{low:.3f}, {high:.3f}]<!--" in said and said.count("?") == 0


def test_the_page_says_what_the_results_say():
    result, page = json.loads(real_text.RESULT.read_text()), real_text.PAGE.read_text()
    assert real_text.filled(page, result) == page, "run python -m docs.tools.real_text"
    assert real_text.PICTURE.read_text() == real_text.picture(result)


def test_the_rows_are_the_models_that_they_say(done, monkeypatch):
    """Each row against transformers' own models and FusionRoute's own forward."""
    monkeypatch.chdir(done)
    s = benchmarks.Settings(data=".", out="run")
    paths = benchmarks.paths(s)
    models = dict(zip(paths, load_experts([*paths.items()], None)))
    from safetensors.torch import load_file

    at = {n: Path(p).parent / "W.safetensors" for n, p in paths.items()}
    Ws = {n: load_file(f)["weight"] for n, f in at.items() if f.exists()}
    assert set(Ws) == {f"{n} {i}" for n in benchmarks.ROUTERS for i in (0, 1)}
    Ws["co_llm 1"] = torch.zeros_like(Ws["co_llm 1"])
    Ws["co_llm 1"][3] = torch.ones(32)  # itself, or an expert
    encoder = Encoder(load_tokenizer("smollm2"))
    x = {"domain": "math", "set": "made", "prompt": "what is 2?", "completion": "the cat é"}
    temperatures = dict.fromkeys(benchmarks.ROWS, [1.0, 2.0])
    other = x | {"prompt": "3?", "completion": "a longer answer to it"}  # padding changes nothing
    record, _ = benchmarks.measured(models, Ws, [x, other], encoder, 2, temperatures)
    ids, learn = encoder.sample([{"role": "user", "content": x["prompt"]}], x["completion"])
    assert record["bytes"] == 10 and record["tokens"] == sum(learn)
    ids, n = torch.tensor([ids]), sum(learn)
    y = ids[0, -n:]

    def bits(logits, t=1.0):
        logp = (logits[0, -n - 1 : -1].float() / t).log_softmax(-1)
        return -float(logp[torch.arange(n), y].sum()) / torch.log(torch.tensor(2.0)).item()

    say = lambda name: models[name](input_ids=ids).logits[..., :WORDS].log_softmax(-1)
    with torch.no_grad():
        fused = FusionRoute.from_pretrained("run/seed1/router", dtype=torch.float32)
        expected = {"fusionroute 1": fused(ids).logits}
        fused.use_router = False
        expected["routing_only 1"] = fused(ids).logits
        phase1 = FusionRoute.from_pretrained("run/seed1/router_sft", dtype=torch.float32)
        expected["phase1 1"] = phase1(ids).logits
        expected |= {d: say(d) for d in (*benchmark_data.DOMAINS, "generalist")}
        expected["product"] = sum(say(d) for d in benchmark_data.DOMAINS)
        expected["two_tuned"] = say("tuned 0") + say("tuned 1")
        expected |= {m: say(m) for m in ("base", "router 1", "tuned 0")}
        gap = FusionRoute.from_pretrained("run/seed1/gap", dtype=torch.float32)
        assert [name for name, _ in gap.config.experts] == ["math", "general"]
        expected |= {"gap 1": gap(ids).logits, "gap_router 1": say("gap 1")}
        gap.use_router = False
        expected["gap_routing_only 1"] = gap(ids).logits
        choice = models["co_llm 1"]
        picked = benchmarks.read(choice, ids, torch.ones_like(ids), None, 0)[1] @ Ws["co_llm 1"].T
        all_four = torch.stack([*(say(d) for d in benchmark_data.DOMAINS), say("co_llm 1")], 2)
        best = picked.argmax(-1)[..., None, None].expand(-1, -1, 1, all_four.size(-1))
        expected["co_llm 1"] = all_four.gather(2, best)[:, :, 0]
    two = ids.expand(2, -1)
    hidden = benchmarks.read(choice, two, torch.ones_like(two), None, 1)[1]
    assert hidden.is_contiguous()  # else torch copies the head's weight for each row
    for row, logits in expected.items():
        for t in (1.0, 2.0):
            assert record["bits"][row][t] == pytest.approx(bits(logits, t), rel=1e-3), row
        right = int((logits[0, -n - 1 : -1].argmax(-1) == y).sum())
        assert record["right"][row] == right, row
    of_three = [say(d)[0, -n - 1 : -1][torch.arange(n), y] for d in benchmark_data.DOMAINS]
    oracle = -torch.stack(of_three).amax(0).sum() / torch.log(torch.tensor(2.0))
    assert record["bits"]["oracle"][1.0] == pytest.approx(float(oracle), rel=1e-3)


def test_the_figures_by_hand():
    """Two problems a domain: 3 bits on 1 byte and 1 on 3 are 4 bits on 4 bytes, not a mean of 3
    and a third; FusionRoute's are 8 on 4."""
    facts = {"S": [1.0, 0.0], "pick 0": [0, 2], "loss of the best expert": [0.25, 0.75]}
    made = lambda d, bits, n: {
        "domain": d, "bytes": n, "tokens": 2, "facts": facts,
        "bits": {"fusionroute 0": {"1.0": 2 * bits, "2.0": bits}}
        | {e: {"1.0": bits * (1 if e == d else 3)} for e in ("code", "general")}
        | {"math": {"1.0": bits}},
        "right": {"math": 1, "code": 1, "general": 1, "fusionroute 0": 2},
    }  # fmt: skip
    records = [made(d, *x) for d in benchmark_data.DOMAINS for x in ((3.0, 1), (1.0, 3))]
    found = benchmark_table.summary(records, {"fusionroute": 2.0, "math": 1.0})
    assert found["rows"]["math"]["bits"]["all"][0] == 1.0
    assert found["rows"]["fusionroute"]["bits"]["code"][0] == 2.0
    assert found["rows"]["fusionroute"]["bits at T"]["code"][0] == 1.0
    assert found["rows"]["math"]["lead, bits"]["all"][0] == -1.0  # FusionRoute has more bits
    assert found["rows"]["math"]["lead, right"]["all"][0] == 0.5
    assert found["rows"]["code"]["bits"]["general"][0] == 3.0
    assert found["rows"]["own"]["bits"]["all"][0] == 1.0  # in each domain its own expert's
    assert found["facts"]["all"]["S"] == 0.5
    assert found["facts"]["all"]["pick"] == [[0.5, 0.0, 0.5]]
    assert found["facts"]["all"]["loss of the best expert"]["Delta"] == 0.75


def test_exact_intervals_are_those_of_the_books():
    assert benchmark_table.exact(0, 100) == [0.0, 0.0362]
    assert benchmark_table.exact(5, 100) == [0.0164, 0.1128]
    assert benchmark_table.exact(10, 10) == [0.6915, 1.0]


def test_started_again_it_does_nothing_twice(done, sets, monkeypatch):
    monkeypatch.chdir(done)
    monkeypatch.setattr(benchmarks, "RESULT", done / "result.json")
    asked = []
    monkeypatch.setattr(smollm2, "measured", asked.append)
    main("benchmarks", "--data", sets, "--out", "run", *SMALL)
    assert not asked
    again = ("benchmarks", "--data", sets, "--out", "run", *SMALL, "--lr", 1)
    assert "run.json was made with arguments" in refused(main, *again)
    monkeypatch.setattr(benchmarks, "measured", lambda *_: asked.append(1))
    before = (done / "run" / "test.jsonl").read_text()
    main("benchmarks", "--data", sets, "--out", "run", *SMALL, "--step", "evaluate")
    assert not asked and (done / "run" / "test.jsonl").read_text() == before


def test_what_is_wrong_is_said_in_one_line(sets, tmp_path, monkeypatch):
    assert "must be a directory" in refused(main, "benchmarks", "--data", tmp_path / "none")
    out = ["--out", tmp_path / "out", "--step", "data"]
    assert "there is no file" in refused(main, "benchmarks", "--data", tmp_path, *out)
    assert "--step is" in refused(main, "benchmarks", "--data", sets, *out[:2], "--step", "pairs")
    for file in sets.iterdir():
        (tmp_path / file.name).write_text(file.read_text())
    lines(tmp_path / "mbpp.jsonl", [{"task_id": 1}])
    assert "mbpp.jsonl, row 1" in refused(main, "benchmarks", "--data", tmp_path, *out)
    monkeypatch.setattr(benchmark_data, "passes", lambda code: False)
    assert "use Linux" in refused(main, "benchmarks", "--data", sets, *out)
