"""Bad input: what was wrong, where, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("openood.evaluation_api", reason="OpenOOD is not installed")

from openood.evaluation_api import Evaluator as OpenOODEvaluator
from openood.evaluation_api.datasets import DATA_INFO
from openood_tiny import NEGATIVES, TinyModel, build_benchmark, names_of
from PIL import Image

from adaneg_openood.openood import CLIPNetwork, Evaluator, Postprocessor

TEST_LIST = DATA_INFO["cifar10"]["id"]["test"]["imglist_path"]
TIN_LIST = DATA_INFO["cifar10"]["ood"]["near"]["tin"]["imglist_path"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small cifar10 benchmark that a test may damage."""
    build_benchmark(tmp_path / "data", "cifar10", n_id=20, n_ood=10)
    return tmp_path / "data"


def network() -> CLIPNetwork:
    return CLIPNetwork(TinyModel(), names_of("cifar10"))


def plain(root: Path, net: Any, post: Any, **kwargs: Any) -> Any:
    return OpenOODEvaluator(
        net, "cifar10", str(root), postprocessor=post, num_workers=0, batch_size=8, **kwargs
    )


def image_of(root: Path, list_path: str, line: int = 0) -> Path:
    name = (root / list_path).read_text().splitlines()[line].rsplit(" ", 1)[0]
    return root / "images_classic" / name


