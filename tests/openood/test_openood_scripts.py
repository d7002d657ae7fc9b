"""OpenOOD's own scripts, unchanged, in processes of their own: tables equal the direct computation."""

from __future__ import annotations

import ast
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from openood.evaluation_api.datasets import DATA_INFO
from openood_checkout import checkout, needs_checkout
from openood_direct import adaneg, direct_metrics

HERE = Path(__file__).parent


def run(
    arguments: list[str], cwd: Path, counts: Path | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    env["PYTHONPATH"] = os.pathsep.join(map(str, (HERE, HERE / "fake_clip", HERE.parents[1])))
    env["ADANEG_CACHE"] = str(cwd / "cache")
    if counts is not None:
        env["TINY_COUNTS"] = str(counts)
    done = subprocess.run(
        [sys.executable, "-m", "adaneg_openood", *arguments],
        cwd=cwd,
        env=env,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def classic_configs(folder: Path, data: Path, negatives: Path) -> list[str]:
    """YAMLs of the classic pipeline for the fake cifar10 benchmark."""
    info = DATA_INFO["cifar10"]

    def entry(source: dict[str, str]) -> dict[str, str]:
        return {
            "data_dir": str(data / source["data_dir"]),
            "imglist_pth": str(data / source["imglist_path"]),
        }

    def group(sets: dict[str, dict[str, str]], names: list[str]) -> dict[str, object]:
        return {"datasets": names, **{name: entry(sets[name]) for name in names}}

    common = {"num_workers": 0, "num_gpus": "@{num_gpus}", "num_machines": 1, "num_classes": 10}
    dataset = {
        "name": "cifar10",
        "pre_size": 32,
        "image_size": 32,
        "interpolation": "bilinear",
        "normalization_type": "cifar10",
        "split_names": ["train", "val", "test"],
        **common,
        **{
            split: {
                "dataset_class": "ImglistDataset",
                "batch_size": 8,
                "shuffle": split == "train",
                **entry(info["id"][split]),
            }
            for split in ("train", "val", "test")
        },
    }
    ood = {
        "name": "cifar10_ood",
        "dataset_class": "ImglistDataset",
        "batch_size": 8,
        "shuffle": False,
        "split_names": ["val", "csid", "nearood", "farood"],
        **common,
        "val": entry(info["ood"]["val"]),
        "csid": group(info["csid"], info["csid"]["datasets"]),
        "nearood": group(info["ood"]["near"], info["ood"]["near"]["datasets"]),
        "farood": group(info["ood"]["far"], info["ood"]["far"]["datasets"]),
    }
    pipeline = {
        "exp_name": "run",
        "output_dir": str(folder / "results"),
        "save_output": True,
        "merge_option": "default",
        "seed": 0,
        "num_gpus": 1,
        "num_workers": 0,
        "num_machines": 1,
        "machine_rank": 0,
        "network": {
            "name": "adaneg_clip",
            "factory": "openood_tiny:make_tiny",
            "classes": "@{dataset.name}",
            "num_classes": "@{dataset.num_classes}",
            "num_gpus": "@{num_gpus}",
            "pretrained": True,
        },
        "pipeline": {"name": "test_ood"},
        "preprocessor": {"name": "base"},
        "evaluator": {"name": "ood", "ood_scheme": "ood", "n_streams": 0},
        "recorder": {"save_scores": True, "save_csv": True},
    }
    files = []
    for name, content in (
        ("dataset", {"dataset": dataset}),
        ("ood", {"ood_dataset": ood}),
        ("pipeline", pipeline),
    ):
        path = folder / f"{name}.yml"
        path.write_text(yaml.safe_dump(content))
        files.append(str(path))
    return [*files, "configs/postprocessors/adaneg.yml"]


def read_csv(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row["dataset"]: row for row in csv.DictReader(file)}


@needs_checkout
@pytest.mark.parametrize(("evaluator", "scheme"), [("ood", "fsood"), ("adaneg", "ood")])
def test_classic_main(
    benchmarks: Path, negatives_file: Path, tmp_path: Path, evaluator: str, scheme: str
) -> None:
    main = str(checkout() / "main.py")  # type: ignore[operator]
    configs = classic_configs(tmp_path, benchmarks, negatives_file)
    done = run(
        [
            *(main, "--config", *configs, "--num_gpus", "0"),
            *("--evaluator.name", evaluator, "--evaluator.ood_scheme", scheme),
            *("--evaluator.n_streams", "2"),
            *("--postprocessor.postprocessor_args.negatives", str(negatives_file)),
            *("--postprocessor.postprocessor_args.batch_size", "16"),
        ],
        tmp_path,
        tmp_path / "counts.json",
    )
    direct = direct_metrics(benchmarks, "cifar10", adaneg(), batch_size=16, csid=scheme == "fsood")
    table = read_csv(tmp_path / "results" / "run" / "ood.csv")
    for name, expected in direct.items():
        for metric in ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"):
            assert table[name][metric] == f"{expected[metric]:.2f}", (name, metric)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["most"] == 1
    if scheme == "ood":
        assert f"Accuracy {direct['tin']['zero_shot']:.2f}%" in done.stdout
    streams = tmp_path / "results" / "run" / "streams"
    assert streams.is_dir() == (evaluator == "adaneg")
    if evaluator == "adaneg":
        assert len(list(streams.glob("adaneg/*/*/*.npz"))) == 2 * len(direct)


@pytest.mark.parametrize("section", ["postprocessor", "network", "evaluator"])
def test_many_gpus_are_refused_before_processes_start(section: str) -> None:
    from openood.utils import Config, launch

    names = {"postprocessor": "neglabel", "network": "adaneg_clip", "evaluator": "adaneg"}
    config = Config(**{section: {"name": names[section]}, "num_gpus": 2, "num_machines": 1})
    with pytest.raises(ValueError, match=r"num_gpus is 2 .* --num_gpus 1"):
        launch(print, 2, num_machines=1, machine_rank=0, dist_url="auto", args=(config,))
    calls: list[object] = []
    launch(calls.append, 1, args=(Config(**{section: {"name": names[section]}, "num_gpus": 1}),))
    assert len(calls) == 1


@needs_checkout
def test_foundation_models_script(benchmarks: Path, negatives_file: Path, tmp_path: Path) -> None:
    source = checkout() / "scripts" / "eval_ood_imagenet_foundation_models.py"  # type: ignore[operator]
    (tmp_path / "scripts").mkdir()
    shutil.copy(source, tmp_path / "scripts")
    (tmp_path / "data").symlink_to(benchmarks, target_is_directory=True)
    config = tmp_path / "configs" / "postprocessors" / "adaneg.yml"
    config.parent.mkdir(parents=True)
    config.write_text(
        "postprocessor:\n  name: adaneg\n  postprocessor_args:\n"
        f"    negatives: {negatives_file}\n    batch_size: 16\n"
    )
    script = f"scripts/{source.name}"
    run([script, "--postprocessor", "adaneg", "--save-csv"], tmp_path, tmp_path / "counts.json")
    assert json.loads((tmp_path / "counts.json").read_text())["most"] == 1

    lists = {}
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "").startswith("imagenet_"):
            lists[node.targets[0].id] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    text = tmp_path / "text.json"
    text.write_text(json.dumps([lists["imagenet_classes"], lists["imagenet_templates"]]))
    direct = json.loads(
        run([str(HERE / "openood_direct_clip.py"), str(benchmarks), str(text)], tmp_path).stdout
    )
    table_file = tmp_path / "results" / "imagenet_clip_ViT-B-16" / "ood" / "adaneg.csv"
    with table_file.open() as file:
        table = {row[""]: row for row in csv.DictReader(file)}
    for name, expected in direct.items():
        for metric in ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT"):
            assert table[name][metric] == f"{expected[metric]:.2f}", (name, metric)


def test_launcher_says_that_there_is_no_such_script(tmp_path: Path) -> None:
    done = run(["main.py", "--config", "x.yml"], tmp_path, check=False)
    assert done.returncode != 0
    assert "there is no script main.py here" in done.stderr


def test_launcher_refuses_configurations_that_are_nowhere_or_empty(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("")
    (tmp_path / "empty.yml").write_text(" \n")
    for config, message in (
        ("configs/postprocessors/adange.yml", "did you mean configs/postprocessors/adaneg.yml?"),
        ("empty.yml", "the configuration empty.yml is empty"),
    ):
        done = run(["script.py", "--config", config], tmp_path, check=False)
        assert done.returncode != 0 and message in done.stderr and "Traceback" not in done.stderr


def test_launcher_tells_how_to_get_what_a_script_lacks(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'clip'\", name='clip')"
    )
    done = run(["script.py"], tmp_path, check=False)
    assert done.returncode != 0
    assert "pip install clip-anytorch" in done.stderr


def test_launcher_is_the_command_line_otherwise(tmp_path: Path) -> None:
    assert "Usage" in run(["--help"], tmp_path).stdout


def test_launched_script_sees_what_python_would_show_it(tmp_path: Path) -> None:
    script = tmp_path / "sub" / "script.py"
    script.parent.mkdir()
    (script.parent / "neighbour.py").write_text("value = 7\n")
    script.write_text("import sys, neighbour\nprint(__name__, sys.argv, neighbour.value)\n")
    done = run(["sub/script.py", "-x", "--config", "sub/neighbour.py"], tmp_path)
    expected = ["sub/script.py", "-x", "--config", "sub/neighbour.py"]
    assert done.stdout.strip() == f"__main__ {expected} 7"
