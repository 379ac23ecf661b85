"""The report: every cell from its record, every other one named, and nothing believed that was changed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, run_notebook
from test_figures import regenerated

from wae_nb.lab.experiment import Experiment
from wae_nb.lab.page import page
from wae_nb.lab.paper import FIGURES, TABLES
from wae_nb.lab.profiles import PROFILES
from wae_nb.lab.records import check_called
from wae_nb.lab.report import Report
from wae_nb.method.classifier import METHODS
from wae_nb.train.records import RecordError, digest

TABLE = re.compile(r"table(\d)-.*")
OTHER_SIZE = re.compile(r"table\d-\d+px-.*")  # not the profile's
COMMITTED = [p for p in sorted((ROOT / "figures").glob("*/table*-*.json")) if p.parent.name != "timing" and not OTHER_SIZE.match(p.stem)]


def copied(folder: Path, data: str = "", seed: int | None = None) -> Path:
    """The project's records, or those of one data set and seed, in a figures folder of their own."""
    (folder / "strong/records").mkdir(parents=True)
    shutil.copytree(ROOT / "figures/timing/records", folder / "timing/records")
    for path in (ROOT / "figures/strong/records").glob("*.json"):
        record = json.loads(path.read_text())
        if not data or record["data"]["name"] == data and record["seed"] in (seed, record["seed"] if seed is None else seed):
            shutil.copy(path, folder / "strong/records" / path.name)
    return folder


def recorded(table: str, row: str, seed: int = 0) -> str:
    """The name of the record of a row of a committed table."""
    (name,) = [n for n in json.loads((ROOT / f"figures/strong/{table}.json").read_text())[row] if f"-seed{seed}-" in n]
    return name


@pytest.fixture
def faces(tmp_path) -> Path:
    """The records of the drawn faces: Table 6, one seed."""
    return copied(tmp_path / "figures", "demo-faces", seed=0)


def record_of(figures: Path) -> Path:
    """Of Wavelet+CNN in Table 6 on the drawn faces."""
    return figures / f"strong/records/{recorded('table6-demo-faces-vgg16_bn', 'Wavelet+CNN')}.json"


def table_6(figures: Path, data: str = "demo-faces") -> pd.DataFrame:
    return pd.read_csv(figures / f"strong/table6-{data}-vgg16_bn.csv", index_col=0, dtype=str)


def rewritten(path: Path, **changes) -> None:
    """Change a record by hand, its digest with it."""
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(record | dict(digest=digest(record))))


@pytest.mark.skipif(regenerated(), reason="figures/ was regenerated here")
def test_the_same_records_give_the_same_bytes(tmp_path):
    """Every committed table from the committed records alone, and again over what is there."""
    figures = copied(tmp_path / "figures")
    for _ in range(2):
        report = Report("strong", figures, draws=10)
        report.check()
        for number in TABLES:
            report.table(number)
        made = sorted(p for p in (figures / "strong").glob("table*") if TABLE.match(p.stem))
        committed = [p.with_suffix(end) for p in COMMITTED if p.parent.name == "strong" for end in (".csv", ".md", ".json")]
        assert committed and {p.name for p in committed} <= {p.name for p in made}
        for path in committed:
            assert (figures / "strong" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: p.stem)
def test_names_computed_from_the_specs_are_the_tables(path):
    """What the notebook wrote of its rows, computed again from row, profile, data and seed."""
    report = Report(path.parent.name, ROOT / "figures")
    rows = json.loads(path.read_text())
    mine = [c for c in report.collections if path.stem.endswith(f"-{c.data['name']}-{c.backbone}")]
    found = [{title: [r["name"] for r in rs] for title, rs in c.rows(int(path.stem[5])).items()} for c in mine]
    assert rows in found


