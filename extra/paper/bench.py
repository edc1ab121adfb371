"""extra/speed's benchmark with two more decoders: Sequence Selection and Collab. What is published comes from here.

    python -m extra.paper.bench                  under five minutes on two idle cores; writes extra/results/bench.json and docs/speed.md
    python -m extra.paper.bench --family gemma   the same for the toy in Gemma-2's architecture: bench-gemma.json
    python -m extra.paper.bench --device cuda    the same on a GPU, and router training at about 1B parameters: bench-cuda.json

What is measured, and how: extra/speed/bench.py. With fewer rounds or prompts than by default, the result goes to OUT/bench.json.
"""

from extra.paper.baselines import collab, sequence_selection
from extra.paper.evaluate import LOOKAHEAD
from extra.speed import bench
from toy_experts import run
from toy_experts.batch import MAX_NEW
from toy_experts.tokenizer import END


def others(experts, reward):
    """The two decoders: name -> function of a prompt (token ids) that returns its answer."""
    return {"sequence_selection": lambda p: sequence_selection(experts, reward, [p], END, MAX_NEW)[0],
            "collab": lambda p: collab(experts, reward, [p], END, MAX_NEW, **LOOKAHEAD)[0]}


def main(argv=None):
    bench.main(argv, others, __doc__, **LOOKAHEAD)


if __name__ == "__main__":
    run.run(main)
