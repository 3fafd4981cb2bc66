"""Tokens and this machine's paths are taken out of what is published."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.recipes.policy import NAME_OR_PATH, Origin, is_neutral, why_not

__all__ = ["SCRUBBED", "Scrubber", "dump_json", "is_local"]

# Files that this package writes: every text in them is looked at. Of others, only what names a path.
_OURS = ("results.json", "environment.json", "metrics.json", hub.RECIPE)
#: Files whose content is looked at before they are published.
SCRUBBED = (*_OURS, "config.json", "adapter_config.json")

_TOKEN = re.compile(r"\b(?:hf_(?:oauth_|jwt_)?|api_org_)[\w.-]{16,}")


def dump_json(content: Any) -> bytes:
    """Returns `content` as the bytes of a JSON file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


class Scrubber:
    """Takes tokens and this machine's paths out of what is published, and keeps account of it."""

    def __init__(self) -> None:
        self.left_out: list[str] = []
        """Things that have been taken out, in a few words each."""

    def scrub_json(self, path: Path) -> bytes:
        """Returns the content of a JSON file, scrubbed.

        Raises:
            RecipeError: the file is not JSON.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RecipeError(f"{path}: is not JSON ({error})") from None
        return dump_json(self._scrub(content, path.name))

    def scrub_recipe(
        self, values: Mapping[str, Any], task: Any
    ) -> tuple[dict[str, Any], dict[str, str | None]]:
        """Parts a recipe's fields into those that a recipe of the Hub may decide and flags of its user.

        Args:
            values: the fields.
            task: the module of the recipe's task.

        Returns:
            The fields, and the others that matter for the outcome, by name: the value as a flag takes
            it, None where that was a path of this machine.
        """
        result: dict[str, Any] = {}
        flags: dict[str, str | None] = {}
        for key, value in values.items():
            if isinstance(value, str) and is_local(value, bool(NAME_OR_PATH.fullmatch(key))):
                self.left_out.append(f"{key} in {hub.RECIPE} (a path of this machine)")
                flags[key] = None
            elif why_not(Origin.HUB, key, value):
                self.left_out.append(f"{key} in {hub.RECIPE} (for whoever runs it to say)")
                if not is_neutral(key, task):
                    clean = self._scrub(value, hub.RECIPE)
                    flags[key] = clean if isinstance(clean, str) else json.dumps(clean)
            else:
                result[key] = self._scrub(value, hub.RECIPE)
        return result, flags

    def _scrub(self, value: Any, where: str, key: str = "") -> Any:
        """Scrubs a value of the file `where`, which stands there under `key`."""
        if key == "notes":  # sentences, with whatever paths there are in them
            return []
        if isinstance(value, dict):
            return {k: self._scrub(v, where, str(k)) for k, v in value.items()}
        if isinstance(value, list):
            return [self._scrub(item, where) for item in value]
        if not isinstance(value, str):
            return value
        names_path = bool(NAME_OR_PATH.fullmatch(key.removeprefix("_")))
        if where not in _OURS and not names_path:
            return value
        if key == "command":
            return shlex.join(self._scrub_word(word, where) for word in shlex.split(value))
        return self._scrub_text(value, where, key, key == "data" or names_path)

    def _scrub_word(self, word: str, where: str) -> str:
        """Scrubs a word of a command."""
        flag, _, value = word.partition("=")
        if word.startswith("-"):
            if "/" not in value:
                return word
            return f"{flag}={self._scrub_text(value, where, 'command', True)}"
        return self._scrub_text(word, where, "command", "/" in word)

    def _scrub_text(self, value: str, where: str, key: str, named: bool) -> str:
        if _TOKEN.search(value):
            self.left_out.append(f"a token in {where}")
            value = _TOKEN.sub("***", value)
        if not is_local(value, named):
            return value
        self.left_out.append(f"the folder of {key or 'a path'} in {where} (of this machine)")
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]


def is_local(value: str, named: bool) -> bool:
    """Returns whether `value` is a path of this machine.

    Args:
        value: any text.
        named: whether `value` is a name on the Hub, if it is no path.
    """
    if re.match(r"(/|~|\.{1,2}/|[A-Za-z]:[\\/]|\\\\)[\w.~/\\-]", value) or str(Path.home()) + "/" in value:
        return True
    if not named or value.startswith(hub.SCHEME):
        return False
    if Path(value).is_file() or (Path(value).exists() and "/" in value):
        return True
    return Path(value).is_dir() if hub.is_repo_id(value) else "/" in value
