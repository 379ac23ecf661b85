"""A teacher's answers, the crops that it and the network that it teaches see, and the strong recipe."""

from dataclasses import replace

import pytest
import torch
import torchvision

from wae_nb.convert.folding import difference
from wae_nb.data.batches import crop, crop_boxes
from wae_nb.data.sets import load_data
from wae_nb.measure import machine
from wae_nb.method.classifier import METHODS, build
from wae_nb.method.linear import LinearEncoder
from wae_nb.train import stage, updates
from wae_nb.train.engine import Engine
from wae_nb.train.recipes import Distill, strong_recipe
from wae_nb.train.runs import finished_run, get_or_train, network_of
from wae_nb.train.specs import STAGE_2, RunSpec
from wae_nb.train.tasks import ClassifyTask, JointTask

RECIPE = strong_recipe("test", 64, epochs=2, updates=2, batch_size=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_data(None, 32, tmp_path_factory.mktemp("data"), "photos", (4, 16))


def spec(data, method="half", seed=0, **changes):
    return RunSpec(method, "vgg11_bn", data.checksum, replace(RECIPE, **changes), seed, image_size=32, width=0.125, head="pooled")


def engine(**kw):
    return Engine("cpu", progress=False, **kw)


def test_the_teacher_answers_for_the_very_crops(data, tmp_path, monkeypatch):
    """In every step the network's images, given to the teacher, have the answers that the loss is computed with."""
    seen = []
    forward = ClassifyTask.forward

    def spy(self, x, y, t=None):
        seen.append((x.clone(), t))
        return forward(self, x, y, t)

    monkeypatch.setattr(ClassifyTask, "forward", spy)
    s = spec(data, distill=Distill())
    get_or_train(s, data, engine(), tmp_path)
    teacher = finished_run(s.teacher, tmp_path).model
    taught = [(x, t) for x, t in seen if t is not None]
    assert len(taught) == len(seen) / 2 and s.teacher.method == "plain" and s.teacher.seed == s.seed
    with torch.no_grad():
        for x, t in taught:
            torch.testing.assert_close(t.float(), teacher(x).s, atol=2e-3, rtol=2e-3)  # kept in half precision
    assert not torch.equal(taught[0][0], taught[1][0])


def test_kept_answers_and_answers_batch_by_batch_teach_the_same(data, tmp_path, monkeypatch):
    """Whether the answers of an epoch are on the disk or are asked for batch by batch, the losses agree to what rounding leaves."""
    losses = []
    for most, files in ((2**30, RECIPE.classify.epochs), (0, 0)):
        monkeypatch.setattr("wae_nb.train.teacher.MOST_KEPT", most)
        run = get_or_train(spec(data, distill=Distill()), data, engine(), tmp_path / str(most))
        answers = finished_run(run.spec.teacher, tmp_path / str(most)).folder / "answers"
        assert len(list(answers.glob("*.safetensors"))) == files
        losses.append([h["train_loss"] for h in run.record["history"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_taught_run_that_is_cut_off_goes_on_to_the_same_result(data, tmp_path, monkeypatch):
    s = spec(data, "linear-in", distill=Distill(start=True))
    whole = get_or_train(s, data, engine(), tmp_path / "whole").record
    epoch = stage.Training.epoch
    left = [4]  # of the teacher's two epochs and the run's two, the last is cut off

    def cut(self, bar):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        epoch(self, bar)

    monkeypatch.setattr(stage.Training, "epoch", cut)
    with pytest.raises(KeyboardInterrupt):
        get_or_train(s, data, engine(), tmp_path / "cut")
    monkeypatch.undo()
    again = get_or_train(s, data, engine(), tmp_path / "cut").record
    assert again["history"] == whole["history"] and again["test"] == whole["test"]


def test_the_start_is_the_teachers_weights(data, tmp_path, monkeypatch):
    """Where shapes agree, low_net and head_low start as the teacher's, but for the statistics of its batch norms; another first layer does not."""
    begun = {}

    def stop(task, *args, **kw):
        begun.update({k: v.clone() for k, v in task.model.state_dict().items()})
        raise KeyboardInterrupt

    for method, differs in (("half", set()), ("linear-in", {"low_net.0.weight"}), ("wae", set())):  # the last in stage 2
        s = spec(data, method, distill=Distill(start=True))
        if method == "wae":
            s = replace(s, stage=STAGE_2)
            get_or_train(s.parent, data, engine(), tmp_path)
        teacher = get_or_train(s.teacher, data, engine(), tmp_path).model.state_dict()
        with monkeypatch.context() as m:
            m.setattr("wae_nb.train.runs.fit", stop)
            with pytest.raises(KeyboardInterrupt):
                get_or_train(s, data, engine(), tmp_path)
        own = {k for k, v in teacher.items() if k.startswith(("low_net", "head_low")) and (begun[k].shape != v.shape or not torch.equal(begun[k], v))}
        assert {k for k in own if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))} == differs
        assert any(k.endswith("running_mean") for k in own)
        if differs:  # the details count nothing at first
            first = begun["low_net.0.weight"]
            assert torch.equal(first[:, :3], teacher["low_net.0.weight"]) and not first[:, 3:].any() and first.shape[1] == 12


@pytest.mark.parametrize("how", ["taught", "weights"])
def test_details_that_enter_later_start_next_to_nothing_and_learn(data, tmp_path, monkeypatch, how):
    """The maps are the trained row's to 1 in 500, where a branch as it was drawn moves them by more than 1 in 20; a few steps make it count."""
    begun = []

    def stop(task, *args, **kw):
        begun.append(task.model)
        raise KeyboardInterrupt

    if how == "taught":
        s = spec(data, "linear-second", distill=Distill(start=True))
        trained = get_or_train(s.teacher, data, engine(), tmp_path).model.low_net
        monkeypatch.setattr("wae_nb.train.runs.fit", stop)
        with pytest.raises(KeyboardInterrupt):
            get_or_train(s, data, engine(), tmp_path)
        (net,) = begun
    else:
        torch.manual_seed(0)
        whole = torchvision.models.vgg11_bn(num_classes=10)
        trained, net = whole.features, build("linear-second", "vgg11_bn", 10, 64, head="pooled", weights=whole.state_dict())
    images = torch.from_numpy(data.read(data.indices("train")[:16]))
    x, y = torch.nn.functional.interpolate(crop(images, 32), (64, 64)), torch.arange(16) % len(data.classes)
    d = net.eval().decompose(x)
    both = torch.cat([net.norm_low(d.low), net.norm_high(d.high)], 1)
    for name, m in net.low_net.named_modules():  # the statistics are estimated anew
        if name and "details" not in name and isinstance(m, torch.nn.BatchNorm2d):
            trained.get_submodule(name).load_state_dict(m.state_dict())

    def moved():
        with torch.no_grad():
            return difference([trained.eval()(both[:, :3])], [net.low_net.eval()(both)])

    def added():
        with torch.no_grad():
            return float(net.low_net.details.eval()(both[:, 3:]).abs().max())

    norm = net.low_net.details[1]
    before = added()
    assert 0 < moved() < 0.002
    with torch.no_grad():
        norm.weight.fill_(1)
        assert moved() > 0.05
        norm.weight.fill_(1e-3)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, 0.9)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net.train()(x).s, y).backward()
        assert all(p.grad.any() for p in net.low_net.details.parameters() if p is not net.low_net.details[0].bias)
        optimizer.step()
    assert added() > 3 * before


