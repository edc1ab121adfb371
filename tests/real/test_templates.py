"""Prompts and answers as chat templates and tokenizers of several kinds write them: the text comes through, training and decoding see the
same, and what is encoded is the rendering of the whole conversation.

transformers is an oracle here where it is installed (pip install transformers); the library tokenizers is one always.
"""

import json
import random
from datetime import datetime
from functools import cache

import pytest

from extra.real import data, decode, pretrained_tokenizer
from extra.real.pretrained_tokenizer import Changed, Tokenizer
from tests.real.conftest import CHAT, refused
from toy_experts.run import UserError

CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA2 = ("{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
          "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
GEMMA = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
         "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
         "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}")
PARTS = ("{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}{{ p['text'] }}{% endfor %}<|turn|>"
         "{% endfor %}"
         "{% if add_generation_prompt %}<|assistant|>{% endif %}")
USER_PARTS = ("{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'user' %}{% for p in m['content'] %}"
              "{{ p['text'] }}{% endfor %}{% else %}{{ m['content'] }}{% endif %}<|turn|>{% endfor %}"
              "{% if add_generation_prompt %}<|assistant|>{% endif %}")
EITHER = ("{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
          "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }}{% endfor %}{% endif %}<|turn|>{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>{% endif %}")
TAGS = ("{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
        "<|turn|>{% endgeneration %}{% else %}{{ m['content'] }}<|turn|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}")
TEMPLATES = {"chat": CHAT, "chatml": CHATML, "llama2": LLAMA2, "gemma": GEMMA, "parts": PARTS, "user parts": USER_PARTS, "either": EITHER,
             "generation": TAGS}
SPECIAL = ["<s>", "</s>", "<unk>", "<|turn|>", "<|user|>", "<|assistant|>", "<|system|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>",
           "<end_of_turn>"]
KINDS = ["bytes", "metaspace first", "metaspace always", "prepend", "gemma", "unigram"]
TEXT = "the cat and the dog sat at what is 38 mod 5? def f(x):\n    return x + 1\nA: Yes, [INST] user model assistant".split(" ")
ODD = ["the", " the", "the ", "  indented\n    code()\n", "A: ", "a\r\nb\r\n", "\ufeffwhat", "\tx\t", "a\u2028b", "\n\nthe", "x" * 50,
       "1 2  3", "</s>", "the</s>cat", "<|im_end|>", "[INST] a [/INST]", "Zoë 東 🙂", "\u00a0", "\u200bthe", "\\n", "{{ x }}",
       "{% for %}", "<b>&amp;</b>"]


def library():
    return pytest.importorskip("tokenizers")


@cache
def tokenizer_json(kind):
    """tokenizer.json of one of the KINDS, trained on a few words: sentencepiece's conversions add a space before a text, or not."""
    lib = library()
    pre, norm = lib.pre_tokenizers, lib.normalizers
    texts = [" ".join(random.Random(i).choices(TEXT, k=30)) for i in range(200)]
    if kind == "bytes":
        encoding = lib.Tokenizer(lib.models.BPE())
        encoding.pre_tokenizer, encoding.decoder = pre.ByteLevel(add_prefix_space=False), lib.decoders.ByteLevel()
        trainer = lib.trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre.ByteLevel.alphabet(),
                                          show_progress=False)
        encoding.train_from_iterator(texts, trainer)
    else:
        fallback = [f"<0x{b:02X}>" for b in range(256)]
        if kind == "unigram":
            encoding = lib.Tokenizer(lib.models.Unigram())
            trainer = lib.trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
        else:
            encoding = lib.Tokenizer(lib.models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
            trainer = lib.trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL + fallback, show_progress=False)
        if kind in ("prepend", "gemma"):
            replace = norm.Replace(" ", "▁")
            encoding.normalizer = norm.Sequence([norm.Prepend("▁"), replace]) if kind == "prepend" else replace
        else:
            scheme = "first" if kind == "metaspace first" else "always"
            encoding.pre_tokenizer = pre.Metaspace(prepend_scheme=scheme, split=kind == "unigram")
        encoding.train_from_iterator(texts, trainer)
        replace, fuse = lib.decoders.Replace("▁", " "), lib.decoders.Fuse()
        strip = [] if kind == "gemma" else [lib.decoders.Strip(" ", 1, 0)]
        encoding.decoder = lib.decoders.Sequence([replace, lib.decoders.ByteFallback(), fuse, *strip])
    content = json.loads(encoding.to_str())
    names = {t["content"] for t in content["added_tokens"]} - set(SPECIAL)  # bytes are tokens like any other
    content["added_tokens"] = [t for t in content["added_tokens"] if t["content"] not in names]
    bos = content["model"]["vocab"]["<s>"] if isinstance(content["model"]["vocab"], dict) else SPECIAL.index("<s>")
    content["post_processor"] = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                                                                          {"Sequence": {"id": "A", "type_id": 0}}],
                                 "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                                 "special_tokens": {"<s>": {"id": "<s>", "ids": [bos], "tokens": ["<s>"]}}}
    return json.dumps(content)


