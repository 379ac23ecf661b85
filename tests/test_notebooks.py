"""The notebooks as people use them: exported, cleaned, run by papermill from anywhere."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import papermill
import pytest
from conftest import ROOT, run_notebook

from wae_nb.lab.parameters import check_parameters
from wae_nb.lab.profiles import PROFILES

NUMBERED = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
ALL = sorted((ROOT / "nbs").rglob("*.ipynb"))
ALL = [p for p in ALL if not any(part.startswith(("_", ".")) for part in p.relative_to(ROOT).parts)]


def text(out: Path) -> str:
    """All printed and displayed text of an executed notebook."""
    parts = []
    for cell in json.loads(out.read_text())["cells"]:
        for o in cell.get("outputs", []):
            parts += o.get("text", []) + o.get("data", {}).get("text/plain", []) + o.get("data", {}).get("text/markdown", [])
    return "".join(parts)


def test_export_and_clean_change_nothing(root, tmp_path):
    """wae_nb is what the notebooks export, and the notebooks are clean, tags included."""
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, ignore=shutil.ignore_patterns(".venv", ".git", "runs", "_[a-z]*", "figures", "*.egg-info", ".*_cache"))
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=copy, check=True, capture_output=True)
    changed = [f.relative_to(copy).as_posix() for d in ("wae_nb", "nbs") for f in sorted((copy / d).rglob("*.*")) if f.suffix in (".py", ".ipynb")]
    changed = [f for f in changed if not (root / f).exists() or (root / f).read_text() != (copy / f).read_text()]
    assert not changed
    modules = [{f.relative_to(where / "wae_nb").as_posix() for f in (where / "wae_nb").rglob("*.py")} for where in (copy, root)]
    assert modules[0] == modules[1] and "lab/report.py" in modules[0]
    for path in NUMBERED:
        tagged = [c for c in json.loads((copy / path.relative_to(root)).read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1, path.name


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_committed_notebook(path):
    """Under 1 MB, no saved error, and a title."""
    nb = json.loads(path.read_text())
    assert path.stat().st_size < 1_000_000
    assert not [o for c in nb["cells"] for o in c.get("outputs", []) if o["output_type"] == "error"]
    assert "".join(nb["cells"][0]["source"]).startswith("# ")


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_parameters_are_typed_and_explained(path):
    found = papermill.inspect_notebook(str(path))
    assert found
    for name, p in found.items():
        assert p["inferred_type_name"] != "None", name
        assert p["help"], name
        if name == "profile":
            named = set(re.findall(r"[a-z]+", re.sub(r"\(.*?\)|:.*", "", p["help"]))) - {"or"}
            assert named == set(PROFILES["photos"]) - {"smoke"}


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_parameters_are_checked_by_their_annotations(path):
    """Each of the wrong type for each parameter of each notebook, without running it."""
    cells = json.loads(path.read_text())["cells"]
    (declared,) = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    defaults = check_parameters([declared])
    assert defaults.keys() == papermill.inspect_notebook(str(path)).keys()
    for name, value in defaults.items():
        wrong = {str: (2024, 1.5), int: ("two", 1.5), float: ("two", True), bool: (3,), list: ("a", True)}[type(value)]
        for bad in wrong:
            with pytest.raises(ValueError, match=f"^{name}={bad!r}: use [^\n]+$"):
                check_parameters([declared, f"# Parameters\n{name} = {bad!r}\n"])
    with pytest.raises(ValueError, match="this notebook has no parameter 'sedes'; it has "):
        check_parameters([declared, "# Parameters\nsedes = 1\n"])
    for name, value, said in (("seeds", "list = list(range(5))", "list(range(5))"), ("lr", "float = 1 / 3", "1 / 3")):  # as somebody may write them there
        with pytest.raises(ValueError, match=f"^{re.escape(f'{name}={said}')}: use plain numbers or text$"):
            check_parameters([declared, f"{name}: {value}"])
    assert check_parameters([declared, "x: int"]) == defaults


def test_table_6_on_a_folder_and_again(people, tmp_path):
    """From another working folder, on grey pictures of odd sizes; the second time everything is found."""
    shared = dict(profile="smoke", backbone="resnet18", data_root=people, runs_dir=tmp_path / "runs", figures_dir=tmp_path / "figures", seeds="0,1")
    first = run_notebook("05_cacd", tmp_path / "a.ipynb", tmp_path, **shared)
    assert first.returncode == 0, first.stderr[-2000:]
    second = run_notebook("05_cacd", tmp_path / "b.ipynb", tmp_path, **shared)
    assert second.returncode == 0, second.stderr[-2000:]
    a, b = text(tmp_path / "a.ipynb"), text(tmp_path / "b.ipynb")
    assert "trained wae-resnet18-stage3-seed1" in a
    assert "trained " not in b and b.count("found ") >= 8
    table = (tmp_path / "figures/smoke/table6-people-resnet18.md").read_text()
    assert all(row in table for row in ("resnet18", "Wavelet+CNN", "Decomposition+CNN", "Ours", "±"))
    records = [json.loads(p.read_text()) for p in (tmp_path / "figures/smoke/records").glob("*.json")]
    assert len(records) == 12  # four rows and stages 1 and 2, two seeds
    for r in records:
        assert (r["data"]["classes"], r["data"]["images"], len(r["data"]["checksum"])) == (5, 40, 64)
        assert r["machine"]["cpu"] and r["code"].keys() == {"commit", "dirty"}


def test_imagenet_tables_on_a_folder(people, tmp_path):
    """Chosen rows only, on another backbone: no cost of VGG16's beside it, the top-1 error first."""
    shared = dict(profile="smoke", data_root=people, runs_dir=tmp_path / "runs", figures_dir=tmp_path / "figures", seeds="0,1")
    for name, numbers, extra in [
        ("02_imagenet_vgg16", (1, 2), dict(backbone="resnet18", rows="wae,half")),
        ("03_imagenet_resnet50", (5,), dict(backbone="resnet18")),
        ("02b_front", (), dict(backbone="resnet18", rows="plain,thinet-30,wae")),
    ]:
        done = run_notebook(name, tmp_path / f"{name}.ipynb", tmp_path, **shared | extra)
        assert done.returncode == 0, done.stderr[-2000:]
        for number in numbers:
            table = pd.read_csv(tmp_path / f"figures/smoke/table{number}-people-resnet18.csv", index_col=0, dtype=str)
            assert "±" in table.loc["Ours", "top-1 error (%), measured"] and not any("CPU" in c for c in table)
            assert list(table.index) == {1: ["resnet18, half resolution", "Ours"], 2: ["Ours"], 5: ["resnet18", "ThiNet-30", "Ours"]}[number]
    traded = pd.read_csv(tmp_path / "figures/smoke/tradeoff-eager-people-resnet18.csv", index_col=0)
    assert set(traded.index) == {"resnet18", "ThiNet-30", "Ours"} and (traded["speed-up"].str.split().str[0].astype(float) > 0).all()
    assert not re.search(r"trained \w+-resnet18", text(tmp_path / "02b_front.ipynb"))  # the runs of the other two
    assert "trained plain-resnet18" in text(tmp_path / "03_imagenet_resnet50.ipynb")
    assert "found wae-resnet18-stage3-seed1" in text(tmp_path / "03_imagenet_resnet50.ipynb")  # shared with the other notebook


