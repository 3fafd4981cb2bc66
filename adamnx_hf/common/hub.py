"""The Hub, through huggingface_hub: recipes come from it, runs go to it.

A recipe on the Hub is the file `recipe.yaml` of a model repository with the tag :data:`TAG`. Nothing else is
downloaded, and nothing is executed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adamnx_hf.common.errors import RecipeError
from adamnx_hf.common.plain_values import LONGEST

__all__ = [
    "RECIPE",
    "SCHEME",
    "TAG",
    "check_access",
    "fetch_recipe",
    "is_repo_id",
    "list_files",
    "list_tagged",
    "read_text",
    "recipe_name",
    "upload",
]

#: The beginning of a recipe's address: `hf://me/name` or `hf://me/name@revision`.
SCHEME = "hf://"
RECIPE = "recipe.yaml"
TAG = "adamnx"


def is_repo_id(text: str) -> bool:
    """Returns whether `text` can be the name of a repository, with or without its owner."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _split_address(address: str) -> tuple[str, str | None]:
    """Splits an address into repository and revision."""
    repo_id, at, revision = address.removeprefix(SCHEME).partition("@")
    if "/" not in repo_id or not is_repo_id(repo_id) or (at and not revision):
        raise RecipeError(
            f"{address}: a recipe on the Hub is written {SCHEME}me/name or {SCHEME}me/name@revision"
        )
    return repo_id, revision or None


def recipe_name(address: str) -> str:
    """Returns a name for the recipe at `address` that can be a folder's: `me--name`."""
    return _split_address(address)[0].replace("/", "--")


def fetch_recipe(address: str) -> Path:
    """Downloads the recipe file at `address`; without a connection, finds it in the cache.

    Args:
        address: the recipe's, `hf://me/name`, or `hf://me/name@revision` for a branch, tag or commit.

    Raises:
        RecipeError: there is no such repository, revision or recipe, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_url

    api = HfApi()
    repo_id, revision = _split_address(address)
    try:
        size = api.get_hf_file_metadata(url=hf_hub_url(repo_id, RECIPE, revision=revision)).size
        if size is None or size > LONGEST:  # the size is asked for before the file is downloaded
            shown = "a size that is not told" if size is None else f"{size:,} bytes"
            raise RecipeError(f"{address}: its {RECIPE} has {shown}; that is no recipe")
        return Path(api.hf_hub_download(repo_id, RECIPE, revision=revision))
    except Exception as error:
        if _is_unreachable(error):
            with contextlib.suppress(Exception):  # it may be in the cache
                return Path(api.hf_hub_download(repo_id, RECIPE, revision=revision, local_files_only=True))
        raise RecipeError(f"{address}: {_reason(error)}") from error


def list_tagged() -> list[dict[str, Any]]:
    """Lists the model repositories with the tag :data:`TAG`: `name`, `tags`, `downloads`, `last_modified`.

    Raises:
        RecipeError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    with _explain_errors():
        return [
            {
                "name": f"{SCHEME}{model.id}",
                "tags": model.tags or [],
                "downloads": model.downloads,
                "last_modified": model.last_modified and model.last_modified.isoformat(),
            }
            for model in HfApi().list_models(filter=TAG, full=True)
        ]


def check_access(repo_id: str, token: str | None = None) -> str:
    """Asks the Hub who the token's owner is, before work is done that needs the token.

    Returns:
        `repo_id`, with the owner's name before it if it had none.

    Raises:
        RecipeError: there is no token, the token is not valid, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi, get_token

    _split_address(SCHEME + (repo_id if "/" in repo_id else f"me/{repo_id}"))
    if "@" in repo_id:
        raise RecipeError(f"{repo_id}: a repository is written me/name, without a revision")
    if not (token or get_token()):
        raise RecipeError("no token: log in by `hf auth login`, or set HF_TOKEN")
    with _explain_errors():
        user = HfApi(token=token).whoami()["name"]
    return repo_id if "/" in repo_id else f"{user}/{repo_id}"


def list_files(repo_id: str, token: str | None = None) -> list[str]:
    """Lists the paths of a model repository's files; none if there is no such repository.

    Raises:
        RecipeError: the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with _explain_errors(f"{repo_id}: "), contextlib.suppress(RepositoryNotFoundError):
        return HfApi(token=token).list_repo_files(repo_id)
    return []


