_base_ = ['../v3/cascade-rcnn_r50_fpn.py', 'legacy.py']
# Inheritance replaces a list whole, so the three stages are taken over from the base.
rcnn_stages = [
    dict(stage, assigner=dict(stage.assigner, match_low_quality=True))
    for stage in _base_.model.train_cfg.rcnn
]
model = dict(
    rpn_head=_base_.legacy_rpn_head,
    roi_head=dict(
        bbox_roi_extractor=_base_.legacy_roi_extractor,
        bbox_head=_base_.legacy_cascade_heads,
    ),
    train_cfg=dict(_base_.legacy_train_cfg, rcnn=rcnn_stages),
)
