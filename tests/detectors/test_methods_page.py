"""docs/methods.md is rendered from the methods' records; run this file to write it anew."""

from __future__ import annotations

from pathlib import Path

from adaneg_openood.detectors import DETECTORS, default_settings

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
HEAD = """# Methods

Every method compares an image with text and gives it a confidence: larger means more like the ID
classes. C is the number of ID labels, M is the number of negative labels, D is the width of features.
Every FPR95 is given with its convention, because the two conventions are not comparable. If the batch
matters, results name the batch size and the order. This page is made from the records that the detectors
carry.

| method | idea | batch matters | keeps |
|---|---|---|---|
"""


def rendered() -> str:
    """The page as the records say it."""
    records = [kind.info for kind in DETECTORS.values()]
    lines = [HEAD.rstrip("\n")]
    for info in records:
        batch = "yes" if info.batch_matters else "no"
        lines.append(f"| [{info.title}](#{info.title.lower()}) | {info.idea} | {batch} | {info.state} |")
    for info in records:
        settings = ", ".join(f"`{name}` {value}" for name, value in default_settings(info.name).items())
        source = f"[{info.paper}]({info.link})" if info.link else info.paper
        where = f", {info.published_in}" if info.published_in else ""
        facts = {
            "Take it when": info.choose_when,
            "In OpenOOD": f"`postprocessor_name={info.name}`",
            "Source": f"{source}{where}",
            "Inputs": info.inputs,
            "Keeps": info.state,
            "Cost per image": info.cost,
            "Published": info.published,
            "Settings and defaults": settings,
        }
        lines += [
            "",
            f"## {info.title}",
            "",
            *(f"- {key}: {fact}" for key, fact in facts.items() if fact),
        ]
    return "\n".join(lines) + "\n"


def test_the_page_says_what_the_records_say() -> None:
    assert PAGE.read_text("utf-8") == rendered()


if __name__ == "__main__":
    PAGE.write_text(rendered(), "utf-8")
