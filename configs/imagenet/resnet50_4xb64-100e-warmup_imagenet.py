_base_ = [
    '../_base_/models/imagenet_resnet50.py',
    '../_base_/datasets/imagenet_256.py',
    '../_base_/schedules/imagenet_100e_warmup.py',
    '../_base_/imagenet_runtime.py',
]
