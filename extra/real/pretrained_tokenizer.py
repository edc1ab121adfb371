"""The tokenizer and the chat template of a directory in the format of Hugging Face.

    tokenizer = Tokenizer("DIR")
    prompt, answer = tokenizer.encode_sample("What is 38 mod 5?", "3")      # token ids of both
    print(tokenizer.decode(prompt + answer))

tokenizer.json is read by the library `tokenizers`. A chat template is a small program: it runs in jinja2's sandbox, as it does in
transformers, and can neither reach a file nor change an object. (It can still take its time: use Ctrl-C.)

A prompt is a text, or a list of messages {"role", "content"}. Training and decoding both encode it with `encode_prompt`.
"""

import hashlib
import json
import re
import secrets
from datetime import datetime
from functools import cache, cached_property
from pathlib import Path

from extra.real.pretrained import LARGEST, extra, read_json, shown
from toy_experts.run import UserError

STAND_IN = "standinforcontent"  # takes the place of a special token that a user types, in a chat template
PROMPT = "Stand in 4 what a User 'says', at some \"Length\", <b> & more:\n    Lines that no Template cuts. " * 8 + "Its End"
ANSWER = PROMPT.replace("User", "Model")
DATE = datetime(2024, 7, 26)    # what templates get that ask for today: a prompt's tokens must not depend on the day


class Changed(UserError):
    """The chat template does not pass on a text as it is."""


