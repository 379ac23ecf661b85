"""A number in prose is one that somebody typed: it is the code's or the paper's, computed here, or a setting with its reason; what was measured is printed."""

import inspect
import json
import re
import runpy
from configparser import ConfigParser
from functools import cache

import pandas as pd
import pytest
import torch
from conftest import ROOT

from wae_nb.data.pack import VAL_FRACTION
from wae_nb.data.photos import NAMES as PHOTOGRAPHS
from wae_nb.lab.beyond import in_all, pruned_of, tasks_of
from wae_nb.lab.paper import DATA, TABLES
from wae_nb.lab.profiles import PROFILES
from wae_nb.lab.records import recorded_rows, records
from wae_nb.lab.statistics import accuracy_difference, of_both
from wae_nb.lab.tradeoff import calibration_images
from wae_nb.lab.ways import MORE, TAUGHT, WAYS
from wae_nb.measure.cost import macs
from wae_nb.method.backbones import features
from wae_nb.method.classifier import build
from wae_nb.prune.pruners import PRUNERS
from wae_nb.train.engine import Engine
from wae_nb.train.recipes import Distill

TIMES = runpy.run_path(str(ROOT / "figures/make_times.py"))
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "nbs/README.md", "data_prep/README.md"]
BOOKS = [p.relative_to(ROOT).as_posix() for p in TIMES["BOOKS"]]
WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()

GENERATED = re.compile(r"<!-- from records.*?<!-- end -->", re.DOTALL)
NOT_PROSE = re.compile(
    r"\$\$.*?\$\$|\$[^$\n]+\$"  # equations
    r"|`[^`\n]+`|\]\([^)]*\)"  # code, and where a link leads
    r"|\[0, 1\]|\((?:\d+|[NB])(?:, (?:\d+|[A-Z]))+\)"  # the range of pixels, shapes
    # which one, not how many: a table, a stage, a notebook, a line of a list, a year, a version
    r"|\b(?:Table|Figure|Equation|Eq\.|row|stage|epoch)s?\**\s\d+(?:(?:,\s|\sto\s|\sand\s|,\sand\s)\d+)*"
    r"|(?:^|• )\d+\.\s|\b0\d[ab]?(?:_\w+)?\b(?: and 10\b)?|\[10[,\]]|\bin 10\b|\b10_\w+|\|\s\d(?:, \d)*(?=[ ,])"
    r"|\b(?:19|20)\d\d\b|\b\d\.\d\.\d\b|\bApache-2\.0"
    # names
    r"|\bVGG16(?: \(\d+\))?|\bResNet-50\b|\bThiNet-30\b|\bTaylor-\d\b|\btop-[15]\b|\bINT8\b|\b9/7\b|\b[fb]\w?\d\d\b",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
COUNT = rf"(?:{'|'.join(WORDS)}|thirty|forty|fifty|hundred|thousand|half|a few|some)"
UNIT = r"(?:%|×|(?:per cent|points?|times|ms|milliseconds?|seconds?|minutes?|hours?|days?|dB|[MG]B|epochs?|J|px|pixels?|images a second)\b)"
PART = r"(?:third|quarter|fifth|tenth|sixteenth|hundredth|hundredfold|thousandth)s?"
NUMBER = re.compile(  # a bare 0 or 1 is no measurement
    rf"(?<![\w.])(?![01]\b(?!\.\d|\s?{UNIT}))[-+−]?\d+(?:[.,]\d+)*(?:\s?{UNIT})?"
    rf"|\b{COUNT}[\s-](?:an?\s)?{UNIT}|\ban?\s(?:minute|hour|day)\b|\b(?:a|an|{'|'.join(WORDS)})[\s-]{PART}\b",
    re.IGNORECASE,
)


def prose(page: str) -> str:
    """What a person reads as a sentence, on one line; of a block of code, its comments."""
    said = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".ipynb"):
        said = "\n\n".join("".join(c["source"]) for c in json.loads(said)["cells"] if c["cell_type"] == "markdown")
    said = GENERATED.sub("", said)
    said = re.sub(r"^```.*?^```", lambda m: " ".join(line.partition("# ")[2] for line in m[0].splitlines()), said, flags=re.DOTALL | re.MULTILINE)
    return " ".join(re.sub(r"^(\s*\d+\.\s)", r"• \1", said, flags=re.MULTILINE).split())


