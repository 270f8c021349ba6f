_base_ = 'resnet50_4xb64-100e-warmup_imagenet.py'
# In the last residual block of c2, c3 and c4, between the norm of the 3x3 and its ReLU.
# A detector takes such a backbone with the same plugins: see README.
plugin = dict(cfg=dict(type='prm_mmdet.SAC'), at=r'layer[1-3]\.\d+\.bn2', blocks='last')
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[plugin],
    )
)
