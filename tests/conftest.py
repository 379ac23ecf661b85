"""Shared pieces: the project's root, and a small folder of images."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("MPLBACKEND", "agg")
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
