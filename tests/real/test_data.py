"""data.py: the forms in which people have samples (TRL's among them), and what is refused by name."""

import gzip
import io
import json
import os
import threading
import time
import zipfile

import pytest

from extra.real import data
from extra.real.pretrained_tokenizer import Tokenizer
from tests.real.conftest import lines, main, mistake, refused, write_tokenizer

TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|turn|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")
SFT, PAIR = ["completion"], ["chosen", "rejected"]


@pytest.fixture
def tokenizer(tmp_path):
    return Tokenizer(write_tokenizer(tmp_path / "tokenizer", TEMPLATE))


def user(text):
    return {"role": "user", "content": text}


def said(text):
    return {"role": "assistant", "content": text}


def texts(content, sides, tokenizer, max_len=64):
    """(prompt, answer) as text, of each sample in the bytes of a file."""
    found = data.read_samples("f", content if isinstance(content, bytes) else json.dumps(content).encode(), sides, tokenizer,
                              lambda i: i >= 267, max_len)
    return [(tokenizer.decode(ids[:learn.index(True)]), tokenizer.decode(ids[learn.index(True):])) for ids, learn in found]


ONE = ("<|user|>the<|turn|><|assistant|>", "cat<|turn|>")
TURNS = [{"role": "system", "content": "s"}, user("a"), said("b"), user("the")]
LONG = ("<|system|>s<|turn|><|user|>a<|turn|><|assistant|>b<|turn|>" + ONE[0], ONE[1])


@pytest.mark.parametrize("content, expected", [
    ({"prompt": "the", "completion": "cat"}, ONE),
    ({"messages": [user("the"), said("cat")]}, ONE),
    ({"prompt": [user("the")], "completion": [said("cat")]}, ONE),
    ({"prompt": [user("the")], "completion": "cat"}, ONE),
    ({"messages": [*TURNS, said("cat")]}, LONG),
    ({"prompt": TURNS, "completion": [said("cat")]}, LONG),
    ({"messages": [user([{"type": "text", "text": "th"}, {"type": "text", "text": "e"}]), said("cat")]}, ONE),
    ({"prompt": "the", "completion": "cat", "input": "", "system": None, "history": [], "score": 0.5, "ok": True, "id": "x-1"}, ONE),
    ({"messages": [{**user("the"), "tool_calls": None}, said("cat")], "prompt": ""}, ONE)])
def test_forms_of_samples(content, expected, tokenizer):
    assert texts(content, SFT, tokenizer) == [expected]


@pytest.mark.parametrize("content, expected", [
    ({"prompt": "the", "chosen": "cat", "rejected": "what"}, ONE),
    ({"prompt": [user("the")], "chosen": [said("cat")], "rejected": [said("what")]}, ONE),
    ({"prompt": TURNS, "chosen": [said("cat")], "rejected": [said("what")]}, LONG),
    ({"chosen": [user("the"), said("cat")], "rejected": [user("the"), said("what")]}, ONE),
    ({"chosen": [*TURNS, said("cat")], "rejected": [*TURNS, said("what")], "score_chosen": 9.0}, LONG)])
def test_forms_of_pairs(content, expected, tokenizer):
    prompt, answer = expected
    assert texts(content, PAIR, tokenizer) == [(prompt, answer), (prompt, "what<|turn|>")]


