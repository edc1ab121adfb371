"""Every script as a user runs it, on a tiny run: the whole of it, a killed one, showing the routing, and every mistake."""

import functools
import importlib
import io
import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import time
from random import Random

import pytest
import torch

import decode
import train_cdpo
import train_sft
from tests.conftest import ROOT, TINY, make_tiny, mistake, script, train_tiny
from toy_experts import evaluate, script, tasks, tokenizer
from toy_experts import train as toy
from toy_experts.script import EXPERTS, load_router

PROMPT = "Maya has 12 apples. She buys 5 more. Then she doubles the number. How many apples are there now?"


@pytest.fixture
def copy(world, tmp_path):
    """A tiny run of one's own, to be damaged."""
    shutil.copytree(world, tmp_path / "out")
    return tmp_path / "out"


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same_weights(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- a whole run -------------------------------------------------------------------------------------------------------------------------


def test_a_whole_run(world):
    seed = world / "seed0"
    assert {p.name for p in world.iterdir()} == {"seed0"}
    assert {p.name for p in seed.iterdir()} == {
        "base.pt",
        "math.pt",
        "code.pt",
        "instruct.pt",
        "router_sft.pt",
        "router.pt",
        "router_sft.log.jsonl",
        "router.log.jsonl",
        "pairs.jsonl",
    }
    sft, cdpo = lines(seed / "router_sft.log.jsonl"), lines(seed / "router.log.jsonl")
    assert [r["step"] for r in sft] == list(range(16)) and sft[-1]["loss"] < sft[0][
        "loss"
    ]  # 60 samples / 16 -> 4 steps, 4 epochs
    assert {
        "loss",
        "loss_lm",
        "loss_expert",
        "informative",
        "route_math",
        "route_code",
        "route_instruct",
    } < set(sft[0])
    assert [r["kind"] for r in cdpo].count("pair") == len(cdpo) / 2 > 2
    for p in lines(seed / "pairs.jsonl"):
        assert set(p) == {"prompt", "chosen", "rejected"} and p["chosen"] != p["rejected"]
    w0, w1, base = (weights(seed / f"{n}.pt") for n in ("router_sft", "router", "instruct"))
    assert not torch.equal(
        w0["W.weight"], w1["W.weight"]
    )  # the SFT batches of phase 2 go on training W
    assert (
        set(w0) == {f"lm.{k}" for k in base} | {"W.weight"}
        and float(w0["W.weight"].abs().max()) > 0
    )


def alone(models, prompt, answer):
    """Per answer token, from one unpadded sample at a time: log p of the token under each model, (T, models), and their argmaxes."""
    x, y = tokenizer.encode_prompt(prompt), tokenizer.encode_answer(answer)
    with torch.no_grad():
        logits = [m(torch.tensor([x + y]))[0][0, len(x) - 1 : -1] for m in models]  # (T, V) each
    picked = [l.log_softmax(-1).gather(1, torch.tensor(y)[:, None])[:, 0] for l in logits]
    return torch.stack(picked, 1), torch.stack([l.argmax(-1) for l in logits], 1)


def test_phase_1_logs_what_a_slow_computation_gives(copy, monkeypatch):
    """The first step over all 60 samples at once: W = 0, the router is still the instruction expert. Everything from the text anew."""
    (copy / "seed0" / "router_sft.pt").unlink()
    monkeypatch.setattr(train_sft, "BATCH", 64)
    monkeypatch.setattr(train_sft, "show_accuracy", lambda *args: None)
    train_sft.main(["--out", str(copy), "--device", "cpu", "--samples", "60", "--epochs", "1"])
    log = lines(copy / "seed0" / "router_sft.log.jsonl")[0]
    experts = [script.load_model(copy / "seed0" / f"{n}.pt", "")[0] for n in EXPERTS]
    lm = expert = informative = count = 0
    for i in tasks.mixed("train", 60, Random("sft 0")):
        logp, choice = alone(experts, i.prompt, i.answer)
        S = torch.tensor([len(set(c)) > 1 for c in choice.tolist()])
        lm, expert = (
            lm - float(logp[:, EXPERTS.index("instruct")].sum()),
            expert - float(logp[S].mean(1).sum()),
        )
        informative, count = informative + int(S.sum()), count + len(S)
    assert log["loss_lm"] == pytest.approx(lm / count, rel=1e-3) and log[
        "loss_expert"
    ] == pytest.approx(expert / count, rel=1e-3)
    assert log["loss"] == pytest.approx((lm + expert / 3) / count, rel=1e-3)
    assert log["informative"] == pytest.approx(informative / count, abs=1e-4)


def phase_2(copy, monkeypatch, flags):
    (copy / "seed0" / "router.pt").unlink()
    monkeypatch.setattr(train_cdpo, "BATCH", 64)
    for name in ("show_accuracy", "show_answer"):
        monkeypatch.setattr(train_cdpo, name, lambda *args: None)
    pairs = lines(copy / "seed0" / "pairs.jsonl")[:16]  # some of those from the same 36 prompts
    monkeypatch.setattr(train_cdpo.toy_pairs, "sample", lambda *args: pairs)
    train_cdpo.main(["--out", str(copy), "--device", "cpu", "--prompts", "36", *flags.split()])
    return [r for r in lines(copy / "seed0" / "router.log.jsonl") if r["kind"] == "pair"]


def test_phase_2_logs_what_a_slow_computation_gives(copy, monkeypatch):
    """One step over all pairs at once, with learning rates of nearly zero so that the order of the two steps does not matter."""
    seed = copy / "seed0"
    monkeypatch.setattr(train_cdpo, "LR_W", 1e-30)
    (log,) = phase_2(copy, monkeypatch, "--epochs 1 --beta 0.01 --lr 1e-30")
    router, experts, _ = load_router(seed, "router_sft", "cpu", "")
    bias = []
    for p in lines(seed / "pairs.jsonl"):
        total = {}
        for side in ("chosen", "rejected"):
            logp, _ = alone(experts, p["prompt"], p[side])
            ids = tokenizer.encode_prompt(p["prompt"]) + tokenizer.encode_answer(p[side])
            pick = router(torch.tensor([ids]))[1][0, -len(logp) - 1 : -1].argmax(-1)
            total[side] = float(logp.gather(1, pick[:, None]).sum())
        bias.append(0.01 * (total["chosen"] - total["rejected"]))
    mean = lambda xs: sum(xs) / len(xs)
    assert log["bias"] == pytest.approx(mean(bias), rel=1e-3, abs=1e-5) and abs(mean(bias)) > 1e-2
    assert log["loss"] == pytest.approx(
        mean([math.log1p(math.exp(-b)) for b in bias]), rel=1e-3, abs=1e-5
    )
    assert (
        abs(log["reward_chosen"]) < 1e-4 and abs(log["reward_rejected"]) < 1e-4
    )  # pi_ref is phase 1's router
    assert log["fused_accuracy"] == pytest.approx(mean([b > 0 for b in bias]), abs=1e-4)
    items = {i.prompt: i for i in tasks.mixed("preference", 36, Random("preference 0"))}
    for p in lines(seed / "pairs.jsonl"):
        assert judge.check(items[p["prompt"]], p["chosen"]) and not judge.check(
            items[p["prompt"]], p["rejected"]
        )


def test_the_reference_stays_frozen_while_the_policy_moves(copy, monkeypatch):
    """Six steps raise the margin: with a reference that moves along it would stay at zero."""
    pairs = phase_2(copy, monkeypatch, "--epochs 6 --lr 1e-3 --beta 0.01")
    assert (
        pairs[-1]["margin"] > 0.005
        and pairs[-1]["loss"] < pairs[0]["loss"]
        and pairs[-1]["accuracy"] > 0.7
    )


def test_run_again_skips_and_changes_nothing(world, capsys):
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in (world / "seed0").iterdir()}
    for name in ("train_sft", "train_cdpo"):
        importlib.import_module(name).main(["--out", str(world), *TINY[name].split()])
        assert "is there already" in capsys.readouterr().out
    assert before == {
        p.name: (p.stat().st_mtime_ns, p.stat().st_size)
        for p in (world / "seed0").iterdir()
        if p.name in before
    }


