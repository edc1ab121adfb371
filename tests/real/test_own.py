"""The scripts of extra/real on small random Llamas and Gemma-2s with a tokenizer and data of their own."""

import json
import math
import os
import sys
import weakref
from dataclasses import replace

import pytest
import torch

from extra.common import fingerprints
from extra.gpt import GPT, Router
from extra.real import data, own, pretrained, scores, train_cdpo, train_sft
from extra.real.pretrained_tokenizer import Tokenizer
from fusionroute import naive_fused_greedy
from tests.real.conftest import GEMMA, LLAMA, PAIRS, SFT, SIZES, lines, main, mistake, refused


def log(flags, name):
    return [json.loads(line) for line in (flags.at / f"out/seed0/{name}.log.jsonl").read_text().splitlines()]


def load(path):
    return pretrained.load(path, vocab_size=267)


@torch.no_grad()
def alone(flags, prompt, answer, router=None):
    """Of one unpadded sample: log p of each answer token under start, math and code (T, 3), their choices (T, 3), the router's pick (T)."""
    t = Tokenizer(flags.at / "start")
    x, y = t.encode_prompt(prompt), t.encode_answer(answer)
    logits = [load(flags.at / name)(torch.tensor([x + y]))[0][0, len(x) - 1:-1].log_softmax(-1) for name in SIZES]   # (T, V) each
    pick = router(torch.tensor([x + y]))[1][0, len(x) - 1:-1].argmax(-1) if router else None
    logp = torch.stack([l.gather(1, torch.tensor(y)[:, None])[:, 0] for l in logits], 1)
    return logp, torch.stack([l.argmax(-1) for l in logits], 1), pick


def routed(flags, name):
    """The Router in a directory, read without own.py's help."""
    content = torch.load(flags.at / f"out/seed0/{name}/fusionroute.pt", weights_only=True)
    router = Router(load(flags.at / f"out/seed0/{name}"), 2)
    router.W.weight.data = content["W"]
    return router


def read(path, sides, tokenizer):
    return data.read_samples(path, data.read_bytes(path), sides, tokenizer, lambda i: i >= 267, 64)


# --- training ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_both_phases_log_what_a_slow_computation_gives(dirs, family):
    """One step over all samples. Phase 1: W = 0, the router is still its start. Phase 2: learning rates of nearly zero."""
    torch.manual_seed(1)  # with which routers pick both experts
    flags = dirs(family)
    main("train_sft", *flags.sft, "--batch", "64", "--lr_w", "0.3")
    (record,) = log(flags, "router_sft")
    lm = expert = informative = count = 0
    for r in SFT:
        logp, choice, _ = alone(flags, r["prompt"], r["completion"])
        S = choice[:, 1] != choice[:, 2]
        lm, expert = lm - float(logp[:, 0].sum()), expert - float(logp[S, 1:].mean(1).sum())
        informative, count = informative + int(S.sum()), count + len(S)
    assert record["loss_lm"] == pytest.approx(lm / count, rel=1e-4) and record["loss_expert"] == pytest.approx(expert / count, rel=1e-4)
    assert record["loss"] == pytest.approx((lm + expert / 3) / count, rel=1e-4)
    assert record["informative"] == pytest.approx(informative / count, abs=1e-4) and 0 < informative

    main("train_cdpo", *flags.cdpo, *"--batch 64 --lr 1e-30 --lr_w 1e-30".split())
    (record,) = [r for r in log(flags, "router") if r["kind"] == "pair"]
    router, bias, picks = routed(flags, "router_sft"), [], set()
    for r in PAIRS:
        w, l = (alone(flags, r["prompt"], r[side], router) for side in ("chosen", "rejected"))
        total = [float(logp[:, 1:].gather(1, pick[:, None]).sum()) for logp, _, pick in (w, l)]
        bias.append(0.1 * (total[0] - total[1]))
        picks |= set(w[2].tolist() + l[2].tolist())
    assert picks == {0, 1}  # else it would not show whose log-probabilities are taken
    assert record["bias"] == pytest.approx(sum(bias) / 5, rel=1e-4)
    assert record["loss"] == pytest.approx(sum(math.log1p(math.exp(-b)) for b in bias) / 5, rel=1e-4)
    assert abs(record["reward_chosen"]) < 1e-5 and abs(record["reward_rejected"]) < 1e-5  # pi_ref is phase 1's router
    (record,) = [r for r in log(flags, "router") if r["kind"] == "sft"]
    routes = torch.cat([pick[choice[:, 1] != choice[:, 2]] for _, choice, pick in
                        (alone(flags, r["prompt"], r["completion"], router) for r in SFT)])
    assert record["route_code"] == pytest.approx(float(routes.float().mean()), abs=1e-4) != record["route_math"]


