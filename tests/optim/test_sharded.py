"""DTensors, as FSDP2 makes parameters: two ranks on the CPU against a single process."""

import copy
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing import assert_close

from adamnx_hf import AdamNX
from adamnx_hf.optim.clipping import compute_total_norm
from adamnx_hf.optim.engines import runtime
from adamnx_hf.optim.formats import join

FLAGS = {
    "aten": {"fused": True},
    "foreach": {"foreach": True},
    "reference": {"foreach": False},
    "triton": {"fused": True},
    "triton capturable": {"fused": True, "capturable": True},
}


def model():
    torch.manual_seed(0)
    # 5 rows are shared out as 3 and 2; of 1 row the second rank has nothing.
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def bits(tensor):
    """To compare what may be a nan."""
    tensor = full(tensor)
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor


def go_together(flags, max_grad_norm):
    single, sharded = model(), model()
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer)
    optimizers = [
        AdamNX(m.parameters(), lr=0.05, max_grad_norm=max_grad_norm, **flags) for m in (single, sharded)
    ]
    for step in range(4):
        torch.manual_seed(step)
        data = 10 * torch.randn(6, 7)
        sharded.zero_grad()
        sharded(data).square().mean().backward()
        for a, b in zip(sharded.parameters(), single.parameters(), strict=True):
            # The same gradients: with gloo, FSDP2 of torch 2.8 has their sum over the ranks and not the mean.
            b.grad = a.grad.full_tensor()
        for optimizer in optimizers:
            optimizer.step()
        if max_grad_norm:
            assert type(optimizers[1].grad_norm) is torch.Tensor
            assert_close(optimizers[1].grad_norm, optimizers[0].grad_norm)
        for a, b in zip(sharded.parameters(), single.parameters(), strict=True):
            assert isinstance(a, DTensor)
            assert_close(full(a), b)
            ours, theirs = optimizers[1].state[a], optimizers[0].state[b]
            assert isinstance(ours["exp_avg"], DTensor)
            assert_close(full(ours["exp_avg_sq"]), theirs["exp_avg_sq"])
            assert ours["step"] == theirs["step"]
    empty = [p for p in sharded.parameters() if p.to_local().numel() == 0]
    assert len(empty) == (2 if dist.get_rank() == 1 else 0)


def bfloat16_goes_together(rounding):
    single, sharded = model().bfloat16(), model().bfloat16()
    for layer in (sharded[0], sharded[2], sharded):
        fully_shard(layer)
    options = {"lr": 0.05, "state_dtype": "bfloat16", "param_rounding": rounding}
    # Kahan's sums do not go by chance, and moments are float32's there: no two ways are possible.
    options |= {"state_dtype": "float32"} if rounding == "kahan" else {}
    optimizers = [AdamNX(m.parameters(), **options) for m in (single, sharded)]
    for step in range(4):
        torch.manual_seed(step)
        sharded.zero_grad()
        sharded(torch.randn(6, 7).bfloat16()).square().mean().backward()
        for a, b in zip(sharded.parameters(), single.parameters(), strict=True):
            b.grad = a.grad.full_tensor()
        for optimizer in optimizers:
            optimizer.step()
        saved = get_optimizer_state_dict(sharded, optimizers[1])
        fresh = AdamNX(sharded.parameters(), **options)
        set_optimizer_state_dict(sharded, fresh, saved)
        for a, b in zip(sharded.parameters(), single.parameters(), strict=True):
            assert a.dtype == torch.bfloat16
            for key, ours in optimizers[1].state[a].items():
                theirs = optimizers[0].state[b][key]
                assert ours.dtype == theirs.dtype == fresh.state[a][key].dtype
                assert key == "step" or isinstance(ours, DTensor)
                assert torch.equal(bits(ours), bits(fresh.state[a][key]))
                if key.startswith("exp"):  # each rank counts its elements from the start: other random bits
                    wide = {"rtol": 0.05, "atol": 1e-3} if rounding == "stochastic" else {}
                    assert_close(full(ours), theirs, **wide)
            if rounding == "kahan":
                rests = [full(o.state[p]["param_residual"]) for o, p in zip(optimizers, (b, a), strict=True)]
                assert_close(join(full(a.detach()), rests[1]), join(b.detach(), rests[0]))
            else:
                assert_close(full(a), b, rtol=0.05, atol=0.01)


