# c2 has 64 channels. With 64 groups, a group would be one channel, which LCT rejects.
_base_ = 'resnet18_8xb32-100e_imagenet.py'
plugin = dict(cfg=dict(type='prm_mmdet.LCT', groups=32), at=r'layer[1-4]\.\d+\.bn2')
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[plugin],
    )
)
