"""Counts of the released model and of the paper's networks, to the digit."""

import pytest
import torch
from torch import nn

from wae_nb.measure.cost import macs
from wae_nb.method.backbones import features
from wae_nb.method.classifier import METHODS, build
from wae_nb.method.slimming import slim


def meta(*args, **kw):
    with torch.device("meta"):
        return build(*args, **kw)


def convs(net):
    return [m for m in net.modules() if isinstance(m, nn.Conv2d)]


def bias_adds(net, size):
    """Additions of biases: one an output element of every convolution."""
    total = 0

    def count(m, i, o):
        nonlocal total
        total += o.numel()

    for m in convs(net):
        m.register_forward_hook(count)
    net(torch.empty(1, 3, size, size, device="meta"))
    return total


@pytest.mark.parametrize("size, conv, with_bias", [(224, 15_346_630_656, 15_360_178_176), (112, 3_836_657_664, 3_840_044_544)])
def test_vgg16_convolutions(size, conv, with_bias):
    net = features("vgg16").to("meta")
    assert macs(net, size) == conv
    assert conv + bias_adds(net, size) == with_bias


def test_vgg16_with_its_own_head():
    assert macs(meta("plain", "vgg16", 1000)) == 15_470_264_320
    assert macs(meta("half", "vgg16", 1000)) == 3_891_085_312  # the paper's 3.89 billion


def test_released_model():
    net = meta("wae", "vgg16", 1000)
    assert macs(net.decomposer) == 263_725_056
    assert macs(net.high_net, 112) == 243_855_360
    assert macs(net.low_net, 112) + macs(net.high_net, 112) == 3_836_657_664 + 243_855_360
    assert macs(net) == 4_381_913_088
    heads = {k: sum(m.in_features * m.out_features for m in h.modules() if isinstance(m, nn.Linear)) for k, h in [("L", net.head_low), ("c", net.head_fused)]}
    assert heads == {"L": 10_461_184, "c": 27_213_824}
    assert net.head_low[1].in_features == 8192 and net.head_fused[1].in_features == 10240
    assert [m.out_channels for m in convs(net.high_net)] == [16, 16, 32, 32, 64, 64, 64] + [128] * 6
    assert [(m.kernel_size, m.stride, m.padding) for m in convs(net.decomposer)] == [((3, 3), (1, 1), (1, 1))] * 3 + [((3, 3), (2, 2), (1, 1))] * 2
    for norm in (net.norm_low, net.norm_high):
        assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == 3 and not norm.affine and norm.track_running_stats


def test_resnet50():
    plain, ours = meta("plain", "resnet50", 1000), meta("wae", "resnet50", 1000)
    assert macs(plain) == 4_089_184_256
    assert macs(meta("half", "resnet50", 1000)) == 1_077_899_264
    assert macs(ours.high_net, 112) == 72_772_608
    assert macs(ours) == 1_416_956_928
    assert ours.head_low[-1].in_features == 2048 and ours.head_fused[-1].in_features == 2560


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_slim_divides_every_convolution(name):
    """Eq. 8 for the thin network: 1/16 of every convolution but the first, which keeps its three input channels and has 1/4."""
    full, thin = features(name).to("meta"), slim(features(name), 4).to("meta")

    def cost(net):
        per = {}
        for k, m in net.named_modules():
            if isinstance(m, nn.Conv2d):
                m.register_forward_hook(lambda m, i, o, k=k: per.__setitem__(k, m.in_channels * m.kernel_size[0] ** 2 * m.out_channels * o.shape[-1] ** 2))
        net(torch.empty(1, 3, 112, 112, device="meta"))
        return list(per.values())

    a, b = cost(full), cost(thin)
    assert b[0] * 4 == a[0] and [16 * x for x in b[1:]] == a[1:]
    assert macs(thin, 112) == a[0] // 4 + sum(a[1:]) // 16


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50"])
def test_two_stream_rows_share_one_classifier(backbone):
    nets = {m: meta(m, backbone, 100) for m in ("wavelet", "decomposition", "wae")}
    shapes = {m: {k: tuple(v.shape) for k, v in n.state_dict().items() if not k.startswith(("decomposer", "norm_high"))} for m, n in nets.items()}
    assert shapes["wae"] == shapes["decomposition"]
    differ = [k for k in shapes["wae"] if shapes["wae"][k] != shapes["wavelet"][k]]
    first = next(k for k in shapes["wae"] if k.startswith("high_net"))
    assert differ == [first] and shapes["wavelet"][first][1] == 9 and shapes["wae"][first][1] == 3


def test_scores_average():
    torch.manual_seed(0)
    for method in METHODS:
        scores = build(method, "resnet18", 4, 48, 0.125).eval()(torch.rand(3, 3, 48, 48))
        expected = scores.s_L if scores.s_c is None else (scores.s_L + scores.s_c) / 2
        torch.testing.assert_close(scores.s, expected)


def test_readme_states_the_bounds(root):
    """The two ratios that README quotes, from the counts."""
    said = (root / "README.md").read_text()
    for backbone, words in [("vgg16", "VGG16 needs {:.2f} times fewer"), ("resnet50", "ResNet-50 {:.2f} times fewer")]:
        ratio = macs(meta("plain", backbone, 1000)) / macs(meta("wae", backbone, 1000))
        assert words.format(ratio) in " ".join(said.split())
