"""OpenOOD's postprocessors side by side on one network, through OpenOOD's evaluator."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adaneg_openood.openood.network import CLIPNetwork, as_network, encode_with_gradients

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

# Why some of OpenOOD's postprocessors cannot run on an image-text model. Each is tried all the same; the
# reason stands beside the error, so that an OpenOOD that lifts it shows at once.
REASONS = {
    "adascale_a": "asks for the feature size of a ResNet backbone and needs statsmodels",
    "adascale_l": "asks for the feature size of a ResNet backbone and needs statsmodels",
    "conf_branch": "needs a network trained with a confidence branch",
    "cutpaste": "anomaly detector with a training of its own",
    "draem": "anomaly detector with a training of its own",
    "dsvdd": "needs a network trained by Deep SVDD",
    "ensemble": "needs several trained networks",
    "gmm": "fits a mixture to each stage of a ResNet",
    "godin": "needs a network trained with Generalized ODIN's head",
    "gram": "needs the feature maps of a ResNet's stages",
    "grood": "mixes feature maps in the middle of a ResNet",
    "mcd": "needs a network trained with two heads",
    "mds_ensemble": "needs the feature maps of a ResNet's stages",
    "mos": "needs a network trained with grouped softmax heads",
    "opengan": "needs a trained GAN discriminator",
    "openmax": "needs libmr, which has to be built",
    "patchcore": "anomaly detector on ResNet feature maps",
    "rankfeat": "removes a direction of ResNet feature maps",
    "rd4ad": "anomaly detector with a trained decoder",
    "scale": "divides sums of features, which need not be positive in CLIP, so it may end in NaN",
    "rotpred": "needs a network trained to predict rotations",
    "ssd": "needs the feature maps of a ResNet's stages",
    "t2fnorm": "needs a network trained with feature normalisation",
    "temp_scaling": "asks for a CUDA device by name, so it runs with CUDA only",
}
# Those that run, but are not the method that their paper describes.
NOTES = {
    "ash": "prunes the unit image feature; the paper prunes ResNet feature maps",
    "cider": "on CLIP's features, not on those of a network trained by CIDER",
    "dropout": "CLIP has no dropout, so this is msp",
    "npos": "on CLIP's features, not on those of a network trained by NPOS",
    "react": "cuts off the unit image feature, which may be negative; the paper cuts off ReLU features",
    "reweightood": "on CLIP's features, not on those of a network trained for it",
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found.

    Attributes:
        table: one row a postprocessor that ran: ``near``/``far`` means of FPR@95 (OOD positive) and
            AUROC, ACC, in percent, and seconds.
        details: postprocessor -> OpenOOD's whole table.
        failed: postprocessor -> why it could not run.
    """

    table: pd.DataFrame
    details: dict[str, pd.DataFrame]
    failed: dict[str, str]

    def to_markdown(self) -> str:
        """The table, and below it what could not run and why."""
        head = ["Postprocessor", *map(str, self.table.columns)]
        lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for name, row in self.table.iterrows():
            lines.append("| " + " | ".join([str(name), *(f"{value:.2f}" for value in row)]) + " |")
        notes = {name: NOTES[name] for name in self.details if name in NOTES}
        if notes:
            lines += ["", "| Runs, but | |", "|---|---|"]
            lines += [f"| {name} | {_cell(note)} |" for name, note in notes.items()]
        if self.failed:
            lines += ["", "| Cannot run | Why |", "|---|---|"]
            lines += [f"| {name} | {_cell(why)} |" for name, why in self.failed.items()]
        return "\n".join(lines) + "\n"

    def support_markdown(self) -> str:
        """Which postprocessors run on an image-text model, without numbers: the table of the docs."""
        lines = ["| Postprocessor | Runs | |", "|---|---|---|"]
        for name in sorted([*self.details, *self.failed]):
            # a method that runs by luck of the data keeps its reason
            note = NOTES.get(name) or REASONS.get(name) or self.failed.get(name, "")
            lines.append(f"| {name} | {'yes' if name in self.details else 'no'} | {_cell(note)} |")
        return "\n".join(lines) + "\n"


class FeatureMemo:
    """A model that encodes an image once, however many postprocessors ask for it.

    Images are told apart by their pixels. Pixels that want gradients are not looked up.

    Args:
        model: of the vision-language protocol.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._known: dict[bytes, Tensor] = {}

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D)."""
        if pixels.requires_grad:
            return encode_with_gradients(self._model, pixels)
        data = pixels.detach().cpu().contiguous().numpy()
        keys = [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in data]
        new = [row for row, key in enumerate(keys) if key not in self._known]
        if new:
            for row, feature in zip(new, self._model.encode_image(pixels[new])):
                self._known[keys[row]] = feature.detach()
        return torch.stack([self._known[key] for key in keys])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_model"], name)


def available() -> list[str]:
    """Every postprocessor that OpenOOD's evaluator knows, this package's among them."""
    from openood.evaluation_api.postprocessor import postprocessors

    return list(postprocessors)


