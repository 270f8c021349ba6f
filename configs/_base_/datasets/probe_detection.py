# What tools/make_probe_data.py writes. The probe is named from outside:
# PROBE_DATA=data/probes/scene/ python tools/train.py configs/probes/...
_base_ = 'mmdet::_base_/datasets/coco_detection.py'
data_root = '{{$PROBE_DATA:data/probes/far-cue/}}'.rstrip('/') + '/'
metainfo = dict(classes=('first', 'second'))
scale = (384, 96)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
# An image is read in a millisecond: workers would only take time to start.
no_workers = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=4,
    **no_workers,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    **no_workers,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
