"""Every snippet of the documentation, run, and every link, as GitHub follows it.

A page's Python runs from top to bottom in one namespace, in an empty folder, on the CPU. A command is carried
out as far as it goes without a Hub, a GPU or hours: `adamnx-hf run` up to training, `accelerate launch` up to
the start of processes. Output that a page shows is compared with what comes. `NOT_RUN` names all that is not
even looked at.
"""

import ast
import contextlib
import doctest
import functools
import importlib
import inspect
import io
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import types
import unicodedata
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

pytest.importorskip("transformers")
sybil = pytest.importorskip("sybil")
from sybil.parsers.abstract.doctest import DocTestStringParser  # noqa: E402
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser  # noqa: E402

from adamnx_hf import cli  # noqa: E402
from adamnx_hf.tasks.semantic_segmentation.made_up import make_pairs  # noqa: E402
from adamnx_hf.tasks.semantic_segmentation.masks import PairFormat  # noqa: E402
from trainer_patches import registered_optimizers, registry  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")]
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

#: How commands begin that are not carried out at all.
NOT_RUN = {
    "pip install": "needs a package index; that the extras exist is checked",
    "adamnx-hf recipes --hub": "asks the Hub",
    "adamnx-hf run hf://": "downloads a recipe from the Hub",
}
#: Commands whose arguments are read, and no more.
ARGUMENTS_ONLY = {
    "demo": "trains for minutes",
    "bench": "measures for minutes",
    "publish": "needs the folder of a run",
    "sharpness": "needs folders of runs",
    "jitter": "needs the folder of a run",
}
#: Scripts that stand for the reader's own, or for one of Transformers' examples.
READERS_OWN = {"train.py", "run_clm.py", "some_package.train"}


def parts_of(text):
    """The commands in a bash block, each as words, without comments and what stands for more."""
    for line in text.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word not in ("...", "…")]
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            del words[0]
        if words:
            yield words


def not_run(words):
    line = " ".join(words)
    return next((start for start in NOT_RUN if line.startswith(start)), None)


class Enough(Exception):
    """Raised where a command would begin what is not done here."""


def enough(*_, **__):
    raise Enough


def take_a_batch(recipe, **_):
    """In the place of training: makes model and data, and takes what a step and an evaluation would."""
    trainer = recipe.task.make_trainer(recipe)
    next(iter(trainer.get_train_dataloader()))
    next(iter(trainer.get_eval_dataloader()))
    enough()


class Commands:
    """Carries commands out as far as they go.

    Args:
        patch: pytest's monkeypatch.
        train: what takes the place of training.
    """

    def __init__(self, patch, train=enough):
        self.patch, self.train = patch, train

    def run(self, words):
        """The command's status and what it prints."""
        if not_run(words):
            extras = re.findall(r"\[(.*?)\]", " ".join(words)) if words[0] == "pip" else []
            known = re.findall(r"^([a-z]+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
            assert set(",".join(extras).split(",")) - {""} <= set(known)
            return 0, ""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                status = self.program(*words)
            except Enough:
                status = 0
            except SystemExit as error:
                status = error.code
        return status or 0, out.getvalue()

    def program(self, program, *words):
        if program == "adamnx-hf":
            return self.cli(words)
        if program == "make":
            return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True).returncode
        if program == "bash":
            return subprocess.run(["bash", "-n", words[0]], cwd=ROOT, capture_output=True).returncode
        if program == "accelerate" and words[0] == "launch":
            launch = importlib.import_module("accelerate.commands.launch")
            args = launch.launch_command_parser().parse_args(words[1:])
            for file in (args.config_file, args.deepspeed_config_file):
                assert file is None or (ROOT / file).is_file(), file
            return self.script(args.module, args.training_script, args.training_script_args)
        if program == "torchrun":
            args = importlib.import_module("torch.distributed.run").parse_args(words)
            return self.script(args.module, args.training_script, args.training_script_args)
        if program == "python":
            module = words[0] == "-m"
            return self.script(module, words[module], words[module + 1 :])
        raise AssertionError(f"{program} is neither known here nor named in NOT_RUN")

    def script(self, is_module, name, words):
        if name in READERS_OWN:
            return 0
        if name == "adamnx_hf.cli":
            return self.cli(words)
        if name == "adamnx_hf.launch":
            from trainer_patches.launch import build_command

            command = build_command(words)
            return self.program("python", *command[1:]) if command[0] == sys.executable else 0
        if is_module:
            module = importlib.import_module(name)
            if hasattr(module, "__path__"):  # a package, which is run by its __main__
                module = importlib.import_module(f"{name}.__main__")
            return module.main(list(words))
        return self.example(Path(name).name, words)

    def cli(self, words):
        """Runs `adamnx-hf` up to training."""
        command = importlib.import_module(f"adamnx_hf.commands.{words[0]}")
        for word in words:  # the reader's own
            if word.startswith("path/to/"):
                Path(word).mkdir(parents=True, exist_ok=True)
        with self.patch.context() as patch:
            if words[0] in ARGUMENTS_ONLY:
                patch.setattr(command, "run", enough)
            patch.setattr("adamnx_hf.studies.compare.execute.carry_out", enough)
            if words[0] == "run":
                patch.setattr("adamnx_hf.runs.training.train", self.train)
            return cli.main(words)

    def example(self, name, words):
        """Runs one of docs/examples up to the loading of a model or data."""
        folder = ROOT / "docs" / "examples"
        assert (folder / name).is_file(), name
        with self.patch.context() as patch:
            patch.syspath_prepend(folder)
            module = importlib.import_module(Path(name).stem)
            for loader in ("AutoTokenizer", "AutoModelForCausalLM"):
                if hasattr(module, loader):
                    patch.setattr(getattr(module, loader), "from_pretrained", enough)
            for loader in ("load_dataset", "VOCDetection"):
                if hasattr(module, loader):
                    patch.setattr(module, loader, enough)
            module.main(list(words))
        raise AssertionError(f"{name} loaded neither a model nor data")


