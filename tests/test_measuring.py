"""What is measured and how it is counted: hours ahead, seconds, milliseconds, threads, images resized, the validation split."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from wae_nb.data.decode import read_image
from wae_nb.data.pack import make_split
from wae_nb.data.sets import EMBEDDED, load_data
from wae_nb.lab import compare, forecast, tradeoff
from wae_nb.measure import machine
from wae_nb.method.classifier import build
from wae_nb.method.rivals import Enlarged
from wae_nb.train.engine import Engine
from wae_nb.train.loop import fit
from wae_nb.train.plan import Measured
from wae_nb.train.recipes import Distill, PruneRecipe, StageRecipe, short_recipe
from wae_nb.train.runs import Run
from wae_nb.train.specs import RunSpec
from wae_nb.train.tasks import ClassifyTask


def recipe():
    r, s = short_recipe("s", 400), dict(lr=1e-3, batch_size=50)
    return replace(
        r,
        wae=StageRecipe(epochs=3, **s),
        classify=StageRecipe(epochs=8, **s),
        finetune=StageRecipe(epochs=2, **s),
        prune=PruneRecipe(StageRecipe(epochs=2, images=200, **s), StageRecipe(epochs=5, **s), images=50, parts=3),
    )


def splits():
    split = np.repeat([0, 1, 2], [400, 40, 60])
    return SimpleNamespace(indices=lambda name: np.flatnonzero(split == ("train", "val", "test").index(name)), classes=tuple("abc"), images=np.zeros((500, 1)))


def hours(monkeypatch, tmp_path, answers, **specs):
    m = Measured(update=36.0, evaluation=0.0, answers=answers, fixed=0.0, memory=None, gradients=0, checkpoint=0, weights=0)
    monkeypatch.setattr(forecast, "measure_stage", lambda spec, *a: m if spec.teacher else m._replace(answers=0.0))
    return forecast.hours_of(specs, splits(), Engine("cpu", progress=False), tmp_path)


def test_hours_of_pruning(monkeypatch, tmp_path):
    spec = RunSpec("taylor", "resnet18", "d", recipe(), image_size=32, width=0.125, keep=0.5)
    (h,) = hours(monkeypatch, tmp_path, 0.0, row=spec)["row"].values()
    assert h == pytest.approx(0.01 * (3 * 2 * 4 + 5 * 8))  # three times two epochs of 200 images, then five of 400; each update a hundredth of an hour


def test_hours_of_pruning_with_a_teacher(monkeypatch, tmp_path):
    """Its answers are computed for as many images as are trained on: three times two epochs of 200, then five of 400."""
    spec = RunSpec("taylor", "resnet18", "d", replace(recipe(), distill=Distill(start=True, epochs=99)), image_size=32, width=0.125, keep=0.5)
    h = hours(monkeypatch, tmp_path, 9.0, row=spec)["row"]
    assert h[spec.name] == pytest.approx(0.01 * (3 * 2 * 4 + 5 * 8))
    assert h[f"answers of {spec.teacher.name}"] == pytest.approx((3 * 2 * 200 + 5 * 400) * 9.0 / 3600)


@pytest.mark.parametrize("row, runs", [("half", "half"), ("wae", "wae stage 1, wae stage 2, wae stage 3"), ("taylor", "plain, taylor"), ("given", "taylor")])
def test_minutes_are_of_all_that_a_row_needs(monkeypatch, tmp_path, row, runs):
    """Stages before it and the network that it is cut from, unless that was brought."""
    method = row.replace("given", "taylor")
    spec = RunSpec(method, "resnet18", "d", recipe(), stage=3 if row == "wae" else 0, keep=0.5 if method == "taylor" else 1.0)
    if row == "given":
        monkeypatch.setattr(RunSpec, "is_given", property(lambda self: self.method == "plain"))
    monkeypatch.setattr(compare, "finished_run", lambda spec, runs_dir: Run(runs_dir / "run", spec, {}))
    needed = compare._trained_for(Run(tmp_path / "run", spec, {}))
    assert ", ".join(r.spec.method + (f" stage {r.spec.stage}" if r.spec.stage else "") for r in needed) == runs


@pytest.mark.parametrize("method, epochs", [("half", 8), ("wae", 8)])
def test_hours_of_a_teacher_s_answers(monkeypatch, tmp_path, method, epochs):
    """Each epoch's answers are computed once: stage 3's are among stage 2's, as `plan` has it."""
    spec = RunSpec(method, "resnet18", "d", replace(recipe(), distill=Distill()), image_size=32, width=0.125)
    h = hours(monkeypatch, tmp_path, 9.0, row=spec)["row"]
    (answers,) = [v for k, v in h.items() if k.startswith("answers")]
    assert answers == pytest.approx(epochs * 400 * 9.0 / 3600)


def test_seconds_are_no_more_than_passed(tmp_path):
    data = load_data(None, 32, tmp_path / "data", demo_shape=(3, 16))
    recipe = short_recipe("short", 100)
    task = ClassifyTask(build("plain", "resnet18", 3, 32, 0.125), recipe, recipe.classify)
    began = time.perf_counter()
    result = fit(task, data, StageRecipe(lr=1e-3, batch_size=16, epochs=6), 32, tmp_path, 0, Engine("cpu", progress=False))
    assert 0.2 < result["seconds"] / (time.perf_counter() - began) <= 1


def test_images_are_resized_as_torchvision_does(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = resize(torch.from_numpy(picture).permute(2, 0, 1), [16, 16], antialias=True).permute(1, 2, 0).int()
    assert (torch.from_numpy(read_image(tmp_path / "a.png", 16).copy()).int() - expected).abs().max() <= 1
    data = load_data(None, 32, tmp_path, demo_shape=(2, 4))
    for i, name in enumerate(data.files):
        made = torch.from_numpy(EMBEDDED["faces"].picture(*map(int, name.split("/"))).copy()).permute(2, 0, 1)
        assert (torch.from_numpy(data.images[i].copy()).int() - resize(made, [37, 37], antialias=True).permute(1, 2, 0).int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(32, 32), (33, 46)])
def test_an_enlarged_image_is_halved_first(size):
    """As torchvision halves an image and enlarges it."""
    x = torch.rand(2, 3, *size)
    half = resize(x, [-(-n // 2) for n in size], antialias=True)
    torch.testing.assert_close(Enlarged()(x).low, resize(half, list(size), antialias=True))


def test_validation_is_fifty_of_a_class_at_most():
    assert np.bincount(make_split(np.repeat([0, 1], 1000), ["train"] * 2000)).tolist() == [1900, 100]


def test_threads_are_put_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with machine.settings(threads=1):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_milliseconds_are_an_image_s():
    timed = dict(times=dict(batch=4, latency_ms=[1, 8, 9], baseline_ms=[1, 20, 21], speedup=[2, 2.5, 3]))
    point = tradeoff._point(dict(test=dict(top1=0.5)), timed)
    assert (point["ms"], point["baseline_ms"], point["speedup"], point["accuracy"]) == (2, 5, 2.5, 50)
