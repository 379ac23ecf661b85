"""Every command and code block of the pages and notebooks is run, or parsed by what would run it; one that no rule knows fails."""

import argparse
import ast
import functools
import importlib.util
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import click
import papermill
import pytest
import torch
from conftest import ROOT
from papermill.cli import _resolve_type

import wae_nb
from wae_nb.cli import main
from wae_nb.lab.experiment import Experiment
from wae_nb.lab.parameters import check_parameters
from wae_nb.lab.profiles import PROFILES
from wae_nb.lab.reproduce import BEYOND_ROWS, choose_notebooks
from wae_nb.lab.ways import fits
from wae_nb.measure.machine import has_bf16
from wae_nb.method.backbones import check_backbone
from wae_nb.method.classifier import METHODS
from wae_nb.prune.pruners import PRUNERS
from wae_nb.train.__main__ import PLACES, RECIPES, parsed
from wae_nb.train.engine import Engine
from wae_nb.train.specs import RunSpec

PAGES = ["README.md", "CONTRIBUTING.md", "nbs/README.md", "data_prep/README.md", "CHANGELOG.md"]
BOOKS = [p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if not any(part[0] in "_." for part in p.relative_to(ROOT).parts)]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


@functools.cache
def markdown(page: str) -> str:
    said = (ROOT / page).read_text(encoding="utf-8")
    return said if page.endswith(".md") else "\n\n".join("".join(c["source"]) for c in json.loads(said)["cells"] if c["cell_type"] == "markdown")


def blocks(page: str, *languages: str) -> list[str]:
    return [text for language, text in FENCE.findall(markdown(page)) if language in languages]


def there(*paths: str) -> None:
    for path in paths:
        assert (ROOT / path).exists(), f"{path} is not there"


def value_of(name: str, value) -> None:
    """What is known by name in the library."""
    known = dict(profile=PROFILES["photos"], method=METHODS, recipe=RECIPES, rows={*METHODS, *(point.key for p in PRUNERS.values() for point in p.points)})
    for each in str(value).split(",") if name in known else []:
        assert each in known[name], f"{name}={each}"
    if name == "backbone":
        check_backbone(value)


# the rules: the first word of a command, and what its other words are held against


def by_papermill(words):
    notebook, out, *rest = words
    there(notebook)
    assert out.endswith(".ipynb") and not out.startswith("nbs/")
    command = {o: p for p in papermill.cli.papermill.params for o in p.opts}
    given = {}
    while rest:
        option = command[rest.pop(0)]
        values = [rest.pop(0) for _ in range(0 if option.is_flag else option.nargs)]
        given |= {values[0]: _resolve_type(values[1])} if option.name == "parameters" else {}
    cells = json.loads((ROOT / notebook).read_text())["cells"]
    (declared,) = ["".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", [])]
    check_parameters([declared, "# Parameters\n" + "".join(f"{k} = {v!r}\n" for k, v in given.items())])
    for name, value in given.items():
        value_of(name, value)


def by_wae(words, comment=""):
    if len(words) == 1:  # named, as in a sentence
        assert words[0] in [*main.commands, "--help"]
        return
    command = main.commands[words[0]]
    context = command.make_context(words[0], words[1:])
    assert all(option in {o for p in command.params for o in p.opts} for option in re.findall(r"--[\w-]+", comment)), comment
    for name, value in context.params.items():
        if value is not None and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            value_of(name, value)
    if words[0] == "reproduce":
        choose_notebooks(context.params["only"])


def by_make(words):
    """The target is there, and what it would do passes these rules as well."""
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}  # where a make runs this test
    done = subprocess.run(["make", "-n", *words, f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True, env=outside)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        if m := re.search(r"^(?:\w+=\S+ )*(?:\w+=\$\(.*?\) )?\.venv/bin/(\S+ .*)$", line):
            by_rule(m[1])


def by_python(words):
    if words[0] == "-c":  # as the Makefile calls the command without its script
        assert "main(prog_name='wae')" in words[1]
        by_wae(words[2:])
    elif words[0] != "-m":
        there(words[0])
        if words[0].startswith("data_prep/"):
            parsed_by_argparse(runpy.run_path(str(ROOT / words[0]))["main"], words[1:])
    elif words[1] == "pytest":
        there(*(w for w in words[2:] if w.startswith("tests/")))
    elif words[1] != "pip":
        assert importlib.util.find_spec(words[1]), words[1]
        if words[1] == "wae_nb.train":
            keys = parsed([w for w in words[2:] if "=" in w])
            assert set(keys) <= {*RunSpec.__dataclass_fields__, *Engine.__dataclass_fields__, *PLACES}, keys
            for name, value in keys.items():
                value_of(name, value)


def parsed_by_argparse(called, words):
    """A script's own parser, without the work that would follow."""

    class Enough(Exception):
        pass

    def parse(self, argv):
        whole(self, argv)
        raise Enough

    whole = argparse.ArgumentParser.parse_args
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Enough):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        called(words)