def bash(example):
    for words in parts_of(example.parsed):
        status, output = example.namespace["_commands"].run(words)
        assert status == 0, output


def console(example):
    """`$ command` and what it prints."""
    for part in re.split(r"^\$ ", example.parsed, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        (words,) = parts_of(command)
        _, output = example.namespace["_commands"].run(words)
        assert doctest.OutputChecker().check_output(expected.strip(), output.strip(), FLAGS), output


def text(example):
    """An error message without the code that raises it: the source has to hold it."""
    message = " ".join(example.parsed.split())
    message = re.sub(r"^(adamnx-hf \w+: error|\w+(Error|Warning)): ", "", message)
    assert any(pattern.fullmatch(message) for pattern in messages()), message


@functools.cache
def messages():
    """The texts in the source as patterns, with anything where they are filled in."""
    found = []
    for path in (*ROOT.glob("adamnx_hf/**/*.py"), *ROOT.glob("trainer_patches/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
            fixed = [piece.value if isinstance(piece, ast.Constant) else None for piece in pieces]
            if sum(len(piece) for piece in fixed if isinstance(piece, str)) >= 20:
                found.append("".join(".+?" if piece is None else re.escape(piece) for piece in fixed))
    return [re.compile(pattern) for pattern in found]


class Doctests(DocTestStringParser):
    def __call__(self, document):
        for region in CodeBlockParser("pycon", evaluator=lambda example: None)(document):
            for found in super().__call__(region.parsed, document.path):
                found.adjust(region, region.parsed)
                yield found


def parsed(page):
    from sybil.evaluators.doctest import DocTestEvaluator

    return sybil.Sybil(
        [
            PythonCodeBlockParser(),
            Doctests(DocTestEvaluator(FLAGS)),
            CodeBlockParser("bash", bash),
            CodeBlockParser("console", console),
            CodeBlockParser("text", text),
        ],
        path=str(ROOT),
    ).parse(page)


# What pages take for granted: a model, data, and where a page says so, more.


def everywhere():
    from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments, default_data_collator

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, max_position_embeddings=32, bos_token_id=1, eos_token_id=2, **sizes)
    data = [{"input_ids": ids, "labels": ids} for ids in torch.randint(3, 64, (16, 8)).tolist()]
    return {
        "torch": torch,
        "model": LlamaForCausalLM(config),
        "data": data,
        "loader": torch.utils.data.DataLoader(data, 8, collate_fn=default_data_collator),
        "args": TrainingArguments("out", max_steps=2, report_to="none", use_cpu=True),
    }


def processes(namespace, patch):
    """What torchrun tells the one process of a run of one."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for key, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}.items():
        patch.setenv(key, str(value))


def adamw_checkpoint(namespace, patch):
    from transformers import Trainer, TrainingArguments

    args = TrainingArguments(
        "out", max_steps=2, save_steps=2, report_to="none", use_cpu=True, optim="adamw_torch"
    )
    Trainer(namespace["model"], args, train_dataset=namespace["data"]).train()
    Path("out/checkpoint-2").rename("out/checkpoint-500")


def models(namespace, patch):
    """A run's folder, of toys, in the place of each that the page names."""
    for recipe in ("cifar100_efficientnetv2_m", "bccd_yolov7_tiny"):
        assert cli.main(["run", recipe, "--smoke", "--output_dir", f"runs/{recipe}/adamnx-seed42"]) == 0
    Image.new("RGB", (64, 64), "red").save("picture.png")


def three_models(namespace, patch):
    """In the place of a comparison's, which trains for a minute."""
    for optimizer in (
        "horizon=auto",
        "beta2_schedule=adax-beta2=0.8974295010700053",
        "beta2_schedule=adax-beta2=0.89795",
    ):
        folder = Path(f"runs/cifar100_nano/compare/adamnx-{optimizer}/as-given/seed0")
        folder.mkdir(parents=True)
        save_file({"weight": torch.ones(2), "running_mean": torch.ones(2)}, folder / "model.safetensors")


def tiny_model(namespace, patch):
    patch.syspath_prepend(ROOT / "tests" / "faults")
    importlib.import_module("crash").make_tiny(Path("path/to/model"))


def two_pictures(namespace, patch):
    """In the place of an archive of 1.4 GB."""
    pictures = [(Image.new("RGB", (8, 6)), Image.new("L", (8, 6), i)) for i in range(2)]
    patch.setattr("torchvision.datasets.SBDataset", lambda *_, **__: pictures)


def made_up_pairs(namespace, patch):
    """In the place of images that are not ours to give away."""
    for split in ("train", "validation"):
        pairs = make_pairs(5, PairFormat("image", "mask"), classes=3, ignore_index=255)
        pairs.to_parquet(f"path/to/voc2007_seg/data/{split}-00000-of-00001.parquet")


def own_data(namespace, patch):
    """Data of each layout that the page names, and models to fine-tune."""
    import json

    import numpy as np
    from transformers import AutoTokenizer, ViTConfig, ViTForImageClassification

    from adamnx_hf.tasks.language_modeling.toy import CHAT_TEMPLATE

    random = np.random.default_rng(0)

    def save(path, shape=(40, 48, 3), values=(0, 256)):
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.choice(np.arange(*values), shape).astype(np.uint8)).save(path)

    def write_lines(path, rows):
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))

    boxes = [[4, 5, 20, 30], [10, 8, 16, 12]]
    coco = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
    }
    rows = []
    for i in range(40):
        save(f"photos/{('cat', 'dog', 'eel')[i % 3]}/{i}.jpg")
        save(f"boxes/{i}.jpg")
        save(f"coco/images/{i}.jpg")
        rows.append({"file_name": f"{i}.jpg", "objects": {"bbox": boxes, "category": ["cell", "dust"]}})
        coco["images"].append({"id": 100 + i, "file_name": f"{i}.jpg"})
        coco["annotations"] += [
            {"image_id": 100 + i, "bbox": boxes[j], "category_id": 7 + 2 * j} for j in (0, 1)
        ]
        for name, values in (("masks", (0, 3)), ("masks01", (0, 256, 255))):
            save(f"{name}/images/{i}.jpg")
            save(f"{name}/masks/{i}.png", (40, 48), values)
    write_lines("boxes/metadata.jsonl", rows)
    Path("coco/annotations.json").write_text(json.dumps(coco))
    pairs = [{"file_name": f"images/{i}.jpg", "mask_file_name": f"masks/{i}.png"} for i in range(40)]
    for name in ("masks", "masks01"):
        write_lines(f"{name}/metadata.jsonl", pairs)
    Path("questions.csv").write_text(
        "question,answer\n" + "".join(f"{i} and 1?,{i + 1}\n" for i in range(40))
    )
    turns = [{"role": "user", "content": "1 and 1?"}, {"role": "assistant", "content": "2"}]
    write_lines("chats.jsonl", [{"messages": turns}] * 40)
    Path("book.txt").write_text("It was a dark and stormy night.\n" * 400)
    tiny_model(namespace, patch)
    config = Path("path/to/model/config.json")
    longer = json.loads(config.read_text()) | {"max_position_embeddings": 64}
    config.write_text(json.dumps(longer))
    tokenizer = AutoTokenizer.from_pretrained("path/to/model")
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained("path/to/model")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTForImageClassification(ViTConfig(**sizes)).save_pretrained("path/to/vit")