def ratio(backbone: str) -> float:
    with torch.device("meta"):
        return macs(build("plain", backbone, 1000)) / macs(build("wae", backbone, 1000))


def default(of, name: str):
    return inspect.signature(of).parameters[name].default


def error(number: int, row: str) -> float:
    return TABLES[number].rows[row]["top5_error"]


def noisy(v: str) -> float:
    a, b = TABLES[7].rows[v].values()
    return b - a


def demo_minutes() -> range:
    """What may be said of `make demo`: its runs' minutes, and up to two fifths more for the set-up of the notebook, tests and pictures."""
    (book,) = (b for b in TIMES["BOOKS"] if b.stem == "05_cacd")
    records, names = TIMES["run_records"]()
    trained = sum(records[n]["seconds"] for n in TIMES["runs_of"](book, records, names)) / 60
    return range(int(trained) + 1, int(1.4 * trained) + 1)


def computed() -> list[str]:
    """Phrases as the code or the paper's tables give them."""
    cfg = ConfigParser(delimiters=["="])
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    faces, photos = PROFILES["faces"], PROFILES["photos"]
    vgg, resnet = ratio("vgg16"), ratio("resnet50")
    level = f"{100 * default(accuracy_difference, 'level'):g} %"
    stride = 224 // features("resnet50")(torch.zeros(1, 3, 224, 224)).shape[-1]
    patient = WAYS["patient"].changes(recipe := photos["strong"].recipe("vgg16_bn", 1000))["distill"].epochs / recipe.classify.epochs
    keep = next(p.keep for p in PRUNERS["thinet"].points if p.title == "ThiNet-30")
    pack = (1_281_167 + DATA["photos"].test) * 256 * 256 * 3 / 1e9
    return [
        f"VGG16 needs {vgg:.2f} times fewer",
        f"ResNet-50 {resnet:.2f} times fewer",
        f"about {WORDS[round((resnet + vgg) / 2)]} times cheaper",
        f"Python {cfg['DEFAULT']['min_python']} or newer",
        f"with a variance of 0.05 it is {noisy('V=0.05'):.1f} points ahead",
        f"cost {error(1, 'Ours') - error(1, 'VGG16 (224)'):.1f} points of top-5 error",
        f"plain halving costs {WORDS[round(error(1, 'VGG16 (112)') - error(1, 'VGG16 (224)'))]}",
        f"photographs of celebrities over years, with {DATA['faces'].classes} of them",
        f"{photos['paper'].image_size} pixels and ImageNet's {DATA['photos'].classes} classes",
        f"the standard network with {100 * keep:g} % of the channels left",
        f"{WORDS[runpy.run_path(str(ROOT / 'data_prep/pretrained.py'))['EPOCHS']]} epochs on patches of {WORDS[len(PHOTOGRAPHS)]} photographs",
        f"a {level} interval",
        f"with {level} intervals",
        f"its {level} confidence interval",
        f"{100 * VAL_FRACTION:g} % of the rest is the validation split",
        f"{faces['strong'].image_size} px, photographs of one's own {photos['strong'].image_size}" if photos["strong"].pixels("demo-photos") == 64 else "",
        f"at {faces['strong'].image_size} and {photos['strong'].image_size} pixels",
        f"a quarter as wide and see {photos['strong'].image_size} pixels" if photos["strong"].width == 0.25 else "",
        f"full width; {faces['small'].image_size} and {photos['small'].image_size} px",
        f"full width, {photos['paper'].image_size} px",
        f"at full width, {photos['paper'].image_size} pixels",
        f"calibrated with {default(calibration_images, 'images')} training images",
        f"divides the side by {stride}",
        f"learn for {WORDS[round(patient)]} times as many epochs",
        f"(so, {WORDS[round(patient)]} times as long)",
        f"{WORDS[round(10 * Distill().alpha)]} tenths of the loss",
        f"saw noise of a variance up to {WAYS['noisy'].changes(recipe)['distill'].noise:g}",
        f"a checkpoint every {WORDS[round(Engine.checkpoint_minutes)]} minutes",
        f"code {128 + 15} or {128 + 2}",  # as a shell counts SIGTERM and SIGINT
        f"what room it needs ({pack:.0f} GB)",
    ]


