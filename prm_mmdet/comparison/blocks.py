"""The blocks that a user asks for, as text such as ``SAC reduction=16``."""

from __future__ import annotations

import ast
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

from .. import plugins

#: Blocks that can be inserted as plugins. SK replaces a convolution, so SK cannot be
#: inserted.
NAMES = tuple(name for name in plugins.__all__ if name != 'SK')
CONTROL = 'none'


@dataclass(frozen=True)
class Block:
    """A block to compare, and its place. If ``stages`` or ``at`` is None, the default
    place is used."""

    label: str  # the text that the user wrote, which is also the name in tables
    type: str  # registered name of the block's class
    options: dict  # arguments of the constructor that the user chose
    # Place in a bottleneck: 'after_conv1', 'after_conv2' or 'after_conv3'.
    position: str
    stages: tuple[str, ...] | None  # names of stages, such as 'c3'
    at: str | None  # regular expression for names of submodules that get the block


def read_blocks(
    texts: Sequence[str],
    position: str | None = None,
    stages: Sequence[str] | None = None,
    at: str | None = None,
) -> list[Block]:
    """The blocks of a command line.

    Args:
        texts: One text for each block: its name and its options, such as 'SAC
            reduction=16'. The options 'position', 'stages' (with commas) and 'at'
            choose the place of this block.
        position: Position in a bottleneck, for blocks whose text names no position.
            Default: the position in the block's paper.
        stages: Stages for blocks whose text names no stages. Default: c3 and deeper.
        at: Regular expression of module names, for blocks whose text has no 'at'.
            Default: :func:`prm_mmdet.comparison.placement.place` chooses the place.

    Raises:
        ValueError: A text cannot be read, names no registered block, or occurs twice.
    """
    blocks = [_read_block(text, position, stages, at) for text in texts]
    for label, count in Counter(block.label for block in blocks).items():
        if count > 1:
            raise ValueError(f'--blocks names {label!r} twice')
    return blocks


def _read_block(
    text: str, position: str | None, stages: Sequence[str] | None, at: str | None
) -> Block:
    name, *words = shlex.split(text) or ['']
    if not name or name == CONTROL:
        raise ValueError(
            f'--blocks got {text!r}; name blocks, such as SAC. The control without a '
            'block is always run'
        )
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition('=')
        if not equals or not key.isidentifier():
            raise ValueError(
                f'--blocks: {word!r} in {text!r} is not of the form option=value'
            )
        options[key] = _value(value)
    own_stages = options.pop('stages', None)
    if own_stages is not None:
        stages = re.split(r'[,+]', str(own_stages))
    # By default, SAC is placed after conv2 of a bottleneck, as in SAC's paper.
    default = 'after_conv2' if name == 'SAC' else 'after_conv3'
    return Block(
        label=' '.join([name, *words]),
        type=_registered(name),
        position=str(options.pop('position', position or default)),
        stages=tuple(stages) if stages else None,
        at=options.pop('at', at),
        options=options,
    )


def _value(text: str) -> Any:
    """The value of a Python literal. A text that is no literal is returned as it is."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _registered(name: str) -> str:
    register_all_modules()
    if name in NAMES:
        return f'prm_mmdet.{name}'
    if MODELS.get(name) is None:
        raise ValueError(
            f'--blocks: there is no block {name!r}. Choose from {", ".join(NAMES)}, or '
            'name another registered plugin, such as ContextBlock'
        )
    return name
