"""Makes OpenOOD know this package's methods, network and evaluator; OpenOOD's files stay untouched.

OpenOOD resolves most names inside functions that are copied by value into many modules. The hooks
below replace each such function right after the module that defines it was executed, so every copy made
afterwards is ours; copies made before (OpenOOD imported first) are replaced where they are.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Callable

from adaneg_openood.detectors import DETECTORS
from adaneg_openood.openood import compat
from adaneg_openood.openood.hooks import ImportHooks
from adaneg_openood.openood.packaged import EVALUATOR, NETWORK
from adaneg_openood.vlm.loading import pkg_resources_packaging

_hooks: ImportHooks | None = None


def register() -> None:
    """Register with OpenOOD, now or whenever it is imported; calling it again changes nothing."""
    global _hooks
    if _hooks is None:
        around: dict[str, Any] = {
            name: functools.partial(compat.placeholders, needs) for name, needs in compat.NEEDS.items()
        }
        if compat.installed():  # clip is somebody else's package
            around["openood.networks.clip"] = pkg_resources_packaging
            around["clip.clip"] = pkg_resources_packaging
        _hooks = ImportHooks(
            around,
            {
                "openood.evaluation_api.datasets": _extend_datasets,
                "openood.evaluation_api.evaluator": _extend_evaluator_class,
                "openood.evaluation_api.postprocessor": _extend_api_postprocessors,
                "openood.evaluation_api.preprocessor": _extend_preprocessing,
                "openood.evaluators.utils": _extend_get_evaluator,
                "openood.networks.utils": _extend_get_network,
                "openood.postprocessors.info": _extend_class_counts,
                "openood.postprocessors.utils": _extend_get_postprocessor,
                "openood.preprocessors.transform": _extend_transforms,
                "openood.utils.launch": _guard_launch,
            },
        )
    _hooks.install()


def _replace(module: ModuleType, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a module's function, and its copies in other OpenOOD modules, unless done before."""
    original = getattr(module, name)
    if hasattr(original, "_adaneg_original"):
        return
    ours = make(original)
    ours._adaneg_original = original
    setattr(module, name, ours)
    for copy in _openood_modules():
        if vars(copy).get(name) is original:
            setattr(copy, name, ours)


def _openood_modules() -> Iterator[ModuleType]:
    for name, module in list(sys.modules.items()):
        if module is not None and (name == "openood" or name.startswith("openood.")):
            yield module


def _extend_api_postprocessors(module: ModuleType) -> None:
    from adaneg_openood.benchmark.postprocessor import check_postprocessor_name
    from adaneg_openood.openood.postprocessors import POSTPROCESSORS, configured

    module.postprocessors.update(POSTPROCESSORS)

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def get_postprocessor(config_root: str, postprocessor_name: str, id_data_name: str) -> Any:
            # OpenOOD would try to download the YAML of a name that it does not know
            check_postprocessor_name(postprocessor_name, module.postprocessors)
            if postprocessor_name in POSTPROCESSORS:
                return configured(postprocessor_name, id_data_name, config_root)
            return original(config_root, postprocessor_name, id_data_name)

        return get_postprocessor

    _replace(module, "get_postprocessor", make)


def _extend_get_postprocessor(module: ModuleType) -> None:
    def make(original: Any) -> Any:
        @functools.wraps(original)
        def get_postprocessor(config: Any) -> Any:
            from openood.evaluation_api.postprocessor import postprocessors

            from adaneg_openood.benchmark.postprocessor import check_postprocessor_name
            from adaneg_openood.openood.postprocessors import POSTPROCESSORS

            name = config.postprocessor.name
            if name in POSTPROCESSORS:
                _refuse_many_gpus(config)
                return POSTPROCESSORS[name](config)
            try:
                return original(config)
            except KeyError as error:
                if error.args == (name,):
                    check_postprocessor_name(name, postprocessors)
                raise

        return get_postprocessor

    _replace(module, "get_postprocessor", make)


def _extend_get_network(module: ModuleType) -> None:
    def make(original: Any) -> Any:
        @functools.wraps(original)
        def get_network(network_config: Any) -> Any:
            if network_config.name != NETWORK:
                return original(network_config)
            from adaneg_openood.openood.network import network_from_config

            return network_from_config(network_config)

        return get_network

    _replace(module, "get_network", make)


