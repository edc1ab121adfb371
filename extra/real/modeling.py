"""FusionRoute as a model of transformers: a router LM, W, and frozen experts of any kind.

    model = FusionRoute.start("ROUTER", {"math": "DIR", "code": "DIR"})      # W = 0
    model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=64)
    model.trace.picks, model.trace.weights, model.trace.changed              # how that came about
    model.save_pretrained("OUT")             # the router, W, the tokenizer; the experts' names
    AutoModelForCausalLM.from_pretrained("OUT", trust_remote_code=True)      # or with expert_paths

All that generate() knows works: sampling, beams, streamers, batches. assistant_model=model.router
lets the router draft; each expert then checks what it is picked for in one pass. OUT/router is an
ordinary model (or LoRA adapter) by itself. A saved model takes this file and loading.py with it,
and nothing else of this repository: so `fuse` stands here once more.

Shapes: B rows, T tokens read so far, t of them with logits, V shared tokens, n experts, d the width
of what the router's output layer reads.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.dynamic_module_utils import custom_object_save
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.modeling_outputs import CausalLMOutputWithPast

from .loading import (
    Unusable,
    check_finite,
    load,
    load_experts,
    load_tokenizer,
    reading,
    same,
    shared_tokens,
)


def fuse(router_logits, expert_logits):
    """Eq. (1): log pi_final = log pi_theta + log pi_expert. As in fusionroute.py (a test)."""
    return F.log_softmax(router_logits, -1) + F.log_softmax(expert_logits, -1)  # (..., V)


class FusionRouteConfig(PreTrainedConfig):
    model_type = "fusionroute"
    sub_configs_defaults = {"router": SubConfigSpec(config_class=AutoConfig, model_type="llama")}
    router: PreTrainedConfig | dict | None = None
    experts: list | None = None  # [name, path], in the order of W's rows
    n_tokens: int = 0  # V; a model's rows above it are padding
    ignore: list | None = None  # fields of config.json that may be unknown
    fuse: str = "tokens"  # "bytes" or "spans": trained with experts that have other tokens

    def get_text_config(self, **_):  # what generate() asks about sizes is the router's
        return self.router


@dataclass
class FusionRouteOutput(CausalLMOutputWithPast):
    w: torch.FloatTensor | None = None  # (B, t, n), routing scores


@dataclass
class Trace:
    """How the new tokens of generate() came about. What follows a row's end token means nothing."""

    picks: torch.Tensor  # (B, new), I*: the expert that was picked
    weights: torch.Tensor  # (B, new, n), softmax(w)
    choices: torch.Tensor  # (B, new), what that expert would have written by itself
    changed: torch.Tensor  # (B, new), whether the router made it another token


class FusionCache(DynamicCache):
    """The router's cache, a cache for each expert, and the tokens that the router has read.

    An expert that is not picked falls behind. When it is picked, it reads what it missed.
    """

    def __init__(self, model):
        super().__init__(config=model.router.config)
        self.experts = [DynamicCache(config=expert.config) for expert in model.experts]
        self.ids = torch.zeros(1, 0, dtype=torch.long, device=model.device)  # (B, T)
        self.record = []  # of each token with logits: its weights (B, n), pick (B,), choice (B,)
        self.ahead = None  # what the router said of its own drafts: (B, t, V) and (B, t, d)

    def read(self, ids):
        """Append ids (B, t) to what was read; returns all of it, (B, T)."""
        self.ids = torch.cat([self.ids.expand(len(ids), -1), ids], 1)
        return self.ids

    def reorder_cache(self, beam_idx):
        """For beam search. The record stays in the order of the passes, see generate()."""
        super().reorder_cache(beam_idx)
        for cache in self.experts:
            cache.reorder_cache(beam_idx)
        self.ids = self.ids[beam_idx]

    def crop(self, tokens_to_remove):
        """Forget drafts that were wrong. tokens_to_remove: minus their number."""
        super().crop(tokens_to_remove)
        self.ahead = None
        keep = self.ids.size(1) + tokens_to_remove
        for cache in self.experts:
            if cache.get_seq_length():  # one that has read nothing cannot be cropped
                cache.crop(min(0, keep - cache.get_seq_length()))
        self.ids = self.ids[:, :keep]
        self.record = self.record[: len(self.record) + tokens_to_remove]

    def activate_past_recording(self):
        super().activate_past_recording()
        for cache in self.experts:
            cache.activate_past_recording()

    @property
    def is_croppable(self):
        return all(layer.is_croppable for c in (self, *self.experts) for layer in c.layers)


