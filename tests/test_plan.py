"""What a run will take: counts and sizes against those of real runs, the arithmetic against numbers written out. Times are printed, not asserted."""

import itertools
import signal
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from wae_nb.data.batches import loader
from wae_nb.data.sets import load_data
from wae_nb.lab.overhead import epoch_parts, loader_rate, main
from wae_nb.train import plan as planning
from wae_nb.train.checkpoints import checkpoints
from wae_nb.train.engine import Engine
from wae_nb.train.loop import fit
from wae_nb.train.plan import Measured, fresh_task, measure_stage, plan, stages_of
from wae_nb.train.recipes import Distill, paper_recipe, short_recipe
from wae_nb.train.runs import finished_run, get_or_train
from wae_nb.train.specs import RunSpec
from wae_nb.train.stage import Training
from wae_nb.train.tasks import ClassifyTask, JointTask, WAETask

CPU = Engine("cpu", progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_data(None, 32, tmp_path_factory.mktemp("cache"), demo_shape=(4, 20))


def made(data, method="wae", **changes):
    """Three epochs of each stage, taught."""
    r = short_recipe("test", 52)
    r = replace(r, wae=replace(r.wae, epochs=3), classify=replace(r.classify, epochs=3), finetune=replace(r.finetune, epochs=2), distill=Distill(), **changes)
    return RunSpec(method, "resnet18", data.checksum, r, image_size=32, width=0.125)


def size(path):
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def test_counts_and_sizes_are_those_of_the_runs(data, tmp_path, monkeypatch):
    """The stages, their updates, the weights and the answers that stay, of a run that is planned and then trained."""
    spec = made(data)
    planned = plan(spec, data, CPU, devices=[1], steps=2)
    calls = []
    for task in (WAETask, ClassifyTask, JointTask):
        forward = task.forward
        monkeypatch.setattr(task, "forward", lambda self, *given, forward=forward: calls.append(1) or forward(self, *given))
    real = []
    for s in stages_of(spec):
        calls.clear()
        run = get_or_train(s, data, CPU, tmp_path)
        real.append((s.title, len(calls), run.record["epochs"]))
        print(f"{s.title}: planned {3600 * planned.stages[len(real) - 1].hours:.2f} s, took {run.record['seconds']:.2f} s")
    assert [(s.title, s.updates * s.epochs, s.epochs) for s in planned.stages] == real
    weights = [size(p) for p in tmp_path.glob("*/model.safetensors")] + [size(p) for p in tmp_path.glob("*/decoder.safetensors")]
    assert planned.disk["weights"] == pytest.approx(sum(weights), rel=0.02)  # the names in a file's head are longer where decoder and network share it
    answers = [p for p in tmp_path.rglob("answers/*.safetensors")]
    assert len(answers) == 3 and planned.disk["answers"] == sum(size(p) - 8 - int.from_bytes(p.read_bytes()[:8], "little") for p in answers)
    assert planned.disk["packed images"] == data.images.size


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_checkpoints_are_those_of_a_run(data, tmp_path, stage):
    spec = replace(made(data), stage=stage)
    m = measure_stage(spec, data, CPU, spec.stage_recipe().batch_size, steps=2)
    alone = replace(spec, recipe=replace(spec.recipe, distill=None))
    fit(fresh_task(alone, 4), data, alone.stage_recipe(), 32, tmp_path, 0, CPU)
    assert m.checkpoint == pytest.approx(size(checkpoints(tmp_path)[-1]), abs=2000)  # a line an epoch
    trained = sum(p.numel() for p in fresh_task(spec, 4).parameters() if p.requires_grad)
    assert m.gradients == 4 * trained and m.weights >= m.gradients
    assert min(m.update, m.evaluation) > 0 and (m.answers > 0) == (stage > 1) and m.memory > 10 * m.checkpoint


def test_tasks_are_those_of_the_runs(data, tmp_path):
    """The same parameters, the same of them frozen, for every kind of method."""
    from wae_nb.train.runs import _task

    r = replace(made(data).recipe, distill=None, **{k: replace(getattr(made(data).recipe, k), epochs=1) for k in ("wae", "classify", "finetune")})
    for spec in [replace(made(data, m), recipe=r) for m in ("wae", "I_L", "linear", "half")]:
        for s in stages_of(spec):
            mine, theirs = fresh_task(s, 4), _task(s, data, tmp_path)
            assert type(mine) is type(theirs) and mine.rate == theirs.rate
            of = [[(n, p.shape, p.requires_grad) for n, p in task.named_parameters()] for task in (mine, theirs)]
            assert of[0] == of[1]
            get_or_train(s, data, CPU, tmp_path)
            assert finished_run(s, tmp_path)


def test_written_out(data, monkeypatch):
    """The paper's mini-batches on 1, 4 and 8 devices: shares of 4, 1 and 1 images in stage 1, of 256, 64 and 32 after it; then the sum of what was measured."""
    asked = []

    def measured(spec, data, engine, batch_size, steps):
        asked.append((spec.stage, batch_size))
        return Measured(update=batch_size / 64, evaluation=0.5, answers=0.0, fixed=2.0, memory=None, gradients=800, checkpoint=70, weights=10)

    monkeypatch.setattr(planning, "measure_stage", measured)
    spec = RunSpec("wae", "resnet18", data.checksum, paper_recipe("resnet18"), image_size=32, width=0.125)
    p = plan(spec, data, CPU, steps=2, bandwidth=400.0)
    assert asked == [(1, 4), (1, 1), (2, 256), (2, 64), (2, 32), (3, 256), (3, 64), (3, 32)]
    train, val, test = (len(data.indices(s)) for s in ("train", "val", "test"))
    exchange = {1: 0, 4: 2 * 3 / 4 * 2, 8: 2 * 7 / 8 * 2}  # seconds: 800 bytes at 400 a second
    first, second, third = (dict(zip((1, 4, 8), p.stages[3 * i : 3 * i + 3])) for i in range(3))
    for d, share, busy in ((1, 4, 1), (4, 1, 4), (8, 1, 4)):
        update = share / 64 + exchange[busy]
        assert first[d].updates == train // 4 and first[d].images_per_second == pytest.approx(4 / update)
        assert 3600 * first[d].hours == pytest.approx(20 * ((train // 4) * update + 2) + (20 * val + test) * 0.5 / d)
    for d in (1, 4, 8):  # one mini-batch of all images
        update = 256 / d / 64 + exchange[d]
        assert second[d].updates == 1 and 3600 * second[d].hours == pytest.approx(120 * (update + 2) + (120 * val + test) * 0.5 / d)
        assert 3600 * third[d].hours == pytest.approx(40 * (update + 2) + (41 * val + test) * 0.5 / d)
    assert p.disk == {"packed images": data.images.size, "answers": 0, "weights": 30, "checkpoints": 160}
    assert p.hours(4) == pytest.approx(sum(s[4].hours for s in (first, second, third)))
    said = str(p).splitlines()
    assert len(said) == 1 + 9 + 4 and said[-2].startswith("measured on one cpu") and "exchange of gradients at 4e-07 GB/s" in said[-1]


def test_accumulated_parts_are_one_update(data):
    """A part is a call of the loss; an update takes as many as there are."""
    spec = replace(made(data), stage=2)
    whole, parts = (measure_stage(spec, data, Engine("cpu", accumulation=n, progress=False), 16, steps=3) for n in (1, 4))
    print(f"an update in one part: {1000 * whole.update:.1f} ms, in four: {1000 * parts.update:.1f} ms")
    assert parts.update > 0 and parts.gradients == whole.gradients


@pytest.mark.parametrize("batch, parts", [(16, 4), (32, 2), (32, 4), (64, 2)])
def test_parts_where_images_are_left_over(data, monkeypatch, batch, parts):
    """By a clock that ticks once a call, an update takes its parts' calls: of 56 images a batch of 32 leaves more than a part, one of 64 is not filled."""
    assert len(data.indices("train")) == 56
    monkeypatch.setattr(planning, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    assert measure_stage(replace(made(data), stage=2), data, Engine("cpu", accumulation=parts, progress=False), batch, steps=4).update == parts


def test_a_signal_while_a_few_steps_are_measured(data, monkeypatch, capsys):
    """Nothing is said of a folder that goes."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    look = Training.look
    monkeypatch.setattr(Training, "look", lambda self: signal.raise_signal(signal.SIGINT) or look(self))
    with pytest.raises(SystemExit) as e:
        plan(made(data, "half"), data, CPU, devices=[1], steps=2)
    assert e.value.code == 130 and capsys.readouterr().out == "SIGINT: a few steps were measured, and nothing is kept of them\n"


def test_what_cannot_be_planned(data, monkeypatch):
    spec = made(data, "plain")
    for change, message in [(dict(steps=1), "at least 2 steps"), (dict(devices=[0]), "at least 1 device"), (dict(bandwidth=0.0), "a number above 0")]:
        with pytest.raises(ValueError, match=message):
            plan(spec, data, CPU, **change)
    with pytest.raises(ValueError, match="plan its start: standard network on resnet18"):
        plan(replace(spec, method="taylor", keep=0.5), data, CPU)
    with pytest.raises(ValueError, match="is of the data other"):
        plan(replace(spec, data="other"), data, CPU)
    engine = Engine("cpu")
    monkeypatch.setattr(type(engine.accelerator), "num_processes", 2)
    with pytest.raises(ValueError, match="plan measures one device, but 2 processes are running it"):
        plan(spec, data, engine)
    assert torch.is_grad_enabled()


def test_where_an_epoch_goes(data, monkeypatch):
    """A slow loss, a slow step and a slow disk are each found in their own part, for as long as they take."""
    spec = replace(made(data), stage=2, recipe=replace(made(data).recipe, distill=None))
    updates = len(loader(data, "train", spec.stage_recipe().batch_size))

    def slow(owner, name, seconds):
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *given, **kw: time.sleep(seconds) or call(*given, **kw))

    slow(ClassifyTask, "forward", 0.2)
    slow(torch.optim.AdamW, "step", 0.3)
    slow(type(data), "read", 0.4)
    parts = epoch_parts(spec, data, CPU, epochs=3)
    assert parts["forward"] > 0.2 * updates and parts["step"] > 0.3 * updates
    assert parts["loop"] > 0.4 * updates and parts["evaluation"] > 0
    assert loader_rate(spec, data, seconds=0.1) < spec.stage_recipe().batch_size / 0.4
    with pytest.raises(ValueError, match="epochs=2: use at least 3"):
        epoch_parts(spec, data, CPU, epochs=2)


def test_the_overhead_command(tmp_path, capsys):
    main(["--profile", "smoke", "--backbone", "resnet18", "--runs-dir", str(tmp_path)])
    said = capsys.readouterr().out
    titles = [line.split(", 32 px")[0] for line in said.splitlines() if line.startswith("Ours")]
    assert titles == ["Ours, stage 1", "Ours on resnet18, stage 2", "Ours on resnet18, stage 3"]
    assert said.count("the loader alone gives") == said.count("(loop: at most 5 %)") == 3
