"""What FusionRoute with large models takes in memory and time: computed from sizes, never measured. The tables of docs/real-models.md.

    python -m extra.real.costs          writes them; a test fails when the page says something else

Memory: training keeps 16 bytes a parameter (weight, gradient and AdamW's two moments, float32), and the tensors that autograd holds
for one step, which are counted here on torch's meta device, where tensors have shapes and no content. A frozen model in bfloat16 is 2
bytes a parameter. Time: a forward pass is 2 operations a parameter and token, a training step 6, at USED of what the GPU's data
sheet promises: in bfloat16 for the experts' scores, in float32 for training.
"""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
import torch.nn.functional as F

from extra.common import RESULTS, fill, table
from extra.gpt import GPT, GPTConfig
from extra.real.scores import LOGITS
from fusionroute import token_logp
from toy_experts.run import run, write

RESULT = RESULTS / "smollm2.json"
PAGE, COMMAND = Path(__file__).parents[2] / "docs" / "real-models.md", "python -m extra.real.costs"
LLAMA = {"vocab_size": 128256, "head_dim": 128, "n_kv_head": 8, "max_len": 8192}
GEMMA = {"post_norm": True, "one_plus": True, "gelu": True, "embed_scaled": True, "attn_cap": 50.0, "logit_cap": 30.0, "window": 4096,
         "vocab_size": 256000, "max_len": 8192}
MODELS = {
    "Llama-3.1-8B": GPTConfig(**LLAMA, d_model=4096, n_layer=32, n_head=32, d_ff=14336, tied=False),
    "Llama-3.2-3B": GPTConfig(**LLAMA, d_model=3072, n_layer=28, n_head=24, d_ff=8192),
    "Llama-3.2-1B": GPTConfig(**LLAMA | {"head_dim": 64}, d_model=2048, n_layer=16, n_head=32, d_ff=8192),
    "Gemma-2-2B": GPTConfig(**GEMMA, d_model=2304, n_layer=26, n_head=8, n_kv_head=4, head_dim=256, d_ff=9216),
    "SmolLM2-135M": GPTConfig(**LLAMA | {"vocab_size": 49152, "head_dim": 64, "n_kv_head": 3}, d_model=576, n_layer=30, n_head=9,
                              d_ff=1536),
}
GPUS = {  # name: (GB of memory, 10^12 operations a second in bfloat16 and in float32), by NVIDIA's data sheets, without sparsity
    "RTX 4090": (24, 165, 82.6),
    "H100": (80, 989, 67),
}
SETUPS = [  # GPU, how many, router, experts, --max_len
    ("RTX 4090", 1, "Llama-3.2-1B", "Llama-3.1-8B", 256),
    ("RTX 4090", 1, "Llama-3.2-1B", "Llama-3.2-3B", 256),
    ("RTX 4090", 1, "Gemma-2-2B", "Gemma-2-2B", 256),
    ("H100", 1, "Gemma-2-2B", "Gemma-2-2B", 1024),
    ("H100", 1, "Llama-3.2-3B", "Llama-3.1-8B", 1024),
    ("H100", 1, "Llama-3.1-8B", "Llama-3.1-8B", 1024),
    ("H100", 8, "Llama-3.1-8B", "Llama-3.1-8B", 1024),
]
N, USED = 3, 0.4                      # experts; share of the data sheet's speed that is assumed
SFT, PAIRS, TOKENS = 200e3, 100e3, 400  # the paper's samples and pairs; tokens of a sample, prompt and answer: assumed
GB = 1e9


def per_layer(count, config):
    """count(config), which grows by the same for every two layers (of Gemma-2, one of two has a window), from 2 and 4 layers only."""
    two, four = count(replace(config, n_layer=2)), count(replace(config, n_layer=4))
    return two + (config.n_layer - 2) * (four - two) // 2


@cache
def parameters(name):
    def count(config):
        with torch.device("meta"):
            return sum(p.numel() for p in GPT(config).parameters())  # a tied head is the embedding, and counted once
    return per_layer(count, MODELS[name])


@cache
def outside(name):
    """Parameters of embedding, head and last norm, which --fsdp holds together through a step."""
    with torch.device("meta"):
        two = GPT(replace(MODELS[name], n_layer=2))
        return sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in two.blocks.parameters())


class Attention(torch.autograd.Function):
    """Keeps what torch's attention kernels keep, and meta tensors have none of these: inputs, output, and a number per row of scores."""

    @staticmethod
    def forward(ctx, q, k, v, mask):  # q (B, H, T, hd)
        out = torch.empty_like(q)                                                           # (B, H, T, hd)
        ctx.save_for_backward(q, k, v, mask, out, out.new_empty(out.shape[:-1]))
        return out


def held(config, T, B=1):
    """Bytes that a training step holds besides weights, gradients and moments: B samples of T tokens.

    What autograd keeps from the forward pass, each tensor once and weights left out, and the logits twice: they and their gradient.
    """
    return per_layer(lambda c: held_by(c, T, B), config)


def held_by(config, T, B):
    """`held`, counted on the whole model."""
    with torch.device("meta"), patch.object(F, "scaled_dot_product_attention", lambda *args, **_: Attention.apply(*args)):
        model, ids = GPT(config), torch.zeros(B, T, dtype=torch.long)                       # (B, T)
        weights, kept = {p.untyped_storage()._cdata for p in model.parameters()}, {}

        def keep(t):
            kept[t.untyped_storage()._cdata] = t.untyped_storage()  # held, so that no other takes its address
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            logits, _ = model(ids)                                                          # (B, T, V)
            loss = token_logp(logits, ids).sum()
    del loss
    return sum(s.nbytes() for address, s in kept.items() if address not in weights) + 2 * logits.numel() * 4


