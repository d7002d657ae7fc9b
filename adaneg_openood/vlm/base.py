"""What every image-text model is asked for, and the part all implementations share."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Callable, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from adaneg_openood.io.digests import tensor_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "fp16", "bf16")
_HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
_NAMED = 5  # shortened texts a warning lists

SelfVLM = TypeVar("SelfVLM")
SelfTower = TypeVar("SelfTower", bound="TwoTowerModel")


@runtime_checkable
class VisionLanguageModel(Protocol):
    """An image tower and a text tower that share a space.

    Attributes:
        name: such as ``"open_clip:ViT-B-16/openai"``; part of every feature file's provenance.
        dim: D, the width of the shared space.
        logit_scale: s, already exponentiated, about 100 for CLIP.
        device: where the towers are.
    """

    # properties, so that an implementation may compute them; plain attributes satisfy them too
    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def logit_scale(self) -> float: ...

    @property
    def device(self) -> torch.device: ...

    def preprocess(self, image: Image) -> Tensor:
        """A PIL image of any mode -> (3, H, W) float32."""
        ...

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float on any device -> (B, D) float32 of unit length, on ``device``."""
        ...

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """N texts -> (N, D) float32 of unit length, on ``device``."""
        ...

    def to(self: SelfVLM, device: torch.device | str) -> SelfVLM:
        """Move the towers; returns the model itself."""
        ...


