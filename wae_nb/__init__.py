"""Learning a wavelet-like auto-encoder to accelerate deep neural networks (AAAI 2018).

An image is split into a low and a high sub-image of half its size, and a network works on each. The names below are what a program of one's own needs;
they are imported when they are first used. What else there is lies in the rooms `method`, `data`, `measure`, `prune`, `train`, `deploy` and `lab`.

Example:

>>> import torch, wae_nb
>>> [name for name, method in wae_nb.METHODS.items() if method.paper]
['plain', 'half', 'three-quarters', 'cA', 'wavelet', 'decomposition', 'I_L', 'wae']
>>> net = wae_nb.build("wae", "resnet18", num_classes=10, image_size=64, width=0.25)
>>> scores = net(torch.rand(2, 3, 64, 64))
>>> scores.s.shape
torch.Size([2, 10])
"""

import importlib

__version__ = "0.1.0"

_HOMES = {  # name → the module that has it
    "METHODS": "method.classifier",
    "build": "method.classifier",
    "DecomposedClassifier": "method.classifier",
    "WAE": "method.wae",
    "Decomposition": "method.wae",
    "DWT": "method.decomposers",
    "transform_loss": "method.losses",
    "classification_loss": "method.losses",
    "joint_loss": "method.losses",
    "load": "deploy.loading",
    "load_data": "data.sets",
    "macs": "measure.cost",
    "time_pairs": "measure.latency",
    "fold": "convert.folding",
    "prepare": "deploy.engines",
    "export": "convert.targets",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
