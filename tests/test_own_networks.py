"""Networks as people write them: steps in place, constants, channels taken by number, one layer used twice. Cut and slimmed right, or refused in a line."""

import copy
import hashlib

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from wae_nb.method.classifier import build
from wae_nb.method.cutting import cut
from wae_nb.method.slimming import PROBE, Later, slim, without_first_halving
from wae_nb.method.weights import keep_weights, kept_weights
from wae_nb.train.recipes import StageRecipe
from wae_nb.train.updates import _scheduler

ACT = nn.ReLU(inplace=True)
IN_PLACE = {
    "F.relu_": F.relu_,
    "an argument": lambda x: F.relu(x, inplace=True),
    "by its place": lambda x: F.relu(x, True),
    "a method": lambda x: x.relu_(),
    "a clamp": lambda x: x.clamp_(0),
    "a product": lambda x: x.mul_(x > 0),
}


class TwoLayers(nn.Module):
    def __init__(self, act=None, how=None):
        super().__init__()
        self.c1, self.c2, self.fc, self.act, self.how = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, 2, 1), nn.Linear(24, 3), act, how

    def between(self, x):
        (self.act or self.how)(x)
        return x

    def forward(self, x):
        return self.fc(self.c2(self.between(self.c1(x))).relu().mean((2, 3)))


@pytest.mark.parametrize("how", [*IN_PLACE, "a module"])
def test_what_is_done_in_place_is_done(how):
    """Whatever it returns, and nobody reads, the maps are rectified between the layers."""
    net, x = TwoLayers(act=ACT) if how == "a module" else TwoLayers(how=IN_PLACE[how]), torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(cut(net).eval()(x), net.c2(net.c1(x).relu()).relu())


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "mobilenet_v3_small"])
def test_what_a_classifier_does_in_place_is_its_own(name):
    """Of torchvision's networks, whose heads do: the part with maps is its `features`, and no weight more."""
    net, x = getattr(torchvision.models, name)(num_classes=5).eval(), torch.rand(2, 3, 224, 224)
    part = cut(net).eval()
    assert sum(p.numel() for p in part.parameters()) == sum(p.numel() for p in net.features.parameters())
    with torch.no_grad():
        torch.testing.assert_close(part(x), net.features(x))


class RectifiedBehind(TwoLayers):
    def forward(self, x):
        maps = self.c2(self.c1(x).relu())
        F.relu_(maps)
        hidden = F.adaptive_avg_pool2d(maps, 2).mean((2, 3))
        F.relu_(hidden)
        return self.fc(hidden)


def test_maps_that_are_changed_before_they_are_read():
    net, x = RectifiedBehind(), torch.randn(2, 3, 64, 48)
    part = cut(net).eval()
    torch.testing.assert_close(part(x), net.c2(net.c1(x).relu()).relu())
    assert list(dict(part.named_children())) == ["c1", "c2"] and [n.name for n in part.graph.nodes if n.op != "placeholder"][-2:] == ["relu_", "output"]


class Alias(TwoLayers):
    def between(self, x):
        before = x
        x += 1
        return before  # which is x, and has the one added


class Counting(TwoLayers):
    def between(self, x):
        return x * self.calls()

    def calls(self):
        self.called = getattr(self, "called", 0) + 1
        return self.called


@pytest.mark.parametrize("kind", [Alias, Counting])
def test_what_is_followed_wrongly_is_refused(kind):
    with pytest.raises(ValueError, match="followed step by step it gives other scores"):
        cut(kind())


class Shifted(TwoLayers):
    def __init__(self):
        super().__init__()
        self.mean = torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)

    def forward(self, x):
        return self.fc(self.c2(self.c1(x - self.mean).relu()).relu().mean((2, 3)))


def test_constants_are_no_weights():
    """A network with one starts from weights, and says what it says with them."""
    net, x = Shifted().eval(), torch.rand(2, 3, 64, 64)
    built = build("plain", net, 3, 64, weights=net.state_dict()).eval()
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(built(x).s, net((x - mean) / std))


class ByNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1), nn.Conv2d(32, 32, 3, 1, 1)

    def forward(self, x):
        x = self.stem(x)
        return torch.cat([self.a(x[:, :32]), self.b(x[:, 32:])], 1)


def test_a_layer_that_would_be_given_nothing_is_refused():
    with pytest.raises(ValueError, match="do not fit together .b is given no channels"):
        slim(ByNumber(), 2)
    assert slim(ByNumber(), 1)(torch.rand(1, 3, 32, 32)).shape == (1, 64, 16, 16)


