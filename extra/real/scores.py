"""The experts' scores on all samples: two numbers a token, in files, so that none is computed twice.

Both losses read the experts as these two numbers only. So each expert is loaded alone, scores all samples and goes; the router then trains
with no expert in memory. The scores lie in OUT/seedN/scores/, a file for every CHUNK samples: a killed run resumes at the next file.
"""

import hashlib
import json

import torch
from tqdm import tqdm

from extra.common import raw_bytes
from extra.real import parallel
from fusionroute import score
from toy_experts.run import UserError, load, write

CHUNK = 256     # samples a file
LOGITS = 2**28  # at most so many logits (1 GiB in float32) are computed at a time: smaller batches for a large vocabulary


def rows_a_pass(vocabulary, longest):
    """How many samples a model reads at once: as many as fusionroute.score would by itself, or so few that LOGITS is kept."""
    return max(1, min(128, LOGITS // (vocabulary * longest)))


def scores(folder, name, made_from, make, ids, lengths):
    """One model's fusionroute.score on all samples, from files in folder/scores where they are there already.

    name: of the model, for the files; made_from: what its scores depend on besides the samples (a JSON value; a file's name holds its
    hash); make(): the model, called only where something is missing. ids (N, T), lengths (N,) -> logp and choice, (N, T-1) each.
    """
    logp, choice, model = torch.zeros(ids[:, 1:].shape), torch.zeros(ids[:, 1:].shape, dtype=torch.int32), None
    folder = folder / "scores"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for rows in lengths.argsort(stable=True).split(CHUNK):
        x = ids[rows, :int(lengths[rows].max())]                                                             # (b, t)
        key = hashlib.sha256(raw_bytes(x) + json.dumps([made_from, lengths[rows].tolist()]).encode()).hexdigest()[:16]
        files.append((rows, x, folder / f"{name}-{key}.pt"))
    for rows, x, path in tqdm(parallel.turns(files), desc=f"scores of {name}", mininterval=1.0):
        if not path.exists():
            model = model or make()
            content = dict(zip(("logp", "choice"), score([model], x, lengths[rows], rows_a_pass(model.config.vocab_size, x.size(1)))))
            if not content["logp"].isfinite().all():
                raise UserError(f"{name} gives log-probabilities that are no numbers: its weights are damaged, or --dtype is too small")
            write(path, lambda f: torch.save(content, f))
    parallel.wait()
    for rows, x, path in files:
        content = load(path, ("logp", "choice"), "start again")
        for whole, part in (logp, content["logp"]), (choice, content["choice"]):
            if getattr(part, "shape", None) != (len(rows), x.size(1) - 1, 1):
                raise UserError(f"{path} holds other scores than these; remove it, then start again")
            whole[rows, :x.size(1) - 1] = part[..., 0]
    return logp, choice
