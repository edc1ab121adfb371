"""What a training shows: what to expect, a line every 50 steps, and one answer before and after."""

import json
from random import Random

from tqdm import tqdm

from fusionroute import informative, naive_fused_greedy
from toy_experts import tasks, tokenizer
from toy_experts.script import EXPERTS, WEIGHTS, UserError

EVERY = 50  # steps between two printed lines


class Log(list):
    """What each training step reported, a dict each. Prints the first step, then means."""

    def __init__(self):
        super().__init__()
        self.kinds = set()

    def add(self, loss, terms, kind="sft"):
        """terms: what sft_loss or cdpo_loss returned beside the loss."""
        if not loss.isfinite():
            raise UserError(f"the loss is {loss.item()}: the training has diverged; lower --lr")
        routing = {f"route_{n}": x for n, x in zip(EXPERTS, terms.get("routing", []))}
        values = {"loss": loss} | {k: v for k, v in terms.items() if k != "routing"} | routing
        values = {k: round(v.detach().item(), 5) for k, v in values.items()}
        self.append({"step": len(self), "kind": kind} | values)
        if kind not in self.kinds:
            self.kinds.add(kind)
            tqdm.write(means(self[-1:], kind))
        if len(self) % EVERY == 0:
            for kind in sorted(self.kinds):
                tqdm.write(means(self[-EVERY:], kind))


def means(records, kind):
    """One line: which steps, and the mean of each term over the records of one kind."""
    steps = f"{records[-1]['step'] + 1:4d}"
    if len(records) > 1:  # a mean of many batches may well lie above the first batch's value
        steps = f"{records[0]['step'] + 1}-{records[-1]['step'] + 1} mean"
    records = [r for r in records if r["kind"] == kind]
    terms = [k for k in records[0] if k not in ("step", "kind")] if records else []
    texts = [f"{k} {sum(r[k] for r in records) / len(records):.3f}" for k in terms]
    return f"step {steps:>12} {kind:4s}  {'  '.join(texts)}"


def expect_end(name, kinds):
    """Print how the training of toy_experts/weights ended: what to expect of one like it."""
    lines = (WEIGHTS / f"{name}.log.jsonl").read_text().splitlines()[-EVERY:]
    print("expect at the end, if all flags are the defaults (other seeds differ a little):")
    print("\n".join(means([json.loads(line) for line in lines], kind) for kind in kinds))


def expect_losses(batch):
    """Print what both terms of Eq. (2) must be at step 1, from the experts' scores alone.

    batch: of Data.batch. The router is a copy of the instruction expert, so L_LM is that expert's.
    W = 0 gives every expert the weight 1/n, so log pi_agg is the mean of their log-probabilities.
    All weights are equal at step 1, so argmax takes the first expert: route_math is 1.
    """
    _, mask, logp, choice = batch  # (B, T-1), (B, T-1, n) twice
    lm = -logp[..., EXPERTS.index("instruct")][mask].sum() / mask.sum()
    expert = -logp.mean(-1)[mask & informative(choice)].sum() / mask.sum()
    print(
        f"expect at step 1: loss_lm {lm:.3f}, the instruction expert's, as the router is its "
        f"copy; loss_expert {expert:.3f}, the mean of all in S, as W = 0 weights them alike; "
        "route_math 1, as of equal weights the first is picked"
    )


def validation_items(seed, gap, n):
    """n validation prompts: word problems, of a sub-skill that no expert knows if there is one."""
    skills = tasks.held_out("toy-gsm8k", gap, seed)[:1] or None
    return tasks.dataset("toy-gsm8k", "validation", n, Random(f"show {seed}"), skills)


def answer_of(router, experts, item):
    """The text that FusionRoute answers to an item, by the slow definition of decoding."""
    prompt = tokenizer.encode_prompt(item.prompt)
    ids, _ = naive_fused_greedy(router, experts, prompt, tokenizer.END, max_new=96)
    return tokenizer.encoding.decode(ids)
