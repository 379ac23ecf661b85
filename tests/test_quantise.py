"""Classifiers in INT8, against integers worked out by hand with PyTorch and against the networks that they were made from."""

import copy
import importlib.util
import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from test_timing import trained_like
from torch import nn

from wae_nb.convert.export import WEIGHTS, export_openvino
from wae_nb.convert.folding import fold
from wae_nb.convert.openvino import OpenVINORun
from wae_nb.data.batches import crop
from wae_nb.data.sets import load_data
from wae_nb.deploy.engines import check_engine, prepare
from wae_nb.deploy.loading import load
from wae_nb.deploy.saved_int8 import save_int8
from wae_nb.measure import machine
from wae_nb.measure.machine import has_int8_sums, settings
from wae_nb.method.classifier import DecomposedClassifier, build
from wae_nb.method.decomposers import Identity


def quantise(net, calibration):
    """In INT8, for images of the calibration's size."""
    return prepare(net, "openvino", "int8", tuple(calibration.shape[2:]), calibration=calibration)


def two_layers():
    """One convolution and one linear layer, without biases; the largest weight of each filter meets red."""
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(8 * 36, 5, bias=False)
    nn.init.constant_(conv.weight[:, 0], 0.2)
    return DecomposedClassifier(Identity(), nn.Sequential(conv, nn.ReLU()), nn.Sequential(nn.Flatten(), linear)).eval().requires_grad_(False)


def by_hand(net, calibration, x):
    """What INT8 makes of `two_layers`. A map's range is the mean of the images' largest values; the first layer has seven bits where sums would overflow."""

    def largest(maps):
        return float(maps.abs().amax((1, 2, 3)).mean())

    def weights(layer, steps, low, high):
        zero = torch.zeros(len(layer.weight), dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(layer.weight, layer.weight.abs().flatten(1).amax(1) / steps, zero, 0, low, high)

    conv, linear = net.low_net[0], net.head_low[1]
    a = torch.fake_quantize_per_tensor_affine(x - net.mean, largest(calibration - net.mean) / 127, 0, -128, 127)
    f = F.conv2d(a, weights(conv, *((127, -127, 127) if has_int8_sums() else (63.5, -64, 63)))).relu()
    f = torch.fake_quantize_per_tensor_affine(f, largest(net.low_net(calibration - net.mean)) / 255, 0, 0, 255)
    return F.linear(f.flatten(1), weights(linear, 127, -127, 127))


def relative(got, expected):
    return float((got - expected).norm() / expected.norm())


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def contrasts(n, size, seed=0):
    """Noise, from dark to bright."""
    g = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, size, size, generator=g) * torch.rand(n, 1, 1, 1, generator=g)


@pytest.mark.parametrize("contrast", [1, 0.05])
def test_integers_by_hand(contrast):
    """The very integers; with a calibration of faint images everything brighter is clipped, as by hand."""
    net, x = two_layers(), torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    x[:, 0] = net.mean[0]  # the largest weights are 63.5 steps, which round either way: they meet nothing
    x, calibration = x[:7], net.mean + contrast * (x[7:] - net.mean)
    small = quantise(net, calibration)
    got, expected = small(x).s, by_hand(net, calibration, x)
    assert (got - expected).abs().max() < 2e-4 < 2e-3 < (net(x).s - expected).abs().max()
    assert small.run.layers() == (2, 2)
    assert torch.equal(quantise(net, calibration)(x).s, got)


@pytest.mark.parametrize("flags, sums", [("avx2 avx512f avx512_vnni", True), ("avx2 avx_vnni", True), ("asimd asimddp", True), ("avx2 avx512f", False)])
def test_processors(monkeypatch, flags, sums):
    """Where sums of products would overflow, the first layer's weights have seven bits."""
    monkeypatch.setattr(machine.Path, "read_text", lambda self: f"flags : {flags}")
    assert has_int8_sums() is (sums and machine.Path("/proc/cpuinfo").exists())


