"""The documentation's figures: `python -m adamnx_hf.figures docs/images`.

With `--results docs/results` those of the pages of results, each from the data beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from adamnx_hf.figures.decay import draw_decay
from adamnx_hf.figures.kernel import draw_kernel
from adamnx_hf.figures.results import draw_results
from adamnx_hf.figures.rounding import draw_bfloat16

__all__ = ["main"]


def main(argv: list[str] | None = None) -> None:
    """Draws all figures into a folder, and prints their paths."""
    parser = argparse.ArgumentParser(prog="python -m adamnx_hf.figures", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("docs/images"))
    parser.add_argument(
        "--results", type=Path, metavar="FOLDER", help="draw those of the pages of results instead"
    )
    args = parser.parse_args(argv)
    if args.results:
        print(*draw_results(args.results), sep="\n")
        return
    for name, draw in (
        ("decay.png", draw_decay),
        ("kernel.png", draw_kernel),
        ("bfloat16.png", draw_bfloat16),
    ):
        draw(args.folder / name)
        print(args.folder / name)


if __name__ == "__main__":
    main()