def test_a_killed_training_leaves_nothing_and_starts_again(copy, world):
    """Killed in its first steps; then once more: the weights of the run that was not killed, to the bit."""
    seed = copy / "seed0"
    for name in ("router_sft.pt", "router_sft.log.jsonl"):
        (seed / name).unlink()
    before = {p: p.read_bytes() for p in seed.iterdir()}
    command = [
        sys.executable,
        str(ROOT / "train_sft.py"),
        "--out",
        str(copy),
        "--device",
        "cpu",
        *TINY["train_sft"].split(),
    ]
    p = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert any(line.startswith("step    1") for line in p.stdout), (
        "it ended before it could be killed"
    )
    p.send_signal(signal.SIGKILL)
    assert p.wait() == -signal.SIGKILL
    p.stdout.close()
    assert {p: p.read_bytes() for p in seed.iterdir()} == before
    train_tiny(copy, "train_sft")
    assert same_weights(seed / "router_sft.pt", world / "seed0" / "router_sft.pt")
    assert lines(seed / "router_sft.log.jsonl") == lines(world / "seed0" / "router_sft.log.jsonl")


def test_seeds_share_no_files(copy, monkeypatch):
    before = {p: p.read_bytes() for p in (copy / "seed0").iterdir()}
    make_tiny(monkeypatch)
    toy.main(["--out", str(copy), "--seed", "7", "--device", "cpu"])
    assert {p: p.read_bytes() for p in (copy / "seed0").iterdir()} == before
    assert not same_weights(copy / "seed0" / "math.pt", copy / "seed7" / "math.pt")


