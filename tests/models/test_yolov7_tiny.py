"""YOLOv7-tiny: its size, its boxes, which predictions learn what, its loss, and as a Transformers model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import box_convert, box_iou, complete_box_iou_loss
from transformers import AutoImageProcessor, AutoModelForObjectDetection, pipeline

from adamnx_hf.models import Yolov7TinyConfig, Yolov7TinyForObjectDetection, Yolov7TinyImageProcessor
from adamnx_hf.models.yolov7_tiny.image_processor import letterbox, letterbox_boxes, unletterbox_boxes
from adamnx_hf.models.yolov7_tiny.loss import (
    STRIDES,
    Priors,
    decode,
    find_candidates,
    match,
    sampled_loss,
    yolov7_loss,
)
from adamnx_hf.models.yolov7_tiny.network import Prediction


def tiny(size=64, classes=3, **options):
    torch.manual_seed(0)
    return Yolov7TinyForObjectDetection(
        Yolov7TinyConfig(image_size=size, width=0.125, num_labels=classes, **options)
    )


def priors(size=64):
    config = Yolov7TinyConfig(image_size=size)
    return Priors.of([(size // stride, size // stride) for stride in STRIDES], config.anchors)


def labels(*images):
    """((class, cx, cy, w, h), ...) of each image."""
    return [
        {
            "class_labels": torch.tensor([row[0] for row in rows], dtype=torch.int64),
            "boxes": torch.tensor([row[1:] for row in rows]).reshape(-1, 4),
        }
        for rows in images
    ]


def test_parameters_and_flops_are_the_published_ones():
    """arXiv:2207.02696, Table 2: 6.2 M parameters and 13.8 GFLOPs at 640 pixels, 80 classes; 5.8 at 416."""
    with torch.device("meta"):
        model = Yolov7TinyForObjectDetection(Yolov7TinyConfig(num_labels=80)).eval()
        fewer = Yolov7TinyForObjectDetection(Yolov7TinyConfig(num_labels=4))
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == 6_227_101 and round(parameters / 1e6, 1) == 6.2
    # What the authors' code printed for somebody (WongKinYiu/yolov7, issue 958): this network with 4 classes.
    assert sum(p.numel() for p in fewer.parameters()) == 6_022_129
    for size, published in ((640, 13.8), (416, 5.8)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.net(torch.empty(1, 3, size, size, device="meta"))
        # The published count has batch norms and activations, too; ours is of convolutions alone.
        assert counter.get_total_flops() / 1e9 == pytest.approx(published, rel=0.01)


def test_it_is_initialised_as_regnet_with_a_detectors_bias():
    model = tiny(classes=20)
    for module in model.modules():
        if isinstance(module, Prediction):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1)
            bias = module.bias.view(3, 25)
            assert not bias[:, :4].any()
            cells = (640 / module.stride_of_level) ** 2
            assert (bias[:, 4].exp() * cells).tolist() == pytest.approx([8] * 3, rel=1e-4)
        elif isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all() and not module.bias.any()


def test_boxes_start_from_their_cells_and_anchors():
    known = priors()
    boxes = decode(torch.zeros(1, len(known.cells), 4), known)[0]
    assert known.counts == [3 * 64, 3 * 16, 3 * 4] and len(boxes) == 252
    assert boxes[0].tolist() == pytest.approx([4, 4, 1.0, 1.3])  # stride 8, anchor 10 x 13 at 640 pixels
    # The second scale's third anchor, row 1, column 2.
    index = 192 + 2 * 16 + 1 * 4 + 2
    assert boxes[index].tolist() == pytest.approx([2.5 * 16, 1.5 * 16, 5.9, 11.9])
    far = decode(torch.full((1, 252, 4), 50.0), known)[0]
    assert far[0].tolist() == pytest.approx([12, 12, 4.0, 5.2])  # half a cell beyond; four times the anchor


def test_candidates_are_of_the_cell_and_its_nearest_neighbours():
    known = priors(640)
    # 20 x 20 at (100, 203): cell (12, 25) of stride 8, at 0.5 and 0.375 of it.
    found = find_candidates(torch.tensor([[99.0, 203.0, 20.0, 20.0]]), known)
    of_first = [i for i in found.tolist() if i < known.counts[0]]
    cells = {tuple(map(int, known.cells[i])) for i in of_first}
    assert cells == {(12, 25), (11, 25), (12, 24)}  # to the left, and above
    assert len(of_first) == 9  # the anchors 10 x 13, 16 x 30 and 33 x 23 are all within a factor of 4
    second = known.sizes[[i for i in found.tolist() if known.counts[0] <= i < sum(known.counts[:2])]]
    assert {tuple(size) for size in second.tolist()} == {
        (30.0, 61.0),
        (62.0, 45.0),
    }  # 59 x 119 is six times as high
    assert all(i < sum(known.counts[:2]) for i in found.tolist())
    # In a corner there are no neighbours outside; a box that fits no anchor has no candidates.
    corner = find_candidates(torch.tensor([[1.0, 1.0, 10.0, 13.0]]), known)
    assert {tuple(map(int, known.cells[i])) for i in corner.tolist()} == {(0, 0)}
    assert not len(find_candidates(torch.tensor([[320.0, 320.0, 600.0, 2.0]]), known))


def slow_match(boxes, objectness, logits, true_boxes, true_classes):
    """SimOTA object by object, prediction by prediction."""

    def corners(box):
        cx, cy, w, h = box
        return torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])

    cost, taken = {}, {}
    for j, (true_box, label) in enumerate(zip(true_boxes, true_classes, strict=True)):
        overlaps = []
        for i, box in enumerate(boxes):
            overlap = box_iou(corners(true_box)[None], corners(box)[None]).item()
            p = (logits[i].sigmoid() * objectness[i].sigmoid()).sqrt()
            right = torch.nn.functional.one_hot(label, len(p)).to(p.dtype)
            wrong = torch.nn.functional.binary_cross_entropy(p, right, reduction="sum").item()
            cost[i, j] = wrong - 3 * np.log(overlap + 1e-8)
            overlaps.append(overlap)
        count = max(1, int(sum(sorted(overlaps)[-10:])))
        for i in sorted(range(len(boxes)), key=lambda i: cost[i, j])[:count]:
            taken.setdefault(i, []).append(j)
    return {(i, min(range(len(true_boxes)), key=lambda j: cost[i, j]) if len(js) > 1 else js[0])
            for i, js in taken.items()}  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_matching_against_a_slow_twin(seed):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    true_boxes = torch.cat([20 + 20 * rand(4, 2), 10 + 20 * rand(4, 2)], 1)
    boxes = true_boxes.repeat(8, 1) + 4 * rand(32, 4)
    objectness, logits = 6 * rand(32) - 3, 6 * rand(32, 5) - 3
    classes = torch.tensor([0, 4, 2, 0])
    chosen, objects = match(boxes, objectness, logits, true_boxes, classes)
    got = set(zip(chosen.tolist(), objects.tolist(), strict=True))
    assert len(got) == len(chosen) > 4
    assert got == slow_match(boxes, objectness, logits, true_boxes, classes)


def test_a_perfect_prediction_costs_nothing():
    """Raw values that are the objects: the box and class parts vanish, the objectness almost."""
    known = priors(64)
    true = torch.tensor([[20.0, 36.0, 6.0, 9.0]])  # stride 16's second... whatever anchors fit
    near = find_candidates(true, known)
    boxes = decode(torch.zeros(1, 252, 4), known)
    boxes[0, near] = true
    objectness, logits = torch.full((1, 252), -30.0), torch.full((1, 252, 3), -30.0)
    logits[0, near, 1] = 30.0
    best = match(boxes[0, near], objectness[0, near], logits[0, near], true, torch.tensor([1]))[0]
    assert len(best) == min(10, len(near))  # they all overlap wholly
    objectness[0, near[best]] = 30.0
    losses = yolov7_loss(boxes, objectness, logits, [true], [torch.tensor([1])], known)
    assert {name: round(value.item(), 5) for name, value in losses.items()} == {
        "loss_box": 0.0,
        "loss_objectness": 0.0,
        "loss_class": 0.0,
    }
    wrong = yolov7_loss(boxes, objectness, logits, [true], [torch.tensor([2])], known)
    assert wrong["loss_class"] > 10 and wrong["loss_box"] < 1e-5


def test_the_parts_by_hand():
    """One object, one match: 1 - CIoU, and cross-entropies at a logit of 0."""
    known = Priors.of([(1, 1), (1, 1), (1, 1)], [[[8, 8]] * 3, [[1, 1]] * 3, [[1, 1]] * 3])
    true = torch.tensor([[4.0, 4.0, 8.0, 8.0]])
    boxes = torch.zeros(1, 9, 4)
    boxes[0, :, :] = torch.tensor([4.0, 4.0, 1.0, 1.0])
    boxes[0, 0] = torch.tensor([4.0, 4.0, 8.0, 4.0])
    objectness, logits = torch.zeros(1, 9), torch.zeros(1, 9, 2)
    losses = yolov7_loss(boxes, objectness, logits, [true], [torch.tensor([0])], known)
    # IoU 1/2, centres alike, so that CIoU = 1/2 - alpha v.
    v = 4 / torch.pi**2 * (np.arctan(1) - np.arctan(2)) ** 2
    ciou = 0.5 - v / (0.5 + v) * v
    assert losses["loss_box"].item() == pytest.approx(1 - ciou, abs=1e-5)
    assert losses["loss_class"].item() == pytest.approx(np.log(2), abs=1e-6)
    # At a logit of 0 the target does not matter: log 2 in each scale, weighed with 4, 1 and 0.4.
    assert losses["loss_objectness"].item() == pytest.approx(5.4 * np.log(2), abs=1e-5)
    objectness.requires_grad_()
    yolov7_loss(boxes, objectness, logits, [true], [torch.tensor([0])], known)["loss_objectness"].backward()
    assert objectness.grad[0, 0].item() == pytest.approx(4 / 3 * (0.5 - ciou), abs=1e-5)  # the target is CIoU
    assert objectness.grad[0, 1].item() == pytest.approx(4 / 3 * 0.5, abs=1e-5)


def test_the_weighted_sum_is_the_loss_and_tuples_hold_the_same():
    model = tiny(size=64)
    pixels = torch.randn(2, 3, 64, 64)
    given = labels([(1, 0.5, 0.5, 0.3, 0.3), (0, 0.2, 0.2, 0.2, 0.3)], [])
    output = model(pixels, labels=given)
    parts = output.loss_dict
    expected = 0.05 * parts["loss_box"] + 0.01 * parts["loss_objectness"] + 0.5 * 3 / 80 * parts["loss_class"]
    assert torch.allclose(output.loss, expected)
    assert torch.equal(model.eval()(pixels, return_dict=False)[-1], model(pixels).pred_boxes)
    assert model(pixels).loss is None
    with pytest.raises(ValueError, match="48 x 64 pixels; both sides must be multiples of 32"):
        model(torch.zeros(1, 3, 48, 64))


def test_images_without_objects_have_a_loss_and_every_parameter_a_gradient():
    model = tiny()
    loss = model(torch.randn(2, 3, 64, 64), labels=labels([], [])).loss
    loss.backward()
    assert loss > 0 and all(p.grad is not None for p in model.parameters())


def test_a_sampled_losss_squared_gradient_is_the_curvature():
    """Of both cross-entropies, where every prediction is of an object; the real loss is the twin."""
    torch.manual_seed(0)
    start = priors()
    count = len(start.cells)
    weights = {"loss_objectness": 0.7, "loss_class": 0.3}
    objectness = (2 * torch.randn(2, count)).requires_grad_()
    logits = (2 * torch.randn(2, count, 3)).requires_grad_()
    sure = torch.full((2, count), 30.0)

    def curvature(loss, of):
        (slope,) = torch.autograd.grad(loss, of, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), of)  # the loss is a sum over the logits
        return bend

    parts = yolov7_loss(
        torch.ones(2, count, 4),
        objectness,
        logits,
        [torch.empty(0, 4)] * 2,
        [torch.empty(0).long()] * 2,
        start,
    )
    expected = curvature(weights["loss_objectness"] * parts["loss_objectness"], objectness)
    by_scale = [part.flatten() for part in logits.split(start.counts, 1)]
    classes = sum(bce(part, torch.zeros_like(part)) for part in by_scale)
    for arguments, of, bend in (
        ((objectness, logits.detach()), objectness, expected),
        ((sure, logits), logits, curvature(weights["loss_class"] * classes, logits)),
    ):
        squares = [
            torch.autograd.grad(sampled_loss(*arguments, start, weights), of)[0].square() for _ in range(2000)
        ]
        mean = torch.stack(squares).mean(0)
        assert torch.allclose(mean.sum(), bend.sum(), rtol=0.02)
        assert ((mean - bend).abs() / bend).median() < 0.05


def test_the_loss_is_in_float32_under_autocast():
    model = tiny()
    pixels, given = torch.randn(2, 3, 64, 64), labels([(1, 0.5, 0.5, 0.3, 0.3)], [(2, 0.4, 0.3, 0.2, 0.3)])
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixels, labels=given)
    assert output.loss.dtype == output.pred_boxes.dtype == torch.float32
    assert torch.allclose(output.loss, model(pixels, labels=given).loss, rtol=0.05)


def test_other_numbers_of_objects_do_not_compile_it_again():
    counter = CompileCounter()
    model = torch.compile(tiny(), backend=counter)
    counts = []
    for objects in (2, 5, 0):
        given = labels(
            [(i % 3, 0.5, 0.1 * i + 0.1, 0.3, 0.3) for i in range(objects)], [(0, 0.5, 0.5, 0.2, 0.2)]
        )
        model(torch.randn(2, 3, 64, 64), labels=given).loss.backward()
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1] > 0


def test_letterboxing_keeps_everything_and_boxes_find_back():
    image = torch.full((3, 30, 60), 200, dtype=torch.uint8)
    square = letterbox(image, 128)
    assert square.shape == (3, 128, 128)
    assert (square[:, 32:96] == 200).all() and (square[:, :32] == 114).all() and (square[:, 96:] == 114).all()
    boxes = torch.tensor([[0.0, 0.0, 60.0, 30.0], [10.0, 5.0, 20.0, 25.0]])
    shares = letterbox_boxes(boxes, 30, 60, 96)
    assert shares[0].tolist() == pytest.approx([0, 0.25, 1, 0.75])
    assert torch.allclose(unletterbox_boxes(shares, 30, 60, 96), boxes, atol=1e-5)
    assert unletterbox_boxes(torch.tensor([[-1.0, 0, 2, 1]]), 30, 60, 96).tolist() == [[0, 0, 60, 30]]
    assert torch.equal(letterbox(image[:, :, :30], 30), image[:, :, :30])


def test_the_processor_takes_what_others_take():
    random = np.random.default_rng(0)
    array = random.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    processor = Yolov7TinyImageProcessor(64, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    expected = processor(Image.fromarray(array), return_tensors="pt")["pixel_values"]
    assert expected.shape == (1, 3, 64, 64) and -1 <= expected.min() < expected.max() <= 1
    for form in (array, torch.tensor(array).movedim(-1, 0), [Image.fromarray(array)], array[None][0]):
        assert torch.equal(processor(form, return_tensors="pt")["pixel_values"], expected)
    grey = processor(Image.fromarray(array[..., 0]), return_tensors="pt")["pixel_values"]
    assert torch.equal(grey[:, 0], grey[:, 2])
    with pytest.raises(ValueError, match="must be of 8 bits a channel"):
        processor(array.astype(np.float32))
    with pytest.raises(ValueError, match="its pixels have more than 8 bits, PIL's mode I"):
        processor(Image.fromarray(array[..., 0].astype(np.uint16)))
    with pytest.raises(ValueError, match="size: 50 is not a square of a multiple of 32 pixels"):
        Yolov7TinyImageProcessor(50)


class Outputs:
    """Three predictions of an image of 50 x 100 pixels: two of one object, one of another class there."""

    logits = torch.tensor([[[9.0, -9.0], [9.0, -9.0], [-9.0, 9.0]]])
    objectness_logits = torch.tensor([[2.0, 1.0, 0.0]])
    pred_boxes = torch.tensor([[[0.5, 0.5, 0.4, 0.2], [0.51, 0.5, 0.4, 0.2], [0.5, 0.5, 0.4, 0.2]]])


def test_post_processing():
    processor = Yolov7TinyImageProcessor(64)
    (result,) = processor.post_process_object_detection(Outputs, threshold=0.3, target_sizes=[(50, 100)])
    assert result["labels"].tolist() == [0, 1]  # the second box of class 0 overlaps the first
    chances = torch.sigmoid(torch.tensor([2.0, 0.0])) * torch.sigmoid(torch.tensor(9.0))
    assert torch.allclose(result["scores"], chances)
    assert result["boxes"].flatten().tolist() == pytest.approx([30, 15, 70, 35] * 2, abs=1e-4)
    (result,) = processor.post_process_object_detection(Outputs, threshold=0.6)
    assert len(result["scores"]) == 1 and result["boxes"][0].tolist() == pytest.approx([0.3, 0.4, 0.7, 0.6])
    with pytest.raises(ValueError, match="target_sizes: 2 of them for 1 images"):
        processor.post_process_object_detection(Outputs, target_sizes=[(1, 1), (1, 1)])


def test_save_load_and_pipeline(tmp_path, caplog):
    model = tiny(classes=3).eval()
    model.config.id2label = {0: "cat", 1: "dog", 2: "cow"}
    model.save_pretrained(tmp_path)
    Yolov7TinyImageProcessor(64, nms_threshold=0.5).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "yolov7_tiny"
    loaded = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, Yolov7TinyImageProcessor) and processor.nms_threshold == 0.5
    picture = Image.fromarray((np.random.default_rng(0).random((40, 60, 3)) * 255).astype(np.uint8))
    inputs = processor(picture, return_tensors="pt")
    with torch.no_grad():
        own = model(**inputs)
        assert torch.equal(loaded(**inputs).pred_boxes, own.pred_boxes)
    (expected,) = processor.post_process_object_detection(own, threshold=0.0, target_sizes=[(40, 60)])
    detect = pipeline("object-detection", model=str(tmp_path))
    answers = detect(picture, threshold=0.0)
    assert "not supported" not in caplog.text
    assert len(answers) == len(expected["scores"]) > 0
    assert answers[0]["label"] == model.config.id2label[expected["labels"][0].item()]
    assert answers[0]["score"] == pytest.approx(expected["scores"][0].item(), abs=1e-5)
    assert list(answers[0]["box"].values()) == [int(side) for side in expected["boxes"][0]]
    other = AutoModelForObjectDetection.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other.net.heads[0][1].out_channels == 36
    assert other.net.heads[0][1].bias.view(3, 12)[0, 4].item() == pytest.approx(np.log(8 / 80**2), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 100}, "image_size: 100 is not a multiple of 32 pixels"),
        ({"width": 0}, "width: 0 is not a share above 0"),
        ({"anchors": [[[1, 2]]]}, "anchors: needs three times three pairs"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        Yolov7TinyConfig(**options)


@pytest.mark.parametrize(("height", "width"), [(333, 500), (335, 500), (500, 333), (7, 500), (480, 640)])
def test_boxes_lie_where_the_pixels_do(height, width):
    placed = letterbox(torch.full((3, height, width), 250, dtype=torch.uint8), 416)[0] == 250
    rows, columns = (placed.any(side).nonzero().flatten().tolist() for side in (1, 0))
    whole = torch.tensor([[0.0, 0.0, width, height]])
    box = 416 * letterbox_boxes(whole, height, width, 416)[0]
    assert box.tolist() == pytest.approx([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], abs=1e-3)
    assert torch.allclose(unletterbox_boxes(box[None] / 416, height, width, 416), whole, atol=1e-3)


@pytest.mark.parametrize("logit", [-60.0, -10.0, 10.0])
def test_boxes_that_have_collapsed_still_have_a_gradient(logit):
    start = priors(640)
    raw = torch.zeros(1, len(start.cells), 4)
    raw[..., 2:] = logit
    raw.requires_grad_()
    boxes = box_convert(decode(raw, start)[0], "cxcywh", "xyxy")
    truth = torch.tensor([[2.0, 2.0, 30.0, 40.0]]).expand(len(boxes), -1)
    loss = complete_box_iou_loss(boxes, truth, reduction="sum")
    loss.backward()
    assert loss.isfinite() and raw.grad.isfinite().all()


def test_four_channels_are_refused_in_words():
    with pytest.raises(ValueError, match="must have 1 or 3 channels"):
        Yolov7TinyImageProcessor(64)(torch.zeros(40, 40, 4, dtype=torch.uint8).numpy())
