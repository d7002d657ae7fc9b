"""OpenOOD's Evaluator for those who want more: any device, several streams, raw scores, resume."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from openood.evaluation_api import Evaluator as OpenOODEvaluator

from adaneg_openood.openood import compat
from adaneg_openood.openood.benchmark_files import refuse_missing
from adaneg_openood.openood.network import as_network
from adaneg_openood.openood.text_tower import device_of

if TYPE_CHECKING:
    import pandas as pd

    from adaneg_openood.evaluation import Run


class Evaluator(OpenOODEvaluator):  # type: ignore[misc]
    """Drop-in for ``openood.evaluation_api.Evaluator``.

    It runs on CPU and MPS too, also with OpenOOD's own postprocessors, and it names everything that is
    missing of a benchmark before anything is loaded. With this package's postprocessors,
    :meth:`eval_streams` adds what one evaluation cannot tell.

    Args:
        net: the network. :class:`~adaneg_openood.openood.CLIPNetwork` brings its preprocessing; a bare
            model of the vision-language protocol is made into one, with the benchmark's class names.
        id_name: of the benchmark, see OpenOOD.
        device: where the network is moved to; None leaves it where it is.
        feature_dir: folder where encoded images are kept, so that an interrupted evaluation, or the next
            one with other settings, does not encode them again.
        download: let OpenOOD download what is missing, instead of an error that lists it.
        kwargs: OpenOOD's own.

    Raises:
        FileNotFoundError: lists or images are missing.
    """

    def __init__(
        self,
        net: Any,
        id_name: str,
        data_root: str = "./data",
        config_root: str = "./configs",
        preprocessor: Any = None,
        *,
        device: torch.device | str | None = None,
        feature_dir: str | os.PathLike[str] | None = None,
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
        if feature_dir is not None:
            self._keep_features(os.fspath(feature_dir), str(config_root), id_name, kwargs)
        with compat.cuda_calls_go_to(device_of(net)):
            super().__init__(net, id_name, str(data_root), str(config_root), preprocessor, **kwargs)

    @staticmethod
    def _keep_features(folder: str, config_root: str, id_name: str, kwargs: dict[str, Any]) -> None:
        """Tell the postprocessor where encoded images are kept, before OpenOOD sets it up."""
        from openood.evaluation_api.postprocessor import get_postprocessor

        from adaneg_openood.openood.postprocessors import POSTPROCESSORS, TextPostprocessor

        name = kwargs.get("postprocessor_name")
        if kwargs.get("postprocessor") is None and name in POSTPROCESSORS:
            kwargs["postprocessor"] = get_postprocessor(config_root, name, id_name)
        if not isinstance(kwargs.get("postprocessor"), TextPostprocessor):
            raise TypeError(
                "feature_dir is for adaneg, neglabel and mcm; OpenOOD's methods encode themselves"
            )
        kwargs["postprocessor"].feature_dir = folder

    def eval_acc(self, data_name: str = "id") -> float:
        """As OpenOOD's, on any device."""
        with compat.cuda_calls_go_to(device_of(self.net)):
            return float(super().eval_acc(data_name))

    def eval_ood(self, fsood: bool = False, progress: bool = True) -> pd.DataFrame:
        """As OpenOOD's, on any device."""
        with compat.cuda_calls_go_to(device_of(self.net)):
            return super().eval_ood(fsood, progress)

    def accuracies(self, results: Run) -> dict[str, float]:
        """ID accuracy in percent: by the network's zero-shot prediction, and by the detector's own.

        Args:
            results: of :meth:`eval_streams`; the detector's is their mean over sets and streams.
        """
        return {"zero_shot": self.eval_acc(), "detector": float(results.records["ACC"].mean())}

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
            save_dir: keep raw scores, and resume from them; see
                :func:`~adaneg_openood.openood.stream_results.stream_results`.
            progress: show progress bars.

        Raises:
            TypeError: the postprocessor is not one of this package's.
        """
        from adaneg_openood.openood.postprocessors import TextPostprocessor
        from adaneg_openood.openood.stream_results import stream_results

        if not isinstance(self.postprocessor, TextPostprocessor):
            raise TypeError(
                f"streams are for adaneg, neglabel and mcm; {type(self.postprocessor).__name__} has none"
            )
        csid = list(self.dataloader_dict["csid"].values()) if fsood else []
        ood = {split: self.dataloader_dict["ood"][split] for split in ("near", "far")}
        return stream_results(
            self.postprocessor,
            self.net,
            [self.dataloader_dict["id"]["test"], *csid],
            ood,
            seeds=seeds,
            save_dir=save_dir,
            progress=progress,
        )
