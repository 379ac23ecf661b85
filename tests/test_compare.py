"""One's own images and network: what is given is a run, rows are taught by it and pruned from it, and the sentence follows the intervals."""

import dataclasses
import importlib.util
import inspect
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy import special, stats
from torchvision.models import resnet18

import wae_nb
from wae_nb.cli import main
from wae_nb.data import faces
from wae_nb.data.sets import load_data
from wae_nb.lab import compare, forecast
from wae_nb.lab.answers import answer, comparison_table, read_comparison
from wae_nb.lab.cheaper import parse_row, spec_of, untrained
from wae_nb.lab.compare import Question, _recipe, plan_rows
from wae_nb.lab.compare_folder import _rows_of, compare_folder
from wae_nb.lab.folders import open_run
from wae_nb.lab.forecast import fit_budget, hours_of
from wae_nb.lab.networks import evaluate_network, network_at
from wae_nb.lab.statistics import accuracy_difference, bootstrap, gains, p_of_difference, score_interval, told_apart
from wae_nb.measure.cost import macs
from wae_nb.method.backbones import IMAGENET_MEAN, IMAGENET_STD, family, whole
from wae_nb.method.weights import keep_weights
from wae_nb.train.engine import Engine
from wae_nb.train.given import give, given_network
from wae_nb.train.recipes import short_recipe
from wae_nb.train.records import RecordError
from wae_nb.train.runs import get_or_train
from wae_nb.train.specs import RunSpec

CPU = dict(device="cpu", progress=False)


def wae(*words):
    return CliRunner().invoke(main, list(map(str, words)), prog_name="wae")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder of four drawn faces, forty pictures of each."""
    root = tmp_path_factory.mktemp("drawn") / "faces"
    for i in range(4):
        (root / f"face{i}").mkdir(parents=True)
        for k in range(40):
            Image.fromarray(faces.render(i, k, 48)).save(root / f"face{i}" / f"{k:02d}.png")
    return root


def speeds(**known):
    """In place of the clock: how many times as fast each row is, 1 where it is not said."""

    def timed(calls, *_, **__):
        return {name: dict(speedup=[k := known.get(name, 1), k, k], latency_ms=[8 / k] * 3) for name in calls}

    return timed


@pytest.fixture(scope="module")
def compared(drawn, tmp_path_factory):
    """Two rows beside a network that was trained for it, by times of which one wins; what pays is not asked, as nothing does at this size."""
    out = tmp_path_factory.mktemp("compared") / "out"
    how = dict(backbone="resnet18", size=32, width=0.125, epochs=8, crops="fixed", engine="eager", device="cpu", precision="no", say=lambda line: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wae_nb.lab.compare.PAYS", 0.0)
        patch.setattr("wae_nb.lab.compare.time_prepared", speeds(half=2))
        yield compare_folder(drawn, out, rows="half,taylor:0.5", points=100.0, **how), out, how


def test_the_record_says_what_was_measured(compared):
    done, out, _ = compared
    record = read_comparison(out / "compare.json")
    base, half, taylor = record["rows"]
    assert [r["row"] for r in record["rows"]] == ["plain", "half", "taylor:0.5"] and record["level"] == 1 - 0.05 / 2
    for row in record["rows"]:
        run = json.loads((out / "runs" / row["run"] / "record.json").read_text())
        assert row["top1"] == run["test"]["top1"] and row["epochs"] == run["epochs"]
        gain = np.equal(run["answers"], run["labels"]).mean() - base["top1"]
        assert row["difference"][0] == pytest.approx(100 * gain, abs=1e-9)
        assert row["difference"][1] <= row["difference"][0] <= row["difference"][2]
    assert base["epochs"] == 0 and half["epochs"] == 8 and base["times"]["speedup"] == [1, 1, 1]
    assert taylor["macs"] == pytest.approx(0.5, abs=0.06) and 0 < taylor["touched"] <= 1
    nets = [network_at(out / "runs" / r["run"]) for r in record["rows"]]
    assert [r["megabytes"] for r in record["rows"]] == pytest.approx([4e-6 * sum(p.numel() for p in n.parameters()) for n in nets], rel=0.02)
    assert [r["macs"] for r in record["rows"]] == pytest.approx([macs(n, 32) / macs(nets[0], 32) for n in nets])
    taught = json.loads((out / "runs" / half["run"] / "record.json").read_text())["decisive"]
    assert taught["teacher"]["given"] and taught["distill"]["start"]
    assert list(comparison_table(record)["top-1 (%)"].sort_index()) == [f"{100 * r['top1']:.2f}" for r in sorted(record["rows"], key=lambda r: r["title"])]
    assert "| less the original, points [97.5 % CI] |" in re.sub(" +", " ", (out / "table.md").read_text())  # 1 − 0.05 / 2: all hold at once
    assert done.answer.sentence in (out / "table.md").read_text() and (out / "front.png").stat().st_size > 10_000


def test_found_again(compared, drawn, tmp_path, monkeypatch):
    """Nothing is trained or planned anew, and the record of the runs is the same."""
    done, out, how = compared
    before = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/record.json")}
    monkeypatch.setattr("wae_nb.train.runs._train", None)
    monkeypatch.setattr("wae_nb.lab.compare.times_ahead", None)
    again = compare_folder(drawn, out, rows="half,taylor:0.5", points=100.0, **how)
    assert {p: p.stat().st_mtime_ns for p in out.glob("runs/*/record.json")} == before
    assert [r["difference"] for r in again.record["rows"]] == [r["difference"] for r in done.record["rows"]]
    out = shutil.copytree(out, tmp_path / "out")  # how much a row may lose is asked of what was measured
    other = compare_folder(drawn, out, rows="half,taylor:0.5", points=99.0, **how)
    assert other.record["question"]["points"] == 99.0 and "within 99 points" in other.answer.sentence and len(list(out.glob("plan-*.json"))) == 1


def test_the_network_is_taken_away(compared, tmp_path, monkeypatch):
    """The chosen row's, in a folder that another process reads: the same answers."""
    _, out, _ = compared
    row = answer(read_comparison(out / "compare.json")).row
    assert row["row"] == "half"
    run = json.loads((out / "runs" / row["run"] / "record.json").read_text())
    data = load_data(next((out / "data").glob("*/meta.json")).parent, 32, out)
    said = wae("eval", out / "cheapest", data_folder(out), "--device", "cpu", "--cache", out / "data", "--json")
    assert said.exit_code == 0, said.stderr
    assert json.loads(said.stdout)["top1"] == pytest.approx(run["test"]["top1"]) and wae_nb.load(out / "cheapest").config["classes"] == list(data.classes)
    for i, folder in enumerate((out / "cheapest", out / "runs" / row["run"])):  # as a file for another engine, checked on the images that lie beside
        said = wae("export", folder, "--to", "torch-export", "--out", tmp_path / f"{i}.pt2", "--json")
        assert said.exit_code == 0 and json.loads(said.stdout)["same_answers"] == 1, said.stderr
    monkeypatch.chdir(out / "runs")
    said = wae("export", row["run"], "--to", "torch-export", "--out", tmp_path / "by-name.pt2")
    assert said.exit_code == 0, said.stderr
    assert network_at(out / "runs" / row["run"]).config["classes"] == list(data.classes)


