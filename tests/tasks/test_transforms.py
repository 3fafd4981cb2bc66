"""The authors' augmentation: each batched transform against a slow twin that works pixel by pixel."""

import colorsys

import pytest
import torch

from adamnx_hf.tasks.transforms import (
    FlipEach,
    HSVJitter,
    hsv_to_rgb,
    make_eval_transform,
    make_train_transform,
    rgb_to_hsv,
)


def pixels(image):
    """Every pixel of (..., 3, h, w) as a triple."""
    return image.movedim(-3, -1).reshape(-1, 3).tolist()


@pytest.fixture
def images():
    images = torch.rand(6, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[0] = images[0, 0]  # grey: no hue
    images[1] = 0.0
    images[2] = 1.0
    images[3] = torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    return images


def test_hsv_is_colorsys(images):
    expected = [colorsys.rgb_to_hsv(*pixel) for pixel in pixels(images)]
    assert torch.allclose(torch.tensor(pixels(rgb_to_hsv(images))), torch.tensor(expected), atol=1e-12)


def test_back_is_colorsys_too():
    hsv = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = [colorsys.hsv_to_rgb(*pixel) for pixel in pixels(hsv)]
    assert torch.allclose(torch.tensor(pixels(hsv_to_rgb(hsv))), torch.tensor(expected), atol=1e-12)
    assert torch.allclose(hsv_to_rgb(rgb_to_hsv(hsv)), hsv, atol=1e-12)


def slow_jitter(image, chosen, hue, saturation, value):
    if not chosen:
        return image
    changed = []
    for pixel in pixels(image):
        h, s, v = colorsys.rgb_to_hsv(*pixel)
        changed.append(colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), min(v * value, 1)))
    return torch.tensor(changed, dtype=image.dtype).reshape(*image.shape[1:], 3).movedim(-1, 0)


def test_jitter_of_a_batch_is_each_images_own(images):
    torch.manual_seed(3)
    jitter = HSVJitter()
    params = jitter.make_params([images])
    got = jitter.transform(images, params)
    for i, image in enumerate(images):
        own = {key: values[i].item() for key, values in params.items()}
        assert torch.allclose(got[i], slow_jitter(image, **own), atol=1e-12)
    assert params["chosen"].any() and not params["chosen"].all()


def test_jitter_draws_as_published():
    torch.manual_seed(0)
    batch = torch.empty(20_000, 3, 1, 1)
    params = {key: value.flatten().double() for key, value in HSVJitter().make_params([batch]).items()}
    assert params["chosen"].mean().item() == pytest.approx(0.5, abs=0.02)
    assert params["hue"].min() >= -0.1 and params["hue"].max() <= 0.1
    assert params["hue"].std().item() == pytest.approx(0.2 / 12**0.5, rel=0.03)
    for key in ("saturation", "value"):
        factor = params[key]
        up, down = factor[factor > 1], 1 / factor[factor < 1]
        assert len(up) / len(factor) == pytest.approx(0.5, abs=0.02)
        for part in (up, down):
            assert part.min() >= 1 and part.max() <= 1.5
            assert part.mean().item() == pytest.approx(1.25, abs=0.01)


def test_flip_of_a_batch_is_each_images_own(images):
    torch.manual_seed(5)
    flipped = FlipEach()(images)
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    assert all(a or b for a, b in zip(same, mirrored, strict=True))
    assert torch.equal(FlipEach(1.0)(images), images.flip(-1))
    assert torch.equal(FlipEach(0.0)(images), images)


@pytest.mark.parametrize("shape", [(3, 8, 8), (5, 3, 8, 8)])
def test_whole_chains_take_one_image_or_a_batch(shape):
    image = torch.randint(256, shape, dtype=torch.uint8)
    expected = image.double() / 255 * 2 - 1
    settings = {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert torch.allclose(make_eval_transform(**settings)(image).double(), expected, atol=1e-6)
    assert torch.allclose(
        make_train_transform(**settings, jitter=0, flip=0)(image).double(), expected, atol=1e-6
    )
    augmented = make_train_transform(**settings)(image)
    assert augmented.shape == shape and augmented.min() >= -1 and augmented.max() <= 1
