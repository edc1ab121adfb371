"""Samples in TRL's forms -> token ids, and what is refused by name."""

import gzip
import json
import shutil

import pytest
from datasets import Dataset
from tokenizers import AddedToken

from extra.real import data
from extra.real.modeling import FusionRoute
from tests.real.conftest import CHAT, SPECIAL, lines, main, refused, tokenizer

SFT, PAIR = ("completion",), ("chosen", "rejected")
ASK, SAY = "<s><|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n", "cat<|im_end|>"
LONG = "<s>" + "".join(
    f"<|im_start|>{who}\n{what}<|im_end|>\n"
    for who, what in (("system", "s"), ("user", "a"), ("assistant", "b"))
)


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


TURNS = [{"role": "system", "content": "s"}, user("a"), said("b"), user("the")]


def texts(tmp_path, content, sides=SFT, tok=None, **how):
    """(prompt, answer) as text of each sample of a file's content; a list is one object a line."""
    file, tok = tmp_path / "f.jsonl", tok or tokenizer()
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        lines(file, content)
    found = data.samples(str(file), sides, tok, **{"n_tokens": 266, "max_len": 80} | how)
    split = [(row["ids"], row["learn"].index(True)) for row in found]
    assert all(
        not any(row["learn"][:n]) and all(row["learn"][n:]) for row, (_, n) in zip(found, split)
    )
    return [(tok.decode(ids[:n]), tok.decode(ids[n:])) for ids, n in split]


@pytest.mark.parametrize("row, ask", [
    ({"prompt": "the", "completion": "cat"}, ASK),
    ({"messages": [user("the"), said("cat")]}, ASK),
    ({"prompt": [user("the")], "completion": [said("cat")]}, ASK),
    ({"prompt": [user("the")], "completion": "cat", "input": "", "system": None, "tools": []}, ASK),
    ({"messages": [*TURNS, said("cat")]}, LONG + ASK[3:]),
    ({"prompt": TURNS, "completion": [said("cat")]}, LONG + ASK[3:]),
])  # fmt: skip
def test_forms_of_samples(row, ask, tmp_path):
    """The answer ends with its end token: the template's line break after it is not learned."""
    assert texts(tmp_path, [row]) == [(ask, SAY)]


@pytest.mark.parametrize("row, ask", [
    ({"prompt": "the", "chosen": "cat", "rejected": "what"}, ASK),
    ({"prompt": [user("the")], "chosen": [said("cat")], "rejected": [said("what")]}, ASK),
    ({"chosen": [user("the"), said("cat")], "rejected": [user("the"), said("what")]}, ASK),
    ({"chosen": [*TURNS, said("cat")], "rejected": [*TURNS, said("what")]}, LONG + ASK[3:]),
])  # fmt: skip
def test_forms_of_pairs(row, ask, tmp_path):
    assert texts(tmp_path, [row], PAIR) == [(ask, SAY), (ask, "what<|im_end|>")]


OK = {"prompt": "the", "completion": "cat"}
CHATTED = [user("the"), said("cat")]


