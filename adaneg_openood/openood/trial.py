"""The embedded benchmark for OpenOOD: drawn images and a tiny model, to try the plugin without data.

``python -m adaneg_openood.openood.trial FOLDER`` draws it. OpenOOD then knows it as ``demo``::

    Evaluator(trial_network(), id_name="demo", data_root="FOLDER", postprocessor_name="adaneg",
              config_root="FOLDER/configs")

and ``python -m adaneg_openood main.py --config FOLDER/*.yml`` runs the classic pipeline on it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaneg_openood.demo import world
from adaneg_openood.demo.benchmark import LISTS, write_benchmark, write_set
from adaneg_openood.detectors import DETECTORS
from adaneg_openood.io.files import atomic_path
from adaneg_openood.openood.packaged import NETWORK, packaged_config

if TYPE_CHECKING:
    from adaneg_openood.openood.network import CLIPNetwork

NAME = "demo"

_TRAIN_PER_CLASS, _VAL_PER_CLASS, _OOD_VAL = 5, 2, 40
_SEED = 19  # not the test set's
_N_NEGATIVES = 60


def _entry(name: str) -> dict[str, str]:
    return {"data_dir": "images/", "imglist_path": f"{LISTS}/{name}.txt"}


def _sets(names: Sequence[str]) -> dict[str, Any]:
    return {"datasets": list(names), **{name: _entry(f"test_{name}") for name in names}}


# in the shape of OpenOOD's DATA_INFO
INFO: dict[str, Any] = {
    "num_classes": len(world.ID_NAMES),
    "id": {"train": _entry("train_demo"), "val": _entry("val_demo"), "test": _entry("test_demo")},
    "csid": {"datasets": []},
    "ood": {
        "val": _entry("val_others"),
        "near": _sets(tuple(world.NEAR)),
        "far": _sets((*world.FAR, "digits")),
    },
}
# OpenOOD's own methods, where they take arguments; counts are of the few training images there are
ARGUMENTS: dict[str, dict[str, Any]] = {
    "ash": {"percentile": 90},
    "cfood": {"alpha": 0.1, "k": 0.01, "avg_topk": False},
    "cider": {"K": 5},
    "dice": {"p": 90},
    "dropout": {"dropout_p": 0.5, "dropout_times": 5},
    "ebo": {"temperature": 1},
    "fdbd": {"distance_as_normalizer": True},
    "gen": {"gamma": 0.1, "M": 10},
    "iodin": {"temperature": 1000, "noise": 0.0014},
    "knn": {"K": 5},
    "nci": {"alpha": 0.0001},
    "nnguide": {"alpha": 0.2, "K": 5},
    "npos": {"K": 5},
    "odin": {"temperature": 1000, "noise": 0.0014},
    "rankfeat": {"accelerate": False, "temperature": 1},
    "react": {"percentile": 90},
    "relation": {"pow": 1},
    "residual": {"dim": 32},
    "scale": {"percentile": 85},
    "she": {"metric": "inner_product"},
    "vim": {"dim": 32},
    "vra": {"percentile_high": 90, "percentile_low": 10},
}
PREPROCESSING = {
    "pre_size": world.SIZE,
    "img_size": world.SIZE,
    "normalization": [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]],  # the embedded model's
}


def trial_network() -> CLIPNetwork:
    """The embedded model as OpenOOD's network, with the class names of the drawn benchmark."""
    from adaneg_openood.demo.model import load_demo_model
    from adaneg_openood.openood.network import CLIPNetwork

    return CLIPNetwork(load_demo_model(), world.ID_NAMES)