def offloading(namespace, patch):
    """In the place of torchao's, which needs a GPU: it makes the same optimizers with the same options."""

    class CPUOffloadOptimizer:
        def __init__(self, params, optimizer_class, **options):
            self.optimizers = [optimizer_class([param], **options) for param in params]

    for name in ("torchao", "torchao.optim"):
        patch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["torchao.optim"].CPUOffloadOptimizer = CPUOffloadOptimizer


def old_kernels(namespace, patch):
    """Before 0.13 it had to be told the name, as the page says."""
    kernels = importlib.import_module("kernels")
    if "package_name" in inspect.signature(kernels.get_local_kernel).parameters:
        told = functools.partial(kernels.get_local_kernel, package_name="adamnx")
        patch.setattr(kernels, "get_local_kernel", told)


#: Pages whose commands load the data and the model that they name, and get as far as a batch.
TRAINED_ON = {"docs/your-data.md"}

SETUP = {
    "docs/checkpoints.md": adamw_checkpoint,
    "docs/fsdp2.md": processes,
    "docs/kernel.md": old_kernels,
    "docs/optimizer.md": offloading,
    "docs/recipes.md": models,
    "docs/results/README.md": made_up_pairs,
    "docs/results/adax/README.md": three_models,
    "docs/trl.md": tiny_model,
    "docs/your-data.md": own_data,
    "recipes/semantic_segmentation/README.md": two_pictures,
}


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_snippets(page, tmp_path, monkeypatch):
    document = parsed(page)
    examples = list(document.examples())
    if not examples:
        return
    for name in ("docs", "recipes"):  # copies: some commands write there
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    name = page.relative_to(ROOT).as_posix()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # TRL's defaults and half of the recipes are for a GPU. One page says what is to be heard without.
    with_bf16 = name != "docs/troubleshooting.md"
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: with_bf16)
    if re.search("^```py", page.read_text(), re.MULTILINE):
        document.namespace.update(everywhere())
    if name in SETUP:
        SETUP[name](document.namespace, monkeypatch)
    document.namespace["_commands"] = Commands(monkeypatch, take_a_batch if name in TRAINED_ON else enough)
    try:
        for example in examples:
            example.evaluate()
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def forget_afterwards():
    """Pages register names; the enum keeps them (harmlessly), the registry does not."""
    before = registered_optimizers()
    yield
    registry.REGISTERED.clear()
    registry.REGISTERED.update(before)