def test_prompts_are_not_learned_and_an_answer_ends_once(dirs, tmp_path):
    dirs()
    t = Tokenizer(tmp_path / "start")
    lines(tmp_path / "one.jsonl", [{"prompt": "the", "completion": "cat</s>", "more": 1}])
    ((ids, learn),) = read(tmp_path / "one.jsonl", ["completion"], t)
    v = t.vocabulary
    prompt = [v["<s>"], v["<|user|>"], v["the"], v["<|turn|>"], v["Ċ"], v["<|assistant|>"]]
    typed = [v["ca"], v["t"], v["<"], v["/"], v["s"], v[">"]]  # a special token in a text is text
    assert ids == prompt + typed + [v["<|turn|>"]]
    assert learn == [False] * 6 + [True] * 7


def test_what_is_left_out_is_counted_and_named(dirs, tmp_path, capsys):
    dirs()
    t, path = Tokenizer(tmp_path / "start"), tmp_path / "some.jsonl"
    fits = 64 - len(t.encode_prompt("a")) - 1  # characters of an answer of 64 tokens with its prompt and end
    lines(path, [{"prompt": "a", "completion": c} for c in ["b", " \n", "x" * fits, "x" * (fits + 1), "b<|turn|>"]]
          + [{"prompt": "", "completion": "b"}])
    path.write_text(path.read_text() + "\n" + json.dumps({"prompt": "a", "completion": "last \u2028 line"}, ensure_ascii=False))
    samples = read(path, ["completion"], t)
    assert t.decode(samples[0][0]).endswith("b<|turn|>") and len(samples[1][0]) == 64
    out = capsys.readouterr().out
    assert len(samples) == 3 and out.startswith(f"{path}: 5 of 8 lines left out: 3 empty (lines 2, 6, 7); ")
    assert "; 1 of more than 64 tokens (line 4); 1 with" in out
    assert "'<|turn|>' in the answer" in out and "(line 5)" in out

    pairs = [{"prompt": "a", "chosen": c, "rejected": r} for c, r in [("b", "c"), ("b", "x" * 99), ("", "b"), ("b", "b"), ("c", "b")]]
    lines(path, pairs)
    samples = read(path, ["chosen", "rejected"], t)
    assert [t.decode(ids[-2:]) for ids, _ in samples] == ["b<|turn|>", "c<|turn|>", "c<|turn|>", "b<|turn|>"]  # both of a pair, or none
    assert "1 of more than 64 tokens (line 2); 1 empty (line 3); 1 with equal answers (line 4)" in capsys.readouterr().out
    lines(path, pairs[1:4])
    assert "no sample that can be used: 1 of more" in refused(read, path, ["chosen", "rejected"], t)


@pytest.mark.parametrize("line, says", [
    ('{"prompt": "a"', "is no JSON"), ('{"prompt": "a"}', "must be a JSON object with prompt and completion, or with messages; the field "
                                                          "completion is missing"),
    ('{"completion": "a"}', "must be a JSON object with prompt and completion, or with messages; the field prompt is missing"),
    ('["a", "b"]', "must be a JSON object with prompt and completion"),
    ('{"prompt": "a", "completion": [{"role": "user"}]}', "completion must have messages with a role"),
    ('{"prompt": "a", "completion": null}', "completion must be a text, and is null"),
    ('{"prompt": "a", "completion": "\\ud800"}', "completion has half a character, '\\ud800'"),
    ("\xff", "the byte 0xff is not UTF-8; convert the file first"), ("[" * 99999, "is no JSON")])