@pytest.mark.parametrize("sides, row, says", [
    (SFT, OK | {"weight": 0}, "is not used, and may change what should be learned: 'weight'"),
    (SFT, OK | {"train": False}, "learned: 'train' = false; if not"),
    (SFT, OK | {"system": "be", "id": 7}, "'system' = \"be\", 'id' = 7; if not, let it pass: "),
    (SFT, OK | {"system": "be", "id": 7}, "--ignore system id"),
    (SFT, {"messages": [user("the"), said("cat") | {"weight": 0}]}, "learned: 'weight' = 0"),
    (SFT, {"messages": [user("the"), said("cat") | {"train": False}]}, "learned: 'train' = false"),
    (SFT, {"messages": CHATTED, "prompt": "the"}, "learned: 'prompt' = \"the\""),
    (SFT, {"messages": CHATTED, "tools": [{"name": "x"}]}, "learned: 'tools' = "),
    (SFT, {"messages": [said("cat")]}, "must follow a message of the user"),
    (SFT, {"messages": [TURNS[0], said("cat")]}, "must follow a message of the user"),
    (SFT, {"messages": [user("the")]}, "must follow a message of the user"),
    (SFT, {"messages": [user("the"), user("the")]}, "one message of the assistant"),
    (SFT, {"messages": []}, "messages must be a list of messages, and is []"),
    (SFT, {"messages": [{"from": "human", "value": "the"}]}, "has no role of system, user,"),
    (SFT, {"messages": [{"role": "tool", "content": "x"}, said("cat")]}, "has no role of"),
    (SFT, {"messages": [user([{"type": "image"}]), said("cat")]}, "must be a text"),
    (SFT, {"prompt": 3, "completion": "cat"}, "prompt must be a text or messages, and is 3"),
    (SFT, {"prompt": "the", "completion": None}, "the field completion is missing"),
    (SFT, {"prompt": None, "completion": "cat"}, "the field prompt is missing"),
    (SFT, {"prompt": "the", "completion": "\ud800"}, "completion must be a text"),
    (SFT, {"prompt": "a", "completion": [said("a"), said("b")]}, "one message of the assistant"),
    (SFT, {}, "the field prompt is missing"), (SFT, {"completion": "x"}, "field prompt is missing"),
    (SFT, {"prompt": "x"}, "the field completion is missing"), (SFT, ["a"], "be a JSON object"),
    (SFT, {"text": "the cat", "id": 7}, "the field prompt is missing, it has text, id"),
    (SFT, {"conversations": [{"from": "human"}]}, "or only messages; the field prompt is missing"),
    (PAIR, {"prompt": "the", "chosen": "cat"}, "the field rejected is missing"),
    (PAIR, {"chosen": "cat", "rejected": "a"}, "chosen must be a list of messages"),
    (PAIR, {"chosen": CHATTED, "rejected": [user("a"), said("b")]}, "differ before the last"),
])  # fmt: skip
def test_what_is_not_used_or_not_clear_is_refused(sides, row, says, tmp_path):
    good = OK if sides == SFT else {"prompt": "a", "chosen": "b", "rejected": "c"}
    message = refused(texts, tmp_path, [good, row], sides)
    assert says in message and "f.jsonl, line 2: " in message


def test_ignore_lets_fields_pass(tmp_path):
    row = {"messages": [user("the") | {"name": "x"}, said("cat")], "id": 7}
    assert texts(tmp_path, [row], ignore=["id", "name"]) == [(ASK, SAY)]


@pytest.mark.parametrize("content, says", [
    (b'{"prompt": "a", "prompt": "the", "completion": "cat"}', "line 1: a field is there twice"),
    (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"', "line 2: is no JSON"),
    (b"prompt,completion\nthe,cat\n", "line 1: is no JSON"), (b"[" * 99999, "is no JSON"),
    (b'[{"prompt": "a", "completion": "b"},\n{"prompt": 3, "completion": "b"}]', "item 2: prompt"),
    ('{"prompt": "é"}'.encode("latin-1"), "line 1: is not UTF-8"),
    (b"", "no sample that can be used"), (b"\n \n", "no sample that can be used"),
])  # fmt: skip
def test_files_that_are_refused(content, says, tmp_path):
    assert says in refused(texts, tmp_path, content)


def test_other_files(tmp_path):
    """A JSON array, a byte order mark, compressed JSON, Parquet: the same samples."""
    rows = [OK, {"prompt": "the", "completion": "dé"}]
    expected = texts(tmp_path, rows)
    assert texts(tmp_path, json.dumps(rows, indent=1).encode()) == expected
    assert texts(tmp_path, ("\ufeff" + "\r\n".join(map(json.dumps, rows))).encode()) == expected
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "f.jsonl").read_bytes()[3:]))
    Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for name in ("a.jsonl.gz", "a.parquet"):
        found = data.samples(str(tmp_path / name), SFT, tokenizer(), 266, 80)
        assert [tokenizer().decode(row["ids"]) for row in found] == [a + b for a, b in expected]
    assert "there is no file" in refused(data.rows, str(tmp_path / "none.jsonl"))
    assert "there is no file" in refused(data.rows, ".")  # a directory


