"""Text features kept on disk, so that tens of thousands of prompts are encoded once."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from adaneg_openood.io.files import atomic_path, cache_folder

if TYPE_CHECKING:
    from adaneg_openood.vlm import VisionLanguageModel

logger = logging.getLogger(__name__)


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
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = self._file(model, prompts, names, raw)
        if file is None or not file.exists():
            return None
        try:
            features = load_file(file).get("features")
        except (SafetensorError, OSError) as error:
            logger.warning("%s: cannot be read (%s), so it is made again", file, error)
            return None
        if features is None or tuple(features.shape) != (len(names), model.dim):
            logger.warning("%s: does not hold what its name says, so it is made again", file)
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
            save_file({"features": features.contiguous()}, temporary)

    def _file(
        self, model: VisionLanguageModel, prompts: Sequence[str], names: Sequence[str], raw: bool
    ) -> Path | None:
        from adaneg_openood.vlm import describe

        about = describe(model)
        if "weights" not in about:
            return None
        about.pop("preprocessing", None)  # of images only
        parts = [about, list(prompts), list(names), *(["raw"] if raw else [])]
        key = json.dumps(parts, sort_keys=True, ensure_ascii=True)
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
