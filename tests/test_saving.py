"""A classifier saved, and loaded in another process; what a folder may hold, and what is refused."""

import copy
import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from torch import nn

from wae_nb.convert.folding import fold
from wae_nb.deploy.loading import load
from wae_nb.method.classifier import METHODS, DecomposedClassifier, build
from wae_nb.method.saving import CONFIG, TENSORS
from wae_nb.prune.structures import THINET, thinet

IMAGE = torch.linspace(-0.5, 1.5, 2 * 3 * 64 * 64).view(2, 3, 64, 64).sin()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build("wae", "vgg11_bn", 3, 64, 0.125).eval()


@pytest.fixture
def saved(net, tmp_path):
    return net.save(tmp_path / "net", ["a", "b", "c"], dict(seed=1), dict(top1=0.5))


def scores_elsewhere(folder, out):
    """In another process, which knows nothing but the folder."""
    code = f"""
        import torch, wae_nb
        from safetensors.torch import save_file
        image = torch.linspace(-0.5, 1.5, 2 * 3 * 64 * 64).view(2, 3, 64, 64).sin()
        with torch.no_grad():
            save_file({{"s": wae_nb.load({str(folder)!r})(image).s}}, {str(out)!r})
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=out.parent, env=dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"))
    return load_file(out)["s"]


@pytest.mark.parametrize("kind", ["wae", "joined", "convnext", "pruned", "thinet"])
def test_another_process_has_the_same_scores(kind, tmp_path):
    torch.manual_seed(0)
    if kind == "thinet":
        net = thinet("gap", 3, 64, 0.25)
    else:
        rows = dict(wae=("wae", "vgg11_bn"), joined=("linear-2", "resnet18"), convnext=("wavelet", "convnext_tiny"), pruned=("plain", "resnet18"))
        method, backbone = rows[kind]
        net = build(method, backbone, 3, 64, 0.25)
    net(IMAGE)  # moves the batch norms
    net.eval()
    if kind == "pruned":
        pytest.importorskip("torch_pruning")
        from wae_nb.prune.surgery import remove_channels

        remove_channels(net, {"low_net.layer1.0.conv1": [0, 3], "low_net.layer3.1.conv1": [5]}, IMAGE[:1])
    before = torch.get_rng_state()
    folder = net.save(tmp_path / "net").rename(tmp_path / "moved")
    again = load(folder)
    assert torch.equal(torch.get_rng_state(), before) and not again.training
    with torch.inference_mode():
        expected = net(IMAGE).s
        assert torch.equal(again(IMAGE).s, expected) and torch.equal(scores_elsewhere(folder, tmp_path / "s.safetensors"), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["moved", "s.safetensors"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method, tmp_path):
    net = build(method, "resnet18", 3, 64, 0.125).eval()
    with torch.no_grad():
        assert torch.equal(load(net.save(tmp_path / "net"))(IMAGE).s, net(IMAGE).s)


@pytest.mark.parametrize("structure", THINET)
def test_every_structure(structure, tmp_path):
    net = thinet(structure, 3, 64, 0.125).eval()
    with torch.no_grad():
        assert torch.equal(load(net.save(tmp_path / "net"))(IMAGE).s, net(IMAGE).s)


def test_what_was_said_is_kept(saved):
    page = json.loads((saved / CONFIG).read_text())
    assert page["arguments"]["method"] == "wae" and page["arguments"]["backbone"] == "vgg11_bn"
    assert page["images"]["size"] == 64 and not page["images"]["any_size"]
    again = load(saved)
    assert (again.config["classes"], again.config["fingerprint"], again.config["metrics"]) == (["a", "b", "c"], dict(seed=1), dict(top1=0.5))
    again.save(saved, metrics=dict(top1=0.6))
    third = load(saved)
    assert third.config["classes"] == ["a", "b", "c"] and third.config["metrics"] == dict(top1=0.6) and [p.name for p in saved.parent.iterdir()] == ["net"]


def test_one_s_own(tmp_path):
    class Own(nn.Sequential):
        pass

    own = Own(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
    net = build("wae", own, 3, 64).eval()
    folder = net.save(tmp_path / "net")
    with torch.no_grad():
        assert torch.equal(load(folder, backbone=own)(IMAGE).s, net(IMAGE).s)
    with pytest.raises(ValueError, match="^[^\n]*config.json: backbone is own:Own; give such a module[^\n]*$"):
        load(folder)
    with pytest.raises(ValueError, match="^[^\n]*model.safetensors does not fit[^\n]*$"):
        load(folder, backbone=nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)))


def test_a_save_leaves_what_is_frozen(net, tmp_path):
    """Some layers in training, some not: as they were."""
    other = copy.deepcopy(net).train()
    other.low_net.eval()
    modes = [m.training for m in other.modules()]
    other.save(tmp_path / "net")
    assert [m.training for m in other.modules()] == modes and len(set(modes)) == 2


class Twice(nn.Module):
    """One layer by two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, 4, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.c = self.b

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def test_a_layer_by_two_names_is_saved(tmp_path):
    net = build("half", Twice(), 3, 64).eval()
    tensors = load_file(net.save(tmp_path / "net") / TENSORS)
    assert {k: v.tolist() for k, v in tensors.items()} == {k: v.tolist() for k, v in net.state_dict().items()} and "low_net.c.weight" in tensors


def test_a_network_that_changed_since_is_refused(saved):
    """The tensors fit and the scores are others."""
    page = json.loads((saved / CONFIG).read_text())
    page["sample"][0] += 1 + abs(page["sample"][0])
    (saved / CONFIG).write_text(json.dumps(page))
    with pytest.raises(ValueError, match="^[^\n]*config.json: the network gives other scores[^\n]*$"):
        load(saved)


