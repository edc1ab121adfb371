"""How fast is it? Every decoder beside one expert alone, every training step beside a plain one, in one run. Read docs/speed.md first.

    python bench.py                  under five minutes on two idle cores; writes results/bench.json and the figures of docs/speed.md
    python bench.py --device cuda    the same on a GPU, and router training at about 1B parameters; writes results/bench-cuda.json

All that is compared is measured in turn, round after round; a figure is the median over the rounds of a ratio within one round, with
the lowest and the highest. Toy models are those of a trained run (--out, --seed) if there is one. The large models are the toy models
grown to about 100M parameters each, by weights that change nothing in what they compute (`grow`): same text, same picks, same
acceptance, the memory traffic of 100M parameters. The optional package transformers adds Hugging Face's generate.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import common
import decode
import fast
from baselines import collab, sequence_selection
from bench_equal import counted
from bench_page import figures
from bench_train import contest, memory_section, over, spread, training_section, utilisation
from decode import block_decode, draft, fused_decode, known_texts, read_block
from fusionroute import Router, fuse
from model import GPT, GPTConfig, generate
from report import fill
from toy_experts import tasks, tokenizer
from toy_experts import train as toy

ROOT = Path(__file__).parent
END, MAX_NEW = tokenizer.END, decode.MAX_NEW
BLOCKS = [(4, 0), (16, 0), (32, 0), (8, 6), (16, 6), (32, 6), (32, 2), (32, 16), (48, 8)]  # (block, guess at most) to choose from
DEFAULT = {"toy": (decode.Settings.block, 8), "large": (32, 2)}  # the choice; at large size a wide pass costs a CPU more than a narrow one
WIDTHS = (1, 2, 3, 4, 8, 16, 32, 64)


@dataclass
class Settings:
    seed: int = 0        # the run whose trained models are measured
    out: str = "out"     # runs are in OUT/seedN/
    device: str = "cpu"  # auto, cuda, mps or cpu
    rounds: int = 4      # rounds at toy size
    large: int = 3       # rounds at large size; 0 leaves it out
    prompts: int = 4     # test prompts of each benchmark at toy size; at large size one of each
    times: int = 10      # the large models are so many times as wide as the toy models
    layers: int = 10     # layers of the large models
    lookahead: int = 4   # tokens that Collab looks ahead

    def __post_init__(self):
        common.positive(self, "rounds", "prompts", "times", "layers", "lookahead")
        common.positive(self, "large", or_zero=True)


# --- measuring ----------------------------------------------------------------------------------------------------------------------------


def bandwidth(device, mib=400):
    """Bytes a second at which this machine reads memory, at best of several: one matrix of `mib` MiB times a vector."""
    W, x = torch.ones(mib * 256, 1024, device=device), torch.ones(1024, device=device)
    runs = contest({"read": lambda: float((W @ x)[0])}, 7)
    return W.numel() * 4 / min(runs["read"])


def width_cost(lm, rounds):
    """What a pass over T new tokens costs behind 32 others, in passes over one token. T -> ratio."""
    device, room = lm.embed.weight.device, max(WIDTHS) + 32
    ids, cache = torch.ones(1, max(WIDTHS), dtype=torch.long, device=device), lm.new_cache(1, room)

    @torch.no_grad()
    def read(T):
        cache.length.fill_(32)
        float(lm(ids[:, :T], cache)[0][0, -1, 0])

    seconds = contest({T: lambda T=T: read(T) for T in WIDTHS}, rounds)
    return {T: over(s, seconds[1])["median"] for T, s in seconds.items()}


class Calls(TorchDispatchMode):
    """Counts torch's operations while it is active, those that only look at a tensor in another way (view, transpose) included."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def calls_a_pass(lm):
    """Operations of one pass over one token."""
    cache, token = lm.new_cache(1, 2), torch.ones(1, 1, dtype=torch.long, device=lm.embed.weight.device)
    lm(token, cache)
    with Calls() as calls:
        lm(token, cache)
    return calls.count


