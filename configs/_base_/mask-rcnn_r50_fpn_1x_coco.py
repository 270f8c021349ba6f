# Mask R-CNN on MMDetection 3's own defaults: 8 GPUs x 2 images, lr 0.02, 12 epochs.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'datasets/coco_instance.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'default_runtime.py',
]
