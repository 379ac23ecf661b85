"""Fetch Imagenette (ten classes of ImageNet, 13,394 images) for wae_nb.

    python data_prep/imagenette.py imagenette/
    python data_prep/imagenette.py imagenette/ --size 160px

torchvision fetches the archive, checks its MD5 and extracts it. Without a network, put the archive into the target by hand and run this: it is checked and
extracted the same way. The result, imagenette/imagenette2/ with train/ and val/, is a folder that any notebook takes as data_root.
"""

import argparse
import sys
import tarfile
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets import Imagenette

COUNTS = {"train": 9_469, "val": 3_925}  # of version 2, in every size


def stop(message: str) -> None:
    sys.exit(f"imagenette.py: {message}")


def fetch(target: Path, size: str) -> Path:
    """The extracted folder; fetched and extracted if it is not there."""
    url, md5 = Imagenette._ARCHIVES[size]
    archive = target / Path(url).name
    folder = target / archive.stem
    if folder.exists():
        return folder
    try:
        Imagenette(target, size=size, download=True)
    except (OSError, RuntimeError, EOFError, HTTPException, tarfile.TarError) as e:
        by_hand = f"fetch it by hand, put it at {archive} (MD5 {md5}) and run this again"
        stop(f"cannot fetch and extract {url} ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}); {by_hand}")
    return folder


def check(folder: Path) -> None:
    found = {split: sum(1 for _ in (folder / split).glob("*/*.JPEG")) for split in COUNTS}
    if found != COUNTS:
        counts = ", ".join(f"{found[s]:,} of {n:,} {s} images" for s, n in COUNTS.items())
        stop(f"{str(folder)!r} is not the whole Imagenette: {counts}; remove this folder and run this again")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="the folder to fetch into")
    parser.add_argument("--size", choices=list(Imagenette._ARCHIVES), default="full", help="of the images' shorter side; by default as they are in ImageNet")
    a = parser.parse_args(argv)

    folder = fetch(a.target.expanduser().resolve(), a.size)
    check(folder)
    print(f"{COUNTS['train']:,} train and {COUNTS['val']:,} val images in 10 classes")
    print(f"Use it: papermill nbs/02_imagenet_vgg16.ipynb out.ipynb -p profile small -p data_root {folder}")


if __name__ == "__main__":
    main()
