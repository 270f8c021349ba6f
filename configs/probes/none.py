# The network of the probes: a Faster R-CNN that ends at c4, so that it sees 154 pixels
# to either side of an object, and no farther (tests/test_probes holds the data to it).
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../_base_/datasets/probe_detection.py',
    '../_base_/default_runtime.py',
]

width = 32  # of the neck and the heads; the backbone is a quarter of ResNet-50's
norm_cfg = dict(type='BN', requires_grad=True)  # learns faster from scratch
proposals = dict(nms_pre=200, max_per_img=50)
model = dict(
    backbone=dict(
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        base_channels=16,
        frozen_stages=-1,
        norm_eval=False,
        init_cfg=[],  # PyTorch's initial weights, and every block's own
    ),
    neck=dict(
        in_channels=[64, 128, 256], out_channels=width, num_outs=3, norm_cfg=norm_cfg
    ),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[4], strides=[4, 8, 16]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, featmap_strides=[4, 8, 16]),
        bbox_head=dict(
            _delete_=True,
            type='ConvFCBBoxHead',
            in_channels=width,
            num_shared_convs=1,
            conv_out_channels=width,
            num_shared_fcs=1,
            fc_out_channels=4 * width,
            norm_cfg=norm_cfg,
            num_classes=2,
            reg_class_agnostic=True,
            reg_decoded_bbox=True,
            bbox_coder=dict(
                type='DeltaXYWHBBoxCoder', target_stds=[0.1, 0.1, 0.2, 0.2]
            ),
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=dict(type='GIoULoss', loss_weight=10.0),
        ),
    ),
    train_cfg=dict(rpn_proposal=proposals, rcnn=dict(sampler=dict(num=32))),
    test_cfg=dict(rpn=proposals),
)

# One recipe for all networks.
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=6, val_interval=6)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=35),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type='CosineAnnealingLR', T_max=6, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=20))
auto_scale_lr = dict(enable=False, base_batch_size=4)
randomness = dict(seed=0)
