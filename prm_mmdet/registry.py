"""The package's registry scope.

MMEngine imports this module by itself when a config says ``prm_mmdet.X``, and the
registry then imports its ``locations``: no ``custom_imports`` is needed.
"""

from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import WEIGHT_INITIALIZERS as MMENGINE_WEIGHT_INITIALIZERS
from mmengine.registry import Registry

MODELS = Registry(
    'model',
    parent=MMENGINE_MODELS,
    scope='prm_mmdet',
    locations=['prm_mmdet.plugins', 'prm_mmdet.models'],
)
WEIGHT_INITIALIZERS = Registry(
    'weight initializer',
    parent=MMENGINE_WEIGHT_INITIALIZERS,
    scope='prm_mmdet',
    locations=['prm_mmdet.models'],
)
