"""torchvision's networks with the paper's changes, and as Transformers models."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from transformers import AutoModelForImageClassification, ViTImageProcessor, pipeline

from adamnx_hf.models import TorchvisionNetConfig, TorchvisionNetForImageClassification
from adamnx_hf.models.torchvision_net import nets
from adamnx_hf.recipes import list_recipes, read_recipe

PAPER = [
    name
    for name, path in list_recipes().items()
    if path.parent.name == "image_classification" and read_recipe(path)["paper_tables"]
]

# With 100 classes: torchvision's counts for 1,000 less 900 outputs of the last layer. SwinV2's patches of one
# pixel make its first layer smaller; ConvNeXt's 3 x 3 kernels make the stem and the blocks smaller, and the
# downsamplings larger.
PARAMETERS = {
    "cifar100_efficientnetv2_m": 54_139_356 - 900 * 1281,
    "cifar100_efficientnetv2_l": 118_515_272 - 900 * 1281,
    "cifar100_swinv2_s": 49_737_442 - 900 * 769 - 96 * 3 * (16 - 1),
    "cifar100_convnext_b": 88_591_464
    - 900 * 1025
    - 128 * 3 * (16 - 9)
    - (3 * 128 + 3 * 256 + 27 * 512 + 3 * 1024) * (49 - 9)
    + (128 * 256 + 256 * 512 + 512 * 1024) * (9 - 4),
}


@torch.no_grad()
def feature_size(model, size):
    """Height and width of the last feature map for an image of `size` pixels a side."""
    sizes = []

    def note(_, __, output):
        # torchvision's Swin keeps channels last.
        first = 1 if "swin" in model.config.architecture else 2
        sizes.append((output.shape[first], output.shape[first + 1]))

    handle = model.net.features.register_forward_hook(note)
    try:
        parameter = next(model.parameters())
        model(torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype))
    finally:
        handle.remove()
    return sizes[0]


def config_of(recipe, **more):
    values = read_recipe(list_recipes()[recipe])
    return TorchvisionNetConfig(
        values["architecture"], {**values.get("architecture_options", {}), **more}, num_labels=100
    )


def tiny(recipe):
    values = read_recipe(list_recipes()[recipe])
    return TorchvisionNetForImageClassification(
        config_of(recipe, **nets.NETS[values["architecture"]].tiny)
    ).eval()


@pytest.mark.parametrize("name", nets.NETS)
def test_without_changes_they_are_torchvisions(name):
    with torch.device("meta"):
        ours, theirs = nets.build(name, 1000), getattr(torchvision.models, name)(num_classes=1000)
    assert repr(ours) == repr(theirs)  # layers, strides, dropout, stochastic depth, eps
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_every_recipe_of_the_paper_is_counted():
    assert set(PAPER) == set(PARAMETERS)


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_parameters_and_downsampling_of_the_papers_networks(recipe):
    with torch.device("meta"):
        model = TorchvisionNetForImageClassification(config_of(recipe))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[recipe]
    assert feature_size(model, 32) == (4, 4)  # three downsamplings by 2


def test_the_papers_convnext_is_changed_as_published():
    with torch.device("meta"):
        net = TorchvisionNetForImageClassification(config_of("cifar100_convnext_b")).net
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(conv.kernel_size == (3, 3) and conv.padding == (1, 1) for conv in convs)
    assert [conv.stride for conv in convs].count((2, 2)) == 3
    assert net.features[0][0].stride == (1, 1)


def test_replaced_convolutions_start_as_torchvisions_do():
    torch.manual_seed(0)
    net = tiny("cifar100_convnext_b").net
    weights = torch.cat([m.weight.flatten() for m in net.modules() if isinstance(m, torch.nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(m.bias.any() for m in net.modules() if isinstance(m, torch.nn.Conv2d))


@pytest.mark.parametrize("recipe", PAPER)
def test_save_load_and_pipeline(recipe, tmp_path):
    model = tiny(recipe)
    model.config.id2label = {i: f"class {i}" for i in range(100)}
    model.save_pretrained(tmp_path)
    ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "torchvision_net"
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels).logits
        assert torch.equal(loaded(pixels).logits, expected)
    picture = (np.random.default_rng(0).random((32, 32, 3)) * 255).astype(np.uint8)
    answers = pipeline("image-classification", model=str(tmp_path))(Image.fromarray(picture), top_k=100)
    with torch.no_grad():
        own = model(torch.tensor(picture).permute(2, 0, 1)[None] / 127.5 - 1).logits.softmax(-1)[0]
    assert answers[0]["label"] == f"class {own.argmax()}"
    assert answers[0]["score"] == pytest.approx(own.max().item(), abs=1e-5)


def test_a_new_head_for_other_classes(tmp_path):
    model = tiny("cifar100_efficientnetv2_m")
    model.save_pretrained(tmp_path)
    other = AutoModelForImageClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True
    )
    head = other.net.classifier[-1]
    assert head.weight.shape[0] == 7
    assert 0.005 < head.weight.std().item() < 0.05
    assert torch.equal(other.net.features[0][0].weight, model.net.features[0][0].weight)


def test_loss_and_tuples():
    model = tiny("cifar100_efficientnetv2_m")
    pixels, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 5, 99, 1])
    output = model(pixels, labels=labels)
    expected = -output.logits.log_softmax(-1)[torch.arange(4), labels].mean()
    assert torch.allclose(output.loss, expected)
    loss, logits = model(pixels, labels=labels, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)
    assert model(pixels).loss is None


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("efficientnet_v2_x", {}, "'efficientnet_v2_x' is not known; did you mean 'eff"),
        ("swin_v2_s", {"window": 4}, "swin_v2_s has no 'window'; did you mean 'window_size'"),
        ("efficientnet_v2_m", {"depths": [1, 2]}, "and widths one more, got 2, 7, 7 and 8"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        nets.build(name, 10, options)


def test_auto_classes_know_the_model_without_importing_it_first(run_python):
    code = (
        "import sys, adamnx_hf\n"
        "assert not {'transformers', 'torchvision', 'datasets'} & set(sys.modules)\n"
        "from transformers import AutoConfig\n"
        "print(AutoConfig.for_model('torchvision_net', architecture='swin_v2_t').architecture)"
    )
    assert "swin_v2_t" in run_python(code)
