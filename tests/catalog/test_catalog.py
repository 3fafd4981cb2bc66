"""The paper's other optimizers: against their publications, and by name."""

import copy
import sys

import pytest
import torch
from transformers import Trainer, TrainingArguments

from adamnx_hf import AdamNX, horizon
from adamnx_hf.catalog import OPTIMIZERS, AdaX, SophiaG, find_decay
from adamnx_hf.optim.schedules import BETA2_SCHEDULES
from trainer_patches import registered_optimizers


def trajectory(make, steps=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    params = [
        torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
        for shape in ((5,), (3, 4))
    ]
    optimizer = make(params)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        yield optimizer, params
        optimizer.step()


def follows_adax(make, steps, b, *, corrected, atol, lr=0.01, beta1=0.9, eps=1e-8, decay=0.1):
    """That an optimizer goes where arXiv:2004.09740's Algorithm 1 does, with decoupled decay.

    `corrected`: m is divided by 1 − β1^t, which is not AdaX's.
    """
    slow, m, u = None, None, None
    for t, (_, params) in enumerate(trajectory(make, steps), 1):
        if slow is None:
            slow = [p.detach().clone() for p in params]
            m, u = [torch.zeros_like(p) for p in slow], [torch.zeros_like(p) for p in slow]
        for p, own in zip(params, slow, strict=True):
            assert torch.allclose(p.detach(), own, rtol=0, atol=atol)
        for i, p in enumerate(params):
            m[i] = beta1 * m[i] + (1 - beta1) * p.grad
            u[i] = (1 + b) * u[i] + b * p.grad**2
            v = u[i] / ((1 + b) ** t - 1)
            first = m[i] / (1 - beta1**t) if corrected else m[i]
            slow[i] = slow[i] * (1 - lr * decay) - lr * first / (v.sqrt() + eps)
    assert t == steps


def test_adax_is_as_published():
    """With b = 1e-4."""
    follows_adax(
        lambda params: AdaX(params, 0.01, (0.9, 0.99), 1e-8, 0.1), 50, 1e-4, corrected=False, atol=1e-10
    )


def test_with_adamnxs_first_moment_and_b_adax_is_adamnx():
    """AdaX's own recursion for v, with b = β2^−(1−β2) − 1, and an m that is corrected."""
    beta2, steps = 0.9, 400
    b = beta2 ** -(1 - beta2) - 1
    follows_adax(
        lambda params: AdamNX(params, 0.01, (0.9, beta2), 1e-8, 0.1), steps, b, corrected=True, atol=1e-11
    )
    assert steps > 4 * horizon(beta2)  # into the phase in which v stands still


def test_sophiag_is_as_published():
    """arXiv:2305.14342, Algorithm 3: h enters as B times the squared gradient of the sampled loss."""
    lr, beta1, beta2, rho, decay, batch = 0.01, 0.965, 0.99, 0.04, 0.1, 8
    slow, m, h = None, None, None
    clipped = set()
    for t, (optimizer, params) in enumerate(
        trajectory(lambda params: SophiaG(params, lr, (beta1, beta2), rho, decay), 40), 1
    ):
        if slow is None:
            slow = [p.detach().clone() for p in params]
            m, h = [torch.zeros_like(p) for p in slow], [torch.zeros_like(p) for p in slow]
        for p, own in zip(params, slow, strict=True):
            assert torch.allclose(p.detach(), own, rtol=0, atol=1e-12)
        if t % 10 == 0:
            grads = [p.grad for p in params]
            for i, p in enumerate(params):
                p.grad = p.grad * 3  # the sampled loss' gradients
                h[i] = beta2 * h[i] + (1 - beta2) * batch * p.grad**2
            optimizer.update_curvature(batch)
            for p, grad in zip(params, grads, strict=True):
                p.grad = grad
        for i, p in enumerate(params):
            m[i] = beta1 * m[i] + (1 - beta1) * p.grad
            ratio = (m[i].abs() / (rho * h[i]).clamp(min=1e-15)).clamp(max=1)
            clipped |= set((ratio == 1).flatten().tolist())
            slow[i] = slow[i] * (1 - lr * decay) - lr * m[i].sign() * ratio
    assert clipped == {True, False}  # both branches were taken


@pytest.mark.parametrize("kind", [AdaX, SophiaG])
def test_checkpoints_and_parameters_that_join_later(kind):
    torch.manual_seed(0)
    weights = [torch.randn(4), torch.randn(3)]

    def make():
        params = [torch.nn.Parameter(w.clone()) for w in weights]
        return params, kind(params, lr=0.1)

    def step(params, optimizer, i):
        params[0].grad = torch.full((4,), float(i))
        params[1].grad = torch.full((3,), -1.0) if i > 2 else None  # another step count than the first
        optimizer.step()

    params, optimizer = make()
    for i in range(1, 8):
        step(params, optimizer, i)
        if i == 4:
            state, values = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in params]
    assert optimizer.state[params[0]]["step"] == 7 and optimizer.state[params[1]]["step"] == 5

    again, other = make()
    for param, value in zip(again, values, strict=True):
        param.data.copy_(value)
    other.load_state_dict(state)
    for i in range(5, 8):
        step(again, other, i)
    assert all(torch.equal(a, b) for a, b in zip(params, again, strict=True))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdaX, {"lr": -1.0}, "Invalid lr: -1.0"),
        (AdaX, {"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        (SophiaG, {"rho": -0.1}, "Invalid rho: -0.1"),
        (SophiaG, {"curvature_every": 0}, "Invalid curvature_every: 0"),
    ],
)
def test_arguments_out_of_range(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind([torch.nn.Parameter(torch.zeros(2))], **options)


def test_closure_and_sparse_gradients():
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = SophiaG([param])

    def closure():
        optimizer.zero_grad()
        loss = param.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 3.0
    embedding = torch.nn.Embedding(3, 2, sparse=True)
    optimizer = AdaX(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="AdaX does not support sparse gradients"):
        optimizer.step()


CLASSES = {
    "adamnx_bf16": "AdamNX",
    "adamnx_8bit": "AdamNX",
    "adamnx_layerwise": "LayerwiseAdamNX",
    "adamnx": "AdamNX",
    "adam": "Adam",
    "adamw": "AdamW",
    "adax": "AdaX",
    "momentum_sgd": "SGD",
    "radam": "RAdam",
    "lion": "Lion",
    "sophiag": "SophiaG",
    "graft": "Graft",
}
TRANSFORMERS_OWN = {"adamw_torch_fused": "AdamW", "adafactor": "Adafactor"}
BETAS = {"adam": (0.9, 0.999), "adamw": (0.9, 0.999), "radam": (0.9, 0.999), "sophiag": (0.965, 0.99)}


def test_who_knows_which_name():
    ours = {name for name, optimizer in OPTIMIZERS.items() if optimizer.target}
    assert ours == set(CLASSES) and ours <= set(registered_optimizers())
    assert set(OPTIMIZERS) - ours == set(TRANSFORMERS_OWN) == set(OPTIMIZERS) - set(registered_optimizers())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_record_tells_the_class_and_its_decay(name, tmp_path):
    record = OPTIMIZERS[name]
    args = TrainingArguments(tmp_path, optim=name, use_cpu=True, report_to="none")
    optimizer = Trainer(torch.nn.Linear(2, 2), args).create_optimizer()
    assert type(optimizer).__name__ == record.kind == (CLASSES | TRANSFORMERS_OWN)[name]
    assert find_decay(record.kind) == record.decay
    if record.decay:
        beta2 = BETA2_SCHEDULES[record.decay].default_beta2
        assert optimizer.defaults.get("betas", (0.0, beta2))[1] == beta2
        assert optimizer.defaults.get("beta2_schedule", record.decay) == record.decay


def test_the_decay_of_classes_without_a_name():
    assert find_decay("NAdam") == find_decay("AdamW") and find_decay("Muon") is None
    assert {schedule.default_beta2 for schedule in BETA2_SCHEDULES.values()} == {0.0, 0.99, 0.999}


@pytest.mark.parametrize("name", CLASSES)
def test_by_name_with_their_own_defaults(name, tmp_path):
    args = TrainingArguments(
        tmp_path, optim=name, learning_rate=0.02, weight_decay=0.3, use_cpu=True, report_to="none"
    )
    optimizer = Trainer(torch.nn.Linear(2, 2), args).create_optimizer()
    assert type(optimizer).__name__ == CLASSES[name]
    decaying, other = optimizer.param_groups
    assert (decaying["lr"], decaying["weight_decay"], other["weight_decay"]) == (0.02, 0.3, 0.0)
    if name not in ("momentum_sgd", "graft"):
        assert tuple(decaying["betas"]) == BETAS.get(name, (0.9, 0.99))
    elif name == "momentum_sgd":
        assert decaying["momentum"] == 0.9


def test_lion_without_pytorch_optimizer(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    monkeypatch.delitem(sys.modules, "adamnx_hf.catalog.lion", raising=False)
    TrainingArguments(tmp_path, optim="adamw")
    with pytest.raises(ImportError) as error:
        TrainingArguments(tmp_path, optim="lion")
    assert 'Lion is pytorch-optimizer\'s: pip install "adamnx-hf[recipes]"' in str(error.value)
