"""The site: every notebook a page, every link of the real ones leads somewhere, and one that does not is named."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

from wae_nb.lab.site import broken_links, site


def project(root: Path, text: str, said: str = "") -> Path:
    """A README, one notebook with a table as its output, a text and a folder of records."""
    for folder in ("nbs", "figures/records"):
        (root / folder).mkdir(parents=True)
    (root / "README.md").write_text("# Made up\n\n[begin](nbs/a%20b.ipynb), [more](nbs/more.md#it-s--more), [records](figures/records), [code](x.py)\n")
    (root / "nbs/more.md").write_text("# More\n\n## It-s & more\n\n[back](../README.md#made-up)\n")
    (root / "x.py").write_text("x = '<a href=\"nowhere.md\">'\n")
    (root / "figures/records/r 1.json").write_text("{}")
    cells = [nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("1 < 2", outputs=[nbformat.v4.new_output("display_data", {"text/html": said})])]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "nbs/a b.ipynb")
    return root


def test_links_go_from_page_to_page(tmp_path):
    text = "# First\n\n## Second one\n\n[here](#Second-one) [there](more.md) [record](../figures/records/r%201.json) [a](a%20b.ipynb#First) $x<y$"
    count = site(tmp_path / "out", project(tmp_path / "in", text))
    made = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert made == {"index.html", "nbs/a b.html", "nbs/more.html", "figures/records/index.html", "figures/records/r 1.json", "x.py"} and count == len(made)
    assert broken_links(tmp_path / "out") == []
    shown = (tmp_path / "out/nbs/a b.html").read_text()
    assert 'href="a%20b.html#First"' in shown and 'href="../index.html"' in shown and "prefers-color-scheme" in shown and "$x" not in shown
    assert 'href="nbs/more.html#it-s--more"' in (tmp_path / "out/index.html").read_text()
    with pytest.raises(ValueError, match="is there already"):
        site(tmp_path / "out", tmp_path / "in")


BROKEN = {  # what is in the notebook → what is said of it
    "[x](gone.ipynb)": "gone.ipynb leads to no file",
    "[x](../../outside.md)": "../../outside.md leads to no file",
    "[x](#First,-not)": "#First,-not leads to no place on the page",
    "[x](more.md#less)": "more.html#less leads to no place on the page",
    "![x](gone%20too.png)": "gone%20too.png leads to no file",
    "![x](https://example.org/a.png)": "https://example.org/a.png is fetched from another host",
    '<link rel="stylesheet" href="//example.org/a.css">': "//example.org/a.css is fetched from another host",
    "[x](more.md#it-s--more) [x](https://example.org) [x](mailto:a@example.org)": None,
}


@pytest.mark.parametrize("text", BROKEN)
@pytest.mark.parametrize("where", ["text", "output"])
def test_a_broken_link_is_named(tmp_path, text, where):
    from nbconvert.filters.markdown_mistune import markdown2html_mistune

    given = (f"# First\n\n{text}", "") if where == "text" else ("# First", markdown2html_mistune(text))
    site(tmp_path / "out", project(tmp_path / "in", *given))
    assert broken_links(tmp_path / "out") == ([f"nbs/a b.html: {BROKEN[text]}"] if BROKEN[text] else [])


def test_the_real_site(tmp_path):
    """What `make site` runs: every notebook is a page, the report is there with its pictures in it, and its rows link to their records."""
    assert "-m wae_nb.lab.site _site" in (ROOT / "Makefile").read_text()
    done = subprocess.run([sys.executable, "-m", "wae_nb.lab.site", tmp_path / "out"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    out, notebooks = tmp_path / "out", [p for p in (ROOT / "nbs").rglob("*.ipynb") if not p.name.startswith("_") and ".ipynb_checkpoints" not in p.parts]
    assert len(notebooks) > 80 and all((out / p.relative_to(ROOT)).with_suffix(".html").is_file() for p in notebooks)
    results = re.findall(r"\]\((#.*?)\)", (ROOT / "figures/README.md").read_text())
    assert len(results) > 80 and len(set(results)) == len(results)  # the second of a name has an anchor of its own
    report = (out / "figures/strong/report.html").read_text()
    cells = json.loads((ROOT / "nbs/09_report.ipynb").read_text())["cells"]
    shown = [o["data"].get("text/markdown", "") for c in cells for o in c.get("outputs", []) if "data" in o]
    pictures = len(re.findall(r"!\[.*?\]\(.*?\.png\)", "\n".join(map("".join, shown))))
    assert report.count("<img") == report.count('src="data:image/') == pictures > 0
    for table in ("table1-imagenette-vgg16_bn", "table3-32px-imagenette-vgg16_bn", "table6-demo-faces-vgg16_bn", "lambda-32px-imagenette-vgg16_bn"):
        for name in {n for names in json.loads((ROOT / f"figures/strong/{table}.json").read_text()).values() for n in names}:
            assert f'href="records/{name}.json"' in report and (out / f"figures/strong/records/{name}.json").is_file(), (table, name)
