"""The decay schedules against exact arithmetic, and the horizon."""

import math
import typing
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mpf
from torch.testing import assert_close

from adamnx_hf import beta2_for_horizon, horizon
from adamnx_hf.optim.schedules import BETA2_SCHEDULES, Beta2Schedule, adam, adamnx, adax, exponential_weight

every_schedule = pytest.mark.parametrize("name", BETA2_SCHEDULES)
rising_to_one = pytest.mark.parametrize("name", ["adamnx", "adax", "adafactor"])
betas = st.floats(0, 1, exclude_max=True)
steps = st.integers(1, 10**12)


def weight(name, step, beta2):
    return BETA2_SCHEDULES[name](float(step), beta2)


# The papers' formulas for 1 − β̂2_t, in exact or 50-digit arithmetic.


def exact_adam(t, beta):
    return (1 - beta) / (1 - beta**t)


def exact_adamnx(t, beta):
    q = beta ** (1 - beta)
    return 1 - (1 - q ** (t - 1)) / (1 - q**t)


def exact_adax(t, beta):
    b = (1 - beta) ** 2
    return b / ((1 + b) ** t - 1)


def exact_adafactor(t, beta):
    return mpf(t) ** mpf("-0.8")


EXACT = {"adam": exact_adam, "adamnx": exact_adamnx, "adax": exact_adax, "adafactor": exact_adafactor}


@every_schedule
@pytest.mark.parametrize("beta", [0.0, 1e-300, 1e-20, 1e-8, 0.01, 0.3, 0.5, 0.9, 0.95, 0.99, 0.999, 1 - 1e-9])
def test_weight_is_right_to_twelve_digits(name, beta):
    for t in (1, 2, 3, 10, 1000, 10**5, 4 * 10**5, 10**6, 10**9):
        # 50 digits after those that 1 − q, down to 1e-18, and the weight, down to 1e-308, cancel.
        with mpmath.workdps(400):
            true = EXACT[name](t, mpf(beta))
        ours = weight(name, t, beta)
        if true >= 2.3e-308:  # a normal float64
            assert abs(ours / true - 1) <= 1e-12, (t, ours, true)
        else:
            assert 0 <= ours <= 2.3e-308, (t, ours, true)


@given(st.fractions(0, 1, max_denominator=1000).filter(lambda b: b < 1), st.integers(1, 12))
def test_adam_weight_is_the_exact_rational(beta, t):
    # The float that is passed, not the fraction it came from.
    true = exact_adam(t, Fraction(float(beta)))
    assert adam(float(t), float(beta)) == pytest.approx(float(true), rel=1e-14)


@every_schedule
@given(t=steps, beta=betas)
def test_beta2_hat_is_between_0_and_1(name, t, beta):
    assert 0.0 <= weight(name, t, beta) <= 1.0
    assert 0.0 <= 1 - weight(name, t, beta) <= 1.0


@every_schedule
@given(beta=betas)
def test_first_weight_is_exactly_1(name, beta):
    assert weight(name, 1, beta) == 1.0


@every_schedule
@given(t=steps, later=steps, beta=betas)
def test_beta2_hat_never_falls(name, t, later, beta):
    first, second = sorted((t, later))
    # To rounding: neighbours a thousand million steps on differ in their last bits alone.
    assert weight(name, second, beta) <= weight(name, first, beta) * (1 + 4e-16)


@rising_to_one
@given(t=steps, beta=betas)
def test_beta2_hat_rises_to_1(name, t, beta):
    # A weight of 1/t makes the plain mean; weights that fall with s leave less than that for the newest.
    bound = t**-0.8 if name == "adafactor" else 1 / t
    assert weight(name, t, beta) <= bound * (1 + 1e-12)


def test_adams_beta2_hat_rises_to_beta2_only():
    assert 1 - weight("adam", 10**6, 0.999) == pytest.approx(0.999, abs=1e-15)


@given(t=st.integers(1, 10**6), beta=st.floats(0.5, 1 - 1e-6))
def test_adax_with_its_own_b_is_adamnx(t, beta):
    b = math.expm1(-(1 - beta) * math.log(beta))  # β2^−(1−β2) − 1
    assert exponential_weight(math.log1p(b), t) == pytest.approx(adamnx(t, beta), rel=1e-10, abs=1e-307)


def test_adax_default_b_is_beta2_099():
    assert adax(3.0, 0.99) == pytest.approx(1e-4 / ((1 + 1e-4) ** 3 - 1), rel=1e-11)


