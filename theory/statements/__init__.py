"""The statements of section 4, each with a counter-test. In reading order, one difficulty a file:

mdp.py            states, rewards, values, all exact
lemma.py          Lemma 4.1: where a loss comes from
coverage.py       Eq. (5): choosing, when some expert is always nearly right
hidden_path.py    Theorem 4.3: a good choice that cannot be found in time
logits.py         choosing, mixing, adding; with experts and without
fusion_bound.py   Eq. (6): close to pi* where pi* goes
collab.py         appendix C: judging an expert by its own continuation
sft.py            what phase 1 converges to
cdpo.py           what phase 2 converges to
statement.py      one line of the table
"""

from . import cdpo, collab, coverage, fusion_bound, hidden_path, lemma, logits, sft

STATEMENTS = (
    lemma.lemma,
    lemma.dual,
    coverage.eq_5,
    hidden_path.property_1,
    hidden_path.property_2,
    hidden_path.property_3,
    hidden_path.theorem_4_3,
    hidden_path.silent_experts,
    logits.recovery,
    logits.no_expert,
    fusion_bound.eq_6,
    collab.collab,
    sft.counted_twice,
    sft.through_the_fusion,
    cdpo.cdpo_minimum,
    cdpo.overshoot,
)


def compute():
    """All statements, by the name of their function. Seeds are fixed: always the same numbers."""
    return {check.__name__: check() for check in STATEMENTS}
