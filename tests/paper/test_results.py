"""docs/results.md says what the JSON files say; every kind of figure, and the plot, by hand."""

import re
import xml.etree.ElementTree as ET
from copy import deepcopy

import numpy as np
import pytest

from extra.paper import plot, report, stats
from toy_experts import script

PAGE = report.PAGES[0]
PLACE = re.compile(r"<!--=(.+?)-->(.*?)<!--/-->")


@pytest.fixture(scope="module")
def rows():
    return report.load()


# --- statistics ---------------------------------------------------------------------------------


def test_student_t_against_tables():
    for df, quantile in ((1, 12.7062), (2, 4.3027), (4, 2.7764), (9, 2.2622), (29, 2.0452)):
        assert stats.student_t(df)[0] == pytest.approx(quantile, abs=1e-3)
        assert stats.student_t(df, quantile)[1] == pytest.approx(0.05, abs=1e-4)
    assert stats.student_t(4, 4.6041)[1] == pytest.approx(0.01, abs=1e-4)
    assert stats.student_t(4)[1] == 1


def test_interval_by_hand():
    d = stats.exact_interval([0.1, 0.12, 0.14])  # sd .02, error .02 / sqrt 3, t(2) = 4.3027
    low, high = 0.12 - 0.0497, 0.12 + 0.0497
    assert (d["mean"], d["low"], d["high"]) == pytest.approx((0.12, low, high), abs=1e-4)
    assert d["p"] == pytest.approx(0.0091, abs=1e-4)
    p = [stats.exact_interval(x)["p"] for x in ([0.1, -0.1], [0.0, 0.0], [0.1, 0.1])]
    assert p == pytest.approx([1, 1, 0])


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.5, 0.001]) == pytest.approx([0.5, 0.002])
    assert stats.holm([0.6, 0.7]) == [1, 1]


# --- the page and its files ---------------------------------------------------------------------


def test_pages_and_plots_say_what_the_files_say(rows):
    for path, text in report.current(rows).items():
        assert path.read_text() == text, f"{path.name}: run python -m extra.paper.report, then read"


def test_every_place_of_the_page_is_filled():
    for place, said in PLACE.findall(PAGE.read_text()):
        assert place.split(";")[0] in {*report.FIGURES, "verdict"}, place
        assert said.strip(), place


def test_the_headline_rows_have_all_seeds(rows):
    """Seeds 2 to 11 are of table1.json, and those of spread.json follow, in every column."""
    read = lambda name: report.json.loads((report.RESULTS / f"{name}.json").read_text())
    first, more = read("table1"), read("spread")
    seeds = first["meta"]["llama"]["seeds"] + more["meta"]["seeds"]
    assert seeds == list(range(2, 2 + len(seeds))) and len(seeds) > 10
    assert set(report.PLOTTED) < set(more["rows"])
    for m, columns in more["rows"].items():
        for column, shares in columns.items():
            assert rows["llama"][m][column] == first["llama"][m][column] + shares, (m, column)
            assert len(rows["llama"][m][column]) == len(seeds)
    assert len(rows["llama"]["fusionroute_long"]["average"]) == 10
    assert len(rows["gemma"]["fusionroute"]["average"]) == 5
    said = f"{len(seeds)} seeds"
    assert all(said in page.read_text() for page in report.PAGES[:2])
    assert f"{len(seeds)} 个种子" in report.PAGES[2].read_text()
    for same in ("prompts per benchmark", "general prompts", "split"):
        assert more["meta"][same] == first["meta"]["llama"][same]


def test_the_rows_of_each_table_fall(rows):
    """Hand-written rows keep the order of their figures, in each block of the main table."""
    page = PAGE.read_text()
    blocks = {}
    for place, _ in PLACE.findall(page):
        kind, row, *head = place.split(";")
        if kind in ("cells", "all_seeds"):
            block = blocks.setdefault((kind, head[0]), [])
            block.append(np.mean(report.numbers(rows, row)))
    assert len(blocks) == 3 and min(map(len, blocks.values())) >= 4
    for block, averages in blocks.items():
        assert averages == sorted(averages, reverse=True), block


def test_every_plot_is_on_the_page():
    page = PAGE.read_text()
    drawn = {path.name for path in report.plots(report.load())}
    assert len(drawn) == 17 and all(f"extra/results/{name})" in page for name in drawn)


def test_the_page_keeps_its_length():
    page = PAGE.read_text()
    assert len(page.split()) <= 6000
    seen = re.sub(r"<!--.*?-->|!\[.*", "", page)
    parts = re.split(r"\n### ", seen.partition("## Ablations")[2].partition("## Assumption")[0])
    for part in parts[1:]:
        text = part.partition("\n## ")[0].partition("\n")[2]
        assert len(text.split()) <= 120, part[:40]
    assert len(parts) == 1 + 6 + 10


