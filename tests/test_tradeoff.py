"""Accuracy against measured speed-up: whose times they are, when they are found again, and which networks no other beats."""

import copy
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from matplotlib.text import Text

from wae_nb.deploy.engines import check_engine
from wae_nb.lab import tradeoff
from wae_nb.lab.experiment import Experiment
from wae_nb.lab.plots import tradeoff as picture
from wae_nb.lab.timing import Setting
from wae_nb.measure.cost import macs
from wae_nb.method.classifier import Scores
from wae_nb.train.records import RecordError, digest, read_record

LITTLE = dict(seconds=0.05, min_pairs=2, max_pairs=3, turn=0.0, warmup=1)
ONE = Setting("eager", threads=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny experiment and two of its runs: the whole picture and half the resolution."""
    tmp = tmp_path_factory.mktemp("tradeoff")
    exp = Experiment("smoke", "resnet18", None, [0], "cpu", runs_dir=tmp / "runs", figures_dir=tmp / "figures", progress=False, kind="photos")
    return exp, exp.runs(exp.specs("plain"))[0], exp.runs(exp.specs("half"))[0]


@pytest.fixture
def counted(monkeypatch):
    """What was timed, as the list that it returns."""
    done, real = [], tradeoff.time_pairs
    monkeypatch.setattr(tradeoff, "time_pairs", lambda *args, **kw: done.append(args) or real(*args, **kw))
    return done


def files(run):
    return {p.name: p.read_bytes() for p in run.folder.glob("*.json")}


def test_a_time_says_of_what(trained):
    """Of which weights, against which, where and how; operations and parameters are the networks'."""
    exp, plain, half = trained
    record = tradeoff.time_run(half, plain, ONE, 2, **LITTLE)
    assert record["name"] == f"{half.spec.name}-time-eager-1t-b2" and record["baseline"] == plain.spec.name
    assert record == read_record(half.folder / f"{record['name']}.json")
    assert (record["of"], record["against"]) == (half.record["digest"], plain.record["digest"])
    assert record["setting"] == vars(ONE) | dict(batch=2) and record["image_size"] == 32 and record["machine"]["threads"] == 1
    assert record["macs"] == dict(run=macs(half.model, 32), baseline=macs(plain.model, 32))
    assert record["parameters"]["run"] == sum(p.numel() for p in half.model.parameters())
    times = record["times"]
    assert times["batch"] == 2 and times["threads"] == 1 and 2 <= times["pairs"] <= 3
    for quartiles in ("baseline_ms", "latency_ms", "speedup"):
        assert 0 < times[quartiles][0] <= times[quartiles][1] <= times[quartiles][2]
    assert json.loads(json.dumps(record)) == record and not list(half.folder.glob("*.part"))


def test_taken_in_turns(trained, monkeypatch):
    """The baseline, then the run, pair after pair, on the same image, each a network of its own."""
    exp, plain, half = trained
    calls = []

    def prepared(model, setting, image_size, max_batch, calibration=None):
        def call(x):
            calls.append((method, setting.engine, x.data_ptr()))

        method = type(model.decomposer).__name__
        assert model is not plain.model and model is not half.model
        return call

    monkeypatch.setattr(tradeoff, "prepared", prepared)
    tradeoff.time_run(half, plain, replace(ONE, engine="eager"), 3, seconds=0, min_pairs=4, max_pairs=4, turn=0.0, warmup=1)
    assert [method for method, *_ in calls] == ["Identity", "Resize"] * 5  # a call of each to begin with
    assert {(engine, at) for _, engine, at in calls} == {("eager", calls[0][2])}


def test_found_again(trained, counted, monkeypatch):
    """Until the weights of either, the machine or the setting are others."""
    exp, plain, half = trained
    first = tradeoff.time_run(half, plain, ONE, 5, **LITTLE)
    before = files(half)
    assert tradeoff.time_run(half, plain, ONE, 5) == first and len(counted) == 1 and files(half) == before
    torch.set_num_threads(1)
    assert tradeoff.time_run(half, plain, Setting("eager"), 5) == first and len(counted) == 1  # PyTorch's own choice, one thread here
    other = replace(plain, record=plain.record | dict(digest="0" * 64))
    anew = tradeoff.time_run(half, other, ONE, 5, **LITTLE)
    assert anew["against"] == "0" * 64 and len(counted) == 2 and read_record(half.folder / f"{first['name']}.json") == anew
    anew = tradeoff.time_run(replace(half, record=half.record | dict(digest="1" * 64)), other, ONE, 5, **LITTLE)
    assert anew["of"] == "1" * 64 and len(counted) == 3
    monkeypatch.setattr(tradeoff, "hardware", lambda device="cpu": dict(cpu="another", threads=1))
    anew = tradeoff.time_run(half, other, ONE, 5, **LITTLE)
    assert anew["machine"]["cpu"] == "another" and len(counted) == 4
    assert tradeoff.time_run(half, other, replace(ONE, threads=2), 5, **LITTLE)["name"].endswith("-time-eager-2t-b5") and len(counted) == 5


def test_changed_record_is_refused(trained):
    """With the path and what to do; removed, it is made anew."""
    exp, plain, half = trained
    record = tradeoff.time_run(half, plain, ONE, 7, **LITTLE)
    path = half.folder / f"{record['name']}.json"
    faster = record | dict(times=record["times"] | dict(speedup=[9.0, 9.0, 9.0]))
    for text in (json.dumps(faster), path.read_text()[:200], json.dumps(faster | dict(name="other", digest=digest(faster | dict(name="other"))))):
        path.write_text(text)
        with pytest.raises(RecordError, match="remove it to have it made anew") as e:
            tradeoff.time_run(half, plain, ONE, 7, **LITTLE)
        assert str(path) in str(e.value) and "\n" not in str(e.value)
    path.unlink()
    assert tradeoff.time_run(half, plain, ONE, 7, **LITTLE)["of"] == record["of"]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(data="0" * 64), "has data="),
        (dict(image_size=64), "has image_size=32, its baseline .* has 64"),
        (dict(width=0.5), "has width=0.125, its baseline .* has 0.5"),
        (dict(seed=1), "has seed=0, its baseline plain-resnet18-.* has 1: they must be the same"),
        (dict(method="wae", stage=1), "^wae-stage1-.* has no classifier; use a run of another stage"),
    ],
)
def test_runs_that_cannot_be_compared(trained, counted, change, message):
    exp, plain, half = trained
    other = replace(plain, spec=replace(plain.spec, **change))
    with pytest.raises(ValueError, match=message):
        tradeoff.time_run(half, other, ONE, **LITTLE)
    with pytest.raises(ValueError, match="has"):
        tradeoff.time_run(other, half, ONE, **LITTLE)
    with pytest.raises(ValueError, match=message):
        tradeoff.time_int8(half, other, exp.data, replace(ONE, engine="openvino"), **LITTLE)
    assert not counted


