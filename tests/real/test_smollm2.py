"""Plain fine-tuning, and run_smollm2.sh: its own commands on tiny random models in the place of SmolLM2. docs/real-models.md."""

import json
import os
import shlex
import subprocess
from dataclasses import replace

import pytest
import torch

from extra.common import fill
from extra.gpt import GPT, Router
from extra.real import decode, pretrained, smollm2
from extra.real.pretrained_tokenizer import Tokenizer
from extra.speed.block import Trace
from tests.real.conftest import LLAMA, ROOT, SFT, lines, main, mistake
from toy_experts import tasks
from toy_experts.train import schedule

SMALL = {"data": "--expert 16 --router 10", "pairs": "--prompts 10 --batch 4", "evaluate": "--tests 2 --batch 3"}


@pytest.fixture
def start(folder):
    """A directory with a tiny random Llama that reads 400 tokens."""
    pytest.importorskip("safetensors")
    path = folder("smollm2")
    pretrained.save(GPT(replace(LLAMA, vocab_size=267, max_len=400)), path, Tokenizer(path))
    return path


# --- plain fine-tuning: Eq. (2) without experts -------------------------------------------------------------------------------------------


def test_without_experts_it_is_plain_fine_tuning(start, tmp_path, capsys):
    """Two steps over all samples: the same loss and weights as a plain loop with torch's own cross-entropy, one sample at a time."""
    lines(tmp_path / "math.jsonl", SFT)
    main("train_sft", "--init", str(start), "--data", str(tmp_path / "math.jsonl"), "--name", "math", "--out", str(tmp_path / "out"),
         *"--batch 64 --epochs 2 --lr 1e-2 --device cpu".split())
    assert "no --experts: plain fine-tuning" in capsys.readouterr().out
    out = tmp_path / "out/seed0/math"
    log = [json.loads(line) for line in (tmp_path / "out/seed0/math.log.jsonl").read_text().splitlines()]

    tokenizer, model, losses = Tokenizer(start), pretrained.load(start).requires_grad_(True), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(2):
        total = count = 0
        for r in SFT:
            x, y = tokenizer.encode_prompt(r["prompt"]), tokenizer.encode_answer(r["completion"])
            logits = model(torch.tensor([x + y[:-1]]))[0][0, len(x) - 1:]                                  # (len(y), V)
            total, count = total + torch.nn.functional.cross_entropy(logits, torch.tensor(y), reduction="sum"), count + len(y)
        losses.append(float(total.detach()) / count)
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 * schedule(step, 2, warmup=20)
        optimizer.step()
    assert [r["loss"] for r in log] == pytest.approx(losses, rel=1e-4) and losses[1] < losses[0]
    assert all(r["loss_lm"] == r["loss"] and r["loss_expert"] == r["informative"] == 0 for r in log)
    assert not any(key.startswith("route_") for r in log for key in r)
    for (name, p), q in zip(model.state_dict().items(), pretrained.load(out).state_dict().values()):
        assert torch.allclose(p, q, atol=2e-5), name
    assert Tokenizer(out).FINGERPRINT == tokenizer.FINGERPRINT  # an ordinary directory: an expert, or a start


def test_an_expert_made_here_is_no_router(start, tmp_path):
    lines(tmp_path / "math.jsonl", SFT)
    main("train_sft", "--init", str(start), "--data", str(tmp_path / "math.jsonl"), "--name", "math", "--out", str(tmp_path / "out"))
    made = tmp_path / "out/seed0/math"
    assert "routes among , in this order, not math" in mistake("decode", "x", "--router", str(made), "--experts", f"math={start}")
    assert "--experts is missing" in mistake("decode", "x", "--router", str(made))
    assert "--data is missing" in mistake("train_sft", "--init", str(start))
    assert "--experts is missing" in mistake("train_cdpo", "--data", "x", "--pairs", "y")


def test_killed_fine_tuning_goes_on(start, tmp_path, monkeypatch):
    lines(tmp_path / "math.jsonl", SFT)
    args = ["--init", str(start), "--data", str(tmp_path / "math.jsonl"), *"--name math --batch 1 --save_every 2 --lr 1e-3".split()]
    main("train_sft", *args, "--out", str(tmp_path / "whole"))
    real, steps = torch.nn.utils.clip_grad_norm_, []

    def stop(*a):
        if len(steps) == 5:
            raise KeyboardInterrupt
        steps.append(real(*a))

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", stop)
    with pytest.raises(KeyboardInterrupt):
        main("train_sft", *args, "--out", str(tmp_path / "out"))
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", real)
    main("train_sft", *args, "--out", str(tmp_path / "out"))
    a, b = ((tmp_path / out / "seed0/math/model.safetensors").read_bytes() for out in ("out", "whole"))
    assert a == b