class Own(nn.Module):
    """A convolution, and a scale of each channel, that are parameters of their module's own."""

    def __init__(self, k):
        super().__init__()
        self.first, self.weight, self.scale = nn.Conv2d(3, 32, 3, 2, 1), nn.Parameter(torch.randn(64, 32, k, k)), nn.Parameter(torch.ones(64, 1, 1))

    def forward(self, x):
        return F.conv2d(self.first(x), self.weight, stride=2, padding=self.weight.shape[-1] // 2) * self.scale


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("factor", [2, 4])
def test_kernels_keep_their_sides(k, factor):
    net = slim(Own(k), factor)
    assert net.weight.shape == (64 // factor, 32 // factor, k, k) and net.scale.shape == (64 // factor, 1, 1)
    assert net(torch.rand(1, 3, 64, 64)).shape == (1, 64 // factor, 16, 16)


class OnePool(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.a, self.b, self.pool = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 1, 1), pool

    def forward(self, x):
        return self.pool(self.b(self.pool(self.a(x))))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), lambda x: F.max_pool2d(x, 2)])
def test_a_halving_that_cannot_be_left_out_is_refused(pool):
    with pytest.raises(ValueError, match="its first halving cannot be left out"):
        without_first_halving(OnePool(pool))


@pytest.mark.parametrize("stride", [2, 3, 4, 5])
def test_details_go_in_where_they_are(stride):
    """Each part of the maps sees the details of its own part of the image, whatever the first stride."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1))
    later = Later(net, 9).eval()
    x = torch.zeros(1, 12, 120, 120)
    with torch.no_grad():
        quiet = later(x)
        for rows, columns in ((slice(0, 30), slice(0, 30)), (slice(90, 120), slice(90, 120)), (slice(0, 30), slice(90, 120))):
            there = x.clone()
            there[:, 3:, rows, columns] = 1
            moved = ((later(there) - quiet).abs().sum(1)[0] > 1e-6).nonzero() * stride
            for ends, seen in zip((rows, columns), moved.T):
                assert ends.start - 3 * stride <= seen.min() <= ends.start + stride and ends.stop - 2 * stride <= seen.max() <= ends.stop + 2 * stride


def test_a_first_halving_that_no_stride_does_is_refused():
    with pytest.raises(ValueError, match=f"makes 100 of {PROBE} pixels, as no stride does"):
        Later(nn.Sequential(nn.AdaptiveAvgPool2d(100), nn.Conv2d(3, 8, 3), nn.ReLU()), 9)


def test_kept_weights_that_were_damaged_are_named(tmp_path):
    key = keep_weights({"a": torch.zeros(3)}, "resnet18", tmp_path)
    path = kept_weights(tmp_path, key)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == key
    spoilt = bytearray(path.read_bytes())
    spoilt[-1] ^= 1
    path.write_bytes(spoilt)
    for call in (lambda: kept_weights(tmp_path, key), lambda: keep_weights({"a": torch.zeros(3)}, "resnet18", tmp_path)):
        with pytest.raises(ValueError, match="is damaged: its name is the checksum that it should have; remove it"):
            call()


@pytest.mark.parametrize("epochs, updates", [(1, 1), (2, 1), (1, 2)])
def test_a_single_update_is_at_the_full_rate(epochs, updates):
    """One cycle of one update would be its slow end alone."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.5)
    s = StageRecipe(lr=0.5, epochs=epochs, batch_size=8, optimizer="sgd", schedule="onecycle")
    scheduler, rates = _scheduler(optimizer, s, updates, "max"), []
    for _ in range(epochs * updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR):
            scheduler.step()
    assert max(rates) > 0.3


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    net = build("half", "resnet18", 3, 64, 0.125).eval()
    net.save(tmp_path / "net")
    before, moved = sorted((p.name, p.read_bytes()) for p in (tmp_path / "net").iterdir()), type(tmp_path).rename

    def rename(self, target):
        if target == tmp_path / "net" and not self.name.endswith(".old"):
            raise OSError("no space left on device")
        return moved(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", rename)
    other = copy.deepcopy(net)
    with pytest.raises(OSError, match="no space left"):
        other.save(tmp_path / "net", ["a", "b", "c"])
    assert sorted((p.name, p.read_bytes()) for p in (tmp_path / "net").iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
