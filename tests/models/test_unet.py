"""The U-Net and its loss."""

import math

import pytest
import torch
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, MobileNetV2ImageProcessor, pipeline

from adamnx_hf.models import UNetConfig, UNetForSemanticSegmentation
from adamnx_hf.models.unet.loss import cross_entropy_loss, dice_loss

VOID = 255


def tiny(**more):
    torch.manual_seed(0)
    return UNetForSemanticSegmentation(UNetConfig(**{"base_width": 4, "depth": 2, "num_labels": 5, **more}))


def test_the_papers_size():
    """With 64 channels and four levels it is the 2015 network: 31 million parameters."""
    with torch.device("meta"):
        model = UNetForSemanticSegmentation(UNetConfig(num_labels=21))
    widths = [64, 128, 256, 512, 1024]
    pairs = list(zip([3, *widths], widths, strict=False)) + [(2 * w, w) for w in widths[:-1]]
    blocks = sum(9 * (i * o + o * o) + 4 * o for i, o in pairs)  # and two batch norms each
    ups = sum(2 * w * w * 4 + w for w in widths[:-1])
    assert sum(p.numel() for p in model.parameters()) == blocks + ups + 64 * 21 + 21 == 31_038_933


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (1, 1), (3, 40)])
def test_any_size(size):
    model = tiny(depth=3).eval()
    labels = torch.randint(5, (2, *size))
    output = model(torch.randn(2, 3, *size), labels=labels)
    assert output.logits.shape == (2, 5, *size) and output.loss.isfinite()


@pytest.mark.parametrize(("size", "padded"), [((16, 24), (16, 24)), ((17, 21), (20, 24))])
def test_what_is_lacking_to_a_multiple_repeats_the_border(size, padded):
    seen = []
    model = tiny().eval()
    model.encoder[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    pixels = torch.randn(1, 3, *size)
    model(pixels)
    height, width = size
    assert seen[0].shape[-2:] == padded and torch.equal(seen[0][..., :height, :width], pixels)
    assert torch.equal(
        seen[0][..., height:, :width], pixels[..., -1:, :].expand(1, 3, padded[0] - height, -1)
    )


def test_weights_start_as_regnets():
    model = tiny(base_width=32)
    conv, up = model.encoder[2][0], model.upsample[0]
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    assert up.weight.std().item() == pytest.approx(math.sqrt(2 / (4 * 64)), rel=0.05)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.2)
    assert not any(m.bias.any() for m in (up, model.classifier))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == 10 and all((m.weight == 1).all() and not m.bias.any() for m in norms)


def logits_of(probabilities):
    """(classes, pixels) as the logits of one image of one row."""
    return torch.tensor(probabilities).log()[None, :, None, :]


def test_the_losses_by_hand():
    """Three pixels that count, two classes that occur of three."""
    logits = logits_of([[0.5, 0.2, 0.9, 0.1], [0.25, 0.7, 0.05, 0.1], [0.25, 0.1, 0.05, 0.8]])
    labels = torch.tensor([[[0, 1, 0, VOID]]])
    entropy = -(math.log(0.5) + math.log(0.7) + math.log(0.9)) / 3
    assert cross_entropy_loss(logits, labels).item() == pytest.approx(entropy, rel=1e-5)
    first = 2 * (0.5 + 0.9) / (0.5**2 + 0.2**2 + 0.9**2 + 2)
    second = 2 * 0.7 / (0.25**2 + 0.7**2 + 0.05**2 + 1)
    assert dice_loss(logits, labels).item() == pytest.approx(1 - (first + second) / 2, rel=1e-5)
    model = tiny(num_labels=3, dice_weight=0.3).eval()
    pixels = torch.randn(1, 3, 1, 4)
    output = model(pixels, labels=labels)
    expected = 0.7 * cross_entropy_loss(output.logits, labels) + 0.3 * dice_loss(output.logits, labels)
    assert torch.allclose(output.loss, expected)


