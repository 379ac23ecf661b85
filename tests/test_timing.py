"""The harness that times, and the models made fast: against a clock that we drive, and against the models they were made from."""

import copy
import doctest
import importlib.util
import sys
import warnings
from functools import partial

import pytest
import torch
from conftest import run_notebook
from torch import nn

import wae_nb
from wae_nb.deploy.engines import ENGINES, InferenceEngine, check_engine, prepare
from wae_nb.deploy.export import export_onnx
from wae_nb.deploy.folding import fold
from wae_nb.deploy.fused import ENCODER_TILE, NETWORK_TILE, FusedClassifier, Tiled, fuse
from wae_nb.deploy.graphs import difference
from wae_nb.lab.timing import available_engines, row_model
from wae_nb.measure import latency
from wae_nb.measure.cost import macs, roofline
from wae_nb.measure.latency import time_pairs
from wae_nb.method.classifier import METHODS, DecomposedClassifier, build
from wae_nb.method.decomposers import Identity

PAPER = [name for name, m in METHODS.items() if m.paper]


def trained_like(method, backbone, image_size, seed):
    """Weights, biases and statistics as after some training."""
    torch.manual_seed(seed)
    net = build(method, backbone, 11, image_size, 0.125)
    for name, v in net.state_dict().items():
        if v.ndim == 1:
            v.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else v.normal_(0, 0.2)
    return net.eval()


@pytest.mark.parametrize("backbone", ["vgg16", "vgg13_bn", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("method", [*PAPER, "linear-in", "linear-2"])
def test_fused_is_the_same_classifier(method, backbone):
    """All three scores, on odd sizes too, in any order of batch sizes; the model itself is left alone."""
    size = 67
    net = trained_like(method, backbone, size, seed=len(method) + len(backbone))
    state = copy.deepcopy(net.state_dict())
    fused, folded = fuse(net), fold(net)
    shapes = [(3, size, size), (1, size, size), (7, size, size)]
    if not backbone.startswith("vgg"):
        shapes += [(2, 65, 98), (2, 40, 33)]
    for n, h, w in shapes:
        x = torch.rand(n, 3, h, w)
        with torch.no_grad():
            expected = net(x)
            assert difference(expected, fused(x)) < 1e-4
            assert difference(expected, folded(x)) < 1e-4
    assert isinstance(fused, FusedClassifier) and not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_engine_gives_the_scores(engine):
    try:
        check_engine(engine)
    except (ImportError, ValueError) as e:
        pytest.skip(str(e))
    net, x = trained_like("wae", "resnet18", 64, 3), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(prepare(net, engine, x)(x), net(x).s, rtol=1e-4, atol=1e-4)


def test_fused_takes_what_the_model_takes():
    """A grey image, which stands for three equal channels, and no image at all; a size that the heads do not take is refused."""
    net = trained_like("wae", "vgg11", 64, 0)
    fused = fuse(net)
    grey = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        assert difference(net(grey), fused(grey)) < 1e-4
        assert difference(net(grey.expand(-1, 3, -1, -1)), fused(grey)) < 1e-4
    assert fused(torch.rand(0, 3, 64, 64)).s.shape == (0, 11)
    with pytest.raises(ValueError, match="image of 65×64 pixels"):
        fused(torch.rand(1, 3, 65, 64))


def test_engine_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"engine='openvino' needs openvino; install the extra: pip install 'wae_nb\[engines\]'"):
        check_engine("openvino")
    chosen, absent = available_engines()
    assert "fused" in chosen and {"openvino", "onnxruntime"} <= absent.keys()


def test_tiles_bound_the_largest_map():
    """Of a full-width VGG16 at 224 pixels, whose first maps have 12.8 MB an image, and of the encoder: one image a tile."""
    with torch.device("meta"):
        nets = {m: build(m, "vgg16", 10) for m in ("plain", "wae")}
    x = torch.empty(16, 3, 224, 224, device="meta")
    half = torch.empty(16, 3, 112, 112, device="meta")
    assert Tiled(nets["plain"].low_net, NETWORK_TILE).tile(x) == 1
    assert Tiled(nets["wae"].decomposer.body, ENCODER_TILE).tile(x) == 1
    assert Tiled(nets["wae"].low_net, NETWORK_TILE).tile(half) == 4  # at most five, in equal parts
    assert Tiled(nets["wae"].high_net, NETWORK_TILE).tile(half) == 16


class Clock:
    """A clock that only moves when something works."""

    def __init__(self, drift):
        self.now, self.drift = 0.0, drift

    def perf_counter(self):
        return self.now

    def work(self, seconds):
        self.now += seconds * (1 + self.drift * self.now)


@pytest.mark.parametrize("drift, tolerance", [(0.0, 1e-9), (0.01, 0.05)])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 3.53])
def test_pairs_on_a_drifting_machine(monkeypatch, drift, tolerance, ratio):
    """A machine that gets ten times slower meanwhile: the ratio stays."""
    clock = Clock(drift)
    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)
    got = time_pairs(lambda: clock.work(0.5 * ratio), lambda: clock.work(0.5), 4, seconds=200, min_pairs=5, max_pairs=60).summary()
    assert got["speedup"][1] == pytest.approx(ratio, rel=tolerance)
    assert got["batch"] == 4 and got["pairs"] <= 60
    if not drift:
        assert got["latency_ms"][1] == pytest.approx(500) and got["throughput"] == pytest.approx(8)


