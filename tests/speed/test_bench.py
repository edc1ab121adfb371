"""bench.py: the page says what the file says, what is compared computes the same, and the counting counts."""

import json

import pytest
import torch

from extra.common import FAMILIES, RESULTS, fill
from extra.speed import bench, fast, passes, runs, training
from extra.speed import equal as same
from extra.speed.block import Lookup, block_decode
from extra.speed.equal import PAGE
from extra.speed.page import COMMAND, FORMULA, PAGES, TARGETS, equal_lines, figures, head, targets
from fusionroute import Router
from model import GPT, GPTConfig, generate
from tests.speed.conftest import mistake
from toy_experts import run, tokenizer
from toy_experts.batch import decode_batch

CONFIG = GPTConfig(vocab_size=tokenizer.VOCAB_SIZE, d_model=16, n_layer=2, n_head=4, n_kv_head=2, head_dim=4, d_ff=24, max_len=160)
PROMPT = tokenizer.encode_prompt("What is 38 mod 5?")


def gpt(dtype=torch.float32):
    return GPT(CONFIG).to(dtype).eval().requires_grad_(False)


@pytest.fixture
def models():
    router = Router(gpt(), 3)
    torch.nn.init.normal_(router.W.weight)
    return router.requires_grad_(False), [gpt() for _ in range(3)]


@pytest.fixture
def result():
    return json.loads((RESULTS / "bench.json").read_text())


@pytest.mark.parametrize("name, block", [("bench", "figures"), ("bench-gemma", "gemma")])
def test_the_page_says_what_the_file_says(name, block):
    result = json.loads((RESULTS / f"{name}.json").read_text())
    page = PAGE.read_text()
    assert fill(page, {block: PAGES[block](result)}, COMMAND[block]) == page
    assert figures(result).startswith(head(result["meta"]))  # also of a file without large models
    changed = json.loads(json.dumps(result))
    changed["decode"]["toy"]["methods"]["block"]["over_expert"]["median"] += 0.1
    assert PAGES[block](changed) != PAGES[block](result)
    with pytest.raises(run.UserError, match="once each"):
        fill("no markers", {block: ""}, COMMAND[block])


def test_the_file_has_what_was_asked_for(result):
    for size in ("toy", "large"):
        assert {"block_over_expert", "over_hf", "block_16_over_2_experts"} <= set(result["decode"][size])
        assert result["decode"][size]["methods"]["block"]["over_expert"]["median"] == result["decode"][size]["block_over_expert"]
    for name in ("phase1_over_sft", "phase2_over_dpo"):
        assert set(result["training"][name]) == {"1", "3", "8", "16"}
    assert result["meta"]["trained"] and result["meta"]["seconds"] < 300 and result["meta"]["lookahead"] > 0
    assert all(name in figures(result) for name, *_ in TARGETS)
    for d in result["decode"].values():
        used = "{}, {}, {:.2g}".format(*d["block"], result["meta"]["sure"])
        assert used in d["choices"]  # what is used stands among what it was chosen from
        assert d["block_16_over_2_experts"] == d["experts"]["other picks for each prompt"]["16"]["block_over_2_experts"]["median"]
        assert d["over_hf"] == d["methods"]["expert"]["over_hf"]["median"]
    training = result["training"]
    for name in ("phase1_over_sft", "phase2_over_dpo"):
        assert all(training[name][n] == training[f"{name}_spread"][n]["median"] for n in "138")


def test_a_missed_target_is_called_missed(result):
    for name, path, sign, asked in TARGETS:
        for value, word in ((asked, "reached"), (asked - 1e-5 * sign, "**missed**")):
            at = changed = json.loads(json.dumps(result))
            for key in path.split("/"):
                at = at[key]
            at["median"] = value
            (line,) = [line for line in targets(changed).splitlines() if f"| {name} " in line]
            assert word in line


@pytest.fixture
def equal():
    return json.loads((RESULTS / "equality.json").read_text())


def test_every_test_prompt_of_five_seeds_is_answered_the_same(equal):
    """In blocks as in the plain loop, in both families."""
    table = json.loads((RESULTS / "table1.json").read_text())["meta"]
    for family, part in equal.items():
        assert len(part["seeds"]) >= 5
        for e in part["seeds"].values():
            assert e["prompts"] == 5 * table[family]["prompts per benchmark"] + table[family]["general prompts"]
            assert e["different"] == 0 and set(e["different_in"].values()) == {0}
            assert all(gap > 0 for gap in e["least_gap"]) and all(0 < x < 1e-3 for x in e["largest_rounding"])
    assert set(equal) == set(FAMILIES)
    page = PAGE.read_text()
    assert fill(page, {"equality": equal_lines(equal)}, COMMAND["equality"]) == page