def test_why_the_weight_is_not_computed_as_1_minus_beta2_hat():
    q, t = 0.99**0.01, 400_000
    assert 1 - (1 - q ** (t - 1)) / (1 - q**t) == 0.0  # no digit left
    assert adamnx(t, 0.99) == pytest.approx(3.5e-22, rel=0.02)


SAMPLE_STEPS = [1.0, 2.0, 3.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6]
SAMPLE_BETAS = [0.0, 0.5, 0.9, 0.99, 0.999]


@every_schedule
@pytest.mark.parametrize("beta", SAMPLE_BETAS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("tensor_beta", [False, True])
def test_tensor_form_is_the_host_form(name, beta, dtype, tensor_beta):
    t = torch.tensor(SAMPLE_STEPS, dtype=dtype)
    beta = torch.tensor(beta, dtype=dtype) if tensor_beta else beta
    ours = BETA2_SCHEDULES[name](t, beta)
    host = torch.tensor([weight(name, s, float(beta)) for s in SAMPLE_STEPS], dtype=torch.float64)
    assert ours.dtype == dtype
    # exp(x) turns a rounding of x into x roundings: compare where the weight is not yet that far down.
    kept = host > (1e-30 if dtype == torch.float64 else 1e-6)
    assert kept[0]
    rtol = 1e-13 if dtype == torch.float64 else 1e-5
    assert_close(ours[kept].double(), host[kept], rtol=rtol, atol=0)
    assert (ours[~kept] <= 2e-6).all()


def test_float32_form_keeps_its_digits_from_the_first_step_on():
    # 1 − exp(L·t) in float32 is off by 6e-4 at t = 1 already.
    t = torch.arange(1.0, 1001.0)
    true = torch.tensor([adamnx(float(s), 0.99) for s in t], dtype=torch.float64)
    assert_close(adamnx(t, 0.99).double(), true, rtol=1e-6, atol=0)


def test_horizon_is_where_the_weights_have_fallen_by_e():
    assert horizon(0.99) == pytest.approx(9949.9, abs=0.05)
    assert horizon(0.999) == pytest.approx(1e6, rel=1e-3)
    # q^H = 1/e
    assert 0.99 ** (0.01 * horizon(0.99)) == pytest.approx(math.exp(-1), rel=1e-12)


def test_beta2_for_the_papers_run_is_the_papers():
    assert beta2_for_horizon(62_480) == pytest.approx(0.99, abs=1e-12)
    assert beta2_for_horizon(1000) == pytest.approx(0.92, abs=5e-3)


@given(st.floats(1, 1e15), st.floats(0.01, 20))
def test_beta2_for_horizon_is_the_inverse_of_horizon(num_training_steps, horizons_per_run):
    beta2 = beta2_for_horizon(num_training_steps, horizons_per_run)
    assert 0 < beta2 < 1
    assert horizon(beta2) == pytest.approx(num_training_steps / horizons_per_run, rel=1e-6)


@given(st.floats(1, 1e15), st.floats(1, 1e15))
def test_longer_runs_get_a_larger_beta2(one, other):
    shorter, longer = sorted((one, other))
    assert beta2_for_horizon(shorter) <= beta2_for_horizon(longer)


@given(st.floats(1, 1e300), st.floats(1e-3, 1e3))
def test_beta2_for_horizon_is_always_legal(num_training_steps, horizons_per_run):
    assert 0 < beta2_for_horizon(num_training_steps, horizons_per_run) < 1


@pytest.mark.parametrize("beta2", [0.0, 1.0, -0.5, 1.5, math.nan])
def test_no_horizon_outside_0_to_1(beta2):
    with pytest.raises(ValueError, match=f"beta2 .*got {beta2}"):
        horizon(beta2)


@pytest.mark.parametrize("value", [0, -3, 0.5, math.inf, math.nan])
def test_invalid_run_length_is_named(value):
    with pytest.raises(ValueError, match=f"num_training_steps must be at least 1, got {value}"):
        beta2_for_horizon(value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_invalid_horizons_per_run_is_named(value):
    with pytest.raises(ValueError, match=f"horizons_per_run must be positive and finite, got {value}"):
        beta2_for_horizon(1000, value)


def test_the_type_names_every_schedule():
    assert set(typing.get_args(Beta2Schedule)) == set(BETA2_SCHEDULES)


@pytest.mark.parametrize("call", [lambda: beta2_for_horizon("100"), lambda: beta2_for_horizon(100, "1")])
def test_a_horizon_must_be_a_number(call):
    with pytest.raises(TypeError, match=r"Invalid .*: '1(00)?' is not a number"):
        call()
    with pytest.raises(TypeError, match=r"Invalid beta2: '0.9' is not a number"):
        horizon("0.9")
