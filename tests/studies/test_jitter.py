"""The variance of v: the sums of squared weights, streams of known noise, and the command on a real run."""

import json
import math

import numpy as np
import pytest
import torch

from adamnx_hf import cli
from adamnx_hf.studies.decay import shares, squared_shares
from adamnx_hf.studies.jitter import gradients_of, simulate


@pytest.mark.parametrize("schedule", ["adam", "adamnx", "adax", "adafactor"])
def test_sums_are_those_of_the_weights_by_age(schedule):
    sums = squared_shares(schedule, 300, 0.95)
    for step in (1, 2, 17, 300):
        assert sums[step - 1] == pytest.approx((shares(schedule, step, 0.95) ** 2).sum(), rel=1e-12)


def test_the_limits_that_the_docs_state():
    beta = 0.99
    assert squared_shares("adam", 5000, beta)[-1] == pytest.approx((1 - beta) / (1 + beta), rel=1e-9)
    q = 0.9 ** (1 - 0.9)
    sums = squared_shares("adamnx", 3000, 0.9)
    assert sums[-1] == pytest.approx((1 - q) / (1 + q), rel=1e-9)
    steps = np.arange(1, 3001)
    exact = (1 - q) / (1 + q) * (1 + q**steps) / (1 - q**steps)
    np.testing.assert_allclose(sums, exact, rtol=1e-9)
    # Far below the horizon it is a plain mean's.
    assert squared_shares("adamnx", 100, 0.999)[-1] == pytest.approx(1 / 100, rel=1e-4)


@pytest.mark.parametrize(("schedule", "beta2"), [("adam", 0.9), ("adamnx", 0.9)])
def test_streams_of_normal_noise(schedule, beta2):
    noise = 3 * torch.randn(20_000, 32, generator=torch.Generator().manual_seed(1))
    first, middle, last = simulate(noise, schedule, beta2, (1, 20, 400), streams=400)
    sums = squared_shares(schedule, 400, beta2)
    for row in (first, middle, last):
        assert row["v"] == pytest.approx(sums[row["step"] - 1], rel=0.08)
    assert first["update"] == pytest.approx(1)  # of ±1: m and √v are the first gradient and its size
    # What moves in a step: a new square and the old v, independent of each other.
    weight = math.sqrt(last["moved"] / (1 + sums[-2]))
    if schedule == "adam":
        assert weight == pytest.approx(1 - beta2, rel=0.08)
    else:
        assert weight < 1e-3  # it stands still, away from the mean
        assert last["v"] > 1e-3
    # m of noise around 0 has the variance (1 − β1)/(1 + β1) of the gradient's.
    assert last["update_still"] == pytest.approx(0.1 / 1.9, rel=0.08)


def test_of_a_run(tiny, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["run", tiny, "--output_dir", str(out), "--max_steps", "4"]) == 0
    weights = (out / "model.safetensors").read_bytes()
    rows = gradients_of(out, 9, 50)  # of 6 batches an epoch
    assert rows.shape == (9, 50) and torch.isfinite(rows).all() and rows.std() > 0
    torch.testing.assert_close(gradients_of(out, 9, 50), rows)
    words = ["--steps", "40", "--batches", "9", "--coordinates", "50", "--streams", "8"]
    assert cli.main(["jitter", str(out), *words]) == 0
    assert (out / "model.safetensors").read_bytes() == weights
    content = json.loads((out / "jitter.json").read_text())
    real = content["gradients"]["a network's gradients"]
    assert (real["draws"], real["coordinates"]) == (9, 50)
    assert all(one["rows"][-1]["step"] == 40 for one in real["schedules"])
    assert (out / "jitter.png").stat().st_size > 10_000
    capsys.readouterr()
    assert cli.main(["jitter", str(tmp_path)]) == 1
    assert "holds no recipe.yaml" in capsys.readouterr().err
