"""Samples in TRL's forms -> token ids, and the experts' scores beside them.

A row is {"prompt", "completion"}, {"messages"}, {"prompt", "chosen", "rejected"}, or {"chosen",
"rejected"} as whole conversations. Prompts and answers are texts or lists of messages. A text is
what the user says to a model with a chat template. The loss is on the last answer only, up to its
end token. A field that is not used here might change what should be learned: it is refused.

Files: JSON Lines or a JSON array; Parquet, CSV and JSON in .gz; what `datasets` finds by name.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from jinja2 import TemplateError
from torch.nn.utils.rnn import pad_sequence
from xxhash import xxh3_64

from extra.real.loading import note, reading
from fusionroute import token_logp
from toy_experts.script import UserError

ROLES = ("system", "user", "assistant")
MARK = "\ufdd0"  # a code point that Unicode reserves: it stands for no character in any text


# --- files -> rows -------------------------------------------------------------------------------


def rows(path):
    """[(place, row)] of a file; place is what a message names."""
    file, builders = Path(path), {".parquet": "parquet", ".csv": "csv", ".gz": "json"}
    if not file.is_file() or file.suffix in builders:
        if file.is_dir() or not file.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            raise UserError(f"there is no file {path}")
        with reading(path, "a data set"):
            how = {"data_files": str(path)} if file.is_file() else {}
            data = load_dataset(builders.get(file.suffix, str(path)), split="train", **how)
        return [(f"{path}, row {i}", row) for i, row in enumerate(data, 1)]
    content = file.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content[: e.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: is not UTF-8, the encoding of JSON") from e
    if text.lstrip()[:1] == "[":
        return [(f"{path}, item {i}", row) for i, row in enumerate(parse(path, text), 1)]
    lines = enumerate(text.split("\n"), 1)
    return [(place := f"{path}, line {i}", parse(place, x)) for i, x in lines if x.strip()]


def parse(place, text):
    def once(pairs):
        if len(dict(pairs)) < len(pairs):
            raise UserError(f"{place}: a field is there twice: {', '.join(k for k, _ in pairs)}")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{place}: is no JSON ({str(e)[:80]})") from e


# --- rows -> prompts and answers -----------------------------------------------------------------


class Wrong(Exception):
    """What is wrong with a row; who catches it adds the place."""


def conversation(row, sides, ignore):
    """The prompt (a list of messages) and the answers (texts) of a row.

    sides: the names of the answers, ("completion",) or ("chosen", "rejected").
    """
    if not isinstance(row, dict):
        raise Wrong(f"must be a JSON object, and is {json.dumps(row)[:60]}")
    whole = "messages" in row if len(sides) == 1 else row.get("prompt") is None
    known = ("messages",) if whole and len(sides) == 1 else sides if whole else ("prompt", *sides)
    if missing := [name for name in known if row.get(name) is None]:
        form = "chosen and rejected" if len(sides) == 2 else "completion, or only messages"
        there = ", ".join(row) or "no fields"
        raise Wrong(
            f"must have prompt and {form}; the field {missing[0]} is missing, it has {there[:80]}"
        )
    check_others(row, {*known, "prompt"} if len(sides) == 2 else known, ignore)
    if whole:  # conversations, which begin alike
        talks = [turns(name, row[name], None, ignore) for name in known]
        prompt, given = talks[0][:-1], [talk[-1:] for talk in talks]
        if any(talk[:-1] != prompt for talk in talks):
            raise Wrong("chosen and rejected are conversations that differ before the last message")
    else:
        prompt = turns("prompt", row["prompt"], "user", ignore)
        given = [turns(side, row[side], "assistant", ignore) for side in sides]
    if not prompt or prompt[-1]["role"] != "user":
        raise Wrong("an answer must follow a message of the user")
    if any(len(x) != 1 or x[0]["role"] != "assistant" for x in given):
        raise Wrong("each answer must be one message of the assistant, the last")
    return prompt, [x[0]["content"] for x in given]


def check_others(value, known, ignore):
    """Wrong if a row or a message has other fields, with a value, than the known ones."""
    empty = (None, "", [], {})
    others = {k: v for k, v in value.items() if k not in {*known, *ignore} and v not in empty}
    if others:
        shown = ", ".join(f"{name!r} = {json.dumps(v)[:60]}" for name, v in others.items())
        raise Wrong(
            f"is not used, and may change what should be learned: {shown}; if not, let it pass: "
            f"--ignore {' '.join(others)}"
        )


def turns(name, value, role, ignore):
    """A list of {"role", "content"}, both texts. A text becomes one message of `role`."""
    if isinstance(value, str) and role:
        value = [{"role": role, "content": value}]
    if not isinstance(value, list) or not value:
        form = "a text or messages" if role else "a list of messages"
        raise Wrong(f"{name} must be {form}, and is {json.dumps(value)[:60]}")
    out = []
    for m in value:
        if not isinstance(m, dict) or m.get("role") not in ROLES:
            raise Wrong(f"{name}: {json.dumps(m)[:80]} has no role of {', '.join(ROLES)}")
        check_others(m, ("role", "content"), ignore)
        text = m.get("content")
        if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
            raise Wrong(f"{name} must be a text, and is {json.dumps(text)[:60]}")
        out.append({"role": m["role"], "content": text})
    return out


# --- prompts and answers -> token ids ------------------------------------------------------------


class Encoder:
    """Conversations -> token ids, through a tokenizer's chat template, as far as it has one.

    A special token that somebody typed stays text: it is hidden from the template and from the
    tokenizer, and then encoded as ordinary characters.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        words = sorted([*special.values(), MARK], key=len, reverse=True)
        self.special = re.compile("|".join(map(re.escape, words)))
        self.end = tokenizer.eos_token_id  # the token that ends an answer
        if tokenizer.chat_template:
            probe = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
            tail = self.ids(self.render(probe, False).rpartition("b")[2], [])
            self.end = next((i for i in tail if i in special), self.end)

    def render(self, messages, ask):
        """The text of messages; ask: up to where the assistant answers."""
        if self.tokenizer.chat_template:
            try:
                how = {"tokenize": False, "add_generation_prompt": ask}
                return self.tokenizer.apply_chat_template(messages, **how)
            except TemplateError as e:
                raise Wrong(f"the chat template refuses it: {str(e)[:100]}") from e
        if len(messages) > 2 - ask or messages[0]["role"] != "user":
            raise Wrong("this tokenizer has no chat template: only a prompt and an answer are read")
        return (self.tokenizer.bos_token or "") + "".join(m["content"] for m in messages)

    def hide(self, messages):
        """Messages with a mark for each special token that is typed in them, and these tokens."""
        typed = []
        hidden = [
            m | {"content": self.special.sub(lambda x: typed.append(x[0]) or MARK, m["content"])}
            for m in messages
        ]
        return hidden, typed

    def ids(self, text, typed):
        """Token ids of a rendered text; typed: what stands at the marks in it, in their order."""
        parts = [self.tokenizer(x, add_special_tokens=False).input_ids for x in text.split(MARK)]
        for part, x in zip(parts[1:], typed):
            how = {"add_special_tokens": False, "split_special_tokens": True}
            part[:0] = self.tokenizer(x, **how).input_ids
        return [i for part in parts for i in part]

    def prompt(self, messages):
        """Token ids of messages, up to where the assistant answers."""
        hidden, typed = self.hide(messages)
        return self.ids(self.render(hidden, True), typed)

    def sample(self, messages, answer):
        """(ids, learn) of a prompt with its answer. None: the template changes one of them."""
        hidden, typed = self.hide([*messages, {"role": "assistant", "content": answer}])
        ask, whole = self.render(hidden[:-1], True), self.render(hidden, False)
        words = [hidden[-2]["content"].strip(), hidden[-1]["content"].strip()]
        if not whole.startswith(ask) or words[1] not in whole[len(ask) :] or words[0] not in ask:
            return None
        before, ids = self.ids(ask, typed), self.ids(whole, typed)
        if ids[: len(before)] != before:  # a token would span the place where the answer begins
            ids = before + self.ids(whole[len(ask) :], typed[ask.count(MARK) :])
        learned = ids[len(before) :]
        if self.end in learned:  # a line break after it is not learned
            learned = learned[: len(learned) - learned[::-1].index(self.end) - 1]
        ids = before + learned + [self.end]
        return ids, [False] * len(before) + [True] * (len(learned) + 1)


