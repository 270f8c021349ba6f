# The block follows the last residual block of c2, c3 and c4 (caption of Table X).
_base_ = 'resnet101_4xb64-100e-warmup_imagenet.py'
block = dict(type='prm_mmdet.DoubleAttention')
plugin = dict(cfg=block, at=r'layer[1-3]\.\d+', blocks='last')
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[plugin],
    )
)
