"""Names of classes and data sets are text, whatever is in them: on disk, in pictures, Markdown, CSV and HTML."""

import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from PIL import Image

from wae_nb.data.sets import load_data
from wae_nb.lab.experiment import Experiment, save_output
from wae_nb.lab.pictures import picture_rows, show_row
from wae_nb.lab.plots import confusions, curves, intervals, line_panels, plain, time_by_part, tradeoff
from wae_nb.lab.tables import as_text

NAMES = [
    "$x_1$",
    "a $ b $ c",
    r"\$5 \frac{1}{0}$",
    "_hidden",
    "_all_ *of* `it`",
    "a^b~~c~~",
    "one|two\\|three",
    "'single' \"double\"",
    "<b>bold</b> &amp; <script>",
    "[link](http://there)",
    "# heading",
    "x" * 60,
    "חתול ومنزل",
    "日本語",
    "a,b;c\td",
]


class Cells(HTMLParser):
    """The text of each cell of the tables of a page, and every tag that is there."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


def test_folders_may_be_called_anything(tmp_path):
    names = [name.replace("/", "-") for name in NAMES]  # but for this one letter
    for name in names:
        for k in range(3):
            path = tmp_path / "set $a|b$_" / name / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((9, 9, 3), 40 * k, np.uint8)).save(path)
    data = load_data(tmp_path / "set $a|b$_", 32, tmp_path / "cache")
    assert data.classes == tuple(sorted(names)) and data.name == "set $a|b$_"
    assert load_data(tmp_path / "set $a|b$_", 32, tmp_path / "cache").classes == data.classes  # found packed
    exp = Experiment("smoke", "vgg11", tmp_path / "set $a|b$_", runs_dir=tmp_path / "runs", figures_dir=tmp_path / "figures", progress=False)
    assert exp.save("table", pd.DataFrame({"a": [1]})).exists()


def test_in_a_table(tmp_path):
    """As rows, as columns and in cells: the text of each is the name, in Markdown as a browser shows it and in CSV; nothing else gets in."""
    frame = pd.DataFrame([NAMES, NAMES[::-1]], columns=NAMES, index=NAMES[:2]).rename_axis("a|b")
    path = save_output(tmp_path, "names", frame, f"Of {as_text(NAMES[7])}.")
    page = Cells(markdown2html_mistune(path.read_text()))
    spaced = [re.sub(r"\s+", " ", n) for n in NAMES]
    assert [re.sub(r"\s+", " ", c).strip() for c in page.cells[: 3 * (len(NAMES) + 1) - 1]] == [
        *("a|b", *spaced, *(spaced[0], *spaced), *(spaced[1], *spaced[::-1])),
    ][: 3 * (len(NAMES) + 1) - 1]
    assert page.tags <= {"table", "thead", "tbody", "tr", "th", "td", "p", "a"}  # the last is a bare address, which reads as it did
    again = pd.read_csv(path.with_suffix(".csv"), index_col=0, dtype=str)
    assert again.columns.tolist() == NAMES and again.iloc[1].tolist() == NAMES[::-1] and again.index.tolist() == NAMES[:2] and again.index.name == "a|b"


@pytest.mark.parametrize("name", NAMES)
def test_in_a_paragraph(name):
    """A heading, a sentence and a link's text; no formula is left for MathJax to find."""
    for before, after in (("### ", ", vgg16\n"), ("", " (SHA-256 12…)."), ("![", "](a.png)")):
        said = markdown2html_mistune(f"{before}{as_text(name)}{after}")
        assert Cells(said).tags <= {"h3", "p", "a", "img"} and 'href="http://there)' not in said  # a heading has a link to itself
        if not before.startswith("!"):
            assert re.sub(r"\s+", " ", name) in re.sub(r"\s+", " ", "".join(Cells(f"<td>{said}").cells))
    assert not re.search(r"(?<!\\)\$", as_text(name)) and "\n" not in as_text(name)


@pytest.mark.filterwarnings("ignore:Glyph")  # not every font has every letter
def test_in_pictures():
    """Titles, legends, ticks and labels: drawn without an error, letter by letter, and none left out of a legend."""
    n = len(NAMES)
    record = dict(data=dict(classes=2), labels=[0, 1], answers=[1, 1], history=[dict(epoch=e, val_top1=0.5) for e in (1, 2)])
    rows = {name: [record] for name in NAMES}
    figures = [
        curves(rows, label=NAMES[0]),
        confusions(rows),
        line_panels({name: {m: ([1, 2], [1, 2]) for m in NAMES} for name in NAMES[:2]}, NAMES[1], NAMES[2]),
        intervals({name: (0.1, -0.1, 0.2) for name in NAMES}, NAMES[0]),
        time_by_part({NAMES[0]: {name: {NAMES[1]: 1.0, NAMES[2]: 2.0} for name in NAMES}}),
        tradeoff({name: ([1.0 + i], [50.0 + i]) for i, name in enumerate(NAMES)}, [NAMES[-1]], NAMES[0]),
    ]
    fig, axes = plt.subplots(1, n)
    show_row(axes, [np.zeros((4, 4))] * n, NAMES)
    figures += [fig, picture_rows([[np.zeros((4, 4))] * n], ["image"] * n, [NAMES], [NAMES[0]])]
    for fig in figures:
        fig.canvas.draw()
        shown = [t for t in fig.findobj(matplotlib.text.Text) if t.get_text()]
        assert not [t.get_text() for t in shown if matplotlib.cbook.is_math_text(t.get_text()) is True and "mathdefault" not in t.get_text()]
    assert [a.get_title() for a in axes] == [plain(name) for name in NAMES]
    legend = figures[0].legends[0]
    assert [t.get_text() for t in legend.get_texts()] == [plain(name) for name in NAMES]
    plt.close("all")
    assert torch.is_grad_enabled()


def test_a_table_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """What was there stays where the new one can't be written, and the error names the file."""
    frame = pd.DataFrame({"a": [1]})
    save_output(tmp_path, "t", frame)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    whole = pd.DataFrame.to_csv

    def full(self, path, **how):
        Path(path).write_text("half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match=r"t\.csv cannot be written: No space left on device .*make room, then run it again"):
        save_output(tmp_path, "t", frame + 1)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    monkeypatch.setattr(pd.DataFrame, "to_csv", whole)
    save_output(tmp_path, "t", frame + 1)
    assert (tmp_path / "t.csv").read_text() == (frame + 1).to_csv() and sorted(before) == sorted(p.name for p in tmp_path.iterdir())