def test_a_line_of_another_form_is_named(dirs, line, says):
    flags = dirs()
    path = flags.at / "train.jsonl"
    path.write_bytes(path.read_bytes() + line.encode("latin-1"))
    assert f"train.jsonl, line {len(SFT) + 1}: {says}" in mistake("train_sft", *flags.sft)


def test_scoring_takes_one_expert_at_a_time_and_goes_on_where_it_was(dirs, monkeypatch, capsys):
    flags, alive, scored = dirs(), [], []
    monkeypatch.setattr(scores, "CHUNK", 2)  # 7 samples: 4 files an expert
    real_load, real_score = pretrained.load, scores.score

    def load_alone(directory, *args):
        assert not any(model() for model in alive), "two models in memory"
        model = real_load(directory, *args)
        alive.append(weakref.ref(model))
        return model

    def stop_at_the_sixth(experts, ids, lengths, batch):
        if len(scored) == 5:
            raise KeyboardInterrupt
        scored.append(len(ids))
        return real_score(experts, ids, lengths, batch)

    monkeypatch.setattr(pretrained, "load", load_alone)
    monkeypatch.setattr(scores, "score", stop_at_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        main("train_sft", *flags.sft)
    files = sorted((flags.at / "out/seed0/scores").iterdir())
    assert scored == [2, 2, 2, 1, 2] and len(files) == 5 and len(alive) == 2
    monkeypatch.setattr(scores, "score", lambda *args: scored.append(0) or real_score(*args))
    main("train_sft", *flags.sft)
    assert len(scored) == 5 + 3 and len(alive) == 4  # math, code; code again, the router
    assert len(list((flags.at / "out/seed0/scores").iterdir())) == 8

    monkeypatch.setattr(scores, "CHUNK", 256)  # and the same numbers as at once
    first = log(flags, "router_sft")
    main("train_sft", *flags.sft[:-4], "--out", str(flags.at / "at_once"), "--device", "cpu")
    second = (flags.at / "at_once/seed0/router_sft.log.jsonl").read_text().splitlines()
    for a, b in zip(first, map(json.loads, second), strict=True):
        assert a == pytest.approx(b, abs=2e-5)
    files[0].write_bytes(files[0].read_bytes()[:-100])  # a damaged file of scores is named, not used
    (flags.at / "out/seed0/router_sft/fusionroute.pt").unlink()
    monkeypatch.setattr(scores, "CHUNK", 2)
    assert files[0].name in mistake("train_sft", *flags.sft)


def test_different_tokenizers_are_refused_with_the_first_token(dirs):
    flags = dirs()
    path = flags.at / "code/tokenizer.json"
    content = path.read_text()
    assert content.count('"th":261') + content.count('"th": 261') == 1
    swapped = json.loads(content)
    vocabulary = swapped["model"]["vocab"]
    vocabulary["th"], vocabulary["the"] = vocabulary["the"], vocabulary["th"]
    path.write_text(json.dumps(swapped))
    message = mistake("train_sft", *flags.sft)
    assert "the router and code do not have the same tokens: id 261 is 'th' and 'the'" in message
    assert not (flags.at / "out").exists()


# --- the whole way -----------------------------------------------------------------------------------------------------------------------


def test_from_directories_to_an_answer(dirs, capsys):
    flags = dirs(code={"max_len": 48})
    hurry = "--epochs 3 --lr 3e-3 --lr_w 0.1 --batch 4".split()
    main("train_sft", *flags.sft, *hurry)
    main("train_cdpo", *flags.cdpo, *hurry)
    before = {p: p.stat().st_mtime_ns for p in flags.at.rglob("*") if p.is_file()}
    capsys.readouterr()
    main("train_sft", *flags.sft, *hurry)
    main("train_cdpo", *flags.cdpo, *hurry)
    assert capsys.readouterr().out.count("is there already") == 2
    assert before == {p: p.stat().st_mtime_ns for p in flags.at.rglob("*") if p.is_file()}
    assert "was made with lr" in mistake("train_sft", *flags.sft, *hurry, "--lr", "0.1")
    w0, w1 = routed(flags, "router_sft"), routed(flags, "router")
    assert not torch.equal(w0.lm.embed.weight, w1.lm.embed.weight) and not torch.equal(w0.W.weight, w1.W.weight)
    assert w0.W.weight.abs().max() > 0 and not list(flags.at.rglob("*.state.pt")) and not list(flags.at.rglob("*.tmp"))

    t, experts = Tokenizer(flags.at / "start"), [load(flags.at / name) for name in ("math", "code")]
    ids, picks = naive_fused_greedy(w1, experts, t.encode_prompt("what is the cat?"), t.END, 20)
    for block in ("1", "8"):
        main("decode", "what is the cat?", *flags.decode, "--json", "--block", block)
        *said, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [r["id"] for r in said] == ids and last["answer"] == t.decode(ids) == "".join(r["token"] for r in said)
        assert [r["expert"] for r in said + [last["end"]] * bool(last["end"])] == [("math", "code")[i] for i in picks]
    main("decode", "what is the cat?", *flags.decode, "--method", "code")
    assert "code | " in capsys.readouterr().out
    main("decode", "what is the cat?", *flags.decode, "--dtype", "bfloat16", "--block", "1")
    assert "(20 tokens: " in capsys.readouterr().out
    main("decode", "what is the cat?", *flags.decode, "--dtype", "bfloat16")
    assert "(20 tokens: " in capsys.readouterr().out
    main("decode", "what\udcff?", *flags.decode)  # how Python hands on a byte of the command line that is no text
    assert "tokens" in capsys.readouterr().out
    assert "at most 28 fit" in mistake("decode", "x" * 30, *flags.decode)  # the code expert reads 48

    swapped = flags.decode[:2] + ["--experts", f"code={flags.at / 'code'}", f"math={flags.at / 'math'}"]
    assert "routes among math, code, in this order" in mistake("decode", "x", *swapped)
    other = flags.decode[:2] + ["--experts", f"math={flags.at / 'math'}", f"code={flags.at / 'start'}"]
    assert "is not the model that" in mistake("decode", "x", *other)
    assert "--method is 'sft_only'" in mistake("decode", "x", *flags.decode, "--method", "sft_only")
    assert "fusionroute.pt" in mistake("decode", "x", "--router", str(flags.at / "start"), *flags.decode[2:])
    content = torch.load(flags.at / "out/seed0/router/fusionroute.pt", weights_only=True)
    torch.save(content | {"W": content["W"][:1]}, flags.at / "out/seed0/router/fusionroute.pt")
    assert "W does not fit" in mistake("decode", "x", *flags.decode)


@pytest.mark.parametrize("block", ["1", "8"])
def test_every_end_of_the_router_s_configuration_ends_an_answer(dirs, capsys, block):
    """As with Llama-3.1-Instruct, whose generation_config.json has three. Here: the third token of what is said without it."""
    flags = dirs()
    main("train_sft", *flags.sft)
    ask = ["decode", "what is the cat?", "--router", str(flags.at / "out/seed0/router_sft"), *flags.decode[2:], "--json", "--block", block]
    said = []
    for _ in range(2):
        capsys.readouterr()
        main(*ask)
        said.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
        third = said[0][2]["id"]
        (flags.at / "out/seed0/router_sft/generation_config.json").write_text(json.dumps({"eos_token_id": [2, third]}))
    *long, whole = said[0]
    *short, last = said[1]
    first = [r["id"] for r in long].index(third)
    assert short == long[:first] and last["end"]["id"] == third and len(long) > 3 and whole["answer"].startswith(last["answer"])
    main(*(a for a in ask if a != "--json"))
    assert f"({first + 1} tokens with the end" in (out := capsys.readouterr().out) and "stopped after" not in out


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_bf16_computes_in_bfloat16_and_keeps_float32(dirs, family):
    """About the same losses; pi_ref computes as pi_theta does; weights are float32, and other flags are refused."""
    flags, logs = dirs(family), []
    for at, extra in ("a", []), ("b", ["--bf16"]):
        out = ["--out", str(flags.at / at)]
        main("train_sft", *flags.sft, *out, "--batch", "64", "--lr", "1e-3", *extra)
        main("train_cdpo", *flags.cdpo, *out, "--batch", "64", "--lr", "1e-30", *extra)
        logs.append([json.loads(line) for name in ("router_sft", "router") for line in
                     (flags.at / at / f"seed0/{name}.log.jsonl").read_text().splitlines()])
        assert pretrained.load(flags.at / at / "seed0/router_sft", dtype="float32").embed.weight.dtype == torch.float32
    for a, b in zip(*logs, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-2)
        assert a.get("kind") == "pair" or a["loss_lm"] != b["loss_lm"]
    (pair,) = [r for r in logs[1] if r.get("kind") == "pair"]
    assert abs(pair["reward_chosen"]) < 1e-4 and abs(pair["reward_rejected"]) < 1e-4  # beta times a difference that float32 would make 1e-3
    assert "was made with dtype = float32, bf16, but float32 is asked" in mistake("train_sft", *flags.sft, "--out", str(flags.at / "b"),
                                                                               "--batch", "64", "--lr", "1e-3")


def test_no_score_is_computed_twice(dirs, monkeypatch):
    """Phase 2 killed at its very end: nothing is scored again, pi_ref included, and the result is the same."""
    flags = dirs()
    main("train_sft", *flags.sft, "--lr_w", "0.1")
    main("train_cdpo", *flags.cdpo, "--lr", "1e-3")
    weights, records = (flags.at / "out/seed0/router/model.safetensors").read_bytes(), log(flags, "router")
    assert len(list((flags.at / "out/seed0/scores").iterdir())) == 5  # math, code: the samples, the pairs; pi_ref: the pairs
    (flags.at / "out/seed0/router/fusionroute.pt").unlink()
    monkeypatch.setattr(scores, "score", None)
    main("train_cdpo", *flags.cdpo, "--lr", "1e-3")
    assert (flags.at / "out/seed0/router/model.safetensors").read_bytes() == weights and log(flags, "router") == records


def test_a_killed_training_goes_on(dirs, monkeypatch):
    flags, args = dirs(), "--epochs 4 --lr 1e-3 --lr_w 0.1 --batch 2 --save_every 3".split()
    main("train_sft", *flags.sft[:-4], *args, "--out", str(flags.at / "whole"), "--device", "cpu")
    real, steps = torch.nn.utils.clip_grad_norm_, []  # what a step calls before it changes anything

    def stop(*a):
        steps.append(1)
        if len(steps) == 8:
            raise KeyboardInterrupt
        real(*a)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
    with pytest.raises(KeyboardInterrupt):
        main("train_sft", *flags.sft, *args)
    main("train_sft", *flags.sft, *args)
    assert len(steps) == 8 + 16 - 6  # 16 steps in all, the state of the sixth was saved
    a, b = ((flags.at / f"{out}/seed0/router_sft/model.safetensors").read_bytes() for out in ("out", "whole"))
    assert a == b


# --- two runs, and what killed ones leave ------------------------------------------------------------------------------------------------


def test_two_runs_never_write_the_same(dirs, monkeypatch):
    """While one trains, another with other settings is refused; with another --name it trains."""
    flags, real, told = dirs(), torch.nn.utils.clip_grad_norm_, []

    def meanwhile(*args):
        if not told:
            told.append("")
            told[0] = mistake("train_sft", *flags.sft, "--lr", "0.1")
            main("train_sft", *flags.sft, "--name", "other")
        return real(*args)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", meanwhile)
    main("train_sft", *flags.sft, "--lr", "1e-3")
    assert f"another run writes {flags.at}/out/seed0/router_sft now (process {os.getpid()} on " in told[0]
    assert "was made with lr = 0.001" in mistake("train_sft", *flags.sft, "--lr", "0.1")
    assert (flags.at / "out/seed0/other/fusionroute.pt").exists()


def test_what_killed_runs_left_beside_goes(dirs):
    flags = dirs()
    main("train_sft", *flags.sft)
    out = flags.at / "out/seed0"
    gone = [out / "router_sft.state.pt.99999.tmp", out / "router_sft/model.safetensors.99999.tmp", out / "scores/math-0.pt.99999.tmp"]
    stays = [out / "other.state.pt.99999.tmp", out / "scores/math-1.pt.99999.tmp", out / "router_sft.mine.tmp"]
    for path in gone + stays:
        path.write_text("x")
    os.utime(gone[2], (0, 0))
    main("train_sft", *flags.sft)
    assert [path for path in gone + stays if path.exists()] == stays


# --- weights that cannot be right --------------------------------------------------------------------------------------------------------


def spoil(path, change):
    """Save a model's directory with changed weights."""
    model = load(path)
    change(model)
    pretrained.save(model, path)


def test_weights_that_cannot_be_right_are_named(dirs):
    """Not numbers: at loading. Numbers whose outputs are none: when they score, or before they answer. Nothing is saved."""
    flags = dirs()
    spoil(flags.at / "code", lambda m: m.blocks[0].w_up.weight.data.fill_(float("nan")))
    message = mistake("train_sft", *flags.sft)
    assert f"{flags.at}/code/model.safetensors: the tensor model.layers.0.mlp.up_proj.weight has" in message and "NaN as float32" in message

    def huge(model):
        model.blocks[0].w_up.weight.data.fill_(3e38)
        model.blocks[0].w_gate.weight.data.fill_(3e38)
    spoil_again = GPT(replace(SIZES["code"][0], vocab_size=280))
    huge(spoil_again)
    pretrained.save(spoil_again, flags.at / "code", Tokenizer(flags.at / "math"))
    assert "code gives log-probabilities that are no numbers" in mistake("train_sft", *flags.sft)
    assert not list((flags.at / "out/seed0/scores").glob("code*"))


def test_an_expert_without_numbers_answers_nothing(dirs, monkeypatch, capsys):
    flags = dirs()
    main("train_sft", *flags.sft)
    ask = ["decode", "what?", "--router", str(flags.at / "out/seed0/router_sft"), *flags.decode[2:]]
    main(*ask)
    real = pretrained.load

    def spoiled(directory, *args):
        model = real(directory, *args)
        if directory.name == "math":
            model.blocks[1].w_down.weight.data.fill_(3e38)
        return model
    monkeypatch.setattr(pretrained, "load", spoiled)
    assert f"math ({flags.at / 'math'}) gives logits that are no numbers" in mistake(*ask)
    path = flags.at / "out/seed0/router_sft/fusionroute.pt"
    content = torch.load(path, weights_only=True)
    content["W"][0, 0] = float("nan")
    torch.save(content, path)
    assert "fusionroute.pt: W has 1 values of 32 that are NaN" in mistake(*ask)


# --- mistakes, numbers in 16 bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, args, says", [
    ("train_sft", "--init nowhere --data missing.jsonl", "there is no directory nowhere (--init)"),
    ("train_sft", "--init HERE --data missing.jsonl", "there is no file missing.jsonl (--data)"),
    ("train_sft", "--init HERE --experts math=nowhere --data FILE", "there is no directory nowhere (--experts)"),
    ("train_cdpo", "--experts math=HERE --pairs missing.jsonl --data FILE", "there is no file missing.jsonl (--pairs)"),
    ("train_sft", "--init FILE --data FILE", "there is no directory ")])