@torch.no_grad()
def one_pass(lm, rounds=100):
    """A pass over one token behind 32 others, as model.py computes it and as fast.py does: operations of torch, and microseconds."""
    cache, token = lm.new_cache(1, 40), torch.ones(1, 1, dtype=torch.long, device=lm.embed.weight.device)
    ways = {"model.py": lambda *_: False, "fast.py": fast.applies}

    def by(name, what):
        fast.applies = ways[name]
        result = what()
        fast.applies = ways["fast.py"]
        return result

    def read():
        cache.length.fill_(32)
        return float(lm(token, cache)[0][0, -1, 0])

    seconds = contest({name: lambda name=name: by(name, read) for name in ways}, rounds)
    return {name: {"operations": by(name, lambda: calls_a_pass(lm)), "microseconds": spread([1e6 * x for x in seconds[name]])["median"]}
            for name in ways}


MATRICES = {"x w', `F.linear`": F.linear, "w x', the weights on the left": lambda x, w: (w @ x.t()).t().contiguous(),
            "one token after the other": lambda x, w: torch.stack([F.linear(row, w) for row in x])}


@torch.no_grad()
def matrices(lm, rounds=3):
    """Milliseconds of all matrices of the blocks over T tokens, by the way of multiplying: name -> T -> ms. What `fast.times` chooses from."""
    weights = [p for p in lm.blocks.parameters() if p.dim() == 2]
    x = {d: torch.randn(32, d, device=weights[0].device) for d in {w.size(1) for w in weights}}
    runs = {(name, T): lambda way=way, T=T: [way(x[w.size(1)][:T], w) for w in weights]
            for name, way in MATRICES.items() for T in (1, 2, 3, 4, 6, 8, 16, 32)}
    out = {}
    for (name, T), seconds in contest(runs, rounds).items():
        out.setdefault(name, {})[T] = spread([1e3 * x for x in seconds])["median"]
    return out


def cost(widths, c):
    """The cost model: passes of these widths, in passes over one token, c interpolated between its widths."""
    total = 0.0
    for w in widths:
        hi = next((T for T in WIDTHS if T >= w), WIDTHS[-1])
        lo = max((T for T in WIDTHS if T <= w), default=1)
        total += c[lo] + (c[hi] - c[lo]) * (w - lo) / (hi - lo) if hi > lo else c[hi] * max(1, w / hi)
    return total


def watch(models):
    """Record the width of every pass: {name: list}, and a function that ends it. models: name -> list of GPTs."""
    widths, handles = {name: [] for name in models}, []
    for name, lms in models.items():
        for lm in {id(m): m for m in lms}.values():
            handles.append(lm.register_forward_hook(lambda m, args, out, name=name: widths[name].append(args[0].shape[1])))
    return widths, lambda: [h.remove() for h in handles]


# --- models -------------------------------------------------------------------------------------------------------------------------------


def toy_models(s, device):
    """(router, experts, reward, trained?) of the run, or random ones that share a base. The reward's quality does not matter here."""
    try:
        router, experts = decode.load(decode.Settings(seed=s.seed, out=s.out, device=s.device), "router")
        trained = True
    except common.UserError as e:
        print(f"no trained run, so random weights that share a base ({e})")
        torch.manual_seed(s.seed)
        base, trained = toy.new_gpt(toy.Settings()), False

        def child():
            lm = deepcopy(base)
            for p in lm.parameters():
                p.data += 0.1 * p.data.std(correction=0) * torch.randn_like(p)
            return lm

        router, experts = Router(child(), 3), [child() for _ in range(3)]
        torch.nn.init.normal_(router.W.weight)
    reward = Router(deepcopy(router.lm), 1)
    torch.nn.init.normal_(reward.W.weight)
    frozen = [m.to(device).eval().requires_grad_(False) for m in [router, *experts, reward]]
    return frozen[0], frozen[1:-1], frozen[-1], trained


