"""Write figures/README.md: every table and picture of figures/, by what it shows and by data set, with its records; and what the front page says of them.

    python figures/make_readme.py           write both anew
    python figures/make_readme.py --check   exit with 1 where they differ from the files
"""

import csv
import json
import re
import statistics
import sys
from pathlib import Path
from urllib.parse import quote

FIGURES = Path(__file__).resolve().parent
TITLES = {
    "table1-cost": "Table 1, costs",
    "table2-cost": "Table 2, costs",
    "table5-cost": "Table 5, costs",
    "runs-cpu": "Our speed-up in separate runs",
    "speedup-cpu": "Speed-up by batch size",
    "baselines-cpu": "Three baselines for a speed-up",
    "latency-cpu": "The latency of every row in every way",
    "parts-cpu": "Where the time goes",
    "tradeoff-openvino": "Accuracy against measured speed-up, OpenVINO",
    "stage1": "Sub-images after stage 1",
    "stage1-curves": "Losses of stage 1",
    "pruning": "Cost and accuracy while pruning",
    "lambda": "The weight of the energy loss, λ",
    "gamma": "The weight of the auto-encoder's loss in stage 3, γ",
    "norm": "BatchNorm on the sub-images",
    "energy": "Energy of the sub-image, or of the whole image",
    "averaging": "Noise: how much of the difference halving makes",
    "filters": "The encoders' frequency responses",
    "spectra": "Spectra of the sub-images",
    "wavelet-like": "How much of a wavelet the auto-encoder is",
    "wavelet-pictures": "A wavelet's sub-images",
    "reconstruction": "What is reconstructed, and from what",
    "reconstruction-by-class": "What is reconstructed, by class",
    "likeness": "How alike the sub-images are",
    "noise": "Accuracy under noise",
    "noisy": "What the noise looks like",
    "noise-norm": "Noise with and without BatchNorm on the sub-images",
    "noise-scores": "Noise, by which scores are used",
    "snr": "Signal-to-noise ratio of the sub-images",
    "curves": "Training curves",
    "compared": "Ours less each other row",
    "confusions": "Confusion matrices",
    "ideas-detail": "What details are worth, and what the work on a larger image is worth",
    "ideas": "Past the paper: rows and ways to train them",
    "ideas-again": "Past the paper: the same specs on another machine",
    "ideas-bar": "Past the paper: decompositions against the resized image trained alike",
    "ideas-blur": "Past the paper: out of focus",
    "ideas-curves": "Past the paper: training curves",
    "ideas-faint-noise": "Past the paper: what faint noise in training buys",
    "ideas-files": "Past the paper: what each weighs as a file",
    "ideas-first-layer": "Past the paper: how much noise the first layer lets in",
    "ideas-front": "Past the paper: accuracy against operations",
    "ideas-goals": "Past the paper: what was to be reached",
    "ideas-groups": "Past the paper: accuracy by the details in an image",
    "ideas-later-seeds": "Past the paper: seeds that were added",
    "ideas-ms": "Past the paper: accuracy against measured speed-up, INT8 on top",
    "ideas-noise": "Past the paper: noise",
    "ideas-otherwise": "Past the paper: as many operations, spent otherwise",
    "ideas-pruned": "Past the paper: pruned on top",
    "ideas-steps": "Past the paper: what each step buys",
    "ideas-tasks": "Past the paper: task by task",
    "ideas-tasks-splits": "Past the paper: task by task, on both splits",
    "precision-cpu": "Training in single precision and in bfloat16",
    "zoo-cpu": "Every CNN of torchvision at half the input",
    "comparison": "Ways to make one network cheaper",
    "summary": "How many cells are measured",
    "missing": "What is missing, and what fills it",
    "claims": "What the paper claims, and what holds here",
}
INTRO = """# Results

Made by `python figures/make_readme.py` from the files here; every number comes from run records. The paper's columns are ImageNet's and CACD's.
The measured ones are from other, smaller data and narrower networks: compare rows with each other, and only as far as the intervals in the
executed notebooks allow. `make report` shows the same tables on one page, beside the paper's and with what is missing."""


def parts(stem: str, data: list[str]) -> tuple[str, str, str]:
    """What a file shows, the data set and the backbone, the last two "" where its name has none."""
    for name in sorted(data, key=len, reverse=True):
        if m := re.fullmatch(rf"(.+)-{re.escape(name)}-([^-]+)", stem):
            return m[1], name, m[2]
    return stem, "", ""


