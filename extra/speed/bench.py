"""How fast is it? Every decoder beside one expert alone, every training step beside a plain one, in one run. Read docs/speed.md first.

    python -m extra.speed.bench                  under five minutes on two idle cores
    python -m extra.speed.bench --family gemma   the same for the toy in Gemma-2's architecture, without large models
    python -m extra.speed.bench --device cuda    the same on a GPU, and router training at about 1B parameters

    python -m extra.paper.bench                  the same with Sequence Selection and Collab besides; it takes the same flags, and writes
                                                 extra/results/bench.json (-gemma, -cuda) and the figures of docs/speed.md

All that is compared is measured in turn, round after round; a figure is the median over the rounds of a ratio within one round, with
the lowest and the highest. Toy models are those of a trained run (--out, --seed) if there is one. The large models are the toy models
grown to about 100M parameters each, by weights that change nothing in what they compute (`grow`): same text, same picks, same
acceptance, the memory traffic of 100M parameters. The optional package transformers adds Hugging Face's generate.

The result of extra.speed.bench, or of fewer rounds or prompts than by default, is for you: it goes to OUT/bench.json.
"""

import json
import os
import platform
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

try:
    import transformers
except ImportError:  # optional
    transformers = None

import decode
from extra.common import RESULTS, fill
from extra.speed import block
from extra.speed.block import AHEAD, BLOCK, SURE, block_decode, draft, ended, known_texts, read_block
from extra.speed.equal import PAGE, counted
from extra.speed.fast import Fast
from extra.speed.page import COMMAND, PAGES
from extra.speed.passes import bandwidth, calls_a_pass, cost, matrices, one_pass, watch, width_cost
from extra.speed.runs import folder, load, new_gpt
from extra.speed.training import memory_section, over, spread, training_section, utilisation
from fusionroute import Router, fuse
from model import GPT, GPTConfig, generate
from toy_experts import run, tasks, tokenizer
from toy_experts.batch import MAX_NEW, decode_batch
from toy_experts.train import EXPERTS

END = tokenizer.END
CHOICES = [(4, 0, SURE), (16, 0, SURE), (8, AHEAD, SURE), (16, AHEAD, SURE), (BLOCK, AHEAD, SURE), (64, AHEAD, SURE),
           (BLOCK, 2, SURE), (BLOCK, 4, SURE), (BLOCK, 16, SURE), *((BLOCK, AHEAD, p) for p in (0.01, 0.5, 0.8, 0.95))]
LARGE_CHOICES = [(BLOCK, 2, SURE), (BLOCK, AHEAD, SURE)]
FAST = ("expert", "block", "hf")  # at large size these answer all prompts, the others one of each benchmark
HF = ("expert", "expert_with_guesses", "block")  # decoders that are compared with Hugging Face's generate


@dataclass
class Settings:
    seed: int = 0          # the run whose trained models are measured
    out: str = "out"       # runs are in OUT/seedN/
    device: str = "cpu"    # auto, cuda, mps or cpu
    family: str = "llama"  # architecture of the toy's models: llama or gemma (Gemma-2), which has no large models here
    rounds: int = 4        # rounds at toy size
    large: int = 2         # rounds at large size, each with other prompts; 0 leaves it out
    prompts: int = 4       # test prompts of each benchmark in a round
    times: int = 10        # the large models are so many times as wide as the toy models
    layers: int = 10       # layers of the large models

    def __post_init__(self):
        run.positive(self, "rounds", "prompts", "times", "layers")
        run.positive(self, "large", or_zero=True)


# --- models -------------------------------------------------------------------------------------------------------------------------------


def toy_models(s, device):
    """(router, experts, reward, trained?) of the run, or random ones that share a base. The reward's quality does not matter here."""
    try:
        router, experts = load(s, s.seed)
        trained = True
    except run.UserError as e:
        print(f"no trained run, so random weights that share a base ({e})")
        torch.manual_seed(s.seed)
        base, trained = new_gpt(s.family), False

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


