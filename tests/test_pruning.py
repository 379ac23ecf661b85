"""Pruned networks: channels chosen as brute force and autograd would, taken out as if their maps were zero, in runs that can be cut off."""

import copy
import functools
import hashlib
import importlib.util
import itertools
import json
import math
import runpy
from collections import OrderedDict
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from test_timing import difference, trained_like
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, resnet18
from torchvision.models.vgg import make_layers
from torchvision.ops.misc import FrozenBatchNorm2d

from wae_nb.convert.folding import fold
from wae_nb.data.batches import crop
from wae_nb.data.sets import load_data
from wae_nb.deploy.engines import prepare
from wae_nb.lab.experiment import Experiment
from wae_nb.lab.profiles import PROFILES
from wae_nb.lab.ways import WAYS
from wae_nb.measure.cost import macs
from wae_nb.measure.machine import has_bf16
from wae_nb.method.classifier import DecomposedClassifier, build
from wae_nb.method.decomposers import Identity
from wae_nb.prune.pruners import PRUNERS, Pruner, PruneStep
from wae_nb.prune.structures import _CONV, _TINY, thinet
from wae_nb.prune.surgery import check_keep, fit_shapes, layer_widths, prunable_layers, remove_channels
from wae_nb.prune.taylor import layer_macs, prune_taylor, taylor_choice, taylor_scores
from wae_nb.prune.thinet import channel_contributions, prune_thinet, rescale, sample, thinet_choice, thinet_layers
from wae_nb.train import pruning, runs, tasks
from wae_nb.train.recipes import Distill, PruneRecipe, StageRecipe, paper_recipe, strong_recipe
from wae_nb.train.runs import finished_run, get_or_train, network_of
from wae_nb.train.specs import RunSpec


def flat(parts):
    return [place for part in parts for place in part]


def maps_of(net, place):
    """The layer whose output is the maps: the batch norm if there is one."""
    return net.get_submodule(place.norm or place.layer)


@contextmanager
def gated(net, place, gates):
    """Within: its maps multiplied by these factors, (B, C) or (1, C)."""
    handle = maps_of(net, place).register_forward_hook(lambda m, i, out: out * gates[:, :, None, None])
    try:
        yield
    finally:
        handle.remove()


def some_channels(net, parts, seed):
    """Of every layer at least one channel to remove and one to keep."""
    rng = np.random.default_rng(seed)
    out = {}
    for place in flat(parts):
        n = net.get_submodule(place.layer).out_channels
        out[place.layer] = sorted(rng.choice(n, rng.integers(1, n), replace=False).tolist())
    return out


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@functools.cache
def made_once(backbone, size):
    return trained_like("plain", backbone, size, size)


def lively(backbone, size=75):
    """A network of its own, an eighth as wide, with weights and statistics as after some training."""
    return copy.deepcopy(made_once(backbone, size))


