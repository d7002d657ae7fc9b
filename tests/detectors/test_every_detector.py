"""What every method must do, whichever it is: one suite over ``DETECTORS``."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

import adaneg_openood
from adaneg_openood.detectors import DETECTORS, TextDetector, base, default_settings, make_detector

C, M, D, SCALE = 6, 30, 16, 20.0
OPTIONAL = ("s_neglabel", "s_adaptive")
every = pytest.mark.parametrize("name", list(DETECTORS))


def text_and_images(seed: int = 0, n: int = 90) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    text, noise = (torch.randn(rows, D, generator=generator, dtype=torch.float32) for rows in (C + M, n))
    text = normalize(text, dim=1)
    near = text[torch.randint(C + M, (n,), generator=generator)]
    return text, normalize(near + 0.3 * noise, dim=1)


def make(name: str, **settings: Any) -> TextDetector:
    return make_detector(name, text_and_images()[0], C, SCALE, settings)


def conf_of(detector: TextDetector, images: Tensor, batch: int = 20) -> Tensor:
    return torch.cat([detector.score(part).conf for part in images.split(batch)])


def same_state(first: TextDetector, second: TextDetector) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@every
def test_record_and_names(name: str) -> None:
    kind = DETECTORS[name]
    assert kind.info.name == name and kind.info.title and kind.info.idea and kind.info.choose_when
    assert getattr(adaneg_openood, kind.__name__) is kind and kind.__name__ in adaneg_openood.__all__
    if kind.config_class is not None:
        assert getattr(adaneg_openood, kind.config_class.__name__) is kind.config_class


@every
def test_settings_are_what_makes_it(name: str) -> None:
    detector = make(name)
    assert detector.settings() == default_settings(name)
    assert json.loads(json.dumps(detector.settings())) == detector.settings()
    again = make(name, **detector.settings())
    _, images = text_and_images()
    assert torch.equal(conf_of(detector, images), conf_of(again, images))
    first = next(iter(default_settings(name)))
    with pytest.raises(ValueError, match=f"unknown setting '{first}x'; did you mean '{first}'"):
        make(name, **{f"{first}x": 1})
    with pytest.raises(ValueError, match=f"{name}: unknown input 'nothing_like_it'"):
        make_detector(name, text_and_images()[0], C, nothing_like_it=1)


@every
@pytest.mark.parametrize("n", [0, 1, 7])
def test_shapes_and_dtypes(name: str, n: int) -> None:
    detector, (_, images) = make(name), text_and_images()
    detector.score(images[:40])
    before = detector.state_dict()
    scores = detector.score(images[40 : 40 + n].double())
    assert scores.pred.shape == scores.conf.shape == (n,)
    assert scores.pred.dtype == torch.int64 and scores.conf.dtype == torch.float32
    assert bool(torch.isfinite(scores.conf).all())
    assert bool(((scores.pred >= 0) & (scores.pred < C)).all())
    for key in OPTIONAL:
        values = getattr(scores, key)
        assert values is None or (values.shape == (n,) and values.dtype == torch.float32)
    after = detector.state_dict()
    if n == 0:
        assert all(torch.equal(before[key], after[key]) for key in before)


@every
def test_reset_equals_a_fresh_detector(name: str) -> None:
    used, (_, images) = make(name), text_and_images()
    conf_of(used, images)
    used.reset()
    fresh = make(name)
    assert same_state(used, fresh)
    assert torch.equal(conf_of(used, images), conf_of(fresh, images))


@every
def test_facts_about_state_hold(name: str) -> None:
    detector, (_, images) = make(name), text_and_images()
    first = detector.score(images).conf
    again = detector.score(images).conf
    if not detector.info.keeps_state:
        torch.testing.assert_close(again, first, rtol=0, atol=1e-6)
    detector.reset()
    if not detector.info.batch_matters:
        torch.testing.assert_close(conf_of(detector, images, 7), first, rtol=0, atol=1e-5)


@every
def test_a_saved_state_is_a_copy_and_goes_on(name: str) -> None:
    detector, (_, images) = make(name), text_and_images()
    conf_of(detector, images[:40])
    saved = detector.state_dict()
    kept = {key: value.clone() for key, value in saved.items()}
    expected = conf_of(detector, images[40:])
    assert all(torch.equal(saved[key], kept[key]) for key in kept), "scoring changed what was saved"
    for other in (make(name), detector):  # a fresh one, and the one that has gone on
        other.load_state_dict(saved)
        assert torch.equal(conf_of(other, images[40:]), expected)
    assert all(torch.equal(saved[key], kept[key]) for key in kept)


@every
def test_copies_go_on_alone(name: str) -> None:
    detector, (_, images) = make(name), text_and_images()
    conf_of(detector, images[:40])
    copies = [copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))]
    expected = conf_of(detector, images[40:])
    for other in copies:
        assert torch.equal(conf_of(other, images[40:]), expected)


@every
def test_a_damaged_state_is_refused_and_changes_nothing(name: str) -> None:
    detector, (_, images) = make(name), text_and_images()
    conf_of(detector, images[:40])
    good = detector.state_dict()
    for key, value in good.items():
        broken: list[Any] = [None, {k: v for k, v in good.items() if k != key}]
        damaged = value.clone()
        if value.is_floating_point() and value.numel():
            damaged.view(-1)[-1] = float("nan")
            broken.append({**good, key: damaged})
        if value.ndim:
            broken.append({**good, key: value.new_zeros((len(value) + 1, *value.shape[1:]))})
        for state in broken:
            with pytest.raises(RuntimeError, match="state not loaded"):
                detector.load_state_dict({**good, key: "text"} if state is None else state)
    with pytest.raises(RuntimeError, match="unknown"):
        detector.load_state_dict({**good, "more": torch.zeros(1)})
    other = make_detector(name, text_and_images(seed=1)[0], C, SCALE)
    with pytest.raises(RuntimeError, match="other labels"):
        detector.load_state_dict(other.state_dict())
    fresh = make(name)
    fresh.load_state_dict(good)
    assert same_state(detector, fresh)


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_bad_rows_are_named_and_change_nothing(name: str, bad: float) -> None:
    detector, (_, images) = make(name), text_and_images()
    detector.score(images[:40])
    before = copy.deepcopy(detector)
    broken = images[40:60].clone()
    broken[[2, 5]] = bad
    with pytest.raises(ValueError, match="2 row\\(s\\): 2, 5"):
        detector.score(broken)
    with pytest.raises(ValueError, match=f"must be \\(B, {D}\\)"):
        detector.score(images[:, :5])
    with pytest.raises(TypeError, match="floating point"):
        detector.score(torch.ones(3, D, dtype=torch.long))
    assert same_state(detector, before)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Cast after some images, as well as before any."""
    exact, half, (_, images) = make(name), make(name), text_and_images()
    expected = conf_of(exact, images)
    conf_of(half, images[:20])
    half.to(dtype)
    assert half.text_features.dtype == dtype
    got = conf_of(half, images[20:])
    assert got.dtype == torch.float32 and bool(torch.isfinite(got).all())
    scale = max(1.0, float(expected.abs().max()))
    assert (got - expected[20:]).abs().mean() < {torch.float16: 0.01, torch.bfloat16: 0.1}[dtype] * scale
    half.reset()
    assert half.text_features.dtype == dtype
    fresh = make(name).to(dtype)
    assert same_state(half, fresh)
    conf_of(half, images)
    fresh.load_state_dict(half.state_dict())
    assert same_state(half, fresh)