def title(what: str, profile: str) -> str:
    what, size = re.fullmatch(r"(.+?)(?:-(\d+px))?(?:-vgg16_bn)?", what.removesuffix(f"-{profile}")).groups()
    found = TITLES.get(what) or re.sub(r"^(Table|Figure)(\d)", r"\1 \2", what.replace("-", " ").capitalize())
    return f"{found}, {size.replace('px', ' px')}" if size else found


def links(stem: Path) -> str:
    """Links to the files of one table or picture, and how many records it was made from."""
    found = [(end, f"{stem.name}.{end}") for end in ("csv", "png") if stem.with_name(f"{stem.name}.{end}").exists()]
    rows = stem.with_name(f"{stem.name}.json")
    if rows.exists():
        names = {n for each in json.loads(rows.read_text(encoding="utf-8")).values() for n in each}
        found.append((f"{len(names)} record{'s' * (len(names) != 1)}", rows.name))
    return " · ".join(f"[{text}]({quote(f'{within(stem.parent)}/{name}')})" for text, name in found)


def within(folder: Path) -> str:
    """A folder as seen from figures/."""
    return folder.relative_to(FIGURES).as_posix()


def section(folder: Path) -> tuple[list[str], list[str]]:
    """The headings and the lines of one profile."""
    records = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("records/*.json")]
    data = sorted({r["data"]["name"] for r in records if r.get("data")})
    stems = sorted({p.stem for p in folder.iterdir() if p.suffix in (".md", ".png")})
    groups: dict[str, list] = {}
    for stem in stems:
        what, name, backbone = parts(stem, data)
        groups.setdefault(what, []).append((name, backbone, folder / stem))
    headings, lines = [], []
    for what in sorted(groups, key=lambda w: (*(not w.startswith(first) for first in ("table", "tradeoff", "figure")), w)):
        headings.append(title(what, folder.name))
        lines += ["", f"### {headings[-1]}"]
        for name, backbone, stem in groups[what]:
            of = f"**{name}, {backbone}**: " if name else ""
            table = stem.with_name(f"{stem.name}.md")
            lines += ["", f"{of}{links(stem)}"]
            if table.exists():
                text = table.read_text(encoding="utf-8").strip()
                lines += ["", text if len(text) < 8000 else f"[{len(text.splitlines())} lines]({within(folder)}/{table.name})"]
    return headings, lines


def anchor(heading: str, seen: dict[str, int]) -> str:
    """As code hosts make it: the second of a name gets a number."""
    name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
    seen[name] = n = seen.get(name, -1) + 1
    return f"{name}-{n}" if n else name


def readme() -> str:
    folders = sorted({p.parent for p in FIGURES.rglob("*.md")} - {FIGURES})
    contents, body, seen = [], [], {}
    for folder in folders:
        headings, lines = section(folder)
        first, *others = [anchor(h, seen) for h in (within(folder), *headings)]  # in the order of the page
        contents += ["", f"**[{within(folder)}](#{first})**: " + " · ".join(f"[{h}](#{a})" for h, a in zip(headings, others))]
        kept = ["", f"Records: [{within(folder)}/records]({within(folder)}/records)."] if (folder / "records").is_dir() else []
        body += ["", f"## {within(folder)}", *kept, *lines]
    return "\n".join([INTRO, *contents, *body]) + "\n"


FRONT, BEGIN, END = FIGURES.parent / "README.md", "<!-- from records, by figures/make_readme.py -->\n", "<!-- end -->"
ROWS = FIGURES / "strong/ideas-128px-imagenette-vgg16_bn.json"  # row → records, one for each seed
SHOWN = {  # method of the table of accuracy against speed-up, which has its best way → what the front page calls it
    "plain": "standard network",
    "wae": "the paper's (*Ours*)",
    "half": "half resolution",
    "linear-in": "linear encoder, details in the first layer",
    "linear-2": "linear encoder, two levels",
    "quarter": "quarter resolution",
}
SHARE = "MACs (% of the standard network's)"
WARM = "warm", "patient", "finer-patient", "finer-noisy"  # from its teacher's weights
TAUGHT = dict.fromkeys(("taught", "noisy", "finer-taught"), ", taught") | dict.fromkeys(WARM, "*")


