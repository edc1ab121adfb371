"""Times both trainings on every device of this machine, and compares each with the CPU.

    python -m toy_experts.device

For reports from machines that the authors do not have: the models are those of toy_experts/weights.
A device is right if its logits differ from the CPU's by rounding only (about 1e-3), and if nearly
all answers are equal. Tiny models may well train faster on the CPU.
"""

import contextlib
import io
import platform
import time
from random import Random

import torch

import train_cdpo
import train_sft
from docs.tools.pages import table
from toy_experts import script, tasks
from toy_experts.data import scored
from toy_experts.decode_batch import answers
from toy_experts.experts import sample
from toy_experts.script import WEIGHTS, load_router

SAMPLES = 800  # 50 steps of phase 1, and 50 pair steps and 50 SFT steps of phase 2


def timed(train, *args):
    """Seconds that a training takes, without what it prints."""
    begun, nowhere = time.time(), io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        train(*args)
    return time.time() - begun


def measure(device, items):
    """(logits (B, T, V), answers, seconds of phase 1, of phase 2) on a device, from one start."""
    router, experts, _ = load_router(WEIGHTS, "router", device, "get the repository again")
    sft = scored([sample(item) for item in items], experts)
    with torch.no_grad():
        logits = router(sft.ids[:32].to(device))[0].cpu()  # (32, T, V)
    texts = [trace.text() for trace in answers(router, experts, items[:40])]
    # Wrong answers, only to have pairs: each prompt with the next prompt's answer.
    pairs = [
        {"prompt": a.prompt, "chosen": a.answer, "rejected": b.answer}
        for a, b in zip(items, items[1:] + items[:1])
    ]
    pairs, ref = train_cdpo.scored_pairs(pairs, experts, router.lm)
    router.requires_grad_(True)
    s1, s2 = train_sft.Settings(epochs=1), train_cdpo.Settings(epochs=1)
    plan = train_cdpo.make_plan(s2, sft.lengths, pairs.lengths)
    first = timed(train_sft.train, s1, router, sft)
    return logits, texts, first, timed(train_cdpo.train, s2, router, sft, pairs, ref, plan)


def main(argv=None):
    script.Parser(description="Times both trainings on every device.").parse_args(argv)
    items = tasks.mixed("train", SAMPLES, Random("device"))
    rows = [["device", "phase 1, 50 steps", "phase 2, 100 steps", "logits differ", "equal answers"]]
    usable = {"cpu": True, "cuda": torch.cuda.is_available()}
    usable["mps"] = torch.backends.mps.is_available()
    for name in [name for name, there in usable.items() if there]:
        torch.manual_seed(0)
        logits, texts, first, second = measure(script.device(name), items)
        if name == "cpu":
            right, right_texts = logits, texts
        difference = float((logits - right).abs().max())
        equal = sum(a == b for a, b in zip(texts, right_texts))
        cells = [
            f"{first:.1f} s",
            f"{second:.1f} s",
            f"{difference:.1e}",
            f"{equal} of {len(texts)}",
        ]
        rows.append([name, *cells])
    print("\n".join(table(rows)))
    print(f"torch {torch.__version__}, Python {platform.python_version()}, {platform.platform()}")


if __name__ == "__main__":
    script.run(main)
