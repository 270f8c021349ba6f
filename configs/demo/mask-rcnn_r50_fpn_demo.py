# A Mask R-CNN narrow enough to learn the generated data in minutes on two cores.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../_base_/datasets/demo_instance.py',
    '../_base_/default_runtime.py',
]

width = 64  # channels of the neck and the heads
num_classes = 4
norm_cfg = dict(type='BN', requires_grad=True)  # learns faster from scratch
proposals = dict(nms_pre=400, max_per_img=100)
model = dict(
    backbone=dict(base_channels=16, frozen_stages=-1, norm_eval=False, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=width, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=width, feat_channels=width, anchor_generator=dict(scales=[4])
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width),
        bbox_head=dict(
            _delete_=True,
            type='ConvFCBBoxHead',
            in_channels=width,
            num_shared_convs=1,
            conv_out_channels=width,
            num_shared_fcs=1,
            fc_out_channels=4 * width,
            norm_cfg=norm_cfg,
            num_classes=num_classes,
            reg_class_agnostic=True,
            reg_decoded_bbox=True,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]
            ),
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
        ),
        mask_roi_extractor=dict(out_channels=width),
        mask_head=dict(
            num_convs=2,
            in_channels=width,
            conv_out_channels=width,
            norm_cfg=norm_cfg,
            num_classes=num_classes,
        ),
    ),
    train_cfg=dict(rpn_proposal=proposals, rcnn=dict(sampler=dict(num=48))),
    test_cfg=dict(rpn=proposals),
)

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=12)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=35),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type='CosineAnnealingLR', T_max=12, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=23))
auto_scale_lr = dict(enable=False, base_batch_size=8)
randomness = dict(seed=0)
