"""The toy's runs and models in both families, for bench.py and equal.py: llama is the ground floor's, gemma has Gemma-2's architecture.

A run of llama is in OUT/seedN, one of gemma in OUT/gemma/seedN.
"""

from pathlib import Path

from extra import gpt
from extra.common import FAMILIES, one_of
from fusionroute import Router
from toy_experts import run, tokenizer, train

# Gemma-2's options in the proportions of its checkpoints: heads wider than the width shares out, a window shorter than most documents.
GEMMA = dict(gelu=True, post_norm=True, one_plus=True, embed_scaled=True, head_dim=32, query_scalar=24.0, attn_cap=50.0, logit_cap=30.0,
             window=32)


def folder(s, seed):
    """The folder of one run. s: settings with out and family."""
    one_of(s, "family", FAMILIES)
    return run.run_dir(train.Settings(seed=seed, out=s.out if s.family == "llama" else str(Path(s.out) / s.family)))


def new_gpt(family):
    """An untrained model of the toy."""
    return train.new_gpt() if family == "llama" else gpt.GPT(gpt.GPTConfig(vocab_size=tokenizer.VOCAB_SIZE, **GEMMA))


def load(s, seed):
    """The router of a run after both phases, and its experts, frozen. UserError if it is not there or damaged."""
    place, device = folder(s, seed), run.device(s.device)
    if s.family == "llama":
        hint = f"run bash run.sh{run.flags(train.Settings(seed=seed, out=s.out))}"
        return train.load_router(place, "router", device, hint)[:2]
    hint = "run python -m extra.paper.evaluate --family gemma"
    experts = [load_gemma(place / f"{name}.pt", hint, device)[0] for name in train.EXPERTS]
    router, content = load_gemma(place / "router.pt", hint, device)
    run.check_same(place / "router.pt", content["experts"], dict(zip(train.EXPERTS, map(run.fingerprint, experts))))
    return router, experts


def load_gemma(path, hint, device):
    """The frozen GPT or Router in a checkpoint of the other family, and the checkpoint's dict without the weights."""
    content = run.load(path, ("config", "vocabulary", "experts", "model"), hint)
    if content["vocabulary"] != tokenizer.FINGERPRINT:
        raise run.UserError(f"{path} was made with another vocabulary: remove it, then {hint}")
    try:
        model = gpt.GPT(gpt.GPTConfig(**content["config"]))
        model = Router(model, len(content["experts"])) if content["experts"] else model
        model.load_state_dict(content.pop("model"))
    except (TypeError, RuntimeError, AttributeError, ValueError) as e:
        raise run.UserError(f"{path}: its weights do not fit its settings ({str(e)[:120]}); remove it, then {hint}") from e
    return model.to(device).eval().requires_grad_(False), content
