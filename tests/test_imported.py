"""A network of one's own, by the name of its class: trained, found, opened, saved, loaded, compared as one that has a name; refused where it can't be."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import wae_nb
from wae_nb.cli import main
from wae_nb.data.sets import load_data
from wae_nb.lab.folders import open_run
from wae_nb.method.imported import code_of, imported_network
from wae_nb.train import runs
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
    (tmp_path / f"{mine.partition(':')[0]}.py").write_text(CODE + "\n# another")
    assert run.spec.fingerprint() == run.record["decisive"] and spec.name == run.spec.name  # what runs here is what was read
    with pytest.raises(ValueError, match="was changed after it was imported; start Python again, or put it back"):
        open_run(run.folder)
    start_again(mine)
    assert spec.fingerprint() != run.record["decisive"] and spec.name != run.record["name"]  # another network, and another run
    with pytest.raises(RecordError, match="the code of .* was another when this was trained"):
        open_run(run.folder)


def start_again(name):
    """As if Python were: what was imported is forgotten."""
    module = sys.modules.pop(name.partition(":")[0])
    for other in [n for n, m in sys.modules.items() if Path(getattr(m, "__file__", None) or "/").parent == Path(module.__file__).parent]:
        del sys.modules[other]


def test_what_it_takes_from_a_file_beside_it_is_its_code_too(mine, tmp_path):
    file, other = (tmp_path / f"{mine.partition(':')[0]}{more}.py" for more in ("", "_parts"))
    file.write_text(CODE.replace("import torch\n", f"import torch\nfrom {other.stem} import act\n", 1).replace("torch.relu(", "act("))
    other.write_text("from torch import relu as act\n")
    before = code_of(mine)
    start_again(mine)
    assert code_of(mine) == before
    other.write_text("from torch import tanh as act\n")
    start_again(mine)
    assert code_of(mine) != before


def test_a_file_that_is_changed_while_it_trains_loses_nothing(mine, tmp_path, monkeypatch):
    """The run is of what was read: it ends, and is found where the file is put back."""
    data, engine = load_data(None, 32, tmp_path / "data", demo_shape=(3, 8)), Engine("cpu", progress=False)
    spec = RunSpec("half", mine, data.checksum, short_recipe("short", 24, updates=2, epochs=2), image_size=32)
    trained, file = runs.fit, tmp_path / f"{mine.partition(':')[0]}.py"

    def fit(*args, **kwargs):
        result = trained(*args, **kwargs)
        file.write_text(CODE + "\ndef half_written(")
        return result

    monkeypatch.setattr(runs, "fit", fit)
    record = get_or_train(spec, data, engine, tmp_path / "runs").record
    file.write_text(CODE)
    start_again(mine)
    assert get_or_train(spec, data, engine, tmp_path / "runs").record == record


def test_a_stranger_s_folder_runs_no_code(mine, tmp_path):
    """Whose network is of a class in a module that lies beside it, until that is imported by whoever opens it."""
    folder = wae_nb.build("plain", mine, 2, 32).eval().save(tmp_path / "theirs", ["a", "b"])
    start_again(mine)
    (tmp_path / f"{mine.partition(':')[0]}.py").write_text(f"from pathlib import Path\nPath('was_here').touch()\n{CODE}")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="is code that does not come with it: import it first"):
        wae_nb.load(folder)
    done = CliRunner().invoke(main, ["predict", str(folder), "photo.png"], prog_name="wae")
    assert done.exit_code == 2 and f"wae --import {mine.partition(':')[0]} " in done.output and not (tmp_path / "was_here").exists()
    done = CliRunner().invoke(main, ["--import", mine.partition(":")[0], "predict", str(folder), "photo.png"], prog_name="wae")
    assert done.exit_code == 0 and (tmp_path / "was_here").exists(), done.output


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
