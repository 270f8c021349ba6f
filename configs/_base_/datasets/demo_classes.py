# The data set that tools/make_demo_data.py --classes 8 writes.
_base_ = 'imagenet.py'
data_root = 'data/demo_classes/'
train_pipeline = [
    dict(type='prm_mmdet.LoadRandomResizedCrop', size=64, scale=(0.35, 1)),
    dict(type='RandomFlip', prob=0.5),
    dict(type='prm_mmdet.PackImage'),
]
test_pipeline = [dict(type='prm_mmdet.LoadImage'), dict(type='prm_mmdet.PackImage')]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    pin_memory=False,  # the demo runs on a CPU
    dataset=dict(data_root=data_root, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=1,
    pin_memory=False,
    dataset=dict(data_root=data_root, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
