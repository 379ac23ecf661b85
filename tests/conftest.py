"""Shared pieces: the project's root, a small folder of images, and papermill as a user calls it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("MPLBACKEND", "agg")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job: what the tests start would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root() -> Path:
    return ROOT


@pytest.fixture
def people(tmp_path) -> Path:
    """Five identities of eight grey pictures, in odd sizes; each a pattern of its own under noise."""
    rng = np.random.default_rng(0)
    for who in range(5):
        pattern = rng.integers(0, 256, (6, 5))
        for k in range(8):
            picture = np.kron(pattern, np.ones((9, 7))) + rng.normal(0, 20, (54, 35))
            path = tmp_path / f"people/id{who}/{k:02d}.pgm"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
    return tmp_path / "people"


def run_notebook(name: str, out: Path, cwd: Path, **parameters) -> subprocess.CompletedProcess:
    """One of nbs/ by papermill, from any working folder."""
    args = [str(v) for k, value in parameters.items() for v in ("-p", k, value)]
    command = [Path(sys.executable).with_name("papermill"), ROOT / f"nbs/{name}.ipynb", out, *args, "--no-progress-bar"]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "IN_TEST"})
