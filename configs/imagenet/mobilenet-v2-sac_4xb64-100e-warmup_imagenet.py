# As PRM, in the last blocks of strides 4, 8 and 16.
_base_ = 'mobilenet-v2_4xb64-100e-warmup_imagenet.py'
plugin = dict(
    cfg=dict(type='prm_mmdet.SAC'), at=r'layer[235]\.\d+\.linear_conv', blocks='last'
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[plugin],
    )
)