def test_what_is_left_out_is_counted(tmp_path, capsys):
    fits = 80 - len(data.Encoder(tokenizer()).prompt([user("the")])) - 1
    rows = [OK | {"completion": c} for c in ("b", " ", "x" * fits, "x" * (fits + 1))]
    found = texts(tmp_path, [*rows, OK | {"prompt": ""}])
    assert [len(answer) - len("<|im_end|>") for _, answer in found] == [1, fits]
    said = capsys.readouterr()
    assert (
        "of 5 rows are left out: 2 with an empty prompt or answer (number 2, 5); 1 of more than 80"
        in said.err
    )
    assert said.out == ""
    pairs = [
        {"prompt": "a", "chosen": c, "rejected": r}
        for c, r in (("b", "b"), ("b", "x" * 99), ("c", "b"))
    ]
    assert len(texts(tmp_path, pairs, PAIR)) == 2  # both of a pair, or none
    assert "1 with equal answers (number 1)" in capsys.readouterr().err


@pytest.mark.parametrize("single_word", [False, True])
def test_a_special_token_that_somebody_types_stays_text(single_word, tmp_path):
    """Also with single_word tokens, with which a tokenizer once put random text into samples."""
    tok = tokenizer(special=[AddedToken(s, special=True, single_word=single_word) for s in SPECIAL])
    row = {"prompt": "the<|im_end|>\n<|im_start|>x <s>", "completion": "a<|im_end|> <pad>b"}
    file = lines(tmp_path / "g.jsonl", [row])
    (found,) = data.samples(file, SFT, tok, 266, 200)
    expected = (
        "<s><|im_start|>user\nthe<|im_end|>\n<|im_start|>x <s><|im_end|>\n<|im_start|>assistant\n"
    )
    text = tok.decode(found["ids"])
    if single_word:  # then the template's own tokens, which touch words, are text too
        assert text.startswith(expected + "a<|im_end|> <pad>b<|im_end|>\n")
        return
    assert text == expected + "a<|im_end|> <pad>b<|im_end|>"
    own = [i for i in found["ids"] if i < 4]
    assert own == [1, 3, 2, 3, 2]  # the template's alone: bos, start, end, start, end
    assert (
        found["learn"].count(True)
        == len(tok.encode("a< |im_end|> < pad>b", add_special_tokens=False)) - 1
    )


def test_templates(tmp_path, capsys):
    """Without one; with another end token than eos; one that rewrites; one that refuses."""
    plain = tokenizer(template=None)
    assert texts(tmp_path, [OK], tok=plain) == [("<s>the", "cat<|im_end|>")]
    assert "no chat template" in refused(
        texts, tmp_path, [{"messages": [*TURNS, said("b")]}], tok=plain
    )
    gemma = tokenizer(eos_token="<s>")  # its template ends a turn with <|im_end|>, as Gemma's does
    assert data.Encoder(gemma).end == 2 and texts(tmp_path, [OK], tok=gemma) == [(ASK, SAY)]
    thinks = tokenizer(template=CHAT.replace("m['content']", "m['content'].split('</think>')[-1]"))
    rows = [OK, OK | {"completion": "hm</think>cat"}]
    capsys.readouterr()
    assert texts(tmp_path, rows, tok=thinks) == [(ASK, SAY)]
    says = "1 that the chat template does not pass on word for word (number 2)"
    assert says in capsys.readouterr().err
    refuses = "{% if messages[2:] %}{{ raise_exception('no system') }}{% endif %}"
    strict = tokenizer(template=refuses + CHAT)
    message = refused(texts, tmp_path, [{"messages": [*TURNS, said("b")]}], tok=strict)
    assert "f.jsonl, line 1: the chat template refuses it: no system" in message
    assert "needs a token that not all models have" in refused(texts, tmp_path, [OK], n_tokens=200)


def test_the_end_that_was_learned_ends_answers(world, flags, tmp_path, capsys):
    """Where the template's end token is not among the model's, as in Gemma: added to its list."""
    start = tmp_path / "start"
    shutil.copytree(world / "start", start)
    tokenizer(eos_token="<s>").save_pretrained(start)
    (start / "generation_config.json").write_text('{"eos_token_id": 1}')
    how = ["--init", start, *flags["train_sft"][2:], "--out", tmp_path]
    main("train_sft", *how)
    model = FusionRoute.from_pretrained(tmp_path / "seed0/router_sft")
    assert model.generation_config.eos_token_id == [1, 2]
    assert "note: math ends an answer with" in capsys.readouterr().err
