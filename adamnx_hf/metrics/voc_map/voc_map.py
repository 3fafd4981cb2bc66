"""Mean average precision of object detectors as PASCAL VOC has it, in percent."""

import contextlib
import io
from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """
The area under each class's precision-recall curve, with precision made monotone, and the mean of them over
the classes.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: of each image `boxes` (x0, y0, x1, y1), `scores` and `labels` (class ids).
    references: of each image `boxes`, `labels` and `difficult`: which objects need not be found.
    iou_thresholds: how much a prediction and an object have to overlap. Default: [0.5, 0.75].
Returns:
    map_<threshold in percent> for each threshold: from 0 to 100 (best).
Examples:
    >>> metric = evaluate.load("voc_map")
    >>> found = [{"boxes": [[10, 10, 50, 50]], "scores": [0.9], "labels": [0]}]
    >>> true = [{"boxes": [[10, 10, 50, 46]], "labels": [0], "difficult": [False]}]
    >>> metric.compute(predictions=found, references=true)
    {'map_50': 100.0, 'map_75': 100.0}
"""

_CITATION = """
@article{everingham2010pascal,
  title={The PASCAL Visual Object Classes (VOC) Challenge},
  author={Everingham, M. and Van Gool, L. and Williams, C. K. I. and Winn, J. and Zisserman, A.},
  journal={International Journal of Computer Vision},
  volume={88},
  pages={303--338},
  year={2010}
}
"""

_BOXES = datasets.Sequence(datasets.Sequence(datasets.Value("float32"), length=4))


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class VocMap(evaluate.Metric):
    """Mean average precision of object detectors as PASCAL VOC has it, in percent."""

    def _info(self) -> Any:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": {
                        "boxes": _BOXES,
                        "scores": datasets.Sequence(datasets.Value("float32")),
                        "labels": datasets.Sequence(datasets.Value("int64")),
                    },
                    "references": {
                        "boxes": _BOXES,
                        "labels": datasets.Sequence(datasets.Value("int64")),
                        "difficult": datasets.Sequence(datasets.Value("bool")),
                    },
                }
            ),
        )

    def _compute(
        self, predictions: Any, references: Any, iou_thresholds: Any = (0.5, 0.75)
    ) -> dict[str, float]:
        found = [_arrays(image, scores=np.float64) for image in predictions]
        true = [_arrays(image, difficult=bool) for image in references]
        objects = [image["labels"][~image["difficult"]] for image in true]
        classes = np.unique(np.concatenate([[], *objects]))
        if not len(classes):
            raise ValueError("references: there is no object that has to be found")
        return {
            f"map_{round(100 * threshold)}": 100 * _mean_average_precision(found, true, classes, threshold)
            for threshold in iou_thresholds
        }


def _arrays(image: Any, **last: Any) -> dict[str, np.ndarray]:
    """Returns one image's columns, with boxes as x, y, width and height, as pycocotools takes them."""
    (name, kind), *_ = last.items()
    boxes = np.asarray(image["boxes"], dtype=np.float64).reshape(-1, 4)
    columns = {
        "boxes": np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        "labels": np.asarray(image["labels"], dtype=np.int64),
        name: np.asarray(image[name], dtype=kind),
    }
    if len({len(column) for column in columns.values()}) != 1:
        raise ValueError(f"an image has {', '.join(f'{len(v)} {k}' for k, v in columns.items())}")
    return columns


def _mean_average_precision(found: Any, true: Any, classes: Any, threshold: float) -> float:
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        judged = COCOeval(
            _coco(true, classes, [~image["difficult"] for image in true]),
            _coco(
                found,
                classes,
                [~_excused(own, objects, threshold) for own, objects in zip(found, true, strict=True)],
            ),
            "bbox",
        )
        judged.params.iouThrs = np.array([threshold])
        judged.params.recThrs = (np.arange(1000) + 0.5) / 1000
        judged.params.maxDets = [max(1, *(len(image["labels"]) for image in found))]
        judged.params.areaRng, judged.params.areaRngLbl = [[0, np.inf]], ["all"]
        judged.evaluate()
        judged.accumulate()
    return float(judged.eval["precision"][0, :, :, 0, 0].mean())  # recalls, classes


def _excused(found: Any, true: Any, threshold: float) -> np.ndarray:
    """Marks the predictions of an image whose best match is a difficult object."""
    from pycocotools import mask

    excused = np.zeros(len(found["labels"]), dtype=bool)
    for label in np.unique(true["labels"][true["difficult"]]):
        own, objects = np.flatnonzero(found["labels"] == label), true["labels"] == label
        if len(own):
            overlap = mask.iou(found["boxes"][own], true["boxes"][objects], [0] * int(objects.sum()))
            best = overlap.argmax(1)
            excused[own] = (overlap.max(1) >= threshold) & true["difficult"][objects][best]
    return excused


def _coco(images: Any, classes: Any, kept: Any) -> Any:
    """Makes pycocotools' container of the boxes in `kept`."""
    from pycocotools.coco import COCO

    rows: list[dict[str, Any]] = []
    for i, (image, keep) in enumerate(zip(images, kept, strict=True)):
        scores = image.get("scores", np.ones(len(keep)))
        for j in np.flatnonzero(keep & np.isfinite(scores)):
            rows.append(
                {
                    "id": len(rows) + 1,  # 0 would mean no match
                    "image_id": i,
                    "category_id": int(image["labels"][j]),
                    "bbox": image["boxes"][j].tolist(),
                    "area": float(image["boxes"][j, 2] * image["boxes"][j, 3]),
                    "iscrowd": 0,
                    "score": float(scores[j]),
                }
            )
    coco = COCO()
    coco.dataset = {
        "images": [{"id": i} for i in range(len(images))],
        "categories": [{"id": int(label)} for label in classes],
        "annotations": rows,
    }
    coco.createIndex()
    return coco
