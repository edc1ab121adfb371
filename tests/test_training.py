"""The trainings step by step against a second, slow computation; what they are fed; what a row of the table is."""

import json
import math
from copy import deepcopy
from random import Random

import pytest
import torch

import decode
import train_cdpo
import train_sft
from fusionroute import Router
from model import GPT, GPTConfig
from toy_experts import batch, data, evaluate, pairs, script, tasks, tokenizer
from toy_experts import train as toy
from toy_experts.batch import METHODS, Trace
from toy_experts.script import EXPERTS

CONFIG = GPTConfig(
    vocab_size=23, d_model=8, n_layer=1, n_head=2, n_kv_head=1, head_dim=4, d_ff=12, max_len=16
)
SIXTEEN = 16  # samples, or pairs, a step


def gpt():
    model = GPT(CONFIG).double()
    for p in model.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return model


def some_data(n):
    """n samples of different lengths, with scores that no model gave: every number of them must come from the right place."""
    rng = Random(n)
    tokens = lambda most: [rng.randrange(23) for _ in range(rng.randint(1, most))]
    samples = [data.answer_only(tokens(4), tokens(6)) for _ in range(n)]
    ids, mask, lengths = data.pack(samples)
    shape = (*ids[:, 1:].shape, 3)
    return data.Data(
        ids, mask, lengths, -4 * torch.rand(shape, dtype=torch.float64), torch.randint(0, 2, shape)
    )


def slow_sft(router, sft, row):
    """Of one sample, unpadded: the sums of L_LM and L_expert, and the number of answer tokens."""
    n = int(sft.lengths[row])
    logits, w = router(sft.ids[row : row + 1, :n])
    lm = expert = 0.0
    for t in range(n - 1):
        if sft.mask[row, t + 1]:
            lm = lm - logits[0, t].log_softmax(-1)[sft.ids[row, t + 1]]
            if len(set(sft.choice[row, t].tolist())) > 1:
                expert = expert - (w[0, t].softmax(-1) * sft.logp[row, t]).sum()
    return lm, expert, int(sft.mask[row, :n].sum())


def slow_sft_loss(router, sft, rows, lam):
    lm, expert, count = map(sum, zip(*(slow_sft(router, sft, int(r)) for r in rows)))
    return (lm + lam * expert) / count


def slow_pair_loss(router, both, ref, rows, beta):
    """Eq. (3) from the text, pair by pair. The routed expert is the one with the largest w at each token."""
    losses = []
    for r in map(int, rows):
        x = 0.0
        for side, sign in ((0, 1), (1, -1)):
            n = int(both.lengths[r, side])
            logits, w = router(both.ids[r, side : side + 1, :n])
            for t in range(n - 1):
                if both.mask[r, side, t + 1]:
                    x = x + sign * beta * logits[0, t].log_softmax(-1)[both.ids[r, side, t + 1]]
                    x = x + sign * beta * float(both.logp[r, side, t, w[0, t].argmax()])
            x = x - sign * beta * float(ref[r, side])
        losses.append(-torch.nn.functional.logsigmoid(x))
    return sum(losses) / len(losses)


