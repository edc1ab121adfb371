"""page/engine.js and page/theory.js in node, against the repository's own Python."""

import json
import unicodedata
from random import Random

import numpy as np
import pytest
import torch

import decode
from docs.tools.dpo_example import both_logps
from fusionroute import cdpo_loss
from theory import toy_mdp
from toy_experts import script, show, tasks, tokenizer
from toy_experts.decode_batch import decode_batch
from toy_experts.script import EXPERTS
from train_cdpo import scored_pairs

ODD = [
    *["", " ", "\n", "\n   x", "a\r\nb", "\ufeffBOM", "tab\there", "<|user|>hi<|end|>"],
    *[
        "naïve café ÀÉ",
        "日本語のテキスト",
        "👩‍👩‍👧 emoji 🎉🎉",
        "नमस्ते ३४५",
        "x\u0085y\u2028z\u3000w",
    ],
    *["a\x1cb\x1fc", "²³½Ⅷ", "1 + 2 ** 3 // 4 <= 5", " * ٣", "\u0300\u0301", "\x00\x7f\x80"],
    *["ﬁ ǅ ʰ", "‮rtl", "\U000e0041"],
]
KINDS = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]


def arbitrary(n, seed=0):
    """n texts of words of the vocabulary, white space, marks and any assigned characters."""
    rng = Random(seed)
    words = [json.loads(line) for line in tokenizer.VOCAB_FILE.read_text().splitlines()]
    spaces = [c for c in KINDS if c.isspace() or c == "\ufeff"]
    marks = ["<|user|>", "<|end|>", " * 7", "\n  "]
    kinds = [words, KINDS, spaces, list(map(chr, range(32, 127))), marks]
    piece = lambda: rng.choice(rng.choice(kinds))
    return ["".join(piece() for _ in range(rng.randrange(1, 30))) for _ in range(n)]


# --- the tokenizer -------------------------------------------------------------------------------


def test_tokens_of_arbitrary_text(node):
    texts = ODD + arbitrary(2000)
    ids = [tokenizer.encoding.encode_ordinary(text) for text in texts]
    for text, theirs, ours in zip(texts, ids, node("encode", texts)):
        assert ours == theirs, ascii(text)
    for text, theirs, ours in zip(texts, map(show.pieces, ids), node("pieces", ids)):
        assert "".join(ours) == text and ours == theirs, ascii(text)


def test_every_assigned_character(node):
    texts = ["x" + " a".join(KINDS[i : i + 200]) + "a" for i in range(0, len(KINDS), 200)]
    for text, ours in zip(texts, node("encode", texts)):
        assert ours == tokenizer.encoding.encode_ordinary(text), ascii(text[:50])


def test_pieces_of_broken_characters(node):
    """Byte tokens in any order. (After ED, Python waits for one byte more than browsers do.)"""
    rng = Random(0)
    pool = [*range(128, 256)] * 4 + [*range(tokenizer.VOCAB_SIZE)] + [tokenizer.END] * 500
    lists = [rng.choices(pool, k=rng.randrange(1, 12)) for _ in range(500)]
    for ids, ours in zip(lists, node("pieces", lists)):
        theirs = show.pieces(ids)
        assert "".join(ours) == "".join(theirs) and (0xED in ids or ours == theirs), ids


def test_what_the_toy_has_never_seen(node):
    texts = ["What is 140 modulo 5?", "", "Mia has 14 pens and a Größe of 1000.", *prompts_of(50)]
    texts += arbitrary(50)
    assert node("unseen", texts) == [tokenizer.unseen(text) for text in texts]


# --- the models ----------------------------------------------------------------------------------


@torch.no_grad()
def test_logits(node, models):
    rngs = {b: Random(f"logits {b}") for b in tasks.BENCHMARKS}
    items = [item for b in tasks.BENCHMARKS for item in tasks.dataset(b, "test", 1, rngs[b])]
    texts = [tokenizer.encode_prompt(i.prompt) + tokenizer.encode_answer(i.answer) for i in items]
    texts += [tokenizer.encode_prompt(text)[:256] for text in arbitrary(2, seed=1)]
    jobs = [{"model": name, "ids": ids} for ids in texts for name in models]
    for job, found in zip(jobs, node("logits", jobs)):
        logits, w = models[job["model"]](torch.tensor([job["ids"]]))
        close = {"rtol": 0, "atol": 1e-3}
        torch.testing.assert_close(torch.tensor(found["logits"]).view_as(logits), logits, **close)
        assert bool(found["w"]) == (job["model"] not in EXPERTS)
        if found["w"]:
            torch.testing.assert_close(torch.tensor(found["w"]).view_as(w), w, **close)


