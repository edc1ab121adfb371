"""Breaks one line of the code at a time, and reports the breakages that no test notices.

    python tests/mutants.py            all of them: some ten minutes
    python tests/mutants.py WORD ...   only those whose file or line has one of these words

Each breakage is made in a copy of the repository, with one process. It names the test that must
fail: a file of tests/ and words for pytest -k. Exit status 1 if one survives.
"""

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot  # noqa: F401  these are loaded once, not once for each breakage
import pytest
import tiktoken  # noqa: F401
import torch

ROOT = Path(__file__).parent.parent
LIMIT = 60  # seconds of CPU time: a test that hangs has noticed something

# Below a file's name, a breakage a line: the test | old text => new text. ↵ is a line break. The
# old text is in the file once.
MUTANTS = r"""
extra/tokenizers/bytewise.py
tokenizers/bytewise overruled | (1 - self.least) * p + self.least / NONE => p
tokenizers/bytewise covers | p[END] += b.weight * b.p[-1] => pass
tokenizers/bytewise covers | for k in range(first, lo): => for k in range(first, first):
tokenizers/bytewise covers | if hi > lo:  # a word goes on => if hi < lo:  # a word goes on
tokenizers/bytewise spine or any_last | SPINE = 0.01 => SPINE = 1.01
tokenizers/bytewise spine | if known or mass > least * total => if mass > least * total
tokenizers/bytewise covers | and self.have[same] == tokens[same]: => and True:
tokenizers/bytewise bound | lost = (state.lost + total => lost = (total

extra/tokenizers/toy.py
tokenizers/tokenizers_toy documents | flags[end - 1] => True
tokenizers/tokenizers_toy shares | s.seed + 1_000_000 => s.seed
tokenizers/tokenizers_toy shares | if name == "base": => if name:

extra/tokenizers/scores.py
tokenizers/bytewise spans_of | starts, at = [0, *ends[:-1]] => starts, at = [0, *(ends[:-1] - 1)]
tokenizers/bytewise spine | symbols = [*answer.encode(), END] => symbols = [*answer.encode(), 0]
tokenizers/bytewise nearly | del reader, model => del model

extra/tokenizers/decode.py
tokenizers/bytewise bytes_as | second.argmax() => second.argmin()
tokenizers/bytewise bytes_as | logp = logp + router.next(mine) => logp = logp

extra/tokenizers/spans.py
tokenizers/bytewise finds | if own <= best: => if own <= best + 2:
tokenizers/bytewise finds | if other is not None: => if found is None:

extra/real/loading.py
real/loading share_one | return self.base.device => return torch.device("cpu")

extra/real/decode.py
real/real_decode conversation | if s.prompt is not None or not s.json: => if s:

extra/real/benchmark_data.py
real/benchmarks two_parts | "test" if number <= 510 => "expert" if number <= 510
real/benchmarks two_parts | r"<<.*?>>", "" => r"<<.*?>>", "<<"
real/benchmarks leaves_early | "ended").exists() => "code.py").exists()
real/benchmarks right_answers | == final_number(sample["check"]) => == final_number(answer)

extra/real/benchmark_table.py
real/benchmarks by_hand | a.sum() / b.sum() => (a / b).mean()
real/benchmarks by_hand | sign = 1 if m == "right" else -1 => sign = 1
real/benchmarks books | k - 1) if k => k) if k

extra/real/benchmarks.py
real/benchmarks rows_are | (scores / t).logsumexp(-1) - gold / t => -gold / t
real/benchmarks rows_are | fuse(own["router"], experts => fuse(own["router_sft"], experts
real/benchmarks rows_are | "routing_only", seed, experts => "routing_only", seed, 2 * experts
real/benchmarks rows_are | choices[at, pick["co_llm"]] => choices[at, pick["router"]]
real/benchmarks rows_are | experts.sum(1) => experts.sum(1) + logp["generalist"]
real/benchmarks rows_are | y].amax(-1)  # (N,): known => y].mean(-1)  # (N,): known
real/benchmarks nothing_twice | range(len(done), len(some), 4) => range(0, len(some), 4)

fusionroute.py
losses fuse | F.log_softmax(router_logits, -1) + F => F.log_softmax(router_logits, -1) - F
losses informative | .any(-1) => .all(-1)
losses agg | (w.softmax(-1) * logp) => (w * logp)
losses sft_loss | S = mask & informative(choice) => S = mask
losses sft_loss | S = mask & informative => S = informative
losses sft_loss | return loss_lm + lam * loss_expert => return lam * loss_lm + loss_expert
losses sft_loss | logp)[S].sum() / answer_tokens => logp)[S].sum() / S.sum()
losses gradient_of_eq_2 | self.W(hidden)  # => self.W(hidden.detach())  #
losses routed | logp.gather(-1, pick)[..., 0] => logp.mean(-1)
losses sequence | targets) * mask).sum(-1) => targets)).sum(-1)
losses bias_weights | - expert_rejected)).detach() => - expert_rejected))
losses cdpo_loss_by_hand | (expert_chosen - expert_rejected)) => (expert_rejected - expert_chosen))
losses cdpo_loss_by_hand | F.logsigmoid(margin + bias) => F.logsigmoid(margin)
losses cdpo_loss_by_hand | reward_rejected = beta * ( => reward_rejected = (
losses cdpo_loss_by_hand | "accuracy": (margin > 0) => "accuracy": (margin + bias > 0)
losses cdpo_loss_by_hand | (margin > 0).float() => (margin >= 0).float()
losses sft_loss | pick = w[S].argmax(-1) => pick = w[mask].argmax(-1)
losses score | token_logp(logits, x[:, 1:]).cpu() => token_logp(logits, x[:, :-1]).cpu()
training fed_the_train | nn.init.zeros_(self.W => nn.init.ones_(self.W

model.py
model slow | mask = pos[:, :, None] >= => mask = 999 + 0 * pos[:, :, None] >=
model slow | * hd**-0.5 => * hd**-1.0
model cache_equals | pos = cache.length[:, None] + pos => pos = 0 * cache.length[:, None] + pos
model different_numbers | cache.rows] = pos[:, -1] + 1 => cache.rows] = pos[:, 0] + 1
model some_rows | (kv if self.rows is None else kv[:, rows]).unbind() => kv[:, : len(rows)].unbind()
model too_long | if end > self.config.max_len => if end > 999
model right_distribution | (logits / temperature) => (logits * temperature)
model sample_limits | p.cumsum(-1) - p >= top_p => p.cumsum(-1) >= top_p
model sample_limits | index.minimum((p > 0).sum(-1) - 1) => index

decode.py
decode definition | int(w.argmax()) if only => int(w.argmin()) if only
decode definition | logits = fuse(router_logits, logits) => logits = logits
decode needs_no_router | if use_router or only is None: => if True:
decode definition | ids.append(token) => ids.append(0)
decode definition | expert_choice = int(logits => expert_choice = int(router_logits
decode definition | "routing_only": {"use_router": False} => "routing_only": {}
decode definition | "only": 0} => "only": 1}
decode temperature | temperature, top_p, u)) => temperature, 1.0, u))
small_table method_of_decode | "router_sft" if s.method == "sft_only" else "router" => "router"
scripts line_break | .replace("\\n", "\n") =>
scripts never_seen | if unseen := tokenizer.unseen(prompt): => if unseen := []:
scripts bad_arguments | if not prompt.strip(): => if False:
scripts longest | .encode(errors="replace").decode() =>
scripts longest | len(ids) + MAX_NEW > max_len => len(ids) > max_len
show json_and_plain | if steps[-1].token != tokenizer.END: => if False:
structure lesson | fuse(router_logits, logits) => router_logits.log_softmax(-1) + logits

toy_experts/decode_batch.py
decode definition | experts[i], caches[i], rows[mine] => experts[i], caches[i], rows[: len(mine)]
decode definition | alive = token != tokenizer.END => alive = token >= 0
decode read_twice | for i in pick.unique().tolist() => for i in range(len(experts))
decode batch_equals | sample(fused, temperature, top_p, u) => sample(fused, temperature, 1.0, u)
decode batch_equals | manual_seed(seed + b) => manual_seed(seed)
decode late_rows | > PADDING and not late.all(): => > 10**9 and not late.all():
decode late_rows | (~late).nonzero()])[:, 0].argsort() => (~late).nonzero()])[:, 0]
decode order_of_the_items | out[i] = answer => out[len(items) - 1 - i] = answer
decode order_of_the_items | experts, prompts, **how), items => experts, prompts), items

toy_experts/show.py
decode in_S | len(prompt) - 1 :] => len(prompt) :]
show only_tokens | [colours[r["expert"]]] * r["in_S"] => [colours[r["expert"]]]
show only_tokens | (f"«{r['token']}»" if r["changed"] else r["token"]) => r["token"]
show only_tokens | [r["expert"] for r in rows if r["in_S"]] => [r["expert"] for r in rows]
show part_of | ("utf-8")("replace") => ("utf-8")("ignore")
show terminals | "NO_COLOR" not in os.environ => "NO_COLOR" in os.environ
show json_has | ended = rows[-1]["id"] == tokenizer.END => ended = False

train_sft.py
training phase_1_equals | router.parameters(), 1.0) => router.parameters(), 1e9)
training phase_1_equals | optimizer.zero_grad() => pass
training phase_1_equals | "lr": s.lr_w => "lr": s.lr
training phase_1_equals | scheduler.step()↵ => pass↵
training phase_1_equals | BATCH, s.seed * 1000 + e) => BATCH, s.seed * 1000)
training phase_1_equals | choice, s.lam) => choice, 1 / 3)
training phase_1_equals | weight_decay=0.01 => weight_decay=0.0
training fed_the_train | EXPERTS.index("instruct") => EXPERTS.index("math")
training shows | s.seed * 1000)[0] => s.seed * 1000)[1]

train_cdpo.py
training phase_2_equals | router.parameters(), 1.0) => router.parameters(), 1e9)
training phase_2_equals | this_ref, s.beta) => this_ref, 0.1)
training phase_2_equals | ref[rows].to(device) => ref[rows.flip(0)].to(device)
training phase_2_equals | optimizer.zero_grad() => optimizer.zero_grad(set_to_none=False)
training algorithm_1 | Random(f"plan {s.seed}").shuffle(plan) => pass
training algorithm_1 | sft[: mix * len(pairs)] => sft[: 2 * len(pairs)]
losses pair_loss | cdpo_loss(*theta.unbind(1) => cdpo_loss(*theta.flip(1).unbind(1)
training phase_2_is_fed | (logp[..., 0] * both.mask[:, 1:]).sum(-1) => logp[..., 0].sum(-1)
training phase_2_is_fed | score([lm], => score(experts[:1],
training phase_2_is_fed | phase1["recipe"]["samples"] => 2400
scripts another_phase_1 | | {"phase1": script.fingerprint(router)} =>

toy_experts/pairs.py
training first_wrong | if not judge.check(item, text) and => if judge.check(item, text) and
training first_wrong | and len(tokenizer.encode_answer(text)) <= 2 * MAX_NEW =>
training first_wrong | in ("chosen", "rejected") => in ("rejected", "chosen")
training pairs_come | temperature=TEMPERATURE, => temperature=TEMPERATURE / 10,
training pairs_come | mixed("preference" => mixed("train"
training pairs_come | + i * TRIES =>
training first_mistake | if not judge.check(item, trace => if judge.check(item, trace

toy_experts/data.py
training first_wrong | [False] * len(prompt) => [True] * len(prompt)
tasks cut_to | self.logp[rows, ..., : T - 1, :] => self.logp[rows, ..., 1:T, :]
tasks random_order | torch.randperm(len(out), generator=g)] => range(len(out))]
tasks random_order | torch.randperm(len(lengths), generator=g) => torch.arange(len(lengths))
tasks random_order | order.split(16 * size) => order.split(len(order))
training phase_1_equals | 0.1 + 0.9 * 0.5 => 0.5

toy_experts/experts.py
training side_by_side | ["base", *EXPERTS].index(name) => EXPERTS.index(name)
training side_by_side | if any(process.exitcode for => if False and any(process.exitcode for
training experts_train | model.parameters(), 1.0) => model.parameters(), 1e9)
training experts_train | [learn].mean() => .mean()
tasks held_out | if skill not in held_out] => ]

toy_experts/tasks.py
tasks cross_domain | if split_of(key) == split => if split_of(rest[0]) == split
tasks splits_are_disjoint | if split_of(key) == split => if split_of(rest[0]) == split
judge gold | re.sub(r" (Begin|Finish) .*", "", prompt) => prompt
tasks held_out | sample(skills[2:], => sample(skills,

toy_experts/judge.py
judge grade | len(item.answer) / max(1, len(text)) => len(text) / max(1, len(item.answer))
judge numbers | return shaped(item, text) and right(item, text) => return shaped(item, text)
judge cross_domain | return shaped(item, text) and right(item, text) => return right(item, text)
judge cross_domain | return text.endswith("\ndone") => return text.endswith("done")
judge bullets | len(steps(item.gold[1])) - 1 => 0
judge code_by_hand | return "`" not in text  # => return True  #
judge code_by_hand | [(i, j) for i in range(-3, 13) for => [(i, j) for i in range(13) for
judge words | re.escape(FORMATS[skill][1](words)) => FORMATS[skill][1](words)
judge code_by_hand | [[], *([x] => [*([x]

toy_experts/evaluate.py
small_table counts | tasks.dataset(b, s.split, => tasks.dataset(b, "train",
small_table counts | router_sft if method == "sft_only" else router => router
small_table counts | [judge.check(item, trace.text()) => [judge.right(item, trace.text())
small_table counts | trace.text()) for => trace.text()) or tokenizer.END not in trace.tokens for
small_table counts | zip(right, uncovered) if not u] => zip(right, uncovered) if u]
small_table counts | {s.split} {b} {s.seed} => {s.split} {b}
small_table counts | if method == "fusionroute": => if method == "sft_only":
small_table shares | informative(choice)[mask[:, 1:]] => informative(choice)[mask[:, :-1]]
small_table report | row["general"]["all"]] => row["average"]["all"]]
small_table report | -kv[1] => kv[1]
small_table report | -kv[1]["average"]["all"] => -kv[1]["average"]["covered"]
small_table command | prompts: int = 200 => prompts: int = 100
small_table counts | tasks.held_out(b, gap, s.seed) => tasks.held_out(b, gap, 0)
small_table counts | gap = frozen["math"]["recipe"]["gap"] => gap = 0.25
small_table counts | answers(model, experts, items => answers(model, experts[::-1], items

toy_experts/progress.py
training shows | "validation", n => "test", n
training shows | splitlines()[-EVERY:] => splitlines()[:EVERY]
training shows | max_new=96 => max_new=9
training printed_line | if r["kind"] == kind] => ]
scripts diverged | if not loss.isfinite(): => if loss.isfinite():

toy_experts/script.py
scripts one_thread | if "OMP_NUM_THREADS" not in os.environ: => if True:
scripts bad_checkpoints | weights_only=True => weights_only=False
scripts whole_or_nothing | beside.unlink(missing_ok=True) => pass
scripts whole_or_nothing | path.with_name(f"{path.name}.{os.getpid()}.tmp") => path
scripts bad_checkpoints | content["experts"], dict => content["experts"], {} and dict
scripts seed_is | torch.manual_seed(s.seed) => pass
scripts interrupted | except KeyboardInterrupt as e: => except ZeroDivisionError as e:
scripts bad_arguments | check_same(path, saved, recipe) => check_same(path, saved, {})
scripts hint | shlex.quote(f'--out={s.out}') => f'--out={s.out}'
small_table method_of_decode | for e in EXPERTS]↵    path => for e in EXPERTS[::-1]]↵    path
weights first_answer | if not flags(s) and not => if not
weights first_answer | if not flags(s) and not (folder / f"{name}.pt").exists(): => if not flags(s):

toy_experts/tokenizer.py
tasks unseen | if not known(w) and not => if not known(w) or not
weights first_answer | + PATTERN.encode() =>

docs/tools/pages.py
small_table pages | 100 * share => 10 * share
small_table pages | return match[0] if new is None else f"<!--= => return f"<!--=

run.sh
run_sh flags | $python train_cdpo.py "$@" => $python train_cdpo.py
run_sh without | [ $# -gt 0 ] || { ask => false || { ask --seed 1
run_sh refuses | check "$@"↵ => true↵

toy_experts/interpreter.py
structure circle | import ast↵ => import ast↵from toy_experts import judge↵
structure inside | def power(a, b): => def power(a, b):↵    import model
interpreter attacks | MAX_STEPS = 2_000 => MAX_STEPS = 10**9
interpreter attacks | MAX_LIST = 200 => MAX_LIST = 10**9
interpreter python_means | if bool(value) == isinstance => if bool(value) != isinstance

model.py
structure torch_only | import torch.nn as nn => import numpy↵import torch.nn as nn
structure lesson | y = attention( => y = (lambda *x: attention(*x) if 0 else x[0])(

extra/paper/train.py
paper/recipes phase_1 | lm = checkpoints.load(s, name => lm = checkpoints.load(s, "math" or name
paper/recipes phase_1_is_fed | losses.sft_loss_of(r.loss, list( => losses.sft_loss_of("paper", list(
paper/recipes is_fed | **{name: getattr(r, name) for name in shared}) => **{})
paper/recipes phase_2_is_fed | sample_pairs(sampler, models => sample_pairs(router, models
paper/recipes phase_2_is_fed | losses.pair_loss_of(r.loss, => losses.pair_loss_of("paper",
paper/recipes phase_2_is_fed | if r.loss == "fused": => if r.loss == "none":
paper/recipes refused | script.check_same(path, usual | saved, made_from) => pass
paper/recipes refused | content["experts"], prints => prints_of(models), prints
paper/recipes language_model_is_fed | for e in EXPERTS for d => for e in EXPERTS[:1] for d
paper/recipes rejected_answers | "only": next(turn) => "only": 0
paper/recipes reinforce_samples | self.reward[rows] = torch => self.reward[:16] = torch

extra/paper/losses.py
paper/paper_losses eq_2 | inside = mask & S(choice) => inside = S(choice)
paper/paper_losses eq_2 | log_softmax(-1) + logp).logsumexp => softmax(-1) * logp).sum
paper/paper_losses eq_2 | pick = w.argmax(-1)[..., None => pick = w.argmin(-1)[..., None
paper/paper_losses objective | 1 / (2 * beta)) ** 2 => 1 / beta) ** 2
paper/paper_losses reinforce | (r - r.mean(1, keepdim=True)).flatten() => r.flatten()
paper/paper_losses bradley | logsigmoid(r_chosen - r_rejected) => logsigmoid(r_rejected - r_chosen)

extra/paper/methods.py
paper/paper_methods collab | torch.stack(scores, 1).argmax(1 => torch.stack(scores, 1).argmin(1
paper/paper_methods likelihood | (at >= begin[:, None]) & =>
paper/paper_methods selection | torch.stack(scores).argmax(0) => torch.stack(scores).argmin(0)
paper/paper_methods merging | delta / (1 - drop)) => delta)
paper/paper_methods each_row | "routing_only": sums("router", => "routing_only": sums("router_sft",

extra/paper/evaluate.py
paper/variations split | tasks.dataset(b, split, n[b] => tasks.dataset(b, "train", n[b]
paper/variations accuracy_by | (("covered", False), => (("covered", True),

extra/paper/rows.py
paper/variations beta_is_chosen | evaluate.draw(s, "validation") => evaluate.draw(s)
paper/variations is_kept | [prints(s, recipe) for recipe in recipes]] => []]

extra/paper/table.py
paper/paper_table figure | "".join(map(max, column)) => "".join(map(min, column))
paper/paper_table figure | float(1 + np.mean(s)) / 2 => float(np.mean([x >= 0 for x in s]))
paper/paper_table what_is_kept | shared + [prints[name] for name in row.checkpoints] => []
paper/paper_table figure | Random(f"sft {s.seed}") => Random("sft 0")
paper/paper_table figure | runs[0].general or runs[0].prompts => runs[0].prompts
paper/paper_table routing | [s and c and w for => [s and w for
paper/paper_table costs | one = np.median( => one = np.max(

extra/paper/spread.py
paper/paper_table spread | right == "0" => right == "1"
paper/paper_table spread | if i != k - len(seeds)] => if True]
paper/paper_table spread | i.skill not in held[b] for => i.skill in held[b] for
paper/paper_table spread | (a - (1 - c) * uncovered) / c => a / c
paper/paper_table spread | both("router", "average") => both("sft_only", "average")
paper/paper_table spread | if again: => if False:
paper/paper_table spread | y.index(min(y)) => y.index(max(y))
paper/paper_table regression | X[i] @ fit(rows) => X[i] @ fit(np.arange(n))
paper/paper_table regression | (n - 1 - k) => (n - 1)

extra/paper/tune.py
paper/paper_command tuning | evaluate.draw(s, "validation") => evaluate.draw(s)
paper/paper_command tuning | "won": max(rows => "won": min(rows

extra/paper/report.py
paper/results verdicts or seeds | if p < 0.05 => if p < 0.5
paper/results verdicts or seeds | if d["mean"] > 0 else => if True else
paper/results correction | if first.startswith("gemma") else "llama" => if False else "llama"
paper/results figures_by_hand | sum(d > 0 for d in => sum(d < 0 for d in
paper/results all_seeds | c: shares + its.get(c, []) => c: its.get(c, []) + shares
paper/results say_what | averages[10:]) => averages[11:])
paper/results order_needs | if min(d) >= MARGIN => if max(d) >= MARGIN
paper/results verdicts | < lowest => < 0

extra/paper/stats.py
paper/results holm | (len(p) - rank) => 1
paper/results interval | ddof=1 => ddof=0
paper/results interval | / n**0.5 => / n

extra/paper/plot.py
paper/results plot | x(mean(shares)) => x(max(shares))

docs/results.md
paper/results say_what | bias off-->not shown<! => bias off-->reproduced<!
paper/results say_what | -->+5.8 [+1.3 => -->+5.9 [+1.3

theory/statements/cdpo.py
theory/theory_statements without_the_formula | - np.log(q)) / beta => - np.log(ref)) / beta
theory/theory_statements every_statement | population(star, q), [] => population(star, expert), []

theory/statements/sft.py
theory/theory_statements every_statement | kl(limit, pi, d_limit) => kl(star, pi, d)

theory/statements/collab.py
theory/theory_statements need_not | best(mdp) - own[0][:, 0].max(), => loss(mdp, pi),

toy_experts/pairs.py
structure does_not_know | import json => import json↵import extra.paper.train

train_sft.py
structure loads | import time => import time↵import toy_experts.show
"""


