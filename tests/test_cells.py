"""What every numbered notebook keeps to: short cells, one set-up call, runs found by their specs."""

import json
import re

import pytest
from conftest import ROOT

NUMBERED = sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))


def code_of(path):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_cells_are_short(path):
    assert not [c.splitlines()[0] for c in code_of(path) if len(c.splitlines()) > 20]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_set_up_is_one_call(path):
    code = "\n".join(code_of(path))
    assert len(re.findall(r"\bstart\(globals\(\)", code)) == 1
    assert not [w for w in ("IN_TEST", "check_parameters", "set_matplotlib_formats", "Experiment(") if w in code]


@pytest.mark.parametrize("path", NUMBERED, ids=lambda p: p.stem)
def test_no_run_is_found_by_a_pattern(path):
    """A name's pattern also fits runs of other recipes: 02 once quoted the stage 1 of 07's λ = 100."""
    assert not re.findall(r"\b(?:r?glob|iterdir|listdir|scandir|fnmatch)\b", "\n".join(code_of(path)))


def test_recorded_stage_1_is_that_of_table_1():
    """02's stage 1 on Imagenette, by spec, is the one that its Table 1 started from."""
    from wae_nb.lab.profiles import PROFILES
    from wae_nb.train.specs import STAGE_1, RunSpec

    kept, profile = ROOT / "figures/strong", PROFILES["photos"]["strong"]
    names = json.loads((kept / "table1-imagenette-vgg16_bn.json").read_text())["Ours"]
    psnr = []
    for ours in [json.loads((kept / f"records/{name}.json").read_text()) for name in names]:
        recipe, checksum = profile.recipe("vgg16_bn", ours["data"]["train"]), ours["data"]["checksum"]
        spec = RunSpec("wae", "vgg16_bn", checksum, recipe, ours["seed"], STAGE_1, profile.image_size, profile.width, head=profile.head)
        found = json.loads((kept / f"records/{spec.name}.json").read_text())
        assert found["decisive"] == ours["decisive"]["parent"]["parent"]
        psnr.append(f"{found['test']['psnr']:.3g}")
    cells = [c for c in json.loads((ROOT / "nbs/02_imagenet_vgg16.ipynb").read_text())["cells"] if "def recorded(stage, like)" in "".join(c["source"])]
    shown = "".join(cells[0]["outputs"][0]["data"]["text/plain"])
    assert psnr and re.findall(r"^seed \d+ +(\S+)", shown, re.MULTILINE) == psnr
