"""Several processes: the same losses, step by step, as one with the same batches, however shared; every image measured once; another number of them goes on."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.utils import gather_object
from torch import nn

from wae_nb.data.sets import load_data
from wae_nb.lab.experiment import Experiment
from wae_nb.method.classifier import build
from wae_nb.train import evaluation, pruning, updates
from wae_nb.train import stage as stages
from wae_nb.train.checkpoints import checkpoints, damage
from wae_nb.train.engine import Engine, synchronised
from wae_nb.train.evaluation import evaluate
from wae_nb.train.launch import launch
from wae_nb.train.recipes import PruneRecipe, StageRecipe, short_recipe
from wae_nb.train.runs import get_or_train
from wae_nb.train.specs import RunSpec
from wae_nb.train.tasks import ClassifyTask

SGD = dict(optimizer="sgd", weight_decay=5e-4)  # not AdamW: its first steps are signs, which rounding turns


def specs(checksum: str, terms: tuple[str, ...] = ("s", "s_c", "s_L")) -> dict[str, RunSpec]:
    """The three stages and a pruned network, with batches that two or three processes share unevenly; without dropout, whose streams are each process's own."""
    r = replace(
        short_recipe("test", 60),
        wae=StageRecipe(lr=1e-4, batch_size=2, epochs=1, **SGD),  # a third process has none of it
        classify=StageRecipe(lr=1e-2, batch_size=10, epochs=1, schedule="onecycle", clip=5.0, **SGD),
        finetune=StageRecipe(lr=1e-3, batch_size=7, epochs=1, **SGD),
        prune=PruneRecipe(StageRecipe(lr=1e-3, batch_size=7, epochs=1, **SGD), StageRecipe(lr=1e-3, batch_size=10, epochs=1, **SGD), images=20, parts=1),
        dropout=0.0,
        terms=terms,
    )
    shared = dict(image_size=32, width=0.125)
    return {
        "first": RunSpec("wae", "", checksum, r, stage=1, **shared),
        "stages": RunSpec("wae", "vgg11_bn", checksum, r, **shared),
        "pruned": RunSpec("taylor", "vgg11_bn", checksum, r, keep=0.5, **shared),
    }


@contextmanager
def doubled():
    """Within: all in double precision, where what two orders of a sum differ by stays far below what a wrong weight of a share would do."""
    before = {m: m.crop for m in (evaluation, pruning, updates)}
    torch.set_default_dtype(torch.float64)
    for m, crop in before.items():
        m.crop = lambda *args, crop=crop: crop(*args).double()
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        for m, crop in before.items():
            m.crop = crop


def train(folder: Path, names: list[str], terms: tuple[str, ...] = ("s", "s_c", "s_L"), **how) -> list[list[float]]:
    """Of each fit in turn its losses, step by step."""
    data, losses = load_data(None, 32, folder.parent / "data", demo_shape=(3, 14)), []
    learn = stages.Training.learn

    def noted(self, bar):
        mean = learn(self, bar)
        losses.append(self.losses.tolist())
        return mean

    stages.Training.learn = noted
    try:
        with doubled():
            for name in names:
                get_or_train(specs(data.checksum, terms)[name], data, Engine("cpu", progress=False, **how), folder)
    finally:
        stages.Training.learn = learn
    return losses


def measured(folder: Path) -> list[str]:
    """A network's test on few images at a time: every value, bit by bit."""
    data, recipe = load_data(None, 32, folder.parent / "data", demo_shape=(3, 14)), short_recipe("test", 60)
    torch.manual_seed(1)
    task = ClassifyTask(build("wavelet", "resnet18", 3, 32, 0.125), recipe, recipe.classify)
    means, each = evaluate(task, data, "test", 32, Engine("cpu", progress=False), batch_size=3, variance=0.01)
    return [json.dumps(means), *(f"{k} {hashlib.sha256(v.numpy().tobytes()).hexdigest()}" for k, v in each.items())]


class NormAct(nn.BatchNorm2d):
    """As timm's: with the activation that follows."""

    def __init__(self):
        super().__init__(3)
        self.drop, self.act = nn.Identity(), nn.SiLU()

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


