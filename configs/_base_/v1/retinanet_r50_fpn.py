_base_ = ['../v3/retinanet_r50_fpn.py', 'legacy.py']
model = dict(
    bbox_head=dict(
        anchor_generator=_base_.legacy_anchors,
        bbox_coder=_base_.legacy_coder,
        loss_bbox=dict(type='SmoothL1Loss', beta=0.11, loss_weight=1.0),
    )
)
