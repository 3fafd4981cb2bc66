import json

import pytest
import torch

from adamnx_hf import cli
from adamnx_hf.bench.cases import CASES, Case
from adamnx_hf.bench.contestants import BASELINE, CONTESTANTS
from adamnx_hf.bench.device import context_is_lost
from adamnx_hf.bench.memory import count_state_bytes, measure_temporary_bytes

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """What a short measurement of memory writes, of parameters with no rest in any format."""
    path = tmp_path_factory.mktemp("memory") / "cpu"
    ours = [n for n in CONTESTANTS if n.startswith("adamnx")]
    argv = ["bench", "--memory", "--device", "cpu", "--rounds", "1", "--steps", "1", "--output", str(path)]
    with pytest.MonkeyPatch.context() as patch:
        for name, dtype in (("llama-5m", "float32"), ("llama-5m-bf16", "bfloat16")):
            case = Case("matrices", lambda: 4 * [(64, 2048)], ("cpu",), dtype=dtype, memory=True)
            patch.setitem(CASES, name, case)
        assert cli.main([*argv, "--optimizers", *ours, BASELINE]) == 0
    return path


def test_bytes_of_each_format(memory):
    results = json.loads(memory.with_suffix(".json").read_text())["results"]
    count = 4 * 64 * 2048
    state = [{row["optimizer"]: row["state_bytes"] / count for row in r["optimizers"]} for r in results]
    packed = 2 * (2048 + 16) / 2048
    assert state[0] == pytest.approx(
        {"adamnx": 8, "adamnx_bf16": 4, "adamnx_int8": packed, BASELINE: 8}, abs=1e-4
    )
    others = {"adamnx_bf16_stochastic": 4, "adamnx_bf16_kahan": 6, "adamnx_int8_stochastic": packed}
    assert state[1] == pytest.approx(state[0] | others | {BASELINE: 4}, abs=1e-4)
    assert all(row["ms"] > 0 and row["peak_bytes"] >= 0 for r in results for row in r["optimizers"])
    # bfloat16 moments go through float32 copies on the CPU, though not all at once; float32 ones do not.
    temporary = {row["optimizer"]: row["peak_bytes"] / count for row in results[0]["optimizers"]}
    assert temporary["adamnx"] < 0.1 and temporary["adamnx_bf16"] >= 6
    text = memory.with_suffix(".md").read_text()
    assert "| AdamNX, 8-bit state | 2.02 |" in text and "| AdamNX, bfloat16 state, Kahan | 6.00 |" in text
    assert memory.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_temporary_bytes_are_the_peak_of_a_step():
    def step():
        large = torch.empty(3_000_000)
        del large
        small = [torch.empty(1_000_000) for _ in range(2)]
        del small

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        assert measure_temporary_bytes(step, device) == pytest.approx(12_000_000, rel=0.2)


def test_what_wraps_other_tensors_counts_as_what_it_is_made_of():
    torchao = pytest.importorskip("torchao.optim")
    param = torch.nn.Parameter(torch.zeros(64, 256))
    state = {"exp_avg": torchao.AdamW8bit([param])._subclass_zeros(param.detach(), True, 256)}
    optimizer = torch.optim.AdamW([param])
    optimizer.state[param] = state
    assert 64 * 256 < count_state_bytes(optimizer) < 64 * 256 * 1.2


def test_a_failure_that_leaves_the_context_is_no_loss(monkeypatch):
    for failures, lost in ((0, False), (1, False), (2, True)):
        outcomes = iter([*failures * [RuntimeError("CUDA error")], None])

        def synchronize(outcomes=outcomes):
            if error := next(outcomes):
                raise error

        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        assert context_is_lost("cuda") is lost
    assert not context_is_lost("cpu")
