"""The trainings step by step against a second, slow computation; what they are fed."""

import json
import math
import os
import shutil
import subprocess
import sys
from copy import deepcopy
from random import Random

import pytest
import torch

import train_cdpo
import train_sft
from fusionroute import Router
from model import GPT, GPTConfig
from tests.conftest import ROOT, STEPS
from toy_experts import data, experts, pairs, progress, script, tasks, tokenizer
from toy_experts.decode_batch import Trace, answers
from toy_experts.script import EXPERTS

SIZES = dict(d_model=8, n_layer=1, n_head=2, n_kv_head=1, head_dim=4, d_ff=12, max_len=16)


def gpt():
    model = GPT(GPTConfig(vocab_size=23, **SIZES)).double()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


def router():
    router = Router(gpt(), 3).double()
    torch.nn.init.normal_(router.W.weight)
    return router


def some_data(n):
    """n samples of different lengths with scores that no model gave.

    So every number of them must come from the right place.
    """
    rng = Random(n)
    tokens = lambda most: [rng.randrange(23) for _ in range(rng.randint(1, most))]
    ids, mask, lengths = data.pack([data.answer_only(tokens(4), tokens(6)) for _ in range(n)])
    shape = (*ids[:, 1:].shape, 3)
    logp = -4 * torch.rand(shape, dtype=torch.float64)
    return data.Data(ids, mask, lengths, logp, torch.randint(0, 2, shape))


def places(row):
    """Of one sample, unpadded: its ids (1, T), and the places t whose next token is learned."""
    n = int(row.lengths)
    return row.ids[None, :n], [t for t in range(n - 1) if row.mask[t + 1]]


def row_of(samples, *index):
    return data.Data(*(x[index] for x in samples))


def slow_sft_loss(router, sft, rows, lam):
    """Eq. (2) from the text, sample by sample, token by token."""
    lm = expert = count = 0
    for row in (row_of(sft, r) for r in rows):
        ids, learned = places(row)
        logits, w = router(ids)
        for t in learned:
            lm, count = lm - logits[0, t].log_softmax(-1)[ids[0, t + 1]], count + 1
            if len(set(row.choice[t].tolist())) > 1:
                expert = expert - (w[0, t].softmax(-1) * row.logp[t]).sum()
    return (lm + lam * expert) / count


def slow_pair_loss(router, both, ref, rows, beta):
    """Eq. (3) from the text, pair by pair. The routed expert has the largest w at each token."""
    losses = []
    for r in rows:
        x = -beta * float(ref[r, 0] - ref[r, 1])
        for side, sign in ((0, 1), (1, -1)):
            row = row_of(both, r, side)
            ids, learned = places(row)
            logits, w = router(ids)
            for t in learned:
                x = x + sign * beta * logits[0, t].log_softmax(-1)[ids[0, t + 1]]
                x = x + sign * beta * float(row.logp[t, w[0, t].argmax()])
        losses.append(-torch.nn.functional.logsigmoid(x))
    return sum(losses) / len(losses)


def slow_training(router, losses, lr, lr_w, warmup=20):
    """AdamW, a warm-up of a tenth at most, a cosine down to a tenth, gradients of norm 1 at most.

    losses: one function a step. Returns how many steps were clipped.
    """
    groups = [{"params": list(router.lm.parameters())}, {"params": [router.W.weight]}]
    warmup = min(warmup, 1 + len(losses) // 10)
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    clipped, parameters = 0, list(router.parameters())
    for step, loss in enumerate(losses):
        t = (step - warmup) / (len(losses) - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.55 + 0.45 * math.cos(math.pi * t)
        for group, rate in zip(optimizer.param_groups, (lr, lr_w)):
            group["lr"] = rate * factor
        grads = torch.autograd.grad(loss(), parameters, allow_unused=True)
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))
        clipped += norm > 1
        for p, g in zip(parameters, grads):
            p.grad = None if g is None else g / max(1, norm)
        optimizer.step()
    return clipped


def assert_same(a, b):
    for (name, p), q in zip(a.named_parameters(), b.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7, msg=name)