def test_the_notebook_reads_images_of_the_record_s_size():
    """Of a network that is brought, its own size, whatever the notebook's parameter says."""
    cells = json.loads((Path(__file__).parents[1] / "nbs/08_your_own_model.ipynb").read_text(encoding="utf-8"))["cells"]
    (line,) = (line for c in cells for line in c["source"] if line.startswith("data = load_data("))
    exec(line, here := dict(data_root="", image_size=64, record=dict(image_size=224), out=Path(), load_data=lambda *given: given))
    assert here["data"] == ("", 224, Path("data"))


def data_folder(out):
    return next((out / "data").glob("*/meta.json")).parent


def test_a_changed_record_is_refused(compared, tmp_path):
    _, out, _ = compared
    path = shutil.copy(out / "compare.json", tmp_path)
    text = (out / "compare.json").read_text()
    (tmp_path / "compare.json").write_text(text.replace('"top1": ', '"top1": 1', 1))
    with pytest.raises(RecordError, match="was changed after it was written"):
        read_comparison(path)


def test_rows_that_cannot_pay_are_not_trained(drawn, tmp_path, monkeypatch):
    """By their time before training, which is said."""
    monkeypatch.setattr("wae_nb.lab.compare.PAYS", 1e9)
    said, how = [], dict(backbone="resnet18", size=32, width=0.125, epochs=4, crops="fixed", engine="eager", device="cpu", precision="no")
    done = compare_folder(drawn, tmp_path, rows="half,wae", threads=os.cpu_count(), say=said.append, **how)
    assert done.record["threads"] == done.record["question"]["setting"]["threads"] == os.cpu_count()  # not what PyTorch has
    assert [r["row"] for r in done.record["rows"]] == ["plain"] and done.answer.row is None
    assert sum("can't pay" in line for line in said) == 2 and not list(tmp_path.glob("runs/half*"))