# --- decode.py and the small table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", decode.METHODS)
def test_json_of_every_method(world, method, capsys):
    decode.main(["--out", str(world), "--json", "--method", method, PROMPT])
    *tokens, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (
        last["answer"] == "".join(t["token"] for t in tokens)
        and last["prompt"] == PROMPT
        and last["method"] == method
    )
    assert all(t["id"] != tokenizer.END for t in tokens) and (
        len(tokens) == 96 or last["end"]["id"] == tokenizer.END
    )
    for t in tokens + [last["end"]] * bool(last["end"]):
        assert {"token", "id", "expert", "weights", "expert_choice", "changed", "in_S"} <= set(t)
        if method == "router":
            assert t["expert"] == "router" and t["weights"] == {}
        else:
            assert set(t["weights"]) == set(EXPERTS) and abs(sum(t["weights"].values()) - 1) < 1e-3
            assert method in EXPERTS or t["weights"][t["expert"]] == max(t["weights"].values())
        if method not in ("fusionroute", "sft_only"):
            assert not t["changed"]  # nobody there to change it
        if method in EXPERTS:
            assert t["expert"] == method


def test_prompts_from_a_file(world, monkeypatch, capsys):
    """Blank lines, a prompt that fails and bytes that are no text do not keep the rest from being answered; the status tells of it."""

    def answers(data):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        decode.main(["--out", str(world)])

    with pytest.raises(SystemExit) as stop:
        answers(f"\n{PROMPT}\n{'word ' * 300}\n \nWhat is 38 mod 5?\n".encode())
    said = capsys.readouterr()
    assert (
        stop.value.code == 2
        and said.out.count("tokens with the end") == 2
        and said.err.count("error: ") == 1
    )
    assert said.out.index(PROMPT) < said.out.index("38 mod 5")
    answers(b"What is \xff?\n\nWhat is 38 mod 5?")
    said = capsys.readouterr()
    assert (
        said.out.count("tokens with the end") == 2
        and said.err == ""
        and "prompt> What is \ufffd?" in said.out
    )


