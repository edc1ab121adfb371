"""Files of samples -> token ids.

Phase 1 reads {"prompt", "completion"} or {"messages"}; phase 2 reads pairs, {"prompt", "chosen", "rejected"}, or the last two only, as
whole conversations that begin alike. A prompt or an answer is a text, or a list of messages {"role", "content"}: several turns, a system
message. The loss is on the last answer only.

A file has one such object a line (JSON Lines), or is one JSON array of them; it may be compressed by gzip, and may be a pipe. Text is
UTF-8, or UTF-16 or UTF-32 with its mark. Other fields are passed over only where they can change nothing: numbers, empty ones, and
those in IGNORED.
"""

import gzip
import json
import stat
import zlib
from pathlib import Path

from extra.real.pretrained_tokenizer import Changed
from toy_experts.data import answer_only
from toy_experts.run import UserError

ROLES = ("system", "user", "assistant")
IGNORED = set("""id idx index uuid hash source dataset subset split origin category topic subject task task_type domain type language lang
    license url link author model generator chosen_model rejected_model timestamp date created created_at version tag tags label labels
    difficulty metadata meta prompt_id messages_id conversation_id quality""".split())
FOREIGN = {b"PAR1": "Parquet", b"PK\x03\x04": "a zip archive", b"\x28\xb5\x2f\xfd": "compressed by zstd", b"BZh": "compressed by bzip2",
           b"\xfd7zXZ": "compressed by xz", b"ARROW1": "an Arrow file", b"SQLite": "an SQLite database"}


class Wrong(Exception):
    """What is wrong with one object; the file and the line are added."""


# --- files -> objects -------------------------------------------------------------------------------------------------------------------


