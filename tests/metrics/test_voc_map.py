"""VOC's mean average precision against cases worked by hand."""

import numpy as np
import pytest

from adamnx_hf import metrics

BOX = [10, 10, 50, 50]
FAR = [100, 100, 140, 140]
AWAY = [200, 200, 240, 240]


@pytest.fixture(scope="module")
def metric():
    return metrics.load("voc_map")


def found(*rows):
    """(box, score[, label]) of one image."""
    return {
        "boxes": [row[0] for row in rows],
        "scores": [row[1] for row in rows],
        "labels": [row[2] if len(row) > 2 else 0 for row in rows],
    }


def true(*rows):
    """(box[, difficult[, label]]) of one image."""
    return {
        "boxes": [row[0] for row in rows],
        "labels": [row[2] if len(row) > 2 else 0 for row in rows],
        "difficult": [row[1] if len(row) > 1 else False for row in rows],
    }


def map_50(metric, predictions, references):
    return metric.compute(predictions=predictions, references=references, iou_thresholds=[0.5])["map_50"]


def test_thresholds(metric):
    # 40 x 40 beside 40 x 28, inside each other: IoU 0.7.
    scores = metric.compute(predictions=[found(([10, 10, 50, 38], 0.9))], references=[true((BOX,))])
    assert scores == {"map_50": pytest.approx(100.0), "map_75": 0.0}


def test_the_area_under_the_curve(metric):
    # By falling score: right, wrong, right; 4 objects. Recall, precision: 1/4, 1; 1/4, 1/2; 1/2, 2/3.
    # Made monotone: 1 up to a recall of 1/4, 2/3 up to 1/2, then 0.
    predictions = [found((BOX, 0.9), (AWAY, 0.8)), found((FAR, 0.7))]
    references = [true((BOX,), ([10, 60, 50, 90],)), true((FAR,), (BOX,))]
    expected = 100 * (0.25 * 1 + 0.25 * 2 / 3)
    assert map_50(metric, predictions, references) == pytest.approx(expected, abs=1e-6)


def test_a_second_find_of_the_same_object_is_wrong(metric):
    # Right, wrong, right of 2 objects: 1/2 and 1, then 1 and 2/3.
    predictions = [found((BOX, 0.9), ([11, 10, 51, 50], 0.8), (FAR, 0.7))]
    assert map_50(metric, predictions, [true((BOX,), (FAR,))]) == pytest.approx(
        100 * (0.5 + 0.5 * 2 / 3), abs=1e-6
    )


def test_classes_count_alike_and_do_not_mix(metric):
    predictions = [found((BOX, 0.9, 0), (FAR, 0.8, 0), (AWAY, 0.7, 5))]
    references = [true((BOX, False, 0), (FAR, False, 3))]  # of class 3 nothing is found; 5 has no objects
    assert map_50(metric, predictions, references) == pytest.approx(50.0)


def test_difficult_objects_are_neither_right_nor_wrong(metric):
    # Without the difficult one: one object, found; whatever lies on the difficult one does not count, twice.
    predictions = [found((FAR, 0.99), ([101, 100, 141, 140], 0.98), (BOX, 0.9))]
    assert map_50(metric, predictions, [true((BOX,), (FAR, True))]) == pytest.approx(100.0)
    # An ordinary one of the same place would make the second find wrong, and be missed where there is none.
    assert map_50(metric, predictions, [true((BOX,), (FAR,))]) == pytest.approx(
        100 * (0.5 + 0.5 * 2 / 3), abs=1e-6
    )
    assert map_50(metric, [found((BOX, 0.9))], [true((BOX,), (FAR, True))]) == pytest.approx(100.0)
    assert map_50(metric, [found((BOX, 0.9))], [true((BOX,), (FAR,))]) == pytest.approx(50.0)


def test_only_the_best_match_excuses_and_only_in_its_class(metric):
    # The prediction overlaps an ordinary object more (1) than a difficult one (0.7): it is right.
    near = [10, 10, 50, 38]
    assert map_50(metric, [found((BOX, 0.9))], [true((BOX,), (near, True))]) == pytest.approx(100.0)
    # A difficult object of another class excuses nothing: wrong before right.
    predictions = [found((FAR, 0.9, 0), (BOX, 0.8, 0))]
    references = [true((BOX, False, 0), (FAR, True, 1))]
    assert map_50(metric, predictions, references) == pytest.approx(50.0)
    # A difficult one overlapped too little, at the higher threshold alone.
    scores = metric.compute(
        predictions=[found((near, 0.9), (FAR, 0.8))], references=[true((BOX, True), (FAR,))]
    )
    assert scores == {"map_50": pytest.approx(100.0), "map_75": pytest.approx(50.0)}


def test_images_without_boxes_and_batches(metric):
    metric.add_batch(predictions=[found()], references=[true((BOX,))])
    metric.add_batch(predictions=[found((BOX, 0.5)), found()], references=[true((BOX,)), true()])
    assert metric.compute() == {"map_50": pytest.approx(50.0), "map_75": pytest.approx(50.0)}


def test_a_diverged_model_finds_nothing(metric):
    assert map_50(metric, [found((BOX, float("nan")))], [true((BOX,))]) == 0.0


def test_nothing_to_find(metric):
    with pytest.raises(ValueError, match="no object that has to be found"):
        map_50(metric, [found()], [true((BOX, True))])


def test_columns_of_different_lengths(metric):
    with pytest.raises(ValueError, match="1 boxes, 1 labels, 2 scores"):
        map_50(metric, [{"boxes": [BOX], "scores": [0.1, 0.2], "labels": [0]}], [true((BOX,))])


def test_against_a_slow_twin(metric):
    """Precision and recall prediction by prediction, on many random boxes far from each other."""
    random = np.random.default_rng(0)
    predictions, references = [], []
    for _ in range(40):
        corners = 100 * random.permutation(8)[: random.integers(1, 6)]
        boxes = [[int(c), 0, int(c) + 40, 40] for c in corners]
        references.append(true(*((box, bool(random.random() < 0.2)) for box in boxes)))
        shift = random.integers(0, 30, len(boxes))
        predictions.append(
            found(*(([b[0], s, b[2], 40 + s], random.random()) for b, s in zip(boxes, shift, strict=True)))
        )
    rows = []
    for image, objects in zip(predictions, references, strict=True):
        for box, score, difficult in zip(image["boxes"], image["scores"], objects["difficult"], strict=True):
            right = (40 - box[1]) / (40 + box[1]) >= 0.5
            if not (right and difficult):
                rows.append((score, right))
    count = sum(not d for objects in references for d in objects["difficult"])
    right = np.array([hit for _, hit in sorted(rows, reverse=True)])
    precision = right.cumsum() / np.arange(1, len(right) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    expected = 100 * best_from_here[right].sum() / count
    assert map_50(metric, predictions, references) == pytest.approx(expected, abs=0.05)