def test_noise_on_a_folder(people, tmp_path):
    """Of both kinds of run; without noise every answer is the run's, and the second time nothing is tested again."""
    shared = dict(profile="smoke", backbone="resnet18", data_root=people, runs_dir=tmp_path / "runs", figures_dir=tmp_path / "figures")
    for kind, seeds in (("faces", "0,1"), ("photos", "1")):
        done = run_notebook("06_noise", tmp_path / f"{kind}.ipynb", tmp_path, kind=kind, seeds=seeds, variances="[0, 0.02, 0.1]", **shared)
        assert done.returncode == 0, done.stderr[-2000:]
        assert re.search(r"V = 0: 0 of \d\d+ answers differ", text(tmp_path / f"{kind}.ipynb"))
    assert "trained " not in text(tmp_path / "photos.ipynb")  # the smoke profiles are the same but for the demo set
    figures = tmp_path / "figures/smoke"
    table = pd.read_csv(figures / "table7-people-resnet18.csv", index_col=0, dtype=str)
    assert list(table.index) == ["V=0", "V=0.02", "V=0.1"]
    rows = json.loads((figures / "table7-people-resnet18.json").read_text())
    assert list(rows) == ["VGG16-Net", "VGG16 (112)", "Wavelet+CNN", "Decomposition+CNN", "Ours"]
    for name in sum(rows.values(), []):
        noise, clean = (json.loads((figures / f"records/{n}.json").read_text()) for n in (name, name.removesuffix("-noise")))
        assert noise["test"]["0"]["top1"] == clean["test"]["top1"] and noise["answers"]["0"] == clean["answers"] and noise["labels"] == clean["labels"]