def write_trial(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw the benchmark and write the configurations that evaluate it.

    Args:
        folder: made if needed.

    Returns:
        The YAMLs of the classic pipeline, in the order of its ``--config``.
    """
    root = Path(folder)
    write_benchmark(root)
    rng = np.random.default_rng(_SEED)
    for split, count in (("train", _TRAIN_PER_CLASS), ("val", _VAL_PER_CLASS)):
        names = [(name, label) for label, name in enumerate(world.ID_NAMES) for _ in range(count)]
        _draw_set(root, f"{split}_demo", names, rng)
    others = [name for name in world.OTHERS if name not in world.ID_NAMES]
    _draw_set(root, "val_others", [(others[k % len(others)], -1) for k in range(_OOD_VAL)], rng)

    words = root / "words"
    _write(words / "class_names.txt", "\n".join(world.ID_NAMES) + "\n")
    nouns = [noun for noun in world.NOUNS if noun not in world.ID_NAMES]
    _write(words / "candidates" / "noun.txt", "\n".join(nouns) + "\n")
    _write(words / "candidates" / "adj.txt", "\n".join(world.ADJECTIVES) + "\n")
    _write_own(root, (words / "candidates").resolve())
    _write_others(root)
    return _write_classic(root)


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m adaneg_openood.openood.trial FOLDER``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise SystemExit("usage: python -m adaneg_openood.openood.trial FOLDER")
    files = write_trial(arguments[0])
    sys.stdout.write(
        f"drawn into {arguments[0]}; in OpenOOD's checkout, evaluate it with\n"
        f"  python -m adaneg_openood main.py --config {' '.join(map(str, files))} --num_gpus 0\n"
    )


def _draw_set(root: Path, name: str, items: list[tuple[str, int]], rng: np.random.Generator) -> None:
    write_set(root, name, ((world.draw(noun, rng).image, label) for noun, label in items), name)


def _write_own(root: Path, corpus: Path) -> None:
    """YAMLs of this package's methods, with the few words and images there are."""
    import yaml

    for method in DETECTORS:
        content = yaml.safe_load(packaged_config("postprocessors", method).read_text(encoding="utf-8"))
        chosen = content["postprocessor"]["postprocessor_args"]
        fitting = {"corpus": str(corpus), "n_negatives": _N_NEGATIVES, "batch_size": 64}
        chosen.update({name: value for name, value in fitting.items() if name in chosen})
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        _write(root / "configs" / "postprocessors" / f"{method}.yml", text)


def _write_others(root: Path) -> None:
    """YAMLs of OpenOOD's own postprocessors, for its wheel brings none."""
    import yaml
    from openood.evaluation_api.postprocessor import postprocessors

    for name in set(postprocessors) - set(DETECTORS):
        section = {"name": name, "APS_mode": False, "postprocessor_args": ARGUMENTS.get(name, {})}
        text = yaml.safe_dump({"postprocessor": section}, sort_keys=False)
        _write(root / "configs" / "postprocessors" / f"{name}.yml", text)


def _write_classic(root: Path) -> list[Path]:
    """YAMLs of OpenOOD's classic pipeline, with absolute paths into ``root``."""
    import yaml

    base = root.resolve()

    def entry(source: dict[str, str]) -> dict[str, str]:
        return {
            "data_dir": str(base / source["data_dir"]),
            "imglist_pth": str(base / source["imglist_path"]),
        }

    def group(sets: dict[str, Any]) -> dict[str, Any]:
        names = sets["datasets"]
        return {"datasets": names, **{name: entry(sets[name]) for name in names}}

    common = {
        "num_classes": INFO["num_classes"],
        "num_workers": "@{num_workers}",
        "num_gpus": "@{num_gpus}",
        "num_machines": "@{num_machines}",
        "batch_size": 64,
    }
    splits: dict[str, Any] = {
        split: {
            "dataset_class": "ImglistDataset",
            "batch_size": 64,
            "shuffle": split == "train",
            **entry(place),
        }
        for split, place in INFO["id"].items()
    }
    parts: dict[str, Any] = {
        "dataset": {
            "dataset": {
                "name": NAME,
                "pre_size": world.SIZE,
                "image_size": world.SIZE,
                "interpolation": "bilinear",
                "normalization_type": NAME,
                "split_names": list(splits),
                **common,
                **splits,
            }
        },
        "ood": {
            "ood_dataset": {
                "name": f"{NAME}_ood",
                "dataset_class": "ImglistDataset",
                "shuffle": False,
                "split_names": ["val", "nearood", "farood"],
                **common,
                "val": entry(INFO["ood"]["val"]),
                "nearood": group(INFO["ood"]["near"]),
                "farood": group(INFO["ood"]["far"]),
            }
        },
        "run": {
            "exp_name": f"{NAME}_adaneg",
            "output_dir": str(base / "results"),
            "save_output": True,
            "merge_option": "merge",
            "seed": 0,
            "num_gpus": 1,
            "num_workers": 0,
            "num_machines": 1,
            "machine_rank": 0,
            "network": {
                "name": NETWORK,
                "model": NAME,
                "classes": str(base / "words" / "class_names.txt"),
                "num_classes": INFO["num_classes"],
                "num_gpus": "@{num_gpus}",
                "pretrained": True,
            },
            "pipeline": {"name": "test_ood"},
            "preprocessor": {"name": "base"},
            "evaluator": {"name": "adaneg", "ood_scheme": "ood", "n_streams": 3},
            "recorder": {"save_scores": True, "save_csv": True},
        },
    }
    files = []
    for name, content in parts.items():
        path = root / f"{name}.yml"
        _write(path, yaml.safe_dump(content, sort_keys=False))
        files.append(path)
    return [*files, root / "configs" / "postprocessors" / "adaneg.yml"]


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
