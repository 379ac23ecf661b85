"""Data on disk: the real faces where they are at hand, and CACD's layout."""

import json
import os
import re
import shutil
import struct
import sys
import tarfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from wae_nb.data import sets
from wae_nb.data.batches import LoadingError, loader, loading, stream_seed
from wae_nb.data.decode import read_image
from wae_nb.data.folder import DataError, ImageFile, find_images
from wae_nb.data.sets import fewer, load_data

sys.path.insert(0, str(ROOT / "data_prep"))
import cacd  # noqa: E402

FACES = ROOT.parent / "shared/data/faces.tar"


@pytest.mark.skipif(not FACES.exists(), reason=f"no real faces at {FACES}")
def test_real_faces(tmp_path):
    with tarfile.open(FACES) as tar:
        tar.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # absent before Python 3.11.4
    d = load_data(tmp_path / "faces", 64, tmp_path / "cache").describe()
    assert (d["classes"], d["images"], d["train"], d["val"], d["test"], d["skipped"]) == (30, 450, 300, 60, 90, [])


def test_renamed_folder_is_the_same_data(people, tmp_path):
    a = load_data(people, 32, tmp_path / "cache")
    people.rename(tmp_path / "moved")
    b = load_data(tmp_path / "moved", 32, tmp_path / "cache")
    assert a.checksum == b.checksum and (a.images == b.images).all()


