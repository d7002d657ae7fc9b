from __future__ import annotations

import csv
import html
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaneg_openood.io.names import PLACES, harmless


@pytest.mark.parametrize(
    ("text", "place", "shown"),
    [
        ("red fox, façade 狐", "terminal", "red fox, façade 狐"),
        ("\x1b]0;title\x07", "terminal", "\\x1b]0;title\\x07"),
        ("a\r\nb\u2028c\x85", "terminal", "a\\x0d\\x0ab\\u2028c\\x85"),
        ("abc\u202ecod", "terminal", "abc\\u202ecod"),
        ("\ud800", "terminal", "\\ud800"),
        ("=cmd()", "csv", "'=cmd()"),
        ("  @sum", "csv", "'  @sum"),
        ("\t=1", "csv", "\\x09=1"),
        ("A-list", "csv", "A-list"),
        ("a|b *c* <img src=x>", "markdown", "a\\|b \\*c\\* &lt;img src=x&gt;"),
        ("[x](javascript:y)", "markdown", "\\[x\\]\\(javascript:y\\)"),
        ("50% of $a_1 {x} \\input", "latex", "50\\% of \\$a\\_1 \\{x\\} \\textbackslash{}input"),
        ("<script>'\"&", "html", "&lt;script&gt;&#x27;&quot;&amp;"),
    ],
)
def test_each_place(text, place, shown):
    assert harmless(text, place) == shown


@given(st.text() | st.text("\x1b\n\r\t=+-@|<>&\\`'\"\u202e", max_size=8), st.sampled_from(PLACES))
def test_one_line_of_text_and_no_more(text, place):
    shown = harmless(text, place)
    assert shown.isprintable() or not any(c < " " or "\x7f" <= c <= "\x9f" for c in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    if place == "csv":
        stream = io.StringIO()
        csv.writer(stream).writerow([shown])
        assert next(csv.reader([stream.getvalue()]))[0] == shown
        assert not shown.lstrip().startswith(("=", "+", "-", "@"))
    if place == "html":
        assert "<" not in shown and html.unescape(shown) == harmless(text)


def test_unknown_place():
    with pytest.raises(ValueError, match="place must be one of 'terminal'"):
        harmless("x", "pdf")