def prompts_of(n):
    """n prompts of the test split, equal shares of the benchmarks."""
    return [item.prompt for item in tasks.mixed("test", n, Random("page"))]


@pytest.mark.parametrize("methods, n", [(["fusionroute"], 40), (list(decode.METHODS), 3)])
def test_tokens_and_picks_are_those_of_decode_batch(node, models, methods, n):
    prompts, experts = prompts_of(n), [models[e] for e in EXPERTS]
    found = iter(node("two_models", [(p, method) for method in methods for p in prompts]))
    ids = [tokenizer.encode_prompt(prompt) for prompt in prompts]
    for method in methods:
        router = models["router_sft" if method == "sft_only" else "router"]
        traces = decode_batch(router, experts, ids, **decode.METHODS[method])
        for prompt, trace in zip(prompts, traces):
            ours = next(found)
            assert ours == {"tokens": trace.tokens, "picks": trace.pick}, (prompt, method)


PROMPTS = [
    "What is 38 mod 5? 🎉",
    "<|user|>Write red and dog in JSON.<|end|>",
    "  Write é, ü and 日 with commas.  ",
    'Complete this function.\\ndef score(a, b):\\n    """Return the larger of a and b."""\\n',
]


def test_the_objects_of_decode_json(node, models, capsys):
    """window.fusionroute.answer gives what decode.py --json prints, key by key."""
    experts = [models[e] for e in EXPERTS]
    jobs = [[p, "fusionroute"] for p in PROMPTS + prompts_of(2)]
    jobs += [[PROMPTS[0], m] for m in ("sft_only", "math", "router")]
    for (prompt, method), ours in zip(jobs, node("answer", jobs)):
        router = models["router_sft" if method == "sft_only" else "router"]
        decode.respond(prompt, router, experts, decode.Settings(method=method), True, 0)
        theirs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        for rows in (ours, theirs):
            rows.append(rows[-1].pop("end") or {})
        for a, b in zip(ours, theirs, strict=True):
            assert list(a) == list(b)
            assert a.pop("weights", {}) == pytest.approx(b.pop("weights", {}), abs=1e-3)
            assert a == b, (prompt, method)


BAD = ["", "   ", "\n\t", "\u3000\u2003", "\x1c\x85", "word " * 200, "日" * 100, "x" * 5000]


def test_refusals_are_those_of_decode(node):
    for prompt, ours in zip(BAD, node("refusals", BAD)):
        with pytest.raises(script.UserError) as caught:
            decode.encode(prompt, 256)
        assert ours == str(caught.value)
    fine = ["\ufeff", "\u200b", "7" * 150]
    assert node("refusals", fine) == [None] * len(fine)
    for prompt in fine:
        decode.encode(prompt, 256)
    (huge,) = node("refusals", ["y " * 10**6])
    assert huge.startswith("the prompt has more than 1280 tokens")
    (lone,) = node("encode", ["a\ud800b"])
    assert lone == tokenizer.encoding.encode_ordinary("a?b")


def test_damaged_weights_have_a_message(node):
    found = node("damaged")
    assert "code are damaged (their checksum" in found["bit"]
    assert "code are damaged" in found["short"] and "bytes" in found["short"]
    assert "code are damaged (they are not base64)" in found["foreign"]
    assert "no weights of router" in found["missing"]
    assert "vocabulary" in found["words"]


# --- edits and pairs -----------------------------------------------------------------------------


@torch.no_grad()
def edited_answer(models, prompt, edits):
    """What an answer with edits must be, the slow and obvious way."""
    prompt, answer = tokenizer.encode_prompt(prompt), []
    while len(answer) < decode.MAX_NEW and answer[-1:] != [tokenizer.END]:
        asked, t = {}, len(answer)
        for edit in edits:
            if edit["at"] == t or edit["rest"] and edit["at"] < t:
                asked |= edit
        ids = torch.tensor([prompt + answer])  # (1, T)
        logits, w = models["router"](ids)  # (1, T, V), (1, T, n)
        expert = models[EXPERTS[asked.get("expert", int(w[0, -1].argmax()))]]
        router_logp = asked.get("scale", 1) * logits[0, -1].log_softmax(-1)  # (V,)
        both = router_logp + expert(ids)[0][0, -1].log_softmax(-1)  # (V,)
        answer.append(asked.get("token", int(both.argmax())))
    return answer


def some_edit(rng):
    changes = [{"expert": rng.randrange(3)}, {"scale": rng.choice([0, 0.5, 2])}]
    change = rng.choice([*changes, {"token": rng.randrange(256, 700)}])
    return {"at": rng.randrange(12), "rest": "token" not in change and rng.random() < 0.5} | change


