"""The table at the end of a visit to a card, from what its stages have left.

    python .ci/card/summary.py FOLDER

FOLDER holds stages.tsv (a line for each stage: name, exit status, seconds, limit in seconds) and the stages'
results. The exit status is 1 if a stage or a check failed, or if AdamNX was served by another kernel than its
own in a benchmark. Needs no package.
"""

import json
import sys
from pathlib import Path

# What `timeout` returns when it has ended a process, by SIGTERM or by SIGKILL.
TIMED_OUT = (124, 137)


def read(path):
    """What a file of JSON holds; None where there is none, or half of one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def number(value, form):
    """The number as text, or a dash for None."""
    return "-" if value is None else form.format(value)


def stage_rows(folder):
    """A row for each stage, and what is wrong."""
    rows, problems = [], []
    lines = (folder / "stages.tsv").read_text().splitlines() if (folder / "stages.tsv").exists() else []
    for line in lines:
        name, status, seconds, limit = line.split("\t")
        verdict = "ok"
        if status.isdigit() and int(status) in TIMED_OUT:
            verdict = f"ended at its limit of {limit} s"
        elif status.isdigit() and int(status):
            verdict = f"failed, status {status}"
        elif not status.isdigit():
            verdict = status
        # What is missing on a machine is no failure; what there was no time for was asked for, and is one.
        if verdict != "ok" and not status.startswith("left out"):
            problems.append(f"stage {name}: {verdict}")
        rows.append((name, verdict, f"{seconds} s"))
    if not rows:
        problems.append("no stage has run")
    return rows, problems


def check_facts(folder, problems):
    """How many checks passed, and the failures."""
    results = read(folder / "check.json")
    if results is None:
        return []
    failed = [result for result in results if not result["ok"]]
    problems += [f"check {result['check']}: {result['detail']}" for result in failed]
    return [f"checks: {len(results) - len(failed)} passed, {len(failed)} failed"]


def bench_rows(folder, stage, problems):
    """A row for each case and optimizer of a benchmark."""
    report = read(folder / f"{stage}.json")
    if not isinstance(report, dict):  # a stage of another sort
        return []
    kernel = report.get("kernel")
    if kernel != "triton":
        problems.append(
            f"{stage}: AdamNX was served by {kernel}, not by its own kernel: {report.get('why_not_triton')}"
        )
    rows = []
    for result in report["results"]:
        if "state" in result:  # what was tuned: the best and what is shipped
            best = result["optimizers"][:1]
            rows += [
                (
                    stage,
                    f"{result['state']}: {row['optimizer']}{' (shipped)' * row['shipped']}",
                    *figures(row),
                )
                for row in result["optimizers"]
                if row in best or row["shipped"]
            ]
            continue
        for row in result["optimizers"]:
            rows.append((stage, f"{result['case']}: {row['optimizer']}", *figures(row)))
        for failure in result["failed"]:
            rows.append((stage, f"{result['case']}: failed, {failure}"[:110], "", "", ""))
            if failure.startswith("adamnx") or "lost" in result:
                problems.append(f"{stage}, {result['case']}: {failure}")
    return rows


def figures(row):
    """Milliseconds, ratio to torch's fused AdamW, and share of copy bandwidth."""
    return (
        number(row["ms"], "{:.3f}"),
        number(row["ratio"], "{:.2f}"),
        number(row.get("share_of_copy"), "{:.1%}"),
    )


def table(head, rows):
    """Plain columns."""
    rows = [head, *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def main():
    """Prints the summary; returns the exit status."""
    folder = Path(sys.argv[1])
    stages, problems = stage_rows(folder)
    facts = check_facts(folder, problems)
    names = [name for name, *_ in stages]
    measured = [row for name in names for row in bench_rows(folder, name, problems)]
    lines = table(("stage", "result", "took"), stages)
    if measured:
        lines += ["", *table(("stage", "case", "ms", "of torch fused", "of copy"), measured)]
    lines += ["", *facts, *(f"PROBLEM {problem}" for problem in problems)]
    lines.append("all is well" if not problems else f"{len(problems)} problems")
    print("\n".join(lines))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