def rows_of(path: Path, *keys: str) -> dict[str, dict]:
    """The lines of a table, by some of its cells."""
    with path.open(encoding="utf-8") as file:
        return {" ".join(line[k] for k in keys): line for line in csv.DictReader(file)}


def kept(name: str) -> dict:
    """A record."""
    return json.loads((FIGURES / f"strong/records/{name}.json").read_text(encoding="utf-8"))


def accuracy(name: str, rows: dict[str, list[str]]) -> str:
    """Of the row with this record, over all its seeds."""
    top1 = [100 * kept(n)["test"]["top1"] for n in next(names for names in rows.values() if name in names)]
    return f"{statistics.mean(top1):.2f}" + (f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else "") + f" ({len(top1)})"


def all_epochs(record: dict) -> float:
    """Of a run and the stages before it."""
    epochs, stage = record["epochs"], record["decisive"]
    while stage := stage.get("parent"):
        epochs += stage["stage_recipe"]["epochs"]
    return epochs


def trained(way: str, name: str, first: str) -> str:
    """How a row was trained, from its record; of three stages, the sum. An asterisk alone says that the first row's network taught it."""
    record, teacher = kept(name), kept(first)
    if TAUGHT.get(way) == "*" and record["decisive"]["teacher"] != teacher["decisive"]:
        raise ValueError(f"{name} was not taught by {first}, the standard network of the table: the front page would say so")
    if TAUGHT.get(way) == "*":
        return "*"
    twice = record["decisive"]["stage_recipe"]["batch_size"] == 2 * teacher["decisive"]["stage_recipe"]["batch_size"]
    return f", {all_epochs(record):g} epochs{TAUGHT.get(way, '')}{', twice the batch' * twice}"


def by_labels(rows: dict[str, list[str]]) -> str:
    """The whole image, the resized one and *Ours* as labels alone train them, over the seeds that all have; the table has each in its best way."""
    titles = {"standard network": "standard network", "half resolution": "standard network, half resolution (I_R)", "*Ours*": "Ours"}
    each = {said: {r["seed"]: r for r in map(kept, rows[f"{title}, by labels"])} for said, title in titles.items()}
    seeds = set.intersection(*map(set, each.values()))
    usual = f"{all_epochs(each['standard network'][min(seeds)]):g}"
    top1 = {said: statistics.mean(100 * rs[s]["test"]["top1"] for s in seeds) for said, rs in each.items()}
    longest = [kept(n) for title, names in rows.items() if title.startswith("standard network, by labels") and "noisy" not in title for n in names]
    longest = [r for r in longest if all_epochs(r) == max(map(all_epochs, longest)) > float(usual)]
    less = next(line for line in rows_of(ROWS.with_suffix(".csv"), "row", "trained").items() if line[0] == "Ours by labels")[1]
    said = f"By labels, {usual} epochs: {', '.join(f'{said} {x:.2f}' for said, x in top1.items())} ({len(seeds)})"
    said += f", in {less['epochs']} epochs: {less['less the resized image trained alike']} less half"
    more = statistics.mean(100 * r["test"]["top1"] for r in longest) if longest else 0
    return said + f"; {all_epochs(longest[0]):g} epochs: standard {more:.2f} ({len(longest)})." if longest else f"{said}."


def in_noise(rows: dict[str, list[str]], variance: str = "0.05") -> str:
    """Three rows on noisy test images, as faintly noisy training images leave them: two over the seeds that both have, the third over those that all have."""
    titles = "linear encoder, details in the first layer, taught", "standard network, half resolution (I_R), taught", "standard network, by labels"
    each = []
    for title in titles:
        names = next(of for row, of in rows.items() if row.startswith(f"{title} on faintly noisy images") and row.endswith("in half the batch"))
        tests = [kept(f"{n}-noise") for n in names if (FIGURES / f"strong/records/{n}-noise.json").exists()]
        each.append({r["seed"]: 100 * r["test"][variance]["top1"] for r in tests})
    both, all_ = each[0].keys() & each[1].keys(), set.intersection(*map(set, each))
    linear, whole = (f"{statistics.mean(top1[s] for s in seeds):.1f} ({len(seeds)})" for top1, seeds in ((each[0], both), (each[2], all_)))
    table = rows_of(FIGURES / "strong/ideas-faint-noise-vgg16_bn.csv", "what faint noise in training buys")
    row = "linear encoder, details in the first layer against half resolution, both faintly noisy (imagenette, 128 px)"
    less = table[row][f"V={variance}"].partition("(")[2].removesuffix(")")
    return f"In noise (variance {variance}), trained with noise: linear encoder {linear}, {less} less half; standard {whole}."