SETTINGS = {
    "sizes of a picture, an interface or a table in the code beside it": [
        "The middle of a photograph, 224 pixels of side",
        "in parts of 32",
        "(100 dB stands for exact)",
        "windows of 11×11 pixels",
        "over 256 test images",
        "(512 of them, if there are more)",
        "over 64 test images",
        "*Ours* also at batch 16",
        "At 0 dB noise and signal are equally strong",  # what decibels are
        "details three times as strong",
        "At 128 pixels, as recorded (run with `image_size` 128",
        "on Imagenette at 128 pixels",
        "At half a pixel every row here",
        "Tables 3 and 4 at 128 pixels, and all of them at 32, where many",
        "sweep of λ on Imagenette, 32 pixels",
        "seeds, at 128 pixels and then at 32",
        "The rest is of 32 pixels",
        "photographs of 30 people",
        "maps of 8 bits",
        "kept in half precision",
        "on 4 and on 8 devices",
        "--nproc_per_node 4",
        "40 % of the operations left",
    ],
    "the method's structure, counted in test_facts and test_names: channels, strides, positions": [
        "at a quarter of the cost",
        "it costs a quarter, but",
        "with a quarter of the channels",
        "A quarter of the positions",
        "each sub-image holds a quarter of the image's numbers",
        "costs about a quarter; $I_H$ to a copy with a quarter of its channels, which costs about a sixteenth of that",
        "which keeps a quarter",
        "stride 2",
        "three quarters of the work",
        "cost about a quarter of row 1",
        "have 3 and 16 channels",
        "a quarter of its positions",
        "filters are 7×7",
        "against a quarter of the resolution",
        "a quarter of the width",
        "a quarter as wide",
        "half or a quarter, and",
    ],
    "arithmetic that the sentence itself does": [
        "the same at a quarter of the energy",
        "the standard deviation is 0.1, a tenth of the range",
        "it is nearly a third",
        "writes a tenth of it and a decoder that reads ten times as much lower $\\ell_e$ a hundredfold",
        "each costs a quarter of the teacher's, and the teacher's answers to its crops a third",
        "a forward pass, a third of the operations of a step",
    ],
    "rates and shares of a recipe": [
        "A fifth of each person's pictures",
        "starts from there at a tenth of the rate",
        "at a tenth of the network's rate",
    ],
}


@pytest.fixture(scope="module")
def phrases() -> list[str]:
    minutes = [f"about {WORDS[n]} minutes on two cores" for n in demo_minutes()]
    return [p for p in computed() + minutes + sum(SETTINGS.values(), []) if p]


def covered(said: str, phrases: list[str]) -> list[tuple[int, int]]:
    return [m.span() for p in phrases for m in re.finditer(rf"(?<![\w.]){re.escape(p)}(?!\w)" if p[0].isalnum() else re.escape(p), said)]


def typed(said: str, phrases: list[str]) -> list[str]:
    """Numbers that no phrase accounts for, with what stands around them."""
    spans = covered(said, phrases)
    plain = NOT_PROSE.sub(lambda m: "¤" * len(m[0]), said)
    found = (m for m in NUMBER.finditer(plain) if not any(a <= m.start() and m.end() <= b for a, b in spans))
    return [f"{m[0]!r} in …{said[max(0, m.start() - 40) : m.end() + 40]}…" for m in found]


@pytest.mark.parametrize("page", PAGES + BOOKS)
def test_no_number_is_typed(page, phrases):
    assert not typed(prose(page), phrases)


def test_every_phrase_is_said(phrases):
    """What the code gives is what the pages say; the list does not outlive its sentences."""
    said = " ".join(prose(page) for page in PAGES + BOOKS)
    gone = [p for p in phrases if not covered(said, [p]) and "minutes on two cores" not in p]
    assert not gone


@pytest.mark.parametrize(
    "sentence",
    [
        "Ours is 1.64 points behind.",
        "It takes 12 minutes.",
        "It is two times faster on this machine.",
        "half an hour on two cores",
        "Accuracy falls by 3 %.",
        "a third of the time goes into it",
        "about thirty minutes on two cores",
        "in about a minute",
        "VGG16 needs 3.54 times fewer multiply-accumulates",
        "a 90 % bootstrap interval",
    ],
)
def test_a_typed_number_is_seen(sentence, phrases):
    assert typed(sentence, phrases)