def test_settings_that_cannot_be(trained, counted):
    exp, plain, half = trained
    for setting, batch, message in [
        (ONE, 0, "batch=0: use a number of at least 1"),
        (replace(ONE, engine="tensorrt"), 1, "engine='tensorrt' is unknown"),
        (replace(ONE, precision="fp8"), 1, "precision='fp8' is unknown"),
        (replace(ONE, threads=10**6), 1, "threads=1000000: this machine has"),
    ]:
        with pytest.raises(ValueError, match=message):
            tradeoff.time_run(half, plain, setting, batch, **LITTLE)
    with pytest.raises(ValueError, match="engine='eager': a network in INT8 runs in 'openvino'"):
        tradeoff.time_int8(half, plain, exp.data, ONE, **LITTLE)
    assert not counted


class Same:
    """What `prepared` returns, of a network that lost nothing."""

    def __init__(self, model, calibration, log):
        self.model, self.log = copy.deepcopy(model), log
        log.append(calibration)

    def __call__(self, x):
        assert x.device.type == "cpu" and x.dtype == torch.float32
        self.log.append("called")
        s = self.model(x).s
        return Scores(s, None, s)


@pytest.fixture
def quantiser(monkeypatch):
    """The images that each quantised network was calibrated with, and a word for each of its calls."""
    log, real = [], tradeoff.prepared

    def prepared(model, setting, image_size, max_batch=32, calibration=None):
        if setting.precision != "int8":
            return real(model, setting, image_size, max_batch)
        return Same(model, calibration, log)

    monkeypatch.setattr(tradeoff, "prepared", prepared)
    monkeypatch.setattr(tradeoff, "check_precision", lambda *args: None)  # whatever is installed
    return log


