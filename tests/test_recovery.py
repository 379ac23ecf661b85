"""Every fault of `tests/README.md`, injected for real: what the user sees, and that the run then ends as an undisturbed one, to the last bit."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wae_nb.data.batches import LoadingError
from wae_nb.data.folder import DataError
from wae_nb.data.sets import load_data
from wae_nb.method.classifier import build
from wae_nb.train import stage as stages
from wae_nb.train.checkpoints import CheckpointError, checkpoints, damage
from wae_nb.train.divergence import Diverged
from wae_nb.train.engine import Engine
from wae_nb.train.loop import fit
from wae_nb.train.recipes import StageRecipe, short_recipe
from wae_nb.train.records import RecordError
from wae_nb.train.runs import finished_run, get_or_train
from wae_nb.train.specs import RunSpec
from wae_nb.train.tasks import ClassifyTask

STAGE = StageRecipe(lr=1e-3, batch_size=8, epochs=3, optimizer="adamw", schedule="onecycle")
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("mount")


class Cut(Exception):
    """Stands for whatever ends a process in the middle."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_data(None, 32, tmp_path_factory.mktemp("data"), demo_shape=(3, 20))


def each_step(**how) -> Engine:
    return Engine("cpu", progress=False, checkpoint_minutes=0, **how)


def network(data) -> ClassifyTask:
    torch.manual_seed(0)
    recipe = short_recipe("short", 100)
    return ClassifyTask(build("plain", "vgg11_bn", len(data.classes), 32, 0.125, dropout=0.5), recipe, recipe.classify)


def run(data, folder, engine=None, at=None, then=None, stage=STAGE) -> tuple[list[dict], dict]:
    """A fit; before its `at`-th forward pass in training, `then` is called. Its history and weights."""
    task, calls = network(data), [0]
    forward = task.forward

    def watched(*args):
        calls[0] += 1
        if calls[0] == at:
            then()
        return forward(*args)

    task.forward = watched
    result = fit(task, data, stage, 32, folder, 0, engine or each_step(), "VGG11")
    return result["history"], task.state_dict()


def cut():
    raise Cut


def same(a, b) -> bool:
    return a[0] == b[0] and all(torch.equal(v, b[1][k]) for k, v in a[1].items())


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return run(data, tmp_path_factory.mktemp("whole"), Engine("cpu", progress=False))


@pytest.fixture
def small_disk(tmp_path):
    """Called with a size: a disk of its own, which `mount -o remount` makes larger or read-only."""
    if not ROOT:
        pytest.skip("only root can mount a small disk; RLIMIT_FSIZE stands for it in test_file_too_large")
    at = tmp_path / "disk"
    at.mkdir()

    def mount(how):
        if at.is_mount():
            subprocess.run(["mount", "-o", f"remount,{how}", at], check=True)
        elif subprocess.run(["mount", "-t", "tmpfs", "-o", how, "none", at], capture_output=True).returncode:
            pytest.skip("mounting is not allowed here")
        return at

    yield mount
    if at.is_mount():
        subprocess.run(["umount", "-l", at], check=True)


# killed

KILLED = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_recovery as t
from wae_nb.data.sets import load_data
from wae_nb.train import stage as stages

folder, stage, rng = Path({folder!r}), t.replace(t.STAGE, epochs=16), random.Random(0)
look = stages.Training.look


def train(name, told=None):  # in a process of its own
    if pid := os.fork():
        return pid

    def noted(self):
        if told is not None:
            os.write(told, (self.progress["epoch"] * self.updates.steps + self.progress["step"]).to_bytes(2))
        look(self)

    stages.Training.look = noted
    data = load_data(None, 32, folder / "data", demo_shape=(3, 20))
    history, weights = t.run(data, folder / name, stage=stage)
    torch.save([history, weights], folder / (name + ".pt"))
    os._exit(0)