def compare(
    net: Any,
    id_name: str,
    postprocessors: Sequence[str] | None = None,
    *,
    data_root: str | os.PathLike[str] = "./data",
    config_root: str | os.PathLike[str] = "./configs",
    settings: dict[str, dict[str, Any]] | None = None,
    batch_size: int = 200,
    num_workers: int = 4,
    fsood: bool = False,
    verbose: bool = False,
) -> Comparison:
    """Run postprocessors one after the other; one that fails does not stop the others.

    Args:
        net: a :class:`~adaneg_openood.openood.CLIPNetwork`, or a bare model of the vision-language
            protocol; or a function without arguments that returns one, which is called once names and
            folders were checked. Images are encoded once for all.
        id_name: benchmark, see OpenOOD.
        postprocessors: names; None tries every one there is.
        data_root: OpenOOD's data folder.
        config_root: OpenOOD's ``configs`` folder, which its wheel lacks. Nothing is downloaded.
        settings: this package's methods -> settings that override their YAML.
        batch_size: for encoding.
        num_workers: of the data loaders.
        fsood: full-spectrum evaluation.
        verbose: let OpenOOD print.

    Raises:
        ValueError: an unknown name, or a benchmark OpenOOD does not have.
        FileNotFoundError: lists or images are missing.
    """
    import pandas as pd

    from adaneg_openood.openood.benchmark_files import refuse_missing
    from adaneg_openood.openood.settings import unknown_message

    refuse_missing(data_root, id_name)
    known = available()
    names = list(known if postprocessors is None else postprocessors)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError("; ".join(unknown_message("postprocessor", name, known) for name in unknown))
    if not hasattr(net, "encode_image"):
        net = net()
    memo = _with_memo(as_network(net, id_name))
    details: dict[str, pd.DataFrame] = {}
    rows: dict[str, dict[str, float]] = {}
    failed: dict[str, str] = {}
    for name in names:
        start = time.perf_counter()
        log = io.StringIO()
        quiet = contextlib.nullcontext() if verbose else contextlib.redirect_stdout(log)
        try:
            with quiet:
                table = _evaluate(
                    memo,
                    id_name,
                    name,
                    str(data_root),
                    str(config_root),
                    (settings or {}).get(name, {}),
                    {"batch_size": batch_size, "num_workers": num_workers},
                    fsood,
                )
        except Exception as error:  # anything may go wrong inside a method
            failed[name] = _why(name, error)
            logger.info("%s cannot run: %s", name, failed[name])
            logger.debug("%s", traceback.format_exc())
            continue
        details[name] = table
        rows[name] = {
            **{
                f"{split} {metric}": float(table[metric][f"{split}ood"])
                for split in ("near", "far")
                for metric in ("FPR@95", "AUROC")
            },
            "ACC": float(table["ACC"]["farood"]),
            "seconds": time.perf_counter() - start,
        }
        logger.info("%s: far AUROC %.2f", name, rows[name]["far AUROC"])
    columns = ["near FPR@95", "near AUROC", "far FPR@95", "far AUROC", "ACC", "seconds"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return Comparison(frame.rename_axis("postprocessor"), details, failed)


def _evaluate(
    net: Any,
    id_name: str,
    name: str,
    data_root: str,
    config_root: str,
    settings: dict[str, Any],
    loading: dict[str, Any],
    fsood: bool,
) -> pd.DataFrame:
    from adaneg_openood.openood.evaluator import Evaluator
    from adaneg_openood.openood.postprocessors import POSTPROCESSORS

    chosen: dict[str, Any] = {"postprocessor_name": name}
    if name in POSTPROCESSORS:
        chosen["postprocessor"] = configured(name, id_name, config_root, settings)
    elif not (Path(config_root) / "postprocessors" / f"{name}.yml").is_file():
        raise FileNotFoundError(
            f"no {name}.yml in {Path(config_root) / 'postprocessors'}: give OpenOOD's configs folder"
        )
    evaluator = Evaluator(net, id_name, data_root, config_root, **chosen, **loading)
    return evaluator.eval_ood(fsood=fsood, progress=False)


def configured(name: str, id_name: str, config_root: str, settings: dict[str, Any]) -> Any:
    """One of this package's postprocessors, of the YAML in ``config_root`` (else the packaged one).

    Args:
        settings: override the YAML's.
    """
    from openood.evaluation_api.postprocessor import get_postprocessor

    built = get_postprocessor(config_root, name, id_name)
    if not settings:
        return built
    return type(built)(built.config, config_path=built.config_path, **settings)


def _with_memo(net: Any) -> Any:
    """A network like ``net`` whose images are encoded once; others than ours are left as they are."""
    if not isinstance(net, CLIPNetwork):
        return net
    return CLIPNetwork(
        FeatureMemo(net.model),
        net.class_names,
        template=net.template,
        id_features=net.id_features,
        negative_features=net.negative_features,
    )


def _why(name: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
    return f"{REASONS[name]} ({said})" if name in REASONS else said


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