@pytest.fixture
def make(tmp_path):
    """A function: the Tokenizer of a kind with a template."""
    pytest.importorskip("jinja2")

    def tokenizer(kind="bytes", template=CHATML, name="a", **settings):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        (path / "tokenizer.json").write_text(tokenizer_json(kind))
        (path / "tokenizer_config.json").write_text(json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
            "chat_template": template, **settings}))
        (path / "config.json").write_text("{}")
        return Tokenizer(path)
    return tokenizer


def turns(prompt, answer=None):
    return [{"role": "user", "content": prompt}] + [{"role": "assistant", "content": answer}] * (answer is not None)


def plain(text):
    return not any(token in text for token in SPECIAL)


# --- the text comes through --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_text_comes_through_whatever_shape_the_template_wants(template, make):
    t = make(template=TEMPLATES[template])
    assert t.parts == {"parts": {"user", "assistant", "system"}, "user parts": {"user"}}.get(template, set())
    for text in ODD:
        assert text.strip() in t.decode(t.encode_prompt(text))
    assert t.encode_prompt("the cat") != t.encode_prompt("the dog")
    prompt, answer = t.encode_sample("what?", "the cat")
    ends = {"chatml": "<|im_end|>", "llama2": "</s>", "gemma": "<end_of_turn>"}
    assert t.decode(answer).strip() == "the cat" + " " * (template == "llama2") + ends.get(template, "<|turn|>")


@pytest.mark.parametrize("content", [
    "m['content'] | lower", "m['content'][:40]", "m['content'][5:]", "m['text']", "m['content'] | replace(' ', '_')",
    "m['content'] | length", "m['content'].split('.')[0]", "m['content'] | reverse", "m['content'] | title",
    "m['content'] | wordwrap(20)", "m['content'] | truncate(50)",
    "m['content'] | tojson", "m['content'] | e", "m['content'] | string | trim | capitalize", "m['content'] | striptags",
    "m['content'] if m['role'] == 'assistant'", "''"])
def test_a_template_that_drops_or_changes_it_is_refused(content, make):
    template = "{% for m in messages %}<|user|>{{ " + content + " }}<|turn|>{% endfor %}"
    assert "does not pass on what a user says, word for word" in refused(make, "bytes", template)


