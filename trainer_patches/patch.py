"""The patch of Transformers: an enum member per name, and a few methods that look registered names up first.

Nothing is imported from Transformers: its modules are patched when somebody imports them. If a version of
Transformers does not fit, one warning says so, and Transformers is left as it was.
"""

from __future__ import annotations

import contextvars
import importlib.util
import inspect
import math
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

from trainer_patches.arguments import read_optim, take_back
from trainer_patches.registered import REGISTERED, RegisteredOptimizer

__all__ = ["add_name", "install"]

OLDEST = (4, 57)

# Fields of TrainingArguments that give way to an optimizer's own default, and the parameter of
# `set_optimizer` that sets each.
_FIELDS = {"adam_beta1": "beta1", "adam_beta2": "beta2", "adam_epsilon": "epsilon"}

# Methods of the Trainer that know the number of optimizer steps while they create the optimizer. They begin
# every run, including a run that keeps the optimizer of the one before.
_STEPS = {
    "create_optimizer_and_scheduler": "num_training_steps",  # called by train() up to 5.0
    "_prepare_for_training": "max_steps",  # called by train() in later versions
}

_OWN_NAME = "optim={!r} is one of Transformers' own names and stays so; register another"

_added: set[str] = set()
_pristine: dict[str, tuple[Any, ...]] = {}
_undo: list[Callable[[], None]] = []
_failed = False
_planned_steps: contextvars.ContextVar[int | None] = contextvars.ContextVar("planned_steps", default=None)
_made: contextvars.ContextVar[tuple[Any, ...] | None] = contextvars.ContextVar("made", default=None)


def install() -> None:
    """Arranges for Transformers to be patched as soon as it is imported, or now if it has been."""
    if "transformers" not in sys.modules and importlib.util.find_spec("transformers") is None:
        return
    from wrapt import register_post_import_hook  # here, as the optimizer alone does without

    register_post_import_hook(_guard(_patch_training_args), "transformers.training_args")
    register_post_import_hook(_guard(_patch_trainer), "transformers.trainer")


def add_name(name: str) -> None:
    """Adds `name` to OptimizerNames, now or when it is imported.

    Raises:
        ValueError: Transformers has an optimizer of that name.
    """
    if name in REGISTERED or name in _added:
        return
    training_args = sys.modules.get("transformers.training_args")
    optimizer_names = getattr(training_args, "OptimizerNames", None)
    if optimizer_names is not None and not _failed:
        if name in optimizer_names._value2member_map_:
            raise ValueError(_OWN_NAME.format(name))
        _guard(lambda module: _add_member(module.OptimizerNames, name))(training_args)


# ---------------------------------------------------------------- patching


def _guard(patch: Callable[[Any], None]) -> Callable[[Any], None]:
    """Returns `patch` so that its failure ends in a warning, after all patches are undone."""

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
    for name in REGISTERED:
        if name in module.OptimizerNames._value2member_map_:
            warnings.warn(_OWN_NAME.format(name), RuntimeWarning, stacklevel=2)
        else:
            _add_member(module.OptimizerNames, name)

    cls = module.TrainingArguments
    _wrap(cls, "set_optimizer", _settle_arguments, *_FIELDS.values())
    _wrap(cls, "__post_init__", _settle_arguments)
    set_optimizer = inspect.signature(cls.set_optimizer).parameters
    for field, parameter in _FIELDS.items():
        _pristine[field] = (cls.__dataclass_fields__[field].default, set_optimizer[parameter].default)


def _patch_trainer(module: Any) -> None:
    cls = module.Trainer
    _wrap(cls, "get_optimizer_cls_and_kwargs", _choose_optimizer, "args", "model")
    _wrap(cls, "create_optimizer", _note_optimizer)
    _wrap(cls, "train", _end_run)
    for method, parameters, wrapper in (
        # They compute the norm of all gradients (since 5.0, also without clipping) and log it.
        ("_get_grad_norm", ("model", "grad_norm"), _skip_norm),
        ("_maybe_log_save_evaluate", ("grad_norm",), _log_norm),
        *((method, (parameter,), _begin_run) for method, parameter in _STEPS.items()),
    ):
        if method in cls.__dict__:
            _wrap(cls, method, wrapper, *parameters)


