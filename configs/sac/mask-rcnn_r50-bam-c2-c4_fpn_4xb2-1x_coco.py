# BAM stands between the stages, as in its paper: at the ends of c2, c3 and c4, once
# each. Being beside layer1, not in it, the first is trained although c2 is frozen.
_base_ = 'mask-rcnn_r50_fpn_4xb2-1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[dict(cfg=dict(type='prm_mmdet.BAM'), at='layer[1-3]')],
    )
)