# --- the run on a laptop ------------------------------------------------------------------------------------------------------------------


def commands():
    """The lines that run_smollm2.sh runs, its loop and variables resolved by bash itself."""
    echo = 'python() { printf "%q " "$@"; echo; }; source extra/real/run_smollm2.sh'
    p = subprocess.run(["bash", "-c", echo], cwd=ROOT, text=True, capture_output=True)
    assert p.returncode == 0, p.stderr
    return [shlex.split(line.removeprefix("-m extra.real.")) for line in p.stdout.splitlines()]


def test_the_script_s_own_commands(start, tmp_path, monkeypatch, capsys):
    """From the data to the page, and then again: nothing is computed twice."""
    monkeypatch.setattr(smollm2, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(smollm2, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(smollm2, "MAX_NEW", 12)
    smollm2.PAGE.write_text((ROOT / "docs/real-models.md").read_text())
    ran = []
    for _ in range(2):
        for script, *args in commands():
            here = lambda a: a.replace("smollm2", str(start)).replace("smol/", f"{tmp_path}/smol/") if "smol" in a else a
            args = [f"{tmp_path}/smol" if a == "smol" else here(a) for a in args]
            small = SMALL.get(args[0], "").split() + ["--out", f"{tmp_path}/smol", "--model", str(start)] if script == "smollm2" else []
            main(script, *args, *small)
            ran.append(args[0] if script == "smollm2" else script)
        out = capsys.readouterr().out
    assert ran == 2 * ["data", *["train_sft"] * 4, "pairs", "train_cdpo", "evaluate", "publish"]
    assert out.count("is there already") == 5  # all five trainings
    r = json.loads(smollm2.RESULT.read_text())
    assert set(r["accuracy"]) == {"smollm2", "math", "code", "instruct", "routing_only", "router", "sft_only", "fusionroute"}
    assert r["meta"]["prompts"]["average"] == 10 and r["meta"]["memory"]["router"] > 2**20 and len(r["examples"]) == 5
    for row in r["accuracy"].values():
        assert set(row) == {*tasks.BENCHMARKS, "average", "covered", "uncovered"}
    assert all(sum(row.values()) == pytest.approx(1, abs=1e-3) for row in r["routing"].values())
    assert smollm2.report(r) in smollm2.PAGE.read_text() and "prompt> " in smollm2.PAGE.read_text()


def test_data_keep_splits_apart_and_sub_skills_from_the_experts(tmp_path, monkeypatch):
    drawn, real = [], tasks.dataset
    monkeypatch.setattr(tasks, "dataset", lambda bench, split, *args: drawn.append((split, real(bench, split, *args))) or drawn[-1][1])
    s = smollm2.Settings(out=str(tmp_path))
    smollm2.data(s)
    assert {split for split, _ in drawn} == {"train"}
    for items in (items for _, items in drawn):
        assert all(tasks.split_of(item.key) == "train" and tasks.check(item, item.answer) for item in items)
    skill = {item.prompt: (item.bench, item.skill) for _, items in drawn for item in items}
    for name, benches in tasks.DOMAINS.items():
        said = [skill[json.loads(line)["prompt"]] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        assert len(said) == s.expert and {bench for bench, _ in said} == set(benches)
        assert set(said) == {(b, k) for b in benches for k in tasks.SKILLS[b] if k not in tasks.held_out(b, s.gap, s.seed)}
    said = {skill[json.loads(line)["prompt"]] for line in (tmp_path / "router.jsonl").read_text().splitlines()}
    assert said == {(b, k) for b in tasks.BENCHMARKS for k in tasks.SKILLS[b]}


def test_pairs_are_right_against_wrong(start, tmp_path, monkeypatch):
    """A fused model that answers every other prompt rightly gives pairs for the others only."""
    items = tasks.mixed("preference", 6, smollm2.Random("smollm2 pairs 0"), tasks.BENCHMARKS)
    said = [item.answer if i % 2 else "no" for i, item in enumerate(items)]
    setup = type("", (), {"first": start, "fingerprints": {}})()
    router, asked = type("", (), {"W": torch.nn.Linear(2, 3)})(), []
    monkeypatch.setattr(smollm2, "fused", lambda s, name: (setup, router, []) if name == "router_sft" else None)

    def answers(setup, router, experts, got, batch, **how):
        asked.append(how)
        assert got == items
        return None, said
    monkeypatch.setattr(smollm2, "answers", answers)
    smollm2.pairs(smollm2.Settings(out=str(tmp_path), prompts=6))
    got = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert got == [{"prompt": item.prompt, "chosen": item.answer, "rejected": "no"} for item in items[::2]]
    assert asked == [{"temperature": 1.0, "seed": 0}]
    smollm2.pairs(smollm2.Settings(out=str(tmp_path), prompts=6))
    assert len(asked) == 1  # sampled once


def test_answers_are_those_of_one_prompt_at_a_time(start):
    items = [tasks.draw(bench, "test", smollm2.Random(bench)) for bench in tasks.BENCHMARKS]
    setup = type("", (), {"tokenizer": Tokenizer(start)})()
    setup.ends, setup.encode_prompt = setup.tokenizer.ends, setup.tokenizer.encode_prompt
    router, experts = Router(GPT(replace(LLAMA, vocab_size=267, max_len=400)), 2).eval(), [pretrained.load(start) for _ in range(2)]
    together = smollm2.answers(setup, router, experts, items, 3)
    for i, item in enumerate(items):
        trace, = decode.decode_batch(router, experts, [setup.encode_prompt(item.prompt)], setup.ends, smollm2.MAX_NEW)
        assert together[0][i].tokens == trace.tokens and together[1][i] == setup.tokenizer.decode(decode.answer_ids(trace, setup.ends))


# --- the page -----------------------------------------------------------------------------------------------------------------------------


def test_an_answer_is_read_back_from_what_is_shown_of_it(capsys):
    tokenizer = type("", (), {"alone": str})
    setup = type("", (), {"names": ["math", "code"], "ends": [9], "max_new": 5, "tokenizer": tokenizer,
                          "pieces": lambda ids: ["def f", "(x)", ":\n  ", "| x"][:len(ids)]})
    trace = Trace(tokens=[0, 1, 2, 3, 9], pick=[1, 1, 0, 0, 0], weights=[[0.5, 0.5]] * 5, expert_choice=[0, 0, 2, 3, 9])
    decode.show(trace, "fusionroute", False, setup)
    shown = capsys.readouterr().out
    assert "«(x)»" in shown and smollm2.answer_in(shown) == "def f(x):\n  | x"
    result = json.loads(smollm2.RESULT.read_text())
    items = smollm2.tests(smollm2.Settings(**result["meta"]["settings"]))
    for bench, example in zip(tasks.BENCHMARKS, result["examples"]):  # each is the first prompt of its benchmark
        assert example.startswith(f"prompt> {next(item for item in items if item.bench == bench).prompt.strip()}\n")


def test_the_page_says_what_the_file_says():
    result, page = json.loads(smollm2.RESULT.read_text()), smollm2.PAGE.read_text()
    assert fill(page, smollm2.blocks(result), smollm2.COMMAND) == page
    result["accuracy"]["fusionroute"]["average"] += 0.01
    assert fill(page, smollm2.blocks(result), smollm2.COMMAND) != page


@pytest.mark.skipif("SMOLLM2" not in os.environ, reason="SMOLLM2=DIR, made by extra/real/convert_smollm2.py, is not given")
def test_the_real_chat_template_is_transformers():
    """Prompt and answer, side by side as in training, are the template's own text and tokens, up to the newline behind the end token."""
    transformers = pytest.importorskip("transformers")
    ours, theirs = Tokenizer(os.environ["SMOLLM2"]), transformers.AutoTokenizer.from_pretrained(os.environ["SMOLLM2"])
    assert ours.decode([ours.END]) == "<|im_end|>" and ours.ends == [ours.END]
    for bench in tasks.BENCHMARKS:
        item = tasks.draw(bench, "test", smollm2.Random(bench))
        turns = [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.answer}]
        asked = theirs.apply_chat_template(turns[:1], add_generation_prompt=True, tokenize=False)
        assert ours.encode_prompt(item.prompt) == theirs(asked, add_special_tokens=False)["input_ids"]
        text, ids = theirs.apply_chat_template(turns, tokenize=False), ours.encode_prompt(item.prompt) + ours.encode_answer(item.answer)
        assert ours.decode(ids) + "\n" == text
        if not item.answer.startswith(" "):  # else one token would span the end of the prompt, which no answer can begin inside
            assert theirs(text, add_special_tokens=False)["input_ids"][:len(ids)] == ids