os.waitpid(train("whole"), 0)
for attempt in range(20):
    read, write = os.pipe()
    pid = train("cut", write)
    os.close(write)
    steps = [int.from_bytes(os.read(read, 2)) for _ in range(rng.randint(1, 3))]  # on a slow machine, too, all but the last have their checkpoints
    time.sleep(rng.random() * 0.08)  # into the step after, its checkpoint or an evaluation
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    print("from", steps[0], "to", steps[-1] + len(os.read(read, 1000)) // 2, flush=True)
    os.close(read)
os.waitpid(train("cut"), 0)
"""


def test_killed_at_twenty_random_steps(tmp_path):
    """SIGKILL twenty times, at steps, in checkpoints and evaluations as it comes: no step but the last is done again, and all ends as if nothing had been."""
    script = tmp_path / "script.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    attempts = [tuple(map(int, line.split()[1::2])) for line in done.stdout.splitlines() if line.startswith("from")]
    assert len(attempts) == 20 and attempts[0][0] == 1 and attempts[-1][1] > 20
    for (_, reached), (begun, _) in zip(attempts, attempts[1:]):
        assert reached <= begun <= reached + 1  # the step that was reached may have been killed before its checkpoint was there
    a, b = (torch.load(tmp_path / f"{name}.pt") for name in ("cut", "whole"))
    assert same(a, b) and len(checkpoints(tmp_path / "cut")) == 2


# signals


@pytest.mark.parametrize("number, code, workers", [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2)])
def test_signals_save_and_end_with_their_code(tmp_path, number, code, workers):
    """The command, and with it the processes that load, is sent a signal: its step is saved, and the same command goes on to the same record."""
    keys = "method=plain backbone=vgg11_bn image_size=32 width=0.125 recipe=short recipe.classify.epochs=30 recipe.classify.images=64 device=cpu progress=false"
    env = os.environ | {"OMP_NUM_THREADS": "1"}

    def command(runs):
        args = [sys.executable, "-m", "wae_nb.train", *keys.split(), f"workers={workers}", f"data_root={tmp_path / 'pictures'}", f"runs_dir={runs}"]
        return subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True)

    from PIL import Image

    rng = np.random.default_rng(0)
    for c in range(3):
        (tmp_path / f"pictures/{c}").mkdir(parents=True)
        for k in range(30):
            Image.fromarray(rng.integers(60 * c, 60 * c + 99, (37, 37, 3)).astype(np.uint8)).save(tmp_path / f"pictures/{c}/{k}.png")
    job = command(tmp_path / "cut")
    while not list((tmp_path / "cut").glob("*/checkpoint-000[2-9]")):
        assert job.poll() is None, job.stderr.read()[-3000:]
        time.sleep(0.005)
    os.killpg(job.pid, number)
    out, err = job.communicate(timeout=60)
    (folder,) = (tmp_path / "cut").glob("plain-*")
    assert job.returncode == code, (out, err[-3000:])
    assert f"{number.name}: saved {checkpoints(folder)[-1]}; run it again to go on from there" in out and "Traceback" not in err
    records = []
    for runs in ("cut", "whole"):
        job = command(tmp_path / runs)
        out, err = job.communicate(timeout=120)
        assert job.returncode == 0 and out.startswith("trained"), (out, err[-3000:])
        (record,) = (tmp_path / runs).glob("plain-*/record.json")
        records.append(json.loads(record.read_text()))
    assert all(records[0][k] == records[1][k] for k in ("history", "test", "answers", "files"))


def test_another_precision_is_recorded(data, tmp_path, monkeypatch):
    """A run that goes on where numbers are rounded otherwise was trained by both."""
    spec = a_spec(data)
    look, calls = stages.Training.look, []

    def cut_off(self):
        look(self)
        calls.append(1)
        if len(calls) == 2:
            raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(stages.Training, "look", cut_off)
        with pytest.raises(Cut):
            get_or_train(spec, data, each_step(mixed_precision="bf16"), tmp_path)
    other = get_or_train(spec, data, each_step(), tmp_path).record["machine"]
    assert other["mixed_precision"] == "no" and other["precisions_in_turn"] == ["bf16 on cpu", "no on cpu"] and "processes_in_turn" not in other


@pytest.mark.parametrize("evaluating", [False, True])
def test_a_signal_at_a_step_or_in_an_evaluation(data, whole, tmp_path, monkeypatch, capsys, evaluating):
    """The handlers of before are back, the checkpoint is that of the step, and nothing is lost."""
    before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)

    def send():
        signal.raise_signal(signal.SIGTERM)

    if evaluating:
        monkeypatch.setattr(stages, "evaluate", lambda *args: send())
    with pytest.raises(SystemExit) as e:
        run(data, tmp_path, Engine("cpu", progress=False), None if evaluating else 2, send)
    monkeypatch.undo()
    name = f"checkpoint-0000-{len(data.indices('train')) // 8 if evaluating else 2:07d}"
    assert e.value.code == 143 and [c.name for c in checkpoints(tmp_path)] == [name] and name in capsys.readouterr().out
    assert before == [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    assert same(run(data, tmp_path), whole)


def test_interrupting_a_notebook_saves(tmp_path):
    """The kernel is interrupted: the cell ends in KeyboardInterrupt, with a checkpoint."""
    manager = pytest.importorskip("jupyter_client.manager")
    kernel, client = manager.start_new_kernel(kernel_name="python3", env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        code = f"""import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import test_recovery as t
data = t.load_data(None, 32, Path({str(tmp_path)!r}) / "data", demo_shape=(3, 20))
t.run(data, Path({str(tmp_path)!r}) / "run", stage=t.replace(t.STAGE, epochs=1000))"""
        asked = client.execute(code)
        deadline = time.time() + 60
        while not checkpoints(tmp_path / "run"):
            assert time.time() < deadline
            time.sleep(0.05)
        kernel.interrupt_kernel()
        while (answer := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != asked:  # a slow kernel's answers to what came before
            pass
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
    answer = answer["content"]
    assert answer["status"] == "error" and answer["ename"] == "KeyboardInterrupt"
    assert not damage(checkpoints(tmp_path / "run")[-1])


# divergence


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("factor, said, later", [(float("nan"), "loss is nan", 0), (float("inf"), "loss is inf", 0), (1e5, "loss is [0-9.e+]+", 2)])
def test_divergence_stops_within_steps(data, tmp_path, factor, said, later):
    """In the second epoch's second step: named with its place and the last good checkpoint, and nothing is overwritten."""
    steps = len(data.indices("train")) // 8
    task, calls = network(data), [0]
    loss, engine = task.loss, Engine("cpu", progress=False)
    kept = {}

    def spoilt(*args):
        calls[0] += 1
        if calls[0] == steps + 1:
            kept.update(contents(tmp_path))
        return loss(*args) * (factor if calls[0] >= steps + 2 else 1)

    task.loss = spoilt
    where = rf"VGG11: the training {said} in epoch 2, step {2 + later} of {steps}, at lr=0.00\d+; the last good checkpoint is {tmp_path}/checkpoint-0001; use"
    with pytest.raises(Diverged, match=where):
        fit(task, data, STAGE, 32, tmp_path, 0, engine, "VGG11")
    assert calls[0] == steps + 2 + later and contents(tmp_path) == kept


def test_weights_that_are_no_numbers_are_not_saved(data, tmp_path):
    """The loss of the last step is fine, its update is not."""
    task = network(data)
    task.model.low_net[0].weight.register_hook(lambda g: g * float("nan"))
    with pytest.raises(Diverged, match="a weight is not a number in epoch 1, step 1 of .*; there is no checkpoint yet;"):
        fit(task, data, STAGE, 32, tmp_path, 0, each_step(), "VGG11")
    assert not list(tmp_path.iterdir())


# disks


def test_disk_full_and_read_only(data, whole, tmp_path, small_disk):
    """Full: it says what, why and how much; nothing half-written is left, the checkpoints before are whole, with more room it goes on. Read-only: a line."""
    run(data, tmp_path / "size", at=2, then=lambda: None)
    one = sum(p.stat().st_size for p in checkpoints(tmp_path / "size")[-1].iterdir())
    folder = small_disk(f"size={round(2.6 * one)}") / "run"  # two, and the best weights, but not a third beside them
    said = r"checkpoint-000\d-\d+ cannot be written: .*\(\d+\.\d MB are needed, \d+\.\d MB are free\); make room, then run it again"
    with pytest.raises(OSError, match=said) as e:
        run(data, folder)
    assert "\n" not in str(e.value) and str(folder) in str(e.value)
    left = checkpoints(folder)
    assert left and not any(map(damage, left)) and not list(folder.glob("*part*"))
    with pytest.raises(OSError, match="cannot be written"):  # again, and no better
        run(data, folder)
    assert checkpoints(folder) == left
    small_disk("size=200m")
    small_disk("ro")
    with pytest.raises(OSError, match="cannot be written: Read-only file system; use a folder that can be written to"):
        run(data, folder)
    small_disk("rw")
    assert same(run(data, folder), whole)


def test_record_on_a_full_or_read_only_disk(data, tmp_path, small_disk):
    """No room for the record: one line; with room, the run is finished from there. On a read-only disk it is found, and another is refused."""
    runs = small_disk("size=200m") / "runs"
    spec, how = a_spec(data), Engine("cpu", progress=False)
    with pytest.MonkeyPatch.context() as m:
        m.setattr("wae_nb.train.runs.macs", lambda *args: fill(runs.parent))
        with pytest.raises(OSError, match=r"record.json cannot be written: No space left on device \(0.0 MB are free\); make room"):
            get_or_train(spec, data, how, runs)
    assert not (runs / spec.name / "record.json").exists() and not list(runs.glob("*/.*part"))
    (runs.parent / "filling").unlink()
    first = get_or_train(spec, data, how, runs)
    small_disk("ro")
    found = get_or_train(spec, data, how, runs)
    assert first.trained and not found.trained and found.record == first.record
    with pytest.raises(OSError, match=r"lock cannot be written: Read-only file system; use a folder that can be written to$"):
        get_or_train(replace(spec, seed=1), data, how, runs)


def fill(disk: Path) -> int:
    """Leave no room at all."""
    with open(disk / "filling", "wb", buffering=0) as f:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    f.write(bytes(size))
            except OSError:
                pass
    return 1


def a_spec(data, **kw) -> RunSpec:
    r = short_recipe("short", 100)
    return RunSpec("plain", "vgg11_bn", data.checksum, replace(r, classify=STAGE, dropout=0.5), image_size=32, width=0.125, **kw)


def test_file_too_large(data, whole, tmp_path):
    """A limit of a user's, which no look at the free room shows."""
    most = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most[1]))

    try:
        with pytest.raises(OSError, match=f"{tmp_path}/checkpoint-0000-0000003 cannot be written: .*[Ff]ile.*make room"):
            run(data, tmp_path, at=3, then=limit)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    assert [c.name[-1] for c in checkpoints(tmp_path)] == ["1", "2"] and not any(map(damage, checkpoints(tmp_path))) and not list(tmp_path.glob("*part*"))
    assert same(run(data, tmp_path), whole)


