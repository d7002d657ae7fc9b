"""Loading through libraries that fetch from the Hugging Face hub: fast to fail, and quiet."""

from __future__ import annotations

import importlib.util
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_PATIENCE = 3.0  # seconds
_NOISY = ("huggingface_hub", "transformers")


@contextmanager
def hub_access(needed: bool) -> Iterator[str]:
    """Within the block, a hub that cannot be reached is not tried again and again for a minute.

    What is in its cache is still used. Errors that are raised say everything, so what the libraries log
    beside them is left out.

    Args:
        needed: whether anything may be asked of the hub; only then is it looked whether it answers.

    Yields:
        Why nothing can be downloaded, or an empty text.
    """
    # forked data loader workers would warn of it, among the bars
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if importlib.util.find_spec("huggingface_hub") is None:
        yield ""
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    with ExitStack() as stack:
        for name in _NOISY:
            stack.enter_context(_level(logging.getLogger(name), logging.ERROR))
        stack.enter_context(_without_open_clip(logging.getLogger()))
        silent = needed and not before and not _answers(constants.ENDPOINT)
        constants.HF_HUB_OFFLINE = before or silent
        try:
            yield f"{constants.ENDPOINT} does not answer" if silent else ""
        finally:
            constants.HF_HUB_OFFLINE = before


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


@contextmanager
def _level(logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _without_open_clip(root: logging.Logger) -> Iterator[None]:
    """open_clip logs to the root logger, and says there what its exceptions say."""

    def keep(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
