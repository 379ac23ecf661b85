"""The harness that times, and the models made fast: against a clock that we drive, and against the models they were made from."""

import copy
import doctest
import importlib.util
import sys
import threading
from contextlib import nullcontext, suppress
from functools import partial

import pytest
import torch
from conftest import run_notebook
from torch import nn

import wae_nb
from wae_nb.convert.export import export_onnx
from wae_nb.convert.folding import SplitChannels, difference, fold
from wae_nb.deploy.engines import ENGINES, InferenceEngine, check_engine, prepare
from wae_nb.lab.timing import available_engines, row_model, timed_rows
from wae_nb.measure import latency
from wae_nb.measure.cost import macs, roofline
from wae_nb.measure.latency import time_pairs
from wae_nb.measure.machine import check_precision, machine_rates
from wae_nb.measure.memory import peak_memory, with_peak
from wae_nb.method.classifier import METHODS, DecomposedClassifier, build
from wae_nb.method.decomposers import Identity
from wae_nb.method.wae import Encoder

PAPER = [name for name, m in METHODS.items() if m.paper]


def trained_like(method, backbone, image_size, seed):
    """Weights, biases and statistics as after some training."""
    torch.manual_seed(seed)
    net = build(method, backbone, 11, image_size, 0.125)
    for name, v in net.state_dict().items():
        if v.ndim == 1:
            v.uniform_(0.5, 1.5) if name.endswith(("weight", "var")) else v.normal_(0, 0.2)
    return net.eval()


ON_CPU = [name for name, engine in ENGINES.items() if "cpu" in engine.devices]


def can_run(engine, precision="fp32"):
    try:
        check_engine(engine, "cpu", precision)
    except (ImportError, ValueError) as e:
        pytest.skip(str(e))


@pytest.mark.parametrize("backbone", ["vgg16", "vgg13_bn", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("method", [*PAPER, "linear", "linear-in", "linear-luma", "linear-2"])
def test_folded_is_the_same_classifier(method, backbone):
    """All three scores, on odd sizes too; one convolution for both sub-images; the model itself is left alone."""
    size = 67
    net = trained_like(method, backbone, size, seed=len(method) + len(backbone))
    state = copy.deepcopy(net.state_dict())
    folded = fold(net)
    shapes = [(3, size, size), (1, size, size)]
    if not backbone.startswith("vgg"):
        shapes += [(2, 65, 98), (2, 40, 33)]
    for n, h, w in shapes:
        x = torch.rand(n, 3, h, w)
        with torch.no_grad():
            assert difference(net(x), folded(x)) < 1e-4
    assert isinstance(folded.decomposer, SplitChannels) == (method not in ("plain", "half", "three-quarters"))
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


class Grouped(nn.Module):
    """A block of ResNeXt, small: grouped convolutions between two of one pixel, added to what came in."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        grouped = nn.Conv2d(32, 32, 3, 2, 1, groups=8, bias=False)
        self.block = nn.Sequential(nn.Conv2d(16, 32, 1), nn.ReLU(), grouped, nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 24, 1))
        self.past = nn.Conv2d(16, 24, 1, 2)

    def forward(self, x):
        x = self.stem(x)
        return (self.block(x) + self.past(x)).relu()


@pytest.mark.parametrize("engine", ON_CPU)
@pytest.mark.parametrize("backbone", ["vgg11", "vgg13_bn", "resnet18", "grouped", "resnext50_32x4d"])
def test_engine_gives_the_scores(engine, backbone):
    """Every row in OpenVINO, some in the others, one on a network of fifty layers; all three scores, any number of images; odd sizes where heads take them."""
    can_run(engine)
    rows = [*PAPER, "linear-in", "linear-2"] if engine == "openvino" else ["wae"] if engine == "compile" else ["plain", "wae", "linear-in"]
    rows = ["wae"] if backbone.startswith("resnext") else rows
    if engine == "compile" and backbone != "resnet18":
        pytest.skip("takes minutes")
    for method in rows:
        odd = (64, 98) if engine == "ncnn" else (65, 98)  # ncnn joins maps of odd sides wrongly, which `prepare` sees: below
        sizes = [(96, 96)] if backbone.startswith("vgg") or engine == "compile" else [odd] if backbone.startswith("resnext") else [(96, 96), odd]
        net = trained_like(method, Grouped() if backbone == "grouped" else backbone, 96, len(method))
        state = copy.deepcopy(net.state_dict())
        for size in sizes:
            fast = prepare(net, engine, image_size=size, max_batch=2 if engine == "compile" else 4)
            for n in (1, 3) if engine == "compile" else (1, 3, 8):  # each number at once is compiled anew
                x = torch.rand(n, 3, *size)
                with torch.no_grad():
                    expected = net(x)
                assert difference(expected, fast(x)) < 1e-4, (method, size, n)
                assert (fast(x).s_c is None) == (expected.s_c is None)
            assert fast(x[:0]).s.shape == (0, 11)
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


@pytest.mark.parametrize("head", ["", "pooled"])
@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_heads_and_goals(head, goal):
    """Results are the caller's own, and memory may lie in any order."""
    can_run("openvino")
    torch.manual_seed(0)
    net = build("linear-in", "vgg11", 11, 64, 0.125, head=head).eval()
    fast, x = prepare(net, "openvino", image_size=64, max_batch=3, goal=goal), torch.rand(7, 3, 64, 64)
    with torch.no_grad():
        expected = net(x)
    first = fast(x)
    kept = first.s.clone()
    wide = torch.rand(7, 3, 64, 128)
    wide[..., ::2] = x
    for y in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().transpose(2, 3), wide[..., ::2]):
        assert difference(expected, fast(y)) < 1e-4
    fast(torch.rand(2, 3, 64, 64))
    assert torch.equal(first.s, kept)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "ncnn"])
