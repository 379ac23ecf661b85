"""Files for other engines: what they hold, that they give PyTorch's scores, that nobody needs PyTorch or this library to use one, and what is refused."""

import json
import re
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from test_backbones import of_blocks

import wae_nb
from wae_nb.convert import targets
from wae_nb.convert.readers import NARROW
from wae_nb.convert.targets import TARGETS, export
from wae_nb.data.batches import crop
from wae_nb.data.decode import read_image
from wae_nb.data.sets import pack_size
from wae_nb.deploy.engines import ENGINES
from wae_nb.method.classifier import build
from wae_nb.method.saving import preparation

CLASSES = ["tench", "English springer", "cassette player", "chain saw", "Kirche", "Waldhorn", "gas\u00a0pump", "Müllwagen", "golf ball", "parachute"]


def network(method: str, backbone: str = "resnet18", size: int = 128, **other):
    """Not trained, but with norms that have seen images, and scores that differ."""
    torch.manual_seed(0)
    net = build(method, backbone, len(CLASSES), size, 0.25, **other)
    with torch.no_grad():
        for _ in range(3):
            net(torch.rand(8, 3, size, size))
    return net.eval()


def images(n: int, height: int, width: int) -> torch.Tensor:
    """Smooth patterns and noise."""
    g = torch.Generator().manual_seed(n * height + width)
    pattern = F.interpolate(torch.rand(n, 3, 5, 5, generator=g), (height, width), mode="bicubic").clamp(0, 1)
    return 0.7 * pattern + 0.3 * torch.rand(n, 3, height, width, generator=g)