@every
def test_eight_threads_corrupt_nothing(name: str) -> None:
    detector, (_, images) = make(name), text_and_images()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(12):
                part = images[(7 * number + step) % 60 :][:16]
                assert bool(torch.isfinite(detector.score(part).conf).all())
                if number == 0 and step % 4 == 3:
                    detector.load_state_dict(detector.state_dict())
                if number == 1 and step % 4 == 3:
                    copy.deepcopy(detector).score(part)
                if number == 2 and step == 6:
                    detector.reset()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    make(name).load_state_dict(detector.state_dict())  # which checks it


@every
def test_autocast_and_inference_mode_change_nothing(name: str) -> None:
    _, images = text_and_images()
    expected = conf_of(make(name), images)
    detector = make(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conf_of(detector, images), expected)
    detector = make(name)
    with torch.inference_mode():
        assert torch.equal(conf_of(detector, images[:40]), expected[:40])
    assert torch.equal(conf_of(detector, images[40:]), expected[40:])
    assert not conf_of(make(name), images.clone().requires_grad_()).requires_grad


class NoFloat64(TorchDispatchMode):
    """Stands in for a device that has no float64, such as MPS."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype == torch.float64:
            raise TypeError("the device has no float64")
        return result


@every
def test_devices_without_float64(name: str) -> None:
    _, images = text_and_images()
    with NoFloat64():
        detector = make(name)
        conf_of(detector, images * 3)
        detector.load_state_dict(detector.state_dict())
        detector.diagnose()
        detector.reset()


@every
def test_scaled_rows_are_normalised_and_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    _, images = text_and_images()
    expected = conf_of(make(name), images)
    for factor in (3.0, 1e30, 1e-30):
        detector = make(name)
        torch.testing.assert_close(conf_of(detector, images * factor), expected, atol=1e-5, rtol=1e-5)
    assert sum("not unit length" in record.message for record in caplog.records) == 3


@every
def test_memory_does_not_grow_with_the_stream(name: str) -> None:
    """AdaNeg's pooled bank grows until every row is full."""
    settings = {"memory_length": 2} if name == "adaneg" else {}
    detector, (_, images) = make(name, **settings), text_and_images(n=400)

    def held() -> int:
        conf_of(detector, images)
        return sum(value.numel() * value.element_size() for value in detector.buffers())

    assert held() == held() == held()


