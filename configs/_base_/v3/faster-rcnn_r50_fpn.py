# Faster R-CNN as MMDetection 3 has it, without a schedule.
_base_ = [
    'mmdet::_base_/models/faster-rcnn_r50_fpn.py',
    '../datasets/coco_detection.py',
    '../default_runtime.py',
]
