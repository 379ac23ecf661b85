"""`wae` as a person and as a script use it: help, JSON, exit codes, a line for a mistake, and nothing half-written."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import click
import nbformat.v4 as v4
import pytest
import torch
from click.testing import CliRunner
from conftest import ROOT
from safetensors.torch import load_file

import wae_nb
from wae_nb.cli import main
from wae_nb.convert.targets import TARGETS, export, file_metadata
from wae_nb.data.sets import load_data
from wae_nb.lab.folders import open_run
from wae_nb.lab.profiles import PROFILES
from wae_nb.lab.reproduce import choose_notebooks, parameters_of
from wae_nb.train.divergence import Diverged
from wae_nb.train.engine import Engine
from wae_nb.train.runs import get_or_train
from wae_nb.train.specs import RunSpec

HELP_SECONDS = 1.5


def wae(*words):
    """A command in this process."""
    return CliRunner().invoke(main, list(map(str, words)), prog_name="wae")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Three runs of the smallest profile with their data beside them, one of which was cut off."""
    runs_dir, size = tmp_path_factory.mktemp("wae") / "runs", PROFILES["faces"]["smoke"]
    data = load_data(None, size.image_size, runs_dir / "data", "faces", size.demo_shape)
    recipe, out = size.recipe("resnet18", len(data.indices("train"))), {}
    for name, method, stage in (("half", "half", None), ("stage-1", "wae", 1), ("plain", "plain", None)):
        spec = RunSpec(method, "resnet18", data.checksum, recipe, stage=stage, image_size=size.image_size, width=size.width)
        out[name] = get_or_train(spec, data, Engine("cpu", progress=False), runs_dir).folder
    out["unfinished"] = shutil.copytree(out["half"], runs_dir / "half-cut-off")
    (out["unfinished"] / "record.json").unlink()
    out["damaged"] = runs_dir / "saved"
    open_run(out["plain"]).save(out["damaged"])
    (out["damaged"] / "config.json").write_text('{"package": "wae')
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_help_comes_at_once():
    """In a new process, by the clock; and without what would make it slow."""
    code = "import sys\nfrom wae_nb.cli import main\ntry:\n    main(['--help'])\nfinally:\n    print('heavy', *{'torch', 'numpy', 'pandas'} & set(sys.modules))"
    taken, said = [], ""
    for _ in range(3):
        start = time.perf_counter()
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        taken.append(time.perf_counter() - start)
    assert min(taken) < HELP_SECONDS
    assert said.startswith("Usage:") and said.endswith("heavy\n")


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_of_each_command(command):
    """What it does, every option explained, examples of it, and JSON for scripts."""
    done = wae(command, "--help")
    assert done.exit_code == 0 and f"  wae {command}" in done.stdout and "--json" in done.stdout
    assert all(p.help for p in main.commands[command].params if isinstance(p, click.Option))
    assert main.commands[command].help.splitlines()[0] in wae("--help").stdout  # not cut off


