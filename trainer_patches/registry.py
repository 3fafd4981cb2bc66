"""The registered names, and how TrainingArguments become an optimizer's keyword arguments."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from trainer_patches import deepspeed_warnings, optim_args, patch

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["RegisteredOptimizer", "RunInfo", "register_optimizer", "registered_optimizers"]

# Below Transformers' own logger, so that log_level in TrainingArguments shows it.
logger = logging.getLogger("transformers.trainer_patches")

Factory = Callable[..., "Optimizer"]
_F = TypeVar("_F", bound=Factory)
_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# What the Trainer sets itself, in every parameter group or for the whole optimizer.
_ELSEWHERE = {"lr": "learning_rate", "learning_rate": "learning_rate", "weight_decay": "weight_decay"}


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What a `configure` function may know of the run."""

    args: Any
    """The TrainingArguments."""
    planned_steps: int | None
    """Optimizer steps of the run, None where the optimizer is made outside `Trainer.train()`."""
    given: frozenset[str] = frozenset()
    """The keys the user set in optim_args."""

    def write(self, field: str, value: float) -> None:
        """Sets a field of `args` for this run: until `train()` ends, or another optimizer is made of them."""
        patch.write(self.args, field, value, for_run=True)

    @property
    def num_training_steps(self) -> int:
        """Optimizer steps of the run.

        Raises:
            ValueError: they are not known.
        """
        if self.planned_steps is not None:
            return self.planned_steps
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        raise ValueError(
            "the number of training steps is not known here (outside Trainer.train(), or under DeepSpeed "
            "before Transformers 5.17): set TrainingArguments(max_steps=...)"
        )


Configure = Callable[..., "dict[str, Any]"]