def _extend_get_evaluator(module: ModuleType) -> None:
    def make(original: Any) -> Any:
        @functools.wraps(original)
        def get_evaluator(config: Any) -> Any:
            if config.evaluator.name != EVALUATOR:
                return original(config)
            from adaneg_openood.openood.classic_evaluator import ClassicEvaluator

            return ClassicEvaluator(config)

        return get_evaluator

    _replace(module, "get_evaluator", make)


def _extend_evaluator_class(module: ModuleType) -> None:
    """ACC from features that were computed already: on any device, and no image encoded again."""
    evaluator = module.Evaluator
    original = evaluator._classifier_inference
    if hasattr(original, "_adaneg_original"):
        return

    @functools.wraps(original)
    def _classifier_inference(self: Any, data_loader: Any, *args: Any, **kwargs: Any) -> Any:
        zero_shot = getattr(self.postprocessor, "zero_shot_predictions", None)
        if zero_shot is None:
            return original(self, data_loader, *args, **kwargs)
        return zero_shot(self.net, data_loader)

    _classifier_inference._adaneg_original = original  # type: ignore[attr-defined]
    evaluator._classifier_inference = _classifier_inference


def _extend_datasets(module: ModuleType) -> None:
    """The drawn benchmark of :mod:`~adaneg_openood.openood.trial`, whose folders are never downloaded;
    and lists that nothing reads need not be there."""
    from adaneg_openood.openood.benchmark_files import absent_lists_may_stay_away
    from adaneg_openood.openood.trial import INFO, NAME

    module.DATA_INFO.setdefault(NAME, INFO)
    module.benchmarks_dict.setdefault(NAME, [])

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def get_id_ood_dataloader(id_name: str, data_root: str, *args: Any, **kwargs: Any) -> Any:
            with absent_lists_may_stay_away(module, id_name, data_root):
                return original(id_name, data_root, *args, **kwargs)

        return get_id_ood_dataloader

    _replace(module, "get_id_ood_dataloader", make)


def _extend_class_counts(module: ModuleType) -> None:
    from adaneg_openood.openood.trial import INFO, NAME

    module.num_classes_dict.setdefault(NAME, INFO["num_classes"])


def _extend_preprocessing(module: ModuleType) -> None:
    from adaneg_openood.openood.trial import NAME, PREPROCESSING

    module.default_preprocessing_dict.setdefault(NAME, PREPROCESSING)


def _extend_transforms(module: ModuleType) -> None:
    """CLIP's interpolation and normalisation, by name, for the classic pipeline's preprocessor."""
    from torchvision.transforms import InterpolationMode

    module.interpolation_modes.setdefault("bicubic", InterpolationMode.BICUBIC)
    module.normalization_dict.setdefault(
        "clip", [[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]
    )
    module.normalization_dict.setdefault("demo", [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]])  # see trial.py


def _guard_launch(module: ModuleType) -> None:
    def make(original: Any) -> Any:
        @functools.wraps(original)
        def launch(main_func: Any, *args: Any, **kwargs: Any) -> Any:
            for config in kwargs.get("args", ()) or (args[4] if len(args) > 4 else ()):
                if _is_ours(config):
                    _refuse_many_gpus(config)
            return original(main_func, *args, **kwargs)

        return launch

    _replace(module, "launch", make)


def _is_ours(config: Any) -> bool:
    if not isinstance(config, dict):
        return False
    names = {
        key: (config.get(key) or {}).get("name") for key in ("postprocessor", "network", "evaluator")
    }
    return (
        names["postprocessor"] in DETECTORS
        or names["network"] == NETWORK
        or names["evaluator"] == EVALUATOR
    )


def _refuse_many_gpus(config: Any) -> None:
    gpus, machines = config.get("num_gpus") or 0, config.get("num_machines") or 1
    if gpus * machines > 1:
        raise ValueError(
            f"num_gpus is {gpus} and num_machines is {machines}: a test stream is scored in order, so "
            "it cannot be split over GPUs. Run with --num_gpus 1 (or 0 for the CPU); to use more GPUs, "
            "run several evaluations side by side, one a GPU (CUDA_VISIBLE_DEVICES=0, 1, ...)."
        )