# damaged files


def spoil(path: Path, rng: random.Random) -> None:
    """Cut at a random byte, change one, or take it away."""
    read, how = path.read_bytes(), rng.choice(["cut", "changed", "gone"])
    if how == "gone" or not read:
        path.unlink()
    elif how == "cut":
        path.write_bytes(read[: rng.randrange(len(read))])
    else:
        at = rng.randrange(len(read))
        path.write_bytes(read[:at] + bytes([read[at] ^ 1 << rng.randrange(8)]) + read[at + 1 :])


def test_any_damaged_file_of_a_run_that_was_cut(data, whole, tmp_path, capsys):
    """Each file in turn: a line names it, the checkpoint before is used, the outcome is the same. With both damaged, an error names them and the remedy."""
    rng, steps = random.Random(0), len(data.indices("train")) // 8
    with pytest.raises(Cut):
        run(data, tmp_path / "cut", at=2 * steps + 3, then=cut)
    names = [p.relative_to(tmp_path / "cut") for p in sorted((tmp_path / "cut").rglob("*")) if p.is_file()]
    before, last = checkpoints(tmp_path / "cut")
    assert len(names) >= 15 and last.name == f"checkpoint-0002-{2:07d}"
    for name in names:
        again = tmp_path / "again"
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(tmp_path / "cut", again)
        spoil(again / name, rng)
        capsys.readouterr()
        if name.name.startswith("best"):  # both checkpoints speak of it
            with pytest.raises(CheckpointError, match=f"{name}.*; no checkpoint is left to go on from: remove {again} to train it anew"):
                run(data, again)
            continue
        assert same(run(data, again), whole), name
        said = capsys.readouterr().out
        if name.parts[0] == last.name:
            assert said.startswith(f"{again / last.name} is damaged: {name.name} is") and said.endswith(f"; going on from {again / before.name}\n"), said
        else:
            assert not said
    for c in checkpoints(tmp_path / "cut"):
        spoil(c / "model.safetensors", rng)
    with pytest.raises(CheckpointError, match=f"{last} is damaged: .*; {before} is damaged: .*; no checkpoint is left to go on from: remove"):
        run(data, tmp_path / "cut")


