import gc
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml
from forks import lean
from tiny_recipe import TINY

if "PYTEST_XDIST_WORKER" in os.environ:  # a worker to a core: more threads would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Nothing here may reach for the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items):
    """Files whose fixtures take long begin early: at the end one worker would wait for them alone."""
    items.sort(key=lambda item: item.path.name != "test_transformers_patch.py")


@pytest.fixture(scope="module", autouse=True)
def garbage_is_looked_for_in_what_is_new():
    """Every Trainer collects garbage when it begins: a second, if all that was imported is looked through."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()  # nanobind calls what is still there at the end a leak


@pytest.fixture(autouse=True)
def precision_as_it_was():
    """Transformers 4.57 leaves bf16 in the environment, for all the TrainingArguments that come later."""
    before = {key: value for key, value in os.environ.items() if key.startswith("ACCELERATE_")}
    yield
    for key in [key for key in os.environ if key.startswith("ACCELERATE_")]:
        del os.environ[key]
    os.environ.update(before)


@pytest.fixture
def run_python(tmp_path):
    """Runs code in an interpreter of its own, for what depends on import order or patches globally."""

    def run(code: str, expect: int = 0) -> str:
        command = [sys.executable, "-c", code]
        result = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=lean()
        )
        assert result.returncode == expect, result.stderr
        return result.stderr + result.stdout  # what others warn of comes before what the code prints

    return run


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A local data set of CIFAR-100's schema whose classes are colours, so that it can be learned."""
    from datasets import ClassLabel, Dataset, Features, Image  # once the Hub is known to be out of reach

    root = tmp_path_factory.mktemp("data") / "colours"
    names = ["red", "green", "blue"]
    features = Features(
        {"img": Image(), "fine_label": ClassLabel(names=names), "coarse_label": ClassLabel(2)}
    )
    random = np.random.default_rng(0)
    for split, count in (("train", 48), ("test", 21)):
        labels = random.integers(0, 3, count)
        images = random.integers(0, 100, (count, 32, 32, 3), dtype=np.uint8)
        images[np.arange(count), :, :, labels] += 150
        data = Dataset.from_dict(
            {"img": list(images), "fine_label": labels, "coarse_label": labels % 2}, features=features
        )
        (root / "data").mkdir(parents=True, exist_ok=True)
        data.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture(scope="session")
def timed_briefly():
    """A run's throughput is measured, at its end, for a tenth of a second instead of 3, twice."""
    from adamnx_hf.runs import throughput

    measure = throughput.measure
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "measure", lambda trainer, seconds: measure(trainer, min(seconds, 0.1)))
        yield


@pytest.fixture
def tiny(tmp_path, folder, timed_briefly):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "dataset_name": str(folder)}))
    return str(path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, folder, timed_briefly):
    """The folder of a run that was trained on a local folder, with two files that may hold pickles."""
    from hub_server import TOKEN

    from adamnx_hf import cli

    root = tmp_path_factory.mktemp("trained")
    written = root / "colours.yaml"
    written.write_text(yaml.safe_dump({**TINY, "dataset_name": str(folder), "title": "Colours"}))
    words = ["--num_train_epochs", "1", "--hub_token", TOKEN, "--seed", "3"]
    assert cli.main(["run", str(written), "--output_dir", str(root / "run"), *words]) == 0
    for name in ("training_args.bin", "optimizer.pt"):
        (root / "run" / name).write_bytes(b"a pickle")
    return root / "run"


@pytest.fixture(scope="module")
def one_server():
    from hub_server import HubServer

    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server(one_server, tmp_path, monkeypatch):
    """A Hub, and a client that is set to it as HF_ENDPOINT and HF_TOKEN would set it."""
    from hub_server import TOKEN, set_client
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "tokens"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    one_server.clear()
    set_client(monkeypatch, one_server, tmp_path / "cache")
    return one_server
