_base_ = 'resnet50_4xb64-100e-warmup_imagenet.py'
plugin = dict(cfg=dict(type='prm_mmdet.SAC'), at=r'layer3\.\d+\.bn2')
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[plugin],
    )
)
