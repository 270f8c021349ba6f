# Mask R-CNN as MMDetection 3 has it, without a schedule.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    '../datasets/coco_instance.py',
    '../default_runtime.py',
]
