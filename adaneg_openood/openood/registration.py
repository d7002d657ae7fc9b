"""Makes OpenOOD know this package's methods, network and evaluator; OpenOOD's files stay untouched.

OpenOOD resolves most names inside functions that are copied by value into many modules. The hooks
below replace each such function right after the module that defines it was executed, so every copy made
afterwards is ours; copies made before (OpenOOD imported first) are replaced where they are.
"""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any, Callable

from adaneg_openood.detectors import DETECTORS
from adaneg_openood.openood import compat
from adaneg_openood.vlm.loading import pkg_resources_packaging

# what OpenOOD's configuration calls ours
_OURS = {"postprocessor": DETECTORS, "network": ("adaneg_clip",), "evaluator": ("adaneg",)}
_hooks: compat.ImportHooks | None = None


def register() -> None:
    """Register with OpenOOD, now or whenever it is imported; calling it again changes nothing."""
    global _hooks
    if _hooks is not None:
        return
    around: dict[str, Any] = {
        name: functools.partial(compat.placeholders, needs) for name, needs in compat.NEEDS.items()
    }
    if compat.installed():  # clip is somebody else's package
        around["openood.networks.clip"] = around["clip.clip"] = pkg_resources_packaging
    after = {
        "openood.evaluation_api.datasets": _extend_datasets,
        "openood.evaluation_api.evaluator": _extend_evaluator_class,
        "openood.evaluation_api.postprocessor": _extend_api_postprocessors,
        "openood.evaluation_api.preprocessor": _extend_preprocessing,
        "openood.evaluators.utils": _extend_get_evaluator,
        "openood.networks.utils": _extend_get_network,
        "openood.postprocessors.info": _extend_class_counts,
        "openood.postprocessors.utils": _extend_get_postprocessor,
        "openood.preprocessors.transform": _extend_transforms,
        "openood.utils.launch": _extend_launch,
    }
    _hooks = compat.ImportHooks(around, after)
    _hooks.install()


def _replace(owner: Any, around: Callable[..., Any]) -> None:
    """Call ``around(original, ...)`` for a module's or class's function of its name, and its copies."""
    original = getattr(owner, around.__name__)

    @functools.wraps(original)
    def ours(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, around.__name__, ours)
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "openood" and vars(module).get(around.__name__) is original:
            setattr(module, around.__name__, ours)


def _extend_api_postprocessors(module: ModuleType) -> None:
    from adaneg_openood.benchmark.postprocessor import check_postprocessor_name
    from adaneg_openood.openood.postprocessors import POSTPROCESSORS, configured

    module.postprocessors.update(POSTPROCESSORS)

    def get_postprocessor(
        original: Any, config_root: str, postprocessor_name: str, id_data_name: str
    ) -> Any:
        # OpenOOD would try to download the YAML of a name that it does not know
        check_postprocessor_name(postprocessor_name, module.postprocessors)
        if postprocessor_name in POSTPROCESSORS:
            return configured(postprocessor_name, id_data_name, config_root)
        return original(config_root, postprocessor_name, id_data_name)

    _replace(module, get_postprocessor)


def _extend_get_postprocessor(module: ModuleType) -> None:
    def get_postprocessor(original: Any, config: Any) -> Any:
        from openood.evaluation_api.postprocessor import postprocessors

        from adaneg_openood.benchmark.postprocessor import check_postprocessor_name
        from adaneg_openood.openood.postprocessors import POSTPROCESSORS

        name = config.postprocessor.name
        if name in POSTPROCESSORS:
            return POSTPROCESSORS[name](config)
        try:
            return original(config)
        except KeyError as error:
            if error.args == (name,):
                check_postprocessor_name(name, postprocessors)
            raise

    _replace(module, get_postprocessor)