def norm_of(rank: int, of: int, norm: nn.BatchNorm2d) -> list:
    """A batch norm's output, gradients and statistics on the rows of a batch that a process has: of seven, and for three processes one has none."""
    torch.manual_seed(0)
    norm, x, w = norm.double(), torch.randn(7, 3, 2, 5, dtype=torch.float64), torch.randn(7, 3, 2, 5, dtype=torch.float64)
    cuts = {1: [0, 7], 2: [0, 2, 7], 3: [0, 3, 3, 7]}[of]
    part = slice(cuts[rank], cuts[rank + 1])
    mine = x[part].clone().requires_grad_()
    y = norm(mine * 2 + 1)
    (y**2 * w[part]).sum().backward()
    return [y.detach(), mine.grad, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def in_one_of_several(folder: Path) -> None:
    """What each process of a job does in these tests."""
    engine = Engine("cpu", progress=False)
    acc = engine.accelerator
    out = dict(measured=measured(folder / "runs"), norm=[])
    for norm in (nn.BatchNorm2d(3), NormAct()):
        kind = type(norm)
        with synchronised(nn.Sequential(norm), acc.device):
            assert type(norm) is not kind
            parts = gather_object([[t.tolist() for t in norm_of(acc.process_index, acc.num_processes, norm)]])
        assert type(norm) is kind
        out["norm"] += [sum((p[i] for p in parts), []) for i in (0, 1)] + [torch.tensor([p[i] for p in parts]).sum(0).tolist() for i in (2, 3)] + parts[-1][4:]
    out["losses"] = train(folder / "runs", ["stages", "pruned"])
    out["accumulated"] = train(folder / "accumulated", ["first"], accumulation=2)  # a batch norm would see the parts
    if acc.is_main_process:
        (folder / "out.json").write_text(json.dumps(out))


def launched(folder: Path, processes: int, code: str) -> subprocess.Popen:
    """A job of several processes."""
    script = folder / "script.py"
    script.write_text(f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport test_distributed as t\n{code}\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), script]
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return dict(
        measured=measured(folder / "runs"),
        norm=[t.tolist() for norm in (nn.BatchNorm2d(3), NormAct()) for t in norm_of(0, 1, norm)],
        losses=train(folder / "runs", ["stages", "pruned"]),
        accumulated=train(folder / "accumulated", ["first"]),
    )


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_learn_as_one(tmp_path, one, processes):
    """Stages 1 to 3, plain training, pruning's in between and at the end: the losses of every step, up to rounding; a test, bit by bit."""
    job = launched(tmp_path, processes, f"t.in_one_of_several(Path({str(tmp_path)!r}))")
    out, _ = job.communicate(timeout=280)
    assert job.returncode == 0, out[-3000:]
    several = json.loads((tmp_path / "out.json").read_text())
    assert several["measured"] == one["measured"]
    for a, b in zip(several["norm"], one["norm"], strict=True):
        assert torch.allclose(torch.tensor(a), torch.tensor(b), atol=1e-12)
    assert len(one["losses"]) == 6 and [len(e) for e in one["losses"]] == [len(e) for e in several["losses"]]
    for a, b in zip([*several["losses"], *several["accumulated"]], [*one["losses"], *one["accumulated"]], strict=True):
        assert a == pytest.approx(b, rel=1e-6) and len(set(a)) == len(a) > 1
    folders = [json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*/record.json")]
    assert {r["machine"]["processes"] for r in folders} == {processes} and {r["machine"]["sync_batchnorm"] for r in folders} == {True}


def with_one_term(folder: Path, **how) -> dict[str, list]:
    """Losses of all stages, where one score alone has a loss and a head of the other no gradient."""
    return {term: train(folder / term, ["stages"], (term,), **how) for term in ("s_c", "s_L")}


def test_a_head_that_no_term_reaches(tmp_path):
    """Two processes learn as one, with a batch in parts, too."""
    code = f"""
import json
losses = t.with_one_term(Path({str(tmp_path)!r}) / "two", accumulation=2)
if t.os.environ["RANK"] == "0":
    Path({str(tmp_path / "out.json")!r}).write_text(json.dumps(losses))
"""
    job = launched(tmp_path, 2, code)
    out, _ = job.communicate(timeout=280)
    assert job.returncode == 0, out[-3000:]
    for term, expected in with_one_term(tmp_path / "one", accumulation=2).items():
        for a, b in zip(json.loads((tmp_path / "out.json").read_text())[term], expected, strict=True):
            assert a == pytest.approx(b, rel=1e-6) and len(a) > 1


def test_the_first_process_says_whether_a_run_is_finished(tmp_path):
    """One that looked a moment too early does not wait for the others in vain."""
    train(tmp_path / "runs", ["first"])
    code = f"""
from wae_nb.train import runs
data, engine = t.load_data(None, 32, Path({str(tmp_path / "data")!r}), demo_shape=(3, 14)), t.Engine("cpu", progress=False)
if engine.accelerator.process_index == 1:
    runs.finished_run = lambda spec, folder: None
run = t.get_or_train(t.specs(data.checksum)["first"], data, engine, Path({str(tmp_path / "runs")!r}))
print("found" * (not run.trained and run.record["digest"] != ""))
"""
    job = launched(tmp_path, 2, code)
    try:
        out, _ = job.communicate(timeout=200)
    finally:
        job.kill()
    assert job.returncode == 0 and out.count("found") == 2, out[-3000:]


def test_another_number_of_processes_goes_on(tmp_path):
    """Two processes are sent SIGTERM by their launcher and save one checkpoint; one goes on from it, with the same losses, and the record says so."""
    code = f"""
import time
t.stages.Training.look = lambda self, look=t.stages.Training.look: (time.sleep(1), look(self))
t.train(Path({str(tmp_path)!r}) / "runs", ["first"])
"""
    job = launched(tmp_path, 2, code)
    while not (tmp_path / "data").exists() or not list((tmp_path / "runs").glob("wae-*")):
        assert job.poll() is None, job.stdout.read()[-3000:]
        time.sleep(0.05)
    time.sleep(3)  # some steps
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=60)
    (folder,) = (tmp_path / "runs").glob("wae-*")
    (there,) = checkpoints(folder)
    assert job.returncode != 0 and out.count(f"SIGTERM: saved {there}; run it again to go on from there") == 1 and not damage(there), out[-3000:]
    (losses,) = train(tmp_path / "runs", ["first"])
    assert 0 < int(there.name[-7:]) < len(losses) and losses == pytest.approx(*train(tmp_path / "whole", ["first"]), rel=1e-6)
    machine = json.loads((folder / "record.json").read_text())["machine"]
    assert machine["processes"] == 1 and machine["processes_in_turn"] == [2, 1]


