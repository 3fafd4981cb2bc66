"""The patch of Transformers: an enum member per name, and a few methods that look our names up first.

Nothing is imported from Transformers: its modules are patched when somebody imports them. Where a
version does not fit, one warning says so and Transformers is left as it was.
"""

from __future__ import annotations

import contextvars
import importlib.util
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer_patches.registry import RegisteredOptimizer

__all__ = ["add_name", "install", "take_back", "write"]

OLDEST = (4, 57)

# The fields of TrainingArguments that give way to an optimizer's own default, and the parameter of
# `set_optimizer` that sets each.
_FIELDS = {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "epsilon"}

# The Trainer's methods that know the number of optimizer steps while they create the optimizer. They begin
# every run, also one that keeps the optimizer of the last.
_STEPS = {
    "create_optimizer_and_scheduler": "num_training_steps",  # called by train() up to 5.0
    "_prepare_for_training": "max_steps",  # called by train() in later versions
}

# What the Trainer does with the norm of all gradients: it computes one to log (since 5.0, also where it does
# not clip), and logs it.
_NORM, _LOG = "_get_grad_norm", "_maybe_log_save_evaluate"

_OWN_NAME = "optim={!r} is one of Transformers' own names and stays so; register another"

_names: list[str] = []
_added: set[str] = set()
_registered: Mapping[str, RegisteredOptimizer] = {}
_pristine: dict[str, tuple[Any, ...]] = {}
_undo: list[Callable[[], None]] = []
_failed = False
_planned_steps: contextvars.ContextVar[int | None] = contextvars.ContextVar("planned_steps", default=None)
_made: contextvars.ContextVar[tuple[Any, ...] | None] = contextvars.ContextVar("made", default=None)


def install(registered: Mapping[str, RegisteredOptimizer]) -> None:
    """Arranges for Transformers to be patched as soon as it is imported, or now if it has been."""
    global _registered
    _registered = registered
    if "transformers" not in sys.modules and importlib.util.find_spec("transformers") is None:
        return
    from wrapt import register_post_import_hook

    register_post_import_hook(_guarded(_patch_training_args), "transformers.training_args")
    register_post_import_hook(_guarded(_patch_trainer), "transformers.trainer")


def add_name(name: str) -> None:
    """Adds `name` to OptimizerNames, now or when it is imported.

    Raises:
        ValueError: Transformers has an optimizer of that name.
    """
    if name in _names:
        return
    training_args = sys.modules.get("transformers.training_args")
    optimizer_names = getattr(training_args, "OptimizerNames", None)
    if optimizer_names is not None and not _failed:
        if name in optimizer_names._value2member_map_:
            raise ValueError(_OWN_NAME.format(name))
        _guarded(lambda module: _add_member(module.OptimizerNames, name))(training_args)
    _names.append(name)


def write(args: Any, field: str, value: float, *, for_run: bool = False) -> None:
    """Writes a value of the optimizer's into TrainingArguments, so that it can be told from a user's.

    Args:
        args: TrainingArguments.
        field: of `args`.
        value: what it is to hold until :func:`take_back`.
        for_run: whether the value is taken back already when `train()` ends.
    """
    written, run_fields = _written(args)
    _, before = written.get(field, (None, getattr(args, field)))
    args._written_for_optim = {**written, field: (value, before)}
    args._written_for_run = run_fields | {field} if for_run else run_fields - {field}
    setattr(args, field, value)


def take_back(args: Any, *, run_only: bool = False) -> None:
    """Undoes what :func:`write` did, save where the user has set the field since.

    So that arguments made for one optimizer, or one run, can be used for another. By identity, as a
    pickled copy no longer knows which values were untouched: it keeps what it holds.

    Args:
        args: TrainingArguments.
        run_only: takes back only what was written for one run.
    """
    written, run_fields = _written(args)
    taken = {field: pair for field, pair in written.items() if field in run_fields or not run_only}
    if not taken:
        return
    for field, (value, before) in taken.items():
        if getattr(args, field) is value:
            setattr(args, field, before)
    # New ones, as a shallow copy of the arguments holds the same.
    args._written_for_optim = {field: pair for field, pair in written.items() if field not in taken}
    args._written_for_run = run_fields.difference(taken)


def _written(args: Any) -> tuple[dict[str, tuple[Any, Any]], frozenset[str]]:
    """The fields that are written, with the value and the one before it; and which of them for one run."""
    return vars(args).get("_written_for_optim", {}), vars(args).get("_written_for_run", frozenset())


