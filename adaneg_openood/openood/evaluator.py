"""OpenOOD's evaluators for those who want more: any device, several streams, raw scores, resume."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import openood.evaluation_api.evaluator as api
import torch
from openood.evaluators.ood_evaluator import OODEvaluator

from adaneg_openood.openood import compat
from adaneg_openood.openood.benchmark_files import refuse_missing
from adaneg_openood.openood.loaders import Encoder, feature_loaders
from adaneg_openood.openood.network import as_network
from adaneg_openood.openood.network_model import device_of
from adaneg_openood.openood.postprocessors import POSTPROCESSORS, Postprocessor

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.evaluation import Run


class Evaluator(api.Evaluator):  # type: ignore[misc]
    """Drop-in for ``openood.evaluation_api.Evaluator``.

    It runs on CPU and MPS too, also with OpenOOD's own postprocessors, and it names everything that is
    missing of a benchmark before anything is loaded. With this package's postprocessors,
    :meth:`eval_streams` adds what one evaluation cannot tell.

    Args:
        net: the network. :class:`~adaneg_openood.openood.CLIPNetwork` brings its preprocessing; a bare
            model of the vision-language protocol is made into one, with the benchmark's class names.
        id_name: of the benchmark, see OpenOOD.
        device: where the network is moved to; None leaves it where it is.
        encoder: gives every method features instead of pixels, so that no image is read again.
        download: let OpenOOD download what is missing, instead of an error that lists it.
        kwargs: OpenOOD's own.

    Raises:
        FileNotFoundError: lists or images are missing.
    """

    def __init__(
        self,
        net: Any,
        id_name: str,
        data_root: str | os.PathLike[str] = "./data",
        config_root: str | os.PathLike[str] = "./configs",
        preprocessor: Any = None,
        *,
        device: torch.device | str | None = None,
        encoder: Encoder | None = None,
        download: bool = False,
        **kwargs: Any,
    ) -> None:
        if not download:
            refuse_missing(data_root, id_name)
        net = as_network(net, id_name)
        if device is not None:
            net = net.to(device)
        if preprocessor is None:
            preprocessor = getattr(net, "preprocess", None)
        with compat.cuda_calls_go_to(device_of(net)), _loaders_of_features(encoder):
            super().__init__(net, id_name, str(data_root), str(config_root), preprocessor, **kwargs)

    def eval_acc(self, data_name: str = "id") -> float:
        """As OpenOOD's, on any device."""
        with compat.cuda_calls_go_to(device_of(self.net)):
            return float(super().eval_acc(data_name))

    def eval_ood(self, fsood: bool = False, progress: bool = True) -> pd.DataFrame:
        """As OpenOOD's, on any device."""
        with compat.cuda_calls_go_to(device_of(self.net)):
            return super().eval_ood(fsood, progress)

    def eval_streams(
        self,
        seeds: Sequence[int] = (0, 1, 2),
        *,
        fsood: bool = False,
        save_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> Run:
        """Several stream orders: mean and spread, both FPR95 conventions, ACC of the detector.

        Args:
            seeds: of the streams.
            fsood: covariate-shifted ID sets count as ID.
            save_dir: where raw scores are kept, and taken up from after an interruption; ``Run.load``
                reads them.
            progress: show progress bars.

        Raises:
            TypeError: the postprocessor is not one of this package's.
        """
        if not isinstance(self.postprocessor, Postprocessor):
            raise TypeError(
                f"streams are for {', '.join(POSTPROCESSORS)}; "
                f"{type(self.postprocessor).__name__} has none"
            )
        sets = self.dataloader_dict
        csid = list(sets["csid"].values()) if fsood else []
        oods = {split: sets["ood"][split] for split in ("near", "far")}
        ids = [sets["id"]["test"], *csid]
        return self.postprocessor.replay(
            self.net, ids, oods, seeds=seeds, folder=save_dir, progress=progress
        )


@contextmanager
def _loaders_of_features(encoder: Encoder | None) -> Iterator[None]:
    """Within the block, OpenOOD's evaluator makes loaders whose batches hold features."""
    original = api.get_id_ood_dataloader
    if encoder is not None:
        api.get_id_ood_dataloader = lambda *args, **kwargs: feature_loaders(
            original(*args, **kwargs), encoder
        )
    try:
        yield
    finally:
        api.get_id_ood_dataloader = original


class ClassicEvaluator(OODEvaluator):  # type: ignore[misc]
    """The evaluator ``adaneg`` of OpenOOD's classic pipeline: its ``ood`` evaluator on any device.

    For this package's methods it also runs as many stream orders as ``evaluator.n_streams`` in the
    configuration says. Their means, spreads and both FPR95 conventions are printed, and written to
    ``streams.csv`` and ``streams.json`` in the output folder; raw scores go to ``streams/``.
    """

    def eval_acc(self, net: Any, *args: Any, **kwargs: Any) -> Any:
        with compat.cuda_calls_go_to(device_of(net)):
            return super().eval_acc(net, *args, **kwargs)

    def eval_ood(
        self,
        net: Any,
        id_data_loaders: Any,
        ood_data_loaders: Any,
        postprocessor: Any,
        fsood: bool = False,
    ) -> None:
        with compat.cuda_calls_go_to(device_of(net)):
            super().eval_ood(net, id_data_loaders, ood_data_loaders, postprocessor, fsood)
        n_streams = self.config.evaluator.n_streams or 0
        if not n_streams or not isinstance(postprocessor, Postprocessor):
            return
        csid = list(ood_data_loaders["csid"].values()) if fsood else []
        oods = {split: ood_data_loaders[f"{split}ood"] for split in ("near", "far")}
        folder = os.path.join(str(self.config.output_dir), "streams")
        ids = [id_data_loaders["test"], *csid]
        run = postprocessor.replay(net, ids, oods, seeds=range(n_streams), folder=folder)
        run.to_csv(f"{folder}.csv")
        run.to_json(f"{folder}.json")
        # OpenOOD writes its own tables to stdout, from where they also go to its log file
        sys.stdout.write(f"{n_streams} stream order(s):\n{run.format_table(postprocessor.method)}\n")
        sys.stdout.write(f"{run.format_warnings()}\n" if run.warnings else "")