def take_turns(router):
    """n / 2 routers over the same n experts: the first picks among experts 0 and 1 as `router` does, the next among 2 and 3, ..."""
    routers = [Router(router.lm, router.W.out_features) for _ in range(router.W.out_features // 2)]
    for k, r in enumerate(routers):
        r.W.weight.data = router.W.weight.roll(2 * k, 0)
    return [r.requires_grad_(False) for r in routers]


HF_NAMES = {"embed.": "model.embed_tokens.", "blocks.": "model.layers.", "norm.": "model.norm.", "head.": "lm_head.",
            "wq.": "self_attn.q_proj.", "wk.": "self_attn.k_proj.", "wv.": "self_attn.v_proj.", "wo.": "self_attn.o_proj.",
            "w_gate.": "mlp.gate_proj.", "w_up.": "mlp.up_proj.", "w_down.": "mlp.down_proj.", "attn_norm.": "input_layernorm."}
HF_NORMS = {"llama": {"ff_norm.": "post_attention_layernorm."},
            "gemma2": {"attn_post_norm.": "post_attention_layernorm.", "ff_norm.": "pre_feedforward_layernorm.",
                       "ff_post_norm.": "post_feedforward_layernorm."}}


def to_hf(lm):
    """The same weights as Hugging Face's model: a Llama, or for the toy's other family a Gemma-2."""
    c, kind = lm.config, "gemma2" if getattr(lm.config, "gelu", False) else "llama"
    shape = dict(vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=c.n_layer,
                 num_attention_heads=c.n_head, num_key_value_heads=c.n_kv_head, head_dim=c.head_dim, max_position_embeddings=c.max_len,
                 rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, rope_theta=c.rope_theta, rms_norm_eps=c.norm_eps,
                 tie_word_embeddings=True, bos_token_id=None, eos_token_id=END, pad_token_id=END)
    if kind == "gemma2":
        shape |= dict(query_pre_attn_scalar=int(c.query_scalar), attn_logit_softcapping=c.attn_cap, final_logit_softcapping=c.logit_cap,
                      sliding_window=c.window, hidden_activation="gelu_pytorch_tanh")
    hf = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **shape), dtype=torch.float32)
    names = HF_NAMES | HF_NORMS[kind]
    rename = lambda key: "".join(names.get(f"{part}.", f"{part}.") for part in key.split("."))[:-1]
    hf.load_state_dict({rename(key): p for key, p in lm.state_dict().items()})
    hf.generation_config.update(bos_token_id=None, eos_token_id=END, pad_token_id=END)
    return hf.to(lm.embed.weight.device).eval()


# --- decoding -----------------------------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def guessed(router, prompt, lookup, k, end, new):
    """One model alone, with the free guesses that block decoding has: `draft` again and again. Returns its tokens and its passes."""
    text, passes, cache = list(prompt), 0, router.lm.new_cache(1, len(prompt) + new)
    while not ended(text[-1:], end) and len(text) < len(prompt) + new:
        tokens, *_, took = draft(router, cache, text, min(k, len(prompt) + new - len(text)), end, lookup)
        text, passes = text + tokens, passes + took
    return text[len(prompt):], passes


@torch.inference_mode()
def all_experts(router, experts, prompt):
    """Eq. (1) as one would first write it: the router and every expert read every token."""
    models, text = [router, *experts], list(prompt)
    caches = [lm.new_cache(1, len(prompt) + MAX_NEW) for lm in [router.lm, *experts]]
    while text[-1] != END and len(text) < len(prompt) + MAX_NEW:
        (logits, w), *rest = [read_block(m, c, text, 1) for m, c in zip(models, caches)]
        text.append(int(fuse(logits[0], rest[int(w[0].argmax())][0][0]).argmax()))
    return text[len(prompt):]


def decoders(router, experts, reward, owner, lookup, hf=(), others=None):
    """name -> function (prompt, its benchmark) -> how many tokens it wrote. owner: benchmark -> the expert of its domain.

    hf: the prompts on which Hugging Face's models are compared with ours before they are timed; none leaves them out.
    others(experts, reward): more decoders, name -> function of a prompt that returns its answer's tokens without the end token. It is
    handed the models as `Fast`.
    """
    one, fast_experts = [Router(expert, 1).to(router.W.weight.device) for expert in experts], [Fast(expert) for expert in experts]
    count = lambda answer: len(answer) + (len(answer) < MAX_NEW)  # the end token is work too
    runs = {
        "router": lambda p, b: count(generate(Fast(router.lm), [p], MAX_NEW, END)[0]),
        "expert": lambda p, b: count(generate(fast_experts[owner[b]], [p], MAX_NEW, END)[0]),
        "plain": lambda p, b: len(block_decode(router, experts, p, END, MAX_NEW, 1).tokens),
        "plain_in_a_batch": lambda p, b: len(decode_batch(Fast(router), fast_experts, [p])[0].tokens),
        "plain_by_model.py": lambda p, b: len(list(decode.decode(router, experts, p))),
        "block": lambda p, b: len(block_decode(router, experts, p, END, MAX_NEW, BLOCK, lookup).tokens),
        "block_without_guesses": lambda p, b: len(block_decode(router, experts, p, END, MAX_NEW, BLOCK).tokens),
        "expert_with_guesses": lambda p, b: len(guessed(one[owner[b]], p, lookup, BLOCK, END, MAX_NEW)[0]),
        "all_experts": lambda p, b: len(all_experts(router, experts, p))}
    for name, answer in (others(fast_experts, Fast(reward)) if others else {}).items():
        runs[name] = lambda p, b, answer=answer: count(answer(p))
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