def _wrap(cls: type, method: str, wrapper: Callable[..., Any], *parameters: str) -> None:
    """Puts `wrapper(wrapped, instance, args, kwargs)` around a method, as wrapt has it.

    Raises:
        RuntimeError: the method lacks one of the `parameters`, on which `wrapper` relies.
    """
    from wrapt import wrap_function_wrapper

    function = getattr(cls, method, None)
    if missing := set(parameters) - set(inspect.signature(function).parameters if function else ()):
        raise RuntimeError(f"{cls.__name__}.{method} does not take {', '.join(sorted(missing))}")
    original = cls.__dict__[method]
    wrap_function_wrapper(cls, method, wrapper)
    _undo.append(lambda: setattr(cls, method, original))


def _bind(wrapped: Any, arguments: Any, keywords: Any) -> inspect.BoundArguments:
    return inspect.signature(wrapped).bind(*arguments, **keywords)


# ---------------------------------------------------------------- TrainingArguments


def _settle_arguments(wrapped: Any, args: Any, arguments: Any, keywords: Any) -> Any:
    """Wraps `__post_init__` and `set_optimizer`: writes the optimizer's defaults into the arguments."""
    result = wrapped(*arguments, **keywords)
    take_back(args)
    if registered := _look_up(args):
        registered.write_defaults(args, _pristine)
        registered.parse_optim_args(args.optim_args)  # raises errors now, not when training starts
    return result


def _look_up(args: Any) -> RegisteredOptimizer | None:
    """Returns the optimizer that `args.optim` names, if that name is ours."""
    name = read_optim(args)
    return REGISTERED.get(name) if name in _added else None


def _build_keywords(registered: RegisteredOptimizer, args: Any) -> tuple[dict[str, Any], frozenset[str]]:
    registered.write_defaults(args, _pristine)  # again: `args.optim` may have been assigned since
    return registered.build_keywords(args, _planned_steps.get())


# ---------------------------------------------------------------- making the optimizer


def _choose_optimizer(wrapped: Any, _: Any, arguments: Any, keywords: Any) -> Any:
    """Wraps `get_optimizer_cls_and_kwargs(args, model)`: answers for registered names."""
    args = arguments[0] if arguments else keywords["args"]
    take_back(args)
    if registered := _look_up(args):
        kwargs, fitted = _build_keywords(registered, args)
        _made.set((registered, kwargs, fitted))
        return registered.load_class(), kwargs
    return wrapped(*arguments, **keywords)


