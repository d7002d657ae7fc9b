"""The loop of docs/scaling.md over files that do not fit into memory together."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_fakes import make_sweep_data
from safetensors.torch import load_file, save_file

from adaneg_openood import AdaNeg
from adaneg_openood.io.files import atomic_path

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"


def test_a_killed_loop_goes_on_as_if_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = next(part for part in PAGE.read_text("utf-8").split("```python\n") if "state.pt" in part)
    code = textwrap.dedent(code.split("   ```")[0])
    data = make_sweep_data()
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for file, part in zip(files, data.id_features.chunk(3)):
        save_file({"features": part.contiguous()}, file)

    def run(folder: str, read: Any) -> list[torch.Tensor]:
        (tmp_path / folder).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        detector = AdaNeg(data.text_features, data.n_id)
        names = {"Path": Path, "torch": torch, "load_file": read, "atomic_path": atomic_path}
        names.update(files=files, detector=detector)
        exec(code, names)
        return names["scores"]  # type: ignore[return-value]

    def killed(file: Path) -> dict[str, torch.Tensor]:
        if file == files[1]:
            raise KeyboardInterrupt
        return load_file(file)

    expected = run("whole", load_file)
    with pytest.raises(KeyboardInterrupt):
        run("killed", killed)
    read: list[Path] = []
    found = run("killed", lambda file: read.append(file) or load_file(file))
    assert read == files[1:]
    assert all(torch.equal(*pair) for pair in zip(found, expected)) and len(found) == 3
