"""A few steps of each kind, and a norm, for profilers and sanitizers to look at.

    PYTHONPATH=. python .ci/card/one.py [small]    # on a CPU under TRITON_INTERPRET=1

`small`: two steps of sizes around a chunk, for sanitizers. Otherwise one of large tensors, for profilers.
"""

import sys

import torch

from adamnx_hf import AdamNX

KINDS = (
    (torch.float32, {}),
    (torch.float32, {"state_dtype": "bfloat16"}),
    (torch.float32, {"state_dtype": "int8"}),
    (torch.bfloat16, {"state_dtype": "bfloat16", "param_rounding": "kahan"}),
    (torch.bfloat16, {"state_dtype": "int8", "param_rounding": "stochastic"}),
)
device = "cuda" if torch.cuda.is_available() else "cpu"
sizes = [(1023,), (1024,), (1025,), (33, 128), (40, 3, 50), (5, 1030), (64, 80), (7,)]
if device == "cpu":
    sizes = [(1025,), (5, 1030), (7,)]
elif "small" not in sys.argv:
    sizes = [(8192, 4096)] * 2
for dtype, options in KINDS:
    params = [torch.nn.Parameter(torch.randn(size, device=device).to(dtype)) for size in sizes]
    optimizer = AdamNX(params, lr=1e-4, max_grad_norm=1.0, **options)
    for _ in range(2 if "small" in sys.argv else 1):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    print(dtype, options, "done", flush=True)
