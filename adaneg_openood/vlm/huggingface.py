"""CLIP and SigLIP of Hugging Face ``transformers`` (the extra ``hf``)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable

import torch
from torch import Tensor, nn

from adaneg_openood.vlm.base import TwoTowerModel
from adaneg_openood.vlm.hub import hub_access

if TYPE_CHECKING:
    from PIL.Image import Image


class HuggingFaceClip(TwoTowerModel):
    """A loaded ``CLIPModel``, ``SiglipModel`` or any with ``get_image_features``.

    Args:
        model: the towers.
        tokenizer: its ``transformers`` tokenizer.
        image_processor: its ``transformers`` image processor.
        name: for provenance.
        precision: see :class:`~adaneg_openood.vlm.base.TwoTowerModel`.
        preprocessing: ``"model"`` is the image processor's; ``"paper"`` resizes to 256 and crops
            224, or the same ratio at other sizes, with the processor's normalisation.

    Raises:
        TypeError: the model has no image and text tower.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        image_processor: Any,
        name: str = "hf:custom",
        *,
        precision: str = "auto",
        preprocessing: str = "model",
    ) -> None:
        if not hasattr(model, "get_image_features") or not hasattr(model, "logit_scale"):
            raise TypeError(
                f"{type(model).__name__} has no image and text tower of one space; CLIPModel and "
                "SiglipModel have"
            )
        transform, described = _transform(image_processor, preprocessing)
        config: Any = model.config
        bias = getattr(model, "logit_bias", None)
        super().__init__(
            model,
            transform,
            name=name,
            dim=_width(model, config),
            logit_scale=model.logit_scale.detach().float().exp().item(),  # type: ignore[union-attr,operator]
            logit_bias=0.0 if bias is None else bias.detach().float().item(),  # type: ignore[union-attr,operator]
            context_length=int(config.text_config.max_position_embeddings),
            precision=precision,
            preprocessing=described,
        )
        self.tokenizer = tokenizer
        # SigLIP was trained without a mask: padding is part of its text
        self._masked = "siglip" not in str(getattr(config, "model_type", "")).lower()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        preprocessing: str = "model",
        device: torch.device | str = "cpu",
        precision: str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> HuggingFaceClip:
        """Load a folder that ``save_pretrained`` wrote, or a name on the Hub.

        Code that comes with a model is never run, and pickled weights are read as tensors only.

        Raises:
            ImportError: ``transformers`` is not installed.
            ValueError: no such model, or it cannot be loaded.
        """
        from adaneg_openood.vlm.preprocessing import check_preprocessing

        check_preprocessing(preprocessing)
        try:
            from transformers import AutoImageProcessor, AutoModel, AutoTokenizer
        except ImportError as error:
            raise ImportError(
                f'hf:{name} needs transformers: pip install "adaneg_openood[hf]"'
            ) from error
        options: dict[str, Any] = {"trust_remote_code": False}
        if cache_dir is not None:
            options["cache_dir"] = os.fspath(cache_dir)
        place = os.path.expanduser(name)
        try:
            with hub_access(not os.path.isdir(place)) as offline, torch.random.fork_rng(devices=[]):
                tokenizer = AutoTokenizer.from_pretrained(place, **options)
                processor = AutoImageProcessor.from_pretrained(place, **options)
                model = AutoModel.from_pretrained(place, weights_only=True, **options)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"hf:{name}: cannot be loaded as a CLIP or SigLIP model ({offline or error}); give a "
                "folder that save_pretrained wrote for the model, the tokenizer and the image processor"
            ) from error
        return cls(
            model.float().to(device),
            tokenizer,
            processor,
            name=f"hf:{name}",
            precision=precision,
            preprocessing=preprocessing,
        )

    def token_count(self, text: str) -> int | None:
        return len(self.tokenizer(text, truncation=False, verbose=False)["input_ids"])

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        return _pooled(self.model.get_image_features(pixel_values=pixels))  # type: ignore[operator]

    def _tokenize(self, texts: list[str]) -> Any:
        return self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )

    def _encode_tokens(self, tokens: Any) -> Tensor:
        inputs = {"input_ids": tokens["input_ids"].to(self.device)}
        if self._masked and "attention_mask" in tokens:
            inputs["attention_mask"] = tokens["attention_mask"].to(self.device)
        return _pooled(self.model.get_text_features(**inputs))  # type: ignore[operator]


class _Processor:
    """A class, not a closure, so that data loader workers can receive it."""

    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor

    def __call__(self, image: Image) -> Tensor:
        pixels = self.image_processor(images=image.convert("RGB"), return_tensors="pt")
        return pixels["pixel_values"][0].float()


def _transform(processor: Any, preprocessing: str) -> tuple[Callable[[Image], Tensor], str]:
    from adaneg_openood.vlm.preprocessing import check_preprocessing, paper_preprocess

    check_preprocessing(preprocessing)
    if preprocessing == "paper":
        return paper_preprocess(_size(processor), processor.image_mean, processor.image_std)
    settings = processor.to_dict()
    kept = ("size", "crop_size", "do_resize", "do_center_crop", "resample", "image_mean", "image_std")
    listed = ", ".join(f"{key}={settings[key]}" for key in kept if settings.get(key) is not None)
    return _Processor(processor), f"model: {type(processor).__name__}({listed})"


def _size(processor: Any) -> tuple[int, int]:
    """The input size: of the crop where there is one."""
    size = processor.crop_size if getattr(processor, "do_center_crop", False) else processor.size
    if isinstance(size, int):
        return size, size
    side = size.get("shortest_edge")
    return (side, side) if side else (size["height"], size["width"])


def _pooled(output: Any) -> Tensor:
    """transformers 5 returns an output object, 4 the tensor."""
    return output if isinstance(output, Tensor) else output.pooler_output


def _width(model: Any, config: Any) -> int:
    projection = getattr(config, "projection_dim", None)
    if getattr(model, "text_projection", None) is not None and projection is not None:
        return int(projection)
    return int(getattr(config.text_config, "projection_size", None) or config.text_config.hidden_size)
