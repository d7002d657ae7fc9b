"""OpenOOD's postprocessors side by side on one network, through OpenOOD's evaluator."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import logging
import os
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from openood.evaluation_api.postprocessor import postprocessors as known

from adaneg_openood.benchmark.postprocessor import check_postprocessor_name
from adaneg_openood.openood.benchmark_files import refuse_missing
from adaneg_openood.openood.evaluator import Evaluator
from adaneg_openood.openood.loaders import Encoder
from adaneg_openood.openood.network import PixelsWanted, as_network
from adaneg_openood.openood.network_model import NetworkModel
from adaneg_openood.openood.postprocessors import POSTPROCESSORS, Postprocessor, configured

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
NOTHING = (
    "gives every image the same score, so its numbers would say nothing (a nearest-neighbour method "
    "does where K is larger than its training set)"
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """What a comparison found.

    Attributes:
        table: one row per postprocessor that ran: ``near``/``far`` means of FPR@95 (OOD positive) and
            AUROC, ACC, in percent, and seconds.
        details: postprocessor -> OpenOOD's whole table.
        failed: postprocessor -> why it could not run, or says nothing.
        settings: postprocessor of this package -> its settings, those of the stream included.
    """

    table: pd.DataFrame
    details: dict[str, pd.DataFrame]
    failed: dict[str, str]
    settings: dict[str, dict[str, Any]]

    def to_markdown(self) -> str:
        """The table, and below it what could not run and why."""
        rows = [(name, *(f"{value:.2f}" for value in row)) for name, row in self.table.iterrows()]
        lines = _markdown(("Postprocessor", *self.table.columns), rows)
        notes = [(name, NOTES[name]) for name in self.details if name in NOTES]
        lines += ["", *_markdown(("Runs, but", ""), notes)] if notes else []
        lines += ["", *_markdown(("Cannot run", "Why"), [*self.failed.items()])] if self.failed else []
        return "\n".join(lines) + "\n"

    def support_markdown(self) -> str:
        """Which postprocessors run on an image-text model, without numbers: the table of the docs."""
        rows = []
        for name in sorted([*self.details, *self.failed]):
            # a method that runs by luck of the data keeps its reason
            note = NOTES.get(name) or REASONS.get(name) or self.failed.get(name, "")
            rows.append((name, "yes" if name in self.details else "no", note))
        return "\n".join(_markdown(("Postprocessor", "Runs", ""), rows)) + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def compare(
    net: Any,
    id_name: str,
    postprocessors: Sequence[str] | None = None,
    *,
    data_root: str | os.PathLike[str] = "./data",
    config_root: str | os.PathLike[str] = "./configs",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 200,
    num_workers: int = 4,
    fsood: bool = False,
) -> Comparison:
    """Run postprocessors one after the other; one that fails does not stop the others.

    Images are encoded once for all. A method that differentiates by pixels (ODIN) reads them again.

    Args:
        net: a :class:`~adaneg_openood.openood.CLIPNetwork`, or a bare model of the vision-language
            protocol; or a function without arguments that returns one, which is called once names,
            settings and folders were checked.
        id_name: benchmark, see OpenOOD.
        postprocessors: names; None tries every one there is.
        data_root: OpenOOD's data folder.
        config_root: OpenOOD's ``configs`` folder, which its wheel lacks. Nothing is downloaded.
        settings: this package's methods -> settings that override their YAML.
        batch_size: for encoding.
        num_workers: of the data loaders.
        fsood: full-spectrum evaluation.

    Raises:
        ValueError: an unknown name or setting, settings of a method that does not run, values of
            ``cache`` or ``skip_broken`` that differ between methods, or a benchmark OpenOOD lacks.
        FileNotFoundError: lists or images are missing.
    """
    refuse_missing(data_root, id_name)
    names = list(known if postprocessors is None else postprocessors)
    given = settings or {}
    for name in (*names, *given):
        check_postprocessor_name(name, known)
    own = {
        name: configured(name, id_name, config_root, **given.get(name, {}))
        for name in names
        if name in POSTPROCESSORS
    }
    refuse_unused(given, own)
    cache, skip_broken = (_agreed(name, own) for name in ("cache", "skip_broken"))
    net = as_network(net if hasattr(net, "encode_image") else net(), id_name)
    encoder = Encoder(NetworkModel(net), cache, bool(skip_broken))
    of_own = {name: one.settings.model_dump(mode="json") for name, one in own.items()}
    found = Comparison(pd.DataFrame(), {}, {}, of_own)
    rows: dict[str, list[float]] = {}
    folder = Path(config_root) / "postprocessors"
    for name in names:
        start = time.perf_counter()
        make = functools.partial(
            Evaluator,
            *(net, id_name, data_root, config_root),
            postprocessor_name=name,
            postprocessor=own.get(name),
            batch_size=batch_size,
            num_workers=num_workers,
        )
        try:
            with contextlib.redirect_stdout(io.StringIO()), _seeded():
                if name not in own and not (folder / f"{name}.yml").is_file():
                    raise FileNotFoundError(f"no {name}.yml in {folder}: give OpenOOD's configs folder")
                try:
                    evaluator = make(encoder=encoder)
                    table = evaluator.eval_ood(fsood=fsood, progress=False)
                except PixelsWanted:
                    evaluator = make()
                    table = evaluator.eval_ood(fsood=fsood, progress=False)
        except Exception as error:  # anything may go wrong inside a method
            found.failed[name] = _why(name, error)
            logger.info("%s cannot run: %s", name, found.failed[name])
            logger.debug("%s", traceback.format_exc())
            continue
        if _says_nothing(evaluator.scores):
            found.failed[name] = NOTHING
            continue
        found.details[name] = table
        near, far, seconds = table.loc["nearood"], table.loc["farood"], time.perf_counter() - start
        both = [float(part[metric]) for part in (near, far) for metric in ("FPR@95", "AUROC")]
        rows[name] = [*both, float(far["ACC"]), seconds]
        logger.info("%s: far AUROC %.2f", name, far["AUROC"])
    columns = ["near FPR@95", "near AUROC", "far FPR@95", "far AUROC", "ACC", "seconds"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return dataclasses.replace(found, table=frame.rename_axis("postprocessor"))


def refuse_unused(given: Iterable[str], own: Collection[str]) -> None:
    """Raise a ValueError for settings of a method that does not run, or that is not of this package."""
    for name in given:
        if name not in own:
            why = "is not among the methods that run"
            if name not in POSTPROCESSORS:
                why = "is not of this package: its settings stand in its file in OpenOOD's configs"
            raise ValueError(f"settings are given for {name}, which {why}")


def _agreed(name: str, own: Mapping[str, Postprocessor]) -> Any:
    """The value of a setting that concerns the images, which all methods share; None without methods."""
    values = {method: getattr(one.settings, name) for method, one in own.items()}
    if len(set(values.values())) > 1:
        told = ", ".join(f"{method} {value}" for method, value in values.items())
        raise ValueError(f"{name}: images are encoded once for all methods, whose values differ: {told}")
    return next(iter(values.values()), None)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The same draws whatever ran before; global generators are left as they were."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            yield
    finally:
        np.random.set_state(state)


def _says_nothing(scores: Mapping[str, Any]) -> bool:
    """Whether all images of all sets have one score."""
    sets = [scores["id"]["test"], *scores["ood"]["near"].values(), *scores["ood"]["far"].values()]
    values = np.unique(np.concatenate([np.asarray(conf, dtype=np.float64) for _, conf, _ in sets]))
    return int((~np.isnan(values)).sum()) == 1  # an ID set's are NaN where streams have their own


def _why(name: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    said = f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
    return f"{REASONS[name]} ({said})" if name in REASONS else said
