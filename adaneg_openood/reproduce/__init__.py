"""The tables and figures of the paper as commands, our numbers beside the published ones."""

from adaneg_openood.reproduce.published import load_published
from adaneg_openood.reproduce.result import Reproduction
from adaneg_openood.reproduce.run import reproduce
from adaneg_openood.reproduce.targets import TARGETS

__all__ = ["TARGETS", "Reproduction", "load_published", "reproduce"]
