"""Learned prompts: context vectors from a checkpoint, and the text rows they make."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adaneg_openood.io.checkpoints import StoredTensor, Unread, read_checkpoint, tensors_in
from adaneg_openood.io.names import listed
from adaneg_openood.text.classnames import ClassNames
from adaneg_openood.text.negatives import NegativeLabels
from adaneg_openood.text.prompts import NameEncoder, PromptSet, TextCache

if TYPE_CHECKING:
    from adaneg_openood.vlm import TwoTowerModel, VisionLanguageModel

logger = logging.getLogger(__name__)

# what implementations call their context vectors, apart from a prefix such as "prompt_learner."
_ID_KEYS = ("ctx_positive", "ctx_pos", "id_ctx", "ctx")
_NEGATIVE_KEYS = ("ctx_negative", "ctx_neg", "neg_ctx", "ood_ctx")
# what stands beside them and changes no row: the class names' own tokens, and the scale
_HARMLESS = re.compile(
    r"(?:token_(?:prefix|suffix)|tokenized_prompts|name_lens|logit_scale|n_ctx|n_cls)\w*"
)
# what trainers keep beside the weights; none of it is read
_TRAINING = re.compile(
    r"epoch|iter|step|global_step|optim\w*|optimizer\w*|\w*scheduler\w*|sched|scaler|amp|val_result|"
    r"best_\w+|result\w*|metric\w*|loss\w*|acc\w*|args|cfg|config|hyper_parameters|opt|seed|rng_state\w*|"
    r"arch|version|pytorch-lightning_version|callbacks|loops|classnames|class_names"
)
_MOST_ROWS = 1_000_000
_BATCH = 256  # texts a forward pass


@dataclass(frozen=True, eq=False)
class LearnedPrompts:
    """Context vectors of prompt learning: of the ID classes, and of negative classes.

    Attributes:
        id_context: (n, width) shared by all classes, or (C, n, width), one per class.
        negative_context: None; or (n, width), the context of mined negative labels (LAPT); or
            (K, n, width), K negative prompts for every ID class (NegPrompt); or (C, K, n, width). With
            one vector more than the ID context, (K, n + 1, width) is K whole prompts: the last vector
            stands where a class name would.
        source: file, for messages.

    Source: CoOp (Zhou et al., IJCV 2022), NegPrompt (Li et al., CVPR 2024), LAPT (Zhang et al.,
    ECCV 2024).
    """

    id_context: Tensor
    negative_context: Tensor | None = None
    source: str = "learned prompts"

    def __post_init__(self) -> None:
        context, negative = self.id_context, self.negative_context
        if context.ndim not in (2, 3):
            raise ValueError(
                f"{self.source}: id_context must be (n, width) or (C, n, width), got "
                f"{tuple(context.shape)}"
            )
        if negative is not None and (
            negative.ndim not in (2, 3, 4) or negative.shape[-1] != context.shape[-1]
        ):
            raise ValueError(
                f"{self.source}: negative_context must be (n, width), (K, n, width) or (C, K, n, width) "
                f"with width {context.shape[-1]}, got {tuple(negative.shape)}"
            )
        for part in (context, negative):
            if part is not None and (part.numel() == 0 or not torch.isfinite(part).all()):
                raise ValueError(f"{self.source}: context vectors are empty, or not finite")

    @property
    def whole(self) -> bool:
        """Whether the negative vectors are prompts of their own, without a class name."""
        negative = self.negative_context
        return negative is not None and (
            negative.ndim == 3 and negative.shape[-2] == self.id_context.shape[-2] + 1
        )

    @property
    def brings_negatives(self) -> bool:
        """Whether there are negative rows without mined labels."""
        return self.negative_context is not None and self.negative_context.ndim > 2


def load_prompts(path: str | os.PathLike[str]) -> LearnedPrompts:
    """Context vectors from a prompt-learning checkpoint.

    Every key of the file is accounted for: the context vectors are read, the class names' tokens and a
    trainer's optimizer, schedule and results are left unread, and anything else is refused, because
    the rows might depend on it. Nothing is executed.

    Args:
        path: ``.pt``, ``.pth``, ``.pth.tar`` or ``.tar`` as CoOp's and Dassl's trainers write, or
            ``.safetensors``.

    Raises:
        ValueError: no such context vectors, several, or keys that are not understood; the message
            names the file and the keys.
        FileNotFoundError: no such file.
    """
    file = Path(path)
    vectors: dict[str, StoredTensor] = {}
    strange: list[str] = []
    for key, value in _entries(file, read_checkpoint(file)):
        if not isinstance(value, StoredTensor):
            if isinstance(value, Unread) or next(tensors_in(value), None) is not None:
                strange.append(key)
        elif "meta_net" in key.split("."):
            raise ValueError(
                f"{file}: holds {key}: its vectors depend on the image (CoCoOp), so there are no text "
                "rows to take from it"
            )
        elif not _HARMLESS.fullmatch(key.rpartition(".")[2]):
            vectors[key] = value
    ids, negatives = (
        [key for key in vectors if key.rpartition(".")[2] in names]
        for names in (_ID_KEYS, _NEGATIVE_KEYS)
    )
    if not ids:
        raise ValueError(
            f"{file}: no context vectors called {' or '.join(_ID_KEYS)}; it holds "
            f"{_listed(vectors) or 'no tensors'}"
        )
    for keys in (ids, negatives):
        if len(keys) > 1:
            raise ValueError(
                f"{file}: {_listed(keys)} are all context vectors; keep the one that is meant"
            )
    strange += [key for key in vectors if key not in ids and key not in negatives]
    if strange:
        raise ValueError(
            f"{file}: holds {_listed(strange)} beside the context vectors; the text rows may depend on "
            "it, so it is not left out silently. Save the vectors alone, as "
            "torch.save({'ctx': vectors}, file)"
        )
    try:
        loaded = [vectors[key].load().float() for key in (*ids, *negatives)]
    except Exception as error:  # zlib, zipfile and torch have kinds of their own for damaged numbers
        raise ValueError(f"{file}: damaged, {error}") from error
    return LearnedPrompts(loaded[0], loaded[1] if negatives else None, str(file))


def _entries(file: Path, loaded: Any) -> list[tuple[str, Any]]:
    """The entries of the state dict, nested ones by dotted names, without a trainer's own."""
    if isinstance(loaded, StoredTensor):
        raise ValueError(
            f"{file}: is a bare tensor; say what it is, as torch.save({{'ctx': tensor}}, file)"
        )
    if not isinstance(loaded, dict):
        raise ValueError(f"{file}: must hold a dict of tensors, not {type(loaded).__name__}")
    found: list[tuple[str, Any]] = []
    left: list[tuple[str, Any]] = [("", loaded)]
    for _ in range(4):  # as deep as wrappers go
        inner: list[tuple[str, Any]] = []
        for prefix, part in left:
            for key, value in part.items():
                if _TRAINING.fullmatch(str(key)) and prefix == "":
                    continue
                name = prefix if key in ("state_dict", "model") else f"{prefix}{key}."
                if isinstance(value, dict):
                    inner.append((name, value))
                else:
                    found.append((name[:-1], value))
        left = inner
    found += [(name[:-1], value) for name, value in left]
    return found


