"""To add is to edit one place: a made-up entry of a registry is everywhere that the reports, timings and pictures of the paper's are."""

import json
import shutil
from dataclasses import replace

import pandas as pd
import pytest
from conftest import ROOT
from matplotlib import pyplot as plt

from wae_nb.lab.costs import cost_table
from wae_nb.lab.paper import FIGURES, TABLES, PaperFigure, PaperTable, Row
from wae_nb.lab.profiles import PROFILES
from wae_nb.lab.report import Report
from wae_nb.lab.timing import row_model, timed_rows
from wae_nb.lab.tradeoff import front_rows
from wae_nb.method.classifier import METHODS
from wae_nb.prune.pruners import PRUNERS, Point
from wae_nb.train.records import digest
from wae_nb.train.specs import RunSpec


@pytest.fixture
def figures(tmp_path):
    """The project's own records, in a folder that may be written to."""
    for folder in ("strong/records", "timing/records"):
        shutil.copytree(ROOT / "figures" / folder, tmp_path / "figures" / folder)
    return tmp_path / "figures"


def recorded(figures, like: str, data: str, kind: str, row: Row, backbone: str) -> str:
    """A record of a made-up row: another row's, under the fingerprint that the row has in the profile."""
    found = (json.loads(p.read_text()) for p in sorted((figures / "strong/records").glob(f"{like}-{backbone}-*.json")))
    record = next(r for r in found if r["data"]["name"] == data and r["seed"] == 0 and "epochs" in r)
    size = PROFILES[kind]["strong"]
    recipe = size.recipe(backbone, record["data"]["train"])
    spec = RunSpec(row.method, backbone, record["data"]["checksum"], recipe, 0, row.stage, size.pixels(data), size.width, row.keep, size.head)
    record |= dict(name=spec.name, decisive=json.loads(json.dumps(spec.fingerprint())))
    (figures / f"strong/records/{spec.name}.json").write_text(json.dumps(record | dict(digest=digest(record))))
    return f"{100 * record['test']['top1']:.2f}"


def test_a_decomposer(figures, monkeypatch):
    """Table 6, its comparisons and commands, the timings and the front."""
    monkeypatch.setitem(METHODS, "made-up", replace(METHODS["wavelet"], title="Made up", compare=True))
    lacking = Report("strong", figures, draws=10).missing
    assert ("Table 6", "Made up") in set(zip(lacking["table"], lacking["row"]))
    accuracy = recorded(figures, "wavelet", "demo-faces", "faces", Row("made-up"), "vgg16_bn")
    report = Report("strong", figures, draws=10)
    said = report.table(6)
    table = pd.read_csv(figures / "strong/table6-demo-faces-vgg16_bn.csv", index_col=0, dtype=str)
    assert table.loc["Made up"].tolist() == ["–", accuracy] and list(table.index)[-1] == "Made up"
    assert "Made up" in next(line for line in said.splitlines() if line.startswith("- Ours") and "Made up" in line)
    lacking = report.missing
    assert not (lacking["data"].eq("demo-faces") & lacking["row"].eq("Made up")).any() and "Made up" not in report.table(2)
    assert {timed_rows(b)["made-up"] for b in ("vgg16", "resnet50")} == {"Made up"} and front_rows("resnet50")["Made up"] == Row("made-up")
    assert row_model("made-up", "vgg16", 10, 64, "meta").high_net is not None


def test_a_way_to_prune(figures, monkeypatch):
    """Tables 2 and 5 and the front."""
    pruner = replace(PRUNERS["thinet"], title="Made up", points=(Point("Made-1", 0.5, "made-1", (2, 5)),))
    monkeypatch.setitem(PRUNERS, "made-up", pruner)
    row = Row("made-up", keep=0.5, key="made-1")
    assert all(TABLES[n].methods["Made-1"] == row and ("Ours", "Made-1") in TABLES[n].pairs for n in (2, 5))
    lacking = Report("strong", figures, draws=10).missing
    commands = lacking.loc[lacking["row"].eq("Made-1") & lacking["data"].eq("demo-photos"), "filled by"]
    assert len(commands) == 4 and all("made-1" in c for c in commands)
    for number, backbone, like in ((2, "vgg16_bn", "taylor"), (5, "resnet50", "thinet")):
        accuracy = recorded(figures, like, "demo-photos", "photos", row, backbone)
        assert "Made-1" in Report("strong", figures, draws=10).table(number)
        table = pd.read_csv(figures / f"strong/table{number}-demo-photos-{backbone}.csv", index_col=0, dtype=str)
        assert table.loc["Made-1", "top-1 error (%), measured"] == f"{100 - float(accuracy):.2f}"
        assert "Made-1" in cost_table(number, None, None).index
        if backbone == TABLES[number].backbone:  # others have no costs beside the paper's
            assert table.loc["Made-1", "CPU speed-up, measured"] == "–"
        assert front_rows(backbone)["Made-1"] == row
    assert "Made-1" not in timed_rows("vgg16").values()  # which channels stay is known for trained networks alone


def test_a_table_and_a_figure(figures, monkeypatch):
    """In the report: the contents, the table with its notebook, the missing cells, the pictures."""
    shown = dict(rows={"Halved": {"top5_error": 1.5}}, trained={"Halved": Row("half"), "Whole": Row("plain")}, compared=(("Halved", "Whole"),))
    made = PaperTable(8, "A made-up table", {"top5_error": "top-5 error (%)"}, notebook="07_ablations", backbone="vgg16_bn", **shown)
    monkeypatch.setitem(TABLES, 8, made)
    monkeypatch.setitem(FIGURES, 5, PaperFigure("01_decomposition", "A made-up figure", "whether it is there"))
    plt.figure().savefig(figures / "strong/figure5-imagenette-vgg16_bn.png")
    plt.close("all")
    report = Report("strong", figures, draws=10)
    said = report.table(8)
    assert "## Table 8: A made-up table" in said and "nbs/07_ablations.ipynb" in said and "Halved is less accurate than Whole" in said
    table = pd.read_csv(figures / "strong/table8-imagenette-vgg16_bn.csv", index_col=0, dtype=str)
    assert table.loc["Halved"].tolist()[0] == "1.50" and table.loc["Whole"].tolist()[0] == "–" and table.notna().all(axis=None)
    assert "figure5-imagenette-vgg16_bn.png" in report.figure(5) and "whether it is there" in report.figure(5)
    front, lacking = report.front(), report.lacking()
    assert "[Table 8](#table8)" in front and "[Figure 5](#figure5)" in front
    assert "Missing in Table 8" in lacking and "Missing in Figure 5" in lacking and list(report.summary().index).count("Table 8") >= 3
