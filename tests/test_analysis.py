"""Spectra, fits and layers against numpy's FFT in plain loops, numpy's least squares, pywt's filters and torch's own sizes."""

import math

import numpy as np
import pytest
import pywt
import torch
from torch import nn

from wae_nb.lab.analysis import layers, linear_fit, properties, radial_power, response
from wae_nb.measure.cost import macs
from wae_nb.method.backbones import features
from wae_nb.method.decomposers import DWT
from wae_nb.method.wae import WAE, Decoder, Decomposition, Encoder


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (31, 20), (1, 7)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12), (torch.bfloat16, 1e-5)])
def test_radial_power_is_a_loop_over_frequencies(size, dtype, tolerance):
    H, W = size
    x = torch.tensor(np.random.default_rng(H).normal(3, 2, (2, 3, H, W))).to(dtype)
    rings = {}
    for image in x.double().flatten(0, 1).numpy():
        power = np.abs(np.fft.fft2(image - image.mean())) ** 2 / (H * W)
        for i in range(H):
            for j in range(W):
                f = math.hypot(min(i, H - i) / H, min(j, W - j) / W)
                rings.setdefault(round(f * min(H, W)), []).append(power[i, j])
    s = radial_power(x, window=False)
    for k, values in rings.items():
        assert math.isclose(s.value[k], np.mean(values), rel_tol=tolerance, abs_tol=tolerance)
        assert s.count[k] * 6 == len(values) and s.frequency[k] == pytest.approx(k / min(H, W))
    assert s.count.sum() == H * W
    # Parseval: power over all frequencies is the variance
    assert math.isclose((s.value * s.count).sum() / (H * W), x.double().var((2, 3), correction=0).mean(), abs_tol=1e-9)


@pytest.mark.parametrize("window", [True, False])
def test_spectra_that_are_known(window):
    torch.manual_seed(0)
    noise = radial_power(3 * torch.randn(64, 3, 63, 48), window)
    inside = slice(3, 25)
    assert (noise.value[inside] / 9 - 1).abs().max() < 0.1  # flat, at the variance
    for k in (5, 12, 20):
        wave = torch.sin(2 * math.pi * k / 48 * torch.arange(48.0)).expand(1, 1, 48, 48)
        s = radial_power(wave, window)
        assert s.frequency[s.value.argmax()] == pytest.approx(k / 48)
    # a ramp jumps at the border: without a window that is power at every frequency along the axis
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    assert radial_power(ramp).value[20] < 1e-4 * radial_power(ramp, window=False).value[20]