def test_a_conversation_in_a_terminal(world, monkeypatch, capsys):
    """Two prompts, a bad one between them that does not end the conversation, then an empty line, which does."""
    typed = iter([PROMPT, "word " * 300, "What is 38 mod 5?", "", "never read"])
    monkeypatch.setattr(
        "sys.stdin",
        type("", (), {"isatty": lambda self: True, "reconfigure": lambda self, errors: None})(),
    )
    monkeypatch.setattr("builtins.input", lambda asked: next(typed))
    decode.main(["--out", str(world)])
    said = capsys.readouterr()
    assert (
        said.out.count("tokens with the end") == 2
        and said.err.count("error: ") == 1
        and next(typed) == "never read"
    )


def test_without_a_run_the_shipped_weights_answer(tmp_path, monkeypatch, capsys):
    """Without a run in out/: a note on stderr, and the right answer, with the experts' names and without escape codes."""
    (tmp_path / "out" / "seed0").mkdir(
        parents=True
    )  # as a training leaves it that has found something wrong
    monkeypatch.chdir(tmp_path)
    decode.main([PROMPT])
    said = capsys.readouterr()
    assert (
        "34" in said.out
        and "[math:" in said.out
        and "tokens with the end" in said.out
        and "\033" not in said.out
    )
    assert said.err.count("\n") == 1 and "toy_experts/weights" in said.err
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "seed0"]


def test_the_small_table(copy, capsys, monkeypatch):
    monkeypatch.setattr(
        evaluate, "answers", functools.partial(evaluate.answers, max_new=8)
    )  # the tiny models never stop
    evaluate.main(["--out", str(copy), "--device", "cpu", "--prompts", "2"])
    out = capsys.readouterr().out
    r = json.loads((copy / "seed0" / "evaluate.json").read_text())
    assert set(r["accuracy"]) == set(evaluate.METHODS) and set(r["accuracy"]["fusionroute"]) == {
        *tasks.BENCHMARKS,
        "average",
        "general",
    }
    for row in r["accuracy"].values():
        assert row["average"] == pytest.approx(sum(row[b] for b in tasks.BENCHMARKS) / 5, abs=1e-3)
    assert all(f"| {m} " in out for m in evaluate.METHODS) and evaluate.report(r) in out
    assert (
        r["meta"]["settings"]["split"] == "test"
        and f"saved {copy / 'seed0' / 'evaluate.json'}" in out
    )


def test_a_table_by_hand():
    assert evaluate.table([["method", "a"], ["x", "100"], ["longer one", ""]]) == [
        "| method     |   a |",
        "|------------|----:|",
        "| x          | 100 |",
        "| longer one |     |",
    ]


