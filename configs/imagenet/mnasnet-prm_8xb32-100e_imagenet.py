# PRM follows the norm of the linear 1x1 convolution in each inverted residual, which
# layer1 is not. For the 8 groups see mobilenet-v2-prm_8xb32-100e_imagenet.py.
_base_ = 'mnasnet_8xb32-100e_imagenet.py'
block = dict(type='prm_mmdet.PRM', groups=8)
plugin = dict(cfg=block, at=r'layer[2-7]\.\d+\.linear_conv')
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[plugin],
    )
)