def test_int8_is_tested_like_the_run(trained, quantiser):
    """A network that lost nothing gives the run's own answers; the second time nothing is tested."""
    exp, plain, half = trained
    record = tradeoff.evaluate_int8(half, exp.data, exp.engine, images=8)
    path = half.folder / f"{half.spec.name}-int8.json"
    assert record == read_record(path) and record["name"] == f"{half.spec.name}-int8" and record["of"] == half.record["digest"]
    assert (record["answers"], record["labels"]) == (half.record["answers"], half.record["labels"])
    assert record["test"].keys() == {"loss", "top1", "top5"} and record["test"] == pytest.approx(half.record["test"], rel=1e-4)
    done = len(quantiser)
    assert tradeoff.evaluate_int8(half, exp.data, exp.engine, images=8) == record and len(quantiser) == done
    again = tradeoff.evaluate_int8(half, exp.data, exp.engine, images=9)  # another calibration, another network
    assert again["calibration"] == 9 and len(quantiser) > done
    path.write_text(path.read_text().replace('"top1": ', '"top1": 1', 1))
    with pytest.raises(RecordError, match="was changed after it was written.*remove it"):
        tradeoff.evaluate_int8(half, exp.data, exp.engine, images=9)


def test_calibration_images(trained, quantiser):
    """Centre crops of the training split, none twice; the same for a seed, others for another; all where there are fewer."""
    exp, plain, half = trained
    at = exp.data.indices("train")
    margin = (exp.data.images.shape[1] - 32) // 2
    pixels = exp.data.read(at)[:, margin : margin + 32, margin : margin + 32]
    known = {p.tobytes() for p in pixels}
    for run in (plain, half, replace(plain, spec=replace(plain.spec, seed=1))):
        tradeoff.quantised(run, exp.data, 10)
    for x in quantiser:
        assert x.shape == (10, 3, 32, 32) and x.dtype == torch.float32
        got = {(image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy().tobytes() for image in x}
        assert len(got) == 10 and got <= known
    assert torch.equal(quantiser[0], quantiser[1]) and not torch.equal(quantiser[0], quantiser[2])
    tradeoff.quantised(plain, exp.data)
    assert len(quantiser[-1]) == len(at) < 300


def test_int8_errors(trained, quantiser):
    exp, plain, half = trained
    for call in (tradeoff.evaluate_int8, tradeoff.quantised):
        with pytest.raises(ValueError, match="images=0: calibrate with at least 1"):
            call(half, exp.data, images=0)
        with pytest.raises(ValueError, match="is of the data .*, but 'demo-photos' is 1111"):
            call(half, replace(exp.data, checksum="1" * 64))
        with pytest.raises(ValueError, match="has no classifier"):
            call(replace(half, spec=replace(half.spec, method="wae", stage=1)), exp.data)
    assert not quantiser


def test_int8_is_timed_against_the_baseline(trained, quantiser, counted, monkeypatch):
    """In turns with the baseline in the same engine; found again; another calibration is another time."""
    exp, plain, half = trained
    real = tradeoff.prepared

    def prepared(model, setting, image_size, max_batch, calibration=None):
        assert setting.engine == "openvino" and torch.get_num_threads() == 1 and (image_size, max_batch) == (32, 2)
        if setting.precision == "int8":
            return real(model, setting, image_size, max_batch, calibration)
        assert setting.precision == "fp32" and calibration is None
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.model.state_dict().values()))
        return lambda x: quantiser.append("baseline")

    monkeypatch.setattr(tradeoff, "prepared", prepared)
    setting = Setting("openvino", threads=1)
    record = tradeoff.time_int8(half, plain, exp.data, setting, 2, images=6, seconds=0, min_pairs=3, max_pairs=3, turn=0.0, warmup=1)
    assert quantiser[1:] == ["baseline", "called"] * 4 and len(quantiser[0]) == 6
    assert record["name"] == f"{half.spec.name}-int8-time-openvino-1t-b2" and record["calibration"] == 6 and record["times"]["pairs"] == 3
    assert record == read_record(half.folder / f"{record['name']}.json") == tradeoff.time_int8(half, plain, exp.data, setting, 2, images=6)
    assert len(counted) == 1
    assert tradeoff.time_int8(half, plain, exp.data, setting, 2, images=7, **LITTLE)["calibration"] == 7 and len(counted) == 2
    assert tradeoff.time_int8(plain, plain, exp.data, setting, 2, images=7, **LITTLE)["of"] == plain.record["digest"]


