"""The programs that train on a card, at toy size on the CPU."""

import argparse
import colorsys
import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adamnx_hf import AdamNX
from adamnx_hf.catalog import AdaX
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.optim.schedules import beta2_for_horizon, horizon

CARD = Path(__file__).parents[1] / ".ci" / "card"
PLANS = CARD / "plans"
CPU = torch.device("cpu")

pytest.importorskip("torchvision")
pq = pytest.importorskip("pyarrow.parquet")
pytest.importorskip("tokenizers")
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(CARD))
    import contenders
    import lanes
    import language
    import loop
    import plan as plans
    import results
    import verdict
    import vision


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A folder of the data set's schema."""
    import pyarrow as pa
    from PIL import Image

    root, random = tmp_path_factory.mktemp("cifar") / "cifar100", np.random.default_rng(0)
    root.mkdir()
    for split, count in (("train", 40), ("test", 12)):
        cells = []
        for pixels in random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            cells.append({"bytes": file.getvalue(), "path": None})
        table = pa.table({"img": cells, "fine_label": random.integers(0, 100, count)})
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet")
    return root.parent


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """A folder of packages, each with some files of the standard library."""
    root = tmp_path_factory.mktemp("packages")
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    for i, name in enumerate(["one", "two", "three", "four", "six", "numpy", "pydantic", "matplotlib"]):
        (root / name).mkdir()
        for file in files[4 * i : 4 * i + 4]:
            (root / name / file.name).write_bytes(file.read_bytes())
    return root


def plan_of(program, **changes):
    task = {"vision": vision.Vision, "language": language.Language}[program]
    plan = plans.read_plan(PLANS / f"{program}_toy.yaml", task)
    return task, dataclasses.replace(plan, **changes)


@pytest.fixture(scope="module")
def lanes_of(cifar, packages):
    made = {}
    for program, folder in (("vision", cifar), ("language", packages)):
        task, plan = plan_of(program)
        made[program] = lanes.Lane(task(plan, folder, CPU), plan, CPU)
    return made


def trained(*pairs):
    """What was told of each (lane, run), trained together."""
    told = {id(run): [] for _, run in pairs}
    lanes.train_together(
        [lanes.Training(lane, run) for lane, run in pairs],
        lambda training: told[id(training.run)].append(training.result),
    )
    return list(told.values())


def run(lane, name, seed=0, rate=0.01):
    return trained((lane, lanes.Run("judge", seed, rate, name, "eager")))[0]


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("program", ["vision", "language"])
def test_runs_are_the_same_after_a_reset(program, lanes_of):
    lane = lanes_of[program]
    addresses = [tensor.data_ptr() for tensor in lane.net.state_dict().values()]
    first = run(lane, "adamnx")
    weights = {name: tensor.clone() for name, tensor in lane.net.state_dict().items()}
    others = [run(lane, "graft"), run(lane, "adamnx", seed=1), run(lane, "adamnx", rate=0.02)]
    assert run(lane, "adamnx") == first
    assert all(torch.equal(tensor, weights[name]) for name, tensor in lane.net.state_dict().items())
    assert all(other[-1]["train_loss"] != first[-1]["train_loss"] for other in others)
    assert [tensor.data_ptr() for tensor in lane.net.state_dict().values()] == addresses
    assert [line["step"] for line in first] == [lane.plan.evaluate_every, lane.plan.steps]


def test_a_run_is_that_of_a_loop_by_hand(lanes_of):
    lane, plan = lanes_of["vision"], lanes_of["vision"].plan
    told = run(lane, "adamw", seed=3, rate=0.01)
    torch.manual_seed(3)
    net = lane.task.model().to(memory_format=torch.channels_last)
    decayed = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    others = [p for p in net.parameters() if not any(p is d for d in decayed)]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer, batches, losses = torch.optim.AdamW(groups), lane.task.batches(3), []
    for step in range(plan.steps):
        images, labels = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * max(0.01, 1 - 0.99 * step / 3.6)
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert_close(told[0]["train_loss"], float(np.mean(losses[:4])), rtol=1e-3, atol=0)
    assert_close(told[1]["train_loss"], float(np.mean(losses[4:])), rtol=1e-3, atol=0)


@pytest.mark.parametrize("program", ["vision", "language"])
def test_runs_side_by_side_are_as_alone(program, lanes_of):
    lane = lanes_of[program]
    others = [lane, *(lanes.Lane(lane.task, lane.plan, CPU) for _ in range(3))]
    runs = [
        lanes.Run("judge", 0, 0.01, "adamnx", "eager"),
        lanes.Run("sweep", 0, 0.01, "graft", "eager"),
        lanes.Run("judge", 1, 0.01, "adamw", "eager"),
        lanes.Run("judge", 1, math.inf, "adamw", "eager"),
    ]
    together = trained(*zip(others, runs, strict=True))
    assert repr(together) == repr([trained((lane, run))[0] for run in runs])  # nan is not equal to nan
    assert [told[-1]["diverged"] for told in together] == [False, False, False, True]
    assert "holdout_loss" in together[1][-1] and "test_loss" not in together[1][-1]