def given_run(out):
    return next(p for p in out.glob("runs/plain*") if not json.loads((p / "record.json").read_text())["epochs"])


def test_each_row_is_judged_by_its_own_time(compared, drawn, tmp_path, monkeypatch):
    """Of a row in INT8 that in INT8, beside the whole network in INT8 where that is asked for: it costs no training. Each that is left out is named."""
    _, out, _ = compared
    monkeypatch.setattr("wae_nb.lab.compare.PAYS", 1.05)
    base, data, asked = open_run(given_run(out)), load_data(drawn, 32, tmp_path), []
    known = {"half": 0.9, "half+int8": 1.5, "wae": 1.2, "wae+int8": 0.8, "dct": 2, "dct+int8": 3, "plain+int8": 1.6}

    def planned(names, hours=None):
        timed = {name: dict(speedup=[known[name]] * 3) for name in names.split(",") if name in known}
        monkeypatch.setattr("wae_nb.lab.compare.times_ahead", lambda rows, *_: asked.append(list(map(str, rows))) or timed)
        monkeypatch.setattr("wae_nb.lab.compare.hours_of", lambda specs, *_: {name: {name: 1.0} for name in specs})
        rows = [parse_row(name, "resnet18") for name in names.split(",")]
        return plan_rows(rows, Question(tuple(names.split(",")), hours=hours), base, data, tmp_path, Engine(**CPU), lambda line: None)

    plan = planned("half,half+int8,wae,wae+int8,I_L+int8")
    assert plan["train"] == ["half", "wae"] and asked == [["half", "half+int8", "wae", "wae+int8", "I_L+int8"]]
    assert plan["left_out"] == {
        "half": "0.90 times as fast: it can't pay",
        "wae+int8": "0.80 times as fast: it can't pay",
        "I_L+int8": "openvino cannot run it",
    }
    plan = planned("plain+int8,half+int8,dct+int8")
    assert plan["train"] == ["dct"] and plan["left_out"] == {"half+int8": "0.94 times as fast as plain+int8: it can't pay"}
    plan = planned("half,half+int8,dct,dct+int8", hours=0.15)
    assert plan["train"] == ["half"] and plan["left_out"] == {
        "half": "0.90 times as fast: it can't pay",
        "dct": "no time in the 0.15 hours that there are",
        "dct+int8": "no time in the 0.15 hours that there are",
    }


@pytest.mark.parametrize("row", ["half", "wae", "linear-in", "three-quarters", "thinet:0.5", "taylor:0.4"])
def test_the_untrained_network_costs_what_the_trained_one_will(row):
    """Operations of the forecast beside those by the rule: of a method its own, of ThiNet and Taylor near the share."""
    given = RunSpec("plain", "vgg11_bn", "0" * 64, short_recipe("s", 100), image_size=64, width=0.25, head="pooled", given="1" * 64)
    spec = spec_of(parse_row(row, "vgg11_bn"), given, given.recipe)
    net, whole = untrained(spec, 5), untrained(given, 5)
    if ":" not in row:
        assert macs(net, 64) == macs(wae_nb.build(row, "vgg11_bn", 5, 64, 0.25, head="pooled"), 64)
    else:
        share = macs(net, 64) / macs(whole, 64)
        assert share < 0.75 if row.startswith("thinet") else abs(share - 0.4) < 0.05
    assert net(torch.rand(2, 3, 64, 64)).s.shape == (2, 5)


def test_what_fits_the_hours(drawn, tmp_path):
    """Every run of the rows is counted once, what is finished not at all."""
    data = load_data(drawn, 32, tmp_path / "data")
    recipe, cpu = short_recipe("s", len(data.indices("train")), updates=4, epochs=4), Engine(**CPU)
    base = RunSpec("plain", "resnet18", data.checksum, recipe, image_size=32, width=0.125)
    specs = {m: RunSpec(m, "resnet18", data.checksum, recipe, image_size=32, width=0.125) for m in ("half", "wae", "I_L")}
    specs["taylor:0.5"] = spec_of(parse_row("taylor:0.5", "resnet18"), RunSpec(**vars(base) | dict(given="1" * 64)), recipe)
    hours = hours_of(specs, data, cpu, tmp_path / "runs", steps=2)
    assert [len(h) for h in hours.values()] == [1, 3, 2, 2] and all(h > 0 for row in hours.values() for h in row.values())
    assert hours["wae"].keys() & hours["I_L"].keys() == {specs["wae"].parent.parent.name}
    get_or_train(specs["half"], data, cpu, tmp_path / "runs")
    assert hours_of(dict(half=specs["half"]), data, cpu, tmp_path / "runs", steps=2) == dict(half={})
    whole = sum({k: v for row in hours.values() for k, v in row.items()}.values())
    assert fit_budget(hours, 8, whole / forecast.SHARE).epochs == 8 and fit_budget(hours, 8, whole / 2 / forecast.SHARE).epochs == 4
    assert fit_budget(hours, 8, whole / 4 / forecast.SHARE).left_out


