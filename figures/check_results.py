"""Train one seed of three rows of Table 6 again and compare with the committed records: minutes on two cores.

    python figures/check_results.py [runs_dir]      exit with 1 where a row is farther from its record than TOLERANCE

The same spec gives the same record on the same machine with the same versions; elsewhere rounding differs, and with it single answers.
"""

import json
import sys
import tempfile
from pathlib import Path

from wae_nb.lab.experiment import Experiment

FIGURES = Path(__file__).resolve().parent
ROWS = ("plain", "wavelet", "decomposition")
TOLERANCE = 3.0  # points of top-1 accuracy, 8 of 288 test images


def compare(kept: dict, got: dict) -> tuple[float, float]:
    """Points of top-1 accuracy above the record, and the share of test images with the same answer."""
    if kept["labels"] != got["labels"]:
        raise ValueError(f"{kept['name']}: the test images are not those of the record")
    same = sum(a == b for a, b in zip(kept["answers"], got["answers"]))
    return 100 * (got["test"]["top1"] - kept["test"]["top1"]), same / len(kept["answers"])


def main(runs_dir: str) -> int:
    exp, wrong = Experiment("strong", "vgg16_bn", None, 0, runs_dir=runs_dir, figures_dir=runs_dir, mixed_precision="auto"), 0
    print(f"{exp.data.name}: one seed of {', '.join(ROWS)}")
    for method in ROWS:
        (spec,) = exp.specs(method)
        kept = json.loads((FIGURES / f"strong/records/{spec.name}.json").read_text(encoding="utf-8"))
        (run,) = exp.runs([spec])
        points, same = compare(kept, run.record)
        near = abs(points) <= TOLERANCE
        wrong += not near
        said = " %, record ".join(f"{100 * r['test']['top1']:.2f}" for r in (run.record, kept))
        said += f" %: {points:+.2f} points, {same:.1%} of the answers the same"
        print(f"{'as recorded' if near else 'NOT AS RECORDED'}: {method}, top-1 {said}", flush=True)
    print(f"tolerance {TOLERANCE} points" + (f"; {wrong} of {len(ROWS)} rows are outside" if wrong else ""))
    return int(wrong > 0)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="wae_nb_check_") as made:
        sys.exit(main(sys.argv[1] if sys.argv[1:] else made))