def test_any_damaged_file_of_a_finished_run(data, tmp_path):
    """A network or a record that is not as it was written is refused, with its path and the remedy; the other files are for people alone."""
    rng, runs = random.Random(1), tmp_path / "runs"
    whole = get_or_train(a_spec(data), data, Engine("cpu", progress=False), runs)
    weights, seen = whole.model.state_dict(), set()
    names = sorted(p.name for p in whole.folder.iterdir())
    assert set(names) == {"config.json", "metrics.jsonl", "model.safetensors", "record.json"}
    for name in names * 4:
        kept = (whole.folder / name).read_bytes()
        spoil(whole.folder / name, rng)
        there = (whole.folder / name).exists()
        if name == "record.json":
            if there:
                with pytest.raises(RecordError, match=rf"{whole.folder}/record.json .*; remove (its|the) folder to run it again"):
                    finished_run(whole.spec, runs)
            else:
                assert finished_run(whole.spec, runs) is None
        elif name == "model.safetensors":
            with pytest.raises(RecordError, match=rf"{whole.folder}/model.safetensors is damaged \(.*\); remove {whole.folder} to train it anew"):
                print(finished_run(whole.spec, runs).model)
        else:
            assert all(torch.equal(v, weights[k]) for k, v in finished_run(whole.spec, runs).model.state_dict().items())
        seen.add((name, there))
        (whole.folder / name).write_bytes(kept)
    assert len(seen) > 4


