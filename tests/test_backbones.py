"""Any CNN: every one of torchvision's is cut, built, slimmed and run; timm's and one's own, too."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.regnet import BlockParams

from wae_nb.convert.folding import fold
from wae_nb.deploy.engines import prepare
from wae_nb.deploy.loading import load
from wae_nb.measure.cost import macs
from wae_nb.method.backbones import FAMILIES, backbone_names, family, features
from wae_nb.method.classifier import DecomposedClassifier, build
from wae_nb.method.slimming import slim

NAMES = backbone_names()
SMALL = {  # of each family, with an image size that its half can be built at
    **{"vgg": ("vgg11_bn", 64), "resnet": ("resnet18", 64), "resnext": ("resnext50_32x4d", 64), "alexnet": ("alexnet", 128), "densenet": ("densenet121", 64)},
    **{"mobilenet_v2": ("mobilenet_v2", 64), "mobilenet_v3_large": ("mobilenet_v3_large", 64), "mobilenet_v3_small": ("mobilenet_v3_small", 64)},
    **{"efficientnet": ("efficientnet_b0", 64), "regnet": ("regnet_y_400mf", 64), "convnext": ("convnext_tiny", 64), "shufflenet": ("shufflenet_v2_x1_0", 64)},
    **{"squeezenet": ("squeezenet1_1", 64), "mnasnet": ("mnasnet1_0", 64), "googlenet": ("googlenet", 64), "inception": ("inception_v3", 150)},
}
NEW = [f for f in SMALL if f not in ("vgg", "resnet")]


@pytest.fixture
def without_values(monkeypatch):
    """Networks without values: RegNet computes its widths with tensors, which must have some."""
    made = BlockParams.from_init_params.__func__

    def on_cpu(cls, *args, **kwargs):
        with torch.device("cpu"):
            return made(cls, *args, **kwargs)

    monkeypatch.setattr(BlockParams, "from_init_params", classmethod(on_cpu))
    with torch.device("meta"):
        yield


def test_every_cnn_of_torchvision_is_there():
    every = torchvision.models.list_models(module=torchvision.models)
    assert set(every) - set(NAMES) == {n for n in every if n.startswith(("vit_", "swin_", "maxvit_"))} and len(NAMES) > 60
    assert set(SMALL) == set(FAMILIES) - {"timm"} and all(family(name) is FAMILIES[kin] for kin, (name, _) in SMALL.items())


@pytest.mark.parametrize("name", NAMES)
def test_every_name_builds(name, without_values):
    """At the default size as `wae`, at half of it as `half` and, slimmed to an odd width, as `wavelet`."""
    size = 299 if name == "inception_v3" else 224
    less = 126 if name == "alexnet" else math.ceil(size / 2)  # the least that AlexNet takes
    wae = build("wae", name, 10, size)
    for method, net, side in (("wae", wae, size), ("wavelet", build("wavelet", name, 10, less, 0.3), less)):
        scores = net.eval()(torch.empty(2, 3, side, side))
        assert scores.s.shape == scores.s_c.shape == scores.s_L.shape == (2, 10), method
    half = build("half", name, 10, less)
    assert half.low_net.state_dict().keys() == wae.low_net.state_dict().keys() == wae.high_net.state_dict().keys()
    low, high = (sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (wae.low_net, wae.high_net))
    assert high < low / 4


@pytest.mark.parametrize("method", ["wae", "half", "wavelet"])
@pytest.mark.parametrize("kin", SMALL)
def test_forward_and_backward(kin, method):
    """At two sizes, at an odd width; every weight of the networks has a gradient."""
    name, size = SMALL[kin]
    torch.manual_seed(0)
    net = build(method, name, 3, size, 0.3, high_floor=4)
    for side in {size, net.image_size or size + 32}:
        net(torch.rand(2, 3, side, side)).s.square().sum().backward()
    nets = [net.low_net, net.head_low] + [net.high_net, net.head_fused] * (net.high_net is not None)
    assert not [n for part in nets for n, p in part.named_parameters() if p.grad is None or not p.grad.isfinite().all()]


@pytest.mark.parametrize("kin", SMALL)
def test_the_features_are_torchvision_s(kin):
    """The same maps as torchvision's network computes before its pooling, from the same weights."""
    name, size = SMALL[kin]
    kind = FAMILIES[kin]
    net = torchvision.models.get_model(name, weights=None, **kind.options).eval()
    pool = net.avgpool if hasattr(net, "avgpool") else None
    seen = {}
    if pool is not None:
        pool.register_forward_pre_hook(lambda m, x: seen.update(maps=x[0]))
    else:  # what goes into the classifier is the average of the maps
        list(net.children())[-1].register_forward_pre_hook(lambda m, x: seen.update(mean=x[0]))
    with torch.no_grad():
        x = torch.rand(2, 3, size, size)
        net(x)
        maps = kind.split(net)(x)
    if kin == "squeezenet":
        seen["mean"] = seen["mean"].mean((2, 3))
        maps = maps.flatten(2).mean(2)[..., None, None]
    torch.testing.assert_close(maps if "maps" in seen else maps.mean((2, 3)), seen.get("maps", seen.get("mean")))