def rates(runs, rounds, clock=time.perf_counter):
    """Tokens/s of every decoder in every round; rounds: the prompts of each, [(ids, benchmark)]. Decoders alternate, prompt by prompt."""
    out, names = {name: [] for name in runs}, list(runs)
    for r, prompts in enumerate(rounds):
        tokens, seconds = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
        for j, prompt in enumerate(prompts):
            k = (r + j) % len(names)
            for name in names[k:] + names[:k]:
                begun = clock()
                tokens[name] += runs[name](*prompt)
                seconds[name] += clock() - begun
        for name in names:
            out[name].append(tokens[name] / seconds[name])
    return out


def passes(runs, prompts, models):
    """name of a decoder -> (tokens that it wrote, {name of a model: widths of its passes}). models: name -> GPTs."""
    out = {}
    for name, answer in runs.items():
        if name == "hf":  # not of our models
            continue
        widths, done = watch(models)
        tokens = sum(answer(*prompt) for prompt in prompts)
        done()
        out[name] = tokens, widths
    return out


def decode_section(runs, rounds, seen, c):
    """Of all decoders: tokens/s, the ratio to one expert alone, passes a token, and the ratio that the cost model predicts.

    seen: of `passes`; c: of `width_cost`."""
    speed, out = rates(runs, rounds), {}
    cost_of = lambda tokens, widths: sum(cost(w, c) for w in widths.values()) / tokens
    for name in runs:
        out[name] = {"tokens_per_second": spread(speed[name]), "over_expert": over(speed[name], speed["expert"])}
        if name != "hf":
            tokens, widths = seen[name]
            out[name] |= {"passes": {k: round(len(w) / tokens, 4) for k, w in widths.items()},
                          "predicted_over_expert": round(cost_of(*seen["expert"]) / cost_of(*seen[name]), 4)}
        if name in HF and "hf" in runs:
            out[name]["over_hf"] = over(speed[name], speed["hf"])
        if name == "block" and "expert_with_guesses" in runs:  # the same guesses on both sides
            out[name]["over_expert_with_guesses"] = over(speed[name], speed["expert_with_guesses"])
    return out


# --- all of it ----------------------------------------------------------------------------------------------------------------------------


def prompts_of(benches, n):
    return [(tokenizer.encode_prompt(i.prompt), b) for b in benches for i in tasks.dataset(b, "test", n, Random(f"bench {b}"))]


def owners():
    """benchmark -> number of the expert of its domain; general prompts go to the instruction expert."""
    return {b: next((i for i, e in enumerate(EXPERTS) if b in tasks.DOMAINS[e]), 2) for b in tasks.BENCHMARKS + ["general"]}


def block_runs(router, experts, choices):
    """name -> function like those of `decoders`: block decoding with each (block, longest guess, where drafts end) of `choices`."""
    looks = {ahead: known_texts(ahead) if ahead else None for _, ahead, _ in choices}

    def answer(p, k, ahead, sure):
        before, block.SURE = block.SURE, sure
        try:
            return len(block_decode(router, experts, p, END, MAX_NEW, k, looks[ahead]).tokens)
        finally:
            block.SURE = before

    return {f"{k}, {ahead}, {sure:.2g}": lambda p, b, choice=(k, ahead, sure): answer(p, *choice) for k, ahead, sure in choices}


def ratios(speed):
    """Of `rates`, everything but the expert over the expert."""
    return {name: over(x, speed["expert"]) for name, x in speed.items() if name != "expert"}


