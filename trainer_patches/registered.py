"""One registered optimizer, and how TrainingArguments become its keyword arguments."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trainer_patches import arguments, optim_args

if TYPE_CHECKING:
    from torch.optim import Optimizer

__all__ = ["REGISTERED", "SET_ELSEWHERE", "Configure", "Factory", "RegisteredOptimizer", "RunInfo"]

# Below Transformers' own logger, so that log_level in TrainingArguments shows its messages.
logger = logging.getLogger("transformers.trainer_patches")

#: An optimizer class, or a function `(params, **kwargs) -> Optimizer`.
Factory = Callable[..., "Optimizer"]
#: A function `(kwargs, run, *, option=default, ...) -> kwargs`.
Configure = Callable[..., "dict[str, Any]"]

#: Keywords that the Trainer sets itself, with the field of TrainingArguments that holds the value.
SET_ELSEWHERE = {"lr": "learning_rate", "learning_rate": "learning_rate", "weight_decay": "weight_decay"}

_KEYWORDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """The run, as far as a `configure` function may know it."""

    args: Any
    """The TrainingArguments."""
    planned_steps: int | None
    """Optimizer steps of the run; None where the optimizer is made outside `Trainer.train()`."""
    given: frozenset[str] = frozenset()
    """The keys that the user set in optim_args."""

    def write(self, field: str, value: float) -> None:
        """Sets a field of `args` until `train()` ends, or until `args` are used for another optimizer."""
        arguments.write(self.args, field, value, for_run=True)

    @property
    def num_training_steps(self) -> int:
        """Optimizer steps of the run.

        Raises:
            ValueError: their number is not known.
        """
        if self.planned_steps is not None:
            return self.planned_steps
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        raise ValueError(
            "the number of training steps is not known here (outside Trainer.train(), or under DeepSpeed "
            "before Transformers 5.17): set TrainingArguments(max_steps=...)"
        )


@dataclasses.dataclass(frozen=True)
class RegisteredOptimizer:
    """The arguments of one :func:`register_optimizer`, and the answers that the Trainer gets from them."""

    name: str
    optimizer: Factory | str
    defaults: Mapping[str, Any]
    configure: Configure | None

    def load(self) -> Factory:
        """Returns the optimizer class or factory; imports it if it was registered as `"module:attribute"`.

        Raises:
            ImportError: there is no such module, or no such attribute in it.
        """
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

    def load_class(self) -> type[Optimizer]:
        """Returns the class that `Trainer.get_optimizer_cls_and_kwargs` answers for this name.

        For a factory that is a function, this is a class whose call is the function's: Trainers want a class.
        """
        from torch.optim import Optimizer

        factory = self.load()
        if isinstance(factory, type) and issubclass(factory, Optimizer):
            return factory
        function: Callable[..., Any] = factory

        def make(cls: type[Optimizer], params: Any, **kwargs: Any) -> Any:
            return function(params, **kwargs)

        return type(self.name, (Optimizer,), {"__new__": make, "__doc__": factory.__doc__})

    def check_defaults(self) -> None:
        """Checks that the optimizer takes all `defaults`; imports it if there are any.

        Raises:
            ValueError: it does not take one. The message names that one, the nearest one and all valid ones.
        """
        if not self.defaults or self._takes_anything():
            return
        options = self._list_options()
        for key in self.defaults:
            if key not in options:
                message = optim_args.explain_unknown(key, options, f"optim={self.name!r}", SET_ELSEWHERE)
                raise ValueError(f"defaults: {message}")

    def parse_optim_args(self, text: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads `text` as keyword arguments for the optimizer and others for `configure`.

        Raises:
            ValueError: a key or value does not fit, see :func:`optim_args.convert`.
        """
        if not text:
            return {}, {}
        options = self._list_options()
        if "betas" in options:
            options |= {key: optim_args.Option(float, None) for key in ("beta1", "beta2")}
        extra = optim_args.list_options(self.configure, _KEYWORDS[1:]) if self.configure else {}
        if self._takes_anything():
            options |= {
                key: optim_args.Option(Any, None) for key in optim_args.split(text) if key not in options
            }
        values = optim_args.convert(text, options | extra, f"optim={self.name!r}", SET_ELSEWHERE)
        if "betas" in values and (both := {"beta1", "beta2"} & set(values)):
            raise ValueError(f"optim_args: give either betas or {' and '.join(sorted(both))}")
        return (
            {key: value for key, value in values.items() if key not in extra},
            {key: value for key, value in values.items() if key in extra},
        )

    def find_default(self, key: str) -> Any:
        """Returns the optimizer's own default for `key`; None if it has none."""
        if key in self.defaults:
            return self.defaults[key]
        default = self._list_options().get(key, optim_args.Option(None, None)).default
        return None if default is inspect.Parameter.empty else default

    def write_defaults(self, args: Any, pristine: Mapping[str, tuple[Any, ...]]) -> None:
        """Writes the optimizer's defaults into the fields of `args` that the user has not set.

        TrainingArguments' adam_beta2 = 0.999 is right for AdamW and not for others. Because the values stand
        in `args`, logs, JSON and model cards say what was used.

        Args:
            args: TrainingArguments.
            pristine: the default objects of TrainingArguments, by field. A field is untouched if it holds
                one of these very objects: a 0.999 of the user's is another object. So is the default of a
                subclass that states the same number again; that one counts as untouched too.

        Raises:
            ValueError: see :meth:`check_defaults`.
        """
        self.check_defaults()  # an optimizer that was registered as text is first used here
        betas, eps = self.find_default("betas"), self.find_default("eps")
        own = {"adam_beta1": betas and betas[0], "adam_beta2": betas and betas[1], "adam_epsilon": eps}
        fields = type(args).__dataclass_fields__
        for field, objects in pristine.items():
            if fields[field].default == objects[0]:
                objects = (*objects, fields[field].default)
            is_number = isinstance(own[field], int | float)
            if is_number and any(getattr(args, field) is default for default in objects):
                arguments.write(args, field, float(own[field]))

    def build_keywords(self, args: Any, planned_steps: int | None) -> tuple[dict[str, Any], frozenset[str]]:
        """Builds the optimizer's keyword arguments from `args`, and writes its betas and eps back into them.

        Args:
            args: TrainingArguments.
            planned_steps: optimizer steps of the run, if they are known.

        Returns:
            The keyword arguments, and the names of those that `configure` made for this run.
        """
        kwargs = dict(self.defaults)
        if "lr" in self._list_options() or self._takes_anything():
            kwargs["lr"] = args.learning_rate
        if betas := self.find_default("betas"):
            kwargs["betas"] = (args.adam_beta1, args.adam_beta2, *betas[2:])
        if isinstance(self.find_default("eps"), float):
            kwargs["eps"] = args.adam_epsilon

        given, extra = self.parse_optim_args(args.optim_args)
        given_keys = frozenset(given) | frozenset(extra)
        if betas:
            beta1, beta2, *others = given.get("betas", kwargs["betas"])
            kwargs["betas"] = (given.pop("beta1", beta1), given.pop("beta2", beta2), *others)
            given.pop("betas", None)
        kwargs |= given
        before = dict(kwargs)
        if self.configure:
            kwargs = self.configure(kwargs, RunInfo(args, planned_steps, given_keys), **extra)
        # Compared by identity, because a value may be a tensor.
        fitted = frozenset(key for key in kwargs if key not in before or kwargs[key] is not before[key])

        if betas:
            arguments.write(args, "adam_beta1", kwargs["betas"][0])
            arguments.write(args, "adam_beta2", kwargs["betas"][1])
        if isinstance(kwargs.get("eps"), float):
            arguments.write(args, "adam_epsilon", kwargs["eps"])
        logger.info("optim=%r: %s", self.name, ", ".join(f"{key}={value}" for key, value in kwargs.items()))
        return kwargs, fitted

    def _list_options(self) -> dict[str, optim_args.Option]:
        options = optim_args.list_options(self.load(), _KEYWORDS)
        return dict(list(options.items())[1:])  # the first is the parameters to optimize

    def _takes_anything(self) -> bool:
        parameters = inspect.signature(self.load()).parameters.values()
        return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)


#: The registered optimizers by name.
REGISTERED: dict[str, RegisteredOptimizer] = {}