def slow_training(router, losses, lr, lr_w, warmup=20):
    """AdamW, a linear warm-up, a cosine down to a tenth, gradients of norm 1 at most. losses: one function a step. Returns how many
    steps were clipped."""
    groups = [{"params": list(router.lm.parameters())}, {"params": [router.W.weight]}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
    clipped = 0
    for step, loss in enumerate(losses):
        factor = (
            (step + 1) / warmup
            if step < warmup
            else 0.55 + 0.45 * math.cos(math.pi * (step - warmup) / (len(losses) - warmup))
        )
        for group, rate in zip(optimizer.param_groups, (lr, lr_w)):
            group["lr"] = rate * factor
        parameters = list(router.parameters())
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
    """28 steps in float64 over four passes: rates, warm-up, clipping, weight decay, batches, padding, lambda, S. Every weight agrees."""
    router, sft = Router(gpt(), 3).double(), some_data(105)
    torch.nn.init.normal_(router.W.weight)
    other, before = deepcopy(router), deepcopy(router)
    s = train_sft.Settings(seed=2, lr=3e-2, lam=0.7, epochs=4)
    log = train_sft.train(s, router, sft)
    plan = [rows for e in range(4) for rows in data.batches(sft.lengths, SIXTEEN, 2000 + e)]
    clipped = slow_training(
        other, [lambda rows=rows: slow_sft_loss(other, sft, rows, 0.7) for rows in plan], 3e-2, 3e-3
    )
    assert_same(router, other)
    assert clipped > 5 and len(log) == 28 and [r["step"] for r in log] == list(range(28))
    assert log[0]["loss"] == pytest.approx(
        float(slow_sft_loss(before, sft, plan[0], 0.7)), abs=1e-5
    )
    with pytest.raises(AssertionError):
        assert_same(router, before)


def test_phase_2_equals_a_slow_training():
    """The same for pairs and SFT batches together, in the order of the plan, with a reference that is not the router's."""
    router, sft, both = Router(gpt(), 3).double(), some_data(70), some_data(80)
    torch.nn.init.normal_(router.W.weight)
    both = data.Data(*(x.view(-1, 2, *x.shape[1:]) for x in both))
    ref, other = -9 * torch.rand(40, 2, dtype=torch.float64), deepcopy(router)
    s = train_cdpo.Settings(seed=2, lr=3e-2, lam=0.7, beta=0.6, epochs=4)
    plan = train_cdpo.make_plan(s, sft.lengths, both.lengths)
    log = train_cdpo.train(s, router, sft, both, ref, plan)
    losses = [
        (
            lambda kind=kind, rows=rows: (
                slow_pair_loss(other, both, ref, rows, 0.6)
                if kind == "pair"
                else slow_sft_loss(other, sft, rows, 0.7)
            )
        )
        for kind, rows in plan
    ]
    clipped = slow_training(other, losses, 3e-2, 1e-3)
    assert_same(router, other)
    assert clipped > 5 and [r["kind"] for r in log] == [kind for kind, _ in plan]


def test_experts_train_equals_a_slow_training(monkeypatch):
    """toy_experts.train.train: cross-entropy on what is to be learned only, 30 steps of warm-up, the same optimizer."""
    monkeypatch.setattr(toy, "STEPS", {"math": 35})
    monkeypatch.setattr(toy, "LR", {"math": 3e-2})
    sft, model = some_data(100), gpt()
    other = Router(deepcopy(model), 3).double()
    toy.train(
        "math",
        model,
        [
            (ids[:n].tolist(), mask[:n].tolist())
            for ids, mask, n in zip(sft.ids, sft.mask, sft.lengths)
        ],
        5,
    )
    plan = [
        rows for k in range(5) for rows in data.batches(sft.lengths, SIXTEEN, 5 + 7 * k)
    ]  # 7 batches a pass
    losses = [lambda rows=rows: slow_sft_loss(other, sft, rows, 0.0) for rows in plan]
    assert slow_training(other, losses, 3e-2, 0.0, warmup=30) > 5
    assert_same(model, other.lm)


# --- what the trainings are fed ----------------------------------------------------------------------------------------------------------


def test_algorithm_1_is_a_shuffled_mix():
    """Half of the batches are pairs, every pair comes once a pass, the order is no block of one kind and then the other, and changes
    with the seed."""
    lengths, pair_lengths = torch.randint(5, 60, (700,)), torch.randint(5, 60, (330, 2))
    s = train_cdpo.Settings(seed=0, epochs=3)
    plan = train_cdpo.make_plan(s, lengths, pair_lengths)
    kinds = [kind for kind, _ in plan]
    n = kinds.count("pair")
    assert n == 3 * 21 == kinds.count("sft")
    changes = sum(a != b for a, b in zip(kinds, kinds[1:]))
    assert (
        40 < changes < 86 and 15 < kinds[:n].count("pair") < 48
    )  # of 125 neighbours half differ on average
    seen = torch.cat([rows for kind, rows in plan if kind == "pair"]).bincount()
    assert seen.tolist() == [3] * 330
    sft = torch.cat([rows for kind, rows in plan if kind == "sft"]).bincount(minlength=700)
    assert int(sft.min()) >= 1 and int(sft.max()) <= 2
    again, other = (
        train_cdpo.make_plan(train_cdpo.Settings(seed=seed, epochs=3), lengths, pair_lengths)
        for seed in (0, 1)
    )
    same = lambda a, b: [(k, r.tolist()) for k, r in a] == [(k, r.tolist()) for k, r in b]
    assert same(plan, again) and not same(plan, other)


def test_a_pair_is_a_right_answer_and_the_first_wrong_one():
    item = tasks.draw("toy-gsm8k", "preference", Random(0), ["double"])
    good, bad, worse = f"The answer is {item.gold}.", f"The answer is {item.gold + 1}.", "no idea"
    assert pairs.of_item(item, [good, bad, worse]) == {
        "prompt": item.prompt,
        "chosen": item.answer,
        "rejected": bad,
    }
    assert (
        pairs.of_item(item, [good, good]) is None and pairs.of_item(item, ["\u2622" * 200]) is None
    )
    (c, learn_c), (r, learn_r) = pairs.samples([pairs.of_item(item, [bad])])
    prompt = tokenizer.encode_prompt(item.prompt)
    assert c == prompt + tokenizer.encode_answer(
        item.answer
    ) and r == prompt + tokenizer.encode_answer(bad)
    assert learn_c == [False] * len(prompt) + [True] * (len(c) - len(prompt)) and learn_r.count(
        False
    ) == len(prompt)


def test_pairs_come_from_samples_of_the_whole_model_on_preference_prompts(monkeypatch):
    """Two samples a prompt at temperature 1, with all of Eq. (1) and random numbers of their own; each pair belongs to its prompt."""
    calls = []

    def sampled(router, experts, prompts, max_new, **how):
        calls.append((prompts, max_new, how))
        return [
            Trace(tokens=tokenizer.encode_answer(f"{sum(p)} {b}")) for b, p in enumerate(prompts)
        ]

    monkeypatch.setattr(pairs, "decode_batch", sampled)
    found = pairs.sample("router", "experts", 3, 150)
    items = {i.prompt: i for i in tasks.mixed("preference", 150, Random("preference 3"))}
    assert len(found) == 150 and {p["prompt"] for p in found} == set(items)
    assert all(tasks.split_of(i.key) == "preference" for i in items.values())
    for p in found:
        assert p["chosen"] == items[p["prompt"]].answer
        assert (
            p["rejected"].split()[0] == str(sum(tokenizer.encode_prompt(p["prompt"])))
            and int(p["rejected"].split()[1]) % 2 == 0
        )
    for prompts, max_new, how in calls:
        assert (
            prompts[::2] == prompts[1::2]
            and max_new == 64
            and how["temperature"] == 1.0
            and set(how) == {"temperature", "seed"}
        )
    ends = [(how["seed"], how["seed"] + len(prompts)) for prompts, _, how in calls]
    assert (
        len(calls) == 2
        and all(a[1] <= b[0] for a, b in zip(ends, ends[1:]))
        and ends[0][0] == 3_000_000
    )


def test_phase_1_is_fed_the_train_split(world, tmp_path, monkeypatch):
    """What reaches the loss: items of the train split only, with their answers; the router starts as the instruction expert, W at 0."""

    def stop(s, router, sft):
        raise StopIteration(s, router, sft)

    monkeypatch.setattr(train_sft, "train", stop)
    (tmp_path / "seed0").mkdir()
    for name in ["base", *EXPERTS]:
        (tmp_path / "seed0" / f"{name}.pt").write_bytes(
            (world / "seed0" / f"{name}.pt").read_bytes()
        )
    with pytest.raises(StopIteration) as stopped:
        train_sft.main(["--out", str(tmp_path), "--device", "cpu", "--samples", "60"])
    _, router, sft = stopped.value.args
    assert (
        all(p.requires_grad for p in router.parameters())
        and float(router.W.weight.abs().max()) == 0
    )
    expert, _ = script.load_model(world / "seed0" / "instruct.pt", "")
    assert script.fingerprint(router.lm) == script.fingerprint(expert)
    items = tasks.mixed("train", 60, Random("sft 0"))
    assert {tasks.split_of(i.key) for i in items} == {"train"} and {i.bench for i in items} == {
        *tasks.BENCHMARKS,
        "general",
    }
    for item, ids, mask, n in zip(items, sft.ids, sft.mask, sft.lengths, strict=True):
        text = tokenizer.encode_prompt(item.prompt) + tokenizer.encode_answer(item.answer)
        assert ids[:n].tolist() == text and mask[:n].tolist() == [
            i > text.index(tokenizer.ASSISTANT) for i in range(n)
        ]


# --- what a row of the table is ----------------------------------------------------------------------------------------------------------

ROWS = {
    "fusionroute": ("router", {}),
    "sft_only": ("router_sft", {}),
    "routing_only": ("router", {"use_router": False}),
    "router": ("router", {"use_expert": False}),
    "math": ("router", {"use_router": False, "only": 0}),
    "code": ("router", {"use_router": False, "only": 1}),
    "instruct": ("router", {"use_router": False, "only": 2}),
}


def prints(world):
    """Fingerprint of a router -> its name."""
    return {
        script.fingerprint(script.load_model(world / "seed0" / f"{n}.pt", "", router=True)[0]): n
        for n in ("router", "router_sft")
    }


@pytest.mark.parametrize("method", METHODS)
def test_each_row_of_the_table_is_its_own_model_and_decoder(world, monkeypatch, method):
    """Right answers come only from this row's router and options, on the test split: this row has 100 per cent, all others none."""
    names, asked = prints(world), []

    def stub(router, experts, items, **how):
        asked.append(items)
        good = (names[script.fingerprint(router)], how) == ROWS[method]
        return [
            Trace(tokens=tokenizer.encode_answer(i.answer if good else "?"), pick=[0] * 99)
            for i in items
        ]

    monkeypatch.setattr(evaluate, "answers", stub)
    monkeypatch.setattr(evaluate, "routing", lambda *args: {})
    r = evaluate.evaluate(
        evaluate.Settings(out=str(world), device="cpu", prompts=4), world / "seed0"
    )
    assert {m: row["average"] for m, row in r["accuracy"].items()} == {
        m: float(m == method) for m in ROWS
    }
    assert all(tasks.split_of(i.key) == "test" for items in asked for i in items) and len(
        asked
    ) == 6 * len(ROWS)
    assert r["general_grade"][method] > 6 > r["general_grade"][next(m for m in ROWS if m != method)]


def test_covered_and_uncovered_and_the_split(world, monkeypatch):
    """Answers are right exactly where experts were trained on the sub-skill; on the validation split when it is asked for."""
    asked = []

    def stub(router, experts, items, **how):
        asked.extend(items)
        held = [s for b in tasks.BENCHMARKS for s in tasks.held_out(b, 0.25, 0)]
        return [
            Trace(
                tokens=tokenizer.encode_answer("?" if i.skill in held else i.answer), pick=[0] * 99
            )
            for i in items
        ]

    monkeypatch.setattr(evaluate, "answers", stub)
    monkeypatch.setattr(evaluate, "routing", lambda *args: {})
    r = evaluate.evaluate(
        evaluate.Settings(out=str(world), device="cpu", prompts=16, split="validation"),
        world / "seed0",
    )
    assert (
        r["covered"]["fusionroute"]["average"] == 1
        and r["uncovered"]["fusionroute"]["average"] == 0
    )
    assert 0.4 < r["accuracy"]["fusionroute"]["average"] < 1 and {
        tasks.split_of(i.key) for i in asked
    } == {"validation"}


def test_routing_shares_by_hand(world):
    """The share of each expert in all tokens, and in those at which the three tiny experts disagree, counted from the text anew."""
    experts = [script.load_model(world / "seed0" / f"{e}.pt", "")[0] for e in EXPERTS]
    items, rng = tasks.dataset("toy-gsm8k", "test", 5, Random(0)), Random(1)
    traces, inside, all_picks = [], [], []
    for i in items:
        tokens = tokenizer.encode_answer(i.answer)
        pick = [rng.randrange(3) for _ in tokens]
        traces.append(Trace(tokens=tokens, pick=pick))
        prompt = tokenizer.encode_prompt(i.prompt)
        with torch.no_grad():
            choice = [
                e(torch.tensor([prompt + tokens]))[0][0, len(prompt) - 1 : -1].argmax(-1).tolist()
                for e in experts
            ]
        all_picks += pick
        inside += [p for p, c in zip(pick, zip(*choice)) if len(set(c)) > 1]
    r = evaluate.routing(experts, items, traces)
    assert 0 < len(inside) < len(all_picks) and r["S_share"] == pytest.approx(
        len(inside) / len(all_picks), abs=1e-4
    )
    for name, picks in (("all", all_picks), ("S", inside)):
        assert [r[name][e] for e in EXPERTS] == pytest.approx(
            [picks.count(k) / len(picks) for k in range(3)], abs=1e-4
        )


@pytest.mark.parametrize("method", METHODS)
def test_each_method_of_decode_is_its_own_model_and_decoder(world, monkeypatch, method, capsys):
    got = []

    def stub(router, experts, prompt, **how):
        assert (how.pop("temperature"), how.pop("top_p"), how.pop("seed")) == (0.7, 0.8, 0)
        got.append((prints(world)[script.fingerprint(router)], how))
        saved = [script.load_model(world / "seed0" / f"{e}.pt", "")[0] for e in EXPERTS]
        assert [script.fingerprint(e) for e in experts] == [script.fingerprint(e) for e in saved]
        yield decode.Step(tokenizer.END, 0, [1.0, 0.0, 0.0], tokenizer.END)

    monkeypatch.setattr(decode, "decode", stub)
    decode.main(
        [
            "--out",
            str(world),
            "--method",
            method,
            "--temperature",
            "0.7",
            "--top_p",
            "0.8",
            "What is 38 mod 5?",
        ]
    )
    assert got == [ROWS[method]]


def test_what_a_training_shows(tiny_run, monkeypatch):
    """The losses that are announced are those of the first step; the prompts shown and counted are validation prompts."""
    out, said = tiny_run
    first = json.loads((out / "seed0" / "router_sft.log.jsonl").read_text().splitlines()[0])
    for name in ("loss_lm", "loss_expert"):
        assert f"{name} {first[name]:.3f}, the" in said["train_sft"]
    item = batch.validation_item(0)
    assert tasks.split_of(item.key) == "validation" and item.skill in tasks.held_out(
        item.bench, 0.25, 0
    )
    for words in said.values():
        assert (
            item.prompt in words
            and words.index("before: ") < words.index("step ") < words.index("after: ")
            and "(wrong)" in words
        )
    asked = []

    def stub(router, experts, items, **how):
        asked.extend(items)
        return [
            Trace(tokens=tokenizer.encode_answer(i.answer if k % 4 else "?"))
            for k, i in enumerate(items)
        ]

    monkeypatch.setattr(batch, "answers", stub)
    assert batch.accuracy("router", "experts", 0, n=20) == dict.fromkeys(tasks.BENCHMARKS, 0.75)
    assert {tasks.split_of(i.key) for i in asked} == {"validation"} and len(asked) == 100


def test_first_pair_step(tiny_run):
    """pi_theta is still pi_ref if the pair step is the first of all: rewards 0, and the loss is the bias's alone. Later they move."""
    out, said = tiny_run
    log = [
        json.loads(line) for line in (out / "seed0" / "router.log.jsonl").read_text().splitlines()
    ]
    pair = [r for r in log if r["kind"] == "pair"]
    assert all(
        {"loss", "reward_chosen", "reward_rejected", "margin", "accuracy", "bias", "fused_accuracy"}
        < set(r)
        for r in pair
    )
    assert (
        abs(pair[0]["reward_chosen"]) < 0.3 * abs(pair[0]["bias"])
        and "expect at the first pair step" in said["train_cdpo"]
    )
    assert pair[-1]["margin"] != 0
