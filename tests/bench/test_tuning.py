import json
import os
import subprocess
import sys
import time
from collections import defaultdict

import pytest
import torch

from adamnx_hf.bench import tuning
from adamnx_hf.bench.plan import Plan
from adamnx_hf.bench.tables import format_report
from adamnx_hf.bench.tuning import STATES, list_candidates
from adamnx_hf.optim.engines import triton as engine

pytest.importorskip("matplotlib")


def test_candidates_are_the_shipped_tuning_first_then_others_once():
    shipped = engine.Tuning(2048, 8, "evict_first", "")
    tried = list_candidates(shipped)
    assert tried[0] == shipped
    assert len(tried) == len(set(tried))
    hints = {(t.load, t.store) for t in tried if (t.block, t.warps) == (2048, 8)}
    assert hints == {("", ""), ("evict_first", ""), ("", ".cs"), ("evict_first", ".cs")}
    sizes = {(t.block, t.warps) for t in tried}
    assert sizes == {
        (512, 2), (512, 4), (1024, 4), (1024, 8), (2048, 4), (2048, 8), (4096, 8), (4096, 16)
    }  # fmt: skip
    assert len(list_candidates(engine.Tuning())) == 13


def tune(path, seconds=None, rounds=1):
    """What `--tune` makes of small tensors, here by torch's own kernel."""
    deadline = None if seconds is None else time.monotonic() + seconds
    plan = Plan("cpu", ["toy"], rounds=rounds, steps=1, tune=True, deadline=deadline)
    return list(tuning.tune(plan, 100.0, path))


def test_each_kind_of_state_is_tuned_and_each_measurement_written(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_TUNED", {})
    own = engine.tuning
    results = tune(tmp_path / "tune.jsonl", rounds=2)
    assert engine.tuning is own
    assert [result["state"] for result in results] == list(STATES)
    lines = [json.loads(line) for line in (tmp_path / "tune.jsonl").read_text().splitlines()]
    for result in results:
        assert len(result["optimizers"]) == 13 and not result["failed"]
        assert [row["optimizer"] for row in result["optimizers"] if row["shipped"]] == ["1024 x 4"]
        times = [line for line in lines if line["state"] == result["state"] and "ms" in line]
        assert len(times) == 2 * 13 and all(line["share_of_copy"] > 0 for line in times)
        assert [row["ms"] for row in result["optimizers"]] == sorted(r["ms"] for r in result["optimizers"])
    report = {"command": "", "results": results, "left_out": [], "kernel": "triton", "why_not_triton": None}
    table = format_report(report)
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
    monkeypatch.setattr(tuning, "make_adamnx", lambda params, **options: Recorded(params))
    monkeypatch.setattr(tuning, "STATES", {"float32": ("float32", {})})
    (result,) = tune(None)
    assert set(seen) == set(list_candidates(own(KIND)))
    assert len(set().union(*seen.values())) == len(seen) == len(result["optimizers"])


def test_tuning_ends_in_time_with_what_it_has(tmp_path):
    start = time.monotonic()
    own = engine.tuning
    results = tune(tmp_path / "tune.jsonl", seconds=1.0, rounds=1_000_000)
    assert time.monotonic() - start < 20
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

    monkeypatch.setattr(tuning, "make_adamnx", lambda params, **options: Fails(params))
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
        from adamnx_hf.bench import tuning
        own = tuning.list_candidates
        tuning.list_candidates = lambda shipped: own(shipped)[:2]
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