def _listed(keys: Any) -> str:
    return listed(repr(key)[1:-1][:80] for key in keys)


@torch.no_grad()
def encode_with_context(model: TwoTowerModel, names: Sequence[str], context: Tensor) -> Tensor:
    """Features of "[V1]...[Vn] name." with learned vectors V.

    Args:
        model: an open_clip or OpenAI CLIP.
        names: N names.
        context: (n, width) for all names, or (N, n, width), one a name; float.

    Returns:
        (N, D) float32 of unit length, on the CPU.

    Raises:
        ValueError: the width is not the text tower's, there are more vectors than it takes, or the
            model's tower takes no vectors.

    Source: CoOp (Zhou et al., IJCV 2022), class token at the end.
    """
    embedding = _token_embedding(model.model)
    n_context, width = context.shape[-2:]
    if width != embedding.weight.shape[1]:
        raise ValueError(
            f"the prompts' vectors have width {width}, the text tower of {model.name} has "
            f"{embedding.weight.shape[1]}; they were learned for another backbone"
        )
    limit = model.context_length
    # the start mark, at least one token of a name, the full stop and the end mark
    if limit is not None and n_context > limit - 4:
        raise ValueError(
            f"{n_context} context vectors leave no room for a name: the text tower of {model.name} "
            f"takes {limit} tokens"
        )
    # CoOp's own form: as many placeholder words of one token each, which the vectors replace
    texts = [f"{'X ' * n_context}{name}." for name in names]
    parts = []
    for start in range(0, len(texts), _BATCH):
        rows = slice(start, start + _BATCH)
        vectors = context if context.ndim == 2 else context[rows]

        def replace(module: nn.Module, inputs: Any, output: Tensor, vectors: Tensor = vectors) -> Tensor:
            output = output.clone()
            output[:, 1 : 1 + n_context] = vectors.to(output)  # after the start mark
            return output

        handle = embedding.register_forward_hook(replace)
        try:
            parts.append(model.encode_text(texts[rows], batch_size=_BATCH).cpu())
        finally:
            handle.remove()
    return torch.cat(parts) if parts else torch.zeros(0, model.dim)