def read(model, ids, mask, cache, keep):
    """The logits (B, t, V) of a model after it has read what its cache does not have of ids (B, T).

    keep: of how many last tokens, or 0: of all that are read. Also what its output layer reads,
    (B, t, d): the last hidden state, which some families scale or normalise once more.
    """
    behind = ids.size(1) - (cache.get_seq_length() if cache is not None else 0)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # (B, T): padding counts not
    hidden = []

    def keep_input(_, args):  # contiguous: on a slice, torch copies the head's weight for each row
        hidden.append(args[0].contiguous())
        return (hidden[-1],)

    hook = model.get_output_embeddings().register_forward_pre_hook(keep_input)
    try:
        out = model(
            input_ids=ids[:, -behind:].to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=positions[:, -behind:].to(model.device),
            cache=cache,
            use_cache=cache is not None,
            logits_to_keep=keep,
        )
    finally:
        hook.remove()
    return out.logits, hidden[0]  # (B, t, V), (B, t, d)


class Drafts(CandidateGenerator):
    """The router drafts tokens. What it says on the way is kept, so it reads nothing twice."""

    def __init__(self, model, cache, mask, config, processors):
        self.model, self.cache, self.mask = model, cache, mask
        self.config, self.processors = config, processors
        set_by_user = model.router.generation_config
        self.most = set_by_user.num_assistant_tokens or 20
        # transformers drafts on down to 0.4; a router differs from the fused model more often
        self.sure = set_by_user.assistant_confidence_threshold or 0.85  # less: draft no further

    def get_candidates(self, ids, **_):
        """ids (1, T) -> ids with a draft (1, T + t), and its scores (1, t, V)."""
        ends, outs, scores = self.config._eos_token_tensor, [], []
        for _ in range(min(self.most, self.config.max_length - ids.size(1) - 1)):
            mask = torch.ones_like(ids)  # (1, T)
            if self.mask is not None:
                mask[:, : self.mask.size(1)] = self.mask
            outs.append(read(self.model.router, ids, mask, self.cache, 1))  # (1, 1, .) twice
            logits = outs[-1][0][:, -1, : self.model.config.n_tokens].float()  # (1, V)
            scores.append(self.processors(ids, logits))  # (1, V)
            p = scores[-1].softmax(-1)  # (1, V)
            token = torch.multinomial(p, 1) if self.config.do_sample else p.argmax(-1, True)
            ids = torch.cat([ids, token], 1)
            if p[0, token] < self.sure or ends is not None and torch.isin(token, ends):
                break
        if not outs:
            return ids, None
        self.cache.ahead = [torch.cat(parts, 1) for parts in zip(*outs)]
        return ids, torch.stack(scores, 1)


