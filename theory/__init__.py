"""Section 4 of the paper as numbers anybody can rerun: `python -m theory`.

toy_mdp.py    start here: one page, the main sentence as numbers
statements/   every statement of section 4, checked exactly, each with a test of what it needs
figures/      the pictures of both pages

Nothing outside this folder is imported; numpy is enough (matplotlib only for the pictures).
"""