def installed(to: str) -> None:
    if missing := [m for m in TARGETS[to].needs if find_spec(m) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")


def furthest(net, run, batches) -> float:
    """The largest difference of any score from PyTorch's, relative to the largest score."""
    out = []
    with torch.no_grad():
        for x in batches:
            s, s_c, s_L = (y if y is None else y.numpy() for y in net(x))
            got = [np.asarray(y) for y in run(x)]
            expected = [s] if s_c is None else [s, s_c, s_L]
            assert len(got) == len(expected)
            out += [np.abs(a - b).max() / np.abs(a).max() for a, b in zip(expected, got)]
    return float(np.max(out))


@pytest.mark.parametrize("method", ["wae", "linear-2"])
@pytest.mark.parametrize("to", TARGETS)
def test_scores_are_pytorch_s(tmp_path, to, method):
    """Batches of one to eight, two sizes; the smaller one leaves maps of more than a pixel to the last layer, which `torch.export` would keep to."""
    installed(to)
    net, side = network(method), 256 if method == "linear-2" else 128
    before = {k: v.clone() for k, v in net.state_dict().items()}
    done = export(net, tmp_path / f"net{TARGETS[to].ending}", to, images(3, side, side), CLASSES)
    assert done.any_size == (TARGETS[to].guards or method == "wae") and done.same_answers == 1 and done.latency_ms > 0
    run = TARGETS[to].read(done.files[0])
    away = furthest(net, run, [images(n, *size) for n in range(1, 9) for size in ((side, side), (side + 32, side + 64))[: 1 + done.any_size]])
    assert away <= 1e-4 and done.difference <= 1e-4
    assert sorted(tmp_path.iterdir()) == sorted(done.files) and done.megabytes == sum(f.stat().st_size for f in done.files) / 1e6
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("how", [dict(engine=e) for e in ("eager", "openvino", "onnxruntime", "ncnn")] + [dict(engine="openvino", goal="throughput")])
def test_threads_get_their_own_scores(how):
    """As in a server: two threads with an image each, one network."""
    if missing := [m for m in ENGINES[how["engine"]].needs if find_spec(m) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    fast, got = wae_nb.prepare(network("plain", size=64), image_size=64, **how), {}
    batches = [images(2, 64, 64), images(3, 64, 64)]
    expected = [fast(x).s for x in batches]

    def ask(i):
        got[i] = [fast(batches[i]).s for _ in range(100)]

    threads = [threading.Thread(target=ask, args=(i,)) for i in (0, 1)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for i, s in enumerate(expected):
        assert len(got[i]) == 100 and all(torch.allclose(s, each, atol=1e-6) for each in got[i])


@pytest.mark.parametrize("to", TARGETS)
def test_one_size_where_the_heads_take_one(tmp_path, to):
    installed(to)
    net = network("wae", "vgg11", 64)
    done = export(net, tmp_path / f"net{TARGETS[to].ending}", to, images(2, 64, 64))
    assert not done.any_size
    assert furthest(net, TARGETS[to].read(done.files[0]), [images(n, 64, 64) for n in (1, 2, 5)]) <= 1e-4


@pytest.mark.parametrize("method", ["plain", "half", "wavelet", "I_L", "resizer", "dct"])
def test_other_decomposers_as_onnx(tmp_path, method):
    """A size that is called free is."""
    installed("onnx")
    net = network(method, size=64)
    done = export(net, tmp_path / "net.onnx", "onnx", images(2, 64, 64))
    sizes = [(64, 64)] + [(64, 160), (224, 96)] * done.any_size
    assert furthest(net, TARGETS["onnx"].read(done.files[0]), [images(3, *size) for size in sizes]) <= 1e-4


def test_a_size_that_cannot_be_left_free_is_kept(tmp_path):
    """OpenVINO writes a resize with antialiasing down for one size."""
    installed("openvino")
    net = network("half")
    done = export(net, tmp_path / "net.xml", "openvino", images(2, 128, 128))
    assert not done.any_size and furthest(net, TARGETS["openvino"].read(done.files[0]), [images(3, 128, 128)]) <= 1e-4
    odd = export(network("wae", size=75), tmp_path / "odd.xml", "openvino", images(2, 75, 75))
    assert not odd.any_size


def test_the_weights_of_another_file_are_kept(tmp_path):
    """OpenVINO and ncnn both have their weights beside them, in .bin."""
    installed("ncnn")
    export(network("wae", size=64), tmp_path / "net.xml", "openvino", images(1, 64, 64))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="net.bin beside it is another file's"):
        export(network("wae", size=64), tmp_path / "net.param", "ncnn", images(1, 64, 64))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_ncnn_says_what_it_does_not_know(tmp_path):
    installed("ncnn")
    with pytest.raises(ValueError, match=r"\Ancnn does not know aten::_upsample_bilinear2d_aa, a step of the model; use another engine\Z"):
        export(network("half", size=64), tmp_path / "net.param", "ncnn", images(1, 64, 64))
    assert not list(tmp_path.iterdir())


def metadata(to: str, path) -> dict[str, str]:
    """As the target's own reader gives it."""
    keys = ("classes", "preprocessing", "answers", "runtime")
    if to == "onnx":
        import onnx

        return {p.key: p.value for p in onnx.load(path).metadata_props}
    if to == "openvino":
        import openvino

        model = openvino.Core().read_model(path)
        return {k: model.get_rt_info(["wae_nb", k]).astype(str) for k in keys}
    if to == "torch-export":
        found = dict.fromkeys(keys, "")
        torch.export.load(path, extra_files=found)
        return found
    return {k: json.dumps(v) for k, v in json.loads(path.with_suffix(".json").read_text(encoding="utf-8")).items()}


@pytest.mark.parametrize("to", TARGETS)
def test_the_file_says_what_it_takes(tmp_path, to):
    installed(to)
    method = "wae" if to == "ncnn" else "half"  # which ncnn does not take
    done = export(network(method, size=64), tmp_path / f"net{TARGETS[to].ending}", to, images(2, 64, 64), CLASSES)
    found = {k: json.loads(v) for k, v in metadata(to, done.files[0]).items()}
    assert found["classes"] == CLASSES
    steps = found["preprocessing"]
    assert (steps["colour"], steps["resize"], steps["crop"], steps["scale"]) == ("RGB", [73, 73], [64, 64], 1 / 255)
    assert ("multiples of 32" in steps["sizes"]) == done.any_size and steps["crop_at"] == [4, 4]
    assert ("any number of images" in steps["sizes"], steps["layout"]) == ((False, "CHW") if to == "ncnn" else (True, "NCHW"))
    assert found["runtime"] == {"openvino": {"INFERENCE_PRECISION_HINT": "f32"}, "ncnn": dict.fromkeys(NARROW, False)}.get(to, {})


@pytest.mark.parametrize("size", [(224, 224), (64, 97), (33, 31), (1, 2)])
def test_preparation_is_that_of_training(size):
    steps = preparation(size)
    assert steps["resize"] == list(map(pack_size, size))
    marked = torch.zeros(1, 3, *steps["resize"], dtype=torch.uint8)
    (top, left), (h, w) = steps["crop_at"], steps["crop"]
    marked[:, :, top : top + h, left : left + w] = 255
    if h == w:
        assert crop(marked.permute(0, 2, 3, 1), h).min() == 1


@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("method", ["wavelet", "linear-in"])
def test_sizes_that_a_file_does_not_take_fail_in_its_engine(tmp_path, to, method):
    """In engines that do not look at sizes, the borders of others would be wrong without a word."""
    installed(to)
    net = network(method, size=64)
    done = export(net, tmp_path / f"net{TARGETS[to].ending}", to, images(2, 64, 64), CLASSES)
    assert done.any_size == (to == "onnx")
    run = TARGETS[to].read(done.files[0])
    assert furthest(net, run, [images(3, 64, 64)] + [images(2, 96, 128)] * done.any_size) < 1e-4
    for size in ((97, 65), (65, 64), (100, 99)):
        with pytest.raises(Exception, match="(?i)reshape|shape"):
            run(images(1, *size))


def test_openvino_takes_every_larger_size_that_it_says(tmp_path):
    installed("openvino")
    net = network("wae", size=64)
    run = TARGETS["openvino"].read(export(net, tmp_path / "net.xml", "openvino", images(2, 64, 64), CLASSES).files[0])
    assert furthest(net, run, [images(1, *size) for size in ((64, 64), (97, 65), (65, 64), (100, 99), (96, 128))]) < 1e-4


def test_openvino_s_own_names_and_least_size(tmp_path):
    installed("openvino")
    import openvino

    done = export(network("wae", size=64), tmp_path / "net.xml", "openvino", images(2, 64, 64), CLASSES)
    model = openvino.Core().read_model(done.files[0])
    assert [p.any_name for p in (*model.inputs, *model.outputs)] == ["image", "scores", "fused_scores", "low_scores"]
    with pytest.raises(RuntimeError):
        TARGETS["openvino"].read(done.files[0])(images(1, 32, 32))


def test_a_file_is_not_replaced_by_halves(tmp_path, monkeypatch):
    """Cut off between two files of one model, there is no model: an old graph would give new scores old names."""
    installed("openvino")
    export(network("half", size=64), tmp_path / "net.xml", "openvino", images(2, 64, 64), CLASSES)
    replace, done = targets.os.replace, []

    def cut_off(a, b):
        if str(b).endswith("net.xml") and str(b) == str(tmp_path / "net.xml"):
            raise KeyboardInterrupt
        done.append(replace(a, b))

    monkeypatch.setattr(targets.os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        export(network("wae", size=64), tmp_path / "net.xml", "openvino", images(2, 64, 64), CLASSES[::-1])
    assert done and not (tmp_path / "net.xml").exists()


PROGRAM = """
import json, sys
import numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1])
about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
(H, W), (h, w) = about["preprocessing"]["resize"], about["preprocessing"]["crop"]
image = np.asarray(Image.open(sys.argv[2]).convert("RGB").resize((W, H), Image.Resampling.BILINEAR), np.float32)
image = image[(H - h) // 2 :, (W - w) // 2 :][:h, :w] * np.float32(about["preprocessing"]["scale"])
scores = session.run(["scores"], {"image": image.transpose(2, 0, 1)[None]})[0][0]
print(json.dumps([about["classes"][scores.argmax()], scores.tolist()]))
"""


def test_ten_lines_without_pytorch(tmp_path):
    """From a photograph's file to a class, as training reads it, with ONNX Runtime alone."""
    installed("onnx")
    skimage = pytest.importorskip("skimage.data")
    assert len(PROGRAM.strip().splitlines()) == 10
    net = network("wae", size=64)
    done = export(net, tmp_path / "net.onnx", "onnx", images(2, 64, 64), CLASSES)
    (tmp_path / "program.py").write_text(PROGRAM + "assert not {'torch', 'wae_nb'} & set(sys.modules)\n")
    answers = set()
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        path = tmp_path / f"{name}.png"
        Image.fromarray(getattr(skimage, name)()).save(path)
        run = subprocess.run([sys.executable, "-I", tmp_path / "program.py", done.files[0], path], capture_output=True, text=True, check=True)
        said, scores = json.loads(run.stdout)
        with torch.no_grad():
            own = net(crop(torch.from_numpy(read_image(path, pack_size(64)))[None], 64)).s[0]
        assert said == CLASSES[own.argmax()]
        assert np.abs(own.numpy() - scores).max() <= 1e-4 * np.abs(own.numpy()).max()
        answers.add(tuple(np.round(scores, 3)))
    assert len(answers) == 4  # it does look at the image


def test_int8(tmp_path):
    installed("openvino")
    pytest.importorskip("nncf")
    net, x = network("plain", size=64), images(8, 64, 64)
    whole = export(net, tmp_path / "whole.xml", "openvino", x)
    done = export(net, tmp_path / "net.xml", "openvino", x, calibration=x)
    run = TARGETS["openvino"].read(done.files[0])
    some, every = run.layers()
    assert 0 < every / 2 < some and TARGETS["openvino"].read(whole.files[0]).layers()[0] == 0
    assert whole.difference < 1e-4 < done.difference < 0.3 and done.megabytes < 0.5 * whole.megabytes


def read_otherwise(monkeypatch, change):
    """From here on the target's file gives other scores: change is of the images and the scores."""
    target = TARGETS["torch-export"]

    def read(path):
        run = target.read(path)
        return lambda x: tuple(change(x, y) for y in run(x))

    monkeypatch.setitem(TARGETS, "torch-export", replace(target, read=read))


def test_scores_that_are_no_numbers_are_refused(tmp_path, monkeypatch):
    """Even in one image of many, in a batch that is not the last."""
    x = images(20, 64, 64)
    read_otherwise(monkeypatch, lambda these, y: torch.where((these == x[3]).flatten(1).all(1)[:, None], torch.nan, y))
    with pytest.raises(ValueError, match="gives scores that are nan away"):
        export(network("plain", size=64, head="pooled"), tmp_path / "net.pt2", "torch-export", x)
    assert not list(tmp_path.iterdir())


def test_same_answers_are_a_share_of_the_images(tmp_path, monkeypatch):
    """Of those that the file was checked with: the first alone, and all of them."""
    x = images(11, 64, 64)
    monkeypatch.setattr(targets, "AGREEMENT", torch.inf)
    read_otherwise(monkeypatch, lambda these, y: torch.where((these[:, 0, 0, 0] > x[:, 0, 0, 0].median())[:, None], -y, y))
    done = export(network("half", size=64), tmp_path / "net.pt2", "torch-export", x)
    other = x[:, 0, 0, 0] > x[:, 0, 0, 0].median()  # the largest score is the smallest there
    assert done.same_answers == pytest.approx(1 - (other[0] + other.sum()).item() / 12)


def diverged():
    net = network("half", size=64)
    with torch.no_grad():
        net.head_low[-1].weight[0, 0] = torch.nan
    return net


WRONG = {
    "a target": (dict(to="tflite"), "to='tflite' is unknown; use one of onnx, openvino, torch-export, ncnn"),
    "an ending": (dict(path="net.bin"), "net.bin': a file for torch-export ends in .pt2"),
    "a folder that is not there": (dict(path="none/net.pt2"), "none' is not a folder; make it first"),
    "a folder for a file": (dict(path="taken.pt2"), "taken.pt2' is a folder; name a file in it"),
    "pixels to 255": (dict(images=255 * images(2, 64, 64)), "images have pixels from"),
    "no batch": (dict(images=images(2, 64, 64)[0]), "images are (3, 64, 64), torch.float32: give some to check the file with"),
    "doubles": (dict(images=images(2, 64, 64).double()), "torch.float64: give some to check the file with"),
    "no images": (dict(images=images(2, 64, 64)[:0]), "N at least 1"),
    "an array": (dict(images=np.zeros((2, 3, 64, 64))), "images are a ndarray"),
    "too few names": (dict(classes=["cat", "dog"]), "classes has 2 names, the model 10 scores; give one for each"),
    "INT8": (dict(calibration=images(2, 64, 64)), "to='torch-export' cannot be written in INT8; use one of openvino"),
    "another size": (dict(model=network("wae", "vgg11", 96)), "image of 64×64 pixels: the fully connected heads were built for image_size=96"),
    "names that are no list": (dict(classes="abcdefghij"), "classes='abcdefghij': give a list of names"),
    "a network that diverged": (dict(model=diverged()), "the model's scores are not finite numbers"),
    "no classifier": (dict(model=torch.nn.Linear(3, 2)), "model is a Linear; give what `wae_nb.build` makes"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_refused_in_a_line(tmp_path, case):
    change, message = WRONG[case]
    (tmp_path / "taken.pt2").mkdir()
    given = dict(model=network("wae", size=64), path="net.pt2", to="torch-export", images=images(2, 64, 64)) | change
    with pytest.raises((ValueError, TypeError), match=rf"\A[^\n]*{re.escape(message)}[^\n]*\Z"):
        export(**given | dict(path=tmp_path / given["path"]))
    assert [p.name for p in tmp_path.rglob("*")] == ["taken.pt2"]


@pytest.mark.parametrize("to, extra", [("onnx", "engines"), ("openvino", "engines"), ("ncnn", "ncnn")])
def test_a_missing_package(tmp_path, to, extra):
    """In an interpreter where it cannot be found."""
    hidden = TARGETS[to].needs[-1]
    code = f"""
        import importlib.util, torch
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *a: None if name == {hidden!r} else find(name, *a)
        import wae_nb
        try:
            wae_nb.export(wae_nb.build("wae", "resnet18", 10, 64, 0.25), "net{TARGETS[to].ending}", {to!r}, torch.rand(2, 3, 64, 64))
        except ImportError as e:
            print(e)
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"to='{to}' needs ") and hidden in said and said.endswith(f"pip install 'wae_nb[{extra}]'\n") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_with_other_scores_is_not_left(tmp_path, monkeypatch):
    """What was there before stays."""
    net, path = network("wae", size=64), tmp_path / "net.pt2"
    path.write_text("before")
    read = TARGETS["torch-export"].read

    def off(path):
        run = read(path)
        return lambda x: [y + 1e-3 * y.abs().max() for y in run(x)]

    monkeypatch.setitem(TARGETS, "torch-export", targets.replace(TARGETS["torch-export"], read=off))
    with pytest.raises(ValueError, match=r"\Ato='torch-export' gives scores that are 1\.0e-03 away from the model's own[^\n]*\Z"):
        export(net, path, "torch-export", images(2, 64, 64))
    assert path.read_text() == "before" and [p.name for p in tmp_path.iterdir()] == ["net.pt2"]


def test_a_target_is_one_entry(tmp_path, monkeypatch):
    """A made-up one is written, checked and named."""
    made = targets.replace(TARGETS["torch-export"], title="Made up", ending=".pt2")
    monkeypatch.setitem(TARGETS, "made-up", made)
    assert wae_nb.export(network("plain", size=64), tmp_path / "net.pt2", "made-up", images(1, 64, 64)).to == "made-up"
    with pytest.raises(ValueError, match="to='tflite' is unknown; use one of .*made-up"):
        export(network("plain", size=64), tmp_path / "net.pt2", "tflite", images(1, 64, 64))


def test_a_cut_network_with_norms_of_its_own_is_converted():
    """OpenVINO's scores are PyTorch's, once its norms, which are not torch's, have seen images."""
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    net, x = build("wae", of_blocks(), 5, 64), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        net.train()(torch.rand(8, 3, 64, 64))
        expected = net.eval()(x).s
    torch.testing.assert_close(torch.as_tensor(wae_nb.prepare(net, "openvino", image_size=64)(x).s), expected, atol=1e-4, rtol=1e-3)
