"""Words: which negative labels to set against the ID names."""

from adaneg_openood.text.mining import mine_negatives

__all__ = ["mine_negatives"]
