"""The training loop: when the plateau divides, what it keeps in memory and puts back, how a run goes on, and a method that is only an entry."""

import gc
import json
import os
import platform
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from wae_nb.cli_networks import _fits
from wae_nb.data.sets import load_data
from wae_nb.method import classifier
from wae_nb.method.classifier import METHODS, Method, build
from wae_nb.method.losses import transform_loss
from wae_nb.method.wae import WAE, Encoder
from wae_nb.prune.pruners import STRUCTURES
from wae_nb.train import noise, pruning, tasks
from wae_nb.train.__main__ import RECIPES, made_of, train
from wae_nb.train.engine import Engine
from wae_nb.train.launch import written
from wae_nb.train.loop import fit
from wae_nb.train.noise import evaluate_noise
from wae_nb.train.recipes import Distill, StageRecipe, paper_recipe, short_recipe
from wae_nb.train.records import digest, precision_of, read_record
from wae_nb.train.runs import finished_run, get_or_train
from wae_nb.train.specs import RunSpec
from wae_nb.train.tasks import ClassifyTask, Task, WAETask

CPU = dict(device="cpu", progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_data(None, 32, tmp_path_factory.mktemp("data"), demo_shape=(3, 16))


class Scripted(Task):
    """A task whose validation says what it is told, epoch after epoch."""

    def __init__(self, values):
        super().__init__()
        self.weight, self.values, self.seen = nn.Parameter(torch.ones(())), iter(values), []

    def forward(self, x, y):
        self.seen.append(self.weight.detach() * x.mean())
        return self.weight * x.mean()

    def eval_metrics(self, x, y):
        return dict.fromkeys((self.metric, "loss"), torch.full((len(x),), next(self.values)))


class Falling(Scripted):
    metric, mode = "loss", "min"


# epoch by epoch: an equal value is not a better one; the count begins anew after a better one and after a division
SCRIPT = [0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.7, 0.6, 0.65, 0.7, 0.1]


@pytest.mark.parametrize("task, values", [(Scripted, SCRIPT), (Falling, [1 - v for v in SCRIPT])])
def test_plateau_is_three_epochs_without_a_better_one(data, tmp_path, task, values):
    """Divided after the third in a row, and over after the second division; the rate that an epoch had is in its line."""
    stage = StageRecipe(lr=1e-9, batch_size=16, epochs=20, schedule="plateau", drops=2, weight_decay=0)
    result = fit(task(values), data, stage, 32, tmp_path, 0, Engine(**CPU))
    assert [h["lr"] for h in result["history"]] == pytest.approx([1e-9] * 5 + [1e-10] * 5)
    assert result["epochs"] == 10 and result["best_epoch"] == 7


def test_step_divides_after_its_epochs(data, tmp_path):
    """The paper's stage 1: ten epochs at the first rate."""
    stage = replace(paper_recipe().wae, epochs=12, batch_size=16)
    result = fit(Scripted([0.5] * 12), data, stage, 32, tmp_path, 0, Engine(**CPU))
    assert [h["lr"] for h in result["history"]] == pytest.approx([1e-6] * 10 + [1e-7] * 2)


def test_loss_of_an_epoch(data, tmp_path):
    """The mean over batches to the last bit, with one block for all and not a scalar a batch."""

    class Watched(Scripted):
        alive = []

        def forward(self, x, y):
            loss = super().forward(x, y)
            self.seen[-1] = float(loss.detach())
            if len(self.seen) in (5, 25):
                self.alive.append(sum(type(o) is torch.Tensor and o.dim() == 0 for o in gc.get_objects()))
            return loss

    task = Watched([0.5])
    result = fit(task, data, StageRecipe(lr=1e-3, batch_size=1, epochs=1), 32, tmp_path, 0, Engine(**CPU))
    assert len(task.seen) >= 25 and task.alive[1] <= task.alive[0] + 2
    assert result["history"][0]["train_loss"] == float(torch.tensor(task.seen).mean())


@pytest.mark.parametrize("before", [False, True])
def test_determinism_is_put_back(data, tmp_path, monkeypatch, before):
    """cuDNN's setting is on while a network is trained or pruned, and then as it was, whatever happened."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", before)

    class Checked(Scripted):
        def forward(self, x, y):
            assert torch.backends.cudnn.deterministic
            return super().forward(x, y) * (float("nan") if self.spoilt else 1)

    for spoilt in (False, True):
        task = Checked([0.5])
        task.spoilt = spoilt
        try:
            fit(task, data, StageRecipe(lr=1e-3, batch_size=16, epochs=1), 32, tmp_path / str(spoilt), 0, Engine(**CPU))
        except RuntimeError:
            assert spoilt
        assert torch.backends.cudnn.deterministic == before
    with pytest.raises(AttributeError):
        pruning.prune_run(None, None, data, None, tmp_path)
    assert torch.backends.cudnn.deterministic == before


@pytest.mark.parametrize("reduction, scale, lam", [("sum", 1.0, 1.0), ("mean", 255.0, 0.3)])
@pytest.mark.parametrize("autocast", [False, True])
def test_stage_1_is_evaluated_at_once(monkeypatch, reduction, scale, lam, autocast):
    """The loss of each image as `transform_loss` gives it for that image alone, in one call for the batch; odd sizes and bfloat16, too."""
    torch.manual_seed(0)
    wae, x, mean = WAE(), torch.rand(7, 3, 33, 45), torch.rand(3, 1, 1)
    task, calls = WAETask(wae, mean, replace(paper_recipe(), reduction=reduction, pixel_scale=scale, lam=lam)), []
    monkeypatch.setattr(tasks, "transform_loss", lambda *args: calls.append(1) or transform_loss(*args))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        values = task.eval_metrics(x, None)
        d, rec = wae(x - mean)
        parts = zip((x - mean).split(1), rec.split(1), d.low.split(1), d.high.split(1))
        one_by_one = torch.stack([transform_loss(a, b, type(d)(low, high), lam, reduction, scale) for a, b, low, high in parts])
    assert len(calls) == 1 and values["loss"].shape == (7,) and values["loss"].dtype == torch.float32
    torch.testing.assert_close(values["loss"], one_by_one, rtol=1e-6, atol=0)


@pytest.mark.parametrize("order", ["ab", "ba", "aab", "baab"])
def test_engines_keep_their_own_precision(order):
    """Accelerate's state is one for a process: each engine says and does its own, whichever was made or used last."""
    engines = dict(a=Engine("cpu", "bf16", progress=False), b=Engine("cpu", "no", progress=False))
    for name in order:
        acc, wanted = engines[name].accelerator, dict(a=("bf16", torch.bfloat16), b=("no", torch.float32))[name]
        with acc.autocast():
            assert (acc.mixed_precision, (torch.ones(2, 2) @ torch.ones(2, 2)).dtype) == wanted and acc.device.type == "cpu"
        assert engines[name].accelerator is acc  # until another is used


class Cut(Exception):
    pass


def test_resumed_with_loading_processes(data, tmp_path):
    """A network with dropout, cut off in its last epoch: every weight as in one go, and as without loading processes."""

    def run(folder, workers, stop=0):
        torch.manual_seed(0)
        recipe = short_recipe("short", 100)
        task = ClassifyTask(build("plain", "vgg11", 3, 32, 0.125, dropout=0.5), recipe, recipe.classify)
        if stop:
            learn, calls = task.forward, iter(range(100))
            task.forward = lambda *args: learn(*args) if next(calls) < stop else (_ for _ in ()).throw(Cut)
        fit(task, data, StageRecipe(lr=1e-3, batch_size=16, epochs=2, optimizer="adamw"), 32, tmp_path / folder, 0, Engine(**CPU, workers=workers))
        return task.state_dict(), (tmp_path / folder / "metrics.jsonl").read_text()

    weights, metrics = run("whole", 0)
    with pytest.raises(Cut):
        run("cut", 2, 3)
    assert len(list((tmp_path / "cut").glob("checkpoint-0001"))) == 1
    for again, lines in (run("cut", 2), run("other", 2)):
        assert lines == metrics and all(torch.equal(v, again[k]) for k, v in weights.items())


def test_record_names_what_changes_the_result(data, tmp_path):
    """Processes, precision and accumulation; a record from before there was accumulation in it is still read."""
    recipe = short_recipe("short", 100)
    recipe = replace(recipe, classify=replace(recipe.classify, epochs=1, batch_size=16))
    spec = RunSpec("plain", "resnet18", data.checksum, recipe, image_size=32, width=0.125)
    run = get_or_train(spec, data, Engine(**CPU, accumulation=4), tmp_path)
    assert {k: run.record["machine"][k] for k in ("processes", "mixed_precision", "accumulation")} == dict(processes=1, mixed_precision="no", accumulation=4)
    record = json.loads((run.folder / "record.json").read_text())
    del record["machine"]["accumulation"], record["machine"]["mixed_precision"]
    (run.folder / "record.json").write_text(json.dumps(record | dict(digest=digest(record))))
    assert finished_run(spec, tmp_path).record["test"] == run.record["test"] and precision_of(record) == "no"


class Inside(nn.Module):
    """An encoder within a decomposer of one's own."""

    def __init__(self):
        super().__init__()
        self.inner = Encoder()

    def forward(self, x):
        return self.inner(x)


def test_made_up_method(data, tmp_path, monkeypatch):
    """An entry of `METHODS` with the paper's stages, and no other edit: trained by them, with the encoder that it points to."""
    monkeypatch.setitem(METHODS, "inside", Method("Inside", Inside, 0.5, 3, stages=(1, 2, 3), encoder=lambda d: d.inner))
    recipe = short_recipe("short", 100)
    recipe = replace(recipe, **{k: replace(getattr(recipe, k), epochs=1) for k in ("wae", "classify", "finetune")})
    spec = RunSpec("inside", "resnet18", data.checksum, recipe, image_size=32, width=0.125)
    ours = replace(spec, method="wae")
    assert (spec.stage, spec.kind, spec.title) == (3, "decomposition", "Inside on resnet18, stage 3")
    assert spec.parent.parent == ours.parent.parent and spec.parent != ours.parent and spec.name != ours.name
    third = get_or_train(spec, data, Engine(**CPU), tmp_path)
    second, first = (finished_run(s, tmp_path) for s in (spec.parent, spec.parent.parent))
    inner = second.model.decomposer.inner, third.model.decomposer.inner
    for a, b in ((second.wae.encoder, first.wae.encoder), (inner[0], first.model.encoder), (third.wae.encoder, inner[1])):
        assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    for stage, (method, said) in ((4, ("inside", "stages 1 to 3")), (0, ("inside", "stages 1 to 3")), (1, ("wavelet", "one stage, 0"))):
        with pytest.raises(ValueError, match=f"stage={stage}: method '{method}' has {said}$"):
            RunSpec(method, "resnet18", "data", recipe, stage=stage)
    plain = get_or_train(RunSpec("wavelet", "resnet18", data.checksum, recipe, image_size=32, width=0.125), data, Engine(**CPU), tmp_path)
    with pytest.raises(ValueError, match="method='wavelet' has no auto-encoder; these have: I_L, wae, inside$"):
        print(plain.wae)


def test_data_packed_for_another_size_are_refused(data, tmp_path):
    """The checksum is of the sources, and the same for every size: what would be cut from larger images is another part of them."""
    larger = load_data(None, 64, tmp_path, demo_shape=(3, 16))
    assert larger.checksum == data.checksum
    spec = RunSpec("plain", "resnet18", data.checksum, short_recipe("short", 100), image_size=32, width=0.125)
    for s, d, side in ((spec, larger, 73), (replace(spec, image_size=64), data, 37)):
        with pytest.raises(ValueError, match=f"^image_size={s.image_size}: crops of it are cut from .* is packed at {side}×{side}; load the data with"):
            get_or_train(s, d, Engine(**CPU), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_whole_number_and_a_float_are_the_same_run():
    """A process that is handed the spec as JSON makes floats of whole numbers; both give the run the same name."""
    r = short_recipe("short", 100)
    r = replace(r, dropout=0, pixel_scale=1, classify=replace(r.classify, clip=5, lr=1, weight_decay=0, crop_area=(1, 1)), distill=Distill(alpha=1, lr=1))
    for spec in (RunSpec("half", "resnet18", "data", r, width=1), RunSpec("taylor", "vgg16", "data", r, width=1, keep=1)):
        again = made_of(RunSpec, json.loads(json.dumps(asdict(spec))))
        assert again == spec and json.dumps(again.fingerprint()) == json.dumps(spec.fingerprint()) and again.name == spec.name
    assert replace(spec, width=1.0).name == spec.name and r.classify.clip == 5 and isinstance(r.classify.clip, float)
    with pytest.raises(ValueError, match="^width='wide': use a number$"):
        replace(spec, width="wide")


@pytest.mark.parametrize("method", STRUCTURES)
def test_weights_do_not_fit_a_published_structure(data, tmp_path, method):
    """Whether given, or a teacher's: in one line, before anything is trained; the command doesn't ask for them."""
    spec = RunSpec(method, "vgg16", data.checksum, short_recipe("short", 100), image_size=32, width=1, start="0" * 64)
    with pytest.raises(ValueError, match=f"^method='{method}' has channels of its own, which no weights fit"):
        get_or_train(spec, data, Engine(**CPU), tmp_path)
    taught = replace(spec, start="", recipe=replace(spec.recipe, distill=Distill(start=True)))
    with pytest.raises(ValueError, match=f"^start=True: method '{method}' has other widths"):
        get_or_train(taught, data, Engine(**CPU), tmp_path)
    assert not _fits(method) and not list(tmp_path.iterdir())


def test_noise_that_was_tested_elsewhere_is_tested_again(data, tmp_path, monkeypatch):
    """On another machine the variances of before are tested together with the new ones; a cut loses none of them."""
    recipe = short_recipe("short", 100)
    recipe = replace(recipe, classify=replace(recipe.classify, epochs=1, batch_size=16))
    run = get_or_train(RunSpec("plain", "resnet18", data.checksum, recipe, image_size=32, width=0.125), data, Engine(**CPU), tmp_path)
    first = evaluate_noise(run, data, [0.1, 0.2], Engine(**CPU))
    machine, test, tested = noise.machine, noise.evaluate, []

    def cut(*args, variance, **kw):
        if len(tested) == 1:
            raise Cut
        tested.append(variance)
        return test(*args, variance=variance, **kw)

    monkeypatch.setattr(noise, "machine", lambda acc: machine(acc) | dict(threads=99))
    with monkeypatch.context() as m, pytest.raises(Cut):
        m.setattr(noise, "evaluate", cut)
        evaluate_noise(run, data, [0.3], Engine(**CPU))
    second = evaluate_noise(run, data, [0.3], Engine(**CPU))
    assert tested == [0.1] and list(second["test"]) == ["0.1", "0.2", "0.3"] and second["machine"]["threads"] == 99
    assert all(second["answers"][k] == v for k, v in first["answers"].items()) and second.keys() == first.keys()
    assert second == read_record(run.folder / f"{second['name']}.json")


def test_noise_that_two_test_at_once(data, tmp_path, monkeypatch, capsys):
    """Of two that meet on one run the second waits, and adds to what the first has found; a V that would be kept under another's name is refused."""
    recipe = short_recipe("short", 100)
    recipe = replace(recipe, classify=replace(recipe.classify, epochs=1, batch_size=16))
    run = get_or_train(RunSpec("plain", "resnet18", data.checksum, recipe, image_size=32, width=0.125), data, Engine(**CPU), tmp_path)
    test, others = noise.evaluate, []

    def meanwhile(*args, **kw):
        if not others:
            others.append(threading.Thread(target=evaluate_noise, args=(run, data, [0.5], Engine(**CPU))))
            others[0].start()
            others[0].join(4)
        return test(*args, **kw)

    monkeypatch.setattr(noise, "evaluate", meanwhile)
    mine = evaluate_noise(run, data, [0.3], Engine(**CPU))
    others[0].join()
    kept = read_record(run.folder / f"{mine['name']}.json")
    assert list(mine["test"]) == ["0.3"] and list(kept["test"]) == ["0.3", "0.5"] and "waiting for it" in capsys.readouterr().out
    with pytest.raises(ValueError, match="^variances=0.1234561: its result is kept under its first six digits"):
        evaluate_noise(run, data, [0.1234561], Engine(**CPU))


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stage", [1, 2])
def test_a_run_comes_whole_to_other_processes(data, tmp_path, monkeypatch, recipe, stage):
    """What is written down for them is what they read, of each recipe that has a name; stage 1 has no backbone."""
    spec = RunSpec("wae", "resnet18", data.checksum, RECIPES[recipe]("resnet18", 100), image_size=32, stage=stage)
    monkeypatch.setattr("wae_nb.train.__main__.get_or_train", lambda spec, *_: spec)
    assert train(json.loads(json.dumps(written(spec, data, Engine(**CPU), tmp_path)))) == spec


WHOLE = [(RunSpec, "seed"), (StageRecipe, "epochs"), (StageRecipe, "batch_size"), (StageRecipe, "images"), (Distill, "epochs")]


@pytest.mark.parametrize("made, name", WHOLE, ids=lambda v: getattr(v, "__name__", v))
def test_whole_numbers(made, name):
    """Of any kind of number, the same run; a part of one, or none at all, is refused."""
    needed = {RunSpec: dict(method="plain", backbone="vgg11", data="d", recipe=short_recipe("s", 100)), StageRecipe: dict(lr=1.0, batch_size=64, epochs=1)}
    given = needed.get(made, {})
    for value in (64, 64.0, np.int64(64)):
        assert type(getattr(made(**given | {name: value}), name)) is int and made(**given | {name: value}) == made(**given | {name: 64})
    for wrong in (1.5, True, "64", float("inf")):
        with pytest.raises(ValueError, match=f"^{name}={wrong!r}: use a whole number"):
            made(**given | {name: wrong})


def test_kinds_and_rates():
    """What makes a row cheaper is an entry's; so is the rate that stage 2 starts with."""
    kinds = {m: RunSpec(m, "vgg16", "data", paper_recipe()).kind for m in ("plain", "half", "wavelet", "wae", "thinet-gap", "thinet", "taylor")}
    assert list(kinds.values()) == ["standard", "resolution", "decomposition", "decomposition", "pruning", "standard", "standard"]  # keep=1: nothing taken out
    assert {RunSpec(m, "vgg16", "data", paper_recipe(), keep=0.5).kind for m in ("thinet", "taylor")} == {"pruning"}
    assert RunSpec("I_L", "vgg16", "data", paper_recipe(), stage=1).kind == "decomposition"
    rates = {b: paper_recipe(b).classify.lr for b in ("vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2")}
    assert list(rates.values()) == [0.01, 0.1, 0.1, 0.1] and classifier.METHODS is METHODS


CLEARED = """
import resource, torch
from pathlib import Path
from wae_nb.train.engine import kept_memory

SIZE, PAGE = 2**26, resource.getpagesize()

def cleared(blocks, size=SIZE):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(blocks):
        torch.ones(size // 4)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * PAGE / size

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / SIZE

out = [cleared(5)]
for _ in range(2):
    before = resident()
    with kept_memory():
        out += [cleared(10) < 10, cleared(5), resident() - before > 0.9]
    out += [abs(resident() - before) < 0.5, cleared(5, 4 * SIZE)]  # larger than what is free between others
print(*(x if isinstance(x, bool) else round(x) for x in out))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not Path("/proc/self/statm").exists(), reason="another C library")
@pytest.mark.parametrize("theirs", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_memory_is_kept_while_a_stage_is_trained(theirs):
    """By the pages that the system has to clear for blocks of 64 MB: all before; none within, once the first blocks have found their places, of which
    there may be two; on leaving, what was kept is the system's again, and all are cleared. What the environment says stays."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | theirs
    done = subprocess.run([sys.executable, "-c", CLEARED], env=env, capture_output=True, text=True)
    each = "False 5 False True 5" if theirs else "True 0 True True 5"
    assert done.stdout.strip() == f"5 {each} {each}", done.stderr[-2000:]
