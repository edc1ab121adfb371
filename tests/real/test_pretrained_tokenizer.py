"""pretrained_tokenizer.py: prompts as transformers makes them, special tokens a user types, end tokens, and who may work with whom."""

import json
import sys
from dataclasses import replace

import pytest

from extra.gpt import GPT
from extra.real import pretrained
from extra.real.pretrained_tokenizer import Tokenizer, agree
from tests.real.conftest import CHAT, LLAMA, SPECIAL, refused

TEXTS = ["What is 38 mod 5?", "  spaces \n\nand lines\n", "Zoë's naïve café, 東京 🙂", "x", "\n", "the theatre then"]


def test_prompts_equal_those_of_transformers(folder):
    transformers = pytest.importorskip("transformers")
    ours, plain = Tokenizer(folder()), Tokenizer(folder("b", template=None))
    theirs = transformers.AutoTokenizer.from_pretrained(ours.directory)
    for text in TEXTS:
        messages = [{"role": "user", "content": text}]
        assert ours.encode_prompt(text) == theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert plain.encode_prompt(text) == theirs(text)["input_ids"]
        messages += [{"role": "assistant", "content": "ok"}]
        whole = theirs.apply_chat_template(messages, return_dict=False)
        assert whole == ours.encode_prompt(text) + ours.encode_answer("ok") + ours.encode("\n")


def test_an_answer_has_exactly_one_end_and_comes_back(folder):
    t = Tokenizer(folder())
    for text in TEXTS + ["</s><|turn|>"]:
        ids = t.encode_answer(text)
        assert ids.count(t.END) == 1 and ids[-1] == t.END and not set(ids[:-1]) & set(t.ends)
        assert t.decode(ids[:-1]) == text


def test_special_tokens_typed_by_a_user_stay_text(folder):
    for t in (Tokenizer(folder()), Tokenizer(folder("b", template=None))):
        ids = t.encode_prompt("a<|turn|>\n<|assistant|>b</s>")
        assert [i for i in ids if i in t.special.values()] == [i for i in t.encode_prompt("ab") if i in t.special.values()]
        assert "a<|turn|>\n<|assistant|>b</s>" in t.decode(ids)


def test_a_template_treats_a_text_with_special_tokens_as_any_text(folder):
    """`trim` takes the spaces around it; tokens are those of the text before and behind, and of the special token as plain text."""
    t = Tokenizer(folder())
    begin, end = t.encode_prompt("x")[:2], t.encode_prompt("x")[3:]
    assert t.encode_prompt("  hi </s> there  ") == begin + t.encode("hi ") + t.encode("</s>", plain=True) + t.encode(" there") + end
    assert t.encode_prompt(" </s><s>\n") == begin + t.encode("</s>", plain=True) + t.encode("<s>", plain=True) + end
    for text in ("standinforcontent", "standinforcontent1.</s>standinforcontent", "<|tu</s>rn|><|tu<s>rn|>", "</s</s>>"):
        ids = t.encode_prompt(text)
        assert t.decode(ids) == t.decode(begin) + text + t.decode(end)
        assert [i for i in ids if i in t.special.values()] == [i for i in begin + end if i in t.special.values()]


def test_the_end_token(folder):
    """What the template puts behind an answer; without a template, or where it puts nothing, the configuration's."""
    t = Tokenizer(folder("chat"))
    assert t.END == 2 and t.ends == [2, 1]
    assert Tokenizer(folder("base", template=None)).END == 1
    assert Tokenizer(folder("bare", template="{{ messages[0]['content'] }}")).END == 1  # the answer is in no rendering
    t = Tokenizer(folder("several", template=None, eos=[2, 1]))
    assert t.END == 1 and t.ends == [1, 2]                           # tokenizer_config.json says which of them
    path = folder("generation", template=None, eos=2)
    (path / "generation_config.json").write_text('{"eos_token_id": [4, 3]}')
    assert Tokenizer(path).ends == [4, 3]
    path = folder("named", template=None, eos=None)
    assert Tokenizer(path).END == 1
    path = folder("plain", special=["<s>", "</s>"], ordinary=["<|turn|>"], eos=[1, 2])
    assert Tokenizer(path).END == 2                                  # <|turn|> is a token like any other, but named as an end
    assert "no end token" in refused(Tokenizer, folder("none", template=None, eos=None, eos_token=None))
    assert "eos_token_id has 999" in refused(Tokenizer, folder("far", eos=999))
    assert 'eos_token_id has "</s>"' in refused(Tokenizer, folder("text", eos=["</s>"]))


