"""Write at the top of every numbered notebook how long it takes: what its runs trained for, by their records, or what running all of it took.

    python figures/make_times.py                 write the lines anew
    python figures/make_times.py --check         exit with 1 where one differs from the notebook's
    python figures/make_times.py --measure 00 09 run these whole, in a folder of their own and on one thread, and keep how long each took

A run's record is found by the name that the notebook prints when it has trained or found it; the runs that it starts from, and its teacher, count as well.
"""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

FIGURES = Path(__file__).resolve().parent
BOOKS = sorted((FIGURES.parent / "nbs").glob("[0-9]*.ipynb"))
MEASURED = FIGURES / "timing/notebooks.json"
BEGIN, END = "<!-- from records, by figures/make_times.py -->", "<!-- end -->"
TABLES = {"10_past_the_paper": ("strong", "h200/strong")}  # where the tables are whose runs another sitting trained: their records are named beside them


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"))


def run_records(folder: str = "*") -> tuple[dict[str, dict], dict[str, str]]:
    """Every record of a run that was trained, by its name, and the names by their fingerprints."""
    found = {r["name"]: r for p in sorted(FIGURES.glob(f"{folder}/records/*.json")) if "seconds" in (r := read(p))}
    return found, {json.dumps(r["decisive"], sort_keys=True): name for name, r in found.items()}


def printed(book: Path) -> set[str]:
    """The names of the runs that a notebook says it has trained or found."""
    said = "".join("".join(o.get("text", [])) for c in read(book)["cells"] for o in c.get("outputs", []))
    return set(re.findall(r"^(?:trained|found) ([A-Za-z]\S*?):", said, re.MULTILINE))


def runs_of(book: Path, records: dict[str, dict], names: dict[str, str], folder: str = "") -> set[str]:
    """The runs that a notebook needs, from the first stage on; those behind the tables of a folder, if it shows some."""
    todo, all_of_them = printed(book) if not folder else set(), set()
    if book.stem == "08_your_own_model":
        todo = {row["run"] for row in read(FIGURES / "compared/comparison-64px-demo-faces-vgg16_bn-record.json")["rows"]}
    for path in FIGURES.glob(f"{folder}/ideas-*.json") if folder else ():
        todo |= {name for each in read(path).values() for name in each if name in records}
    while todo:
        name = todo.pop()
        all_of_them.add(name)
        before = (records[name]["decisive"].get(k) for k in ("parent", "teacher"))
        todo |= {n for d in before if d and (n := names.get(json.dumps(d, sort_keys=True)))} - all_of_them
    return all_of_them


def long(seconds: float) -> str:
    for unit, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 1.95 * unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} seconds"


def where(records: list[dict]) -> str:
    machines = {(r["machine"]["gpu"] or r["machine"]["cpu"]) for r in records}
    counts = sorted({r["machine"]["threads"] for r in records})
    return f"{' and '.join(sorted(machines))}, {' or '.join(map(str, counts))} thread{'s' * (counts != [1])}"


def line(book: Path, records: dict[str, dict], names: dict[str, str], whole: dict[str, dict]) -> str:
    """What stands at the top of a notebook."""
    used, said, shown = [records[n] for n in sorted(runs_of(book, records, names))], [], []
    given, used = [r for r in used if not r["epochs"]], [r for r in used if r["epochs"]]
    if used:
        of = f"{len(used)} runs" if len(used) > 1 else "one run"
        took = f"took {long(sum(r['seconds'] for r in used))} to train ({where(used)}{', the standard network not counted' if given else ''})"
        said.append(f"Its {of} {took}; what is there is not trained again")
    for folder in TABLES.get(book.stem, ()):
        known, called = run_records(folder)
        if used := [known[n] for n in sorted(runs_of(book, known, called, folder))]:
            shown.append(f"of {len(used)} runs, which took {long(sum(r['seconds'] for r in used))} to train ({where(used)})")
    if shown:
        said.append(f"It shows the records {', and '.join(shown)}, and trains nothing unless `rows` asks for it")
    if book.stem == "04_timing":
        kept = max((read(p) for p in FIGURES.glob("timing/records/*.json")), key=lambda r: r["finished"])
        calls = [ms for t in kept["times"] + kept["others"] for ms in t["ms"]]
        said.append(f"The calls that it timed took {long(sum(calls) / 1000)} together ({where([kept])}); preparing and warming up come on top")
    if made := whole.get(book.stem):
        said.append(f"All of it took {long(made['processor_seconds'])} of one core ({made['machine']['cpu']})")
    return f"**Time.** {'. '.join(said)}." if said else ""


def notebooks() -> dict[Path, str]:
    """Each notebook as it ought to be."""
    (records, names), whole = run_records(), read(MEASURED) if MEASURED.exists() else {}
    out = {}
    for book in BOOKS:
        nb = read(book)
        before = "".join(nb["cells"][0]["source"]).split(f"\n\n{BEGIN}")[0]
        if said := line(book, records, names, whole):
            nb["cells"][0]["source"] = f"{before}\n\n{BEGIN}\n{said}\n{END}".splitlines(keepends=True)
        out[book] = json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    return out


def measure(numbers: list[str]) -> None:
    """Run notebooks whole; the processor's time of all that they start, which other work on the machine hardly changes."""
    import papermill

    from wae_nb.measure.machine import hardware

    kept = read(MEASURED) if MEASURED.exists() else {}
    for book in (b for b in BOOKS if b.stem.split("_")[0] in numbers):
        with tempfile.TemporaryDirectory() as near:
            figures = shutil.copytree(FIGURES, f"{near}/figures")
            known = papermill.inspect_notebook(str(book))
            given = [v for k, folder in (("runs_dir", f"{near}/runs"), ("figures_dir", figures)) if k in known for v in ("-p", k, folder)]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            command = [str(Path(sys.executable).with_name("papermill")), str(book), f"{near}/out.ipynb", *given, "--no-progress-bar"]
            subprocess.run(command, check=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        machine, now = hardware() | dict(threads=1), datetime.now(UTC).isoformat(timespec="seconds")
        kept[book.stem] = dict(processor_seconds=round(seconds, 1), machine=machine, finished=now)
    MEASURED.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2:])
    wrong = {path: new for path, new in notebooks().items() if path.read_text(encoding="utf-8") != new}
    if sys.argv[1:] == ["--check"]:
        sys.exit("".join(f"{p.name} says another time than its records; run python figures/make_times.py\n" for p in wrong).strip() or 0)
    for path, new in wrong.items():
        path.write_text(new, encoding="utf-8")