@pytest.mark.parametrize("method", ["wae", "linear-2", "quarter"])
def test_images_that_pools_leave_nothing_of(method, engine):
    """A last pool that has a single position to look at: OpenVINO refuses it, ncnn gets it wrong, and it does nothing."""
    can_run(engine)
    torch.manual_seed(0)
    if (method, engine) == ("quarter", "ncnn"):
        with pytest.raises(ValueError, match=r"\Ancnn does not know aten::_upsample_bilinear2d_aa, a step of the model; use another engine\Z"):
            prepare(build(method, "vgg11", 5, 64, 0.125), engine)
        return
    net, x = build(method, "vgg11", 5, 32 if method == "wae" else 64, 0.125).eval(), torch.rand(3, 3, *[32 if method == "wae" else 64] * 2)
    with torch.no_grad():
        assert difference(net(x), prepare(net, engine, image_size=x.shape[-1])(x)) < 1e-4


@pytest.mark.parametrize("engine", ["openvino", "eager", "compile"])
def test_bfloat16(engine):
    """Near the scores, not equal to them."""
    can_run(engine, "bf16")
    net, x = trained_like("wae", "resnet18", 64, 1), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        away = difference([net(x).s], [prepare(net, engine, "bf16", image_size=64)(x).s])
    assert 1e-5 < away < 0.1


def test_what_a_prepared_model_refuses():
    """One line that says what came and what was expected."""
    net, x = trained_like("wae", "vgg11", 64, 0), torch.rand(2, 3, 64, 64)
    fast = prepare(net, "eager")
    wrong = [x.double(), x.half(), (255 * x).byte(), x[:, :1], x[0], torch.rand(2, 3, 65, 64), x.numpy(), [x]]
    for y in wrong:
        with pytest.raises(ValueError, match=r"\Aimages are [^\n]*: the model was prepared for \(B, 3, 64, 64\), torch.float32 on cpu, pixels in \[0, 1\]\Z"):
            fast(y)
    for wrong, message in [
        (dict(image_size=65), "image of 65×65 pixels"),
        (dict(precision="fp8"), "engine='eager' runs on cpu or cuda in fp32 or tf32 or bf16 here, not on 'cpu' in 'fp8'"),
        (dict(precision="tf32"), "precision='tf32' needs an Nvidia GPU"),
        (dict(max_batch=0), "max_batch=0: use a whole number of at least 1"),
        (dict(goal="energy"), "goal='energy' is unknown"),
    ]:
        with pytest.raises(ValueError, match=f"\\A[^\n]*{message}[^\n]*\\Z"):
            prepare(net, "eager", **wrong)
    with pytest.raises(TypeError, match="model is a Linear"):
        prepare(nn.Linear(2, 2))


