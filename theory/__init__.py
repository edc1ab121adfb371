"""Section 4 of the paper as numbers that anybody can rerun: `python -m theory`.

toy_mdp.py    start here: one page of numpy, the main sentence as numbers
statements/   the statements of section 4, each computed exactly, each with a counter-test
simplex.py    the picture of README.md
pages.py      the numbers and tables of both pages

numpy is enough; matplotlib draws the picture.
"""
