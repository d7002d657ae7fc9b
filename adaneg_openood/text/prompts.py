"""Names in prompts, and their features."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood.text.cache import TextCache

if TYPE_CHECKING:
    from adaneg_openood.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)

_SHORT = {
    "nice": ("The nice {}.",),  # NegLabel's and AdaNeg's, for ID names and nouns
    "simple": ("a photo of a {}.",),
    "adjective": ("This is a {} photo.",),  # NegLabel's for adjectives
    "plain": ("{}",),
}
NAMED_TEMPLATES = (*_SHORT, "ensemble")
CHUNK = 4096  # names encoded at a time: bounds memory, and is the unit of caching
_NAMED = 8  # shortened names a warning lists


def templates(which: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """The templates behind a name.

    Args:
        which: ``"nice"``, ``"simple"``, ``"adjective"``, ``"plain"``, ``"ensemble"`` (OpenAI's 80
            for ImageNet, from open_clip), a template that holds ``{}`` once, a text file with one
            a line, or several templates.

    Returns:
        At least one template, each with one ``{}``.

    Raises:
        ValueError: not a name, file or template.

    Example:
        >>> templates("nice")
        ('The nice {}.',)
    """
    if isinstance(which, str) and which in _SHORT:
        return _SHORT[which]
    if which == "ensemble":
        from open_clip import OPENAI_IMAGENET_TEMPLATES

        return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)
    if isinstance(which, (str, os.PathLike)):
        text = os.fspath(which)
        if "{}" in text:
            found: tuple[str, ...] = (text,)
        elif Path(text).is_file():
            lines = Path(text).read_text("utf-8-sig").splitlines()
            found = tuple(line.strip() for line in lines if line.strip())
        else:
            raise ValueError(
                f"{text!r} is no prompt: give one of {', '.join(NAMED_TEMPLATES)}, a template with "
                "{} where the name goes, or a file of templates"
            )
    else:
        found = tuple(which)
    bad = [template for template in found if template.count("{}") != 1]
    if bad or not found:
        listed = ", ".join(map(repr, bad[:3])) or "none"
        raise ValueError(f"a template must hold {{}} exactly once, got {listed}")
    return found


def fill(template: str, name: str) -> str:
    """The prompt of a name; braces in the name itself mean nothing."""
    return template.replace("{}", name)


def fit_names(names: Sequence[str], prompts: Sequence[str], model: VisionLanguageModel) -> list[str]:
    """Shorten names whose prompts are longer than the model's context.

    The end of the name goes, at a word where possible, so that the template stays whole. A warning
    names what was shortened. Models that do not tell their context length change nothing.

    Args:
        names: N names.
        prompts: templates, see :func:`templates`.
        model: asked for ``context_length`` and ``token_count``.

    Returns:
        N names, most of them as they came.
    """
    limit = getattr(model, "context_length", None)
    count = getattr(model, "token_count", None)
    if limit is None or count is None:
        return list(names)

    def fits(name: str) -> bool:
        for template in prompts:
            prompt = fill(template, name)
            # a byte is at most one token, so most prompts need no counting
            if len(prompt.encode()) + 2 > limit and (count(prompt) or 0) > limit:
                return False
        return True

    fitted, shortened = [], []
    for name in names:
        short = name
        while short and not fits(short):
            head, _, tail = short.rpartition(" ")
            # one long word: halve it, because names of thousands of letters come up in corpora
            short = head if head else tail[: len(tail) // 2]
        if short != name:
            shortened.append(name)
        fitted.append(short or name)
    if shortened:
        listed = ", ".join(repr(name[:80]) for name in shortened[:_NAMED])
        more = ", ..." if len(shortened) > _NAMED else ""
        logger.warning(
            "%d name(s) shortened to the model's %d tokens: %s%s", len(shortened), limit, listed, more
        )
    return fitted


def encode_names(
    model: VisionLanguageModel,
    names: Sequence[str],
    prompt: str | Sequence[str] = "nice",
    *,
    cache: TextCache | None = None,
    progress: bool = False,
) -> Tensor:
    """Text features of names.

    Args:
        model: any image-text model.
        names: N names; equal names give equal rows, and rows never merge.
        prompt: see :func:`templates`; several templates are averaged, as OpenAI's zero-shot
            classifier does.
        cache: where features are looked up and kept.
        progress: show a bar.

    Returns:
        (N, D) float32 of unit length, on the CPU.
    """
    parts = list(iterate_names(model, names, prompt, cache=cache, progress=progress))
    return torch.cat(parts) if parts else torch.zeros(0, model.dim)


@torch.no_grad()
def iterate_names(
    model: VisionLanguageModel,
    names: Sequence[str],
    prompt: str | Sequence[str] = "nice",
    *,
    cache: TextCache | None = None,
    progress: bool = False,
) -> Iterator[Tensor]:
    """:func:`encode_names` in parts of :data:`CHUNK` rows, so that memory stays bounded."""
    prompts = templates(prompt)
    bar = None
    if progress:
        from tqdm.auto import tqdm

        bar = tqdm(total=len(names), desc="names", unit="name")
    for start in range(0, len(names), CHUNK):
        part = list(names[start : start + CHUNK])
        found = None if cache is None else cache.get(model, prompts, part)
        if found is None:
            fitted = fit_names(part, prompts, model)
            total = torch.zeros(len(part), model.dim)
            for template in prompts:
                total += model.encode_text([fill(template, name) for name in fitted]).float().cpu()
            # one template: already of unit length, and dividing again would only round once more
            found = total if len(prompts) == 1 else normalize(total / len(prompts), dim=-1)
            if cache is not None:
                cache.put(model, prompts, part, found)
        if bar is not None:
            bar.update(len(part))
        yield found
    if bar is not None:
        bar.close()
