"""The toy as train_sft.py and train_cdpo.py see it: what they start from, samples, the experts' scores, checkpoints.

own.World has the same methods for models and data of your own, so that both scripts are written once.
"""

from copy import deepcopy
from random import Random
from types import SimpleNamespace

import common
import decode
from fusionroute import score
from toy_experts import pairs, tasks, tokenizer
from toy_experts import train as toy


def sft_data(s):
    """The router's SFT samples: every sub-skill, those that no expert has included; train split. s: with seed and samples."""
    return tasks.mixed("train", s.samples, Random(f"sft {s.seed}"))


def sample(item):
    return common.answer_only(tokenizer.encode_prompt(item.prompt), tokenizer.encode_answer(item.answer))


class World:
    names, suffix = toy.EXPERTS, ".pt"

    def start(self, s):
        """Phase 1: make the experts ready; returns the recipe, what the result depends on."""
        self.experts = toy.ensure(toy.Settings(seed=s.seed, out=s.out, device=s.device, family=s.family, gap=s.gap), only=("seed", "gap"))
        self.fingerprints = common.fingerprints(toy.EXPERTS, self.experts)
        return common.recipe(s) | {"experts": self.fingerprints}

    def first_router(self):
        """The language model that the router starts from: the instruction expert."""
        return deepcopy(self.experts[toy.EXPERTS.index("instruct")])

    def go_on(self, s):
        """Phase 2: what phase 1 left; returns phase 1's recipe and this run's."""
        self.router, self.experts = decode.load(s, s.phase1)
        self.sampler = decode.load(s, s.pairs_of)[0] if s.pairs_of else self.router
        phase1 = common.load(common.run_dir(s) / f"{s.phase1}.pt", ("recipe", "experts"), "run python train_sft.py" + common.flags(s))
        self.fingerprints = phase1["experts"]
        made_from = common.fingerprints(["phase1", "sampler"], [self.router, self.sampler])
        return phase1["recipe"], common.recipe(s) | {"experts": phase1["experts"]} | made_from

    def sft(self, recipe):
        """The SFT samples of phase 1; recipe: phase 1's."""
        return [sample(item) for item in sft_data(SimpleNamespace(**recipe))]

    def pairs(self, s, folder, recipe):
        """The preference pairs, sampled unless they are there; rows 2i and 2i + 1 are y_w, y_l of pair i. recipe: phase 2's."""
        return pairs.read(pairs.sample(s, folder, self.sampler, self.experts, recipe["sampler"]), self.router.lm.config.max_len)

    def scored(self, folder, samples):
        """Samples packed, with the experts' scores: see common.scored."""
        return common.scored(folder, samples, self.fingerprints, self.experts)

    def reference(self, folder, router, ids, lengths):
        """log pi_ref of every next token, (N, T-1): of the router's language model as phase 1 left it."""
        return score([router.lm], ids, lengths)[0][..., 0]

    def phase1_router(self):
        """The Router as phase 1 left it."""
        return self.router

    def recipe_of(self, path, hint):
        """The recipe of a finished router. UserError when it is none."""
        return common.load_model(path, tokenizer.FINGERPRINT, hint, router=True)[1]["recipe"]

    def save(self, path, router, recipe, seconds, experts):
        common.save_model(path, router, tokenizer.FINGERPRINT, recipe, seconds, experts)