def test_every_dash_is_named_and_has_its_command(tmp_path):
    """Dashes in the measured columns of a table, one by one, against the list of what is missing."""
    figures = copied(tmp_path / "figures")
    for row in ("wavelet", "decomposition", "thinet-resnet50", "wae-resnet50-stage3", "wae-vgg16_bn-stage3"):  # so that there are more than those of times
        for path in (figures / "strong/records").glob(f"{row}-*.json"):
            path.unlink()
    report = Report("strong", figures, draws=10)
    lacking = report.missing.to_dict("records")
    missing = [(c["table"], c["data"], c["backbone"], c["row"], c["column"]) for c in lacking]
    assert len(set(missing)) == len(missing) and all(c["filled by"] for c in lacking)
    seen, said = 0, report.lacking()
    for number in range(1, 7):
        report.table(number)
        for s in [s for s in report.collections if number in s.tables]:
            df = pd.read_csv(tmp_path / f"figures/strong/table{number}-{s.data['name']}-{s.backbone}.csv", index_col=0, dtype=str)
            assert df.shape[1] <= 8
            for column in [c for c in df if c.endswith("measured")]:
                heading = re.sub("[,:] measured$", "", column)
                for row in df.index:
                    cost = (f"Table {number}", "costs", "", row, heading)
                    accuracy = (f"Table {number}", s.data["name"], s.backbone, row, heading)
                    assert (df.loc[row, column] == "–") == ((cost in missing) or (accuracy in missing)), (number, row, column)
                    seen += df.loc[row, column] == "–"
    assert all(c["row"] in said and c["column"] in said and c["filled by"] in said for c in lacking)
    assert seen > 15
    report.summary()
    listed = pd.read_csv(tmp_path / "figures/strong/missing-strong.csv", keep_default_na=False)
    assert [tuple(row)[:5] for row in listed.itertuples(index=False)] == missing
    assert any(c == "Figure 4" for c, *_ in missing)


def test_no_command_names_a_parameter_that_is_not_there(tmp_path):
    """Each papermill command of the list, against the parameters of its notebook."""
    import papermill

    commands = {*Report("strong", copied(tmp_path / "figures")).missing["filled by"], *Report("paper", tmp_path).missing["filled by"]}
    named = {(m[1], tuple(re.findall(r"-p (\w+) ", m[2]))) for c in commands for m in re.finditer(r"papermill (nbs/\S+)([^&]*)", c)}
    for notebook, given in named:
        assert (ROOT / notebook).exists(), notebook
        assert set(given) <= set(papermill.inspect_notebook(str(ROOT / notebook))), notebook
    assert {notebook for notebook, _ in named} == {f"nbs/{t.notebook}.ipynb" for t in (*TABLES.values(), *FIGURES.values())} | {"nbs/04_timing.ipynb"}
    assert all((ROOT / script).exists() for c in commands for script in re.findall(r"data_prep/\w+\.py", c))


def test_a_deleted_record_leaves_a_dash(faces):
    Report("strong", faces, draws=10).table(6)
    before = table_6(faces)
    record_of(faces).unlink()
    beside = next(r for r in (ROOT / "figures/strong/records").glob("wae-stage1-seed1-*.json") if json.loads(r.read_text())["data"]["name"] == "demo-faces")
    shutil.copy(beside, faces / "strong/records")  # a seed that no row of the table has
    report = Report("strong", faces, draws=10)
    report.check()
    said = report.table(6)
    after = table_6(faces)
    assert after.loc["Wavelet+CNN"].tolist()[1:] == ["–"]
    assert after.drop("Wavelet+CNN").equals(before.drop("Wavelet+CNN")) and before.loc["Wavelet+CNN"].iloc[1] != "–"
    command = "papermill nbs/05_cacd.ipynb out.ipynb -p seeds 0 -p mixed_precision bf16"
    assert f"**demo-faces, vgg16_bn**: accuracy (%) of Wavelet+CNN: `{command}`" in report.lacking()
    assert "than Wavelet+CNN" not in said and "and Wavelet+CNN" not in said
    assert not report.stale
    for left in (faces / "strong/records").glob("*.json"):
        left.unlink()
    assert Report("strong", faces).stale == ["table6-demo-faces-vgg16_bn"]  # what is left of it is named, and not shown
    whole = before.loc["vgg16_bn"].iloc[1]
    assert "table6-demo-faces-vgg16_bn" in Report("strong", faces).status() and whole in said and whole not in Report("strong", faces).table(6)


