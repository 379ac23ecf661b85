"""What `import wae_nb` gives: a dozen names, each imported when it is used, documented and with an example that runs."""

import doctest
import importlib
import pydoc
import subprocess
import sys
import textwrap

import pytest

import wae_nb

HEAVY = {"matplotlib", "seaborn", "pandas", "IPython", "jupyter_core", "ipykernel", "nbformat", "accelerate", "skimage", "openvino", "onnxruntime", "nncf"}
SECONDS = 3.0  # of a warm import
NAMES = sorted(wae_nb.__all__)


def fresh(code: str) -> str:
    """What a new process prints."""
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True).stdout


def heavy(code: str) -> set[str]:
    return HEAVY & set(fresh(f"{code}\nimport sys\nprint(*sys.modules)").split())


def seconds(code: str) -> float:
    "Of the processor, not of the clock: other processes must not count. The least of three warm starts."
    return min(float(fresh(f"{code}\nimport time\nprint(time.process_time())")) for _ in range(3))


def test_nothing_is_imported_before_it_is_used():
    assert fresh("import sys, wae_nb\nprint(sorted(m for m in sys.modules if m == 'torch' or m.startswith('wae_nb')))").strip() == "['wae_nb']"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_heavy(name):
    assert not heavy(f"import wae_nb; wae_nb.{name}")


def test_the_check_for_heavy_modules_can_fail():
    assert heavy("import wae_nb, pandas") == {"pandas"}


def test_it_takes_less_than_three_seconds():
    assert seconds("import wae_nb; wae_nb.build") < SECONDS


def test_names():
    assert dir(wae_nb) == NAMES and 10 <= len(NAMES) <= 16
    assert fresh("from wae_nb import *\nprint(*sorted(n for n in globals() if not n.startswith('_')))").split() == NAMES
    assert wae_nb.__version__ and not hasattr(wae_nb, "DataError")


def test_a_name_is_the_one_of_its_module():
    for name in NAMES:
        value = getattr(wae_nb, name)
        if hasattr(value, "__module__"):  # METHODS is a dict
            assert value is getattr(importlib.import_module(value.__module__), name) and value.__module__.startswith("wae_nb.")


def test_help_shows_just_these():
    said = pydoc.plain(pydoc.render_doc(wae_nb))
    functions = {line.split("(")[0].strip() for line in said.split("FUNCTIONS")[1].split("\nDATA")[0].splitlines() if line[4:5].strip() and "(" in line}
    classes = {line.split("(")[0].strip().removeprefix("class ") for line in said.split("\nCLASSES")[1].splitlines() if line.startswith("    class ")}
    assert functions | classes | {"METHODS"} == set(NAMES) and "METHODS = {" in said


@pytest.mark.parametrize("name", [n for n in NAMES if n != "METHODS"] + [""])  # METHODS is shown in the package's own example
def test_the_example_runs(name):
    """Whatever examples a docstring has; each has one, which uses the name as it stands here."""
    value = getattr(wae_nb, name) if name else wae_nb
    examples = doctest.DocTestParser().get_doctest(value.__doc__ or "", {}, name or "wae_nb", None, None)
    assert any(f"wae_nb.{name}" in e.source for e in examples.examples), f"{name}: no example in its docstring"
    said = []
    failed, tried = doctest.DocTestRunner().run(examples, out=said.append)
    assert tried and not failed, "".join(said)