@dataclasses.dataclass(frozen=True)
class RegisteredOptimizer:
    """One name, with what :func:`register_optimizer` was given for it."""

    name: str
    optimizer: Factory | str
    defaults: Mapping[str, Any]
    configure: Configure | None

    def load(self) -> Factory:
        """The optimizer class or factory; imports it if it was registered as `"module:attribute"`."""
        if not isinstance(self.optimizer, str):
            return self.optimizer
        module, _, attribute = self.optimizer.partition(":")
        try:
            factory: Factory = getattr(importlib.import_module(module), attribute)
            return factory
        except (ImportError, AttributeError) as error:
            raise ImportError(
                f"optim={self.name!r} stands for {self.optimizer!r}, which could not be imported: {error}"
            ) from error

    def check_defaults(self) -> None:
        """Looks whether the optimizer takes its `defaults`; imports it.

        Raises:
            ValueError: it does not take one, which is named with the nearest one and the list.
        """
        if not self.defaults or self._takes_anything():
            return
        options = self._options()
        for key in self.defaults:
            if key not in options:
                raise ValueError(
                    f"defaults: {optim_args.unknown(key, options, f'optim={self.name!r}', _ELSEWHERE)}"
                )

    def parse_optim_args(self, text: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """`text` as keyword arguments for the optimizer and for `configure`.

        Raises:
            ValueError: a key or value that does not fit, see :func:`optim_args.convert`.
        """
        if not text:
            return {}, {}
        options = self._options()
        if "betas" in options:
            options |= {key: optim_args.Option(float, None) for key in ("beta1", "beta2")}
        extra = optim_args.options_of(self.configure, _KEYWORDS[1:]) if self.configure else {}
        if self._takes_anything():
            options |= {
                key: optim_args.Option(Any, None) for key in optim_args.split(text) if key not in options
            }
        values = optim_args.convert(text, {**options, **extra}, f"optim={self.name!r}", _ELSEWHERE)
        if "betas" in values and (both := {"beta1", "beta2"} & set(values)):
            raise ValueError(f"optim_args: give either betas or {' and '.join(sorted(both))}")
        return (
            {key: value for key, value in values.items() if key not in extra},
            {key: value for key, value in values.items() if key in extra},
        )

    def default_of(self, key: str) -> Any:
        """The optimizer's own default for `key`, None where it has none."""
        if key in self.defaults:
            return self.defaults[key]
        default = self._options().get(key, optim_args.Option(None, None)).default
        return None if default is inspect.Parameter.empty else default

    def settle(self, args: Any, pristine: Mapping[str, tuple[Any, ...]]) -> None:
        """Puts the optimizer's defaults where `args` holds TrainingArguments' untouched ones.

        adam_beta2 = 0.999 is right for AdamW and not for others, so an optimizer keeps its own until the
        user sets one. Written into `args`, so that logs, JSON and model cards say what was used.

        Args:
            args: TrainingArguments.
            pristine: the very objects that are the fields' defaults: a 0.999 of the user's is another. A
                subclass that states the same default again has an object of its own for it.

        Raises:
            ValueError: see :meth:`check_defaults`.
        """
        self.check_defaults()  # where the optimizer was registered as text, this is its first use
        betas, eps = self.default_of("betas"), self.default_of("eps")
        own = {"adam_beta1": betas and betas[0], "adam_beta2": betas and betas[1], "adam_epsilon": eps}
        fields = type(args).__dataclass_fields__
        for field, objects in pristine.items():
            if fields[field].default == objects[0]:
                objects = (*objects, fields[field].default)
            is_number = isinstance(own[field], int | float)
            if is_number and any(getattr(args, field) is default for default in objects):
                patch.write(args, field, float(own[field]))

    def optimizer_class(self) -> type[Optimizer]:
        """The class that `Trainer.get_optimizer_cls_and_kwargs` returns for this name."""
        return _as_class(self.name, self.load())

    def keywords(self, args: Any, planned_steps: int | None) -> tuple[dict[str, Any], frozenset[str]]:
        """The keyword arguments that `args` stand for, and which of them `configure` has made for this run.

        Also writes the betas and eps that result back into `args`.
        """
        keys = self._options()
        kwargs = dict(self.defaults)
        if "lr" in keys or self._takes_anything():
            kwargs["lr"] = args.learning_rate
        if betas := self.default_of("betas"):
            kwargs["betas"] = (args.adam_beta1, args.adam_beta2, *betas[2:])
        if isinstance(self.default_of("eps"), float):
            kwargs["eps"] = args.adam_epsilon

        given, extra = self.parse_optim_args(args.optim_args)
        given_keys = frozenset(given) | frozenset(extra)
        if betas:
            beta1, beta2, *rest = given.get("betas", kwargs["betas"])
            kwargs["betas"] = (given.pop("beta1", beta1), given.pop("beta2", beta2), *rest)
            given.pop("betas", None)
        kwargs |= given
        before = dict(kwargs)
        if self.configure:
            kwargs = self.configure(kwargs, RunInfo(args, planned_steps, given_keys), **extra)
        # By identity: a value may be a tensor.
        fitted = frozenset(key for key in kwargs if key not in before or kwargs[key] is not before[key])

        if betas:
            patch.write(args, "adam_beta1", kwargs["betas"][0])
            patch.write(args, "adam_beta2", kwargs["betas"][1])
        if isinstance(kwargs.get("eps"), float):
            patch.write(args, "adam_epsilon", kwargs["eps"])
        logger.info("optim=%r: %s", self.name, ", ".join(f"{key}={value}" for key, value in kwargs.items()))
        return kwargs, fitted

    def _options(self) -> dict[str, optim_args.Option]:
        options = optim_args.options_of(self.load(), _KEYWORDS)
        return dict(list(options.items())[1:])  # the first is the parameters to optimize

    def _takes_anything(self) -> bool:
        parameters = inspect.signature(self.load()).parameters.values()
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


def _as_class(name: str, factory: Factory) -> type[Optimizer]:
    """An Optimizer class whose call is `factory(params, **kwargs)`: Trainers want a class."""
    from torch.optim import Optimizer

    if isinstance(factory, type) and issubclass(factory, Optimizer):
        return factory

    function: Callable[..., Any] = factory

    def make(cls: type[Optimizer], params: Any, **kwargs: Any) -> Any:
        return function(params, **kwargs)

    return type(name, (Optimizer,), {"__new__": make, "__doc__": factory.__doc__})


_REGISTERED: dict[str, RegisteredOptimizer] = {}


def registered_optimizers() -> dict[str, RegisteredOptimizer]:
    """The registered optimizers by name."""
    return dict(_REGISTERED)


def register_optimizer(
    name: str,
    optimizer: Factory | str | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    configure: Configure | None = None,
    overwrite: bool = False,
) -> Any:
    """Makes `optim=name` valid in TrainingArguments, on the command line and in `set_optimizer`.

    From TrainingArguments the optimizer gets `lr` (learning_rate) and, where its signature has defaults for
    them, `betas` and `eps` (adam_beta1, adam_beta2, adam_epsilon; left untouched, they give way to the
    optimizer's own defaults); weight decay comes in the Trainer's parameter groups. Any other keyword of
    its signature can be set by `optim_args="key=value,..."`, checked and converted by its annotation or
    default; `beta1` and `beta2` stand for the parts of `betas`.

    Args:
        name: what users write. Must not be a name Transformers has.
        optimizer: a torch.optim.Optimizer class; a function `(params, **kwargs) -> Optimizer`; or
            `"module:attribute"` of one, imported when it is first used. Left out: a decorator.
        defaults: keyword arguments to pass unless the user sets them.
        configure: `configure(kwargs, run, *, option=default, ...) -> kwargs`, called last: may change the
            keyword arguments knowing the run (a :class:`RunInfo`). Its keyword-only parameters become
            optim_args of their own.
        overwrite: replace an earlier registration of the same name.

    Raises:
        TypeError: `optimizer` is not callable, nor `"module:attribute"`; `defaults` is no mapping;
            `configure` is no function.
        ValueError: `name` is not usable, taken, or one of Transformers' own; `defaults` has what
            TrainingArguments always set, or what the optimizer does not take (one named by its module is
            asked when TrainingArguments are made for it).

    Examples:
        >>> @register_optimizer("plain_sgd")
        ... def plain_sgd(params, lr, momentum: float = 0.9):
        ...     return torch.optim.SGD(params, lr=lr, momentum=momentum)
        >>> TrainingArguments(optim="plain_sgd", optim_args="momentum=0.8")
    """
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z_][\w.-]*", name)):
        raise ValueError(f"name must be a word of letters, digits, '_', '-' and '.', got {name!r}")
    if defaults is not None and not isinstance(defaults, Mapping):
        raise TypeError(f"defaults must be a mapping of keyword arguments to their values, got {defaults!r}")
    if configure is not None and not callable(configure):
        raise TypeError(f"configure must be a function (kwargs, run, ...) -> kwargs, got {configure!r}")
    if optimizer is None:

        def decorate(function: _F) -> _F:
            register_optimizer(name, function, defaults=defaults, configure=configure, overwrite=overwrite)
            return function

        return decorate
    if isinstance(optimizer, str):
        if not all(optimizer.partition(":")):
            raise TypeError(f"optimizer as text must be 'module:attribute', got {optimizer!r}")
    elif not callable(optimizer):
        raise TypeError(f"optimizer must be an Optimizer class or a function, got {optimizer!r}")
    for key in _ELSEWHERE.keys() & set(defaults or {}):
        raise ValueError(f"defaults: {key!r} is always set by TrainingArguments({_ELSEWHERE[key]}=...)")
    if name in _REGISTERED and not overwrite:
        raise ValueError(f"optim={name!r} is registered already; pass overwrite=True to replace it")
    registered = RegisteredOptimizer(name, optimizer, defaults or {}, configure)
    if not isinstance(optimizer, str):
        registered.check_defaults()

    patch.add_name(name)
    _REGISTERED[name] = registered
    return optimizer


patch.install(_REGISTERED)
deepspeed_warnings.install()
