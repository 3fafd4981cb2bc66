"""PASCAL VOC as the data set that the recipe voc_yolov7_tiny reads.

python voc_dataset.py data/voc0712 --devkit path/to/download --download

Trainval of 2007 and 2012 (16,551 images) to train on, test of 2007 (4,952) to judge by. Without --download
the devkit's folder has to hold VOCdevkit/VOC2007 and VOCdevkit/VOC2012.
"""

import argparse
from pathlib import Path
from xml.etree import ElementTree

from datasets import ClassLabel, Dataset, Features, Image, List, Value
from torchvision.datasets import VOCDetection

# fmt: off
CLASSES = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
]
# fmt: on
SPLITS = {"train": [("2007", "trainval"), ("2012", "trainval")], "test": [("2007", "test")]}
FEATURES = Features(
    {
        "image": Image(),
        "objects": {
            "bbox": List(List(Value("float32"), length=4)),
            "category": List(ClassLabel(names=CLASSES)),
            "difficult": List(Value("bool")),
        },
    }
)


def rows(parts, devkit, download):
    for year, image_set in parts:
        voc = VOCDetection(devkit, year=year, image_set=image_set, download=download)
        for image, annotation in zip(voc.images, voc.annotations, strict=True):
            boxes, labels, difficult = [], [], []
            for found in ElementTree.parse(annotation).getroot().findall("object"):
                x0, y0, x1, y1 = (
                    float(found.find("bndbox").findtext(f)) for f in ("xmin", "ymin", "xmax", "ymax")
                )
                boxes.append(
                    [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
                )  # pixels count from 1, the last included
                labels.append(found.findtext("name"))
                difficult.append(found.findtext("difficult") == "1")
            yield {
                "image": {"path": Path(image).name, "bytes": Path(image).read_bytes()},
                "objects": {"bbox": boxes, "category": labels, "difficult": difficult},
            }


def main(args=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the data set's folder, to be made")
    parser.add_argument("--devkit", type=Path, default=Path("voc"), help="VOCdevkit's folder (default: voc)")
    parser.add_argument("--download", action="store_true", help="let torchvision download it there (4 GB)")
    args = parser.parse_args(args)
    if args.output.exists():
        parser.error(f"{args.output} is there already")
    made = {
        split: Dataset.from_generator(
            rows,
            features=FEATURES,
            gen_kwargs={"parts": parts, "devkit": str(args.devkit), "download": args.download},
        )
        for split, parts in SPLITS.items()
    }
    (args.output / "data").mkdir(parents=True)
    for split, data in made.items():
        data.to_parquet(args.output / "data" / f"{split}-00000-of-00001.parquet")
        print(f"{split}: {len(data):,} images")


if __name__ == "__main__":
    main()
