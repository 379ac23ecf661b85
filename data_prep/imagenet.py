"""Pack ImageNet (ILSVRC2012) for wae_nb: every image squashed to a square, in one file, with its label.

    python data_prep/imagenet.py ILSVRC2012/ imagenet-256/
    python data_prep/imagenet.py ILSVRC/Data/CLS-LOC/ imagenet-256/ --ground-truth LOC_val_solution.csv

The source is a folder with the training images, either as train/<wnid>/*.JPEG or as ILSVRC2012_img_train.tar, and with the validation images, either as
val/<wnid>/*.JPEG, as val/*.JPEG or as ILSVRC2012_img_val.tar. Archives are read where they lie, nothing is extracted; of a folder and an archive of the same
part, the folder is read. Validation images without class folders need a ground truth: ILSVRC2012_validation_ground_truth.txt together with meta.mat, in the
source, in its ILSVRC2012_devkit_t12/data/ or in its ILSVRC2012_devkit_t12.tar.gz; or a file given as --ground-truth: those numbers, or a wnid a line in the
order of the file names, or "<file name> <wnid>" a line, or Kaggle's LOC_val_solution.csv.

The result is a folder that any notebook takes as data_root: the 50,000 validation images are its test part, as in the paper. The same images give the same
pack and the same checksum, whatever form they came in. It is safe to run again: a packing that was cut off goes on where it was, a finished one is left alone.
"""

import argparse
import io
import re
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from wae_nb.data.folder import DataError, ImageFile
from wae_nb.data.pack import Dataset, open_pack, pack, sources_key
from wae_nb.data.progress import progress_bar
from wae_nb.data.sets import pack_size

TRAIN, VAL, CLASSES = 1_281_167, 50_000, 1_000  # of ILSVRC2012
TRAIN_TAR, VAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
DEVKIT, TRUTH, META = "ILSVRC2012_devkit_t12", "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
WNID = re.compile(r"n\d{8}")
NUMBERED = re.compile(r"ILSVRC2012_val_\d{8}")
PAPER_SIZE = 256
SOURCE = "source.txt"  # in the pack: the key of the images that it was made of


def stop(message: str) -> None:
    sys.exit(f"imagenet.py: {message}")


def is_image(name: str) -> bool:
    return name.lower().endswith((".jpeg", ".jpg")) and not name.startswith(".")