def test_rounding_takes_no_epoch():
    """The hours that n of the epochs need give n, whatever the hours are: sums and quotients of them are rounded, up and down."""
    draw = np.random.default_rng(0)
    for _ in range(1000):
        hours = {row: {row: float(h)} for row, h in zip("abcd", draw.uniform(0, 1e-3, 4), strict=True)}
        whole = sum(h[row] for row, h in hours.items())
        for n in range(forecast.LEAST_EPOCHS, 9):
            assert fit_budget(hours, 8, whole / 8 * n / forecast.SHARE).epochs == n


def test_a_dear_row_leaves_room_for_the_others():
    """One that does not fit is left out, whatever its place; what is finished costs nothing and stays."""
    fits = fit_budget(dict(wae={"wae": 10.0}, half={"half": 1.0}, done={}), 16, 2.0)
    assert fits.rows == ("half", "done") and fits.left_out == ("wae",) and fits.epochs == 16 and fits.hours == dict(half=1.0, done=0.0)
    assert fit_budget(dict(half={"half": 4.0}, wae={"wae": 4.0}, done={}), 16, 1.3).rows == ("half", "done")
    with pytest.raises(ValueError, match="^hours=1: not one row can be trained in them for 1 epochs; the shortest needs about 11$"):
        fit_budget(dict(half={"half": 9.0}), 1, 1.0)


def test_hours_that_the_standard_network_needs(drawn, tmp_path, monkeypatch):
    """What the refusal names is enough, of all the hours; not enough is a little less."""
    data, cpu = load_data(drawn, 32, tmp_path / "data"), Engine(**CPU)
    fresh = RunSpec("plain", "resnet18", data.checksum, short_recipe("s", len(data.indices("train"))), image_size=32, width=0.125)
    monkeypatch.setattr(compare, "hours_of", lambda specs, *_: dict(plain={"plain": 6.0}))
    monkeypatch.setattr(compare, "get_or_train", lambda spec, *_: pytest.fail(f"{spec.recipe.classify.epochs} epochs"))
    asked = Question(rows=("half",), epochs=48, hours=0.7)
    with pytest.raises(ValueError, match="^hours=0.7: the standard network gets a third of them, and needs about 1.9 in all; give more, or"):
        compare.trained_base(fresh, asked, data, tmp_path, cpu, lambda said: None)
    with pytest.raises(pytest.fail.Exception, match="4 epochs"):
        compare.trained_base(fresh, dataclasses.replace(asked, hours=1.9), data, tmp_path, cpu, lambda said: None)


def test_weights_of_other_classes_are_a_start_and_no_network(drawn, tmp_path):
    """torchvision's whole networks: refused as the network to compare with, taken as a start; the first convolution is theirs before training."""
    torch.manual_seed(0)
    state = resnet18(num_classes=7).state_dict()
    with pytest.raises(ValueError, match="^weights are for 7 classes, and the images have 4: train a head"):
        given_network(state, "resnet18", 4, 32)
    torch.save(state, tmp_path / "w.pth")
    key = keep_weights(tmp_path / "w.pth", "resnet18", tmp_path / "runs")
    assert key == keep_weights(state, "resnet18", tmp_path / "runs") and len(list((tmp_path / "runs/weights").iterdir())) == 1
    (tmp_path / "w.pth").unlink()  # what was given may go
    data = load_data(drawn, 32, tmp_path / "data")
    recipe = short_recipe("s", len(data.indices("train")), updates=1, epochs=1, lr=1e-12)
    for method in ("plain", "half"):
        spec = RunSpec(method, "resnet18", data.checksum, recipe, image_size=32, start=key)
        assert spec.name != RunSpec(method, "resnet18", data.checksum, recipe, image_size=32).name
        net = get_or_train(spec, data, Engine(**CPU), tmp_path / "runs").model
        assert torch.allclose(net.low_net.conv1.weight, state["conv1.weight"], atol=1e-6)
    with pytest.raises(ValueError, match="^width=0.5 of method 'plain': weights fit networks of full width alone"):
        get_or_train(RunSpec("plain", "resnet18", data.checksum, recipe, image_size=32, width=0.5, start=key), data, Engine(**CPU), tmp_path / "runs")


