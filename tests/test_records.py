"""The frame of records: a row a run and test, every number the record's, runs told apart by their fingerprint alone."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

from wae_nb.lab.profiles import PROFILES
from wae_nb.lab.records import epochs, fingerprint_of, records, to_frame
from wae_nb.train.specs import STAGE_1, RunSpec


@pytest.fixture(scope="module")
def frame():
    return records("strong", ROOT / "figures")


def test_every_record_has_its_rows(frame):
    """One for each run, test in another form and time, one for each variance of a test with noise."""
    files = {p.stem: json.loads(p.read_text()) for p in (ROOT / "figures/strong/records").glob("*.json")}
    assert not frame.attrs["refused"] and set(frame["name"]) == files.keys()
    rows = frame.groupby("name").size()
    for name, r in files.items():
        noise = "times" not in r and all(isinstance(t, dict) for t in r["test"].values())
        assert rows[name] == (len(r["test"]) if noise else 1), name
    assert set(frame["kind"]) == {"run", "noise", "int8", "time", "file", "blur"}


def test_another_machine_s_records_are_its_own():
    """Every one as it was written, of one GPU, by code that was committed; and beside none of them stands another machine's of the same name."""
    frame = records("strong", ROOT / "figures/h200")
    assert not frame.attrs["refused"] and set(frame["kind"]) == {"run", "noise", "blur"}
    assert {(r["machine"]["gpu"], r["code"]["dirty"]) for r in frame["record"]} == {("NVIDIA H200", False)}
    here = {p.name: p.read_bytes() for p in (ROOT / "figures/strong/records").glob("*.json")}
    assert not [p for p in (ROOT / "figures/h200/strong/records").glob("*.json") if here.get(p.name) == p.read_bytes()]


def test_every_number_is_the_records(frame):
    for _, row in frame.iterrows():
        r = row["record"]
        assert row["seed"] == r["seed"] and all(row[k] == r["data"][k] for k in ("checksum", "train", "val", "test"))
        decisive = r["decisive"]
        assert (row["method"], row["image_size"], row["stage_recipe.lr"]) == (decisive["method"], decisive["image_size"], decisive["stage_recipe"]["lr"])
        if row["kind"] == "time":
            assert (row["speedup"], row["engine"], row["macs"]) == (r["times"]["speedup"][1], r["times"]["engine"], r["macs"]["run"])
        else:
            test = r["test"][f"{row['variance']:g}"] if row["kind"] == "noise" else r["test"]
            assert all(row[k] == v for k, v in test.items())


def test_constants_of_the_stages_before_are_there(frame):
    """λ is stage 1's and decides stages 2 and 3; a pruned network says how much it keeps, a bare one that it has no BatchNorm."""
    wae = frame[frame["method"].eq("wae") & frame["kind"].eq("run")]
    assert wae["lam"].notna().all() and set(wae["lam"]) == {0.0, 1.0, 100.0}
    assert set(frame.loc[frame["method"].eq("taylor") & frame["data"].eq("demo-photos"), "keep"]) == {0.37, 0.26} and set(frame["sub_norm"]) == {True, False}
    pruned = frame[frame["kind"].eq("run") & frame["method"].eq("taylor") & frame["keep"].eq(0.37)].iloc[0]
    parent = frame[frame["kind"].eq("run") & frame["fingerprint"].eq(pruned["parent"])].iloc[0]
    assert parent["method"] == "plain" and pruned["epochs"] > parent["epochs"] > 0


def test_a_run_is_found_by_its_spec_alone(frame):
    """The stage 1 of the paper's λ, not another's of the same name and seed."""
    mine = frame[frame["data"].eq("imagenette")]
    size, px = PROFILES["photos"]["strong"], 32
    recipe = size.recipe("vgg16_bn", int(mine["train"].iloc[0]))
    psnr = {}
    for lam in (1.0, 100.0):
        spec = RunSpec("wae", "vgg16_bn", mine["checksum"].iloc[0], replace(recipe, lam=lam), 0, STAGE_1, px, size.width)
        (row,) = mine[mine["fingerprint"].eq(fingerprint_of(spec))].to_dict("records")
        assert row["name"] == spec.name and row["lam"] == lam
        psnr[lam] = row["psnr"]
    assert psnr[1.0] > psnr[100.0] + 2


def test_no_records_are_an_empty_frame(tmp_path):
    frame = records("strong", tmp_path)
    assert frame.empty and {"name", "kind", "fingerprint", "top1", "record"} <= {*frame} and frame.attrs["refused"] == []
    assert list(to_frame([])) == list(frame)


def test_a_changed_record_is_left_out_and_named(tmp_path, frame):
    (tmp_path / "strong/records").mkdir(parents=True)
    good, bad = frame.loc[frame["kind"].eq("run"), "name"].iloc[:2]
    for name in (good, bad):
        shutil.copy(ROOT / f"figures/strong/records/{name}.json", tmp_path / "strong/records")
    path = tmp_path / f"strong/records/{bad}.json"
    path.write_text(path.read_text().replace('"seconds": ', '"seconds": 1', 1))
    found = records("strong", tmp_path)
    (refusal,) = found.attrs["refused"]
    assert list(found["name"]) == [good] and str(path) in refusal and "was changed" in refusal
    assert np.isfinite(found["top1"]).all() or found["psnr"].notna().all()


def test_nothing_is_said_of_how_a_given_network_was_trained():
    """Its training is not ours: what is trained from it counts its own epochs alone."""
    given = dict(given="0" * 64)
    own = dict(stage_recipe=dict(epochs=3), parent=given)
    assert [epochs(dict(decisive=d, data=dict(train=10))) for d in (given, own)] == [0, 3]