def read_text(repo_id: str, path: str, token: str | None = None) -> str:
    """Reads a text file of a model repository.

    Raises:
        RecipeError: the file is not there, is no text, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        return Path(HfApi(token=token).hf_hub_download(repo_id, path)).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{repo_id}: its {path} is no text ({error})") from error
    except Exception as error:
        raise RecipeError(f"{repo_id}: its {path}: {_reason(error)}") from error


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    remove: Sequence[str] = (),
    private: bool | None = None,
    update: bool = False,
    token: str | None = None,
    message: str = "Publish a run of adamnx-hf",
) -> str:
    """Makes a model repository and commits `files` to it, all at once.

    Args:
        repo_id: `me/name`.
        files: contents or local files, by their paths in the repository.
        remove: files of the repository that the same commit removes.
        private: whether only its owner sees a new repository; None: as the owner's settings say. An existing
            repository has to be private already.
        update: commit to the repository if there is one.
        token: a token of the Hub; default: the one of `hf auth login` or HF_TOKEN.
        message: the commit's.

    Returns:
        The repository's address.

    Raises:
        RecipeError: there is such a repository already, or a public one where a private one was asked for;
            the token gives no access; or the Hub refuses the card's metadata or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(token=token)
    if isinstance(card := files.get("README.md"), bytes):
        _check_card(card.decode(), token)
    if private and update:  # create_repo leaves an existing one public
        _check_private(api, repo_id)
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=update)
    except Exception as error:
        if _status(error) == 409:
            raise RecipeError(
                f"{repo_id}: there is such a repository already; choose another --repo-id, or "
                "commit to it by --update"
            ) from error
        raise RecipeError(f"{repo_id}: {_reason(error)}") from error
    operations: list[Any] = [
        CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ] + [CommitOperationDelete(path, is_folder=False) for path in remove]
    try:
        api.create_commit(repo_id, operations, commit_message=message)
    except Exception as error:
        raise RecipeError(
            f"{repo_id}: the repository is there, but the files are not ({_reason(error)}); "
            "go on with --update"
        ) from error
    return str(url)


def _check_private(api: Any, repo_id: str) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    # A repository that is not there will be made.
    with _explain_errors(f"{repo_id}: "), contextlib.suppress(RepositoryNotFoundError):
        if api.model_info(repo_id).private is False:
            raise RecipeError(
                f"{repo_id}: is public, and asked for was a private one; make it private in its settings on "
                "the Hub, or choose another"
            )


def _check_card(text: str, token: str | None) -> None:
    """Asks the Hub to check a card's metadata, as `create_commit` does, but before a repository is made."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session

    content = {"content": text, "repoType": "model"}
    with _explain_errors():
        response: Any = get_session().post(
            f"{constants.ENDPOINT}/api/validate-yaml", json=content, headers=build_hf_headers(token=token)
        )
        errors = response.json().get("errors") if response.status_code in (200, 400) else None
    if errors:
        messages = "; ".join(str(error.get("message")) for error in errors)
        raise RecipeError(f"README.md: the Hub refuses its metadata: {' '.join(messages.split())}")


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


@contextlib.contextmanager
def _explain_errors(where: str = "") -> Iterator[None]:
    """Turns errors of huggingface_hub into RecipeErrors whose messages begin with `where`."""
    try:
        yield
    except Exception as error:
        raise RecipeError(f"{where}{_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Says in one line what a user can do about an error of huggingface_hub; raises other errors again."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    if isinstance(error, hub.GatedRepoError):
        return "its owner has to grant access first"
    if isinstance(error, hub.RepositoryNotFoundError):
        return "no such repository, or a private one and no token for it (`hf auth login`)"
    if isinstance(error, hub.RevisionNotFoundError):
        return "no such revision"
    unreachable = (
        f"the Hub ({constants.ENDPOINT}) cannot be reached; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    )
    if isinstance(error, hub.LocalEntryNotFoundError):
        return unreachable
    if isinstance(error, hub.EntryNotFoundError):
        return f"has no {RECIPE}, so it is no recipe"
    if (status := _status(error)) is not None:
        if status in (401, 403):
            return "the token is not valid here, or may not write; log in by `hf auth login`"
        if status == 413:
            return "the Hub says that a file is too large"
        first = str(error).strip().splitlines()
        return f"the Hub answered {status}: {' '.join(first)}"
    if _is_unreachable(error):
        return unreachable
    raise error


def _is_unreachable(error: Exception) -> bool:
    """Returns whether the Hub has not answered at all."""
    # The installed huggingface_hub is built on one of these.
    clients = {"httpx": "TransportError", "httpx2": "TransportError", "requests": "RequestException"}
    kinds = [getattr(sys.modules[module], name) for module, name in clients.items() if module in sys.modules]
    return isinstance(error, (ConnectionError, TimeoutError, *kinds)) and _status(error) is None