def memory(router, gpus, T):
    """Bytes a GPU while training: (what stays, what one pair of answers of T tokens adds, the least that phase 2 can do: --batch 1)."""
    P = parameters(router)
    # divided among GPUs, what a block or the rest of the model needs is put together: weights and gradients of what lies outside
    # the blocks all the time, and of two blocks at most
    together = 8 * (outside(router) + 2 * (P - outside(router)) / MODELS[router].n_layer) if gpus > 1 else 0
    return 16 * P / gpus + together, held(MODELS[router], T, B=2)


def hours(gpu, gpus, router, experts):
    """(scores for phase 1, phase 1, scores and pi_ref for phase 2, phase 2), in hours of all GPUs together."""
    bf16, f32 = (gpus * USED * x * 1e12 * 3600 for x in GPUS[gpu][1:])
    R, E = parameters(router), parameters(experts)
    sft, pairs = SFT * TOKENS, 2 * PAIRS * TOKENS  # phase 2 has as many SFT samples as pairs (--mix 1), of those already scored
    return (2 * N * E * sft / bf16, 6 * R * sft / f32,
            2 * N * E * pairs / bf16 + 2 * R * pairs / f32, 6 * R * (pairs + PAIRS * TOKENS) / f32)


def scoring(expert):
    """Bytes of one expert that scores: bfloat16 weights, LOGITS logits in bfloat16, in float32, and their logarithms."""
    return 2 * parameters(expert) + LOGITS * (2 + 4 + 4)


def training_table():
    rows = [["GPUs", "router", "experts", "scoring, GB", "training, GB", "with a pair of", "GB", "fits",
             "hours: scores", "phase 1", "scores", "phase 2"]]
    for gpu, gpus, router, experts, T in SETUPS:
        size, score, (stays, pair) = GPUS[gpu][0], scoring(experts), memory(router, gpus, T)
        fits = max(score, stays + pair) <= size * GB
        times = [f"{h:.1f}" for h in hours(gpu, gpus, router, experts)] if fits else ["-"] * 4
        rows.append([f"{gpus} x {gpu}, {size} GB", router, f"{N} x {experts}", f"{score / GB:.1f}", f"{stays / GB:.1f}", f"2 x {T} tokens",
                     f"{(stays + pair) / GB:.1f}", "yes" if fits else "no", *times])
    return "\n".join(table(rows))


def model_table():
    rows = [["model", "parameters", "frozen, bfloat16, GB", "trained, float32", "a sample of 512 tokens", "1024", "2048"]]
    for name, config in MODELS.items():
        P = parameters(name)
        held_by = [f"{held(config, T) / GB:.1f}" for T in (512, 1024, 2048)]
        rows.append([name, f"{P:,}", f"{2 * P / GB:.1f}", f"{16 * P / GB:.1f}", *held_by])
    return "\n".join(table(rows))


def disk():
    """What lies on the disk and in memory besides, in a sentence."""
    longest, file, bf16 = 1024, SFT * TOKENS * N * 8, lambda expert, router: 2 * (N * parameters(expert) + parameters(router)) / GB
    return (f"Scores of {SFT:,.0f} samples of {TOKENS} tokens under {N} experts: {file / GB:.1f} GB on the disk (8 bytes a token and "
            f"expert). In the computer's memory they are a table as wide as the longest sample, twice that for a moment, and the samples "
            f"lie beside it: at --max_len {longest}, {SFT * (longest * (2 * N * 8 + 9) + TOKENS * 44) / GB:.0f} GB in each process. "
            f"A saved state of an 8B router is {12 * parameters('Llama-3.1-8B') / GB:.0f} GB. To answer, router and {N} experts lie in "
            "memory together, in bfloat16: "
            f"{bf16('Llama-3.1-8B', 'Llama-3.1-8B'):.0f} GB for four 8B models, {bf16('Llama-3.1-8B', 'Llama-3.2-1B'):.0f} GB with a 1B "
            f"router, {bf16('Llama-3.2-3B', 'Llama-3.2-1B'):.0f} GB for 3B experts with a 1B router, "
            f"{bf16('Gemma-2-2B', 'Gemma-2-2B'):.0f} GB for four Gemma-2 2B.")


def laptop():
    """The same count for the run that was made, beside what was measured."""
    measured, stays, T = json.loads(RESULT.read_text())["meta"]["memory"], 16 * parameters("SmolLM2-135M"), 100
    batch = held(MODELS["SmolLM2-135M"], T, 4)
    return (f"The same count for the laptop's phase 1, a batch of 4 samples of {T} tokens: {stays / GB:.1f} + {batch / GB:.1f} = "
            f"{(stays + batch) / GB:.1f} GB. Measured, the most that the whole process had: {measured['router_sft'] / GB:.1f} GB, "
            "with Python and torch, the file that it loads from or saves to, and what malloc keeps.")


def blocks():
    return {"models": model_table(), "training": training_table(), "disk": disk(), "laptop": laptop()}


def main():
    write(PAGE, fill(PAGE.read_text(), blocks(), COMMAND))
    print("\n\n".join(blocks().values()))


if __name__ == "__main__":
    run(main)
