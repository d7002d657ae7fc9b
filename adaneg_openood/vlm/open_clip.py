"""open_clip: every architecture and pretrained tag, and local checkpoints."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

import torch
from torch import Tensor, nn

from adaneg_openood.vlm.base import TwoTowerModel

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger(__name__)


class OpenClip(TwoTowerModel):
    """A loaded open_clip model.

    Args:
        model: ``open_clip.model.CLIP``, ``CustomTextCLIP`` or ``CoCa``.
        tokenizer: list of N texts -> (N, context) int64.
        preprocess: PIL image -> (3, H, W) float32.
        name: for provenance.
        precision: see :class:`~adaneg_openood.vlm.base.TwoTowerModel`.
        preprocessing: one line about ``preprocess``, for provenance.

    Source: https://github.com/mlfoundations/open_clip
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[[list[str]], Tensor],
        preprocess: Callable[[Image], Tensor],
        name: str = "open_clip:custom",
        *,
        precision: str = "auto",
        preprocessing: str = "custom",
    ) -> None:
        bias = getattr(model, "logit_bias", None)
        context = getattr(tokenizer, "context_length", None) or getattr(model, "context_length", None)
        super().__init__(
            model,
            preprocess,
            name=name,
            dim=_width(model),
            logit_scale=_number(model.logit_scale).exp().item(),
            logit_bias=0.0 if bias is None else _number(bias).item(),
            context_length=context,
            precision=precision,
            preprocessing=preprocessing,
        )
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        architecture: str,
        pretrained: str | os.PathLike[str] | None = None,
        *,
        preprocessing: str = "model",
        device: torch.device | str = "cpu",
        precision: str = "auto",
        quick_gelu: bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> OpenClip:
        """Build a model and its tokenizer and preprocessing by name.

        Args:
            architecture: such as ``"ViT-B-16"``, or ``"local-dir:/folder"`` with
                ``open_clip_config.json`` and weights, or ``"hf-hub:org/name"``.
            pretrained: a tag such as ``"openai"`` (open_clip downloads it once), or a local
                ``.pt``, ``.bin`` or ``.safetensors`` file. None only with a folder or hub name.
            preprocessing: ``"model"`` is the model's own; ``"paper"`` resizes to 256 (bicubic) and
                crops 224 from the centre, or the same ratio at other input sizes.
            device: where to put it.
            precision: see :class:`~adaneg_openood.vlm.base.TwoTowerModel`.
            quick_gelu: which activation; None takes what the tag's weights were trained with
                (QuickGELU for OpenAI's), whatever the architecture's name says.
            cache_dir: where open_clip keeps downloads.

        Raises:
            ValueError: unknown architecture, tag or preprocessing; a checkpoint that does not fit,
                or cannot be read without unpickling code.
            FileNotFoundError: no such folder or file.
            OSError: a tag's weights could not be downloaded.

        Source: https://github.com/mlfoundations/open_clip
        """
        import open_clip
        from open_clip.transform import PreprocessCfg

        from adaneg_openood.vlm.checkpoints import check_checkpoint
        from adaneg_openood.vlm.preprocessing import build_preprocess

        weights = None if pretrained is None else os.fspath(pretrained)
        check_names(architecture, weights)
        is_file = weights is not None and os.path.isfile(weights)
        if is_file:
            assert weights is not None
            check_checkpoint(weights)
        downloads = None if cache_dir is None else os.fspath(cache_dir)
        try:
            tokenizer = open_clip.get_tokenizer(architecture, cache_dir=downloads)
        except ImportError as error:
            raise ImportError(
                f"the tokenizer of {architecture} comes from transformers ({error}): "
                "pip install 'adaneg_openood[hf]'"
            ) from error
        options: dict[str, Any] = {}
        activation = _activation(architecture, weights, quick_gelu)
        if activation is not None:
            options["quick_gelu"] = activation
        try:
            # weights are drawn before they are read: not from the caller's random state
            with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
                if options:  # settled above, while open_clip compares with the architecture's own
                    warnings.filterwarnings("ignore", message="QuickGELU mismatch")
                model = open_clip.create_model(
                    architecture,
                    weights,
                    device=device,
                    require_pretrained=True,
                    weights_only=True,
                    cache_dir=downloads,
                    **options,
                )
        except RuntimeError as error:
            if "download" in str(error).lower():
                raise OSError(
                    f"the weights of {architecture}/{weights} could not be downloaded ({error}); "
                    f"give a local file instead: open_clip:{architecture}//path/to/weights.safetensors"
                ) from error
            raise ValueError(
                f"{weights or architecture}: does not fit the architecture {architecture}: {error}"
            ) from error
        transform, description = build_preprocess(
            PreprocessCfg(**model.visual.preprocess_cfg), preprocessing
        )
        return cls(
            model,
            tokenizer,
            transform,
            name=f"open_clip:{architecture}" + (f"/{weights}" if weights else ""),
            precision=precision,
            preprocessing=description,
        )

    def token_count(self, text: str) -> int | None:
        encode = getattr(self.tokenizer, "encode", None)
        if callable(encode):  # SimpleTokenizer: without its two end marks
            return len(encode(text)) + 2
        inner = getattr(self.tokenizer, "tokenizer", None)  # HFTokenizer
        clean = getattr(self.tokenizer, "clean_fn", str)
        # else it warns of each text that is longer than the context, which is asked here
        return None if inner is None else len(inner(clean(text), verbose=False)["input_ids"])

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        dtype = next(self.model.visual.parameters()).dtype  # type: ignore[union-attr]
        return self.model.encode_image(pixels.to(dtype))  # type: ignore[operator]

    def _tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens.to(self.device))  # type: ignore[operator]