def packed_goes_together():
    """8 bits: rows are what ranks share out, so what a rank has packed is packed by itself."""
    torch.manual_seed(0)
    single = nn.Linear(128, 65)
    sharded = copy.deepcopy(single)
    fully_shard(sharded)
    optimizers = [AdamNX(m.parameters(), lr=0.01, state_dtype="int8") for m in (single, sharded)]
    exact = AdamNX(single.parameters(), lr=0.0, weight_decay=0.0)  # float32 moments of the same gradients
    for step in range(4):
        torch.manual_seed(step)
        sharded.zero_grad()
        sharded(torch.randn(6, 128)).square().mean().backward()
        for a, b in zip(sharded.parameters(), single.parameters(), strict=True):
            b.grad = a.grad.full_tensor()
        for optimizer in (*optimizers, exact):
            optimizer.step()
    saved = get_optimizer_state_dict(sharded, optimizers[1], options=StateDictOptions(full_state_dict=True))
    if dist.get_rank() == 0:
        whole = saved["state"]["weight"]["exp_avg_sq"]
        assert whole.dtype == torch.uint8 and whole.shape == (65, 136)
        twin = AdamNX(copy.deepcopy(single).parameters())
        twin.load_state_dict(
            {
                "state": {i: saved["state"][name] for i, name in enumerate(("weight", "bias"))},
                "param_groups": optimizers[0].state_dict()["param_groups"],
            }
        )
        ours = next(iter(twin.param_groups[0]["params"]))
        # Random bits are each rank's own. A rounding moves a number by an eighth at most, by 4 % in the root
        # mean square; v has been rounded four times, m once for each of its parts. No bias in 8,320 elements.
        for key, value in twin.dequantize(ours).items():
            true = exact.state[single.weight][key]
            assert (value - true).norm() < 0.1 * true.norm()
        ratio = value / true
        assert (8 / 9) ** 4 < ratio.min() and ratio.max() < (9 / 8) ** 4 and abs(ratio.mean() - 1) < 0.005
    assert isinstance(optimizers[1].state[sharded.weight]["exp_avg"], DTensor)
    assert optimizers[1].state[sharded.bias]["exp_avg"].dtype == torch.float32
    fresh = AdamNX(sharded.parameters(), state_dtype="int8")
    sharded.zero_grad()  # torch makes the state to load into only where there are none
    set_optimizer_state_dict(sharded, fresh, saved, options=StateDictOptions(full_state_dict=True))
    for param in sharded.parameters():
        for key, value in optimizers[1].state[param].items():
            assert torch.equal(full(value), full(fresh.state[param][key]))


def gradients_placed_otherwise(mesh):
    param = nn.Parameter(distribute_tensor(torch.ones(5, 2), mesh, [Shard(0)]))
    optimizer = AdamNX([param], lr=0.5, weight_decay=0.0)
    # Each rank's part of a sum: together they are 1, and the norm is that of the whole.
    half = DTensor.from_local(torch.full((5, 2), 0.5), mesh, [Partial()], run_check=False)
    assert_close(compute_total_norm([half]), torch.tensor(10.0).sqrt())
    for placement in (Replicate(), Shard(0)):
        whole = distribute_tensor(torch.ones(5, 2), mesh, [placement])
        assert_close(compute_total_norm([whole, torch.ones(6)]), torch.tensor(4.0))
    # As FSDP2 places what tensor parallelism has sharded along the same dimension.
    local = torch.full((3, 2), 1.0 + dist.get_rank())
    strided = DTensor.from_local(local, mesh, [_StridedShard(0, split_factor=2)], run_check=False)
    assert_close(compute_total_norm([strided]), torch.tensor(6 * 1.0 + 6 * 4.0).sqrt())

    param.grad = half
    optimizer.step()
    assert_close(full(param.detach()), torch.full((5, 2), 0.5))
    assert_close(full(optimizer.state[param]["exp_avg_sq"]), torch.ones(5, 2))

    optimizer.state[param]["exp_avg"] = torch.ones(5, 2)
    before = param.to_local().detach().clone()
    with pytest.raises(RuntimeError, match=r"exp_avg of a DTensor parameter is placed as a plain tensor"):
        optimizer.step()
    assert torch.equal(param.to_local(), before)


def worker(rank, file):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    for name, flags in FLAGS.items():
        runtime.INTERPRETED = name.startswith("triton")
        for max_grad_norm in (None, 0.1):
            go_together(flags, max_grad_norm)
        if "capturable" not in name:
            for rounding in ("stochastic", "kahan"):
                bfloat16_goes_together(rounding)
    runtime.INTERPRETED = False
    packed_goes_together()
    gradients_placed_otherwise(mesh)
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_go_the_way_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    monkeypatch.setitem(os.environ, "CUDA_VISIBLE_DEVICES", "")
    mp.spawn(worker, (tmp_path / "rendezvous",), nprocs=2)