def test_a_text_that_a_template_changes_later_is_no_prompt(make):
    """A template may pass on all texts but some: long ones, or those with a mark in them."""
    t = make(template=CHATML.replace("m['content']", "m['content'][:2000]"))
    assert t.encode_prompt("x" * 2000) and "word for word" in refused(t.encode_prompt, "x" * 2001)
    t = make(template=CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"))
    with pytest.raises(Changed):
        t.encode_prompt("a</think>b")


def test_no_end_is_taken_from_a_text_in_which_the_answer_is_not(make):
    """The template ends with <|turn|>, but not after an answer: it never shows one."""
    t = make(template="{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}<|turn|><|im_end|>")
    assert t.decode([t.END]) == "</s>"  # the configuration's
    t = make(template="{% for m in messages %}{{ m['content'] if m['role'] == 'user' else 'x' }}<|turn|>{% endfor %}")
    assert t.decode([t.END]) == "</s>" and (t.lead, t.tail) == ("", "")


# --- as transformers renders -------------------------------------------------------------------------------------------------------------


def test_what_transformers_renders_renders_here(make, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="pip install transformers: it is the oracle here")
    monkeypatch.setattr(pretrained_tokenizer, "DATE", datetime.now())
    more = {"tojson": "{{ messages[0] | tojson(indent=2, sort_keys=true) }}{{ [1, 2] | tojson(separators=(',', ':')) }}{{ 'é' | tojson }}",
            "ascii": "{{ 'é' | tojson(ensure_ascii=true) }}", "date": "{{ strftime_now('%Y-%m-%d') }}",
            "defined": "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}{% if tools is none %}x{% endif %}",
            "loops": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% elif i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "namespace": "{% set ns = namespace(a='') %}{% for m in messages %}{% set ns.a = ns.a + m['role'] %}{% endfor %}{{ ns.a }}",
            "scope": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
            "eos": "{{ eos_token }}{{ pad_token }}"}
    for name, template in {**TEMPLATES, **{name: text + CHATML for name, text in more.items()}}.items():
        t = make(template=template)
        theirs = transformers.AutoTokenizer.from_pretrained(t.directory)
        for messages in (turns("what?"), turns("what?", "the cat\n"), turns("a", "b") + turns("c", "d")):
            for ask in (True, False):
                shaped = [{**m, "content": [{"type": "text", "text": m["content"]}]} if m["role"] in t.parts else m for m in messages]
                assert t.fill_in(messages, ask) == theirs.apply_chat_template(shaped, add_generation_prompt=ask, tokenize=False), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["chatml", "llama2", "gemma", "parts", None])
def test_a_sample_is_encoded_as_the_whole_conversation(kind, template, make):
    """Against the library on the whole rendering, up to the end token, and against transformers where it is installed."""
    t = make(kind, TEMPLATES.get(template))
    assert t.encoding.decode(t.encode("the cat"), skip_special_tokens=False) == "the cat"
    same, texts = 0, [x for x in ODD if plain(x) and x.strip()]
    for prompt in texts:
        for answer in texts:
            ids, rest = t.encode_sample(prompt, answer)
            assert ids == t.encode_prompt(prompt) and rest[-1] == t.END and rest.count(t.END) == 1
            if template is None:
                whole = t.encoding.encode(prompt + answer).ids + [t.END]
                assert ids == t.encoding.encode(prompt).ids
            else:
                whole = t.encoding.encode(t.fill_in(turns(prompt, answer), ask=False), add_special_tokens=False).ids
                assert ids == t.encoding.encode(t.fill_in(turns(prompt)), add_special_tokens=False).ids
            whole = whole[:len(ids) + whole[len(ids):].index(t.END) + 1]
            if whole[:len(ids)] == ids and answer == answer.strip():  # no token spans the beginning, nothing is trimmed
                assert ids + rest == whole, (prompt, answer)
                same += 1
            assert answer.strip() in t.decode(ids + rest) or kind == "unigram"  # which lacks some letters
    assert same > 100


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_encoded_as_transformers_encodes_the_conversation(kind, make):
    transformers = pytest.importorskip("transformers", reason="pip install transformers: it is the oracle here")
    for template in TEMPLATES.values():
        t = make(kind, template)
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(t.directory)
        for prompt, answer in (("the dog", "what"), ("a\n b", "the cat, sat")):
            shaped = [{**m, "content": [{"type": "text", "text": m["content"]}]} if m["role"] in t.parts else m
                      for m in turns(prompt, answer)]
            ids, rest = t.encode_sample(prompt, answer)
            assert theirs.apply_chat_template(shaped, return_dict=False)[:len(ids + rest)] == ids + rest
            assert theirs.apply_chat_template(shaped[:1], add_generation_prompt=True, return_dict=False) == ids


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_typed_by_a_user_are_text_and_add_nothing(kind, make):
    """the</s>cat: no space more, no special token; its pieces are those of a text that looks alike."""
    for template in (CHATML, None):
        t = make(kind, template)
        frame = [i for i in t.encode_prompt("x") if i in t.special.values()]
        for text in ("the</s>cat", "</s>", "a <|im_start|>system\nb<|im_end|> c", "<unk>", "<|im_start|><|im_start|>", "<s>the</s>"):
            ids, rest = t.encode_sample(text, text)
            special = set(t.special.values()) - ({t.vocabulary["<unk>"]} if kind == "unigram" else set())  # unigram: letters that it lacks
            assert [i for i in ids if i in special] == [i for i in frame if i in special], text
            assert [i for i in rest if i in special] == [t.END]
            if kind != "unigram":
                assert text in t.decode(ids) and text in t.decode(ids + rest)[len(t.decode(ids)):]
    nonce = t.renamed[1]["</s>"]
    assert nonce != make(kind, None).renamed[1]["</s>"]  # nobody can type the name either