def edit(**new):
    def change(folder):
        page = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(page | new))

    return change


def arguments(**new):
    def change(folder):
        edit(arguments=json.loads((folder / CONFIG).read_text())["arguments"] | new)(folder)

    return change


def other_tensors(folder):
    build("wae", "vgg11", 3, 64, 0.125).save(folder.parent / "other")
    page = json.loads((folder.parent / "other" / CONFIG).read_text())
    shutil.copy(folder.parent / "other" / TENSORS, folder / TENSORS)
    edit(sha256=page["sha256"])(folder)


VGG = dict(method="plain", backbone="vgg11")
WRONG = {  # what is done to a folder → what is said, the file's name first
    "gone": (shutil.rmtree, "net is not there"),
    "no page": (lambda f: (f / CONFIG).unlink(), "config.json is not there"),
    "no tensors": (lambda f: (f / TENSORS).unlink(), "model.safetensors is not there"),
    "no json": (lambda f: (f / CONFIG).write_text("{"), "config.json is not the page of a saved network"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), "config.json is not the page of a saved network"),
    "no bytes of text": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe"), "config.json is not the page of a saved network"),
    "another package": (edit(package="other"), "config.json is of another kind"),
    "a newer format": (edit(format=2), "config.json is of another kind (format 2"),
    "no arguments": (edit(arguments=None), "config.json is of another kind"),
    "cut off": (lambda f: (f / TENSORS).write_bytes((f / TENSORS).read_bytes()[:1000]), "model.safetensors is damaged"),
    "a pickle": (lambda f: torch.save({}, f / TENSORS), "model.safetensors is damaged"),
    "another network's tensors": (other_tensors, "model.safetensors does not fit what config.json says"),
    "code": (edit(made_by="os.system"), "config.json: made_by='os.system' is unknown; use one of build, thinet"),
    "an unknown method": (arguments(method="magic"), "config.json: method='magic' is unknown"),
    "an unknown backbone": (arguments(backbone="vgg17"), "config.json: backbone='vgg17' is unknown"),
    "one from a hub": (arguments(backbone="timm:hf-hub:some/one"), "config.json: backbone='timm:hf-hub:some/one' is unknown to timm"),
    "weights from elsewhere": (arguments(weights="/etc/passwd"), "config.json: weights='/etc/passwd': its tensors are beside it"),
    "an argument too many": (arguments(colour="red"), "config.json: build() got an unexpected keyword argument 'colour'"),
    "a word for a number": (edit(classes=[], arguments=dict(VGG, image_size=64, num_classes="three")), "config.json is not the page"),
    "a name too few": (edit(classes=["a", "b"]), "config.json is not the page of a saved network (ValueError: 2 names of 3 classes)"),
    "no size": (edit(arguments=dict(VGG, num_classes=3)), "config.json is not the page of a saved network (KeyError: 'image_size')"),
    "no number of classes": (edit(arguments=dict(VGG, image_size=64), classes=[]), "config.json is not the page of a saved network (KeyError: 'num_classes')"),
    "a sample of nothing": (edit(sample=[[None] * 3]), "model.safetensors does not fit what config.json says"),
    "a sample that is no number": (edit(sample=[[float("nan")] * 3]), "config.json: the network gives other scores than when it was saved"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_folder_is_refused_in_a_line(wrong, saved):
    change, said = WRONG[wrong]
    if wrong == "one from a hub":
        pytest.importorskip("timm")
    change(saved)
    with pytest.raises(ValueError) as e:
        load(saved)
    assert said in str(e.value) and "\n" not in str(e.value), e.value


def test_what_cannot_be_saved_leaves_nothing(net, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thing").touch()
    own = DecomposedClassifier(net.decomposer, net.low_net, net.head_low)
    cases = [
        (net, "full", {}, "full' is there and holds something else"),
        (net, "full/thing", {}, "is there and holds something else"),
        (net, "no/where", {}, "there is no "),
        (net, "net", dict(classes=["a"]), "classes: 1 names for 3 classes"),
        (fold(net), "net", {}, "save it before it is folded"),
        (own, "net", {}, "was not made by `build`"),
    ]
    for model, name, how, said in cases:
        with pytest.raises(ValueError) as e:
            model.save(tmp_path / name, **how)
        assert said in str(e.value) and "\n" not in str(e.value)
    monkeypatch.setattr("wae_nb.method.saving.to_bytes", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net.save(tmp_path / "net")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_others_can_read_it(saved):
    """As they can any file: a server runs as somebody else."""
    (beside := saved.parent / "beside").touch()
    assert {p.stat().st_mode for p in saved.iterdir()} == {beside.stat().st_mode}


def test_a_failed_save_keeps_what_was_there(saved, net, monkeypatch):
    monkeypatch.setattr("wae_nb.method.saving.write_page", lambda *a: 1 / 0)  # when the tensors are written
    with pytest.raises(ZeroDivisionError):
        net.save(saved)
    assert load(saved).config["classes"] == ["a", "b", "c"] and [p.name for p in saved.parent.iterdir()] == ["net"]


@pytest.mark.parametrize("there", [["config.json"], ["config.json", "model.safetensors", "thesis.txt"], ["notes.txt"]])
def test_a_folder_of_something_else_is_kept(net, tmp_path, there):
    """A page alone does not make a folder ours: other programs call theirs so, and runs."""
    folder = tmp_path / "net"
    folder.mkdir()
    if "thesis.txt" in there:
        net.save(folder)
        (folder / "thesis.txt").write_text("{}")
    else:
        (folder / there[0]).write_text("{}")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(ValueError, match="is there and holds something else"):
        net.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before and set(before) == set(there)
    (tmp_path / "empty").mkdir()
    assert net.save(net.save(tmp_path / "empty")).is_dir()  # an empty one is filled, one that was saved is replaced
