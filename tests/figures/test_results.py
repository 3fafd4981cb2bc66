"""The pages of results: what they show comes from the data beside them, which names no machine's folder."""

import json
import math
import re
import shutil
import statistics
from collections import defaultdict
from pathlib import Path

import pytest

from adamnx_hf.bench.cases import CASES
from adamnx_hf.bench.tables import compute_bytes_each
from adamnx_hf.common.text import MINUS
from adamnx_hf.figures.__main__ import main
from adamnx_hf.optim.schedules import horizon

RESULTS = Path(__file__).parents[2] / "docs" / "results"
PAGES = ("ablation", "adax", "cifar100_h200", "flatness", "horizon", "jitter", "learning_rate")

#: Data that a page's tables have, besides the data it links to, or that of its own name.
MORE_DATA = {"adax/README.md": ["ablation/comparison.json"]}

#: Figures in tables that are in no file of data: by page, the head of a column or the label of a row.
NOT_KEPT = {
    "README.md": ['"background" everywhere'],  # of the data set, no run; the run's notes have half of it
    "adax/README.md": ["in the weights at the end, relative to their norm"],  # the page has the script
}

NUMBER = rf"[+\-{MINUS}]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?"

#: One figure of a cell: m ± s, an interval, or a number alone; not a digit within a word.
FIGURE = re.compile(rf"(?<![\w.]){NUMBER}(?:(?: %)? (?:±|to) {NUMBER}|, {NUMBER}(?=\]))?(?![\w.]*\w)")


def test_the_figures_are_drawn_from_the_data(tmp_path, capsys):
    for page in PAGES:
        shutil.copytree(RESULTS / page, tmp_path / page, ignore=shutil.ignore_patterns("*.png"))
    main(["--results", str(tmp_path)])
    drawn = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")}
    assert drawn == {path.relative_to(RESULTS) for page in PAGES for path in (RESULTS / page).glob("*.png")}
    assert len(capsys.readouterr().out.split()) == len(drawn)


@pytest.mark.parametrize("page", [*PAGES, "gpu"])
def test_every_picture_is_shown_and_the_data_names_no_folder_of_a_machine(page):
    text = (RESULTS / page / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"!\[[^\]]+\]\(([\w.]+)\)", text))
    assert shown == {path.name for path in (RESULTS / page).glob("*.png")}
    for path in (RESULTS / page).glob("*.json"):
        assert f"({path.name})" in text
        assert not re.search(r'"[^"]*(?<![\w.])/(home|root|tmp|work|dev|mnt|Users)/', path.read_text())


def tables(text):
    """The rows of a page's tables: label, cells by their column's head (the same head may come twice)."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = (
            [cell.strip() for cell in line.strip("|\n").split("|")] for line in table.splitlines()
        )
        for label, *cells in rows:
            yield label, list(zip(head[1:], cells, strict=True))


def shown(cell):
    """The figures of a cell, each as one or two pairs: value, and half a unit of its last digit."""
    share = 100 if "%" in cell or "points" in cell else 1
    for figure in FIGURE.findall(cell):
        numbers = [n.replace(",", "").replace(MINUS, "-") for n in re.findall(NUMBER, figure)]
        digits, _, exponents = zip(*(n.partition("e") for n in numbers), strict=True)
        units = [
            10.0 ** (int(e or 0) - len(d.partition(".")[2])) for d, e in zip(digits, exponents, strict=True)
        ]
        yield [
            (float(n) / share, (0.5 + 1e-6) * unit / share) for n, unit in zip(numbers, units, strict=True)
        ]


def is_in(record, cell):
    """Whether a record, a list of tuples, has all that a cell shows."""
    return all(
        any(
            len(known) == len(figure)
            and all(abs(k - value) <= unit for k, (value, unit) in zip(known, figure, strict=True))
            for known in record
        )
        for figure in shown(cell)
    )


def records(path):
    """What may stand in one row, as lists of (mean, standard deviation), (low, high) and (value,)."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(data, list):  # a card's checks, which have no figures for a table
        return
    if "differences" in data:  # vision and language on a card
        for one in data["contenders"]:
            means = [(statistics.fmean(point["values"]),) for point in one["sweep"]]
            yield [(one["learning_rate"],), (one["head_room"] or math.inf,), *means, *_spreads(one["runs"])]
        for one in data["differences"]:
            yield [(one["mean"],), (one["low"], one["high"]), (one["p_holm"],), (one["p_equivalence"],)]
    elif "contenders" in data:  # compare and sharpness
        contenders = {one["label"]: one for one in data["contenders"]}
        settings = {label: _settings(one) for label, one in contenders.items()}
        for label, one in contenders.items():
            sweep = [(v,) for point in one.get("sweep", []) for v in point[data["chosen_by"]]]
            yield settings[label] + _spreads(one["runs"]) + sweep
        together = defaultdict(list)
        for item in data["comparisons"]:
            found = _differences(item)
            together[item["second"]] += found
            together[item["metric"]] += found  # a table may have a row of each
        for key, found in together.items():
            if key in contenders:
                found += settings[key] + _farthest(
                    contenders[data["comparisons"][0]["first"]], contenders[key]
                )
            yield found
    elif "per_epoch" in data:  # run
        yield [
            *((value[k],) for value in data["metrics"].values() for k in ("best", "last")),
            (data["per_epoch"][-1]["eval_loss"],),
            (data["wall_seconds"] / 60,),
        ]
    elif "gradients" in data:  # jitter
        for pair in zip(*(kind["schedules"] for kind in data["gradients"].values()), strict=True):
            of_network, kappa = pair[1], data["gradients"]["a network's gradients"]["kappa"]
            late = [one for one in of_network["rows"] if one["step"] in (605, 3000)]
            yield (
                [(one["theory"][-1],) for one in pair]
                + [(one["rows"][-1]["v"],) for one in pair]
                + [
                    ((kappa * of_network["theory"][-1]) ** 0.5,),
                    *((one["update"] / one["update_still"] - 1,) for one in late),
                ]
            )
    elif "runs" in data:  # demo
        for optim in data["settings"]["optim"]:
            yield _spreads([run["epochs"][-1] for run in data["runs"] if run["optim"] == optim])
        for item in data["comparisons"]:
            yield _differences(item["loss"]) + _differences(item["accuracy"])
    elif "folds" in data:
        for fold in data["folds"]:
            keys = ("mean_iou", "background", "pixel_accuracy", "background_pixel_accuracy")
            yield [(fold[key],) for key in keys]
    else:  # bench
        for case in data["results"]:
            together = []  # a row may have several optimizers of a case, or tunings
            if case.get("case") in CASES:
                together.append((len(CASES[case["case"]].shapes()),))
            for row in case.get("optimizers", []):
                each = compute_bytes_each(row, case)
                times = [(row[k],) for k in ("ms", "ratio", "host_us") if row[k] is not None]
                together += times
                together += [(v,) for v in row.get("tuning", {}).values() if isinstance(v, int)]
                yield [
                    *times,
                    *((row["host_us"] / 1000,) for _ in times[2:]),
                    *((row[k],) for k in ("share_of_copy",) if k in row),
                    *((row["p10_ms"], row["p90_ms"]) for k in ("p10_ms",) if k in row),
                    (each["state"],),
                    (each["temporary"],),
                    (sum(each.values()),),
                ]
            yield together + [(v,) for v in case.values() if isinstance(v, float)]