@pytest.mark.parametrize("name, size, alike", [("vgg11_bn", 224, True), ("vgg11_bn", 200, False), ("mobilenet_v3_small", 96, True), ("googlenet", 96, True),
                                               ("timm:resnet18", 96, True), ("timm:lcnet_050", 64, True),
                                               ("timm:test_convnext", 96, True),
                                               ("timm:resnetv2_18", 64, True), ("timm:inception_next_atto", 96, True),
                                               ("timm:repvit_m0_9", 64, False)])  # fmt: skip
def test_a_given_network_gives_its_own_scores(name, size, alike):
    """Those of the network that torchvision or timm makes; where ours is another, it is refused and not compared with."""
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = whole(name, num_classes=4)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn_like(p) * max(0.05, p[0].numel() ** -0.5 if p.ndim > 1 else 1.0))
        theirs.eval()
    if alike:
        net, x = given_network(theirs.state_dict(), name, 4, size), torch.rand(2, 3, size, size)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (family(name).pixels or (lambda _: (IMAGENET_MEAN, IMAGENET_STD)))(name))
        with torch.no_grad():
            assert torch.allclose(net(x).s, theirs((x - mean) / std), rtol=1e-3, atol=1e-3 * float(net(x).s.abs().max()))
    else:
        said = rf"backbone='{name}': at {size} pixels these weights give other scores here, by \S+ of the largest"
        if name.startswith("timm:"):  # a norm that belongs to the layer of the scores
            said = f"weights do not fit the head of {name} for {size} pixels: its authors' head is of another kind"
        with pytest.raises(ValueError, match=f"^{said}"):
            given_network(theirs.state_dict(), name, 4, size)


def test_weights_with_heads_for_another_size():
    """VGG's heads at 64 pixels, as somebody trained them: no other network to compare with, and no trace."""
    torch.manual_seed(0)
    state = whole("vgg11", num_classes=4).state_dict()
    state["classifier.0.weight"] = 0.01 * torch.randn(4096, 512 * 2 * 2)
    net = given_network(state, "vgg11", 4, 64)
    assert any(v.shape == (4096, 2048) and v.equal(state["classifier.0.weight"]) for v in net.head_low.state_dict().values())


def test_a_network_that_knows_nothing_is_refused(drawn, tmp_path):
    """As where its scores are in another order than the folders."""
    data = load_data(drawn, 32, tmp_path / "data")
    net = wae_nb.build("plain", "resnet18", 4, 32, 0.125).eval()
    with torch.no_grad():
        for p in net.head_low.parameters():
            p.zero_()  # one answer for all
    with pytest.raises(ValueError, match="by chance 25.0 %.*in the order of the folders, face0, face1"):
        give(net, data, short_recipe("s", 100), tmp_path / "runs", Engine(**CPU))
    assert not (tmp_path / "runs").exists()


def test_noise_is_of_every_training_of_a_classifier():
    asked = Question(("half",), noise=0.02)
    r = _recipe(asked, SimpleNamespace(indices=lambda split: range(100)), 1, "resnet18")
    assert [s.noise for s in (r.wae, r.classify, r.finetune, r.prune.between, r.prune.end)] == [0, 0.02, 0.02, 0.02, 0.02]
    assert _recipe(Question(("half",)), SimpleNamespace(indices=lambda split: range(100)), 1, "resnet18").classify.noise == 0


def test_patience_is_usual_everywhere():
    """A row is trained for as long from a shell, from Python and from the notebook."""
    shell = {p.name: p.default for p in main.commands["compare"].params}["epochs"]
    cells = json.loads((Path(__file__).parents[1] / "nbs/08_your_own_model.ipynb").read_text(encoding="utf-8"))["cells"]
    notebook = next(int(m[1]) for c in cells if (m := re.search(r"^epochs: int = (\d+)", "".join(c["source"]), re.MULTILINE)))
    assert shell == notebook == Question(("half",)).epochs == inspect.signature(compare_folder).parameters["epochs"].default


