"""The package's registry scope.

MMEngine imports this module by itself when a config says ``prm_mmdet.X``, and the
registry then imports its ``locations``: no ``custom_imports`` is needed.
"""

from mmengine import registry as mmengine
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=mmengine.MODELS,
    scope='prm_mmdet',
    locations=['prm_mmdet.plugins', 'prm_mmdet.insertion', 'prm_mmdet.pretraining'],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=mmengine.WEIGHT_INITIALIZERS,
    scope='prm_mmdet',
    locations=['prm_mmdet.insertion'],
)
DATASETS = Registry(
    'dataset',
    parent=mmengine.DATASETS,
    scope='prm_mmdet',
    locations=['prm_mmdet.pretraining.imagenet'],
)
TRANSFORMS = Registry(
    'transform',
    parent=mmengine.TRANSFORMS,
    scope='prm_mmdet',
    locations=['prm_mmdet.pretraining.transforms'],
)
HOOKS = Registry(
    'hook',
    parent=mmengine.HOOKS,
    scope='prm_mmdet',
    locations=['prm_mmdet.pretraining.imagenet', 'prm_mmdet.inspection.hook'],
)
METRICS = Registry(
    'metric',
    parent=mmengine.METRICS,
    scope='prm_mmdet',
    locations=['prm_mmdet.pretraining.accuracy'],
)