def test_equality_is_counted(models, monkeypatch):
    """A block decoder that writes one wrong token, and then one with a wrong pick, must be found out."""
    monkeypatch.setattr(same, "known_texts", lambda: None)
    monkeypatch.setattr(same, "MAX_NEW", 10)
    e = same.equality(*models, 0, 2, 3)
    assert e["prompts"] == 13 and e["different"] == 0 and e["tokens"] > 100 and min(e["least_gap"]) > 0
    assert 0 < max(e["largest_rounding"]) < 1e-3
    right, calls = block_decode, []

    def wrong(*args):
        trace = right(*args)
        calls.append(None)
        if len(calls) == 3:
            trace.tokens[0] += 1
        if len(calls) == 7:
            trace.pick[0] += 1
        return trace

    monkeypatch.setattr(same, "block_decode", wrong)
    e = same.equality(*models, 0, 2, 3)
    assert e["different"] == 2 and e["different_in"] == {"tokens": 1, "pick": 1, "expert_choice": 0}
    calls.clear()
    answers, other = same.in_bfloat16(*models, 0, n=1)
    assert answers == 6 and other >= 1 and models[0].W.weight.dtype == torch.float32  # rounded were copies


def test_what_decides_a_token(models):
    """same.values, in one pass or token by token, must give each token as its argmax and each pick as that of w."""
    router, experts = models
    (trace,) = decode_batch(router, experts, [PROMPT], 12)
    for at_once in (True, False):
        final, w = same.values(router, experts, PROMPT, trace, at_once)
        assert final.argmax(-1).tolist() == trace.tokens and w.argmax(-1).tolist() == trace.pick


def test_a_pass_of_one_row_is_half_of_the_operations():
    lm = gpt()
    quick = passes.calls_a_pass(lm)
    assert quick < 0.6 * passes.calls_a_pass(lm, passes.WAYS["model.py"])
    assert {name: x["operations"] for name, x in passes.one_pass(lm, 1).items()} == {"fast.py": quick, "model.py": passes.calls_a_pass(
        lm, passes.WAYS["model.py"])}


def test_a_grown_model_computes_the_same():
    small = gpt(torch.float64)
    for p in small.parameters():
        p.data += 0.1 * torch.randn_like(p)  # norms away from 1
    big = bench.grow(small, 3, 5).double()
    ids = torch.randint(0, CONFIG.vocab_size, (2, 30))
    torch.testing.assert_close(big(ids)[0], small(ids)[0], rtol=1e-5, atol=1e-6)  # the rotary table is float32
    assert sum(p.numel() for p in big.parameters()) > 5 * sum(p.numel() for p in small.parameters())
    again = bench.grow(gpt(torch.float64), 3, 5, big)
    assert torch.equal(again.blocks[4].wq.weight, big.blocks[4].wq.weight)          # random weights are taken over,
    assert not torch.equal(again.blocks[0].wq.weight, big.blocks[0].wq.weight)      # the model's own are not,
    assert again.blocks[4].wq.weight.data_ptr() != big.blocks[4].wq.weight.data_ptr()  # and no memory is shared


def test_a_grown_router_picks_the_same(models):
    router, experts = models
    big = bench.grow_router(router, 2, 3, bench.grow(router.lm, 2, 3))
    (a,), (b,) = (decode_batch(r, experts, [PROMPT], 12) for r in (router, big))
    assert a.tokens == b.tokens and a.pick == b.pick and len(set(a.pick)) > 1


def test_more_experts(models):
    """noise 0: the same picks with any number of experts. Otherwise: the same two experts' words, and picks beyond the first two."""
    router, experts = models
    (two,) = decode_batch(*bench.more_experts(router, experts, 2, 0.0), [PROMPT], 40)
    (idle,) = decode_batch(*bench.more_experts(router, experts, 16, 0.0), [PROMPT], 40)
    assert idle.tokens == two.tokens and idle.pick == two.pick and set(two.pick) == {0, 1}
    (spread,) = decode_batch(*bench.more_experts(router, experts, 16, 1.0), [PROMPT], 40)
    assert len(set(spread.pick)) > 2
    many, crowd = bench.more_experts(router, experts, 6, 0.0)
    turns = [decode_batch(r, crowd, [PROMPT], 40)[0] for r in bench.take_turns(many)]
    assert len(turns) == 3
    for k, turn in enumerate(turns):  # the same words from other experts
        assert turn.tokens == two.tokens and turn.pick == [2 * k + i for i in two.pick]