def test_weights_of_classes():
    """As torch's own weighted mean, and the same as before where all are equal."""
    logits, labels = torch.randn(2, 5, 4, 4), torch.randint(5, (2, 4, 4))
    labels[0, 0] = VOID
    weights = torch.tensor([0.2, 1.0, 0.0, 3.0, 0.5])
    torchs = torch.nn.functional.cross_entropy(logits, labels, weights, ignore_index=VOID)
    assert torch.allclose(cross_entropy_loss(logits, labels, VOID, weights), torchs)
    alike = cross_entropy_loss(logits, labels, VOID, torch.full((5,), 7.0))
    assert torch.allclose(alike, cross_entropy_loss(logits, labels))
    assert cross_entropy_loss(logits, torch.full_like(labels, VOID), VOID, weights) == 0
    model = tiny(class_weights=weights.tolist(), dice_weight=0.0).eval()
    pixels = torch.randn(2, 3, 4, 4)
    output = model(pixels, labels=labels)
    assert torch.allclose(output.loss, cross_entropy_loss(output.logits, labels, VOID, weights))


def test_perfect_and_wrong():
    labels = torch.tensor([[[0, 1, VOID, 0]]])
    right = 50 * torch.nn.functional.one_hot(torch.tensor([0, 1, 0, 0]), 3).T[None, :, None].float()
    assert dice_loss(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert dice_loss(right.roll(1, 1), labels).item() == pytest.approx(1, abs=1e-6)


def test_void_pixels_have_no_gradient():
    labels = torch.randint(5, (2, 8, 8))
    labels[:, 2:4] = VOID
    logits = torch.randn(2, 5, 8, 8, requires_grad=True)
    (cross_entropy_loss(logits, labels) + dice_loss(logits, labels)).backward()
    touched = logits.grad.abs().sum(1) > 0
    assert torch.equal(touched, labels != VOID)


def test_a_batch_of_nothing_but_void():
    model = tiny()
    output = model(torch.randn(2, 3, 8, 8), labels=torch.full((2, 8, 8), VOID))
    output.loss.backward()
    assert output.loss.item() == 0 and all(p.grad.isfinite().all() for p in model.parameters())


def test_another_void_label():
    labels = torch.randint(4, (1, 8, 8))
    model = tiny(semantic_loss_ignore_index=0).eval()
    pixels = torch.randn(1, 3, 8, 8)
    logits = model(pixels).logits
    expected = (cross_entropy_loss(logits, labels, 0) + dice_loss(logits, labels, 0)) / 2
    assert torch.allclose(model(pixels, labels=labels).loss, expected)
    assert (labels == 0).any() and not torch.allclose(expected, cross_entropy_loss(logits, labels))


def test_tuples():
    model = tiny().eval()
    pixels, labels = torch.randn(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    output = model(pixels, labels=labels)
    loss, logits = model(pixels, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss) and torch.equal(logits, output.logits)
    assert model(pixels).loss is None and len(model(pixels, return_dict=False)) == 1
    model.config.return_dict = False
    assert len(model(pixels)) == 1 and torch.equal(model(pixels, return_dict=True).logits, logits)


def test_save_load_and_pipeline(tmp_path):
    model = tiny(dice_weight=0.25, id2label={i: f"class {i}" for i in range(5)}).eval()
    with torch.no_grad():  # of its own, each class is somewhere the likeliest
        model.classifier.weight *= 100
    model.save_pretrained(tmp_path)
    MobileNetV2ImageProcessor(
        size={"shortest_edge": 20}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert type(loaded) is UNetForSemanticSegmentation and loaded.config.dice_weight == 0.25
    pixels = torch.randn(1, 3, 21, 33)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(pixels).logits, model(pixels).logits)
    picture = Image.fromarray(torch.randint(256, (20, 31, 3), dtype=torch.uint8).numpy())
    masks = pipeline("image-segmentation", model=str(tmp_path))(picture)
    assert {mask["label"] for mask in masks} <= set(model.config.id2label.values())
    assert all(mask["mask"].size == (31, 20) for mask in masks)


def test_another_head_for_other_classes(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    other = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    )
    assert other.classifier.weight.shape[0] == 7
    assert 0.002 < other.classifier.weight.std().item() < 0.05
    assert torch.equal(other.encoder[0][0].weight, model.encoder[0][0].weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_width": 0}, "base_width: 0 is not a whole number above 0"),
        ({"depth": 2.5}, "depth: 2.5 is not a whole number above 0"),
        ({"dice_weight": 1.5}, "dice_weight: 1.5 is not a share from 0 to 1"),
        ({"class_weights": [1.0, -1.0]}, r"class_weights: \[1.0, -1.0\] are not all finite"),
        ({"class_weights": [1.0], "num_labels": 3}, "class_weights: 1 of them for 3 classes"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        UNetConfig(**options)
