"""Writes docs/file_layouts.md from the table in the code: python tests/text/write_layouts.py"""

from pathlib import Path

from adaneg_openood.text.layout_table import as_markdown

HEAD = """# Lists of names: the layouts that are understood

Class names (`classes`, `--id`) and words (`negatives`, `corpus`) may come in the layouts that are
common in public repositories. `\\n` is a line's end, `\\t` a tab. Text is UTF-8, or UTF-16 with its
mark. Row i is label i; where a file has numbers, they say the order, from 0 or from 1. Lines that begin
with `#` or `//` do not count.

Anything else is refused with its line: what looks like a column, a number, a header, a comment or
markup never becomes a name. Names that have to look so go into a JSON list. A file of adjectives is
told by its name (`adj.all.txt`, `wordnet_adjs.txt`), or by `adj` before each word.

"""

if __name__ == "__main__":
    page = Path(__file__).parents[2] / "docs" / "file_layouts.md"
    page.write_text(HEAD + as_markdown(), "utf-8")