def claimed() -> str:
    """How many of the paper's claims hold here, as 09 counts them."""
    counted = next(line for line in (FIGURES / "claims/claims.md").read_text(encoding="utf-8").splitlines() if line.startswith("Of "))
    counted = re.sub(r" \([^()]*\)", "", counted.partition(". ")[0].removeprefix("Of "))
    return f"Of the paper's {counted}: [which](figures/claims/claims.md)."


def front() -> str:
    """The front page, what it says of results made anew."""
    said = FRONT.read_text(encoding="utf-8")
    if BEGIN not in said:
        return said
    path = FIGURES / "strong/ideas-ms-128px-imagenette-vgg16_bn.csv"
    points, names, seeds = rows_of(path, "row"), *(json.loads(p.read_text(encoding="utf-8")) for p in (path.with_suffix(".json"), ROWS))
    columns = "top-1, % (seeds)", "times as fast", "in INT8"
    lines = [f"| Imagenette, 128 px, VGG16-BN, quarter width | {' | '.join(columns)} |", "|---|---|---|---|"]
    taught, small = [], []
    first = next(rs[0] for name, rs in names.items() if name.startswith("plain (") and not name.endswith("int8"))
    for method, title in SHOWN.items():
        ways = [m[1] for name in points if (m := re.fullmatch(rf"{re.escape(method)} \((.+)\)", name))]
        if len(ways) != 1:
            raise ValueError(f"ideas-ms-128px-imagenette-vgg16_bn.csv has {len(ways)} rows of {method!r}: the front page shows one; run 10 at 128 px again")
        row = f"{method} ({ways[0]})"
        record, whole, int8 = names[row][0], points[row], points[f"{row}, int8"]
        cells = accuracy(record, seeds), whole["speed-up"], int8["speed-up"]
        small.append(float(int8["INT8 costs, points"].split()[0]))
        taught += [all_epochs(kept(record))] * (ways[0] in WARM)
        share = f", {float(whole[SHARE]):.0f} % of the operations" * (method == "wae")
        lines.append(f"| {title}{trained(ways[0], record, first)}{share} | {' | '.join(cells)} |")
    full = rows_of(FIGURES / "timing/baselines-cpu.csv", "backbone", "row")
    heads = "same engine, fp32", "best engine of each side, fp32", "its fastest over standard in INT8"
    lines += ["", f"| Full width, 224 px, one image: times as fast | {' | '.join(heads)} |", "|---|---|---|---|"]
    for row in ("VGG16 Ours", "VGG16 linear encoder, two levels, pooled head", "ResNet-50 Ours"):
        cells = [full[row][k] for k in ("same engine, fp32", "best in fp32", "best of all over INT8")]
        lines.append(f"| {row.replace(' ', ': ', 1)} | {' | '.join(cells)} |")
    machine = (FIGURES / "timing/baselines-cpu.md").read_text(encoding="utf-8").strip().splitlines()[-1].split("network's. ")[1]
    below = "below: one run's medians [quartiles], the pooled head's over fully connected ones"
    if len(set(taught)) != 1:
        raise ValueError(f"the taught rows had {taught} epochs: the front page gives them one number")
    said_of = f"\\* Taught by the first row, from its weights, {taught[0]:g} epochs. INT8 costs these {max(0.0, -min(small)):.2f} points at most. "
    said_of += f"{by_labels(seeds)} {in_noise(seeds)} Means ± deviations; speed, INT8: one seed"
    lines += ["", f"{said_of}; {below}. {machine}", "", claimed()]
    before, after = said.split(BEGIN)[0], said.split(END)[1]
    return before + BEGIN + "\n" + "\n".join(lines) + "\n\n" + END + after


if __name__ == "__main__":
    pages = {FIGURES / "README.md": readme(), **({FRONT: front()} if FRONT.exists() else {})}
    if sys.argv[1:] == ["--check"]:
        wrong = [path for path, new in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != new]
        sys.exit("".join(f"{p.relative_to(FIGURES.parent)} is not what figures/ says; run python figures/make_readme.py\n" for p in wrong).strip() or 0)
    for path, new in pages.items():
        path.write_text(new, encoding="utf-8")