def test_paths_are_looked_at_before_packages(name, args, says, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "file").write_text("")
    assert says in mistake(name, *args.replace("HERE", str(tmp_path)).replace("FILE", str(tmp_path / "file")).split(), "--out", "x")


@pytest.mark.parametrize("name, change, says", [
    ("train_sft", lambda f: f.sft + ["--gap", "0.5"], "unrecognized arguments: --gap 0.5"),
    ("train_sft", lambda f: f.sft[2:], "--init is missing: "),
    ("train_sft", lambda f: f.sft[:2], " needs --init, --data"),  # experts are no must
    ("train_cdpo", lambda f: f.cdpo[3:], " needs --experts, --pairs, --data"),
    ("train_sft", lambda f: ["--dtype", "bfloat16"], "--init is missing: "),
    ("train_sft", lambda f: f.sft + ["--dtype", "int8"], "--dtype is 'int8'"),
    ("train_sft", lambda f: f.sft + ["--max_len", "0"], "--max_len is 0"),
    ("train_sft", lambda f: f.sft + ["--max_len", "5"], "no sample that can be used: 7 of more than 5 tokens (lines 1, 2,"),
    ("train_sft", lambda f: f.sft + ["--experts", "math"], "--experts math: must be NAME=DIR"),
    ("train_sft", lambda f: f.sft + ["--experts", "a/b=x"], "must be NAME=DIR"),
    ("train_sft", lambda f: f.sft + ["--experts", "router=x"], "the name router is taken"),
    ("train_sft", lambda f: f.sft + ["--experts", f"a={f.at / 'math'}", f"a={f.at / 'math'}"], "the name a is taken"),
    ("train_sft", lambda f: f.sft + ["--experts", "math=nowhere"], "there is no directory nowhere (--experts)"),
    ("train_sft", lambda f: f.sft + ["--data", "nowhere"], "there is no file nowhere (--data)"),
    ("train_cdpo", lambda f: f.cdpo + ["--seed", "9", "--out", "x"], "/train.jsonl --seed 9 --out x (DIR: what the router starts from)"),
    ("train_cdpo", lambda f: f.cdpo + ["--tries", "5"], "unrecognized arguments: --tries 5"),
    ("decode", lambda f: f.decode + ["x"], "there is no"),
    ("decode", lambda f: [*f.experts, "What is 2?", "--router", "x"], "put a prompt before it")])