class Tokenizer:
    """tokenizer.json of a directory, and its chat template if it has one.

    END ends an answer: what the chat template puts after one, else the end-of-text token of the configuration. `ends` are all the
    tokens at which the model may stop. VOCAB_SIZE: the largest token id, plus one. FINGERPRINT: 16 hex digits for token -> id.
    files: name -> bytes, the tokenizer's files as they were read.
    """

    def __init__(self, directory):
        directory = Path(directory)
        if not directory.is_dir():
            raise UserError(f"there is no directory {directory}: a model has config.json, .safetensors files and tokenizer.json")
        self.directory, path, tokenizers = directory, directory / "tokenizer.json", extra("tokenizers")
        names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
        self.files = {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}
        if path.name not in self.files:
            raise UserError(f"there is no {path}: transformers makes one from older tokenizer files, with "
                            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)")
        try:
            self.encoding = tokenizers.Tokenizer.from_buffer(self.files[path.name])
        except Exception as e:  # the library raises nothing more special
            raise UserError(f"{path} is truncated or not a tokenizer ({str(e)[:100]})") from e
        self.vocabulary = self.encoding.get_vocab(with_added_tokens=True)  # token -> id
        self.special = {token.content: i for i, token in self.encoding.get_added_tokens_decoder().items() if token.special}
        self.longest = max(map(len, self.vocabulary), default=0)  # token, in characters
        self.VOCAB_SIZE = max(self.vocabulary.values(), default=-1) + 1
        if not 0 < self.VOCAB_SIZE <= LARGEST:
            raise UserError(f"{path} has {self.VOCAB_SIZE} tokens, and must have from 1 to {LARGEST}")
        self.FINGERPRINT = hashlib.sha256(json.dumps(sorted(self.vocabulary.items())).encode()).hexdigest()[:16]
        self.hidden = [STAND_IN, *self.special]  # what `written` hides from a template
        self.read_template()
        self.read_ends()

    # --- the chat template ---

    def read_template(self):
        """Set self.template (None without one), self.named, the special tokens that templates call by name, and self.parts."""
        settings = read_json(self.directory / "tokenizer_config.json", missing={})
        template, where = settings.get("chat_template"), self.directory / "tokenizer_config.json"
        if "chat_template.jinja" in self.files:
            where = self.directory / "chat_template.jinja"
            template = self.files[where.name].decode("utf-8", "replace")
        if isinstance(template, list):  # several, each with a name
            template = {t.get("name"): t.get("template") for t in template if isinstance(t, dict) and isinstance(t.get("name"), str)}
        if isinstance(template, dict) and not isinstance(template := template.get("default"), str):
            raise UserError(f"{where}: chat_template has several, and must have one named \"default\"")
        if isinstance(template, str) and not template.strip():
            raise UserError(f"{where}: the chat template is empty, and would make every prompt empty; without the key (or the file), "
                            "prompts are encoded without a template")
        named = {**read_json(self.directory / "special_tokens_map.json", missing={}), **settings}
        named = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
        self.named = {key: value for key, value in named.items() if key.endswith("_token") and isinstance(value, str)}
        self.template, self.parts = None, set()  # parts: roles whose content this template takes as a list of parts
        if template is None:
            return
        jinja2, env = extra("jinja2"), environment()
        try:
            self.template = env.from_string(template)
        except (jinja2.TemplateError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(f"{self.directory}: the chat template cannot be read ({str(e)[:100]})") from e
        if not self.carries("user", PROMPT, [{"role": "user", "content": PROMPT}]):
            raise UserError(f"{self.directory}: the chat template does not pass on what a user says, word for word, neither as a text nor "
                            "as a list of parts: all prompts would be alike, or changed")

        try:
            self.carries("system", PROMPT, [{"role": "system", "content": PROMPT}, {"role": "user", "content": "x"}])
        except UserError:  # many templates refuse system messages
            pass

    def carries(self, role, text, messages):
        """Is the text in the rendering of these messages? Tries content as a text, then as a list of parts, and remembers what works."""
        failure = None
        for parts in (set(), {role}):
            self.parts = self.parts - {role} | parts
            try:
                if text in self.fill_in(messages):
                    return True
            except UserError as e:  # as a text, it may only have wanted parts; as parts, a text
                failure = failure or (not parts and e)
        self.parts -= {role}
        if failure:
            raise failure
        return False

    def fill_in(self, messages, ask=True):
        """The chat template filled in with messages; ask: up to where the next answer begins."""
        shaped = [{**m, "content": [{"type": "text", "text": m["content"]}]} if m["role"] in self.parts else m for m in messages]
        try:
            return self.template.render(messages=shaped, add_generation_prompt=ask, tools=None, documents=None, **self.named)
        except Exception as e:  # whatever a foreign template runs into
            raise UserError(f"{self.directory}: the chat template fails ({type(e).__name__}: {str(e)[:100]})") from e

    def read_ends(self):
        """Set END and ends, and what the template writes around an answer: self.lead before it, self.tail between it and END."""
        ids = None
        for name in ("generation_config.json", "config.json"):
            ids = read_json(self.directory / name, missing={}).get("eos_token_id") if ids is None else ids
        ids = self.vocabulary.get(self.named.get("eos_token")) if ids is None else ids
        self.ends = list(ids) if isinstance(ids, list) else [] if ids is None else [ids]
        for i in self.ends:
            if type(i) is not int or not 0 <= i < self.VOCAB_SIZE:
                raise UserError(f"{self.directory}: eos_token_id has {shown(i)}, and must be from 0 to {self.VOCAB_SIZE - 1}")
        self.lead = self.tail = ""
        self.END, turns = None, [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": ANSWER}]
        if self.template and self.carries("assistant", ANSWER, turns):
            asked, (before, _, after) = self.fill_in(turns[:1]), self.fill_in(turns, ask=False).rpartition(ANSWER)
            self.END = next((i for i in self.encode(after) if i in self.special.values() or i in self.ends), None)
            if before.startswith(asked):
                self.lead = before[len(asked):]
                end = self.encoding.id_to_token(self.END) if self.END is not None else None
                self.tail = after.partition(end)[0] if end and end in after else ""
        if self.END is None:
            if not self.ends:
                raise UserError(f"{self.directory}: no end token: neither generation_config.json nor config.json has eos_token_id")
            named = self.vocabulary.get(self.named.get("eos_token"))
            self.END = named if named in self.ends else self.ends[0]
        self.ends = list(dict.fromkeys([self.END, *self.ends]))

    # --- texts -> token ids ---

    @cached_property
    def renamed(self):
        """The same tokenizer with every special token under a name that nobody types, and token -> that name.

        In it, a special token that a user types is a text like any other, and a rendering is encoded as a whole: what a tokenizer does
        at the beginning of a text (many add a space) it does once.
        """
        content, nonce = json.loads(self.files["tokenizer.json"]), secrets.token_hex(8)
        names = {token: f"\uf8ff{nonce}{i}\uf8ff" for i, token in enumerate(self.special)}
        for token in content.get("added_tokens", []):
            token["content"] = names.get(token["content"], token["content"])
        model = content["model"]
        if isinstance(model.get("vocab"), dict):
            model["vocab"] = {names.get(token, token): i for token, i in model["vocab"].items()}
        elif isinstance(model.get("vocab"), list):
            model["vocab"] = [[names.get(token, token), score] for token, score in model["vocab"]]
        if "merges" in model:  # a merge that makes a special token out of text
            pairs = ((m, m.split(" ") if isinstance(m, str) else m) for m in model["merges"])
            model["merges"] = [m for m, pair in pairs if "".join(pair) not in names and not set(pair) & set(names)]
        if model.get("unk_token"):
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        try:
            encoding = extra("tokenizers").Tokenizer.from_str(json.dumps(content))
        except Exception as e:  # the library raises nothing more special
            raise UserError(f"{self.directory / 'tokenizer.json'}: its special tokens cannot be told from text ({str(e)[:100]})") from e
        encoding.no_truncation()  # a tokenizer.json may ask for either
        encoding.no_padding()
        return encoding, names

    def encode(self, text, plain=False, add=False):
        """Token ids of a text. plain: special tokens in it are just text. add: with what the tokenizer puts around any text."""
        encoding, names = self.renamed
        if names and not plain:
            text = re.sub(any_of(tuple(names)), lambda found: names[found[0]], text)
        try:
            return encoding.encode(text, add_special_tokens=add).ids
        except BaseException as e:  # the library's panics are no Exception
            if type(e).__name__ != "PanicException" and not isinstance(e, Exception):
                raise
            raise UserError(f"the tokenizer of {self.directory} fails on a text of {len(text)} characters ({str(e)[:100]})") from e

    def written(self, prompt):
        """A prompt as the template writes it, special tokens of the template under the names that self.renamed knows."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        # Special tokens in a text, and stand-ins that a user types, are hidden from the template behind stand-ins.
        names, tokens = self.renamed[1], self.hidden
        hide = lambda text: re.sub(any_of(tuple(tokens)), lambda found: f"{STAND_IN}{tokens.index(found[0])}.", text)
        hidden = [{**m, "content": hide(m["content"])} for m in messages]
        text = self.fill_in(hidden)
        for m in hidden:
            if m["content"].strip() not in text:
                raise Changed(f"{self.directory}: the chat template does not pass on this {m['role']}'s text word for word: "
                              f"{m['content'][:60]!r}")
        if names:
            text = re.sub(any_of(tuple(names)), lambda found: names[found[0]], text)
        return re.sub(rf"{STAND_IN}(\d+)\.", lambda found: tokens[int(found[1])], text)

    def most_characters(self, tokens):
        """A text of more characters than this surely has more tokens than `tokens`: to count them would only take time."""
        return 4 * tokens * self.longest

    def empty(self, text):
        """Is there nothing in a text that a model would read?"""
        return not text.strip() or not self.encode(text, plain=True)

    def text_of(self, prompt):
        """A prompt as one text to encode, up to the place where the answer begins."""
        if self.template is not None:
            return self.written(prompt)
        if isinstance(prompt, str):
            return prompt
        if len(prompt) == 1 and prompt[0]["role"] == "user":
            return prompt[0]["content"]
        raise UserError(f"{self.directory} has no chat template, and cannot write a conversation of {len(prompt)} messages")

    def encode_prompt(self, prompt):
        """Token ids of a prompt up to the place where the answer begins. Special tokens typed by a user stay plain text."""
        return self.encode(self.text_of(prompt), plain=True, add=self.template is None)

    def encode_answer(self, text):
        """Token ids of an answer by itself, as after a special token, with exactly one end token."""
        before = next(iter(self.renamed[1].values()), "")
        return self.encode(before + text, plain=True)[bool(before):] + [self.END]

    def encode_sample(self, prompt, *answers):
        """Token ids of a prompt, and of each answer with its end token, as in the rendering of the whole conversation.

        Where a token would span the place where the answer begins, the answer is encoded by itself: a model that is asked has read the
        prompt's tokens.
        """
        add, text, end = self.template is None, self.text_of(prompt), self.renamed[1].get(self.encoding.id_to_token(self.END))
        ids, out = self.encode(text, plain=True, add=add), []
        for answer in answers:
            whole = text + self.lead + answer + self.tail
            whole = self.encode(whole + end, True, add) if end else self.encode(whole, True, add) + [self.END]
            out.append(whole[len(ids):] if whole[:len(ids)] == ids and whole[-1] == self.END else self.encode_answer(answer))
        return ids, *out

    def used(self):
        """The special tokens that a sample can have: those of the template, and all ends."""
        return {i for ids in self.encode_sample(PROMPT, ANSWER) for i in ids if i in self.special.values()} | set(self.ends)

    # --- token ids -> texts ---

    def decode(self, ids):
        return self.encoding.decode(ids, skip_special_tokens=False)

    def alone(self, token):
        """The text of one token that is shown by itself: with its leading space, and named where it is only a part of a character."""
        before = self.encode("x")[-1:]
        text = self.decode(before + [token])[len(self.decode(before)):]
        return f"part of a character, token {token}" if "\ufffd" in text else text


@cache
def any_of(tokens):
    """A regular expression for any of these texts (a tuple), the longest first."""
    return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))


def environment():
    """jinja2's sandbox with what chat templates find in transformers."""
    jinja2, ext = extra("jinja2"), extra("jinja2.ext")

    class Generation(ext.Extension):
        """{% generation %} ... {% endgeneration %} marks what an assistant says; the text is what stands in between."""
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def refuse(message):
        raise jinja2.TemplateError(message)

    env = extra("jinja2.sandbox").ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                                extensions=[Generation, "jinja2.ext.loopcontrols"])
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=refuse, strftime_now=DATE.strftime)
    return env