@pytest.mark.parametrize(
    "name", ["toy_experts.train", "train_sft", "train_cdpo", "decode", "toy_experts.evaluate"]
)
def test_help_explains_every_flag(name, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out.split("options:")[1]
    for f in importlib.import_module(name).Settings.__dataclass_fields__:
        help_line = out[out.index(f"\n  --{f} ") :].split("\n  --")[1]
        assert "(default:" in help_line and len(help_line.split()) > 6


# --- mistakes ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, args, says",
    [
        ("decode", [""], "empty"),
        ("decode", ["  \n"], "empty"),
        ("decode", ["word " * 300], "at most"),
        ("decode", ["--method", "chemistry", PROMPT], "chemistry"),
        ("decode", ["--temperature", "-1", PROMPT], "--temperature"),
        ("decode", ["--top_p", "0", PROMPT], "--top_p"),
        ("decode", ["--seed", "x", PROMPT], "--seed"),
        ("decode", ["--seed", "-1", PROMPT], "--seed"),
        ("decode", ["--device", "abacus", PROMPT], "abacus"),
        ("decode", ["--seed", "5", PROMPT], "train_sft.py|train_cdpo.py"),
        (
            "decode",
            ["What", "is", "38 mod 5?"],
            "unrecognized arguments: is 38 mod 5? (put the prompt in quotes) (see",
        ),
        ("decode", [PROMPT, "--top", "5"], "unrecognized arguments: --top 5 (see"),
        ("train_sft", ["two"], "unrecognized arguments: two (see"),
        ("train_sft", ["--lr", "-1"], "--lr is -1.0, and must be a finite number above zero"),
        ("train_sft", ["--lr", "nan"], "--lr is nan, and must be a finite number above zero"),
        ("train_sft", ["--epochs", "0"], "--epochs is 0, and must be from 1 to 2147483647"),
        ("train_cdpo", ["--prompts", "-1"], "--prompts is -1, and must be from 1 to 2147483647"),
        (
            "train_sft",
            ["--lam", "-1"],
            "--lam is -1.0, and must be a finite number of zero or more",
        ),
        ("train_sft", ["--learning_rate", "1"], "--learning_rate"),
        ("train_sft", ["--samples", "61", *TINY["train_sft"].split()[2:]], "samples = 60, but 61"),
        (
            "train_sft",
            ["--gap", "0.5"],
            "gap = 0.25, but 0.5 is asked: use another --out, or remove the folder",
        ),
        ("train_sft", ["--lam", "-0.1"], "--lam"),
        ("train_cdpo", ["--beta", "0"], "--beta"),
        ("train_cdpo", ["--seed", "5"], "train_sft.py"),
        (
            "train_sft",
            ["--samples", "99999999999999999999"],
            "--samples is 99999999999999999999, and must be from 1 to 2147483647",
        ),
        ("toy_experts.train", ["--gap", "2"], "--gap"),
        ("toy_experts.evaluate", ["--split", "train"], "--split"),
        ("toy_experts.evaluate", ["--prompts", "0"], "--prompts"),
    ],
)
def test_bad_arguments(world, name, args, says):
    before = sorted(p for p in world.rglob("*") if p.is_file())
    err = mistake(name, "--out", world, *args)
    assert any(s in err for s in says.split("|")), err
    assert sorted(p for p in world.rglob("*") if p.is_file()) == before


def test_a_hint_can_be_obeyed(world, tmp_path):
    """What a message says to run is for the run that was asked for, not for the usual one."""
    asked = ["--seed", "9", "--out", str(tmp_path / "a b")]
    flags = f" --seed 9 --out '{tmp_path}/a b'"
    assert mistake("decode", *asked, PROMPT).endswith(
        f"run python train_sft.py{flags}, then python train_cdpo.py{flags}"
    )
    assert mistake("train_cdpo", *asked).endswith(f"run python train_sft.py{flags}")
    assert mistake("toy_experts.evaluate", *asked).endswith(f"run bash run.sh{flags}")
    assert mistake("decode", "--seed", "8888", PROMPT).endswith(
        "then python train_cdpo.py --seed 8888"
    )
    shutil.copytree(world, tmp_path / "out")
    (tmp_path / "out/seed0/base.pt").write_bytes(b"")
    assert mistake("train_sft", "--out", tmp_path / "out").endswith(
        "remove it, then start again"
    )  # the same command makes it


def test_a_mistake_is_one_line_and_status_2():
    p = script("decode", "--out", "x" * 300, PROMPT, status=2)
    assert p.stdout == "" and len(p.stderr.splitlines()) == 1


@pytest.mark.parametrize("redirect", ["<&-", "> /dev/full"])
def test_closed_and_full_streams(world, redirect):
    command = [
        "bash",
        "-c",
        f'"$@" {redirect}',
        "bash",
        sys.executable,
        str(ROOT / "decode.py"),
        "--out",
        str(world),
        PROMPT,
    ]
    p = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert p.returncode == (2 if "full" in redirect else 0) and "Traceback" not in p.stderr, (
        p.stderr
    )
    assert len(p.stderr.splitlines()) == ("full" in redirect)


def test_a_diverged_run_is_not_saved(copy):
    (copy / "seed0" / "router_sft.pt").unlink()
    assert "diverged" in mistake(
        "train_sft", "--out", copy, "--device", "cpu", *TINY["train_sft"].split(), "--lr", "1e30"
    )
    assert not (copy / "seed0" / "router_sft.pt").exists()


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch bomb-went-off",))


