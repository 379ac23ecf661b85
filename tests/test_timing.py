"""The harness that times, and the models made fast: against a clock that we drive, and against the models they were made from."""

import copy
import importlib.util
from functools import partial

import pytest
import torch
from conftest import run_notebook
from torch import nn

from wae_nb.measure import latency, machine
from wae_nb.lab.timing import ROWS, available_engines, row_model
from wae_nb.method.classifier import METHODS, build
from wae_nb.deploy.engines import ENGINES, check_engine, export_onnx, prepare
from wae_nb.deploy.folding import fold
from wae_nb.deploy.fused import ENCODER_TILE, NETWORK_TILE, FusedClassifier, Tiled, fuse
from wae_nb.measure.cost import macs, roofline
from wae_nb.measure.latency import time_pairs


def trained_like(method, backbone, image_size, seed):
    """Weights, biases and statistics as after some training."""
    torch.manual_seed(seed)
    net = build(method, backbone, 11, image_size, 0.125)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.2, 3)
            if m.affine:
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0, 0.2)
        elif isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None:
            nn.init.normal_(m.bias, 0, 0.1)
    return net.eval()


def difference(a, b):
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(a, b) if x is not None)


@pytest.mark.parametrize("backbone", ["vgg16", "vgg13_bn", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("method", METHODS)
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
    monkeypatch.setattr(timing.time, "perf_counter", clock.perf_counter)
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

    monkeypatch.setattr(timing.time, "perf_counter", clock.perf_counter)
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

    monkeypatch.setattr(timing.time, "perf_counter", clock.perf_counter)
    got = time_pairs(lambda: call("baseline"), lambda: call("row"), 1, seconds=5).summary()
    assert got["speedup"] == pytest.approx([300 if slow == "baseline" else 1 / 300] * 3)


def test_a_model_against_itself():
    """The very same model: a second copy would lie elsewhere in memory, which is worth a per cent."""
    x = torch.rand(2, 3, 96, 96)
    call = partial(prepare(row_model("wae", "resnet18", 10, 96), "fused", x), x)
    low, _, high = time_pairs(call, call, 2, seconds=4, turn=0.02, max_pairs=100).summary()["speedup"]
    assert low <= 1 <= high and high / low < 1.5


@pytest.mark.parametrize("backbone", ROWS)
def test_bound_by_operations_is_the_ratio_of_counts(backbone):
    """With a memory that costs nothing the roofline is the arithmetic alone, and the closed formula of Eq. 8."""
    with torch.device("meta"):
        nets = {row: row_model(row, backbone, 1000, device="meta") for row in ["plain", *ROWS[backbone]]}
    for row, net in nets.items():
        if row != "wavelet":  # its transform has filters, not weights
            assert roofline(net, 224, 1, (1.0, float("inf"))) == macs(net)


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
