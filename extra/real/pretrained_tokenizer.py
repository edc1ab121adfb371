"""The tokenizer and the chat template of a directory in the format of Hugging Face, with the interface of toy_experts/tokenizer.py.

    tokenizer = Tokenizer("DIR")
    ids = tokenizer.encode_prompt("What is 38 mod 5?")
    print(tokenizer.decode(generate(model, [ids], 100, tokenizer.ends)[0]))

tokenizer.json is read by the library `tokenizers`. A chat template is a small program: it runs in jinja2's sandbox, as it does in
transformers, and can neither reach a file nor change an object. (It can still take its time: use Ctrl-C.)
"""

import hashlib
import json
import re
from pathlib import Path

from extra.real.pretrained import LARGEST, extra, read_json, shown
from toy_experts.run import UserError

STAND_IN = "standinforcontent"  # takes the place of a text in a chat template, or of a special token in a text


class Tokenizer:
    """tokenizer.json of a directory, and its chat template if it has one, with the interface of toy_experts/tokenizer.py.

    END ends an answer: what the chat template puts behind one, else the end-of-text token of the configuration. `ends` are all the
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
        self.encoding.no_truncation()  # a tokenizer.json may ask for either
        self.encoding.no_padding()
        self.vocabulary = self.encoding.get_vocab(with_added_tokens=True)  # token -> id
        self.special = {token.content: i for i, token in self.encoding.get_added_tokens_decoder().items() if token.special}
        self.VOCAB_SIZE = max(self.vocabulary.values(), default=-1) + 1
        if not 0 < self.VOCAB_SIZE <= LARGEST:
            raise UserError(f"{path} has {self.VOCAB_SIZE} tokens, and must have from 1 to {LARGEST}")
        self.FINGERPRINT = hashlib.sha256(json.dumps(sorted(self.vocabulary.items())).encode()).hexdigest()[:16]
        self.read_template()
        self.read_ends()

    def read_template(self):
        """Set self.template (None without one) and self.named, the special tokens that templates call by name."""
        settings = read_json(self.directory / "tokenizer_config.json", missing={})
        template = settings.get("chat_template")
        if "chat_template.jinja" in self.files:
            template = self.files["chat_template.jinja"].decode("utf-8", "replace")
        if isinstance(template, list):  # several, each with a name
            default = [t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"]
            if not default or not isinstance(template := default[-1], str):
                raise UserError(f"{self.directory / 'tokenizer_config.json'}: chat_template is a list, and must have one named \"default\"")
        named = {**read_json(self.directory / "special_tokens_map.json", missing={}), **settings}
        named = {key: value.get("content") if isinstance(value, dict) else value for key, value in named.items()}
        self.named = {key: value for key, value in named.items() if key.endswith("_token") and isinstance(value, str)}
        self.template = None
        if template is None:
            return
        sandbox, jinja2 = extra("jinja2.sandbox"), extra("jinja2")

        def refuse(message):
            raise jinja2.TemplateError(message)

        env = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        env.filters["tojson"] = lambda x, indent=None: json.dumps(x, ensure_ascii=False, indent=indent)
        env.globals["raise_exception"] = refuse  # no strftime_now: a prompt's tokens must not depend on the day
        try:
            self.template = env.from_string(template)
        except (jinja2.TemplateError, TypeError, AttributeError, RecursionError) as e:
            raise UserError(f"{self.directory}: the chat template cannot be read ({str(e)[:100]})") from e

    def read_ends(self):
        ids = None
        for name in ("generation_config.json", "config.json"):
            ids = read_json(self.directory / name, missing={}).get("eos_token_id") if ids is None else ids
        ids = self.vocabulary.get(self.named.get("eos_token")) if ids is None else ids
        self.ends = list(ids) if isinstance(ids, list) else [] if ids is None else [ids]
        for i in self.ends:
            if type(i) is not int or not 0 <= i < self.VOCAB_SIZE:
                raise UserError(f"{self.directory}: eos_token_id has {shown(i)}, and must be from 0 to {self.VOCAB_SIZE - 1}")
        behind = self.encode(self.render(STAND_IN, STAND_IN).rpartition(STAND_IN)[2]) if self.template else []
        self.END = next((i for i in behind if i in self.special.values() or i in self.ends), None)
        if self.END is None:
            if not self.ends:
                raise UserError(f"{self.directory}: no end token: neither generation_config.json nor config.json has eos_token_id")
            named = self.vocabulary.get(self.named.get("eos_token"))
            self.END = named if named in self.ends else self.ends[0]
        self.ends = list(dict.fromkeys([self.END, *self.ends]))

    def render(self, prompt, answer=None):
        """The chat template filled in with a prompt, up to where its answer begins, or with prompt and answer."""
        messages = [{"role": "user", "content": prompt}] + ([] if answer is None else [{"role": "assistant", "content": answer}])
        try:
            return self.template.render(messages=messages, add_generation_prompt=answer is None, tools=None, documents=None, **self.named)
        except Exception as e:  # whatever a foreign template runs into
            raise UserError(f"{self.directory}: the chat template fails ({type(e).__name__}: {str(e)[:100]})") from e

    def encode(self, text, plain=False, add=False):
        """Token ids of a text. plain: special tokens in it are just text. add: with what the tokenizer puts around any text."""
        self.encoding.encode_special_tokens = plain
        return self.encoding.encode(text, add_special_tokens=add).ids

    def encode_prompt(self, text):
        """Token ids of a prompt up to the place where the answer begins. Special tokens typed by a user stay plain text."""
        if self.template is None:
            return self.encode(text, plain=True, add=True)
        # Each special token in the text is hidden from template and tokenizer behind a stand-in, and encoded by itself. So is a
        # stand-in that a user types.
        tokens = sorted((token for token in [STAND_IN, *self.special] if token in text), key=len, reverse=True)
        hidden = re.sub("|".join(map(re.escape, tokens)), lambda found: f"{STAND_IN}{tokens.index(found[0])}.", text) if tokens else text
        *parts, last = re.split(rf"{STAND_IN}(\d+)\.", self.render(hidden))  # text, number of a token, text, number of a token, ...
        before = [self.encode(a) + self.encode(tokens[int(k)], plain=True) for a, k in zip(parts[::2], parts[1::2])]
        return sum(before, []) + self.encode(last)

    def encode_answer(self, text):
        """Token ids of an answer, with exactly one end token."""
        return self.encode(text, plain=True) + [self.END]

    def decode(self, ids):
        return self.encoding.decode(ids, skip_special_tokens=False)

    def alone(self, token):
        """The text of one token that is shown by itself: with its leading space, and named where it is only a part of a character."""
        before = self.encode("x")[-1:]
        text = self.decode(before + [token])[len(self.decode(before)):]
        return f"part of a character, token {token}" if "\ufffd" in text else text


def agree(tokenizers):
    """The size of the vocabulary that several models share; tokenizers: name -> Tokenizer, the router's first.

    Logits can be added only where all mean the same token by the same id. Beyond the smallest vocabulary, special tokens are let
    pass (a padding token that fine-tuning has added): they are never in a text, and their rows are cut off like all padding.
    UserError names the first tokens that differ.
    """
    size = min(t.VOCAB_SIZE for t in tokenizers.values())
    (first, reference), *others = tokenizers.items()
    tokens = {i: token for token, i in reference.vocabulary.items()}
    for name, other in others:
        theirs = {i: token for token, i in other.vocabulary.items()}
        differ = [i for i in range(size) if tokens.get(i) != theirs.get(i)]
        if differ:
            examples = ", ".join(f"{i} is {tokens.get(i)!r} and {theirs.get(i)!r}" for i in differ[:3])
            raise UserError(f"{first} and {name} do not have the same tokens: id {examples}; {len(differ)} of {size} differ")
    for name, t in tokenizers.items():
        beyond = [token for token, i in t.vocabulary.items() if i >= size and token not in t.special]
        if beyond:
            raise UserError(f"{name} has the token {beyond[0]!r} ({t.vocabulary[beyond[0]]}), which not all of "
                            f"{', '.join(tokenizers)} have")
        if t.END >= size:
            raise UserError(f"{name} ends an answer with the token {t.END}, which not all of {', '.join(tokenizers)} have")
    return size