def test_an_evaluation_is_read_when_the_next_one_is_launched(lanes_of):
    lane, order = lanes_of["language"], []
    training = lanes.Training(lane, lanes.Run("judge", 0, 0.01, "adamnx", "eager"))
    for step in range(lane.plan.steps):
        training.step()
        while training.has_news:
            order.append((step + 1, training.read()["step"]))
    assert order == [(6, 3), (6, 6)] and training.ended


def test_a_run_that_diverges_ends(lanes_of):
    told = run(lanes_of["language"], "adamnx", rate=math.inf)
    assert [(line["step"], line["diverged"]) for line in told] == [(3, True)]


def test_a_capture_comes_after_a_warm_up_and_makes_its_own_gradients(lanes_of, monkeypatch):
    @contextlib.contextmanager
    def capture(graph, stream):
        assert stream is lane.stream
        grads = [param.grad for param in lane.net.parameters()]
        assert grads == [None] * len(grads)
        done.append("capture")
        yield
        done.append("captured")

    lane, done = lanes_of["language"], []
    cuda = {
        "synchronize": lambda: done.append("synchronize"),
        "graph": capture,
        "CUDAGraph": lambda: argparse.Namespace(replay=lambda: done.append("replay")),
    }
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    optimizer, step = lane.get_ready("adamnx", "graph")
    state = optimizer.state[next(lane.net.parameters())]
    assert done == ["synchronize", "synchronize", "capture", "captured"]
    assert state["step"] == lanes.WARM_UP + 1
    assert (optimizer, step) == lane.get_ready("adamnx", "graph")  # once for all runs
    addresses = {key: value.data_ptr() for key, value in state.items()}
    lane.reset(optimizer, 0)
    assert {key: value.data_ptr() for key, value in state.items()} == addresses
    assert not any(value.any() for value in state.values())
    step()
    assert done[-1] == "replay"


def test_the_schedule_is_the_papers():
    steps = [0, 1875, 3748, 3749, 6247]
    found = [contenders.rate_factor(step, 6248) for step in steps]
    assert_close(
        found, [1.0, 1 - 0.99 * 1875 / 3748.8, 1 - 0.99 * 3748 / 3748.8, 0.01, 0.01], rtol=1e-12, atol=0
    )
    assert_close(contenders.rate_factor(300, 1000), 0.505)  # half of the way down
    assert_close(contenders.rate_factor(4, 100, warmup=0.1, decay_until=1.0), 0.5 * (1 - 0.99 * 0.04))
    assert_close(contenders.rate_factor(50, 100, warmup=0.1, decay_until=1.0), 0.505)


# ---------------------------------------------------------------- contenders


def twice(make, seed=0):
    """Two tensors after two steps, and the same tensors before."""
    torch.manual_seed(seed)
    params = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5))]
    grads = [[torch.randn_like(param) for param in params] for _ in range(2)]
    optimizer, before = make(params), []
    for each in grads:
        before = [param.detach().clone() for param in params]
        for param, grad in zip(params, each, strict=True):
            param.grad = grad.clone()
        optimizer.step()
    return before, [param.detach() for param in params], grads


def test_the_graft_has_adams_direction_and_adamnxs_length():
    lr = torch.tensor(0.1)
    before, after, grads = twice(lambda p: contenders.Graft(p, lr, beta2_of_length=0.9, weight_decay=0.0))
    flat = [torch.cat([grad.flatten() for grad in each]).double() for each in grads]
    m = (0.1 * 0.9 * flat[0] + 0.1 * flat[1]) / (1 - 0.9**2)
    v = (0.001 * 0.999 * flat[0] ** 2 + 0.001 * flat[1] ** 2) / (1 - 0.999**2)
    q = 0.9**0.1
    share = (1 - q) / (1 - q**2)
    length = 0.1 * (m / (share * flat[0] ** 2 + (1 - share) * flat[1] ** 2).sqrt()).norm()
    step = torch.cat([(b - a).flatten() for b, a in zip(before, after, strict=True)]).double()
    adam = m / v.sqrt()
    assert_close(step.norm(), length, rtol=1e-5, atol=0)
    assert_close(step / step.norm(), adam / adam.norm(), rtol=1e-4, atol=1e-6)


def test_the_graft_decays():
    lr = torch.tensor(0.1)
    (b, _), (plain, _), _ = twice(
        lambda p: contenders.Graft(p[:1], lr, beta2_of_length=0.9, weight_decay=0.0)
    )
    (d, _), (decayed, _), _ = twice(
        lambda p: contenders.Graft(p[:1], lr, beta2_of_length=0.9, weight_decay=0.5)
    )
    assert_close(decayed - d, plain - b - 0.05 * d)


