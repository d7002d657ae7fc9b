"""OpenAI's ``clip``: a model it loaded, or one loaded through it."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Callable

import torch
from torch import Tensor, nn

from adaneg_openood.vlm.base import TwoTowerModel
from adaneg_openood.vlm.clip_import import import_clip

if TYPE_CHECKING:
    from PIL.Image import Image


class OpenAIClip(TwoTowerModel):
    """A loaded OpenAI CLIP.

    Args:
        model: what ``clip.load`` or ``clip.model.build_model`` returned, not a TorchScript module.
        preprocess: what ``clip.load`` returned; None builds the same transform.
        name: for provenance.
        tokenizer: list of N texts -> (N, context) integers; None is open_clip's, the same vocabulary.
        precision: see :class:`~adaneg_openood.vlm.base.TwoTowerModel`.
        preprocessing: ``"model"`` or ``"paper"``, of which the second ignores ``preprocess``; or one
            line about a ``preprocess`` of your own.

    Source: https://github.com/openai/CLIP
    """

    def __init__(
        self,
        model: nn.Module,
        preprocess: Callable[[Image], Tensor] | None = None,
        name: str = "clip:custom",
        *,
        tokenizer: Callable[[list[str]], Tensor] | None = None,
        precision: str = "auto",
        preprocessing: str = "model",
    ) -> None:
        from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
        from open_clip.transform import PreprocessCfg

        from adaneg_openood.vlm.preprocessing import build_preprocess

        context = int(model.context_length)  # type: ignore[arg-type]
        if tokenizer is None:
            from open_clip import SimpleTokenizer

            tokenizer = SimpleTokenizer(context_length=context)
        if preprocess is None or preprocessing == "paper":
            config = PreprocessCfg(
                size=int(model.visual.input_resolution),  # type: ignore[union-attr,arg-type]
                mean=OPENAI_DATASET_MEAN,
                std=OPENAI_DATASET_STD,
            )
            preprocess, preprocessing = build_preprocess(config, preprocessing)
        super().__init__(
            model,
            preprocess,
            name=name,
            dim=int(model.text_projection.shape[1]),  # type: ignore[union-attr,index]
            logit_scale=model.logit_scale.detach().float().exp().item(),  # type: ignore[union-attr,operator]
            context_length=context,
            precision=precision,
            preprocessing=preprocessing,
        )
        self.tokenizer = tokenizer

    @classmethod
    def load(
        cls,
        name: str,
        *,
        preprocessing: str = "model",
        device: torch.device | str = "cpu",
        precision: str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> OpenAIClip:
        """Load through the ``clip`` package.

        Args:
            name: ``"ViT-B/16"`` and the like, which ``clip`` downloads once; or a local file with a
                state dict.
            preprocessing: ``"model"`` or ``"paper"``.
            device: where to put it; the weights are float32 and ``precision`` says how they run.
            precision: see :class:`~adaneg_openood.vlm.base.TwoTowerModel`.
            cache_dir: where ``clip`` keeps downloads.

        Raises:
            ImportError: no such package, or the wrong one.
            ValueError: unknown name, or a file that cannot be read without unpickling code.
        """
        from adaneg_openood.vlm.checkpoints import check_checkpoint
        from adaneg_openood.vlm.preprocessing import check_preprocessing

        check_preprocessing(preprocessing)
        package = import_clip()
        if os.path.isfile(name):
            check_checkpoint(name)
            state = _read_state(name)
            try:
                # weights are drawn before they are read: not from the caller's random state
                with torch.random.fork_rng(devices=[]):
                    model = importlib.import_module("clip.model").build_model(state)
            except (KeyError, RuntimeError) as error:
                raise ValueError(f"{name}: is no state dict of OpenAI's CLIP, {error}") from error
        elif name in package.available_models():
            root = None if cache_dir is None else os.fspath(cache_dir)
            try:
                with torch.random.fork_rng(devices=[]):
                    model, _ = package.load(name, device="cpu", download_root=root)
            except OSError as error:
                raise OSError(f"clip could not download {name} ({error}); give a local file") from error
        else:
            known = ", ".join(package.available_models())
            raise ValueError(f"{name!r} is neither a file nor a model of clip's; those are {known}")
        return cls(
            model.float().to(device),
            name=f"clip:{name}",
            precision=precision,
            preprocessing=preprocessing,
        )

    def token_count(self, text: str) -> int | None:
        encode = getattr(self.tokenizer, "encode", None)
        return len(encode(text)) + 2 if callable(encode) else None

    def _encode_pixels(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)  # type: ignore[operator]

    def _tokenize(self, texts: list[str]) -> Tensor:
        return self.tokenizer(texts)

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens.to(self.device))  # type: ignore[operator]


def _read_state(file: str) -> dict[str, Tensor]:
    if file.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(file)
    state = torch.load(file, map_location="cpu", weights_only=True)
    return dict(state.get("state_dict", state))
