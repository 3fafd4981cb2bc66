r"""Folders in PASCAL VOC's layout as the data sets that the object detection recipes read.

python voc_dataset.py data/voc0712 --source voc --download
adamnx-hf run voc_yolov7_tiny --dataset_name data/voc0712 --box_field bbox --category_field category \
    --box_format xywh
git clone https://github.com/Shenggan/BCCD_Dataset
python voc_dataset.py data/bccd --source BCCD_Dataset --layout bccd     # the recipe bccd_yolov7_tiny

VOC: trainval of 2007 and 2012 (16,551 images) to train on, test of 2007 (4,952) to judge by. Without
--download the source has to hold VOCdevkit/VOC2007 and VOCdevkit/VOC2012. BCCD: 205 images to train on, 87 to
validate, 72 to test.
"""

import argparse
from pathlib import Path
from xml.etree import ElementTree

from datasets import ClassLabel, Dataset, Features, Image, List, Value
from torchvision.datasets import VOCDetection

# fmt: off
CLASSES = {
    "voc": [
        "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
        "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
        "tvmonitor",
    ],
    "bccd": ["Platelets", "RBC", "WBC"],
}
# fmt: on
# By split: folders, and the lists of images in each.
LAYOUTS = {
    "voc": {
        "train": [("VOCdevkit/VOC2007", "trainval"), ("VOCdevkit/VOC2012", "trainval")],
        "test": [("VOCdevkit/VOC2007", "test")],
    },
    "bccd": {"train": [("BCCD", "train")], "validation": [("BCCD", "val")], "test": [("BCCD", "test")]},
}
DOWNLOADS = [("2007", "trainval"), ("2007", "test"), ("2012", "trainval")]


def rows(parts):
    for folder, names in parts:
        for name in names:
            objects = {"bbox": [], "category": [], "difficult": []}
            for found in (
                ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot().findall("object")
            ):
                corners = found.find("bndbox")
                x0, y0, x1, y1 = (float(corners.findtext(key)) for key in ("xmin", "ymin", "xmax", "ymax"))
                if x1 <= x0 or y1 <= y0:
                    print(f"{name}: left out a {found.findtext('name')} without area")
                    continue
                # Pixels count from 1, the last one included.
                objects["bbox"].append([x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1])
                objects["category"].append(found.findtext("name"))
                objects["difficult"].append(found.findtext("difficult") == "1")
            image = folder / "JPEGImages" / f"{name}.jpg"
            yield {"image": {"path": image.name, "bytes": image.read_bytes()}, "objects": objects}


def main(args=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the data set's folder, to be made")
    parser.add_argument(
        "--source", type=Path, required=True, help="where the files are, or are downloaded to"
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="voc")
    parser.add_argument("--download", action="store_true", help="let torchvision download VOC (4 GB)")
    args = parser.parse_args(args)
    if args.output.exists():
        parser.error(f"{args.output} is there already")
    if args.download:
        for year, image_set in DOWNLOADS:
            VOCDetection(args.source, year=year, image_set=image_set, download=True)
    features = Features(
        {
            "image": Image(),
            "objects": {
                "bbox": List(List(Value("float32"), length=4)),
                "category": List(ClassLabel(names=CLASSES[args.layout])),
                "difficult": List(Value("bool")),
            },
        }
    )
    made = {}
    for split, lists in LAYOUTS[args.layout].items():
        parts = []
        for folder, image_set in lists:
            path = args.source / folder / "ImageSets" / "Main" / f"{image_set}.txt"
            if not path.is_file():
                parser.error(f"{path}: no such file")
            parts.append((args.source / folder, path.read_text().split()))
        made[split] = Dataset.from_generator(rows, features=features, gen_kwargs={"parts": parts})
    (args.output / "data").mkdir(parents=True)
    for split, data in made.items():
        data.to_parquet(args.output / "data" / f"{split}-00000-of-00001.parquet")
        print(f"{split}: {len(data):,} images")


if __name__ == "__main__":
    main()
