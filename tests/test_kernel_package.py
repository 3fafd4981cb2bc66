"""The kernel in the layout of the `kernels` package, loaded by that package from a local folder."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from adamnx_hf import AdamNX, kernel_package


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kernel") / "adamnx"
    assert kernel_package.main([str(folder)]) == 0
    return folder


# Loads the kernel where adamnx_hf cannot be imported, and takes three steps.
STEPS = """
import sys
sys.modules["adamnx_hf"] = None
import inspect, pathlib
kernels = __import__("kernels")
folder = pathlib.Path(sys.argv[1])
more = {"package_name": "adamnx"} if "package_name" in inspect.signature(kernels.get_local_kernel).parameters else {}
kernel = kernels.get_local_kernel(folder, **more)
import torch
torch.manual_seed(0)
params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((7, 5), (1030,))]
optimizer = kernel.AdamNX(params, lr=0.01, weight_decay=0.1, fused=True)
for _ in range(3):
    for param in params:
        param.grad = param.detach() * 2
    optimizer.step()
torch.save([param.detach() for param in params], sys.argv[2])
engines = sys.modules[kernel.__name__ + ".engines"]
case = engines.Case("cpu", torch.float32)
print(kernel.__file__, engines.choose_engine(case, foreach=None, fused=True).__name__)
"""  # noqa: E501


def test_kernels_loads_it_and_it_steps_as_the_package_does(built, tmp_path):
    """With the Triton kernel, interpreted, or on a platform without Triton with torch's own."""
    pytest.importorskip("kernels")
    interpreted = "1" if importlib.util.find_spec("triton") else "0"
    out = tmp_path / "params.pt"
    environment = os.environ | {"TRITON_INTERPRET": interpreted}
    environment.pop("PYTHONPATH", None)
    ran = subprocess.run(
        [sys.executable, "-c", STEPS, str(built), str(out)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    path, engine = ran.stdout.split()
    assert path.startswith(str(built / "build" / "torch-"))
    assert engine.endswith("engines.triton" if interpreted == "1" else "engines.aten")

    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((7, 5), (1030,))]
    optimizer = AdamNX(params, lr=0.01, weight_decay=0.1, foreach=False)  # the reference
    before = [param.detach().clone() for param in params]
    for _ in range(3):
        for param in params:
            param.grad = param.detach() * 2
        optimizer.step()
    for ours, theirs, start in zip(params, torch.load(out, weights_only=True), before, strict=True):
        assert not torch.equal(theirs, start)
        torch.testing.assert_close(theirs, ours.detach(), rtol=1e-6, atol=1e-7)


def test_the_metadata_is_what_kernels_reads(built):
    rust = pytest.importorskip("kernels._rust")
    for backend in kernel_package.BACKENDS:
        metadata = rust.Metadata.read_from_file(built / "build" / f"torch-{backend}" / "metadata.json")
        assert str(metadata.name) == "adamnx" and metadata.version == 1 and not metadata.python_depends
        assert metadata.backend.backend_type == rust.Backend.from_str(backend)
        assert metadata.id.isidentifier()


def test_the_files_are_the_packages_own(built):
    for backend in kernel_package.BACKENDS:
        variant = built / "build" / f"torch-{backend}"
        names = {path.relative_to(variant) for path in variant.rglob("*.py")}
        source = kernel_package._SOURCE
        assert names == {path.relative_to(source) for path in source.rglob("*.py")}
        for name in names:
            theirs, ours = (variant / name).read_text().splitlines(), (source / name).read_text().splitlines()
            changed = [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b]
            assert all("import" in a or "adamnx_hf::" in a for a, _ in changed), name
            compile((variant / name).read_text(), str(name), "exec")
        metadata = json.loads((variant / "metadata.json").read_text())
        assert metadata["license"] == "Apache-2.0"


def test_the_same_source_gives_the_same_bytes(built, tmp_path):
    kernel_package.build(tmp_path / "again")
    files = [path.relative_to(built) for path in built.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert len(files) > 30
    for name in files:
        assert (built / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(
    ("line", "depth", "result"),
    [
        ("from adamnx_hf.optim.update import x", 0, "from .update import x"),
        ("    from adamnx_hf.optim.engines import x", 1, "    from ..engines import x"),
        ("from adamnx_hf.optim import x", 0, "from . import x"),
        ("from torch import x", 1, "from torch import x"),
    ],
)
def test_imports(line, depth, result):
    assert kernel_package.make_imports_relative(line, depth) == result


@pytest.mark.parametrize(
    "line", ["from adamnx_hf.catalog import x", "import adamnx_hf", "import trainer_patches"]
)
def test_what_the_kernel_cannot_have(line):
    with pytest.raises(ValueError, match=r"only adamnx_hf\.optim goes into the kernel"):
        kernel_package.make_imports_relative(line, 0)


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    assert kernel_package.main([str(tmp_path)]) == 1
    assert "is not an empty folder; choose another one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