@every
def test_global_random_state_is_untouched(name: str) -> None:
    before = torch.random.get_rng_state()
    detector, (_, images) = make(name), text_and_images()
    conf_of(detector, images)
    detector.reset()
    assert torch.equal(torch.random.get_rng_state(), before)


@every
def test_predict_and_its_threshold(name: str) -> None:
    detector, (_, images) = make(name), text_and_images()
    with pytest.raises(RuntimeError, match="calibrate"):
        detector.predict(images)
    conf = detector.score(images).conf
    detector.reset()
    threshold = detector.calibrate(conf, 0.5)
    pred = detector.predict(images)
    assert bool((pred == -1).any()) and int((pred == -1).sum()) <= 45
    with pytest.raises(ValueError, match="threshold"):
        type(threshold)(float("nan"), 0.95, 30, "id")


@every
def test_bad_text_is_refused(name: str) -> None:
    text, _ = text_and_images()
    broken = text.clone()
    broken[1] = float("nan")
    for rows, n_id, said in (
        (broken, C, "NaN"), (text, 0, "n_id"), (text[:3], C, "n_id"), (text[0], C, "text_features"),
        (text[:, :0], C, "width 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            make_detector(name, rows, n_id)
    if DETECTORS[name].info.needs_negatives:
        with pytest.raises(ValueError, match="no negative label"):
            make_detector(name, text[:C], C)


def test_names_of_methods() -> None:
    with pytest.raises(ValueError, match="did you mean 'adaneg'"):
        make_detector("adanegg", *text_and_images(), 1)
    months = [kind.info.month for kind in DETECTORS.values()]
    assert months == sorted(months) and {"mcm", "neglabel", "adaneg"} <= set(DETECTORS)


@every
def test_it_goes_on_within_another_module(name: str) -> None:
    first, second, (_, images) = make(name), make(name), text_and_images()
    conf_of(first, images[:40])
    saved = torch.nn.ModuleDict({"part": first}).state_dict()
    container = torch.nn.ModuleDict({"part": second})
    container.load_state_dict(saved)
    assert torch.equal(conf_of(second, images[40:]), conf_of(first, images[40:]))
    bank = [key for key in saved if ".bank." in key]
    rest = {key: value for key, value in saved.items() if key not in bank}
    assert sorted(container.load_state_dict(rest, strict=False).missing_keys) == sorted(bank)


@every
def test_made_cast_or_loaded_in_inference_mode(name: str) -> None:
    text, images = text_and_images()
    expected = conf_of(make(name), images)
    with torch.inference_mode():
        made = make(name)
        encoded = text * 1.0
        cast = make(name).double().to(torch.float32)
        loaded = make(name)
        torch.nn.ModuleDict({"part": loaded}).load_state_dict(
            torch.nn.ModuleDict({"part": made}).state_dict()
        )
        assert torch.equal(conf_of(make(name), images), expected)
    for detector in (made, cast, loaded, make_detector(name, encoded, C, SCALE)):
        assert torch.equal(conf_of(detector, images), expected)
        detector.load_state_dict(detector.state_dict())
        copy.deepcopy(detector).reset()
    half = make(name)
    with torch.inference_mode():
        half.half()
    assert torch.equal(conf_of(half, images), conf_of(make(name).half(), images))


@every
def test_casts_wait_for_scores(name: str) -> None:
    detector, (_, images) = make(name), text_and_images()
    started, done = threading.Event(), threading.Event()

    def cast() -> None:
        started.set()
        detector.half()
        done.set()

    thread = threading.Thread(target=cast)
    with detector._exactly():
        thread.start()
        started.wait()
        assert not done.wait(0.1), "it was cast while another thread was at work on it"
        assert detector.score(images).conf.isfinite().all()
    thread.join()
    assert detector.text_features.dtype == torch.float16


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_changes_nothing(name: str, dtype: torch.dtype) -> None:
    expected, (_, images) = conf_of(make(name), text_and_images()[1]), text_and_images()
    state = make(name).state_dict()
    torch.set_default_dtype(dtype)
    try:
        detector = make(name)
        assert {key: value.dtype for key, value in detector.state_dict().items()} == {
            key: value.dtype for key, value in state.items()
        }
        assert torch.equal(conf_of(detector, images), expected)
        detector.load_state_dict(detector.state_dict())
        detector.diagnose()
        detector.reset()
        assert torch.equal(conf_of(detector, images), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_of_any_length_are_normalised_alike_on_any_device(name: str, dtype: torch.dtype) -> None:
    """As on CPUs and as on CUDA, in float32 whatever the rows come in."""
    images = text_and_images()[1][:40].to(dtype)
    largest = {torch.float16: 300.0, torch.float64: 1e60}.get(dtype, 1e30)
    images[:10] *= largest
    images[10:20] *= 3.0
    images[30:] *= 1.1
    images[20:30] /= 300.0 if dtype == torch.float16 else largest
    unit = normalize(images.double() / images.double().abs().amax(dim=1, keepdim=True), dim=1).float()
    here, there, plain = make(name), make(name), make(name)
    there.score(images[:0])
    expected = plain.score(unit).conf
    torch.testing.assert_close(here.score(images).conf, expected, atol=1e-5, rtol=1e-5)
    with there._exactly():
        conf = there._step(images)[1]
    torch.testing.assert_close(conf, expected, atol=1e-5, rtol=1e-5)


DAMAGED = [
    ("adaneg", "confident.seen", lambda v: v - 95, r"seen must lie in \[0, inf\]"),
    ("adaneg", "bank.progress", lambda v: v * 0 - 5, "progress"),
    ("oodd", "heap.negated", lambda v: torch.cat([v[:40].flip(0), v[40:]]), "in the order of a heap"),
    ("oodd", "held", lambda v: v * 0 + 5, "unit length"),
    ("smoothed_neglabel", "seen", lambda v: v - 5000, r"seen must lie in \[0, inf\]"),
    ("smoothed_neglabel", "seen", lambda v: v + 1, "unit length"),
    ("smoothed_neglabel", "held", lambda v: v * 0 + 5, "unit length"),
    ("smoothed_neglabel", "evidence", lambda v: v - 20, r"evidence must lie in \[-12, 12\]"),
    ("smoothed_neglabel", "neighbours", lambda v: v + 30, r"neighbours must lie in \[-12, 12\]"),
    ("smoothed_neglabel", "confidence", lambda v: v + 3, r"confidence must lie in \[0, 1\]"),
    ("tanl", "scores.seen", lambda v: v - 5000, r"seen must lie in \[0, inf\]"),
    ("tanl", "scores.seen", lambda v: v + 1, "bins are not those of the scores"),
    ("tanl", "scores.scores", lambda v: v + 3, r"scores must lie in \[0, 1\]"),
    ("tanl", "scores.bins", lambda v: v * 0 - 5, "bins are not those of the scores"),
    ("tanl", "id_like.rows", lambda v: v - 1, r"rows must lie in \[0, 1\]"),
    ("tanl", "id_like.seen", lambda v: v - 5000, r"seen must lie in \[0, inf\]"),
]


@pytest.mark.parametrize(("name", "key", "damage", "said"), DAMAGED)
def test_values_that_no_stream_leaves_are_refused(name: str, key: str, damage: Any, said: str) -> None:
    detector, (_, images) = make(name), text_and_images()
    if key != "bank.progress":  # which matters where nothing is held
        conf_of(detector, images)
    state = detector.state_dict()
    make(name).load_state_dict(state)
    with pytest.raises(RuntimeError, match=said):
        detector.load_state_dict({**state, key: damage(state[key])})
    assert all(torch.equal(value, state[key]) for key, value in detector.state_dict().items())


@every
def test_bad_rows_found_on_the_device_are_told_by_diagnose(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    detector = make(name)
    detector._bad_rows += 3
    detector.diagnose()
    assert "3 image(s) had NaN" in caplog.text
    caplog.clear()
    detector.reset()
    assert not caplog.text


def test_float64_images_are_cast_before_they_move_where_there_is_no_float64(monkeypatch) -> None:
    detector, (_, images) = make("neglabel"), text_and_images()
    assert detector._given(images.double()).dtype == torch.float64
    monkeypatch.setattr(base, "widest_float", lambda device: torch.float32)
    assert detector._given(images.double()).dtype == torch.float32
    assert detector._given(images.half()).dtype == torch.float16
