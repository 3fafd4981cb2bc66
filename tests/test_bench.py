import json
import math

import pytest
import torch

from adamnx_hf import bench, cli

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
    text = output.with_suffix(".md").read_text()
    assert "| torch AdamW, fused, with clipping |" in text
    assert report["command"] in text
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
    # bfloat16 moments go through float32 copies on the CPU; float32 ones do not.
    temporary = {row["optimizer"]: row["peak_bytes"] / count for row in results[0]["optimizers"]}
    assert temporary["adamnx"] < 0.1 and temporary["adamnx_bf16"] >= 8
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
    assert cli.main(["bench", "--tune", "--cases", "400x8k", "--rounds", "1", "--steps", "1"]) == 0
    assert "1024 x 4" in capsys.readouterr().out
