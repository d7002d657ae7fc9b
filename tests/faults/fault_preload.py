"""What the commands import when they begin: here once, for all children of the fork server."""

import contextlib

import matplotlib.pyplot  # noqa: F401
import open_clip  # noqa: F401
import pandas  # noqa: F401
import sklearn.metrics  # noqa: F401

import adaneg_openood.cli  # noqa: F401

with contextlib.suppress(ImportError):
    import openood.evaluation_api  # noqa: F401
