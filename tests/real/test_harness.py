"""harness.py: log-likelihoods and answers against the definition, and a small task of our own through lm-evaluation-harness, offline."""

import json
from types import SimpleNamespace

import pytest
import torch

from extra.real import harness, own
from fusionroute import fuse, naive_fused_greedy
from tests.real.conftest import main, make_models, mistake

needs = pytest.mark.skipif(harness.MISSING is not None, reason="pip install lm-eval: the harness itself is not here")
CHOICE = """task: mine_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{prompt}}"
doc_to_choice: ["the cat", "what", "x"]
doc_to_target: 0
metric_list: [{metric: acc}]
"""
ANSWER = """task: mine_answer
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["<never>"], max_gen_toks: 8}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    torch.manual_seed(0)
    flags = make_models(tmp_path_factory.mktemp("models"))
    main("train_sft", *flags.sft, "--name", "router", "--lr_w", "0.3", "--batch", "2")
    return flags


@pytest.fixture(scope="module")
def lm(trained):
    setup = own.Setup(own.Flags(router=trained.decode[1], experts=trained.experts[1:]), torch.device("cpu"))
    return lambda method="fusionroute": harness.FusedLM(setup, *setup.models(), method)


def asked(*args):
    return [SimpleNamespace(args=args)]


@torch.no_grad()
def slow(lm, ids):
    """The fused distribution after some token ids, from the definition: log-probabilities (V,)."""
    ids = torch.tensor([ids])
    logits, w = lm.router(ids)
    expert = {"math": 0, "code": 1}.get(lm.method, int(w[0, -1].argmax()))
    other = lm.experts[expert](ids)[0][0, -1]
    logits = logits[0, -1]
    return {"fusionroute": fuse(logits, other), "router": logits}.get(lm.method, other).log_softmax(-1)


@pytest.mark.parametrize("method", ["fusionroute", "routing_only", "router", "math", "code"])
def test_log_likelihoods_are_those_of_the_definition(method, lm):
    lm = lm(method)
    for context, continuation in (("the cat", " what"), ("the ", "cat"), ("", "the"), ("</s>the", "x")):
        whole = lm.tokenizer.encode(context + continuation, add=not context.startswith("<"))
        start = len(whole) - len(lm.tokenizer.encode(context[len(context.rstrip()):] + continuation))
        steps = [slow(lm, whole[:t]) for t in range(start, len(whole))]
        expected = sum(float(logp[whole[start + k]]) for k, logp in enumerate(steps))
        ((logp, greedy),) = lm.loglikelihood(asked(context, continuation))
        assert logp == pytest.approx(expected, rel=1e-4) and start >= 1
        assert greedy == all(int(logp.argmax()) == whole[start + k] for k, logp in enumerate(steps))


def test_answers_are_those_of_the_definition_up_to_a_stop(lm):
    lm = lm()
    ids = lm.encode("what is")
    tokens, _ = naive_fused_greedy(lm.router, lm.experts, ids, lm.tokenizer.END, 12)
    whole = lm.tokenizer.decode(tokens)
    assert lm.generate("what is", {"max_gen_toks": 12}) == whole and len(whole) > 3
    assert lm.generate("what is", {"max_gen_toks": 12, "until": ["\ue000never", whole[2:]]}) == whole[:whole.find(whole[2:])]
    assert lm.generate("what is", {"max_gen_toks": 12, "until": whole[1]}) == whole[:whole.find(whole[1])]
    assert lm.generate("x" * 500, {"max_gen_toks": 12}) == lm.generate("x" * 52, {"max_gen_toks": 12})  # the end of it


@pytest.mark.parametrize("method", ["fusionroute", "math"])
def test_sampling_does_what_the_task_says(method, lm):
    """Asked twice, two answers; the likeliest token only, by top_k or top_p, is the greedy answer; do_sample false is, too."""
    lm = lm(method)
    say = lambda **how: lm.generate("what is", {"max_gen_toks": 12, **how})
    greedy = say()
    assert len({say(temperature=1.0) for _ in range(3)}) == 3 and greedy == say()
    for how in ({"top_k": 1}, {"top_p": 1e-6}, {"do_sample": False}):
        assert [say(temperature=1.0, **how) for _ in range(2)] == [greedy] * 2
    assert say(temperature=1.0, top_k=-1) != greedy  # all tokens


def test_a_rendered_template_is_not_begun_twice(lm):
    lm = lm()
    text = lm.apply_chat_template([{"role": "user", "content": "the"}])
    assert lm.encode(text) == lm.tokenizer.encode_prompt("the")


@needs
def test_rolling_windows_say_every_token_once(lm):
    lm = lm()
    text = "the cat " * 40                                                      # longer than the 64 tokens that the models read
    ids, seen, real = lm.tokenizer.encode(text), [], lm.score
    lm.score = lambda before, after: seen.extend(after) or real(before, after)
    (value,) = lm.loglikelihood_rolling(asked(text))
    assert seen == ids and len(ids) > 64 and value < 0


@needs
def test_a_task_of_our_own(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    data = tmp_path / "test.jsonl"
    ask = ["--router", *trained.decode[1:-2]]
    setup = own.Setup(own.Flags(router=trained.decode[1], experts=trained.experts[1:]), torch.device("cpu"))
    fused = harness.FusedLM(setup, *setup.models())
    docs = [{"prompt": p, "answer": fused.generate(p, {"max_gen_toks": 8}) if i else "no"} for i, p in enumerate(["the", "what?", "a cat"])]
    data.write_text("".join(json.dumps(d) + "\n" for d in docs))
    (tmp_path / "mine.yaml").write_text(CHOICE % data)
    (tmp_path / "mine2.yaml").write_text(ANSWER % data)
    main("harness", *ask, "--tasks", "mine_choice,mine_answer", "--include_path", tmp_path, "--output", tmp_path / "r.json")
    assert "mine_choice" in capsys.readouterr().out
    results = json.loads((tmp_path / "r.json").read_text())["results"]
    assert results["mine_answer"]["exact_match,none"] == pytest.approx(2 / 3)   # two of three answers are what the model says
    logp = [[fused.loglikelihood(asked(d["prompt"], f" {x}"))[0][0] for x in ("the cat", "what", "x")] for d in docs]
    right = [max(row) == row[0] for row in logp]
    assert results["mine_choice"]["acc,none"] == pytest.approx(sum(right) / 3)
    assert "there is no task nowhere" in mistake("harness", *ask, "--tasks", "nowhere", "--include_path", tmp_path)
    assert "--tasks is missing" in mistake("harness", *ask)


def test_without_the_harness_it_says_so(trained, monkeypatch):
    monkeypatch.setattr(harness, "MISSING", ImportError("no lm_eval"))
    assert "pip install lm-eval (no lm_eval)" in mistake("harness", "--router", *trained.decode[1:-2], "--tasks", "x")