@pytest.mark.parametrize(
    "damage, says",
    [
        (lambda d: (d / "router.pt").unlink(), "train_cdpo.py"),
        (lambda d: (d / "code.pt").unlink(), "code.pt"),
        *(
            (
                lambda d, cut=cut: (d / "router.pt").write_bytes(
                    (d / "router.pt").read_bytes()[:cut]
                ),
                "truncated",
            )
            for cut in (10, 700, 20_000, -20_000, -700, -100, -1)
        ),
        (lambda d: (d / "router.pt").write_bytes(b""), "truncated"),
        (lambda d: (d / "math.pt").write_bytes(b"\x00not a checkpoint" * 50), "not a checkpoint"),
        (lambda d: (d / "router.pt").write_bytes(pickle.dumps(Bomb())), "not a checkpoint"),
        (lambda d: torch.save(Bomb(), d / "router.pt"), "not a checkpoint"),
        (lambda d: torch.save({"weights": torch.ones(3)}, d / "router.pt"), "of this project"),
        (lambda d: torch.save([1, 2], d / "router.pt"), "of this project"),
        (lambda d: change(d / "router.pt", vocabulary="0123456789abcdef"), "another vocabulary"),
        (lambda d: change(d / "math.pt", vocabulary="0123456789abcdef"), "another vocabulary"),
        (lambda d: change(d / "router.pt", config={"d_model": 48}), "do not fit"),
        (lambda d: change(d / "router.pt", config={"n_layer": "two"}), "do not fit"),
        (lambda d: change(d / "math.pt", config={"unknown": 1}), "do not fit"),
        (lambda d: change(d / "math.pt", config={"norm_eps": "a"}), "different sizes"),
        (
            lambda d: change(d / "math.pt", config={"max_len": 20}),
            "different sizes or vocabularies",
        ),
        (lambda d: change(d / "router.pt", experts=[1, 2, 3]), "routes among"),
        (
            lambda d: change(d / "router.pt", experts={"instruct": "", "code": "", "math": ""}),
            "routes among",
        ),
        (lambda d: shrink(d / "math.pt"), "different sizes or vocabularies"),
        (lambda d: shutil.copy(d / "code.pt", d / "math.pt"), "math"),
        (lambda d: shutil.copy(d / "math.pt", d / "router.pt"), "router.pt"),
    ],
)
def test_bad_checkpoints(copy, damage, says):
    damage(copy / "seed0")
    before = {p: p.read_bytes() for p in (copy / "seed0").iterdir()}
    err = mistake("decode", "--out", copy, PROMPT)
    assert says in err, err
    assert {p: p.read_bytes() for p in (copy / "seed0").iterdir()} == before
    assert not (ROOT / "bomb-went-off").exists()


def change(path, config=None, **fields):
    content = torch.load(path, weights_only=True)
    content["config"] |= config or {}
    torch.save(content | fields, path)


def shrink(path):
    """An expert with another number of tokens, consistent in itself."""
    content = torch.load(path, weights_only=True)
    content["config"]["vocab_size"] = 100
    for name in ("embed.weight", "head.weight"):
        content["model"][name] = content["model"][name][:100].clone()
    torch.save(content, path)


def test_out_that_cannot_be_written(world, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for name in ("toy_experts.train", "train_sft"):
        assert "cannot write" in mistake(name, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_keeps_what_was_there(copy):
    """Files may grow to 32 KiB only: the weights cannot be saved. What was there before survives, and no half file is left."""
    seed = copy / "seed0"
    (seed / "router_sft.pt").unlink()
    before = {p: p.read_bytes() for p in seed.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**15, limits[1]))
    try:
        with pytest.raises(script.UserError, match="cannot write .* the old file is unchanged"):
            train_tiny(copy, "train_sft")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p: p.read_bytes() for p in seed.iterdir()} == before


def test_write_is_whole_or_nothing(tmp_path, monkeypatch):
    script.write(tmp_path / "a", "old")
    monkeypatch.setattr(
        os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(script.UserError, match="No space left"):
        script.write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a"]