def test_phase_1_equals_a_slow_training():
    """28 steps in float64 over four passes: every weight agrees.

    So do rates, warm-up, clipping, weight decay, batches, padding, lambda and S.
    """
    trained, sft = router(), some_data(105)
    slow, before = deepcopy(trained), deepcopy(trained)
    s = train_sft.Settings(seed=2, lr=3e-2, lr_w=5e-3, lam=0.7, epochs=4)
    log = train_sft.train(s, trained, sft)
    plan = [rows for e in range(4) for rows in data.batches(sft.lengths, 16, 2000 + e)]
    losses = [lambda rows=rows: slow_sft_loss(slow, sft, rows, 0.7) for rows in plan]
    assert slow_training(slow, losses, 3e-2, 5e-3) > 5
    assert_same(trained, slow)
    assert [r["step"] for r in log] == list(range(28))
    first = float(slow_sft_loss(before, sft, plan[0], 0.7).detach())
    assert log[0]["loss"] == pytest.approx(first, abs=1e-5)


def test_phase_2_equals_a_slow_training():
    """The same for pairs and SFT batches together, with a reference that is not the router's."""
    trained, sft, both = router(), some_data(70), some_data(80)
    slow, both = deepcopy(trained), data.Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
    ref = -9 * torch.rand(40, 2, dtype=torch.float64)
    s = train_cdpo.Settings(seed=2, lr=3e-2, lr_w=5e-3, lam=0.7, beta=0.6, epochs=4)
    plan, losses = train_cdpo.make_plan(s, sft.lengths, both.lengths), []
    log = train_cdpo.train(s, trained, sft, both, ref, plan)
    for kind, rows in plan:
        if kind == "pair":
            losses.append(lambda rows=rows: slow_pair_loss(slow, both, ref, rows, 0.6))
        else:
            losses.append(lambda rows=rows: slow_sft_loss(slow, sft, rows, 0.7))
    assert slow_training(slow, losses, 3e-2, 5e-3) > 5
    assert_same(trained, slow)
    assert [r["kind"] for r in log] == [kind for kind, _ in plan]


def test_experts_train_equals_a_slow_training():
    """Cross-entropy on what is to be learned only, 30 steps of warm-up, the same optimizer."""
    sft, model = some_data(100), gpt()
    slow = Router(deepcopy(model), 3).double()
    rows = zip(sft.ids, sft.mask, sft.lengths)
    samples = [(ids[:n].tolist(), mask[:n].tolist()) for ids, mask, n in rows]
    experts.train(model, samples, seed=5, steps=35, lr=3e-2, name="math")
    plan = [rows for k in range(5) for rows in data.batches(sft.lengths, 16, 5 + 7 * k)]
    losses = [lambda rows=rows: slow_sft_loss(slow, sft, rows, 0.0) for rows in plan]
    assert slow_training(slow, losses, 3e-2, 0.0, warmup=30) > 5
    assert_same(model, slow.lm)


# --- what the trainings are fed -----------------------------------------------------------------


SIDE_BY_SIDE = f"""
import os
from functools import partial
from toy_experts import experts, script
experts.STEPS = {STEPS}
experts.GPTConfig = partial(experts.GPTConfig, d_model=24, n_layer=1)
def full(*given):
    raise script.UserError("the disk is full")
if "FULL" in os.environ:
    script.save_model = full
if __name__ == "__main__":
    script.run(experts.main)
"""


def test_experts_side_by_side_equal_those_one_after_another(world, tmp_path):
    """To the bit, each made in a process of its own. If one fails, so does the command."""
    file, folder = tmp_path / "train.py", tmp_path / "seed0"
    file.write_text(SIDE_BY_SIDE)
    command = [sys.executable, str(file), f"--out={tmp_path}", "--device=cpu"]

    def start(**more):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | more
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)

    first = start()
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("saved") == 4 and "code: 100%" not in first.stderr
    for name in ("base", *EXPERTS):
        made = [script.load_model(p / f"{name}.pt", "")[0] for p in (folder, world / "seed0")]
        assert script.fingerprint(made[0]) == script.fingerprint(made[1])
    (folder / "code.pt").unlink()
    failed = start(FULL="1")
    assert failed.returncode == 2 and "saved" not in failed.stdout
    assert "error: the disk is full\nerror: an expert's training has ended" in failed.stderr


