"""Top-1 and top-5."""

import numpy as np
import pytest
import torch

from prm_mmdet.pretraining.accuracy import Accuracy
from prm_mmdet.pretraining.classifier import ImageClassifier


def samples(scores, labels):
    return [
        dict(logits=torch.tensor(row), gt_label=label)
        for row, label in zip(scores, labels)
    ]


def test_against_sorting():
    rng = np.random.default_rng(0)
    scores, labels = rng.random((200, 20)), rng.integers(20, size=200).tolist()
    metric = Accuracy(topk=(1, 3, 5))
    for start in range(0, 200, 50):
        part = slice(start, start + 50)
        metric.process(None, samples(scores[part], labels[part]))
    found = metric.evaluate(200)
    order = np.argsort(-scores, axis=1)
    for k in (1, 3, 5):
        hits = [label in row[:k] for row, label in zip(order, labels)]
        assert found[f'accuracy/top{k}'] == pytest.approx(np.mean(hits))
    assert 0 < found['accuracy/top1'] < found['accuracy/top5'] < 1


def test_images_without_a_label_do_not_count():
    metric = Accuracy(topk=(1,))
    metric.process(None, samples([[0.9, 0.1]] * 4, [0, -1, 1, -1]))
    assert metric.evaluate(4) == {'accuracy/top1': 0.5}
    metric.process(None, samples([[0.9, 0.1]], [-1]))
    with pytest.raises(ValueError, match='none of the 1 images has a label'):
        metric.evaluate(1)


@pytest.mark.parametrize('row', [[np.nan, 0.1], [0.1, np.nan], [np.nan, np.nan]])
def test_not_a_number_is_no_hit(row):
    metric = Accuracy(topk=(1,))
    metric.process(None, samples([row, row], [0, 1]))
    assert metric.evaluate(2) == {'accuracy/top1': 0}


def test_scores_whose_probabilities_are_zero_are_told_apart():
    model = ImageClassifier(dict(type='mmdet.ResNet', depth=18), num_classes=4).eval()
    model.fc.weight.data.zero_()
    model.fc.bias.data = torch.tensor([-300.0, -250.0, -200.0, 0.0])
    with torch.no_grad():
        found = model(torch.zeros(1, 3, 32, 32), torch.tensor([2]), mode='predict')
    assert found[0]['pred_scores'].tolist() == [0, 0, 0, 1]
    metric = Accuracy(topk=(1, 2))
    metric.process(None, found)
    assert metric.evaluate(1) == {'accuracy/top1': 0, 'accuracy/top2': 1}


def test_images_without_a_label_keep_their_place_among_ranks():
    # Two ranks share three images: 0 and 2, and 1 and the first again.
    parts = []
    for labels in ([0, 1], [-1, 0]):
        metric = Accuracy(topk=(1,))
        metric.process(None, samples([[0.9, 0.1]] * 2, labels))
        parts.append(metric.results)
    # As MMEngine's collect_results puts them together.
    collected = [r for pair in zip(*parts) for r in pair if r is not None][:3]
    assert metric.compute_metrics(collected) == {'top1': 0.5}
    # And in one process, whose fourth image is the first again.
    metric.results = collected + parts[0][:1]
    assert metric.evaluate(3) == {'accuracy/top1': 0.5}


def test_a_model_of_other_classes_is_refused():
    metric = Accuracy(topk=(1,))
    metric.dataset_meta = dict(classes=('a', 'b', 'c'))
    with pytest.raises(ValueError, match='the model has 2 classes, but the data set 3'):
        metric.process(None, samples([[0.9, 0.1]], [0]))


def test_more_guesses_than_classes_are_refused():
    with pytest.raises(ValueError, match=r'top-5 of 4 classes.*topk=\(1, 5\)'):
        Accuracy().process(None, samples([[0.25] * 4], [0]))


def test_images_that_a_sampler_repeats_count_once():
    # Two ranks share three images: the fourth is the first again.
    metric = Accuracy(topk=(1,))
    metric.process(None, samples([[0.9, 0.1]] * 4, [0, 1, 1, 0]))
    assert metric.evaluate(3)['accuracy/top1'] == pytest.approx(1 / 3)