def test_a_notebook_starts_several(tmp_path, capfd):
    """By torchrun, through the command that a server would use: all stages, found again afterwards; what fails is one line."""
    exp = Experiment("smoke", "resnet18", None, runs_dir=tmp_path / "runs", figures_dir=tmp_path / "figures", device="cpu", progress=False, num_processes=2)
    (run,) = exp.runs(exp.specs("wae"))
    assert run.trained and run.record["machine"]["processes"] == 2 and not exp.runs(exp.specs("wae"))[0].trained
    one = get_or_train(exp.specs("wae")[0], exp.data, exp.engine, tmp_path / "alone")
    assert run.record["labels"] == one.record["labels"] and abs(run.record["test"]["top1"] - one.record["test"]["top1"]) < 0.3
    broken = RunSpec(**vars(exp.specs("half")[0]) | dict(start="0" * 64, width=1.0))
    with pytest.raises(RuntimeError, match="^training on 2 processes failed: ValueError: weights=.*is no file"):
        launch(broken, exp.data, exp.engine, tmp_path / "runs", 2)
    high = replace(exp.recipe, classify=replace(exp.recipe.classify, lr=1e30, optimizer="sgd", clip=None))
    diverging = replace(exp.specs("half")[0], recipe=high)
    with pytest.raises(RuntimeError, match="^training on 2 processes failed: Diverged: .*use a smaller lr"):
        launch(diverging, exp.data, exp.engine, tmp_path / "runs", 2)