def test_an_expert_takes_one_thread(world, monkeypatch):
    """With two each, three side by side were four times slower on two cores."""
    threads, seen = torch.get_num_threads(), []
    monkeypatch.setattr(experts, "make", lambda *_: seen.append(torch.get_num_threads()))
    torch.set_num_threads(2)
    experts.make_expert(experts.Settings(out=str(world)), "math", script.gpt_of, False)
    torch.set_num_threads(threads)
    assert seen == [1]


def test_algorithm_1_is_a_shuffled_mix():
    """Half of the batches are pairs, every pair comes once a pass, kinds are not in blocks.

    The order changes with the seed.
    """
    lengths, pair_lengths = torch.randint(5, 60, (700,)), torch.randint(5, 60, (330, 2))
    plans = [
        train_cdpo.make_plan(train_cdpo.Settings(seed=seed, epochs=3), lengths, pair_lengths)
        for seed in (0, 0, 1)
    ]
    kinds = [kind for kind, _ in plans[0]]
    assert kinds.count("pair") == 3 * 21 == kinds.count("sft")
    changes = sum(a != b for a, b in zip(kinds, kinds[1:]))
    assert 40 < changes < 86 and 15 < kinds[:63].count("pair") < 48  # half differ on average
    rows = {k: [r for kind, r in plans[0] if kind == k] for k in ("pair", "sft")}
    assert torch.cat(rows["pair"]).bincount().tolist() == [3] * 330
    assert set(torch.cat(rows["sft"]).bincount(minlength=700).tolist()) <= {1, 2}
    a, b, c = ([(kind, rows.tolist()) for kind, rows in plan] for plan in plans)
    assert a == b != c


def test_a_pair_is_a_right_answer_and_the_first_wrong_one():
    item = tasks.draw("toy-gsm8k", "preference", Random(0), ["double"])
    good, bad, worse = f"The answer is {item.gold}.", f"The answer is {item.gold + 1}.", "no idea"
    pair = pairs.pair_of(item, [good, bad, worse])
    assert pair == {"prompt": item.prompt, "chosen": item.answer, "rejected": bad}
    assert pairs.pair_of(item, [good, good]) is None
    assert pairs.pair_of(item, ["☢" * 200]) is None  # it would not fit
    prompt = tokenizer.encode_prompt(item.prompt)
    for (ids, learn), text in zip(pairs.samples([pair]), (item.answer, bad), strict=True):
        answer = tokenizer.encode_answer(text)
        assert ids == prompt + answer
        assert learn == [False] * len(prompt) + [True] * len(answer)


def test_pairs_come_from_samples_of_the_whole_model_on_preference_prompts(monkeypatch):
    """Two samples a prompt at temperature 1, by all of Eq. (1), with random numbers of their own.

    Each pair belongs to its prompt.
    """
    calls = []

    def sampled(router, experts, prompts, max_new, **how):
        calls.append((prompts, max_new, how))
        texts = [f"{sum(p)} {b}" for b, p in enumerate(prompts)]
        return [Trace(tokens=tokenizer.encode_answer(text)) for text in texts]

    monkeypatch.setattr(pairs, "decode_batch", sampled)
    found = pairs.make_pairs("router", "experts", 3, 150)
    items = {i.prompt: i for i in tasks.mixed("preference", 150, Random("preference 3"))}
    assert len(found) == 150 and {p["prompt"] for p in found} == set(items)
    assert {tasks.split_of(i.key) for i in items.values()} == {"preference"}
    for p in found:
        said, number = map(int, p["rejected"].split())
        assert p["chosen"] == items[p["prompt"]].answer
        assert said == sum(tokenizer.encode_prompt(p["prompt"])) and number % 2 == 0
    seeds = []
    for prompts, max_new, how in calls:
        assert prompts[::2] == prompts[1::2] and max_new == 64
        assert how == {"temperature": 1.0, "seed": how["seed"]}
        seeds += range(how["seed"], how["seed"] + len(prompts))
    assert len(set(seeds)) == 300 == len(seeds) and min(seeds) == 3_000_000