def test_a_taught_network_may_train_longer_and_slower_than_its_teacher(data, tmp_path):
    s = spec(data, "linear-in", distill=Distill(start=True, lr=1e-3, epochs=3))
    assert s.teacher.name == spec(data, distill=Distill()).teacher.name
    assert s.stage_recipe() == replace(RECIPE.classify, lr=1e-3, epochs=3)
    run = get_or_train(s, data, engine(), tmp_path)
    assert [len(r.record["history"]) for r in (run, finished_run(s.teacher, tmp_path))] == [3, RECIPE.classify.epochs]
    for wrong in (dict(lr=0.0), dict(epochs=0)):
        with pytest.raises(ValueError, match="or None for the teacher's"):
            Distill(**wrong)


def test_noise_is_the_students_alone(data, tmp_path):
    """The network that is taught sees noise of its seed and epoch; the teacher's run and answers are the ones without it."""
    clean, noisy = (spec(data, "half", distill=Distill(noise=v)) for v in (None, 0.05))
    assert noisy.teacher.name == clean.teacher.name and noisy.stage_recipe() == replace(clean.stage_recipe(), noise=0.05)
    said = {}
    for name, s in (("clean", clean), ("noisy", noisy), ("again", noisy)):
        run = get_or_train(s, data, engine(), tmp_path / name)
        answers = [f.read_bytes() for f in sorted((tmp_path / name).rglob("crops-*.safetensors"))]
        said[name] = run.record["history"], answers
    assert said["noisy"] == said["again"] and said["clean"][1] == said["noisy"][1] and len(said["clean"][1]) == RECIPE.classify.epochs
    assert all(a["train_loss"] != b["train_loss"] for a, b in zip(said["clean"][0], said["noisy"][0]))


