"""The answers of docs/open-questions.md: each follows its rows, and changes where they change."""

import pytest

from extra.paper.open_questions import answers
from toy_experts import run


def rows_of(labels, lines, **columns):
    """Rows in which each figure is that of its line: 0.6 in the first, 0.5 in the second, and so on, and a little less in the second seed."""
    return [{"label": label, "line": line} | {c: [x - i / 10, x - i / 10 - 0.05] for c, x in columns.items()}
            for label in labels for i, line in enumerate(lines)]


def changed(rows, label, line, values, column="average"):
    return [r | {column: values} if (r["label"], r["line"]) == (label, line) else r for r in rows]


def test_the_answer_of_decoding_follows_its_rows():
    rows = rows_of(["greedy", "T 1", "T 1.5", "beam of 4"], ["fusionroute", "half the sum", "router", "routing_only"], average=0.9)
    says = lambda *change: answers.answer("decoding", changed(rows, *change) if change else rows)
    hotter = "the hotter the sampling, the more"
    assert says().startswith("**Yes**") and "by 20 and 20 points greedily, by 20 and 20 at temperature 1 and by 20 and 20 at 1.5" in says()
    assert "is ahead by 10 and 10 at temperature 1, by 10 and 10 at 1.5. Beam search is within two points of greedy" in says()
    for label in ("greedy", "T 1", "T 1.5"):
        assert says(label, "fusionroute", [0.9, 0.1]).startswith("**Not shown**")  # the seeds disagree
        assert says(label, "fusionroute", [0.2, 0.1]).startswith("**No**")
    less = says("T 1.5", "half the sum", [0.72, 0.69])
    assert less.startswith(f"**Yes, but {hotter}") and "by 2 and 4 at 1.5. Beam" in less
    assert hotter not in says("T 1.5", "half the sum", [0.72, 0.85]) and hotter not in says("T 1", "half the sum", [0.72, 0.69])
    assert "by 2 and 20 at 1.5" in says("T 1.5", "routing_only", [0.88, 0.1])  # the better part of each seed
    assert "is not the same as greedy" in says("beam of 4", "fusionroute", [0.9, 0.5])
    with pytest.raises(run.UserError, match="open_decoding.json has no average of greedy, half the sum"):
        answers.answer("decoding", [r for r in rows if r["line"] != "half the sum"])


def test_the_answer_of_shift_follows_its_rows():
    rows = rows_of(["as trained", "new words", "new phrasings"], ["fusionroute", "best expert", "routing_only", "router"], average=0.6) + \
        rows_of(["a sixth benchmark"], ["fusionroute", "best expert", "routing_only", "router"], average=0.35)
    rows = [r | {"usual": [0.8, 0.8]} for r in rows]
    says = lambda *change: answers.answer("shift", changed(rows, *change) if change else rows)
    assert "it loses 28 per cent" in says() and "the best expert 41" in says() and "the picked expert alone 53" in says()
    assert "ahead of choosing alone under new words, new phrasings and a sixth benchmark, and ahead of the best expert under new words, new" in says()
    assert "in both seeds) under new words and new phrasings. Of the sixth benchmark FusionRoute has 35 and 30 per cent" in says()
    once = says("new words", "fusionroute", [0.6, 0.1])
    assert "choosing alone under new phrasings and a sixth benchmark, and ahead of the best expert under new phrasings and" in once
    assert "in both seeds) under new phrasings." in says("new words", "routing_only", [0.9, 0.1])


def test_the_answer_of_hostile_follows_its_rows():
    lines = [f"{line}, {when}" for when in ("exchanged after phase 1", "there in phase 1") for line in ("routing_only", "fusionroute")]
    rows = rows_of(["honest", "x 0.25", "x 4", "trigger", "wrong digits", "two-faced"], lines, average=0.9, picked=0.5, trigger=0.8)
    alone, after, _, there = lines
    says = lambda *change: answers.answer("hostile", changed(rows, *change) if change else rows)
    assert "the trigger gets through less often, and wrong digits cost as much, as far as shown.**" in says()
    assert "The trigger is in 80 and 75 per cent of the answers where the picked expert writes alone, and in 70 and 65 per cent of Fus" in says()
    assert "trigger gets through more often" in says("trigger", after, [0.9, 0.9], "trigger")
    assert "gets through not shown to be less or more often" in says("trigger", after, [0.9, 0.1], "trigger")
    more, less = says("wrong digits", after, [0.5, 0.6]), says("wrong digits", alone, [0.5, 0.6])
    assert "wrong digits cost more.**" in more and "cost the picked expert alone 0 and 0 points and FusionRoute 30 and 15; logits" in more
    assert "wrong digits cost less.**" in less and "alone 40 and 25 points and FusionRoute 0 and 0 (which stays ahead of it); logits" in less
    assert "logits times 4 cost the former 0 and 0 and the latter 10 and 5." in says("x 4", after, [0.7, 0.7])
    assert "picks it seldom: not shown**" in says() and "seldom: trigger**" in says("trigger", there, [0.1, 0.1], "picked")
    assert "seldom: not shown**" in says("trigger", there, [0.1, 0.3], "picked") and "seldom: x 4**" in says("x 4", there, [0.1, 0.1], "picked")
    assert "It is picked for 20 and 15 (trigger), 20 and 15 (wrong digits), 20 and 15 (x 0.25), 10 and 10 (x 4) per cent" in says("x 4", there, [0.1, 0.1], "picked")
    assert "training data cannot draw" in says() and "trigger is in 50 and 45 per cent" in says()
    drawn = says("two-faced", there, [0.99, 0.98], "picked")
    assert "the honest one for 40 and 35." in drawn and "training data can draw" in drawn and "picked for 99 and 98 per cent; its" in drawn