@pytest.mark.parametrize("kin", [f for f in SMALL if f not in ("squeezenet", "vgg", "alexnet")])
def test_a_standard_network_with_given_weights_says_the_same(kin):
    """Against torchvision's whole network, on its own normalisation."""
    name, size = SMALL[kin]
    mean, std = FAMILIES[kin].pixels(name) if FAMILIES[kin].pixels else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=6, **FAMILIES[kin].options).eval()
    ours = build("plain", name, 6, size, weights=theirs.state_dict()).eval()
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = theirs((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        torch.testing.assert_close(ours(x).s, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kin", NEW)
def test_folds_and_runs(kin):
    name, size = SMALL[kin]
    torch.manual_seed(0)
    net, x = build("wae", name, 3, size, 0.3, high_floor=4).eval(), torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(fold(net)(x).s, expected.s, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(prepare(net, "eager", image_size=size)(x).s, expected.s, atol=1e-4, rtol=1e-3)


def test_counts_of_a_slimmed_network(without_values):
    """MobileNetV2 at half the width is torchvision's own narrower one, where that rounds to the same counts."""
    ours = slim(features("mobilenet_v2"), 2)
    theirs = torchvision.models.mobilenet_v2(width_mult=0.5, round_nearest=1).features
    pairs = [(a.out_channels, b.out_channels) for a, b in zip(*([m for m in n.modules() if isinstance(m, nn.Conv2d)] for n in (ours, theirs)))]
    assert all(a == b for a, b in pairs[:-1]) and pairs[-1] == (640, 1280)  # torchvision keeps the last
    assert math.isclose(macs(slim(features("densenet121"), 2)) / macs(features("densenet121")), 1 / 4, rel_tol=0.1)


class Own(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.left, self.right = nn.Conv2d(16, 20, 3, 2, 1), nn.Conv2d(16, 12, 3, 2, 1)
        self.last = nn.Conv2d(32, 32, 3, 2, 1, groups=32)
        self.fc = nn.Linear(32, classes)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(self.last(x).relu(), 1), 1))


@pytest.mark.parametrize("method", ["plain", "wae", "half", "wavelet", "linear-in"])
def test_one_s_own(method):
    own = Own()
    before = {k: v.clone() for k, v in own.state_dict().items()}
    net = build(method, own, 4, 64, weights=None if method == "wavelet" else own.state_dict(), width=0.3 if method == "wavelet" else 1)
    net(torch.rand(2, 3, 64, 64)).s.sum().backward()
    assert all(torch.equal(v, before[k]) for k, v in own.state_dict().items())
    if method == "plain":
        assert torch.equal(net.low_net.get_submodule("stem.0").weight, own.stem[0].weight) and net.head_low[-1].out_features == 4


class Acted(nn.BatchNorm2d):
    """As timm's: a batch norm outside torch.nn, with the activation that follows."""

    def __init__(self, channels):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class Dropped(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, self.training)


class Block(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(i, o, 3, 2, 1, bias=False), Acted(o), Dropped()

    def forward(self, x):
        return self.drop(self.norm(self.conv(x)))


def of_blocks():
    return nn.Sequential(Block(3, 16), Block(16, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5))


def assert_every_norm_moves(net):
    norms = [m for m in net.low_net.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]
    net.train()(torch.rand(4, 3, 64, 64))
    assert norms and not any(torch.equal(m.running_mean, b) for m, b in zip(norms, before))


@pytest.mark.parametrize("method", ["plain", "half", "wae", "linear-in"])
def test_a_cut_network_trains_as_it_did(method):
    """Norms and dropout of modules that are not torch's follow the mode; in both modes the maps are the network's own."""
    torch.manual_seed(0)
    own, x = of_blocks(), torch.rand(2, 3, 64, 64)
    own(torch.rand(8, 3, 64, 64))
    net = build(method, own, 5, 64, weights=own.state_dict())
    if method == "plain":
        assert net.low_net.state_dict().keys() == own[:2].state_dict().keys()
        for training in (False, True):
            maps = []
            for trunk in (net.low_net, own[:2]):
                torch.manual_seed(1)
                maps.append(trunk.train(training)(x))
            assert torch.equal(*maps)
    assert_every_norm_moves(net)


def test_a_cut_network_with_norms_of_its_own_is_saved_and_folded(tmp_path):
    torch.manual_seed(0)
    net, x = build("wae", of_blocks(), 5, 64), torch.rand(2, 3, 64, 64)
    assert_every_norm_moves(net)
    with torch.no_grad():
        expected = net.eval()(x).s
        assert torch.equal(load(net.save(tmp_path / "net"), of_blocks())(x).s, expected)
        torch.testing.assert_close(fold(net)(x).s, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("asks, name", [
    (lambda net, x: F.dropout(x, 0.5, net.training), "dropout"),
    (lambda net, x: F.batch_norm(x, net.norm.running_mean, net.norm.running_var, training=net.training), "batch_norm"),
    (lambda net, x: x + torch.randn_like(x) if net.training else x, "norm"),  # the first step on what was noise
    (lambda net, x: x if net.training else x.clamp(max=6), "clamp"),
    (lambda net, x: net.norm(x) if net.training else x, "norm"),
    (lambda net, x: F.dropout(x, 0.0, net.training), None),
    (lambda net, x: F.dropout2d(x, p=0, training=net.training), None),
    (lambda net, x: (x, setattr(net, "beside", x.mean()) if net.training else None)[0], None),
    (lambda net, x: x + torch.ones(1, device=x.device), None),
])  # fmt: skip
def test_another_way_in_training_is_refused(asks, name):
    """A graph is of one mode: it would train without that dropout or noise, or by a norm's running statistics."""

    class Asking(Block):
        def forward(self, x):
            return self.norm(asks(self, self.conv(x)))

    own = nn.Sequential(Asking(3, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    own[0].norm.eval()  # one that is frozen stays so
    if name is None:
        build("half", own, 5, 64)
    else:
        with pytest.raises(ValueError, match=r"\ASequential cannot be cut: in training it goes another way than by \w+; a module without parts[^\n]*\Z") as e:
            build("half", own, 5, 64)
        assert name in str(e.value)
    assert own.training and not own[0].norm.training


def test_what_the_classifier_does_in_training_is_its_own():
    """Behind the maps, where ours takes its place."""

    class Late(Own):
        def forward(self, x):
            x = F.dropout(self.last(self.right(self.stem(x)).repeat(1, 3, 1, 1)[:, :32]), 0.5, self.training)
            x = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
            return x if self.training else x.softmax(1)

    assert build("half", Late(), 5, 64)(torch.rand(2, 3, 64, 64)).s.shape == (2, 5)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenetv3_small_050", "regnety_002"])
def test_a_network_made_by_timm_trains_as_it_did(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    own, x = timm.create_model(name, num_classes=5), torch.rand(2, 3, 64, 64)
    net = build("plain", own, 5, 64, weights=own.state_dict()).eval()
    with torch.no_grad():
        torch.testing.assert_close(net.low_net(x), own.eval().forward_features(x))
    for method in ("half", "wae"):
        assert_every_norm_moves(build(method, own, 5, 64))


def two_layers(pool):
    convolutions = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*convolutions, pool, nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))


@pytest.mark.parametrize(
    "theirs, backbone, told",
    [
        (two_layers(nn.AdaptiveAvgPool2d(1)), None, True),  # another kind of head
        (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4)), None, True),  # pooled otherwise
        (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AvgPool2d(112), nn.Flatten(), nn.Linear(8, 4)), None, True),  # for 224 pixels
        (nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), None, False),
        (4, "squeezenet1_1", True),  # whose scores are rectified before they are pooled
        (4, "resnet18", False),
        (5, "resnet18", False),  # other classes: the scores are new by what was asked for
    ],
    ids=["two layers", "largest", "another size", "one layer", "squeezenet", "resnet18", "other classes"],
)
def test_weights_that_give_other_scores_are_told(monkeypatch, theirs, backbone, told):
    """A whole network's weights in a standard network that is not theirs: a warning, and none for a row that is to be trained anyway."""
    if backbone:
        theirs = torchvision.models.get_model(backbone, num_classes=theirs)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        build("plain", backbone or theirs, 4, 64, weights=theirs.state_dict())
        said = [str(w.message) for w in seen if "other scores" in str(w.message)]
        build("wavelet", backbone or theirs, 4, 64, weights=theirs.state_dict())
        torch.manual_seed(0)
        build("plain", backbone or theirs, 4, 64, weights=theirs.state_dict())
        after = torch.rand(1)
        monkeypatch.setattr("wae_nb.method.weights.scores_away", lambda *args: 0.0)
        torch.manual_seed(0)
        build("plain", backbone or theirs, 4, 64, weights=theirs.state_dict())
    assert after == torch.rand(1)  # the check draws nothing
    assert 2 * len(said) == 2 * told == sum("other scores" in str(w.message) for w in seen)
    assert all("train it before it is used" in line and "\n" not in line for line in said)


class Beside(nn.Module):
    """Scores, and others beside them."""

    def __init__(self):
        super().__init__()
        self.maps, self.one, self.two = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        y = self.maps(x).relu().mean((2, 3))
        return self.one(y), self.two(y)


def test_a_network_that_gives_more_than_scores_is_built_as_before():
    own = Beside()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(build("plain", own, 4, 64, weights=own.state_dict()).low_net.maps.weight, own.maps.weight)


@pytest.mark.parametrize("name", ["resnet18", "convnextv2_atto", "regnety_002", "mobilenetv3_small_050", "repvgg_a0", "dla34", "efficientnet_lite0"])
def test_timm(name):
    pytest.importorskip("timm")
    net = build("wae", f"timm:{name}", 3, 64)
    net(torch.rand(2, 3, 64, 64)).s.sum().backward()
    assert sum(p.numel() for p in net.high_net.parameters()) < sum(p.numel() for p in net.low_net.parameters()) / 4


@pytest.mark.parametrize("name, width", [("mobilenetv3_small_050", 1), ("mobilenetv3_small_050", 0.5), ("test_convnext", 1), ("hgnetv2_b0", 0.5)])
def test_timm_s_own_heads(name, width):
    """What stands between the maps and the last layer is there in every row, for as many channels as come, and as wide as the network."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, num_classes=5)
    scores, maps = theirs.get_classifier(), theirs.forward_features(torch.rand(1, 3, 96, 96)).shape[1]
    net = build("wae", f"timm:{name}", 5, 96, width)
    before, state = net.low_net.state_dict(), theirs.state_dict()
    between = {k for k in state if k not in before and scores is not theirs.get_submodule(k.rpartition(".")[0])}
    for head, channels in ((net.head_low, maps), (net.head_fused, maps + net.high_net(torch.rand(1, 3, 64, 64)).shape[1] / width)):
        assert set(head[0].state_dict()) == between != set()
        first = next(v for k, v in head[0].state_dict().items() if k.endswith("weight"))
        assert first.shape[1 if first.ndim == 4 else 0] == pytest.approx(width * channels, abs=2)
        assert head[1].out_features == 5 and head[1].in_features == (pytest.approx(width * scores.in_features, abs=2) if first.ndim == 4 else first.shape[0])
    if width == 1:
        warm = build("half", f"timm:{name}", 5, 96, weights=state).head_low
        assert all(v.equal(state[k]) for k, v in warm[0].state_dict().items()) and warm[1].weight.equal(scores.weight)


def test_sizes_that_must_be_halved_again_and_again():
    """Half of 96 is no size that HRNet's branches, of halved and doubled maps, can add up."""
    pytest.importorskip("timm")
    said = r"^image_size=96 does not suit timm:hrnet_w18_small: the next size that it takes here is (\d+) pixels \(\d+ of `low`\)$"
    with pytest.raises(ValueError, match=said) as e:
        build("half", "timm:hrnet_w18_small", 3, 96)
    size = int(str(e.value).partition("here is ")[2].split()[0])
    assert size > 96 and build("half", "timm:hrnet_w18_small", 3, size)(torch.rand(2, 3, size, size)).s.shape == (2, 3)


def test_counts_that_do_not_fit_are_refused():
    """GhostNet adds what it has cut to a fixed count to what was rounded."""
    pytest.importorskip("timm")
    assert build("half", "timm:ghostnet_100", 3, 64)(torch.rand(2, 3, 64, 64)).s.shape == (2, 3)
    with pytest.raises(ValueError, match="^GhostNet cannot be slimmed: [^\n]*$"):
        build("wae", "timm:ghostnet_100", 3, 64)


def test_timm_s_weights_and_pixels():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs, x = timm.create_model("resnet18", num_classes=6).eval(), torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(t).view(3, 1, 1) for t in (timm.get_pretrained_cfg("resnet18").mean, timm.get_pretrained_cfg("resnet18").std))
    ours = build("plain", "timm:resnet18", 6, 64, weights=theirs.state_dict()).eval()
    torch.testing.assert_close(ours(x).s, theirs((x - mean) / std))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s32_224", "visformer_tiny"])
def test_transformers_of_timm_are_refused(name):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=f"^backbone='timm:{name}' gives no maps[^\n]*$"):
        features(f"timm:{name}")
    with pytest.raises(ValueError, match=f"^backbone='timm:{name}' gives no maps[^\n]*$"):
        build("plain", f"timm:{name}", 3, 64)