def _note_optimizer(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
    """Wraps methods that create the optimizer: notes on the Trainer if it was made for a registered name."""
    before, token = _read_optimizer(trainer), _made.set(None)
    try:
        result = wrapped(*arguments, **keywords)
        optimizer, made = _read_optimizer(trainer), _made.get()
        if optimizer is not before and made is not None:
            registered, kwargs, fitted = made
            # The groups that hold each value that was made for the run. Others have a value of their own.
            places = {
                key: [i for i, group in enumerate(optimizer.param_groups) if group.get(key) == kwargs[key]]
                for key in fitted
            }
            trainer._made_for_optim = optimizer, registered, places
        return result
    finally:
        _made.reset(token)


def _begin_run(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
    """Wraps the methods of `_STEPS`: fits the optimizer to the number of steps of this run."""
    steps = _bind(wrapped, arguments, keywords).arguments[_STEPS[wrapped.__name__]]
    token = _planned_steps.set(steps)
    try:
        _fit_again(trainer)
        return _note_optimizer(wrapped, trainer, arguments, keywords)
    finally:
        _planned_steps.reset(token)


def _end_run(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
    """Wraps `train`: takes back the values that were written into the arguments for one run."""
    try:
        return wrapped(*arguments, **keywords)
    finally:
        take_back(trainer.args, run_only=True)


def _fit_again(trainer: Any) -> None:
    """Fits an optimizer that the Trainer has kept to the run that begins.

    The Trainer keeps its optimizer in a second `train()`, and where auto_find_batch_size tries again. The
    number of steps is then another, and what was written into the arguments for a run has been taken back.
    """
    made = getattr(trainer, "_made_for_optim", None)
    if made is None or made[0] is not _read_optimizer(trainer):
        return
    args, (optimizer, made_for, places) = trainer.args, made
    # A run that broke off may have left gradients behind; the Trainer calls the model's zero_grad() alone.
    optimizer.zero_grad()
    registered = _look_up(args)
    if registered is None or registered is not made_for:
        return  # another name was assigned since; the Trainer keeps the optimizer all the same
    take_back(args)
    kwargs, fitted = _build_keywords(registered, args)
    for key in fitted & places.keys():
        for i in places[key]:
            optimizer.param_groups[i][key] = kwargs[key]


def _read_optimizer(trainer: Any) -> Any:
    """Returns the Trainer's optimizer out of Accelerate's wrapper.

    :func:`unwrap_optimizer` would also remove DeepSpeed's wrapper. That one has to stay, because under
    DeepSpeed the gradients are DeepSpeed's, and so is their norm.
    """
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


# ---------------------------------------------------------------- the norm of all gradients


def _skip_norm(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
    """Wraps `_get_grad_norm(model, grad_norm)`: returns None where only the optimizer knows the norm."""
    given = _bind(wrapped, arguments, keywords).arguments
    if given.get("grad_norm") is None and _finds_norm(_read_optimizer(trainer), given["model"]):
        return None
    return wrapped(*arguments, **keywords)


def _log_norm(wrapped: Any, trainer: Any, arguments: Any, keywords: Any) -> Any:
    """Wraps `_maybe_log_save_evaluate(..., grad_norm, ...)`: puts in the norm that the optimizer found."""
    given = _bind(wrapped, arguments, keywords)
    if given.arguments["grad_norm"] is None:
        optimizer = _read_optimizer(trainer)
        if not trainer.accelerator.optimizer_step_was_skipped:
            given.arguments["grad_norm"] = getattr(optimizer, "grad_norm", None)
        elif _clips(optimizer):  # no norm was found: in fp16 the gradients overflowed
            given.arguments["grad_norm"] = math.inf
    return wrapped(*given.args, **given.kwargs)


def _finds_norm(optimizer: Any, model: Any) -> bool:
    """Returns whether only the optimizer knows the norm of all gradients.

    An optimizer that clips within its step has `max_grad_norm`, and the norm in `grad_norm` afterwards.
    Reading all gradients for a norm to log would cost as much as such a step saves. Or the optimizer has used
    and freed the gradients already, and the Trainer would log 0.
    """
    return _clips(optimizer) or (
        hasattr(optimizer, "grad_norm") and all(param.grad is None for param in model.parameters())
    )


def _clips(optimizer: Any) -> bool:
    return hasattr(optimizer, "grad_norm") and getattr(optimizer, "max_grad_norm", None) is not None


# ---------------------------------------------------------------- the enum


def _add_member(enum: Any, value: str) -> None:
    """Adds a member to a str enum after its class was made, for which Python has no way of its own."""
    name = re.sub(r"\W", "_", value).upper()
    while name in enum._member_map_:  # "RMSprop" beside Transformers' own "rmsprop"
        name += "_"
    member: Any = str.__new__(enum, value)
    member._name_ = name
    member._value_ = value
    member.__objclass__ = enum
    member._sort_order_ = len(enum._member_names_)
    # Pickled as plain text, so that a training_args.bin opens where this package is not imported.
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