def by_torchrun(words):
    from torch.distributed.run import get_args_parser

    a = get_args_parser().parse_args(words)
    if a.module:
        by_python(["-m", a.training_script, *a.training_script_args])


def by_pip(words):
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    extra = re.fullmatch(r"\.\[(\w+)\]", words[-1])[1]
    assert words[:2] == ["install", "-e"] and any(f"{name}_requirements" in cfg["DEFAULT"] for name in (extra, extra.removesuffix("s")))


def is_installed(name, paths=True):
    def rule(words):
        assert Path(sys.executable).with_name(name).exists(), f"{name} is no command of the extra dev"
        there(*(w for w in words if paths and ("/" in w or w == ".") and not w.startswith(("_", "--"))))

    return rule


def by_source(words):
    assert words == [".venv/bin/activate"] and "VENV := .venv\n" in (ROOT / "Makefile").read_text()


RULES = dict(papermill=by_papermill, wae=by_wae, make=by_make, python=by_python, torchrun=by_torchrun, pip=by_pip, source=by_source)
RULES |= {name: is_installed(name) for name in ("jupyter", "nbdev_export", "nbdev_clean", "nbdev_test", "ruff")}
RULES |= {"accelerate": is_installed("accelerate", paths=False)}


def by_rule(line: str) -> None:
    """Each command of a line."""
    for command in line.split(" && "):
        name, *words = shlex.split(command, comments=True)
        comment = command.partition(" # ")[2]
        assert name in RULES, f"no rule knows {name!r}: {line}"
        RULES[name](words, *([comment] if name == "wae" else []))