def test_mistakes(dirs, name, change, says):
    flags = dirs()
    before = sorted(p for p in flags.at.rglob("*") if p.is_file())
    assert says in mistake(name, *change(flags))
    assert sorted(p for p in flags.at.rglob("*") if p.is_file()) == before


def test_defaults_are_the_papers():
    names = "init", "experts", "data"
    s, flags = own.parse(own.parser(train_sft.Settings, "", *names), train_sft.Settings,
                         ["--init", "x", "--experts", "a=b", "--data", "y", "--lr_w", "0.004"], names)
    assert (s.lr, s.lr_w, s.epochs, s.out, s.lam) == (1e-5, 0.004, 1, "own", 1 / 3) and flags.experts == ["a=b"]
    s = train_cdpo.Settings()
    assert (s.lr, s.lr_w, s.epochs, s.out, s.beta) == (1e-5, 1e-5, 1, "own", 0.1)


def test_a_fingerprint_is_of_all_tensors_and_the_config(dirs, tmp_path):
    dirs()
    model, first = pretrained.load(tmp_path / "math"), own.fingerprint(tmp_path / "math")
    for p in model.parameters():
        with torch.no_grad():
            p.view(-1)[3] += 0.5
            pretrained.save(model, tmp_path / "other")
            p.view(-1)[3] -= 0.5
        assert own.fingerprint(tmp_path / "other") != first
    model.config.window = 7
    pretrained.save(model, tmp_path / "other")
    assert own.fingerprint(tmp_path / "other") != first == own.fingerprint(tmp_path / "math")


def test_sixteen_bits_are_widened():
    """Logits come in float32, so that the losses and Eq. (1) are computed there."""
    for dtype in (torch.bfloat16, torch.float16):
        model, ids = GPT(LLAMA).to(dtype), torch.randint(0, 29, (2, 3))
        logits, hidden = model(ids)
        assert logits.dtype == torch.float32 and hidden.dtype == dtype and torch.equal(logits, model.head(hidden).float())
    assert GPT(LLAMA).double()(ids)[0].dtype == torch.float64
    router = Router(GPT(LLAMA), 2)
    router.lm.bfloat16()
    assert router(ids)[1].dtype == torch.float32 == router.W.weight.dtype
    model = GPT(LLAMA).bfloat16()
    (one,), (two,) = (fingerprints(["a"], [m]).values() for m in (model, GPT(LLAMA).bfloat16()))
    assert one != two and len(one) == 16
    assert own.Setup.pieces(type("", (), {"tokenizer": ByteTokenizer})(), [195, 169, 97, 195]) == ["", "é", "a", "\ufffd"]


class ByteTokenizer:
    decode = staticmethod(lambda ids: bytes(ids).decode("utf-8", "replace"))
