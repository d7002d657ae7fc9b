"""Every one of OpenOOD's postprocessors is tried on the CLIP network, and the docs say which run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

import yaml
from openood_checkout import checkout, needs_checkout
from openood_tiny import TinyModel, names_of

from adaneg_openood.detectors import DETECTORS
from adaneg_openood.openood import CLIPNetwork, Evaluator, Postprocessor
from adaneg_openood.openood.compare import NOTES, REASONS, Comparison, compare, known

DOCS = Path(__file__).parents[2] / "docs" / "openood_postprocessors.md"
# what they need may be installed or not
OPTIONAL = {"openmax", "adascale_a", "adascale_l"}
CHANCE = {"scale"}  # depends on the signs of sums of features


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenOOD's configurations, with ViM's subspace fitted to the tiny model's 16 dimensions."""
    folder = tmp_path_factory.mktemp("configs")
    shutil.copytree(checkout() / "configs" / "postprocessors", folder / "postprocessors")  # type: ignore[operator]
    for name in ("vim", "residual"):
        path = folder / "postprocessors" / f"{name}.yml"
        content = yaml.safe_load(path.read_text())
        content["postprocessor"]["postprocessor_args"]["dim"] = 8
        content["postprocessor"]["APS_mode"] = False
        path.write_text(yaml.safe_dump(content))
    return folder


@pytest.fixture(scope="module")
def comparison(benchmarks: Path, configs: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    from openood_tiny import NEGATIVES

    negatives = tmp_path_factory.mktemp("words") / "negatives.txt"
    negatives.write_text("\n".join(NEGATIVES))
    settings = {
        name: {"negatives": str(negatives)}
        for name, kind in DETECTORS.items()
        if kind.info.needs_negatives
    }
    return compare(
        CLIPNetwork(TinyModel(), names_of("cifar10")),
        "cifar10",
        data_root=benchmarks,
        config_root=configs,
        settings=settings,
        num_workers=0,
    )


@needs_checkout
def test_every_postprocessor_is_tried(comparison: Comparison) -> None:
    tried = [*comparison.details, *comparison.failed]
    assert sorted(tried) == sorted(known)
    for name in ("msp", "mls", "ebo", "odin", "knn", "vim", "mcm", "neglabel", "adaneg"):
        assert name in comparison.details, comparison.failed.get(name)
    assert list(comparison.table.index) == list(comparison.details)
    assert not comparison.table.isna().any().any()
    for name in comparison.failed:
        assert name in REASONS, f"{name} fails without a reason in the docs: {comparison.failed[name]}"


@needs_checkout
def test_rows_are_those_of_single_evaluations(
    comparison: Comparison, benchmarks: Path, negatives_file: Path
) -> None:
    run = Evaluator(
        CLIPNetwork(TinyModel(), names_of("cifar10")),
        "cifar10",
        str(benchmarks),
        postprocessor=Postprocessor("adaneg", negatives=str(negatives_file)),
        num_workers=0,
    )
    np.testing.assert_array_equal(run.eval_ood(progress=False), comparison.details["adaneg"])


@needs_checkout
def test_docs_hold_the_generated_table(comparison: Comparison) -> None:
    """``python tests/openood/write_docs.py`` writes it anew."""
    found = {row[1]: row[2] for row in _rows(DOCS.read_text())}
    made = {row[1]: row[2] for row in _rows(comparison.support_markdown())}
    for name in OPTIONAL | CHANCE:
        found.pop(name, None), made.pop(name, None)
    assert found == made


@needs_checkout
def test_images_are_encoded_once_for_all(benchmarks: Path, configs: Path) -> None:
    net = CLIPNetwork(TinyModel(), names_of("cifar10"))
    found = compare(
        net, "cifar10", ["msp", "knn", "mcm"], data_root=benchmarks, config_root=configs, num_workers=0
    )
    assert not found.failed
    assert set(net.model.seen.values()) == {1}
    assert "| msp |" in found.to_markdown()


@needs_checkout
def test_draws_do_not_depend_on_what_ran_before(benchmarks: Path, configs: Path) -> None:
    """CFOOD takes a random part of the training images."""
    net = CLIPNetwork(TinyModel(), names_of("cifar10"))
    tables = [
        compare(net, "cifar10", names, data_root=benchmarks, config_root=configs, num_workers=0)
        for names in (["cfood"], ["msp", "cfood"])
    ]
    np.testing.assert_array_equal(*(found.details["cfood"] for found in tables))


@needs_checkout
def test_equal_scores_are_no_success(benchmarks: Path, configs: Path) -> None:
    """K larger than the training set: every distance is the same."""
    path = configs / "postprocessors" / "knn.yml"
    before = path.read_text()
    section = yaml.safe_load(before)
    section["postprocessor"].update(APS_mode=False, postprocessor_args={"K": 5000})
    path.write_text(yaml.safe_dump(section))
    try:
        net = CLIPNetwork(TinyModel(), names_of("cifar10"))
        found = compare(
            net, "cifar10", ["knn"], data_root=benchmarks, config_root=configs, num_workers=0
        )
    finally:
        path.write_text(before)
    assert not found.details and "every image the same score" in found.failed["knn"]


def test_notes_and_reasons_are_of_known_methods() -> None:
    assert not {*NOTES, *REASONS} - set(known)
    assert not set(NOTES) & set(REASONS)


def test_nothing_is_downloaded_and_names_are_checked(benchmarks: Path, tmp_path: Path) -> None:
    net = CLIPNetwork(TinyModel(), names_of("cifar10"))
    found = compare(net, "cifar10", ["msp"], data_root=benchmarks, config_root=tmp_path, num_workers=0)
    assert "give OpenOOD's configs folder" in found.failed["msp"]
    assert "| msp |" in found.to_markdown()
    with pytest.raises(ValueError, match="got 'mps'; did you mean 'msp'"):
        compare(net, "cifar10", ["mps"], data_root=benchmarks)


def _rows(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")] for line in lines[1:]]
