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

    The control and one block take turns within each round, on the config's own batches
    of real images, so that what else the machine does meets both. Networks run with the
    weights of the first seed's last checkpoint: how many objects a network finds
    decides what its heads cost.

    Args:
        comparison: The comparison.
        rounds: Timings of each network. 0: only what ``cost.json`` has.

    Returns:
        ``device``, ``rounds`` and ``batches``, the images of a training batch and of a
        test batch; and ``blocks``, by label: ``step`` and ``inference``, median and
        quartiles of the ratio to the control, and ``memory``, the ratio of the peak
        memory of a step. None if nothing was measured, or runs are missing.
    """
    path = comparison.work_dir / 'cost.json'
    known = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None
    first = comparison.variants[
        0
    ].lr  # The same network at another rate costs the same.
    variants = [v for v in comparison.variants if v.lr == first]
    if known and {v.label for v in variants} <= {CONTROL, *known['blocks']}:
        return known
    folders = [comparison.cell_dir(v, comparison.seeds[0]) for v in variants]
    checkpoints = [last_checkpoint(folder) for folder in folders]
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
            control['step']()  # The first step also allocates the optimizer's numbers.
            memory = peak_memory(control['step'], device)
            continue
        print(f'timing {variant.label} beside the control, {rounds} rounds', flush=True)
        found: dict = {}
        for kind in ('step', 'inference'):
            pair = dict(control=control[kind], block=functions[kind])
            times = interleave(pair, device, rounds)
            found[kind] = asdict(ratio(times['block'], times['control']))
        found['memory'] = peak_memory(functions['step'], device) / memory
        measured[variant.label] = found
    costs = dict(
        device=environment(device)['device'],
        rounds=rounds,
        batches=[len(train['inputs']), len(test['inputs'])],
        blocks=measured,
    )
    write_file(path, json.dumps(costs, indent=1) + '\n')
    return costs


def _functions(cfg: Any, model: Any, train: dict, test: dict) -> dict[str, Callable]:
    """A training step and inference of a network, as functions without arguments."""
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    for group in wrapper.param_groups:
        group['lr'] = 0.0  # The weights stay what they are, at the same cost.

    def step() -> None:
        # Each step draws the same samples, and the same size in a training that varies
        # the size of images.
        set_random_states(0)
        model.train()
        model.train_step(copy.deepcopy(train), wrapper)

    def inference() -> None:
        model.eval()
        with torch.no_grad():
            model.test_step(copy.deepcopy(test))

    return dict(step=step, inference=inference)