def test_openvino_itself(trained, quantiser):
    try:
        check_engine("openvino")
    except ImportError as e:
        pytest.skip(str(e))
    exp, plain, half = trained
    record = tradeoff.time_int8(half, plain, exp.data, Setting("openvino", threads=1), images=4, **LITTLE)
    assert record["times"]["engine"] == "openvino" and record["times"]["latency_ms"][0] > 0


def test_pareto_front_by_brute_force():
    """All pairs compared, on a grid so coarse that most points tie in something."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        points = [(float(x), float(y)) for x, y in rng.integers(0, rng.integers(1, 8), (rng.integers(0, 14), 2))]

        def beaten(p):
            return any(x >= p[0] and y >= p[1] and (x, y) != p for x, y in points)  # noqa: B023

        front = tradeoff.pareto_front(points)
        assert sorted(front) == [i for i, p in enumerate(points) if not beaten(p)]
        assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)
        assert [points[i][1] for i in front] == sorted((points[i][1] for i in front), reverse=True)


def test_pareto_front_edges():
    assert tradeoff.pareto_front([]) == [] and tradeoff.pareto_front([(2, 3)]) == [0]
    assert tradeoff.pareto_front([(1, 5), (2, 5), (2, 5), (2, 4)]) == [1, 2]
    assert tradeoff.pareto_front([(1.0, -np.inf)]) == [0] and tradeoff.pareto_front(np.array([[1, 2], [2, 1]])) == [0, 1]
    for bad in [(float("nan"), 1), (1, float("nan"))]:
        with pytest.raises(ValueError, match=r"points\[1\]=\(.*nan.*\): a point needs two numbers"):
            tradeoff.pareto_front([(1, 1), bad])


def crowd(n, seed):
    rng = np.random.default_rng(seed)
    names = ["standard", *(f"method {i}" for i in range(1, n))]
    at = {name: (np.exp(rng.uniform(0, 2)), rng.uniform(80, 92)) for name in names} | {"standard": (1.0, 92.0)}
    return {name: ((x * rng.uniform(0.98, 1.02, 3)).tolist(), (y + rng.normal(0, 0.4, 3)).tolist()) for name, (x, y) in at.items()}


@pytest.mark.parametrize("seed", range(2))
def test_picture(seed):
    """Every seed a dot, every mean a marker in its kind's colour, the steps through the front; no two texts on each other, none outside."""
    from matplotlib import pyplot as plt

    points = crowd(12, seed)
    means = {name: (np.mean(x), np.mean(y)) for name, (x, y) in points.items()}
    front = [list(means)[i] for i in tradeoff.pareto_front(list(means.values()))]
    kinds = {name: ("pruning", "decomposition", "resolution", "quantisation")[i % 4] for i, name in enumerate(points)} | {"standard": "standard"}
    fig = picture(points, front, "standard", kinds)
    (ax,) = fig.axes
    assert fig.get_figwidth() == 10 and ax.get_xscale() == "log" and ax.get_ylabel() == "top-1 accuracy (%)"
    drawn = [c.get_offsets() for c in ax.collections if len(c.get_offsets())]
    assert sum(map(len, drawn)) == 12 * 3 + 12
    line = ax.lines[0].get_xydata()
    assert {tuple(means[n]) for n in front} <= {tuple(p) for p in line} and len(line) == 2 * len(front) - 1
    assert all(a[0] == b[0] or a[1] == b[1] for a, b in zip(line, line[1:]))
    legend = ["Pareto front", "what the others are compared with", "standard", "split into sub-images", "pruning", "quantisation", "resolution"]
    assert sorted(t.get_text() for t in fig.legends[0].get_texts()) == sorted(legend)
    fig.canvas.draw()
    ticks = {float(t.get_text()) for t in ax.get_xticklabels()}
    assert {1, 2, 4} <= ticks
    boxes = {t.get_text(): Text.get_window_extent(t) for t in ax.texts}  # without the line that leads to its point
    assert boxes.keys() == points.keys()
    frame = ax.get_window_extent()
    for i, (name, a) in enumerate(boxes.items()):
        assert frame.x0 <= a.x0 and a.x1 <= frame.x1 and frame.y0 <= a.y0 and a.y1 <= frame.y1, name
        assert not any(a.overlaps(b) for b in list(boxes.values())[i + 1 :]), name
    plt.close(fig)


