"""What is shown was measured: README's tables are the files', and the files' numbers are the records'."""

import json
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

TABLES = sorted((ROOT / "figures").glob("*/table6-*.csv"))
METHODS = {"Wavelet+CNN": "wavelet", "Decomposition+CNN": "decomposition", "Ours": "wae"}


def test_readme_is_filled_from_figures(root):
    done = subprocess.run([sys.executable, root / "figures/into_readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("<!-- table: ", (root / "README.md").read_text())) >= 3


@pytest.mark.parametrize("path", TABLES, ids=lambda p: p.stem)
def test_table_6_follows_from_its_records(path):
    """Each measured cell again, from the records alone."""
    backbone = path.stem.rsplit("-", 1)[1]
    caption = path.with_suffix(".md").read_text()
    checksum = re.search(r"SHA-256 (\w{12})", caption)[1]
    seeds = json.loads(re.search(r"seeds (\[.*?\])", caption)[1])
    records = [json.loads(p.read_text()) for p in (path.parent / "records").glob("*.json")]
    records = [r for r in records if r["data"]["checksum"].startswith(checksum) and r["decisive"].get("backbone") == backbone]
    records = [r for r in records if r["decisive"]["stage"] in (0, 3)]
    table = pd.read_csv(path, index_col=0, dtype=str)
    for row, cell in table.iloc[:, 1].items():
        mine = [r for r in records if r["decisive"]["method"] == METHODS.get(row, "plain") and r["seed"] in seeds]
        assert sorted(r["seed"] for r in mine) == sorted(seeds), row
        top1 = [100 * np.mean(np.array(r["answers"]) == np.array(r["labels"])) for r in mine]
        expected = f"{np.mean(top1):.2f}" + (f" ± {np.std(top1, ddof=1):.2f}" if len(top1) > 1 else "")
        assert cell == expected