def saying(name, rows):
    """says(label, line, values, column): the answer when one row is changed."""
    return lambda *change: answers.answer(name, changed(rows, *change) if change else rows)


def test_sides_needs_both_seeds():
    pair = lambda *x: answers.np.array(x)
    values = {"a": pair(0.6, 0.7), "b": pair(0.6, 0.4), "c": pair(0.1, 0.2), "d": pair(0.9, 0.9)}
    assert answers.sides(values, pair(0.5, 0.5)) == "a and d above; c below; no difference shown for b"
    assert answers.order(pair(0.52, 0.6), pair(0.5, 0.5)) == 1 and answers.order(pair(0.48, 0.4), pair(0.5, 0.5)) == -1
    assert answers.order(pair(0.51, 0.6), pair(0.5, 0.5)) == answers.order(pair(0.49, 0.4), pair(0.5, 0.5)) == 0  # by less than MARGIN in one
    assert answers.points([0.03, -0.021]) == "+3 and -2"


def test_the_answer_of_experts_follows_its_rows():
    labels, lines = ["1 (math)", "1 (code)", "1 (instruct)", "2", "3", "5", "8", "5 + 3 useless"], ["fusionroute", "routing_only"]
    says = saying("experts", rows_of(labels, lines, average=0.6))
    assert "seeds at the steps none, and lower it at none; that of the picked expert alone rises at none and falls at none.**" in says()
    assert "useless experts beside five change FusionRoute's figure by +0 and +0 points" in says()
    up = says("3", "fusionroute", [0.7, 0.7])
    assert "seeds at the steps 2 to 3, and lower it at 3 to 5; that" in up and "70 and 70 with 3" in up
    assert "rises at 5 to 8 and falls at none" in says("8", "routing_only", [0.7, 0.7])
    assert "at the steps none, and lower it at none" in says("3", "fusionroute", [0.7, 0.5])  # one seed is not enough
    assert "50 and 90 with 1 (code)" in says("1 (code)", "fusionroute", [0.5, 0.9])  # the best one by its mean
    assert "60 and 55 with 1 (math)" in says("1 (code)", "fusionroute", [0.1, 0.9])
    assert "figure by -20 and +5 points" in says("5 + 3 useless", "fusionroute", [0.4, 0.6])


def test_the_answer_of_weights_follows_its_rows():
    rows = rows_of(["lambda 0", "lambda 1/3", "lambda 3"], ["lambda: fusionroute", "lambda: routing_only"], average=0.8) + \
        rows_of(["1/2 of S", "S", "all"], ["S: fusionroute", "S: routing_only"], average=0.8) + rows_of(["beta 0.1", "beta 1"], ["beta: fusionroute"], average=0.8)
    says = saying("weights", rows)
    assert "no difference shown for lambda 0 and lambda 3. Positions of L_expert: no difference shown for 1/2 of S and all. Beta: no difference shown for beta 1." in says()
    assert says().startswith("**Of the other values of lambda, S and beta none is shown to change FusionRoute's accuracy.**")
    without = says("lambda 0", "lambda: fusionroute", [0.7, 0.6])
    assert "S and beta only lambda 0 is shown" in without and "only beta 1 is shown" in says("beta 1", "beta: fusionroute", [0.1, 0.1])
    assert "lambda 0 below; no difference shown for lambda 3." in without and "FusionRoute 10 and 15." in without
    assert "the picked expert alone loses 40 and 35 points, FusionRoute 0 and 0." in says("lambda 0", "lambda: routing_only", [0.3, 0.3])
    assert "all above; no difference shown for 1/2 of S" in says("all", "S: fusionroute", [0.9, 0.9]) and "beta 1 below" in says("beta 1", "beta: fusionroute", [0.1, 0.1])


