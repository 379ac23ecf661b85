"""What training computes: losses, rates, starts, draws, the split that is read. A wrong one trains, resumes and repeats as well as a right one."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr, softmax
from skimage.metrics import peak_signal_noise_ratio

from wae_nb.data.batches import crop_boxes, crop_offsets
from wae_nb.data.pack import Dataset
from wae_nb.data.sets import load_data
from wae_nb.lab.experiment import Experiment
from wae_nb.method.classifier import METHODS, Scores, build
from wae_nb.method.losses import classification_loss
from wae_nb.method.wae import WAE
from wae_nb.prune.pruners import PRUNERS
from wae_nb.train import runs, stage
from wae_nb.train.engine import Engine
from wae_nb.train.loop import fit
from wae_nb.train.recipes import Distill, StageRecipe, short_recipe, strong_recipe
from wae_nb.train.runs import _task, finished_run, get_or_train
from wae_nb.train.specs import RunSpec
from wae_nb.train.tasks import ClassifyTask, JointTask, WAETask, score_metrics
from wae_nb.train.updates import Updates

CPU = dict(device="cpu", progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load_data(None, 32, tmp_path_factory.mktemp("data"), demo_shape=(3, 16))


def updates(task, data, stage, seed=0):
    return Updates(task, data, stage, 32, seed, Engine(**CPU), None)


def smoothed(s, y, share):  # Szegedy et al. 2016: a share of each label is spread over all classes
    logs = log_softmax(s, 1)
    return -((1 - share) * logs[np.arange(len(y)), y] + share * logs.mean(1)).mean()


def test_smoothed_labels():
    rng = np.random.default_rng(0)
    s_c, s_L, y = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), np.array([0, 4, 2, 2, 1, 3])
    three = (s_c + s_L) / 2, s_c, s_L
    for share in (0.0, 0.1):
        got = classification_loss(Scores(*map(torch.tensor, three)), torch.tensor(y), label_smoothing=share)
        assert math.isclose(got, sum(smoothed(s, y, share) for s in three))


def test_what_is_taught_is_a_share():
    rng, recipe = np.random.default_rng(0), short_recipe("s", 100)
    s, t, y = rng.normal(size=(6, 5)), rng.normal(size=(6, 5)), np.array([0, 4, 2, 2, 1, 3])
    recipe = replace(recipe, distill=Distill(alpha=0.3, temperature=3.0), classify=replace(recipe.classify, label_smoothing=0.1))
    task = ClassifyTask(build("plain", "resnet18", 5, 32, 0.125), recipe, recipe.classify)
    one = Scores(torch.tensor(s), None, torch.tensor(s))
    by_teacher = 9 * rel_entr(softmax(t / 3, 1), softmax(s / 3, 1)).sum(1).mean()  # Hinton et al. 2015
    assert math.isclose(task.loss(one, torch.tensor(y), torch.tensor(t)), 0.7 * smoothed(s, y, 0.1) + 0.3 * by_teacher)
    assert math.isclose(task.loss(one, torch.tensor(y), None), smoothed(s, y, 0.1))


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_gradients_are_clipped(data, clip):
    torch.manual_seed(0)
    recipe = short_recipe("s", 100)
    stage = StageRecipe(lr=1.0, batch_size=16, epochs=1, momentum=0, weight_decay=0, clip=clip)
    task = ClassifyTask(build("plain", "resnet18", 3, 32, 0.125), recipe, stage)
    u = updates(task, data, stage)
    before = [p.detach().clone() for p in task.parameters()]
    u.update(u.begin(1, 0, None))
    moved = math.sqrt(sum(float((p.detach() - b).double().square().sum()) for p, b in zip(task.parameters(), before)))
    assert moved == pytest.approx(clip, rel=1e-2) if clip else moved > 0.05


@pytest.mark.parametrize("reduction, scale, lam, gamma", [("sum", 1.0, 1.0, 0.001), ("mean", 255.0, 0.3, 0.5)])
def test_joint_loss_from_its_parts(reduction, scale, lam, gamma):
    torch.manual_seed(0)
    recipe = replace(short_recipe("s", 100), reduction=reduction, pixel_scale=scale, lam=lam, gamma=gamma)
    model, wae = build("wae", "resnet18", 5, 32, 0.125), WAE()
    model.decomposer = wae.encoder
    task = JointTask(model, wae.decoder, recipe, recipe.finetune).eval().double()
    x, y = torch.rand(4, 3, 32, 32, dtype=torch.float64), np.array([0, 1, 2, 4])
    with torch.no_grad():
        s, got, values = model(x), float(task(x, torch.tensor(y))), task.eval_metrics(x, torch.tensor(y))
        (d, rec), pixels = wae(x - model.mean), (x - model.mean).numpy()
    squares = [((pixels - rec.numpy()) ** 2).reshape(4, -1), (d.high.numpy() ** 2).reshape(4, -1)]
    r, e = ((v.sum(1) if reduction == "sum" else v.mean(1)).mean() * scale**2 for v in squares)
    L_c = sum(smoothed(v.numpy(), y, 0.0) for v in s)
    assert got == pytest.approx(L_c + gamma * (r + lam * e), rel=1e-9)
    assert values["mse"].numpy() == pytest.approx(squares[0].mean(1)) and values["energy_high"].numpy() == pytest.approx(squares[1].mean(1))


def test_score_metrics_by_ranks():
    rng = np.random.default_rng(0)
    s_c, s_L, y = rng.normal(size=(400, 9)), rng.normal(size=(400, 9)), rng.integers(0, 9, 400)
    s = (s_c + s_L) / 2
    got = score_metrics(Scores(*map(torch.tensor, (s, s_c, s_L))), torch.tensor(y))
    rank = {k: (v > v[np.arange(400), y][:, None]).sum(1) for k, v in dict(s=s, s_c=s_c, s_L=s_L).items()}
    expected = dict(top1=rank["s"] == 0, top5=rank["s"] < 5, top1_s_c=rank["s_c"] == 0, top1_s_L=rank["s_L"] == 0)
    assert all((got[k].numpy() == v).all() for k, v in expected.items()) and (got["answer"].numpy() == s.argmax(1)).all()
    assert got["loss"].numpy() == pytest.approx(-log_softmax(s, 1)[np.arange(400), y], rel=1e-5)


def test_psnr_is_skimage_s():
    a, b = np.random.default_rng(0).random((2, 32, 32, 3))
    said = WAETask(WAE(), torch.zeros(3, 1, 1), short_recipe("s", 100)).summary(dict(mse=float(((a - b) ** 2).mean())))
    assert said["psnr"] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0))


def test_noise_is_an_image_s_own_and_an_epoch_s(data):
    recipe, stage = short_recipe("s", 100), StageRecipe(lr=1e-3, batch_size=8, epochs=3, noise=0.01)
    u, found = updates(ClassifyTask(build("plain", "resnet18", 3, 32, 0.125), recipe, stage), data, stage), []
    n = len(data.indices("train"))
    grey = torch.full((n, 3, 32, 32), 0.5)
    for epoch in (1, 2):
        u.begin(epoch, 0, None)
        noise = (u._noisy(grey, torch.arange(n)) - grey).flatten(1)
        some = torch.tensor([n - 1, 2, 5])
        assert torch.equal((u._noisy(grey[:3], some) - grey[:3]).flatten(1), noise[some])  # whatever the batch
        assert noise.var(1).max() < 0.0105 and noise.var(1).min() < 0.005 < noise.var(1).max()  # each below the most
        found.append(noise / noise.std(1, keepdim=True))
    assert (found[0] * found[1]).mean(1).abs().max() < 0.1  # another epoch's is another


def test_the_slow_stay_slow_in_one_cycle(data):
    r = strong_recipe("s", 64, epochs=1, updates=1, batch_size=4)
    net = build("linear-in", "resnet18", 3, 32, 0.125)
    u = updates(JointTask(net, METHODS["linear-in"].decoder(net.decomposer), r, r.classify, METHODS["linear-in"].rate), data, r.classify)
    slow = {id(p) for p in net.decomposer.parameters()}
    batches = u.begin(1, 0, None)
    for _ in range(u.steps):
        (own,) = {g["lr"] for g in u.optimizer.param_groups if any(id(p) in slow for p in g["params"])}
        assert own == pytest.approx(0.1 * u.lr)
        u.update(batches)


def made(data, method, seed=0, **changes):
    recipe = short_recipe("short", 100)
    each = {k: replace(getattr(recipe, k), epochs=1) for k in ("wae", "classify", "finetune")}
    return RunSpec(method, "resnet18", data.checksum, replace(recipe, **each, **changes), seed, image_size=32, width=0.125)


def same(a, b, atol=1e-6):
    return all(torch.allclose(v, b.state_dict()[k], atol=atol) for k, v in a.state_dict().items() if v.is_floating_point() and "running" not in k)


def test_stage_3_starts_from_what_the_stages_before_learned(data, tmp_path):
    """At a rate that moves nothing, the network is stage 2's and the decoder stage 1's."""
    recipe = made(data, "wae").recipe
    spec = replace(made(data, "wae"), recipe=replace(recipe, finetune=replace(recipe.finetune, lr=1e-12)))
    third = get_or_train(spec, data, Engine(**CPU), tmp_path)
    second, first = (finished_run(s, tmp_path) for s in (spec.parent, spec.parent.parent))
    assert same(third.model, second.model) and same(third.wae.decoder, first.model.decoder) and same(third.wae.encoder, first.model.encoder)


def test_every_decomposer_moves_at_its_rate(data, tmp_path):
    for method, m in METHODS.items():
        if not m.stages:
            assert _task(made(data, method), data, tmp_path).rate == m.rate, method


def test_seeds_differ_in_all_that_is_drawn(data, tmp_path):
    assert not torch.equal(crop_offsets(50, 5, 1, 2), crop_offsets(50, 5, 2, 2)) and not torch.equal(
        crop_boxes(50, 37, (0.3, 1), 1, 2), crop_boxes(50, 37, (0.3, 1), 2, 2)
    )
    a, b = (_task(made(data, "plain", seed), data, tmp_path) for seed in (0, 1))
    assert not torch.equal(a.model.low_net.conv1.weight, b.model.low_net.conv1.weight)
    drawn = []
    for seed in (0, 1):
        u = updates(a, data, a.recipe.classify, seed)
        for epoch in (1, 2):
            order = [at.tolist() for _, _, at in u.begin(epoch, 0, None)]
            u.begin(epoch, 0, None)
            drawn.append((tuple(map(tuple, order)), tuple(torch.rand(3).tolist())))  # what dropout would draw
    assert all(len(set(x)) == 4 for x in zip(*drawn))


def test_one_cycle_ends_with_the_last_update(data, tmp_path):
    stage = StageRecipe(lr=1e-3, batch_size=8, epochs=2, schedule="onecycle")
    recipe = short_recipe("s", 100)
    u, rates = updates(ClassifyTask(build("plain", "resnet18", 3, 32, 0.125), recipe, stage), data, stage), []
    for epoch in (1, 2):
        batches = u.begin(epoch, 0, None)
        for _ in range(u.steps):
            rates.append(u.lr)
            u.update(batches)
    assert rates[0] == pytest.approx(1e-3 / 25) and rates[-1] == pytest.approx(1e-3 / 25 / 1e4) and max(rates) < 1.001e-3


def experiment(folder):
    return Experiment("smoke", "resnet18", None, [0], "cpu", runs_dir=folder / "runs", figures_dir=folder / "figures", progress=False, kind="photos")


@pytest.mark.parametrize("kind", ["wae", "taught", *PRUNERS])
def test_test_images_are_read_at_the_end_alone(tmp_path, monkeypatch, kind):
    exp, read, evaluate, last, seen = experiment(tmp_path), Dataset.read, runs.evaluate, [], set()
    if kind == "taught":
        (spec,) = exp.specs("half", distill=Distill(start=True))
    elif kind == "wae":
        (spec,) = exp.specs("wae")
    else:
        (spec,) = exp.specs(kind, keep=0.5, prune=replace(exp.recipe.prune, parts=1, images=24, samples=100))
    tested = set(exp.data.indices("test").tolist())

    def spied(self, at):
        now = {int(i) for i in at}
        assert last or not now & tested, "a test image, before the network is finished"
        seen.update(now)
        return read(self, at)

    def at_the_end(task, data, split, *args):
        assert split == "test"
        last.append(1)
        try:
            return evaluate(task, data, split, *args)
        finally:
            last.clear()

    monkeypatch.setattr(Dataset, "read", spied)
    monkeypatch.setattr(runs, "evaluate", at_the_end)
    runs.get_or_train(spec, exp.data, exp.engine, exp.runs_dir)
    assert tested <= seen


def test_the_weights_that_are_left_are_the_best_epoch_s(data, tmp_path, monkeypatch):
    """Validation is made to like the second epoch of four best."""
    task = ClassifyTask(build("plain", "resnet18", 3, 32, 0.125), short_recipe("s", 100), short_recipe("s", 100).classify)
    real, seen = stage.evaluate, []

    def judged(task, *args):
        seen.append({k: v.detach().clone() for k, v in task.state_dict().items()})
        metrics, each = real(task, *args)
        return metrics | dict(top1=0.9 if len(seen) == 2 else 0.1, loss=0.1 if len(seen) == 2 else 0.9), each

    monkeypatch.setattr(stage, "evaluate", judged)
    result = fit(task, data, StageRecipe(lr=0.01, batch_size=16, epochs=4), 32, tmp_path, 0, Engine(**CPU))
    assert (result["best_epoch"], len(seen)) == (2, 4) and all(torch.equal(v, seen[1][k]) for k, v in task.state_dict().items())
    assert any(not torch.equal(v, seen[3][k]) for k, v in task.state_dict().items())
