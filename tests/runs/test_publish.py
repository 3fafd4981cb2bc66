"""Runs to the Hub and recipes from it, by huggingface_hub's own client and a server on localhost."""

import json
import os
import re
import shutil
import socket

import pytest
import yaml
from forks import APART, forking
from hub_server import TOKEN, set_endpoint
from huggingface_hub import ModelCard, constants, hf_hub_download

from adamnx_hf import cli, recipes
from adamnx_hf.common import hub
from adamnx_hf.common.errors import RecipeError
from adamnx_hf.runs.publishing import package
from adamnx_hf.runs.publishing.package import package_run
from adamnx_hf.runs.publishing.push import push_run
from adamnx_hf.tasks import TASKS, load_task


@pytest.fixture
def copied(trained, tmp_path):
    """The run, to change."""
    return shutil.copytree(trained, tmp_path / "run")


def says(capsys, argv):
    """The one line of a command that fails."""
    capsys.readouterr()
    assert cli.main([str(word) for word in argv]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adamnx-hf")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def elsewhere(one_server, tmp_path_factory):
    """Runs code in processes of their own, set up by the environment alone; what it prints."""
    home = tmp_path_factory.mktemp("home")
    environment = os.environ | {
        "HF_ENDPOINT": one_server.endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    environment.pop("HF_TOKEN", None)
    imports = "import datasets, peft, torchvision; from transformers import Trainer, pipeline"
    with forking(imports, environment) as run:
        yield lambda code, folder: run(f"{APART}\n{code}", folder)[0]


def command(*words):
    """The code of a command of this package."""
    words = ["adamnx-hf", *map(str, words)]
    return f"import sys; sys.argv = {words}; from adamnx_hf import cli; sys.exit(cli.main())"


def test_publish_list_and_download(server, trained, folder, capsys):
    assert cli.main(["publish", str(trained), "--repo-id", "me/colours"]) == 0
    out = capsys.readouterr().out
    for part in ("training_args.bin (may hold pickles)", "optimizer.pt (may hold", "checkpoint-6/ (a folder)",
                 "dataset_name in recipe.yaml (a path of this machine)", "Published: http",
                 "the licence in README.md (yours to say: --license)"):  # fmt: skip
        assert part in out, part
    files = server.files("me/colours")
    assert set(files) >= {
        "README.md",
        "recipe.yaml",
        "results.json",
        "curves.png",
        "model.safetensors",
        "config.json",
    }
    assert not [name for name in files if name.endswith((".bin", ".pt"))]
    assert files["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    assert len(server.objects) == 2  # the model and the picture went as LFS files
    for name, content in files.items():
        for secret in (TOKEN, str(folder), str(folder.parent), str(trained.parent)):
            assert secret.encode() not in content, (name, secret)

    card = ModelCard.load("me/colours")
    results = json.loads((trained / "results.json").read_text())
    assert card.data.library_name == "transformers" and card.data.tags == ["adamnx", "adamnx-hf"]
    assert card.data.pipeline_tag == "image-classification" and card.data.datasets is None
    values = {(entry.metric_type, entry.metric_name): entry.metric_value for entry in card.data.eval_results}
    assert card.data.metrics == ["accuracy"] and card.data.license is None
    last = results["metrics"]["top1_error"]["last"]
    assert values["accuracy", "Accuracy, last epoch"] == pytest.approx(1 - last / 100)
    assert len(values) == len(results["metrics"])  # of one epoch, which is the best and the last
    assert {entry.dataset_name for entry in card.data.eval_results} == {"colours"}
    for text in ("adamnx-hf run hf://me/colours --dataset_name DATASET_NAME", "`[0.9, 0.99]`",
                 "| seed | `3` |", "| torch |", "![Curves](curves.png)"):  # fmt: skip
        assert text in card.text, text

    assert cli.main(["recipes", "--hub"]) == 0
    assert "hf://me/colours" in capsys.readouterr().out
    assert cli.main(["recipes", "--hub", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["hf://me/colours"]


def test_a_recipe_from_the_hub_runs_again(server, elsewhere, trained, folder, tmp_path):
    """In a process of its own, set up by the environment alone."""
    push_run(trained, "me/colours")
    elsewhere(command("run", "hf://me/colours@v1", "--dataset_name", folder), tmp_path)
    again = json.loads((tmp_path / "runs" / "me--colours" / "adamnx-seed3" / "results.json").read_text())
    first = json.loads((trained / "results.json").read_text())
    assert again["recipe"] == "me--colours" and again["metrics"] == first["metrics"]
    assert again["environment"]["command"].startswith("adamnx-hf run hf://me/colours@v1 ")
    assert set(server.served) == {"recipe.yaml"}


def test_a_run_asks_the_hub_for_what_its_recipe_names_alone(server, elsewhere, folder, tmp_path):
    """And writes into its output folder alone."""
    from tiny_recipe import TINY

    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}
    server.datasets["me/colours@main"] = files
    named = {**TINY, "dataset_name": "me/colours", "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    put(server, yaml.safe_dump(named), "me/other")
    work = tmp_path / "work"
    work.mkdir()
    elsewhere(command("run", "hf://me/other", "--output_dir", "out", "--seed", "4"), work)
    assert json.loads((work / "out" / "results.json").read_text())["data"] == "me/colours"
    assert [path.name for path in work.iterdir()] == ["out"]
    assert set(server.served) == {"recipe.yaml", *files}
    strange = [path for path in server.asked if not re.search(r"/me/(other|colours)(/|$)", path)]
    assert set(strange) <= {"/api/agent-harnesses"}  # what its client asks by itself


def put(server, text, repo="me/other", name="recipe.yaml"):
    server.private[repo] = False
    server.commits[repo] = [{}, {name: text.encode()}]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://me", "hf://me: a recipe on the Hub is written hf://me/name or hf://me/name@revision"),
        ("hf://../..", "a recipe on the Hub is written"),
        ("hf://me/other@", "a recipe on the Hub is written"),
        ("hf://me/nothing", "hf://me/nothing: no such repository, or a private one and no token"),
        ("hf://me/other@v7", "hf://me/other@v7: no such revision"),
        ("hf://me/other@v0", "hf://me/other@v0: has no recipe.yaml, so it is no recipe"),
    ],
)
def test_addresses_that_do_not_fit(address, message, server, capsys):
    put(server, "task: image_classification\n")
    assert message in says(capsys, ["run", address])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "a recipe is a list of `key: value` lines"),
        ("task: image_classification\nlearning_rat: 1\n", "learning_rat is not a field of this recipe"),
        ("task: !!python/object/apply:os.system [ls]\n", "is not YAML"),
        ("task: image_classification\nhub_token: x\n", "hub_token cannot stand in a recipe"),
        ("task: image_classification\noutput_dir: /\n", "output_dir cannot stand in a recipe from the Hub"),
        ("task: image_classification\npush_to_hub: true\n", "push_to_hub cannot stand in a recipe from"),
        ("task: image_classification\ndataset_name: /root\n", "dataset_name cannot stand in a recipe from"),
        ("task: image_classification\ndataset_name: a/../../b\n", "dataset_name cannot stand in a"),
        ("task: image_classification\nreport_to: all\n", "report_to cannot stand in a recipe from"),
        ("task: image_classification\ntrackio_space_id: x\n", "trackio_space_id "),
        ("task: image_classification\nimage_mean: &a [*a]\n", "*a stands within itself"),
        ("task: image_classification\noptim: adamnx\noptimizers: {adamnx: {output_dir: /}}\n", "output_dir"),
        ("# " + "x" * 100_000 + "\ntask: image_classification\n", "that is no recipe"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_or_wants_too_much(text, message, server, capsys):
    put(server, text)
    assert message in says(capsys, ["run", "hf://me/other"])


def test_the_name_of_a_recipe_is_a_safe_folder(server):
    put(
        server,
        "task: image_classification\narchitecture: efficientnet_v2_s\ndataset_name: a/b\n",
        "me/lo.g-x_1",
    )
    resolved = recipes.resolve("hf://me/lo.g-x_1")
    assert resolved.name == "me--lo.g-x_1"
    assert resolved.training_arguments.output_dir.startswith(os.path.join("runs", "me--lo.g-x_1", ""))


def test_an_existing_repository(server, trained, capsys):
    words = ["publish", trained, "--repo-id", "me/colours"]
    push_run(trained, "me/colours", private=True)
    assert server.private["me/colours"]
    assert "such a repository already; choose another --repo-id, or commit to it by --update" in says(
        capsys, words
    )
    assert len(server.commits["me/colours"]) == 2
    assert cli.main([*map(str, words), "--update"]) == 0
    assert len(server.commits["me/colours"]) == 3


def test_a_private_update_of_a_public_repository(server, trained, capsys):
    """The Hub would take it, and everybody see it."""
    words = ["publish", str(trained), "--repo-id", "me/colours", "--private", "--update"]
    put(server, "task: image_classification\n", "me/colours")
    assert "me/colours: is public, and asked for was a private one" in says(capsys, words)
    assert len(server.commits["me/colours"]) == 2
    server.private["me/colours"] = True
    assert cli.main(words) == 0 and len(server.commits["me/colours"]) == 3
    words[3] = "me/new"
    assert cli.main(words) == 0 and server.private["me/new"]


def test_an_update_removes_what_only_an_earlier_run_put_there(server, copied, capsys):
    (copied / "tokenizer.json").write_text("{}")
    shutil.copy(copied / "model.safetensors", copied / "model-00001-of-00001.safetensors")
    (copied / "model.safetensors.index.json").write_text("{}")
    words = ["publish", str(copied), "--repo-id", "me/colours"]
    assert cli.main(words) == 0
    # Somebody adds files, one of a name that this package might have given it.
    theirs = dict.fromkeys(("vocab.txt", "LICENSE", "onnx/model.onnx", "config.yaml"), b"theirs")
    server.commits["me/colours"].append(server.files("me/colours") | theirs)
    (copied / "tokenizer.json").unlink()
    (copied / "model.safetensors.index.json").unlink()
    (copied / "model-00001-of-00001.safetensors").rename(copied / "adapter_model.safetensors")
    (copied / "model.safetensors").unlink()
    before = server.files("me/colours")
    capsys.readouterr()
    gone = ["model-00001-of-00001.safetensors", "model.safetensors", "model.safetensors.index.json",
            "tokenizer.json"]  # fmt: skip
    said = "".join(f"removed: {name} (of an earlier run)\n" for name in gone)
    assert cli.main([*words, "--update", "--dry-run"]) == 0
    assert said in capsys.readouterr().out and server.files("me/colours") is before
    assert cli.main([*words, "--update"]) == 0
    assert said in capsys.readouterr().out
    after = server.files("me/colours")
    assert set(before) - set(after) == set(gone) and set(after) - set(before) == {"adapter_model.safetensors"}
    assert len(server.commits["me/colours"]) == 4
    # Of a repository that this package has not published nothing goes.
    for results in ("mine", '{"published": [{"name": "tokenizer.json"}]}'):
        put(server, "mine", name="tokenizer.json")
        server.files("me/other").update({"config.json": b"{}", "results.json": results.encode()})
        assert cli.main(["publish", str(copied), "--repo-id", "me/other", "--update"]) == 0
        assert server.files("me/other")["tokenizer.json"] == b"mine"
        out = capsys.readouterr().out
        for name in ("config.json", "results.json"):  # of the same names, it is said
            assert f"replaced: {name} (not of an earlier run; the Hub's history has it)\n" in out
        assert out.count("replaced: ") == 2
    assert cli.main(["publish", str(copied), "--repo-id", "me/other", "--update"]) == 0
    assert "replaced: " not in capsys.readouterr().out


def test_an_update_keeps_what_its_owner_wrote_on_the_card(server, copied, capsys):
    words = ["publish", str(copied), "--repo-id", "me/colours"]
    assert cli.main([*words, "--license", "mit"]) == 0
    card = ModelCard.load("me/colours")
    card.data.tags += ["colours"]
    card.data.language = "de"
    card.text = f"Above.\n\n{card.text.replace('| seed | `3` |', '| seed | `?` |')}\n## Below\n"
    server.commits["me/colours"].append(server.files("me/colours") | {"README.md": str(card).encode()})
    results = json.loads((copied / "results.json").read_text())
    (copied / "results.json").write_text(json.dumps(results | {"smoke": True, "data": "made up"}))
    capsys.readouterr()
    assert cli.main([*words, "--update"]) == 0
    assert "licence" not in capsys.readouterr().out
    card = ModelCard.load("me/colours")
    assert card.text.strip().startswith("Above.") and card.text.rstrip().endswith("## Below")
    assert "| seed | `3` |" in card.text and card.text.count("## Again") == 1
    assert card.data.license == "mit" and card.data.language == "de"
    assert card.data.tags == ["adamnx", "adamnx-hf", "colours"]
    assert card.data.eval_results is None and card.data.metrics is None  # this run's
    assert cli.main([*words, "--update", "--license", "other", "--license-name", "mine"]) == 0
    data = ModelCard.load("me/colours").data
    assert (data.license, data.license_name) == ("other", "mine")
    assert cli.main([*words, "--update", "--license", "apache-2.0"]) == 0
    data = ModelCard.load("me/colours").data
    assert data.license == "apache-2.0" and data.license_name is None

    whole = server.files("me/colours")["README.md"].decode()
    put(server, whole.replace("<!-- adamnx-hf: end -->", ""), "me/cut", "README.md")
    message = "README.md of the repository: put the line <!-- adamnx-hf: end --> back"
    assert message in says(capsys, [*words[:3], "me/cut", "--update"]) and len(server.commits["me/cut"]) == 2

    put(server, "# By hand", name="README.md")
    assert cli.main([*words[:3], "me/other", "--update"]) == 0
    text = ModelCard.load("me/other").text
    assert text.index("## Again") < text.index("# By hand")
    put(server, "---\na: [\n---\n", "me/broken", "README.md")
    message = "README.md of the repository: its metadata cannot be read"
    assert message in says(capsys, [*words[:3], "me/broken", "--update"])
    assert len(server.commits["me/broken"]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--license", "Apache 2.0"], "--license Apache 2.0: the Hub's identifiers are lower case, such as"),
        (["--license", "other"], "--license other and --license-name NAME go together"),
        (["--license", "mit", "--license-name", "x"], "--license other and --license-name NAME go together"),
        (["--license", "apache"], "README.md: the Hub refuses its metadata: "),
    ],
)
def test_a_licence_that_does_not_fit(words, message, server, trained, capsys):
    assert message in says(capsys, ["publish", trained, "--repo-id", "me/colours", *words])
    assert not server.commits


def test_every_metric_is_one_of_the_hub():
    ours = [(name, metric) for task in TASKS for name, metric in load_task(task).METRICS.items()]
    assert len(ours) == len(dict(ours)) and all(metric.hub_type and metric.hub_name for _, metric in ours)
    converted = {name: metric.to_hub(40.0) for name, metric in ours}
    assert converted == {
        "top1_error": 0.6, "top5_error": 0.6, "mean_iou": 0.4, "pixel_accuracy": 0.4, "map_50": 0.4,
        "map_75": 0.4, "perplexity": 40.0, "exact_match": 0.4,
    }  # fmt: skip


def used(elsewhere, tmp_path, repo_id):
    """The code that the card of `repo_id` says how to use the model with, and what it prints."""
    from PIL import Image

    code = ModelCard.load(repo_id).text.partition("## Use\n\n```python\n")[2].partition("```")[0]
    assert code
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "picture.jpg")
    return code, elsewhere(code, tmp_path)


def test_a_classifier_is_used_as_its_card_says(server, elsewhere, trained, tmp_path):
    push_run(trained, "me/colours")
    code, printed = used(elsewhere, tmp_path, "me/colours")
    assert code.startswith("import adamnx_hf") and "'label': 'red'" in printed


@pytest.mark.parametrize(
    ("name", "start", "expected"),
    [
        ("sbd_unet", "import adamnx_hf", r"'mask': <PIL"),
        ("voc_yolov7_tiny", "import adamnx_hf", r"\["),
        # The pipeline draws the words: where an apostrophe is among them, they stand in double quotes.
        ("tinyshakespeare_stories260k", "from transformers", r"'generated_text': ['\"]Once upon a time"),
    ],
)
def test_a_model_is_used_as_its_card_says(name, start, expected, server, elsewhere, tmp_path):
    out = tmp_path / "run"
    assert cli.main(["run", name, "--smoke", "--output_dir", str(out)]) == 0
    push_run(out, f"me/{name}")
    code, printed = used(elsewhere, tmp_path, f"me/{name}")
    assert code.startswith(start) and re.search(expected, printed)


def test_an_adapter_is_used_as_its_card_says(server, elsewhere, tmp_path):
    """Trained from a base on the Hub; one of a local base says that it has none there."""
    name = "tinyshakespeare_stories260k_lora"
    assert cli.main(["run", name, "--smoke", "--output_dir", str(tmp_path / "smoke")]) == 0
    card = package_run(tmp_path / "smoke", "me/x").files["README.md"].decode()
    assert "An adapter of a model that is not on the Hub" in card
    base = {path.name: path.read_bytes() for path in (tmp_path / "smoke" / "base_model").iterdir()}
    server.private["me/base"], server.commits["me/base"] = False, [{}, base]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "input.txt").write_text("To be, or not to be, that is the question.\n" * 60)
    changes = [
        "--model_name_or_path",
        "me/base",
        "--dataset_name",
        "text",
        "--max_steps",
        "2",
        "--output_dir",
        "run",
    ]
    elsewhere(command("run", name, *changes, "--use_cpu", "true"), tmp_path)
    push_run(tmp_path / "run", "me/adapter")
    assert ModelCard.load("me/adapter").data.base_model == "me/base"
    code, printed = used(elsewhere, tmp_path, "me/adapter")
    assert "AutoPeftModelForCausalLM" in code and "Once upon a time" in printed


