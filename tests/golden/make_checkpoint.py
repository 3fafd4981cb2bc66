"""Makes `adamnx_checkpoint.pt`: python make_checkpoint.py.

A model's and AdamNX's state_dict after 3 steps, and the parameters after 3 more, by the reference engine.
Made by adamnx-hf 0.1.0 with torch 2.8. Later versions must read it and go on from it; do not make it anew.
"""

from pathlib import Path

import torch
from torch import nn

from adamnx_hf import AdamNX

PATH = Path(__file__).with_name("adamnx_checkpoint.pt")


def make_model():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, dtype=torch.bfloat16))


def train(model, optimizer, steps):
    """Gradients depend on the step alone."""
    for step in steps:
        for i, param in enumerate(model.parameters()):
            numbers = torch.arange(param.numel(), dtype=torch.float64).reshape(param.shape)
            param.grad = torch.sin(numbers + 10 * step + i).to(param.dtype)
        optimizer.step()


def main() -> None:
    model = make_model()
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.linspace(-1, 1, param.numel()).reshape(param.shape))
    optimizer = AdamNX(
        [
            {"params": model[0].parameters(), "weight_decay": 0.1},
            {"params": model[1].parameters(), "betas": (0.8, 0.95), "beta2_schedule": "adax"},
        ],
        lr=0.01,
        foreach=False,
    )
    train(model, optimizer, range(3))
    for group in optimizer.param_groups:
        group["foreach"] = None
    saved = {
        "torch": str(torch.__version__),
        "model": {key: value.clone() for key, value in model.state_dict().items()},
        "optimizer": {
            "state": {
                i: {key: value.clone() for key, value in state.items()}
                for i, state in optimizer.state_dict()["state"].items()
            },
            "param_groups": optimizer.state_dict()["param_groups"],
        },
    }
    for group in optimizer.param_groups:
        group["foreach"] = False
    train(model, optimizer, range(3, 6))
    torch.save({**saved, "expected": model.state_dict()}, PATH)


if __name__ == "__main__":
    main()