@torch.no_grad()
def grow(small, times, layers, filler=None):
    """A GPT `times` as wide, with more layers, that computes what `small` computes. filler: a large model to take random weights from.

    The new part of the residual stream stays zero, as everything that writes to it (embedding, wo, w_down) is zero there; what the
    norms divide by shrinks by `times`, and their weights make up for it. All other new weights are random, and all are read.
    """
    c = small.config
    wide = {name: getattr(c, name) * times for name in ("d_model", "n_head", "n_kv_head", "d_ff")}
    big = deepcopy(filler) if filler else GPT(GPTConfig(**{**c.__dict__, **wide, "n_layer": layers, "norm_eps": c.norm_eps / times}))
    old = small.state_dict()
    for name, p in big.named_parameters():
        if name.endswith(("wo.weight", "w_down.weight", "embed.weight", "head.weight")):
            p.zero_()
        if name in old:
            p[tuple(slice(n) for n in old[name].shape)] = old[name].to(p.device) * (times ** -0.5 if "norm" in name else 1.0)
    return big.to(small.embed.weight.device).eval().requires_grad_(False)


@torch.no_grad()
def grow_router(router, times, layers, filler):
    big = Router(grow(router.lm, times, layers, filler), router.W.out_features).to(router.W.weight.device).requires_grad_(False)
    big.W.weight[:, :router.W.in_features] = router.W.weight
    return big


def more_experts(router, experts, n, noise):
    """The first two experts as n: copies in turn. noise 0: the copies' weights are the mean of two others and are never the largest, so
    that the picks stay as they were; else each copy has a direction of its own, and the picks spread over all of them."""
    out = Router(router.lm, n)
    W = router.W.weight[:2]
    g = torch.Generator().manual_seed(0)
    for j in range(n):
        own = torch.randn(W.shape[1], generator=g).to(W) * W.std() * noise
        out.W.weight.data[j] = W[j] if j < 2 and not noise else W[j % 2] + own if noise else W.mean(0)
    return out.to(W.device).requires_grad_(False), [experts[j] if j < 2 else deepcopy(experts[j % 2]) for j in range(n)]


def to_hf(lm):
    """The same weights as Hugging Face's LlamaForCausalLM, or None where transformers is missing. Their rotary pairs are ours."""
    if not importlib.util.find_spec("transformers"):
        return None
    import transformers
    c = lm.config
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=c.n_layer, num_attention_heads=c.n_head,
        num_key_value_heads=c.n_kv_head, head_dim=c.head_dim, max_position_embeddings=c.max_len, rms_norm_eps=c.norm_eps,
        tie_word_embeddings=c.tied, bos_token_id=None, eos_token_id=END, pad_token_id=END,
        **({"rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta}} if int(transformers.__version__.split(".")[0]) > 4 else
           {"rope_theta": c.rope_theta}))
    names = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head", "attn_norm": "input_layernorm",
             "wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj",
             "ff_norm": "post_attention_layernorm", "w_gate": "mlp.gate_proj", "w_up": "mlp.up_proj", "w_down": "mlp.down_proj"}
    weights = {}
    for name, p in lm.state_dict().items():
        *block, part, _ = name.split(".")
        weights[f"model.layers.{block[1]}.{names[part]}.weight" if block else f"{names[part]}.weight"] = p
    hf = transformers.LlamaForCausalLM(config)
    hf.load_state_dict(weights)
    return hf.to(lm.embed.weight.device).eval()


# --- decoding -----------------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def guessed(router, prompt, lookup, block):
    """One model alone, with the free guesses that block decoding has: `draft` again and again."""
    text, cache = list(prompt), router.lm.new_cache(1, len(prompt) + MAX_NEW)
    while text[-1] != END and len(text) < len(prompt) + MAX_NEW:
        text += draft(router, cache, text, min(block, len(prompt) + MAX_NEW - len(text)), END, lookup)[0]
    return text[len(prompt):]


@torch.inference_mode()
def all_experts(router, experts, prompt):
    """Eq. (1) as one would write it without lag: the router and every expert read every token."""
    models, text = [router, *experts], list(prompt)
    caches = [lm.new_cache(1, len(prompt) + MAX_NEW) for lm in [router.lm, *experts]]
    while text[-1] != END and len(text) < len(prompt) + MAX_NEW:
        (logits, w), *rest = [read_block(m, c, text) for m, c in zip(models, caches)]
        text.append(int(fuse(logits[-1], rest[int(w[-1].argmax())][0][-1]).argmax()))
    return text[len(prompt):]