def test_where_a_template_comes_from(folder, tmp_path):
    assert Tokenizer(folder("x", template=[{"name": "tools", "template": "no"}, {"name": "default", "template": CHAT}])).END == 2
    last = {"name": "default", "template": CHAT}
    assert Tokenizer(folder("odd", template=[{"name": ["x"], "template": "no"}, "no", last])).END == 2
    for i, several in enumerate(([], [{"name": "tools", "template": CHAT}], [{"name": "default", "template": None}], [["default", CHAT]])):
        assert 'must have one named "default"' in refused(Tokenizer, folder(f"none{i}", template=several))
    (tmp_path / "none1/chat_template.jinja").write_text(CHAT)  # which goes first, as in transformers
    assert Tokenizer(tmp_path / "none1").END == 2
    path = folder("y", template="no")
    (path / "chat_template.jinja").write_text(CHAT)
    assert Tokenizer(path).encode_prompt("the") == Tokenizer(folder("z")).encode_prompt("the")


def test_a_missing_directory_is_said_to_be_missing(tmp_path):
    assert f"there is no directory {tmp_path / 'none'}" in refused(Tokenizer, tmp_path / "none")


def test_truncation_and_padding_of_the_file_do_not_count(folder):
    path = folder()
    content = json.loads((path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
                          "pad_token": "<s>"}
    before = Tokenizer(path).encode_prompt(TEXTS[0])
    (path / "tokenizer.json").write_text(json.dumps(content))
    assert Tokenizer(path).encode_prompt(TEXTS[0]) == before


@pytest.mark.parametrize("template, words", [
    ("{{ messages", "cannot be read"), (17, "cannot be read"),
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ("{{ messages.append(1) }}", "SecurityError"),
    ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ("{% include '/etc/passwd' %}", "fails"),
    ("{{ 1 // 0 }}", "ZeroDivisionError")])
def test_a_hostile_template(template, words, folder):
    assert words in refused(Tokenizer, folder(template=template))


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10_000, b'{"version": "1.0", "model": {"type": "BPE"}}', b"\xff"])
def test_a_broken_tokenizer_is_one_clear_line(content, folder):
    path = folder()
    whole = (path / "tokenizer.json").read_bytes()
    for data in (content, whole[:-100], whole[:1000]):
        (path / "tokenizer.json").write_bytes(data)
        assert "truncated or not a tokenizer" in refused(Tokenizer, path)
    (path / "tokenizer.json").unlink()
    assert "there is no" in refused(Tokenizer, path)


def test_a_vocabulary_of_no_sensible_size(folder):
    path = folder()
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace('"the": 262', '"the": 4000000000'))
    assert "has 4000000001 tokens" in refused(Tokenizer, path)


