"""Breaks the ground floor and extra/paper, one line at a time, and reports the breakages that no test notices.

    python tests/mutants.py            all of them, each with the tests named beside it
    python tests/mutants.py fuse W     only those whose name, file or text has one of these words
    python tests/mutants.py --all WORD with all tests of the ground floor, where the named ones are not enough

Each breakage is made in a copy of the repository in a temporary folder. Run it by hand after a change of code or tests: it
takes a few minutes. Exit status 1 if one survives.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from paper.mutants import PAPER

ROOT = Path(__file__).parent.parent
SLOW_1, SLOW_2 = "test_phase_1_equals_a_slow", "test_phase_2_equals_a_slow"

# (what is broken, file, old text, new text, the tests that should notice: a file and words for pytest -k)
MUTANTS = [
    # the method
    (
        "Eq. (1) without the expert's normalisation sign",
        "fusionroute.py",
        "F.log_softmax(router_logits, -1) + F",
        "F.log_softmax(router_logits, -1) - F",
        "losses fuse",
    ),
    (
        "S where all experts differ",
        "fusionroute.py",
        "(choice != choice[..., :1]).any(-1)",
        "(choice != choice[..., :1]).all(-1)",
        "losses informative",
    ),
    (
        "raw weights",
        "fusionroute.py",
        "(w.softmax(-1) * logp).sum(-1)",
        "(w * logp).sum(-1)",
        "losses agg",
    ),
    (
        "L_expert everywhere",
        "fusionroute.py",
        "S = mask & informative(choice)",
        "S = mask",
        "losses sft_loss",
    ),
    (
        "prompt tokens count",
        "fusionroute.py",
        "S = mask & informative(choice)",
        "S = informative(choice)",
        "losses sft_loss",
    ),
    (
        "lambda on the wrong term",
        "fusionroute.py",
        "loss_lm + lam * loss_expert, {",
        "lam * loss_lm + loss_expert, {",
        "losses sft_loss",
    ),
    (
        "Eq. (3): a softmax mean instead of the routed expert",
        "fusionroute.py",
        "(logp.gather(-1, pick)[..., 0] * mask)",
        "((w.softmax(-1) * logp).sum(-1) * mask)",
        "losses routed",
    ),
    (
        "no stopgrad",
        "fusionroute.py",
        "(beta * (expert_chosen - expert_rejected)).detach()",
        "(beta * (expert_chosen - expert_rejected))",
        "losses bias_weights",
    ),
    (
        "bias with the wrong sign",
        "fusionroute.py",
        "beta * (expert_chosen - expert_rejected)",
        "beta * (expert_rejected - expert_chosen)",
        "losses cdpo_loss_by_hand",
    ),
    (
        "no bias",
        "fusionroute.py",
        "-F.logsigmoid(margin + bias)",
        "-F.logsigmoid(margin)",
        "losses cdpo_loss_by_hand",
    ),
    (
        "margin without beta on the rejected answer",
        "fusionroute.py",
        "reward_rejected = beta * (",
        "reward_rejected = (",
        "losses cdpo_loss_by_hand",
    ),
    (
        "score is off by one",
        "fusionroute.py",
        "token_logp(logits, x[:, 1:]).cpu()",
        "token_logp(logits, x[:, :-1]).cpu()",
        "losses score",
    ),
    # the model
    (
        "no causal mask",
        "model.py",
        "mask = pos[:, :, None] >= torch",
        "mask = pos[:, :, None] > -1 + 0 * torch",
        "model future",
    ),
    ("scores not scaled", "model.py", "* hd**-0.5", "* 1.0", "model slow"),
    (
        "positions of new tokens start at 0",
        "model.py",
        "cache.length[:, None] + step",
        "0 * cache.length[:, None] + step",
        "model cache_equals",
    ),
    (
        "top_p keeps one token too many",
        "model.py",
        "p.cumsum(-1) - p >= top_p",
        "p.cumsum(-1) - p > 1.0",
        "model sample_limits",
    ),
    # decoding
    (
        "decode: the least picked expert",
        "decode.py",
        "int(w.argmax()) if only",
        "int(w.argmin()) if only",
        "decode definition",
    ),
    (
        "decode: Eq. (1) left out",
        "decode.py",
        "logits = fuse(router_logits, logits)",
        "logits = logits",
        "decode definition",
    ),
    (
        "decode: its own text not read",
        "decode.py",
        "        text.append(token)\n",
        "        text = text + [0]\n",
        "decode definition",
    ),
    (
        "decode: top_p ignored",
        "decode.py",
        "sample(logits[None], temperature, top_p, u)",
        "sample(logits[None], temperature, 1.0, u)",
        "decode top_p",
    ),
    (
        "decode: the choice of the fused logits",
        "decode.py",
        "expert_choice = int(logits.argmax())",
        "expert_choice = int(router_logits.argmax())",
        "decode record",
    ),
    (
        "decode: phase 2's router for sft_only",
        "decode.py",
        '"router_sft" if s.method == "sft_only" else "router"',
        '"router"',
        "training each_method",
    ),
    (
        "batch: an expert reads other rows",
        "toy_experts/batch.py",
        "rows[mine], text, have)[0]",
        "rows[:len(mine)], text, have)[0]",
        "decode definition",
    ),
    (
        "batch: temperature is ignored",
        "toy_experts/batch.py",
        "sample(fused, temperature, u=u)",
        "sample(fused, min(temperature, 0.1), u=u)",
        "decode follows_eq_1",
    ),
    (
        "batch: rows go on after the end",
        "toy_experts/batch.py",
        "alive = token != tokenizer.END",
        "alive = token >= 0",
        "decode definition",
    ),
    (
        "methods: routing_only fuses",
        "toy_experts/batch.py",
        '"routing_only": {"use_router": False}',
        '"routing_only": {}',
        "decode definition",
    ),
    (
        "methods: code and math exchanged",
        "toy_experts/batch.py",
        '"math": {"use_router": False, "only": 0}',
        '"math": {"use_router": False, "only": 1}',
        "decode definition",
    ),
    (
        "answers in another order",
        "toy_experts/batch.py",
        "traces[i] = trace",
        "traces[len(items) - 1 - i] = trace",
        "decode order_of_the_items",
    ),
    (
        "display: S is one token late",
        "toy_experts/show.py",
        "[0, len(prompt) - 1:]",
        "[0, len(prompt):]",
        "decode in_S",
    ),
    (
        "display: colours outside S",
        "toy_experts/show.py",
        '[COLOURS[r["expert"]]] * r["in_S"]',
        '[COLOURS[r["expert"]]]',
        "decode only_tokens",
    ),
    (
        "display: changed is not marked",
        "toy_experts/show.py",
        """f"«{r['token']}»" if r["changed"] else r["token"]""",
        'r["token"]',
        "decode only_tokens",
    ),
    (
        "display: part of a character",
        "toy_experts/show.py",
        'getincrementaldecoder("utf-8")("replace")',
        'getincrementaldecoder("utf-8")("ignore")',
        "decode part_of",
    ),
    # phase 1
    (
        "phase 1: gradients not clipped",
        "train_sft.py",
        "router.parameters(), 1.0)",
        "router.parameters(), 1e9)",
        f"training {SLOW_1}",
    ),
    (
        "phase 1: gradients add up",
        "train_sft.py",
        "        optimizer.zero_grad()\n",
        "",
        f"training {SLOW_1}",
    ),
    (
        "phase 1: W at theta's rate",
        "train_sft.py",
        '"lr": LR_W}',
        '"lr": s.lr}',
        f"training {SLOW_1}",
    ),
    (
        "phase 1: no schedule",
        "train_sft.py",
        "        scheduler.step()\n",
        "",
        f"training {SLOW_1}",
    ),
    (
        "phase 1: the same batches every epoch",
        "train_sft.py",
        "BATCH, s.seed * 1000 + e)]",
        "BATCH, s.seed * 1000)]",
        f"training {SLOW_1}",
    ),
    (
        "phase 1: lambda is ignored",
        "train_sft.py",
        "choice, s.lam)",
        "choice, 1 / 3)",
        f"training {SLOW_1}",
    ),
    (
        "phase 1: trained on the test split",
        "train_sft.py",
        'tasks.mixed("train"',
        'tasks.mixed("test"',
        "training fed_the_train_split",
    ),
    (
        "phase 1: starts from the math expert",
        "train_sft.py",
        'experts[toy.EXPERTS.index("instruct")]',
        'experts[toy.EXPERTS.index("math")]',
        "training fed_the_train_split",
    ),
    (
        "phase 1: W does not start at 0",
        "fusionroute.py",
        "nn.init.zeros_(self.W.weight)",
        "nn.init.ones_(self.W.weight)",
        "training fed_the_train_split",
    ),
    # phase 2
    (
        "phase 2: gradients not clipped",
        "train_cdpo.py",
        "router.parameters(), 1.0)",
        "router.parameters(), 1e9)",
        f"training {SLOW_2}",
    ),
    (
        "phase 2: batches not shuffled",
        "train_cdpo.py",
        '    Random(f"plan {s.seed}").shuffle(plan)\n',
        "",
        "training algorithm_1",
    ),
    (
        "phase 2: beta is ignored",
        "train_cdpo.py",
        "ref[rows].to(device), s.beta)",
        "ref[rows].to(device), 0.1)",
        f"training {SLOW_2}",
    ),
    (
        "phase 2: the reference of other pairs",
        "train_cdpo.py",
        "ref[rows].to(device)",
        "ref[rows.flip(0)].to(device)",
        f"training {SLOW_2}",
    ),
    (
        "phase 2: twice the SFT batches",
        "train_cdpo.py",
        "pairs + sft[:len(pairs)]",
        "pairs + sft[:2 * len(pairs)]",
        "training algorithm_1",
    ),
    (
        "phase 2: chosen and rejected exchanged",
        "train_cdpo.py",
        "cdpo_loss(*theta.unbind(1), *ref.unbind(1), *expert.unbind(1), beta)",
        "cdpo_loss(*theta.unbind(1)[::-1], *ref.unbind(1)[::-1], *expert.unbind(1)[::-1], beta)",
        "losses pair_loss",
    ),
    (
        "phase 2: the reference counts the prompt",
        "train_cdpo.py",
        "[0][..., 0] * both.mask[:, 1:])",
        "[0][..., 0])",
        "scripts phase_2_logs",
    ),
    (
        "phase 2: pi_ref is an expert",
        "train_cdpo.py",
        "score([router.lm], both.ids",
        "score(experts[:1], both.ids",
        "scripts phase_2_logs",
    ),
    # pairs and data
    (
        "pairs: exchanged",
        "toy_experts/pairs.py",
        'for side in ("chosen", "rejected")',
        'for side in ("rejected", "chosen")',
        "training first_wrong_one",
    ),
    (
        "pairs: right answers are rejected",
        "toy_experts/pairs.py",
        "if not judge.check(item, text)",
        "if judge.check(item, text)",
        "training first_wrong_one",
    ),
    (
        "pairs: a tenth of the temperature",
        "toy_experts/pairs.py",
        "temperature=TEMPERATURE,",
        "temperature=TEMPERATURE / 10,",
        "training pairs_come",
    ),
    (
        "pairs: from the train split",
        "toy_experts/pairs.py",
        'tasks.mixed("preference"',
        'tasks.mixed("train"',
        "training pairs_come",
    ),
    (
        "pairs: the same random numbers for each chunk",
        "toy_experts/pairs.py",
        "+ i * TRIES",
        "",
        "training pairs_come",
    ),
    (
        "data: prompts are learned",
        "toy_experts/data.py",
        "[False] * len(prompt)",
        "[True] * len(prompt)",
        "training first_wrong_one",
    ),
    (
        "data: scores one place late",
        "toy_experts/data.py",
        "self.logp[rows, ..., :T - 1, :]",
        "self.logp[rows, ..., 1:T, :]",
        "tasks cut_to_its_longest",
    ),
    (
        "data: batches in order of length",
        "toy_experts/data.py",
        "return [out[i] for i in torch.randperm(len(out), generator=g)]",
        "return out",
        "tasks random_order",
    ),
    (
        "experts: gradients not clipped",
        "toy_experts/train.py",
        "model.parameters(), 1.0)",
        "model.parameters(), 1e9)",
        "training experts_train_equals",
    ),
    (
        "experts: learn the held-out sub-skills",
        "toy_experts/train.py",
        "if skill not in held_out]",
        "]",
        "tasks held_out",
    ),
    (
        "experts: prompts are learned",
        "toy_experts/train.py",
        "[m].mean()",
        ".mean()",
        "training experts_train_equals",
    ),
    (
        "schedule: down to zero",
        "toy_experts/train.py",
        "0.1 + 0.9 * 0.5",
        "0.5",
        f"training {SLOW_1}",
    ),
    # tasks, table
    (
        "grade: brevity inverted",
        "toy_experts/tasks.py",
        "len(item.answer) / max(1, len(text))",
        "len(text) / max(1, len(item.answer))",
        "tasks grade_by_hand",
    ),
    (
        "check: form is enough",
        "toy_experts/tasks.py",
        "return shaped(item, text) and right(item, text)",
        "return shaped(item, text)",
        "tasks checker_by_hand",
    ),
    (
        "splits: by wording",
        "toy_experts/tasks.py",
        "if split_of(key) == split",
        "if split_of(rest[0]) == split",
        "tasks cross_domain_prompts",
    ),
    (
        "table: on the train split",
        "toy_experts/evaluate.py",
        "tasks.dataset(b, s.split, s.prompts",
        'tasks.dataset(b, "train", s.prompts',
        "training covered",
    ),
    (
        "table: sft_only with phase 2's router",
        "toy_experts/evaluate.py",
        'router_sft if method == "sft_only" else router',
        "router",
        "training each_row",
    ),
    (
        "table: routing_only with phase 1's router",
        "toy_experts/evaluate.py",
        'router_sft if method == "sft_only" else router',
        'router_sft if method in ("sft_only", "routing_only") else router',
        "training each_row",
    ),
    (
        "table: the two routers exchanged",
        "toy_experts/evaluate.py",
        'router_sft if method == "sft_only" else router',
        'router if method == "sft_only" else router_sft',
        "training each_row",
    ),
    (
        "table: covered and uncovered exchanged",
        "toy_experts/evaluate.py",
        "if i.skill not in held[b]]",
        "if i.skill in held[b]]",
        "training covered",
    ),
    (
        "table: S counted in the prompt",
        "toy_experts/evaluate.py",
        "informative(choice)[mask[:, 1:]]",
        "informative(choice)[mask[:, :-1]]",
        "training routing_shares",
    ),
    (
        "a training shows test prompts",
        "toy_experts/batch.py",
        'tasks.draw("toy-gsm8k", "validation"',
        'tasks.draw("toy-gsm8k", "test"',
        "training shows",
    ),
    (
        "a training counts on test prompts",
        "toy_experts/batch.py",
        'tasks.dataset(b, "validation"',
        'tasks.dataset(b, "test"',
        "training shows",
    ),
    (
        "experts in another order",
        "toy_experts/train.py",
        "for e in EXPERTS]\n    path",
        "for e in EXPERTS[::-1]]\n    path",
        "training each_method",
    ),
    # run folders
    (
        "a checkpoint may execute code",
        "toy_experts/run.py",
        "weights_only=True",
        "weights_only=False",
        "scripts bad_checkpoints",
    ),
    (
        "half a file is left",
        "toy_experts/run.py",
        "beside.unlink(missing_ok=True)",
        "pass",
        "scripts whole_or_nothing",
    ),
    (
        "files are written in place",
        "toy_experts/run.py",
        'path.with_name(f"{path.name}.{os.getpid()}.tmp")',
        "path",
        "scripts whole_or_nothing",
    ),
    (
        "a diverged run is saved",
        "toy_experts/run.py",
        "if not loss.isfinite():",
        "if False:",
        "scripts diverged",
    ),
    (
        "another router's experts are taken",
        "toy_experts/train.py",
        'run.check_same(path, content["experts"]',
        'run.check_same(path, content["experts"] and {}',
        "scripts bad_checkpoints",
    ),
    # the house
    (
        "the ground floor imports extra",
        "toy_experts/pairs.py",
        "import json\n",
        "import json\nimport extra.common\n",
        "structure does_not_know",
    ),
    (
        "the model imports numpy",
        "model.py",
        "import torch\n",
        "import numpy\nimport torch\n",
        "structure torch_only",
    ),
    (
        "a circle",
        "toy_experts/judge.py",
        "import ast\n",
        "import ast\nfrom toy_experts import tasks\n",
        "structure circle",
    ),
    (
        "an import inside a function",
        "toy_experts/judge.py",
        "def passes(source, cases, name):\n",
        "def passes(source, cases, name):\n    import model\n",
        "structure inside_a_function",
    ),
    (
        "paper imports real",
        "extra/paper/tune.py",
        "import json\n",
        "import json\nimport extra.real.own\n",
        "structure wing",
    ),
    (
        "a line of 101 columns",
        "model.py",
        "import torch\n",
        "import torch  " + "#" * 87 + "\n",
        "structure lines_of",
    ),
    (
        "one more flag",
        "train_sft.py",
        "    epochs: int = 4 ",
        "    a: int = 1  # more\n    epochs: int = 4 ",
        "structure flags",
    ),
    (
        "train_sft grows by 20 lines",
        "train_sft.py",
        "def main(",
        "x = 1\n" * 20 + "def main(",
        "structure code_lines",
    ),
    (
        "train_sft loads one more file",
        "train_sft.py",
        "import time\n",
        "import time\nimport toy_experts.show\n",
        "structure loads_few",
    ),
    (
        "an import of what is not there",
        "toy_experts/vocab.py",
        "from random import Random\n",
        "from random import Random\nimport toy_experts.world\n",
        "structure exists",
    ),
    (
        "decode has a second implementation of Eq. (1)",
        "decode.py",
        "logits = fuse(router_logits, logits)",
        "logits = router_logits.log_softmax(-1) + logits.log_softmax(-1)",
        "structure lesson",
    ),
    (
        "attention has a second implementation",
        "model.py",
        "y = attention(q.transpose(1, 2), k, v, mask)",
        "y = F.scaled_dot_product_attention(q.transpose(1, 2), k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), mask[:, None])",
        "structure lesson",
    ),
] + PAPER


def command(where, all_tests=False):
    """pytest's arguments for the tests named in a mutant."""
    file, words = where.split(" ", 1)
    folder, _, stem = file.rpartition("/")
    if all_tests:
        return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests" / folder).glob("test_*.py"))
    return [str(Path("tests") / folder / f"test_{stem}.py"), "-k", words]