def test_damaged_step_of_pruning(data, tmp_path, capsys):
    """A network that was pruned, written down and damaged: its step is done again, from the one before."""
    r = short_recipe("short", 100)
    tune = replace(STAGE, epochs=1, schedule="constant")
    r = replace(r, classify=tune, prune=replace(r.prune, between=tune, end=tune, parts=3, images=20))
    spec = RunSpec("taylor", "vgg11_bn", data.checksum, r, image_size=32, width=0.125, keep=0.5)
    whole, runs = get_or_train(spec, data, Engine("cpu", progress=False), tmp_path / "whole"), tmp_path / "cut"
    rng = random.Random(2)
    for _ in range(2):
        with pytest.MonkeyPatch.context() as m:
            m.setattr("wae_nb.train.loop.Training.epoch", lambda self, bar, epoch=stages.Training.epoch: cut() if "part 2" in self.title else epoch(self, bar))
            with pytest.raises(Cut):
                get_or_train(spec, data, Engine("cpu", progress=False), runs)
        written = sorted((runs / spec.name).glob("parts-*"))
        assert len(written) == 2
        spoil(written[-1] / "weights.safetensors", rng)
    again = get_or_train(spec, data, Engine("cpu", progress=False), runs)
    assert f"{written[-1]} is damaged: weights.safetensors is" in capsys.readouterr().out
    assert all(again.record[k] == whole.record[k] for k in ("files", "history", "widths", "test"))


# two jobs on one folder

JOB = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_recovery as t
from wae_nb.train import stage as stages

folder, slow = Path({folder!r}), len(sys.argv) > 1
data, look = t.load_data(None, 32, folder / "data", demo_shape=(3, 20)), stages.Training.look
if slow:
    stages.Training.look = lambda self: (look(self), time.sleep(2))
