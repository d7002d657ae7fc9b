"""Replay: the only loop over a stream, against a plain slow one; resumed; shared readings."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from benchmark_fakes import make_sweep_data
from evaluation_fakes import Cosine, Drifting, StatelessCosine, make_data
from hypothesis import given, settings
from hypothesis import strategies as st

from adaneg_openood import MCM, AdaNeg, AdaNegConfig, NegLabel
from adaneg_openood.evaluation import (
    FeatureSet,
    Protocol,
    Run,
    Stream,
    replay,
    replay_streams,
    run_stream,
    stream_order,
)
from adaneg_openood.evaluation.provenance import about_run

DATA = make_data()
REAL = make_sweep_data()


def detectors_of(data: FeatureSet, **changed: Any) -> dict[str, Any]:
    text, n_id, scale = data.text_features, data.n_id, data.logit_scale
    config = AdaNegConfig(**{"groups": 2, "memory_length": 4, **changed})
    return {
        "MCM": MCM(text, n_id),
        "task": AdaNeg(text, n_id, scale, config),
        "sample": AdaNeg(text, n_id, scale, dataclasses.replace(config, proxy="sample")),
        "other groups": AdaNeg(text, n_id, scale, dataclasses.replace(config, groups=3)),
        "other text": AdaNeg(text.flip(1), n_id, scale, config),
        "NegLabel": NegLabel(text, n_id, groups=2, logit_scale=scale),
    }


def plain_loop(
    data: FeatureSet, detector: Any, split: str, dataset: str, seed: int, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidences, predictions and labels, image by image and without anything shared."""
    ood, ids = getattr(data, split)[dataset], data.id_features
    part = protocol.subset(len(ids), len(ood), seed)
    images = [(ood[row], -1) for row in part.oods] + [
        (ids[row], int(data.id_labels[row])) for row in part.ids
    ]
    order = stream_order(len(part.oods), len(part.ids), seed, protocol.order)
    conf, pred = np.empty(len(images)), np.empty(len(images), dtype=int)
    detector.reset()
    for start in range(0, len(images), protocol.batch_size):
        rows = order[start : start + protocol.batch_size]
        scores = detector.score(torch.stack([images[row][0] for row in rows]))
        for place, row in enumerate(rows):
            conf[row], pred[row] = float(scores.conf[place]), int(scores.pred[place])
    return conf, pred, np.array([label for _, label in images])


@settings(max_examples=15, deadline=None)
@given(
    batch_size=st.integers(3, 120),
    order=st.sampled_from(["mixed", "id_first"]),
    ratio=st.sampled_from([None, (1, 1), (5, 4), (1, 9)]),
    n_images=st.sampled_from([None, 20]),
    seed=st.integers(0, 99),
    gap=st.sampled_from([0.0, 0.3]),
)
def test_replay_equals_a_plain_loop(
    batch_size: int, order: str, ratio: Any, n_images: Any, seed: int, gap: float
) -> None:
    protocol = Protocol((seed,), batch_size, order, ratio, n_images)
    run = replay(REAL, detectors_of(REAL, gap=gap), protocol, progress=False)
    for name, detector in detectors_of(REAL, gap=gap).items():
        for dataset, split in run.splits.items():
            conf, pred, label = plain_loop(REAL, detector, split, dataset, seed, protocol)
            got = run.stream(name, dataset, seed)
            np.testing.assert_array_equal(got.conf, conf.astype(np.float32), err_msg=name)
            np.testing.assert_array_equal(got.pred, pred, err_msg=name)
            np.testing.assert_array_equal(got.label, label)


def test_a_detector_is_read_once_where_the_seed_changes_nothing() -> None:
    detectors = {"a": StatelessCosine(DATA), "b": Cosine(DATA)}
    run = replay(DATA, detectors, Protocol((0, 5)), progress=False)
    assert detectors["a"].streams == 3 and detectors["b"].streams == 6
    assert list(run.records["seed"]) == [0, 5] * 6
    assert run.stream("a", "ssb", 5) is run.stream("a", "ssb", 0)
    replay(DATA, detectors, Protocol((0, 5), order="id_first"), progress=False)
    assert detectors["b"].streams == 9
    # another seed means other images where some are left out
    replay(DATA, detectors, Protocol((0, 5), n_images=12), progress=False)
    assert detectors["a"].streams == 3 + 3 + 6


def test_a_set_does_not_depend_on_the_sets_before_it() -> None:
    turned = make_data(near=dict(reversed(DATA.near.items())), far={})
    alone = make_data(near={"ninco": DATA.near["ninco"]}, far={})
    rows = []
    for data in (DATA, turned, alone):
        run = replay(data, {"drift": Drifting(data)}, Protocol(batch_size=8), progress=False)
        rows.append(run.records.query("dataset == 'ninco'").reset_index(drop=True))
    pd.testing.assert_frame_equal(rows[0], rows[1])
    pd.testing.assert_frame_equal(rows[0], rows[2])


