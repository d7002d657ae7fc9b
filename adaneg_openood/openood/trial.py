"""The embedded benchmark for OpenOOD: drawn images and a tiny model, to try the plugin without data.

``adaneg-openood trial FOLDER`` draws it. OpenOOD then knows it as ``demo``::

    Evaluator(trial_network(), id_name="demo", data_root="FOLDER", postprocessor_name="adaneg",
              config_root="FOLDER/configs")

and ``python -m adaneg_openood main.py --config FOLDER/*.yml`` runs the classic pipeline on it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaneg_openood.demo import world
from adaneg_openood.demo.benchmark import LISTS, write_benchmark, write_set
from adaneg_openood.detectors import DETECTORS
from adaneg_openood.io.configuration import read_yaml, shipped
from adaneg_openood.io.files import atomic_path

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
    import yaml

    root = Path(folder)
    write_benchmark(root)
    rng = np.random.default_rng(_SEED)
    others = [name for name in world.OTHERS if name not in world.ID_NAMES]
    per_class = {"train": _TRAIN_PER_CLASS, "val": _VAL_PER_CLASS}
    drawn = {
        f"{split}_demo": [(name, k) for k, name in enumerate(world.ID_NAMES) for _ in range(count)]
        for split, count in per_class.items()
    }
    drawn["val_others"] = [(others[k % len(others)], -1) for k in range(_OOD_VAL)]
    for name, items in drawn.items():
        write_set(root, name, ((world.draw(noun, rng).image, label) for noun, label in items), name)

    nouns = [noun for noun in world.NOUNS if noun not in world.ID_NAMES]
    lists = {"class_names": world.ID_NAMES, "candidates/noun": nouns, "candidates/adj": world.ADJECTIVES}
    for name, words in lists.items():
        _write(root / "words" / f"{name}.txt", "\n".join(words) + "\n")
    for name, content in _postprocessors((root / "words" / "candidates").resolve()).items():
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        _write(root / "configs" / "postprocessors" / f"{name}.yml", text)
    files = []
    for name, file in shipped("trial").items():
        if name != "arguments":
            text = file.read_text("utf-8")
            text += f"root: {json.dumps(str(root.resolve()))}\n" if name == "run" else ""
            _write(root / file.name, text)
            files.append(root / file.name)
    return [*files, root / "configs" / "postprocessors" / "adaneg.yml"]


def _postprocessors(corpus: Path) -> dict[str, Any]:
    """Ours with the few words and images there are; OpenOOD's own, for its wheel brings none."""
    from openood.evaluation_api.postprocessor import postprocessors

    found, arguments = {}, read_yaml(shipped("trial")["arguments"])
    for name in postprocessors:
        given = {"name": name, "APS_mode": False, "postprocessor_args": arguments.get(name, {})}
        found[name] = {"postprocessor": given}
    fitting = {"corpus": str(corpus), "n_negatives": _N_NEGATIVES, "batch_size": 64}
    for method in DETECTORS:
        found[method] = content = read_yaml(shipped("postprocessors")[method])
        chosen = content["postprocessor"]["postprocessor_args"]
        chosen.update({name: value for name, value in fitting.items() if name in chosen})
    return found


def _write(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