def test_engine_that_gives_other_scores(monkeypatch):
    """Seen when the model is prepared, not in production: made up, and ncnn behind a linear encoder on odd sides (right, or refused)."""
    wrong = InferenceEngine("wrong", lambda model, image, how: lambda x: [model(x).s + 1])
    monkeypatch.setitem(ENGINES, "wrong", wrong)
    with pytest.raises(ValueError, match=r"\Aengine='wrong' gives scores that are .* away from the model's own; use another\Z"):
        prepare(trained_like("plain", "vgg11", 64, 0), "wrong")
    can_run("ncnn")
    net, x = trained_like("linear-in", "resnet18", 65, 0), torch.rand(2, 3, 65, 65)
    with torch.no_grad(), suppress(ValueError):
        assert difference(net(x), prepare(net, "ncnn", image_size=65)(x)) < 1e-3


def test_engine_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"engine='openvino' needs openvino; install the extra: pip install 'wae_nb\[engines\]'"):
        check_engine("openvino")
    chosen, absent = available_engines()
    assert "eager" in chosen and {"openvino", "onnxruntime", "ncnn"} <= absent.keys()
    net, x = trained_like("plain", "vgg11", 64, 0), torch.rand(1, 3, 64, 64)
    monkeypatch.setitem(ENGINES, "compile", ENGINES["ncnn"])
    with torch.no_grad():  # the first that there is
        assert difference(net(x), prepare(net)(x)) < 1e-6


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
    model, clock = trained_like("wae", "resnet18", 64, 0), Clock(0)
    model.register_forward_hook(lambda *_: clock.work(seconds))
    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)

    def several():
        for _ in range(times):
            model(x)

    got = time_pairs(partial(model, x), several, 2, seconds=8 * seconds, turn=3 * seconds).summary()
    assert got["speedup"] == pytest.approx([1 / times] * 3)
    assert got["latency_ms"] == pytest.approx([1e3 * seconds * times] * 3) and got["throughput"] == pytest.approx(2 / (seconds * times))


def test_many_in_turns(monkeypatch):
    """Each as long as it takes, round after round, on a machine that gets slower."""
    clock, order = Clock(0.001), []
    monkeypatch.setattr(latency.time, "perf_counter", clock.perf_counter)
    calls = [lambda i=i: (order.append(i), clock.work(0.5 + i)) for i in range(3)]
    times = latency.time_turns(calls, seconds=0, min_pairs=4, max_pairs=4, warmup=1)
    assert times.shape == (4, 3) and order == [0, 1, 2] * 5
    assert times[:, 1] / times[:, 0] == pytest.approx(3, rel=0.01)
    with pytest.raises(ValueError, match="min_pairs=9"):
        latency.time_turns(calls, min_pairs=9, max_pairs=3)


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
        (dict(engines="eager,tensorrt"), "engine='tensorrt' is unknown"),
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
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for n in (1, 2, 5):
        x = torch.rand(n, 3, 64, 64)
        got = session.run(["scores", "fused_scores", "low_scores"], {"image": x.numpy()})
        with torch.no_grad():
            assert difference(net(x), [torch.from_numpy(y) for y in got]) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