def test_unknown_settings_are_named_with_the_nearest(negatives_file: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'gamm'; did you mean 'gamma'\?") as caught:
        Postprocessor(
            "adaneg", {"postprocessor": {"postprocessor_args": {"gamm": 0.5, "memory_lenght": 3}}}
        )
    assert "memory_length" in str(caught.value)
    with pytest.raises(ValueError, match="unknown key.*postprocessor_arg"):
        Postprocessor("adaneg", {"postprocessor": {"postprocessor_arg": {}}})
    with pytest.raises(ValueError, match="did you mean 'gap'"):
        Postprocessor("adaneg", {"postprocessor": {"postprocessor_sweep": {"gapp_list": [1]}}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": "much"}, "gamma must be a number, got 'much'"),
        ({"gamma": 2}, r"gamma must be in \[0, 1\], got 2"),
        ({"groups": 2.5}, "groups must be a whole number, got 2.5"),
        ({"permute": "maybe"}, "permute must be true or false"),
        ({"order": "random"}, "order must be one of 'mixed', 'id_first'"),
        ({"protocol": "mixed"}, "unknown key 'protocol'; it is now called order"),
        ({"proxy": "tsk"}, "did you mean 'task'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"logit_scale": -1.0}, "logit_scale must be above 0"),
        ({"prompt": "no braces"}, "prompt"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Postprocessor("adaneg", **settings)


def test_text_of_yaml_is_converted() -> None:
    post = Postprocessor("adaneg", beta="1e-8", permute="False", groups="3")
    assert (post.settings.beta, post.settings.permute, post.settings.groups) == (1e-8, False, 3)


def test_a_search_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="names nothing to search over"):
        Postprocessor("adaneg", {"postprocessor": {"APS_mode": True}})
    with pytest.raises(ValueError, match="at least one value"):
        Postprocessor("adaneg", {"postprocessor": {"postprocessor_sweep": {"gap_list": []}}})
    with pytest.raises(ValueError, match="prompt cannot be searched over"):
        Postprocessor("adaneg", {"postprocessor": {"postprocessor_sweep": {"prompt_list": ["a"]}}})


def test_network_without_a_text_tower(root: Path, negatives_file: Path) -> None:
    class NoText(torch.nn.Module):
        def forward(self, x: torch.Tensor, return_feature: bool = False) -> Any:
            feature = x.flatten(1)[:, :16]
            return (feature[:, :10], feature) if return_feature else feature[:, :10]

    with pytest.raises(TypeError, match="has no text tower"):
        plain(root, NoText(), Postprocessor("adaneg", negatives=str(negatives_file)))


def test_text_features_from_a_file_need_no_text_tower(root: Path, tmp_path: Path) -> None:
    model = TinyModel()

    class ImageTower:
        name = "images only"
        logit_scale = 40.0
        encode_image = model.encode_image

    text = model.encode_text([f"The nice {word}." for word in [*names_of("cifar10"), *NEGATIVES]])
    net = CLIPNetwork(ImageTower(), id_features=text[:10])
    with pytest.raises(TypeError, match="no text tower"):
        plain(root, net, Postprocessor("adaneg", negatives="some.txt"))
    torch.save(text, tmp_path / "text.pt")
    table = plain(root, net, Postprocessor("adaneg", text_features=str(tmp_path / "text.pt"))).eval_ood(
        progress=False
    )
    again = plain(
        root,
        CLIPNetwork(ImageTower(), id_features=text[:10], negative_features=text[10:]),
        Postprocessor("adaneg"),
    ).eval_ood(progress=False)
    np.testing.assert_array_equal(table, again)
    with pytest.raises(ValueError, match="no negative label is left"):
        torch.save(text[:10], tmp_path / "short.pt")
        plain(root, net, Postprocessor("adaneg", text_features=str(tmp_path / "short.pt")))
    with pytest.raises(FileNotFoundError, match="no such file of text features"):
        plain(root, net, Postprocessor("adaneg", text_features=str(tmp_path / "none.pt")))


def test_class_names_of_another_length(root: Path, tmp_path: Path, negatives_file: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat\ndog\n")
    post = Postprocessor("adaneg", classes=str(names), negatives=str(negatives_file))
    with pytest.raises(ValueError, match="2, but the ID data set has 10 classes"):
        plain(root, network(), post)
    with pytest.raises(ValueError, match="3 class names, but 2 ID text features"):
        CLIPNetwork(TinyModel(), ["a", "b", "c"], id_features=torch.eye(2, 16))
    short = CLIPNetwork(TinyModel(), names_of("cifar10")[:4])
    with pytest.raises(ValueError, match="4, but the ID data set has 10 classes"):
        plain(root, short, Postprocessor("adaneg", negatives=str(negatives_file)))


def test_no_negatives_at_all(root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADANEG_WORDNET", str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match=r"set negatives .* or corpus"):
        plain(root, network(), Postprocessor("neglabel"))


def test_missing_images_are_listed_before_the_first_is_encoded(root: Path, negatives_file: Path) -> None:
    image_of(root, TIN_LIST).unlink()
    image_of(root, TIN_LIST, 3).write_bytes(b"")
    shutil.rmtree(image_of(root, DATA_INFO["cifar10"]["ood"]["far"]["svhn"]["imglist_path"]).parent)
    net = network()
    with pytest.raises(FileNotFoundError) as caught:
        plain(root, net, Postprocessor("adaneg", negatives=str(negatives_file)))
    message = str(caught.value)
    assert "tin: 2 of 10 images" in message
    assert "svhn: 10 of 10 images" in message
    assert "and 2 more" in message
    assert "(0 bytes)" in message
    assert "(no folder" in message
    assert "skip_broken" in message
    assert "github.com/Jingkang50/OpenOOD" in message
    assert not net.model.seen


def test_lists_that_nothing_reads_may_be_absent(root: Path, negatives_file: Path) -> None:
    """Training, validation and covariate-shifted lists; OpenOOD opens them all the same."""
    from adaneg_openood.openood.benchmark_files import image_lists, is_always_read

    expected = plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file))).eval_ood(
        progress=False
    )
    gone = [
        root / entry["imglist_path"]
        for name, entry in image_lists("cifar10")
        if not is_always_read(name)
    ]
    assert len(gone) == 4
    for path in gone:
        path.unlink()
    run = plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file)))
    np.testing.assert_array_equal(run.eval_ood(progress=False), expected)
    with pytest.raises(FileNotFoundError, match="this method reads the image list .*train_cifar10.txt"):
        next(iter(run.dataloader_dict["id"]["train"]))
    with pytest.raises(FileNotFoundError, match="cifar10c"):
        run.eval_ood(fsood=True, progress=False)
    Evaluator(network(), "cifar10", str(root), postprocessor=Postprocessor("mcm"))
    assert not any(path.exists() for path in gone), "nothing is written into the user's folder"
    plain(root, network(), Postprocessor("mcm"), shuffle=True)


def test_own_evaluator_lists_missing_lists_and_folders(root: Path, negatives_file: Path) -> None:
    (root / TIN_LIST).unlink()
    shutil.rmtree(root / "images_classic" / "mnist")
    with pytest.raises(FileNotFoundError) as caught:
        Evaluator(network(), "cifar10", str(root), postprocessor=Postprocessor("adaneg"))
    assert TIN_LIST in str(caught.value)
    assert "images of mnist" in str(caught.value)
    with pytest.raises(ValueError, match="id_name must be one of cifar10"):
        Evaluator(network(), "mnist", str(root), postprocessor=Postprocessor("adaneg"))


def test_broken_image_is_named(root: Path, negatives_file: Path) -> None:
    broken = image_of(root, TIN_LIST, 4)
    broken.write_bytes(b"this is no image")
    run = plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file)))
    with pytest.raises(ValueError, match="1 broken image") as caught:
        run.eval_ood(progress=False)
    assert str(broken) in str(caught.value)


