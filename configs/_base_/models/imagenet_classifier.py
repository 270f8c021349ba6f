# A row gives the backbone. Images are normalised as MMDetection's detectors do it, so
# that a backbone sees the same numbers in both.
model = dict(
    type='prm_mmdet.ImageClassifier',
    num_classes=1000,
    data_preprocessor=dict(
        type='mmengine.ImgDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        non_blocking=True,
    ),
)