def passes(tree, tests):
    p = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert p.returncode in (0, 1), p.stdout + p.stderr  # 5: the words fit no test
    return p.returncode == 0


def survives(mutant, all_tests):
    """Whether the tests pass with this breakage; None if the old text is not there exactly once."""
    _, name, old, new, where = mutant
    text = (ROOT / name).read_text()
    if text.count(old) != 1:
        return None
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(
            ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "out", "__pycache__")
        )
        (tree / name).write_text(text.replace(old, new))
        return passes(tree, command(where, all_tests))


def main(words):
    all_tests, words = "--all" in words, [w for w in words if w != "--all"]
    left, begun = [], time.time()
    chosen = [m for m in MUTANTS if not words or any(w in " ".join(m) for w in words)]
    for where in dict.fromkeys(m[4] for m in chosen):  # what fails anyway notices nothing
        if not passes(ROOT, command(where)):
            sys.exit(f"tests/{where}: fails without any breakage")
    for mutant in chosen:
        verdict = survives(mutant, all_tests)
        print(
            f"{ {True: 'SURVIVES', False: 'noticed', None: 'NOT FOUND'}[verdict]:9s}  {mutant[1]}: {mutant[0]}",
            flush=True,
        )
        left += [] if verdict is False else [mutant[0]]
    print(
        f"{len(chosen)} breakages in {time.time() - begun:.0f} seconds, {len(left)} not noticed",
        *left,
        sep="\n  ",
    )
    return bool(left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