run = t.get_or_train(t.a_spec(data), data, t.each_step(), folder / "runs")
print("trained" if run.trained else "found", flush=True)
"""


def test_two_jobs_on_one_folder(data, tmp_path):
    """The second says that it waits. The first is killed: it holds nothing any more, and the second goes on from where it was. A third finds the run."""
    script = tmp_path / "script.py"
    script.write_text(JOB.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    kw = dict(stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"})
    folder, first = tmp_path / "runs" / a_spec(data).name, subprocess.Popen([sys.executable, script, "slow"], **kw)
    while not checkpoints(folder):
        assert first.poll() is None
        time.sleep(0.01)
    second = subprocess.Popen([sys.executable, script], **kw)
    assert second.stdout.readline() == f"{a_spec(data).name} is being trained by another process; waiting for it\n"
    assert first.poll() is None
    reached = checkpoints(folder)[-1]
    first.kill()
    assert second.stdout.readline() == "trained\n" and second.wait() == 0
    record = json.loads((folder / "record.json").read_text())
    third = get_or_train(a_spec(data), data, each_step(), tmp_path / "runs")
    assert not third.trained and third.record == record and reached.name > "checkpoint-0000"
    whole = get_or_train(a_spec(data), data, Engine("cpu", progress=False), tmp_path / "whole").record
    assert all(record[k] == whole[k] for k in ("files", "history", "test"))
    first.stdout.close(), second.stdout.close(), first.wait()


# data, and the processes that load them


@pytest.fixture
def own(data, tmp_path):
    """The data set in a folder of its own."""
    shutil.copytree(Path(data.images.filename).parent, tmp_path / "own")
    images = np.load(tmp_path / "own/images.npy", mmap_mode="r")
    return replace(data, images=images)


def test_images_that_change_under_a_run(own, whole, tmp_path):
    """Another picture, and a file cut short: one line, and no checkpoint of what was learned from it. With the file as it was, the run goes on."""
    path, steps = Path(own.images.filename), len(own.indices("train")) // 8
    kept, stat = path.read_bytes(), path.stat()

    def change():
        path.write_bytes(kept[:-5000] + bytes(5000))

    with pytest.raises(DataError, match=f"{path} was changed while it was trained on; put back what was there, then run it again: it goes on from .*-0001$"):
        run(own, tmp_path / "run", Engine("cpu", progress=False), steps + 2, change)
    assert [c.name for c in checkpoints(tmp_path / "run")] == ["checkpoint-0001"]
    for workers in (0, 1):
        path.write_bytes(kept)
        with pytest.raises(DataError, match=f"^{path} ends before image [0-9]+; remove its folder to have the images packed anew$"):
            run(own, tmp_path / "run", Engine("cpu", progress=False, workers=workers), 2, lambda: os.truncate(path, 20_000))
    path.write_bytes(kept)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert same(run(own, tmp_path / "run"), whole)


def test_a_loading_process_is_killed(data, whole, tmp_path):
    """As the system does where memory runs out: one line that says so, and the run goes on from its last checkpoint."""
    import multiprocessing

    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(0.5)

    stage = replace(STAGE, batch_size=1)
    said = r"^loading process \d+ was killed, by the system where .*; use fewer workers, or workers=0; run it again: it goes on from .*-0000-0000003$"
    with pytest.raises(LoadingError, match=said):
        run(data, tmp_path / "cut", each_step(workers=1), 4, kill, stage)
    one = replace(stage, epochs=1, schedule="constant")
    with pytest.raises(LoadingError):
        run(data, tmp_path / "again", each_step(workers=1), 4, kill, one)
    assert same(run(data, tmp_path / "again", each_step(workers=1), stage=one), run(data, tmp_path / "one", Engine("cpu", progress=False), stage=one))


SHM = """
import subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "none", "/dev/shm"], check=True)  # seen by this process alone
sys.path.insert(0, {tests!r})
import test_recovery as t
data = t.load_data(None, 32, Path({folder!r}) / "data", demo_shape=(3, 20))
try:
    t.run(data, Path({folder!r}) / "run", t.Engine("cpu", progress=False, workers=2))
except t.LoadingError as e:
    print(e)
t.run(data, Path({folder!r}) / "run", t.Engine("cpu", progress=False, workers=0))
"""


def test_shared_memory_is_full(tmp_path):
    """As in a container of 64 MB: one line with its size and the remedy, which works."""
    if not ROOT or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("only root can have a /dev/shm of its own")
    script = tmp_path / "script.py"
    script.write_text(SHM.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    done = subprocess.run(["unshare", "-m", sys.executable, script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = done.stdout.splitlines()
    assert line.startswith("loading ran out of shared memory (/dev/shm has 0 MB, 0 MB of them free); use workers=0, or give it more")


def test_tensorboard_has_every_epoch_once(data, whole, tmp_path):
    """Read by its own reader, after a cut: the values of the history."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Cut):
        run(data, tmp_path, each_step(tensorboard=True), 2 * (len(data.indices("train")) // 8) + 2, cut)
    assert same(run(data, tmp_path, each_step(tensorboard=True)), whole)
    read = accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(read.Tags()["scalars"]) == set(whole[0][0]) - {"epoch"}
    for name in read.Tags()["scalars"]:
        assert [(e.step, e.value) for e in read.Scalars(name)] == [(h["epoch"], pytest.approx(h[name], rel=1e-6)) for h in whole[0]]