def test_a_run_of_several_processes_says_so(copied):
    results = json.loads((copied / "results.json").read_text())
    results["environment"]["processes"] = 4
    (copied / "results.json").write_text(json.dumps(results))
    command = "accelerate launch --num_processes 4 -m adamnx_hf.cli run hf://me/x --dataset_name DATASET_NAME"
    made = package_run(copied, "me/x")
    assert made.command == command and f"```bash\n{command}\n```" in made.files["README.md"].decode()


def test_a_folder_is_known_as_one_wherever_its_run_is_published_from(tiny, folder, tmp_path, monkeypatch):
    """Though its name could be one on the Hub."""
    monkeypatch.chdir(folder.parent)
    out = tmp_path / "out"
    assert (
        cli.main(["run", tiny, "--dataset_name", folder.name, "--max_steps", "1", "--output_dir", str(out)])
        == 0
    )
    monkeypatch.chdir(tmp_path)
    assert not (tmp_path / folder.name).exists()
    made = package_run(out, "me/x")
    card = ModelCard(made.files["README.md"].decode())
    assert card.data.datasets is None and "--dataset_name DATASET_NAME" in made.command
    assert not [name for name, content in made.files.items() if str(folder.parent).encode() in
                (content if isinstance(content, bytes) else content.read_bytes())]  # fmt: skip


