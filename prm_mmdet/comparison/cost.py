"""Time and memory of the compared networks, as ratios to the control."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from mmengine.optim import build_optim_wrapper

from ..benchmark.measure import environment, interleave, peak_memory, ratio
from ..experiments.logs import last_checkpoint
from ..files.atomic import write_file
from ..files.checkpoints import read_state_dict
from .blocks import CONTROL
from .paired_runs import set_random_states
from .plan import Comparison
from .rehearsal import build_model, load_batch


def costs_of(comparison: Comparison, rounds: int) -> dict | None:
    """The costs of a comparison's blocks, measured once and kept in ``cost.json``.

    The control and one block take turns within each round, so that other load on the
    machine slows both. Both networks get batches of the config's images. Networks run
    with the weights of the first seed's last checkpoint, because the cost of the heads
    depends on the number of objects that the network finds.

    Args:
        comparison: The comparison.
        rounds: How often each network is timed. If 0, nothing is measured.

    Returns:
        A dict with ``device``, ``rounds``, ``batches`` (the number of images in a
        training batch and in a test batch) and ``blocks``. For each block's name,
        ``blocks`` has three ratios to the control. ``step`` and ``inference`` are the
        median and the quartiles of the ratio of times. ``memory`` is the ratio of the
        peak memory of a training step. If a run has no checkpoint, nothing is measured.
        If nothing is measured, the result is the content of ``cost.json``, or None if
        there is no such file.
    """
    path = comparison.work_dir / 'cost.json'
    known = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None
    # The cost is measured at one learning rate only, because the learning rate does not
    # change the cost.
    first = comparison.variants[0].lr
    variants = [v for v in comparison.variants if v.lr == first]
    if known and {v.label for v in variants} <= {CONTROL, *known['blocks']}:
        return known
    seed = comparison.seeds[0]
    checkpoints = [last_checkpoint(comparison.cell_dir(v, seed)) for v in variants]
    if not rounds or None in checkpoints:
        return known

    cfg = comparison.cfg
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    train, _ = load_batch(cfg.train_dataloader)
    test, _ = load_batch(cfg.val_dataloader)
    measured: dict[str, dict] = {}
    for variant, checkpoint in zip(variants, checkpoints):
        model = build_model(variant.model, device)
        assert checkpoint is not None
        model.load_state_dict(read_state_dict(checkpoint.path))
        functions = _functions(cfg, model, train, test)
        if variant.label == CONTROL:
            control = functions
            # The first step allocates the optimizer's state. It runs before the
            # measurement, so that this memory does not count.
            control['step']()
            memory = peak_memory(control['step'], device)
            continue
        print(f'timing {variant.label} beside the control, {rounds} rounds', flush=True)
        found = measured[variant.label] = {}
        for kind in ('step', 'inference'):
            pair = dict(control=control[kind], block=functions[kind])
            times = interleave(pair, device, rounds)
            found[kind] = asdict(ratio(times['block'], times['control']))
        found['memory'] = peak_memory(functions['step'], device) / memory
    costs = dict(
        device=environment(device)['device'],
        rounds=rounds,
        batches=[len(train['inputs']), len(test['inputs'])],
        blocks=measured,
    )
    write_file(path, json.dumps(costs, indent=1) + '\n')
    return costs


def _functions(cfg: Any, model: Any, train: dict, test: dict) -> dict[str, Callable]:
    """A training step and inference of a model, as functions without arguments."""
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    for group in wrapper.param_groups:
        # With learning rate 0, a step costs the same but does not change the weights.
        group['lr'] = 0.0

    def step() -> None:
        # A step samples boxes at random. It also draws the size of the images, if the
        # training varies the size. With a fixed seed, all steps draw the same values.
        set_random_states(0)
        model.train()
        model.train_step(copy.deepcopy(train), wrapper)

    def inference() -> None:
        model.eval()
        with torch.no_grad():
            model.test_step(copy.deepcopy(test))

    return dict(step=step, inference=inference)