def crowd_section(router, experts, lookup, prompts, rounds, numbers, kinds):
    """Plain and block decoding with so many experts: kind of crowd -> n -> ratios to those with 2 experts, and what blocks needed."""
    out, runs, place = {}, {}, {tuple(p): k for k, (p, _) in enumerate(prompts)}
    for kind in kinds:
        for n in numbers:
            r, e = more_experts(router, experts, n, float(kind == "picks spread"))
            several = take_turns(r) if kind == "other picks for each prompt" else [r]
            of = lambda p, several=several: several[place[tuple(p)] % len(several)]
            answer = lambda p, e=e, of=of: block_decode(of(p), e, p, END, MAX_NEW, BLOCK, lookup)
            runs[kind, "plain", n] = lambda p, b, e=e, of=of: len(block_decode(of(p), e, p, END, MAX_NEW, 1).tokens)
            runs[kind, "block", n] = lambda p, b, answer=answer: len(answer(p).tokens)
            traces = [answer(p) for p, _ in prompts]
            out.setdefault(kind, {})[n] = {"picked": len({i for t in traces for i in t.pick}), **counted(traces)}
    speed = rates(runs, [prompts] * rounds)
    for (kind, how, n), x in speed.items():
        out[kind][n][f"{how}_over_2_experts"] = over(x, speed[kind, how, 2])
    return out


def sixteen(experts):
    """The figure that is asked for: 16 experts, other ones for each prompt, over 2."""
    return experts["other picks for each prompt"][16]["block_over_2_experts"]["median"]