def decoders(router, experts, reward, owner, lookup, block, s, hf=None, max_new=MAX_NEW):
    """name -> function (prompt, its benchmark) -> how many tokens it wrote. owner: benchmark -> the expert of its domain.

    hf: the prompts on which Hugging Face's models are compared with ours before they are timed; None leaves them out.
    """
    one = [Router(expert, 1).to(router.W.weight.device) for expert in experts]
    count = lambda answer: len(answer) + (len(answer) < MAX_NEW)  # the end token is work too
    runs = {
        "router": lambda p, b: count(generate(router.lm, [p], MAX_NEW, END)[0]),
        "expert": lambda p, b: count(generate(experts[owner[b]], [p], MAX_NEW, END)[0]),
        "plain": lambda p, b: len(fused_decode(router, experts, [p], END, MAX_NEW)[0].tokens),
        "block": lambda p, b: len(block_decode(router, experts, p, END, MAX_NEW, block, lookup).tokens),
        "block_without_guesses": lambda p, b: len(block_decode(router, experts, p, END, MAX_NEW, block).tokens),
        "expert_with_guesses": lambda p, b: len(guessed(one[owner[b]], p, lookup, block)),
        "all_experts": lambda p, b: len(all_experts(router, experts, p))}
    runs["sequence_selection"] = lambda p, b: count(sequence_selection(experts, reward, [p], END, MAX_NEW)[0])
    runs["collab"] = lambda p, b: min(max_new, count(collab(experts, reward, [p], END, max_new, s.lookahead)[0]))
    if hf:
        hfs = [to_hf(e) for e in experts]
        runs["hf"] = lambda p, b: len(hf_greedy(hfs[owner[b]], p))
        for p, b in hf:  # else the comparison would mean nothing
            if [t for t in hf_greedy(hfs[owner[b]], p) if t != END] != generate(experts[owner[b]], [p], MAX_NEW, END)[0]:
                raise RuntimeError("Hugging Face's generate says something else")
    return runs


def hf_greedy(hf, prompt):
    ids = torch.tensor([prompt], device=hf.device)  # (1, T)
    out = hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=MAX_NEW, do_sample=False, use_cache=True)
    return out[0, len(prompt):].tolist()


def rates(runs, prompts, rounds):
    """Tokens a second of every decoder in every round over all prompts [(ids, benchmark)]; decoders alternate prompt by prompt."""
    out, names = {name: [] for name in runs}, list(runs)
    for r in range(rounds):
        tokens, seconds = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
        for j, prompt in enumerate(prompts):
            k = (r + j) % len(names)
            for name in names[k:] + names[:k]:
                begun = time.perf_counter()
                tokens[name] += runs[name](*prompt)
                seconds[name] += time.perf_counter() - begun
        for name in names:
            out[name].append(tokens[name] / seconds[name])
    return out


def decode_section(runs, prompts, models, c, rounds):
    """The figures of all decoders: tokens/s, ratio to one expert alone, passes a token, and the ratio that the cost model predicts.

    models: name -> GPTs, whose passes are watched apart; c: `width_cost` of one of them."""
    seen, predicted, out = {}, {}, {"methods": {}}
    for name, run in runs.items():
        widths, done = watch(models)
        tokens = sum(run(*prompt) for prompt in prompts)
        done()
        seen[name] = {k: round(len(w) / tokens, 4) for k, w in widths.items()}
        predicted[name] = tokens / max(1e-9, sum(cost(w, c) for w in widths.values()))
    speed = rates(runs, prompts, rounds)
    for name in runs:
        out["methods"][name] = {"tokens_per_second": spread(speed[name]), "over_expert": over(speed[name], speed["expert"])}
        if name != "hf":
            out["methods"][name] |= {"passes": seen[name], "predicted_over_expert": round(predicted[name] / predicted["expert"], 4)}
    out["block_over_expert"] = out["methods"]["block"]["over_expert"]["median"]
    for name, key in (("expert", "over_hf"), ("expert_with_guesses", "with_guesses_over_hf"), ("block", "block_over_hf")):
        out[key] = over(speed[name], speed["hf"])["median"] if "hf" in runs else None
    out |= {"width_cost": c, "calls_a_pass": calls_a_pass(models["router"][0])}
    return out