def test_the_commands(compared, drawn, tmp_path, monkeypatch):
    """train, prune, eval, predict and plan, each in a line, as JSON and as text."""
    monkeypatch.chdir(tmp_path)
    little = "--epochs 1 --crops fixed --device cpu --precision no --json".split()
    plain = json.loads(wae("train", drawn, "--method", "plain", "--backbone", "resnet18", "--size", 32, "--width", 0.125, *little).stdout)
    _, out, _ = compared
    base = next(out.glob("runs/plain*"))
    half = wae("train", drawn, "--method", "half", "--teacher", base, "--noise", 0.02, *little)
    assert half.exit_code == 0, half.stderr
    half = json.loads(half.stdout)
    assert json.loads((Path(half["run"]) / "config.json").read_text())["stage_recipe"]["noise"] == 0.02
    assert half["macs"] < plain["macs"] and "stage" not in half["run"] and half["epochs"] == 1
    pruned = json.loads(wae("prune", base, drawn, "--way", "taylor", "--keep", 0.5, *little).stdout)
    assert pruned["macs"] < 0.56 * plain["macs"]
    said = wae("eval", half["run"], drawn, "--device", "cpu")
    assert said.exit_code == 0 and "95 % CI" in said.stdout and "face3" in said.stdout
    picture = drawn / "face0/00.png"
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:100])
    said = wae("predict", half["run"], picture, "broken.png", "none.png", "--json")
    found = json.loads(said.stdout)
    assert said.exit_code == 1 and [bool(v["error"]) for v in found] == [False, True, True] and "2 of 3 images" in said.stderr
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((48, 48), 3000, np.uint16)).save(deep)
    (refused,) = json.loads(wae("predict", half["run"], deep, "--json").stdout)
    assert "more than eight bits" in refused["error"]
    assert sum(a["share"] for a in found[0]["answers"]) <= 1 and found[0]["answers"][0]["class"].startswith("face")
    said = wae("plan", drawn, "--method", "half", "--backbone", "resnet18", "--size", 32, "--width", 0.125, "--devices", 1, "--steps", 2, *little[:-1])
    assert said.exit_code == 0 and "images/s" in said.stdout, said.stderr


def test_the_answer():
    """The cheapest whose interval allows it; with none, how many images would say so."""

    def row(title, speed, difference):
        return dict(title=title, row=title, times=dict(speedup=[0.98 * speed, speed, 1.02 * speed], latency_ms=[9, 10 / speed, 11]), difference=difference)

    def of(*rows, points=1.0):
        return answer(dict(rows=[row("whole", 1.0, (0, 0, 0)), *rows], question=dict(points=points), data=dict(test=400), level=0.95))

    a, b, c = row("a", 3.0, (-0.2, -0.9, 0.5)), row("b", 5.0, (-0.5, -1.1, 0.1)), row("c", 1.01, (0.0, 0.0, 0.0))
    assert of(a, b, c).row is a and "for all 3 rows at once: a, 3.00 times as fast" in of(a, b, c).sentence
    assert of(a, b, c, points=1.2).row is b
    none = of(b, c)
    (n,) = map(int, re.findall(r"about (\d+) test images are needed for 80 % power and there are 400", none.sentence.replace(",", "")))
    error = 0.6 / 1.959964 * (400 / n) ** 0.5  # of a mean of −0.5 points, which is normal: an interval that ends above −1 in four cases of five
    assert none.row is None and stats.norm.sf(-1 + 1.959964 * error, -0.5, error) == pytest.approx(0.8, abs=1e-3)
    assert none.named is b and of(a, b, c).named is a
    few = row("e", 5.0, (-0.5, -2.3, 1.3)) | dict(apart=(0, 2))  # of 400: the score interval, which shrinks otherwise; how many there are is binomial
    (n,) = map(int, re.findall(r"about (\d+) test", of(few).sentence.replace(",", "")))
    enough = max(k for k in range(n) if 100 * score_interval(0, k, n)[0] >= -1)  # more that the other alone has right don't say it
    assert stats.binom.cdf(enough, n, 2 / 400) == pytest.approx(0.8, abs=0.06) and of(few).named is few
    assert of(row("d", 9.0, (-5.0, -6.0, -4.0))).sentence.endswith("-5.00 points [-6.00, -4.00].")
    assert of(c).row is None and "No row is faster" in of(c).sentence and of(c).sentence.startswith("No faster row is within 1 point")
    assert of(row("d", 0.9, (-4.0, -5.0, -3.0))).sentence.startswith("No row is within") and of().sentence == "No row was left to compare with the original."
    for low, who in ((-0.1, "No faster row"), (-1.1, "No row")):
        assert of(b, row("d", 0.9, (0.2, low, 0.6))).sentence.startswith(f"{who} is within 1 point of the original by its interval. The cheapest by its mean")


