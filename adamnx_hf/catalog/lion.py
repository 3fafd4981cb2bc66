"""Lion, which pytorch-optimizer brings.

Raises:
    ImportError: pytorch-optimizer is not installed.
"""

try:
    from pytorch_optimizer import Lion
except ModuleNotFoundError as error:
    raise ImportError(
        'Lion is pytorch-optimizer\'s: pip install "adamnx-hf[recipes]"', name=error.name
    ) from error

__all__ = ["Lion"]