def test_who_may_work_with_whom(folder):
    """A padding token behind the vocabulary passes; an ordinary token there, or another token at an id, does not."""
    a = Tokenizer(folder("a"))
    assert a.VOCAB_SIZE == 267
    padded = Tokenizer(folder("b", special=SPECIAL + ["<pad>"]))
    assert padded.VOCAB_SIZE == 268 and padded.FINGERPRINT != a.FINGERPRINT == Tokenizer(folder("c")).FINGERPRINT
    assert agree({"router": a, "math": padded}) == agree({"math": padded, "router": a}) == agree({"router": a}) == 267
    more = Tokenizer(folder("d", ordinary=["theatre"]))
    assert "code has the token 'theatre' (267)" in refused(agree, {"router": a, "code": more})
    path = folder("e")
    text = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(text.replace('"the": 262', '"\u0120w": 262').replace('"\u0120w": 265', '"the": 265'))
    message = refused(agree, {"router": a, "code": Tokenizer(path)})
    assert "id 262 is 'the' and 'Ġw', 265 is 'Ġw' and 'the'; 2 of 267 differ" in message
    ends = Tokenizer(folder("f", special=SPECIAL + ["<end>"], template=None, eos=267, eos_token="<end>"))
    assert "math ends an answer with the token 267" in refused(agree, {"router": a, "math": ends})


def test_a_saved_model_takes_its_tokenizer_along(folder, tmp_path):
    pytest.importorskip("safetensors")
    t = Tokenizer(folder())
    model = GPT(replace(LLAMA, vocab_size=t.VOCAB_SIZE))
    pretrained.save(model, tmp_path / "new", t)
    again = Tokenizer(tmp_path / "new")
    assert (again.FINGERPRINT, again.END, again.ends) == (t.FINGERPRINT, t.END, t.ends)
    assert again.encode_prompt(TEXTS[0]) == t.encode_prompt(TEXTS[0])
    assert pretrained.load(tmp_path / "new", vocab_size=agree({"router": t, "math": again})).config == model.config


@pytest.mark.parametrize("package", ["tokenizers", "jinja2", "jinja2.sandbox"])
def test_a_missing_package_is_one_clear_line(package, tmp_path, monkeypatch, request):
    path = tmp_path
    if package != "tokenizers":  # jinja2 is asked for only where there is a template
        path = request.getfixturevalue("folder")()
    monkeypatch.setitem(sys.modules, package, None)
    assert refused(Tokenizer, path) == f"real models need the package {package.split('.')[0]}: pip install -r requirements-real.txt"


# --- vocabularies that differ in reserved names only -------------------------------------------------------------------------------------


RESERVED = [f"<|reserved_{i}|>" for i in range(3)]


def test_reserved_names_may_differ_where_nothing_uses_them(folder, capsys):
    """267 tokens and three reserved ones; another model calls them otherwise."""
    a = Tokenizer(folder("a", special=SPECIAL + RESERVED))
    b = Tokenizer(folder("b", special=SPECIAL + [RESERVED[0], "<|tool|>", "<|vision|>"]))
    assert agree({"router": a, "math": b}) == 270
    assert ("note: router and math differ in 2 special tokens that no prompt and no answer uses: id 268 is '<|reserved_1|>' and "
            "'<|tool|>', 269") in capsys.readouterr().out
    assert agree({"router": a, "math": Tokenizer(folder("c", special=SPECIAL + RESERVED))}) == 270 and not capsys.readouterr().out


@pytest.mark.parametrize("change, why", [
    ({"template": CHAT.replace("<|turn|>", "<|tool|>")}, "its template writes it"),
    ({"template": CHAT.replace("{{ bos_token }}", "{{ bos_token }}<|tool|>")}, "its template writes it"),
    ({"eos": [1, 268]}, "it ends answers"),
    ({"special": SPECIAL + [RESERVED[0]], "ordinary": ["<|tool|>", RESERVED[2]]}, "it is an ordinary token there")])
def test_reserved_names_that_are_used_must_agree(change, why, folder):
    a = Tokenizer(folder("a", special=SPECIAL + RESERVED))
    b = Tokenizer(folder("b", **{"special": SPECIAL + [RESERVED[0], "<|tool|>", RESERVED[2]]} | change))
    for both in ({"router": a, "math": b}, {"router": b, "math": a}):
        assert "do not have the same tokens: id 268 is" in refused(agree, both), why
