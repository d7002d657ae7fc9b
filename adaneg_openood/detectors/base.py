"""What every detector shares: checked features, one result type, state, and safety in threads."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adaneg_openood.detectors.graphs import GraphedStep
from adaneg_openood.detectors.state import StateModule, widest_float
from adaneg_openood.detectors.threshold import Threshold, find_threshold
from adaneg_openood.io.checks import check_int, check_positive
from adaneg_openood.io.names import listed

logger = logging.getLogger(__name__)

_UNIT_TOLERANCE = 1e-3  # a unit vector rounded to bfloat16 stays within this
_GIVEN = ("self", "text_features", "n_id", "logit_scale")  # what is no setting


@dataclass(frozen=True)
class Scores:
    """Scores of B images.

    Attributes:
        pred: (B,) int64, ID class in [0, C).
        conf: (B,) float32, larger = more ID.
        s_neglabel: (B,) float32, the NegLabel score; None where a method has none.
        s_adaptive: (B,) float32, the score with adaptive proxies; None where a method has none.
    """

    pred: Tensor
    conf: Tensor
    s_neglabel: Tensor | None = None
    s_adaptive: Tensor | None = None


@dataclass(frozen=True)
class DetectorInfo:
    """Facts about a method, from which tables, choices and documentation are made.

    Attributes:
        name: as settings name it, such as ``"adaneg"``: OpenOOD's ``postprocessor_name``, and
            ``detector:`` in YAML.
        title: as tables show it, such as ``"AdaNeg"``.
        idea: the method in one line.
        paper: authors and title.
        link: where the paper is.
        published_in: such as ``"NeurIPS 2024"``; empty if it is not published.
        month: ``"YYYY-MM"`` of that; tables list methods in this order.
        needs_negatives: whether text features must hold negative labels.
        keeps_state: whether scores depend on the images seen before.
        batch_matters: whether scores depend on how a stream is cut into batches.
        takes_corpus: whether its negatives are every word of a corpus, of which it chooses by itself.
        inputs: what it is given.
        state: what it keeps, in numbers of values.
        cost: operations per image, C ID labels and M negatives of width D.
        published: published numbers, each with its convention of FPR95.
        choose_when: when to take it.
    """

    name: str
    title: str
    idea: str
    paper: str
    link: str
    published_in: str
    month: str
    needs_negatives: bool
    keeps_state: bool
    batch_matters: bool
    inputs: str
    state: str
    cost: str
    published: str
    choose_when: str
    takes_corpus: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """The state of a detector after a stream; each method adds what it has to tell.

    Attributes:
        images: scored since the last reset.
        warnings: kind -> where the method is used outside of where it helps, and what to do.
    """

    images: int
    warnings: Mapping[str, str]


class TextDetector(StateModule):
    """A detector that compares image features with text features.

    A method is a subclass with a record of facts, ``info``, and a :meth:`_score`. Its settings are its
    constructor's positional parameters behind ``text_features``, ``n_id`` and ``logit_scale``, each
    kept in an attribute of the same name; or one parameter ``config``, a dataclass ``config_class``,
    whose fields are the settings. Keyword-only parameters are further inputs and no settings. What it
    remembers is declared with :meth:`~StateModule.add_state`.

    One detector may be used by several threads: calls wait for one another.
    """

    info: ClassVar[DetectorInfo]
    config_class: ClassVar[type[Any] | None] = None
    # whether rows that are NaN may be found on the device while they are scored, and leave no trace
    stands_bad_rows: ClassVar[bool] = False
    # whether its constructor copies the rows of text that it keeps; else they are copied here
    _copies_text: ClassVar[bool] = False
    threshold: Threshold | None = None  # see calibrate
    text_features: Tensor
    _bad_rows: Tensor

    config: Any  # where there is a config_class

    def __init__(self, text_features: Tensor, n_id: int, logit_scale: float = 1.0) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._graphed = GraphedStep(self._step)
        check_int("n_id", n_id)
        if not isinstance(text_features, Tensor) or text_features.ndim != 2:
            raise ValueError(
                "text_features must be a (C + M, D) tensor, got "
                f"{tuple(getattr(text_features, 'shape', ())) or type(text_features).__name__}"
            )
        if text_features.shape[1] < 1:
            raise ValueError("text_features has width 0")
        if len(text_features) < n_id:
            raise ValueError(f"n_id is {n_id}, but text_features has {len(text_features)} rows only")
        if self.info.needs_negatives and len(text_features) == n_id:
            raise ValueError(
                f"n_id is {n_id} and text_features has {len(text_features)} rows: no negative label left"
            )
        check_positive("logit_scale", logit_scale)
        self.n_id, self.logit_scale = n_id, float(logit_scale)
        self._said_normalised = False
        text = self._unit(text_features.detach(), "text_features", copy=not self._copies_text)
        self.register_buffer("text_features", text)
        none = torch.zeros((), dtype=torch.long, device=self.text_features.device)
        self.register_buffer("_bad_rows", none, persistent=False)

    def score(self, features: Tensor) -> Scores:
        """Score a batch of images.

        Args:
            features: (B, D), any float dtype, on any device; B may be 0. Rows that are not of unit
                length are normalised. Autocast is switched off, as it would move confidences.

        Raises:
            ValueError, TypeError: wrong width, or rows that are zero, NaN or infinite; the detector
                stays as it was. On CUDA, where asking would make the host wait, such rows get NaN for a
                confidence and are not remembered; their number is logged when something is read next,
                by :meth:`reset`, :meth:`diagnose` or :meth:`state_dict`.
        """
        with self._exactly():
            given = self._given(features)
            if given.device.type != "cuda" or not self.stands_bad_rows:
                return self._score(self._checked(given))
            step = self._graphed if self.fixed_shape else self._step
            return Scores(*step(given))  # type: ignore[arg-type]

    @property
    def fixed_shape(self) -> bool:
        """Whether a step reads nothing back from the device, so that it can be a CUDA graph."""
        return False

    def _step(self, features: Tensor) -> tuple[Tensor | None, ...]:
        """:meth:`score` of a batch whose bad rows are found on the device."""
        given = features.float()
        unit = torch.where(_off(given)[:, None], _normalised(features), given)
        bad = unit[:, 0].isnan()
        self._bad_rows.add_(bad.sum())
        scores = self._score(unit.to(self.text_features.dtype))
        conf = scores.conf.masked_fill(bad, float("nan"))
        return scores.pred, conf, scores.s_neglabel, scores.s_adaptive

    def _report_bad_rows(self) -> None:
        if found := int(self._bad_rows):
            self._bad_rows.zero_()
            logger.warning(
                "%d image(s) had NaN, infinite or all-zero features: they have NaN for a confidence, "
                "and were not remembered",
                found,
            )

    def _score(self, features: Tensor) -> Scores:
        """Score (B, D) features of unit length, on this detector's device and in its dtype."""
        raise NotImplementedError

    def _logits(self, features: Tensor, text: Tensor) -> Tensor:
        """(B, N) cosines with (N, D) rows of text times the logit scale, in at least float32."""
        if features.dtype in (torch.float16, torch.bfloat16):  # scaled in float32
            return (features @ text.T).float().mul_(self.logit_scale)
        return (features * self.logit_scale) @ text.T

    def reset(self) -> None:
        """Forget the stream."""
        with self._exactly():
            self._report_bad_rows()
            super().reset()

    def diagnose(self) -> Diagnosis | None:
        """What the memory looks like; None where a method has none to look at."""
        with self._exactly():
            self._report_bad_rows()
        return None

    @staticmethod
    def shown(conf: Tensor) -> Tensor:
        """Confidences as people are shown them: as they are, where they lie about [0, 1] already."""
        return conf

    def calibrate(self, conf: Tensor, tpr: float = 0.95, source: str = "id") -> Threshold:
        """Set the threshold of :meth:`predict` from (N,) confidences; see :func:`find_threshold`."""
        self.threshold = find_threshold(conf, tpr, source)
        return self.threshold

    def predict(self, features: Tensor) -> Tensor:
        """(B,) int64: the ID class, or -1 for OOD, of (B, D) image features.

        Raises:
            RuntimeError: before :meth:`calibrate`.
        """
        if self.threshold is None:
            raise RuntimeError(
                "predict needs a threshold: call calibrate with scores of ID images first"
            )
        scores = self.score(features)
        return torch.where(scores.conf >= self.threshold.value, scores.pred, -1)

    # Settings: what the constructor's signature tells.

    @classmethod
    def default_settings(cls) -> dict[str, Any]:
        """Every setting of this method with its default, as JSON values."""
        if cls.config_class is not None:
            return dataclasses.asdict(cls.config_class())
        parameters = inspect.signature(cls).parameters.values()
        settings = [p for p in parameters if p.kind is not p.KEYWORD_ONLY and p.name not in _GIVEN]
        return {parameter.name: parameter.default for parameter in settings}

    def settings(self) -> dict[str, Any]:
        """The settings this detector was made with; ``make_detector`` takes them again."""
        source = self if self.config_class is None else self.config
        return {name: getattr(source, name) for name in self.default_settings()}

    @classmethod
    def input_names(cls) -> list[str]:
        """Names of the inputs it takes besides text features, such as ``noise_features``."""
        parameters = inspect.signature(cls).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    # Saving, loading and copying, each as one step among those of other threads.

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """A copy of the text features and of all that is remembered."""
        with self._exactly():
            self._report_bad_rows()
            return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Take up a saved state; everything is checked before anything changes.

        Settings are no part of a state: load it into a detector that was made with those of the one
        that saved it. Others go unnoticed, unless they change a shape or the order of the negatives.

        Raises:
            RuntimeError: the state is damaged, or of a detector with other labels or other shapes.
        """
        with self._exactly():
            parts: dict[str, dict[str, Any]] = {name: {} for name, _ in self.named_modules()}
            for key, value in state_dict.items():
                prefix, _, name = key.rpartition(".")
                parts.setdefault(prefix, {})[name] = value
            problem = self._problem_with_parts(parts)
            if problem:
                raise RuntimeError(f"{type(self).__name__}: state not loaded; {problem}")
            return super().load_state_dict(state_dict)

    def _problem_with_parts(self, parts: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Why a state cannot be loaded, given as module name -> name -> tensor; nothing is changed."""
        modules: dict[str, Any] = dict(self.named_modules())
        for prefix, part in parts.items():
            known = prefix in modules
            problem = modules[prefix].problem_with(part) if known else f"unknown {', '.join(part)}"
            if problem:
                return f"{prefix}: {problem}" if prefix else problem
        return None

    def _unfit(self, state: Mapping[str, Tensor]) -> str | None:
        problem = super()._unfit(state)
        if problem is not None:
            return problem
        saved, own = state["text_features"].float(), self.text_features.float()
        off = torch.linalg.vector_norm(saved.to(own.device) - own, dim=1)
        other = bool((off > 10 * _UNIT_TOLERANCE).any())
        return "text_features differ: it is of a detector with other labels" if other else None

    @staticmethod
    def _unfit_rows(held: Tensor, n: Tensor) -> str | None:
        """What is wrong with (N, D) rows held: the first n are of unit length, the others zero."""
        in_use = torch.arange(len(held), device=held.device) < n.to(held.device)
        off = (torch.linalg.vector_norm(held.float(), dim=1) - in_use.float()).abs()
        bad = bool((off > 10 * _UNIT_TOLERANCE).any())
        return (
            f"held must be {int(in_use.sum())} rows of unit length, and zero behind them"
            if bad
            else None
        )

    def __getstate__(self) -> dict[str, Any]:
        with self._exactly():
            state = self.__dict__.copy()
            del state["_lock"], state["_graphed"]
            for name in ("_buffers", "_modules"):
                state[name] = copy.deepcopy(state[name])
            return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()
        self._graphed = GraphedStep(self._step)

    def _apply(self, fn: Any, *args: Any) -> Any:
        with self._exactly():
            self._graphed.forget()  # what it was captured with moves away
            return super()._apply(fn, *args)

    @contextmanager
    def _exactly(self) -> Iterator[None]:
        """One thread at a time, without gradients, and in the dtypes that are written down."""
        with self._lock, torch.inference_mode(False), torch.no_grad(), self._without_autocast():
            yield

    def _without_autocast(self) -> Any:
        try:
            return torch.autocast(self.text_features.device.type, enabled=False)
        except RuntimeError:  # there is none for this kind of device
            return nullcontext()

    def _given(self, features: Tensor) -> Tensor:
        """(B, D) floating-point features on this detector's device, or an error; none is read."""
        dim = self.text_features.shape[1]
        if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[1] != dim:
            shape = tuple(getattr(features, "shape", ())) or type(features).__name__
            raise ValueError(f"image features must be (B, {dim}) like the text features, got {shape}")
        if not features.is_floating_point():
            raise TypeError(f"image features must be floating point, got {features.dtype}")
        device = self.text_features.device
        if features.dtype == torch.float64:  # cast before the move: MPS refuses it after that
            features = features.to(widest_float(device))
        return features.detach().to(device)

    def _checked(self, given: Tensor) -> Tensor:
        """(B, D) :meth:`_given` features, of unit length and in this detector's dtype, or an error."""
        return self._unit(given, "image features").to(self.text_features.dtype)

    def _unit(self, features: Tensor, what: str, copy: bool = False) -> Tensor:
        """Rows as float32 unit vectors; those that are not unit length are normalised, said once."""
        if not features.is_floating_point():
            raise TypeError(f"{what} must be floating point, got {features.dtype}")
        unit = features.to(torch.float32, copy=copy)
        off = _off(unit)
        # One read decides for the whole batch: the checks below run only where something is off.
        if not bool(off.any()):
            return unit
        largest = features.abs().amax(dim=1)
        for bad, said in ((~torch.isfinite(largest), "NaN or infinite"), (largest == 0, "all-zero")):
            rows = bad.nonzero().squeeze(1).tolist()
            if rows:
                raise ValueError(f"{what}: {said} values in {len(rows)} row(s): {listed(rows)}")
        if not self._said_normalised:
            logger.warning("%s are not unit length; normalising them (said once)", what)
            self._said_normalised = True
        return torch.where(off[:, None], _normalised(features), unit)


def _off(rows: Tensor) -> Tensor:
    """(N,) bool, which float32 rows are not of unit length, or not finite."""
    return ~((torch.linalg.vector_norm(rows, dim=1) - 1.0).abs() <= _UNIT_TOLERANCE)


def _normalised(rows: Tensor) -> Tensor:
    """Rows of any float dtype as float32 unit vectors; all NaN where one is zero, NaN or infinite."""
    wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
    # by the largest value first, so that no square over- or underflows
    scaled = (wide / torch.linalg.vector_norm(wide, float("inf"), dim=1, keepdim=True)).float()
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