def test_short_calls_are_repeated(monkeypatch):
    """A turn of short calls begins with one that is not timed: here it would be ten times slower, as with a cold cache."""
    clock, last = Clock(0), None

    def call(name):
        nonlocal last
        clock.work(0.001 if last == name else 0.01)
        last = name

    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)
    got = time_pairs(lambda: call("a"), lambda: call("b"), 1, seconds=5, turn=0.02).summary()
    assert got["latency_ms"] == pytest.approx([1, 1, 1]) and got["speedup"] == pytest.approx([1, 1, 1])


@pytest.mark.parametrize("slow", ["baseline", "row"])
def test_both_sides_turns_begin_alike(monkeypatch, slow):
    """One side's call fills a turn, the other's does not: neither is timed with a cache that the other emptied."""
    clock, last = Clock(0), None

    def call(name):
        nonlocal last
        clock.work((0.3 if name == slow else 0.001) + (0 if last == name else 0.1))
        last = name

    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)
    got = time_pairs(lambda: call("baseline"), lambda: call("row"), 1, seconds=5).summary()
    assert got["speedup"] == pytest.approx([300 if slow == "baseline" else 1 / 300] * 3)


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("seconds", [0.001, 0.7])
def test_a_model_against_itself(monkeypatch, times, seconds):
    """The very same prepared model on both sides, on one of them several times a call: the clock counts its passes, so the ratio is theirs to the digit."""
    x = torch.rand(2, 3, 64, 64)
    model, clock = prepare(trained_like("wae", "resnet18", 64, 0), "fused", x), Clock(0)
    model.register_forward_hook(lambda *_: clock.work(seconds))
    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)

    def several():
        for _ in range(times):
            model(x)

    got = time_pairs(partial(model, x), several, 2, seconds=8 * seconds, turn=3 * seconds).summary()
    assert got["speedup"] == pytest.approx([1 / times] * 3)
    assert got["latency_ms"] == pytest.approx([1e3 * seconds * times] * 3) and got["throughput"] == pytest.approx(2 / (seconds * times))