@pytest.mark.parametrize("size, stride, support", [((12, 13), 2, 3), ((9, 9), 1, 1), ((10, 16), 1, 5), ((15, 20), 3, 3), ((20, 21), 2, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_fit_is_numpys_least_squares(size, stride, support, dtype):
    rng = np.random.default_rng(7)
    x = torch.tensor(rng.normal(size=(6, 2, *size))).to(dtype)
    y = torch.tensor(rng.normal(size=(6, 3, *(-(-n // stride) for n in size)))).to(dtype)
    r, rows, values = support // 2, [], []
    for image, out in zip(x.double().numpy(), y.double().numpy()):
        for i in range(out.shape[1]):
            for j in range(out.shape[2]):
                top, left = stride * i - r, stride * j - r
                if top >= 0 and left >= 0 and top + support <= size[0] and left + support <= size[1]:
                    rows.append([*image[:, top : top + support, left : left + support].ravel(), 1])
                    values.append(out[:, i, j])
    best, *_ = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)
    rest = np.array(values) - np.array(rows) @ best
    fit = linear_fit(x, y, support)
    np.testing.assert_allclose(fit.taps.flatten(1).T, best[:-1], atol=1e-9)
    np.testing.assert_allclose(fit.bias, best[-1], atol=1e-9)
    np.testing.assert_allclose(fit.r2, 1 - rest.var(0) / np.var(values, axis=0), atol=1e-9)
    assert math.isclose(fit.whole, 1 - rest.var(0).sum() / np.var(values, axis=0).sum(), abs_tol=1e-9)


@pytest.mark.parametrize("wavelet", ["bior4.4", "haar", "db2"])
def test_linear_fit_finds_pywts_taps(wavelet):
    x = torch.tensor(np.random.default_rng(3).random((3, 2, 47, 50)))
    d, w = DWT(wavelet=wavelet)(x), pywt.Wavelet(wavelet)
    lo, hi = (np.array(f)[::-1] for f in (w.dec_lo, w.dec_hi))
    n, k = len(lo), 11
    start = k // 2 - (n // 2 - 1)  # pywt's window begins so far before its pixel
    for part, rows, cols in ((d.low, lo, lo), (d.high[:, :2], hi, lo), (d.high[:, 2:4], lo, hi), (d.high[:, 4:], hi, hi)):
        fit = linear_fit(x, part, k)
        expected = np.zeros((2, 2, k, k))
        for c in range(2):
            expected[c, c, start : start + n, start : start + n] = np.outer(rows, cols)
        np.testing.assert_allclose(fit.taps, expected, atol=1e-9)
        assert fit.whole > 1 - 1e-10
        # the frequency response by its definition, at one frequency
        phase = np.exp(-2j * np.pi * (3 * np.arange(n)[:, None] + 5 * np.arange(n)) / 64)
        assert math.isclose(response(fit.taps)[0, 3, 5], abs((np.outer(rows, cols) * phase).sum()), abs_tol=1e-8)


def test_linear_fit_of_repeated_and_constant_channels():
    grey = torch.rand(3, 1, 16, 16).expand(-1, 3, -1, -1)
    fit = linear_fit(grey, torch.cat([grey[:, :1], torch.ones(3, 1, 16, 16)], 1))
    assert fit.r2.tolist() == [pytest.approx(1), 0] and math.isclose(fit.taps[0].sum(), 1, abs_tol=1e-6)


@pytest.mark.parametrize(
    "shapes, support, message",
    [
        (((1, 1, 8, 8), (1, 1, 4, 4)), 4, "odd number"),
        (((1, 1, 9, 9), (1, 1, 4, 4)), 3, "no whole stride"),
        (((1, 3, 9, 9), (1, 1, 5, 5)), 5, "fewer than the 76"),
    ],
)
def test_linear_fit_refuses(shapes, support, message):
    with pytest.raises(ValueError, match=message):
        linear_fit(*(torch.rand(s) for s in shapes), support)


def test_properties_of_an_orthogonal_wavelet():
    """Haar keeps energy, exactly; its details know nothing of a constant."""
    x = torch.rand(4, 3, 40, 48, dtype=torch.float64) - 0.5
    haar = DWT(wavelet="haar")
    p = properties(x, haar, haar.inverse)
    assert p["PSNR from both (dB)"] > 200
    assert math.isclose(p["amplification of I_H on its way back"], 1, rel_tol=1e-6)
    share = p["energy that comes back through I_H, of the image's"]
    assert math.isclose(share, haar(x).high.square().sum() / x.square().sum(), rel_tol=1e-6)
    assert p["energy of I_H on images of one colour, of its energy"] < 1e-20
    assert p["I_H linear (R²)"] > 1 - 1e-9


@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_layers_are_torchs(size):
    """Sizes by the modules' own forward, multiply-accumulates by torch's counter."""
    net = WAE(channels=5)
    found = layers(net, torch.zeros(1, 3, *size))
    assert [l.branch for l in found] == ["encoder.body"] * 3 + ["encoder.low", "encoder.high"] + ["decoder.low"] * 4 + ["decoder.high"] * 4
    total, x = 0, torch.zeros(1, 3, *size)
    for l in found:
        h, w = (n // s if l.kind == "deconv" else n for n, s in zip(l.size, l.stride))
        total += h * w * math.prod(l.kernel) * math.prod(l.channels)
    assert total == macs(net, size)
    for m in (m for m in net.encoder.body if isinstance(m, nn.Conv2d)):
        x = m(x)
        assert found.pop(0).size == tuple(x.shape[-2:])
    assert not net.encoder.body[0]._forward_hooks


def test_layers_of_parts():
    assert [l.branch for l in layers(Encoder(), torch.zeros(1, 3, 8, 8))] == ["body"] * 3 + ["low", "high"]
    half = torch.zeros(1, 3, 4, 4)
    found = layers(Decoder(activation="none"), Decomposition(half, half))
    assert [l.kind for l in found] == ["deconv", "conv", "conv", "conv"] * 2 and not any(l.activation for l in found)
    vgg = layers(features("vgg16"), torch.zeros(1, 3, 32, 32))
    assert len(vgg) == 13 and {l.activation for l in vgg} == {"ReLU"}
    with pytest.raises(ValueError, match="ran no convolution"):
        layers(nn.Linear(2, 2), torch.zeros(1, 2))