@pytest.fixture
def own(world, tmp_path):
    """A copy of the tiny run without its routers: its folder."""
    shutil.copytree(world / "seed0", tmp_path / "seed0")
    for name in ("router_sft.pt", "router.pt"):
        (tmp_path / "seed0" / name).unlink()
    return tmp_path / "seed0"


def stopped(monkeypatch, script, out, *flags):
    """What a training script gives to its `train`, as a dict name -> argument."""
    names = ["s", "router", "sft", "pairs", "ref", "plan"]

    def stop(*args):
        raise StopIteration(dict(zip(names, args)))

    monkeypatch.setattr(script, "train", stop)
    with pytest.raises(StopIteration) as caught:
        script.main(["--out", str(out), "--device", "cpu", *flags])
    return caught.value.args[0]


def check_samples(samples, texts, models):
    """Data has these (prompt, answer)s, and the models' scores of each by itself, unpadded."""
    assert len(samples.ids) == len(texts)
    for r, (prompt, answer) in enumerate(texts):
        row, x, y = (
            row_of(samples, r),
            tokenizer.encode_prompt(prompt),
            tokenizer.encode_answer(answer),
        )
        n, ids = len(x + y), torch.tensor([x + y])
        assert int(row.lengths) == n and row.ids[:n].tolist() == x + y
        assert (
            row.mask[:n].tolist() == [False] * len(x) + [True] * len(y) and not row.mask[n:].any()
        )
        for i, model in enumerate(models):
            p = model(ids[:, :-1])[0][0].log_softmax(-1)  # (n-1, V)
            logp = p.gather(1, ids[0, 1:, None])[:, 0]
            torch.testing.assert_close(row.logp[: n - 1, i], logp, rtol=1e-3, atol=1e-3)
            assert row.choice[: n - 1, i].tolist() == p.argmax(-1).tolist()


def test_phase_1_is_fed_the_train_split(own, monkeypatch):
    """Train items with their answers and the experts' scores.

    The router starts as the instruction expert, W at 0.
    """
    got = stopped(monkeypatch, train_sft, own.parent, "--samples", "60")
    assert all(p.requires_grad for p in got["router"].parameters())
    assert float(got["router"].W.weight.data.abs().max()) == 0
    models = [script.load_model(own / f"{name}.pt", "")[0] for name in EXPERTS]
    assert script.fingerprint(got["router"].lm) == script.fingerprint(models[2])
    items = tasks.mixed("train", 60, Random("sft 0"))
    assert {tasks.split_of(i.key) for i in items} == {"train"}
    assert {i.bench for i in items} == {*tasks.BENCHMARKS, "general"}
    check_samples(got["sft"], [(i.prompt, i.answer) for i in items], models)


def test_phase_2_is_fed_pairs_and_phase_1_s_samples(own, world, monkeypatch):
    """Its router is phase 1's, and so is the reference: log pi of the answers' tokens."""
    shutil.copy(world / "seed0" / "router_sft.pt", own)
    found = [json.loads(l) for l in (own / "pairs.jsonl").read_text().splitlines()][:6]
    monkeypatch.setattr(train_cdpo.preference, "make_pairs", lambda *args: found)
    got = stopped(monkeypatch, train_cdpo, own.parent, "--prompts", "36")
    router, models, _ = script.load_router(own, "router_sft", "cpu", "")
    assert script.fingerprint(got["router"]) == script.fingerprint(router)
    assert all(p.requires_grad for p in got["router"].parameters())
    items = tasks.mixed("train", 60, Random("sft 0"))
    check_samples(got["sft"], [(i.prompt, i.answer) for i in items], models)
    texts = [(p["prompt"], p[side]) for p in found for side in ("chosen", "rejected")]
    flat = data.Data(*(x.flatten(0, 1) for x in got["pairs"]))
    check_samples(flat, texts, models)
    for r, ref in enumerate(got["ref"].flatten()):
        ids, learned = places(row_of(flat, r))
        p = router(ids)[0][0].log_softmax(-1)
        expected = float(sum(p[t, ids[0, t + 1]] for t in learned))
        assert float(ref) == pytest.approx(expected, rel=1e-4)
    assert len(got["plan"]) == 4 and got["s"].lr_w == 1e-3