def _settings(contender):
    chosen = [(float(contender["chosen"].get("learning_rate", "nan")),)]
    if not contender.get("betas"):
        return chosen
    beta2, steps = contender["betas"][1], contender["steps"]
    return [*chosen, (beta2,), (horizon(beta2),), (steps / horizon(beta2),)]


def _spreads(runs):
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    columns = [[run[name] for run in runs] for name in names]
    return [(statistics.mean(c), statistics.stdev(c)) for c in columns if len(c) > 1]


def _differences(item):
    return [(item["mean"],), *([] if item["low"] is None else [(item["low"], item["high"])])]


def _farthest(one, other):
    """The largest difference in test loss over all evaluations of two runs."""
    if "per_epoch" not in one["runs"][0]:
        return []
    losses = [[row["eval_loss"] for row in each["runs"][0]["per_epoch"]] for each in (one, other)]
    return [(max(abs(a - b) for a, b in zip(*losses, strict=True)),)]


def pages():
    """Every page with a table, as a path relative to the results."""
    found = sorted(path for path in RESULTS.rglob("*.md") if "\n|" in path.read_text(encoding="utf-8"))
    return [path.relative_to(RESULTS).as_posix() for path in found]


def checked(page):
    """Of a page: the cells of each row that its data must have, and its data's records."""
    path = RESULTS / page
    text = path.read_text(encoding="utf-8")
    sources = [path.parent / name for name in re.findall(r"\]\(([\w./]+\.json)\)", text)]
    sources += [RESULTS / name for name in MORE_DATA.get(page, [])]
    known = [record for source in sources or [path.with_suffix(".json")] for record in records(source)]
    left_out = NOT_KEPT.get(page, [])
    rows = [
        [cell for head, cell in row if head not in left_out]
        for label, row in tables(text)
        if label not in left_out
    ]
    return rows, known


@pytest.mark.parametrize("page", pages())
def test_the_tables_hold_what_the_data_holds(page):
    """Each row of figures is one record of the data, rounded as shown."""
    rows, known = checked(page)
    assert sum(bool(list(shown(cell))) for row in rows for cell in row) >= 3
    for row in rows:
        assert any(all(is_in(record, cell) for cell in row) for record in known), row


def test_a_wrong_digit_is_found():
    """What the test above is worth: with another last digit hardly a figure of any page is in the data."""
    missed, tried = [], 0
    for page in pages():
        rows, known = checked(page)
        for row in rows:
            for i, cell in enumerate(row):
                for figure in FIGURE.finditer(cell):
                    last = figure.end() - 1
                    others = [digit for digit in "0123456789" if digit != cell[last]]
                    for digit in others[::3]:
                        changed = [*row[:i], cell[:last] + digit + cell[last + 1 :], *row[i + 1 :]]
                        tried += 1
                        if any(all(is_in(record, c) for c in changed) for record in known):
                            missed.append((page, *changed))
    assert tried > 1_000
    assert len(missed) < 0.03 * tried, missed
