_base_ = ['../v3/mask-rcnn_r50_fpn.py', 'legacy.py']
model = dict(
    rpn_head=_base_.legacy_rpn_head,
    roi_head=dict(
        bbox_roi_extractor=_base_.legacy_roi_extractor,
        mask_roi_extractor=_base_.legacy_roi_extractor,
        bbox_head=_base_.legacy_bbox_head,
    ),
    train_cfg=_base_.legacy_train_cfg,
)
