"""Time and memory of the compared networks, as ratios to the control."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper

from ..benchmark.measure import environment, interleave, peak_memory, ratio
from ..experiments.logs import last_checkpoint
from ..files.atomic import write_file
from ..files.checkpoints import read_state_dict
from .blocks import CONTROL
from .paired_runs import set_random_states
from .plan import Comparison
from .rehearsal import build_model, load_batch


def measure_costs(
    cfg: Config,
    control: tuple[dict, Path | None],
    blocks: Mapping[str, tuple[dict, Path | None]],
    rounds: int,
    say: Callable[[str], None] = print,
) -> dict:
    """Time a training step and inference of each block beside the control.

    The control and one block take turns within each round, on the config's own batches
    of real images, so that what else the machine does meets both. Networks run with
    trained weights: how many objects a network finds decides what its heads cost.

    Args:
        cfg: The control's whole config.
        control: Config of its model, and a checkpoint or None.
        blocks: The same of each block, by label.
        rounds: Timings of each network.
        say: Called with a line of progress for each block.

    Returns:
        ``device`` and ``rounds``; and ``blocks``, by label: ``step`` and ``inference``,
        median and quartiles of the ratio to the control, and ``memory``, the ratio of
        the peak memory of a step.
    """
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    train, _ = load_batch(cfg.train_dataloader)
    test, _ = load_batch(cfg.val_dataloader)

    def subject(model: dict, checkpoint: Path | None) -> dict[str, Callable]:
        built = build_model(model, device)
        if checkpoint is not None:
            built.load_state_dict(read_state_dict(checkpoint))
        return _functions(cfg, built, train, test)

    plain = subject(*control)
    plain['step']()  # The first step also allocates the optimizer's numbers.
    plain_memory = peak_memory(plain['step'], device)
    measured = {}
    for label, (model, checkpoint) in blocks.items():
        say(f'timing {label} beside the control, {rounds} rounds')
        block = subject(model, checkpoint)
        ratios = {}
        for kind in ('step', 'inference'):
            pair = dict(control=plain[kind], block=block[kind])
            times = interleave(pair, device, rounds)
            ratios[kind] = asdict(ratio(times['block'], times['control']))
        memory = peak_memory(block['step'], device)
        measured[label] = dict(ratios, memory=memory / plain_memory)
    return dict(
        device=environment(device)['device'],
        rounds=rounds,
        batches=[_size(train), _size(test)],
        blocks=measured,
    )


def costs_of(comparison: Comparison, rounds: int) -> dict | None:
    """The costs of a comparison's blocks, measured once and kept in ``cost.json``.

    Networks run with the weights of the first seed's last checkpoint.

    Args:
        comparison: The comparison.
        rounds: Timings of each network. 0: only what ``cost.json`` has.

    Returns:
        As :func:`measure_costs`; None if nothing was measured, or runs are missing.
    """
    path = comparison.work_dir / 'cost.json'
    known = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else None
    rate = comparison.variants[0].lr
    variants = [v for v in comparison.variants if v.lr == rate]
    labels = {v.label for v in variants if v.label != CONTROL}
    if known and labels <= known['blocks'].keys():
        return known
    weights = {}
    for variant in variants:
        work_dir = comparison.cell_dir(variant, comparison.seeds[0])
        checkpoint = last_checkpoint(work_dir)
        weights[variant.label] = checkpoint.path if checkpoint else None
    if not rounds or None in weights.values():
        return known
    networks = {v.label: (v.model, weights[v.label]) for v in variants}
    control = networks.pop(CONTROL)
    measured = measure_costs(comparison.cfg, control, networks, rounds)
    write_file(path, json.dumps(measured, indent=1) + '\n')
    return measured


def _functions(cfg: Config, model: Any, train: dict, test: dict) -> dict[str, Callable]:
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


def _size(batch: dict) -> int:
    """Images in a batch."""
    return len(batch['inputs'])
