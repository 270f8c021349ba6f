# A classifier without its backbone, which a config adds.
#
# Images are normalised by channel means and standard deviations, as the LCT and SAC
# papers say and as MMDetection's detectors do. The PRM paper names "mean channel
# subtraction" only. PRM's configs divide too, because a detector that starts from this
# backbone divides and must give it the same numbers.
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