def _number(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().float().reshape(())


def _width(model: nn.Module) -> int:
    """D, from the towers' last layers."""
    projection = getattr(model, "text_projection", None)
    if projection is None:
        text = getattr(model, "text", None)
        projection = getattr(text, "text_projection", None)
        if projection is None:
            projection = getattr(text, "proj", None)
    if isinstance(projection, nn.Linear):
        return projection.out_features
    if isinstance(projection, Tensor):
        return int(projection.shape[1])
    if isinstance(projection, nn.Sequential):
        return int(projection[-1].out_features)  # type: ignore[arg-type]
    output = getattr(getattr(model, "visual", None), "output_dim", None)
    if output is None:
        raise ValueError(
            f"{type(model).__name__}: the width of its features cannot be told; it has neither "
            "text_projection nor visual.output_dim"
        )
    return int(output)


def check_names(architecture: str, weights: str | None) -> None:
    """Refuse an architecture or a tag that open_clip does not know, and weights that are not there."""
    import open_clip

    if ":" in architecture:
        kind, _, place = architecture.partition(":")
        if kind == "local-dir" and not Path(place).is_dir():
            raise FileNotFoundError(f"{place}: no such folder of an open_clip model")
        if weights is not None:
            raise ValueError(
                f"{architecture} brings its own weights, so pretrained must be None, got {weights!r}"
            )
        return
    known = open_clip.list_models()
    if architecture.replace("/", "-") not in known:
        raise ValueError(f"unknown architecture {architecture!r}{_like(architecture, known)}")
    if weights is None:
        raise ValueError(
            f"{architecture}: no weights given; name a tag, such as {architecture}/"
            f"{(open_clip.list_pretrained_tags_by_model(architecture) or ['<tag>'])[0]}, or a file"
        )
    if os.path.isfile(weights) or open_clip.pretrained.is_pretrained_cfg(architecture, weights):
        return
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if os.sep in weights or weights.endswith((".pt", ".bin", ".safetensors", ".pth")):
        raise FileNotFoundError(f"{weights}: no such checkpoint file for {architecture}")
    raise ValueError(
        f"{weights!r} is neither a file nor a tag of {architecture}; its tags are "
        f"{', '.join(tags) or 'none'}"
    )


def _like(name: str, known: Sequence[str]) -> str:
    import difflib

    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    hint = "; open_clip.list_models() lists all"
    return (f"; similar ones are {', '.join(near)}" if near else "") + hint


def _activation(architecture: str, weights: str | None, wanted: bool | None) -> bool | None:
    """QuickGELU or not; None leaves the architecture's own."""
    import open_clip

    if wanted is not None:
        return wanted
    if weights is None or os.path.isfile(weights):
        config = open_clip.get_model_config(architecture) if weights is not None else None
        if config is not None and not config.get("quick_gelu", False):
            if f"{architecture}-quickgelu" in open_clip.list_models():
                logger.warning(
                    "%s: a file does not say which activation it was trained with; GELU is used. "
                    "If it descends from OpenAI's weights (most fine-tuned CLIPs do), load it as "
                    "%s-quickgelu or with quick_gelu=True",
                    weights,
                    architecture,
                )
        return None
    tag = open_clip.get_pretrained_cfg(architecture, weights) or {}
    config = open_clip.get_model_config(architecture) or {}
    trained = bool(tag.get("quick_gelu", False))
    if trained != bool(config.get("quick_gelu", False)):
        logger.info("%s/%s: quick_gelu=%s, as its weights need", architecture, weights, trained)
        return trained
    return None
