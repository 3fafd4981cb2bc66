"""The `adamnx-hf` command.

A command is a module of `adamnx_hf.commands` with `add_arguments(parser)` and `run(args) -> int | None`. It
sets `TAKES_FLAGS = True` if it takes a recipe's flags, as `args.flags`, beside its own. The module is
imported only when the command is called, and imports what is slow to import inside `run`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from adamnx_hf import __version__
from adamnx_hf.common import interrupts
from adamnx_hf.common.errors import RecipeError, close_bars
from adamnx_hf.common.files import no_room

__all__ = ["COMMANDS", "main"]

#: The commands, which are modules of `adamnx_hf.commands`, and the line of each in `adamnx-hf --help`.
COMMANDS = {
    "demo": "train a small vision transformer with AdamNX and with AdamW, and draw the curves",
    "bench": "time AdamNX's step beside other optimizers' on this machine",
    "recipes": "list the recipes",
    "run": "train a recipe",
    "memory": "show how many bytes recipes' parameters, gradients and optimizer states take",
    "compare": "compare optimizers on a recipe: paired by seed, each at its best",
    "sharpness": "measure how flat the place is where runs have ended",
    "jitter": "measure how much the gradients of a trained network make v and the step jitter",
    "publish": "put a run on the Hub: model, recipe, results and a model card",
    "paper": "show the paper's tables beside your own runs",
}

# The top-level modules that each extra installs. A command's `EXTRA` names the extra that it needs.
_EXTRAS = {
    "demo": {"matplotlib", "rich", "scipy", "sklearn"},
    "recipes": {
        "matplotlib",
        "pycocotools",
        "pytorch_optimizer",
        "regex",
        "scipy",
        "torchmetrics",
        "torchvision",
        "trl",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `adamnx-hf`.

    Args:
        argv: the words after `adamnx-hf`, `sys.argv`'s by default.

    Returns:
        The exit status.

    Raises:
        SystemExit: from argparse (2) for arguments that do not fit, and from a command that cannot go on (1).
    """
    argv = sys.argv[1:] if argv is None else argv
    with interrupts.watch():
        try:
            status = _main(argv)
            sys.stdout.flush()
            return status
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:  # whoever reads, such as `| head`, has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except BaseException:
            if (
                not interrupts.is_interrupted()
            ):  # an import or a data loader may turn an interruption into this
                raise
    close_bars()
    print("adamnx-hf: interrupted", file=sys.stderr)
    return 130


def _main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="adamnx-hf", description="AdamNX for the Hugging Face stack.")
    parser.add_argument("--version", action="version", version=f"adamnx-hf {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        if list(argv[:1]) == [name]:
            module = importlib.import_module(f"adamnx_hf.commands.{name}")
            module.add_arguments(command)
            command.set_defaults(
                run=module.run,
                prog=command.prog,
                extra=getattr(module, "EXTRA", "demo"),
                takes_flags=getattr(module, "TAKES_FLAGS", False),
            )
    args, unknown = parser.parse_known_args(argv)
    if unknown and not args.takes_flags:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{getattr(args, 'hint', '')}")
    args.flags = [*getattr(args, "flags", []), *unknown]
    try:
        return args.run(args) or 0
    except RecipeError as error:
        if interrupts.is_interrupted():  # a library may turn an interruption into an error
            raise
        close_bars()
        print(f"{args.prog}: error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRAS[args.extra]:
            raise
        print(
            f'adamnx-hf: {missing} is not installed: pip install "adamnx-hf[{args.extra}]"', file=sys.stderr
        )
        return 1
    except OSError as error:
        if (reason := no_room(error)) is None:
            raise
        where = error.filename or "a file"
        print(
            f"adamnx-hf: {where} cannot be written ({reason}); free space there, and again", file=sys.stderr
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