# --- all of it ----------------------------------------------------------------------------------------------------------------------------


def prompts_of(benches, n):
    return [(tokenizer.encode_prompt(i.prompt), b) for b in benches for i in tasks.dataset(b, "test", n, Random(f"bench {b}"))]


def owners():
    """benchmark -> number of the expert of its domain; general prompts go to the instruction expert."""
    return {b: next((i for i, e in enumerate(toy.EXPERTS) if b in tasks.DOMAINS[e]), 2) for b in tasks.BENCHMARKS + ["general"]}


def block_runs(router, experts, choices):
    looks = {ahead: known_texts(ahead) if ahead else None for _, ahead in choices}
    return {f"{k}, {ahead}": lambda p, b, k=k, ahead=ahead: len(block_decode(router, experts, p, END, MAX_NEW, k, looks[ahead]).tokens)
            for k, ahead in choices}


def toy_section(s, router, experts, reward, hf):
    block, ahead = DEFAULT["toy"]
    lookup, prompts = known_texts(ahead), prompts_of(tasks.BENCHMARKS + ["general"], s.prompts)
    models = {"router": [router.lm], "experts": experts, "reward": [reward.lm]}
    runs = decoders(router, experts, reward, owners(), lookup, block, s, prompts if hf else None)
    out = decode_section(runs, prompts, models, width_cost(router.lm, 40), s.rounds) | {"one_pass": one_pass(router.lm)}
    out |= {"parameters": sum(p.numel() for p in router.lm.parameters()), "block": [block, ahead]}
    out |= counted([block_decode(router, experts, p, END, MAX_NEW, block, lookup) for p, _ in prompts])
    some = prompts[::2]
    choice = rates({"expert": runs["expert"], **block_runs(router, experts, BLOCKS)}, some, s.rounds)
    out["blocks_over_expert"] = {name: over(speed, choice["expert"]) for name, speed in choice.items() if name != "expert"}

    out["experts"], several = {}, {}
    for noise, kind in ((0.0, "picks as trained"), (1.0, "picks spread")):
        crowd = {n: more_experts(router, experts, n, noise) for n in (2, 4, 8, 16)}
        for n, (r, e) in crowd.items():
            several[kind, "plain", n] = lambda p, b, r=r, e=e: len(fused_decode(r, e, [p], END, MAX_NEW)[0].tokens)
            several[kind, "block", n] = lambda p, b, r=r, e=e: len(block_decode(r, e, p, END, MAX_NEW, block, lookup).tokens)
            out["experts"].setdefault(kind, {})[n] = counted([block_decode(r, e, p, END, MAX_NEW, block, lookup) for p, _ in some])
    speed = rates(several, some, s.rounds)
    for (kind, how, n), x in speed.items():
        out["experts"][kind][n][f"{how}_over_2_experts"] = over(x, speed[kind, how, 2])
    for kind, suffix in (("picks as trained", ""), ("picks spread", "_spread")):
        out[f"block_16_over_2_experts{suffix}"] = out["experts"][kind][16]["block_over_2_experts"]["median"]

    torch.manual_seed(1)  # the worst case: models of no common mind, and guesses that are never right
    strangers = [toy.new_gpt(toy.Settings()).to(router.W.weight.device).eval().requires_grad_(False) for _ in range(4)]
    lost = Router(strangers[0], 3).to(router.W.weight.device).requires_grad_(False)
    torch.nn.init.normal_(lost.W.weight)
    speed = rates({"plain": lambda p, b: len(fused_decode(lost, strangers[1:], [p], END, 48)[0].tokens),
                   "block": lambda p, b: len(block_decode(lost, strangers[1:], p, END, 48, block, lookup).tokens)}, prompts[::4], s.rounds)
    out["unrelated"] = {"block_over_plain": over(speed["block"], speed["plain"]),
                        **counted([block_decode(lost, strangers[1:], p, END, 48, block, lookup) for p, _ in prompts[::4]])}
    return out


