"""The paper's own recipe: every schedule and stage, at its mini-batches, at full width and 224 pixels, a few updates of each."""

import resource
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from wae_nb.data.folder import ImageFile
from wae_nb.data.pack import finish_pack, open_pack
from wae_nb.data.sets import pack_size
from wae_nb.lab.profiles import PROFILES
from wae_nb.train.engine import Engine
from wae_nb.train.recipes import paper_recipe
from wae_nb.train.runs import finished_run, get_or_train
from wae_nb.train.specs import RunSpec
from wae_nb.train.tasks import ClassifyTask, WAETask

TRAIN, REST = 256, 8  # an epoch of one mini-batch; as many images to validate, and to test


def tiny_pack(folder, size):
    """Blurred noise of two classes, `size` pixels, as a packed data set."""
    folder.mkdir(parents=True)
    rng, n = np.random.default_rng(0), TRAIN + 2 * REST
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.uint8, (n, size, size, 3))
    for i in range(n):
        images[i] = np.kron(rng.integers(0, 256, (-(-size // 16), -(-size // 16), 3)), np.ones((16, 16, 1)))[:size, :size] // (1 + i % 2)
    images.flush()
    parts = ["train"] * TRAIN + ["val"] * REST + ["test"] * REST
    sources = [ImageFile(folder, f"{i}.png", f"class{i % 2}", part) for i, part in enumerate(parts)]
    finish_pack(folder, "tiny", sources, [s.name for s in sources], "0" * 64)
    return open_pack(folder)


def few_updates(recipe, **epochs):
    """The paper's recipe, but for how many epochs there are, and images in stage 1's."""
    stages = {k: replace(getattr(recipe, k), epochs=n, images=4 if k == "wae" else None) for k, n in epochs.items()}
    return replace(recipe, **stages)


def moved(a, b):
    """The shares of the weights that differ between two modules."""
    return [float((v != b.state_dict()[k]).float().mean()) for k, v in a.state_dict().items() if v.is_floating_point()]


class CutOff(Exception):
    """What a machine does that goes away."""


def cut_and_go_on(spec, data, engine, runs_dir, task, epoch):
    """A run that is cut off in an epoch's evaluation, after the checkpoint of the one before, and started again: it learns the epochs that are left."""
    evaluate, learn, calls = task.eval_metrics, task.forward, Counter()

    def counted(name, call, last=None):
        def called(*given):
            calls[name] += 1
            if calls[name] == last:
                raise CutOff
            return call(*given)

        return called

    try:
        task.eval_metrics, task.forward = counted("evaluated", evaluate, epoch), counted("learnt", learn)
        with pytest.raises(CutOff):
            get_or_train(spec, data, engine, runs_dir)
        done, wanted = calls["learnt"] // epoch, spec.stage_recipe().epochs  # calls of the loss in an epoch
        assert calls["learnt"] == epoch * done and not (runs_dir / spec.name / "record.json").exists()
        task.eval_metrics = evaluate
        calls.clear()
        run = get_or_train(spec, data, engine, runs_dir)
    finally:
        task.eval_metrics, task.forward = evaluate, learn
    assert calls["learnt"] <= done * (wanted - epoch + 1)  # at most the epoch that was cut off is learnt again
    assert [h["epoch"] for h in run.record["history"]] == list(range(1, wanted + 1))
    return run


def chain(data, runs_dir, size, backbone, width, accumulation, **epochs):
    """The runs of stages 1 to 3, the first two cut off in the middle and started again."""
    engine = Engine("cpu", accumulation=accumulation, progress=False)
    spec = RunSpec("wae", backbone, data.checksum, few_updates(paper_recipe(backbone), **epochs), image_size=size, width=width)
    alone = Engine("cpu", progress=False)  # a mini-batch of 4 is not split
    first = cut_and_go_on(spec.parent.parent, data, alone, runs_dir, WAETask, epoch=6)
    cut_and_go_on(spec.parent, data, engine, runs_dir, ClassifyTask, epoch=2)
    third = get_or_train(spec, data, engine, runs_dir)
    return first, finished_run(spec.parent, runs_dir), third


def check(first, second, third, epochs, lr):
    """Rates as the paper's text has them, in every epoch's line; numbers that are numbers; weights that moved, and those that had to stay."""
    rates = [[h["lr"] for h in run.record["history"]] for run in (first, second, third)]
    n = epochs["wae"]
    assert rates[0] == pytest.approx(([1e-6] * 10 + [1e-7] * 10)[:n])
    assert rates[1] == pytest.approx([lr] * epochs["classify"]) and rates[2] == pytest.approx([0] + [1e-4] * epochs["finetune"])
    for run in (first, second, third):
        lines = [h for h in run.record["history"] if h["epoch"]]
        assert all(np.isfinite(v) for h in lines for v in h.values()) and all(np.isfinite(v) for v in run.record["test"].values())
    losses = [h["val_loss"] for h in first.record["history"]]
    assert losses[-1] < losses[0]
    assert max(moved(second.wae.encoder, first.model.encoder)) == 0  # fixed in stage 2
    assert third.record["best_epoch"] == 0 or max(moved(third.model, second.model)) > 0
    assert len(third.record["answers"]) == REST and third.record["machine"]["accumulation"] > 1


def test_paper_recipe_thin(tmp_path):
    """All three stages, ten epochs of the first rate and one of the next, on a thin network of 32 pixels; stages 2 and 3 in parts of 64 images."""
    epochs = dict(wae=11, classify=2, finetune=1)
    check(*chain(tiny_pack(tmp_path / "pack", pack_size(32)), tmp_path / "runs", 32, "vgg11", 0.125, 4, **epochs), epochs, 0.01)


def test_paper_profile_is_the_papers_text():
    """*Learning*, word for word: what the profile "paper" gives is this recipe, at full width and 224 pixels."""
    for kind in PROFILES:
        size = PROFILES[kind]["paper"]
        assert (size.image_size, size.width) == (224, 1.0)
        for backbone, lr in (("vgg16", 0.01), ("resnet50", 0.1)):
            r = size.recipe(backbone, 10**6)
            assert r == paper_recipe(backbone) and (r.init, r.lam, r.gamma, r.terms) == ("xavier", 1, 0.001, ("s", "s_c", "s_L"))
            assert (r.wae.batch_size, r.wae.lr, r.wae.schedule, r.wae.step) == (4, 1e-6, "step", 10)
            assert (r.classify.batch_size, r.classify.lr, r.classify.schedule, r.classify.patience) == (256, lr, "plateau", 3)
            assert (r.finetune.batch_size, r.finetune.lr, r.finetune.schedule, r.finetune.drops) == (256, 1e-4, "plateau", 1)
            for stage in (r.wae, r.classify, r.finetune):
                assert (stage.optimizer, stage.momentum, stage.weight_decay, stage.clip, stage.label_smoothing) == ("sgd", 0.9, 5e-4, None, 0)


@pytest.mark.slow
@pytest.mark.parametrize("backbone, lr", [("vgg16", 0.01), ("resnet50", 0.1)])
def test_paper_recipe_in_full(tmp_path, backbone, lr):
    """Full width, 224 of 256 pixels, mini-batches of 4 and 256, resumed: both rates of stage 1, updates of stages 2 and 3 in parts of 16, below 20 GB."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        epochs = dict(wae=11, classify=2, finetune=1)
        check(*chain(tiny_pack(tmp_path / "pack", 256), tmp_path / "runs", 224, backbone, 1.0, 16, **epochs), epochs, lr)
    finally:
        torch.set_num_threads(threads)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GB
    print(f"{backbone}: at most {peak:.1f} GB")
    assert peak < 20