@pytest.mark.parametrize("sides, content, says", [
    (SFT, {"instruction": "do", "prompt": "the", "completion": "cat"}, "the field 'instruction' is not used here"),
    (SFT, {"system": "be", "prompt": "the", "completion": "cat"}, "the field 'system' is not used here"),
    (SFT, {"prompt": "the", "input": "x", "completion": "cat"}, "the field 'input' is not used here"),
    (SFT, {"prompt": "the", "context": ["x"], "completion": "cat"}, "the field 'context' is not used here"),
    (SFT, {"messages": [user("the"), said("cat")], "tools": [{"name": "x"}]}, "the field 'tools' is not used here"),
    (SFT, {"messages": [user("the"), {**said("cat"), "tool_calls": [1]}]}, "the field 'tool_calls' is not used here"),
    (SFT, {"messages": [user("the"), {**said("cat"), "reasoning_content": "hm"}]}, "the field 'reasoning_content' is not used here"),
    (SFT, {"messages": [user("the"), said("cat")], "prompt": "the"}, "has both messages and prompt: which of them counts?"),
    (SFT, {"messages": [user("the"), said("cat")], "completion": "x"}, "has both messages and completion"),
    (SFT, {"messages": [user("the")]}, "messages must end with a message of the assistant, and ends with one of the user"),
    (SFT, {"messages": [said("cat")]}, "messages: an answer must follow a message of the user"),
    (SFT, {"messages": [user("the"), said("a"), said("cat")]}, "must follow a message of the user, not of the assistant"),
    (SFT, {"messages": []}, "messages must be a list of messages, and is []"),
    (SFT, {"messages": "the"}, "messages must be a list of messages, and is \"the\""),
    (SFT, {"messages": [{"from": "human", "value": "the"}]}, "with a role (system, user, assistant) and a content"),
    (SFT, {"conversations": [{"from": "human", "value": "the"}]}, "the field completion is missing"),
    (SFT, {"messages": [{"role": "tool", "content": "x"}, said("cat")]}, "with a role"),
    (SFT, {"messages": [user([{"type": "image", "url": "x"}]), said("cat")]}, "the content of a message in messages must be a text"),
    (SFT, {"prompt": [said("the")], "completion": "cat"}, "prompt: an answer must follow a message of the user, not of the assistant"),
    (SFT, {"prompt": "the", "completion": [said("a"), said("b")]}, "completion must be one message of the assistant, and has 2"),
    (SFT, {"prompt": "the", "completion": [user("a")]}, "completion must end with a message of the assistant"),
    (SFT, {"prompt": 3, "completion": "cat"}, "prompt must be a text, and is 3"),
    (SFT, {"text": "the cat"}, "must be a JSON object with prompt and completion, or with messages; the field completion is missing"),
    (SFT, "the", "must be a JSON object with prompt and completion"), (SFT, None, "no sample that can be used"),
    (PAIR, {"prompt": "the", "chosen": "cat"}, "must be a JSON object with prompt, chosen and rejected; the field rejected is missing"),
    (PAIR, {"prompt": "the", "chosen": [user("x"), said("cat")], "rejected": [user("x"), said("b")]}, "chosen must be one message"),
    (PAIR, {"chosen": [user("the"), said("cat")], "rejected": [user("a"), said("cat")]}, "differ before the last message"),
    (PAIR, {"chosen": "cat", "rejected": "a"}, "the field prompt is missing"),
    (PAIR, {"messages": [user("the"), said("cat")]}, "the field chosen is missing"),
    (PAIR, {"prompt": "the", "chosen": "cat", "rejected": "a", "completion": "b"}, "the field 'completion' is not used here"),
    (SFT, b'{"prompt": "a", "prompt": "the", "completion": "cat"}', "the field 'prompt' is there twice"),
    (SFT, b'{"prompt": "the" "completion": "cat"}', "is no JSON (Expecting ',' delimiter"),
    (SFT, b"prompt,completion\nthe,cat\n", "line 1: is no JSON"),
    (SFT, b'[{"prompt": "the", "completion": "cat"},\n{"prompt": 3, "completion": "cat"}]', "f, item 2: prompt must be a text"),
    (SFT, b'[{"prompt": "the", "completion": "cat"},\n{"prompt"', "f, line 1: is no JSON")])
def test_what_is_not_used_or_not_clear_is_refused(sides, content, says, tokenizer):
    message = refused(texts, content, sides, tokenizer)
    assert says in message and message.startswith("f")


OBJECTS = [{"prompt": "the", "completion": "cat"}, {"prompt": "the", "completion": "dé"}]
LINES = b'{"prompt": "the", "completion": "cat"}\n{"prompt": "the", "completion": "d\xc3\xa9"}\n'
BOTH = [ONE, (ONE[0], "dé<|turn|>")]


@pytest.mark.parametrize("content", [
    LINES, LINES[:-1], b"\xef\xbb\xbf" + LINES, LINES.replace(b"\n", b"\r\n"), gzip.compress(LINES), LINES.decode().encode("utf-16"),
    LINES.decode().encode("utf-32"), LINES.decode().encode("utf-16-le"), LINES.decode().encode("utf-16-be"),
    json.dumps(OBJECTS).encode(), json.dumps(OBJECTS, indent=2).encode(), gzip.compress(json.dumps(OBJECTS).encode("utf-16"))])
