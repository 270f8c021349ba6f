"""Which runs there are, and what is predicted of them."""

import contextlib
import dataclasses
import io

import numpy as np
import torch
from conftest import ROOT
from context_probes.cells import (
    CONFIGS,
    EPOCHS,
    LONGER,
    NETWORKS,
    SEEDS,
    SWITCHES,
    Cell,
    all_cells,
    main_cells,
)
from context_probes.expected import CHANCE, PREDICTIONS
from context_probes.images import PROBES
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prm_mmdet.config import config_path


def test_every_network_has_a_config_and_every_config_is_a_network():
    stems = {path.stem for path in (ROOT / 'configs' / 'probes').glob('*.py')}
    assert stems == CONFIGS


def test_cells():
    cells = all_cells()
    assert len({cell.name for cell in cells}) == len(cells)
    full = len(NETWORKS) - len(SWITCHES)
    one_seed = full * len(PROBES) + sum(map(len, SWITCHES.values()))
    longer = [cell for cell in cells if cell.epochs != EPOCHS]
    assert len(longer) == sum(len(seeds) for _, _, seeds in LONGER)
    # What a longer run is compared with, and why it was thought worth a look.
    assert {dataclasses.replace(cell, epochs=EPOCHS) for cell in longer} <= set(cells)
    assert all(PREDICTIONS[cell.network, cell.probe][0] for cell in longer)
    assert len(cells) - len(longer) == one_seed * (len(SEEDS) + 1)
    assert len(SEEDS) >= 3
    assert set(main_cells()) <= set(cells)
    # What is cut short has all of the first seed before any of the others.
    assert {cell.seed for cell in cells[:one_seed]} == {0}


def test_the_usual_cells_are_of_the_recipe_in_the_configs():
    for cell in (Cell('control', 'none'), Cell('control', 'none').base):
        cfg = Config.fromfile(config_path(f'probes/{cell.network}.py'))
        assert cfg.optim_wrapper.optimizer.lr == cell.rate
        assert cfg.train_cfg.max_epochs == cfg.train_cfg.val_interval == cell.epochs
        assert cfg.param_scheduler[1].T_max == cell.epochs


def test_every_cell_was_predicted():
    assert set(PREDICTIONS) == {(c.network, c.probe) for c in all_cells()}
    assert all(why for _, why in PREDICTIONS.values())


def test_wider_network_has_the_parameters_of_the_largest_block():
    register_all_modules()
    counts = []
    for name in ('none-wide', 'non-local'):
        model = MODELS.build(Config.fromfile(config_path(f'probes/{name}.py')).model)
        counts.append(sum(p.numel() for p in model.parameters()))
    assert 0.95 < counts[0] / counts[1] < 1.05


def test_blocks_that_start_as_the_identity_still_do():
    register_all_modules()
    x = torch.randn(2, 128, 6, 8)
    for name in ('gc', 'non-local', 'sac'):
        model = MODELS.build(Config.fromfile(config_path(f'probes/{name}.py')).model)
        model.init_weights()
        bottleneck = model.backbone.layer2[0]
        (plugin,) = (
            bottleneck.after_conv2_plugin_names + bottleneck.after_conv3_plugin_names
        )
        block = getattr(bottleneck, plugin)
        inputs = x[:, : block.in_channels]
        assert torch.equal(block(inputs), inputs)


def test_guessing_gives_the_chance_that_the_figure_shows():
    """COCO's own evaluation of whole boxes with random classes and scores."""
    rng = np.random.default_rng(0)
    found = []
    with contextlib.redirect_stdout(io.StringIO()):
        for _ in range(20):
            truths, guesses = [], []
            for image in range(100):
                for _ in range(int(rng.integers(2, 4))):
                    box = [30.0 * len(truths), 10.0, 20.0, 20.0]
                    which = dict(image_id=image, bbox=box)
                    truths.append(
                        dict(
                            **which,
                            id=len(truths) + 1,
                            category_id=int(rng.integers(2)),
                            area=400.0,
                            iscrowd=0,
                        )
                    )
                    score, label = float(rng.uniform()), int(rng.integers(2))
                    # Both classes are proposed, as detectors do.
                    guesses.append(dict(**which, category_id=label, score=score))
                    guesses.append(
                        dict(**which, category_id=1 - label, score=1 - score)
                    )
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
