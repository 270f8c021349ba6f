# ResNet-50 as torchvision has it, whose numbers of parameters and FLOPs the papers
# print. It does not initialise the last norm of a block at zero. With
# zero_init_residual, a plugin after that norm would get maps that are zero everywhere.
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
