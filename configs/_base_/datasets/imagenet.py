# ImageNet 2012: train/<wnid>/*.JPEG and val/<wnid>/*.JPEG. To use another folder, set
# IMAGENET=/path/to/imagenet/. If val/ has no folders, name a file of labels:
# --cfg-options {val,test}_dataloader.dataset.ann_file=LOC_val_solution.csv
data_root = '{{$IMAGENET:data/imagenet/}}'.rstrip('/') + '/'
train_pipeline = [
    dict(type='prm_mmdet.LoadRandomResizedCrop', size=224),
    dict(type='RandomFlip', prob=0.5),
    dict(type='prm_mmdet.PackImage'),
]
test_pipeline = [
    dict(type='prm_mmdet.LoadImage', short_edge=256),
    dict(type='Resize', scale=(1000000, 256), keep_ratio=True),  # the shorter edge
    # auto_pad: in an image that is 4000 times as long as wide, the other bound of the
    # scale applies first and leaves less than 224 pixels.
    dict(type='CenterCrop', crop_size=224, auto_pad=True),
    dict(type='prm_mmdet.PackImage'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='prm_mmdet.ImageNet',
        data_root=data_root,
        data_prefix=dict(img_path='train/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='prm_mmdet.ImageNet',
        data_root=data_root,
        data_prefix=dict(img_path='val/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='prm_mmdet.Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