def batches_of(size, seed, n=6, times=2, classes=11, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    return [(torch.rand(n, 3, size, size, generator=g, dtype=dtype), torch.randint(classes, (n,), generator=g)) for _ in range(times)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images (B, 3, 32, 32) and labels of two parts of six photographs' patches."""
    data = load_data(None, 32, tmp_path_factory.mktemp("photos"), "photos", (6, 40))
    return {part: (crop(torch.from_numpy(data.read(at)), 32), torch.from_numpy(data.labels[at])) for part in ("train", "test") for at in [data.indices(part)]}


@pytest.fixture(scope="module")
def trained(photos):
    """A network a quarter as wide, after thirty updates: right two or three times as often as by chance."""

    @functools.cache
    def train(backbone):
        torch.manual_seed(0)
        net, (images, labels) = build("plain", backbone, 6, 32, 0.25, dropout=0.2, init="kaiming").train(), photos["train"]
        optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, 30)
        for _ in range(30):
            at = torch.randint(len(images), (32,))
            F.cross_entropy(net(images[at]).s, labels[at]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 5)
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
        return net.eval()

    return train


# ThiNet


@pytest.mark.parametrize("size", [(6, 9), (11, 7)])
@pytest.mark.parametrize(
    "kernel, stride, padding, dilation",
    [(1, 1, 0, 1), (1, 2, 0, 1), (3, 1, 1, 1), (3, 2, 0, 1), (3, 1, 2, 2), (5, 1, 2, 1), (5, 2, 1, 1), ((3, 2), (2, 1), (0, 1), (1, 3))],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contributions_are_what_each_channel_puts_out(size, kernel, stride, padding, dilation, dtype):
    """Each row is some output of the convolution, channel by channel and without the bias, and no output is left out."""
    torch.manual_seed(sum(size))
    conv, x = nn.Conv2d(4, 3, kernel, stride, padding, dilation, dtype=dtype), torch.randn(2, 4, *size, dtype=dtype)
    X = channel_contributions(conv, x, 3000, torch.Generator().manual_seed(1))
    assert X.shape == (3000, 4) and X.dtype == torch.float64
    assert torch.equal(X, channel_contributions(conv, x, 3000, torch.Generator().manual_seed(1)))
    assert not torch.equal(X, channel_contributions(conv, x, 3000, torch.Generator().manual_seed(2)))
    with torch.no_grad():
        weight, geometry = conv.weight.double(), (stride, padding, dilation)
        whole = F.conv2d(x.double(), weight, None, *geometry).flatten()
        alone = torch.stack([F.conv2d(x[:, c : c + 1].double(), weight[:, c : c + 1], None, *geometry).flatten() for c in range(4)], 1)
    distance, at = torch.cdist(X, alone, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert distance.max() < 1e-12
    torch.testing.assert_close(X.sum(1), whole[at], rtol=0, atol=1e-12)
    assert len(at.unique()) == len(whole)


@pytest.mark.parametrize("padding, mode", [("same", "zeros"), ("valid", "zeros"), ("same", "reflect"), (1, "circular"), ((1, 2), "replicate")])
def test_contributions_whatever_the_padding_is_called(padding, mode):
    """By name or by number, with zeros or what is at the edge: the rows are outputs of the layer itself."""
    torch.manual_seed(0)
    reader, x = nn.Conv2d(4, 3, (3, 4), padding=padding, padding_mode=mode, bias=False).double(), torch.randn(2, 4, 5, 6).double()
    X = channel_contributions(reader, x, 3000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = reader(x).flatten()
    distance, at = (X.sum(1)[:, None] - whole).abs().min(1)
    assert distance.max() < 1e-12 and len(at.unique()) == len(whole)


def test_contributions_of_a_silent_channel():
    """Zero in the input, zero in its column and nowhere else."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(5, 8, 3, 1, 1), torch.rand(3, 5, 7, 12)
    X = channel_contributions(conv, x, 100, torch.Generator().manual_seed(0))
    for c in range(5):
        silent = x.clone()
        silent[:, c] = 0
        Z = channel_contributions(conv, silent, 100, torch.Generator().manual_seed(0))
        assert not Z[:, c].any() and all(torch.equal(X[:, k], Z[:, k]) for k in range(5) if k != c)


def test_sample_sees_what_the_layer_takes(trained, photos):
    """In a network: over all batches, at the same places for the same seed, and the hook is gone."""
    net, place = trained("vgg11_bn"), thinet_layers(trained("vgg11_bn"))[1][0]
    images, labels = photos["train"]
    batches = [(images[:16], labels[:16]), (images[16:20], labels[16:20]), (images[20:50], labels[20:50])]
    reader = net.get_submodule(place.reader)
    X = sample(net, reader, batches, 100, 3)
    at, g = int(place.reader.split(".")[1]), torch.Generator().manual_seed(3)
    with torch.no_grad():
        expected = [channel_contributions(reader, net.low_net[:at](net.norm_low(net.decompose(x).low)), 34, g) for x, _ in batches]
    assert X.shape == (102, reader.in_channels) and torch.equal(X, torch.cat(expected)) and not reader._forward_pre_hooks


def little_layers(kind, images):
    """Contributions to layers of 4 to 8 channels: behind ReLU, behind a batch norm and ReLU, or Gaussian and correlated."""
    for seed in range(40):
        torch.manual_seed(seed)
        c = 4 + seed % 5
        if kind == "gaussian":
            yield (torch.randn(300, c) @ torch.randn(c, c)).double()
            continue
        layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, c, 3), *[nn.BatchNorm2d(c)] * (kind == "normed"), nn.ReLU()]
        with torch.no_grad():
            maps = nn.Sequential(*layers)(images[torch.randint(len(images), (8,))])
            yield channel_contributions(nn.Conv2d(c, 16, 3, padding=1), maps, 400, torch.Generator().manual_seed(seed))


# of 200 choices, behind ReLU 99 % were the best of all, behind a batch norm 84 % and among Gaussian layers 72 %
@pytest.mark.parametrize("kind, best_share, above_mean", [("relu", 0.95, 0), ("normed", 0.75, 1), ("gaussian", 0.65, 0)])
def test_greedy_choice_against_brute_force(photos, kind, best_share, above_mean):
    """Over all subsets: how often it is the best, never better than that, and rarely as bad as what a random choice is expected to be."""
    best, above, ours, random = [], [], [], []
    for seed, X in enumerate(little_layers(kind, photos["train"][0])):
        X, c = X.numpy(), X.shape[1]
        rng, y = np.random.default_rng(seed), X.sum(1)
        for keep in range(1, c):
            kept = thinet_choice(torch.from_numpy(X), keep)
            assert len(kept) == keep and kept == sorted(set(kept) & set(range(c)))
            errors = {gone: np.square(X[:, gone].sum(1)).sum() for gone in itertools.combinations(range(c), c - keep)}
            error = errors[tuple(i for i in range(c) if i not in kept)]
            best.append(error <= min(errors.values()) * (1 + 1e-9))
            above.append(error > np.mean(list(errors.values())) * (1 + 1e-9))
            for which, found in [(kept, ours), (rng.choice(c, keep, replace=False), random)]:
                w = np.linalg.lstsq(X[:, which], y, rcond=None)[0]
                found.append(np.square(y - X[:, which] @ w).sum() / np.square(y).sum())
    assert len(best) == 200 and np.mean(best) >= best_share and sum(above) <= above_mean
    assert np.mean(ours) < 0.8 * np.mean(random) and np.mean(np.array(ours) <= np.array(random) + 1e-12) > 0.8


@pytest.mark.parametrize("rows, channels", [(1, 1), (3, 2), (50, 7), (7, 50), (400, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_greedy_choice_written_out(rows, channels, dtype):
    """Algorithm 1 from the rows: add to the discarded the channel whose sum with them is smallest."""
    torch.manual_seed(rows)
    X = (torch.randn(rows, channels) @ torch.randn(channels, channels)).to(dtype)
    X[:, channels // 2] = 0
    x, gone = X.numpy().astype(np.float64), []
    for keep in range(channels, 0, -1):
        assert thinet_choice(X, keep) == [c for c in range(channels) if c not in gone]
        rest = [c for c in range(channels) if c not in gone]
        gone.append(min(rest, key=lambda c: np.square(x[:, [*gone, c]].sum(1)).sum()))
    for keep in (0, channels + 1, -1):
        with pytest.raises(ValueError, match=f"keep={keep}: the layer has {channels} channels; keep 1 to {channels}$"):
            thinet_choice(X, keep)


@pytest.mark.parametrize("rows, channels", [(200, 1), (200, 8), (1000, 40), (5, 12)])
@pytest.mark.parametrize("defect", ["none", "zero", "twice"])
def test_rescale_is_least_squares(rows, channels, defect):
    """numpy's solution, the smallest of several; a channel that is twice there shares its weight."""
    torch.manual_seed(rows + channels)
    X = torch.randn(rows, channels + 3, dtype=torch.float64) @ torch.randn(channels + 3, channels + 3, dtype=torch.float64)
    kept = list(range(0, channels + 3, 2))
    if defect == "zero":
        X[:, kept[0]] = 0
    if defect == "twice":
        X[:, kept[-1]] = X[:, kept[0]]
    w = rescale(X, kept)
    expected = np.linalg.lstsq(X[:, kept].numpy(), X.sum(1).numpy(), rcond=None)[0]
    assert w.dtype == torch.float64 and w.shape == (len(kept),)
    np.testing.assert_allclose(w.numpy(), expected, rtol=1e-8, atol=1e-8)
    if defect == "zero":
        assert abs(w[0]) < 1e-12
    if defect == "twice":
        assert math.isclose(w[0], w[-1], rel_tol=1e-8)


# with 4000 rows; from 500, the weights of 64 channels do no good on other images
@pytest.mark.parametrize("backbone", ["vgg11", "vgg11_bn", "resnet18"])
def test_rescaled_layer_is_nearer(trained, photos, backbone):
    """The next layer's sampled outputs are as near as least squares can bring them; on other images they are nearer than without, on average over layers."""
    images, labels = photos["train"]
    batches, others = [(images[:24], labels[:24]), (images[24:40], labels[24:40])], [photos["test"]]
    without, rescaled = [], []
    for place in flat(thinet_layers(trained(backbone))):
        net = copy.deepcopy(trained(backbone))
        reader = net.get_submodule(place.reader)
        X, new = sample(net, reader, batches, 4000, 5), sample(net, reader, others, 2000, 6)
        kept = thinet_choice(X, reader.in_channels // 2)
        prune_thinet(net, [place], 0.5, batches, 4000, 5)
        Z, fresh = sample(net, reader, batches, 4000, 5), sample(net, reader, others, 2000, 6)
        y, x = X.sum(1).numpy(), X[:, kept].numpy()
        residual = np.square(y - x @ np.linalg.lstsq(x, y, rcond=None)[0]).sum()
        assert math.isclose(residual, float((X.sum(1) - Z.sum(1)).square().sum()), rel_tol=1e-3)
        assert residual < np.square(y - x.sum(1)).sum()
        without.append(float((new.sum(1) - new[:, kept].sum(1)).square().sum() / new.sum(1).square().sum()))
        rescaled.append(float((new.sum(1) - fresh.sum(1)).square().sum() / new.sum(1).square().sum()))
    assert np.mean(rescaled) < np.mean(without)


# Taylor


@pytest.mark.parametrize("backbone", ["vgg11", "vgg13_bn", "resnet18", "resnet50"])
def test_taylor_scores_are_derivatives(backbone):
    """In double precision: what the loss of each image does when a factor on the maps, behind the batch norm, moves from 1."""
    net = lively(backbone).double()
    for p in list(net.parameters())[::2]:
        p.requires_grad_(False)
    parts, batches, asked = prunable_layers(net), batches_of(75, 1, 2, dtype=torch.float64), [p.requires_grad for p in net.parameters()]
    scores = taylor_scores(net.train(), parts, batches)
    assert asked == [p.requires_grad for p in net.parameters()] and all(p.grad is None for p in net.parameters()) and not net.training
    assert list(scores) == [place.layer for place in flat(parts)]
    images, labels = (torch.cat(t) for t in zip(*batches))

    def losses(place, gates):
        with gated(net, place, gates):
            return F.cross_entropy(net(images).s, labels, reduction="none")

    per, rng, h = layer_macs(net, 75), np.random.default_rng(0), 1e-7
    for place in flat(parts):
        weight = net.get_submodule(place.layer).weight
        n, positions = len(weight), per[place.layer] // weight.numel()
        ones = torch.ones(len(images), n, dtype=torch.float64)
        gates = ones.clone().requires_grad_()
        (derivative,) = torch.autograd.grad(losses(place, gates).sum(), gates)
        expected = derivative.abs().mean(0) / positions
        torch.testing.assert_close(scores[place.layer], expected, rtol=1e-6, atol=1e-12 * float(expected.max()))
        c = int(rng.integers(n))
        step = h * torch.eye(n, dtype=torch.float64)[c]
        with torch.no_grad():
            difference = (losses(place, ones + step) - losses(place, ones - step)).abs().mean() / (2 * h)
        assert math.isclose(difference / positions, expected[c], rel_tol=1e-4, abs_tol=1e-5 * float(expected.max()))


@torch.no_grad()
def losses_less(net, place, images, labels, left):
    """The loss of each image where each channel in turn is multiplied by `left`: (C, B). All at once: what comes before the block is computed once."""
    n = net.get_submodule(place.layer).out_channels
    block = place.layer.rpartition(".")[0] if place.layer.count(".") > 1 else place.layer
    gates = (1 - (1 - left) * torch.eye(n)).repeat_interleave(len(images), 0)
    handle = net.get_submodule(block).register_forward_pre_hook(lambda m, i: i[0].repeat(n, 1, 1, 1))
    with gated(net, place, gates):
        loss = F.cross_entropy(net(images).s.double(), labels.repeat(n), reduction="none")
    handle.remove()
    return loss.view(n, -1)


# with three seeds: channels silenced .94 to .99 in the layers of 128 channels, .85 to .99 of 64, .69 to .98 of 32, .55 to .96 of 16, where one is no small
# change any more; a tenth of each channel taken away .93 to 1 in every layer
@pytest.mark.parametrize("backbone", ["vgg11", "vgg11_bn", "resnet18"])
def test_taylor_scores_rank_as_the_loss_does(trained, photos, backbone):
    """On images that training did not see, Spearman's correlation with the change of the loss without each channel, and without a tenth of it."""
    net, parts = trained(backbone), prunable_layers(trained(backbone))
    images, labels = (t[::3] for t in photos["test"])
    with torch.no_grad():
        whole = net(images).s.double()
    assert (whole.argmax(1) == labels).double().mean() >= 0.4
    scores, found = taylor_scores(net, parts, [(images, labels)]), {}
    for place, left in itertools.product(flat(parts), (0, 0.9)):
        change = (losses_less(net, place, images, labels, left) - F.cross_entropy(whole, labels, reduction="none")).abs().mean(1)
        found[place.layer, left] = pd.Series(scores[place.layer].numpy()).corr(pd.Series(change.numpy()), method="spearman")
    thick = [place.layer for place in flat(parts) if net.get_submodule(place.layer).out_channels == 128]
    assert len(thick) == (2 if backbone == "resnet18" else 4) and min(found[layer, 0] for layer in thick) >= 0.9
    assert min(found[layer, 0.9] for layer, left in found if left) >= 0.85 and np.mean([v for (_, left), v in found.items() if left]) >= 0.95


@pytest.mark.parametrize("backbone, size", [("vgg16", 75), ("vgg11_bn", 75), ("resnet18", 97), ("resnet50", 33), ("wide_resnet50_2", 75)])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1])
def test_taylor_choice_meets_the_budget(backbone, size, share):
    """Lowest scores first, no more than necessary, something left of each layer; the operations are the network's own to the digit."""
    net = lively(backbone, size)
    parts, per, whole = prunable_layers(net), layer_macs(net, size), macs(net, size)
    assert sum(per.values()) == whole
    torch.manual_seed(size)
    width = {place.layer: net.get_submodule(place.layer).out_channels for place in flat(parts)}
    scores = {layer: torch.rand(n, dtype=torch.float64) ** 2 * 10 ** torch.randn(1) for layer, n in width.items()}
    before = {k: v.clone() for k, v in scores.items()}, dict(per)

    def left(gone):  # MACs, from the widths alone
        out = dict(per)
        for place in flat(parts):
            n, some = width[place.layer], len(gone.get(place.layer, ()))
            for layer in (place.layer, place.reader):
                assert out[layer] % n == 0
                out[layer] = out[layer] // n * (n - some)
        return sum(out.values())

    least = left({layer: range(1, n) for layer, n in width.items()})
    budget = least + share * (whole - least)
    gone = taylor_choice(scores, parts, per, budget)
    assert all(torch.equal(v, before[0][k]) for k, v in scores.items()) and per == before[1]
    assert left(gone) <= budget and all(0 < len(set(g)) == len(g) < width[layer] for layer, g in gone.items())
    normal = {layer: s.numpy() / np.sqrt(np.square(s.numpy()).sum()) for layer, s in scores.items()}
    went = [(normal[layer][c], layer, c) for layer, cs in gone.items() for c in cs]
    more_than_one = [layer for layer in width if width[layer] - len(gone.get(layer, ())) > 1]
    stayed = [normal[layer][c] for layer in more_than_one for c in range(width[layer]) if c not in gone.get(layer, ())]
    _, layer, c = max(went)
    assert max(went)[0] <= min(stayed) and left(gone | {layer: [k for k in gone[layer] if k != c]}) > budget
    remove_channels(net, gone, torch.rand(1, 3, size, size))
    assert macs(net, size) == left(gone) == sum(layer_macs(net, size).values())


def test_taylor_choice_down_to_one_channel():
    """The least there is can be asked for; less is refused, and so it is in `prune_taylor`."""
    net = lively("vgg11_bn")
    parts, per = prunable_layers(net), layer_macs(net, 75)
    width = {place.layer: net.get_submodule(place.layer).out_channels for place in flat(parts)}
    thin = copy.deepcopy(net)
    remove_channels(thin, {layer: list(range(1, n)) for layer, n in width.items()}, torch.rand(1, 3, 75, 75))
    least = macs(thin, 75)
    for scores in [{layer: torch.zeros(n) for layer, n in width.items()}, {layer: torch.rand(n) for layer, n in width.items()}]:
        gone = taylor_choice(scores, parts, per, least)
        assert {layer: len(g) for layer, g in gone.items()} == {layer: n - 1 for layer, n in width.items()}
        assert taylor_choice(scores, parts, per, sum(per.values())) == {}
    for choose in [lambda: taylor_choice(scores, parts, per, least - 1), lambda: prune_taylor(net, parts, least - 1, batches_of(75, 0))]:
        with pytest.raises(ValueError, match="^one channel a layer still takes .* million MACs, the budget is .*; use a larger keep$"):
            choose()
    assert layer_widths(net) == layer_widths(lively("vgg11_bn"))


# structures


def parameters(net):
    """As the papers count them: without the biases of convolutions and linear layers."""
    biases = sum(m.bias.numel() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None)
    return sum(p.numel() for p in net.parameters()) - biases


def to_the_share(net, keep):
    """ThiNet's counts, whichever channels go."""
    gone = {}
    for place in flat(thinet_layers(net)):
        n = net.get_submodule(place.layer).out_channels
        gone[place.layer] = list(range(n * round(100 * keep) // 100, n))
    return gone


@pytest.mark.parametrize(
    "structure, backbone, keep, count, millions",
    [
        ("conv", "vgg16", 0.5, 4_791_205_888, "131.44"),
        ("70", "resnet50", 0.7, 2_601_392_356, None),
        ("50", "resnet50", 0.5, 1_822_031_872, None),
        ("30", "resnet50", 0.3, 1_166_283_835, "8.66"),
    ],
)
def test_pruned_as_published(structure, backbone, keep, count, millions):
    """A full network pruned to ThiNet's counts is the structure that its authors published, to the digit."""
    with torch.device("meta"):
        net, published, image = build("plain", backbone, 1000), thinet(structure, 1000), torch.empty(1, 3, 224, 224)
        remove_channels(net.eval(), to_the_share(net, keep), image)
    assert macs(net) == macs(published) == count
    assert parameters(net) == parameters(published)
    assert [tuple(v.shape) for v in net.state_dict().values()] == [tuple(v.shape) for v in published.state_dict().values()]
    assert millions is None or f"{parameters(net) / 1e6:.2f}" == millions


@pytest.mark.parametrize("structure, count, millions", [("gap", 4_668_084_224, "8.32"), ("tiny", 1_004_578_816, "1.32")])
def test_published_without_fully_connected_layers(structure, count, millions):
    """Operations and parameters to the digits that were given; the mean is over 14×14 maps."""
    with torch.device("meta"):
        net = thinet(structure, 1000)
    assert macs(net) == count and f"{parameters(net) / 1e6:.2f}" == millions
    assert net.low_net(torch.empty(1, 3, 224, 224, device="meta")).shape[2:] == (14, 14)


@pytest.mark.parametrize("structure, widths", [("gap", _CONV), ("tiny", _TINY)])
def test_structures_with_batch_norms(structure, widths):
    """With batch norms, a structure's convolutions are torchvision's VGG of the same widths, and a spec of vgg16_bn has them."""
    theirs = make_layers([v if v == "M" else v // 4 for v in widths], batch_norm=True).eval()
    for m in theirs.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
    ours = network_of(RunSpec(f"thinet-{structure}", "vgg16_bn", "data", paper_recipe(), image_size=64, width=0.25), 5).low_net.eval()
    ours.load_state_dict(theirs.state_dict())
    image = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network_of(RunSpec(f"thinet-{structure}", "vgg16", "data", paper_recipe()), 5).modules())


@pytest.mark.parametrize("backbone", ["vgg16", "vgg11_bn", "resnet18", "resnet50"])
def test_whole_network_stays(backbone):
    """Keeping everything changes no bit of the scores."""
    net, image = lively(backbone), torch.rand(3, 3, 75, 75)
    with torch.no_grad():
        before = net(image).s
    for part in thinet_layers(net):
        prune_thinet(net, part, 1.0, batches_of(75, 2), 100, 0)
    prune_taylor(net, prunable_layers(net), macs(net, 75), batches_of(75, 2))
    with torch.no_grad():
        assert torch.equal(net(image).s, before)


@pytest.mark.parametrize("backbone", ["vgg16", "vgg11_bn", "resnet18", "resnet50", "wide_resnet50_2"])
@pytest.mark.parametrize("seed", [0, 1])
def test_removed_is_silenced(backbone, seed):
    """Without channels, a network gives the scores that it gave with their maps at zero, through poolings and the flattening, too."""
    net = lively(backbone)
    parts, thin = prunable_layers(net), copy.deepcopy(net).requires_grad_(bool(seed))
    gone = some_channels(net, parts, seed)
    remove_channels(thin, gone, torch.rand(1, 3, 75, 75))
    assert all(p.requires_grad == bool(seed) and p.grad is None for p in thin.parameters())
    with ExitStack() as silenced, torch.no_grad():
        for place in flat(parts):
            gates = torch.ones(1, net.get_submodule(place.layer).out_channels)
            gates[0, gone[place.layer]] = 0
            silenced.enter_context(gated(net, place, gates))
        for shape in [(2, 3, 75, 75)] + [(1, 3, 75, 50), (3, 3, 33, 97)] * (not backbone.startswith("vgg")):
            image = torch.rand(shape)
            assert difference(net(image), thin(image)) < 1e-5


CASES = list(itertools.product(["vgg16", "vgg13_bn", "resnet18", "resnet50"], PRUNERS))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def pruned(request):
    """A network of 75 pixels before and after pruning; 0.6 of the channels or of the operations stay."""
    backbone, method = request.param
    net = lively(backbone)
    whole, parts, batches = copy.deepcopy(net), PRUNERS[method].parts(net), batches_of(75, 3)
    if method == "thinet":
        for part in parts:
            prune_thinet(net, part, 0.6, batches, 300, 1)
    else:
        prune_taylor(net, parts, 0.6 * macs(net, 75), batches)
    return backbone, method, whole, net


def test_only_what_may_go(pruned):
    """Widths where the method prunes, and nowhere else: not the stem, the residual stream, VGG's last stage under ThiNet, or a fully connected layer."""
    backbone, method, whole, net = pruned
    before, after, layers = layer_widths(whole), layer_widths(net), {place.layer for place in flat(PRUNERS[method].parts(whole))}
    if method == "thinet":
        assert after == {n: max(w * 6 // 10, 1) if n in layers else w for n, w in before.items()}
    else:
        assert 0.5 * macs(whole, 75) < macs(net, 75) <= 0.6 * macs(whole, 75)
        assert before != after and all(1 <= after[n] <= w if n in layers else after[n] == w for n, w in before.items())
    if backbone.startswith("vgg"):
        convs, last_stage = list(before), 3 if backbone == "vgg16" else 2
        assert [n in layers for n in convs] == [True] * (len(convs) - last_stage) + [method == "taylor"] * last_stage
        linear = [[(m.in_features, m.out_features) for m in n.head_low if isinstance(m, nn.Linear)] for n in (whole, net)]
        assert linear[1] == [(after[convs[-1]] * 3 * 3, linear[0][0][1]), *linear[0][1:]]
    else:
        last = {BasicBlock: "conv2", Bottleneck: "conv3"}
        stay = {f"low_net.{n}.{last[type(m)]}" for n, m in whole.low_net.named_modules() if type(m) in last}
        assert layers == {n for n in before if ".layer" in n and "downsample" not in n} - stay
        assert net.head_low[-1].in_features == whole.head_low[-1].in_features
    norms = {n: m.num_features for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert all(norms[place.norm] == after[place.layer] for place in flat(PRUNERS[method].parts(net)) if place.norm)
    assert bool(norms) == (backbone != "vgg16")


def test_pruned_network_comes_back(pruned, tmp_path):
    """Weights to a file, into a network that was never pruned: the same scores to the bit."""
    backbone, _, _, net = pruned
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "model.safetensors")
    fresh = lively(backbone)
    fresh.low_net.requires_grad_(False)
    fit_shapes(fresh, load_file(tmp_path / "model.safetensors")).eval()
    assert not any(p.requires_grad for p in fresh.low_net.parameters()) and all(p.requires_grad for p in fresh.head_low.parameters())
    assert str(fresh) == str(net) and layer_widths(fresh) == layer_widths(net) and macs(fresh, 75) == macs(net, 75)
    for shape in [(2, 3, 75, 75)] + [(1, 3, 97, 50)] * (not backbone.startswith("vgg")):
        image = torch.rand(shape)
        with torch.no_grad():
            assert torch.equal(fresh(image).s, net(image).s)
    with pytest.raises(RuntimeError, match="Missing key"):
        fit_shapes(fresh, {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if k != "low_net.0.weight" and k != "low_net.conv1.weight"})


def test_pruned_network_deployed(pruned):
    """Odd channel counts, odd sizes: folded and in an engine it gives its scores, and bfloat16 runs."""
    backbone, _, _, net = pruned
    folded = fold(net)
    for size in [(75, 75)] + [(97, 50)] * (not backbone.startswith("vgg")):
        fast, half = prepare(net, "eager", image_size=size), prepare(net, "eager", "bf16", image_size=size) if has_bf16() else None
        for n in (1, 5):
            image = torch.rand(n, 3, *size)
            with torch.no_grad():
                expected = net(image)
                assert difference(expected, fast(image)) < 1e-4
                assert difference(expected, folded(image)) < 1e-4
                assert half is None or difference([expected.s], [half(image).s]) < 0.1


# errors


def raises(error, match):
    """An error whose message is one line."""
    return pytest.raises(error, match=rf"\A[^\n]*{match}[^\n]*\Z")


@pytest.mark.parametrize("keep", [0, -1, 1.5, math.nan, math.inf, True, False, "x", "0.5", None])
def test_share_out_of_range(keep):
    """Refused before anything is done, where a run is named and where a network is pruned."""
    net = lively("resnet18")
    for call in [
        lambda: check_keep(keep),
        lambda: RunSpec("thinet", "resnet18", "data", paper_recipe(), keep=keep),
        lambda: prune_thinet(net, thinet_layers(net)[0], keep, batches_of(32, 0), 10, 0),
    ]:
        with raises(ValueError, "keep=.*: the share that stays must be above 0 and at most 1"):
            call()


def test_grouped_convolutions_have_no_rule():
    """ResNeXt: neither a run nor a place."""
    for method, backbone in itertools.product(PRUNERS, ["resnext50_32x4d", "resnext101_64x4d"]):
        with raises(ValueError, f"backbone='{backbone}': '{method}' has a rule for the families vgg, resnet, wide_resnet alone"):
            RunSpec(method, backbone, "data", paper_recipe(backbone), keep=0.5)
    for method in PRUNERS:
        with raises(ValueError, "low_net .Sequential. has no rule for pruning"):
            PRUNERS[method].parts(lively("resnext50_32x4d"))


def conv(i, o, **how):
    return nn.Conv2d(i, o, 3, 1, 1, **how)


class Own(nn.Module):
    """A network of somebody's own: other names, another depth, functions between the layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.scale = conv(3, 8), nn.BatchNorm2d(8)
        self.deep = nn.ModuleList([nn.Sequential(conv(8, 12), nn.LeakyReLU(0.1)), conv(12, 16)])
        self.last = nn.Sequential(OrderedDict(squeeze=conv(16, 10), act=nn.GELU()))

    def forward(self, x):
        x = F.max_pool2d(torch.relu(self.scale(self.stem(x))), 2)
        for layer in self.deep:
            x = layer(x).relu()
        return self.last(F.dropout(x, 0.1, self.training))


class Summed(nn.Module):
    """A sum, of two kinds: only what is inside may go."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = conv(3, 8), conv(8, 6), conv(6, 8)

    def forward(self, x):
        x = F.relu(self.a(x))
        return x + self.c(F.relu(self.b(x)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = conv(3, 8), conv(8, 8)

    def forward(self, x):
        return self.b(F.relu(self.b(F.relu(self.a(x)))))


class Convs(nn.Module):
    """Blocks whose place is called as their layers are."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(conv(3, 8), BasicBlock(8, 8), BasicBlock(8, 8))

    def forward(self, x):
        return self.convs(x)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(3, 8)

    def forward(self, x):
        return self.a(x) if x.mean() > 0 else -self.a(x)


def pooled_scores(channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


def flat_scores(features):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 5))


def own(net, channels, flat_head=False):
    """A classifier of five classes, with norms that have seen something."""
    torch.manual_seed(0)
    model = DecomposedClassifier(Identity(), net, flat_scores(channels * 16 * 16) if flat_head else pooled_scores(channels))
    model.train()(torch.rand(16, 3, 32, 32))
    return model.eval()


OWN = {  # network → its prunable layers, their norms and readers
    "names": (
        lambda: own(Own(), 10, flat_head=True),
        [("stem", "scale", "deep.0.0"), ("deep.0.0", None, "deep.1"), ("deep.1", None, "last.squeeze"), ("last.squeeze", None, "1")],
    ),
    "a sum": (lambda: own(Summed(), 8), [("b", None, "c")]),
    "blocks": (lambda: own(Convs(), 8), [(f"convs.{i}.conv1", f"convs.{i}.bn1", f"convs.{i}.conv2") for i in (1, 2)]),
    "one layer": (lambda: own(nn.Sequential(conv(3, 8)), 8), [("0", None, "2")]),
    "nested": (lambda: own(nn.Sequential(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8)), nn.ReLU(), conv(8, 6)), 6), [("0.0", "0.1", "2"), ("2", None, "2")]),
    "unweighted": (lambda: own(nn.Sequential(conv(3, 8), nn.BatchNorm2d(8, affine=False), conv(8, 6)), 6), [("0", "1", "2"), ("2", None, "2")]),
    "groups": (lambda: own(nn.Sequential(conv(3, 8), conv(8, 8, groups=8), conv(8, 6), conv(6, 4)), 4), [("2", None, "3"), ("3", None, "2")]),
}


@pytest.mark.parametrize("name", OWN)
def test_a_network_of_ones_own(name):
    """Every layer that one other layer reads, and no other; without its channels the network says what it says with them at zero; both methods prune it."""
    make, expected = OWN[name]
    net, (x, y) = make(), batches_of(32, 0, classes=5)[0]
    places = flat(prunable_layers(net))
    last = len(places) - 1
    named = [(f"low_net.{layer}", norm and f"low_net.{norm}", reader) for layer, norm, reader in expected]
    in_head = [isinstance(net.get_submodule(p.reader), nn.Linear) for p in places]
    assert places == [(layer, norm, f"{'head_low' if linear else 'low_net'}.{r}") for (layer, norm, r), linear in zip(named, in_head)]
    assert not any(in_head[:last])
    for place in places:
        smaller, gone = copy.deepcopy(net), [1, 3]
        remove_channels(smaller, {place.layer: gone}, x[:1])
        gates = torch.ones(1, net.get_submodule(place.layer).out_channels)
        gates[0, gone] = 0
        with torch.no_grad(), gated(net, place, gates):
            assert difference([net(x).s], [smaller(x).s]) < 1e-5
    for method in PRUNERS:
        pruned, whole = copy.deepcopy(net), macs(net, 32)
        if method == "thinet" and all(in_head):
            with raises(ValueError, "low_net .Sequential. has no layer for ThiNet, which rebuilds the next convolution: low_net.0 have none behind them"):
                PRUNERS[method].parts(pruned)
            continue
        parts = PRUNERS[method].parts(pruned)
        for i in range(PRUNERS[method].count(parts, PruneRecipe(*[StageRecipe(0.1, 4, 1)] * 2, parts=1))):
            PRUNERS[method].prune(pruned, parts, PruneStep(i, 1 if method == "taylor" else len(parts), 0.8, whole, 50, 0), [(x, y)])
        assert macs(pruned, 32) < whole and pruned(x).s.shape == (len(x), 5)
        state = {k: v.clone() for k, v in pruned.state_dict().items()}
        assert torch.equal(fit_shapes(make(), state).eval()(x).s, pruned(x).s)


STUCK = {
    "twice": (Twice, "low_net .Twice. has no layer that can be pruned: low_net.a feeds low_net.b, which is used twice; low_net.b is used twice"),
    "branches": (Branching, "low_net .Branching. cannot be pruned: torch.fx cannot tell which layer reads which .*control flow"),
    "normalised otherwise": (lambda: nn.Sequential(conv(3, 8), nn.GroupNorm(2, 8)), "no layer that can be pruned: low_net.0 feeds low_net.1 .GroupNorm."),
    "no convolution": (lambda: nn.Sequential(nn.MaxPool2d(2)), "no layer that can be pruned: it has no convolution"),
}


@pytest.mark.parametrize("name", STUCK)
def test_a_network_that_cannot_be_pruned_is_one_line(name):
    make, message = STUCK[name]
    for method in PRUNERS:
        with raises(ValueError, message):
            PRUNERS[method].parts(DecomposedClassifier(Identity(), make(), pooled_scores(8)))


def test_specs_that_cannot_be():
    """Each in one line that names the argument."""
    for args, kw, match in [
        (("plain", "resnet18"), dict(keep=0.5), "keep=0.5: method 'plain' does not prune; use one of taylor, thinet"),
        (("thinet-tiny", "vgg16"), dict(keep=0.5), "keep=0.5: method 'thinet-tiny' does not prune"),
        (("wae", "vgg16"), dict(keep=0.5, stage=1), "keep=0.5: method 'wae' does not prune"),
        (("thin", "resnet18"), dict(keep=0.5), "method='thin' is unknown; use one of"),
        (("thinet", "resnet18"), dict(keep=0.5, stage=1), "stage=1: method 'thinet' has one stage, 0"),
        (("thinet", "resnet19"), dict(keep=0.5), "backbone='resnet19' is unknown"),
        (("thinet-gap", "resnet50"), {}, "backbone='resnet50': 'thinet-gap' is a structure of vgg16 and vgg16_bn; prune"),
        (("thinet-gap", "vgg19_bn"), {}, "backbone='vgg19_bn': 'thinet-gap' is a structure of vgg16 and vgg16_bn; prune"),
        (("taylor", "vgg16"), dict(keep=0.5, base="wavelet"), "base='wavelet': taylor, thinet prune one network, trained in one stage: plain, half"),
        (("taylor", "vgg16"), dict(keep=0.5, base="wae"), "base='wae': taylor, thinet prune one network"),
        (("plain", "vgg16"), dict(base="half"), "base='half': taylor, thinet prune"),
    ]:
        with raises(ValueError, match):
            RunSpec(*args, "data", paper_recipe(), **kw)
    assert RunSpec("plain", "resnext50_32x4d", "data", paper_recipe()).keep == 1
    assert RunSpec("thinet", "vgg16", "data", paper_recipe()).name == RunSpec("thinet", "vgg16", "data", paper_recipe(), keep=1).name


def without_torch_pruning(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "torch_pruning" else find(name, *args))


def test_torch_pruning_is_not_installed(monkeypatch, tmp_path, smoke):
    """A run says so before the network that it starts from is trained; a finished one can be used."""
    exp, made = smoke
    without_torch_pruning(monkeypatch)
    said = r"pruning needs torch-pruning; install the extra: pip install 'wae_nb\[pruning\]'"
    for method in PRUNERS:
        with raises(ImportError, said):
            get_or_train(exp.specs(method, keep=0.5)[0], exp.data, exp.engine, tmp_path)
    assert not list(tmp_path.iterdir())
    assert [replace(run, record=run.record).model(torch.rand(1, 3, 32, 32)).s.shape for run in made.values()] == [(1, 4)] * 2
    net = lively("resnet18")
    with raises(ImportError, said):
        remove_channels(net, {"low_net.layer1.0.conv1": [0]}, torch.rand(1, 3, 32, 32))


# runs

DECIDED = ("name", "decisive", "test", "best", "best_epoch", "epochs", "history", "answers", "labels", "widths", "macs", "parameters", "data")


def outcome(run):
    """All that a run decides, but for the time it took."""
    return {k: run.record[k] for k in DECIDED} | dict(parts=[{k: v for k, v in part.items() if k != "seconds"} for part in run.record["parts"]])


def weights(run):
    return load_file(run.folder / "model.safetensors")


def experiment(folder):
    return Experiment("smoke", "resnet18", None, [0], "cpu", runs_dir=folder / "runs", figures_dir=folder / "figures", progress=False, kind="photos")


def spec_of(exp, method):
    (spec,) = exp.specs(method, keep=0.5, prune=replace(exp.recipe.prune, parts=3, images=24, samples=500))
    return spec


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A tiny experiment, and a pruned run of each kind."""
    exp = experiment(tmp_path_factory.mktemp("pruning"))
    return exp, {method: exp.runs([spec_of(exp, method)])[0] for method in PRUNERS}


@pytest.mark.parametrize("method", PRUNERS)
def test_run_of_a_pruned_network(smoke, method, capsys):
    """Its record, its network, the run that it started from; the second time it is found."""
    exp, made = smoke
    run, net = made[method], made[method].model
    spec, record = run.spec, run.record
    assert spec.parent.name == exp.specs("plain")[0].name and record["decisive"]["parent"] == spec.parent.fingerprint()
    assert (record["decisive"]["keep"], record["decisive"]["prune"]["images"]) == (0.5, 24) and "keep0.5" in spec.name
    assert record["macs"] == macs(net, 32) and record["parameters"] == sum(p.numel() for p in net.parameters()) and record["widths"] == layer_widths(net)
    parent = runs.finished_run(spec.parent, exp.runs_dir)
    counts = [parent.record["macs"], *(part["macs"] for part in record["parts"])]
    assert len(counts) == 1 + {"thinet": 8, "taylor": 3}[method] and counts == sorted(counts, reverse=True) and counts[-1] == record["macs"]
    if method == "taylor":
        assert all(0.9 < count / (counts[0] * 0.5 ** (i / 3)) <= 1 for i, count in enumerate(counts))
    else:
        inner = {place.layer for place in flat(thinet_layers(parent.model))}
        assert record["widths"] == {n: w // 2 if n in inner else w for n, w in layer_widths(parent.model).items()}
    assert sorted(p.name for p in run.folder.iterdir()) == ["config.json", "metrics.jsonl", "model.safetensors", "record.json"]
    capsys.readouterr()
    (again,) = exp.runs([spec_of(exp, method)])
    assert capsys.readouterr().out.startswith("found") and again.record == record
    assert spec.name != spec_of(exp, "taylor" if method == "thinet" else "thinet").name != replace(spec, keep=0.25).name


@pytest.mark.parametrize("method", PRUNERS)
@pytest.mark.parametrize("base", ["half", "linear-in"])
def test_on_top_of_a_smaller_image(tmp_path, method, base):
    """What a row's network has is taken further away from, its decomposer left alone: the run before it is the row's, taught or not."""
    exp = experiment(tmp_path)
    changes = dict(prune=replace(exp.recipe.prune, parts=2, images=24, samples=200), distill=Distill(start=True))
    (spec,) = exp.specs(method, keep=0.85, base=base, **changes)
    row = exp.specs(base, **changes)[0]
    assert spec.parent.name == row.name and f"{method}-{base}-" in spec.name and spec.teacher.name == row.teacher.name
    assert spec.fingerprint()["base"] == base and spec.rate == row.rate and "base" not in exp.specs(method, keep=0.5)[0].fingerprint()
    run, before = exp.runs([spec])[0], finished_run(row, exp.runs_dir)
    x = torch.rand(2, 3, 32, 32)
    assert run.record["macs"] < before.record["macs"] and run.model(x).s.shape == (2, 4)
    low, was = run.model.decompose(x), before.model.decompose(x)
    assert low.low.shape == was.low.shape and {n: w for n, w in layer_widths(run.model.decomposer).items()} == layer_widths(before.model.decomposer)
    assert layer_widths(run.model.low_net) != layer_widths(before.model.low_net)
    if method == "taylor":
        assert sum(layer_macs(run.model, 32).values()) == run.record["macs"] <= 0.85 * before.record["macs"]


class Cut(Exception):
    pass


def counted(monkeypatch, method, name, cut_at=0):
    """The calls of a way's "prune", of "fit" or of "finish_run", as the list that it returns; one of them is not made."""
    calls, modules = [], [m for m in (runs, pruning) if hasattr(m, name)]
    real = getattr(modules[0], name) if modules else PRUNERS[method].prune

    def call(*args, **kw):
        calls.append(args)
        if len(calls) == cut_at:
            raise Cut
        return real(*args, **kw)

    for m in modules:
        monkeypatch.setattr(m, name, call)
    if not modules:
        monkeypatch.setitem(PRUNERS, method, replace(PRUNERS[method], prune=call))
    return calls


@pytest.mark.parametrize("method", PRUNERS)
def test_pruned_run_is_cut_off(smoke, method, tmp_path, monkeypatch):
    """Four times, in another folder, its parent trained anew: it goes on, prunes no part twice, and ends where one in one go ends, every weight to the bit."""
    run, exp = smoke[1][method], experiment(tmp_path)
    parts, spec = len(run.record["parts"]), spec_of(exp, method)
    # before the third part is pruned, before it is trained, before the end is trained, and before the record
    for name, at, prunings in [("prune", 3, 3), ("fit", 1, 1), ("fit", parts - 1, parts - 3), ("finish_run", 1, 0)]:
        with monkeypatch.context() as m:
            called = counted(m, method, name, at)
            pruned = called if name == "prune" else counted(m, method, "prune")
            with pytest.raises(Cut):
                exp.runs([spec])
            assert (len(called), len(pruned)) == (at, prunings)
    pruned = counted(monkeypatch, method, "prune")
    (again,) = exp.runs([spec])
    a, b = weights(run), weights(again)
    assert not pruned and outcome(again) == outcome(run)
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
    assert sorted(p.name for p in again.folder.iterdir()) == ["config.json", "metrics.jsonl", "model.safetensors", "record.json"]


def test_each_training_of_a_pruned_network_has_its_own_smoothing(tmp_path, monkeypatch):
    seen, smoothed = [], tasks.classification_loss

    def spy(scores, y, terms, label_smoothing):
        seen.append(label_smoothing)
        return smoothed(scores, y, terms, label_smoothing)

    exp = experiment(tmp_path)
    exp.runs(exp.specs("plain"))
    monkeypatch.setattr(tasks, "classification_loss", spy)
    p = exp.recipe.prune
    prune = replace(p, between=replace(p.between, label_smoothing=0.3), end=replace(p.end, label_smoothing=0.2), parts=1, images=24)
    exp.runs(exp.specs("taylor", keep=0.5, prune=prune))
    assert list(dict.fromkeys(seen)) == [0.3, 0.2] and seen == sorted(seen, reverse=True)


def test_made_up_pruner(tmp_path, monkeypatch):
    """An entry of `PRUNERS`, and no other edit: it is refused before its parent is trained, or it names, prunes, trains and records a run."""

    def check(net, keep, size):
        if keep < 0.1:
            raise ValueError(f"keep={keep!r}: too little")

    def first_channels(net, parts, step, batches):
        for p in parts[step.index :: step.of]:
            n = net.get_submodule(p[0].layer).out_channels
            remove_channels(net, {p[0].layer: list(range(max(int(n * step.keep), 1), n))}, batches[0][0][:1])

    monkeypatch.setitem(PRUNERS, "first", Pruner("First channels", prunable_layers, lambda parts, recipe: 2, first_channels, check))
    exp = experiment(tmp_path)
    with raises(ValueError, "keep=0.01: too little"):
        exp.runs(exp.specs("first", keep=0.01))
    assert not list(exp.runs_dir.glob("plain*"))
    (run,) = exp.runs(exp.specs("first", keep=0.5))
    assert run.spec.title == "First channels, keep 0.5 on resnet18" and run.spec.kind == "pruning" and run.spec.name.startswith("first-resnet18-keep0.5-")
    whole = layer_widths(finished_run(run.spec.parent, exp.runs_dir).model)
    gone = {p[0].layer for p in prunable_layers(lively("resnet18"))}
    assert len(run.record["parts"]) == 2 and run.record["widths"] == {n: w // 2 if n in gone else w for n, w in whole.items()}
    with raises(ValueError, "backbone='resnext50_32x4d': 'first' has a rule for the families"):
        RunSpec("first", "resnext50_32x4d", "data", paper_recipe(), keep=0.5)


def spec_of_record(decisive, recipe):
    """The spec that a record's fingerprint is of: a recipe with all that the fingerprint says."""

    def stage_recipe(d):
        return StageRecipe(**d)

    d = decisive
    while d:  # the stages before it are in it, too
        stage = "prune" if "prune" in d else {1: "wae", 3: "finetune"}.get(d["stage"], "classify")
        if stage == "prune":
            kept = {{"rows": "samples"}.get(k, k): v for k, v in d["prune"].items()}
            made = PruneRecipe(**kept | dict(between=stage_recipe(kept["between"]), end=stage_recipe(kept["end"])))
            assert made.end == stage_recipe(d["stage_recipe"])
        else:  # one that is taught may move otherwise than its teacher, whose recipe it names
            by = d["teacher"] if "teacher" in d and stage == "classify" and "stage_recipe" in d["teacher"] else d
            made = stage_recipe(by["stage_recipe"]) if "stage_recipe" in by else recipe.classify  # a network that was given has none
        own = {k: d[k] for k in ("lam", "gamma", "reduction", "pixel_scale", "init", "dropout", "sub_norm", "energy") if k in d}
        own |= {"terms": tuple(d["terms"])} if "terms" in d else {}
        own |= {"distill": Distill(**d["distill"])} if "distill" in d else {}
        recipe = replace(recipe, **{stage: made}, **own)
        d = d.get("parent")
    same = {k: decisive[k] for k in ("method", "data", "seed", "stage", "image_size", "width", "keep", "head", "base", "start", "given") if k in decisive}
    same |= {"given": decisive["teacher"]["given"]} if "given" in decisive.get("teacher", {}) else {}
    return RunSpec(backbone=decisive.get("backbone", ""), recipe=recipe, **same)


def changed(d):
    """Whether a loss has other constants than the profiles', here or in a stage before: the rows of Tables 3 and 4 and of the sweeps of λ and γ."""
    usual = dict(lam=1.0, gamma=0.001, terms=["s", "s_c", "s_L"], sub_norm=True, reduction="sum", pixel_scale=1.0, energy="sub-image")
    return bool(d) and (any(d.get(k, v) != v for k, v in usual.items()) or changed(d.get("parent")))


def test_every_recorded_run_keeps_its_name(root):
    """Each committed record's fingerprint is what its spec gives today, name and all; those with a profile's own recipe are found by it and by their way."""
    sizes = {(kind, profile): size for kind, profiles in PROFILES.items() for profile, size in profiles.items()}
    records = [json.loads(path.read_text()) for path in sorted((root / "figures").glob("*/records/*.json"))]
    records, usual = [r for r in records if "history" in r], {}
    shipped = runpy.run_path(str(root / "data_prep/pretrained.py"))["EPOCHS"]
    assert len(records) >= 140 and {r["decisive"]["method"] for r in records} >= {"wae", "I_L", "wavelet", "thinet", "taylor", "thinet-gap"}
    for record in records:
        d, found = record["decisive"], []
        if record["recipe"] == "compare":  # of `wae compare`: as many epochs as fitted
            found.append(spec_of_record(d, strong_recipe("compare", record["data"]["train"])))
            usual[record["name"]] = not changed(d)
        for (_, profile), size in sizes.items():
            if (profile, d.get("width", size.width)) == (record["recipe"], size.width):  # crops of any size
                recipe = size.recipe(d.get("backbone", "vgg16"), record["data"]["train"])
                found.append(spec_of_record(d, recipe))
                recipes = [replace(recipe, **way.changes(recipe)) for way in WAYS.values()] + [replace(recipe, wae=replace(recipe.wae, epochs=shipped))]
                names = {replace(found[-1], recipe=r).name for r in recipes}
                usual[record["name"]] = usual.get(record["name"], False) or record["name"] in names
        assert found, f"{record['name']} has no profile"
        for spec in found:
            assert json.loads(json.dumps(spec.fingerprint())) == d, record["name"]
            key = hashlib.sha256(json.dumps(d, sort_keys=True).encode()).hexdigest()[:10]
            assert spec.name == record["name"] and spec.name.endswith(key)
        assert usual[record["name"]] != changed(d), f"{record['name']}: the profile's own recipe, and not found by it, or another one, and found"


OTHER_NORMS = {  # what a convolution feeds then, in the words of the refusal; FrozenBatchNorm2d's own steps are seen
    r"\w+ \(GroupNorm\)": lambda n: nn.GroupNorm(8, n),
    "mul": FrozenBatchNorm2d,
    r"\w+ \(InstanceNorm2d\)": lambda n: nn.InstanceNorm2d(n, affine=True),
}


@pytest.mark.parametrize("norm", OTHER_NORMS)
def test_blocks_with_another_norm_are_refused(norm):
    """ResNet's own, whose norm's channels would stay when its convolution's go: in a line, before anything is changed."""
    net = resnet18(norm_layer=OTHER_NORMS[norm])
    model = DecomposedClassifier(Identity(), nn.Sequential(*list(net.children())[:-2]), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 5)))
    with pytest.raises(ValueError, match=rf"\A[^\n]*has no layer that can be pruned: [^\n]* feeds [\w.]*{norm}[^\n]*\Z"):
        prunable_layers(model)