def test_edits(node, models, data):
    """Editing a finished answer gives what the edits give from the start; undoing gives it back."""
    rng = Random(1)
    prompts = [e["prompt"] for e in data["examples"] if e["skill"] in ("triple", "max")]
    jobs = [{"prompt": p, "edits": [some_edit(rng) for _ in range(2)]} for p in prompts]
    one, two = {"at": 1, "rest": False, "expert": 2}, {"at": 3, "rest": True, "expert": 0}
    jobs.append({"prompt": prompts[0], "edits": [one, two, {"at": 5, "rest": False, "scale": 0}]})
    off = {"at": 0, "rest": True, "scale": 0}  # everywhere: that is routing only
    code = {"at": 0, "rest": True, "expert": 1}
    jobs += [{"prompt": prompts[0], "edits": edits} for edits in ([off], [off, code])]
    found = node("edits", jobs)
    assert any(f["fresh"] != f["plain"] for f in found)
    for job, f in zip(jobs, found):
        assert f["changed"] == f["fresh"] and f["back"] == f["plain"]
        assert f["fresh"] == edited_answer(models, job["prompt"], job["edits"]), job
    limits = node("two_models", [[prompts[0], "routing_only"], [prompts[0], "code"]])
    assert [f["fresh"] for f in found[-2:]] == [limit["tokens"] for limit in limits]


def test_preference_pairs(node, models, data):
    """The six log-probabilities and Eq. (3) of the Training tab."""
    experts = [models[e] for e in EXPERTS]
    pairs, ref = scored_pairs(data["pairs"], experts, models["router_sft"].lm)
    theta, expert = both_logps(models["router"], pairs)
    for i, ours in enumerate(node("pairs", data["pairs"])):
        theirs = {"theta": theta[i], "ref": ref[i], "expert": expert[i]}
        for name, two in theirs.items():
            assert ours[name] == pytest.approx(two.tolist(), abs=1e-3)
        loss, terms = cdpo_loss(*[x[None] for two in theirs.values() for x in two], 0.1)
        for name, value in (terms | {"loss": loss}).items():
            if name in ("loss", "bias", "margin"):
                assert ours[name] == pytest.approx(value.item(), abs=1e-4)


# --- theory.js -----------------------------------------------------------------------------------


def test_the_tree_is_the_theory_s(node):
    inf = float("inf")
    jobs = [(c, B, n) for c in (1, 0.9, 0.55, 0) for B in (0, 2, inf) for n in (False, True)]
    ours = node("mean_loss", [[c, None if B == inf else B, nobody] for c, B, nobody in jobs])
    assert ours == pytest.approx([toy_mdp.mean_loss(*job) for job in jobs], abs=1e-12)
    worlds = [(1, 0.5), (7, 0.9), (20, 0)]
    for world, levels in zip(worlds, node("tree", worlds)):
        for level, rewards, experts in zip(levels, *toy_mdp.tree(*world)):
            assert level["right"] == rewards.argmax(1).tolist()
            assert np.allclose(level["experts"], experts, atol=1e-15)


def away(p, q):
    return np.abs(p - q).sum(-1) / 2


def bound(target, p):
    """How large logits must be that lead from p to the target."""
    return np.ptp(np.log(target / p)) / 2


def test_the_triangle(node):
    """reach() against many points of each kind: none is nearer, and the point it names is one."""
    rng = np.random.default_rng(0)
    three = lambda n: rng.dirichlet([1, 1, 1], n).tolist()
    jobs = [{"experts": three(3), "target": three(1)[0], "B": B} for B in rng.uniform(0, 2, 60)]
    for job, found in zip(jobs, node("reach", jobs)):
        experts, target, B = np.array(job["experts"]), np.array(job["target"]), job["B"]
        logits = rng.uniform(-B, B, (2000, 3))
        logits[:1000] = rng.choice([-B, B], (1000, 3))  # points of the border
        logits[np.arange(1000), rng.integers(0, 3, 1000)] = rng.uniform(-B, B, 1000)
        added = (experts[:, None] * np.exp(logits)).reshape(-1, 3)
        points = {
            "routing": experts,
            "mixing": rng.dirichlet([0.5] * 3, 2000) @ experts,
            "logits": added / added.sum(-1, keepdims=True),
        }
        for way, sampled in points.items():
            best, point = found[way]["distance"], np.array(found[way]["point"])
            nearest = away(sampled, target).min()
            assert nearest - 0.05 <= best <= nearest + 1e-9, way
            assert away(point, target) == pytest.approx(best, abs=1e-9)
        needed = [bound(target, p) for p in experts]
        assert found["needed"] == pytest.approx(needed)
        assert (found["logits"]["distance"] < 1e-9) == (min(needed) <= B)
        assert min(bound(np.array(found["logits"]["point"]), p) for p in experts) <= B + 1e-9