def test_the_times_are_the_records():
    """What stands at the top of each notebook; every numbered one has such a line. What `make demo` says of itself is what README says."""
    (said,) = re.findall(r"about \w+ minutes on two cores", (ROOT / "Makefile").read_text())
    assert said in prose("README.md")
    for book, text in TIMES["notebooks"]().items():
        assert book.read_text(encoding="utf-8") == text, f"{book.name}: run python figures/make_times.py"
        assert TIMES["BEGIN"] in "".join(json.loads(text)["cells"][0]["source"]), book.name


# what a sentence concludes without a number


STRONG = ROOT / "figures/strong"


def cells(name: str) -> pd.DataFrame:
    return pd.read_csv(STRONG / f"{name}.csv", index_col=0)


def faster_and_no_less_accurate(row: str) -> set[str]:
    table = cells("tradeoff-openvino-imagenette-vgg16_bn")
    top1, times = table["top-1 accuracy (%)"], table["speed-up"]
    return {n for n in table.index if "int8" not in n and times[n] > times[row] and top1[n] >= top1[row]}


def below(name: str, a: str, b: str) -> tuple[float, float, float]:
    rows = recorded_rows(STRONG / f"{name}.json")
    return accuracy_difference(*of_both(rows[a], rows[b]))


def as_far_as_is_known() -> bool:
    others = below("table2-imagenette-vgg16_bn", "Ours", "Taylor-1"), below("table1-imagenette-vgg16_bn", "Ours", "VGG16 (112)")
    return all(low <= 0 <= high for _, low, high in others)


def longest() -> bool:
    table = cells("tradeoff-openvino-imagenette-vgg16_bn")
    top1, epochs = table["top-1 accuracy (%)"], table["epochs of training"]
    longer, whole, ours = "standard network, trained as long", "vgg16_bn", "Ours"
    return top1[longer] > top1[whole] > top1[ours] and epochs[whole] < min(epochs[ours], epochs["Taylor-1"]) and abs(epochs[ours] - epochs["Taylor-1"]) < 1


def mostly_resolution() -> bool:
    halved = below("ideas-128px-imagenette-resnet50", *("standard network, half resolution (I_R), taught", "standard network, by labels"))
    ours = below("ideas-128px-imagenette-resnet50", *("Ours, by labels", "standard network, by labels"))
    epochs = cells("tradeoff-openvino-imagenette-resnet50")["epochs of training"]
    return halved[2] < 0 and 0.5 < halved[0] / ours[0] < 1 and abs(epochs["ThiNet-30"] - epochs["Ours"]) <= 1 and epochs["ResNet-50"] < epochs["Ours"]


def behind_thinet() -> bool:
    full = cells("tradeoff-openvino-imagenette-resnet50")["CPU speed-up at full width"]
    return below("table5-imagenette-resnet50", "Ours", "ThiNet-30")[2] < 0 and float(full["Ours"]) < float(full["ThiNet-30"])


def slower_on_resnet() -> bool:
    return cells("tradeoff-openvino-imagenette-resnet50")["speed-up"]["Ours"] < 1


def other_score() -> bool:
    tables = [cells(f"noise-scores-{on}-vgg16_bn").drop(columns="V=0") for on in ("faces", "imagenette")]
    return all((t.loc["Decomposition+CNN, s_c"] > t.loc["Decomposition+CNN, s_L"]).all() for t in tables)


def without_norm(on: str, row: str) -> pd.Series:
    table = cells(f"noise-norm-{on}-vgg16_bn").drop(columns="V=0")
    return table.loc[f"{row} without BatchNorm"] - table.loc[row]


def norm_told(row: str) -> list[bool]:
    """Whether a row without BatchNorm is above itself with it, by the interval, at each level of noise."""
    rows = recorded_rows(STRONG / "noise-norm-faces-vgg16_bn.json")
    both = of_both(rows[f"{row} without BatchNorm"], rows[row])
    return [accuracy_difference(*([dict(r, answers=r["answers"][v]) for r in rs] for rs in both))[1] > 0 for v in both[0][0]["answers"] if float(v)]


def the_wavelet_alone() -> bool:
    return any(norm_told("Wavelet+CNN")) and not any(norm_told("Ours"))


def kept_stage_2(on: str) -> list[bool]:
    names = json.loads((STRONG / f"averaging-{on}-vgg16_bn.json").read_text(encoding="utf-8"))["Ours"]  # of the tests with noise
    return [json.loads((STRONG / f"records/{n.removesuffix('-noise')}.json").read_text(encoding="utf-8"))["best_epoch"] == 0 for n in names]


