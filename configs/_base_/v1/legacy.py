# What MMDetection 1.x did otherwise: anchors, box coder, RoIAlign, losses, proposals.
# The baselines of the SAC and LCT papers are its numbers. MMDetection 3 keeps the parts
# for its own configs/legacy_1.x.
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
    rpn_proposal=dict(max_per_img=2000),
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
