"""Names in prompts, and their features."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood.text.cache import TextCache

if TYPE_CHECKING:
    from adaneg_openood.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)

Prompt = Union[str, "os.PathLike[str]", Sequence[str]]

_SHORT = {
    "nice": ("The nice {}.",),  # NegLabel's and AdaNeg's, for ID names and nouns
    "simple": ("a photo of a {}.",),
    "adjective": ("This is a {} photo.",),  # NegLabel's for adjectives
    "plain": ("{}",),
}
NAMED_TEMPLATES = (*_SHORT, "ensemble")
CHUNK = 4096  # names encoded at a time: bounds memory, and is the unit of caching
_NAMED = 8  # shortened names a warning lists


def templates(which: Prompt) -> tuple[str, ...]:
    """The templates behind a name.

    Args:
        which: ``"nice"``, ``"simple"``, ``"adjective"``, ``"plain"``, ``"ensemble"`` (OpenAI's 80
            for ImageNet, from open_clip), a template that holds ``{}`` once, a text file with one
            template per line, or several templates.

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
            found = _from_file(Path(text))
        else:
            raise ValueError(
                f"{text!r} is no prompt: give one of {', '.join(NAMED_TEMPLATES)}, a template with "
                "{} where the name goes, or a file of templates"
            )
    else:
        found = tuple(which)
    bad = [template for template in found if not isinstance(template, str) or template.count("{}") != 1]
    if bad or not found:
        listed = ", ".join(map(repr, bad[:3])) or "none"
        raise ValueError(f"a template must hold {{}} exactly once, got {listed}")
    return found


