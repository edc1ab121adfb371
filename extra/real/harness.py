"""lm-evaluation-harness over a fused model: Eq. (1) as a model like any other. Needs: pip install lm-eval

    python -m extra.real.harness --router own/seed0/router --experts math=DIR code=DIR --tasks gsm8k --limit 50
    python -m extra.real.harness ... --tasks mine --include_path FOLDER      tasks of your own, FOLDER/mine.yaml

Answers are decoded as decode.py does it (greedy unless the task asks otherwise). A text's log-likelihood is that of the fused
distribution: at each token the expert is the one that the router picks there.
"""

import json
from dataclasses import dataclass

import torch

from extra.common import one_of
from extra.real import own
from extra.real.decode import METHODS, answer_ids, decode_batch, options
from extra.speed.block import Lookup, block_decode
from fusionroute import fuse
from toy_experts import run
from toy_experts.run import UserError, write

try:
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table
    MISSING = None
except ImportError as e:
    LM, MISSING = object, e


@dataclass
class Settings:
    device: str = "cpu"          # auto, cuda, mps or cpu
    method: str = "fusionroute"  # fusionroute, routing_only, router, or the name of an expert
    tasks: str = ""              # tasks of lm-evaluation-harness, with commas
    include_path: str = ""       # FOLDER with tasks of your own
    limit: int = 0               # documents a task; 0: all
    num_fewshot: int = -1        # examples before each question; -1: what the task says
    chat: bool = False           # write the questions in the router's chat template
    output: str = ""             # FILE: all results as JSON

    def __post_init__(self):
        run.positive(self, "limit", or_zero=True)


