"""Augmentation is a function of seed, epoch and row, and evaluation takes no number of training's."""

import random

import numpy as np
import pytest
import torch
from forks import lean
from torch.utils.data import DataLoader

from adamnx_hf import recipes
from adamnx_hf.runs import throughput
from adamnx_hf.tasks.image_classification.dataset import ImageDataset, keep_batch
from adamnx_hf.tasks.object_detection.dataset import DetectionDataset
from adamnx_hf.tasks.randomness import RowRandom, keep_random_states
from adamnx_hf.tasks.semantic_segmentation.dataset import SegmentationDataset
from adamnx_hf.tasks.transforms import FlipEach, HSVJitter, make_train_transform

RECIPES = {
    "classification": "cifar100_efficientnetv2_tiny",
    "segmentation": "voc2007_unet_small",
    "detection": "bccd_yolov7_tiny",
}


def states():
    numpy = np.random.get_state()
    return [random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()]


def trainer_of(kind, tmp_path, *words):
    words = ["--smoke", "--max_train_samples", "12", "--use_cpu", "true", *words]
    resolved = recipes.resolve(RECIPES[kind], [*words, "--output_dir", str(tmp_path)])
    return resolved.task.make_trainer(resolved)


@pytest.fixture(scope="module", params=RECIPES)
def data(request, tmp_path_factory):
    """A recipe's training set."""
    data = trainer_of(request.param, tmp_path_factory.mktemp("out")).train_dataset
    kinds = (
        ImageDataset,
        SegmentationDataset,
        DetectionDataset,
    )
    assert isinstance(data, kinds) and len(data) == 12
    return data


def same(a, b):
    if isinstance(a, dict):
        return all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return all(same(one, other) for one, other in zip(a, b, strict=True))
    return a.shape == b.shape and torch.equal(a, b)


def test_an_example_is_a_function_of_seed_epoch_and_row(data):
    def examples(rows=range(12)):
        return [data[row] for row in rows]

    torch.manual_seed(1)
    whole = examples()
    data.random.epoch = 3
    torch.manual_seed(1)
    later = examples()
    data.random.epoch = 0
    order = (7, 3, 3, 11, 0)
    assert all(same(one, whole[row]) for one, row in zip(examples(order), order, strict=True))
    given, data.random = data.random, RowRandom(12, data.random.seed + 1, data.random.numbers)
    seeded, data.random = examples(), given
    for other in (later, seeded):  # now and then an image is neither jittered nor mirrored
        assert sum(same(a, b) for a, b in zip(other, whole, strict=True)) < 5


def test_global_states_are_left_alone(data):
    before = states()
    for row in range(3):
        data[row]
    assert states() == before


def batches_of(data, **options):
    """Of two epochs, by workers that live on."""
    loader = DataLoader(data, batch_size=6, persistent_workers=True, **options)
    found = []
    for epoch in (0, 4):  # set while the workers are at rest
        data.random.epoch = epoch
        found += list(loader)
    data.random.epoch = 0
    return found


