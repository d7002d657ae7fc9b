"""The text rows of a detector: ID names first, then negative labels."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood.io.digests import tensor_digest
from adaneg_openood.io.files import atomic_path
from adaneg_openood.text.cache import TextCache
from adaneg_openood.text.classnames import ClassNames
from adaneg_openood.text.label_files import read_label_file
from adaneg_openood.text.learned import LearnedPrompts, learned_rows, load_prompts
from adaneg_openood.text.mining import Mining
from adaneg_openood.text.negatives import NegativeLabels
from adaneg_openood.text.prompts import NameEncoder, Prompt, PromptSet, named
from adaneg_openood.text.words import keys, synonyms

if TYPE_CHECKING:
    from adaneg_openood.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)

Negatives = Union[NegativeLabels, Mining, str, "os.PathLike[str]"]

_NAMED = 8  # rows or words that a message lists


@dataclass(frozen=True, eq=False)
class LabelFeatures:
    """The text rows of a detector.

    Attributes:
        features: (C + M, D) float32 of unit length, ID rows first.
        n_id: C.
        names: C + M names.
        logit_scale: s, or None where the file does not say.
        provenance: what they were made with; JSON values.

    Raises:
        ValueError: another shape, rows that are not finite or not of unit length, or counts that do not
            agree.
    """

    features: Tensor
    n_id: int
    names: tuple[str, ...]
    logit_scale: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.names):
            raise ValueError(
                f"features must be (C + M, D) with one name per row, got {tuple(self.features.shape)} "
                f"and {len(self.names)} names"
            )
        if not 1 <= self.n_id <= len(self.names):
            raise ValueError(f"n_id must be in [1, {len(self.names)}], got {self.n_id}")
        lengths = self.features.float().norm(dim=1)
        # of half precision, too; NaN compares as false
        bad = ~((lengths - 1).abs() < 1e-2)
        if bad.any():
            rows = ", ".join(map(str, bad.nonzero().squeeze(1).tolist()[:_NAMED]))
            raise ValueError(f"features must be finite rows of unit length; rows {rows} are not")
        scale = self.logit_scale
        if scale is not None and not 0 < scale < float("inf"):
            raise ValueError(f"logit_scale must be finite and above 0, got {scale}")

    @property
    def n_negatives(self) -> int:
        """M."""
        return len(self.names) - self.n_id

    @property
    def digest(self) -> str:
        """SHA-256 of the features, 64 hex digits."""
        return tensor_digest(self.features)

    @property
    def groups(self) -> int | None:
        """The groups that the negatives' recipe was published with, at most M; None if not known."""
        negatives = self.provenance.get("negatives")
        told = negatives.get("groups") if isinstance(negatives, dict) else None
        return None if told is None else max(1, min(int(told), self.n_negatives))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``text.npz``, which ``load_features`` reads from a benchmark folder, and ``text.json``.

        Both carry the SHA-256 of all that they hold, which :meth:`load` checks.

        Returns:
            The path of ``text.npz``.
        """
        root = Path(folder)
        about = json.dumps(self.provenance, sort_keys=True, ensure_ascii=False)
        digest = _digest(self.features, self.n_id, self.names, self.logit_scale, about)
        arrays: dict[str, Any] = {
            "text_features": self.features.cpu().numpy(),
            "n_id": np.asarray(self.n_id, dtype=np.int64),
            "names": np.asarray(self.names, dtype=np.str_),
            "provenance": np.asarray(about, dtype=np.str_),
            "sha256": np.asarray(digest, dtype=np.str_),
        }
        if self.logit_scale is not None:
            arrays["logit_scale"] = np.asarray(self.logit_scale, dtype=np.float64)
        readable = json.dumps(
            {**self.provenance, "sha256": digest}, indent=1, sort_keys=True, ensure_ascii=False
        )
        # both are on the disk before either takes its name
        with atomic_path(root / "text.npz") as rows, atomic_path(root / "text.json") as told:
            told.write_text(readable + "\n", "utf-8")
            with rows.open("wb") as file:
                np.savez(file, **arrays)
        return root / "text.npz"

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        n_id: int | None = None,
        names: Sequence[str] | None = None,
    ) -> LabelFeatures:
        """Text features from a file: what :meth:`save` wrote, or the user's own, whatever made them.

        Args:
            path: ``.npz``, ``.safetensors``, ``.pt`` or ``.pth`` with the keys ``text_features``,
                ``n_id``, and optionally ``names`` (in ``.safetensors`` a JSON list in the header) and
                ``logit_scale``; or a tensor alone in ``.pt``. Nothing is unpickled.
            n_id: C, where the file does not say.
            names: C names of the ID rows, where the file does not say.

        Returns:
            The rows brought to unit length.

        Raises:
            ValueError: something is missing, wrong or damaged; the message names the file.
            FileNotFoundError: no such file.
        """
        file = Path(path)
        found = read_label_file(file)
        count = found.n_id if found.n_id is not None else n_id
        if count is None:
            raise ValueError(f"{file}: does not say how many of its rows are ID classes; give n_id")
        if n_id is not None and count != n_id:
            raise ValueError(f"{file}: holds n_id {count}, but {n_id} ID classes were asked for")
        own = found.names
        if own is None:
            known = tuple(names or ())[:count]
            own = (*known, *(f"label {row}" for row in range(len(known), len(found.features))))
        about: dict[str, Any] = {"file": str(file)}
        if found.sha256 is not None:
            text = found.provenance or "{}"
            if _digest(found.features, count, own, found.logit_scale, text) != found.sha256:
                raise ValueError(f"{file}: damaged, it does not have its checksum; make it again")
            about = json.loads(text)
        try:
            return cls(_unit(found.features), count, own, found.logit_scale, about)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


def label_features(
    model: VisionLanguageModel | None,
    classes: ClassNames | None,
    negatives: Negatives | None = None,
    *,
    prompt: Prompt | None = None,
    adjective_prompt: Prompt | None = None,
    learned_prompts: str | os.PathLike[str] | LearnedPrompts | None = None,
    text_features: str | os.PathLike[str] | None = None,
    id_features: Tensor | None = None,
    negative_features: Tensor | None = None,
    with_negatives: bool = True,
    logit_scale: float | None = None,
    cache: TextCache | None = None,
    progress: bool = False,
) -> LabelFeatures:
    """The text rows of a detector; the one place that makes them.

    Args:
        model: the text tower; None where all rows come as features.
        classes: the ID classes; None where only their features are known.
        negatives: a list, a file of one (any word list is taken as it is), or how to mine them.
        prompt: template of ID names and nouns, see :func:`~adaneg_openood.text.prompts.templates`;
            None is the one that the list was made for, or else ``"nice"``.
        adjective_prompt: template of adjectives; None likewise, or else ``"adjective"``.
        learned_prompts: a checkpoint of learned prompts (CoOp, NegPrompt, LAPT), instead of templates.
        text_features: a file of all rows, see :meth:`LabelFeatures.load`; nothing is encoded then.
        id_features: (C, D) features of the ID names, used where the names or the text tower are not
            known.
        negative_features: (M, D) features of negative labels, used where ``negatives`` is None.
        with_negatives: False makes the ID rows alone, for methods such as MCM.
        logit_scale: s; None takes the file's or the model's.
        cache: where encoded names are looked up and kept.
        progress: show a bar.

    Returns:
        Rows on the CPU: ID names, then negatives in their list's order of kinds (adjectives, nouns,
        unless the recipe has it the other way).

    Raises:
        ValueError: nothing to get a part from, or parts that do not fit each other.
        OSError: a file cannot be read.
    """
    if text_features is not None:
        made = LabelFeatures.load(text_features, *((len(classes), classes.names) if classes else ()))
        if with_negatives and not made.n_negatives:
            raise ValueError(
                f"text_features: {text_features} holds {len(made.names)} rows, all of them ID: no "
                "negative label is left"
            )
        scale = made.logit_scale if logit_scale is None else logit_scale
        return LabelFeatures(made.features, made.n_id, made.names, scale, made.provenance)
    maker = _Maker(model, classes, cache, progress)
    listed: NegativeLabels | None = None
    if with_negatives and negatives is not None:
        listed = maker.listed(negatives, id_features)
    prompts = _prompts(prompt, adjective_prompt, listed)
    if learned_prompts is not None:
        rows, names = maker.learned(learned_prompts, listed, prompts)
    else:
        rows, names = maker.of_templates(listed, prompts, id_features)
        if listed is None and with_negatives and negative_features is not None:
            rows.append(_unit(negative_features))
            names += [f"negative {row}" for row in range(len(negative_features))]
    n_id = len(rows[0])
    if with_negatives and len(names) == n_id:
        raise ValueError(
            "there is no negative row: give negatives (a list, or how to mine one)"
            + ("; the learned prompts have none of their own" if learned_prompts is not None else "")
        )
    if len({part.shape[1] for part in rows if len(part)}) > 1:
        raise ValueError(
            f"negative labels have features of width {rows[-1].shape[1]}, ID names of {rows[0].shape[1]}"
        )
    about = maker.described()
    about["prompt"] = "learned" if learned_prompts is not None else _told(prompt, listed)
    if listed is not None:
        about["negatives"] = listed.provenance
    if logit_scale is None and model is not None:
        logit_scale = float(model.logit_scale)
    return LabelFeatures(torch.cat(rows), n_id, tuple(names), logit_scale, about)


class _Maker:
    """The parts of one call of :func:`label_features`."""

    def __init__(
        self,
        model: VisionLanguageModel | None,
        classes: ClassNames | None,
        cache: TextCache | None,
        progress: bool,
    ) -> None:
        self.model, self.classes, self.cache, self.progress = model, classes, cache, progress

    def listed(self, negatives: Negatives, id_features: Tensor | None) -> NegativeLabels:
        """The negative labels, read or mined."""
        if isinstance(negatives, NegativeLabels):
            found = negatives
        elif isinstance(negatives, Mining):
            return negatives.run(
                self._tower(),
                self.classes,
                id_features=id_features,
                cache=self.cache,
                progress=self.progress,
            )
        else:
            found = NegativeLabels.load(negatives)
        # mining drops ID names, or keeps them knowingly; other lists may hold them by mistake
        if found.mining is None and self.classes is not None:
            _warn_of_id_names(self.classes, found, negatives)
        return found

    def of_templates(
        self, listed: NegativeLabels | None, prompts: PromptSet, id_features: Tensor | None
    ) -> tuple[list[Tensor], list[str]]:
        """Rows and names from templates, or from features where there is no tower."""
        words = () if listed is None else listed.words
        encoded = self.model is not None and self.classes is not None
        if not encoded and id_features is None:
            raise ValueError(
                "the ID names are not known: give classes (a benchmark's name or a file, one name per "
                "line in the order of the labels)"
                if self.classes is None
                else "the ID names cannot be encoded without a model, and there are no features of them"
            )
        rows, names = [], []
        total = len(words) + (len(self.classes) if self.classes is not None else 0)
        if not encoded and listed is None:
            assert id_features is not None
            return [_unit(id_features)], self._id_names(len(id_features))
        with NameEncoder(
            self._tower(), cache=self.cache, total=total if self.progress else None
        ) as encoder:
            if encoded:
                assert self.classes is not None
                rows.append(encoder.rows(self.classes.names, prompts.id, prompts.raw))
            else:
                assert id_features is not None
                rows.append(_unit(id_features))
            names += self._id_names(len(rows[0]))
            for kind in () if listed is None else listed.order:
                assert listed is not None
                own = listed.of_kind(kind)
                rows.append(encoder.rows(own, getattr(prompts, kind), prompts.raw))
                names += own
        return rows, names

    def learned(
        self,
        prompts: str | os.PathLike[str] | LearnedPrompts,
        listed: NegativeLabels | None,
        templates: PromptSet,
    ) -> tuple[list[Tensor], list[str]]:
        """Rows and names from learned prompts."""
        if self.classes is None:
            raise ValueError("learned prompts need the ID names")
        if not isinstance(prompts, LearnedPrompts):
            prompts = load_prompts(prompts)
        return learned_rows(self._tower(), self.classes, prompts, listed, templates, self.cache)

    def described(self) -> dict[str, Any]:
        """Model and ID classes, for the provenance."""
        from adaneg_openood.vlm import describe

        about = {} if self.model is None else describe(self.model)
        about.pop("preprocessing", None)
        if self.classes is not None:
            about["id"] = self.classes.source
        return about

    def _id_names(self, n_id: int) -> list[str]:
        if self.classes is None:
            return [f"class {row}" for row in range(n_id)]
        if len(self.classes) != n_id:
            raise ValueError(f"{len(self.classes)} class names, but features of {n_id} classes")
        return list(self.classes.names)

    def _tower(self) -> VisionLanguageModel:
        if self.model is None:
            raise ValueError("names cannot be encoded without a model; give text_features")
        return self.model


def _prompts(
    prompt: Prompt | None, adjective_prompt: Prompt | None, listed: NegativeLabels | None
) -> PromptSet:
    told = None if listed is None else listed.prompts
    if told is None:
        return PromptSet.of(
            "nice" if prompt is None else prompt,
            "adjective" if adjective_prompt is None else adjective_prompt,
        )
    if prompt is None and adjective_prompt is None:
        return told
    assert listed is not None
    logger.warning(
        "the negatives were mined as %s has it, with prompts of their own; the prompt that is set "
        "replaces them, and the scores are not those of %s",
        *(listed.mining, listed.mining),
    )
    own = PromptSet.of(told.id if prompt is None else prompt, told.adj)
    adj = told.adj if adjective_prompt is None else PromptSet.of("plain", adjective_prompt).adj
    return PromptSet(own.id, told.noun if prompt is None else own.noun, adj, told.raw)


def _told(prompt: Prompt | None, listed: NegativeLabels | None) -> Any:
    if prompt is not None:
        return named(prompt)
    return "nice" if listed is None or listed.prompts is None else listed.prompts.to_json()


def _warn_of_id_names(classes: ClassNames, negatives: NegativeLabels, source: Any) -> None:
    ids = {key for name in classes.names for word in synonyms(name) for key in keys(word, "caseless")}
    same = [word for word in negatives.words if keys(word, "caseless") & ids]
    if same:
        where = source if isinstance(source, (str, os.PathLike)) else "the negatives"
        logger.warning(
            "%s: %d negative label(s) are names of ID classes, which hurts those classes; remove them: "
            "%s%s",
            *(where, len(same), ", ".join(map(repr, same[:_NAMED]))),
            ", ..." if len(same) > _NAMED else "",
        )


def _unit(features: Tensor) -> Tensor:
    """Unit rows on the CPU; rows that have unit length already stay as they are, to the bit."""
    rows = features.detach().float().cpu()
    lengths = rows.norm(dim=-1)
    return rows if ((lengths - 1).abs() < 1e-6).all() else normalize(rows, dim=-1)


def _digest(
    features: Tensor, n_id: int, names: Sequence[str], logit_scale: float | None, provenance: str
) -> str:
    rest = json.dumps([n_id, list(names), logit_scale, provenance], ensure_ascii=True)
    return hashlib.sha256(f"{tensor_digest(features)} {rest}".encode()).hexdigest()
