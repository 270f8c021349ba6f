# Behind the linear 1x1 convolution of each inverted residual, with its norm; eight
# heads, as 16 channels and more leave room for.
_base_ = 'mobilenet-v2_8xb32-100e_imagenet.py'
block = dict(type='prm_mmdet.PRM', groups=8)
plugin = dict(cfg=block, at=r'layer[1-7]\.\d+\.linear_conv')
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[plugin],
    )
)
