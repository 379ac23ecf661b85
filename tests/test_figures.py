"""What is shown was measured: the results page lists the files, and the files' numbers are the records'."""

import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

import wae_nb
from wae_nb.lab.answers import RECORD_ENDING, answer, comparison_table, read_comparison
from wae_nb.lab.paper import TABLES as TABLES_OF_THE_PAPER
from wae_nb.lab.timing import timed_rows
from wae_nb.lab.zoo import zoo_table

TABLES = sorted((ROOT / "figures").glob("*/table6-*.csv"))


def regenerated() -> bool:
    """Whether experiments have been run here since the commit: their tables are not the page's."""
    done = subprocess.run(["git", "status", "--porcelain", "--", "figures"], cwd=ROOT, capture_output=True, text=True)
    return done.returncode != 0 or bool(done.stdout.strip())


@pytest.mark.skipif(regenerated(), reason="figures/ was regenerated here; python figures/make_readme.py lists what is new")
def test_results_are_listed(root):
    done = subprocess.run([sys.executable, root / "figures/make_readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = (root / "figures/README.md").read_text()
    for path in (p for end in ("md", "png") for p in (root / "figures").glob(f"*/**/*.{end}")):
        assert path.stem in listed, path
    for path in TABLES:  # in full
        assert path.with_suffix(".md").read_text().strip() in listed


def test_a_new_table_is_listed(tmp_path, root):
    """Under what it shows and its data set; `--check` fails until then."""
    (tmp_path / "strong/records").mkdir(parents=True)
    script = shutil.copy(root / "figures/make_readme.py", tmp_path)
    (tmp_path / "strong/records/a.json").write_text(json.dumps({"data": {"name": "my cats_$|"}}))
    (tmp_path / "strong/table6-my cats_$|-vgg16.md").write_text("| Table 6 |\n|---|\n| 95.1 |\n")
    (tmp_path / "strong/table6-my cats_$|-vgg16.json").write_text(json.dumps({"Ours": ["a"]}))
    (tmp_path / "strong/curves-my cats_$|-vgg16.png").touch()

    def run(*how):
        return subprocess.run([sys.executable, script, *how], capture_output=True, text=True)

    assert "run python figures/make_readme.py" in run("--check").stderr
    assert run().returncode == run("--check").returncode == 0
    said = (tmp_path / "README.md").read_text()
    assert said.index("### Table 6") < said.index("| 95.1 |") < said.index("### Training curves")
    assert "**my cats_$|, vgg16**: [1 record](strong/table6-my%20cats_%24%7C-vgg16.json)" in said


def tables_in(text: str) -> list[list[list[str]]]:
    """Each Markdown table as lines of cells, the links to records left out."""
    lines = [re.findall(r"^\|.*$", block, re.MULTILINE) for block in re.findall(r"(?:^\|.*$\n?)+", re.sub(r" *<sup>.*?</sup>", "", text), re.MULTILINE)]
    return [[[cell.strip() for cell in line.strip("|").split("|")] for line in each if set(line) - set("|:- ")] for each in lines]


def printed_and_gone(printed: str, written: list[str]) -> list[list[list[str]]]:
    """Tables of a page whose rows and columns a written table has, and whose cells none of these has."""
    known = {}
    for table in (t for text in written for t in tables_in(text)):
        known.setdefault((*table[0], *(line[0] for line in table)), []).append(table)
    return [t for t in tables_in(printed) if (same := known.get((*t[0], *(line[0] for line in t)))) and t not in same]


def test_an_old_table_is_seen():
    page, new = "| T | a |\n|---|---|\n| x <sup>[0](r.json)</sup> | 1 |\n", "said\n\n| T | a |\n|:--|:--|\n| x | {} |\n\nbelow"
    assert not printed_and_gone(page, [new.format(2), new.format(1)]) and len(printed_and_gone(page, [new.format(2)])) == 1
    assert not printed_and_gone(page.replace("x", "y"), [new.format(2)])


@pytest.mark.skipif(regenerated(), reason="figures/ was regenerated here; run the notebooks again that show its tables")
@pytest.mark.parametrize("book", sorted((ROOT / "nbs").glob("*.ipynb")), ids=lambda p: p.stem)
def test_printed_tables_are_the_files(book):
    """What a notebook shows of a table is what `figures/` has of it by now."""
    outputs = [o for c in json.loads(book.read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
    printed = "\n\n".join("".join(o.get("data", {}).get("text/markdown", "")) for o in outputs)
    gone = printed_and_gone(printed, [p.read_text(encoding="utf-8") for p in (ROOT / "figures").rglob("*.md") if p.name != "README.md"])
    assert not gone, f"{book.name} was run before these were made: {gone}"


PAGES = ["README.md", "figures/README.md", "nbs/README.md", "data_prep/README.md"]


def test_what_to_add_has_its_place(root):
    """Each registry that CONTRIBUTING shows a line of is in the notebook that it names, and knows the words of that line."""
    said = (root / "CONTRIBUTING.md").read_text()
    shown = re.findall(r"^ (\w+)[^\n]*\n\+    (?:\"?\w+\"?): (\w+)\(", said, re.MULTILINE)
    books = re.findall(r"`(nbs/lib/[^`]+\.ipynb)`", said)
    assert len(shown) == len(books) == 5
    for (registry, made), book in zip(shown, books):
        source = (root / book).read_text()
        assert re.search(rf'"{registry}(: [^"]*)? \|?= {{', source) and f"class {made}" in source, (registry, book)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(root, page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", (root / page).read_text())
    assert len(links) > 5 or page.startswith("data_prep")
    assert not [link for link in links if not link.startswith("http") and not (root / page).parent.joinpath(unquote(link)).exists()]


def test_readme_is_short_and_its_imports_are_there(root):
    said = (root / "README.md").read_text()
    assert len(said.split()) <= 700 and "](figures/README.md" in said
    said += "".join((root / page).read_text() for page in PAGES)
    for module, names in re.findall(r"^from (wae_nb\S*) import (.+)$", said, re.MULTILINE):
        for name in names.split(", "):
            assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
    for name in re.findall(r"\bwae_nb\.(\w+)\(", said):
        assert hasattr(wae_nb, name), name


@pytest.fixture(scope="module")
def faces_drawn(tmp_path_factory):
    return str(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("off, code, word", [(5, 0, "as recorded"), (12, 1, "NOT AS RECORDED")])
def test_results_are_checked(monkeypatch, faces_drawn, capsys, off, code, word):
    """A row that answers some test images otherwise than its record is told from one that is as recorded, whatever was trained."""
    check = runpy.run_path(str(ROOT / "figures/check_results.py"))

    def stand_in(exp, specs):
        kept = json.loads((ROOT / f"figures/strong/records/{specs[0].name}.json").read_text())
        right = [i for i, (a, b) in enumerate(zip(kept["answers"], kept["labels"])) if a == b][:off]
        answers = [a + 1 if i in right else a for i, a in enumerate(kept["answers"])]
        return [SimpleNamespace(record=kept | dict(answers=answers, test=dict(top1=kept["test"]["top1"] - off / len(answers))))]

    monkeypatch.setattr("wae_nb.lab.experiment.Experiment.runs", stand_in)
    assert check["main"](faces_drawn) == code
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said[1:-1]] == [word] * 3
    assert all(f"{-100 * off / 288:+.2f} points, {1 - off / 288:.1%} of the answers the same" in line for line in said[1:-1])


def shown_name(path: Path, title: str) -> str:
    """What a table calls a row of the paper's, with the backbone that its file is named after."""
    number, backbone = re.fullmatch(r"table(\d)-.*-(\w+)", path.stem).groups()
    return TABLES_OF_THE_PAPER[int(number)].named(backbone).get(title, title)


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_table_6_follows_from_its_records(path):
    """Each measured cell again, from the answers and labels in the records alone; a row without records is a dash."""
    table = pd.read_csv(path, index_col=0, dtype=str)
    rows = json.loads(path.with_suffix(".json").read_text())
    assert 1 <= len(rows) <= len(table) == 4
    data, cells = set(), dict(zip(table.index, table.iloc[:, 1]))
    for title, names in rows.items():
        cell = cells.pop(shown_name(path, title))
        records = [json.loads((path.parent / "records" / f"{name}.json").read_text()) for name in names]
        data |= {r["data"]["checksum"] for r in records}
        assert all(name == r["name"] for name, r in zip(names, records))
        top1 = [100 * np.mean(np.array(r["answers"]) == np.array(r["labels"])) for r in records]
        assert cell == f"{np.mean(top1):.2f}" + (f" ± {np.std(top1, ddof=1):.2f}" if len(top1) > 1 else "")
    assert len(data) == 1 and set(cells.values()) <= {"–"}


IMAGENET = [p for n in (1, 2, 5) for p in sorted((ROOT / "figures").glob(f"*/table{n}-*.csv")) if p.parent.name != "timing"]


@pytest.mark.parametrize("path", IMAGENET, ids=lambda p: p.stem)
def test_errors_follow_from_their_records(path):
    """The top-1 error again from answers and labels, the top-5 error from the record."""
    table = pd.read_csv(path, index_col=0, dtype=str)
    data = set()
    for row, names in json.loads(path.with_suffix(".json").read_text()).items():
        records = [json.loads((path.parent / "records" / f"{name}.json").read_text()) for name in names]
        data |= {r["data"]["checksum"] for r in records}
        top1 = [100 * (1 - np.mean(np.array(r["answers"]) == np.array(r["labels"]))) for r in records]  # so that ties round alike
        for top, values in (("top-1", top1), ("top-5", [100 * (1 - r["test"]["top5"]) for r in records])):
            said = f"{np.mean(values):.2f}" + (f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else "")
            assert table.loc[shown_name(path, row), f"{top} error (%), measured"] == said
    assert len(data) == 1


@pytest.mark.parametrize("number", [1, 2, 5])
def test_costs_follow_from_their_records(number):
    """Each measured cost again, from the record that the table names."""
    folder = ROOT / "figures/timing"
    table = pd.read_csv(folder / f"table{number}-cost.csv", index_col=0, dtype=str)
    backbone = "resnet50" if number == 5 else "vgg16"
    keys = {title: key for key, title in timed_rows(backbone).items()}
    seen = 0
    for kind, (name,) in json.loads((folder / f"table{number}-cost.json").read_text()).items():
        record = json.loads((folder / "records" / f"{name}.json").read_text())
        batch = 1 if kind == "CPU" else 32
        for title in table.index.intersection(list(keys)):
            (t,) = [t for t in record["times"] if (t["backbone"], t["row"], t["batch"]) == (backbone, keys[title], batch)]
            assert t["engine"] in ("openvino", "graph") and t["precision"] == "fp32" and t["speedup"][0] <= t["speedup"][1] <= t["speedup"][2]
            assert table.loc[title, f"{kind} speed-up, measured"] == f"{t['speedup'][1]:.2f}"
            if number != 5:
                assert table.loc[title, f"{kind} (ms), measured"] == f"{t['latency_ms'][1] / batch:.2f}"
            seen += 1
    assert seen >= 2


TRADEOFF = sorted((ROOT / "figures").glob("*/tradeoff-*.csv"))


@pytest.mark.parametrize("path", TRADEOFF, ids=lambda p: p.stem)
def test_tradeoffs_follow_from_their_records(path):
    """Accuracy again from answers and labels, speed-up from the times, and the front by comparing all with all."""
    table = pd.read_csv(path, index_col=0, dtype=str, keep_default_na=False)
    rows = json.loads(path.with_suffix(".json").read_text())
    assert set(rows) == set(table.index) and len(rows) >= 3
    means, baselines = {}, set()
    for row, names in rows.items():
        records = [json.loads((path.parent / "records" / f"{name}.json").read_text()) for name in names]
        tested, timed = ([r for r in records if key in r] for key in ("answers", "times"))
        top1 = [100 * np.mean(np.array(r["answers"]) == np.array(r["labels"])) for r in tested]
        assert table.loc[row, "top-1 accuracy (%)"] == f"{np.mean(top1):.2f}" + (f" ± {np.std(top1, ddof=1):.2f}" if len(top1) > 1 else "")
        speedups = [r["times"]["speedup"][1] for r in timed] or [1.0] * len(tested)
        assert table.loc[row, "speed-up"] == f"{np.mean(speedups):.2f}" + (f" ± {np.std(speedups, ddof=1):.2f}" if len(speedups) > 1 else "")
        assert len(timed) in (0, len(tested)) and {r["times"]["engine"] for r in timed} <= {path.stem.split("-")[1]}
        baselines |= {r["baseline"] for r in timed}
        for t, r in zip(tested, timed):
            assert r["seed"] == t["seed"] and r["of"] == t.get("of", t["digest"])  # the same weights
        means[row] = (np.mean(speedups), np.mean(top1))
    assert any(set(names) == baselines for names in rows.values())  # the row that all others were timed against, all its seeds
    for row, (x, y) in means.items():
        beaten = any((a >= x and b >= y) and (a, b) != (x, y) for a, b in means.values())
        assert table.loc[row, "on the front, by means"] == ("" if beaten else "✓"), row


COMPARED = sorted((ROOT / "figures/compared").glob(f"*{RECORD_ENDING}"))


@pytest.mark.parametrize("path", COMPARED, ids=lambda p: p.stem)
def test_comparisons_follow_from_their_records(path):
    """Each accuracy and difference again from answers and labels; the table and its sentence from the record."""
    record = read_comparison(path)
    tested = {r["row"]: json.loads((path.parent / "records" / f"{r['tested']}.json").read_text()) for r in record["rows"]}
    right = {row: np.equal(t["answers"], t["labels"]) for row, t in tested.items()}
    for r in record["rows"]:
        assert r["top1"] == pytest.approx(right[r["row"]].mean()) and tested[r["row"]]["labels"] == tested["plain"]["labels"]
        assert r["difference"][0] == pytest.approx(100 * (right[r["row"]].mean() - right["plain"].mean()))
        assert 0.1 < r["times"]["speedup"][0] <= r["times"]["speedup"][1] <= r["times"]["speedup"][2]
    stem = path.with_name(path.name.removesuffix(RECORD_ENDING))
    pd.testing.assert_frame_equal(comparison_table(record), pd.read_csv(f"{stem}.csv", index_col=0, dtype=str), check_names=False, check_column_type=False)
    assert answer(record).sentence in Path(f"{stem}.md").read_text()


def test_the_zoo_follows_from_its_records():
    table = pd.read_csv(ROOT / "figures/timing/zoo-cpu.csv", index_col=0, dtype=str)
    pd.testing.assert_frame_equal(zoo_table(ROOT / "figures/timing/zoo"), table, check_names=False, check_column_type=False)
    assert len(table) >= 60


def test_the_precisions_follow_from_their_records():
    """Each cell again; the two precisions are what they are called, on the same runs."""
    made = runpy.run_path(str(ROOT / "figures/make_precision.py"))
    table, said = made["table"]()
    pd.testing.assert_frame_equal(table, pd.read_csv(ROOT / "figures/timing/precision-cpu.csv", index_col=0, dtype=str), check_column_type=False)
    assert said in (ROOT / "figures/timing/precision-cpu.md").read_text()
    no, auto = made["records"]("no"), made["records"]("auto")
    assert [r["name"] for r in no] == [r["name"] for r in auto] and len(no) == 18
    assert {r["machine"]["mixed_precision"] for r in no} == {"no"} and {r["machine"]["mixed_precision"] for r in auto} == {"bf16"}
    for r in (*no, *auto):
        assert r["answers"] is None or r["test"]["top1"] == pytest.approx(np.equal(r["answers"], r["labels"]).mean())
