"""`adamnx-hf jitter RUN`: measures how much v and the step jitter when training has come to rest."""

from __future__ import annotations

import argparse
from pathlib import Path

from adamnx_hf.common.errors import number
from adamnx_hf.common.files import write_json

__all__ = ["EXTRA", "add_arguments", "run"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf jitter`."""
    parser.usage = "adamnx-hf jitter RUN [--steps N] [--batches N] [--coordinates N] [--dataset-name NAME]"
    parser.description = (
        "Holds a trained network where it is, and measures how much v and the step jitter by its gradients' "
        "noise: with Adam's decay and with AdamNX's, beside what theory says."
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="folder of a run, with its model")
    parser.add_argument("--dataset-name", "--dataset_name", metavar="NAME", help="where its data set is now")
    for name, default, text in (
        ("steps", 3000, "length of the streams, in steps"),
        ("batches", 500, "how many gradients to draw from"),
        ("coordinates", 512, "how many weights, drawn at random"),
        ("streams", 128, "how many streams of each kind"),
    ):
        parser.add_argument(
            f"--{name}", type=number(int, 2), default=default, metavar="N", help=f"{text} (%(default)s)"
        )


def run(args: argparse.Namespace) -> None:
    """Measures a run, writes jitter.json and jitter.png into its folder, and prints the numbers."""
    from adamnx_hf.runs.environment import describe_environment
    from adamnx_hf.studies.jitter import draw, gradients_of, measure

    gradients = gradients_of(args.folder, args.batches, args.coordinates, args.dataset_name)
    content = measure(gradients, args.steps, args.streams) | {"environment": describe_environment()}
    write_json(args.folder / "jitter.json", content)
    draw(args.folder / "jitter.png", content)
    for name, sample in content["gradients"].items():
        print(f"{name}: κ {sample['kappa']:.3g}, of g² one batch later {sample['autocorrelation']:+.3f}")
        for one in sample["schedules"]:
            last = one["rows"][-1]
            print(
                f"  {one['schedule']} {one['beta2']:g}, step {last['step']}: v {last['v']:.3g} "
                f"(theory {one['theory'][-1]:.3g}), moved {last['moved']:.3g}, "
                f"step² {last['update']:.4g} (v still: {last['update_still']:.4g})"
            )
    print(f"Written to {args.folder}: jitter.json, jitter.png")