# --- each kind by hand --------------------------------------------------------------------------

HAND = {
    "llama": {
        "a": {"average": [0.5, 0.7], "general": [0.2, 0.2], "covered": [0.9, 0.8]},
        "b": {"average": [0.4, 0.4, 0.9], "general": [0.1, 0.3]},
        "x": {"average": [0.6, 0.8], "general": [0.2, 0.2]},
        "y": {"average": [0.5, 0.8], "general": [0.1, 0.1]},
    },
    "open_x": {
        "1": {"average": [0.5, 0.5]},
        "2": {"average": [0.52, 0.6]},
        "3": {"average": [0.48, 0.4]},
        "4": {"average": [0.51, 0.6]},
        "2@alone": {"average": [0.1, 0.1]},
    },
}


def figure(place, rows=HAND):
    return report.values(rows, f"<!--={place}-->")(place)


def test_figures_by_hand():
    assert figure("share;llama:a") == "60.0"
    assert figure("share;llama:a;general") == "20.0"
    assert figure("spread;llama:a") == "60.0 ± 14.1"
    assert figure("each;llama:a") == "50 and 70"
    assert figure("number;llama:a") == "0.60"
    assert figure("number;llama:a;general;1") == "0.2"
    # On the two seeds that both have: +0.1 and +0.3, sd .1414, t(1) = 12.7062.
    assert figure("lead;llama:a;llama:b") == "+20.0 [-107.1, +147.1]"
    assert figure("points;llama:a;llama:b") == "+10 and +30"
    assert figure("points;llama:b;llama:a;general") == "-10 and +10"
    assert figure("cells;llama:a;llama:a") == "2 | 60.0 ± 14.1 | 85 |  | 20 |  | "
    row = figure("cells;llama:a;llama:x").split(" | ")
    assert row[0] == "2" and [x.split()[0] for x in row[-2:]] == ["+10.0", "+0.0"]
    row = figure("all_seeds;llama:a;llama:y").split(" | ")  # y is ahead on the second seed only
    assert row[:4] == ["60.0 ± 14.1", "85", "", "20"]
    assert row[4].startswith("+5.0 [") and row[5] == "1" and row[6].startswith("-10.0 [")
    assert figure("all_seeds;llama:a;llama:a").endswith("20 |  |  | ")
    assert figure("brief;llama:a;llama:a") == "60.0 ± 14.1 | 50.0–70.0 |  | 20 | "


def test_an_order_needs_both_seeds_and_two_points():
    said = {n: figure(f"order;open_x:{n};open_x:1") for n in "234"}
    assert said == {"2": "higher", "3": "lower", "4": "no difference shown"}
    assert figure("differ;open_x;fusionroute;1") == "2 (higher), 3 (lower)"
    assert figure("differ;open_x;alone;2") == "none"


def test_verdicts_without_an_interval():
    said = lambda *rows: figure(f"always;{';'.join(rows)};average")
    assert said("open_x:2", "open_x:1", "open_x:3") == "reproduced"
    assert said("open_x:3", "open_x:1", "open_x:2") == "reversed"
    assert said("llama:a", "llama:b") == "reproduced"
    assert said("open_x:1", "open_x:2", "open_x:3") == "not shown"
    assert figure("level;llama:a;llama:b") == "reproduced"
    assert figure("level;llama:x;llama:a") == "not shown"  # +10 in both seeds


def verdict_page(differences, family="llama"):
    """A page with a verdict on each list of differences, and its rows."""
    experts = {e: {"average": [0.2] * 4} for e in report.EXPERTS}
    rows = {family: experts | {"zero": {"average": [0.5] * 4}}}
    for i, d in enumerate(differences):
        rows[family][f"m{i}"] = {"average": [0.5 + x for x in d]}
    places = [f"verdict;{family}:m{i};{family}:zero" for i in range(len(differences))]
    words = report.verdicts(rows, "".join(f"<!--={p}--><!--/-->" for p in places))
    return [words[p] for p in places]


@pytest.mark.parametrize("family", report.FAMILIES)
def test_verdicts_are_corrected_for_their_number(family):
    sure, likely, wild = [0.1, 0.11, 0.1, 0.11], [0.1, 0.11, 0.2, 0.06], [0.3, -0.3, 0.1, -0.1]
    assert 0.01 < stats.exact_interval(likely)["p"] < 0.05
    assert verdict_page([sure, [-x for x in sure], wild], family) == [
        "reproduced",
        "reversed",
        "not shown",
    ]
    assert verdict_page([likely], family) == ["reproduced"]
    assert verdict_page([likely, *[wild] * 9], family)[0] == "not shown"
    assert verdict_page([[-0.31] * 4, likely], family) == ["says nothing", "reproduced"]