class TwoTowerModel(ABC):
    """Batches, precision, unit length and warnings; subclasses call their library's towers.

    Args:
        model: the towers; put in eval mode and left otherwise as it is.
        preprocess: PIL image -> (3, H, W) float32.
        name: see :class:`VisionLanguageModel`.
        dim: D.
        logit_scale: s, exponentiated.
        logit_bias: SigLIP's bias. It is added to every logit alike, so it cancels in the softmax
            and grouped scores of this package; kept for code that wants SigLIP's sigmoid.
        context_length: tokens a text may have, end marks included; None where it is not known.
        precision: ``"auto"`` is fp16 on CUDA and fp32 elsewhere; ``"fp32"``, ``"fp16"`` and ``"bf16"``
            hold on every device. In half precision the towers' weights are halves on CUDA, as OpenAI's
            clip has them; elsewhere weights stay as they are and autocast is used.
        preprocessing: one line that says what ``preprocess`` does, for provenance.

    Raises:
        ValueError: unknown precision.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Callable[[Image], Tensor],
        *,
        name: str,
        dim: int,
        logit_scale: float,
        logit_bias: float = 0.0,
        context_length: int | None = None,
        precision: str = "auto",
        preprocessing: str = "custom",
    ) -> None:
        check_precision(precision)
        self.model = model.eval()
        self.name = name
        self.dim = dim
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias
        self.context_length = context_length
        self.precision = precision
        self.preprocessing = preprocessing
        self.transform = preprocess  # alone, so that data loader workers need no towers
        self._weights: str | None = None
        self._full: dict[str, Tensor] | None = None  # float32 weights, while the towers hold halves
        self._settle()

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return next(self.model.parameters()).device

    @property
    def effective_precision(self) -> str:
        """``"auto"`` resolved for the present device; ``"fp16 weights"`` where weights are halves."""
        if self._full is not None:
            return f"{self._half_name()} weights"
        return self._half_name() or "fp32"

    def _half_name(self) -> str | None:
        if self.precision == "auto":
            return "fp16" if self.device.type == "cuda" else None
        return None if self.precision == "fp32" else self.precision

    @property
    def weights(self) -> str:
        """SHA-256 of the parameters and buffers, 16 hex digits: tells two checkpoints apart."""
        if self._weights is None:
            self._weights = _hash_state(self.model)
        return self._weights

    def to(self: SelfTower, device: torch.device | str) -> SelfTower:
        self.model.to(device)
        self._settle()
        return self

    def _settle(self) -> None:
        """Give the towers the weights that belong to their device."""
        half = self._half_name() if self._halves_weights() else None
        if half is None and self._full is not None:
            self.model.float().load_state_dict(self._full, strict=False)
            self._full = None
        elif half is not None and self._full is None:
            kept = {name: value for name, value in self.model.state_dict().items() if _is_float32(value)}
            if kept:
                assert self.weights  # of the checkpoint, not of its halves
                self._full = {name: value.detach().to("cpu", copy=True) for name, value in kept.items()}
                self.model.to(_HALVES[half])
                _restore_float32_norms(self.model, _HALVES[half])

    def _halves_weights(self) -> bool:
        return self.device.type == "cuda"

    def preprocess(self, image: Image) -> Tensor:
        """A PIL image of any mode -> (3, H, W) float32."""
        return self.transform(image)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) float on any device -> (B, D) float32 of unit length, on ``device``.

        Raises:
            ValueError: another number of dimensions.
        """
        if pixels.ndim != 4:
            raise ValueError(f"pixels must be (B, 3, H, W), got shape {tuple(pixels.shape)}")
        with self._autocast():
            # weights take pixels of their own dtype alone
            weight = next(getattr(self.model, "visual", self.model).parameters())
            pixels = pixels.to(self.device, non_blocking=True).to(weight.dtype)
            features = self._encode_pixels(pixels)
        return normalize(features.float(), dim=-1)

    @torch.no_grad()
    def encode_text(
        self, texts: Sequence[str], *, batch_size: int = 512, progress: bool = False
    ) -> Tensor:
        """N texts -> (N, D) float32 of unit length, on ``device``.

        Texts longer than the context lose their end, and a warning names them;
        ``adaneg_openood.text.prompts`` shortens the name instead, so that the prompt's end stays.

        Args:
            texts: N texts, N may be 0.
            batch_size: texts a forward pass; the result does not depend on it.
            progress: show a bar, for tens of thousands of prompts.

        Raises:
            ValueError: ``batch_size`` below 1.
            TypeError: one string instead of a sequence of strings.
        """
        return normalize(self.encode_text_raw(texts, batch_size=batch_size, progress=progress), dim=-1)

    @torch.no_grad()
    def encode_text_raw(
        self, texts: Sequence[str], *, batch_size: int = 512, progress: bool = False
    ) -> Tensor:
        """As :meth:`encode_text`, of the length that the tower gives them; CSP averages such rows."""
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, got one string")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self._warn_of_long(texts)
        starts: Iterable[int] = range(0, len(texts), batch_size)
        if progress:
            from tqdm.auto import tqdm

            starts = tqdm(starts, desc=f"texts x {batch_size}", unit="batch")
        parts = []
        for start in starts:
            tokens = self._tokenize([str(text) for text in texts[start : start + batch_size]])
            with self._autocast():
                features = self._encode_tokens(tokens)
            parts.append(features.float())
        return torch.cat(parts) if parts else torch.zeros(0, self.dim, device=self.device)

    def token_count(self, text: str) -> int | None:
        """Tokens of a text with its end marks, not cut to the context; None where unknown."""
        return None

    def describe(self) -> dict[str, Any]:
        """Provenance: what the features depend on besides the images and texts."""
        return {
            "model": self.name,
            "weights": self.weights,
            "dim": self.dim,
            "logit_scale": self.logit_scale,
            "logit_bias": self.logit_bias,
            "precision": self.effective_precision,
            "preprocessing": self.preprocessing,
        }

    @abstractmethod
    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) of the image tower's device and dtype -> (B, D)."""

    @abstractmethod
    def _tokenize(self, texts: list[str]) -> Any:
        """Whatever ``_encode_tokens`` takes."""

    @abstractmethod
    def _encode_tokens(self, tokens: Any) -> Tensor:
        """-> (N, D)."""

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = _HALVES.get(self.effective_precision)  # none where the weights are halves
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype=dtype)

    def _warn_of_long(self, texts: Sequence[str]) -> None:
        if self.context_length is None:
            return
        # a byte is never more than one token of a byte-pair vocabulary: short texts need no counting
        suspects = (text for text in texts if len(str(text).encode()) + 2 > self.context_length)
        long = [text for text in suspects if (self.token_count(text) or 0) > self.context_length]
        if long:
            listed = ", ".join(map(repr, long[:_NAMED])) + (", ..." if len(long) > _NAMED else "")
            logger.warning(
                "%d text(s) longer than the model's %d tokens lose their end: %s",
                len(long),
                self.context_length,
                listed,
            )


def check_precision(precision: str) -> None:
    """Raises ValueError for a name that is not in :data:`PRECISIONS`."""
    if precision not in PRECISIONS:
        allowed = ", ".join(map(repr, PRECISIONS))
        raise ValueError(f"precision must be one of {allowed}, got {precision!r}")


def describe(model: VisionLanguageModel) -> dict[str, Any]:
    """Provenance of any model: its own ``describe()``, or what the protocol tells."""
    own = getattr(model, "describe", None)
    if callable(own):
        return dict(own())
    return {"model": model.name, "dim": model.dim, "logit_scale": float(model.logit_scale)}


def _is_float32(value: Tensor) -> bool:
    return value.dtype == torch.float32


def _restore_float32_norms(model: nn.Module, half: torch.dtype) -> None:
    """Some libraries' layer norms compute in float32 whatever they are given, so need weights of it."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm:
            sample = torch.zeros(1, *module.normalized_shape, dtype=half, device=module.weight.device)
            try:
                module(sample)
            except RuntimeError:
                module.float()


def _hash_state(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()[:16]
