"""Fills the marked places of the pages, so that every figure in them comes from a JSON file.

A figure in a sentence:    <!--=key-->0.12<!--/-->
A whole table:             <!-- begin: key -->, the table's lines, <!-- end: key -->

Prose is written by a person around these marks. The programs that know the figures call `fill`.
"""

import re


def fill(text, value):
    """The page with its marked places written anew.

    value(key) returns the new text of a place, or None to leave it: a page may have places of
    several programs.

    >>> fill("about <!--=x-->?<!--/--> per cent", lambda key: "5")
    'about <!--=x-->5<!--/--> per cent'
    """

    def block(match):
        mark = match[1]
        new = value(mark)
        return match[0] if new is None else f"<!-- begin: {mark} -->\n{new}\n<!-- end: {mark} -->"

    def figure(match):
        new = value(match[1])
        return match[0] if new is None else f"<!--={match[1]}-->{new}<!--/-->"

    text = re.sub(r"<!-- begin: (.+?) -->\n.*?<!-- end: \1 -->", block, text, flags=re.S)
    return re.sub(r"<!--=([^>]+?)-->.*?<!--/-->", figure, text, flags=re.S)


def keys(text):
    """The keys of all marked places of a page, in order."""
    return re.findall(r"<!-- begin: (.+?) -->\n", text) + re.findall(r"<!--=([^>]+?)-->", text)


def percent(share):
    """A share as a whole percentage; "-" for None: a share of nothing."""
    return "-" if share is None else f"{100 * share:.0f}"


def table(rows):
    """Rows of strings, the head first, as a Markdown table that also reads well in a terminal.

    Returns its lines.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])] + [x.rjust(w) for x, w in zip(row[1:], widths[1:])]
        lines.append(f"| {' | '.join(cells)} |")
    rule = "-" * (widths[0] + 2) + "|" + "|".join("-" * (w + 1) + ":" for w in widths[1:])
    return [lines[0], f"|{rule}|", *lines[1:]]