def _guarded(patch: Callable[[Any], None]) -> Callable[[Any], None]:
    """`patch`, but a failure ends in a warning and takes everything back."""

    def apply(module: Any) -> None:
        global _failed
        if _failed:
            return
        try:
            version = sys.modules["transformers"].__version__
            if tuple(map(int, re.findall(r"\d+", version)[:2])) < OLDEST:
                raise RuntimeError(f"it is older than {'.'.join(map(str, OLDEST))}")
            patch(module)
        except Exception as error:
            _failed = True
            while _undo:
                _undo.pop()()
            version = getattr(sys.modules.get("transformers"), "__version__", "?")
            warnings.warn(
                f"optimizer names cannot be made known to transformers {version}: {error}. It is left as it "
                "was; pass the optimizer itself, Trainer(optimizer_cls_and_kwargs=(AdamNX, {...})), or use "
                "another version.",
                RuntimeWarning,
                stacklevel=2,
            )

    return apply


def _patch_training_args(module: Any) -> None:
    for name in _names:
        if name in module.OptimizerNames._value2member_map_:
            warnings.warn(_OWN_NAME.format(name), RuntimeWarning, stacklevel=2)
        else:
            _add_member(module.OptimizerNames, name)

    cls = module.TrainingArguments
    _require(cls, "set_optimizer", *_FIELDS.values())
    set_optimizer = inspect.signature(cls.set_optimizer).parameters
    for field, parameter in _FIELDS.items():
        _pristine[field] = (cls.__dataclass_fields__[field].default, set_optimizer[parameter].default)

    def settle(args: Any) -> None:
        take_back(args)
        if registered := _lookup(args.optim):
            registered.settle(args, _pristine)
            registered.parse_optim_args(args.optim_args)  # errors now, not when training starts

    def after(wrapped: Any, args: Any, arguments: Any, keywords: Any) -> Any:
        result = wrapped(*arguments, **keywords)
        settle(args)
        return result

    _wrap(cls, "__post_init__", after)
    _wrap(cls, "set_optimizer", after)


