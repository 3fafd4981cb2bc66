import dataclasses
import json
import math
import os
import subprocess
import sys
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from adamnx_hf import cli
from adamnx_hf.bench import run as bench
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


@pytest.mark.parametrize(
    ("case", "parameters", "tensors"),
    [("llama-1b", 1_235_814_400, 146), ("lora-7b", 39_976_960, 448), ("2000x1k", 2_000_000, 2000)],
)
def test_shapes_are_those_of_the_models(case, parameters, tensors):
    shapes = bench.CASES[case].shapes()
    assert sum(map(math.prod, shapes)) == parameters
    assert len(shapes) == tensors


def test_llama_shapes_are_transformers_own():
    transformers = pytest.importorskip("transformers")
    sizes = {"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192, "vocab_size": 128_256}
    heads = {"num_attention_heads": 32, "num_key_value_heads": 8}
    config = transformers.LlamaConfig(**sizes, **heads, tie_word_embeddings=True)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    theirs = sorted(tuple(param.shape) for param in model.parameters())
    assert sorted(bench.CASES["llama-1b"].shapes()) == theirs


def test_every_name_says_what_it_is_and_where():
    for thing in (*bench.CASES.values(), *bench.CONTESTANTS.values()):
        assert thing.what
        assert set(thing.devices) <= {"cpu", "cuda"}
    assert bench.BASELINE in bench.CONTESTANTS


def test_packages_that_are_missing_are_left_out_and_named(monkeypatch, capsys):
    missing = bench.Contestant("A package that is not there", print, ("cpu",), needs="no_such_package")
    monkeypatch.setitem(bench.CONTESTANTS, "missing", missing)
    monkeypatch.setitem(bench.CASES, "10x5m", bench.Case("one number", lambda: [(1,)], ("cpu",)))
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

    monkeypatch.setitem(bench.CONTESTANTS, "broken", bench.Contestant("Broken", fail, ("cpu",)))
    monkeypatch.setitem(bench.CONTESTANTS, "greedy", bench.Contestant("Greedy", Greedy, ("cpu",)))
    monkeypatch.setitem(bench.CASES, "10x5m", bench.Case("too large", too_large, ("cpu",)))
    monkeypatch.setitem(bench.CASES, "400x8k", bench.Case("one number", lambda: [(1,)], ("cpu",)))
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
        monkeypatch.setitem(bench.CASES, name, bench.Case("one number", lambda: [(1,)], ("cpu",)))


def test_a_case_is_written_before_the_next_begins(monkeypatch, tmp_path):
    class Killed(BaseException):
        pass

    def kill():
        raise Killed

    one_number(monkeypatch, "10x5m")
    monkeypatch.setitem(bench.CASES, "400x8k", bench.Case("the end", kill, ("cpu",)))
    argv = f"--device cpu --cases 10x5m 400x8k --rounds 1 --steps 1 --output {tmp_path / 'step'}"
    with pytest.raises(Killed):
        cli.main(["bench", *argv.split(), "--optimizers", "adamnx", bench.BASELINE])
    report = json.loads((tmp_path / "step.json").read_text())
    assert [result["case"] for result in report["results"]] == ["10x5m"]
    assert not report["complete"]
    assert "## one number" in (tmp_path / "step.md").read_text()


@pytest.mark.skipif(torch.cuda.is_available() or engine.INTERPRETED, reason="the kernel serves here")
def test_the_kernel_that_served_is_named(output):
    report = json.loads(output.with_suffix(".json").read_text())
    assert report["kernel"] == "aten"
    assert "run on the CPU only under TRITON_INTERPRET=1" in report["why_not_triton"]
    assert (
        "AdamNX's kernel: aten, for the Triton kernel cannot serve: " in output.with_suffix(".md").read_text()
    )


def test_another_kernel_than_our_own_on_a_card_is_an_error(capsys):
    report = {"results": [], "kernel": "aten", "why_not_triton": "RuntimeError: no compiler"}
    assert bench._status(report, "cpu") == 0
    assert capsys.readouterr().err == ""
    assert bench._status(report, "cuda") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "AdamNX was served by aten, not by its own kernel (RuntimeError: no compiler)" in line
    assert bench._status(report | {"kernel": "triton", "why_not_triton": None}, "cuda") == 0


def test_the_engine_that_is_chosen_is_the_one_named(monkeypatch):
    monkeypatch.setattr(engine, "why_not", lambda *args, **kwargs: None)
    assert bench._kernel("cuda") == ("triton", None)
    monkeypatch.setattr(engine, "why_not", lambda *args, **kwargs: "RuntimeError: no compiler")
    assert bench._kernel("cuda") == ("aten", "RuntimeError: no compiler")


def test_a_lost_context_stops_the_bench_with_what_is_there(monkeypatch, tmp_path, capsys):
    def fail(params):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setitem(
        bench.CONTESTANTS, "broken", bench.Contestant("Broken", fail, ("cpu",), dtype="bfloat16")
    )
    monkeypatch.setattr(bench, "context_is_lost", lambda device: True)
    one_number(monkeypatch, "10x5m", "2000x1k")
    case = dataclasses.replace(bench.CASES["10x5m"], dtype="bfloat16")
    monkeypatch.setitem(bench.CASES, "400x8k", case)
    argv = f"--device cpu --cases 10x5m 400x8k 2000x1k --rounds 1 --steps 1 --output {tmp_path / 'step'}"
    assert cli.main(["bench", *argv.split(), "--optimizers", "broken", bench.BASELINE]) == 1
    report = json.loads((tmp_path / "step.json").read_text())
    assert [result["case"] for result in report["results"]] == ["10x5m", "400x8k"]
    assert report["results"][0]["optimizers"] and not report["complete"]
    error = capsys.readouterr().err
    assert (
        "stopped in 400x8k, where the card's context was lost (RuntimeError: CUDA error: an illegal" in error
    )


def test_a_failure_that_leaves_the_context_is_no_loss(monkeypatch):
    for failures, lost in ((0, False), (1, False), (2, True)):
        outcomes = iter([*failures * [RuntimeError("CUDA error")], None])

        def synchronize(outcomes=outcomes):
            if error := next(outcomes):
                raise error

        monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
        assert bench.context_is_lost("cuda") is lost
    assert not bench.context_is_lost("cpu")


def test_what_compiles_for_each_shape_takes_part_in_few_cases_unless_asked():
    unasked, asked = SimpleNamespace(optimizers=None), SimpleNamespace(optimizers=["adamw_torchao_8bit"])
    cases = [case for case in bench.CASES if bench._fits("adamw_torchao_8bit", case, unasked)]
    assert [case for case in cases if "cuda" in bench.CASES[case].devices] == ["llama-1b", "llama-1b-bf16"]
    assert {"llama-5m", "llama-5m-bf16"} <= set(cases)
    assert all(bench._fits("adamw_torchao_8bit", case, asked) for case in bench.CASES)
    assert bench._fits("adamw_bnb_8bit", "lora-7b", unasked)
    assert not bench._fits("adamw_torchao_stochastic", "llama-1b", asked)


def test_cases_to_try_the_command_out_run_only_when_named():
    assert bench._default_cases("cpu", memory=False) == ["10x5m", "400x8k", "2000x1k"]
    assert bench._default_cases("cpu", memory=True) == ["llama-5m", "llama-5m-bf16"]
    assert bench._default_cases("cuda", memory=True) == ["llama-1b", "llama-1b-bf16"]
    assert {"llama-300m-ddp", "lora-7b-zero"} < set(bench._default_cases("cuda", memory=False))
    assert "8x34m" not in bench._default_cases("cuda", memory=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_bucket_lie_off_multiples_of_16_bytes_and_apart(dtype):
    case = dataclasses.replace(bench.CASES["toy-ddp"], dtype=dtype)
    with bench._parameters(case, "cpu") as params:
        ends = [0]
        for grad, param in zip([p.grad for p in params], params, strict=True):
            assert grad.data_ptr() % 16 and not param.data_ptr() % 16
            assert grad.shape == param.shape and grad.dtype == param.dtype and grad.is_contiguous()
            assert grad.storage_offset() >= ends[-1]
            ends.append(grad.storage_offset() + grad.numel())
        assert len({p.grad.untyped_storage().data_ptr() for p in params}) == 1


def test_a_second_set_of_gradients_is_of_the_same_kind(monkeypatch):
    made, make = [], bench._gradients
    monkeypatch.setattr(bench, "_gradients", lambda params, how: made.append(how) or make(params, how))
    for case in ("toy-ddp", "toy-zero", "toy"):
        argv = f"--device cpu --rounds 1 --steps 1 --cases {case} --optimizers {bench.BASELINE}"
        assert cli.main(["bench", *argv.split()]) == 0
    assert made == ["misaligned"] * 2 + ["zero"] * 2 + ["apart"] * 2


def test_zero_gradients_are_zero():
    with bench._parameters(bench.CASES["toy-zero"], "cpu") as params:
        assert not any(param.grad.any() for param in params)


def test_the_environment_names_the_commit_where_there_is_no_checkout(monkeypatch):
    monkeypatch.setenv("GIT_COMMIT", "0123abc")
    assert "(commit 0123abc)" in bench._environment("cpu")["adamnx-hf"]


# ---------------------------------------------------------------- tuning


def test_candidates_are_the_shipped_tuning_first_then_others_once():
    shipped = engine.Tuning(2048, 8, "evict_first", "")
    tried = bench._candidates(shipped)
    assert tried[0] == shipped
    assert len(tried) == len(set(tried))
    hints = {(t.load, t.store) for t in tried if (t.block, t.warps) == (2048, 8)}
    assert hints == {("", ""), ("evict_first", ""), ("", ".cs"), ("evict_first", ".cs")}
    sizes = {(t.block, t.warps) for t in tried}
    assert sizes == {
        (512, 2), (512, 4), (1024, 4), (1024, 8), (2048, 4), (2048, 8), (4096, 8), (4096, 16)
    }  # fmt: skip
    assert len(bench._candidates(engine.Tuning())) == 13


def tune(path, seconds=None, rounds=1):
    """What `--tune` makes of small tensors, here by torch's own kernel."""
    args = SimpleNamespace(rounds=rounds, steps=1)
    deadline = None if seconds is None else bench.time.monotonic() + seconds
    return list(bench._tune(["toy"], args, "cpu", 100.0, deadline, path))


def test_each_kind_of_state_is_tuned_and_each_measurement_written(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_TUNED", {})
    own = engine.tuning
    results = tune(tmp_path / "tune.jsonl", rounds=2)
    assert engine.tuning is own
    assert [result["state"] for result in results] == list(bench._STATES)
    lines = [json.loads(line) for line in (tmp_path / "tune.jsonl").read_text().splitlines()]
    for result in results:
        assert len(result["optimizers"]) == 13 and not result["failed"]
        assert [row["optimizer"] for row in result["optimizers"] if row["shipped"]] == ["1024 x 4"]
        times = [line for line in lines if line["state"] == result["state"] and "ms" in line]
        assert len(times) == 2 * 13 and all(line["share_of_copy"] > 0 for line in times)
        assert [row["ms"] for row in result["optimizers"]] == sorted(r["ms"] for r in result["optimizers"])
    report = {"command": "", "results": results, "left_out": [], "kernel": "triton", "why_not_triton": None}
    table = bench._tables(report)
    assert "| 1024 x 4 (shipped) |" in table and "| 2048 x 8, evict_first, .cs |" in table
    assert "## four small tensors: 0.0 M parameters, float32, 8-bit state" in table


KIND = (*4 * [torch.float32], True)


def test_the_engine_is_given_each_candidate_and_its_own_tables(monkeypatch, tmp_path):
    seen = {}

    class Recorded(torch.optim.SGD):
        def __init__(self, params, **options):
            super().__init__(params)
            self._memos = defaultdict(dict)
            for param in params:
                self.state[param] = {"exp_avg": param.detach().clone(), "exp_avg_sq": param.detach().clone()}

        def step(self):
            if engine.tuning is not own:
                seen.setdefault(engine.tuning(KIND), set()).add(id(self._memos))

    own = engine.tuning
    monkeypatch.setattr(bench, "_adamnx", lambda params, **options: Recorded(params))
    monkeypatch.setattr(bench, "_STATES", {"float32": ("float32", {})})
    (result,) = tune(None)
    assert set(seen) == set(bench._candidates(own(KIND)))
    assert len(set().union(*seen.values())) == len(seen) == len(result["optimizers"])


def test_tuning_ends_in_time_with_what_it_has(tmp_path):
    start = bench.time.monotonic()
    own = engine.tuning
    results = tune(tmp_path / "tune.jsonl", seconds=1.0, rounds=1_000_000)
    assert bench.time.monotonic() - start < 20
    assert engine.tuning is own
    assert results and results[0]["optimizers"] and results[0]["stopped"]


def test_a_tuning_that_fails_is_named_and_the_shipped_one_restored(monkeypatch, tmp_path):
    own = engine.tuning

    class Fails(torch.optim.SGD):
        _memos = defaultdict(dict)  # noqa: RUF012

        def step(self):
            for param in self.param_groups[0]["params"]:
                self.state[param] = {"exp_avg": param.detach(), "exp_avg_sq": param.detach()}
            if engine.tuning is not own and engine.tuning(None).block == 4096:
                raise RuntimeError("out of resource: registers")

    monkeypatch.setattr(bench, "_adamnx", lambda params, **options: Fails(params))
    results = tune(tmp_path / "tune.jsonl")
    assert engine.tuning is own
    assert [line for line in results[0]["failed"] if line.startswith("4096 x 16: RuntimeError: out of res")]
    assert len(results[0]["optimizers"]) == 11


def test_tuning_under_the_interpreter(tmp_path):
    """As on a card: the kernel itself runs, in a process whose Triton interprets from the start."""
    argv = f"bench --device cpu --tune --rounds 1 --steps 1 --seconds 100 --output {tmp_path / 'tune'}"
    code = f"""if True:
        import sys
        from adamnx_hf import cli
        from adamnx_hf.bench import run as bench
        own = bench._candidates
        bench._candidates = lambda shipped: own(shipped)[:2]
        sys.exit(cli.main({argv.split()}))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200,
        env=os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "tune.json").read_text())
    assert report["kernel"] == "triton"
    assert [len(result["optimizers"]) for result in report["results"]] == [2] * 5
    assert len((tmp_path / "tune.jsonl").read_text().splitlines()) == 5 * 2 * 2


# ---------------------------------------------------------------- memory


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """What a short measurement of memory writes, of parameters with no rest in any format."""
    path = tmp_path_factory.mktemp("memory") / "cpu"
    ours = [n for n in bench.CONTESTANTS if n.startswith("adamnx")]
    argv = ["bench", "--memory", "--device", "cpu", "--rounds", "1", "--steps", "1", "--output", str(path)]
    with pytest.MonkeyPatch.context() as patch:
        for name, dtype in (("llama-5m", "float32"), ("llama-5m-bf16", "bfloat16")):
            case = bench.Case("matrices", lambda: 4 * [(64, 2048)], ("cpu",), dtype=dtype, memory=True)
            patch.setitem(bench.CASES, name, case)
        assert cli.main([*argv, "--optimizers", *ours, bench.BASELINE]) == 0
    return path


def test_bytes_of_each_format(memory):
    results = json.loads(memory.with_suffix(".json").read_text())["results"]
    count = 4 * 64 * 2048
    state = [{row["optimizer"]: row["state_bytes"] / count for row in r["optimizers"]} for r in results]
    packed = 2 * (2048 + 16) / 2048
    assert state[0] == pytest.approx(
        {"adamnx": 8, "adamnx_bf16": 4, "adamnx_int8": packed, bench.BASELINE: 8}, abs=1e-4
    )
    others = {"adamnx_bf16_stochastic": 4, "adamnx_bf16_kahan": 6, "adamnx_int8_stochastic": packed}
    assert state[1] == pytest.approx(state[0] | others | {bench.BASELINE: 4}, abs=1e-4)
    assert all(row["ms"] > 0 and row["peak_bytes"] >= 0 for r in results for row in r["optimizers"])
    # bfloat16 moments go through float32 copies on the CPU, though not all at once; float32 ones do not.
    temporary = {row["optimizer"]: row["peak_bytes"] / count for row in results[0]["optimizers"]}
    assert temporary["adamnx"] < 0.1 and temporary["adamnx_bf16"] >= 6
    text = memory.with_suffix(".md").read_text()
    assert "| AdamNX, 8-bit state | 2.02 |" in text and "| AdamNX, bfloat16 state, Kahan | 6.00 |" in text
    assert memory.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_temporary_bytes_are_the_peak_of_a_step():
    def step():
        large = torch.empty(3_000_000)
        del large
        small = [torch.empty(1_000_000) for _ in range(2)]
        del small

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        assert bench._temporary_bytes(step, device) == pytest.approx(12_000_000, rel=0.2)


def test_what_wraps_other_tensors_counts_as_what_it_is_made_of():
    torchao = pytest.importorskip("torchao.optim")
    param = torch.nn.Parameter(torch.zeros(64, 256))
    state = {"exp_avg": torchao.AdamW8bit([param])._subclass_zeros(param.detach(), True, 256)}
    optimizer = torch.optim.AdamW([param])
    optimizer.state[param] = state
    assert 64 * 256 < bench._state_bytes(optimizer) < 64 * 256 * 1.2


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
