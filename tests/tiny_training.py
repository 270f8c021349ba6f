"""A training of a second: four channels, eight samples."""

import random

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from torch import nn

from prm_mmdet.launch import TrainRunner
from prm_mmdet.plugins import LCT


class Noisy(torch.utils.data.Dataset):
    """Samples that differ each time they are drawn, as an augmentation makes them."""

    @property
    def metainfo(self):
        return dict(classes=('a', 'b'))

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return dict(inputs=torch.rand(4, 2, 2) + random.random() + np.random.rand())


class Network(BaseModel):
    def __init__(self, block=False, classes=2):
        super().__init__()
        self.body = nn.Conv2d(4, 4, 1)
        self.head = nn.Module()
        self.head.num_classes = classes
        self.head.cls = nn.Linear(4, classes)
        if block:
            self.block = LCT(4, groups=2)

    def forward(self, inputs, mode='tensor'):
        x = torch.stack(list(inputs))
        x = self.head.cls(self.body(x).mean((2, 3)))
        return dict(loss=x.square().mean()) if mode == 'loss' else list(x)


class Score(BaseMetric):
    """1, 2, 3: each validation is the best one."""

    calls = 0

    def process(self, data_batch, data_samples):
        torch.rand(1)  # validation draws random numbers, too
        self.results.append(1)

    def compute_metrics(self, results):
        Score.calls += 1
        return dict(acc=float(Score.calls))


def run(
    folder, epochs=3, model=None, resume_from=None, workers=0, hook=None, **arguments
):
    """A TrainRunner. ``hook`` and ``arguments`` replace defaults of CheckpointHook and
    of TrainRunner."""
    loader = dict(
        dataset=Noisy(),
        batch_size=4,
        num_workers=workers,
        persistent_workers=bool(workers),
        collate_fn=dict(type='default_collate'),
        sampler=dict(type='DefaultSampler', shuffle=True),
    )
    checkpoint = dict(type='CheckpointHook', interval=1, **(hook or {}))
    cfg = dict(
        model=model or Network(),
        work_dir=str(folder),
        train_dataloader=loader,
        val_dataloader=dict(loader, num_workers=0, persistent_workers=False),
        train_cfg=dict(by_epoch=True, max_epochs=epochs, val_interval=1),
        val_cfg=dict(),
        val_evaluator=[Score()],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        param_scheduler=[dict(type='ConstantLR', end=9)],
        default_hooks=dict(checkpoint=checkpoint),
        experiment_name=f'{folder.name}_{random.random()}',
        load_from=resume_from and str(resume_from),
        resume=bool(resume_from),
    )
    return TrainRunner(**{**cfg, **arguments})
