"""MMEngine's Runner with checks of its input files, and with exact resuming."""

from __future__ import annotations

import copy
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import torch.distributed
from mmengine.config import Config
from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank, is_main_process, master_only
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop
from mmengine.runner import Runner as MMEngineRunner
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import nn
from torch.utils.data import DataLoader

from ..files.checkpoints import (
    CheckpointError,
    KeyDifferences,
    noting_differences,
    read_checkpoint,
    weights_of,
)
from ..files.lock import FolderInUseError, lock_folder
from . import processes
from .annotations import check_annotations
from .checkpoint_hook import (
    SafeCheckpointHook,
    checkpoint_folder,
    random_state_of_rank,
    restore_histories,
)
from .data_files import (
    MissingInput,
    check_data,
    how_to_get_weights,
    naming_indices,
)
from .guard_hook import TrainingGuard
from .pipelines import name_images
from .plugin_blocks import check_stages, plugin_blocks
from .random_state import set_random_state, worker_seed
from .resuming import (
    check_states,
    check_training_state,
    find_checkpoint,
    naming_misfits,
    run_id_of,
    write_run_id,
)
from .run_errors import RunError

#: Metrics that test.py prints at its end, and the title that it prints for each metric.
HEADLINES = {
    'coco/bbox_mAP': 'box AP',
    'coco/segm_mAP': 'mask AP',
    'accuracy/top1': 'top-1 accuracy',
    'accuracy/top5': 'top-5 accuracy',
}


