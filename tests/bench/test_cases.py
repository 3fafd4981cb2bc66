import dataclasses
import math

import pytest
import torch

from adamnx_hf.bench.cases import CASES, allocate_parameters, list_default_cases
from adamnx_hf.bench.contestants import BASELINE, CONTESTANTS
from adamnx_hf.bench.plan import takes_part


@pytest.mark.parametrize(
    ("case", "parameters", "tensors"),
    [("llama-1b", 1_235_814_400, 146), ("lora-7b", 39_976_960, 448), ("2000x1k", 2_000_000, 2000)],
)
def test_shapes_are_those_of_the_models(case, parameters, tensors):
    shapes = CASES[case].shapes()
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
    assert sorted(CASES["llama-1b"].shapes()) == theirs


def test_every_name_says_what_it_is_and_where():
    for thing in (*CASES.values(), *CONTESTANTS.values()):
        assert thing.what
        assert set(thing.devices) <= {"cpu", "cuda"}
    assert BASELINE in CONTESTANTS


def test_what_compiles_for_each_shape_takes_part_in_few_cases_unless_asked():
    cases = [case for case in CASES if takes_part("adamw_torchao_8bit", case, named=False)]
    assert [case for case in cases if "cuda" in CASES[case].devices] == ["llama-1b", "llama-1b-bf16"]
    assert {"llama-5m", "llama-5m-bf16"} <= set(cases)
    assert all(takes_part("adamw_torchao_8bit", case, named=True) for case in CASES)
    assert takes_part("adamw_bnb_8bit", "lora-7b", named=False)
    assert not takes_part("adamw_torchao_stochastic", "llama-1b", named=True)


def test_cases_to_try_the_command_out_run_only_when_named():
    assert list_default_cases("cpu", memory=False) == ["10x5m", "400x8k", "2000x1k"]
    assert list_default_cases("cpu", memory=True) == ["llama-5m", "llama-5m-bf16"]
    assert list_default_cases("cuda", memory=True) == ["llama-1b", "llama-1b-bf16"]
    assert {"llama-300m-ddp", "lora-7b-zero"} < set(list_default_cases("cuda", memory=False))
    assert "8x34m" not in list_default_cases("cuda", memory=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_bucket_lie_off_multiples_of_16_bytes_and_apart(dtype):
    case = dataclasses.replace(CASES["toy-ddp"], dtype=dtype)
    with allocate_parameters(case, "cpu") as params:
        ends = [0]
        for grad, param in zip([p.grad for p in params], params, strict=True):
            assert grad.data_ptr() % 16 and not param.data_ptr() % 16
            assert grad.shape == param.shape and grad.dtype == param.dtype and grad.is_contiguous()
            assert grad.storage_offset() >= ends[-1]
            ends.append(grad.storage_offset() + grad.numel())
        assert len({p.grad.untyped_storage().data_ptr() for p in params}) == 1


def test_zero_gradients_are_zero():
    with allocate_parameters(CASES["toy-zero"], "cpu") as params:
        assert not any(param.grad.any() for param in params)
