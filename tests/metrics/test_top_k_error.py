import numpy as np
import pytest
import torch

from adamnx_hf import metrics


@pytest.fixture(scope="module")
def metric():
    return metrics.load("top_k_error")


def test_as_torch_counts(metric):
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 30, generator=generator)
    classes = torch.randint(30, (200,), generator=generator)
    got = metric.compute(predictions=scores.numpy(), references=classes.numpy(), k=[1, 3, 5])
    for k in (1, 3, 5):
        hit = (scores.topk(k).indices == classes[:, None]).any(1).float().mean().item()
        assert got[f"top{k}_error"] == pytest.approx(100 * (1 - hit), abs=1e-4)


def test_in_batches(metric):
    metric.add_batch(predictions=np.eye(6), references=np.arange(6))
    metric.add_batch(predictions=np.eye(6), references=np.arange(6)[::-1].copy())
    assert metric.compute() == {"top1_error": 50.0, "top5_error": pytest.approx(100 / 12)}


def test_equal_scores_rank_in_the_order_of_the_classes(metric):
    assert metric.compute(predictions=[[1.0, 1.0, 1.0]] * 3, references=[0, 1, 2], k=[1, 2]) == {
        "top1_error": pytest.approx(200 / 3),
        "top2_error": pytest.approx(100 / 3),
    }


def test_a_diverged_model_is_not_rewarded(metric):
    scores = np.full((10, 10), np.nan)
    assert metric.compute(predictions=scores, references=np.arange(10), k=1) == {"top1_error": 90.0}


def test_class_ids_out_of_range(metric):
    with pytest.raises(ValueError, match="class ids from 0 to 2, got 0 to 3"):
        metric.compute(predictions=[[0.0, 1.0, 2.0]] * 2, references=[0, 3])


def test_unknown_name():
    with pytest.raises(ValueError, match="'top_k' is not known; choose one of top_k_error"):
        metrics.load("top_k")