def agree(tokenizers):
    """The size of the vocabulary that several models share; tokenizers: name -> Tokenizer, the router's first.

    Logits can be added only where all mean the same token by the same id. Beyond the smallest vocabulary, special tokens are let
    pass (a padding token that fine-tuning has added): they are never in a text, and their rows are cut off like all padding. So are
    special tokens whose names differ (reserved ones, mostly), where no template and no end of an answer uses them.
    UserError names the first tokens that differ.
    """
    size = min(t.VOCAB_SIZE for t in tokenizers.values())
    (first, reference), *others = tokenizers.items()
    used = lambda: set().union(*(t.used() for t in tokenizers.values()))
    for name, other in others:
        differ = different(reference, other, size)
        examples = ", ".join(f"{i} is {a!r} and {b!r}" for i, (a, b) in list(differ.items())[:3])
        text = {i for i, (a, b) in differ.items() if a not in [None, *reference.special] or b not in [None, *other.special]}
        if text or used() & set(differ):
            raise UserError(f"{first} and {name} do not have the same tokens: id {examples}; {len(differ)} of {size} differ")
        if differ:
            print(f"note: {first} and {name} differ in {len(differ)} special tokens that no prompt and no answer uses: id {examples}")
    for name, t in tokenizers.items():
        beyond = [token for token, i in t.vocabulary.items() if i >= size and token not in t.special]
        if beyond:
            raise UserError(f"{name} has the token {beyond[0]!r} ({t.vocabulary[beyond[0]]}), which not all of "
                            f"{', '.join(tokenizers)} have")
        if t.END >= size:
            raise UserError(f"{name} ends an answer with the token {t.END}, which not all of {', '.join(tokenizers)} have")
    return size


def different(a, b, size):
    """The ids below size that are not the same token in two Tokenizers: id -> both tokens, None where there is none."""
    one, two = ({i: token for token, i in t.vocabulary.items()} for t in (a, b))
    return {i: (one.get(i), two.get(i)) for i in range(size) if one.get(i) != two.get(i)}