@pytest.mark.parametrize("method", ["plain", "wavelet", "wae"])
@pytest.mark.parametrize("engine", ["graph", "compile"])
def test_recorded_on_a_gpu(engine, method, backbone):
    """Recorded graphs replay for new images and new batch sizes, and results are the caller's own."""
    torch.backends.cudnn.allow_tf32 = False
    net = trained_like(method, backbone, 64, 5).cuda()
    fast, before = prepare(net, engine, image_size=64), None
    for n in (2, 5, 2):
        x = torch.rand(n, 3, 64, 64, device="cuda")
        with torch.no_grad():
            assert difference(net(x), got := fast(x)) < 1e-4
        assert before is None or torch.equal(*before)
        before = got.s, got.s.clone()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recorded_networks_take_turns(precision):
    """Graphs have one memory: another network's pass, in another size or thread, leaves no trace in the scores."""
    torch.backends.cudnn.allow_tf32 = False
    nets = [trained_like(method, "vgg11", 64, 5).cuda() for method in ("wae", "plain")]
    fast, got = [prepare(net, "graph", precision, image_size=64) for net in nets], []

    def call(i, n):
        x = torch.rand(n, 3, 64, 64, device="cuda")
        with torch.no_grad():
            got.append((nets[i](x), fast[i](x)))

    for i, n in ((0, 2), (1, 2), (0, 5), (1, 9), (0, 2), (1, 2)):
        call(i, n)
    threads = [threading.Thread(target=lambda i=i: [call(i, 2) for _ in range(20)]) for i in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(got) == 46 and all(difference(a, b) < (1e-4 if precision == "fp32" else 0.1) for a, b in got)


def test_made_up_engine(monkeypatch):
    """One entry of `ENGINES`, and it is checked, prepared, listed and left out where it cannot run."""

    def make(model, image, how):
        return lambda x: [0.9999 * y for y in model(x)]

    halved = InferenceEngine("nearly it", make, devices=("cpu", "cuda"), check=lambda device: "needs luck" if luck else None)
    monkeypatch.setitem(ENGINES, "halved", halved)
    monkeypatch.setitem(ENGINES, "absent", InferenceEngine("not there", make, needs=("no_such_module",), extra="luck"))
    net, x, luck = trained_like("wae", "vgg11", 64, 0), torch.rand(2, 3, 64, 64), False
    check_engine("halved")
    with torch.no_grad():
        assert torch.equal(prepare(net, "halved")(x).s, 0.9999 * net(x).s)
    chosen, absent = available_engines()
    assert "halved" in chosen and absent["absent"] == "engine='absent' needs no_such_module; install the extra: pip install 'wae_nb[luck]'"
    assert available_engines("halved")[0] == ["halved"]
    with pytest.raises(ValueError, match="engine='halved' runs on cpu or cuda in fp32 here, not on 'cpu' in 'bf16'"):
        check_engine("halved", precision="bf16")
    luck = True
    with pytest.raises(ValueError, match="engine='halved' needs luck"):
        prepare(net, "halved")
    assert "halved" not in available_engines()[0]


def with_net(net):
    return DecomposedClassifier(Identity(), net, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))).eval()


class InPlace(nn.Module):
    """A block that changes the residual between a convolution and the sum."""

    def __init__(self, change):
        super().__init__()
        self.stem, self.norm, self.conv = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 1, 1)
        self.change = change

    def forward(self, x):
        y = self.norm(self.stem(x))
        z = self.conv(y)
        self.change(y)
        return z + y


def silence_first(y):
    y[:, 0] = 0


IN_PLACE = {"relu_": lambda y: y.relu_(), "+=": lambda y: y.add_(1), "[:, 0] = 0": silence_first, "mul_": lambda y: y.mul_(-2)}


@pytest.mark.parametrize("change", IN_PLACE)
@pytest.mark.parametrize("method", ["plain", "wae"])
@pytest.mark.parametrize("engine", [None, *(e for e in ON_CPU if e != "compile")])
def test_residual_that_is_changed_in_place(engine, method, change):
    """Folded and prepared, the scores are those of the network as it was given."""
    torch.manual_seed(0)
    net, scores = InPlace(IN_PLACE[change]), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = with_net(net) if method == "plain" else DecomposedClassifier(Encoder(), net, scores, norm_low=nn.BatchNorm2d(3))
    x = torch.rand(16, 3, 64, 64)
    with torch.no_grad():
        model.train()(x)  # norms that have seen something
    model.eval()
    if engine is not None:
        can_run(engine)
    if change == "[:, 0] = 0" and engine not in (None, "eager"):  # torch.fx does not follow an assignment to a part: refused, not wrong
        with pytest.raises(ValueError, match=r"\A[^\n]*cannot be converted; use the engine 'eager' or 'compile'\Z"):
            prepare(model, engine, image_size=64)
        return
    call = fold(model) if engine is None else prepare(model, engine, image_size=64)
    with torch.no_grad():
        assert difference([model(x).s], [call(x).s]) < 1e-4