def test_ablations_on_a_folder(people, tmp_path):
    """Chosen parts only, then a sweep that finds what they have trained."""
    shared = dict(profile="smoke", backbone="resnet18", data_root=people, runs_dir=tmp_path / "runs", figures_dir=tmp_path / "figures")
    done = run_notebook("07_ablations", tmp_path / "a.ipynb", tmp_path, parts="table3,table4", **shared)
    assert done.returncode == 0, done.stderr[-2000:]
    figures = tmp_path / "figures/smoke"
    for number, rows in ((3, ["cA", "I_R", "I_L", "I_L + I_H"]), (4, ["w/o FT", "w/ FT"])):
        table = pd.read_csv(figures / f"table{number}-people-resnet18.csv", index_col=0, dtype=str)
        assert [i.split(",")[0] for i in table.index] == rows and table["top-1 error (%), measured"].ne("–").all()
    assert not list(figures.glob("lambda-*"))
    done = run_notebook("07_ablations", tmp_path / "b.ipynb", tmp_path, parts="lambda,energy,gamma", lambdas="[0, 1]", gammas="[0.001, 0.5]", **shared)
    assert done.returncode == 0, done.stderr[-2000:]
    trained = re.findall(r"trained wae-resnet18-(\S+)-seed0", text(tmp_path / "b.ipynb"))
    assert sorted(trained) == ["stage2", "stage2", "stage3"]  # λ = 0, the image's energy and γ = 0.5; stage 1 comes with each
    assert {p.name.split("-")[0] for p in figures.glob("*-people-resnet18.md")} == {"table3", "table4", "lambda", "energy", "gamma"}


def test_the_competition_alone(tmp_path):
    """The rows that a report names as missing, without any of the others."""
    folders = dict(runs_dir=tmp_path / "runs", figures_dir=tmp_path / "figures")
    done = run_notebook("02_imagenet_vgg16", tmp_path / "out.ipynb", tmp_path, profile="smoke", rows="taylor-1,thinet-gap", **folders)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "figures/smoke/table2-demo-photos-vgg16_bn.json").read_text())
    assert {row: len(names) for row, names in rows.items()} == {"Taylor-1": 1, "ThiNet-GAP": 1}


@pytest.mark.parametrize(
    "name, given, message",
    [
        ("02_imagenet_vgg16", dict(backbone="vgg19", rows="plain,thinet-gap"), "backbone='vgg19': 'thinet-gap' is a structure of vgg16 and vgg16_bn"),
        ("03_imagenet_resnet50", dict(backbone="resnext50_32x4d", rows="plain,thinet-30"), "backbone='resnext50_32x4d': 'thinet' has a rule for"),
    ],
    ids=["structure", "grouped"],
)
def test_a_row_without_a_rule_is_one_line(tmp_path, name, given, message):
    done = run_notebook(name, tmp_path / "out.ipynb", tmp_path, profile="smoke", runs_dir=tmp_path / "runs", figures_dir=tmp_path / "figures", **given)
    assert done.returncode != 0 and any(message in line for line in done.stderr.splitlines())
    assert not list((tmp_path / "runs").glob("plain*"))  # refused before anything was trained


def test_unknown_row_is_one_line(tmp_path):
    done = run_notebook("02_imagenet_vgg16", tmp_path / "out.ipynb", tmp_path, profile="smoke", rows="plain,ous", runs_dir=tmp_path)
    assert done.returncode != 0 and "rows='plain,ous': 'ous' is unknown; use some of plain, half" in done.stderr


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(data_root="/no/such/folder"), "data_root='/no/such/folder' is not a folder"),
        (dict(backbone="vgg17"), "backbone='vgg17' is unknown"),
        (dict(profile="huge"), "profile='huge' is unknown"),
        (dict(data_rot="/somewhere"), "this notebook has no parameter 'data_rot'"),
        (dict(seeds="1.5"), "seeds=1.5: use whole numbers"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_parameter_is_one_line(tmp_path, bad, message):
    folders = dict(runs_dir=tmp_path / "runs", figures_dir=tmp_path / "figures")
    done = run_notebook("05_cacd", tmp_path / "out.ipynb", tmp_path, **(dict(profile="smoke") | folders | bad))
    assert done.returncode != 0
    assert any(message in line for line in done.stderr.splitlines())
    assert not list((tmp_path / "runs").glob("*"))


def test_a_value_that_would_be_something_else(tmp_path):
    """Refused before anything is done, where a default would quietly be taken."""
    done = run_notebook("04_timing", tmp_path / "out.ipynb", tmp_path, figures_dir=tmp_path / "figures", batches="0")
    assert done.returncode != 0 and any(line.startswith("ValueError: batches=") for line in done.stderr.splitlines())
    assert not (tmp_path / "figures").exists()
