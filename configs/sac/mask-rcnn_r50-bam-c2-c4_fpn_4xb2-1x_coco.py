# BAM is placed after c2, c3 and c4, once each, as in its own paper. The first BAM is
# beside layer1, not in it, so it is trained although c2 is frozen.
#
# norm_eval also holds BAM's own batch normalisation in evaluation. Its running
# statistics stay at mean 0 and variance 1, so it only scales and shifts by its trained
# gamma and beta. The SAC paper says "frozen BatchNorm" and makes no exception for BAM.
_base_ = 'mask-rcnn_r50_fpn_4xb2-1x_coco.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='prm_mmdet.Plugged',
        model=_base_.model.backbone,
        plugins=[dict(cfg=dict(type='prm_mmdet.BAM'), at='layer[1-3]')],
    )
)
