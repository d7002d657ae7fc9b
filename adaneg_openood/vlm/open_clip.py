"""open_clip: every architecture and pretrained tag, and local checkpoints."""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any, Callable

from torch import Tensor, nn

from adaneg_openood.vlm.base import TwoTowerModel
from adaneg_openood.vlm.loading import check_checkpoint, hub_access
from adaneg_openood.vlm.preprocessing import build_preprocess

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

logger = logging.getLogger(__name__)

_WHOLE = ("local-dir:", "hf-hub:")  # names that bring their own weights


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
        super().__init__(
            model,
            preprocess,
            name=name,
            tokenizer=tokenizer,
            context_length=getattr(tokenizer, "context_length", None)
            or getattr(model, "context_length", None),
            precision=precision,
            preprocessing=preprocessing,
        )

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
            architecture: such as ``"ViT-B-16"``, with ``/tag`` or ``//path/of/file`` where
                ``pretrained`` is None; or ``"local-dir:/folder"`` with ``open_clip_config.json`` and
                weights, or ``"hf-hub:org/name"``, which bring their own.
            pretrained: a tag such as ``"openai"`` (open_clip downloads it once), or a local
                ``.pt``, ``.bin`` or ``.safetensors`` file.
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
        """
        import open_clip
        from open_clip.transform import PreprocessCfg

        architecture, weights = parse_name(architecture, pretrained)
        check_names(architecture, weights)
        file = weights if weights and os.path.isfile(weights) else None
        if file:
            check_checkpoint(file)
        downloads = None if cache_dir is None else os.fspath(cache_dir)
        activation = _activation(architecture, weights, quick_gelu)
        config: dict[str, Any] = open_clip.get_model_config(architecture) or {}
        asks = not (file or architecture.startswith("local-dir:")) or "hf_tokenizer_name" in config.get(
            "text_cfg", {}
        )
        try:
            with hub_access(asks) as offline, warnings.catch_warnings():
                # settled above, while open_clip compares with the architecture's own
                warnings.filterwarnings("ignore", message="QuickGELU mismatch")
                tokenizer = open_clip.get_tokenizer(architecture, cache_dir=downloads)
                model = open_clip.create_model(
                    architecture,
                    weights,
                    device=device,
                    require_pretrained=True,
                    weights_only=True,
                    cache_dir=downloads,
                    **({} if activation is None else {"quick_gelu": activation}),
                )
        except ImportError as error:
            raise ImportError(
                f"the tokenizer of {architecture} comes from transformers ({error}): "
                'pip install "adaneg_openood[hf]"'
            ) from error
        except (RuntimeError, OSError) as error:
            if isinstance(error, OSError) or "download" in str(error).lower():
                raise OSError(
                    f"{architecture}/{weights} could not be downloaded ({offline or error}); give a "
                    f"local file instead: open_clip:{architecture}//path/to/weights.safetensors"
                ) from error
            raise ValueError(
                f"{weights or architecture}: does not fit the architecture {architecture}: {error}"
            ) from error
        images = PreprocessCfg(**model.visual.preprocess_cfg)
        if file:
            images = dataclasses.replace(images, **_trained_preprocessing(architecture, file))
        transform, description = build_preprocess(images, preprocessing)
        return cls(
            model,
            tokenizer,
            transform,
            name=f"open_clip:{architecture}" + (f"/{weights}" if weights else ""),
            precision=precision,
            preprocessing=description,
        )

    def token_count(self, text: str) -> int | None:
        inner = getattr(self.tokenizer, "tokenizer", None)
        if hasattr(self.tokenizer, "encode") or inner is None:
            return super().token_count(text)
        # HFTokenizer; else it warns of each text that is longer than the context, which is asked here
        return len(inner(self.tokenizer.clean_fn(text), verbose=False)["input_ids"])


def parse_name(name: str, weights: str | os.PathLike[str] | None = None) -> tuple[str, str | None]:
    """Architecture and weights of ``architecture/tag``, ``architecture//file`` or a model with both."""
    if weights is None and not name.startswith(_WHOLE):
        name, _, weights = name.partition("/")
    return name, os.path.expanduser(weights) if weights else None


def check_names(architecture: str, weights: str | None) -> None:
    """Refuse an architecture or a tag that open_clip does not know, and weights that are not there."""
    import open_clip

    if ":" in architecture:
        kind, _, place = architecture.partition(":")
        if kind == "local-dir" and not os.path.isdir(place):
            raise FileNotFoundError(f"{place}: no such folder of an open_clip model")
        if weights is not None:
            raise ValueError(
                f"{architecture} brings its own weights, so pretrained must be None, got {weights!r}"
            )
        return
    known = open_clip.list_models()
    if architecture.replace("/", "-") not in known:
        near = difflib.get_close_matches(architecture, known, n=5, cutoff=0.5)
        similar = f"; similar ones are {', '.join(near)}" if near else ""
        raise ValueError(
            f"unknown architecture {architecture!r}{similar}; open_clip.list_models() lists all"
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if weights is None:
        raise ValueError(
            f"{architecture}: no weights given; name a tag, such as {architecture}/"
            f"{(tags or ['<tag>'])[0]}, or a file"
        )
    if os.path.isfile(weights) or open_clip.pretrained.is_pretrained_cfg(architecture, weights):
        return
    if os.sep in weights or weights.endswith((".pt", ".bin", ".safetensors", ".pth")):
        raise FileNotFoundError(f"{weights}: no such checkpoint file for {architecture}")
    raise ValueError(
        f"{weights!r} is neither a file nor a tag of {architecture}; its tags are "
        f"{', '.join(tags) or 'none'}"
    )


def _trained_preprocessing(architecture: str, file: str) -> dict[str, Any]:
    """What the architecture's own weights were trained with, for weights that do not tell.

    Mean, std, interpolation and way of resizing, if all of its tags agree on them; otherwise nothing,
    which leaves open_clip's defaults, and a warning names what they do not agree on.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    configs = [open_clip.get_pretrained_cfg(architecture, tag) or {} for tag in tags]
    agreed, differing = {}, []
    for key in ("mean", "std", "interpolation", "resize_mode"):
        values = {str(config[key]): config[key] for config in configs if config.get(key)}
        if len(values) == 1:
            (agreed[key],) = values.values()
        elif values:
            differing.append(f"{key} {' or '.join(sorted(values))}")
    if not differing:
        return agreed
    logger.warning(
        "%s: a file does not say how its images were preprocessed, and the weights of %s were trained "
        "with %s; open_clip's default is taken. Name a tag, or a local-dir with open_clip_config.json, "
        "where it should be another",
        *(file, architecture, ", ".join(differing)),
    )
    return {}


def _activation(architecture: str, weights: str | None, wanted: bool | None) -> bool | None:
    """QuickGELU or not; None leaves the architecture's own."""
    import open_clip

    if wanted is not None or weights is None:
        return wanted
    own = bool((open_clip.get_model_config(architecture) or {}).get("quick_gelu", False))
    if os.path.isfile(weights):
        if not own and f"{architecture}-quickgelu" in open_clip.list_models():
            logger.warning(
                "%s: a file does not say which activation it was trained with; GELU is used. "
                "If it descends from OpenAI's weights (most fine-tuned CLIPs do), load it as "
                "%s-quickgelu or with quick_gelu=True",
                *(weights, architecture),
            )
        return None
    tag = open_clip.get_pretrained_cfg(architecture, weights) or {}
    trained = bool(tag.get("quick_gelu", False))
    return None if trained == own else trained
