# PRM follows the norm of the linear 1x1 convolution in each inverted residual. The
# paper's 64 groups do not divide the 16 to 320 channels there, and it names no other
# number for mobile networks. The authors' code has 8 groups.
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