@pytest.mark.parametrize("method", ["adaneg", "mcm"])
def test_broken_images_are_skipped_when_told_and_every_count_agrees(
    root: Path, negatives_file: Path, method: str
) -> None:
    """The same table as from lists that never named them, the ACC included."""
    bad = {TEST_LIST: [0, 7], TIN_LIST: [4]}
    for list_path, lines in bad.items():
        for line in lines:
            image_of(root, list_path, line).write_bytes(b"" if line else b"nothing")
    extra = {} if method == "mcm" else {"negatives": str(negatives_file)}
    run = plain(root, network(), Postprocessor(method, skip_broken=True, **extra))
    table = run.eval_ood(progress=False)
    assert len(run.scores["id"]["test"][0]) == 18
    assert len(run.scores["ood"]["near"]["tin"][1]) == 9
    for list_path, lines in bad.items():
        kept = [
            line for n, line in enumerate((root / list_path).read_text().splitlines()) if n not in lines
        ]
        (root / list_path).write_text("\n".join(kept) + "\n")
    clean = plain(root, network(), Postprocessor(method, **extra)).eval_ood(progress=False)
    np.testing.assert_array_equal(table, clean)


def test_odd_files(root: Path, negatives_file: Path) -> None:
    """RGBA, grey and CMYK images, names with spaces, CRLF lists and blank lines change no number."""
    before = plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file))).eval_ood(
        progress=False
    )
    lines = (root / TEST_LIST).read_text().splitlines()
    renamed = []
    for index, line in enumerate(lines):
        name, label = line.rsplit(" ", 1)
        new = name.replace(".png", " with spaces.png")
        shutil.move(root / "images_classic" / name, root / "images_classic" / new)
        renamed.append(f"{new} {label}")
        if index < 5:  # the same colours behind an opaque alpha channel
            file = root / "images_classic" / new
            Image.open(file).convert("RGBA").save(file)
    (root / TEST_LIST).write_bytes(("\r\n".join(renamed) + "\r\n\r\n").encode())
    after = plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file))).eval_ood(
        progress=False
    )
    np.testing.assert_array_equal(before, after)

    for line, mode in enumerate(("L", "CMYK", "P", "LA", "1")):
        file = root / "images_classic" / renamed[line].rsplit(" ", 1)[0]
        image = Image.open(file).convert("RGB").convert(mode)
        image.save(file, format="TIFF" if mode == "CMYK" else "PNG")
    plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file))).eval_ood(
        progress=False
    )


def test_list_line_without_a_label_is_named(root: Path, negatives_file: Path) -> None:
    lines = (root / TIN_LIST).read_text().splitlines()
    lines[2] = lines[2].rsplit(" ", 1)[0]
    (root / TIN_LIST).write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"image list of .*tin, line 3: must be 'path label'"):
        plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file)))


def test_empty_list_and_label_out_of_range(root: Path, negatives_file: Path) -> None:
    text = (root / TEST_LIST).read_text()
    (root / TEST_LIST).write_text(text.replace(" 1\n", " 10\n"))
    run = plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file)))
    with pytest.raises(ValueError, match="label 10 in the image list, but the network has 10 classes"):
        run.eval_ood(progress=False)
    (root / TEST_LIST).write_text(text)
    (root / TIN_LIST).write_text((root / TIN_LIST).read_text().replace(" -1\n", " 150\n"))
    table = plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file))).eval_ood(
        progress=False
    )
    assert not table.isna().any().any(), "OOD lists may carry the labels of another data set"
    (root / TEST_LIST).write_text("")
    with pytest.raises(ValueError, match="cifar10_test: holds no image"):
        plain(root, network(), Postprocessor("adaneg", negatives=str(negatives_file)))


def test_the_same_dataset_listed_twice(root: Path, negatives_file: Path) -> None:
    """Two names, one list: the same row twice, and its images encoded once."""
    (root / DATA_INFO["cifar10"]["ood"]["far"]["svhn"]["imglist_path"]).write_text(
        (root / TIN_LIST).read_text()
    )
    net = network()
    table = plain(root, net, Postprocessor("adaneg", negatives=str(negatives_file))).eval_ood(
        progress=False
    )
    np.testing.assert_array_equal(table.loc["tin"], table.loc["svhn"])
    assert set(net.model.seen.values()) == {1}


def test_calls_before_setup_and_another_network(
    root: Path, negatives_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    post = Postprocessor("adaneg", negatives=str(negatives_file))
    with pytest.raises(RuntimeError, match="comes before the first image"):
        post.inference(network(), None)
    run = plain(root, network(), post)
    first = run.eval_ood(progress=False)
    loader = run.dataloader_dict["id"]["test"]
    other = CLIPNetwork(TinyModel(5.0), names_of("cifar10"))
    post.inference(other, loader, progress=False)
    assert "changed since setup" in caplog.text
    assert set(other.model.seen.values()) == {1}
    assert first is run.metrics["ood"]
    with pytest.raises(ValueError, match=r"takes 0 value\(s\)"):
        post.set_hyperparam([1])
