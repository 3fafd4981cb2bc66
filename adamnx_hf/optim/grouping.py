"""Parameter groups for any torch optimizer: which parameters decay, by the Trainer's rule or the paper's."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["DECAY_RULES", "param_groups"]

_NO_DECAY_NAMES = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def _trainer_rule(name: str, module: nn.Module) -> bool:
    """Returns whether the Trainer decays a parameter: not LayerNorms', nor those *named* bias or norm."""
    return not isinstance(module, nn.LayerNorm) and not _NO_DECAY_NAMES.search(name.lower())


def _paper_rule(name: str, module: nn.Module) -> bool:
    """Returns whether the authors decay a parameter: only weights of convolutions and linear layers."""
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    return isinstance(module, layers) and name.rpartition(".")[2] == "weight"


#: Rules by the name that `param_groups(rule=...)` takes: whether the parameter `name` of `module` decays.
DECAY_RULES: dict[str, Callable[[str, nn.Module], bool]] = {
    "trainer": _trainer_rule,
    "paper": _paper_rule,
}


def param_groups(
    model: nn.Module, weight_decay: float = 1e-2, *, rule: str = "trainer", decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Splits the trainable parameters of `model` into those that decay and those that do not.

    Args:
        model: frozen parameters are left out; tied ones are counted once.
        weight_decay: the weight decay λ of the decaying group; the other's is 0.
        rule: `"trainer"` groups as the Transformers Trainer does: no biases, no LayerNorm, nothing named norm
            decays (so a BatchNorm named `bn1` does). With `"paper"` the weights of convolutions and linear
            layers decay and nothing else, as in the authors' experiments.
        decay_embeddings: False takes the weights of `nn.Embedding` out of the decaying group.

    Returns:
        One or two groups for `AdamNX(...)` or any torch optimizer; an empty one is left out.

    Raises:
        ValueError: `rule` is not one of :data:`DECAY_RULES`, or nothing in `model` is trainable.

    Examples:
        >>> optimizer = AdamNX(param_groups(model, weight_decay=0.05), lr=1e-3)
    """
    if rule not in DECAY_RULES:
        raise ValueError(f"Invalid rule: {rule!r}; choose one of {', '.join(DECAY_RULES)}")
    # Tied parameters have the name and the module under which they come first.
    owners: dict[nn.Parameter, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules():
        for name, param in module.named_parameters(prefix=path, recurse=False):
            owners.setdefault(param, (name, module))
    decay: list[nn.Parameter] = []
    no_decay: list[nn.Parameter] = []
    for param, (name, module) in owners.items():
        if param.requires_grad:
            excepted = isinstance(module, nn.Embedding) and not decay_embeddings
            (decay if DECAY_RULES[rule](name, module) and not excepted else no_decay).append(param)
    if not decay and not no_decay:
        raise ValueError("the model has no trainable parameters: every requires_grad is False")
    groups = [
        {"params": decay, "weight_decay": weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