def test_weights_that_do_not_fit_are_refused_before_anything_is_trained(data, tmp_path):
    """A network of other widths can be taught; from its teacher's weights it can't start."""
    with pytest.raises(ValueError, match="start=True: method 'slim-half' has other widths"):
        get_or_train(spec(data, "slim-half", distill=Distill(start=True)), data, engine(), tmp_path)
    assert not list(tmp_path.glob("plain*"))


def test_auto_is_bf16_where_it_is_fast(monkeypatch):
    for fast in (True, False):
        monkeypatch.setattr("wae_nb.train.engine.has_bf16", lambda device, fast=fast: fast)
        assert engine(mixed_precision="auto").accelerator.mixed_precision == ("bf16" if fast else "no")
    monkeypatch.setattr(machine.Path, "read_text", lambda self: "flags : avx2 avx512f")
    assert not machine.has_bf16("cpu")
    monkeypatch.setattr(machine.Path, "read_text", lambda self: "flags : avx2 avx512f avx512_bf16")
    assert machine.has_bf16("cpu") is machine.Path("/proc/cpuinfo").exists()


def test_what_decays_and_what_moves_slowly(data):
    """Weights decay, biases and norms don't; a decomposer that starts as a wavelet moves at its share of the rate, with its decoder; all are moved once."""
    net = build("linear-in", "vgg11_bn", 4, 32, 0.125, head="pooled")
    task = JointTask(net, METHODS["linear-in"].decoder(net.decomposer), RECIPE, RECIPE.classify, METHODS["linear-in"].rate)
    groups = updates._optimizer(task, RECIPE.classify).param_groups
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in task.parameters())
    named = {id(p): n for n, p in task.named_parameters()}
    found = {named[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    r = RECIPE.classify
    assert found["model.low_net.0.weight"] == (r.lr, r.weight_decay) and found["model.low_net.0.bias"] == (r.lr, 0) == found["model.low_net.1.weight"]
    assert found["model.decomposer.weight"] == found["decoder.weight"] == (r.lr * 0.1, 0)
    u = updates.Updates(task, data, replace(r, schedule="constant"), 32, 0, engine(), None)
    assert u.optimizer.param_groups[0]["lr"] == r.lr * 0.1 and u.lr == r.lr  # what is written down is the network's
    task = ClassifyTask(build("wavelet", "vgg11_bn", 4, 32, 0.125), RECIPE, RECIPE.classify)
    (only,) = updates._optimizer(task, replace(r, decay_norms=True)).param_groups
    assert only["weight_decay"] == r.weight_decay


def test_what_was_before_has_the_name_that_it_had(data):
    """Heads, teachers, crops and rates that are as they always were leave no trace in a fingerprint."""
    old = RunSpec("half", "vgg11", data.checksum, replace(RECIPE, classify=replace(RECIPE.classify, crop_area=None, decay_norms=True)), image_size=32)
    said = old.fingerprint()
    assert not {"head", "rate", "distill", "teacher", "gamma"} & set(said) and not {"crop_area", "decay_norms"} & set(said["stage_recipe"])
    taught = [dict(distill=d) for d in (Distill(), Distill(0.5), Distill(start=True), Distill(lr=1e-3))]
    names = {spec(data, m, **kw).name for m in ("half", "linear-in") for kw in ({}, *taught)}
    assert len(names) == 10 and spec(data).teacher is None


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if not m.paper])
def test_every_method_past_the_paper_builds_and_has_its_size(data, method):
    m, net = METHODS[method], network_of(spec(data, method), 4)
    x = crop(torch.from_numpy(data.read(data.indices("test")[:2])), 32, crop_boxes(2, data.images.shape[1], (0.35, 1.0), 0, 1))
    d = net.decompose(x)
    side = -(-32 * m.scale // 1)
    assert d.low.shape == (2, 3, side, side) and (d.high is None) == (not m.high_channels)
    assert d.high is None or d.high.shape == (2, m.high_channels, side, side)
    assert net.eval()(x).s.shape == (2, 4) and (m.rate < 1) == isinstance(net.decomposer, LinearEncoder)
