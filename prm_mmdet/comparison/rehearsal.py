"""One step of each compared network, run before the first training to find mistakes."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.model import revert_sync_batchnorm
from mmengine.runner import Runner, set_random_seed
from mmengine.structures import InstanceData
from torch import nn

from ..benchmark.measure import multiply_adds
from ..files.checkpoints import compare_keys, read_state_dict, write_checkpoint
from ..insertion import preserve
from .placement import Placed

# These samplers work with any batch size, so a rehearsal can use a smaller batch. With
# other samplers, a rehearsal uses the config's batch size.
_SAMPLERS = ('DefaultSampler', 'InfiniteSampler')


@dataclass(frozen=True)
class Rehearsed:
    """Results of one step of a network."""

    parameters: int  # number of parameters of the whole network
    # Number of multiply-adds of inference on one image of the evaluation set.
    multiply_adds: int
    # A text for the user. It says how the blocks start the training. An example is
    # 'keeps what the network computes'.
    start: str = ''
    # A sentence for each block that changes the loaded network's outputs.
    changed: list[str] = field(default_factory=list)


class Rehearsal:
    """Runs one step of each network of a comparison, on images of the data set.

    Args:
        cfg: Complete config of the control.
        load_from: Checkpoint that all trainings start from, or None.
        partial: Whether the checkpoint may lack weights or contain others.

    Attributes:
        control: Results of one step of the control.
        metrics: Names of all metrics that the config's evaluator reports.
        images: Number of training images.

    Raises:
        ValueError: The data cannot be loaded, the checkpoint does not fit, or the
            network or the evaluator fails. The message names the part that fails.
    """

    def __init__(self, cfg: Config, load_from: str | None, partial: bool = False):
        register_all_modules()
        self._weights = None if load_from is None else read_state_dict(load_from)
        self._device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        with _explained('the data of train_dataloader'):
            self._train, dataset = load_batch(cfg.train_dataloader, 2)
        self.images = len(dataset)
        with _explained('the data of val_dataloader'):
            self._val, dataset = load_batch(cfg.val_dataloader, 1)
        model = build_model(cfg.model, self._device)
        self._modules = {name for name, _ in model.named_modules()}
        with _explained('the weights that the model starts with'):
            model.init_weights()
        if self._weights is not None:
            _check_fit(load_from, self._weights, model, partial)
            model.load_state_dict(_fitting(self._weights, model), strict=False)
        self._whole = self._multiply_adds(model, lambda: model.test_step(self._val))
        self._features = self._feature_multiply_adds(model)
        with _explained('a training step of the control'):
            _train_step(model, self._train)
        self.control = Rehearsed(_count(model), self._whole)
        with _explained('the evaluator'):
            self.metrics = _metric_names(cfg, model, self._val, dataset)

    def block(self, placed: Placed) -> Rehearsed:
        """Results of one step of the network with a block.

        Raises:
            ValueError: The step fails, or a block gets no gradient.
        """
        model = build_model(placed.model, self._device)
        start, changed = 'initial values of its class', []
        if self._weights is not None:
            weights = _fitting(self._weights, model)
            missing = model.load_state_dict(weights, strict=False).missing_keys
            ours = tuple(f'{name}.' for name in self._inserted(model))
            outcomes = preserve(model, [k for k in missing if k.startswith(ours)])
            changed = [str(outcome) for outcome in outcomes if outcome.left]
            start = 'keeps what the network computes'
            if changed:
                start = f'changes the network at step 0 ({len(changed)} blocks)'
        with _explained('a training step'):
            _train_step(model, self._train)
        _check_gradients(self._inserted(model))
        extra = self._feature_multiply_adds(model) - self._features
        return Rehearsed(_count(model), self._whole + extra, start, changed)

    def _inserted(self, model: Any) -> dict[str, nn.Module]:
        """The inserted blocks by name: modules that the control lacks. Lists of
        modules, and modules inside a block, are left out."""
        found: dict[str, nn.Module] = {}
        # ``named_modules`` yields a block before the modules inside the block. So the
        # block is already in ``found`` when the loop reaches these modules.
        for name, module in model.named_modules():
            new = name not in self._modules and not name.startswith(
                tuple(f'{block}.' for block in found)
            )
            if new and not isinstance(module, (nn.ModuleList, nn.Identity)):
                found[name] = module
        return found

    def _feature_multiply_adds(self, model: Any) -> int:
        """Multiply-adds of backbone and neck. The heads are left out, because their
        cost depends on the number of objects that an untrained network finds."""
        if not hasattr(model, 'extract_feat'):
            return self._multiply_adds(model, lambda: model.test_step(self._val))
        model.eval()
        data = model.data_preprocessor(copy.deepcopy(self._val), False)
        return self._multiply_adds(model, lambda: model.extract_feat(data['inputs']))

    def _multiply_adds(self, model: Any, function: Callable) -> int:
        model.eval()
        with torch.no_grad(), _explained('inference on one image'):
            return multiply_adds(function)


def build_model(model: dict, device: torch.device) -> Any:
    """Build the network of a config on a device, without trained weights."""
    built = MODELS.build(copy.deepcopy(model))
    if device.type == 'cpu':
        built = revert_sync_batchnorm(built)
    return built.to(device)


def write_start(path: Path, model: dict, load_from: str, seed: int) -> None:
    """Write a checkpoint with all weights of a model, even if ``load_from`` lacks some.

    If ``load_from`` lacks a weight, or has it in another shape, the weight gets an
    initial value drawn with the seed. All runs of one seed then start from the same
    weights.
    """
    set_random_seed(seed)
    built = build_model(model, torch.device('cpu'))
    built.init_weights()
    weights = _fitting(read_state_dict(load_from), built)
    built.load_state_dict(weights, strict=False)
    write_checkpoint(dict(state_dict=built.state_dict()), path, load_from)


def load_batch(loader: dict, batch_size: int | None = None) -> tuple[dict, Any]:
    """Build a data loader, and return its first batch and its data set. If the sampler
    works with any batch size, the batch has at most ``batch_size`` images."""
    loader = copy.deepcopy(loader)
    sampler = str(loader.get('sampler', {}).get('type', '')).rpartition('.')[2]
    if batch_size is not None and sampler.rstrip("'>") in _SAMPLERS:
        loader['batch_size'] = min(batch_size, loader['batch_size'])
    loader.update(num_workers=0, persistent_workers=False)
    loader.pop('prefetch_factor', None)
    built = Runner.build_dataloader(loader, seed=0)
    return next(iter(built)), built.dataset


def _train_step(model: Any, batch: dict) -> None:
    """Run one training step. Raise ValueError if the loss is not finite."""
    model.train()
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    if not math.isfinite(loss.item()):
        raise ValueError(f'the loss of the first training step is {loss.item()}')
    loss.backward()


def _check_gradients(blocks: dict[str, nn.Module]) -> None:
    """Raise ValueError if a block would not be trained."""
    for name, block in blocks.items():
        parameters = list(block.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            raise ValueError(
                f'{name} is in a frozen stage and would never be trained. Choose other '
                'stages with --stages, or set frozen_stages=-1 in the config'
            )
        if parameters and all(p.grad is None for p in parameters):
            raise ValueError(
                f'{name} gets no gradient: nothing uses its output. Choose other '
                'stages with --stages, or another module with --at'
            )


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _fitting(weights: dict, model: Any) -> dict:
    """The weights of a checkpoint that have the same name and shape in the model."""
    own = model.state_dict()
    return {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}


def _check_fit(path: str | None, weights: dict, model: Any, partial: bool) -> None:
    """Raise ValueError unless a checkpoint has exactly a model's weights. If
    ``partial``, one weight that fits is enough."""
    own = model.state_dict()
    differences = compare_keys(weights, own)
    fits = len(own) - len(differences.missing) - len(differences.misshapen)
    if fits <= 0 or (differences and not partial):
        cure = '. If you intend that, add --allow-partial' if fits > 0 else ''
        raise ValueError(
            f'{path} does not hold the weights of the model in the config: '
            f'{differences}{cure}'
        )


def _metric_names(cfg: Config, model: Any, batch: dict, dataset: Any) -> list[str]:
    """Names of the evaluator's metrics. They are found by an evaluation of one batch
    with an invented detection on each image."""
    metrics = cfg.val_evaluator
    metrics = [dict(m) for m in (metrics if isinstance(metrics, list) else [metrics])]
    for metric in metrics:
        # ``outfile_prefix`` is the path of the metric's result files. It is removed, so
        # that the metric cannot overwrite files of the user.
        metric.pop('outfile_prefix', None)
    evaluator = Evaluator(metrics)
    evaluator.dataset_meta = getattr(dataset, 'metainfo', None)
    model.eval()
    with torch.no_grad():
        samples = model.val_step(copy.deepcopy(batch))
    for sample in samples:
        if 'pred_instances' in sample:
            sample.pred_instances = _made_up(sample)
    evaluator.process(data_samples=samples, data_batch=batch)
    values = evaluator.evaluate(len(samples))
    names = [k for k, v in values.items() if isinstance(v, (int, float))]
    if not names:
        raise ValueError('it gives no metric; does the config set format_only?')
    return names


def _made_up(sample: Any) -> InstanceData:
    """One invented detection in an image, because an untrained network may not find any
    object."""
    height, width = sample.ori_shape[:2]
    found = sample.pred_instances
    made = InstanceData(
        bboxes=torch.tensor([[width / 4, height / 4, width / 2, height / 2]]),
        scores=torch.ones(1),
        labels=torch.zeros(1, dtype=torch.long),
    )
    if 'masks' in found:
        masks = BitmapMasks.random(1, height=height, width=width)
        made.masks = torch.from_numpy(masks.masks.astype(bool))
    return made


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Context manager that turns any error into a ValueError. The message begins with
    ``what``, which names the part that failed. Printed text is hidden."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except (URLError, FileNotFoundError) as error:
        raise ValueError(f'{what} cannot be read: {error}') from error
    except Exception as error:
        # Code of other packages may raise any error, so all errors are caught.
        reason = str(error) or type(error).__name__
        raise ValueError(f'{what} failed: {reason}') from error