def read_bytes(path):
    """The content of a file or a pipe, which can be read once only. UserError when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path} ({e.strerror})") from e


def is_regular(path):
    return stat.S_ISREG(Path(path).stat().st_mode)


def objects(path, data):
    """The JSON values in the bytes of a file, each with the place that a message names, and whether it is a blank line: (place, value).

    A blank line's value is None; one that is no JSON is a UserError.
    """
    for start, name in FOREIGN.items():
        if data.startswith(start):
            raise UserError(f"{path} is {name}: only JSON Lines, a JSON array, and either compressed by gzip are read")
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as e:
            raise UserError(f"{path} is truncated or damaged (gzip: {e})") from e
    encoding = json.detect_encoding(data[:4]) if data else "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as e:
        line = data[:e.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: the byte 0x{data[e.start]:02x} is not {encoding.upper()}; convert the file first, "
                        f"for example: iconv -f LATIN1 -t UTF-8 (if it is Latin-1)") from e
    if text.lstrip().startswith("["):
        try:
            values = json.loads(text, object_pairs_hook=once)
        except Wrong as e:
            raise UserError(f"{path}: {e}") from e
        except (ValueError, RecursionError):
            pass  # lines after all, or a broken array: the line with the mistake is named below
        else:
            return [(f"{path}, item {i}", value) for i, value in enumerate(values, 1)]
    *lines, last = text.split("\n")
    return [(f"{path}, line {number}", parsed(f"{path}, line {number}", line) if line.strip() else None)
            for number, line in enumerate(lines + [last] * bool(last), 1)]


def parsed(place, line):
    try:
        return json.loads(line, object_pairs_hook=once)
    except Wrong as e:
        raise UserError(f"{place}: {e}") from e
    except (ValueError, RecursionError) as e:
        raise UserError(f"{place}: is no JSON ({str(e)[:80]}); each line must be one JSON object") from e


def once(pairs):
    """A dict of a JSON object's pairs, each key once."""
    out = dict(pairs)
    if len(out) < len(pairs):
        keys = [key for key, _ in pairs]
        raise Wrong(f"the field {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return out


# --- objects -> prompts and answers -----------------------------------------------------------------------------------------------------


def conversation(value, sides):
    """(prompt, answers) of one object: a prompt for tokenizer.encode_sample, a text for each of `sides`. Wrong says what is wrong."""
    form = "a JSON object with " + (" and ".join(["prompt", *sides]) if len(sides) == 1 else "prompt, chosen and rejected")
    form += ", or with messages" if len(sides) == 1 else ""
    if not isinstance(value, dict):
        raise Wrong(f"must be {form}")
    if "messages" in value and len(sides) == 1:
        if both := [name for name in ("prompt", *sides) if value.get(name)]:
            raise Wrong(f"has both messages and {both[0]}: which of them counts?")
        check_others(value, ["messages", "prompt", *sides])
        *prompt, answer = messages("messages", value["messages"])
        answer = last_answer("messages", answer)
        return prompts("messages", prompt), [answer]
    for name in sides:
        if name not in value:
            raise Wrong(f"must be {form}; the field {name} is missing")
    check_others(value, ["prompt", *sides])
    given = [value[name] for name in sides]
    if value.get("prompt") is None and len(sides) > 1 and all(isinstance(x, list) for x in given):  # conversations that begin alike
        turns = [messages(name, x) for name, x in zip(sides, given)]
        if turns[0][:-1] != turns[1][:-1]:
            raise Wrong("chosen and rejected are conversations without a prompt, and differ before the last message")
        answers = [last_answer(name, t[-1]) for name, t in zip(sides, turns)]
        return prompts("chosen", turns[0][:-1]), answers
    if "prompt" not in value:
        raise Wrong(f"must be {form}; the field prompt is missing")
    prompt = value["prompt"]
    prompt = prompts("prompt", messages("prompt", prompt)) if isinstance(prompt, list) else text("prompt", prompt)
    answers = []
    for name, answer in zip(sides, given):
        if isinstance(answer, list):
            turns = messages(name, answer)
            if len(turns) != 1:
                raise Wrong(f"{name} must be one message of the assistant, and has {len(turns)}")
            answer = last_answer(name, turns[0])
        answers.append(text(name, answer))
    return prompt, answers


def check_others(value, known):
    """Wrong if an object has other fields that may be a part of what is asked or answered."""
    for name, content in value.items():
        if name in known or name in IGNORED or content is None or isinstance(content, (bool, int, float)) or not content:
            continue
        raise Wrong(f"the field {name!r} is not used here, and may belong to the prompt or the answer: put it there, or remove it")


def text(name, value):
    """A text, or parts of type text put together."""
    if isinstance(value, list) and all(isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in value):
        value = "".join(p["text"] for p in value)
    if not isinstance(value, str):
        raise Wrong(f"{name} must be a text, and is {json.dumps(value, default=str)[:60]}")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        raise Wrong(f"{name} has half a character, {ascii(value[e.start])}, which no text can have") from e
    return value


def messages(name, value):
    """A list of {"role", "content"}, checked."""
    if not isinstance(value, list) or not value:
        raise Wrong(f"{name} must be a list of messages, and is {json.dumps(value)[:60]}")
    out = []
    for m in value:
        if not isinstance(m, dict) or m.get("role") not in ROLES or "content" not in m:
            raise Wrong(f"{name} must have messages with a role ({', '.join(ROLES)}) and a content, not {json.dumps(m)[:80]}")
        check_others(m, ["role", "content"])
        out.append({"role": m["role"], "content": text(f"the content of a message in {name}", m["content"])})
    return out


def prompts(name, turns):
    """Messages that end with what a user says: a text where that is all, else the list."""
    if not turns or turns[-1]["role"] != "user":
        before = f", not of the {turns[-1]['role']}" if turns else ""
        raise Wrong(f"{name}: an answer must follow a message of the user{before}")
    return turns[0]["content"] if len(turns) == 1 else turns


def last_answer(name, message):
    if message["role"] != "assistant":
        raise Wrong(f"{name} must end with a message of the assistant, and ends with one of the {message['role']}")
    return message["content"]


# --- prompts and answers -> samples -----------------------------------------------------------------------------------------------------


def read_samples(path, data, sides, tokenizer, forbidden, max_len):
    """The samples of a file, whose bytes are data: one for each of `sides` (the answers' fields) of an object, those of one side by side.

    A sample is (ids, learn) as from toy_experts.data.answer_only. Objects that are empty, too long or would end twice are left out as a
    whole, counted and named on the terminal; one of another form is a UserError. forbidden(id): a token that not all models have.
    """
    samples, left_out, end, found = [], {}, tokenizer.encoding.id_to_token(tokenizer.END), objects(path, data)
    for number, (place, value) in enumerate(found, 1):
        skip = lambda why: left_out.setdefault(why, []).append(number)
        if value is None:
            skip("empty")
            continue
        try:
            prompt, answers = conversation(value, sides)
            said = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
            if max(map(len, said + answers)) > tokenizer.most_characters(max_len):
                skip(f"of more than {max_len} tokens")
                continue
            if any(map(tokenizer.empty, [said[-1], *answers])):
                skip("empty")
                continue
            ids, *rest = tokenizer.encode_sample(prompt, *answers)
        except Changed:
            skip("that the chat template of the router does not pass on word for word")
            continue
        except (Wrong, UserError) as e:
            raise UserError(f"{place}: {e}") from e
        if any(map(forbidden, sum(rest, ids))):
            raise UserError(f"{place}: the chat template of the router uses a token that not all experts have")
        if any(end in answer for answer in answers):
            skip(f"with {end!r} in the answer, which every answer ends with anyway")
        elif len(rest) > 1 and rest[0] == rest[1]:
            skip("with equal answers")
        elif len(ids) + max(map(len, rest)) > max_len:
            skip(f"of more than {max_len} tokens")
        else:
            samples += [answer_only(ids, answer) for answer in rest]
    unit = "item" if found and ", item " in found[0][0] else "line"
    report = "; ".join(f"{len(numbers)} {why} ({unit}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:20]))}"
                       f"{', ...' if len(numbers) > 20 else ''})" for why, numbers in left_out.items())
    if not samples:
        raise UserError(f"{path} has no sample that can be used{': ' * bool(report)}{report}")
    if left_out:
        print(f"{path}: {sum(map(len, left_out.values()))} of {len(found)} {unit}s left out: {report}")
    return samples
