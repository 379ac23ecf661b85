"""Data on disk: the real faces where they are at hand, and CACD's layout."""

import shutil
import sys
import tarfile

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from wae_nb.data.folder import DataError
from wae_nb.data.sets import load

sys.path.insert(0, str(ROOT / "data_prep"))
import cacd  # noqa: E402

FACES = ROOT.parent / "shared/data/faces.tar"


@pytest.mark.skipif(not FACES.exists(), reason=f"no real faces at {FACES}")
def test_real_faces(tmp_path):
    with tarfile.open(FACES) as tar:
        tar.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # absent before Python 3.11.4
    d = load(tmp_path / "faces", 64, tmp_path / "cache").describe()
    assert (d["classes"], d["images"], d["train"], d["val"], d["test"], d["skipped"]) == (30, 450, 300, 60, 90, [])


def test_renamed_folder_is_the_same_data(people, tmp_path):
    a = load(people, 32, tmp_path / "cache")
    people.rename(tmp_path / "moved")
    b = load(tmp_path / "moved", 32, tmp_path / "cache")
    assert a.checksum == b.checksum and (a.images == b.images).all()


def test_too_many_damaged(people, tmp_path):
    (people / "id3/02.pgm").write_bytes(b"P5 junk")
    with pytest.raises(DataError, match=r"1 of 40 images are damaged \(id3/02.pgm\), over 1 %"):
        load(people, 32, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


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
        cacd.main([str(source), str(tmp_path / "out"), "--seed", "1"])
    for _ in range(2):  # the target may lie inside the source
        cacd.main([str(source), str(source / "inside")])
    assert len(files(source / "inside")) == 60
    shutil.rmtree(source / "inside")
    cacd.main([str(source), str(tmp_path / "other"), "--seed", "1"])
    assert files(tmp_path / "other") != first

    d = load(tmp_path / "out", 32, tmp_path / "cache").describe()
    assert (d["classes"], d["images"], d["test"]) == (6, 60, 12)


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


@pytest.mark.parametrize("case, message", REFUSED)
def test_cacd_refuses(tmp_path, case, message):
    source = make_cacd(tmp_path / "CACD")
    (tmp_path / "empty").mkdir()
    (tmp_path / "names.txt").write_text("Nobody\n")
    names = [source, "--identities", tmp_path / "names.txt"]
    args = dict(missing=[tmp_path / "no"], empty=[tmp_path / "empty"], names=names, train=[source, "--train", "60"])[case]
    with pytest.raises(SystemExit, match=message):
        cacd.main([str(args[0]), str(tmp_path / "out"), *map(str, args[1:])])
