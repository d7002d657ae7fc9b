"""Writes docs/openood_postprocessors.md: which of OpenOOD's postprocessors run on CLIP."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import adaneg_openood  # noqa: F401 - makes OpenOOD importable

HEAD = """# OpenOOD's postprocessors on an image-text model

The table says which of OpenOOD 1.5's postprocessors run on the network `adaneg_clip`, through OpenOOD's
own evaluator. `python tests/openood/write_docs.py` tries them all and writes this page, and
`tests/openood/test_openood_compare.py` checks it.

"""


def main() -> None:
    import test_openood_compare as test
    from openood_tiny import build_benchmark

    torch.set_num_threads(1)

    class Folders:
        def __init__(self, root: str) -> None:
            self.root = Path(root)

        def mktemp(self, name: str) -> Path:
            path = self.root / name
            path.mkdir()
            return path

    with tempfile.TemporaryDirectory() as root:
        folders = Folders(root)
        data = folders.mktemp("data")
        build_benchmark(data, "cifar10")
        configs = test.configs.__wrapped__(folders)
        comparison = test.comparison.__wrapped__(data, configs, folders)
    test.DOCS.parent.mkdir(exist_ok=True)
    test.DOCS.write_text(HEAD + comparison.support_markdown(), encoding="utf-8")


if __name__ == "__main__":
    main()