def large_section(s, router, experts, reward, hf):
    router = grow_router(router, s.times, s.layers, None)
    experts = [grow(e, s.times, s.layers, router.lm) for e in experts]
    reward = grow_router(reward, s.times, s.layers, router.lm)
    block, ahead = DEFAULT["large"]
    lookup, prompts = known_texts(ahead), prompts_of(tasks.BENCHMARKS, 1)
    runs = decoders(router, experts, reward, owners(), lookup, block, s, prompts[:1] if hf else None, max_new=4)
    runs |= {f"block {name}": run for name, run in block_runs(router, experts, [(32, 1), (32, 4), (32, 16)]).items()}
    models = {"router": [router.lm], "experts": experts, "reward": [reward.lm]}
    c = width_cost(router.lm, 3)
    out = decode_section(runs, prompts, models, c, s.large) | {"matrices": matrices(router.lm)}
    out |= {"parameters": sum(p.numel() for p in router.lm.parameters()), "block": [block, ahead]}
    out |= counted([block_decode(router, experts, p, END, MAX_NEW, block, lookup) for p, _ in prompts])
    read, size = bandwidth(router.W.weight.device), 4 * out["parameters"]  # the floor: every weight once a pass
    passes = out["methods"]["block"]["passes"]
    out["floor"] = {"gigabytes_per_second": round(read / 1e9, 2), "expert_tokens_per_second": round(read / size, 3),
                    "block_tokens_per_second": round(read / size / (passes["router"] + passes["experts"]), 3)}
    for name in ("expert", "block"):
        speed = out["methods"][name]["tokens_per_second"]["median"]
        out["floor"][f"{name}_of_floor"] = round(speed / out["floor"][f"{name}_tokens_per_second"], 4)
    return out


def main(argv=None):
    s = common.settings(Settings, __doc__, argv)
    common.run_dir(decode.Settings(seed=s.seed, out=s.out))  # checks the seed
    device, begun, threads = common.device(s.device), time.time(), torch.get_num_threads()
    s.device = device.type
    torch.set_num_threads(1)
    memory = memory_section(toy.new_gpt(toy.Settings())) if device.type == "cpu" else None
    torch.set_num_threads(threads)
    hf = bool(importlib.util.find_spec("transformers"))
    if not hf:
        print("transformers is not installed: over_hf stays empty (pip install transformers)")
    router, experts, reward, trained = toy_models(s, device)
    result = {"meta": {"torch": torch.__version__.split("+")[0], "python": platform.python_version(), "threads": threads,
                       "machine": torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores",
                       "transformers": importlib.metadata.version("transformers") if hf else None, "trained": trained, "seed": s.seed,
                       "lookahead": s.lookahead}}
    result["training"] = training_section(toy.new_gpt(toy.Settings()), device, 8 * s.rounds) | {"memory": memory}
    print("training measured")
    result["decode"] = {"toy": toy_section(s, router, experts, reward, hf)}
    print("toy models measured")
    if s.large:
        result["decode"]["large"] = large_section(s, router, experts, reward, hf)
    if device.type == "cuda":
        config = GPTConfig(vocab_size=32000, d_model=2048, n_layer=20, n_head=16, n_kv_head=8, head_dim=128, d_ff=5632, max_len=1025)
        result["training"]["utilisation"] = utilisation(device, config, batch=4, T=1024)
    result["meta"]["seconds"] = round(time.time() - begun)
    result = json.loads(json.dumps(result))  # keys as they will be read
    print(figures(result))
    name = "bench.json" if device.type == "cpu" else f"bench-{device.type}.json"
    common.write(ROOT / "results" / name, json.dumps(result, indent=1) + "\n")
    if device.type == "cpu":
        page = ROOT / "docs" / "speed.md"
        common.write(page, fill(page.read_text(), {"figures": figures(result)}, "python bench.py"))
    print(f"\nsaved results/{name}" + (" and docs/speed.md" if device.type == "cpu" else ""))


if __name__ == "__main__":
    common.run(main)
