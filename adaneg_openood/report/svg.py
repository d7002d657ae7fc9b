"""A figure as part of a page: SVG without outside addresses, in the page's own font and colours."""

from __future__ import annotations

import hashlib
import html
import io
import re
from typing import TYPE_CHECKING

from adaneg_openood.evaluation.drawing import INK, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_svg(figure: Figure, title: str) -> str:
    """An SVG element whose ink is the page's text colour, and whose ids no other figure has.

    Args:
        figure: of :func:`~adaneg_openood.evaluation.drawing.drawing`.
        title: what it shows, for people who cannot see it; another one for every figure of a page.
    """
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(?:xmlns(?::\w+)?|version)="[^"]*"', "", text)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor")
    # the page's font; matplotlib names those it measured with
    text = re.sub(r"font: [^;\"']*?(\d[\d.]*px)[^;\"]*", r"font-size: \1", text)
    # several figures share a page, and matplotlib counts from 1 in each
    prefix = "f" + hashlib.sha256(title.encode()).hexdigest()[:8]
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\1{prefix}-", text)
    attributes = f'role="img" aria-label="{html.escape(title)}"'
    # as large as its place: the view box alone says in which proportions
    return re.sub(r'<svg height="[^"]*"(.*?) width="[^"]*"', rf"<svg {attributes}\1", text, count=1)