def test_too_many_damaged(people, tmp_path):
    (people / "id3/02.pgm").write_bytes(b"P5 junk")
    with pytest.raises(DataError, match=r"1 of 40 images are damaged \(id3/02.pgm\), over 1 %"):
        load_data(people, 32, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def make_parts(folder, **parts):
    """Two classes of that many pictures in each part."""
    for part, n in parts.items():
        for c in ("ann", "bob"):
            (folder / part / c).mkdir(parents=True)
            for k in range(n):
                Image.fromarray(np.full((9, 9, 3), 10 * k, np.uint8)).save(folder / part / c / f"{part}{k}.png")
    return folder


PARTS = [  # what stands there, and how many images each part of the data set has then
    (dict(train=20, val=4, test=6), (40, 8, 12)),
    (dict(Training=20, valid=4, Testing=6), (40, 8, 12)),
    (dict(TRAIN=20, dev=4, eval=6), (40, 8, 12)),
    (dict(train=20, val=4), (34, 6, 8)),  # as Imagenette: val is the test, and 15 % of the others are held out
    (dict(train=20, test=4), (34, 6, 8)),
    (dict(train=20, Validation=4), (34, 6, 8)),
]


@pytest.mark.parametrize("there, expected", PARTS)
def test_parts_are_used_as_they_are(tmp_path, there, expected):
    data = load_data(make_parts(tmp_path / "set", **there), 32, tmp_path / "cache")
    assert data.classes == ("ann", "bob") and tuple(len(data.indices(s)) for s in ("train", "val", "test")) == expected
    tested = next(p for p in list(there)[::-1])
    assert all(data.files[i].startswith(f"{tested}/") for i in data.indices("test"))
    if len(there) == 3:
        assert all(data.files[i].startswith(f"{list(there)[1]}/") for i in data.indices("val"))


def test_parts_refused(tmp_path):
    for case, there, message in [
        ("a", dict(train=3, holdout=3), r"train/ holds folders \(ann/, …\) and looks like a part"),
        ("b", dict(train=3, val=3, valid=3), "has val/ and valid/, which both mean val"),
        ("c", dict(train=3, val=0, test=3), "val/ has no images in class folders"),
    ]:
        with pytest.raises(DataError, match=message) as e:
            find_images(make_parts(tmp_path / case, **there))
        assert "\n" not in str(e.value)


def test_folders_of_data_sets_are_no_classes(tmp_path):
    """Two data sets beside each other, or parts within classes: parts would be mixed."""
    make_parts(tmp_path / "flowers", train=3, test=3), make_parts(tmp_path / "flowers-small", train=3, test=3)
    with pytest.raises(DataError, match=r"flowers/, flowers-small/ each hold parts \(train/, …\) and are no classes; .*, name one of them"):
        find_images(tmp_path)
    assert len(find_images(tmp_path / "flowers")) == 12


def test_classes_of_one_image_are_counted(tmp_path):
    for c in range(5):
        (tmp_path / f"p{c}").mkdir()
        for k in range(1 + c // 3):
            Image.new("L", (9, 9), k).save(tmp_path / f"p{c}/{k}.png")
    with pytest.raises(DataError, match=r"3 classes have one image \(the first is 'p0'\); give each at least two, or remove their folders"):
        find_images(tmp_path)
    with pytest.raises(DataError, match="image_size=0: use at least 1"):
        load_data(tmp_path, 0, tmp_path / "cache")


def test_a_class_may_be_called_as_a_part_is(tmp_path):
    (make_parts(tmp_path, bus=0) / "bus/ann").rename(tmp_path / "train")
    (tmp_path / "bus/bob").rename(tmp_path / "car")
    (tmp_path / "bus").rmdir()
    for c in ("train", "car"):
        for k in range(3):
            Image.new("L", (9, 9)).save(tmp_path / c / f"{k}.png")
    assert {s.label for s in find_images(tmp_path)} == {"train", "car"} and {s.split for s in find_images(tmp_path)} == {""}


def test_hidden_and_ignored_files(people, tmp_path, capsys):
    found = find_images(people)
    assert capsys.readouterr().out == ""
    for inner in (".ipynb_checkpoints", "@eaDir"):
        shutil.copytree(people / "id1", people / "id0" / inner)
    (people / "empty").mkdir()
    for name in ("a.heic", "b.HEIC", "notes"):
        (people / "id2" / name).write_bytes(b"?")
    assert find_images(people) == found
    assert capsys.readouterr().out == "people: left out files that are no images: 2 with .heic, 1 with no ending; folders without an image: empty\n"


def test_images_and_masks_are_no_classes(tmp_path):
    for folder in ("images", "Masks"):
        (tmp_path / folder).mkdir()
        for k in range(3):
            Image.new("L", (9, 9)).save(tmp_path / folder / f"{k}.png")
    with pytest.raises(DataError, match="holds images/ and Masks/, which are no two classes"):
        find_images(tmp_path)


def test_copies_across_parts_are_named(tmp_path, capsys):
    folder = make_parts(tmp_path / "set", train=20, test=3)
    for p in folder.rglob("*.png"):
        Image.fromarray(np.random.default_rng(list(p.as_posix().encode())).integers(0, 256, (9, 9, 3), np.uint8)).save(p)
    load_data(folder, 32, tmp_path / "cache")
    assert "two parts" not in capsys.readouterr().out
    shutil.copy(folder / "train/ann/train3.png", folder / "test/ann/test1.png")
    for _ in range(2):  # packed, and found packed
        data = load_data(folder, 32, tmp_path / "cache")
        assert "set: 1 images are in two parts, so what is trained on is tested: test/ann/test1.png is train/ann/train3.png" in capsys.readouterr().out
        assert data.describe()["copies"] == 1
    meta = next((tmp_path / "cache").rglob("meta.json"))
    meta.write_text(json.dumps(json.loads(meta.read_text()) | dict(unknown=[])))  # of another version
    assert load_data(folder, 32, tmp_path / "cache").describe() == data.describe()
    kept = [i for i in fewer(data, 1).indices("train") if data.files[i] == "train/ann/train3.png"]
    assert fewer(data, 1).describe().get("copies", 0) == len(kept)  # of the images that are trained on
    assert "copies" not in replace(data, split=np.full_like(data.split, 2)).describe()


def test_a_picture_over_pillows_limit(people, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"id0/00.pgm is too large for Pillow \(Image size \(1890 pixels\) exceeds limit of 200 pixels"):
        load_data(people, 32, tmp_path / "cache")


def deep_set(folder, images, ending="png"):
    """Two classes of one picture after the other."""
    for k, a in enumerate(images):
        path = folder / "ab"[k % 2] / f"{k:02d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(a).save(path)
    return folder


def ramp(white, dtype, share=1.0, low=0.0):
    return (low + (share * white - low) * np.linspace(0, 1, 37 * 37)).reshape(37, 37).astype(dtype)


LEVELS = [  # white, dtype and ending of the files: what a data set holds whose brightest image reaches white and whose darkest a quarter of it
    (65535, np.uint16, "png"),
    (16383, np.uint16, "png"),
    (4095, np.uint16, "png"),
    (1023, np.uint16, "png"),
    (1023, np.uint16, "tiff"),
    (4095, np.int32, "tiff"),
    (255, np.int32, "tiff"),
    (1, np.float32, "tiff"),
    (1 + 1e-6, np.float32, "tiff"),
    (255, np.float32, "tiff"),
]


@pytest.mark.parametrize("white, dtype, ending", LEVELS)
def test_deep_images_have_one_range(tmp_path, white, dtype, ending):
    """255 levels of the brightest image, and a quarter of them for one that is a quarter as bright, whatever the order of the files."""
    shares = [0.25, 1, 0.5, 0.25, 0.25, 0.5]
    data = load_data(deep_set(tmp_path / "set", [ramp(white, dtype, s) for s in shares], ending), 32, tmp_path / "cache")
    for image, share in zip(data.images, [shares[int(f[2:4])] for f in data.files]):
        expected = 255 * share * np.linspace(0, 1, 37 * 37).reshape(37, 37)
        assert np.abs(image.astype(float) - expected[..., None]).max() < 1.3  # both roundings go down


def test_deep_pgm_says_what_is_white(tmp_path):
    """Its largest value stands in the file."""
    for k in range(6):
        path = tmp_path / f"set/{'ab'[k % 2]}/{k}.pgm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P5 37 37 4000\n" + np.full((37, 37), 1000, ">u2").tobytes())
    assert (load_data(tmp_path / "set", 32, tmp_path / "cache").images == 63).all()


def with_nan(a):
    a[3, 4] = np.nan
    return a


UNKNOWN = [  # the one image that the rule does not cover, and what is said of it
    (ramp(1, np.float32, low=-1.0), "b/03.tiff: floats from -1 to 1, where white is not known"),
    (ramp(1000, np.float32), "b/03.tiff: floats from 0 to 1000, where white is not known"),
    (ramp(2.5, np.float32), "b/03.tiff: floats from 0 to 2.5, where white is not known"),
    (with_nan(ramp(1, np.float32)), "b/03.tiff: 1 pixels are not finite numbers, the others reach from 0 to 1"),
    (ramp(10**6, np.int32), r"b/03.tiff: integers from 0 to 1e\+06, where white is not known"),
    (ramp(200, np.int32, low=-3), "b/03.tiff: integers from -3 to 200, where white is not known"),
]


@pytest.mark.parametrize("image, message", UNKNOWN)
def test_deep_images_that_nobody_can_read_are_refused(tmp_path, image, message):
    others = ramp(1 if image.dtype == np.float32 else 200, image.dtype)
    folder = deep_set(tmp_path / "set", [others, others, others, image, others, others], "tiff")
    with pytest.raises(DataError, match=message) as e:
        load_data(folder, 32, tmp_path / "cache")
    assert "\n" not in str(e.value) and not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    (folder / "b/03.tiff").unlink()  # without it, all is as ever
    assert load_data(folder, 32, tmp_path / "cache").images.max() == (255 if image.dtype == np.float32 else 200)


def deep_colours(path, white):
    """A PNG of 16 bits a colour, which Pillow cannot write: rows of big-endian values, each after the filter's byte."""
    rows = np.repeat(ramp(white, ">u2")[..., None], 3, 2)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 37, 37, 16, 2, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("white", [65535, 4095])
def test_deep_colours(tmp_path, white):
    """Pillow keeps the upper byte: right for 16 bits, 15 levels of a 12-bit image."""
    for k in range(6):
        deep_colours(tmp_path / f"set/{'ab'[k % 2]}/{k}.png", white)
    if white == 65535:
        assert load_data(tmp_path / "set", 32, tmp_path / "cache").images.max() == 255
    else:
        with pytest.raises(DataError, match="16 bits a colour, and no image goes above 4095; Pillow reads the upper byte alone"):
            load_data(tmp_path / "set", 32, tmp_path / "cache")


def test_a_demo_pack_is_named_by_its_generator(tmp_path, monkeypatch):
    first = load_data(None, 32, tmp_path, demo_shape=(2, 5))
    drawn = sets.EMBEDDED["faces"]
    monkeypatch.setitem(sets.EMBEDDED, "faces", drawn._replace(version=drawn.version + 1, picture=lambda i, k: np.full((128, 128, 3), 7, np.uint8)))
    second = load_data(None, 32, tmp_path, demo_shape=(2, 5))
    assert (second.images == 7).all() and (first.images != 7).any() and len([p for p in tmp_path.iterdir() if p.is_dir()]) == 2


MEANS = {("faces", 1): 95.020, ("photos", 1): 113.998}  # of four pictures; version → what it makes


@pytest.mark.parametrize("name", sets.EMBEDDED)
def test_another_picture_needs_another_version(name):
    """A changed drawing without a new version would be taken for the old one, found packed."""
    made = sets.EMBEDDED[name]
    assert np.mean([made.picture(i, k) for i in (0, 1) for k in (0, 5)]) == pytest.approx(MEANS[name, made.version], abs=0.02)


def test_loading_processes_leave_the_global_generator_alone(tmp_path):
    """What dropout on a CPU draws in an epoch is the same with and without loading processes, and in a run that starts in that epoch."""
    data = load_data(None, 32, tmp_path, demo_shape=(3, 10))

    def drawn(workers, epochs):
        batches, out = loader(data, "train", 8, workers), []
        for epoch in epochs:
            torch.manual_seed(stream_seed("epoch", 0, epoch))
            batches.sampler.generator.manual_seed(stream_seed("order", 0, epoch))
            out.append([(index.tolist(), float(torch.rand(()))) for _, _, index in batches])
        return out

    whole = drawn(0, (1, 2, 3))
    assert drawn(1, (1, 2, 3)) == whole and drawn(1, (2, 3)) == whole[1:]


def make_cacd(folder, people=6, pictures=10):
    folder.mkdir()
    for who in range(people):
        for k in range(pictures):
            Image.fromarray(np.full((12, 10, 3), 10 * who + k, np.uint8)).save(folder / f"{20 + k}_Person_{'ABCDEF'[who]}_Élan_{k:04d}.jpg")
    (folder / "notes.txt").write_text("not an image")
    return folder


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.jpg"))


def test_cacd(tmp_path, capsys):
    source = make_cacd(tmp_path / "CACD")
    cacd.main([str(source), str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "6 of 6 identities, 60 images: 48 to train, 12 to test; 60 placed" in said and "not quite the paper's" in said
    first = files(tmp_path / "out")
    assert len(first) == 60 and sum(f.startswith("train/") for f in first) == 48 == round(60 * 44_798 / 56_138)

    (tmp_path / "out" / first[7]).unlink()  # cut off half-way
    cacd.main([str(source), str(tmp_path / "out")])
    assert "1 placed, the rest was there" in capsys.readouterr().out and files(tmp_path / "out") == first

    with pytest.raises(SystemExit, match="already holds another"):
        cacd.main([str(source), str(tmp_path / "out"), "--seed", "1", "--train", "40"])
    for _ in range(2):  # the target may lie inside the source
        cacd.main([str(source), str(source / "inside")])
    assert len(files(source / "inside")) == 60
    shutil.rmtree(source / "inside")
    cacd.main([str(source), str(tmp_path / "other"), "--seed", "1", "--train", "40"])
    assert files(tmp_path / "other") != first

    d = load_data(tmp_path / "out", 32, tmp_path / "cache").describe()
    assert (d["classes"], d["images"], d["test"]) == (6, 60, 12)


def test_cacd_has_each_picture_once(tmp_path):
    """Thumbnails are no pictures; a copy would come to both parts."""
    source = make_cacd(tmp_path / "CACD")
    for hidden in (".thumbnails", "@eaDir"):
        shutil.copytree(source, tmp_path / "copy", dirs_exist_ok=True)
        shutil.copytree(tmp_path / "copy", source / hidden)
    cacd.main([str(source), str(tmp_path / "out")])
    assert len(files(tmp_path / "out")) == len({f.split("/")[-1] for f in files(tmp_path / "out")}) == 60
    shutil.copytree(tmp_path / "copy", source / "backup")
    with pytest.raises(SystemExit, match="0000.jpg is there twice, .*keep one of them"):
        cacd.main([str(source), str(tmp_path / "out")])


def test_cacd_behind_links_and_after_damage(tmp_path, capsys):
    """Images in a folder that is linked to are images; a placed copy that is not the source any more is placed again."""
    source = make_cacd(tmp_path / "CACD")
    (tmp_path / "elsewhere").mkdir()
    for p in source.glob("*_F_*"):
        p.rename(tmp_path / "elsewhere" / p.name)
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "linked/round").symlink_to(source)
    cacd.main([str(source), str(tmp_path / "out")])
    assert "6 of 6 identities, 60 images" in capsys.readouterr().out
    placed = sorted((tmp_path / "out").rglob("*.jpg"))[0]
    whole = placed.read_bytes()
    placed.unlink()
    placed.write_bytes(bytes(len(whole)))
    cacd.main([str(source), str(tmp_path / "out")])
    assert "1 placed, the rest was there" in capsys.readouterr().out and placed.read_bytes() == whole


def test_cacd_inside_its_source_by_another_path(tmp_path, monkeypatch):
    source = make_cacd(tmp_path / "CACD")
    monkeypatch.chdir(source)
    for _ in range(2):
        cacd.main([str(source), "inside"])
    assert len(files(source / "inside")) == 60


def test_cacd_tests_everybody(tmp_path):
    """Whoever has no image among the tests is named: the library would refuse the set."""
    source = make_cacd(tmp_path / "CACD", people=3, pictures=20)
    for k in range(3, 20):
        (source / f"{20 + k}_Person_C_Élan_{k:04d}.jpg").unlink()
    said = []
    for seed in range(12):
        try:
            cacd.main([str(source), str(tmp_path / f"out{seed}"), "--seed", str(seed)])
            assert load_data(tmp_path / f"out{seed}", 32, tmp_path / "cache").classes
        except SystemExit as e:
            said.append(str(e))
    assert any("'Person_C_Élan' would have 0 test images" in s for s in said) and len(said) < 12


def test_cacd_identities_and_damage(tmp_path, capsys):
    source = make_cacd(tmp_path / "CACD", people=6, pictures=40)
    (tmp_path / "names.txt").write_text("Person C Élan\nPerson_A_Élan\nPerson_F_Élan\n", encoding="utf-8")
    (source / "21_Person_A_Élan_0001.jpg").write_bytes(b"junk")
    cacd.main([str(source), str(tmp_path / "out"), "--identities", str(tmp_path / "names.txt"), "--train", "90"])
    said = capsys.readouterr().out
    assert "cannot be read, left out: 21_Person_A_Élan_0001.jpg" in said and "3 of 6 identities, 119 images: 90 to train, 29 to test" in said
    for k in range(2, 5):
        (source / f"{20 + k}_Person_A_Élan_{k:04d}.jpg").write_bytes(b"junk")
    with pytest.raises(SystemExit, match="4 of 240 images cannot be read"):
        cacd.main([str(source), str(tmp_path / "more")])


REFUSED = [("missing", "is not a folder"), ("empty", "has no file named"), ("names", "have no image"), ("train", "must lie between")]
REFUSED += [("file", "is a file; name a folder"), ("seed", "--seed -1 must be at least 0"), ("bytes", "is not UTF-8 text")]


@pytest.mark.parametrize("case, message", REFUSED)
def test_cacd_refuses(tmp_path, case, message):
    source = make_cacd(tmp_path / "CACD")
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.txt").write_text("Nobody\n")
    names = [source, "--identities", tmp_path / "names.txt"]
    (tmp_path / "latin.txt").write_bytes("Élan\n".encode("latin-1"))
    if case == "file":
        (tmp_path / "out").touch()
    args = dict(missing=[tmp_path / "no"], empty=[tmp_path / "empty"], names=names, train=[source, "--train", "60"], file=[source])
    args = (args | dict(seed=[source, "--seed", "-1"], bytes=[source, "--identities", tmp_path / "latin.txt"]))[case]
    with pytest.raises(SystemExit, match=message):
        cacd.main([str(args[0]), str(tmp_path / "out"), *map(str, args[1:])])


def test_a_dark_image_of_a_deep_set_is_dark_later_too(tmp_path):
    """What is white is kept beside the packed images, also where packing was cut off: read by itself, an image would be as bright as its own maximum."""
    folder = deep_set(tmp_path / "set", [ramp(65535, np.uint16, s) for s in (0.01, 1, 0.5, 0.25, 0.5, 1, 1, 1)])
    data = load_data(folder, 32, tmp_path / "cache")
    assert data.white == {"integers": 65535}
    dark = folder / data.files[0]
    assert np.array_equal(read_image(dark, 37, data.white.__getitem__), data.images[0]) and data.images[0].max() < 4
    assert read_image(dark, 37).max() > 100 and load_data(folder, 32, tmp_path / "cache").white == data.white


def test_what_is_white_outlasts_a_cut(tmp_path, monkeypatch):
    """The deep images were packed before it, and are not looked through again."""
    folder = deep_set(tmp_path / "set", [ramp(4095, np.uint16)] * 4)
    for k in range(6):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / f"b/{90 + k}.png")
    monkeypatch.setattr("wae_nb.data.pack.BLOCK", 8)
    read, seen = ImageFile.read, []

    def cut_off(source):
        seen.append(source.name)
        if source.name.endswith("95.png") and len(seen) < 40:
            raise KeyboardInterrupt
        return read(source)

    monkeypatch.setattr(ImageFile, "read", cut_off)
    with pytest.raises(KeyboardInterrupt):
        load_data(folder, 32, tmp_path / "cache")
    monkeypatch.setattr(ImageFile, "read", read)
    assert load_data(folder, 32, tmp_path / "cache").white == {"integers": 4095} and not list((tmp_path / "cache").rglob("white.json"))


def test_packing_goes_on_after_a_cut_that_spoilt_its_notes(tmp_path, monkeypatch):
    """What is white and a line of the journal, written in part: looked for again, and the block is packed again."""
    folder = deep_set(tmp_path / "set", [ramp(4095, np.uint16)] * 16)
    monkeypatch.setattr("wae_nb.data.pack.BLOCK", 4)
    whole, read, seen = load_data(folder, 32, tmp_path / "whole"), ImageFile.read, []

    def cut_off(source):
        if len(seen) == 4 + 16 + 6:  # in the third block; in the first all are looked through
            raise KeyboardInterrupt
        seen.append(source.name)
        return read(source)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(ImageFile, "read", cut_off)
        load_data(folder, 32, tmp_path / "cache")
    (levels,), (journal,) = ((tmp_path / "cache").rglob(name) for name in ("white.json", "journal.jsonl"))
    levels.write_text("")
    lines = journal.read_text().splitlines()
    assert len(lines) == 3
    journal.write_text(f"{lines[0]}\n{lines[1]}\n[1, \n{lines[2]}\n")
    again = load_data(folder, 32, tmp_path / "cache")
    assert again.white == whole.white == {"integers": 4095} and again.checksum == whole.checksum and np.array_equal(again.images, whole.images)


@pytest.mark.parametrize("shape, message", [((1, 8), "use 2 to 24 classes"), ((25, 8), "use 2 to 24 classes"), ((2, 2), "to spare for validation")])
def test_demo_shapes_that_cannot_be(tmp_path, shape, message):
    with pytest.raises(DataError, match=rf"^demo_shape=\({shape[0]}, {shape[1]}\): [^\n]*{message}"):
        load_data(None, 32, tmp_path, demo_shape=shape)


def test_no_image_is_left_for_the_test(tmp_path):
    """The photographs' patches have parts of their own, by their number: of few none is the test's."""
    with pytest.raises(DataError, match=r"^demo_shape=\(2, 6\): no class has an image to spare for the test"):
        load_data(None, 32, tmp_path, demo="photos", demo_shape=(2, 6))


def test_what_a_loading_process_says_is_told_in_one_line():
    """The first line of its message, whatever follows; a message of none of its own as it is."""
    told = "Caught {0} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File \"x.py\", line 1\n{1}"
    for kind, said, expected in [
        (RuntimeError, "RuntimeError: one: x\nand two", "one: x"),
        (DataError, "wae_nb.data.folder.DataError: a.png is gone; fetch it", "a.png is gone; fetch it"),
        (OSError, "KeyError: 3\n\nDuring handling:\n\nOSError: [Errno 5] no disk", "[Errno 5] no disk"),
    ]:
        with pytest.raises(kind, match=rf"\A{re.escape(expected)}\Z"), loading():
            raise kind(told.format(kind.__name__, said))
    with pytest.raises(LoadingError, match="ran out of shared memory"), loading():
        raise RuntimeError(told.format("RuntimeError", "RuntimeError: unable to open shared memory object\nin read-write mode"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_utf_8(people, tmp_path, capsys):
    """Packed as any other; named with its bytes escaped."""
    some = next(people.glob("*/*.pgm"))
    os.rename(os.fsencode(some), os.fsencode(some.parent) + b"/ros\xe9.pgm")
    os.mkdir(os.fsencode(people) + b"/\xe9")
    data = load_data(people, 32, tmp_path / "cache")
    assert sum("ros\udce9" in name for name in data.files) == 1 and "without an image: \\udce9" in capsys.readouterr().out and len(data.checksum) == 64


def test_images_beside_the_classes_are_counted(people, tmp_path, capsys):
    for i in range(3):
        shutil.copy(next(people.glob("*/*.pgm")), people / f"{i}.pgm")
    (people / next(p for p in people.iterdir() if p.is_dir()).name / "more").symlink_to(tmp_path, target_is_directory=True)
    (next(p for p in people.iterdir() if p.is_dir()) / "gone.pgm").symlink_to(tmp_path / "nowhere.pgm")  # as in a set whose files are fetched when wanted
    find_images(people)
    said = capsys.readouterr().out
    assert "images beside the class folders: 3" in said and "links to folders in them: 1" in said and "links to what is not there: 1" in said


def test_copies_that_the_test_has_nothing_of(tmp_path, capsys):
    """A file that is trained on and in validation is another thing than one that is tested."""
    folder = make_parts(tmp_path / "set", train=20, val=3, test=3)
    for p in folder.rglob("*.png"):
        Image.fromarray(np.random.default_rng(list(p.as_posix().encode())).integers(0, 256, (9, 9, 3), np.uint8)).save(p)
    shutil.copy(folder / "train/ann/train3.png", folder / "val/ann/val1.png")
    load_data(folder, 32, tmp_path / "cache")
    assert "set: 1 images are in two parts, so validation has what is trained on or tested: val/ann/val1.png is" in capsys.readouterr().out
