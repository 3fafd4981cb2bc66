"""`register_optimizer`, and the table of what it registered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from trainer_patches import deepspeed_warnings, patch
from trainer_patches.registered import (
    REGISTERED,
    SET_ELSEWHERE,
    Configure,
    Factory,
    RegisteredOptimizer,
    RunInfo,
)

__all__ = ["RegisteredOptimizer", "RunInfo", "register_optimizer", "registered_optimizers"]

_F = TypeVar("_F", bound=Factory)


def registered_optimizers() -> dict[str, RegisteredOptimizer]:
    """Returns the registered optimizers by name."""
    return dict(REGISTERED)


def register_optimizer(
    name: str,
    optimizer: Factory | str | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    configure: Configure | None = None,
    overwrite: bool = False,
) -> Any:
    """Makes `optim=name` valid in TrainingArguments, on the command line and in `set_optimizer`.

    The optimizer gets `lr` from learning_rate. It gets `betas` and `eps` from adam_beta1, adam_beta2 and
    adam_epsilon where its signature has defaults for them; a field that the user leaves untouched gives way
    to the optimizer's own default. Weight decay comes in the Trainer's parameter groups. Any other keyword
    of its signature can be set by `optim_args="key=value,..."`, which is checked and converted by annotation
    or default; `beta1` and `beta2` there stand for the parts of `betas`.

    Args:
        name: the text that users write. Must not be one of Transformers' own names.
        optimizer: a torch.optim.Optimizer class; a function `(params, **kwargs) -> Optimizer`; or
            `"module:attribute"` of one, imported when it is first used. Left out: a decorator.
        defaults: keyword arguments to pass unless the user sets them.
        configure: a function `configure(kwargs, run, *, option=default, ...) -> kwargs` that is called last.
            It may change the keyword arguments knowing the run (a :class:`RunInfo`). Its keyword-only
            parameters become optim_args of their own.
        overwrite: whether an earlier registration of the same name may be replaced.

    Returns:
        `optimizer`, or the decorator.

    Raises:
        TypeError: `optimizer` is neither callable nor `"module:attribute"`; `defaults` is no mapping;
            `configure` is no function.
        ValueError: `name` is not usable, taken, or one of Transformers' own; `defaults` has a key that
            TrainingArguments always set, or that the optimizer does not take (for `"module:attribute"` this
            is raised when TrainingArguments are made for it).

    Examples:
        >>> @register_optimizer("plain_sgd")
        ... def plain_sgd(params, lr, momentum: float = 0.9):
        ...     return torch.optim.SGD(params, lr=lr, momentum=momentum)
        >>> TrainingArguments(optim="plain_sgd", optim_args="momentum=0.8")
    """
    _check_arguments(name, optimizer, defaults, configure)
    if optimizer is None:

        def decorate(function: _F) -> _F:
            register_optimizer(name, function, defaults=defaults, configure=configure, overwrite=overwrite)
            return function

        return decorate
    for key in SET_ELSEWHERE.keys() & set(defaults or {}):
        raise ValueError(f"defaults: {key!r} is always set by TrainingArguments({SET_ELSEWHERE[key]}=...)")
    if name in REGISTERED and not overwrite:
        raise ValueError(f"optim={name!r} is registered already; pass overwrite=True to replace it")
    registered = RegisteredOptimizer(name, optimizer, defaults or {}, configure)
    if not isinstance(optimizer, str):
        registered.check_defaults()

    patch.add_name(name)
    REGISTERED[name] = registered
    return optimizer


def _check_arguments(name: Any, optimizer: Any, defaults: Any, configure: Any) -> None:
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.-]*", name)):
        raise ValueError(f"name must be a word of letters, digits, '_', '-' and '.', got {name!r}")
    if defaults is not None and not isinstance(defaults, Mapping):
        raise TypeError(f"defaults must be a mapping of keyword arguments to their values, got {defaults!r}")
    if configure is not None and not callable(configure):
        raise TypeError(f"configure must be a function (kwargs, run, ...) -> kwargs, got {configure!r}")
    if isinstance(optimizer, str):
        if not all(optimizer.partition(":")):
            raise TypeError(f"optimizer as text must be 'module:attribute', got {optimizer!r}")
    elif optimizer is not None and not callable(optimizer):
        raise TypeError(f"optimizer must be an Optimizer class or a function, got {optimizer!r}")


patch.install()
deepspeed_warnings.install()
