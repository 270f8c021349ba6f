# The base network. It is trained on the data set "control", where no far context shows
# the class. Networks with blocks start from its weights, as detectors start from a
# pretrained backbone. The network is the demo's Mask R-CNN (configs/demo) with fewer
# channels, without masks and without c5. The features of a region depend on at most 158
# pixels to either side (tests/test_receptive_field.py).
_base_ = '../../../configs/demo/mask-rcnn_r50_fpn_demo.py'

width = 32
proposals = dict(nms_pre=200, max_per_img=50)
model = dict(
    type='FasterRCNN',
    backbone=dict(
        stem_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
    ),
    neck=dict(
        in_channels=[64, 128, 256], start_level=1, out_channels=width, num_outs=2
    ),
    rpn_head=dict(
        in_channels=width,
        feat_channels=width,
        anchor_generator=dict(scales=[2], strides=[8, 16]),
    ),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=width, featmap_strides=[8, 16]),
        bbox_head=dict(
            in_channels=width,
            conv_out_channels=width,
            fc_out_channels=4 * width,
            num_classes=2,
        ),
        mask_roi_extractor=None,
        mask_head=None,
    ),
    train_cfg=dict(rpn_proposal=proposals, rcnn=dict(sampler=dict(num=24))),
    test_cfg=dict(rpn=proposals),
)

# make_data.py writes a folder for each probe (data set). The environment variable
# PROBE_DATA names the folder to use:
# PROBE_DATA=data/probes/scene/ python tools/train.py ...
data_root = '{{$PROBE_DATA:data/probes/control/}}'.rstrip('/') + '/'
scale = (576, 96)  # size of the largest images, so that no image is resized
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[2].scale = test_pipeline[1].scale = scale
data = dict(data_root=data_root, metainfo=dict(classes=('first', 'second')))
# Reading an image takes only a millisecond, so starting workers would not pay off.
no_workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=4, **no_workers, dataset=dict(**data, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=4, **no_workers, dataset=dict(**data, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
val_evaluator = dict(
    ann_file=data_root + 'annotations/instances_val.json', metric='bbox'
)
test_evaluator = val_evaluator

epochs = 6
train_cfg = dict(max_epochs=epochs, val_interval=epochs)
param_scheduler = _base_.param_scheduler
param_scheduler[0].end = 20
param_scheduler[1].T_max = epochs
default_hooks = dict(logger=dict(interval=20))
auto_scale_lr = dict(base_batch_size=4)