def test_a_crowd_is_measured_with_all_its_experts(models, monkeypatch):
    """Of 4 experts all are picked where prompts take turns, two where picks are as trained."""
    monkeypatch.setattr(bench, "MAX_NEW", 16)
    prompts = [(PROMPT + [5 + i], "toy-gsm8k") for i in range(8)]
    kinds = ("picks as trained", "other picks for each prompt")
    trained, turns = bench.crowd_section(*models, None, prompts, 1, (2, 4), kinds).values()
    assert trained[2]["picked"] == trained[4]["picked"] == turns[2]["picked"] == 2 and turns[4]["picked"] == 4
    assert trained[2]["block_over_2_experts"]["median"] == 1


def test_every_decoder_of_a_limit_says_the_same(models):
    """With all experts equal to the router, alone, plain, block, guessed and all-experts decoding write one text."""
    router, _ = models
    experts = [router.lm] * 3
    lookup = Lookup([PROMPT + generate(router.lm, [PROMPT], 20, tokenizer.END)[0]])
    tokens = decode_batch(router, experts, [PROMPT], bench.MAX_NEW)[0].tokens
    assert block_decode(router, experts, PROMPT, tokenizer.END, bench.MAX_NEW, 8, lookup).tokens == tokens
    assert bench.guessed(router, PROMPT, lookup, 8, bench.END, bench.MAX_NEW)[0] == bench.all_experts(router, experts, PROMPT) == tokens


def test_the_decoders_that_are_compared(models, monkeypatch):
    """Every entry of `decoders` counts the tokens that its answer has, the end token included; what is handed in counts as ours do,
    and gets models that read by the fast pass."""
    monkeypatch.setattr(bench, "MAX_NEW", 12)
    router, _ = models
    experts, reward = [router.lm] * 3, Router(gpt(), 1)
    n = len(decode_batch(router, experts, [PROMPT])[0].tokens)           # of 96 at most: what decode.py's loop and the batch write
    short = min(n, 12)
    given = []

    def others(e, r):
        given.extend([*e, r])
        return {"ours again": lambda p: generate(e[0], [p], 12, tokenizer.END)[0]}

    runs = bench.decoders(router, experts, reward, {"b": 1}, None, others=others)
    for name, answer in runs.items():
        assert answer(PROMPT, "b") == (n if name in ("plain_in_a_batch", "plain_by_model.py") else short), name
    assert "ours again" in runs and len(given) == 4 and all(isinstance(m, fast.Fast) for m in given)
    assert set(runs) - {"ours again"} <= set(FORMULA)


def test_passes_are_counted(models):
    """The watch on the models, the counters of block decoding and the formula of plain decoding agree."""
    router, experts = models
    watched = {"router": [router.lm], "experts": experts}
    widths, done = passes.watch(watched)
    trace = block_decode(router, experts, PROMPT, tokenizer.END, 30, 8)
    done()
    assert len(widths["router"]) == trace.router_passes and len(widths["experts"]) == trace.expert_passes
    c = bench.counted([trace])
    assert c["router_passes"] * len(trace.tokens) == pytest.approx(trace.router_passes, abs=0.01)
    assert c["tokens_a_block"] * trace.blocks == pytest.approx(len(trace.tokens), abs=0.1)
    block_decode(router, experts, PROMPT, tokenizer.END, 30, 8)
    assert len(widths["router"]) == trace.router_passes  # the watch has ended


def test_the_cost_model_interpolates():
    c = dict(zip(passes.WIDTHS, (1.0, 1.0, 2.0, 3.0, 3.0, 5.0, 9.0, 17.0)))
    assert passes.cost([1, 2, 3], c) == 4.0 and passes.cost([12], c) == 4.0 and passes.cost([128], c) == 34.0 and passes.cost([], c) == 0


def test_contest_takes_turns():
    order = []
    seconds = training.contest({name: lambda name=name: order.append(name) for name in "abc"}, 4)
    assert "".join(order) == "abc" + "abc" + "bca" + "cab" + "abc" and {len(x) for x in seconds.values()} == {4}
    assert training.over([2.0, 9.0, 4.0], [1.0, 3.0, 1.0]) == {"median": 3.0, "low": 2.0, "high": 4.0}