def test_global_generators_are_untouched() -> None:
    def run() -> Run:
        return replay(DATA, {"drift": Drifting(DATA)}, Protocol(batch_size=8), progress=False)

    state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = run()
    assert np.array_equal(state, np.random.get_state()[1])
    assert torch.equal(torch_state, torch.get_rng_state())
    np.random.seed(9)
    pd.testing.assert_frame_equal(first.records, run().records)


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    replay(DATA, {"drift": Drifting(DATA)}, device="cpu")
    written = capsys.readouterr()
    assert written.out == "" and "textures" in written.err and "252" in written.err
    replay(DATA, {"drift": Drifting(DATA)}, progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seeds": ()}, "seeds must be distinct and >= 0, at least one"),
        ({"seeds": (1, 1)}, "seeds must be distinct"),
        ({"seeds": (-1,)}, "distinct and >= 0"),
        ({"seeds": (0.5,)}, "seeds must be integers"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"batch_size": 2.5}, "batch_size must be an integer, got 2.5"),
        ({"order": "other"}, "order must be one of"),
        ({"ratio": (0, 1)}, "the number of ID images must be at least 1"),
        ({"ratio": (1, 2.5)}, "ratio: the number of OOD images must be an integer, got 2.5"),
        ({"ratio": (1, 2, 3)}, "ratio must be two whole numbers"),
        ({"n_images": 1}, r"n_images \(an ID and an OOD image, or more\) must be at least 2"),
    ],
)
def test_bad_protocols(changed: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        Protocol(**changed)


@pytest.mark.parametrize("provenance", [{"a": float("nan")}, {"a": {1, 2}}, {"a": "caf\udce9"}])
def test_what_no_file_can_hold_is_told_before_any_image_is_scored(provenance: dict) -> None:
    detector = Cosine(DATA)
    with pytest.raises(ValueError, match="provenance must be JSON values in UTF-8, and are not: "):
        replay(DATA, {"x": detector}, provenance=provenance)
    with pytest.raises(ValueError, match="names of methods and sets must be JSON values"):
        replay(make_data(far={"caf\udce9": DATA.far["textures"]}), {"x": detector})
    assert detector.streams == 0


def test_a_run_is_made_where_its_detectors_are() -> None:
    detector = Cosine(DATA)
    for there in ("cpu", "cuda"):
        detector.text_features = SimpleNamespace(device=torch.device(there))  # type: ignore[attr-defined]
        about = about_run(DATA, {"x": detector}, Protocol(), {}, None, {})
        assert about.made_with["device"] == there


def test_a_runs_provenance_is_what_its_file_gives_back(tmp_path: Path) -> None:
    given = MappingProxyType({"model": {9: "x", 10: ("y", 1)}})
    run = replay(DATA, {"x": Cosine(DATA)}, progress=False, folder=tmp_path, provenance=given)
    assert run.about.provenance == {"model": {"9": "x", "10": ["y", 1]}}
    assert Run.load(tmp_path).about.provenance == run.about.provenance


def test_bad_detectors_sets_and_sizes() -> None:
    with pytest.raises(ValueError, match="detectors is empty"):
        replay(DATA, {})
    other = Cosine(DATA)
    other.n_id = 2
    with pytest.raises(ValueError, match="detector 'x' has n_id 2, the features have 3"):
        replay(DATA, {"x": other})
    one = Drifting(DATA)
    for detectors in ({"a": one, "b": Cosine(DATA), "c": one}, {"a": one, "c": one}):
        with pytest.raises(ValueError, match="detectors 'a' and 'c' are one object"):
            replay(DATA, detectors)
        with pytest.raises(ValueError, match="detectors 'a' and 'c' are one object"):
            next(replay_streams(DATA, detectors, [Stream("near", "ssb", 0, Protocol())]))
    with pytest.raises(ValueError, match="ninco: 400 images at"):
        replay(
            make_data(near={"ninco": DATA.near["ninco"]}), {"x": Cosine(DATA)}, Protocol(n_images=400)
        )
    with pytest.raises(ValueError, match="unknown set nope; sets: ssb, ninco, textures"):
        replay(DATA, {"x": Cosine(DATA)}, given_orders={"nope": np.arange(3)})
    detector = Cosine(DATA)
    with pytest.raises(
        ValueError, match="textures: given order must hold every index from 0 to 27 once"
    ):
        replay(DATA, {"x": detector}, given_orders={"textures": np.arange(3)}, progress=False)
    with pytest.raises(ValueError, match="ssb: a given order is of all images"):
        replay(DATA, {"x": detector}, Protocol(n_images=12), given_orders={"ssb": np.arange(12)})
    assert detector.streams == 0


def test_streams_are_yielded_while_detectors_still_hold_them() -> None:
    detectors = detectors_of(REAL)
    first = next(iter(REAL.near))
    streams = [Stream("near", first, seed, Protocol(batch_size=16)) for seed in (3, 8)]
    met = []
    for result in replay_streams(REAL, detectors, streams, keep_parts=True, watch_bank=True):
        met.append((result.method, result.seed))
        bank = getattr(detectors[result.method], "bank", None)
        if bank is None:
            assert result.counts is None and result.filled is None and result.diagnosis is None
            continue
        np.testing.assert_array_equal(result.counts, bank.counts.numpy())
        assert list(result.filled[-1]) == [
            (result.counts[: REAL.n_id] > 0).sum(),
            (result.counts[REAL.n_id :] > 0).sum(),
        ]
        assert (np.diff(result.filled, axis=0) >= 0).all() and (result.ood_counts <= result.counts).all()
        lam = detectors[result.method].config.lam
        np.testing.assert_allclose(result.conf, result.s_adaptive + lam * result.s_neglabel, rtol=1e-6)
    assert met == [(name, seed) for seed in (3, 8) for name in detectors]


def test_a_given_order_takes_the_place_of_the_seeds() -> None:
    order = np.random.default_rng(5).permutation(30)
    drift = Drifting(DATA)
    run = replay(
        DATA, {"drift": drift}, Protocol((0, 1), 8), given_orders={"ssb": order}, progress=False
    )
    assert drift.streams == 1 + 2 + 2  # no seed changes the given order
    features = torch.cat([DATA.near["ssb"], DATA.id_features])
    expected = run_stream(Drifting(DATA), features, order, 8)
    for seed in (0, 1):
        np.testing.assert_array_equal(run.stream("drift", "ssb", seed).conf, expected.conf)
        np.testing.assert_array_equal(run.stream_order("ssb", seed), order)
    np.testing.assert_array_equal(run.stream_order("textures", 1), stream_order(8, 20, 1))


# written down as it goes


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Breaks(Drifting):
    """Drifting, until so many streams were met."""

    def __init__(self, data: FeatureSet, most: int) -> None:
        super().__init__(data)
        self.most = most

    def score(self, features: torch.Tensor) -> Any:
        if not self.batches and self.streams == self.most:
            raise KeyboardInterrupt
        return super().score(features)


class Named:
    """A detector under another class's name, so that settings say the same of both."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector

    def __getattr__(self, name: str) -> Any:
        return getattr(self.detector, name)


@pytest.mark.parametrize("streams", [0, 1, 4, 8])
def test_an_interrupted_run_ends_as_an_undisturbed_one(streams: int, tmp_path: Path) -> None:
    protocol = Protocol(batch_size=8)

    def run(folder: Path, drifting: Any) -> Run:
        detectors = {"drift": Named(drifting), "cosine": StatelessCosine(DATA)}
        return replay(DATA, detectors, protocol, folder=folder, keep_parts=True, progress=False)

    whole = run(tmp_path / "whole", Drifting(DATA))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", Breaks(DATA, streams))
    left = contents(tmp_path / "broken")
    assert sum(name.startswith("drift") for name in left) == streams and "scores.json" not in left
    drifting = Drifting(DATA)
    again = run(tmp_path / "broken", drifting)
    assert drifting.streams == 9 - streams
    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    pd.testing.assert_frame_equal(again.records, whole.records)
    # and once more: nothing is computed, nothing changes
    drifting = Drifting(DATA)
    run(tmp_path / "broken", drifting)
    assert drifting.streams == 0 and contents(tmp_path / "broken") == contents(tmp_path / "whole")


def test_scores_of_other_features_settings_or_id_images_are_not_used(tmp_path: Path) -> None:
    def resets(data: FeatureSet, **changed: Any) -> int:
        drifting = Drifting(data)
        replay(
            data,
            {"drift": drifting},
            Protocol(**{"batch_size": 8, **changed}),
            folder=tmp_path,
            progress=False,
        )
        return drifting.streams

    assert [resets(DATA), resets(DATA)] == [9, 0]
    assert [resets(DATA, batch_size=7), resets(DATA, batch_size=7)] == [9, 0]
    # a set's scores belong to the ID images they were met with, as in full-spectrum evaluation
    more_id = dataclasses.replace(
        DATA,
        id_features=torch.cat([DATA.id_features, DATA.id_features[:3]]),
        id_labels=torch.cat([DATA.id_labels, DATA.id_labels[:3]]),
    )
    assert resets(more_id, batch_size=7) == 9
    other = dataclasses.replace(DATA, far={"textures": DATA.far["textures"].flip(0)})
    assert [resets(DATA), resets(other)] == [9, 3]
    damaged = tmp_path / "drift" / "near" / "ssb" / "seed1.npz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    assert resets(other) == 1


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    class Nested(Cosine):
        def score(self, features: torch.Tensor) -> Any:
            with ThreadPoolExecutor(1) as other:
                made = other.submit(replay, DATA, {"x": Cosine(DATA)}, folder=tmp_path, progress=False)
                with pytest.raises(BlockingIOError, match=r"scores\.json"):
                    made.result()
            return super().score(features)

    replay(DATA, {"x": Nested(DATA)}, Protocol((0,)), folder=tmp_path, progress=False)
