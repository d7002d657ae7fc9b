"""The one maker of text rows: ID names first, then negative labels."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import TYPE_CHECKING, Union

import torch
from torch import Tensor

from adaneg_openood.io.names import listed
from adaneg_openood.text.classnames import ClassNames
from adaneg_openood.text.labels import LabelFeatures, unit_rows
from adaneg_openood.text.learned import LearnedPrompts, learned_rows, load_prompts
from adaneg_openood.text.mining import Mining
from adaneg_openood.text.negatives import NegativeLabels
from adaneg_openood.text.prompts import NameEncoder, Prompt, PromptSet, TextCache, described, named
from adaneg_openood.text.words import keys, synonyms

if TYPE_CHECKING:
    from adaneg_openood.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)

Negatives = Union[NegativeLabels, Mining, str, "os.PathLike[str]"]

_NO_MODEL = "names cannot be encoded without a model; give text_features, or features of the ID names"


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
        return made if logit_scale is None else dataclasses.replace(made, logit_scale=logit_scale)
    labels: NegativeLabels | None = None
    if not with_negatives or negatives is None:
        pass
    elif not isinstance(negatives, Mining):
        labels = _read(negatives, classes)
    elif model is None:
        raise ValueError(_NO_MODEL)
    else:
        labels = negatives.run(model, classes, id_features=id_features, cache=cache, progress=progress)
    prompts = _prompts(prompt, adjective_prompt, labels)
    if learned_prompts is not None:
        if classes is None or model is None:
            raise ValueError("learned prompts need the ID names and a model")
        if not isinstance(learned_prompts, LearnedPrompts):
            learned_prompts = load_prompts(learned_prompts)
        rows, names = learned_rows(model, classes, learned_prompts, labels, prompts, cache)
    else:
        rows, names = _from_templates(model, classes, labels, prompts, id_features, cache, progress)
        if labels is None and with_negatives and negative_features is not None:
            rows.append(unit_rows(negative_features))
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
    about = {} if model is None else described(model)
    if classes is not None:
        about["id"] = classes.source
    about["prompt"] = "nice" if prompt is None else named(prompt)
    if labels is not None:
        about["negatives"] = labels.provenance
        if prompt is None and labels.prompts is not None:
            about["prompt"] = labels.prompts.to_json()
    if learned_prompts is not None:
        about["prompt"] = "learned"
    if logit_scale is None and model is not None:
        logit_scale = float(model.logit_scale)
    return LabelFeatures(torch.cat(rows), n_id, tuple(names), logit_scale, about)


def _read(
    negatives: NegativeLabels | str | os.PathLike[str], classes: ClassNames | None
) -> NegativeLabels:
    """A list of negative labels; names of ID classes in it are warned of."""
    found = negatives if isinstance(negatives, NegativeLabels) else NegativeLabels.load(negatives)
    doubt = None if classes is None else doubt_about(found, classes)
    if doubt:
        logger.warning("%s: %s", "the negatives" if found is negatives else negatives, doubt)
    return found


def doubt_about(negatives: NegativeLabels, classes: ClassNames) -> str | None:
    """Why a list may be a bad one for these classes, or None."""
    made_for = negatives.provenance.get("id_sha256")
    # mining for these classes drops their names, or keeps them knowingly
    if made_for == classes.digest:
        return None
    ids = {key for name in classes.names for word in synonyms(name) for key in keys(word, "caseless")}
    same = [word for word in negatives.words if keys(word, "caseless") & ids]
    if same:
        return (
            f"{len(same)} negative label(s) are names of ID classes, which hurts those classes; remove "
            f"them: {listed(map(repr, same))}"
        )
    return "they were mined for other class names than these" if made_for else None


def _from_templates(
    model: VisionLanguageModel | None,
    classes: ClassNames | None,
    labels: NegativeLabels | None,
    prompts: PromptSet,
    id_features: Tensor | None,
    cache: TextCache | None,
    progress: bool,
) -> tuple[list[Tensor], list[str]]:
    """Parts of the rows, and their names; the ID rows are features where names cannot be encoded."""
    encoded = model is not None and classes is not None
    if not encoded and id_features is None:
        raise ValueError(
            "the ID names are not known: give classes (a benchmark's name or a file, one name per line "
            "in the order of the labels)"
            if classes is None
            else _NO_MODEL
        )
    words = () if labels is None else labels.words
    rows = [] if encoded or id_features is None else [unit_rows(id_features)]
    if encoded or words:
        if model is None:
            raise ValueError(_NO_MODEL)
        total = len(words) + len(classes or ()) if progress else None
        with NameEncoder(model, cache=cache, total=total) as encoder:
            if classes is not None:
                rows = [encoder.rows(classes.names, prompts.id, prompts.raw)]
            if labels is not None:
                rows += labels.rows(encoder, prompts)
    return rows, [*_id_names(classes, len(rows[0])), *words]


def _id_names(classes: ClassNames | None, n_id: int) -> list[str]:
    if classes is None:
        return [f"class {row}" for row in range(n_id)]
    if len(classes) != n_id:
        raise ValueError(f"{len(classes)} class names, but features of {n_id} classes")
    return list(classes.names)


def _prompts(
    prompt: Prompt | None, adjective_prompt: Prompt | None, labels: NegativeLabels | None
) -> PromptSet:
    told = None if labels is None else labels.prompts
    if told is None:
        return PromptSet.of(
            "nice" if prompt is None else prompt,
            "adjective" if adjective_prompt is None else adjective_prompt,
        )
    if prompt is None and adjective_prompt is None:
        return told
    assert labels is not None
    logger.warning(
        "the negatives were mined as %s has it, with prompts of their own; the prompt that is set "
        "replaces them, and the scores are not those of %s",
        *(labels.mining, labels.mining),
    )
    own = PromptSet.of(told.id if prompt is None else prompt, told.adj)
    adj = told.adj if adjective_prompt is None else PromptSet.of("plain", adjective_prompt).adj
    return PromptSet(own.id, told.noun if prompt is None else own.noun, adj, told.raw)