def _token_embedding(model: nn.Module) -> nn.Embedding:
    for place in (model, getattr(model, "text", None)):
        found = getattr(place, "token_embedding", None)
        if isinstance(found, nn.Embedding):
            return found
    raise ValueError(
        f"{type(model).__name__} has no CLIP text tower, so learned prompts cannot be put into it"
    )


@torch.no_grad()
def learned_rows(
    model: VisionLanguageModel,
    classes: ClassNames,
    prompts: LearnedPrompts,
    negatives: NegativeLabels | None,
    templates: PromptSet,
    cache: TextCache | None = None,
) -> tuple[list[Tensor], list[str]]:
    """The text rows from learned prompts.

    ID rows are "[V1]...[Vn] name." with the learned vectors; then the learned negative rows, if
    there are any (K per class, class by class; or K whole prompts); then mined negative labels, if
    given: in the negative context if that is one for all of them, else in the ID context if all classes
    share it, else in their templates.

    Args:
        model: an open_clip or OpenAI CLIP whose text tower is that of the prompts.
        classes: C ID classes, in the order of the prompts' training.
        prompts: see :func:`load_prompts`.
        negatives: mined labels to add.
        templates: of negatives that have no learned context.
        cache: of those.

    Returns:
        Parts of the rows, the ID rows first, and the names of all.

    Raises:
        ValueError: the widths, the lengths or the number of classes differ.
    """
    from adaneg_openood.vlm import TwoTowerModel

    if not isinstance(model, TwoTowerModel):
        raise ValueError(
            f"{model.name}: learned prompts need an open_clip or OpenAI CLIP, as load_model gives it"
        )
    n_id, source = len(classes), prompts.source

    def encoded(words: Sequence[str], context: Tensor) -> Tensor:
        try:
            return encode_with_context(model, words, context)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error

    def of_classes(context: Tensor) -> Tensor:
        if len(context) != n_id:
            raise ValueError(
                f"{source}: the prompts were learned for {len(context)} classes, but {classes.source} "
                f"has {n_id}"
            )
        return context

    shared = prompts.id_context.ndim == 2
    parts = [
        encoded(classes.names, prompts.id_context if shared else of_classes(prompts.id_context)),
    ]
    names = list(classes.names)
    negative = prompts.negative_context
    of_mined = prompts.id_context if shared else None
    if negative is not None and negative.ndim == 2:
        of_mined = negative
    elif negative is not None and prompts.whole:
        logger.info("%s: %d negative prompts without class names", source, len(negative))
        parts.append(encoded([""] * len(negative), negative))
        names += [f"learned negative {k}" for k in range(len(negative))]
    elif negative is not None:
        each = negative.expand(n_id, *negative.shape) if negative.ndim == 3 else of_classes(negative)
        per_class = each.shape[1]
        if n_id * per_class > _MOST_ROWS:
            raise ValueError(
                f"{source}: {per_class} negative prompts for each of {n_id} classes are too many"
            )
        repeated = [name for name in classes.names for _ in range(per_class)]
        parts.append(encoded(repeated, each.flatten(0, 1)))
        names += [f"not {name} ({k})" for name in classes.names for k in range(per_class)]
    if negatives is not None and len(negatives):
        if of_mined is not None:
            parts.append(encoded(negatives.words, of_mined))
        else:
            with NameEncoder(model, cache=cache) as encoder:
                parts += negatives.rows(encoder, templates)
        names += negatives.words
    return parts, names
