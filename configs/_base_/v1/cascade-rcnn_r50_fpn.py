_base_ = ['../v3/cascade-rcnn_r50_fpn.py', 'legacy.py']
model = dict(
    rpn_head=_base_.legacy_rpn_head,
    roi_head=dict(
        bbox_roi_extractor=_base_.legacy_roi_extractor,
        bbox_head=_base_.legacy_cascade_heads,
    ),
)