COMMANDS = [(page, line) for page in [*PAGES, *BOOKS] for text in blocks(page, "", "bash") for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("page, line", COMMANDS, ids=lambda s: re.sub(r"\W+", "-", s)[:60])
def test_command(page, line):
    by_rule(line)


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_sentences(page):
    """What has spaces between backquotes is a command of a rule or Python."""
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", markdown(page)))
    for span in spans:
        if span.split()[0] in RULES and (" " in span or span in ("nbdev_test", "nbdev_export")):
            by_rule(span)
        elif " " in span:
            ast.parse(span)
    assert page == "data_prep/README.md" or spans


@pytest.mark.parametrize(
    "line, error",
    [
        ("curl example.org", AssertionError),
        ("papermill nbs/05_cacd.ipynb out.ipynb -p data_rot ~/faces", ValueError),
        ("papermill nbs/05_cacd.ipynb out.ipynb -p backbone vgg17", ValueError),
        ("papermill nbs/05_faces.ipynb out.ipynb", AssertionError),
        ("wae compare ~/flowers --modell net.pth", click.NoSuchOption),
        ("wae compar ~/flowers", KeyError),
        ("wae export runs/NAME --to onnx  # with --int4", AssertionError),
        ("make demos", AssertionError),
        ("python data_prep/cacd.py CACD2000/", SystemExit),
        ("torchrun -m wae_nb.train datta_root=cacd", AssertionError),
        ("pip install -e '.[everything]'", AssertionError),
    ],
)
def test_a_wrong_command_is_seen(line, error):
    with pytest.raises(error):
        by_rule(line)


@pytest.mark.parametrize("page", [*PAGES, *BOOKS])
def test_no_block_of_another_kind(page):
    """Commands and Python are checked here, entries of registries by test_figures; a drawing says that it is text."""
    assert {language for language, _ in FENCE.findall(markdown(page))} <= {"", "bash", "python", "diff", "text"}
    for text in blocks(page, "diff"):
        assert page == "CONTRIBUTING.md" and re.search(r"^ (\w+)[^\n]*\n\+    (?:\"?\w+\"?): (\w+)\(", text, re.MULTILINE)


SMALL = {'"resnet50"': '"resnet18"', '"paper"': '"smoke"', '"strong"': '"smoke"', '"vgg16"': '"resnet18"', '"vgg16_bn"': '"resnet18"'}
SMALL |= {'"bf16", workers=8': '"no"'}
PYTHON = [(page, i, text) for page in [*PAGES, *BOOKS] for i, text in enumerate(blocks(page, "python"))]


@pytest.fixture
def place(tmp_path, people, monkeypatch):
    """Where the names that the blocks use are found: folders of images, and runs that are not trained but handed back as their specs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wae_nb.lab.experiment.project_root", lambda: tmp_path)
    monkeypatch.setattr(Experiment, "runs", lambda self, specs: specs)
    return people


def ran(text: str, names: dict) -> dict:
    """Statement by statement; in bf16 where the processor has it, as the block says."""
    for node in ast.parse(text).body:
        code = ast.unparse(node)
        if "precision='bf16'" not in code or has_bf16("cpu"):
            exec(compile(code, code, "exec"), names)
    return names


@pytest.mark.parametrize("page, i, text", PYTHON, ids=lambda v: str(v)[:40] if isinstance(v, (str, int)) and "\n" not in str(v) else "")
def test_python(page, i, text, place):
    """README's as it stands; the others on small networks and images, in the names of the page's first block."""
    for module in ("openvino", "nncf", "ncnn", "onnx", "torch_pruning"):
        pytest.importorskip(module)
    torch.manual_seed(0)
    if page == "README.md":
        found = ran(text, {})
        assert tuple(found["scores"].s.shape) == (1, 10) and found["low"].shape == found["high"].shape == (1, 3, 112, 112)
        x = torch.rand(1, 3, 224, 224)
        torch.testing.assert_close(torch.as_tensor(found["fast"](x).s), found["net"].eval()(x).s, atol=1e-3, rtol=1e-3)
        return
    for old, new in SMALL.items():
        text = text.replace(old, new)
    text = re.sub(r'"(~/imagenette2|cacd|imagenet256)"', repr(str(place)), text)
    net = wae_nb.build("wae", "resnet18", num_classes=10, image_size=224).eval()
    found = ran(text, dict(wae_nb=wae_nb, net=net, images=torch.rand(32, 3, 224, 224), classes=[f"class {c}" for c in range(10)]))
    if "again" in found:
        x = torch.rand(2, 3, 224, 224)
        assert torch.equal(found["again"](x).s, net(x).s) and len(found["done"].files) == 1
    if "exp" in found:
        assert found["exp"].profile == "smoke"


def test_the_campaign_trains_the_front_page():
    """Each row of README's first table is among those that `wae reproduce` trains where there are images."""
    rows, ways = (BEYOND_ROWS[k].split(",") for k in ("rows", "ways"))
    trained = {f"{method} ({way})" for method in rows for way in ways if fits(method, way)}
    shown = json.loads((ROOT / "figures/strong/ideas-ms-128px-imagenette-vgg16_bn.json").read_text())
    of_page = runpy.run_path(str(ROOT / "figures/make_readme.py"))["SHOWN"]
    assert {row for row in shown if row.split(" (")[0] in of_page and not row.endswith("int8")} <= trained