def _from_file(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: templates must be UTF-8 text, {error}") from error
    found = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    for number, line in found:
        if line.count("{}") != 1:
            raise ValueError(
                f"{file}, line {number}: a template holds {{}} exactly once, got {line[:80]!r}"
            )
    if not found:
        raise ValueError(f"{file}: holds no template")
    return tuple(line for _, line in found)


def named(prompt: Prompt) -> str | list[str]:
    """A template's known name, or the templates themselves, because a file of them may change."""
    return prompt if isinstance(prompt, str) and prompt in NAMED_TEMPLATES else list(templates(prompt))


@dataclass(frozen=True)
class PromptSet:
    """The templates of each kind of text row, and how the texts of one row are averaged.

    Attributes:
        id: templates of ID names.
        noun: templates of nouns.
        adj: templates of adjectives.
        raw: whether the text tower's own embeddings are averaged (CSP), or unit vectors.
    """

    id: tuple[str, ...]
    noun: tuple[str, ...]
    adj: tuple[str, ...]
    raw: bool = False

    @classmethod
    def of(cls, prompt: Prompt, adjective_prompt: Prompt) -> PromptSet:
        """One prompt for ID names and nouns, and one for adjectives."""
        return cls(templates(prompt), templates(prompt), templates(adjective_prompt))

    def to_json(self) -> dict[str, Any]:
        """As a list of negative labels keeps it."""
        own = {kind: list(getattr(self, kind)) for kind in ("id", "noun", "adj")}
        return {**own, "average": "raw" if self.raw else "unit"}

    @classmethod
    def from_json(cls, value: Any) -> PromptSet:
        """What :meth:`to_json` gave. Raises ValueError for anything else."""
        kinds = ("id", "noun", "adj")
        good = isinstance(value, dict) and set(value) == {*kinds, "average"}
        if not good or value["average"] not in ("raw", "unit"):
            raise ValueError("prompts must hold id, noun, adj, and average, which is raw or unit")
        if not all(isinstance(value[kind], list) for kind in kinds):
            raise ValueError("prompts must be lists of templates")
        raw = value["average"] == "raw"
        return cls(**{kind: templates(value[kind]) for kind in kinds}, raw=raw)


def fill(template: str, name: str) -> str:
    """The prompt of a name; braces in the name itself mean nothing."""
    return template.replace("{}", name)


class NameEncoder:
    """Encodes the names of one job, with one progress bar and one warning for all of them.

    Use it as a context manager: the bar ends and the warning is given when the block does.

    Args:
        model: any image-text model.
        cache: where features are looked up and kept.
        total: number of names of the job, for the bar; None shows none.
    """

    def __init__(
        self, model: VisionLanguageModel, *, cache: TextCache | None = None, total: int | None = None
    ) -> None:
        self.model, self.cache = model, cache
        self._shortened: dict[str, None] = {}
        self._told_unit = False
        self._bar: Any = None
        if total:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, desc="texts", unit="name")

    def __enter__(self) -> NameEncoder:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._shortened:
            listed = ", ".join(repr(name[:80]) for name in list(self._shortened)[:_NAMED])
            logger.warning(
                "%d name(s) shortened to the model's %d tokens: %s%s",
                len(self._shortened),
                getattr(self.model, "context_length", 0),
                listed,
                ", ..." if len(self._shortened) > _NAMED else "",
            )

    def rows(self, names: Sequence[str], prompt: Prompt = "nice", raw: bool = False) -> Tensor:
        """(N, D) float32 of unit length, on the CPU; see :meth:`parts`."""
        found = list(self.parts(names, prompt, raw))
        return torch.cat(found) if found else torch.zeros(0, self.model.dim)

    @torch.no_grad()
    def parts(
        self, names: Sequence[str], prompt: Prompt = "nice", raw: bool = False
    ) -> Iterator[Tensor]:
        """Text features of names in parts of :data:`CHUNK` rows, so that memory stays bounded.

        Args:
            names: N names; equal names give equal rows, and rows never merge.
            prompt: see :func:`templates`; several templates are averaged, as OpenAI's zero-shot
                classifier does.
            raw: average the tower's own embeddings instead of unit vectors.

        Yields:
            (n, D) float32 of unit length, on the CPU.
        """
        prompts = templates(prompt)
        for start in range(0, len(names), CHUNK):
            part = list(names[start : start + CHUNK])
            found = None if self.cache is None else self.cache.get(self.model, prompts, part, raw)
            if found is None:
                found = self._encoded(part, prompts, raw)
                self._keep(prompts, part, found, raw)
            if self._bar is not None:
                self._bar.update(len(part))
            yield found

    def _encoded(self, names: list[str], prompts: tuple[str, ...], raw: bool) -> Tensor:
        fitted = self.fitted(names, prompts)
        encode = self._raw_encoder() if raw else self.model.encode_text
        total = torch.zeros(len(names), self.model.dim)
        for template in prompts:
            total += encode([fill(template, name) for name in fitted]).float().cpu()
        # one template: already of unit length, and dividing again would only round once more
        if len(prompts) == 1 and not raw:
            return total
        return normalize(total / len(prompts), dim=-1)

    def _keep(self, prompts: tuple[str, ...], names: list[str], rows: Tensor, raw: bool) -> None:
        if self.cache is None:
            return
        try:
            self.cache.put(self.model, prompts, names, rows, raw)
        except OSError as error:  # a folder that is read-only or full serves what it holds
            logger.warning("text features are not kept: %s", error)
            self.cache = None

    def _raw_encoder(self) -> Any:
        encode = getattr(self.model, "encode_text_raw", None)
        if callable(encode):
            return encode
        if not self._told_unit:
            self._told_unit = True
            logger.warning(
                "%s gives unit text features alone, so they are averaged in place of raw embeddings; "
                "the rows differ a little from the published ones",
                self.model.name,
            )
        return self.model.encode_text

    def fitted(self, names: Sequence[str], prompts: Sequence[str]) -> list[str]:
        """Shorten names whose prompts are longer than the model's context.

        The end of the name goes, at a word where possible, so that the template stays whole. Models
        that do not tell their context length change nothing.

        Args:
            names: N names.
            prompts: templates, see :func:`templates`.

        Returns:
            N names, most of them as they came.
        """
        limit = getattr(self.model, "context_length", None)
        count = getattr(self.model, "token_count", None)
        if limit is None or count is None:
            return list(names)

        def fits(name: str) -> bool:
            for template in prompts:
                prompt = fill(template, name)
                # a byte is at most one token, so most prompts need no counting
                if len(prompt.encode()) + 2 > limit and (count(prompt) or 0) > limit:
                    return False
            return True

        fitted = []
        for name in names:
            short = name
            while short and not fits(short):
                head, _, tail = short.rpartition(" ")
                # one long word: halve it, because names of thousands of letters come up in corpora
                short = head if head else tail[: len(tail) // 2]
            if short != name:
                self._shortened[name] = None
            fitted.append(short or name)
        return fitted


def encode_names(
    model: VisionLanguageModel,
    names: Sequence[str],
    prompt: Prompt = "nice",
    *,
    cache: TextCache | None = None,
    progress: bool = False,
) -> Tensor:
    """Text features of names.

    Args:
        model: any image-text model.
        names, prompt: see :meth:`NameEncoder.parts`.
        cache: where features are looked up and kept.
        progress: show a bar.

    Returns:
        (N, D) float32 of unit length, on the CPU.
    """
    with NameEncoder(model, cache=cache, total=len(names) if progress else None) as encoder:
        return encoder.rows(names, prompt)
