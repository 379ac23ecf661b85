"""Numerical parts against what others wrote: pywt, torch's gradient check, sums written out."""

import math

import numpy as np
import pytest
import pywt
import torch
from torch import nn

from wae_nb.measure.cost import macs, roofline
from wae_nb.method.classifier import Scores
from wae_nb.method.decomposers import DWT
from wae_nb.method.losses import classification_loss, joint_loss, transform_loss
from wae_nb.method.wae import WAE, Decomposition


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (224, 224), (33, 47), (1, 5), (2, 3), (17, 32), (255, 254)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("wavelet", ["bior4.4", "haar"])
def test_dwt_is_pywts(size, dtype, tolerance, wavelet):
    x = np.random.default_rng(sum(size)).random((2, 3, *size))
    cA, (cH, cV, cD) = pywt.dwt2(x, wavelet, mode="periodization")
    dwt = DWT(wavelet=wavelet)
    d = dwt(torch.tensor(x, dtype=dtype))
    assert d.low.dtype == dtype
    assert np.abs(d.low.numpy() - cA).max() <= tolerance
    assert np.abs(d.high.numpy() - np.concatenate([cH, cV, cD], 1)).max() <= tolerance
    back = pywt.idwt2((cA, (cH, cV, cD)), wavelet, mode="periodization")
    assert np.abs(dwt.inverse(d).numpy() - back).max() <= tolerance
    # pywt states the filters to some twelve digits, so its own round trip is exact to a few 1e-12
    assert np.abs(dwt.inverse(d, size).numpy() - x).max() <= tolerance + np.abs(back[..., : size[0], : size[1]] - x).max()


def test_dwt_gradient():
    x = torch.rand(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: DWT()(x), x)


@pytest.mark.parametrize("size", [(8, 8), (7, 10)])
def test_losses_written_out(size):
    rng = np.random.default_rng(1)
    image, rec = rng.random((2, 3, 3, *size))
    low, high = rng.random((2, 3, 3, 4, 5))
    r = sum((a - b) ** 2 for a, b in zip(image.ravel(), rec.ravel())) / 3
    e = sum(v**2 for v in high.ravel()) / 3
    t = [torch.tensor(v) for v in (image, rec, low, high)]
    d = Decomposition(t[2], t[3])
    assert math.isclose(transform_loss(t[0], t[1], d, lam=0.3), r + 0.3 * e)
    assert math.isclose(transform_loss(t[0], t[1], d, pixel_scale=255), 255**2 * (r + e))
    assert math.isclose(transform_loss(t[0], t[1], d, reduction="mean"), r / image[0].size + e / high[0].size)
    s_c, s_L, y = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), [0, 4, 2, 2, 1, 3]
    scores = [(s_c + s_L) / 2, s_c, s_L]

    def cross_entropy(s):
        return -sum(math.log(math.exp(s[i][k]) / sum(map(math.exp, s[i]))) for i, k in enumerate(y)) / 6

    L_c = classification_loss(Scores(*map(torch.tensor, scores)), torch.tensor(y))
    assert math.isclose(L_c, sum(map(cross_entropy, scores)))
    assert math.isclose(joint_loss(L_c, torch.tensor(e), 0.01), sum(map(cross_entropy, scores)) + 0.01 * e)


def test_wae_gradient():
    torch.manual_seed(0)
    wae, x = WAE(channels=2, activation="none").double(), torch.rand(1, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: transform_loss(x, *reversed(wae(x))), x)


def test_linear_encoder_is_one_9x9_convolution():
    """Without its ReLUs the encoder is linear: its answer to an impulse is at most 9×9 wide."""
    torch.manual_seed(0)
    from wae_nb.method.wae import Encoder

    enc = Encoder(activation="none").double()
    x = torch.zeros(1, 3, 33, 33, dtype=torch.float64, requires_grad=True)
    for out in enc(x):
        (g,) = torch.autograd.grad(out[0, 0, 8, 8], x, retain_graph=True)
        rows = g.abs().sum((0, 1, 3)).nonzero().flatten()
        assert rows.min() == 16 - 4 and rows.max() == 16 + 4


class Looks(nn.Module):
    """A network that looks at values: on the meta device there are none."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return self.second(x) if float(x.abs().max()) > 0 else x


COUNTED = 16 * 16 * 8 * 27 + 8 * 8 * 16 * 72  # of `Looks` on 32 pixels


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_operations_in_every_precision(dtype):
    """Of a network that can be run without values, and of one that cannot; it is left as it was."""
    looks = Looks()
    for net in (nn.Sequential(looks.first, looks.second), looks):
        net = net.to(dtype)
        assert macs(net, 32) == COUNTED and roofline(net, 32, 2, (1.0, 1e9)) == 2 * COUNTED
        assert {p.dtype for p in net.parameters()} == {dtype} and net.training and not any(m._forward_hooks for m in net.modules())


@pytest.mark.parametrize("count", [lambda net: macs(net, 32, channels=3), lambda net: roofline(net, 32, 1, (1.0, 1.0))], ids=["macs", "roofline"])
def test_operations_that_cannot_be_counted(count):
    with pytest.raises(ValueError, match=r"\Aoperations cannot be counted: Sequential does not run on 1 image of 3 channels and 32×32 pixels: [^\n]+\Z"):
        count(nn.Sequential(nn.Conv2d(4, 8, 3)))


def test_what_has_no_operations_or_no_details_is_said():
    with pytest.raises(ValueError, match=r"\Amodel is a function: [^\n]+\Z"):
        macs(test_wae_gradient)
    image = torch.rand(2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"\Ahigh=None: [^\n]+\Z"):
        transform_loss(image, image, Decomposition(image, None))


class Attentive(nn.Module):
    """A convolution and self-attention over its positions; what looks at a value cannot be counted without numbers."""

    def __init__(self, looks):
        super().__init__()
        self.conv, self.attention, self.looks = nn.Conv2d(3, 32, 16, 16), nn.MultiheadAttention(32, 4, batch_first=True), looks

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.attention(x, x, x, need_weights=False)[0] * (bool(x.sum() > -1e9) if self.looks else 1)


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("size", [32, 80, 224])
def test_attention_is_counted_alike_everywhere(size, looks):
    """By hand: the convolution, four linear layers of 32 to 32, and two products of all positions with all."""
    fast, n = torch.backends.mha.get_fastpath_enabled(), (size // 16) ** 2
    assert macs(Attentive(looks), size) == n * (3 * 16**2 * 32 + 4 * 32**2) + 2 * n**2 * 32
    assert torch.backends.mha.get_fastpath_enabled() == fast