class Runner(MMEngineRunner):
    """MMEngine's Runner with checks of data and weights. It also supports distributed
    training on CPUs.

    Attributes:
        allow_partial: Whether loaded weights may be incomplete, or contain weights that
            the model does not have. The command line sets it with ``--allow-partial``.
            Default: False.
        auto_resume: Whether a training continues from the newest checkpoint in its work
            dir. If the work dir has no checkpoint, a new training starts. If the config
            has ``load_from``, the new training starts from these weights. The command
            line sets it with ``--resume``. Default: False.
        phases: Phases ('train', 'val' or 'test') whose data sets are checked.
    """

    allow_partial = False
    auto_resume = False
    phases: tuple[str, ...] = ()
    _resuming = False

    @classmethod
    def from_cfg(cls, cfg: Config) -> Runner:
        check_stages(cfg)
        check_data(cfg, *cls.phases)
        if processes.rank() == 0:
            check_annotations(cfg, *cls.phases)
        return cls._start(cfg)

    @classmethod
    def _start(cls, cfg: Config) -> Runner:
        return super().from_cfg(cfg)

    def test(self) -> dict[str, float]:
        metrics = super().test()
        for name, label in HEADLINES.items():
            if name in metrics:
                self.logger.info(f'{label} {metrics[name]:.3f}')
        return metrics

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        try:
            return super().build_model(model)
        except (KeyError, ValueError) as error:
            if isinstance(error, KeyError) and 'registry' not in f'{error}':
                raise
            reason = error.args[0] if error.args else error
            raise RunError(f"the config's model cannot be built: {reason}") from error

    def _init_model_weights(self) -> None:
        try:
            super()._init_model_weights()
        except (URLError, FileNotFoundError) as error:
            raise MissingInput(how_to_get_weights(self.cfg, error)) from error
        except CheckpointError as error:
            raise RunError(f'pre-trained weights cannot be used: {error}') from error

    def setup_env(self, env_cfg: dict) -> None:
        # MMEngine would select a CUDA device while it creates the process group.
        # Without CUDA, create the group here.
        if self._launcher == 'pytorch' and not torch.cuda.is_available():
            torch.distributed.init_process_group('gloo')
        super().setup_env(env_cfg)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        # MMEngine's default wrapper for distributed training requires a CUDA device.
        if self.distributed and not torch.cuda.is_available():
            model_wrapper_cfg = model_wrapper_cfg or dict(
                type='MMDistributedDataParallel',
                broadcast_buffers=False,
                find_unused_parameters=self.cfg.get('find_unused_parameters', False),
            )
            model_wrapper_cfg.setdefault('device_ids', None)
        return super().wrap_model(model_wrapper_cfg, model)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict,
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build MMEngine's data loader, with three changes. Its workers end with this
        process. Their seeds come from the loader's generator, because MMEngine's seeds
        are the same in each epoch. An error in a pipeline names the image."""
        with naming_indices(dataloader if isinstance(dataloader, dict) else {}):
            loader = MMEngineRunner.build_dataloader(dataloader, seed, diff_rank_seed)
        name_images(loader.dataset)
        function = loader.worker_init_fn
        if isinstance(function, processes.StartWorker):
            return loader  # An earlier call has already changed this loader.
        quiet = False
        if getattr(function, 'func', None) is worker_init_fn:
            quiet = function.keywords.get('disable_subprocess_warning', False)
            function = None
        loader.worker_init_fn = processes.StartWorker(function, quiet)
        if loader.generator is None and seed is not None:
            loader.generator = torch.Generator()
            loader.generator.manual_seed(worker_seed(seed, get_rank(), 0))
        return loader

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = 'cpu',
        strict: bool = False,
        revise_keys: Sequence[tuple[str, str]] = ((r'^module\.', ''),),
    ) -> dict:
        """Load the weights of the model from a checkpoint.

        Args:
            filename: File, address or name, as for :func:`.read_checkpoint`.
            map_location: Ignored. Weights are read to the CPU and copied to the model.
            strict: Ignored. Weights that do not fit raise RunError.
            revise_keys: Pairs of a regular expression for keys and its replacement.

        Returns:
            The checkpoint.

        Raises:
            RunError: The file cannot be used, or its weights do not fit the model. If a
                training starts from weights (``load_from``), two differences raise no
                error: missing plugin blocks, and another number of classes. If
                ``allow_partial`` is True, no difference raises an error.
        """
        try:
            checkpoint = read_checkpoint(filename)
            weights_of(checkpoint, filename)
        except (CheckpointError, OSError) as error:
            raise RunError(f'{filename} cannot be loaded: {error}') from error
        if self._resuming:
            check_training_state(checkpoint, filename)
            # Remove the checkpoint's config. MMEngine would run the config's text as
            # Python code (Config.fromstring).
            checkpoint['meta'].pop('config', None)
            restore_histories(checkpoint['message_hub'])
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model = self.model.module if is_model_wrapper(self.model) else self.model
        if isinstance(model, BaseTTAModel):
            model = model.module
        with noting_differences(model) as found:
            _load_checkpoint_to_model(
                model, checkpoint, False, logger='silent', revise_keys=list(revise_keys)
            )
        missing = [k for k in found.missing if not k.endswith('num_batches_tracked')]
        differences = replace(found, missing=missing)
        if differences:
            self._judge(filename, model, differences)
        self._has_loaded = True
        self.logger.info(f'Load checkpoint from {filename}')
        return checkpoint

    def _judge(
        self, filename: str, model: nn.Module, differences: KeyDifferences
    ) -> None:
        """Raise RunError unless all differences between a checkpoint and the model are
        allowed. ``differences`` lists the weights whose names or shapes differ."""
        if self.allow_partial:
            self.logger.warning(
                f'--allow-partial: {filename} differs from the model: {differences}. '
                'What is missing keeps its initial values'
            )
            return
        if self._starts_from_weights():
            differences, notes = _expected_at_start(model, differences)
            for note in notes:
                self.logger.warning(f'{filename}: {note}')
            if not differences.missing and not differences.misshapen:
                return
        raise RunError(
            f'{filename} holds the weights of another model than the config builds: '
            f'{differences}. Use the config that it was trained with. For blocks in a '
            'detector that was trained without them, use tools/adapt_checkpoint.py. Or '
            'pass --allow-partial to load what fits'
        )

    def _starts_from_weights(self) -> bool:
        return False


def _expected_at_start(
    model: nn.Module, differences: KeyDifferences
) -> tuple[KeyDifferences, list[str]]:
    """Return the unexpected differences between a checkpoint and a model, and notes
    about the other differences. If a training starts from weights, two differences are
    expected: missing plugin blocks, and another number of classes."""
    blocks = tuple(f'{name}.' for name in plugin_blocks(model))
    fresh = [key for key in differences.missing if key.startswith(blocks)]
    heads = tuple(
        f'{name}.'
        for name, module in model.named_modules()
        # ``vars`` calls no property and no ``__getattr__``, which could raise an error.
        if isinstance(vars(module).get('num_classes'), int)
    )
    classes = [key for key in differences.misshapen if key.startswith(heads)]
    left = replace(
        differences,
        missing=[key for key in differences.missing if key not in fresh],
        misshapen=[key for key in differences.misshapen if key not in classes],
    )
    notes = []
    if fresh:
        notes.append(
            f'{len(fresh)} weights of plugin blocks are missing, such as {fresh[0]}: '
            'these blocks start from their initial values'
        )
    if classes:
        notes.append(
            f'{len(classes)} weights are for another number of classes, such as '
            f'{classes[0]}: these layers start from their initial values'
        )
    if left.unknown:
        notes.append(f'{KeyDifferences([], left.unknown, [])}: they are not used')
    return left, notes


class TrainRunner(Runner):
    """The Runner of train.py. It locks its work dir until the training ends.

    Attributes:
        run_id: Id of the training. It is saved in each checkpoint of the training. None
            if the training continues from a checkpoint without an id.
        resumed_from: Checkpoint from which the training continues, or None.
        resumed_random_state: This rank's random state in that checkpoint, or None.
    """

    phases = ('train', 'val')
    run_id: str | None = None
    resumed_from: str | None = None
    resumed_random_state: dict[str, Any] | None = None

    @classmethod
    def _start(cls, cfg: Config) -> TrainRunner:
        cfg = copy.deepcopy(cfg)
        first = processes.rank() == 0
        lock = None
        if first:
            try:
                lock = lock_folder(cfg.work_dir)
            except FolderInUseError as error:
                raise RunError(f'{error}: --work-dir FOLDER') from None
        if cls.auto_resume or (cfg.get('resume') and not cfg.get('load_from')):
            hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
            out_dir = hook.get('out_dir') if isinstance(hook, dict) else None
            folder = checkpoint_folder(out_dir, cfg.work_dir)
            found = find_checkpoint(cfg.work_dir, folder, rename=first)
            cfg.resume = found is not None
            cfg.load_from = found or cfg.get('load_from')
            if found is None and first:
                start = f', from {cfg.load_from}' if cfg.load_from else ''
                print(f'{folder} has no checkpoint: the training starts{start}')
        if cfg.get('resume') and cfg.get('randomness', {}).get('seed') is None:
            seed = _seed_of(cfg.load_from)
            if seed is not None:
                # MMEngine restores the checkpoint's seed after the data loaders are
                # built. Set the seed now, because the data loaders use it.
                cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
        run_id = None if cfg.get('resume') else uuid.uuid4().hex
        if first and run_id:
            write_run_id(cfg.work_dir, run_id)
        runner = super()._start(cfg)
        runner.run_id = run_id
        runner._lock = lock
        return runner

    def train(self) -> nn.Module:
        try:
            return super().train()
        finally:
            self._lock = None

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        # New workers start in each epoch. Persistent workers would keep random states
        # from earlier epochs, which a checkpoint does not contain.
        loader: Any = vars(self)['_train_dataloader']
        if isinstance(loader, dict):
            self._train_dataloader = dict(loader, persistent_workers=False)
        return super().build_train_loop(loop)

    def register_default_hooks(self, hooks: dict[str, Hook | dict] | None) -> None:
        hooks = dict(hooks or {})
        hook = hooks.get('checkpoint', dict(type='CheckpointHook', interval=1))
        if isinstance(hook, dict):
            kind = hook.get('type')
            if kind in ('CheckpointHook', 'mmengine.CheckpointHook', CheckpointHook):
                hook = dict(hook, type=SafeCheckpointHook)
            hooks['checkpoint'] = hook
        super().register_default_hooks(hooks)

    def register_hooks(
        self,
        default_hooks: dict[str, Hook | dict] | None = None,
        custom_hooks: list[Hook | dict] | None = None,
    ) -> None:
        super().register_hooks(default_hooks, custom_hooks)
        self.register_hook(TrainingGuard())

    def resume(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Resume as MMEngine does, and restore random states. No code in the file runs.

        Raises:
            RunError: The file cannot be used, or is from another model or optimizer.
        """
        self._resuming = True
        try:
            with naming_misfits(filename):
                super().resume(filename, *args, **kwargs)
        finally:
            self._resuming = False
        step = self.optim_wrapper.step

        def first_step(*args: Any, **kwargs: Any) -> None:
            # This step is the first to use the restored optimizer state. If the state
            # does not fit the parameters, the step fails.
            self.optim_wrapper.step = step
            with naming_misfits(filename):
                step(*args, **kwargs)

        self.optim_wrapper.step = first_step

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> dict:
        checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        if self._resuming:
            check_states(self, checkpoint)
            self.resumed_from = filename
            self.run_id = run_id_of(checkpoint)
            if is_main_process():
                write_run_id(self.work_dir, self.run_id)
            self.resumed_random_state = random_state_of_rank(
                checkpoint, self.world_size
            )
            if self.resumed_random_state is None:
                self.logger.warning(
                    f'{filename} has no random state of {self.world_size} rank(s): the '
                    'training draws other random numbers than an uninterrupted one'
                )
            else:
                set_random_state(self.resumed_random_state)
        return checkpoint

    def _starts_from_weights(self) -> bool:
        return not self._resuming

    @master_only
    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, **kwargs: Any
    ) -> None:
        """Save a checkpoint as MMEngine does.

        A local file has a temporary name until it is complete.

        Raises:
            RunError: The file cannot be written. The message names the free and the
                needed space.
        """
        if '://' in f'{out_dir}' or kwargs.get('backend_args') or (args and args[0]):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
            return
        path = Path(out_dir, filename)
        partial = path.with_name(f'{filename}.tmp')
        try:
            super().save_checkpoint(out_dir, partial.name, *args, **kwargs)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            needed = _size(self.model.state_dict())
            needed += _size(self.optim_wrapper.state_dict())
            free = shutil.disk_usage(out_dir).free if os.path.isdir(out_dir) else 0
            raise RunError(
                f'{path} cannot be written: {error.strerror or error}. It takes about '
                f'{needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free. Free some '
                'space and run the same command with --resume'
            ) from error
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _seed_of(filename: str) -> int | None:
    """Seed of the training that wrote a checkpoint. None if the seed is not known."""
    try:
        meta = read_checkpoint(filename)['meta']
        return meta['seed'] if type(meta['seed']) is int else None
    except (CheckpointError, OSError, KeyError, TypeError):
        return None  # If the file cannot be read, resume() reports this later.


def _size(state: Any) -> int:
    """Size of all tensors in a state dict, in bytes."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    if isinstance(state, dict):
        state = list(state.values())
    return sum(map(_size, state)) if isinstance(state, (list, tuple)) else 0


class TestRunner(Runner):
    """The Runner of test.py."""

    phases = ('test',)