def transform_macs(decomposer, size):
    """Of a wavelet: each of three colours by four 2-D filters (one if it has no details), at a quarter of the positions."""
    bands, taps = (4 if decomposer.details else 1), decomposer.analysis.shape[-1] ** 2
    return 3 * bands * taps * (size // 2) ** 2


@pytest.mark.parametrize("row", [*PAPER, "gap", "tiny", "30"])
@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_bound_by_operations_is_the_ratio_of_counts(backbone, row):
    """With a memory that costs nothing the roofline is the arithmetic alone, and the closed formula of Eq. 8; a wavelet's filters are in the counts alone."""
    with torch.device("meta"):
        net = row_model(row, backbone, 1000, device="meta")
    extra = transform_macs(net.decomposer, 224) if hasattr(net.decomposer, "analysis") else 0
    assert bool(extra) == (row in ("cA", "wavelet"))
    assert roofline(net, 224, 1, (1.0, float("inf"))) == macs(net) - extra > 1e8


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(engines="fused,tensorrt"), "engine='tensorrt' is unknown"),
        (dict(precisions="fp8"), "precision='fp8' is unknown"),
        (dict(batches="1,many"), "batches='1,many'"),
        (dict(device="tpu"), "device='tpu' is unknown"),
        pytest.param(dict(device="cuda"), "device='cuda': torch finds no GPU here", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_what_is_not_there_is_refused(tmp_path, bad, message):
    done = run_notebook("04_timing", tmp_path / "out.ipynb", tmp_path, **(dict(figures_dir=tmp_path / "figures") | bad))
    assert done.returncode != 0
    assert any(message in line for line in done.stderr.splitlines())
    assert not (tmp_path / "figures").exists()


def test_onnx_file_gives_the_scores(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net, x = trained_like("wae", "resnet18", 64, 3), torch.rand(2, 3, 64, 64)
    path = export_onnx(net, tmp_path / "net.onnx", x)
    (scores,) = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(["scores"], {"image": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(scores), net(x).s, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
@pytest.mark.parametrize("method", ["plain", "wavelet", "wae"])
def test_fused_on_a_gpu(method, backbone):
    """Recorded graphs replay for new images and new shapes."""
    torch.backends.cudnn.allow_tf32 = False
    net = trained_like(method, backbone, 64, 5).cuda()
    fused = fuse(net)
    for n in (2, 5, 2):
        x = torch.rand(n, 3, 64, 64, device="cuda")
        with torch.no_grad():
            assert difference(net(x), fused(x)) < 1e-4


def test_made_up_engine(monkeypatch):
    """One entry of `ENGINES`, and it is checked, prepared, listed and left out where it cannot run."""

    def make(model, image):
        return lambda x: model(x).s / 2

    halved = InferenceEngine("half of it", make, precisions=("fp32",), check=lambda device: "needs luck" if luck else None)
    monkeypatch.setitem(ENGINES, "halved", halved)
    monkeypatch.setitem(ENGINES, "absent", InferenceEngine("not there", make, needs=("no_such_module",), extra="luck"))
    net, x, luck = trained_like("wae", "vgg11", 64, 0), torch.rand(2, 3, 64, 64), False
    check_engine("halved")
    with torch.no_grad():
        assert torch.equal(prepare(net, "halved", x)(x), net(x).s / 2)
    chosen, absent = available_engines()
    assert "halved" in chosen and absent["absent"] == "engine='absent' needs no_such_module; install the extra: pip install 'wae_nb[luck]'"
    assert available_engines("halved")[0] == ["halved"]
    with pytest.raises(ValueError, match="engine='halved' runs on cpu or cuda in fp32 here, not on 'cpu' in 'bf16'"):
        check_engine("halved", precision="bf16")
    luck = True
    with pytest.raises(ValueError, match="engine='halved' needs luck"):
        prepare(net, "halved", x)
    assert "halved" not in available_engines()[0]


class Block(nn.Module):
    """A convolution and the sum of its result with what came in, which something is done to in between."""

    def __init__(self, do):
        super().__init__()
        self.begin, self.conv, self.do = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1), do

    def forward(self, x):
        x = self.begin(x)
        y = self.conv(x)
        self.do(x)
        return torch.relu(y + x)


def with_net(net):
    return DecomposedClassifier(Identity(), net, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))).eval()


@pytest.mark.parametrize(
    "do, same",
    [(lambda x: None, True), (lambda x: x.relu_(), False), (lambda x: x.add_(1), False), (lambda x: x.__setitem__((slice(None), 0), 0), False)],
    ids=["nothing", "relu", "add", "set"],
)
def test_residual_changed_in_place(do, same):
    """pytorch/pytorch#117331: between the convolution and its sum, which is drawn into the convolution where nothing happens in between."""
    torch.manual_seed(0)
    net, x = with_net(Block(do)), torch.rand(3, 3, 64, 64)
    with torch.no_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fused = fuse(net)
        assert difference(net(x), fused(x)) < 1e-5 and difference(net(x), fold(net)(x)) < 1e-5
    messages = {str(w.message) for w in said if "low_net" in str(w.message)}
    assert all("\n" not in m for m in messages) and (same or len(messages) >= 1), messages
    assert not same or not messages


class Branching(nn.Module):
    """A network whose path depends on its input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, x):
        return self.conv(x) if x.mean() > 0 else self.conv(-2 * x)


@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "compile"])
def test_path_that_depends_on_the_input(engine):
    """Both paths, any number of images, one line of warning; what would write one path down refuses."""
    try:
        check_engine(engine)
    except ImportError as e:
        pytest.skip(str(e))
    net, x = with_net(Branching()), torch.rand(3, 3, 64, 64)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if ENGINES[engine].one_shape:
            with pytest.raises(ValueError, match="the model's path depends on its input, so it cannot be converted"):
                prepare(net, engine, x)
        else:
            call = prepare(net, engine, x)
            with torch.no_grad():
                for y in (x, -x, torch.cat([x] * 20)):
                    assert difference([net(y).s], [call(y)]) < 1e-5
    assert [str(w.message).split(" cannot")[0] for w in said] == ([] if engine == "eager" else ["low_net (Branching)"]), [str(w.message) for w in said]
    assert all("\n" not in str(w.message) for w in said)


@pytest.mark.parametrize("function", [fold, fuse, prepare, export_onnx], ids=lambda f: f.__name__)
def test_examples(monkeypatch, function):
    if function is export_onnx:
        pytest.importorskip("onnxscript")
    for f in (build, fold, fuse, prepare, export_onnx):
        monkeypatch.setattr(wae_nb, f.__name__, f, raising=False)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, module=sys.modules[function.__module__], globs={})
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0
