"""Which trials there are, and what is predicted of them."""

import contextlib
import dataclasses
import io

import numpy as np
import torch
from context_probes.expected import CHANCE, PREDICTIONS
from context_probes.images import PROBES
from context_probes.trials import (
    BASE,
    BASES,
    CONFIGS,
    EPOCHS,
    LONGER,
    NETWORKS,
    SEEDS,
    VARIANTS,
    Trial,
    all_trials,
    main_trials,
)
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def test_every_network_has_a_config_and_every_config_is_a_network():
    stems = {path.stem for path in CONFIGS.glob('*.py')}
    assert stems == {*NETWORKS, BASE, *BASES.values()}


def test_trials():
    trials = all_trials()
    assert len({trial.name for trial in trials}) == len(trials)
    full = len(NETWORKS) - len(VARIANTS)
    one_seed = full * len(PROBES) + sum(map(len, VARIANTS.values()))
    longer = [trial for trial in trials if trial.epochs != EPOCHS]
    assert len(longer) == sum(len(seeds) for _, _, seeds in LONGER)
    # For each longer trial, there is the same trial with six epochs. The network is
    # predicted to see the cue.
    assert {dataclasses.replace(trial, epochs=EPOCHS) for trial in longer} <= set(
        trials
    )
    assert all(PREDICTIONS[trial.network, trial.probe][0] for trial in longer)
    assert len(trials) - len(longer) == one_seed * (len(SEEDS) + 1)
    assert len(SEEDS) >= 3
    assert set(main_trials()) <= set(trials)
    # The first seed comes first. So if the run is stopped early, this seed is complete.
    assert {trial.seed for trial in trials[:one_seed]} == {0}


def test_the_usual_trials_have_the_recipe_in_the_configs():
    for trial in (Trial('control', 'none'), Trial('control', 'none').base):
        cfg = Config.fromfile(CONFIGS / f'{trial.network}.py')
        assert cfg.optim_wrapper.optimizer.lr == trial.rate
        assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == trial.epochs
        assert cfg.param_scheduler[1].T_max == trial.epochs


def test_every_trial_was_predicted():
    assert set(PREDICTIONS) == {(c.network, c.probe) for c in all_trials()}
    assert all(why for _, why in PREDICTIONS.values())


def test_wider_network_has_the_parameters_of_the_largest_block():
    register_all_modules()
    counts = []
    for name in ('none-wide', 'non-local'):
        model = MODELS.build(Config.fromfile(CONFIGS / f'{name}.py').model)
        counts.append(sum(p.numel() for p in model.parameters()))
    assert 0.95 < counts[0] / counts[1] < 1.05


def test_blocks_that_start_as_the_identity_still_do():
    register_all_modules()
    x = torch.randn(2, 128, 6, 8)
    for name in ('gc', 'non-local', 'sac'):
        model = MODELS.build(Config.fromfile(CONFIGS / f'{name}.py').model)
        model.init_weights()
        bottleneck = model.backbone.layer2[0]
        (plugin,) = (
            bottleneck.after_conv2_plugin_names + bottleneck.after_conv3_plugin_names
        )
        block = getattr(bottleneck, plugin)
        inputs = x[:, : block.in_channels]
        assert torch.equal(block(inputs), inputs)


def test_guessing_gives_the_chance_that_the_figure_shows():
    """For boxes without error, with random classes and scores, COCO's own evaluation
    gives an AP50 near CHANCE."""
    rng = np.random.default_rng(0)
    found = []
    with contextlib.redirect_stdout(io.StringIO()):
        for _ in range(8):
            truths, guesses = [], []
            for image in np.repeat(range(100), rng.integers(2, 4, 100)).tolist():
                box = [30.0 * len(truths), 10.0, 20.0, 20.0]
                which = dict(image_id=image, bbox=box)
                truth = dict(which, id=len(truths) + 1, area=400.0, iscrowd=0)
                truths.append(dict(truth, category_id=int(rng.integers(2))))
                score, label = float(rng.uniform()), int(rng.integers(2))
                # Like a detector, propose each box with both classes.
                guesses.append(dict(which, category_id=label, score=score))
                guesses.append(dict(which, category_id=1 - label, score=1 - score))
            coco = COCO()
            coco.dataset = dict(
                images=[dict(id=image) for image in range(100)],
                categories=[dict(id=0), dict(id=1)],
                annotations=truths,
            )
            coco.createIndex()
            evaluation = COCOeval(coco, coco.loadRes(guesses), 'bbox')
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            found.append(evaluation.stats[1])
    assert abs(np.mean(found) - CHANCE) < 0.03
