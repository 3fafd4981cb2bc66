import dataclasses
import json

import pytest
import torch

from adamnx_hf import cli
from adamnx_hf.bench import cases, device, timing
from adamnx_hf.bench.cases import CASES, Case, make_gradients
from adamnx_hf.bench.contestants import BASELINE, CONTESTANTS, Contestant
from adamnx_hf.bench.report import describe_machine, find_kernel
from adamnx_hf.commands import bench
from adamnx_hf.optim.engines import runtime
from adamnx_hf.optim.engines import triton as engine

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """What one short benchmark writes."""
    path = tmp_path_factory.mktemp("bench") / "new" / "step"
    assert cli.main(f"bench --device cpu --cases 400x8k --rounds 2 --steps 1 --output {path}".split()) == 0
    return path


def test_writes_table_data_and_chart(output):
    assert {path.name for path in output.parent.iterdir()} == {"step.json", "step.md", "step.png"}
    report = json.loads(output.with_suffix(".json").read_text())
    (result,) = report["results"]
    assert result["parameters"] == 400 * 8 * 1024
    rows = {row["optimizer"]: row for row in result["optimizers"]}
    assert {"adamnx", "adamnx + clip", "adamw_torch_fused", "adamw_torch_fused + clip"} <= set(rows)
    assert all(row["ms"] > 0 and row["ratio"] > 0 for row in rows.values())
    for clip in ("", " + clip"):
        assert rows["adamw_torch_fused" + clip]["ratio"] == 1
        ratio = rows["adamnx" + clip]["ms"] / rows["adamw_torch_fused" + clip]["ms"]
        assert rows["adamnx" + clip]["ratio"] == pytest.approx(ratio)
    assert rows["adamnx"]["bytes"] == result["parameters"] * 28  # float32: p, g, m, v read; p, m, v written
    assert set(report["environment"]) >= {"adamnx-hf", "torch", "python", "processor"}
    assert report["complete"]
    for row in rows.values():
        lower, upper = row["quartiles_ms"]
        assert 0 < row["p10_ms"] <= lower <= row["ms"] <= upper <= row["p90_ms"]
    text = output.with_suffix(".md").read_text()
    assert "| torch AdamW, fused, with clipping |" in text
    assert report["command"] in text
    spread = f"{rows['adamnx']['p10_ms']:.3f} to {rows['adamnx']['p90_ms']:.3f}"
    assert f"| AdamNX | {rows['adamnx']['ms']:.3f} | {spread} |" in text
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_overwritten_unasked(output, capsys):
    before = output.with_suffix(".json").read_bytes()
    assert cli.main(["bench", "--device", "cpu", "--output", str(output)]) == 2
    assert "step.png would be overwritten; pass --overwrite" in capsys.readouterr().err
    assert output.with_suffix(".json").read_bytes() == before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--rounds 0", "--rounds and --steps must be at least 1"),
        ("--device cpu --tune --memory", "--tune and --memory are two measurements"),
        ("--device cpu --tune", "--tune is for the Triton kernel, which needs a CUDA card"),
        ("--device cpu --seconds 9", "--seconds 9 is for --tune; without it, choose --rounds"),
        ("--device cpu --tune --seconds 0", "--seconds 0 must be greater than 0"),
        ("--device cpu --cases lora-7b", "lora-7b is not for cpu; choose of llama-5m, llama-5m-bf16, 10x5m"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(argv, message, capsys):
    assert cli.main(["bench", *argv.split()]) == 2
    assert message in capsys.readouterr().err.splitlines()[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_card_that_is_not_there_is_told(capsys):
    assert cli.main(["bench", "--device", "cuda"]) == 2
    assert "torch finds no CUDA card here" in capsys.readouterr().err


def test_packages_that_are_missing_are_left_out_and_named(monkeypatch, capsys):
    missing = Contestant("A package that is not there", print, ("cpu",), needs="no_such_package")
    monkeypatch.setitem(CONTESTANTS, "missing", missing)
    monkeypatch.setitem(CASES, "10x5m", Case("one number", lambda: [(1,)], ("cpu",)))
    argv = "--device cpu --cases 10x5m --rounds 1 --steps 1 --optimizers adamnx missing adamw_torch_fused"
    assert cli.main(["bench", *argv.split()]) == 0
    assert "Left out, missing: no_such_package is not installed." in capsys.readouterr().out


def test_what_fails_is_named_and_the_rest_goes_on(monkeypatch, capsys):
    def fail(params):
        raise RuntimeError("no such kernel\nat all")

    class Greedy(torch.optim.SGD):
        """Its first step has room; with the others' states beside it the next has none."""

        def step(self):
            if self.defaults.get("stepped"):
                raise torch.OutOfMemoryError("CUDA out of memory: greedy")
            self.defaults["stepped"] = True

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    monkeypatch.setitem(CONTESTANTS, "broken", Contestant("Broken", fail, ("cpu",)))
    monkeypatch.setitem(CONTESTANTS, "greedy", Contestant("Greedy", Greedy, ("cpu",)))
    monkeypatch.setitem(CASES, "10x5m", Case("too large", too_large, ("cpu",)))
    monkeypatch.setitem(CASES, "400x8k", Case("one number", lambda: [(1,)], ("cpu",)))
    names = "broken greedy adamnx adamw_torch_fused"
    argv = f"--device cpu --cases 10x5m 400x8k --rounds 1 --steps 1 --optimizers {names}"
    assert cli.main(["bench", *argv.split()]) == 0
    out = capsys.readouterr().out
    assert "Failed, broken: RuntimeError: no such kernel." in out
    assert "Failed, 10x5m: OutOfMemoryError: CUDA out of memory. Tried to allocate." in out
    assert "Failed, greedy: OutOfMemoryError: CUDA out of memory: greedy." in out
    assert "| AdamNX |" in out and "| Greedy |" not in out


def one_number(monkeypatch, *names):
    """Makes cases of the CPU small."""
    for name in names:
        monkeypatch.setitem(CASES, name, Case("one number", lambda: [(1,)], ("cpu",)))


def test_a_case_is_written_before_the_next_begins(monkeypatch, tmp_path):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    one_number(monkeypatch, "10x5m")
    monkeypatch.setitem(CASES, "400x8k", Case("the end", kill, ("cpu",)))
    argv = f"--device cpu --cases 10x5m 400x8k --rounds 1 --steps 1 --output {tmp_path / 'step'}"
    with pytest.raises(Killed):
        cli.main(["bench", *argv.split(), "--optimizers", "adamnx", BASELINE])
    report = json.loads((tmp_path / "step.json").read_text())
    assert [result["case"] for result in report["results"]] == ["10x5m"]
    assert not report["complete"]
    assert "## one number" in (tmp_path / "step.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available() or runtime.INTERPRETED, reason="the kernel serves here")
def test_the_kernel_that_served_is_named(output):
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["kernel"] == "aten"
    assert "run on the CPU only under TRITON_INTERPRET=1" in report["why_not_triton"]
    assert (
        "AdamNX's kernel: aten, for the Triton kernel cannot serve: " in output.with_suffix(".md").read_text()
    )


def test_another_kernel_than_our_own_on_a_card_is_an_error(capsys):
    report = {"results": [], "kernel": "aten", "why_not_triton": "RuntimeError: no compiler"}
    assert bench._find_status(report, "cpu") == 0
    assert capsys.readouterr().err == ""
    assert bench._find_status(report, "cuda") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "AdamNX was served by aten, not by its own kernel (RuntimeError: no compiler)" in line
    assert bench._find_status(report | {"kernel": "triton", "why_not_triton": None}, "cuda") == 0


def test_the_engine_that_is_chosen_is_the_one_named(monkeypatch):
    monkeypatch.setattr(engine, "why_not", lambda *args, **kwargs: None)
    assert find_kernel("cuda") == ("triton", None)
    monkeypatch.setattr(engine, "why_not", lambda *args, **kwargs: "RuntimeError: no compiler")
    assert find_kernel("cuda") == ("aten", "RuntimeError: no compiler")


def test_a_lost_context_stops_the_bench_with_what_is_there(monkeypatch, tmp_path, capsys):
    def fail(params):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(CONTESTANTS, "broken", Contestant("Broken", fail, ("cpu",), dtype="bfloat16"))
    monkeypatch.setattr(device, "context_is_lost", lambda device: True)
    one_number(monkeypatch, "10x5m", "2000x1k")
    case = dataclasses.replace(CASES["10x5m"], dtype="bfloat16")
    monkeypatch.setitem(CASES, "400x8k", case)
    argv = f"--device cpu --cases 10x5m 400x8k 2000x1k --rounds 1 --steps 1 --output {tmp_path / 'step'}"
    assert cli.main(["bench", *argv.split(), "--optimizers", "broken", BASELINE]) == 1
    report = json.loads((tmp_path / "step.json").read_text())
    assert [result["case"] for result in report["results"]] == ["10x5m", "400x8k"]
    assert report["results"][0]["optimizers"] and not report["complete"]
    error = capsys.readouterr().err
    assert (
        "stopped in 400x8k, where the card's context was lost (RuntimeError: CUDA error: an illegal" in error
    )


def test_a_second_set_of_gradients_is_of_the_same_kind(monkeypatch):
    made, make = [], make_gradients
    for module in (cases, timing):
        monkeypatch.setattr(
            module, "make_gradients", lambda params, how: made.append(how) or make(params, how)
        )
    for case in ("toy-ddp", "toy-zero", "toy"):
        argv = f"--device cpu --rounds 1 --steps 1 --cases {case} --optimizers {BASELINE}"
        assert cli.main(["bench", *argv.split()]) == 0
    assert made == ["misaligned"] * 2 + ["zero"] * 2 + ["apart"] * 2


def test_the_environment_names_the_commit_where_there_is_no_checkout(monkeypatch):
    monkeypatch.setenv("GIT_COMMIT", "0123abc")
    assert "(commit 0123abc)" in describe_machine("cpu")["adamnx-hf"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA card")
def test_on_a_card(tmp_path, capsys):
    argv = f"--cases lora-7b --rounds 2 --steps 1 --output {tmp_path / 'step'}"
    assert cli.main(["bench", *argv.split()]) == 0
    report = json.loads((tmp_path / "step.json").read_text())
    assert report["copy_gb_per_s"] > 0
    row = report["results"][0]["optimizers"][0]
    assert row["optimizer"] == "adamnx"
    assert 0 < row["share_of_copy"] < 1.5
    assert row["host_us"] > 0
    assert row["state_bytes"] >= 39_976_960 * 8
    assert report["kernel"] == "triton" and row["gb_per_s"] > 0
    assert cli.main(["bench", "--tune", "--cases", "400x8k", "--rounds", "1", "--steps", "1"]) == 0
    assert "1024 x 4" in capsys.readouterr().out