def test_names_are_on_no_marker_and_not_on_the_front():
    """The table of the front page, at 128 px, where three names were."""
    from matplotlib import pyplot as plt

    table = pd.read_csv(ROOT / "figures/strong/ideas-ms-128px-imagenette-vgg16_bn.csv", index_col="row")
    x, y = (table[column].astype(str).str.split().str[0].astype(float) for column in ("speed-up", "top-1 accuracy (%)"))
    front = list(table.index[table["on the front, by means"].eq("✓")])
    fig = picture({n: ([x[n]], [y[n]]) for n in table.index}, front, table.index[x.argmin()])
    (ax,) = fig.axes
    fig.canvas.draw()
    markers = ax.transData.transform(np.column_stack([x, y]))
    steps = ax.transData.transform(ax.lines[0].get_xydata())
    line = np.concatenate([np.linspace(a, b, 500) for a, b in zip(steps, steps[1:])])
    assert len(ax.texts) == len(table)
    for text in ax.texts:
        box = Text.get_window_extent(text)
        for points, apart in (markers, 5), (line, 0.5):  # points of print: a marker's half, and half the line
            away = np.linalg.norm(points - np.clip(points, box.min, box.max), axis=1) * 72 / fig.dpi
            assert away.min() > apart, text.get_text()
    plt.close(fig)


def test_picture_errors():
    from matplotlib import pyplot as plt

    points = dict(a=([1.0], [90.0]), b=([2.0], [80.0]))
    for front, baseline, kinds, message in [
        (["c"], "a", None, "'c' has no points; there are a, b"),
        (["a"], "c", None, "'c' has no points"),
        (["a"], "a", dict(c="pruning"), "'c' has no points"),
    ]:
        with pytest.raises(ValueError, match=message):
            picture(points, front, baseline, kinds)
    assert len(picture(points, ["a", "b"], "a").axes[0].texts) == 2 and len(picture(points, [], "a").axes[0].texts) == 2
    plt.close("all")