def test_adax_is_the_baselines():
    net = nn.Linear(4, 3)
    _, plan = plan_of("vision", weight_decay=0.0)
    lr, weights = torch.zeros(()), [param.detach().clone() for param in net.parameters()]
    theirs = [nn.Parameter(weight.clone()) for weight in weights]
    ours, baseline = contenders.make_optimizer("adax", net, lr, plan), AdaX(theirs, lr=0.1, weight_decay=0.0)
    assert contenders.CONTENDERS["adax"].uncorrected_m
    for step in range(4):
        for param, other in zip(net.parameters(), theirs, strict=True):
            other.grad = torch.randn_like(param)
            param.grad = other.grad.clone()
        lr.fill_(0.1 * (1 - contenders.BETA1 ** (step + 1)))  # as Training.step has it
        ours.step()
        baseline.step()
        assert_close(list(net.parameters()), theirs)


def test_the_contenders_second_moments():
    beta2 = {name: contender.beta2(6248) for name, contender in contenders.CONTENDERS.items()}
    assert (beta2["adamw"], beta2["adamw_95"], beta2["adamnx"]) == (0.999, 0.95, 0.99)
    assert_close(1 / (1 - beta2["adamw_scaled"]), 0.016 * 6248)
    assert_close(horizon(beta2["adamnx_auto"]), 6248 / 6.28, rtol=1e-3, atol=0)
    assert beta2["graft"] == beta2["adamnx_auto"] == beta2_for_horizon(6248)
    for name, contender in contenders.CONTENDERS.items():
        optimizer = contenders.make_optimizer(name, nn.Linear(2, 2), torch.zeros(()), plan_of("vision")[1])
        assert isinstance(optimizer, contenders.Graft if contender.graft else AdamNX)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]


# ---------------------------------------------------------------- data


def test_images_without_augmentation_are_as_they_were():
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    plain = (images / 255 - 0.5) / 0.5
    assert_close(vision.augmentation(jitter=0.0, flip=0.0)(images), plain)
    assert_close(vision.augmentation(jitter=1e-30, flip=0.0)(images), plain)  # reckoned, and not chosen
    assert_close(vision.augmentation(jitter=0.0, flip=1.0)(images), plain.flip(-1))


def test_the_jitter_of_a_pixel():
    from adamnx_hf.tasks.transforms import HSVJitter

    def shifted(pixel, params):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        shift, *factors = (float(params[key]) for key in ("hue", "saturation", "value"))
        return colorsys.hsv_to_rgb(
            (hue + shift) % 1, min(1, saturation * factors[0]), min(1, value * factors[1])
        )

    jitter = HSVJitter(1.0)
    for pixel in ([0.2, 0.4, 0.9], [0.9, 0.1, 0.1], [0.5, 0.5, 0.5], [0.0, 0.0, 0.0]):
        image = torch.tensor(pixel).view(3, 1, 1)
        params = jitter.make_params([image])
        assert abs(float(params["hue"])) <= 0.1 and 2 / 3 <= float(params["saturation"]) <= 1.5
        found = jitter.transform(image, params).flatten().tolist()
        assert found == pytest.approx(shifted(pixel, params), abs=1e-6)


def test_rows_of_images_do_not_overlap(cifar):
    task, plan = plan_of("vision")
    made = task(plan, cifar, CPU)
    rows = {name: [image.numpy().tobytes() for image in images] for name, (images, _) in made.rows.items()}
    assert [len(rows[name]) for name in ("train", "holdout", "test")] == [32, 8, 12]
    assert len({row for found in rows.values() for row in found}) == 52
    one, other = task(plan, cifar, CPU), task(dataclasses.replace(plan, holdout=0), cifar, CPU)
    assert torch.equal(one.rows["holdout"][0], made.rows["holdout"][0])
    assert len(other.rows["train"][0]) == 40 and other.evaluate(one.model(), "holdout") is None


def test_batches_of_images_are_a_pass(lanes_of):
    task = lanes_of["vision"].task
    batches, passes = task.batches(0), []
    for _ in range(2):
        passes.append([[tensor.clone() for tensor in next(batches)] for _ in range(4)])
    seen = [torch.cat([labels for _, labels in batches]) for batches in passes]
    expected = task.rows["train"][1]
    assert all(torch.equal(labels.sort().values, expected.sort().values) for labels in seen)
    assert not torch.equal(*seen)
    assert not torch.equal(passes[0][0][0], next(task.batches(1))[0])
    assert all(map(torch.equal, passes[0][0], next(task.batches(0))))


