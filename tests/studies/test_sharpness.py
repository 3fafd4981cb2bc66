"""Sharpness against Hessians that are known, and the command on real runs."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adamnx_hf import cli
from adamnx_hf.studies.sharpness.measures import (
    MEASURES,
    ascent,
    filter_sizes,
    largest_eigenvalue,
    measure,
    random_rise,
)


@pytest.fixture
def quadratic():
    """½ (w − c)ᵀ A (w − c) in two parts, of a symmetric A that is not definite, at w ≠ c, and A."""
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    a = a + a.T + 2 * torch.eye(12, dtype=torch.float64)
    weights = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 2), (6,))
    ]
    centre = torch.randn(12, generator=generator, dtype=torch.float64)

    def loss():
        w = torch.cat([weight.reshape(-1) for weight in weights]) - centre
        yield 0.25 * w @ a @ w
        yield 0.25 * w @ a @ w

    return loss, weights, a


def test_the_largest_eigenvalue_of_a_quadratic(quadratic):
    loss, weights, a = quadratic
    before = [weight.detach().clone() for weight in weights]
    assert largest_eigenvalue(loss, weights, tolerance=1e-8) == pytest.approx(
        torch.linalg.eigvalsh(a)[-1].item(), rel=1e-6
    )
    scales = filter_sizes(weights)
    d = torch.cat([s.expand_as(w).reshape(-1) for s, w in zip(scales, weights, strict=True)])
    expected = torch.linalg.eigvalsh(d[:, None] * a * d)[-1].item()
    assert largest_eigenvalue(loss, weights, scales=scales, tolerance=1e-8) == pytest.approx(
        expected, rel=1e-6
    )
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_a_net_against_its_whole_hessian():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    names = [name for name, _ in net.named_parameters()]
    params = list(net.parameters())

    def whole(flat):
        parts = flat.split([param.numel() for param in params])
        values = {name: part.view_as(param) for name, part, param in zip(names, parts, params, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(net, values, (x,)), y)

    flat = torch.cat([param.detach().reshape(-1) for param in params])
    hessian = torch.autograd.functional.hessian(whole, flat)

    def loss():  # in batches of differing size
        for rows in (slice(0, 12), slice(12, 20)):
            yield nn.functional.cross_entropy(net(x[rows]), y[rows], reduction="sum") / 20

    assert largest_eigenvalue(loss, params, tolerance=1e-8) == pytest.approx(
        torch.linalg.eigvalsh(hessian)[-1].item(), rel=1e-6
    )


def test_one_weight_and_a_linear_loss():
    weight = torch.tensor([2.0], requires_grad=True)
    assert largest_eigenvalue(lambda: [3 * weight.sum() ** 2], [weight]) == pytest.approx(6)
    assert largest_eigenvalue(lambda: [3 * weight.sum()], [weight]) == 0


def test_random_moves_rise_by_half_the_trace(quadratic):
    loss, weights, a = quadratic
    scales = filter_sizes(weights)
    d = torch.cat([s.expand_as(w).reshape(-1) for s, w in zip(scales, weights, strict=True)])
    before = [weight.detach().clone() for weight in weights]
    rise = random_rise(loss, weights, 0.3, scales=scales, directions=8_000)
    # zᵀ B z of B = ½ 0.3² D A D: mean tr B, variance 2 ‖B‖². What the slope adds, opposite moves cancel.
    b = 0.5 * 0.3**2 * d[:, None] * a * d
    error = (2 * b.square().sum() / 4_000).sqrt().item()
    assert abs(rise - b.trace().item()) < 4 * error
    assert error < 0.1 * abs(b.trace().item())
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_ascent_finds_the_worst_of_the_ball():
    # On the positive definite ½ wᵀ A w at almost its minimum it is ½ λ r².
    a = torch.diag(torch.tensor([5.0, 2.0, 0.5], dtype=torch.float64))
    weights = [torch.full((3,), 1e-9, dtype=torch.float64, requires_grad=True)]
    ones = [torch.ones(3, dtype=torch.float64)]

    def loss():
        return [0.5 * weights[0] @ a @ weights[0]]

    assert ascent(loss, weights, 0.1, scales=ones, steps=30) == pytest.approx(0.5 * 5 * 0.01, rel=1e-6)
    one = ascent(loss, weights, 0.1, scales=ones, steps=1)  # SAM's step, along A w
    direction = a.diagonal() / a.diagonal().norm()
    assert one == pytest.approx(0.5 * 0.01 * (a.diagonal() * direction**2).sum().item(), rel=1e-6)
    # Of a slope it is the slope's length times the radius, in the units of the scales.
    slope = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    assert ascent(lambda: [slope @ weights[0]], weights, 0.1, scales=[2 * ones[0]]) == pytest.approx(1.0)


def test_relative_measures_do_not_see_the_scale_before_a_batch_norm():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-12), nn.Flatten()).double()
    head = nn.Linear(64, 3).double().requires_grad_(False)
    x, y = torch.randn(8, 2, 6, 6, dtype=torch.float64), torch.randint(0, 3, (8,))
    params = [net[0].weight]

    def loss():
        return [nn.functional.cross_entropy(head(net(x)), y)]

    first = measure(loss, params)
    with torch.no_grad():
        net[0].weight.mul_(3)
    second = measure(loss, params)
    assert second["loss"] == pytest.approx(first["loss"])
    assert second["hessian"] == pytest.approx(first["hessian"] / 9, rel=0.05)  # Lanczos' tolerance
    assert second["relative_hessian"] == pytest.approx(first["relative_hessian"], rel=0.05)
    for name in ("random", "ascent"):
        assert second[name] == pytest.approx(first[name], rel=1e-5)


def test_of_a_comparison(tiny, folder, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["compare", tiny, "--optim", "adamnx", "momentum_sgd", "--max_steps", "4"]
    words += ["--output_dir", str(out), "--seeds"]
    assert cli.main([*words, "1"]) == 0
    capsys.readouterr()
    assert cli.main(["sharpness", str(out)]) == 1
    assert "holds no config.json; compare with --keep-models" in capsys.readouterr().err
    assert not (out / "sharpness.json").exists()
    assert cli.main([*words, "2", "--keep-models"]) == 0  # trains again, and keeps them
    capsys.readouterr()
    assert cli.main(["sharpness", str(out), "--samples", "20"]) == 0
    content = json.loads((out / "sharpness.json").read_text())
    assert [one["label"] for one in content["contenders"]] == ["adamnx", "momentum_sgd"]
    assert [[row["seed"] for row in one["runs"]] for one in content["contenders"]] == [[42, 43]] * 2
    values = [[row[name] for row in one["runs"]] for one in content["contenders"] for name in MEASURES]
    assert np.isfinite(values).all()
    for item in content["comparisons"]:
        rows = [[row[item["metric"]] for row in one["runs"]] for one in content["contenders"]]
        assert item["differences"] == pytest.approx(np.subtract(*rows))
    assert (out / "sharpness.png").stat().st_size > 10_000
    printed = capsys.readouterr().out
    assert "momentum_sgd | relative hessian |" in printed
    # A run alone gives the same; measured alike it is not measured again.
    run = out / "adamnx" / "as-given" / "seed0"
    written = (run / "sharpness.json").stat().st_mtime_ns
    assert cli.main(["sharpness", str(run), "--samples", "20"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert {name: alone[name] for name in MEASURES} == {
        name: content["contenders"][0]["runs"][0][name] for name in MEASURES
    }
    assert (run / "sharpness.json").stat().st_mtime_ns == written
    # Nor on the same data by its name, but on other data it is.
    assert cli.main(["sharpness", str(run), "--samples", "20", "--dataset-name", str(folder)]) == 0
    assert (run / "sharpness.json").stat().st_mtime_ns == written
    other = shutil.copytree(folder, tmp_path / "other")
    shutil.copy(*sorted((other / "data").iterdir()))  # the test images are there to train on, too
    capsys.readouterr()
    assert cli.main(["sharpness", str(run), "--samples", "20", "--dataset-name", str(other)]) == 0
    assert json.loads(capsys.readouterr().out)["loss"] != alone["loss"]
    assert json.loads((run / "sharpness.json").read_text())["data"] == str(other)
    # Of a run that diverged nothing is written.
    weights = load_file(run / "model.safetensors")
    broken = {
        name: value * math.nan if value.is_floating_point() else value for name, value in weights.items()
    }
    save_file(broken, run / "model.safetensors", {"format": "pt"})
    assert cli.main(["sharpness", str(out)]) == 1
    assert f"{run}: the Hessian is not finite" in capsys.readouterr().err
    # Run again without a model, a folder does not hold the one of other settings.
    assert cli.main([*words, "1", "--learning_rate", "0.02", "--overwrite-output-dir"]) == 0
    capsys.readouterr()
    assert cli.main(["sharpness", str(out)]) == 1
    assert "holds no config.json; compare with --keep-models" in capsys.readouterr().err


def test_bad_input_is_one_line(tmp_path, capsys):
    for words, told in (
        ([str(tmp_path)], "holds no recipe.yaml; give the folder of a run, or of a comparison"),
        ([str(tmp_path), "--random-radius", "0"], "--random-radius: 0.0 is not a number above 0"),
        ([str(tmp_path), "--optim", "adamnx"], "--optim: chooses among a comparison's optimizers"),
    ):
        assert cli.main(["sharpness", *words]) == 1
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    (tmp_path / "adapter_config.json").touch()
    assert cli.main(["sharpness", str(tmp_path)]) == 1
    assert "holds an adapter; only whole models can be measured" in capsys.readouterr().err
