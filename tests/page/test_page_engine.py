"""page/engine.js and page/theory.js in node, against the repository's own Python."""

import json
import unicodedata
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

import decode
from fusionroute import cdpo_loss
from toy_experts import script, show, tasks, tokenizer
from toy_experts.batch import MAX_NEW, METHODS
from toy_experts.script import EXPERTS

from page_equal import compare, made_of, prompts_of

ROOT = Path(__file__).parents[2]

ODD = ["", " ", "\n", "\n   x", "a\r\nb", "\ufeffBOM", "tab\there", "<|user|>hi<|end|>", "<|assistant|>",
       "naïve café ÀÉ", "日本語のテキスト", "👩‍👩‍👧 emoji 🎉🎉", "नमस्ते ३४५", "x\u0085y\u2028z\u3000w", "a\x1cb\x1fc",
       "²³½Ⅷ", "1 + 2 ** 3 // 4 <= 5", " * ٣", "\u0300\u0301", "\x00\x7f\x80", "ﬁ ǅ ʰ", "‮rtl", "\U000e0041"]


KINDS = [c for c in map(chr, range(0x110000)) if unicodedata.category(c) not in ("Cn", "Cs", "Co")]


def arbitrary(n, seed=0):
    """n texts of words of the vocabulary, white space, marks and any assigned characters."""
    rng, words = Random(seed), [json.loads(x) for x in tokenizer.VOCAB_FILE.read_text().splitlines()]
    spaces = [c for c in KINDS if c.isspace() or c == "\ufeff"]
    pick = [lambda: rng.choice(words), lambda: rng.choice(KINDS), lambda: rng.choice(spaces),
            lambda: chr(rng.randrange(32, 127)), lambda: rng.choice(["<|user|>", "<|end|>", " * 7", "\n  "])]
    return ["".join(rng.choice(pick)() for _ in range(rng.randrange(1, 30))) for _ in range(n)]


def test_tokens_of_arbitrary_text(node):
    texts = ODD + arbitrary(2000)
    ids = [tokenizer.encoding.encode_ordinary(text) for text in texts]
    for text, theirs, ours in zip(texts, ids, node("encode", texts)):
        assert ours == theirs, ascii(text)
    for text, theirs, ours in zip(texts, map(show.pieces, ids), node("pieces", ids)):
        assert "".join(ours) == text and ours == theirs, ascii(text)


def test_every_assigned_character(node):
    texts = ["x" + " a".join(KINDS[i:i + 200]) + "a" for i in range(0, len(KINDS), 200)]
    for text, ours in zip(texts, node("encode", texts)):
        assert ours == tokenizer.encoding.encode_ordinary(text), ascii(text[:50])


def test_pieces_of_broken_characters(node):
    """Byte tokens in any order. (After ED, Python waits for one byte more than browsers do.)"""
    rng = Random(0)
    lists = [[rng.choice([rng.randrange(128, 256), rng.randrange(tokenizer.VOCAB_SIZE), tokenizer.END])
              for _ in range(rng.randrange(1, 12))] for _ in range(500)]
    for ids, ours in zip(lists, node("pieces", lists)):
        theirs = show.pieces(ids)
        assert "".join(ours) == "".join(theirs) and (0xed in ids or ours == theirs), ids


@torch.no_grad()
def test_logits(node, models):
    items = [i for b in tasks.BENCHMARKS for i in tasks.dataset(b, "test", 1, Random(f"logits {b}"))]
    texts = [tokenizer.encode_prompt(i.prompt) + tokenizer.encode_answer(i.answer) for i in items]
    texts += [tokenizer.encode_prompt(t)[:256] for t in arbitrary(2, seed=1)]
    jobs = [{"model": name, "ids": ids} for ids in texts for name in models]
    worst = 0.0
    for job, found in zip(jobs, node("logits", jobs)):
        model, ids = models[job["model"]], torch.tensor([job["ids"]])
        logits, second = model(ids)
        ours = torch.tensor(found["logits"]).view(logits.shape)
        worst = max(worst, (ours - logits).abs().max().item())
        if found["w"]:
            worst = max(worst, (torch.tensor(found["w"]).view(second.shape) - second).abs().max().item())
        assert bool(found["w"]) == (job["model"] not in EXPERTS)
    assert worst < 1e-3, worst
    print(f"largest difference of a logit: {worst:.1e}")


def test_25_prompts(node, models):
    assert compare(node, models, prompts_of(500)[::20], "fusionroute") == []


def test_500_prompts_were_equal(data):
    """page_equal.py compared 500 prompts with this very engine.js and these weights."""
    record = json.loads((ROOT / "page" / "equal.json").read_text())
    assert record["prompts"] == record["equal"] == 500
    assert record["made of"] == made_of(data), "run: python tests/page/page_equal.py"