@pytest.mark.parametrize("method, backbone, size", [("plain", "vgg16", 67), ("plain", "resnet50", 45)])
def test_scores_are_close(method, backbone, size):
    """Every layer in INT8, VGG's pools that round up included; any batch size; the model itself is left alone."""
    net, x = trained_like(method, backbone, size, 0), contrasts(12, size)
    state = copy.deepcopy(net.state_dict())
    small = quantise(net, x[:8])
    got = small(x)
    with torch.no_grad():
        expected = net(x).s
    assert got.s_c is None and torch.equal(got.s, got.s_L)
    assert relative(got.s, expected) < 0.05 and correlation(got.s, expected) > 0.99
    assert (got.s.argmax(1) == expected.argmax(1)).float().mean() > 0.9
    before = got.s.clone()
    for n in (1, 3):
        torch.testing.assert_close(small(x[:n].contiguous(memory_format=torch.channels_last)).s, before[:n], rtol=0, atol=0.02 * float(before.abs().max()))
    assert torch.equal(got.s, before), "results are the caller's own"
    assert small.run.layers() == (n := sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in fold(net).modules()), n)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in state.items())


CLASSES = 6


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Patches of real photographs, those that scikit-image comes with: images and labels of the first classes."""
    data = load_data(None, 64, tmp_path_factory.mktemp("photos"), demo="photos", demo_shape=(CLASSES, 80))
    at = data.indices("train")
    return crop(torch.from_numpy(data.read(at)), 64).contiguous(), torch.from_numpy(data.labels[at]).long()


@pytest.mark.parametrize("precision, agreement", [("bf16", 0.97), ("int8", 0.93)])
@pytest.mark.parametrize("method", ["plain", "wae", "linear-in", "linear-2"])
def test_answers_on_photographs(photographs, method, precision, agreement):
    """A network that was trained answers alike: nearly every photograph that it has learnt as in single precision."""
    try:
        check_engine("openvino", "cpu", precision)
    except (ImportError, ValueError) as e:
        pytest.skip(str(e))
    torch.manual_seed(0)
    x, y = photographs
    net = build(method, "vgg11_bn", CLASSES, 64, 0.25, head="pooled")
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=120)
    with settings(threads=1):  # the same network for any number of cores
        for step in range(120):
            at = torch.randint(len(x), (32,), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            F.cross_entropy(net(x[at]).s, y[at], label_smoothing=0.1).backward()  # as in the strong recipe: scores stay within bounds
            optimizer.step()
            schedule.step()
    net.eval()
    fast = prepare(net, "openvino", precision, 64, calibration=x[::4] if precision == "int8" else None)  # they lie by class
    with torch.no_grad():
        expected, got = net(x).s, fast(x).s
    assert (expected.argmax(1) == y).float().mean() > 0.9, "it was trained"
    assert (got.argmax(1) == expected.argmax(1)).float().mean() >= agreement
    assert not torch.equal(expected, got)


def test_answers_of_a_trained_network():
    """Two streams, narrow heads and the average of their scores, trained on four-by-four patterns; the average is not rounded to INT8."""

    def batch(n, seed):
        g, y = torch.Generator().manual_seed(seed), torch.arange(n) % 5
        pattern = F.interpolate(torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))[y], size=64)
        return (pattern + 0.3 * torch.randn(n, 3, 64, 64, generator=g)).clamp(0, 1), y

    torch.manual_seed(0)
    net = build("wae", "vgg11", 5, 64, 0.125, dropout=0, init="kaiming")
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for step in range(20):
        x, y = batch(15, step)
        optimizer.zero_grad()
        F.cross_entropy(net(x).s, y).backward()
        optimizer.step()
    net.eval()
    small, (x, y) = quantise(net, batch(10, 100)[0]), batch(100, 101)
    with torch.no_grad():
        expected, got = net(x).s, small(x).s
    assert (expected.argmax(1) == y).float().mean() > 0.9, "it was trained"
    assert (got.argmax(1) == expected.argmax(1)).float().mean() > 0.95
    assert correlation(got - got.mean(0), expected - expected.mean(0)) > 0.95
    assert len(got.unique()) > 256


def test_any_batch():
    """One compiled form, with as many threads as PyTorch had."""
    x = torch.rand(9, 3, 8, 8)
    for threads in {1, min(2, os.cpu_count())}:
        with settings(threads=threads):
            small = quantise(two_layers(), torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
        scores = small(x).s
        for n in (*range(1, 8), 1):
            torch.testing.assert_close(small(x[:n]).s, scores[:n], rtol=0, atol=1e-3)
        assert small(x[:0]).s.shape == (0, 5)
        assert small.run.compiled.get_property("INFERENCE_NUM_THREADS") == threads


def test_what_it_cannot_take(monkeypatch):
    net, x = trained_like("plain", "vgg11", 64, 0), torch.rand(2, 3, 64, 64)
    int8 = dict(engine="openvino", precision="int8")
    for wrong in (x[0], x[:, :1], x[:0], x.double(), (255 * x).byte()):
        with pytest.raises(ValueError, match=r"calibration is \(.*\), torch\..*: give images as \(N, 3, H, W\), N at least 1, torch.float32"):
            prepare(net, **int8, calibration=wrong)
    for wrong in (255 * x, x - 0.5, x / 0):
        with pytest.raises(ValueError, match="calibration has pixels from .* in \\[0, 1\\]"):
            prepare(net, **int8, calibration=wrong)
    with pytest.raises(ValueError, match="precision='int8' needs calibration=images"):
        prepare(net, **int8)
    with pytest.raises(ValueError, match=r"calibration is \(2, 3, 32, 32\), image_size=64: give images of the size that is to come"):
        prepare(net, **int8, calibration=x[..., :32, :32])
    small = quantise(two_layers(), torch.rand(1, 3, 8, 8))
    for wrong in (torch.rand(1, 3, 8, 9), torch.rand(3, 8, 8), torch.rand(1, 3, 8, 8).double()):
        with pytest.raises(ValueError, match=r"images are .*: the model was prepared for \(B, 3, 8, 8\), torch.float32 on cpu"):
            small(wrong)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "nncf" else find(name, *a))
    with pytest.raises(ImportError, match=r"precision='int8' needs nncf; install the extra: pip install 'wae_nb\[quantise\]'"):
        prepare(net, **int8, calibration=x)


def test_what_the_process_says(monkeypatch):
    """Where NNCF fails, its last line is the error; nothing is left behind."""
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr("wae_nb.convert.int8.sys.executable", "/bin/false")
    with pytest.raises(RuntimeError, match=r"\ANNCF could not quantise the model: 1\Z"):
        quantise(two_layers(), torch.rand(1, 3, 8, 8))


def test_silent(tmp_path):
    """In a fresh process: nothing is printed, and nothing written, not in the home folder either."""
    code = """
        import sys

        import torch
        from torch import nn

        from wae_nb.deploy.engines import prepare
        from wae_nb.method.classifier import DecomposedClassifier
        from wae_nb.method.decomposers import Identity

        net = DecomposedClassifier(Identity(), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), nn.Sequential(nn.Flatten(), nn.Linear(288, 5)))
        print("loaded", file=sys.stderr)
        prepare(net, "openvino", "int8", 8, calibration=torch.rand(3, 3, 8, 8))(torch.rand(1, 3, 8, 8))
    """
    env = {k: v for k, v in os.environ.items() if k not in ("CI", "NNCF_CI")}
    env |= dict(HOME=str(tmp_path), PYTHONPATH=os.pathsep.join(sys.path), PYTHONDONTWRITEBYTECODE="1")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.partition("loaded\n")[2]) == (0, "", ""), done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method, backbone, size", [("wae", "vgg11", 64), ("linear-in", "resnet18", 75)])
def test_weights_of_a_file(tmp_path, method, backbone, size):
    """Weights of eight bits, against weights rounded with PyTorch and run there; what each file weighs."""
    import openvino

    net, x = trained_like(method, backbone, size, 0), contrasts(6, size)
    rounded, files, scores = fold(net), {}, {}
    for m in rounded.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            step, zero = m.weight.abs().flatten(1).amax(1) / 128, torch.zeros(len(m.weight), dtype=torch.int32)  # a filter's largest weight is its 128th step
            m.weight = nn.Parameter(torch.fake_quantize_per_channel_affine(m.weight, step, zero, 0, -128, 128))
    for weights in WEIGHTS:
        path = export_openvino(net, tmp_path / f"{weights}.xml", x[:2], weights)
        files[weights] = path.with_suffix(".bin").stat().st_size
        scores[weights] = OpenVINORun(openvino.Core().read_model(path))(x)[0]
    assert relative(scores["fp32"], net(x).s) < 1e-4 and relative(scores["fp16"], net(x).s) < 1e-2
    assert relative(scores["int8"], net(x).s) > 3 * relative(scores["int8"], rounded(x).s)
    assert files["fp16"] < 0.52 * files["fp32"] and files["int8"] < 0.28 * files["fp32"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(f"{w}.{end}" for w in WEIGHTS for end in ("bin", "xml"))


def test_int8_as_a_file(tmp_path):
    """What is read back is what `prepare` runs."""
    import openvino

    net, x = trained_like("wae", "resnet18", 64, 0), contrasts(6, 64)
    path = export_openvino(net, tmp_path / "net.xml", x[:2], calibration=x)
    got = OpenVINORun(openvino.Core().read_model(path), "int8")(x)[0]
    assert torch.equal(got, quantise(net, x)(x).s)


def test_files_that_cannot_be(tmp_path):
    net, x = trained_like("wae", "resnet18", 64, 0), contrasts(2, 64)
    for change, message in (
        (dict(weights="fp8"), "weights='fp8' is unknown; use one of fp32, fp16, int8"),
        (dict(path=tmp_path / "net.onnx"), "an OpenVINO file ends in .xml"),
        (dict(calibration=255 * x), "give them in [0, 1]"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            export_openvino(net, **dict(path=tmp_path / "net.xml", image=x) | change)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("nncf") is None, reason="needs nncf")
def test_a_network_in_int8_is_saved(tmp_path):
    """Read in another process from where it was moved to: the same scores. What is damaged, or names files elsewhere, is one line."""
    torch.manual_seed(0)
    net, images = build("half", "resnet18", 3, 64, 0.25).eval(), torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    folder = save_int8(net, tmp_path / "net", images, ["a", "b", "c"], metrics=dict(top1=0.5)).rename(tmp_path / "moved")
    again = load(folder)
    assert (again.config["classes"], again.config["metrics"], again.config["arguments"]["method"]) == (["a", "b", "c"], dict(top1=0.5), "half")
    assert torch.equal(again(images).s, quantise(net, images)(images).s) and again.run.layers()[0] > 0
    code = f"""
        import torch, wae_nb
        images = torch.rand(16, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        torch.save(wae_nb.load({str(folder)!r})(images).s, {str(tmp_path / "s.pt")!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "s.pt"), again(images).s)
    page, weights = (folder / "config.json").read_text(), (folder / "model.bin").read_bytes()
    for change, said in (
        (lambda: (folder / "model.bin").write_bytes(weights[:-1]), "model.bin is damaged"),
        (lambda: (folder / "model.bin").unlink(), "model.bin is not there"),
        (lambda: (folder / "config.json").write_text(page.replace('"model.bin"', '"../model.bin"')), "names '../model.bin', which is not beside it"),
    ):
        change()
        with pytest.raises(ValueError, match=f"^[^\n]*{re.escape(said)}[^\n]*$"):
            load(folder)
        (folder / "model.bin").write_bytes(weights)
        (folder / "config.json").write_text(page)
    with pytest.raises(ValueError, match="^calibration is of 32×32 pixels: the network was built for 64×64$"):
        save_int8(net, tmp_path / "other", images[:, :, :32, :32])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moved", "s.pt"]
