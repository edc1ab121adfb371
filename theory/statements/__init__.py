"""Every statement of section 4, checked on small exact worlds, and what each of them needs.

Reading order, one difficulty per file:
  mdp.py           states, rewards, values and occupancies, all exact
  lemma.py         Lemma 4.1 in its two exact forms, and a third that is wrong
  coverage.py      Assumption 4.2 and Eq. (5): routing when some expert is always nearly right
  hidden_path.py   Theorem 4.3 / B.1: a secret that routing cannot learn in time
  hidden_path_beyond.py   the same with leaks, retries and logits (uses Eq. (1) from the next file)
  expressivity.py  what selecting, mixing and adding logits can each represent
  fusion_bound.py  Eq. (6): closeness to pi* on the prefixes of pi*
  collab.py        appendix C: judging an expert by its own continuation
  learning.py      SFT of the router alone against SFT through the fusion
  cdpo.py          the optimum of Eq. (3), and what too many steps do
  beyond.py        stochastic transitions, coverage on average
  report.py, readme.py, figures.py   the table, the numbers of the two pages, the pictures
"""