def test_workers_draw_the_same_in_each_epoch(data):
    whole = hasattr(data, "__getitems__")
    collate = keep_batch if whole else list
    found = batches_of(data, num_workers=2, collate_fn=collate, multiprocessing_context="fork")
    for i, batch in enumerate(found):
        data.random.epoch = (0, 4)[i // 2]
        rows = range(6 * (i % 2), 6 * (i % 2) + 6)
        expected = data.__getitems__(rows) if whole else [data[row] for row in rows]
        assert same(batch, expected)
    data.random.epoch = 0


def test_workers_that_are_not_forked_learn_of_the_epoch_too(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", lean()["PYTHONPATH"])
    data = trainer_of("classification", tmp_path).train_dataset
    options = {"num_workers": 1, "collate_fn": keep_batch}
    forked, spawned = (
        batches_of(data, multiprocessing_context=kind, **options) for kind in ("fork", "spawn")
    )
    assert all(same(a, b) for a, b in zip(forked, spawned, strict=True))
    assert not same(spawned[0], spawned[2])


def as_single(batch):
    return {key: value[0] for key, value in batch.items()}


def test_a_batch_is_its_rows(tmp_path):
    data = trainer_of("classification", tmp_path).train_dataset
    order = [7, 2, 11, 2]
    batch = data.__getitems__(order)
    assert all(
        same(as_single({k: v[i:] for k, v in batch.items()}), data[row]) for i, row in enumerate(order)
    )


def test_the_device_augments_as_the_loader_does(tmp_path):
    """Also in the extra pass of an optimizer that asks for curvature: it sees the same images again."""
    batches = []
    for words in ([], ["--augment_on_device", "true"]):
        trainer = trainer_of("classification", tmp_path, *words)
        trainer.train_dataset.random.epoch = 2
        inputs = next(iter(trainer.get_train_dataloader()))
        assert ("draws" in inputs) == bool(words)
        batches += [trainer._prepare_inputs(inputs), trainer._prepare_inputs(inputs)]
    assert all(same(batch, batches[0]) and batch.keys() == batches[0].keys() for batch in batches)


def test_given_numbers_are_used_as_drawn_ones():
    chain = make_train_transform(mean=[0.5] * 3, std=[0.25] * 3)
    uniform = torch.rand(9, chain.draws, generator=torch.Generator().manual_seed(0))
    images = torch.randint(256, (9, 3, 5, 6), dtype=torch.uint8)
    before = states()
    got = chain(images, uniform)
    assert states() == before
    jitter, flip = HSVJitter(), FlipEach()
    jittered = jitter.transform(images / 255, jitter.compute_params(uniform[:, :6]))
    expected = (flip.transform(jittered, flip.compute_params(uniform[:, 6:])) - 0.5) / 0.25
    assert torch.allclose(got, expected, atol=1e-6)
    for one, image, numbers in zip(got, images, uniform, strict=True):
        assert torch.allclose(chain(image, numbers), one, atol=1e-6)


def test_rows_numbers_are_uniform_and_independent():
    rows = RowRandom(20_000, 7, 3)
    rows.epoch = 5
    numbers = rows.uniform(range(20_000)).double()
    assert numbers.min() >= 0 and numbers.max() < 1
    assert torch.allclose(numbers.mean(0), torch.full((3,), 0.5).double(), atol=0.01)
    assert torch.allclose(numbers.var(0), torch.full((3,), 1 / 12).double(), atol=0.005)
    shifted = numbers.roll(1, 0)
    rows.epoch = 6
    others = [
        shifted,
        numbers.roll(1, 1),
        rows.uniform(range(20_000)),
        RowRandom(20_000, 6, 3).uniform(range(20_000)),
    ]
    for other in others:
        assert np.corrcoef(numbers.flatten(), other.double().flatten())[0, 1] == pytest.approx(0, abs=0.02)
    firsts = []
    for row in range(2000):
        with rows.seed_row(row):
            firsts.append(torch.rand(()).item())
    assert np.mean(firsts) == pytest.approx(0.5, abs=0.03) and len(set(firsts)) > 1990


def test_seeding_ends_also_with_an_error():
    def fails():
        with RowRandom(3, 0).seed_row(1):
            torch.rand(2)
            raise ValueError("unreadable")

    before = states()
    with pytest.raises(ValueError, match="unreadable"):
        fails()
    assert states() == before


@pytest.mark.parametrize("workers", ["0", "1"])
def test_the_trainer_says_which_epoch_it_is(workers, tmp_path):
    """12 images in 3 batches; also where a run goes on within an epoch."""
    words = ["--max_steps", "9", "--save_strategy", "steps", "--save_steps", "4", "--eval_strategy", "no"]
    words += ["--per_device_train_batch_size", "4", "--dataloader_num_workers", workers]
    for checkpoint, expected in ((None, [0, 0, 0, 1, 1, 1, 2, 2, 2]), ("checkpoint-4", [1, 1, 2, 2, 2])):
        trainer = trainer_of("classification", tmp_path, *words)
        epochs, step = [], trainer.training_step

        def watched(model, inputs, *args, trainer=trainer, epochs=epochs, step=step):
            data = trainer.train_dataset
            examples = list(inputs["pixel_values"])
            assert all(
                any(torch.equal(data[row]["pixel_values"], one) for row in range(12)) for one in examples
            )
            epochs.append(data.random.epoch)
            return step(model, inputs, *args)

        trainer.training_step = watched
        trainer.train(resume_from_checkpoint=checkpoint and str(tmp_path / checkpoint))
        assert epochs == expected


def test_evaluation_and_timing_leave_random_states_alone(tmp_path):
    trainer = trainer_of("classification", tmp_path, "--per_device_train_batch_size", "2")
    inner = trainer.compute_metrics

    def draws(prediction):
        random.random(), np.random.rand(), torch.rand(2)
        return inner(prediction)

    trainer.compute_metrics = draws
    before = states()
    trainer.evaluate()
    assert states() == before

    def fails(prediction):
        torch.rand(2)
        raise RuntimeError("no metric")

    measured = throughput.measure(trainer, seconds=0.05)
    assert measured["data"] and measured["model"] and states() == before
    trainer.compute_metrics = fails
    with pytest.raises(RuntimeError, match="no metric"):
        trainer.evaluate()
    assert states() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_devices_state_is_kept_and_rows_leave_it_alone():
    device = torch.device("cuda")
    before = torch.cuda.get_rng_state()
    with keep_random_states(device):
        torch.rand(3, device=device)
    with RowRandom(3, 0).seed_row(1):
        torch.rand(3)
    assert torch.equal(torch.cuda.get_rng_state(), before)