def test_training_steps_train_and_the_plain_loop_agrees():
    """Every kind of step moves its weights; W moves in phase 1 only; our attention and torch's give the same loss gradient."""
    steps = training.Steps(gpt(), torch.device("cpu"), batch=4, T=8, experts=(3,))
    for phase, n, moves in ((1, 0, None), (2, 0, None), (2, 3, False), (1, 3, True)):
        m, *_ = steps.models[n]
        before = [p.detach().clone() for p in m.parameters()]
        W = m.W.weight.detach().clone() if n else None
        steps(phase, n)
        assert any(not torch.equal(a, b) for a, b in zip(before, m.parameters()))
        assert n == 0 or (not torch.equal(W, m.W.weight)) == moves
    assert set(steps.log[-1]) >= {"loss", "loss_lm", "loss_expert", "informative", "route_0", "route_2"} and steps.log[0].keys() == {"loss"}
    a, b = (training.Steps(gpt_seeded(), torch.device("cpu"), batch=4, T=8, experts=()) for _ in range(2))
    b.ids, b.take = a.ids, lambda batch=a.take(): batch
    a.take = b.take
    a(1, 0)
    b.plain_loop()
    for p, q in zip(a.models[0][0].parameters(), b.models[0][0].parameters()):
        torch.testing.assert_close(torch.nn.functional.normalize(p.grad.flatten(), dim=0),  # ours is clipped
                                   torch.nn.functional.normalize(q.grad.flatten(), dim=0), rtol=1e-3, atol=1e-4)


def gpt_seeded():
    torch.manual_seed(3)
    return GPT(CONFIG)


def test_utilisation_runs_without_a_gpu():
    r = training.utilisation(torch.device("cpu"), CONFIG, batch=2, T=8, steps=2, compiled=False)
    assert r["parameters"] == sum(p.numel() for p in GPT(CONFIG).parameters()) and 0 < r["of_measured_matmul"] < 1 and r["mfu"] is None


@pytest.mark.skipif(not bench.transformers, reason="transformers is optional")
@pytest.mark.parametrize("family", FAMILIES)
def test_hugging_face_says_the_same(family):
    lm = (gpt() if family == "llama" else runs.new_gpt(family)).eval().requires_grad_(False)
    for p in lm.parameters():
        p.data += 0.1 * torch.randn_like(p)
    hf = bench.to_hf(lm)
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        torch.testing.assert_close(hf(ids).logits, lm(ids)[0], rtol=1e-4, atol=1e-4)
    said = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)[0, len(PROMPT):].tolist()
    assert [t for t in said if t != tokenizer.END] == generate(lm, [PROMPT], 20, tokenizer.END)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_of_either_family_is_loaded(family, tmp_path):
    s = bench.Settings(out=str(tmp_path), family=family)
    place = runs.folder(s, 7)
    assert place == tmp_path / ("gemma" if family == "gemma" else "") / "seed7"
    place.mkdir(parents=True)
    models = {name: runs.new_gpt(family) for name in ("math", "code", "instruct")}
    names = {name: run.fingerprint(m) for name, m in models.items()}
    router = Router(runs.new_gpt(family), 3)
    for name, m in models.items():
        run.save_model(place / f"{name}.pt", m, {}, 0.0)
    run.save_model(place / "router.pt", router, {}, 0.0, names)
    again, experts = runs.load(s, 7)
    assert torch.equal(again.lm.embed.weight, router.lm.embed.weight) and not again.W.weight.requires_grad
    assert [run.fingerprint(e) for e in experts] == list(names.values()) and type(experts[0].config) is type(router.lm.config)
    run.save_model(place / "code.pt", runs.new_gpt(family), {}, 0.0)     # another expert than the router was trained with
    with pytest.raises(run.UserError, match="code|experts"):
        runs.load(s, 7)
    (place / "math.pt").write_bytes(b"no checkpoint")
    with pytest.raises(run.UserError, match="math.pt"):
        runs.load(s, 7)


def test_random_models_where_there_is_no_run(tmp_path, capsys):
    router, experts, reward, trained = bench.toy_models(bench.Settings(out=str(tmp_path)), torch.device("cpu"))
    assert not trained and len(experts) == 3 and "no trained run" in capsys.readouterr().out
    assert router.W.out_features == 3 and reward.W.out_features == 1 and set(FORMULA) >= {"plain", "block"}


def test_mistakes(tmp_path):
    bench, equal = "extra.speed.bench", "extra.speed.equal"
    assert "--seed is -1" in mistake(bench, "--seed", "-1")
    assert "--rounds" in mistake(bench, "--rounds", "0")
    assert "no run in" in mistake(equal, "--out", tmp_path) and "--family" in mistake(equal, "--family", "bert")
    assert "--family" in mistake(bench, "--family", "bert")
