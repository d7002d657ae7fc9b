"""Names in prompts, and their features, which may be kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood.io.digests import digest_of, tensor_digest
from adaneg_openood.io.files import atomic_path, cache_folder
from adaneg_openood.io.names import listed

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
    where = ""
    if isinstance(which, (str, os.PathLike)):
        text = os.fspath(which)
        if "{}" in text:
            which = (text,)
        elif Path(text).is_file():
            where = f"{text}: "
            try:
                lines = Path(text).read_text("utf-8-sig").splitlines()
            except UnicodeDecodeError as error:
                raise ValueError(f"{where}templates must be UTF-8 text, {error}") from error
            which = tuple(line.strip() for line in lines if line.strip())
        else:
            raise ValueError(
                f"{text!r} is no prompt: give one of {', '.join(NAMED_TEMPLATES)}, a template with "
                "{} where the name goes, or a file of templates"
            )
    bad = [one for one in which if not isinstance(one, str) or one.count("{}") != 1]
    if bad or not which:
        told = listed((repr(one)[:80] for one in bad), most=3) or "none"
        raise ValueError(f"{where}a template must hold {{}} exactly once, got {told}")
    return tuple(which)


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
        found = {kind: templates(value[kind]) for kind in kinds}
        return cls(**found, raw=value["average"] == "raw")


def fill(template: str, name: str) -> str:
    """The prompt of a name; braces in the name itself mean nothing."""
    return template.replace("{}", name)


_CHECKSUM = "adaneg_text"


class TextCache:
    """A folder of text features.

    An entry belongs to one model (its weights, precision and context), templates and names; any
    change makes another entry. A damaged entry is encoded again. Of a model that does not tell its
    weights apart (no ``describe()`` with ``weights``) nothing is kept.

    Args:
        folder: made when the first entry is written; None is the user's, see
            :func:`~adaneg_openood.io.files.cache_folder`.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder).expanduser() if folder else cache_folder("text")

    def get(
        self, model: VisionLanguageModel, prompts: Sequence[str], names: Sequence[str], raw: bool = False
    ) -> Tensor | None:
        """(N, D) float32 as it was put, or None; ``raw`` as in ``NameEncoder.parts``."""
        from safetensors import SafetensorError, safe_open

        file = self._file(model, prompts, names, raw)
        if file is None or not file.exists():
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                features: Tensor = opened.get_tensor("features")
                checksum = (opened.metadata() or {}).get(_CHECKSUM)
        except (SafetensorError, OSError) as error:
            logger.warning("%s: cannot be read (%s), so it is made again", file, error)
            return None
        if checksum != _checksum(file, features) or features.shape != (len(names), model.dim):
            logger.warning("%s: damaged, it does not have its checksum, so it is made again", file)
            return None
        return features

    def put(
        self,
        model: VisionLanguageModel,
        prompts: Sequence[str],
        names: Sequence[str],
        features: Tensor,
        raw: bool = False,
    ) -> None:
        """Keep (N, D) float32 features."""
        from safetensors.torch import save_file

        file = self._file(model, prompts, names, raw)
        if file is None:
            return
        with atomic_path(file) as temporary:
            about = {_CHECKSUM: _checksum(file, features)}
            save_file({"features": features.contiguous()}, temporary, about)

    def _file(
        self, model: VisionLanguageModel, prompts: Sequence[str], names: Sequence[str], raw: bool
    ) -> Path | None:
        about = described(model)
        if "weights" not in about:
            return None
        parts = [about, list(prompts), list(names), *(["raw"] if raw else [])]
        key = json.dumps(parts, sort_keys=True, ensure_ascii=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _checksum(file: Path, features: Tensor) -> str:
    """Of an entry's name, which says what it was made of, and its features."""
    return digest_of([file.stem, tensor_digest(features)], 64)


def described(model: VisionLanguageModel) -> dict[str, Any]:
    """What text features depend on besides the texts."""
    from adaneg_openood.vlm import describe

    about = describe(model)
    about.pop("preprocessing", None)  # of images only
    return about


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
            logger.warning(
                "%d name(s) shortened to the model's %d tokens: %s",
                len(self._shortened),
                getattr(self.model, "context_length", 0),
                listed(repr(name[:80]) for name in self._shortened),
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
                try:
                    if self.cache is not None:
                        self.cache.put(self.model, prompts, part, found, raw)
                except OSError as error:  # a folder that is read-only or full serves what it holds
                    logger.warning("text features are not kept: %s", error)
                    self.cache = None
            if self._bar is not None:
                self._bar.update(len(part))
            yield found

    def _encoded(self, names: list[str], prompts: tuple[str, ...], raw: bool) -> Tensor:
        fitted = self.fitted(names, prompts)
        encode: Any = getattr(self.model, "encode_text_raw", None) if raw else self.model.encode_text
        if encode is None:
            encode = self.model.encode_text
            if not self._told_unit:
                logger.warning(
                    "%s gives unit text features alone, so they are averaged in place of raw "
                    "embeddings; the rows differ a little from the published ones",
                    self.model.name,
                )
            self._told_unit = True
        total = torch.zeros(len(names), self.model.dim)
        for template in prompts:
            total += encode([fill(template, name) for name in fitted]).float().cpu()
        # one template: already of unit length, and dividing again would only round once more
        if len(prompts) == 1 and not raw:
            return total
        return normalize(total / len(prompts), dim=-1)

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
            texts = (fill(template, name) for template in prompts)
            # a byte is at most one token, so most prompts need no counting
            return all(len(t.encode()) + 2 <= limit or (count(t) or 0) <= limit for t in texts)

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