@pytest.mark.parametrize("method", [m for m in METHODS if m != "fusionroute"])
def test_methods(node, models, method):
    assert compare(node, models, prompts_of(3), method) == []


PROMPTS = ["What is 38 mod 5? 🎉", "<|user|>Write red and dog in JSON.<|end|>", "  Write é, ü and 日 with commas.  "]


def test_the_objects_of_decode_json(node, models, capsys):
    """window.fusionroute.answer gives what decode.py --json prints, key by key."""
    experts = [models[e] for e in EXPERTS]
    jobs = [[p, "fusionroute"] for p in PROMPTS + prompts_of(2)]
    jobs += [[PROMPTS[0], m] for m in ("sft_only", "math", "router")]
    for (prompt, method), ours in zip(jobs, node("answer", jobs)):
        router = models["router_sft" if method == "sft_only" else "router"]
        decode.respond(prompt, router, experts, decode.Settings(method=method), True)
        theirs = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(ours) == len(theirs)
        for a, b in zip(ours + [ours[-1]["end"] or {}], theirs + [theirs[-1]["end"] or {}]):
            assert list(a) == list(b), (list(a), list(b))
            for name, weight in (b.pop("weights", None) or {}).items():
                assert abs(a["weights"][name] - weight) < 1e-3
            a.pop("weights", None)
            end_a, end_b = a.pop("end", None), b.pop("end", None)
            assert (end_a is None) == (end_b is None) and a == b, (prompt, method)


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
    huge, = node("refusals", ["y " * 10**6])
    assert huge.startswith("the prompt has more than 1280 tokens")
    lone, = node("encode", ["a\ud800b"])
    assert lone == tokenizer.encoding.encode_ordinary("a?b")


def test_damaged_weights_have_a_message(node):
    found = node("damaged")
    assert "code are damaged (their checksum" in found["bit"]
    assert "code are damaged" in found["short"] and "bytes" in found["short"]
    assert "code are damaged (they are not base64)" in found["foreign"]
    assert "no weights of router" in found["missing"]
    assert "vocabulary" in found["words"]


@torch.no_grad()
def edited_answer(models, prompt, edits):
    """What an answer with edits must be, the slow and obvious way."""
    text = prompt = tokenizer.encode_prompt(prompt)
    while len(text) - len(prompt) < MAX_NEW and (text == prompt or text[-1] != tokenizer.END):
        asked, t = {}, len(text) - len(prompt)
        for edit in edits:
            if edit["at"] == t or edit["rest"] and edit["at"] < t:
                asked |= {key: edit[key] for key in ("expert", "scale", "token") if key in edit}
        ids = torch.tensor([text])                                                 # (1, T)
        logits, w = models["router"](ids)                                          # (1, T, V), (1, T, n)
        expert = models[EXPERTS[asked.get("expert", int(w[0, -1].argmax()))]]
        both = (asked.get("scale", 1) * logits[0, -1].log_softmax(-1)
                + expert(ids)[0][0, -1].log_softmax(-1))                           # (V,)
        text = text + [asked.get("token", int(both.argmax()))]
    return text[len(prompt):]


def test_edits(node, models, data):
    """Editing a finished answer gives what the edits give from the start, and undoing gives it back."""
    rng = Random(1)
    prompts = [e["prompt"] for e in data["examples"] if e["skill"] in ("triple", "max")]
    jobs = []
    for prompt in prompts:
        edits = []
        for _ in range(rng.randrange(1, 4)):
            change = rng.choice([{"expert": rng.randrange(3)}, {"scale": rng.choice([0, 0.5, 2])},
                                 {"token": rng.randrange(256, 700)}])
            edits.append({"at": rng.randrange(12), "rest": "token" not in change and rng.random() < 0.5} | change)
        jobs.append({"prompt": prompt, "edits": edits})
    one, two = {"at": 1, "rest": False, "expert": 2}, {"at": 3, "rest": True, "expert": 0}
    jobs.append({"prompt": prompts[0], "edits": [one, two, {"at": 5, "rest": False, "scale": 0}]})
    everywhere = {"at": 0, "rest": True, "scale": 0}
    jobs += [{"prompt": p, "edits": [everywhere]} for p in prompts[:2]]
    found = node("edits", jobs)
    assert any(f["fresh"] != f["plain"] for f in found)
    for job, f in zip(jobs, found):
        assert f["changed"] == f["fresh"] and f["back"] == f["plain"]
        assert f["fresh"] == edited_answer(models, job["prompt"], job["edits"]), job
    routing = node("two_models", [[p, "routing_only"] for p in prompts[:2]])  # scale 0 everywhere is that
    assert [f["fresh"] for f in found[-2:]] == [r["tokens"] for r in routing]
    forced = node("edits", [{"prompt": prompts[0], "edits": [everywhere, {"at": 0, "rest": True, "expert": 1}]}])
    alone = node("two_models", [[prompts[0], "code"]])
    assert forced[0]["fresh"] == alone[0]["tokens"]