def test_every_model_is_compiled(monkeypatch):
    """However many there are, and at however many sizes of a batch: eight graphs of one forward are all that PyTorch makes by itself."""
    can_run("compile")
    real, graphs = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda net, dynamic, options: real(net, dynamic=dynamic, backend=lambda made, _: graphs.append(1) or made))
    nets = [with_net(nn.Conv2d(3, 8, 3, k + 1)).eval() for k in range(4)]
    fast = [prepare(net, "compile", image_size=64, max_batch=16) for net in nets]
    for n in (1, 3, 4):
        x = torch.rand(n, 3, 64, 64)
        for net, call in zip(nets, fast, strict=True):
            before = len(graphs)
            with torch.no_grad():
                assert difference([net(x).s], [call(x).s]) < 1e-5 and len(graphs) == before + 1
                call(x)
            assert len(graphs) == before + 1  # found again


class OnePool(nn.Module):
    """One pool for all blocks, as people write it; on the smallest images its last call has a single position."""

    def __init__(self):
        super().__init__()
        self.convs, self.pool = nn.ModuleList(nn.Conv2d(c, 8, 3, 1, 1) for c in (3, 8, 8, 8, 8)), nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x):
        for conv in self.convs:
            x = self.pool(conv(x).relu())
        return x


@pytest.mark.parametrize("engine", [e for e in ON_CPU if e not in ("compile", "eager")])
def test_one_pool_that_is_called_on_a_single_position(engine):
    """It stays, for it has work to do on the larger maps. (ncnn, which gets the single position wrong, may refuse.)"""
    can_run(engine)
    torch.manual_seed(0)
    net, x = with_net(OnePool()), torch.rand(3, 3, 16, 16)
    with suppress(ValueError) if engine == "ncnn" else nullcontext(), torch.no_grad():
        assert difference([net(x).s], [prepare(net, engine, image_size=16)(x).s]) < 1e-4


@pytest.mark.parametrize("wrong", ["gpu", "cuda:1", torch.device("meta")])
def test_times_of_a_device_that_is_none(wrong):
    """What is not a CPU is not timed as one: a GPU's calls return before they are done. A tensor's own device will do."""
    turns, whole, most = partial(latency.time_turns, [int]), partial(peak_memory, lambda: int), partial(with_peak, int)
    for measured in (turns, whole, most, machine_rates, partial(check_precision, "bf16")):
        with pytest.raises(ValueError, match=f"device='{wrong}' is unknown; use 'auto', 'cpu' or 'cuda'"):
            measured(device=wrong)
    assert latency.time_turns([int], seconds=0, device=torch.rand(1).device).shape == (5, 1)
    with pytest.raises(ValueError, match="^warmup=0: use at least 1"):
        latency.time_turns([int], warmup=0)


class Branching(nn.Module):
    """A network whose path depends on its input."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, x):
        return self.conv(x) if x.mean() > 0 else self.conv(-2 * x)


@pytest.mark.parametrize("engine", [e for e in ON_CPU if e != "compile"])
def test_path_that_depends_on_the_input(engine):
    """Both paths, any number of images; what would write one path down refuses."""
    can_run(engine)
    net, x = with_net(Branching()), torch.rand(3, 3, 64, 64)
    if engine == "eager":
        call = prepare(net, engine, image_size=64)
        with torch.no_grad():
            for y in (x, -x, torch.cat([x] * 20)):
                assert difference([net(y).s], [call(y).s]) < 1e-5
    else:
        with pytest.raises(ValueError, match=r"\Athe model's path depends on its input, so it cannot be converted[^\n]*\Z"):
            prepare(net, engine, image_size=64)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_rows_past_the_paper_are_timed(backbone):
    """Each is a network that can be built, with fewer operations than the standard one."""
    with torch.device("meta"):
        plain = macs(row_model("plain", backbone, 1000, device="meta"))
        for row in timed_rows(backbone):
            assert macs(row_model(row, backbone, 1000, device="meta")) < plain
    assert {"linear-2", "linear-in"} <= {row.partition("+")[0] for row in timed_rows(backbone)}


@pytest.mark.parametrize("function", [fold, prepare, export_onnx], ids=lambda f: f.__name__)
def test_examples(monkeypatch, function):
    if function is export_onnx:
        pytest.importorskip("onnxscript")
    for f in (build, fold, prepare, export_onnx):
        monkeypatch.setattr(wae_nb, f.__name__, f, raising=False)
    (test,) = doctest.DocTestFinder(recurse=False).find(function, function.__name__, module=sys.modules[function.__module__], globs={})
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0