def check_room(who, most, prompt, max_new):
    """UserError unless a prompt and an answer fit into what a model reads. All are numbers."""
    if prompt + max_new > most:
        asked = f"the prompt's {prompt} and --max_new {max_new}"
        raise UserError(f"{who} reads {most} tokens at most: {asked} are too many")


def samples(path, sides, tokenizer, n_tokens, max_len, ignore=()):
    """The rows of a file as a Dataset of ids, learn and talk, one row for each answer.

    talk: [messages, answer] as JSON, for experts with other tokens. Answers to one prompt are
    neighbours: chosen, rejected. Rows that cannot be used are counted with the reason. UserError: a
    row of another form, with its line.
    """
    encoder, found, left_out, all_rows = Encoder(tokenizer), [], {}, rows(path)
    for number, (place, row) in enumerate(all_rows, 1):
        skip = lambda why: left_out.setdefault(why, []).append(number)
        try:
            prompt, answers = conversation(row, sides, ignore)
            if not all(x.strip() for x in [prompt[-1]["content"], *answers]):
                skip("with an empty prompt or answer")
                continue
            pairs = [encoder.sample(prompt, answer) for answer in answers]
        except Wrong as e:
            raise UserError(f"{place}: {e}") from e
        if None in pairs:
            skip("that the chat template does not pass on word for word")
        elif any(i >= n_tokens for ids, _ in pairs for i in ids):
            raise UserError(f"{place}: it needs a token that not all models have")
        elif len(pairs) == 2 and pairs[0] == pairs[1]:
            skip("with equal answers")
        elif any(len(ids) > max_len for ids, _ in pairs):
            skip(f"of more than {max_len} tokens")
        else:
            talks = [json.dumps([prompt, answer]) for answer in answers]
            found += [(*pair, talk) for pair, talk in zip(pairs, talks)]
    report = "; ".join(
        f"{len(n)} {why} (number {', '.join(map(str, n[:10]))}{', ...' * (len(n) > 10)})"
        for why, n in left_out.items()
    )
    if not found:
        raise UserError(f"{path} has no sample that can be used{': ' * bool(report)}{report}")
    if report:
        note(f"{path}: of {len(all_rows)} rows are left out: {report}")
    ids, learn, talks = zip(*found)
    ids, learn = ([np.array(x, t) for x in c] for c, t in ((ids, np.int32), (learn, bool)))
    return Dataset.from_dict({"ids": ids, "learn": learn, "talk": talks})