def _patch_trainer(module: Any) -> None:
    cls = module.Trainer
    _require(cls, "get_optimizer_cls_and_kwargs", "args", "model")

    def get_optimizer_cls_and_kwargs(wrapped: Any, _: Any, arguments: Any, keywords: Any) -> Any:
        args = arguments[0] if arguments else keywords["args"]
        take_back(args)
        if registered := _lookup(args.optim):
            kwargs, fitted = _keywords(registered, args)
            _made.set((registered, kwargs, fitted))
            return registered.optimizer_class(), kwargs
        return wrapped(*arguments, **keywords)

    def note_optimizer(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
        before, token = _unwrapped(trainer.optimizer), _made.set(None)
        try:
            result = wrapped(*arguments, **keywords)
            optimizer, made = _unwrapped(trainer.optimizer), _made.get()
            if optimizer is not before and made is not None:
                trainer._made_for_optim = _Made(optimizer, *made)
            return result
        finally:
            _made.reset(token)

    def begin_run(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
        given = inspect.signature(wrapped).bind(*arguments, **keywords).arguments
        token = _planned_steps.set(given[_STEPS[wrapped.__name__]])
        try:
            _fit_again(trainer)
            return note_optimizer(wrapped, trainer, arguments, keywords)
        finally:
            _planned_steps.reset(token)

    def end_run(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
        try:
            return wrapped(*arguments, **keywords)
        finally:
            take_back(trainer.args, run_only=True)

    def find_norm(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
        given = inspect.signature(wrapped).bind(*arguments, **keywords).arguments
        if given.get("grad_norm") is None and _finds_norm(trainer.optimizer, given["model"]):
            return None
        return wrapped(*arguments, **keywords)

    def log_norm(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
        given = inspect.signature(wrapped).bind(*arguments, **keywords)
        if given.arguments["grad_norm"] is None:
            optimizer = _unwrapped(trainer.optimizer)
            if not trainer.accelerator.optimizer_step_was_skipped:
                given.arguments["grad_norm"] = getattr(optimizer, "grad_norm", None)
            elif _clips(optimizer):  # it has found none: in fp16 the gradients overflowed
                given.arguments["grad_norm"] = math.inf
        return wrapped(*given.args, **given.kwargs)

    _wrap(cls, "get_optimizer_cls_and_kwargs", get_optimizer_cls_and_kwargs)
    _wrap(cls, "create_optimizer", note_optimizer)
    _wrap(cls, "train", end_run)
    for method, parameters, wrapper in (
        (_NORM, ("model", "grad_norm"), find_norm),
        (_LOG, ("grad_norm",), log_norm),
    ):
        if method in cls.__dict__:
            _require(cls, method, *parameters)
            _wrap(cls, method, wrapper)
    for method, parameter in _STEPS.items():
        if method in cls.__dict__:
            _require(cls, method, parameter)
            _wrap(cls, method, begin_run)


class _Made:
    """An optimizer that a Trainer made for one of our names."""

    def __init__(
        self, optimizer: Any, registered: RegisteredOptimizer, kwargs: dict[str, Any], fitted: Iterable[str]
    ) -> None:
        self.optimizer, self.registered = optimizer, registered
        # Of what was made for its run: the groups that have it. Others have a value of their own.
        self.groups = {
            key: [i for i, group in enumerate(optimizer.param_groups) if group.get(key) == kwargs[key]]
            for key in fitted
        }


def _keywords(registered: RegisteredOptimizer, args: Any) -> tuple[dict[str, Any], frozenset[str]]:
    registered.settle(args, _pristine)  # again: `args.optim` may have been assigned since
    return registered.keywords(args, _planned_steps.get())


def _fit_again(trainer: Any) -> None:
    """Fits an optimizer that the Trainer has kept to the run that begins.

    It keeps it in a second `train()`, and where auto_find_batch_size tries again: then the number of steps is
    another, and what was written into the arguments for a run has been taken back.
    """
    made: _Made | None = getattr(trainer, "_made_for_optim", None)
    if made is None or made.optimizer is not _unwrapped(trainer.optimizer):
        return
    args, optimizer = trainer.args, made.optimizer
    # A run that broke off may have left gradients behind; the Trainer calls the model's zero_grad() alone.
    optimizer.zero_grad()
    if _lookup(args.optim) is not made.registered:
        return  # another name was assigned since; the Trainer keeps the optimizer all the same
    take_back(args)
    kwargs, fitted = _keywords(made.registered, args)
    for key in fitted & made.groups.keys():
        for i in made.groups[key]:
            optimizer.param_groups[i][key] = kwargs[key]


def _unwrapped(optimizer: Any) -> Any:
    """What Accelerate has wrapped."""
    return getattr(optimizer, "optimizer", optimizer)


def _finds_norm(optimizer: Any, model: Any) -> bool:
    """Whether the optimizer, and only it, knows the norm of all gradients.

    It clips within its step (it has `max_grad_norm`, and the norm in `grad_norm` afterwards), so that reading
    and writing all gradients for a norm to log would cost what that saves. Or it has used and freed them
    already, and the Trainer would log 0.
    """
    optimizer = _unwrapped(optimizer)
    return _clips(optimizer) or (
        hasattr(optimizer, "grad_norm") and all(param.grad is None for param in model.parameters())
    )


def _clips(optimizer: Any) -> bool:
    return hasattr(optimizer, "grad_norm") and getattr(optimizer, "max_grad_norm", None) is not None


def _lookup(optim: Any) -> RegisteredOptimizer | None:
    name = optim.value if isinstance(optim, Enum) else optim
    return _registered.get(name) if name in _added else None


def _require(cls: type, method: str, *parameters: str) -> None:
    function = getattr(cls, method, None)
    missing = set(parameters) - set(inspect.signature(function).parameters if function else ())
    if missing:
        raise RuntimeError(f"{cls.__name__}.{method} does not take {', '.join(sorted(missing))}")


def _wrap(cls: type, method: str, wrapper: Callable[..., Any]) -> None:
    from wrapt import wrap_function_wrapper

    original = cls.__dict__[method]
    wrap_function_wrapper(cls, method, wrapper)
    _undo.append(lambda: setattr(cls, method, original))


def _add_member(enum: Any, value: str) -> None:
    """Adds a member to a str enum after its class was made. Python has no way of its own to do this."""
    name = re.sub(r"\W", "_", value).upper()
    while name in enum._member_map_:  # "RMSprop" beside Transformers' own "rmsprop"
        name += "_"
    member: Any = str.__new__(enum, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = enum
    member._sort_order_ = len(enum._member_names_)
    # Pickled as plain text: a training_args.bin opens where this package is not imported.
    member.__reduce_ex__ = lambda protocol: (str, (value,))

    def remove() -> None:
        enum._member_names_.remove(name)
        _added.discard(value)
        del enum._member_map_[name], enum._value2member_map_[value]
        if value in getattr(enum, "_hashable_values_", ()):  # Python 3.12 and later
            enum._hashable_values_.remove(value)
        if name in enum.__dict__:
            type.__delattr__(enum, name)

    enum._member_names_.append(name)
    enum._member_map_[name] = member
    enum._value2member_map_[value] = member
    if hasattr(enum, "_hashable_values_"):
        enum._hashable_values_.append(value)
    if sys.version_info >= (3, 11):  # before, EnumMeta.__getattr__ looks members up
        type.__setattr__(enum, name, member)
    _added.add(value)
    _undo.append(remove)
    if enum(value) is not member or member not in list(enum):
        raise RuntimeError(f"{enum.__name__} does not take new members")
