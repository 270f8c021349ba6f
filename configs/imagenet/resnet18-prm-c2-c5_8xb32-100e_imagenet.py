# BasicBlock takes no plugins. After its last norm is before the addition.
_base_ = 'resnet18_8xb32-100e_imagenet.py'
plugin = dict(cfg=dict(type='prm_mmdet.PRM'), at=r'layer[1-4]\.\d+\.bn2')
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[plugin],
    )
)
