"""A network of one's own, by the name of its class: trained, found, opened, saved, loaded, compared as one that has a name; refused where it can't be."""

import json
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import wae_nb
from wae_nb.cli import main
from wae_nb.data.sets import load_data
from wae_nb.lab.folders import open_run
from wae_nb.method.imported import imported_network
from wae_nb.train.engine import Engine
from wae_nb.train.recipes import short_recipe
from wae_nb.train.records import RecordError
from wae_nb.train.runs import get_or_train
from wae_nb.train.specs import RunSpec

CODE = """
import torch
from torch import nn


class Mine(nn.Module):
    pixels = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

    def __init__(self, num_classes=4):
        super().__init__()
        self.stem, self.skip, self.fc = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 1, 2), nn.Linear(32, num_classes)
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32))

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.fc(torch.relu(self.body(x) + self.skip(x)).mean((2, 3)))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch, request):
    """A folder with a file of the user's, in which everything runs; a module's name of each test's own, for Python reads one once."""
    monkeypatch.chdir(tmp_path)
    name = f"nets_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(CODE)
    return f"{name}:Mine"


def test_scores_are_the_author_s(mine):
    """With their weights, on pixels that are normalised as the class says."""
    net, x = imported_network(mine, 4).eval(), torch.rand(2, 3, 48, 48)
    built = wae_nb.build("plain", mine, 4, 48, weights=net.state_dict()).eval()
    torch.testing.assert_close(built(x).s, net((x - 0.5) / 0.25))
    assert built.config["arguments"]["backbone"] == mine and wae_nb.build("wae", mine, 7, 64)(x).s.shape == (2, 7)


def test_a_run_is_found_opened_saved_and_loaded(mine, tmp_path):
    data, engine = load_data(None, 32, tmp_path / "data", demo_shape=(3, 8)), Engine("cpu", progress=False)
    spec = RunSpec("half", mine, data.checksum, short_recipe("short", 24, updates=4, epochs=2), image_size=32)
    run, x = get_or_train(spec, data, engine, tmp_path / "runs"), torch.rand(2, 3, 32, 32)
    assert get_or_train(spec, data, engine, tmp_path / "runs").record == run.record
    scores = run.model.eval()(x).s
    for again in (open_run(run.folder).model, wae_nb.load(run.save(tmp_path / "saved", data.classes))):
        assert torch.equal(again.eval()(x).s, scores)
    code = tmp_path / f"{mine.partition(':')[0]}.py"
    code.write_text(CODE + "\n# another")
    with pytest.raises(ValueError, match="was changed after it was imported; start Python again"):
        open_run(run.folder)
    del sys.modules[code.stem]  # as if started again
    assert spec.name != run.spec.name or spec.fingerprint() != run.record["decisive"]  # another network, and another run
    with pytest.raises(RecordError, match="the code of .* was another when this was trained"):
        open_run(run.folder)


def test_it_is_compared(mine, tmp_path):
    rng = np.random.default_rng(0)
    for i, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "photos" / colour).mkdir(parents=True)
        for k in range(24):
            picture = rng.integers(0, 120, (40, 40, 3), dtype=np.uint8)
            picture[..., i] += 100
            Image.fromarray(picture).save(tmp_path / f"photos/{colour}/{k:02d}.png")
    words = ["compare", "photos", "--backbone", mine, "--size", "32", "--epochs", "4", "--rows", "half", "--engine", "eager", "--device", "cpu", "--out", "out"]
    done = CliRunner().invoke(main, words, prog_name="wae")
    assert not done.exit_code and not done.exception, done.output
    record = json.loads((tmp_path / "out/compare.json").read_text())
    assert record["backbone"] == mine and record["rows"][0]["title"] == "standard network"


@pytest.mark.parametrize("name, said", [("nowhere_at_all:Mine", "cannot be imported"), ("os:abort", "no class abort"), ("./nets.py:Mine", "module:Class")])
def test_what_cannot_be_is_said(name, said, tmp_path):
    done = CliRunner().invoke(main, ["compare", str(tmp_path), "--backbone", name, "--size", "32"], prog_name="wae")
    assert done.exit_code == 2 and said in done.output and "Traceback" not in done.output
