"""The command lines of runs, as they are written down."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

__all__ = ["build_command", "format_command", "hide_tokens"]


def build_command(processes: int) -> list[str]:
    """Returns the words of `adamnx-hf run` in so many processes."""
    if processes == 1:
        return ["adamnx-hf", "run"]
    return ["accelerate", "launch", "--num_processes", str(processes), "-m", "adamnx_hf.cli", "run"]


def format_command(name: str, flags: Sequence[str]) -> str:
    """Returns the command that this process was started by, without the values of tokens.

    Args:
        name: the recipe, as the user wrote it.
        flags: the words after it.
    """
    processes = int(os.environ.get("WORLD_SIZE", 1))
    return shlex.join([*build_command(processes), name, *hide_tokens(flags)])


def hide_tokens(words: Sequence[str]) -> list[str]:
    """Puts `***` in the place of the values of tokens among flags, save for those of tokenizers."""
    result, secret = [], False
    for word in words:
        flag, equals, _ = word.partition("=")
        token = word.startswith("--") and re.fullmatch(r"--(?!eos|pad)\S+[_-]token", flag) is not None
        result.append("***" if secret else f"{flag}=***" if token and equals else word)
        secret = token and not equals
    return result