class FusedLM(LM):
    """A Router and its experts with the interface of lm_eval.api.model.LM. setup: own.Setup; method: as in decode.py."""

    def __init__(self, setup, router, experts, method="fusionroute"):
        super().__init__()
        self.setup, self.router, self.experts, self.method = setup, router, experts, method
        self.tokenizer, self.max_len = setup.tokenizer, router.lm.config.max_len
        self.how, self.asked = options(method, setup.names), 0

    # what lm-eval asks of a model

    def loglikelihood(self, requests, disable_tqdm=False):
        """(context, continuation) -> (log-probability of the continuation, is it what greedy decoding says?) for each request."""
        out = []
        for context, continuation in (request.args for request in requests):
            blank = len(context) - len(context.rstrip())  # a space at the end belongs to the word after it
            context, continuation = context[:len(context) - blank], context[len(context) - blank:] + continuation
            before = self.encode(context) if context else [self.prefix]
            whole = self.encode(context + continuation) if context else before + self.encode(continuation, add=False)
            if whole[:len(before)] != before:             # a token spans the place
                whole = before + self.encode(continuation, add=False)
            out.append(self.score(whole[:len(before)], whole[len(before):]))
        return out

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        """The log-probability of each whole text, in windows of the length that the models read."""
        out = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(self.encode(text, add=False), self.prefix, self.max_len - 1, 1)
            out.append(sum(self.score(*make_disjoint_window(window))[0] for window in windows))
        return out

    def generate_until(self, requests, disable_tqdm=False):
        """(context, how) -> an answer up to the first of how["until"]."""
        return [self.generate(*request.args) for request in requests]

    def apply_chat_template(self, chat_history, add_generation_prompt=True):
        if self.tokenizer.template is None:
            raise UserError(f"{self.tokenizer.directory} has no chat template: leave out --chat")
        return self.tokenizer.fill_in(chat_history, ask=add_generation_prompt)

    @property
    def tokenizer_name(self):
        return str(self.tokenizer.directory)

    def chat_template(self, chat_template=False):
        return "the router's" if chat_template else ""

    # how

    @property
    def prefix(self):
        """The token before a text that nothing comes before: what the tokenizer begins with, else the end token."""
        return (self.tokenizer.encode("", add=True) or [self.tokenizer.END])[0]

    def encode(self, text, add=True):
        """Token ids; what the tokenizer puts before a text only where it is not there already, as in a rendered chat template."""
        begun = any(text.startswith(token) for token in self.tokenizer.special)
        return self.tokenizer.encode(text, add=add and not begun)

    @torch.inference_mode()
    def score(self, before, after):
        """log pi(after | before), and whether each of its tokens is the likeliest. Token ids; the last that fit."""
        if len(after) >= self.max_len:
            raise UserError(f"a continuation has {len(after)} tokens; with what comes before it the models read {self.max_len} at most")
        ids = torch.tensor([(before + after)[-self.max_len:]], device=self.setup.device)      # (1, T)
        here, targets = slice(-len(after) - 1, -1), ids[0, -len(after):]                      # the places that say `after`
        router_logits, w = self.router(ids)                                                   # (1, T, V), (1, T, n)
        logits, pick = router_logits[0, here], w[0, here].argmax(-1)                          # (t, V), (t,): I*
        if self.how.get("only") is not None:
            pick = torch.full_like(pick, self.how["only"])
        if self.how.get("use_expert", True):
            expert = torch.empty_like(logits)                                                 # (t, V)
            for i in pick.unique().tolist():
                mine = pick == i                                                              # (t,)
                expert[mine] = self.experts[i](ids)[0][0, here][mine].to(expert.dtype)
            logits = fuse(logits, expert) if self.how.get("use_router", True) else expert     # Eq. (1)
        logp = logits.log_softmax(-1).gather(1, targets[:, None])                             # (t, 1)
        return float(logp.sum()), bool((logits.argmax(-1) == targets).all())

    def generate(self, context, how):
        until = how.get("until") or []
        until = [until] if isinstance(until, str) else until
        temperature = float(how.get("temperature") or 0) if how.get("do_sample", True) else 0.0
        self.asked += 1  # the seed: a task that asks the same several times wants several answers
        cut = {"top_k": max(0, int(how.get("top_k") or 0)), "top_p": float(how.get("top_p") or 1)} if temperature else {}
        new = min(int(how.get("max_gen_toks") or self.setup.max_new), self.max_len - 1)
        ids = self.encode(context)[-(self.max_len - new):]                                    # the end of what is too long
        if self.method == "fusionroute" and cut in ({}, {"top_k": 0, "top_p": 1}):
            trace = block_decode(self.router, self.experts, ids, self.setup.ends, new, 32, Lookup([ids]), temperature, self.asked)
        else:
            sampling = {"temperature": temperature, "seed": self.asked, **cut}
            trace = decode_batch(self.router, self.experts, [ids], self.setup.ends, new, **sampling, **self.how)[0]
        text = self.tokenizer.decode(answer_ids(trace, self.setup.ends))
        return text[:min([text.find(stop) for stop in until if stop and stop in text], default=len(text))]


def main(argv=None):
    names = ["router", "experts", "dtype", "max_new"]
    s, flags = own.parse(own.parser(Settings, __doc__, *names), Settings, argv, names)
    if MISSING:
        raise UserError(f"this needs lm-evaluation-harness: pip install lm-eval ({MISSING})")
    if not s.tasks:
        raise UserError("--tasks is missing: names of tasks, with commas (lm_eval --tasks list shows those that there are)")
    setup = own.Setup(flags, run.device(s.device))
    one_of(s, "method", [*METHODS, *setup.names])
    manager, tasks = TaskManager(include_path=s.include_path or None), s.tasks.split(",")
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown:
        raise UserError(f"--tasks: there is no task {unknown[0]}" + f" in {s.include_path} or lm-eval itself" * bool(s.include_path))
    model = FusedLM(setup, *setup.models(), s.method)
    results = simple_evaluate(model, tasks=tasks, task_manager=manager, limit=s.limit or None, apply_chat_template=s.chat,
                              num_fewshot=None if s.num_fewshot < 0 else s.num_fewshot, bootstrap_iters=0)
    print(make_table(results))
    if s.output:
        write(s.output, json.dumps({k: results[k] for k in ("results", "n-samples", "versions")}, indent=1) + "\n")


if __name__ == "__main__":
    run.run(main)