def test_packages_are_in_one_part_and_windows_do_not_overlap(packages, lanes_of):
    most = dict.fromkeys(("train", "holdout", "test"), 10**9)
    texts, names = language.texts_in([packages], most)
    assert names == {
        "train": ["four", "one", "six", "two"],
        "holdout": ["pydantic"],
        "test": ["matplotlib", "numpy", "three"],
    }
    assert len({text for found in texts.values() for text in found}) == sum(map(len, texts.values()))
    tokenizer = language.tokenizer_of(texts["train"], 300, 20_000)
    assert tokenizer.get_vocab_size() == 300
    assert (
        tokenizer.decode(language.tokens_of(tokenizer, texts["test"][:1]).tolist()[:-1]) == texts["test"][0]
    )

    task = lanes_of["language"].task
    task_row, (batch,) = task.tokens["train"], next(task.batches(0))
    assert batch.shape == (4, 17)
    windows = task_row.unfold(0, 17, 1)
    places = [int((windows == row).all(1).nonzero()[0]) for row in batch]
    assert len({place % 16 for place in places}) == 1 and len(set(places)) == 4


def test_the_gpt_does_not_look_ahead(lanes_of):
    task = lanes_of["language"].task
    torch.manual_seed(0)
    net, tokens = task.model(), torch.randint(300, (1, 16))
    changed = tokens.clone()
    changed[0, 9:] = (changed[0, 9:] + 1) % 300
    difference = (net(tokens) - net(changed)).abs().amax(-1)[0]
    assert difference[:9].max() < 1e-5 < difference[9:].min()
    full = language.GPT(**task.networks["full"]["shape"])
    assert sum(param.numel() for param in full.parameters()) == pytest.approx(10e6, rel=0.02)


# ---------------------------------------------------------------- plans