def test_each_family_has_its_own_correction():
    llama = {"a": {"average": [0.6, 0.61, 0.7, 0.56]}, "b": {"average": [0.5] * 4}}
    llama |= dict.fromkeys(report.EXPERTS, llama["b"])
    rows = {"llama": llama, "gemma": deepcopy(llama), "ablation_x": deepcopy(llama)}
    places = [
        "verdict;llama:a;llama:b",
        "verdict;gemma:a;gemma:b",
        "verdict;ablation_x:a;ablation_x:b",
    ]
    p = stats.exact_interval(report.differences(rows, "llama:a", "llama:b"))["p"]
    assert 0.025 < p < 0.05  # enough alone, not for one of two
    words = report.verdicts(rows, "".join(f"<!--={x}-->" for x in places))
    assert [words[x] for x in places] == ["not shown", "reproduced", "not shown"]


def test_columns_that_the_report_adds(rows):
    ours = rows["llama"]["fusionroute"]
    by_hand = [
        (ours["toy-mbpp"][k] + ours["toy-humaneval"][k] + ours["toy-ifeval"][k]) / 3
        - (ours["toy-gsm8k"][k] + ours["toy-math500"][k]) / 2
        for k in range(len(ours["average"]))
    ]
    assert ours["coding minus maths"] == pytest.approx(by_hand)
    cell = rows["ablation_scale"]["48 x 2"]
    fine = rows["ablation_scale"]["48 x 2@fine_tuned"]["average"]
    assert cell["over fine_tuned"] == [x - y for x, y in zip(cell["average"], fine)]


# --- the plot -----------------------------------------------------------------------------------


def test_the_plot_draws_its_rows():
    drawn = [
        ("a < b", "fusionroute", [0.5, 0.7]),
        ("a < b", "alone", [0.1, 0.25]),
        ("c", "alone", [1.0]),
    ]
    root = ET.fromstring(plot.draw(drawn, "a & b"))
    tag = lambda name: root.iter("{http://www.w3.org/2000/svg}" + name)
    words = {t.text: float(t.get("x")) for t in tag("text")}
    assert {"a < b", "c", "fusionroute", "alone", "10%", "100%"} <= set(words) and "0%" not in words
    per_cent = lambda x: 10 + 90 * (x - words["10%"]) / (words["100%"] - words["10%"])
    dots = [c for c in tag("circle") if len(c)]
    assert [round(per_cent(float(c.get("cx"))), 1) for c in dots] == pytest.approx(
        [60, 17.5, 100], abs=0.1
    )
    assert dots[0][0].text == "a < b, fusionroute: 60.0 (50.0, 70.0)"
    ticks = [
        [per_cent(float(x)) for x in re.findall(r"M([\d.]+)", p.get("d"))]
        for p in tag("path")
        if p.get("stroke") != "#ddd"
    ]
    assert [list(map(round, t)) for t in ticks] == [[50, 70], [10, 25], [100]]


# --- the command --------------------------------------------------------------------------------


def test_the_command_writes_what_is_old(tmp_path, monkeypatch, capsys):
    pages = tuple(tmp_path / page.name for page in report.PAGES)
    for file in [*report.PAGES, *report.RESULTS.glob("*.svg")]:
        (tmp_path / file.name).write_text(file.read_text())
    for name, value in (("PAGES", pages), ("RESULTS", tmp_path), ("ROOT", tmp_path)):
        monkeypatch.setattr(report, name, value)
    report.main([])
    assert capsys.readouterr().out == ""
    text = pages[0].read_text()
    pages[0].write_text(text.replace("89.4 ± 1.8", "99.4 ± 1.8"))
    report.main([])
    assert capsys.readouterr().out == "saved: results.md\n" and pages[0].read_text() == text


def test_mistakes(tmp_path, rows):
    for place in (
        "share;llama:nobody",
        "share;nothing:fusionroute",
        "share;llama:fusionroute;no",
        "lead;llama:router",
    ):
        with pytest.raises(script.UserError, match=re.escape(place)):
            report.values(rows, "")(place)
    assert report.values(rows, "")("some other tool's place") is None
    with pytest.raises(script.UserError, match="lacks 'table1'"):
        report.load(tmp_path)
    (tmp_path / "table1.json").write_text("{")
    with pytest.raises(script.UserError, match="table1.json is not JSON"):
        report.load(tmp_path)
