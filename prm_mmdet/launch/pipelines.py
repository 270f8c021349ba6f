"""Data pipelines whose error messages name the image."""

from __future__ import annotations

from typing import Any

from mmengine.dataset import BaseDataset, Compose

from .run_errors import RunError


class NamingPipeline(Compose):
    """A data set's pipeline, whose errors name the image.

    Raises:
        RunError: A step that loads the image or its annotations fails.
        RuntimeError: Another step fails. The step's error is the ``__cause__``.
    """

    def __init__(self, pipeline: Compose) -> None:
        self.transforms = pipeline.transforms

    def __call__(self, data: dict) -> dict | None:
        image = f'{data.get("img_path")} (img_id {data.get("img_id")})'
        found: dict | None = data
        for step in self.transforms:
            name = type(step).__name__
            try:
                found = step(found)
            except Exception as error:
                text = f'{image}: {name} failed: {type(error).__name__}: {error}'
                if name.startswith('Load'):
                    raise RunError(
                        f'{text}. Replace the file, or remove the image from the data '
                        'set. To find all such images, run: python '
                        'tools/check_data.py CONFIG --images'
                    ) from error
                raise RuntimeError(text) from error
            if found is None:
                return None
        return found


def name_images(dataset: Any) -> None:
    """Make the errors of a data set's pipelines name the image.

    If the data set wraps other data sets, the pipelines of these data sets are changed.
    """
    if isinstance(dataset, BaseDataset):
        if type(dataset.pipeline) is Compose:
            dataset.pipeline = NamingPipeline(dataset.pipeline)
        return
    children = [getattr(dataset, 'dataset', None), *getattr(dataset, 'datasets', ())]
    for child in children:
        if child is not None:
            name_images(child)