# --- scores and batches --------------------------------------------------------------------------


def padded(values):
    return pad_sequence([torch.tensor(x) for x in values], batch_first=True)


def scores(data, load_logits, made_from, name, folder, half, batch=16):
    """Two numbers of a model for each next token, a Dataset beside data: logp and choice, (T-1,).

    load_logits() -> a function ids (b, T) -> logits (b, T, V). The result is kept in folder, under
    a name that stands for the samples and for made_from (which names the model's content), so a
    model that was trained anew is asked anew. half: the file while it is made.
    """
    key = xxh3_64(json.dumps(made_from).encode())
    for row in data.with_format("numpy"):
        key.update(row["ids"].tobytes() + row["learn"].tobytes())
    path = folder / f"{key.hexdigest()}.arrow"
    if not path.exists():
        logits_of = load_logits()

        @torch.no_grad()
        def read(rows):
            order = sorted(range(len(rows["ids"])), key=lambda i: len(rows["ids"][i]))
            logp, choice = [None] * len(order), [None] * len(order)
            for start in range(0, len(order), batch):  # similar lengths together: less padding
                some = order[start : start + batch]
                x = padded([rows["ids"][i] for i in some])  # (b, T)
                logits = logits_of(x[:, :-1])  # (b, T-1, V)
                target = x[:, 1:].to(logits.device)
                columns = token_logp(logits, target), logits.argmax(-1).int()  # (b, T-1) each
                for i, a, b in zip(some, *(c.cpu().numpy() for c in columns)):
                    n = len(rows["ids"][i]) - 1
                    logp[i], choice[i] = a[:n], b[:n]
                    if not np.isfinite(logp[i]).all():
                        raise UserError(f"{name}: the log-probabilities are no numbers")
            return {"logp": logp, "choice": choice}

        data.map(
            read,
            batched=True,
            batch_size=16 * batch,
            remove_columns=data.column_names,
            cache_file_name=str(half),
            load_from_cache_file=False,
            new_fingerprint=key.hexdigest(),
            desc=f"scores of {name}",
        )
        folder.mkdir(exist_ok=True)
        os.replace(half, path)
    return Dataset.from_file(str(path))


def from_answer(mask):
    """The places of a batch from where its first answer begins. mask (B, T) -> (t,)."""
    return torch.arange(int(mask.any(0).int().argmax()), mask.size(1), device=mask.device)


class Data:
    """Samples with the scores of n experts. Like toy_experts.data.Data, but it stays on the disk.

    answers: 1, or 2 for preference pairs; N counts samples or pairs.
    """

    def __init__(self, data, scored, answers=1):
        named = [
            s.rename_columns({c: f"{c}{i}" for c in s.column_names}) for i, s in enumerate(scored)
        ]
        self.data = concatenate_datasets([data, *named], axis=1).with_format("numpy")
        self.n, self.answers = len(scored), answers
        lengths = torch.tensor([len(x) for x in self.data["ids"]])
        self.lengths = lengths if answers == 1 else lengths.view(-1, answers)  # (N,) or (N, 2)

    def batch(self, rows, device):
        """x (B, T), mask (B, T-1) of the targets x[:, 1:], logp and choice (B, T-1, n)."""
        if self.answers > 1:
            rows = (rows[:, None] * self.answers + torch.arange(self.answers)).flatten()
        found = self.data[rows.tolist()]
        x, mask = padded(found["ids"]).long(), padded(found["learn"])[:, 1:]
        nothing = torch.zeros(*mask.shape, 0)
        logp, choice = (
            torch.stack([padded(found[f"{c}{i}"]) for i in range(self.n)], -1)
            if self.n
            else nothing
            for c in ("logp", "choice")
        )
        return tuple(part.to(device) for part in (x, mask, logp, choice))


def reference(data, scored):
    """log pi_ref of each answer, (N, 2), from the scores of the router as phase 1 left it."""
    rows = zip(data.with_format("numpy")["learn"], scored.with_format("numpy")["logp"])
    return torch.tensor([float(logp[learn[1:]].sum()) for learn, logp in rows]).view(-1, 2)