LANGUAGES = {"python", "pycon", "bash", "console", "text"}


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_no_snippet_is_left_out(page):
    fences = re.findall(r"^ *(?:```|~~~)(.*)$", page.read_text(), re.MULTILINE)
    assert set(fences[::2]) <= LANGUAGES and set(fences[1::2]) <= {""}, (
        "a block of a language that is not run"
    )
    blocks = sum(
        len(list(CodeBlockParser(name, bash)(sybil.Document.parse(str(page))))) for name in LANGUAGES
    )
    assert blocks == len(fences) // 2


def test_nothing_is_named_in_vain():
    fence = re.compile(r"```bash\n(.*?)```", re.DOTALL)
    blocks = [block for page in PAGES for block in fence.findall(page.read_text())]
    commands = [words for block in blocks for words in parts_of(block)]
    assert {not_run(words) for words in commands} - {None} == set(NOT_RUN)


def anchors(page):
    """The headings' anchors, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for title in re.findall(r"^#+ (.*)", text, re.MULTILINE):
        title = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", title).lower().strip()
        yield "".join(
            "-" if c == " " else c for c in title if c in " -_" or unicodedata.category(c)[0] in "LN"
        )


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_links(page):
    """MkDocs checks those of docs on the site; this is for README.md, and for GitHub."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
