"""Write timing/precision-cpu: the demo's four rows in single precision beside bfloat16, from the records in timing/precision/no and timing/precision/auto.

The records are of 05_cacd.ipynb with `-p mixed_precision no` and `auto`; a run has the same name in both.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from wae_nb.lab.experiment import save_output
from wae_nb.lab.statistics import mean_and_spread
from wae_nb.method.classifier import METHODS
from wae_nb.train.records import RecordError, digest

TIMING = Path(__file__).resolve().parent / "timing"
ROWS = ("plain", "wavelet", "decomposition", "wae")


def records(precision: str) -> list[dict]:
    """All of one precision. Raises `RecordError` for one that was changed."""
    out = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((TIMING / "precision" / precision).glob("*.json"))]
    if wrong := [r["name"] for r in out if digest(r) != r["digest"]]:
        raise RecordError(f"{wrong[0]} was changed after it was written: its digest does not fit")
    return out


def table() -> tuple[pd.DataFrame, str]:
    """Rows, as strings, and what stands below them."""
    lines, seeds, r = {}, set(), None
    for method in ROWS:
        line, seconds = {}, []
        for precision in ("no", "auto"):
            of = [r for r in records(precision) if r["decisive"]["method"] == method]
            r, each = of[0], sorted({r["seed"] for r in of})
            seeds.add(tuple(each))
            last = [r for r in of if r["decisive"]["stage"] == max(x["decisive"]["stage"] for x in of)]
            seconds.append(np.mean([sum(r["seconds"] for r in of if r["seed"] == s) for s in each]))
            line[f"top-1 (%), {precision}"] = mean_and_spread([100 * r["test"]["top1"] for r in last])
            line[f"minutes, {precision}"] = f"{seconds[-1] / 60:.2f}"
        lines[METHODS[method].title] = line | {"times faster": f"{seconds[0] / seconds[1]:.2f}"}
    (same,) = seeds  # in all rows and both precisions
    said = f"The demo's four rows (drawn faces, 64 px, VGG16-BN at 0.25 of its width), seeds {list(same)}: in single precision (no), "
    said += "and as auto chooses (bf16). "
    said += f"Minutes are of one seed, all stages. {r['machine']['cpu']}, torch {r['machine']['versions']['torch']}."
    return pd.DataFrame(lines).T.rename_axis("row"), said


if __name__ == "__main__":
    save_output(TIMING, "precision-cpu", *table())