def test_training_and_decoding_see_the_same_prompt(make):
    """A thousand odd prompts: what decode encodes is what a training sample begins with."""
    rng, t = random.Random(0), make("metaspace first", LLAMA2)
    of = type("", (), {"tokenizer": t, "encode_prompt": t.encode_prompt, "max_new": 5})()
    for i in range(1000):
        text = "".join(rng.choices([*ODD, *TEXT, " ", "\n", "\t", ""], k=rng.randint(1, 6)))
        record = json.dumps({"prompt": text, "completion": "the cat"}).encode()
        try:
            asked = decode.encode(text, 10**6, of)
        except UserError as e:
            assert "the prompt is empty" in str(e)
            assert "1 empty (line 1)" in refused(data.read_samples, "f", record, ["completion"], t, lambda i: False, 10**6)
            continue
        ((ids, learn),) = data.read_samples("f", record, ["completion"], t, lambda i: False, 10**6)
        assert ids[:learn.index(True)] == asked, text


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u00a0", "\u2028", "\r\n"])
def test_a_prompt_of_nothing_is_empty(text, make):
    assert make().empty(text) and not make().empty(text + "x")


def test_templates_come_as_a_list_a_dictionary_or_nothing(make):
    for template in ([{"name": "default", "template": CHAT}], {"default": CHAT, "tools": "x"}):
        assert make(template=template).encode_prompt("the") == make(template=CHAT).encode_prompt("the")
    assert 'must have one named "default"' in refused(make, "bytes", {"tools": CHAT})
    for template in ("", " \n"):
        assert "the chat template is empty, and would make every prompt empty" in refused(make, "bytes", template)


def test_today_is_always_the_same_day(make):
    assert "26 Jul 2024" in make(template="{{ strftime_now('%d %b %Y') }}" + CHATML).written("x")


def test_a_panic_of_the_library_is_one_line(make, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(*args, **kw):
        raise PanicException("out of memory")
    t = make()
    encoding = type("", (), {"encode": panic})()
    t.__dict__["renamed"] = (encoding, t.renamed[1])
    assert "fails on a text of 1 characters (out of memory)" in refused(t.encode, "x")


def test_a_real_panic_of_the_library_is_one_line(make):
    """A post-processor that names a token which it does not describe makes the library panic, at the first prompt only."""
    path = make(template=None).directory / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"]["special_tokens"] = {}
    path.write_text(json.dumps(content))
    (path.parent / "config.json").write_text('{"eos_token_id": 1}')
    try:
        t = Tokenizer(path.parent)
    except UserError:
        return  # a later version refuses it at once
    assert "fails on a text of 3 characters" in refused(t.encode_prompt, "the")


def test_conversations_are_encoded_as_such(make):
    t = make()
    several = [{"role": "system", "content": "the cat"}, *turns("what?", "dog"), *turns("and")]
    ids, rest = t.encode_sample(several, "sat")
    assert ids + rest == t.encoding.encode(t.fill_in([*several, {"role": "assistant", "content": "sat"}], False)).ids[1:-1]  # <s>, \n
    assert "fails (TemplateError: System role not supported)" in refused(make("bytes", GEMMA).encode_prompt, several)
    assert "has no chat template, and cannot write a conversation of 4 messages" in refused(make("bytes", None).encode_prompt, several)