def toy_section(s, router, experts, reward, hf, others):
    lookup, prompts = known_texts(), prompts_of(tasks.BENCHMARKS + ["general"], s.prompts)
    models = {"router": [router.lm], "experts": experts, "reward": [reward.lm]}
    runs, c = decoders(router, experts, reward, owners(), lookup, prompts if hf else (), others), width_cost(router.lm, 40)
    methods = decode_section(runs, [prompts] * s.rounds, passes(runs, prompts, models), c)
    out = {"methods": methods, "width_cost": c, **summary(methods)}
    if s.family == "llama":  # Gemma-2 has no fast.py
        out["one_pass"] = one_pass(router.lm)
    out |= {"parameters": sum(p.numel() for p in router.lm.parameters()), "block": [BLOCK, AHEAD]}
    out |= counted([block_decode(router, experts, p, END, MAX_NEW, BLOCK, lookup) for p, _ in prompts])
    some = prompts[::2]
    out["choices"] = ratios(rates({"expert": runs["expert"], **block_runs(router, experts, CHOICES)}, [prompts] * ((s.rounds + 1) // 2)))
    out["experts"] = crowd_section(router, experts, lookup, some, (s.rounds + 1) // 2, (2, 4, 8, 16),
                                   ("picks as trained", "other picks for each prompt", "picks spread"))
    out["block_16_over_2_experts"] = sixteen(out["experts"])

    torch.manual_seed(1)  # the worst case: models trained on nothing in common, and guesses that are never right
    strangers = [new_gpt(s.family).to(router.W.weight.device).eval().requires_grad_(False) for _ in range(4)]
    lost = Router(strangers[0], 3).to(router.W.weight.device).requires_grad_(False)
    torch.nn.init.normal_(lost.W.weight)
    answer = lambda p, *how: block_decode(lost, strangers[1:], p, END, 48, *how)
    both = {"plain": lambda p, b: len(answer(p, 1).tokens), "block": lambda p, b: len(answer(p, BLOCK, lookup).tokens)}
    speed = rates(both, [prompts[::4]] * s.rounds)
    out["unrelated"] = {"block_over_plain": over(speed["block"], speed["plain"]),
                        **counted([answer(p, BLOCK, lookup) for p, _ in prompts[::4]])}
    return out


def summary(methods):
    """The figures that are asked for by name."""
    return {"block_over_expert": methods["block"]["over_expert"]["median"],
            "over_hf": methods["expert"]["over_hf"]["median"] if "hf" in methods else None}


def large_section(s, small, hf, others):
    """As toy_section, with large models. Passes are counted on the `small` (router, experts, reward), which compute the same.

    The slower decoders answer one prompt of each benchmark, once."""
    prompts, lookup, owner = prompts_of(tasks.BENCHMARKS, s.large * s.prompts), known_texts(), owners()
    few, models = prompts[::s.large * s.prompts], {"router": [small[0].lm], "experts": small[1], "reward": [small[2].lm]}
    runs = decoders(*small, owner, lookup, others=others) | block_runs(*small[:2], LARGE_CHOICES)
    seen, seen_few = passes({name: runs[name] for name in FAST if name in runs}, prompts, models), passes(runs, few, models)
    traces = [block_decode(*small[:2], p, END, MAX_NEW, BLOCK, lookup) for p, _ in prompts]

    router = grow_router(small[0], s.times, s.layers, None)
    experts = [grow(e, s.times, s.layers, router.lm) for e in small[1]]
    reward = grow_router(small[2], s.times, s.layers, router.lm)
    runs, c = decoders(router, experts, reward, owner, lookup, few[:2] if hf else (), others), width_cost(router.lm, 5)
    methods = decode_section({name: runs[name] for name in FAST if name in runs}, [prompts[r::s.large] for r in range(s.large)], seen, c)
    slow = decode_section({name: answer for name, answer in runs.items() if name != "block"} | block_runs(router, experts, LARGE_CHOICES),
                            [few], seen_few, c)
    out = {"methods": {name: x for name, x in slow.items() if name in runs} | methods,
           "choices": {name: x["over_expert"] for name, x in slow.items() if name not in runs},
           "parameters": sum(p.numel() for p in router.lm.parameters()), "calls_a_pass": calls_a_pass(router.lm), "block": [BLOCK, AHEAD],
           "width_cost": c, "matrices": matrices(router.lm), **summary(methods), **counted(traces)}
    some = prompts[::max(1, len(prompts) // 8)]
    out["experts"] = crowd_section(router, experts, lookup, some, 2, (2, 16), ("other picks for each prompt",))
    out["block_16_over_2_experts"] = sixteen(out["experts"])
    read, size = bandwidth(router.W.weight.device), 4 * out["parameters"]  # the floor: every weight once a pass
    tokens = {"expert": read / size, "block": read / size / sum(methods["block"]["passes"].values())}
    out["floor"] = {"gigabytes_per_second": round(read / 1e9, 2)}
    for name, most in tokens.items():
        out["floor"] |= {f"{name}_tokens_per_second": round(most, 3),
                         f"{name}_of_floor": round(methods[name]["tokens_per_second"]["median"] / most, 4)}
    return out


def main(argv=None, others=None, doc=__doc__, **meta):
    """others: see `decoders`; meta: what the file should say about them. With both, the result is what is published."""
    s = run.settings(Settings, doc, argv)
    folder(s, s.seed)  # checks seed and family
    device, begun, threads = run.device(s.device), time.time(), torch.get_num_threads()
    s.device = device.type
    torch.set_num_threads(1)
    memory = memory_section(new_gpt(s.family), device)
    torch.set_num_threads(threads)
    hf = bool(transformers)
    if not hf:
        print("transformers is not installed: over_hf stays empty (pip install transformers)")
    *models, trained = toy_models(s, device)
    result = {"meta": {"torch": torch.__version__.split("+")[0], "python": platform.python_version(), "threads": threads,
                       "machine": torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores",
                       "transformers": transformers.__version__ if hf else None, "trained": trained, "seed": s.seed,
                       "family": s.family, "sure": SURE, **meta}}
    result["training"] = training_section(new_gpt(s.family), device, 10 * s.rounds) | {"memory": memory}
    print("training measured")
    result["decode"] = {"toy": toy_section(s, *models, hf, others)}
    print("toy models measured")
    if s.large and s.family == "llama":
        result["decode"]["large"] = large_section(s, models, hf, others)
    if device.type == "cuda":
        config = GPTConfig(vocab_size=32000, d_model=2048, n_layer=20, n_head=16, n_kv_head=8, head_dim=128, d_ff=5632, max_len=1025)
        result["training"]["utilisation"] = utilisation(device, config, batch=4, T=1024)
    result["meta"]["seconds"] = round(time.time() - begun)
    result = json.loads(json.dumps(result))  # keys as they will be read
    print(PAGES["gemma" if s.family == "gemma" else "figures"](result))
    default = Settings()
    if not others or any(getattr(s, name) != getattr(default, name) for name in ("rounds", "large", "prompts", "times", "layers")):
        Path(s.out).mkdir(parents=True, exist_ok=True)
        run.write(Path(s.out) / "bench.json", json.dumps(result, indent=1) + "\n")
        return print(f"\nsaved {s.out}/bench.json: what is published comes from python -m extra.paper.bench with the default settings")
    suffix = f"-{s.family}" * (s.family != "llama") + f"-{device.type}" * (device.type != "cpu")
    run.write(RESULTS / f"bench{suffix}.json", json.dumps(result, indent=1) + "\n")
    part = {"": "figures", "-gemma": "gemma"}.get(suffix)
    if part:
        run.write(PAGE, fill(PAGE.read_text(), {part: PAGES[part](result)}, COMMAND[part]))
    print(f"\nsaved extra/results/bench{suffix}.json" + " and docs/speed.md" * bool(part))


if __name__ == "__main__":
    run.run(main)
