"""Stands in for OpenAI's package in tests: its interface around the tiny model of ``openood_tiny``."""

from .clip import *  # noqa: F403
