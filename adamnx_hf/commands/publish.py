"""`adamnx-hf publish RUN_DIR --repo-id me/name`: puts what `adamnx-hf run` left behind on the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from adamnx_hf.common.errors import RecipeError

__all__ = ["EXTRA", "add_arguments", "run"]

#: The extra of this package that has what this command needs.
EXTRA = "recipes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `adamnx-hf publish`."""
    parser.epilog = (
        "The token is that of `hf auth login`, or HF_TOKEN. Not published: pickles, checkpoints, paths of "
        "this machine; the command says what it left out."
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="what `adamnx-hf run` wrote")
    parser.add_argument("--repo-id", required=True, metavar="ME/NAME", help="the repository on the Hub")
    parser.add_argument("--private", action="store_true", default=None, help="make the repository private")
    parser.add_argument(
        "--update",
        action="store_true",
        help="commit to the repository if there is one, and remove what only an earlier run put there",
    )
    parser.add_argument(
        "--license", metavar="ID", help="the weights' licence, as the Hub names it: apache-2.0, mit, ..."
    )
    parser.add_argument("--license-name", metavar="NAME", help="with --license other: its name")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only write the files into a folder; needs no token, and no Hub unless with --update",
    )
    parser.add_argument(
        "--output-dir", metavar="DIR", type=Path, help="where --dry-run writes it (default: RUN_DIR-hub)"
    )


def run(args: argparse.Namespace) -> None:
    """Publishes the run or, with --dry-run, writes into a folder what would be published."""
    from adamnx_hf.runs.publishing.push import push_run, write_package

    licence = {"license": args.license, "license_name": args.license_name}
    if args.output_dir and not args.dry_run:
        raise RecipeError("--output-dir goes with --dry-run")
    try:
        if not args.dry_run:
            push_run(args.run_dir, args.repo_id, private=args.private, update=args.update, **licence)
            return
        run_dir = args.run_dir.resolve()
        folder = args.output_dir or run_dir.with_name(f"{run_dir.name}-hub")
        names = write_package(run_dir, folder, args.repo_id, update=args.update, **licence)
    except OSError as error:
        raise RecipeError(str(error)) from error
    print(f"Written to {folder}: {', '.join(names)}")
