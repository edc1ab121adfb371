"""Files of samples -> token ids. train.jsonl has a {"prompt", "completion"} a line, pairs.jsonl a {"prompt", "chosen", "rejected"}."""

import json
from pathlib import Path

from toy_experts.data import answer_only
from toy_experts.run import UserError


def read_samples(path, sides, tokenizer, size, max_len):
    """The samples of a JSONL file: one for each of `sides` (names of the answers' fields) of a line, those of a line side by side.

    A sample is (ids, learn) as from toy_experts.data.answer_only. Lines that are empty, too long or would end twice are left out as a
    whole, counted and named on the terminal; a line of another form is a UserError.
    """
    samples, left_out, end = [], {}, tokenizer.encoding.id_to_token(tokenizer.END)
    *lines, last = read_bytes(path).split(b"\n")
    lines += [last] if last else []
    for number, line in enumerate(lines, 1):
        texts = fields(path, number, line, ("prompt", *sides)) if line.strip() else [""]
        if not all(text.strip() for text in texts):
            left_out.setdefault("empty", []).append(number)
            continue
        prompt, answers = tokenizer.encode_prompt(texts[0]), [tokenizer.encode_answer(text) for text in texts[1:]]
        if max(sum(answers, prompt)) >= size:
            raise UserError(f"{path}, line {number}: the chat template of the router uses a token that not all experts have")
        if any(end in text for text in texts[1:]):
            left_out.setdefault(f"with {end!r} in the answer, which every answer ends with anyway", []).append(number)
        elif len(answers) > 1 and answers[0] == answers[1]:
            left_out.setdefault("with equal answers", []).append(number)
        elif len(prompt) + max(map(len, answers)) > max_len:
            left_out.setdefault(f"of more than {max_len} tokens", []).append(number)
        else:
            samples += [answer_only(prompt, answer) for answer in answers]
    count = sum(map(len, left_out.values()))
    report = "; ".join(f"{len(numbers)} {why} (line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers[:20]))}"
                       f"{', ...' if len(numbers) > 20 else ''})" for why, numbers in left_out.items())
    if not samples:
        raise UserError(f"{path} has no sample that can be used{': ' * bool(report)}{report}")
    if count:
        print(f"{path}: {count} of {len(lines)} lines left out: {report}")
    return samples


def fields(path, number, line, names):
    """The texts of these fields in a line of JSON. UserError names the line."""
    try:
        content = json.loads(line)
        texts = [content[name] for name in names]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
        "".join(texts).encode()  # half a character, written as an escape, has no bytes
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise UserError(f"{path}, line {number}: must be a JSON object with the texts {', '.join(names)}") from e
    return texts


def read_bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as e:
        raise UserError(f"cannot read {path} ({e.strerror})") from e