@pytest.mark.parametrize("method", ["plain", "half", "wae", "linear-in"])
def test_one_s_own_frozen_network_learns(method):
    """Layers that were frozen for a training elsewhere are drawn anew here: frozen, they would stay random."""
    own = torchvision.models.resnet18(num_classes=3).requires_grad_(False)
    net = build(method, own, 3, 64)
    assert all(p.requires_grad for p in net.low_net.parameters()) and not any(p.requires_grad for p in own.parameters())


@pytest.mark.parametrize("method", ["plain", "wae"])
def test_nothing_is_left_of_a_training_elsewhere(method):
    """Without its weights, a network of one's own starts as if it had never been trained: batch statistics, scales and slopes, too."""
    own = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.PReLU(8), nn.Conv2d(8, 8, 3, 2, 1), nn.GroupNorm(2, 8))
    built = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        with torch.no_grad():
            for t in (*own.parameters(), *own.buffers()):
                t.copy_(torch.rand_like(t.float()) + 0.5)
        torch.manual_seed(2)
        built.append(build(method, own, 3, 64))
    first, second = (net.state_dict() for net in built)
    assert first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())
    assert torch.equal(built[0].low_net.get_submodule("1").running_mean, torch.zeros(8))


@pytest.mark.parametrize("method", ["wavelet", "linear-in", "linear-2"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1), (7, 16)])
def test_images_smaller_than_the_filters_fold(method, size):
    """The wavelet goes round a small image more than once."""
    torch.manual_seed(0)
    made = build(method, "vgg11", 3, 64, 0.1)
    d = made.decompose(torch.rand(1, 3, 8, 8))
    nets = [nn.Conv2d(d.low.shape[1] + (d.high.shape[1] if made.joined else 0), 4, 1), None if made.joined else nn.Conv2d(d.high.shape[1], 4, 1)]
    heads = [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 3)) for c in (4, 8)]
    net = DecomposedClassifier(made.decomposer, nets[0], heads[0], nets[1], None if made.joined else heads[1], joined=made.joined).eval()
    x = torch.rand(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(fold(net)(x).s, net(x).s, atol=1e-5, rtol=1e-4)


def test_bytes_are_no_pixels():
    with pytest.raises(ValueError, match=r"\Aimage of torch.uint8: pixels are floating point[^\n]+\Z"):
        build("half", "resnet18", 3, 64)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
