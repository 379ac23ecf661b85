"""What `wae compare` hands over where the answer is in INT8; apart from its other tests, since OpenVINO is not for a process that trains afterwards."""

import json
import shutil

import pytest
from test_compare import compared, data_folder, drawn, speeds, wae  # noqa: F401  two are fixtures

from wae_nb.lab.compare_folder import compare_folder
from wae_nb.lab.networks import network_at


def test_what_was_timed_is_taken_away(compared, drawn, tmp_path, monkeypatch):  # noqa: F811
    """In INT8 where that is the answer: the commands work on what was tested, or say in a line that it is OpenVINO's file. Without an answer none is there."""
    for module in ("openvino", "nncf"):
        pytest.importorskip(module)
    _, out, how = compared
    out = shutil.copytree(out, tmp_path / "out")
    (out / "cheapest-int8").mkdir()  # as an older version left it
    monkeypatch.setattr("wae_nb.lab.compare.time_prepared", speeds(**{"plain+int8": 4}))
    done = compare_folder(drawn, out, rows="plain+int8,half", points=100.0, **how | dict(engine="openvino"))
    row = done.answer.row
    assert row["row"] == "plain+int8" and [p.name for p in out.glob("cheapest*")] == ["cheapest"]
    assert done.files["network"] == out / "cheapest" and done.files["OpenVINO's file of it, in INT8"].name == "model.xml"
    assert row["megabytes"] == pytest.approx(next(r["megabytes"] for r in done.record["rows"] if r["row"] == "plain") / 4)
    page, tested = (json.loads(p.read_text()) for p in (out / "cheapest/config.json", out / f"records/{row['tested']}.json"))
    assert page["made_by"] == "int8" and page["metrics"] == tested["test"]
    said = wae("eval", out / "cheapest", data_folder(out), "--device", "cpu", "--cache", out / "data", "--json")
    assert said.exit_code == 0 and json.loads(said.stdout)["top1"] == pytest.approx(row["top1"]) == tested["test"]["top1"], said.stderr
    said = wae("predict", out / "cheapest", drawn / "face0/00.png")
    assert said.exit_code == 0 and "face" in said.stdout, said.stderr
    said = wae("export", out / "cheapest", "--to", "onnx", "--out", tmp_path / "net.onnx")
    assert said.exit_code == 2 and "cheapest' is in INT8: its model.xml is OpenVINO's file already" in said.stderr
    single = done.files["the same in single precision, which is not the answer"]
    assert network_at(single).config["classes"] == page["classes"] and single.name == row["run"]
    monkeypatch.setattr("wae_nb.lab.compare.time_prepared", speeds())  # none is faster
    done = compare_folder(drawn, out, rows="plain+int8,half", points=100.0, **how | dict(engine="openvino"))
    assert done.answer.row is None and "network" not in done.files and not list(out.glob("cheapest*"))