class FusionRoute(PreTrainedModel, GenerationMixin):
    config_class = FusionRouteConfig
    # What Eq. (1) leaves out, as in decode.py: without the router's logits, without an expert's, or
    # with one expert, by its number, instead of the picked one.
    use_router, use_expert, only = True, True, None
    trace = None  # a Trace, after generate() with a cache

    def __init__(self, config, router, tokenizer):
        super().__init__(config)
        self.router, self.tokenizer = router, tokenizer
        self.experts = torch.nn.ModuleList()  # empty in training
        head = router.get_output_embeddings()
        how = {"bias": False, "dtype": torch.float32, "device": head.weight.device}
        self.W = torch.nn.Linear(head.in_features, len(config.experts), **how)
        torch.nn.init.zeros_(self.W.weight)  # no expert is preferred
        self.generation_config = deepcopy(router.generation_config)
        self.post_init()

    def init_weights(self):
        """Nothing: what is loaded stays as it is."""

    def tie_weights(self, **_):
        """Nothing: what is loaded is tied already."""

    def get_input_embeddings(self):
        return self.router.get_input_embeddings()

    def get_output_embeddings(self):
        return self.router.get_output_embeddings()

    # --- from directories, and to them -----------------------------------------------------------

    @classmethod
    def start(cls, router, experts, train=False, ignore=(), fuse="tokens", expert_how=None, **how):
        """A FusionRoute before training: W = 0.

        router: a path (see loading.py) or a loaded model. experts: {name: path}. train: without
        the experts in memory, for a training that has their scores. ignore: see loading.load.
        fuse: with "bytes" or "spans" the experts may have other tokens, see extra/tokenizers.
        how, expert_how: what from_pretrained gets for the router, and for the experts.
        """
        lm = load(router, ignore, **how) if isinstance(router, (str, Path)) else router
        tokenizers = {"the router": load_tokenizer(lm.name_or_path)}
        if fuse == "tokens":
            tokenizers |= {name: load_tokenizer(path) for name, path in experts.items()}
        config = FusionRouteConfig(
            router=deepcopy(lm.config),  # handed on as it is, it loses its kind of attention
            experts=[[name, same(path)] for name, path in experts.items()],
            n_tokens=shared_tokens(tokenizers),
            ignore=[*ignore],
            fuse=fuse,
        )
        model = cls(config, lm, tokenizers["the router"])
        return model.ready(train, **expert_how or {})

    @classmethod
    def from_pretrained(
        cls, path, *_, config=None, train=False, expert_paths=None, expert_how=None, **how
    ):
        """What save_pretrained wrote. expert_paths: {name: path} of experts that have moved."""
        hub = ("revision", "token", "cache_dir", "local_files_only", "force_download")
        hub = {name: how.pop(name) for name in hub if name in how}
        for name in ("trust_remote_code", "code_revision", "adapter_kwargs", "_from_auto"):
            how.pop(name, None)  # they are about this file, not about the models that it loads
        path = Path(path) if Path(path).is_dir() else Path(snapshot_download(path, **hub))
        config = config or FusionRouteConfig.from_pretrained(path)
        paths, moved = dict(config.experts), dict(expert_paths or {})
        if unknown := [name for name in moved if name not in paths]:
            raise Unusable(f"{path} has no expert {unknown[0]}: it routes among {', '.join(paths)}")
        config.experts = [[name, same(moved.get(name, p))] for name, p in paths.items()]
        router, tokenizer = load(path / "router", config.ignore, **how), load_tokenizer(path)
        config.router = deepcopy(router.config)
        model = cls(config, router, tokenizer)
        with reading(path / "W.safetensors", "W"):
            W = load_file(path / "W.safetensors")
            model.W.load_state_dict(W)
        check_finite(path / "W.safetensors", W.items())
        return model.ready(train, **expert_how or {})

    def ready(self, train, **how):
        """Load the experts, everything frozen; or for training: no experts, router and W learn."""
        if train:
            if hasattr(self.router, "peft_config"):
                self.router.set_adapter("default")  # the adapter learns, its base stays
            else:
                self.router.requires_grad_(True)
            return self.train()
        how = {"dtype": self.router.dtype, "device_map": {"": self.device}} | how
        experts = load_experts(self.config.experts, self.router, self.config.ignore, **how)
        self.experts = torch.nn.ModuleList(experts)
        return self.eval().requires_grad_(False)

    def save_router(self, path, state_dict=None, **how):
        """The router alone, an ordinary model or LoRA adapter, with its tokenizer."""
        state = state_dict or self.state_dict()
        state = {k.removeprefix("router."): v for k, v in state.items() if k.startswith("router.")}
        if hasattr(self.router, "peft_config"):
            how = {"selected_adapters": ["default"]}  # not the experts that share its base
        self.router.save_pretrained(path, state_dict=state, **how)
        self.generation_config.save_pretrained(path)
        self.tokenizer.save_pretrained(path)

    def save_pretrained(self, path, is_main_process=True, state_dict=None, max_shard_size="50GB"):
        """path/router, and in path W, the tokenizer, the experts' names, and this code."""
        if not is_main_process:
            return
        self.save_router(Path(path) / "router", state_dict, max_shard_size=max_shard_size)
        W = (state_dict or self.state_dict())["W.weight"].contiguous()
        save_file({"weight": W}, Path(path) / "W.safetensors")
        self.generation_config.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        self.config.architectures = ["AutoModelForCausalLM"]  # `transformers serve` looks it up
        custom_object_save(self, path, config=self.config)
        self.config.save_pretrained(path)

    # --- Eq. (1) ---------------------------------------------------------------------------------

    def forward(
        self,
        input_ids,
        attention_mask=None,
        cache=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=None,
        tokenizer=None,
    ):
        """The fused logits (B, t, V). Without experts in memory, as in training, the router's."""
        ids = input_ids if cache is None else cache.read(input_ids)  # (B, T)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask  # (B, T)
        ahead = None if cache is None else cache.ahead
        keep = 1 if ahead else logits_to_keep
        logits, hidden = read(self.router, ids, mask, cache, keep)  # (B, t, .) twice
        if ahead:
            logits, hidden = torch.cat([ahead[0], logits], 1), torch.cat([ahead[1], hidden], 1)
            cache.ahead = None
        logits = logits[..., : self.config.n_tokens].float()  # (B, t, V)
        with torch.autocast(hidden.device.type, enabled=False):
            w = self.W(hidden.to(self.W.weight))  # (B, t, n)
        if not self.experts or not self.use_expert:
            return FusionRouteOutput(logits=logits, w=w, cache=cache)
        if self.config.fuse != "tokens":
            raise Unusable(
                f"this router was trained with --fuse {self.config.fuse}: its experts have other "
                "tokens, and only python -m extra.real.decode can add theirs"
            )

        pick = w.argmax(-1)  # (B, t): I*
        if self.only is not None:
            pick = torch.full_like(pick, self.only)
        expert_logits = torch.empty_like(logits)  # (B, t, V)
        for i in pick.unique().tolist():  # an expert that no row picked does not run
            own = None if cache is None else cache.experts[i]
            new, _ = read(self.experts[i], ids, mask, own, pick.size(1))  # (B, t, .)
            mine = pick == i  # (B, t)
            expert_logits[mine] = new[..., : self.config.n_tokens].to(logits)[mine]
        if cache is not None:
            columns = (w.softmax(-1), pick, expert_logits.argmax(-1))
            cache.record += zip(*(column.unbind(1) for column in columns))
        if self.use_router:
            expert_logits = fuse(logits, expert_logits)
        return FusionRouteOutput(logits=expert_logits, w=w, cache=cache)

    def _get_candidate_generator(self, assistant_model=None, **kwargs):
        if assistant_model is not self.router:
            return super()._get_candidate_generator(assistant_model=assistant_model, **kwargs)
        given, config = kwargs["model_kwargs"], kwargs["generation_config"]
        mask = given.get("attention_mask")
        return Drafts(self, given["cache"], mask, config, kwargs["logits_processor"])

    def generate(self, *args, **kwargs):
        """generate() of transformers; afterwards self.trace says how the answers came about."""
        given, self.trace = kwargs.get("generation_config") or self.generation_config, None
        if kwargs.get("use_cache", given.use_cache) is False:
            return super().generate(*args, **kwargs)
        cache = kwargs.pop("cache", None)
        cache = FusionCache(self) if cache is None else cache
        begun = len(cache.record)
        wants_dict = kwargs.pop("return_dict_in_generate", given.return_dict_in_generate)
        out = super().generate(*args, **kwargs, cache=cache, return_dict_in_generate=True)
        if record := cache.record[begun:]:
            weights, picks, choices = (torch.stack(column, 1) for column in zip(*record))
            if out.get("beam_indices") is not None:  # which row of a pass a token comes from
                rows = out.beam_indices.clamp(min=0)  # (B, new)
                at = rows, torch.arange(rows.size(1), device=rows.device)
                weights, picks, choices = weights[at], picks[at], choices[at]
            changed = out.sequences[:, -picks.size(1) :] != choices  # (B, new)
            self.trace = Trace(picks, weights, choices, changed)
        return out if wants_dict else out.sequences


FusionRouteConfig.register_for_auto_class()
FusionRoute.register_for_auto_class("AutoModelForCausalLM")
AutoConfig.register("fusionroute", FusionRouteConfig, exist_ok=True)
AutoModelForCausalLM.register(FusionRouteConfig, FusionRoute, exist_ok=True)