# --- what the trainings show --------------------------------------------------------------------


def test_what_a_training_shows(tiny_run):
    """The losses that are announced are those of the first step; the prompt is a validation one.

    Phase 2 shows its answer before and after to the first prompt that phase 1 gets wrong.
    """
    out, said = tiny_run
    logs = {}
    for name in ("router_sft", "router"):
        lines = (out / "seed0" / f"{name}.log.jsonl").read_text().splitlines()
        logs[name] = [json.loads(line) for line in lines]
    first = logs["router_sft"][0]
    for name in ("loss_lm", "loss_expert"):
        assert f"{name} {first[name]:.3f}, the" in said["train_sft"]
    assert first["route_math"] == 1 and "route_math 1," in said["train_sft"]
    for words in said.values():
        assert words.index("before: ") < words.index("step            1") < words.index("after: ")
        assert "expect at the end" in words
    items = progress.validation_items(0, 0.25, 40)
    assert items[0].prompt in said["train_sft"]
    for item in items:
        assert tasks.split_of(item.key) == "validation"
        assert item.skill in tasks.held_out(item.bench, 0.25, 0)
    first_router = script.load_router(out / "seed0", "router_sft", "cpu", "")[:2]
    wrong, before = pairs.first_mistake(*first_router, items)
    shown = f"{wrong.prompt}\na right answer: {wrong.answer!r}\nbefore: {before!r}"
    assert shown in said["train_cdpo"]
    for words, name, item in zip(said.values(), ("router_sft", "router"), (items[0], wrong)):
        models = script.load_router(out / "seed0", name, "cpu", "")[:2]
        assert f"after: {answers(*models, [item])[0].text()!r}" in words
        shipped = (script.WEIGHTS / f"{name}.log.jsonl").read_text().splitlines()
        for kind in ("sft", "pair")[: 1 + (name == "router")]:
            expected = progress.means([json.loads(line) for line in shipped[-50:]], kind)
            assert expected in words
    pair = [r for r in logs["router"] if r["kind"] == "pair"]
    assert abs(pair[0]["reward_chosen"]) < 0.3 * abs(pair[0]["bias"]) and pair[-1]["margin"] != 0
    names = "loss reward_chosen reward_rejected margin accuracy bias fused_accuracy".split()
    assert set(pair[0]) == {"step", "kind", *names}
    names = "loss loss_lm loss_expert informative route_math route_code route_instruct".split()
    assert set(first) == {"step", "kind", *names}


def test_the_first_mistake(monkeypatch):
    items = progress.validation_items(0, 0.25, 3)
    for wrong in (0, 2, None):
        texts = ["no idea" if i == wrong else item.answer for i, item in enumerate(items)]
        traces = [Trace(tokens=tokenizer.encode_answer(text)) for text in texts]
        monkeypatch.setattr(pairs, "answers", lambda *args, traces=traces: traces)
        shown = 2 if wrong is None else wrong
        assert pairs.first_mistake("router", "experts", items) == (items[shown], texts[shown])


def test_a_printed_line_is_a_mean_of_its_kind():
    """Steps 1 and 2, then the mean of 50; records of another kind do not count."""
    log = [{"step": i, "kind": "pair" if i % 2 else "sft", "loss": float(i)} for i in range(50)]
    assert progress.means(log[:1], "sft") == "step            1 sft   loss 0.000"
    assert progress.means(log, "pair") == "step    1-50 mean pair  loss 25.000"