def listed(folder: Path) -> list[str]:
    """What is in a folder, but for hidden files."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def images(folder: Path) -> list[str]:
    """Names of the images in a folder."""
    return list(filter(is_image, listed(folder)))


def class_folders(folder: Path) -> list[str]:
    return [name for name in listed(folder) if WNID.fullmatch(name) and (folder / name).is_dir()]


def from_folders(folder: Path, split: str) -> list[ImageFile]:
    """The images of the class folders; what else lies there is counted aloud."""
    wnids, found = class_folders(folder), []
    other = [f"{folder.name}/{name}" for name in sorted({*listed(folder)} - {*wnids})]
    for w in progress_bar(wnids, desc=f"listing {folder.name}"):
        for name in listed(folder / w):
            if is_image(name):
                found.append(ImageFile(folder / w / name, f"{folder.name}/{w}/{name}", w, split))
            else:
                other.append(f"{folder.name}/{w}/{name}")
    if other:
        print(f"left out {len(other):,} files and folders that are no .JPEG of a class, the first is {other[0]}")
    return found


def members(archive: str, size: int, **opened) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The files in a tar of that many bytes, none of which may reach beyond its end."""
    reached = 0
    try:
        with tarfile.open(mode="r:", **opened) as tar:
            for m in tar:
                reached = m.offset_data + m.size
                if reached > size:
                    stop(f"{archive} is cut off: it has {size:,} bytes, and {m.name} in it would reach to {reached:,}; fetch it again")
                if m.isfile():
                    yield tar, m
            tar.fileobj.seek(-(-reached // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE)
            if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):  # tarfile takes a broken header for the end
                raise tarfile.ReadError("bad header")
    except tarfile.TarError as e:
        stop(f"{archive} cannot be read beyond byte {reached:,} of {size:,} ({e}); fetch it again")


def from_train_archive(path: Path) -> list[ImageFile]:
    """The images of a tar of tars, one for each class."""
    found = []
    for tar, outer in progress_bar(members(str(path), path.stat().st_size, name=path), desc="listing train", total=CLASSES):
        wnid = Path(outer.name).stem
        if not WNID.fullmatch(wnid):
            continue
        for _, m in members(f"{path}: {outer.name}", outer.size, fileobj=tar.extractfile(outer)):
            if is_image(name := Path(m.name).name):
                found.append(ImageFile(path, f"train/{wnid}/{name}", wnid, "train", outer.offset_data + m.offset_data, m.size))
    return found


def from_val_archive(path: Path) -> list[ImageFile]:
    listed = progress_bar(members(str(path), path.stat().st_size, name=path), desc="listing val", total=VAL)
    return [ImageFile(path, name, "", "test", m.offset_data, m.size) for _, m in listed if is_image(name := Path(m.name).name)]


def find_train(source: Path) -> list[ImageFile]:
    if (source / "train").is_dir():
        return from_folders(source / "train", "train")
    if (source / TRAIN_TAR).is_file():
        return from_train_archive(source / TRAIN_TAR)
    stop(f"{str(source)!r} has neither a folder train/ nor {TRAIN_TAR}; give the folder that holds ImageNet")


def find_val(source: Path) -> list[ImageFile]:
    """The validation images; without labels where there are no class folders."""
    val = source / "val"
    if not val.is_dir():
        if not (source / VAL_TAR).is_file():
            stop(f"{str(source)!r} has neither a folder val/ nor {VAL_TAR}; give the folder that holds ImageNet")
        return from_val_archive(source / VAL_TAR)
    flat = [ImageFile(val / name, name, "", "test") for name in images(val)]
    if flat and (folders := class_folders(val)):
        stop(f"{str(val)!r} holds {len(flat):,} images beside {len(folders):,} class folders; move them into their folders, or all images out of them")
    return flat or from_folders(val, "test")


def check_counts(source: Path, train: list[ImageFile], val: list[ImageFile], partial: bool) -> bool:
    """Whether it is all of ImageNet."""
    classes = len({s.label for s in train})
    whole = (len(train), len(val), classes) == (TRAIN, VAL, CLASSES)
    if not train or not val:
        stop(f"{str(source)!r} has {len(train):,} train and {len(val):,} val images that end in .JPEG; both parts need some")
    if not whole and not partial:
        counts = f"{len(train):,} of {TRAIN:,} train images, {len(val):,} of {VAL:,} val images, {classes:,} of {CLASSES:,} classes"
        stop(f"{str(source)!r} is not the whole ImageNet: {counts}; complete it, or pass --partial to pack what is there")
    return whole


def devkit(name: str, *folders: Path) -> tuple[str, bytes] | None:
    """Where a file of the development kit is, and what is in it."""
    for path in [p / name for folder in folders for p in (folder, folder / DEVKIT / "data")]:
        if path.is_file():
            return str(path), path.read_bytes()
    for path in [folder / f"{DEVKIT}.tar.gz" for folder in folders]:
        if path.is_file():
            try:
                with tarfile.open(path) as tar:
                    return f"{path}: {name}", tar.extractfile(f"{DEVKIT}/data/{name}").read()
            except (tarfile.TarError, zlib.error, EOFError, KeyError) as e:
                stop(f"{path} gives no {DEVKIT}/data/{name} ({e}); fetch it again")
    return None


def read_ids(*folders: Path) -> dict[str, str]:
    """The wnid of each ILSVRC2012_ID, from the development kit's meta.mat."""
    from scipy.io import loadmat

    found = devkit(META, *folders)
    if found is None:
        stop(f"the ground truth holds numbers, and {META}, which says what they mean, is not in {str(folders[0])!r}; put it or {DEVKIT}.tar.gz there")
    where, data = found
    try:
        synsets = loadmat(io.BytesIO(data), squeeze_me=True)["synsets"]
        return {str(int(s["ILSVRC2012_ID"])): str(s["WNID"]) for s in synsets if s["num_children"] == 0}
    except Exception as e:  # scipy's reader raises all kinds for a damaged file
        stop(f"{where} is not the development kit's list of classes ({type(e).__name__}: {e}); fetch it again")


def read_truth(given: Path | None, source: Path, val: list[ImageFile]) -> tuple[str, dict[str, str]]:
    """Where the ground truth is, and the wnid of each validation image by its name without ending."""
    if given and not given.is_file():
        stop(f"--ground-truth {str(given)!r} is not a file")
    found = (str(given), given.read_bytes()) if given else devkit(TRUTH, source)
    if found is None:
        stop(f"the val images in {str(source)!r} have no class folders and no ground truth; put {TRUTH} or {DEVKIT}.tar.gz there, or pass --ground-truth")
    where, data = found
    lines = [line.replace(",", " ").split() for line in data.decode(errors="replace").splitlines() if line.strip()]
    if lines and lines[0][0] == "ImageId":  # Kaggle's header
        lines = lines[1:]
    if lines and len(lines[0]) > 1:
        return where, by_name(where, lines, val)
    return where, by_order(where, [line[0] for line in lines], [source, *([given.parent] if given else [])], val)


def by_name(where: str, lines: list[list[str]], val: list[ImageFile]) -> dict[str, str]:
    if short := [i for i, line in enumerate(lines, 1) if len(line) < 2]:
        stop(f"{where}: entry {short[0]:,} has no class; each should be a file name and a wnid")
    truth = {Path(line[0]).stem: line[1] for line in lines}
    if len(truth) < len(lines):
        stop(f"{where} names {len(lines):,} files, {len(lines) - len(truth):,} of them twice; each should be there once")
    unknown = sorted(truth.keys() - {Path(s.name).stem for s in val})
    if unknown and len(truth) != VAL:  # the whole ground truth also serves a part of the images
        stop(f"{where} names {len(unknown):,} files that are not among the {len(val):,} val images, the first is {unknown[0]!r}")
    return truth


def in_order(where: str, val: list[ImageFile]) -> list[str]:
    """Names without ending, in the order of the lines. Refuses names whose order could be another: one image too many or too few would shift all labels."""
    stems = [Path(s.name).stem for s in val]
    if twice := next((a for a, b in zip(sorted(stems), sorted(stems)[1:]) if a == b), None):
        stop(f"two val images are called {twice}, with different endings; keep one of them")
    if (other := [s for s in stems if not NUMBERED.fullmatch(s)]) and len(other) < len(stems):
        stop(f"{len(other):,} of {len(stems):,} val images are not named ILSVRC2012_val_<8 digits>, the first is {other[0]!r}; {where} goes by their order")
    if sorted(stems) != sorted(stems, key=lambda s: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", s)]):
        stop(f"the val images' numbers have different lengths, and {where} goes by the order of names; let it hold '<file name> <wnid>' a line")
    return stems


def by_order(where: str, classes: list[str], folders: list[Path], val: list[ImageFile]) -> dict[str, str]:
    stems = in_order(where, val)
    numbers = [int(s[-8:]) for s in stems if NUMBERED.fullmatch(s)]
    if len(classes) == len(val) == VAL and numbers and numbers != list(range(1, VAL + 1)):
        stop(f"the numbers of the val images are not 1 to {VAL:,}, so {where} is not of these; complete them")
    if len(classes) == VAL != len(val):  # the whole ground truth also serves a part of the images
        stems = [f"ILSVRC2012_val_{i:08d}" for i in range(1, VAL + 1)]
    elif len(classes) != len(val):
        stop(f"{where} has {len(classes):,} lines, expected {len(val):,}, one for each val image; use the ground truth of these images")
    if all(c.isdigit() for c in classes):
        ids = read_ids(*folders)
        if strange := [c for c in classes if c not in ids]:
            stop(f"{where} holds the number {strange[0]}, which is not an ILSVRC2012_ID of {META} (1 to {len(ids):,})")
        classes = [ids[c] for c in classes]
    return dict(zip(stems, classes))


def label(val: list[ImageFile], truth: dict[str, str], where: str, known: set[str]) -> list[ImageFile]:
    """The validation images with their classes, named as if they lay in class folders."""
    labels = [truth.get(Path(s.name).stem) for s in val]
    if missing := [s.name for s, c in zip(val, labels) if c is None]:
        stop(f"{where} says nothing of {len(missing):,} of {len(val):,} val images, the first is {missing[0]}; use the ground truth of these images")
    if strange := [(s.name, c) for s, c in zip(val, labels) if c not in known]:
        name, c = strange[0]
        stop(f"{where} gives {len(strange):,} of {len(val):,} val images a class that train does not have, the first is {c!r} of {name}")
    return [s._replace(name=f"val/{c}/{s.name}", label=c) for s, c in zip(val, labels)]


def find(source: Path, ground_truth: Path | None, partial: bool) -> tuple[list[ImageFile], bool]:
    """Every image, sorted by name, and whether it is all of ImageNet."""
    if not source.is_dir():
        stop(f"{str(source)!r} is not a folder; give the one that holds ImageNet")
    train = find_train(source)
    val = sorted(find_val(source), key=lambda s: s.name)
    whole = check_counts(source, train, val, partial)
    classes = {s.label for s in train}
    if not val[0].label:
        where, truth = read_truth(ground_truth, source, val)
        val = label(val, truth, where, classes)
    elif ground_truth:
        print(f"{str(source / 'val')!r} has class folders; {ground_truth} is not needed and not read")
    if differ := sorted(classes ^ {s.label for s in val}):
        only = "train" if differ[0] in classes else "val"
        stop(f"{str(source)!r}: train and val differ in {len(differ):,} classes, the first is {differ[0]}, only in {only}; both need the same classes")
    return sorted(train + val, key=lambda s: s.name), whole


def check_target(source: Path, target: Path) -> None:
    if any(target == p or target.is_relative_to(p) for p in (source / "train", source / "val")) or target == source:
        stop(f"the target {str(target)!r} lies among the source's images; name a folder of its own")
    if target.is_file() or target.is_dir() and not (target / "meta.json").exists() and any(target.iterdir()):
        stop(f"the target {str(target)!r} is there and is not a pack; remove it, or name another folder")


def open_same(target: Path, sources: list[ImageFile], size: int) -> Dataset:
    """The finished pack, if it was made of these images at this size."""
    data = open_pack(target)
    if data.images.shape[1] != size or data.files != tuple(s.name for s in sources):
        side = data.images.shape[1]
        held = f"{len(data.files):,} images at {side}×{side}, not these {len(sources):,} at {size}×{size}"
        stop(f"{str(target)!r} holds another packing ({held}); remove it, or name another folder")
    print(f"{str(target)!r} is packed already; nothing to do")
    if (key := target / SOURCE).exists() and key.read_text() != sources_key(sources, size):
        print(f"some of the images have another place, size or time than when they were packed; to pack them anew, remove {str(target)!r}")
    return data


def make(target: Path, name: str, sources: list[ImageFile], size: int, workers: int | None) -> Dataset:
    place = next(p for p in target.parents if p.exists())
    needed, free = len(sources) * 3 * size**2, shutil.disk_usage(place).free
    print(f"{len(sources):,} images at {size}×{size}: {needed / 1e9:.1f} GB in {target}, {free / 1e9:.1f} GB free", flush=True)
    if (journal := target.with_name(f"{target.name}.part") / "journal.jsonl").exists():
        print(f"going on with {str(journal.parent)!r}, if it was made of these images", flush=True)
    data = pack(target, name, sources, size, workers)
    (target / SOURCE).write_text(sources_key(sources, size))
    return data


def crop_of(size: int) -> int | None:
    """The crops that packed images of this size are for, pixels; None where there are none."""
    return next((k for k in range(size * 7 // 8 - 1, size) if pack_size(k) == size), None)


def report(data: Dataset, target: Path) -> None:
    d, size = data.describe(), data.images.shape[1]
    for name in data.skipped:
        print(f"could not be read when it was packed, left out: {name}")
    print(f"{d['train'] + d['val']:,} train images ({d['val']:,} of them kept for validation), {d['test']:,} val images to test, {d['classes']:,} classes")
    print(f"SHA-256 {data.checksum}")
    if size == PAPER_SIZE:
        print(f"Use it: papermill nbs/02_imagenet_vgg16.ipynb out.ipynb -p profile paper -p backbone vgg16 -p mixed_precision no -p data_root {target}")
    else:
        print(f"Use it: -p data_root {target}, with a profile whose crops are {crop_of(size)} pixels; --size {PAPER_SIZE} is the paper's")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder that holds ImageNet, as archives or extracted")
    parser.add_argument("target", type=Path, help="the folder to make: the pack")
    parser.add_argument("--size", type=int, default=PAPER_SIZE, help=f"of the packed images, pixels; by default {PAPER_SIZE}, for crops of 224")
    parser.add_argument("--partial", action="store_true", help="pack what is there even if it is not all of ImageNet")
    parser.add_argument("--ground-truth", type=Path, help="classes of the val images; by default looked for in the source and its development kit")
    parser.add_argument("--verify", action="store_true", help="read the finished pack and compare its checksums")
    parser.add_argument("--workers", type=int, help="decoding threads; by default one for each core")
    a = parser.parse_args(argv)
    for name, value in (("size", a.size), ("workers", a.workers)):
        if value is not None and value < 1:
            stop(f"--{name} {value} must be at least 1")
    if crop_of(a.size) is None:
        near = [s for s in (a.size - 1, a.size + 1) if crop_of(s)] or [PAPER_SIZE]
        stop(f"--size {a.size}: no crop's images are packed at it, they are 8/7 of the crop; use {' or '.join(map(str, near))}")

    source, target = a.source.expanduser().resolve(), a.target.expanduser().resolve()
    try:
        check_target(source, target)
        sources, whole = find(source, a.ground_truth, a.partial)
        there = (target / "meta.json").exists()
        data = open_same(target, sources, a.size) if there else make(target, "imagenet" if whole else target.name, sources, a.size, a.workers)
        if a.verify:
            open_pack(target, check=True)
            print(f"all {len(data.images):,} packed images match their checksums")
        report(data, target)
    except KeyboardInterrupt:
        print("\nimagenet.py: stopped; what is packed is kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except (DataError, OSError) as e:
        stop(e.strerror if isinstance(e, OSError) and e.filename is None and e.strerror else str(e))


if __name__ == "__main__":
    main()