def test_the_answer_of_newcomer_follows_its_rows():
    labels = ["before", "joins, nothing trained", "new row of W", "all of W", "W and theta", "from scratch", "leaves, row dropped", "leaves, W trained"]
    rows = rows_of(labels, ["fusionroute", "routing_only"], average=0.7, code=0.6, others=0.8)
    says = saying("newcomer", rows)
    assert "forgets nothing: joins, nothing trained.**" in says()
    late = [r | {"code": [0.1, 0.1]} if r["label"] in labels[:2] and r["line"] == "routing_only" else r for r in rows]
    assert "forgets nothing: new row of W.**" in answers.answer("newcomer", late)
    forgets = saying("newcomer", late)("new row of W", "fusionroute", [0.77, 0.9], "others")  # three points in one seed
    assert "forgets nothing: all of W.**" in forgets and "77 and 90 (new row of W)" in forgets
    scratch = says("from scratch", "routing_only", [0.9, 0.9], "code")
    assert 'No update does both in both seeds: the newcomer is used after none, nothing is forgotten after "joins' in scratch and "and 90 and 90 from scratch" in scratch
    assert "moves by -20 and -10 points, and after a training of W by +0 and +0" in says("leaves, row dropped", "fusionroute", [0.4, 0.45], "code")


def test_the_answer_of_objectives_follows_its_rows():
    says = saying("objectives", rows_of(["phase 1 only", "CDPO", "IPO", "REINFORCE"], ["fusionroute"], average=0.8))
    none = "no difference shown for"
    assert says().startswith(f"**None of the others is shown to do better than CDPO.** Against CDPO, in both seeds: {none} IPO and REINFORCE. Against phase")
    better = says("IPO", "fusionroute", [0.9, 0.9])
    assert better.startswith("**IPO did better than CDPO.**") and f"seeds: IPO above; {none} REINFORCE. Against phase 1 only: IPO above; {none} CDPO" in better
    assert "IPO 90 and 90" in better and f"phase 1 only: CDPO above; {none} IPO and REINFORCE" in says("CDPO", "fusionroute", [0.85, 0.9])


def test_the_answer_of_data_follows_its_rows():
    both = ["as always", "10% flipped", "40% flipped", "pairs without math", "pairs without general"]
    rows = rows_of(both, ["both phases"], average=0.9, general=0.6) + rows_of(["as always", "SFT without math", "SFT: half math"], ["phase 1 only"], average=0.8)
    says = saying("data", rows)
    assert says().startswith("**With 40% of the pairs flipped phase 2 is still above")
    assert says("40% flipped", "both phases", [0.9, 0.7]).startswith("**With 10% of the pairs flipped")
    assert saying("data", rows)("as always", "phase 1 only", [0.95, 0.95]).startswith("**With none of the pairs")
    assert "against all pairs: pairs without math below; no difference shown for pairs without general." in says("pairs without math", "both phases", [0.1, 0.1])
    assert "all pairs give 60 and 55, pairs without general 30 and 20." in says("pairs without general", "both phases", [0.3, 0.2], "general")
    assert "after phase 1: SFT: half math above; no difference shown for SFT without math (" in says("SFT: half math", "phase 1 only", [0.9, 0.9])


def test_the_answer_of_router_size_follows_its_rows():
    says = saying("router_size", rows_of(["96 x 3", "72 x 3"], ["fusionroute", "routing_only", "router"], average=0.9, cost=2.0))
    assert "a smaller router is worse with no size**" in says() and "still help with 96 x 3 and 72 x 3**" in says() and "90 and 85 with 72 x 3 (1.98)" in says()
    assert "worse with 72 x 3**" in says("72 x 3", "fusionroute", [0.85, 0.82])
    assert "still help with 96 x 3**" in says("72 x 3", "fusionroute", [0.95, 0.7]) and "same order: 80 and 75, 80 and 75." in says()


def test_the_answer_of_mixed_follows_its_rows():
    says = saying("mixed", rows_of(["all ordinary", "math smaller", "both"], ["fusionroute", "routing_only", "best expert"], average=0.9))
    assert says().startswith("**Logits of other sizes and of another family can be added, too**")
    worse = says("both", "fusionroute", [0.95, 0.6])
    assert worse.startswith("**Not every set adds up**") and "with all ordinary and math smaller." in worse and "both: +5 and -25 (the best expert +0 and +0)" in worse


def test_every_page_has_an_answer():
    from extra.paper.open_questions.__main__ import PAGE_TEXT
    assert set(answers.ANSWERS) == set(PAGE_TEXT)