def test_every_plan_is_right():
    for path in PLANS.glob("*.yaml"):
        task = vision.Vision if path.name.startswith("vision") else language.Language
        plan = plans.read_plan(path, task)
        assert plan.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert {plan.program} == {task.name}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("steps:", "stepps:", r"'stepps' is no key of a plan; did you mean 'steps'\?"),
        ("batch: 8\n", "", "'batch' is missing; add it"),
        ("batch: 8", "batch: eight", "batch: 'eight' is not a whole number"),
        ("steps: 6", "steps: 0", "steps: 0 is below 1"),
        (
            "1.0e-3",
            "1e-3",
            "coarse: '1e-3' is not a number; YAML takes 1e-3 for text and 1.0e-3 for a number",
        ),
        ("1.0e-3", "-1.0", "coarse: -1.0 is not above 0"),
        ("[1.0, 2.0]", "[0.0, 2.0]", "rates: 0.0 is not above 0"),
        ("[1.0, 2.0]", "[1.0]", "coarse: a first look is of use before a sweep; name several rates"),
        ("[0, 1]", "0", r"seeds: 0 is not a list; write \[a, b\]"),
        ("[0, 1]", "[0, 0]", r"seeds: \[0, 0\] names one twice; leave one out"),
        ("[0, 1]", "[0, 1000]", "sweep_seeds: 1000 judges, too; take another seed"),
        ("[1000]", "[]", "sweep_seeds: of 2 rates one is to be chosen; name a seed to choose with"),
        ("[adamw, ", "[adamv, ", r"contenders: 'adamv' is not known; did you mean 'adamw'\?"),
        ("[graft, adamw]", "[graft, adax]", "is not a pair of this plan's contenders"),
        ("[graft, adamw]", "[graft, graft]", "is not a pair of this plan's contenders"),
        ("[graft, adamw]", "[graft, [adamw]]", r"contenders: \['adamw'\] is not known"),
        ("holdout: 8", "holdout: 0", "holdout: 0 rows leave nothing to choose a rate by; write 5000"),
        ("top1", "los", r"primary: 'los' is not known; did you mean 'loss'\?"),
        ("network: toy", "network: tiny", "network: 'tiny' is not known"),
        ("program: vision", "program: language", "is another program's plan; this one is vision.py"),
        ("batch: 8", "batch: [", "not YAML"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(old, new, told, tmp_path):
    text = (PLANS / "vision_toy.yaml").read_text()
    assert old in text
    (tmp_path / "plan.yaml").write_text(text.replace(old, new))
    with pytest.raises(RecipeError, match=told) as error:
        plans.read_plan(tmp_path / "plan.yaml", vision.Vision)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_told_in_one_line(capsys, tmp_path):
    assert loop.main(vision.Vision, "", ["--plan", str(tmp_path / "no.yaml")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("vision: error: --plan ") and told.count("\n") == 1
    flags = ["--plan", str(PLANS / "vision_toy.yaml"), "--out", str(tmp_path / "no.jsonl"), "--summary"]
    assert loop.main(vision.Vision, "", flags) == 2
    told = capsys.readouterr().err
    assert "has no line of this plan; name the file that its runs wrote" in told and told.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--json", "x.json"], "--json: goes with --summary; add that"),
        (["--device", "gpu"], "--device gpu: is neither cpu nor cuda; name one of them"),
        (["--device", "cuda:0"], "--device cuda:0: torch finds no card; name cpu"),
        (["--out", "{folder}"], "is a folder; name a file"),
        (["--out", "{folder}/file/out.jsonl"], "name another file"),
    ],
)
def test_what_cannot_be_run_is_told_in_one_line(flags, told, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "file").touch()
    flags = [flag.format(folder=tmp_path) for flag in flags]
    assert loop.main(vision.Vision, "", ["--plan", str(PLANS / "vision_toy.yaml"), *flags]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_visit_ends_as_its_runs_do_and_measures_in_a_file_of_its_own(tmp_path):
    import subprocess

    python, data, out = tmp_path / "python", tmp_path / "data", tmp_path / "out"
    python.write_text("#!/bin/bash\n[[ $* != *tuned* ]] || exit 3\n")
    python.chmod(0o755)
    for folder in (data, out):
        folder.mkdir()
    (data / "train-0.parquet").touch()
    (out / "vision_tuned.jsonl").write_text("runs")
    names = {"PYTHON": python, "OUT": out, "KEEP": tmp_path / "keep"}
    environment = {**os.environ, **{key: str(value) for key, value in names.items()}}

    def visit(*words, **more):
        command = ["bash", str(CARD / "evidence"), *map(str, words)]
        return subprocess.run(command, env={**environment, **more}, capture_output=True, text=True).returncode

    assert visit("begin", data) == 3
    assert (out / "vision_tuned.jsonl").read_text() == "runs"
    assert (out / "throughput.jsonl").read_text() == ""
    assert visit("run", data, 1, 1, "eager") == 3
    assert visit("run", data, 1, 1, "eager", PAPER="a_tuned", PLANS="other") == 3  # the one that is behind
    assert visit("run", data, 1, 1, "eager", PLANS="other") == 0
    assert visit("walk") == 2


# ---------------------------------------------------------------- the file of results


def made(program, folder, out, **flags):
    """The same within this process."""
    task, plan = plan_of(program)
    args = loop.arguments(program, "").parse_args([f"--plan={PLANS}/{program}_toy.yaml", f"--data={folder}"])
    options = {**vars(args), "device": "cpu", **flags}
    status = loop.worker(task, plan, out, argparse.Namespace(**options))
    return status, plan, [json.loads(line) for line in out.read_text().splitlines()]


def test_all_of_a_plan(cifar, tmp_path):
    out = tmp_path / "out.jsonl"
    status, plan, lines = made("vision", cifar, out)
    assert status == 0
    assert {line["plan"] for line in lines} == {plan.sha256}
    assert len({line["data"] for line in lines}) == 1
    assert lines[0]["kind"] == "start" and lines[0]["settings"]["steps"] == 6
    runs = [results.key_of(line) for line in lines if line["kind"] == "run"]
    assert runs[:2] == [("coarse", 1000, rate, "adamw") for rate in plan.coarse]
    rates = results.centre_rates(plan, lines, "max").rates
    assert rates[0] in plan.coarse and rates[1] == 2 * rates[0]
    assert runs[2:8] == [("sweep", 1000, rate, name) for rate in rates for name in plan.contenders]
    assert [run[:2] for run in runs[8:]] == [("judge", 0)] * 3 + [("judge", 1)] * 3
    assert [run[3] for run in runs[8:]] == plan.contenders * 2
    for line in lines:  # what chooses a rate does not see the test rows
        assert ("test_top1" in line) == (line["kind"] in ("run", "epoch") and line["part"] == "judge")
    assert len([line for line in lines if line["kind"] == "epoch"]) == 2 * len(runs)

    # It is not done again, nor with other data.
    before = out.read_text()
    status, _, lines = made("vision", cifar, out)
    assert (status, len(lines), lines[-1]["kind"]) == (0, len(before.splitlines()) + 1, "start")
    out.write_text(before.replace(lines[0]["data"], "0" * 64))
    with pytest.raises(RecipeError, match="has runs of this plan with other data"):
        made("vision", cifar, out)


def test_a_cut_leaves_whole_lines_and_whole_seeds(packages, tmp_path, monkeypatch, capfd):
    out, add, now = tmp_path / "out.jsonl", results.Lines.add, loop.time.time

    def slower(self, kind, **values):
        add(self, kind, **values)
        if kind == "run" and values["contender"] == "adamnx":  # the last of a seed
            monkeypatch.setattr(loop.time, "time", lambda: now() + 1000)

    monkeypatch.setattr(results.Lines, "add", slower)
    status, plan, lines = made("language", packages, out, deadline=now() + 500, lanes=2)
    runs = [(line["seed"], line["contender"]) for line in lines if line["kind"] == "run"]
    assert (status, runs) == (0, [(0, name) for name in plan.contenders])
    assert "2 runs are left for another time" in capfd.readouterr().out

    # A kill in the midst of a line: the rest goes on after it, here as it is started on a card.
    with out.open("a") as file:
        file.write('{"kind": "run", "plan": "' + plan.sha256)
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", str(CARD.parents[1]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = {
        "plan": PLANS / "language_toy.yaml",
        "data": packages,
        "out": out,
        "seconds": 500,
        "device": "cpu",
    }
    assert loop.main(language.Language, "", [f"--{key}={value}" for key, value in flags.items()]) == 0
    printed = capfd.readouterr().out
    found = results.Lines(out, plan=plan.sha256).read()
    runs = [(line["seed"], line["contender"]) for line in results.of_kind(found, "run")]
    assert runs == [(seed, name) for seed in plan.seeds for name in plan.contenders]
    assert "judge seed 1 adamnx 0.004 (eager): step 6: train_loss " in printed
    assert "| adamnx - adamw_95 | 2 |" in printed


def test_an_error_is_one_runs(packages, tmp_path, monkeypatch, capsys):
    make = contenders.make_optimizer

    def broken(name, *args):
        if name == "adamw_95":
            raise RuntimeError("no such kernel\nand more")
        return make(name, *args)

    monkeypatch.setattr(lanes, "make_optimizer", broken)
    status, plan, lines = made("language", packages, tmp_path / "out.jsonl")
    assert status == 0
    errors = results.of_kind(lines, "error")
    # It could not be made ready in the only way there is, so that it is not tried again.
    told = [(error["seed"], error["stage"], error["error"]) for error in errors]
    assert told == [(0, "ready", "RuntimeError: no such kernel")]
    assert [run["contender"] for run in results.of_kind(lines, "run")] == ["adamnx", "adamnx"]
    assert "failed: adamw_95 eager ready: RuntimeError" in verdict.summary(
        verdict.verdict(plan, lines, {"loss": "min"})
    )
    assert "no such kernel" in capsys.readouterr().err


def test_a_contender_that_cannot_be_captured_takes_the_next_way():
    modes = ["compile+graph", "graph"]
    error = {"kind": "error", "contender": "graft", "stage": "ready", "mode": "compile+graph"}
    assert results.mode_of("graft", [], modes) == "compile+graph"
    assert results.mode_of("graft", [error], modes) == "graph"
    assert results.mode_of("adamw", [error], modes) == "compile+graph"
    assert (
        results.mode_of("graft", [error, {**error, "stage": "run"}, {**error, "mode": "graph"}], modes)
        is None
    )


@pytest.mark.parametrize(
    ("end", "starts"), [("sys.exit(75)", 9), ("os.kill(os.getpid(), 9)", 3), ("sys.exit(2)", 1)]
)
def test_a_process_that_is_spoiled_is_followed_by_another(end, starts, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"""
import json, os, sys
lines = open("{tmp_path}/out").read().splitlines() if os.path.exists("{tmp_path}/out") else []
with open("{tmp_path}/count", "a") as file:
    file.write("x")
begun = [json.loads(line)["seed"] for line in lines if json.loads(line)["kind"] == "begin"]
if len(begun) < 2:  # the third time it dies before a run
    one = dict(kind="begin", plan="p", data="d", part="judge", seed=len(begun), rate=1.0)
    one |= dict(contender="graft", mode="graph")
    with open("{tmp_path}/out", "a") as file:
        file.write(json.dumps(one) + "\\n")
{end}
""")
    lines = results.Lines(tmp_path / "out", plan="p")
    status = loop.supervise([sys.executable, str(program)], lines, None)
    assert len((tmp_path / "count").read_text()) == starts
    assert status in (75, -9, 2)
    if status == -9:
        errors = [
            (line["seed"], line["stage"], line["error"]) for line in results.of_kind(lines.read(), "error")
        ]
        assert errors == [(seed, "ready", "the process died, status -9") for seed in (0, 1)]


def test_what_an_earlier_visit_has_begun_may_be_begun_again(tmp_path):
    lines = results.Lines(tmp_path / "out", plan="p", data="d")
    one = {"part": "judge", "rate": 1.0, "contender": "graft", "mode": "graph"}
    lines.add("begin", seed=0, **one)  # and the visit was cut
    before = len(lines.read())
    assert not loop.note_death(lines, -9, before)  # it died while it read the data
    lines.add("begin", seed=1, **one)
    assert loop.note_death(lines, -9, before)
    found = results.of_kind(lines.read(), "error")
    assert [(line["seed"], line["stage"]) for line in found] == [(1, "ready")]
    other = {**one, "contender": "adamw"}
    lines.add("begin", seed=2, **other)
    lines.add("epoch", seed=2, step=1, **other)  # it was ready, so that others like it may be begun
    assert loop.note_death(lines, -9, before)
    assert results.of_kind(lines.read(), "error", seed=2)[0]["stage"] == "run"


def test_throughput_is_measured(packages, tmp_path):
    flags = {"throughput": True, "throughput_seconds": 0.05, "lanes": 5}
    status, _, lines = made("language", packages, tmp_path / "out.jsonl", **flags)
    found = results.of_kind(lines, "throughput")
    assert (status, [(line["mode"], line["lanes"]) for line in found]) == (
        0,
        [("eager", n) for n in (1, 4, 5)],
    )
    assert all(line["steps_per_s"] > 0 for line in found)


def swept(plan, seeds, better_at):
    """A sweep's lines, in which the contender is best at a rate."""
    return [
        {"kind": "run", "part": "sweep", "seed": seed, "rate": rate, "contender": name, "diverged": False}
        | {"holdout_top1": -abs(math.log(rate / best)), "seconds": 8.0, "together": 4}
        for name, best in better_at.items()
        for rate in plan.rates
        for seed in seeds
    ]


def test_a_sweep_goes_on_beyond_an_edge():
    _, plan = plan_of("vision", rates=[1.0, 1.4, 2.0], coarse=[], sweep_seeds=[7, 8], widen=2, seeds=[0])
    lines = swept(plan, [7, 8], {"adamw": 1.4, "adamnx_auto": 9.0, "graft": 0.9})
    parts = []
    for part in results.todo(plan, lines.copy, "max"):
        parts.append([results.key_of(run) for run in part])
        lines += [
            {**run, "kind": "run", "diverged": False, "holdout_top1": -abs(math.log(run["rate"] / 3.0))}
            for run in part
            if run["part"] == "sweep" and run["rate"] not in plan.rates
        ]
    grid = [(rate, name) for rate in plan.rates for name in plan.contenders]
    assert parts[:2] == [[("sweep", seed, *pair) for pair in grid] for seed in (7, 8)]
    assert parts[2] == [
        *(("sweep", seed, 2.9, "adamnx_auto") for seed in (7, 8)),
        *(("sweep", seed, 0.71, "graft") for seed in (7, 8)),
    ]
    assert parts[3] == [("sweep", seed, 4.2, "adamnx_auto") for seed in (7, 8)]  # that is 2 beyond the plan's
    assert parts[4] == [
        ("judge", 0, 1.4, "adamw"),
        ("judge", 0, 2.9, "adamnx_auto"),
        ("judge", 0, 1.0, "graft"),
    ]


def test_a_first_look_centres_the_sweep():
    _, plan = plan_of("vision", coarse=[1e-3, 2e-3, 4e-3], rates=[0.5, 1.0, 1.41], sweep_seeds=[7, 8])
    looks = results.todo(plan, list, "max")
    first = next(looks)
    assert [results.key_of(run) for run in first] == [("coarse", 7, rate, "adamw") for rate in plan.coarse]
    assert next(looks, None) is None  # without its results there is nothing to go on with
    lines = [
        {**run, "kind": "run", "diverged": run["rate"] == 4e-3, "holdout_top1": 1e4 * run["rate"]}
        for run in first
    ]
    assert results.centre_rates(plan, [], "max") == plan
    assert results.centre_rates(plan, lines, "max").rates == [1e-3, 2e-3, 2.8e-3]
    assert results.centre_rates(plan, lines, "min").rates == [5e-4, 1e-3, 1.4e-3]
    finer = dataclasses.replace(plan, rates=[0.99, 1.0, 1.004])
    assert results.centre_rates(finer, lines, "max").rates == [2e-3]  # none of them twice
    looks = results.todo(plan, lines.copy, "max")
    assert [run["rate"] for run in [next(looks), next(looks)][1][::3]] == [1e-3, 2e-3, 2.8e-3]


def test_a_rate_is_chosen_by_the_seeds_that_ran_at_all_of_them():
    _, plan = plan_of("vision", rates=[1.0, 2.0], coarse=[], sweep_seeds=[7, 8])
    lines = swept(plan, [7], {"adamw": 1.0})
    late = {"kind": "run", "part": "sweep", "seed": 8, "rate": 2.0, "contender": "adamw", "diverged": False}
    assert results.chosen_rate("adamw", plan, [*lines, {**late, "holdout_top1": 99.0}], "max") == 1.0
    assert results.chosen_rate("graft", plan, lines, "max") is None


def test_another_seed_is_swept_where_there_is_time_to_judge_after_it():
    _, plan = plan_of("vision", rates=[1.0, 2.0], coarse=[], sweep_seeds=[7, 8], seeds=[0, 1])
    lines = swept(plan, [7], dict.fromkeys(plan.contenders, 1.0))  # 2 s a run
    sweep, judge = (lanes.Run(part, 8, 1.0, "adamw", "eager") for part in ("sweep", "judge"))
    first, wider = (lanes.Run("sweep", 7, rate, "adamw", "eager") for rate in (1.0, 4.0))
    assert loop.seconds_for([sweep] * 3, [sweep] * 6, plan, lines) == 2 * (6 + 2 * 3)
    assert loop.seconds_for([judge] * 3, [judge] * 6, plan, lines) == 2 * 3
    assert loop.seconds_for([wider] * 2, [wider] * 2, plan, lines) == 2 * (2 + 2 * 3)
    # A contender that cannot be run leaves its part of the first seed open.
    for known in (lines, lines[:-2]):
        assert loop.seconds_for([first] * 3, [first] * 6, plan, known) == 2 * 3
        assert loop.seconds_for([sweep] * 3, [sweep] * 6, plan, known) == 2 * (6 + 2 * 3)


def test_a_run_goes_to_a_lane_that_has_its_contender_ready():
    wave = [lanes.Run("judge", 0, 1.0, name, "graph") for name in ("graft", "adamw", "graft")]
    free = [
        argparse.Namespace(ready=ready) for ready in ({("adamw", "graph"): 1}, {("graft", "graph"): 1}, {})
    ]
    assert [free.index(lane) for lane, _ in loop.assign_lanes(wave, free)] == [1, 0, 2]


def test_the_head_room_of_a_grid_is_what_lies_between_its_rates():
    def accuracy(rate):
        return 40 - 3 * math.log(rate / 2.5e-3) ** 2

    rates = [1e-3, 2e-3, 3e-3, 5e-3]
    means = {rate: accuracy(rate) for rate in rates}
    assert verdict.head_room(means, "max") == pytest.approx(40 - accuracy(3e-3), rel=1e-9)
    losses = {rate: -value for rate, value in means.items()}
    assert verdict.head_room(losses, "min") == pytest.approx(40 - accuracy(3e-3), rel=1e-9)
    assert verdict.head_room({**means, 5e-3: 41.0}, "max") is None  # an edge
    assert verdict.head_room({**means, 5e-3: -math.inf}, "max") is None
    assert verdict.head_room({}, "max") is None


def test_the_table_of_known_values():
    _, plan = plan_of("vision", seeds=[0, 1, 2, 3], rates=[0.1, 0.2, 0.3], coarse=[])
    lines = []
    for name, gain in (("adamw", 0.0), ("adamnx_auto", 2.0), ("graft", 0.0)):
        for rate, top1 in ((0.1, 30.0), (0.2, 50.0), (0.3, 99.0)):
            one = {"kind": "run", "contender": name, "rate": rate, "diverged": rate == 0.3}
            lines.append({**one, "part": "sweep", "seed": 1000, "holdout_top1": top1})
            for seed, noise in enumerate([0.1, -0.1, 0.2, -0.2]):
                own = 0.01 * seed if name == "graft" else noise * (name == "adamnx_auto")
                lines.append({**one, "part": "judge", "seed": seed, "test_top1": 40 + seed + gain + own})
    assert results.chosen_rate("adamw", plan, lines, "max") == 0.2
    content = verdict.verdict(plan, lines, vision.Vision.metrics)
    assert json.loads(json.dumps(content)) == content
    told = verdict.summary(content)
    assert "| adamnx_auto | 30.0000 (n 1) | 50.0000 (n 1) | diverged (n 1) | - |" in told
    # t = 2 / (0.18257 / 2) = 21.9 with 3 degrees of freedom: p = 0.00021, twice that by Holm.
    assert "| adamnx_auto - adamw | 4 | 2.0000 | 1.7095 to 2.2905 | 0.0002 | 0.0004 |" in told
    # t = 0.015 / (0.01291 / 2) = 2.32: p = 0.103. That it is 1 or more: t = 152.6, p below 0.00005.
    assert "| graft - adamw | 4 | 0.0150 | -0.0055 to 0.0355 | 0.1027 | 0.1027 | 0.0000 |" in told


def test_the_evaluations_of_a_run_that_was_cut_count_once():
    _, plan = plan_of("language", seeds=[0])
    one = {"part": "judge", "seed": 0, "rate": 0.004, "contender": "adamnx", "mode": "eager"}
    epochs = [
        {**one, "kind": "epoch", "step": step, "test_loss": loss} for step, loss in ((3, 5.0), (6, 4.0))
    ]
    lines = [epochs[0], *epochs, {**one, "kind": "run", "diverged": False, "test_loss": 4.0}]
    (runs,) = [c["runs"] for c in verdict.verdict(plan, lines, {"loss": "min"})["contenders"] if c["runs"]]
    assert runs[0]["evaluations"] == [{"step": 3, "test_loss": 5.0}, {"step": 6, "test_loss": 4.0}]


def test_a_metric_that_is_not_finite_is_left_out_of_the_table():
    _, plan = plan_of("language", seeds=[0, 1, 2])
    lines = [
        {"kind": "run", "part": "judge", "seed": seed, "rate": 0.004, "contender": name, "diverged": False}
        | {"test_loss": loss}
        for name in plan.contenders
        for seed, loss in enumerate([4.0, 5.0, None if name == "adamnx" else 6.0])
    ]
    told = verdict.summary(verdict.verdict(plan, lines, {"loss": "min"}))
    assert "| adamw_95 | 0.004 | 3 | 5.0000 | 1.0000 | 0 |" in told
    assert "| adamnx | 0.004 | 2 | 4.5000 | 0.7071 | 1 |" in told
    assert "| adamnx - adamw_95 | 3 | - | - | - | - | - |" in told
