"""Measure how fast training images arrive: from wae_nb's packed file, and decoded each time as torchvision does it.

    python data_prep/throughput.py imagenette/imagenette2/
    python data_prep/throughput.py imagenette/imagenette2/ --images 4000 --workers 8 --out throughput.json

The data is a folder with train/<class>/. Both ways deliver the same training images as random crops on the device, pixels in [0, 1]; the models normalise by
themselves. The packed loader reads squashed uint8 images and crops them there; torchvision's ImageFolder decodes, squashes and crops in the loading processes.
The rounds of all rows alternate. Every row's first pass is not timed: it starts the processes and leaves the files in the page cache, so that the disk is not
what is measured.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torchvision import datasets, transforms

from wae_nb.data.batches import crop, crop_offsets, loader
from wae_nb.data.pack import Dataset
from wae_nb.data.sets import load_data
from wae_nb.measure.machine import hardware, resolve_device
from wae_nb.train.records import project_root


def stop(message: str) -> None:
    sys.exit(f"throughput.py: {message}")


def some(data: Dataset, images: int) -> Dataset:
    """The same data with that many training images, drawn with a seed."""
    train = data.indices("train")
    if not 2 <= images <= len(train):
        stop(f"--images {images} must lie between 2 and {len(train)}, the training images of {data.name}")
    split = np.full_like(data.split, -1)
    split[np.random.default_rng(0).permutation(train)[:images]] = 0
    return replace(data, split=split)


def packed(data: Dataset, size: int, batch: int, workers: int, device: str) -> Callable[[int], int]:
    """A pass over the packed images; returns how many came."""
    batches, margin = loader(data, "train", batch, workers), data.images.shape[1] - size

    def epoch(number: int) -> int:
        batches.sampler.generator.manual_seed(number)
        offsets = crop_offsets(len(batches.dataset), margin, 0, number)
        return sum(len(crop(images.to(device), size, offsets[at])) for images, _, at in batches)

    return epoch


def decoded(data: Dataset, root: Path, size: int, batch: int, workers: int, device: str) -> Callable[[int], int]:
    """The same by torchvision, from the same files."""
    side = data.images.shape[1]
    steps = [transforms.Resize((side, side)), transforms.RandomCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    wanted = {root / data.files[i] for i in data.indices("train")}
    folder = datasets.ImageFolder(root / "train", transforms.Compose(steps), is_valid_file=lambda path: Path(path) in wanted, allow_empty=True)
    number = {Path(path): i for i, (path, _) in enumerate(folder.samples)}  # of any ending that the pack has
    part = torch.utils.data.Subset(folder, [number[root / data.files[i]] for i in data.indices("train")])
    kw = dict(num_workers=workers, persistent_workers=workers > 0, pin_memory=device == "cuda", drop_last=len(part) > batch)
    batches = torch.utils.data.DataLoader(part, batch, shuffle=True, **kw)
    return lambda _: sum(len(images.to(device)) for images, _ in batches)


def rate(epoch: Callable[[int], int], number: int, device: str) -> float:
    """Images a second of one pass."""
    start = time.perf_counter()
    images = epoch(number)
    if device == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def quartiles(x) -> str:
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75])
    return f"{middle:8.3g} [{low:.3g}, {high:.3g}]"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path, help="a folder with train/<class>/")
    parser.add_argument("--images", type=int, default=2000, help="training images in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="loading processes")
    parser.add_argument("--size", type=int, default=224, help="of the crops, pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda: where the crops end")
    parser.add_argument("--cache", type=Path, default=project_root() / "runs/data", help="where packed sets are kept; by default as for the notebooks")
    parser.add_argument("--out", type=Path, help="a json file for the record")
    a = parser.parse_args(argv)
    if a.workers < 1 or a.rounds < 1 or a.batch < 1:
        stop(f"--workers {a.workers}, --rounds {a.rounds} and --batch {a.batch} must be at least 1")
    root = a.data_root.expanduser().resolve()
    if not (root / "train").is_dir():
        stop(f"{str(root)!r} has no folder train/; give a folder with train/<class>/ images")
    if a.out and not a.out.parent.is_dir():
        stop(f"--out {a.out}: there is no folder {str(a.out.parent)!r}; make it first")
    try:
        device = resolve_device(a.device)
        data = some(load_data(root, a.size, a.cache), a.images)
    except (ValueError, OSError) as e:  # a DataError is a ValueError
        stop(str(e))

    ways = {
        "packed, 0 workers": packed(data, a.size, a.batch, 0, device),
        f"packed, {a.workers} workers": packed(data, a.size, a.batch, a.workers, device),
        f"ImageFolder, {a.workers} workers": decoded(data, root, a.size, a.batch, a.workers, device),
    }
    for epoch in ways.values():
        epoch(0)
    rates = {name: [] for name in ways}
    for number in range(1, a.rounds + 1):
        for name, epoch in ways.items():
            rates[name].append(rate(epoch, number, device))

    *_, base = rates.values()
    ratios = {name: (np.array(r) / base).tolist() for name, r in rates.items()}
    print(f"{a.images} images of {data.name} (SHA-256 {data.checksum[:12]}…), crops of {a.size} in batches of {a.batch} on {device}, {a.rounds} rounds")
    print(f"{'':24}images/s median [quartiles]    times ImageFolder")
    for name, r in rates.items():
        print(f"{name:24}{quartiles(r):30} {quartiles(ratios[name])}")
    if a.out:
        settings = dict(images=a.images, rounds=a.rounds, workers=a.workers, size=a.size, batch=a.batch, device=device)
        known = dict(name=data.name, checksum=data.checksum, classes=len(data.classes))
        record = dict(machine=hardware(device), data=known, settings=settings, images_per_second=rates, times_image_folder=ratios)
        a.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written to {a.out}")


if __name__ == "__main__":
    main()
