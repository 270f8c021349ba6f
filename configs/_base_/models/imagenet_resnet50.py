# The papers' ResNets are torchvision's, which do not start the last norm of a block at
# zero; behind a norm that does, a plugin would start on maps that are zero everywhere.
_base_ = 'imagenet_classifier.py'
model = dict(
    backbone=dict(
        type='mmdet.ResNet',
        depth=50,
        out_indices=(3,),
        norm_eval=False,
        zero_init_residual=False,
    )
)
