# Settings in which MMDetection 1.x differs from MMDetection 3: anchors, box coder,
# RoIAlign, losses, proposals and assignment. The SAC paper names MMDetection V1. The
# LCT and PRM papers name no version, and were written before 2.0.
#
# Sources: configs/{faster,mask,cascade,cascade_mask}_rcnn_r50_fpn_1x.py and
# configs/retinanet_r50_fpn_1x.py of MMDetection 1.x, docs/compatibility.md of 2.0, and
# configs/legacy_1.x of 3, for which MMDetection 3 still has these parts.
#
# These differences remain, since MMDetection 3 has no setting for them. 1.x added 1 to
# widths and heights in the IoU of assignment and of NMS. It cropped the targets of
# masks from rounded boxes and pasted predicted masks at rounded boxes. It resized both
# sides of a box by one factor.
legacy_anchors = dict(type='LegacyAnchorGenerator', center_offset=0.5)
legacy_coder = dict(type='LegacyDeltaXYWHBBoxCoder')
legacy_rpn_head = dict(
    anchor_generator=legacy_anchors,
    bbox_coder=legacy_coder,
    loss_bbox=dict(type='SmoothL1Loss', beta=1.0 / 9.0, loss_weight=1.0),
)
legacy_roi_extractor = dict(roi_layer=dict(sampling_ratio=2, aligned=False))
legacy_bbox_head = dict(
    bbox_coder=legacy_coder,
    loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
)
legacy_train_cfg = dict(
    # Anchors that reach beyond the image are not trained.
    rpn=dict(allowed_border=0),
    rpn_proposal=dict(max_per_img=2000),
    # Each object keeps its best proposal, even below the threshold of the IoU.
    rcnn=dict(assigner=dict(match_low_quality=True)),
)
legacy_cascade_heads = [
    dict(
        type='Shared2FCBBoxHead',
        in_channels=256,
        fc_out_channels=1024,
        roi_feat_size=7,
        num_classes=80,
        reg_class_agnostic=True,
        bbox_coder=dict(
            target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds, **legacy_coder
        ),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        loss_bbox=dict(type='SmoothL1Loss', beta=1.0, loss_weight=1.0),
    )
    for stds in (
        [0.1, 0.1, 0.2, 0.2],
        [0.05, 0.05, 0.1, 0.1],
        [0.033, 0.033, 0.067, 0.067],
    )
]