def test_a_row_with_fewer_seeds_says_so(tmp_path):
    figures = copied(tmp_path / "figures", "faces")
    (figures / f"strong/records/{recorded('table6-faces-vgg16_bn', 'Wavelet+CNN', 1)}.json").unlink()
    said = Report("strong", figures, draws=10).table(6)
    assert "Fewer seeds: Wavelet+CNN [0, 2, 3, 4]." in said
    assert re.search(r"Ours \S.* Wavelet\+CNN: .*over seeds \[0, 2, 3, 4\], which both have", said)


def edited(figures: Path) -> tuple[Path, str]:
    path = record_of(figures)
    record = json.loads(path.read_text())
    record["test"]["top1"] = 0.99
    path.write_text(json.dumps(record))
    return path, "was changed after it was written"


def half_written(figures: Path) -> tuple[Path, str]:
    path = record_of(figures)
    path.write_text(path.read_text()[:-20])
    return path, "is not a record"


def other_data(figures: Path) -> tuple[Path, str]:
    """Another data set's record under this one's name."""
    path = record_of(figures)
    shutil.copy(ROOT / f"figures/strong/records/{recorded('table6-faces-vgg16_bn', 'Wavelet+CNN')}.json", path)
    return path, "records another run than its name says"


def other_data_forged(figures: Path) -> tuple[Path, str]:
    """The same, with name and digest made to fit."""
    path = record_of(figures)
    other = json.loads((ROOT / f"figures/strong/records/{recorded('table6-faces-vgg16_bn', 'Wavelet+CNN')}.json").read_text())
    rewritten(path, **{k: other[k] for k in ("data", "answers", "labels", "test")})
    return path, "is of the data 1e876108ea5d…, its run of 2844cca582ed…"


@pytest.mark.parametrize("spoil", [edited, half_written, other_data, other_data_forged], ids=lambda f: f.__name__)
def test_a_spoilt_record_is_refused(faces, spoil):
    path, reason = spoil(faces)
    report = Report("strong", faces, draws=10)
    (refusal,) = report.refused
    assert path.name in refusal and reason in refusal
    assert refusal in report.status()
    report.table(6)
    assert table_6(faces).loc["Wavelet+CNN"].tolist()[1:] == ["–"]
    with pytest.raises(RecordError, match=re.escape(path.name)):
        report.check()


def test_two_data_sets_of_one_name_are_refused(tmp_path):
    """Their rows would stand in one table."""
    figures = copied(tmp_path / "figures", "faces")
    path = record_of(copied(tmp_path / "other", "demo-faces", seed=0))
    data = json.loads(path.read_text())["data"]
    rewritten(path, data=data | dict(name="faces"))
    shutil.copy(path, figures / "strong/records" / path.name)
    report = Report("strong", figures)
    (refusal,) = report.refused
    assert "two data sets called 'faces' (1e876108ea5d…, 2844cca582ed…)" in refusal and not report.collections
    with pytest.raises(ValueError, match=r"\A[^\n]*records holds \d+ records of other images called 'faces', first [^\n]*; rename the folder[^\n]*\Z"):
        check_called("faces", data["checksum"][::-1], figures / "strong/records")


def test_a_data_set_is_told_from_one_of_its_name_before_it_is_trained_on(tmp_path, faces):
    """Otherwise its tables would stand where the other's did; a damaged record is not what is wrong then, and the same images may come again."""
    shared = dict(runs_dir=tmp_path / "runs", figures_dir=faces, progress=False)
    (faces / "strong/records/torn.json").write_text("[1, ")
    (faces / "strong/records/list.json").write_text("[1]")
    Experiment("strong", "vgg16_bn", **shared)
    path = record_of(faces)
    rewritten(path, data=json.loads(path.read_text())["data"] | dict(checksum="0" * 64))
    with pytest.raises(ValueError, match=f"holds 1 records of other images called 'demo-faces', first {path.name}"):
        Experiment("strong", "vgg16_bn", **shared)


def test_a_renamed_folder_is_the_same_data(faces):
    path = record_of(faces)
    rewritten(path, data=json.loads(path.read_text())["data"] | dict(name="renamed"))
    report = Report("strong", faces)
    assert not report.refused and [(c.data["name"], len(c.rows(6))) for c in report.collections] == [("demo-faces", 4)]