def test_no_token(server, trained, monkeypatch, capsys):
    words = ["publish", trained, "--repo-id", "me/colours"]
    monkeypatch.setenv("HF_TOKEN", "hf_ofsomebodyelse")
    assert "the token is not valid here" in says(capsys, words)
    monkeypatch.delenv("HF_TOKEN")
    assert "no token: log in by `hf auth login`, or set HF_TOKEN" in says(capsys, words)
    assert not server.commits


def test_no_network(server, trained, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        set_endpoint(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's attempts
    message = "cannot be reached; check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
    assert message in says(capsys, ["publish", trained, "--repo-id", "me/x"])
    # The client would try these again for half a minute.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for words in (["run", "hf://me/x"], ["recipes", "--hub"]):
        assert message in says(capsys, words)


def test_files_that_are_too_large(server, trained, monkeypatch, capsys):
    server.refuse_commits = True
    words = ["publish", trained, "--repo-id", "me/colours"]
    message = says(capsys, words)
    assert "the files are not (the Hub says that a file is too large); go on with --update" in message
    assert package.MAX_FILE_SIZE == 500e9  # https://huggingface.co/docs/hub/storage-limits
    monkeypatch.setattr(package, "MAX_FILE_SIZE", 30_000)
    assert "a file; save the model in shards" in says(capsys, [*words, "--update"])


def test_only_what_a_run_writes_is_published_and_others_files_as_they_are(copied, tmp_path):
    tokenizer = json.dumps({"model": {"merges": [[":", "//"], ["/", "m/01"]]}})
    (copied / "tokenizer.json").write_text(tokenizer)
    (copied / "log.txt").write_text("HF_TOKEN=hf_abcdefghijklmnopqrstuvwx")
    (copied / "notes.json").write_text('{"wandb_api_key": "x"}')
    (copied / "predictions.png").write_bytes(b"pictures")
    config = json.loads((copied / "config.json").read_text()) | {"id2label": {"0": "/m/01g317"}}
    (copied / "config.json").write_text(json.dumps(config))
    made = package_run(copied, "me/colours")
    kept = made.files["tokenizer.json"]
    assert (kept if isinstance(kept, bytes) else kept.read_bytes()) == tokenizer.encode()
    assert json.loads(made.files["config.json"])["id2label"] == {"0": "/m/01g317"}
    assert not {"log.txt", "notes.json", "predictions.png"} & set(made.files)
    for name in ("log.txt", "notes.json", "predictions.png"):
        assert any(name in left for left in made.left_out)


def test_dry_run_needs_no_hub(copied, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    written = yaml.safe_load((copied / "recipe.yaml").read_text())
    (copied / "recipe.yaml").write_text(yaml.safe_dump({**written, "dataset_name": "uoft-cs/cifar100"}))
    (copied / "notes.txt").write_text("mine")
    words = ["publish", str(copied), "--repo-id", "me/colours", "--dry-run"]
    assert cli.main(words) == 0
    out = tmp_path / "run-hub"
    assert f"Written to {out}: " in capsys.readouterr().out
    card = ModelCard.load(out / "README.md")
    assert card.data.datasets == ["uoft-cs/cifar100"]
    assert "```bash\nadamnx-hf run hf://me/colours\n```" in card.text
    assert recipes.resolve(str(out / "recipe.yaml")).task_arguments.dataset_name == "uoft-cs/cifar100"
    assert "is not an empty folder; choose another --output-dir" in says(capsys, words)


def test_the_card_says_which_part_of_the_data_set_was_judged_on(copied):
    written = yaml.safe_load((copied / "recipe.yaml").read_text())
    part = {"dataset_config_name": "small", "dataset_revision": "refs/convert/parquet"}

    def judged_on(**fields):
        (copied / "recipe.yaml").write_text(yaml.safe_dump({**written, **fields}))
        card = ModelCard(package_run(copied, "me/x").files["README.md"].decode())
        (model,) = card.data.to_dict()["model-index"]
        return [result["dataset"] for result in model["results"]]

    (of_the_hub,) = judged_on(dataset_name="me/data", **part)
    assert of_the_hub["type"] == "me/data"
    assert (of_the_hub["config"], of_the_hub["revision"]) == tuple(part.values())
    for fields in ({"dataset_name": "me/data"}, part):  # the second: of a local folder, which has no branches
        (other,) = judged_on(**fields)
        assert not {"config", "revision"} & set(other)


def card_of(run_dir, **results):
    """The card of a run of other results."""
    there = json.loads((run_dir / "results.json").read_text())
    (run_dir / "results.json").write_text(json.dumps({**there, **results}))
    return ModelCard(package_run(run_dir, "me/x").files["README.md"].decode())


def figures(card):
    return [(entry.metric_name, entry.metric_value) for entry in card.data.eval_results]


def results_section(card):
    return card.text.partition("## Results\n\n")[2].partition("\n\n![")[0]


TOP1 = {"top1_error": {"best": 20.0, "best_epoch": 1, "last": 40.0}}
CHOSEN = "best epoch, chosen on the evaluation split itself"


def test_the_figures_of_the_weights_that_are_there_come_first(copied):
    """Chosen by another figure than the one that is best elsewhere."""
    weights = {"step": 4, "epoch": 2, "chosen_by": "eval_loss", "metrics": {"top1_error": 30.0}}
    card = card_of(copied, steps=6, weights=weights, metrics=TOP1)
    assert figures(card) == [
        ("Accuracy, step 4, the best by eval_loss on the evaluation split itself", 0.7),
        ("Accuracy, last epoch", 0.6),
        (f"Accuracy, {CHOSEN}", 0.8),
    ]
    section = results_section(card)
    assert "The weights are those of step 4, the best by `eval_loss` on that split itself" in section
    assert "| metric | these weights, step 4 | last epoch | best epoch | which |" in section
    assert "| top-1 error, % | 30 | 40 | 20 | 1 |" in section


@pytest.mark.parametrize(
    ("weights", "top1", "expected", "row"),
    [
        # The weights of the best epoch: the best is said already.
        (
            {"step": 2, "epoch": 1, "chosen_by": "top1_error", "metrics": {"top1_error": 20.0}},
            TOP1,
            [("step 2, the best by top1_error on the evaluation split itself", 0.8), ("last epoch", 0.6)],
            "| 20 | 40 |",
        ),
        # The last step's, whether they were the best or not.
        (
            {"step": 6, "epoch": 3, "chosen_by": "eval_loss", "metrics": {"top1_error": 40.0}},
            TOP1,
            [("last epoch", 0.6), (CHOSEN, 0.8)],
            "| 40 | 20 | 1 |",
        ),
        (
            {"step": 6, "epoch": 3, "chosen_by": None, "metrics": {"top1_error": 20.0}},
            {"top1_error": {"best": 20.0, "best_epoch": 3, "last": 20.0}},
            [("last epoch", 0.8)],
            "| 20 |",
        ),
    ],
)
def test_no_figure_is_said_twice(weights, top1, expected, row, copied):
    card = card_of(copied, steps=6, weights=weights, metrics=top1)
    assert figures(card) == [(f"Accuracy, {told}", value) for told, value in expected]
    section = results_section(card)
    assert f"| top-1 error, % {row}\n" in f"{section}\n"
    assert ("read it as optimistic" in section) == (CHOSEN in dict(expected))


def test_results_of_before_weights_were_recorded(copied):
    path = copied / "results.json"
    old = json.loads(path.read_text())
    for key in ("weights", "data_changes", "judged_on_training_rows"):
        del old[key]
    path.write_text(json.dumps(old))
    assert figures(card_of(copied, metrics=TOP1)) == [
        ("Accuracy, last epoch", 0.6),
        (f"Accuracy, {CHOSEN}", 0.8),
    ]
    written = yaml.safe_load((copied / "recipe.yaml").read_text())
    (copied / "recipe.yaml").write_text(yaml.safe_dump({**written, "load_best_model_at_end": True}))
    assert (
        "The weights are those of the best evaluation; the run did not record which." in card_of(copied).text
    )


def first_sentence(card):
    return card.text.partition("# x\n\n")[2].partition("\n")[0]


def test_a_card_says_which_data_first_and_a_title_only_where_it_is_true(copied):
    parameters = json.loads((copied / "results.json").read_text())["parameters"]
    end = f": {parameters:,} parameters."
    start = "Trained on 48 examples of colours with `optim=adamnx` by adamnx-hf, "
    assert first_sentence(card_of(copied)) == f"{start}from the recipe `colours` (Colours){end}"
    secret = "/home/somebody/secret/flowers"
    changed = {"dataset_name": secret, "label_column": "label", "class_names": ["a", "b"]}
    card = card_of(copied, data=secret, data_changes=changed, changes={"num_train_epochs": 1.0})
    start = start.replace("colours", "flowers")
    assert first_sentence(card) == f"{start}by the settings of the recipe `colours`{end}"
    table = card.text.partition("## Changed from the recipe\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    assert table == [
        "| num_train_epochs | `1.0` |",
        "| dataset_name | `flowers` |",
        "| label_column | `label` |",
        "| class_names | `['a', 'b']` |",
    ]
    made = package_run(copied, "me/x")
    for name in ("README.md", "results.json", "recipe.yaml"):
        assert b"secret" not in made.files[name]
    assert b"Colours" not in made.files["recipe.yaml"]  # nor is it said when that is run again


@pytest.mark.parametrize("changes", [{"train_split": "train[:8]"}, {"architecture": "convnext_tiny"}])
def test_other_rows_or_another_network_than_the_titles(changes, copied):
    assert "Colours" not in card_of(copied, changes=changes).text
    made_up = card_of(copied, changes={}, data="made up", smoke=True)
    assert "Trained on 48 made-up examples with" in first_sentence(made_up) and "Colours" not in made_up.text
    on_a_folder = card_of(copied, data="colours").text
    assert "None: a smoke run says nothing" in on_a_folder and "made-up" not in on_a_folder


def test_a_metric_that_is_not_there_is_not_on_the_card(copied):
    card = card_of(copied, metrics=TOP1, weights=None)
    assert not re.search("(?i)top-?5", str(card)) and len(card.data.eval_results) == 2


def test_what_was_judged_on_training_rows_or_without_all_rows_says_so(copied):
    card = card_of(copied, metrics=TOP1, weights=None, judged_on_training_rows=True)
    assert [name for name, _ in figures(card)] == [
        f"Accuracy, {which}, on rows that it was trained on" for which in ("last epoch", CHOSEN)
    ]
    judged = "On 21 examples of the evaluation split."
    trained_on = "Some of them it was trained on: the figures say nothing of other rows."
    assert results_section(card).startswith(f"{judged} {trained_on}")
    dropped = {"train_split": 1200, "eval_split": 3}
    card = card_of(copied, judged_on_training_rows=False, dropped_examples=dropped)
    left_out = "Examples that did not fit into `max_length` were left out: 1,200 of `train_split`, 3 of "
    assert results_section(card).startswith(f"{judged} {left_out}`eval_split`. One run")


def test_an_adapter(copied):
    (copied / "model.safetensors").rename(copied / "adapter_model.safetensors")
    (copied / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"}))
    data = ModelCard(package_run(copied, "me/x").files["README.md"].decode()).data
    assert data.library_name == "peft" and data.base_model == "org/base"


def test_a_smoke_run_has_no_results(copied):
    results = json.loads((copied / "results.json").read_text()) | {"smoke": True, "data": "made up"}
    (copied / "results.json").write_text(json.dumps(results))
    card = ModelCard(package_run(copied, "me/x").files["README.md"].decode())
    assert card.data.eval_results is None and "None: a smoke run on made-up data" in card.text


@pytest.mark.parametrize(
    ("missing", "repo_id", "message"),
    [
        ("results.json", "me/x", "has no results.json; is it a folder of a finished `adamnx-hf run`?"),
        ("model.safetensors", "me/x", r"has no model \(\*\.safetensors\)"),
        (None, "x", "is written hf://me/name"),
        (None, "me/x@v1", "a revision cannot be chosen"),
    ],
)
def test_what_cannot_be_published(missing, repo_id, message, copied):
    if missing:
        (copied / missing).unlink()
    with pytest.raises(RecipeError, match=message):
        package_run(copied, repo_id)


def test_results_of_something_else(copied):
    for text in ("[]", '{"accuracy": 1}'):
        (copied / "results.json").write_text(text)
        with pytest.raises(RecipeError, match=r"its results\.json is not one of `adamnx-hf run`"):
            package_run(copied, "me/x")


def test_push_to_hub_of_a_recipe(server, tiny, tmp_path):
    out = tmp_path / "out"
    words = ["--output_dir", str(out), "--max_steps", "1", "--push_to_hub", "--hub_model_id", "pushed"]
    assert cli.main(["run", tiny, *words]) == 0
    files = server.files("me/pushed")
    assert files["README.md"] == package_run(out, "me/pushed").files["README.md"]
    assert "training_args.bin" not in files and str(tmp_path).encode() not in files["recipe.yaml"]
    assert hf_hub_download("me/pushed", "config.json", endpoint=server.endpoint, cache_dir=tmp_path / "c")


def test_push_to_hub_without_a_token_ends_before_training(server, tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    words = ["run", tiny, "--output_dir", tmp_path / "out", "--push_to_hub"]
    assert "no token" in says(capsys, words)
    assert not (tmp_path / "out").exists()


def test_the_tag_is_what_is_listed():
    assert hub.TAG == "adamnx"
