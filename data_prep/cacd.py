"""Lay CACD out for wae_nb: the first 500 identities (or a list), a training part and a test part, a folder for each identity.

    python data_prep/cacd.py CACD2000/ cacd/
    python data_prep/cacd.py CACD2000/ cacd/ --identities names.txt

CACD is one folder of files named <age>_<Name>_<nnnn>.jpg. The paper uses a subset of 500 identities and 56,138 images, 44,798 of them for training; which
identities is not published. The result is a folder that any notebook takes as data_root. Files are hard links where the file system allows it, else copies.
It is safe to run again: what is there is checked and kept, what is missing is added, and a different split is refused.
"""

import argparse
import filecmp
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

NAME = re.compile(r"^(?P<age>\d+)_(?P<name>.+)_(?P<number>\d{4})\.jpe?g$", re.IGNORECASE)
IDENTITIES, IMAGES, TRAIN = 500, 56_138, 44_798  # the paper's
MAX_DAMAGED = 0.01


def stop(message: str) -> None:
    sys.exit(f"cacd.py: {message}")


def below(folder: Path) -> Iterator[Path]:
    """Every file in a folder, through links to folders, too; of a folder that is reached twice, once."""
    seen = set()
    for at, folders, files in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(at)) in seen:
            folders.clear()
        else:
            seen.add(real)
            yield from (Path(at, name) for name in files)


def find(source: Path, target: Path) -> dict[str, list[Path]]:
    """The files of each identity, both sorted by name; those already placed in the target are not sources."""
    if not source.is_dir():
        stop(f"{str(source)!r} is not a folder; give the one that holds CACD's images")
    people: dict[str, list[Path]] = {}
    seen: dict[str, Path] = {}
    other = 0
    for p in sorted(below(source)):
        if p.is_relative_to(target) or any(part.startswith(".") or part == "@eaDir" for part in p.relative_to(source).parts):  # thumbnails
            continue
        if m := NAME.match(p.name):
            if (first := seen.setdefault(p.name, p)) != p:
                stop(f"{p.name} is there twice, {str(first)!r} and {str(p)!r}, and one could come to train/ and the other to test/; keep one of them")
            people.setdefault(m["name"], []).append(p)
        elif p.is_file():
            other += 1
    if not people:
        stop(f"{str(source)!r} has no file named <age>_<Name>_<nnnn>.jpg ({other} other files)")
    if other:
        print(f"{other} files are not named <age>_<Name>_<nnnn>.jpg and are left out")
    return dict(sorted(people.items()))


def choose(people: dict[str, list[Path]], listed: Path | None) -> list[str]:
    """The identities to use: those listed in a file, a name a line, else the first 500 by name."""
    if listed is None:
        return list(people)[:IDENTITIES]
    if not listed.is_file():
        stop(f"--identities {str(listed)!r} is not a file; it should hold a name a line")
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as e:
        stop(f"--identities {str(listed)!r} is not UTF-8 text ({e.reason} at byte {e.start}); save it as UTF-8, a name a line")
    names = [n.strip().replace(" ", "_") for n in lines if n.strip()]
    if missing := [n for n in names if n not in people]:
        stop(f"{len(missing)} of {len(names)} names in {str(listed)!r} have no image, the first is {missing[0]!r}")
    return sorted(set(names))


def readable(path: Path) -> bool:
    try:
        with Image.open(path) as im:
            im.load()
        return True
    except Exception:  # Pillow's readers raise all kinds for a damaged file
        return False


def split(files: list[Path], train: int, seed: int) -> tuple[list[Path], list[Path]]:
    """A seeded shuffle of all images together, as in the paper ("we randomly select 44,798 images")."""
    order = np.random.default_rng(seed).permutation(len(files))
    return [files[i] for i in order[:train]], [files[i] for i in order[train:]]


def place(source: Path, target: Path) -> bool:
    """Link or copy one file, whole or not at all; False if it is there already, the same."""
    if target.exists() and (target.samefile(source) or filecmp.cmp(source, target, shallow=False)):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), part)
    except OSError:
        shutil.copyfile(source, part)
    os.replace(part, target)
    return True


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder with CACD's images")
    parser.add_argument("target", type=Path, help="the folder to make: train/<Name>/ and test/<Name>/")
    parser.add_argument("--identities", type=Path, help="a file with a name a line; by default the first 500 by name")
    parser.add_argument("--train", type=int, help=f"training images; by default {TRAIN:,} of {IMAGES:,}, or that share of another number")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    a = parser.parse_args(argv)

    if a.seed < 0:
        stop(f"--seed {a.seed} must be at least 0")
    source, target = a.source.expanduser().resolve(), a.target.expanduser().resolve()
    if target.exists() and not target.is_dir():
        stop(f"{str(a.target)!r} is a file; name a folder")
    people = find(source, target)
    names = choose(people, a.identities)
    files = [p for n in names for p in people[n]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        fine = list(tqdm(pool.map(readable, files), "reading every image", len(files), mininterval=1, leave=False))
    damaged = [p.name for p, ok in zip(files, fine) if not ok]
    if len(damaged) > MAX_DAMAGED * len(files):
        stop(f"{len(damaged)} of {len(files)} images cannot be read ({', '.join(damaged[:5])}…), over 1 %; fetch them again")
    files = [p for p, ok in zip(files, fine) if ok]
    train = round(len(files) * TRAIN / IMAGES) if a.train is None else a.train
    if not 0 < train < len(files):
        stop(f"--train {train} must lie between 1 and {len(files) - 1}, so that both parts have images")
    parts = dict(zip(("train", "test"), split(files, train, a.seed)))
    counts = {part: Counter(NAME.match(p.name)["name"] for p in ps) for part, ps in parts.items()}
    for part, least, what in (("train", 2, "training"), ("test", 1, "test")):
        if few := [n for n in names if counts[part][n] < least]:
            stop(f"{few[0]!r} would have {counts[part][few[0]]} {what} images; leave it out of the list of identities, or use another --seed")

    plan = {f"{part}/{NAME.match(p.name)['name']}/{p.name}": p for part, ps in parts.items() for p in ps}
    there = {p.relative_to(target).as_posix() for p in target.rglob("*") if NAME.match(p.name)} if target.is_dir() else set()
    if stray := sorted(there - plan.keys()):
        stop(f"{str(a.target)!r} already holds another selection or split (for instance {stray[0]}); remove it, or name another folder")
    try:
        placed = sum(place(image, target / name) for name, image in tqdm(plan.items(), "placing", mininterval=1, leave=False))
    except OSError as e:
        stop(f"{str(a.target)!r} cannot be filled ({e.strerror}); make room, or name a folder that can be written to, and run it again: it goes on from there")
    facts = dict(identities=len(names), images=len(files), train=len(parts["train"]), test=len(parts["test"]), seed=a.seed, damaged=damaged)
    (target / "cacd.json").write_text(json.dumps(facts, indent=1) + "\n")

    for name in damaged:
        print(f"cannot be read, left out: {name}")
    counted = f"{facts['train']} to train, {facts['test']} to test; {placed} placed, the rest was there"
    print(f"{len(names)} of {len(people)} identities, {len(files)} images: {counted}")
    if (len(names), len(files)) != (IDENTITIES, IMAGES):
        print(f"The paper's subset has {IDENTITIES} identities and {IMAGES:,} images; which is not published: a table from this one is not quite the paper's.")
    print(f"Use it: papermill nbs/05_cacd.ipynb out.ipynb -p profile paper -p backbone vgg16 -p mixed_precision no -p data_root {a.target}")


if __name__ == "__main__":
    main()