def test_files(content, tokenizer):
    assert texts(content, SFT, tokenizer) == BOTH


def archive():
    file = io.BytesIO()
    zipfile.ZipFile(file, "w").writestr("a.jsonl", LINES)
    return file.getvalue()


@pytest.mark.parametrize("content, says", [
    (LINES.decode().encode("latin-1"), "f, line 2: the byte 0xe9 is not UTF-8; convert the file first, for example: iconv -f LATIN1"),
    (b"PAR1" + b"x" * 50, "f is Parquet: only JSON Lines"), (archive(), "f is a zip archive"),
    (gzip.compress(LINES)[:-9], "f is truncated"),
    (b"\x28\xb5\x2f\xfdx", "f is compressed by zstd"), (b"", "no sample that can be used"), (b"\n \n", "2 empty (lines 1, 2)"),
    (LINES.decode().encode("utf-16")[:-3], "is not UTF-16")])
def test_other_files_are_refused_by_name(content, says, tokenizer):
    assert says in refused(texts, content, SFT, tokenizer)


def test_a_line_of_50_MB_is_left_out_at_once(tokenizer, capsys):
    for long in ("x" * 50_000_000, "the " * 12_000_000, " " * 50_000_000 + "x"):
        content = json.dumps({"prompt": "the", "completion": long}).encode() + b"\n" + LINES
        begun = time.process_time()
        assert texts(content, SFT, tokenizer) == BOTH
        assert time.process_time() - begun < 20
        assert "1 of 3 lines left out: 1 of more than 64 tokens (line 1)" in capsys.readouterr().out


def test_lines_that_a_template_changes_are_left_out_and_counted(tmp_path, capsys):
    t = Tokenizer(write_tokenizer(tmp_path / "t", TEMPLATE.replace("m['content']", "m['content'].split('</think>')[-1]")))
    content = b'{"prompt": "a</think>b", "completion": "cat"}\n' + LINES
    assert texts(content, SFT, t) == BOTH
    out = capsys.readouterr().out
    assert "1 of 3 lines left out: 1 that the chat template of the router does not pass on word for word (line 1)" in out


def test_a_pipe_is_read_once(dirs, tmp_path):
    """As with --data <(zcat train.jsonl.gz): the same weights as from a file."""
    flags, fifo = dirs(), tmp_path / "fifo"
    main("train_sft", *flags.sft)
    os.mkfifo(fifo)
    threading.Thread(target=lambda: fifo.write_bytes((tmp_path / "train.jsonl").read_bytes()), daemon=True).start()
    at = flags.sft.index("--data") + 1
    main("train_sft", *flags.sft[:at], fifo, *flags.sft[at + 1:], "--out", tmp_path / "piped")
    a, b = ((out / "seed0/router_sft/model.safetensors").read_bytes() for out in (tmp_path / "out", tmp_path / "piped"))
    assert a == b


def test_the_scripts_take_conversations(dirs, tmp_path):
    """The same samples as texts and as messages give the same weights; a system message is refused where the template refuses it."""
    flags = dirs()
    main("train_sft", *flags.sft)
    main("train_cdpo", *flags.cdpo)
    first = (tmp_path / "out/seed0/router/model.safetensors").read_bytes()
    records = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    (tmp_path / "train.jsonl").write_text(json.dumps([{"messages": [user(r["prompt"]), said(r["completion"])]} for r in records]))
    records = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    pairs = [{"prompt": [user(r["prompt"])], "chosen": [said(r["chosen"])], "rejected": r["rejected"]} for r in records]
    lines(tmp_path / "pairs.jsonl", pairs)
    main("train_sft", *flags.sft, "--out", tmp_path / "b")
    main("train_cdpo", *flags.cdpo, "--out", tmp_path / "b")
    assert (tmp_path / "b/seed0/router/model.safetensors").read_bytes() == first
    lines(tmp_path / "train.jsonl", [{"messages": [user("a"), said("b")], "system": "s"}])
    assert "train.jsonl, line 1: the field 'system' is not used here" in mistake("train_sft", *flags.sft, "--out", tmp_path / "c")
