"""The record of facts that every method carries."""

from __future__ import annotations

from dataclasses import dataclass


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
