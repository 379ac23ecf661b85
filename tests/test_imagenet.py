"""ImageNet in all its forms, packed: the same pack from each, resumed, checked, refused where it is not whole. Imagenette, and the loaders' speed."""

import hashlib
import io
import json
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter, namedtuple
from functools import cache
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scipy.io import savemat

from wae_nb.data import pack as packed
from wae_nb.data.sets import load_data

sys.path.insert(0, str(ROOT / "data_prep"))
import imagenet  # noqa: E402
import imagenette  # noqa: E402
import throughput  # noqa: E402

WNIDS = [f"n{i:08d}" for i in range(1, 5)]
IDS = {wnid: i for i, wnid in enumerate([WNIDS[2], WNIDS[0], WNIDS[3], WNIDS[1]], 1)}  # not in the order of the names, as the official ones
VAL = 5  # of each class
TRUTH, META, DEVKIT = imagenet.TRUTH, imagenet.META, imagenet.DEVKIT
REAL = ROOT.parent / "shared/data/imagenette-val.tar"


@cache
def jpeg(seed):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (24, 30, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def val_classes():
    """Of the validation images by name: ILSVRC2012_val_00000001.JPEG, ..., mixed."""
    classes = random.Random(0).sample(WNIDS * VAL, len(WNIDS) * VAL)
    return {f"ILSVRC2012_val_{i:08d}.JPEG": c for i, c in enumerate(classes, 1)}


def contents(train=12):
    """The fake ImageNet, by the names that the packed images should have."""
    out = {f"train/{w}/{w}_{k}.JPEG": jpeg((i, k)) for i, w in enumerate(WNIDS) for k in range(train)}
    return out | {f"val/{c}/{name}": jpeg((9, i)) for i, (name, c) in enumerate(val_classes().items())}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tar_of(files, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def meta_mat():
    """As in the official development kit: the 4 leaves, and a class above them."""
    fields = ["ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images"]
    synsets = np.zeros((5, 1), [(f, object) for f in fields])
    for row, (wnid, i) in enumerate([*IDS.items(), ("n00000099", 5)]):
        synsets[row, 0] = (float(i), wnid, "words", "gloss", 4.0 * (i == 5), np.arange(4.0) if i == 5 else [], 0.0, 12.0)
    out = io.BytesIO()
    savemat(out, {"synsets": synsets})
    return out.getvalue()


def official_truth():
    return "".join(f"{IDS[c]}\n" for c in val_classes().values()).encode()


def make_folders(source, train=12):
    write(source, contents(train))
    return source


def make_flat(source, train=12):
    write(source, {n if n.startswith("train") else f"val/{Path(n).name}": data for n, data in contents(train).items()})
    write(source, {TRUTH: official_truth(), META: meta_mat()})
    return source


def make_archives(source, train=12):
    files = contents(train)
    inner = {f"{w}.tar": tar_of({Path(n).name: d for n, d in files.items() if n.startswith(f"train/{w}")}) for w in WNIDS}
    val = {Path(n).name: data for n, data in files.items() if n.startswith("val")}
    devkit = {f"{DEVKIT}/data/{META}": meta_mat(), f"{DEVKIT}/data/{TRUTH}": official_truth()}
    write(source, {imagenet.TRAIN_TAR: tar_of(inner), imagenet.VAL_TAR: tar_of(val), f"{DEVKIT}.tar.gz": tar_of(devkit, "w:gz")})
    return source


def run(source, target, *args):
    imagenet.main([str(source), str(target), "--size", "32", "--partial", *map(str, args)])
    return packed.open_pack(target)


def refused(capsys, *args):
    """What it says instead of packing; one line, and nothing is left."""
    with pytest.raises(SystemExit) as e:
        run(*args)
    assert "\n" not in e.value.code and e.value.code.startswith("imagenet.py: ") and not args[1].exists()
    return e.value.code


@pytest.fixture
def source(tmp_path):
    return make_folders(tmp_path / "source")


def same(a, b):
    return a.files == b.files and a.checksum == b.checksum and (a.labels == b.labels).all() and (a.split == b.split).all() and (a.images == b.images).all()


def test_all_forms_give_the_same_pack(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imagenet, "TRAIN", 48), monkeypatch.setattr(imagenet, "VAL", 20), monkeypatch.setattr(imagenet, "CLASSES", 4)
    made = {}
    for make in (make_folders, make_flat, make_archives):
        target = tmp_path / f"packed-{make.__name__}"
        imagenet.main([str(make(tmp_path / make.__name__)), str(target), "--size", "32", "--verify", "--workers", "2"])
        made[make.__name__] = packed.open_pack(target)
        said = capsys.readouterr().out
        assert "68 images at 32×32: 0.0 GB in" in said and "all 68 packed images match their checksums" in said
        assert "48 train images (8 of them kept for validation), 20 val images to test, 4 classes" in said
        assert f"-p data_root {target}" in said
    a, *others = made.values()
    assert all(same(a, b) for b in others)
    assert a.name == "imagenet" and a.files == tuple(sorted(contents())) and a.classes == tuple(WNIDS)
    for i, name in enumerate(a.files):
        assert a.classes[a.labels[i]] == name.split("/")[1] and (a.split[i] == 2) == name.startswith("val/")
        assert (a.images[i] == packed.read_image(io.BytesIO(contents()[name]), 32)).all()
    assert load_data(tmp_path / "packed-make_archives", 28, tmp_path / "cache").checksum == a.checksum  # as a notebook takes it


def test_mixed_forms_and_other_ground_truths(tmp_path):
    a = run(make_folders(tmp_path / "source"), tmp_path / "packed")
    assert a.name == "packed"
    archives, flat = make_archives(tmp_path / "archives"), make_flat(tmp_path / "flat")
    shutil.copy(archives / imagenet.TRAIN_TAR, tmp_path / "source")
    shutil.rmtree(tmp_path / "source/train")
    assert same(a, run(tmp_path / "source", tmp_path / "train-archive"))
    shutil.rmtree(flat / "val")
    shutil.copy(archives / imagenet.VAL_TAR, flat)
    (flat / f"{DEVKIT}/data").mkdir(parents=True)
    for name in (TRUTH, META):
        (flat / name).rename(flat / f"{DEVKIT}/data" / name)
    assert same(a, run(flat, tmp_path / "val-archive"))
    shutil.rmtree(flat / DEVKIT)
    truth, named = tmp_path / "truth", list(val_classes().items())
    kaggle = "ImageId,PredictionString\n" + "".join(f"{n[:-5]},{c} 85 1 499 272 {c} 1 2 3 4 \n" for n, c in named[::-1])
    forms = dict(wnids="\n".join(c for _, c in named), names="".join(f"{n} {c}\n" for n, c in named[::-1]), kaggle=kaggle)
    for form, text in forms.items():
        truth.write_text(text)
        assert same(a, run(flat, tmp_path / form, "--ground-truth", truth))


def test_whole_ground_truth_for_a_part(tmp_path, monkeypatch):
    """Files missing from a flat val do not shift the classes of the others."""
    monkeypatch.setattr(imagenet, "VAL", 20)
    flat = make_flat(tmp_path / "flat")
    for i in (1, 8):
        (flat / f"val/ILSVRC2012_val_{i:08d}.JPEG").unlink()
    a = run(flat, tmp_path / "packed")
    assert a.files == tuple(n for n in sorted(contents()) if not n.endswith(("val_00000001.JPEG", "val_00000008.JPEG")))


def test_partial_is_refused(source, tmp_path):
    with pytest.raises(SystemExit, match=r"48 of 1,281,167 train images, 20 of 50,000 val images, 4 of 1,000 classes; complete it, or pass --partial"):
        imagenet.main([str(source), str(tmp_path / "packed")])
    assert not (tmp_path / "packed").exists() and not (tmp_path / "packed.part").exists()


def test_second_run_does_nothing(source, tmp_path, capsys, monkeypatch):
    run(source, tmp_path / "packed")
    monkeypatch.setattr(packed.ImageFile, "read", lambda s: pytest.fail("it was read again"))
    run(source, tmp_path / "packed")
    assert "is packed already; nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="holds another packing .68 images at 32×32, not these 68 at 48×48.; remove it"):
        run(source, tmp_path / "packed", "--size", "48")
    with pytest.raises(SystemExit, match="--size 100: no crop's images are packed at it, they are 8/7 of the crop; use 99 or 101"):
        run(source, tmp_path / "other", "--size", "100")
    (source / contents().popitem()[0]).unlink()
    with pytest.raises(SystemExit, match="not these 67 at 32×32"):
        run(source, tmp_path / "packed")


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import imagenet, wae_nb.data.pack as packed
packed.BLOCK, read = 16, packed.ImageFile.read
packed.ImageFile.read = lambda s: (time.sleep(0.05), read(s))[1]
imagenet.main(sys.argv[2:])
"""


def test_killed_and_finished(tmp_path, monkeypatch, capsys):
    source, target = make_archives(tmp_path / "source"), tmp_path / "packed"
    args = [str(source), str(target), "--size", "32", "--partial", "--workers", "1"]
    journal = tmp_path / "packed.part/journal.jsonl"
    quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with subprocess.Popen([sys.executable, "-c", KILLED, ROOT / "data_prep", *args], **quiet) as process:
        end = time.monotonic() + 30
        while time.monotonic() < end and process.poll() is None and not (journal.exists() and journal.read_text().count("\n") >= 2):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not target.exists()
    packed_before = 16 * (journal.read_text().count("\n") - 1)
    assert 16 <= packed_before < 68
    reads, read = [], packed.ImageFile.read
    monkeypatch.setattr(packed, "BLOCK", 16)
    monkeypatch.setattr(packed.ImageFile, "read", lambda s: (reads.append(s), read(s))[1])
    a = run(source, target, "--verify")
    assert len(reads) == 68 - packed_before and not (tmp_path / "packed.part").exists()
    assert "going on with" in capsys.readouterr().out
    assert same(a, run(source, tmp_path / "undisturbed"))


def test_interrupted(source, tmp_path, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(imagenet, "pack", interrupt)
    with pytest.raises(SystemExit) as e:
        run(source, tmp_path / "packed")
    assert e.value.code == 130 and "the same command goes on from there" in capsys.readouterr().err


def test_damaged_are_named(tmp_path, capsys):
    source = make_folders(tmp_path / "source", train=25)
    bad = f"train/{WNIDS[1]}/{WNIDS[1]}_7.JPEG"
    (source / bad).write_bytes(jpeg(0)[:200])
    a = run(source, tmp_path / "packed")
    said = capsys.readouterr().out
    assert f"could not be read when it was packed, left out: {bad}\n" in said and "99 train images" in said
    assert a.skipped == (bad,) and (a.labels == -1).sum() == 1
    (source / f"train/{WNIDS[0]}/{WNIDS[0]}_1.JPEG").write_bytes(b"junk")
    assert "2 of 120 images are damaged" in refused(capsys, source, tmp_path / "other")


def test_checksums(source, tmp_path, monkeypatch, capsys):
    run(source, tmp_path / "packed")
    images = tmp_path / "packed/images.npy"
    data = bytearray(images.read_bytes())
    data[5000] ^= 1
    images.write_bytes(data)
    monkeypatch.setattr(packed, "CHECK_BELOW", 0)  # as for a pack of ImageNet's size
    run(source, tmp_path / "packed")
    with pytest.raises(SystemExit, match="does not match its checksum in images 0 to 67; remove the folder"):
        run(source, tmp_path / "packed", "--verify")


def test_train_and_val_differ(source, tmp_path, capsys):
    shutil.rmtree(source / f"val/{WNIDS[3]}")
    assert f"train and val differ in 1 classes, the first is {WNIDS[3]}, only in train" in refused(capsys, source, tmp_path / "packed")


def test_cut_off_archives(tmp_path, capsys):
    source, target = make_archives(tmp_path / "source"), tmp_path / "packed"
    for name in (imagenet.TRAIN_TAR, imagenet.VAL_TAR):
        path, whole = source / name, (source / name).read_bytes()
        with tarfile.open(path) as tar:
            last = tar.getmembers()[-1]
        for length in (last.offset_data + last.size - 100, last.offset_data - 100):  # in an image, in a header
            path.write_bytes(whole[:length])
            said = refused(capsys, source, target)
            assert str(path) in said and f"{length:,}" in said and "fetch it again" in said
        path.write_bytes(whole[: last.offset] + b"x" * 512 + whole[last.offset_data :])
        assert f"{path} cannot be read beyond byte" in refused(capsys, source, target)
        path.write_bytes(whole)
    with tarfile.open(source / imagenet.TRAIN_TAR) as tar:
        inner = {m.name: tar.extractfile(m).read() for m in tar}
    inner["n00000002.tar"] = inner["n00000002.tar"][:3000]
    (source / imagenet.TRAIN_TAR).write_bytes(tar_of(inner))
    assert f"{imagenet.TRAIN_TAR}: n00000002.tar is cut off: it has 3,000 bytes" in refused(capsys, source, target)
    (source / imagenet.TRAIN_TAR).write_bytes(b"<html>not found</html>")
    assert "cannot be read beyond byte 0 of 22" in refused(capsys, source, target)


TRUTHS = [
    ("short", "has 19 lines, expected 20, one for each val image"),
    ("unknown number", "holds the number 77, which is not an ILSVRC2012_ID of meta.mat (1 to 4)"),
    ("unknown file", "names 1 files that are not among the 20 val images, the first is 'ILSVRC2012_val_00000099'"),
    ("missing file", "says nothing of 1 of 20 val images, the first is ILSVRC2012_val_00000001.JPEG"),
    ("unknown class", "gives 1 of 20 val images a class that train does not have, the first is 'n00000077' of ILSVRC2012_val_00000001.JPEG"),
    ("twice", "names 21 files, 1 of them twice"),
    ("no class", "entry 2 has no class"),
    ("no meta.mat", "the ground truth holds numbers, and meta.mat, which says what they mean, is not in"),
    ("bad meta.mat", "is not the development kit's list of classes"),
    ("nothing", "have no class folders and no ground truth; put ILSVRC2012_validation_ground_truth.txt or"),
    ("bad devkit", "gives no ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"),
]


@pytest.mark.parametrize("case, message", TRUTHS)
def test_ground_truth_refused(tmp_path, capsys, case, message):
    source = make_flat(tmp_path / "flat")
    numbers, named = official_truth().decode().split(), [f"{n} {c}" for n, c in val_classes().items()]
    lines = {
        "short": numbers[:-1],
        "unknown number": ["77", *numbers[1:]],
        "unknown file": [*named, f"ILSVRC2012_val_00000099.JPEG {WNIDS[0]}"],
        "missing file": named[1:],
        "unknown class": ["ILSVRC2012_val_00000001.JPEG n00000077", *named[1:]],
        "twice": [*named, named[0]],
        "no class": [named[0], "ILSVRC2012_val_00000002.JPEG", *named[2:]],
    }
    truth = source / TRUTH
    if case in lines:
        truth.write_text("\n".join(lines[case]))
    elif case == "no meta.mat":
        (source / META).unlink()
    elif case == "bad meta.mat":
        (source / META).write_bytes(meta_mat()[:300])
    else:
        truth.unlink()
    if case == "bad devkit":
        (source / f"{DEVKIT}.tar.gz").write_bytes(tar_of({META: meta_mat()}, "w:gz")[:-20])
    said = refused(capsys, source, tmp_path / "packed")
    assert message in said and (case in ("no meta.mat", "nothing") or str(source) in said)


@pytest.mark.parametrize("case", ["renamed", "twice", "short numbers"])
def test_names_that_would_shift_the_labels(case, tmp_path, capsys):
    """A ground truth by order, and one image too many beside one too few: the counts fit."""
    val = make_flat(tmp_path / "source") / "val"
    if case == "renamed":
        (val / "ILSVRC2012_val_00000020.JPEG").rename(val / "ILSVRC2012_val_00000003 (1).JPEG")
    elif case == "twice":
        shutil.copy(val / "ILSVRC2012_val_00000003.JPEG", val / "ILSVRC2012_val_00000003.jpg")
        (val / "ILSVRC2012_val_00000020.JPEG").unlink()
    else:
        for i, p in enumerate(sorted(val.iterdir()), 1):
            p.rename(val / f"val_{i}.JPEG")
    message = {"renamed": "the first is 'ILSVRC2012_val_00000003 (1)'", "twice": "two val images are called ILSVRC2012_val_00000003"}
    assert message.get(case, "have different lengths") in refused(capsys, tmp_path / "source", tmp_path / "packed")


def test_what_is_left_out_or_has_changed_is_said(tmp_path, capsys):
    source = make_folders(tmp_path / "source")
    (source / "train/notes.txt").write_text("")
    images = sorted((source / "train" / WNIDS[0]).iterdir())
    images[0].rename(images[0].with_suffix(".png"))
    run(source, tmp_path / "packed")
    assert "left out 2 files and folders that are no .JPEG of a class, the first is train/notes.txt\n" in capsys.readouterr().out
    run(source, tmp_path / "packed")
    assert "another place, size or time" not in capsys.readouterr().out
    images[1].write_bytes(jpeg(99))
    run(source, tmp_path / "packed")
    assert "another place, size or time than when they were packed" in capsys.readouterr().out


def test_no_room(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda p: namedtuple("usage", "total used free")(10**5, 0, 10**5))
    said = refused(capsys, source, tmp_path / "packed")
    assert "packing packed needs 0.2 MB" in said and "make room, or name another folder" in said


def test_sources_and_targets_refused(source, tmp_path, capsys):
    assert "is not a folder" in refused(capsys, tmp_path / "no", tmp_path / "packed")
    (tmp_path / "empty").mkdir()
    assert f"has neither a folder train/ nor {imagenet.TRAIN_TAR}" in refused(capsys, tmp_path / "empty", tmp_path / "packed")
    for target, message in ((source, "lies among"), (source / "train/packed", "lies among"), (tmp_path, "is there and is not a pack")):
        with pytest.raises(SystemExit, match=message):
            run(source, target)
    (source / "val/ILSVRC2012_val_00000001.JPEG").write_bytes(jpeg(0))
    assert "holds 1 images beside 4 class folders" in refused(capsys, source, tmp_path / "packed")
    shutil.rmtree(source / "val")
    assert f"has neither a folder val/ nor {imagenet.VAL_TAR}" in refused(capsys, source, tmp_path / "packed")
    (source / "val").mkdir()
    assert "has 48 train and 0 val images" in refused(capsys, source, tmp_path / "packed")


@pytest.mark.skipif(not REAL.exists(), reason=f"no real images at {REAL}")
def test_real_images(tmp_path, capsys):
    """Imagenette's validation images as ImageNet: 20 a class for validation, without folders, the others to train; 20 files damaged."""
    source, val = tmp_path / "source", {}
    with tarfile.open(REAL) as tar:
        for m in sorted((m for m in tar if m.name.endswith(".JPEG")), key=lambda m: m.name):
            wnid, name = m.name.split("/")[-2:]
            flat = Counter(val.values())[wnid] < 20
            if flat:
                val[name] = wnid
            write(source, {f"val/{name}" if flat else f"train/{wnid}/{name}": tar.extractfile(m).read()})
    (source / "truth").write_text("".join(f"{n} {c}\n" for n, c in val.items()))
    train = sorted((source / "train").rglob("*.JPEG"))
    damaged = random.Random(0).sample(train, 18) + [source / "val" / n for n in random.Random(0).sample(sorted(val), 2)]
    for i, path in enumerate(damaged):
        path.write_bytes([b"", path.read_bytes()[: path.stat().st_size // 2], b"<html></html>"][i % 3])
    a = run(source, tmp_path / "packed", "--ground-truth", source / "truth")
    said = capsys.readouterr().out
    assert (len(train), len(val), len(a.files), len(a.classes)) == (3725, 200, 3925, 10)
    assert f"{3725 - 18:,} train images" in said and "198 val images to test, 10 classes" in said
    assert sorted(Path(n).name for n in a.skipped) == sorted(p.name for p in damaged)
    assert said.count("could not be read when it was packed, left out: ") == 20 and all(f"/{p.name}\n" in said for p in damaged)


FLAT_MEMORY = """
import os, resource, sys
from pathlib import Path
from wae_nb.data.batches import loader
from wae_nb.data.pack import open_pack

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

batches = loader(open_pack(Path(sys.argv[1])), "train", 64)
batches.sampler.generator.manual_seed(0)
for i, _ in enumerate(batches):
    if i == 10:
        before, peak = resident(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if i == 160:
        print(resident() - before, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 / 1e6)
        break
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(tmp_path):
    """A pack of 50 GB, most of it not on the disk, read in random order: pages of the file are not this process's memory."""
    n = 50 * 10**9 // (3 * 256**2)
    folder = tmp_path / "packed"
    folder.mkdir()
    np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (n, 256, 256, 3))
    stat = (folder / "images.npy").stat()
    if stat.st_blocks * 512 > 10**8:
        pytest.skip("the file system has no sparse files")
    sources = [packed.ImageFile(folder, str(i), f"class{i % 10}", "train" if i % 20 else "test") for i in range(n)]
    packed.finish_pack(folder, "sparse", sources, [s.name for s in sources], "")
    said = subprocess.run([sys.executable, "-c", FLAT_MEMORY, folder], capture_output=True, text=True, check=True).stdout
    grown, peak = map(float, said.split())
    assert stat.st_size > 49e9 and grown < 100 and peak < 100, said


def make_imagenette(monkeypatch, target, files):
    data = tar_of({f"imagenette2-160/{n}": b"" for n in files}, "w:gz")
    url = imagenette.Imagenette._ARCHIVES["160px"][0]
    monkeypatch.setitem(imagenette.Imagenette._ARCHIVES, "160px", (url, hashlib.md5(data).hexdigest()))
    monkeypatch.setattr(imagenette, "COUNTS", {"train": 2, "val": 1})
    write(target, {"imagenette2-160.tgz": data})


def test_imagenette(tmp_path, monkeypatch, capsys):
    """An archive put there by hand is checked and extracted; then it is found there."""
    make_imagenette(monkeypatch, tmp_path, ["train/n01440764/a.JPEG", "train/n02102040/a.JPEG", "val/n01440764/b.JPEG"])
    for _ in range(2):
        imagenette.main([str(tmp_path), "--size", "160px"])
        assert f"data_root {tmp_path / 'imagenette2-160'}" in capsys.readouterr().out
        (tmp_path / "imagenette2-160.tgz").unlink(missing_ok=True)
    (tmp_path / "imagenette2-160/train/n01440764/a.JPEG").unlink()
    with pytest.raises(SystemExit, match="is not the whole Imagenette: 1 of 2 train images, 1 of 1 val images; remove this folder"):
        imagenette.main([str(tmp_path), "--size", "160px"])


def test_imagenette_without_network(tmp_path, monkeypatch):
    def fail(*args, **kw):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", fail)
    with pytest.raises(SystemExit, match=r"cannot fetch .*no network.*put it at .*imagenette2\.tgz \(MD5 fe2fc210") as e:
        imagenette.main([str(tmp_path)])
    assert "\n" not in e.value.code


def test_throughput(tmp_path, source, capsys):
    out = tmp_path / "record.json"
    first = next(source.glob("train/*/*"))
    Image.open(first).save(first.with_suffix(".gif"))  # which torchvision's ImageFolder leaves out by itself
    first.unlink()
    args = ["--images", "40", "--rounds", "1", "--workers", "1", "--size", "28", "--batch", "8", "--device", "cpu", "--cache", tmp_path / "cache", "--out", out]
    throughput.main([str(source), *map(str, args)])
    record = json.loads(out.read_text())
    assert list(record["images_per_second"]) == ["packed, 0 workers", "packed, 1 workers", "ImageFolder, 1 workers"]
    assert all(len(r) == 1 and r[0] > 0 for r in record["images_per_second"].values()) and record["times_image_folder"]["ImageFolder, 1 workers"] == [1]
    assert record["data"]["checksum"] and record["machine"]["cpu"] and "ImageFolder, 1 workers" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no folder .*nowhere'; make it first"):  # before anything is measured
        throughput.main([str(source), *map(str, args[:-1]), str(tmp_path / "nowhere/record.json")])
    with pytest.raises(SystemExit, match="--images 99 must lie between 2 and 40"):
        throughput.main([str(source), "--images", "99", "--size", "28", "--cache", str(tmp_path / "cache")])