@torch.no_grad()
def test_a_preference_pair(node, models, data):
    """The six log-probabilities and Eq. (3) of the Training tab."""
    router, ref = models["router"], models["router_sft"]
    for pair, ours in zip(data["pairs"], node("pairs", data["pairs"])):
        six = {"theta": [], "ref": [], "expert": []}
        for side in ("chosen", "rejected"):
            answer = tokenizer.encode_answer(pair[side])
            ids = torch.tensor([tokenizer.encode_prompt(pair["prompt"]) + answer])
            here = slice(-len(answer) - 1, -1)

            def logp(logits):
                chosen = logits[0, here].log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
                return chosen[:, 0]                                                    # (|y|,)

            logits, w = router(ids)
            six["theta"].append(logp(logits).sum())
            six["ref"].append(logp(ref(ids)[0]).sum())
            of_experts = torch.stack([logp(models[e](ids)[0]) for e in EXPERTS], 1)    # (|y|, n)
            six["expert"].append(of_experts.gather(1, w[0, here].argmax(-1)[:, None]).sum())
        for name, values in six.items():
            assert ours[name] == pytest.approx([v.item() for v in values], abs=1e-3)
        loss, info = cdpo_loss(*[v[None] for name in six for v in six[name]], 0.1)
        assert ours["loss"] == pytest.approx(loss.item(), abs=1e-4)
        assert ours["bias"] == pytest.approx(info["bias"].item(), abs=1e-4)
        assert ours["margin"] == pytest.approx(info["margin"].item(), abs=1e-4)


def test_the_tree_is_the_theorys(node):
    toy_mdp = pytest.importorskip("theory.toy_mdp")
    jobs = [(c, B, nobody) for c in (1, 0.9, 0.55, 0) for B in (0, 0.25, 2, np.inf)
            for nobody in (False, True)]
    ours = node("mean_loss", [[c, None if B == np.inf else B, nobody] for c, B, nobody in jobs])
    theirs = [toy_mdp.mean_loss(c, B, nobody) for c, B, nobody in jobs]
    assert ours == pytest.approx(theirs, abs=1e-12)
    for (seed, c), levels in zip(worlds := [(1, 0.5), (7, 0.9), (20, 0)], node("tree", worlds)):
        for level, rewards, experts in zip(levels, *toy_mdp.tree(seed, c)):
            assert level["right"] == rewards.argmax(1).tolist()
            assert np.allclose(level["experts"], experts, atol=1e-15)


def test_the_triangle(node):
    """reach() against many points of each kind: none is nearer, and the point it names is one of them."""
    rng = np.random.default_rng(0)
    jobs = [{"experts": rng.dirichlet([1, 1, 1], 3).tolist(), "target": rng.dirichlet([1, 1, 1]).tolist(),
             "B": float(B)} for B in rng.uniform(0, 2, 60)]
    away = lambda p, q: np.abs(p - q).sum(-1) / 2
    for job, found in zip(jobs, node("reach", jobs)):
        experts, target, B = np.array(job["experts"]), np.array(job["target"]), job["B"]
        mixtures = rng.dirichlet([0.5] * 3, 2000) @ experts
        logits = rng.uniform(-B, B, (2000, 3))
        logits[:1000] = rng.choice([-B, B], (1000, 3))
        free = rng.integers(0, 3, 1000)
        logits[np.arange(1000), free] = rng.uniform(-B, B, 1000)  # points of the border
        added = (experts[:, None] * np.exp(logits)).reshape(-1, 3)
        added /= added.sum(-1, keepdims=True)
        for way, points, slack in (("routing", experts, 1e-12), ("mixing", mixtures, 0.05), ("logits", added, 0.05)):
            best, point = found[way]["distance"], np.array(found[way]["point"])
            assert best <= away(points, target).min() + 1e-9, way
            assert best >= away(points, target).min() - slack, way   # some sampled point comes close
            assert away(point, target) == pytest.approx(best, abs=1e-9)
        needed = [np.ptp(np.log(target / p)) / 2 for p in experts]
        assert found["needed"] == pytest.approx(needed)
        assert (found["logits"]["distance"] < 1e-9) == (min(needed) <= B)
        reached = [np.ptp(np.log(np.array(found["logits"]["point"]) / p)) / 2 for p in experts]
        assert min(reached) <= B + 1e-9
