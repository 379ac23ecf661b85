"""Runs that are cut off, and runs on several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from wae_nb.data.sets import load_data
from wae_nb.train.engine import Engine
from wae_nb.train.evaluation import evaluate
from wae_nb.train.recipes import short_recipe
from wae_nb.train.runs import finished_run
from wae_nb.train.specs import RunSpec
from wae_nb.train.tasks import ClassifyTask

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_faults import made
from wae_nb.train.engine import Engine
from wae_nb.train.evaluation import evaluate
from wae_nb.train.runs import get_or_train

evaluate.__wrapped__.__defaults__ = (4, *evaluate.__wrapped__.__defaults__[1:])  # images a process: so few that both have some
folder, stage, epochs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
data, spec = made(folder, stage, epochs)
print(get_or_train(spec, data, Engine("cpu", progress=False), folder).folder)
"""


def made(folder: Path, stage: int, epochs: int):
    """The data set and the spec of the script's run."""
    data = load_data(None, 32, folder / "data", demo_shape=(4, 20))
    r = short_recipe("test", 64)
    r = replace(r, wae=replace(r.wae, epochs=epochs), classify=replace(r.classify, epochs=epochs), finetune=replace(r.finetune, epochs=epochs))
    return data, RunSpec("wae", "vgg11", data.checksum, r, stage=stage, image_size=32, width=0.125)


def start(folder: Path, stage: int, epochs: int, processes: int = 1) -> subprocess.Popen:
    script = folder.parent / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "29571"] if processes > 1 else []
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, script, folder, str(stage), str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def finish(process: subprocess.Popen) -> None:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]


def outcome(folder: Path, stage: int) -> dict:
    """Everything that a run decides: metrics by epoch and on the test split, but not how long it took."""
    (run,) = folder.glob(f"wae*-stage{stage}-*")
    record = json.loads((run / "record.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == record["history"]
    return {k: record[k] for k in ("name", "test", "best", "best_epoch", "epochs", "history", "answers", "labels", "data", "macs", "parameters")}


def test_killed_and_run_again(tmp_path):
    """SIGKILL in each stage, one after the other: the next attempt goes on from its last checkpoint, and each stage ends where an undisturbed one ends."""
    epochs = 8
    finish(start(tmp_path / "whole", 3, epochs))
    for stage in (1, 2, 3):
        process = start(tmp_path / "cut", 3, epochs)
        deadline = time.time() + 240
        while not list((tmp_path / "cut").glob(f"wae*-stage{stage}-*/checkpoint-000[234]*")):
            assert process.poll() is None and time.time() < deadline, process.communicate()[0]
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        (run,) = (tmp_path / "cut").glob(f"wae*-stage{stage}-*")
        assert not (run / "record.json").exists()
        reached = max(int(p.name.split("-")[1]) for p in run.glob("checkpoint-[0-9]*"))
        assert 2 <= reached < epochs
        before = run.joinpath("metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    finish(start(tmp_path / "cut", 3, epochs))
    assert (run / "metrics.jsonl").read_text().splitlines()[: len(before)] == before
    for stage in (1, 2, 3):
        assert outcome(tmp_path / "cut", stage) == outcome(tmp_path / "whole", stage)
    assert not list((tmp_path / "cut").glob("wae*/checkpoint*"))


def test_two_processes_answer_as_one(tmp_path):
    """Stages 2 and 3 on two processes: the saved weights, tested by one process, give every answer of the record, in the order of the test images."""
    finish(start(tmp_path / "two", 3, 10, processes=2))
    data, specs = made(tmp_path / "two", 3, 10)
    test = data.indices("test")
    for spec in (specs.parent, specs):
        run = finished_run(spec, tmp_path / "two")
        assert run.record["machine"]["processes"] == 2 and run.record["labels"] == data.labels[test].tolist()
        task, engine = ClassifyTask(run.model, spec.recipe, spec.stage_recipe()), Engine("cpu", progress=False)
        means, each = evaluate(task, data, "test", 32, engine, batch_size=len(test))
        assert each["answer"].tolist() == run.record["answers"] and len(set(run.record["answers"])) > 1
        recorded = {k: v for k, v in run.record["test"].items() if k in means}
        assert means == pytest.approx(recorded, rel=1e-4) and {"loss", "top1", "top1_s_c"} <= recorded.keys()
        val = evaluate(task, data, "val", 32, engine)[0]
        assert val == pytest.approx({k: run.record["best"][f"val_{k}"] for k in val}, rel=1e-4)  # one process's batch norms were not the other's