def test_an_edited_timing_is_refused(faces):
    path = sorted((faces / "timing/records").glob("*.json"))[0]
    path.write_text(path.read_text().replace('"speedup"', '"speed-up"', 1))
    (refusal,) = Report("strong", faces).refused
    assert path.name in refusal and "was changed after it was written" in refusal


FETCHED = r"""<(script|link|iframe)\b|(src|srcset|href)\s*=\s*["']?\s*(https?:)?//|url\(\s*["']?(https?:)?//|@import"""


def offline(html: str) -> bool:
    """Nothing is fetched when the page is opened."""
    return not re.search(FETCHED, html, re.IGNORECASE)


def test_the_notebook_without_records(tmp_path):
    """It runs, names every cell as missing, and makes a page that needs no network."""
    done = run_notebook("09_report", tmp_path / "out.ipynb", tmp_path, figures_dir=tmp_path / "figures", profile="paper")
    assert done.returncode == 0, done.stderr[-2000:]
    page(tmp_path / "out.ipynb", tmp_path / "out.html")
    html = (tmp_path / "out.html").read_text()
    assert offline(html) and all(f"Missing in {what}" in html for what in (*(f"Table {n}" for n in range(1, 8)), *(f"Figure {n}" for n in range(1, 5))))
    assert "data_prep/cacd.py" in html and "data_prep/imagenet.py" in html


def test_make_report(faces):
    """A refused record: the page is there and says so, the command fails in one line."""
    shutil.copy(ROOT / "figures/strong/stage1-demo-faces-vgg16_bn.png", faces / "strong/figure3-odd &name-vgg16.png")
    path, reason = edited(faces)
    command = ["make", "-o", f"{sys.prefix}/installed", "report", f"VENV={sys.prefix}", f"FIGURES={faces}", "PROFILE=strong"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert any(line.startswith("Error: RecordError: 1 refused: ") and path.name in line and reason in line for line in done.stderr.splitlines())
    html = (faces / "strong/report.html").read_text()
    assert offline(html) and html.count("data:image/png;base64") == html.count("<img") == 1 and path.name in html and "<style>" in html
    path.unlink()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "report.html" in done.stdout, done.stdout + done.stderr


def test_a_size_that_is_not_the_profiles_is_in_the_names(tmp_path):
    """So that a sweep at another size never stands where the report looks for the profile's."""
    usual = PROFILES["photos"]["smoke"].image_size
    for size, name in ((0, "norm-demo-photos-vgg16.csv"), (usual, "norm-demo-photos-vgg16.csv"), (usual + 8, f"norm-{usual + 8}px-demo-photos-vgg16.csv")):
        exp = Experiment("smoke", "vgg16", "", 0, kind="photos", runs_dir=tmp_path, figures_dir=tmp_path / str(size), progress=False, image_size=size)
        exp.save("norm", pd.DataFrame({"a": [1]}))
        assert (tmp_path / str(size) / "smoke" / name).exists()


def test_tables_of_other_sizes_and_past_the_paper(tmp_path):
    """What a notebook wrote at another size than the profile's is shown with its size, the largest first, unless a record is gone; the front is the largest."""
    folder = tmp_path / "figures"
    shutil.copytree(ROOT / "figures/strong", folder / "strong")
    report = Report("strong", folder, draws=10)
    said = report.beyond()
    heads = [f"### Rows past the paper: accuracy against operations (imagenette, vgg16_bn, {px} px)" for px in (128, 64)]
    assert 0 < said.index(heads[0]) < said.index(heads[1])
    assert "ideas-ms-128px-imagenette-vgg16_bn.png" in report.front() and "- past the paper, vgg16_bn: Taught, and against standard network" in report.front()
    assert f"`linear-in`: {METHODS['linear-in'].title}" in report.front()
    assert "### imagenette, vgg16_bn, 32 px" in report.table(3)
    (first, *_) = json.loads((folder / "strong/table3-32px-imagenette-vgg16_bn.json").read_text())["cA"]
    (folder / f"strong/records/{first}.json").unlink()
    assert "32 px" not in Report("strong", folder, draws=10).table(3)