def noise_let_in() -> bool:
    table = cells("ideas-noise-128px-imagenette-vgg16_bn")
    rows = [n for n in table.index if n.startswith("linear encoder, details in the first layer, ")]
    left = {n: float(table["V=0.01"][n]) / float(table["as they are"][n]) for n in rows}
    faint = [n for n in rows if "faintly noisy" in n]
    return len(faint) == 1 and all((left[n] > 0.9) if n in faint else (left[n] < 0.5) for n in rows)


def fainter_than_epsilon() -> bool:
    strongest = recorded_rows(STRONG / "lambda-32px-imagenette-vgg16_bn.json")["100"]
    tests = [r["test"]["energy_high"] for r in strongest if "energy_high" in r["test"]]
    return bool(tests) and max(tests) < torch.nn.BatchNorm2d(3).eps


def on_gpu(name: str) -> pd.DataFrame:
    """Means alone, of the GPU's table; its rows are the main ones at 128 px."""
    table = pd.read_csv(ROOT / f"figures/h200/strong/{name}.csv", index_col=0).drop(columns="in brackets: less")
    return table.map(lambda cell: float(cell.split()[0])).rename(index=lambda n: n.removesuffix(" (imagenette, 128 px, on a GPU)"))


def way_of(row: str) -> str:
    return row.rsplit(", ", 1)[1]


def softened() -> bool:
    table = on_gpu("ideas-blur-vgg16_bn")
    gain = table["σ = 0.5"] - table["as they are"]
    bars = {way_of(n): g for n, g in gain.items() if "half resolution" in n}
    others = [n for n in gain.index if "half resolution" not in n and "standard network" not in n]
    return bool((gain > 0).all()) and len(others) > 7 and all(gain[n] > bars[way_of(n)] for n in others)


def most_patient() -> bool:
    out = []
    for name, column in (("blur", "σ = 2"), *(("noise", f"V = {v}") for v in (0.01, 0.02, 0.05, 0.1))):
        left = on_gpu(f"ideas-{name}-vgg16_bn")[column]
        left = left[[n for n in left.index if "standard network" not in n]]
        out += [left[f"Wavelet+CNN, {way}"] == max(v for n, v in left.items() if way_of(n) == way) for way in ("by labels", "taught")]
    return all(out)


def cheapest_of_three() -> bool:
    table = pd.read_csv(ROOT / "figures/h200/strong/ideas-128px-imagenette-vgg16_bn.csv", index_col=0)["million MACs"]
    places = ("linear encoder, details in the second block", "linear encoder, details in the first layer", "Wavelet+CNN")
    second, first, own = (float(pd.Series(table[n]).iloc[0]) for n in places)
    return second < first < own


@cache
def tasks() -> dict:
    return tasks_of(strong_records(), "strong", "vgg16_bn")


@cache
def strong_records() -> pd.DataFrame:
    return records("strong", ROOT / "figures")


def whole_by_labels() -> bool:
    return not any(method == "plain" and way in TAUGHT for method, way in tasks()["imagenette, 128 px"])


def narrow(method: str) -> int:
    return macs(build(method, "vgg16_bn", 10, 128, 0.25, head="pooled"), 128)


def none_beats_half() -> bool:
    (said,) = [s for s in in_all(tasks()) if s.startswith("Taught, and against standard network, half resolution (I_R)")]
    return bool(re.search(r"Corrected for their number \(Holm\), 0 of \d+ comparisons", said))


def pruned_beats_two_levels() -> bool:
    at_64 = tasks()["imagenette, 64 px"]
    frame = strong_records()
    pruned = pruned_of(frame[frame["data"].eq("imagenette")], at_64)
    (rows,) = [rs for (method, way, *_), rs in pruned.items() if (method, way) == ("half", "patient")]
    two = at_64["linear-2", "patient"]
    return abs(rows[0]["macs"] / two[0]["macs"] - 1) < 0.05 and accuracy_difference(*of_both(rows, two))[1] > 0