def test_version_and_entry_point():
    assert wae("--version").stdout == f"wae, version {wae_nb.__version__}\n"
    said = subprocess.run([sys.executable, "setup.py", "--version"], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.strip().endswith(wae_nb.__version__)
    assert "console_scripts = wae=wae_nb.cli:main\n" in (ROOT / "settings.ini").read_text()
    assert '"scripts"' in (ROOT / "pyproject.toml").read_text()


def test_time():
    words = "time --backbone resnet18 --size 32 --classes 5 --rows plain,half --batch 1,2 --seconds 0.1 --engine eager".split()
    done = wae(*words, "--json")
    rows = json.loads(done.stdout)
    assert done.exit_code == 0 and [(r["row"], r["batch"]) for r in rows] == [("plain", 1), ("half", 1), ("plain", 2), ("half", 2)]
    for plain, half in (rows[:2], rows[2:]):
        assert plain["speedup"] == [1, 1, 1] and half["baseline_ms"] == plain["latency_ms"] and half["macs"] < plain["macs"]
        assert half["engine"] == "eager" and half["image_size"] == 32
    said = wae(*words).stdout
    assert "compared with plain" in said and len([line for line in said.splitlines() if line.startswith("half")]) == 2


def test_runs(trained):
    done = wae("runs", trained["half"].parent, "--json")
    rows = {r["name"]: r for r in json.loads(done.stdout)}
    assert done.exit_code == 0 and set(rows) == {p.name for p in trained.values()}
    for name in ("half", "plain", "stage-1"):
        record, row = json.loads((trained[name] / "record.json").read_text()), rows[trained[name].name]
        assert row["state"] == "finished" and row["epochs"] == record["epochs"] and row["minutes"] == record["seconds"] / 60
        assert row["top1"] == record["test"].get("top1") and row["psnr"] == record["test"].get("psnr")
    assert rows["half-cut-off"]["state"] == "unfinished" and rows["half-cut-off"]["top1"] is None
    said = wae("runs", trained["half"].parent).stdout
    assert f"{100 * rows[trained['half'].name]['top1']:.2f} %" in said and "unfinished" in said and " dB" in said


def test_a_copied_run_is_called_a_copy(trained, tmp_path):
    shutil.copytree(trained["half"], tmp_path / "half-elsewhere")
    (row,) = json.loads(wae("runs", tmp_path, "--json").stdout)
    assert row["state"] == f"a copy of {trained['half'].name}" and row["top1"] is not None


def test_interrupted(monkeypatch):
    """Ctrl-C outside of the training loop: a line and the shell's code."""
    monkeypatch.setattr("wae_nb.lab.folders.list_runs", interrupt)
    done = wae("runs", ".")
    assert done.exit_code == 130 and done.stderr == "Stopped; the same command goes on from what was saved.\n"


def interrupt(*args):
    raise KeyboardInterrupt


def test_a_run_is_opened_by_its_folder(trained, tmp_path):
    """Wherever that lies."""
    moved = shutil.copytree(trained["half"], tmp_path / "elsewhere")
    run = open_run(moved)
    weights = load_file(moved / "model.safetensors")
    assert weights.keys() <= run.model.state_dict().keys() and all(torch.equal(run.model.state_dict()[k], v) for k, v in weights.items())


def test_export(trained, tmp_path, monkeypatch):
    """The file is named after the run; with the data gone, its folder is asked for."""
    monkeypatch.chdir(tmp_path)
    done = wae("export", trained["plain"], "--to", "torch-export", "--json")
    value = json.loads(done.stdout)
    assert done.exit_code == 0 and value["files"] == [f"{trained['plain'].name}.pt2"] and value["difference"] <= 1e-4
    found = dict(classes="")
    run = torch.export.load(value["files"][0], extra_files=found).module()
    assert json.loads(found["classes"]) == ["face00", "face01", "face02", "face03"]
    x = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(run(x)[0], open_run(trained["plain"]).model(x).s, atol=1e-5)
    said = wae("export", trained["plain"], "--to", "torch-export", "--out", "again.pt2").stdout
    assert "largest difference from PyTorch's scores" in said and "; takes 32×32 pixels; 4 classes" in said
    with monkeypatch.context() as patch:  # in the words that the file has for itself
        patch.setattr("wae_nb.convert.targets.export", lambda *given: dataclasses.replace(export(*given), any_size=True))
        said = wae("export", trained["plain"], "--to", "torch-export", "--out", "any.pt2").stdout
    sizes = json.loads(file_metadata((32, 32), [], any_size=True)["preprocessing"])["sizes"]
    assert f"; takes {sizes.removesuffix('; any number of images')}; 4 classes" in said
    moved = shutil.copytree(trained["plain"], tmp_path / "moved" / "run")
    done = wae("export", moved, "--to", "torch-export", "--out", "third.pt2")
    assert done.exit_code == 2 and "name their folder: --data DIR" in done.stderr and not Path("third.pt2").exists()


def test_export_int8(trained, tmp_path):
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    done = wae("export", trained["plain"], "--to", "openvino", "--int8", "--out", tmp_path / "net.xml", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["difference"] > 1e-4 and TARGETS["openvino"].read(tmp_path / "net.xml").layers()[0] > 0


@pytest.fixture
def notebooks(tmp_path, monkeypatch) -> Path:
    """Two small ones in place of the checkout's."""
    folder = tmp_path / "nbs"
    folder.mkdir()
    parameters = "profile: str = 'small'  # which\nfigures_dir: str = ''  # where\nruns_dir: str = ''  # where"
    sources = {"01_first": "print(profile, figures_dir)", "02b_second": "raise ValueError(\n    'profile is\\nwrong')", "lib": None}
    for name, source in sources.items():
        if source:
            cells = [v4.new_code_cell(parameters, metadata=dict(tags=["parameters"])), v4.new_code_cell(source)]
            nb = v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", language="python", display_name="Python 3")))
            (folder / f"{name}.ipynb").write_text(json.dumps(nb))
    monkeypatch.setattr("wae_nb.lab.reproduce.project_root", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    return folder


def test_reproduce(notebooks, tmp_path):
    """In order, each with a line; what is finished is skipped, unless the parameters are others; what failed fails the command and is run again."""
    done = wae("reproduce", "--profile", "small", "--json")
    assert done.exit_code == 1
    first, second = json.loads(done.stdout)
    assert (first["name"], first["state"], second["name"], second["state"]) == ("01_first", "finished", "02b_second", "failed")
    assert second["error"] == "ValueError: profile is wrong"
    out = tmp_path / "_reproduce/small"
    assert sorted(p.name for p in out.iterdir()) == ["01_first.ipynb", "02b_second.failed.ipynb"]
    assert f"small {out}/figures" in (out / "01_first.ipynb").read_text()
    again = wae("reproduce", "--profile", "small", "--only", "01")
    assert again.exit_code == 0 and again.stdout == "01_first skipped: it was finished before\n"
    (out / "runs").mkdir()  # its runs are there, and its figures were removed
    assert wae("reproduce", "--profile", "small", "--only", "01").stdout.startswith("01_first finished in ")
    (out / "runs").rmdir()
    other = wae("reproduce", "--profile", "strong", "--only", "01", "--out", out)
    assert other.exit_code == 0 and other.stdout.startswith("01_first finished in ")
    notebooks.joinpath("02b_second.ipynb").write_text(notebooks.joinpath("01_first.ipynb").read_text())
    mended = wae("reproduce", "--profile", "small", "--only", "02b")
    assert mended.exit_code == 0 and sorted(p.name for p in out.iterdir()) == ["01_first.ipynb", "02b_second.ipynb"]


def test_a_shell_gives_text_and_a_notebook_gets_values():
    """-p as papermill has it: each by its annotation; what looks like a number stays text where text is meant."""
    ten, eight = choose_notebooks("08,10")[::-1]
    asked = dict(per_class="100", device="cpu", seeds="0,1", epochs="3", hours="2", rows="half", variances="[0.1]")
    assert parameters_of(ten, "strong", "", "", asked | {"10.rows": "dct", "08.width": "0.5"}) == dict(
        profile="strong", per_class=100, device="cpu", seeds="0,1", rows="dct", variances="[0.1]"
    )
    assert parameters_of(eight, "strong", "", "", asked | {"08.width": "0.5"}) == dict(device="cpu", epochs=3, hours=2, rows="half", width=0.5)


def test_a_kernel_that_dies_does_not_end_the_campaign(notebooks):
    """As one does that is killed for its memory."""
    first = notebooks / "01_first.ipynb"
    good = first.read_text()
    nb = json.loads(good)
    nb["cells"][1]["source"] = "import os\nos.kill(os.getpid(), 9)"
    first.write_text(json.dumps(nb))
    (notebooks / "02b_second.ipynb").write_text(good)
    done = wae("reproduce", "--profile", "small", "--json")
    assert done.exit_code == 1, done.stderr
    died, after = json.loads(done.stdout)
    assert died["state"] == "failed" and died["error"].startswith("DeadKernelError: ") and after["state"] == "finished"


def test_the_library_s_own_errors_are_a_line(monkeypatch):
    """What went wrong, code 1; a defect keeps its trace."""
    for error in (Diverged("the training loss is nan"), torch.OutOfMemoryError("CUDA out of memory")):
        monkeypatch.setattr("wae_nb.lab.folders.list_runs", lambda runs, error=error: (_ for _ in ()).throw(error))
        done = wae("runs", "somewhere")
        assert done.exit_code == 1 and done.stderr == f"Error: {error}\n"
    monkeypatch.setattr("wae_nb.lab.folders.list_runs", lambda runs: (_ for _ in ()).throw(RuntimeError("mat1 and mat2")))
    assert isinstance(wae("runs", "somewhere").exception, RuntimeError)


def test_the_checkout_s_notebooks():
    names = [p.stem for p in choose_notebooks()]
    assert names == sorted(p.stem for p in (ROOT / "nbs").glob("[0-9]*.ipynb")) and "05_cacd" in names
    assert [p.stem for p in choose_notebooks("05,02")] == ["02_imagenet_vgg16", "05_cacd"]


def test_report(tmp_path):
    """The page is written; a record that was changed fails the command, which names the file."""
    records = tmp_path / "strong/records"
    records.mkdir(parents=True)
    some = sorted((ROOT / "figures/strong/records").glob("wavelet-vgg16_bn-*.json"))[:2]
    for path in some:
        shutil.copy(path, records)
    done = wae("report", "--profile", "strong", "--figures", tmp_path, "--json")
    assert done.exit_code == 0, done.stderr
    page = Path(json.loads(done.stdout)["page"])
    assert page == tmp_path / "strong/report.html" and "Table 6" in page.read_text(encoding="utf-8")
    changed = records / some[0].name
    changed.write_text(changed.read_text().replace('"seed": ', '"seed": 9', 1))
    page.unlink()
    done = wae("report", "--profile", "strong", "--figures", tmp_path)
    assert done.exit_code == 1 and page.exists() and some[0].name in done.stderr and "was changed after it was written" in done.stderr


WRONG = {  # words → what is named, and the remedy
    "time --backbone resnet999": ("backbone='resnet999'", "use resnet50"),
    "time --backbone resnet18 --rows plain,whole": ("method='whole'", "use one of plain, half"),
    "time --backbone resnet18 --rows plain+flat": ("head='flat'", "use one of"),
    "time --rows ,": ("rows=','", "give at least one method"),
    "time --size 16": ("image_size=16", "at least 32 pixels"),
    "time --batch 0": ("batch='0'", "is below 1"),
    "time --batch one": ("batch='one'", "use whole numbers, for instance"),
    "time --engine tensorrt": ("engine='tensorrt'", "use one of openvino"),
    "time --precision fp8": ("precision='fp8'", "use one of fp32"),
    "time --threads 999": ("threads=999", "this machine has"),
    "time --device tpu": ("device='tpu'", "use 'auto', 'cpu' or 'cuda'"),
    "time --seconds 0": ("seconds=0.0", "use a number above 0"),
    "time --classes 1": ("num_classes=1", "needs at least 2 classes"),
    "time --size large": ("'large' is not a valid integer", "See wae time --help"),
    "tme": ("'tme'", "See wae --help"),
    "time --engin eager": ("--engin", "See wae time --help"),
    "runs nowhere": ("runs_dir='nowhere'", "usually runs/ in the checkout"),
    "export {half}": ("'--to'", "See wae export --help"),
    "export {half} --to tflite": ("to='tflite'", "use one of onnx, openvino, torch-export, ncnn"),
    "export nowhere --to torch-export": ("run='nowhere'", "`wae runs` lists those that are finished"),
    "export {unfinished} --to torch-export": ("half-cut-off'", "train it again, and it goes on"),
    "predict {damaged} there.pt2": ("its config.json is damaged (JSONDecodeError)", "save the network, again"),
    "export {stage-1} --to torch-export": ("is stage 1, an auto-encoder without a classifier", "name a run of a later stage"),
    "export {half} --to torch-export --out net.xml": ("path='net.xml'", "a file for torch-export ends in .pt2"),
    "export {half} --to torch-export --out none/net.pt2": ("path='none/net.pt2'", "make it first"),
    "export {half} --to torch-export --out there.pt2": ("out='there.pt2' is there already", "name another file with --out"),
    "export {half} --to torch-export --int8": ("to='torch-export'", "use one of openvino"),
    "export {half} --to torch-export --data nowhere": ("nowhere' is not a folder", "give a folder that holds"),
    "export {half} --to torch-export --data people": ("data_root='people' is not what half-resnet18", "give the same folder"),
    "train": ("'DIR'", "See wae train --help"),
    "train nowhere": ("nowhere' is not a folder", "give a folder that holds"),
    "train nowhere --backbone resnet18 --weights none.pth": ("none.pth' is no file", "use one of DEFAULT"),  # before the images are read
    "train nowhere --backbone resnet18 --width 0.125 --weights DEFAULT": ("width=0.125", "use width=1"),
    "train people --method whole": ("method='whole'", "use one of plain, half"),
    "train people --backbone resnet999": ("backbone='resnet999'", "use resnet50"),
    "train people --epochs 0": ("epochs=0", "at least 1"),
    "train people --crops random": ("crops='random'", "use resized or fixed"),
    "train people --noise -1": ("noise=-1.0", "a variance of at least 0"),
    "prune {plain} people --noise -1": ("noise=-1.0", "a variance of at least 0"),
    "compare people --noise -1": ("noise=-1.0", "a variance of at least 0"),
    "train people --precision fp8": ("mixed_precision='fp8'", "use one of no, fp16, bf16, auto"),
    "train people --precision fp16 --device cpu": ("mixed_precision='fp16'", "use bf16, no, or auto"),
    "train people --teacher {plain} --method plain": ("method='plain'", "give one of the two"),
    "train people --teacher {plain} --weights DEFAULT": ("weights='DEFAULT'", "give one of the two"),
    "train people --teacher nowhere": ("run='nowhere'", "`wae runs` lists those that are finished"),
    "train people --teacher {half}": ("is 'half'", "name a standard network"),
    "train people --backbone resnet18 --size 32 --width 0": ("width=0.0", "use a number above 0"),
    "prune {half} people": ("is 'half'", "name a standard network"),
    "prune {plain} people --keep 2": ("'thinet:2", "say how much of the network it keeps"),
    "prune {plain} people --way random": ("'random:0.5' is unknown", "thinet:0.5"),
    "prune {plain} nowhere": ("nowhere' is not a folder", "give a folder that holds"),
    "eval nowhere people": ("run='nowhere'", "`wae runs` lists those that are finished"),
    "eval {plain} people": ("was trained on", "has 5 classes"),
    "eval {plain} nowhere": ("nowhere' is not a folder", "give a folder that holds"),
    "predict {plain}": ("'IMAGES", "See wae predict --help"),
    "predict {plain} there.pt2 --top 0": ("top=0", "use at least 1"),
    "predict {stage-1} there.pt2": ("is stage 1, an auto-encoder without a classifier", "name a run of a later stage"),
    "plan people --devices 0": ("devices='0'", "is below 1"),
    "plan people --recipe weak": ("recipe='weak'", "use strong or paper"),
    "plan people --recipe paper --epochs 16": ("--epochs=16", "leave the option out"),
    "plan people --recipe paper --crops fixed": ("--crops=fixed", "leave the option out"),
    "plan people --recipe paper --noise 0.02": ("--noise=0.02", "leave the option out"),
    "compare nowhere": ("nowhere' is not a folder", "give a folder that holds"),
    "compare people --rows half,thinet": ("row 'thinet'", "for instance thinet:0.5"),
    "compare people --rows whole": ("row 'whole' is unknown", "use one of plain, half"),
    "compare people --backbone mobilenet_v2 --rows taylor:0.5": ("backbone='mobilenet_v2'", "has a rule for the families"),
    "compare people --points 0": ("points=0.0", "use a number above 0"),
    "compare people --hours -1": ("hours=-1.0", "use a number above 0"),
    "compare people --model {plain} --weights DEFAULT": ("weights='DEFAULT'", "give one of the two"),
    "compare people --model nowhere.pth --backbone resnet18 --size 32": ("model='nowhere.pth' is not there", "a file of weights"),
    "compare people --model {plain} --size 224": ("--size=224", "leave the option out"),
    "compare people --out people/compared": ("out='people/compared' is in the folder of images", "name a folder elsewhere"),
    "train people --teacher {plain} --width 0.75": ("--width=0.75", "leave the option out"),
    "compare people --model {half}": ("is 'half'", "name a standard network"),
    "compare people --engine tensorrt": ("engine='tensorrt'", "use one of openvino"),
    "compare people --engine eager --rows half+int8": ("engine='eager'", "runs on"),
    "report --profile large": ("profile='large'", "use one of strong"),
    "report --figures nowhere": ("figures_dir='nowhere' is not a folder", "name the one with a folder of records"),
    "reproduce": ("'--profile'", "See wae reproduce --help"),
    "reproduce --profile large": ("profile='large'", "use one of strong"),
    "reproduce --profile strong --only 55": ("only='55'", "use some of 00, 01"),
    "reproduce --profile strong --data nowhere": ("data_root='nowhere'", "give a folder that holds"),
    "reproduce --profile strong --faces nowhere": ("faces='nowhere'", "give a folder that holds"),
    "reproduce --profile strong --only 02,05 -p seedz 0,1": ("seedz='0,1'", "no chosen notebook has this parameter"),
    "reproduce --profile strong -p 55.seeds 0": ("55.seeds='0'", "no chosen notebook has this parameter"),
    "reproduce --profile strong --only 02 -p image_size large": ("image_size='large'", "use a whole number"),
    "reproduce --profile strong -p 08.epochs 1.5": ("epochs=1.5", "use a whole number"),
    "reproduce --profile strong --out there.pt2": ("there.pt2' is a file", "name a folder"),
}


@pytest.mark.parametrize("words", WRONG)
def test_wrong_use(trained, people, tmp_path, monkeypatch, words):
    """Exit code 2, one line that names the value and the remedy, nothing on the output, nothing written."""
    monkeypatch.chdir(tmp_path)
    Path("there.pt2").write_text("before")
    before, runs = contents(tmp_path), trained["half"].parent
    ran = {p.relative_to(runs) for p in runs.rglob("*") if "data" not in p.relative_to(runs).parts}
    done = wae(*(trained[w.strip("{}")] if w.startswith("{") else w for w in words.split()))
    named, remedy = WRONG[words]
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit) and not done.stdout, done.output
    *usage, line = done.stderr.strip().splitlines()
    assert named in line and remedy in done.stderr and line.startswith("Error: ") and "Traceback" not in done.stderr
    assert not usage or "people" in words  # a folder that is packed says so
    packed = [p.parent for p in tmp_path.rglob("meta.json")]  # images may be packed before the network is seen not to fit them
    assert {k: v for k, v in contents(tmp_path).items() if not any((tmp_path / k).is_relative_to(p.parent) for p in packed)} == before
    assert {p.relative_to(runs) for p in runs.rglob("*") if "data" not in p.relative_to(runs).parts} == ran


WORDS = [(name, p) for name, c in sorted(main.commands.items()) for p in c.params if isinstance(p.type, type(click.STRING)) and p.nargs == 1]


@pytest.mark.parametrize("command, parameter", WORDS, ids=lambda x: getattr(x, "name", x))
def test_a_variable_that_is_not_set_is_refused(trained, tmp_path, monkeypatch, command, parameter):
    """`wae train "$DATA"`, `wae reproduce --data "$DATA"`, `wae compare flowers --model "$NET"`: empty words would be the demo set, or no model."""
    monkeypatch.chdir(tmp_path)
    words = [] if isinstance(parameter, click.Argument) else [parameter.opts[-1], ""]
    for p in main.commands[command].params:  # all that is needed, so that nothing else is wrong
        if isinstance(p, click.Argument):
            words.append("" if p is parameter else {"run": trained["plain"], "files": "."}.get(p.name, "."))
        elif p.required and p is not parameter:
            words += [p.opts[-1], {"reproduce": "strong"}.get(command, "x")]
    done = wae(command, *words)
    assert done.exit_code == 2 and not list(tmp_path.iterdir()) and not done.stdout, done.output
    assert done.stderr.startswith("Error: Invalid value for '")
    assert done.stderr.endswith(f"it is empty (a variable that is not set?); give a value. See wae {command} --help\n")
    assert {c for c, _ in WORDS} >= {"compare", "eval", "export", "plan", "predict", "prune", "reproduce", "runs", "train"} and len(WORDS) > 40


def test_no_json_where_it_failed(tmp_path):
    """A script sees the exit code and an empty output."""
    done = subprocess.run([sys.executable, "-c", "from wae_nb.cli import main; main()", "runs", tmp_path / "none", "--json"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1


def test_a_defect_is_not_taken_for_a_mistake(monkeypatch):
    """What is no refusal of the library's keeps its traceback."""

    def broken(folder):
        raise KeyError("defect")

    monkeypatch.setattr("wae_nb.lab.folders.list_runs", broken)
    done = wae("runs", os.curdir)
    assert done.exit_code == 1 and isinstance(done.exception, KeyError)