def parsed():
    """[(file, tests, old, new)] of MUTANTS."""
    found, name = [], None
    for line in MUTANTS.splitlines():
        if " | " in line:
            tests, change = line.split(" | ", 1)
            old, new = (x.replace("↵", "\n") for x in (change + " ").split(" => ", 1))
            found.append((name, tests, old, new.rstrip(" ")))
        elif line:
            name = line
    return found


def pytest_says(tree, tests):
    """The exit status of pytest in a tree, for a file of tests and words; None if it hangs."""
    file, words = tests.split(" ", 1)
    folder, _, stem = file.rpartition("/")
    path = str(Path("tests") / folder / f"test_{stem}.py")
    child = os.fork()
    if not child:
        os.chdir(tree)
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        sys.dont_write_bytecode, sys.path[0] = True, str(tree)
        os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", path, "-k", words]))
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def main(words):
    chosen = [m for m in parsed() if not words or any(w in " ".join(m) for w in words)]
    left, begun = [], time.time()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        leave = shutil.ignore_patterns(".git", ".venv", "out", "__pycache__")
        shutil.copytree(ROOT, tree, ignore=leave)
        used = {tests.split(" ", 1)[0]: set() for _, tests, _, _ in chosen}
        for _, tests, _, _ in chosen:
            used[tests.split(" ", 1)[0]].add(tests.split(" ", 1)[1])
        for file, words in used.items():
            if pytest_says(tree, f"{file} {' or '.join(words)}") != 0:
                sys.exit(f"{file}: fails without any breakage, so it could not notice one")
        for name, tests, old, new in chosen:
            text = (tree / name).read_text()
            verdict = "NOT FOUND"
            if text.count(old) == 1:
                (tree / name).write_text(text.replace(old, new))
                status = pytest_says(tree, tests)
                verdict = {0: "SURVIVES", 1: "noticed", None: "noticed"}.get(status, "ERROR")
                (tree / name).write_text(text)
            line = f"{name}: {tests} | {old} => {new}".replace("\n", "↵")
            print(f"{verdict:9s}  {line}", flush=True)
            left += [line] if verdict != "noticed" else []
    print(f"{len(chosen)} breakages in {time.time() - begun:.0f} seconds, {len(left)} not noticed")
    return bool(left)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
