"""Names are known to OpenOOD whichever is imported first; nothing else changes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from adaneg_openood.detectors import DETECTORS

ROOT = Path(__file__).parents[2]
CHECK = """
from openood.evaluation_api.postprocessor import postprocessors
import openood.pipelines.test_ood_pipeline as pipeline, openood.postprocessors, openood.networks
import openood.evaluators, openood.evaluation_api.evaluator as api
from openood.preprocessors.transform import normalization_dict, interpolation_modes
assert {"adaneg", "neglabel", "mcm", "msp"} <= set(postprocessors)
assert pipeline.get_postprocessor is openood.postprocessors.get_postprocessor
assert pipeline.get_network is openood.networks.get_network
assert pipeline.get_evaluator is openood.evaluators.get_evaluator
for function in (pipeline.get_postprocessor, pipeline.get_network, pipeline.get_evaluator,
                 api.get_postprocessor, api.Evaluator._classifier_inference):
    assert not hasattr(function.__wrapped__, "__wrapped__"), function
from openood.utils import Config
post = pipeline.get_postprocessor(Config(postprocessor=dict(name="mcm", postprocessor_args=dict(tau=2))))
assert post.settings.tau == 2.0
msp = pipeline.get_postprocessor(Config(postprocessor=dict(name="msp")))
assert type(msp).__name__ == "BasePostprocessor"
for name, kind in (("adaneg", "ClassicEvaluator"), ("ood", "OODEvaluator")):
    assert type(pipeline.get_evaluator(Config(evaluator=dict(name=name)))).__name__ == kind
assert "clip" in normalization_dict and "bicubic" in interpolation_modes
from adaneg_openood.detectors import DETECTORS
for name in DETECTORS:
    assert api.get_postprocessor("no/such/folder", name, "cifar10").method == name
import os
assert not os.path.exists("no")
"""


def python(code: str, cwd: Path) -> str:
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_registered_when_openood_comes_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(CHECK, "check", "exec"), {})


def test_registered_when_openood_came_before(tmp_path: Path) -> None:
    first = """
import adaneg_openood.openood.compat as compat
from adaneg_openood.openood import registration
from contextlib import ExitStack
import sys
sys.meta_path.remove(registration._hooks)
registration._hooks = None
with ExitStack() as stack:  # what OpenOOD's modules want is made to be there
    for names in compat.NEEDS.values():
        stack.enter_context(compat.placeholders(names))
    import openood.pipelines, openood.evaluation_api
assert "adaneg" not in openood.evaluation_api.postprocessor.postprocessors
registration.register()
registration.register()
"""
    python(first + CHECK, tmp_path)


def test_import_alone_imports_nothing_of_openood(tmp_path: Path) -> None:
    code = "import adaneg_openood, json, sys; print(json.dumps([m for m in sys.modules]))"
    modules = json.loads(python(code, tmp_path))
    heavy = {
        "openood",
        "torchvision",
        "open_clip",
        "pandas",
        "sklearn",
        "pydantic",
    }
    assert not heavy & {name.split(".")[0] for name in modules} | heavy & set(modules)


def test_without_openood_nothing_happens(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['openood'] = None\n"
        "import adaneg_openood\n"
        "try:\n    import openood.evaluation_api\n"
        "except ImportError as error:\n    print('refused')\n"
    )
    assert python(code, tmp_path).strip() == "refused"


def test_clip_is_left_alone_without_openood(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['openood'] = None\n"
        "import adaneg_openood.openood.registration as it\n"
        "print(sorted({name.split('.')[0] for name in {**it._hooks.around, **it._hooks.after}}))\n"
    )
    assert python(code, tmp_path).strip() == "['openood']"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no section postprocessor"),
        ("network:\n  name: adaneg_clip\n", "holds no section postprocessor"),
        (
            "postprocessor:\n  name: neglabel\n",
            "postprocessor.name is .neglabel., but this file was asked for adaneg",
        ),
        ("postprocessor: [1,\n", "not YAML"),
    ],
)
def test_a_yaml_that_is_no_postprocessors(tmp_path: Path, text: str, message: str) -> None:
    from openood.evaluation_api.evaluator import get_postprocessor

    file = tmp_path / "postprocessors" / "adaneg.yml"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        get_postprocessor(str(tmp_path), "adaneg", "cifar10")
    assert str(file) in str(caught.value)


def test_a_misspelt_postprocessor_is_not_downloaded(tmp_path: Path) -> None:
    from openood.evaluation_api.evaluator import get_postprocessor
    from openood.pipelines.test_ood_pipeline import get_postprocessor as classic
    from openood.utils import Config

    with pytest.raises(ValueError, match="got 'adange'; did you mean 'adaneg'"):
        get_postprocessor(str(tmp_path), "adange", "cifar10")
    with pytest.raises(ValueError, match="got 'neglabe'; did you mean 'neglabel'"):
        classic(Config(postprocessor=dict(name="neglabe")))
    assert not list(tmp_path.iterdir())


def test_users_yaml_comes_first(tmp_path: Path) -> None:
    from openood.evaluation_api.evaluator import get_postprocessor

    folder = tmp_path / "postprocessors"
    folder.mkdir()
    (folder / "mcm.yml").write_text(
        "postprocessor:\n  name: mcm\n  APS_mode: False\n  postprocessor_args:\n    tau: 1\n"
        "  postprocessor_sweep:\n    tau_list: [0.01, 1, 10]\n"
    )
    post = get_postprocessor(str(tmp_path), "mcm", "cifar10")
    assert post.config_path == str((folder / "mcm.yml").resolve())
    assert post.args_dict == {"tau": [0.01, 1.0, 10.0]}
    (folder / "adaneg.yml").write_text(
        "postprocessor:\n  name: adaneg\n  postprocessor_args:\n    gamme: 1\n"
    )
    with pytest.raises(
        ValueError, match=r"adaneg.yml: postprocessor_args: unknown key 'gamme'; did you mean 'gamma'"
    ):
        get_postprocessor(str(tmp_path), "adaneg", "cifar10")


def test_every_method_has_a_yaml_with_its_settings_and_defaults() -> None:
    import yaml

    from adaneg_openood.benchmark.postprocessor import postprocessor_settings, read_postprocessor
    from adaneg_openood.io.configuration import shipped

    # rare ones, which a YAML may hold all the same
    left_out = "share near_copy adjective_share match exclude exclude_related mining_seed wordnet lemmas"
    for method in DETECTORS:
        section = yaml.safe_load(shipped("postprocessors")[method].read_text())["postprocessor"]
        given, known = section["postprocessor_args"], postprocessor_settings(method).model_fields
        assert set(known) - set(given) <= {*left_out.split(), "download"}
        for name, value in given.items():
            default = known[name].default
            assert value == ("" if default is None or name == "groups" else default), (method, name)
            # command lines take a default's type from the YAML
            assert default is None or name == "groups" or type(value) is type(default)
        read = read_postprocessor(method, section, method)
        assert not read.search and read.sweep