def _extend_get_network(module: ModuleType) -> None:
    def get_network(original: Any, network_config: Any) -> Any:
        if network_config.name not in _OURS["network"]:
            return original(network_config)
        from adaneg_openood.openood.network import network_from_config

        return network_from_config(network_config)

    _replace(module, get_network)


def _extend_get_evaluator(module: ModuleType) -> None:
    def get_evaluator(original: Any, config: Any) -> Any:
        if config.evaluator.name not in _OURS["evaluator"]:
            return original(config)
        from adaneg_openood.openood.evaluator import ClassicEvaluator

        return ClassicEvaluator(config)

    _replace(module, get_evaluator)


def _extend_evaluator_class(module: ModuleType) -> None:
    """ACC from features that were computed already: on any device, and no image encoded again."""

    def _classifier_inference(
        original: Any, evaluator: Any, data_loader: Any, *args: Any, **kwargs: Any
    ) -> Any:
        zero_shot = getattr(evaluator.postprocessor, "zero_shot_predictions", None)
        if zero_shot is None:
            return original(evaluator, data_loader, *args, **kwargs)
        return zero_shot(evaluator.net, data_loader)

    _replace(module.Evaluator, _classifier_inference)


def _extend_datasets(module: ModuleType) -> None:
    """The drawn benchmark of :mod:`~adaneg_openood.openood.trial`, whose folders are never downloaded;
    and lists that nothing reads need not be there."""
    from adaneg_openood.openood.benchmark_files import absent_lists_may_stay_away
    from adaneg_openood.openood.trial import INFO, NAME

    module.DATA_INFO.setdefault(NAME, INFO)
    module.benchmarks_dict.setdefault(NAME, [])

    def get_id_ood_dataloader(
        original: Any, id_name: str, data_root: str, *args: Any, **kwargs: Any
    ) -> Any:
        with absent_lists_may_stay_away(module, id_name, data_root):
            return original(id_name, data_root, *args, **kwargs)

    _replace(module, get_id_ood_dataloader)


def _extend_class_counts(module: ModuleType) -> None:
    from adaneg_openood.openood import trial

    module.num_classes_dict.setdefault(trial.NAME, trial.INFO["num_classes"])


def _extend_preprocessing(module: ModuleType) -> None:
    from adaneg_openood.openood import trial

    module.default_preprocessing_dict.setdefault(trial.NAME, trial.PREPROCESSING)


def _extend_transforms(module: ModuleType) -> None:
    """CLIP's interpolation and normalisation, by name, for the classic pipeline's preprocessor."""
    from torchvision.transforms import InterpolationMode

    from adaneg_openood.openood.trial import NAME, PREPROCESSING

    module.interpolation_modes.setdefault("bicubic", InterpolationMode.BICUBIC)
    module.normalization_dict.setdefault("clip", compat.CLIP_NORMALIZATION)
    module.normalization_dict.setdefault(NAME, PREPROCESSING["normalization"])


def _extend_launch(module: ModuleType) -> None:
    """One GPU, or none, for what is ours."""

    def launch(original: Any, main_func: Any, *args: Any, **kwargs: Any) -> Any:
        for config in kwargs.get("args", ()) or (args[4] if len(args) > 4 else ()):
            if isinstance(config, dict) and any(
                (config.get(key) or {}).get("name") in names for key, names in _OURS.items()
            ):
                _refuse_many_gpus(config)
        return original(main_func, *args, **kwargs)

    _replace(module, launch)


def _refuse_many_gpus(config: Any) -> None:
    gpus, machines = config.get("num_gpus") or 0, config.get("num_machines") or 1
    if gpus * machines > 1:
        raise ValueError(
            f"num_gpus is {gpus} and num_machines is {machines}: a test stream is scored in order, so "
            "it cannot be split over GPUs. Run with --num_gpus 1 (or 0 for the CPU); to use more GPUs, "
            "run several evaluations side by side, one a GPU (CUDA_VISIBLE_DEVICES=0, 1, ...)."
        )
