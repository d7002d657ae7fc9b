"""Text features that come from elsewhere: learned prompts, or a file of the user's own."""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from adaneg_openood.io.archives import refuse_bombs
from adaneg_openood.io.files import atomic_path
from adaneg_openood.text.classnames import IDClasses
from adaneg_openood.text.negatives import NegativeLabels, text_features
from adaneg_openood.text.prompts import encode_names

if TYPE_CHECKING:
    from adaneg_openood.text.cache import TextCache
    from adaneg_openood.vlm import VisionLanguageModel
    from adaneg_openood.vlm.base import TwoTowerModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelFeatures:
    """The text rows of a detector.

    Attributes:
        features: (C + M, D) float32 of unit length, ID rows first.
        n_id: C.
        names: C + M names.
        logit_scale: s, or None where the file does not say.
        provenance: what they were made with; JSON values.
    """

    features: Tensor
    n_id: int
    names: tuple[str, ...]
    logit_scale: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.names):
            raise ValueError(
                f"features must be (C + M, D) with one name a row, got {tuple(self.features.shape)} "
                f"and {len(self.names)} names"
            )
        if not 1 <= self.n_id <= len(self.names):
            raise ValueError(f"n_id must be in [1, {len(self.names)}], got {self.n_id}")
        bad = ~torch.isfinite(self.features).all(dim=1) | (self.features == 0).all(dim=1)
        if bad.any():
            rows = ", ".join(map(str, bad.nonzero().squeeze(1).tolist()[:8]))
            raise ValueError(f"features hold NaN, infinite or all-zero rows: {rows}")

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``text.npz``, which ``load_features`` reads from a benchmark folder, and ``text.json``.

        Returns:
            The path of ``text.npz``.
        """
        root = Path(folder)
        arrays: dict[str, Any] = {
            "text_features": self.features.cpu().numpy(),
            "n_id": np.asarray(self.n_id, dtype=np.int64),
            "names": np.asarray(self.names, dtype=np.str_),
        }
        if self.logit_scale is not None:
            arrays["logit_scale"] = np.asarray(self.logit_scale, dtype=np.float64)
        with atomic_path(root / "text.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
        with atomic_path(root / "text.json") as temporary:
            text = json.dumps(self.provenance, indent=1, sort_keys=True, ensure_ascii=False)
            temporary.write_text(text + "\n", "utf-8")
        return root / "text.npz"


def label_features(
    model: VisionLanguageModel,
    classes: IDClasses,
    negatives: NegativeLabels,
    prompt: str | Sequence[str] = "nice",
    *,
    cache: TextCache | None = None,
    progress: bool = False,
) -> LabelFeatures:
    """The text rows from templates, see :func:`~adaneg_openood.text.negatives.text_features`."""
    from adaneg_openood.vlm import describe

    features = text_features(model, classes, negatives, prompt, cache=cache, progress=progress)
    about = describe(model)
    about.pop("preprocessing", None)
    about.update(
        id=classes.source,
        prompt=prompt if isinstance(prompt, str) else list(prompt),
        negatives=negatives.provenance,
    )
    names = (*classes.names, *negatives.words)
    return LabelFeatures(features, len(classes), names, float(model.logit_scale), about)


def load_label_features(path: str | os.PathLike[str], n_id: int | None = None) -> LabelFeatures:
    """Text features of the user's own, whatever made them.

    Args:
        path: ``.npz`` (keys ``text_features``, ``n_id``, and optionally ``names``,
            ``logit_scale``) or ``.safetensors`` (the same; ``names`` as a JSON list in the header).
        n_id: C, where the file does not say.

    Returns:
        The rows brought to unit length.

    Raises:
        ValueError: something is missing or wrong, or the file holds pickled objects, which are
            never loaded.
        FileNotFoundError: no such file.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file of text features")
    found, names = _read_arrays(file)
    if "text_features" not in found:
        raise ValueError(f"{file}: needs the key text_features, found {', '.join(sorted(found))}")
    features = found["text_features"]
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(
            f"{file}: text_features must be (C + M, D) floating point, got {features.dtype} of "
            f"shape {tuple(features.shape)}"
        )
    stored = found.get("n_id")
    if stored is None and n_id is None:
        raise ValueError(f"{file}: does not say how many of its rows are ID classes; give n_id")
    for key, value in (("n_id", stored), ("logit_scale", found.get("logit_scale"))):
        if value is not None and (value.numel() != 1 or value.is_complex()):
            raise ValueError(f"{file}: {key} must be one number, got shape {tuple(value.shape)}")
    count = int(stored) if stored is not None else n_id
    if n_id is not None and count != n_id:
        raise ValueError(f"{file}: holds n_id {count}, but {n_id} ID classes were asked for")
    scale = found.get("logit_scale")
    try:
        return LabelFeatures(
            normalize(features.float(), dim=-1),
            int(count or 0),
            names or tuple(f"label {row}" for row in range(len(features))),
            None if scale is None else float(scale),
            {"file": str(file)},
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _read_arrays(file: Path) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    names: Any = None
    found: dict[str, Tensor] = {}
    try:
        if file.suffix == ".safetensors":
            from safetensors import SafetensorError, safe_open

            try:
                with safe_open(file, framework="pt") as opened:
                    found = {key: opened.get_tensor(key) for key in opened.keys()}
                    names = json.loads((opened.metadata() or {}).get("names", "null"))
            except SafetensorError as error:
                raise ValueError(str(error)) from error
        elif file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                refuse_bombs(file, archive)
            with np.load(file, allow_pickle=False) as arrays:
                for key in arrays.files:
                    if key == "names":
                        names = [str(name) for name in arrays[key].ravel()]
                    else:
                        found[key] = torch.from_numpy(np.asarray(arrays[key]))
        else:
            raise ValueError("must be .npz or .safetensors")
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds over damaged files
        text = str(error) or type(error).__name__
        raise ValueError(f"{file}: cannot be read as text features, {text}") from error
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise ValueError(f"{file}: names must be a list of strings")
    return found, None if names is None else tuple(names)


@dataclass(frozen=True, eq=False)
class LearnedPrompts:
    """Context vectors of prompt learning: of the ID classes, and of negative classes.

    Attributes:
        id_context: (n, width) shared by all classes, or (C, n, width), one a class.
        negative_context: None; or (n, width), the context of mined negative labels (LAPT); or
            (K, n, width), K negative prompts for every ID class (NegPrompt); or (C, K, n, width).

    Source: CoOp (Zhou et al., IJCV 2022), NegPrompt (Li et al., CVPR 2024), LAPT (Zhang et al.,
    ECCV 2024).
    """

    id_context: Tensor
    negative_context: Tensor | None = None

    def __post_init__(self) -> None:
        if self.id_context.ndim not in (2, 3):
            raise ValueError(
                f"id_context must be (n, width) or (C, n, width), got {tuple(self.id_context.shape)}"
            )
        negative = self.negative_context
        if negative is not None:
            if negative.ndim not in (2, 3, 4) or negative.shape[-1] != self.id_context.shape[-1]:
                raise ValueError(
                    "negative_context must be (n, width), (K, n, width) or (C, K, n, width) with width "
                    f"{self.id_context.shape[-1]}, got {tuple(negative.shape)}"
                )


# what implementations call their context vectors, apart from a prefix such as "prompt_learner."
_ID_KEYS = ("ctx_positive", "ctx_pos", "id_ctx", "ctx")
_NEGATIVE_KEYS = ("ctx_negative", "ctx_neg", "neg_ctx", "ood_ctx")


def load_prompts(
    path: str | os.PathLike[str], id_key: str | None = None, negative_key: str | None = None
) -> LearnedPrompts:
    """Context vectors from a prompt-learning checkpoint.

    Args:
        path: ``.pt``, ``.pth``, ``.pth.tar`` or ``.tar`` as CoOp's and Dassl's trainers write, or
            ``.safetensors``. Tensors alone are read; pickled objects are refused.
        id_key: name of the ID context; None tries ``ctx_positive``, ``ctx`` and the like.
        negative_key: name of the negative context; None tries ``ctx_negative`` and the like.

    Raises:
        ValueError: no such context vectors, or the file needs unpickling.
        FileNotFoundError: no such file.
    """
    from adaneg_openood.vlm.checkpoints import check_checkpoint

    file = Path(path)
    check_checkpoint(file)
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: Mapping[str, Any] = load_file(file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
        while isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
            state = state["state_dict"]
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    context = _pick(file, tensors, (id_key,) if id_key else _ID_KEYS, required=True)
    negative = _pick(
        file, tensors, (negative_key,) if negative_key else _NEGATIVE_KEYS, bool(negative_key)
    )
    assert context is not None
    try:
        return LearnedPrompts(context, negative)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _pick(
    file: Path, tensors: Mapping[str, Tensor], keys: Sequence[str], required: bool
) -> Tensor | None:
    for wanted in keys:
        for key, value in tensors.items():
            if key == wanted or re.search(rf"(^|\.){re.escape(wanted)}$", key):
                return value.float()
    if required:
        raise ValueError(
            f"{file}: no context vectors called {' or '.join(keys)}; it holds "
            f"{', '.join(sorted(tensors)) or 'no tensors'}"
        )
    return None


@torch.no_grad()
def learned_features(
    model: TwoTowerModel,
    classes: IDClasses,
    prompts: LearnedPrompts,
    negatives: NegativeLabels | None = None,
    prompt: str | Sequence[str] = "nice",
    *,
    cache: TextCache | None = None,
) -> LabelFeatures:
    """The text rows from learned prompts.

    ID rows are "[V1]...[Vn] name." with the learned vectors; then the learned negative rows, if
    there are any (K a class, class by class); then mined negative labels, if given: in the negative
    context if that is one for all of them, else in the ID context if all classes share it, else in
    their templates.

    Args:
        model: an open_clip or OpenAI CLIP whose text tower is that of the prompts.
        classes: C ID classes, in the order of the prompts' training.
        prompts: see :func:`load_prompts`.
        negatives: mined labels to add; needed if the prompts have no negative context.
        prompt: template of negatives that have no learned context.

    Raises:
        ValueError: the widths or the number of classes differ, or there would be no negative.
    """
    from adaneg_openood.vlm import describe
    from adaneg_openood.vlm.context import encode_with_context

    n_id = len(classes)
    shared = prompts.id_context.ndim == 2
    if not shared and len(prompts.id_context) != n_id:
        raise ValueError(
            f"the prompts were learned for {len(prompts.id_context)} classes, but {classes.source} "
            f"has {n_id}"
        )
    parts = [encode_with_context(model, classes.names, prompts.id_context)]
    names = list(classes.names)
    negative = prompts.negative_context
    of_mined = prompts.id_context if shared else None
    if negative is not None and negative.ndim == 2:
        of_mined = negative
    elif negative is not None:
        if negative.ndim == 3:
            negative = negative.expand(n_id, *negative.shape)
        if len(negative) != n_id:
            raise ValueError(
                f"negative prompts were learned for {len(negative)} classes, but {classes.source} "
                f"has {n_id}"
            )
        per_class = negative.shape[1]
        repeated = [name for name in classes.names for _ in range(per_class)]
        parts.append(encode_with_context(model, repeated, negative.flatten(0, 1)))
        names += [f"not {name} ({k})" for name in classes.names for k in range(per_class)]
    if negatives is not None and len(negatives):
        if of_mined is not None:
            parts.append(encode_with_context(model, negatives.words, of_mined))
        else:
            for kind, template in (("adj", "adjective"), ("noun", prompt)):
                parts.append(encode_names(model, negatives.of_kind(kind), template, cache=cache))
        names += negatives.words
    if len(names) == n_id:
        raise ValueError("there is no negative row: the prompts have none, so give mined negatives")
    about = describe(model)
    about.pop("preprocessing", None)
    about.update(id=classes.source, prompt="learned")
    return LabelFeatures(torch.cat(parts), n_id, tuple(names), float(model.logit_scale), about)
