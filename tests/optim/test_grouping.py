"""param_groups: which parameters decay."""

import pytest
import torch
from torch import nn

from adamnx_hf import AdamNX, param_groups


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.conv = nn.Conv2d(1, 2, 3)
        self.up = nn.ConvTranspose1d(2, 2, 3)
        self.batchnorm = nn.BatchNorm2d(2)
        self.ln = nn.LayerNorm(4)
        self.final_norm = nn.RMSNorm(4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4))
        self.head = nn.Linear(4, 7, bias=False)
        self.scale = nn.Parameter(torch.ones(4))


def split(model, **kwargs):
    """The names of the decaying parameters and of the others; each parameter is in one group, once."""
    names = {param: name for name, param in model.named_parameters()}
    groups = param_groups(model, weight_decay=0.3, **kwargs)
    assert [group["weight_decay"] for group in groups] in ([0.3, 0.0], [0.3], [0.0])
    sides = {0.3: [], 0.0: []}
    for group in groups:
        sides[group["weight_decay"]] = [names[p] for p in group["params"]]
    assert len({*sides[0.3], *sides[0.0]}) == len(sides[0.3]) + len(sides[0.0])
    return set(sides[0.3]), set(sides[0.0])


def test_papers_rule_decays_weights_of_convolutions_and_linear_layers():
    model = Net()
    decay, rest = split(model, rule="paper")
    assert decay == {"conv.weight", "up.weight", "block.0.weight", "head.weight"}
    assert decay | rest == {name for name, _ in model.named_parameters()}


def test_trainers_rule_decays_all_but_biases_and_norms_it_knows():
    decay, rest = split(Net(), rule="trainer")
    # As the Trainer: norms are known by LayerNorm's type or by their names.
    assert decay == {
        "embed.weight",
        "conv.weight",
        "up.weight",
        "batchnorm.weight",
        "block.0.weight",
        "block.1.weight",
        "head.weight",
        "scale",
    }
    assert rest == {
        "conv.bias",
        "up.bias",
        "batchnorm.bias",
        "ln.weight",
        "ln.bias",
        "final_norm.weight",
        "block.0.bias",
        "block.1.bias",
    }


def test_trainers_rule_is_the_default():
    assert split(Net()) == split(Net(), rule="trainer")


@pytest.mark.parametrize("rule", ["trainer", "paper"])
def test_embeddings_can_be_taken_out(rule):
    decay, rest = split(Net(), rule=rule, decay_embeddings=False)
    assert decay == split(Net(), rule=rule)[0] - {"embed.weight"}
    assert "embed.weight" in rest


@pytest.mark.parametrize("rule", ["trainer", "paper"])
def test_tied_weights_count_once(rule):
    model = Net()
    model.head.weight = model.embed.weight
    decay, rest = split(model, rule=rule)
    assert "head.weight" not in decay | rest
    assert ("embed.weight" in decay) == (rule == "trainer")  # the first holder decides


def test_frozen_parameters_are_left_out():
    model = Net()
    model.conv.requires_grad_(False)
    model.ln.weight.requires_grad_(False)
    decay, rest = split(model)
    assert decay | rest == {name for name, p in model.named_parameters() if p.requires_grad}


def test_empty_groups_are_left_out():
    assert len(param_groups(nn.Linear(2, 2, bias=False))) == 1
    assert [group["weight_decay"] for group in param_groups(nn.LayerNorm(2), weight_decay=0.3)] == [0.0]


def test_default_decay_is_the_optimizers():
    assert param_groups(Net())[0]["weight_decay"] == AdamNX([torch.ones(1)]).defaults["weight_decay"]


def test_groups_are_in_the_order_of_the_model():
    model = Net()
    order = list(model.parameters())
    for group in AdamNX(param_groups(model)).param_groups:
        places = [next(i for i, p in enumerate(order) if p is param) for param in group["params"]]
        assert places == sorted(places)


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"Invalid rule: 'all'; choose one of trainer, paper"):
        param_groups(Net(), rule="all")
    with pytest.raises(ValueError, match="no trainable parameters"):
        param_groups(Net().requires_grad_(False))


SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
MODELS = {
    "BertForMaskedLM": ("BertConfig", {**SMALL, "vocab_size": 20}),
    "GPT2LMHeadModel": ("GPT2Config", {"n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 20}),
    "LlamaForCausalLM": ("LlamaConfig", {**SMALL, "vocab_size": 20}),
    "Qwen3ForCausalLM": ("Qwen3Config", {**SMALL, "vocab_size": 20, "head_dim": 4, "num_key_value_heads": 2}),
    "ViTForImageClassification": ("ViTConfig", {**SMALL, "image_size": 8, "patch_size": 4}),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 20},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_trainers_rule_is_the_trainers(name):
    transformers = pytest.importorskip("transformers")
    config, arguments = MODELS[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**arguments))
    by_trainer = set(transformers.Trainer.get_decay_parameter_names(None, model))
    decay, rest = split(model)
    assert decay == {n for n, _ in model.named_parameters() if n in by_trainer}
    assert decay
    assert rest
