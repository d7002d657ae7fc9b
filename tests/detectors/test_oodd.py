"""OODD: the released implementation's outputs, ties included, and the state of its queue."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_cases import FRONTIER, arrays, frontier_cases, stream, tensor
from torch.nn.functional import normalize

from adaneg_openood.detectors import NegLabel
from adaneg_openood.detectors.oodd import OODD

CASES = frontier_cases("oodd")


@pytest.fixture(scope="module")
def inputs() -> dict:
    return {**arrays(FRONTIER / "inputs.npz"), **arrays(FRONTIER / "oodd_base.npz")}


def held_images(detector: OODD, images: torch.Tensor) -> list[int]:
    """Positions of the images in the queue."""
    held = detector.held[: int(detector.heap.size)]
    return sorted((held @ images.T).argmax(dim=1).tolist())


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_golden(case: dict, inputs: dict) -> None:
    expected, images = arrays(FRONTIER / f"{case['name']}.npz"), tensor(inputs["image"])
    args, groups = case["args"], 1 if case["base"] == "g1" else 5
    detector = OODD(tensor(inputs["text"]), 20, k=args["k"], queue=args["queue_size"], groups=groups)
    ties = tensor(inputs["base_ties"]) if case["base"] == "ties" else None
    order, confs = stream(case, inputs), []
    for number, index in enumerate(torch.from_numpy(order).split(case["batch_size"])):
        if ties is None:
            scores = detector.score(images[index])
            np.testing.assert_allclose(
                scores.s_neglabel, inputs[f"base_g{groups}"][index], atol=1e-5, rtol=0
            )
            np.testing.assert_array_equal(scores.pred, inputs["pred"][index])
            confs.append(scores.conf)
        else:  # rounded scores, as no text features give them
            confs.append(detector._against_queue(images[index], ties[index]))
        held = held_images(detector, images)
        assert len(held) == expected["queue_size"][number]
        assert (inputs["label"][held] < 0).sum() == expected["queue_ood"][number]
    np.testing.assert_allclose(torch.cat(confs), expected["conf"], atol=1e-5, rtol=0)
    np.testing.assert_array_equal(held, expected["queue_final"])


def test_fewer_images_than_k_take_the_smallest_cosine(inputs: dict) -> None:
    text, images = tensor(inputs["text"]), tensor(inputs["image"])[:3]
    detector = OODD(text, 20, k=5)
    conf = detector.score(images[:1]).conf
    torch.testing.assert_close(conf, NegLabel(text, 20).score(images[:1]).conf - 1.0)
    conf = detector.score(images[1:]).conf
    least = (images[1:] @ images.T).amin(dim=1)
    torch.testing.assert_close(conf, NegLabel(text, 20).score(images[1:]).conf - least)


def test_a_queue_full_of_low_scores_takes_no_more() -> None:
    text = torch.eye(4)
    low, high = text[[2, 3, 2]], normalize(torch.tensor([[1.0, 0.1, 0.2, 0.3]]), dim=1)
    detector = OODD(text, 2, queue=3, k=3, groups=1)
    detector.score(low)
    for _ in range(4):
        conf = detector.score(high).conf
    assert torch.equal(detector.held, low)
    # the third of its cosines to the queue: it is not in it itself
    torch.testing.assert_close(conf, 1.0 - (high @ low.T).amin(dim=1))


def test_a_damaged_queue_is_not_loaded(inputs: dict) -> None:
    detector = OODD(tensor(inputs["text"]), 20, queue=50)
    detector.score(tensor(inputs["image"]))
    for name, value, message in (
        ("heap.size", torch.tensor(51), r"heap: size is 51, must be in \[0, 50\]"),
        ("heap.slots", torch.zeros(50, dtype=torch.long), "slots must hold each number below 50 once"),
    ):
        with pytest.raises(RuntimeError, match=message):
            detector.load_state_dict({**detector.state_dict(), name: value})
