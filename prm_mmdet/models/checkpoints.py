"""Checkpoints that know nothing of the blocks in a network: loaded so that it computes
what it did, or rewritten for it."""

from mmengine.logging import print_log
from mmengine.model import PretrainedInit

from ..registry import WEIGHT_INITIALIZERS
from .preservation import preserve


@WEIGHT_INITIALIZERS.register_module('PreservedPretrained')
class PreservedPretrainedInit(PretrainedInit):
    """``Pretrained`` for weights that know nothing of the blocks in the network: it
    then computes what it did without them, see :func:`preserve`. In a config::

        init_cfg=dict(
            type='prm_mmdet.PreservedPretrained', checkpoint='x.pth', prefix='backbone.'
        )

    What was done about each block is logged. A checkpoint that has the blocks' weights
    is loaded as it is.

    Args:
        checkpoint (str): File or address, as in ``Pretrained``.
        prefix (str | None): The part of the checkpoint to load. Default: None, all.
        map_location (str): Where to load it to. Default: 'cpu'.
    """

    def __call__(self, module):
        # MMEngine loads a Pretrained after the submodules have started, but any other
        # type before: it would lose to their values.
        for child in module.children():
            if hasattr(child, 'init_weights') and not getattr(child, 'is_init', False):
                child.init_weights()
                child.is_init = True
        missing = []
        handle = module.register_load_state_dict_post_hook(
            lambda _, keys: missing.extend(keys.missing_keys)
        )
        try:
            super().__call__(module)
        finally:
            handle.remove()
        for outcome in preserve(module, missing):
            print_log(f'{type(module).__name__}: {outcome}', 'current')