def test_a_pruned_network_is_no_standard_one(compared, drawn, tmp_path):
    """Neither as a run nor saved: its tensors are thinner than a run of that name would make them."""
    _, out, how = compared
    pruned = next(out.glob("runs/taylor*"))
    saved = wae_nb.load(network_at(pruned).save(tmp_path / "thin"))
    with pytest.raises(ValueError, match="the network is pruned: .* tensors are thinner than resnet18's"):
        give(saved, load_data(data_folder(out), 32, out), short_recipe("s", 100), tmp_path / "runs", Engine(**CPU))
    for folder in (pruned, tmp_path / "thin"):
        with pytest.raises(ValueError, match="the network is pruned"):
            compare_folder(drawn, tmp_path / "out", model=str(folder), **how)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "out").exists()


def test_a_network_that_is_brought_is_the_one_compared_with(compared, drawn, tmp_path):
    """A folder, or weights of its authors' naming: a row learns from it. A row that is named twice is one."""
    _, out, how = compared
    folder = next(p for p in out.glob("runs/plain*") if json.loads((p / "record.json").read_text())["epochs"])
    torch.manual_seed(0)
    theirs = resnet18(num_classes=4)
    data, n = load_data(drawn, 32, tmp_path), 8
    at, mean, std = data.indices("train"), *(torch.tensor(v).view(-1, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    x, y = torch.tensor(data.images[at]).permute(0, 3, 1, 2)[:, :, 2:34, 2:34] / 255, torch.tensor(data.labels[at])
    step = torch.optim.Adam(theirs.parameters(), 1e-3)
    for _ in range(n):
        for part in torch.arange(len(at)).split(32):
            step.zero_grad()
            torch.nn.functional.cross_entropy(theirs((x[part] - mean) / std), y[part]).backward()
            step.step()
    torch.save(theirs.state_dict(), tmp_path / "net.pth")
    some = how | dict(epochs=1, rows="half,half", points=100.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wae_nb.lab.compare.PAYS", 0.0)
        by_folder = compare_folder(drawn, tmp_path / "a", model=str(folder), **some).record
        by_file = compare_folder(drawn, tmp_path / "b", model=str(tmp_path / "net.pth"), **some | dict(width=1.0)).record
    for record, where in ((by_folder, "a"), (by_file, "b")):
        assert [r["row"] for r in record["rows"]] == ["plain", "half"] and record["level"] == 0.95
        taught = json.loads((tmp_path / where / "runs" / record["rows"][1]["run"] / "record.json").read_text())["decisive"]
        assert taught["teacher"]["given"]
    assert by_folder["rows"][0]["top1"] == json.loads((folder / "record.json").read_text())["test"]["top1"]


def test_deep_images_of_another_white_are_refused(compared, drawn, tmp_path):
    """The same pixels would be of another brightness than in the training."""
    _, out, _ = compared
    data, net = load_data(drawn, 32, tmp_path), network_at(next(out.glob("runs/plain*")))
    assert evaluate_network(net, data, device="cpu")["images"] == len(data.indices("test"))
    net.config["white"] = dict(integers=4095.0)
    assert evaluate_network(net, data, device="cpu")["images"] == len(data.indices("test"))  # of eight bits
    dark = dataclasses.replace(data, white=dict(integers=1023.0))
    for ask in (lambda: evaluate_network(net, dark, device="cpu"), lambda: give(net, dark, short_recipe("s", 100), tmp_path / "runs", Engine(**CPU))):
        with pytest.raises(ValueError, match="white is 1023 in the images of .* and was 4095 in the training's: .*save both in 8 bits, alike"):
            ask()
    assert not (tmp_path / "runs").exists()


def test_rows_that_cannot_be_had_are_left_out(monkeypatch):
    """Of the usual ones, with why; one that was named is an error, before anything is trained."""
    said, alexnet = [], RunSpec("plain", "alexnet", "", short_recipe("s", 100), image_size=112)
    rows = _rows_of("", alexnet, "eager", "cpu", said.append)
    assert rows and not [r for r in rows if r.method in ("half", "linear-in")] and any(line.startswith("half is left out: ") for line in said)
    with pytest.raises(ValueError, match="image_size=112"):
        _rows_of("half", alexnet, "eager", "cpu", said.append)
    resnet = RunSpec("plain", "resnet18", "", short_recipe("s", 100), image_size=64)
    assert "taylor:0.5" in map(str, _rows_of("", resnet, "eager", "cpu", said.append))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "torch_pruning" else find(name, *more))
    assert "half" in (left := list(map(str, _rows_of("", resnet, "eager", "cpu", said.append)))) and "taylor:0.5" not in left
    assert "0.5 is left out: pruning needs torch-pruning" in said[-1]


def standard_errors(delta, won, lost, n):
    """From the difference of two paired shares to delta, under the most likely shares of those that differ by it."""
    q = np.linspace(max(0, -delta), min(1, (1 - delta) / 2), 200_001)
    p = q + delta
    best = np.nanargmax(special.xlogy(won, p.clip(0)) + special.xlogy(lost, q) + special.xlogy(n - won - lost, (1 - p - q).clip(0)))
    return (won - lost - n * delta) / np.sqrt(n * (p[best] + q[best] - delta**2))


def test_few_images_say_little():
    """The score interval of Tango beside its definition, by brute force; with many images the bootstrap's."""
    rng = np.random.default_rng(0)
    some = (10, 0, 0, 0.993), (20, 5, 0, 0.95), (50, 12, 2, 0.95), (37, 0, 9, 0.99), (24, 12, 12, 0.9), (9, 9, 0, 0.95), (400, 3, 20, 0.993)
    for n, won, lost, level in some:
        right = np.array([[1, 0]] * won + [[0, 1]] * lost + [[1, 1]] * (n - won - lost))[rng.permutation(n)]
        a, b = (dict(seed=0, labels=[1] * n, answers=right[:, i].tolist()) for i in (0, 1))
        d, low, high = (v / 100 for v in accuracy_difference([a], [b], level=level))
        assert d == pytest.approx((won - lost) / n) and -1 <= low <= d <= high <= 1
        z = stats.norm.ppf(0.5 + level / 2)
        for end, expected in ((low, z), (high, -z)):
            assert abs(end) == 1 or standard_errors(end, won, lost, n) == pytest.approx(expected, rel=2e-3)
            assert abs(end) == 1 or p_of_difference([a], [b], 100 * end) == pytest.approx(1 - level, rel=1e-6)  # an interval is what no test refuses
    labels, answers = rng.integers(0, 2, (2, 5000))
    a, b = (dict(seed=0, labels=labels.tolist(), answers=x.tolist()) for x in (answers, labels))
    score = [100 * end for end in score_interval(*told_apart(a, b), 5000)]
    assert accuracy_difference([a], [b])[1:] == tuple(100 * np.quantile(bootstrap(gains([a], [b])), [0.025, 0.975])) == pytest.approx(score, abs=0.05)
    pieces = [dict(r, data=dict(name="demo-photos"), labels=[0] * 20 + [1] * 20, answers=[0] * 20 + [n] * 20) for r, n in ((a, 1), (b, 0))]
    assert accuracy_difference(*[[r] for r in pieces])[1] <= 0 < p_of_difference(*[[r] for r in pieces])  # of two photographs nothing is told


def test_what_is_not_a_comparison_s_is_kept(compared, drawn, tmp_path):
    """A folder of somebody's own; and the network of a question before stays until there is another answer."""
    _, _, how = compared
    (tmp_path / "out/records").mkdir(parents=True)
    (tmp_path / "out/records/mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds records, which no comparison made"):
        compare_folder(drawn, tmp_path / "out", rows="half", **how)
    with pytest.raises(ValueError, match="where it would be taken for a class"):
        compare_folder(drawn, drawn / "compared", rows="half", **how)
    assert [p.name for p in (tmp_path / "out").rglob("*")] == ["records", "mine.txt"] and not (drawn / "compared").exists()


@pytest.mark.parametrize("option", ["--model", "--weights"])
def test_weights_that_do_not_fit_are_said_before_an_image_is_read(tmp_path, option):
    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "net.pth")
    (tmp_path / "photos/a").mkdir(parents=True)
    done = wae("compare", tmp_path / "photos", option, tmp_path / "net.pth", "--backbone", "vgg16_bn", "--size", 64, "--out", tmp_path / "out")
    assert done.exit_code and "do not fit vgg16_bn" in done.output and not (tmp_path / "out/data").exists()