def not_alike() -> bool:
    named = pd.read_csv(STRONG / "ideas-ms-128px-imagenette-vgg16_bn.csv")["row"].str.extract(r"^([\w-]+) \(([\w-]+)\)").drop_duplicates()
    ways = dict(named.itertuples(index=False))
    by_labels = {m for m, way in ways.items() if way == "labels"}
    return by_labels == {"wavelet", "decomposition", "wae"} and all(way in MORE or way in TAUGHT for m, way in ways.items() if m not in by_labels)


def nearer_alone() -> bool:
    """Of the committed output itself: 00 has no records."""
    outputs = [o for c in json.loads((ROOT / "nbs/00_start_here.ipynb").read_text(encoding="utf-8"))["cells"] for o in c.get("outputs", [])]
    table = next("".join(o["data"]["text/html"]) for o in outputs if "PSNR from both" in "".join(o.get("data", {}).get("text/html", "")))
    both, alone = zip(*([float(v) for v in row[:2]] for row in (re.findall("<td>(.*?)</td>", r) for r in table.split("<tr")) if row), strict=True)
    return len(both) == 3 and both[1] < alone[0] < both[2]


CONCLUDED = {  # page, words → whether the records say so
    ("nbs/00_start_here.ipynb", "comes nearer to the image than this short auto-encoder with both sub-images; trained for longer, it passes it"): nearer_alone,
    ("nbs/02_imagenet_vgg16.ipynb", "a standard network trained as long is further ahead"): longest,
    ("nbs/02_imagenet_vgg16.ipynb", "the standard network has fewer than both"): longest,
    ("nbs/02b_front.ipynb", "half the resolution and Taylor's lighter pruning are such rows"): lambda: faster_and_no_less_accurate("Ours")
    == {"vgg16_bn, half resolution", "Taylor-1"},
    ("nbs/02b_front.ipynb", "On ResNet-50 at this width it is slower than the standard network itself"): slower_on_resnet,
    ("nbs/02b_front.ipynb", "No interval tells either from *Ours* in accuracy"): as_far_as_is_known,
    ("nbs/03_imagenet_resnet50.ipynb", "here it is behind in accuracy"): behind_thinet,
    ("nbs/03_imagenet_resnet50.ipynb", "ResNet-50 at half of it, with a teacher, stands nearly as far below"): mostly_resolution,
    ("nbs/06_noise.ipynb", "For *Decomposition+CNN* it is the other way round, on the faces and on Imagenette: $s_c$ is the better one"): other_score,
    ("nbs/06_noise.ipynb", "on the real faces the wavelet's do, *Ours* not by any interval"): the_wavelet_alone,
    ("nbs/06_noise.ipynb", "of the drawn ones the wavelet's loses *more* without it"): lambda: (without_norm("demo-faces", "Wavelet+CNN") < 0).all(),
    ("nbs/06_noise.ipynb", "as in most seeds of the faces"): lambda: sum(kept_stage_2("faces")) > len(kept_stage_2("faces")) / 2,
    ("nbs/07_ablations.ipynb", "the mean square of $I_H$ is below ε"): fainter_than_epsilon,
    ("nbs/10_past_the_paper.ipynb", "At half a pixel every row here is *better* than on the image as it is, and each decomposition gains more"): softened,
    ("nbs/10_past_the_paper.ipynb", "At the strongest blur and in noise, Wavelet+CNN loses least of all that read details"): most_patient,
    ("nbs/10_past_the_paper.ipynb", "second block, where the maps are half as large (`Later`), which is the cheapest of the three"): cheapest_of_three,
    ("nbs/10_past_the_paper.ipynb", "of the larger images that is labels alone, without a teacher"): whole_by_labels,
    ("nbs/02_imagenet_vgg16.ipynb", "*Ours* has more than twice row 2's operations"): lambda: narrow("wae") > 2 * narrow("half"),
    ("README.md", "Details in the first layer fail in noise unless trained with `--noise`"): noise_let_in,
    ("README.md", "Taught alike, on clean images, no decomposition reliably beats half resolution"): none_beats_half,
    ("README.md", "pruned half resolution beat two levels"): pruned_beats_two_levels,
    ("README.md", "the paper's (`wavelet`, `decomposition`, `wae`) by labels, the others longer or taught"): not_alike,
}


@pytest.mark.parametrize("page, words", CONCLUDED, ids=lambda v: v[:40])
def test_what_is_concluded_in_words_is_recorded(page, words):
    assert words in prose(page) and CONCLUDED[page, words]()
