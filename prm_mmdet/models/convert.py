"""Weights of torchvision's networks and of the PRM authors', in MMDetection's names.

MMDetection's names in a ResNet are torchvision's; what differs is the blocks, the
classifier, and all of MobileNetV2. The PRM authors' names and shapes are those of the
code that they published with the paper (github.com/13952522076/PRM): torchvision's, and
in each residual block a PRMLayer ``prm`` behind its last norm.
"""

import re

import torch
from mmdet.models.backbones import MobileNetV2, ResNet, ResNeXt
from mmdet.models.backbones.resnet import BasicBlock
from mmdet.models.layers import InvertedResidual

from ..plugins import PRM
from ..registry import MODELS
from .plugged import attach_plugins

FORMS = ('torchvision', 'prm-authors')
# PRM's parameters: their names in PRMLayer, and their shapes there.
_PRM_LAYER = {
    'alpha': ('zero', (1, -1, 1)),
    'beta': ('one', (1, -1, 1)),
    'weight': ('weight', (1, -1, 1, 1)),
    'bias': ('bias', (1, -1, 1, 1)),
    'theta': ('theta', (1, 2, 1, 1)),
    'sigma': ('scale', (1,)),
}
# torchvision's oldest files have no counters; a backbone needs no classifier.
_OPTIONAL = re.compile(r'.*num_batches_tracked|(fc|classifier\.1)\.(weight|bias)')


def to_mmdet(state, form, backbone=None, drop=()):
    """Rename weights of torchvision or of the PRM authors for MMDetection.

    What a network computes stays the same, but for this: PRMLayer divides by a standard
    deviation over N - 1 positions, PRM by the paper's over N, which makes its
    normalised similarity sqrt(N / (N - 1)) times PRMLayer's (1% more at 7 x 7). And no
    weight says whether PRMLayer was 'dotproduct', its default and PRM's, or 'l1norm',
    which is PRM's ``similarity='l1'``.

    Args:
        state (dict[str, Tensor]): Weights of a ResNet, ResNeXt or MobileNetV2, with or
            without its classifier.
        form (str): Whose names they have: 'torchvision' or 'prm-authors'.
        backbone (nn.Module | None): MMDetection's backbone that they are for. Default:
            None, the ResNet or MobileNetV2 that their names are of.
        drop (Sequence[str]): Beginnings of names to be left out.

    Returns:
        dict[str, Tensor]: Weights for ``init_cfg=dict(type='Pretrained',
        checkpoint=..., prefix='backbone.')``; the classifier is ``fc``. Values are
        unchanged, PRM's in its shapes.

    Raises:
        ValueError: Weights are missing, unknown, of another shape, or no dense real
            tensors; all are named. Or the form has no names for weights of the
            backbone. Or it is 'prm-authors', and there is no PRM.
    """
    if backbone is None:
        backbone = _infer(state, form)
    table = _table(backbone, form)
    known = {ours for (ours, _), _ in table}
    nameless = [k for k in backbone.state_dict() if f'backbone.{k}' not in known]
    if nameless:
        raise ValueError(
            f'{form} has no names for {_some(nameless)}: convert for a backbone '
            'without these, whose weights this one can load'
        )
    return _renamed(state, [(theirs, ours) for ours, theirs in table], drop)


def from_mmdet(state, form, backbone, drop=()):
    """The way back of :func:`to_mmdet`.

    Args:
        state (dict[str, Tensor]): Weights with the names that :func:`to_mmdet` gives.
        form (str): As there.
        backbone (nn.Module): The backbone that they are of.
        drop (Sequence[str]): As there, such as 'neck.' of a detector.

    Returns:
        dict[str, Tensor]: The weights in the form's names. PRM's ``sigma`` becomes
        positive: PRM ignores its sign, PRMLayer fails on a negative one.

    Raises:
        ValueError: As :func:`to_mmdet`.
    """
    table = _table(backbone, form)
    sigmas = {ours for (ours, _), (name, _) in table if name.endswith('.prm.scale')}
    state = {k: v.abs() if k in sigmas else v for k, v in state.items()}
    return _renamed(state, table, drop)


def _renamed(state, table, drop):
    """Weights under other names, and in other shapes of as many elements.

    Args:
        table (list): ((name, shape), (new name, new shape)), -1 for any size.
    """
    state = {k: v for k, v in state.items() if not k.startswith(tuple(drop))}
    shapes = dict(old for old, _ in table)
    problems = {
        'missing': [
            name
            for name in shapes
            if name not in state and not _OPTIONAL.fullmatch(name)
        ],
        'unknown': [name for name in state if name not in shapes],
        'of another shape': [
            f'{name} {_shown(state[name].shape)}, not {_shown(shape)}'
            for name, shape in shapes.items()
            if name in state and not _fits(state[name].shape, shape)
        ],
        'no dense real tensors': [
            f'{name} ({value.dtype}, {value.layout})'
            for name, value in state.items()
            if value.layout is not torch.strided or value.is_complex()
        ],
    }
    if any(problems.values()):
        found = [f'{what}: {_some(names)}' for what, names in problems.items() if names]
        cure = ' (drop leaves out what is unknown)' if problems['unknown'] else ''
        raise ValueError(f'weights do not fit the network; {"; ".join(found)}{cure}')
    return {
        new: state[old] if shapes[old] == shape else state[old].reshape(shape)
        for (old, _), (new, shape) in table
        if old in state
    }


def _fits(shape, expected):
    return len(shape) == len(expected) and all(
        e in (-1, size) for size, e in zip(shape, expected)
    )


def _shown(shape):
    return f'({", ".join("any" if size == -1 else str(size) for size in shape)})'


def _some(names, limit=6):
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def _table(backbone, form):
    """((our name, shape), (their name, shape)) of all that a form has names for."""
    if form not in FORMS:
        raise ValueError(f'form must be one of {", ".join(FORMS)}, got {form!r}')
    names, classifier, channels = _names(backbone)
    layers = _prm_layers(backbone, names) if form == 'prm-authors' else {}
    if form == 'prm-authors' and not layers:
        raise ValueError(
            f'there is no PRM in this {type(backbone).__name__}; without any, the PRM '
            "authors' names are torchvision's: use that form"
        )
    table = []
    for key, value in backbone.state_dict().items():
        module, _, leaf = key.rpartition('.')
        ours = (f'backbone.{key}', value.shape)
        if module in layers:
            name, shape = _PRM_LAYER[leaf]
            theirs = (f'{layers[module]}.{name}', value.view(shape).shape)
            table.append((ours, theirs))
        elif module in names:
            table.append((ours, (f'{names[module]}.{leaf}', value.shape)))
    for leaf, shape in (('weight', (-1, channels)), ('bias', (-1,))):
        table.append(((f'fc.{leaf}', shape), (f'{classifier}.{leaf}', shape)))
    return table


def _names(backbone):
    """torchvision's names of a backbone's layers and blocks, its classifier's name, and
    how many channels that takes."""
    if type(backbone) is MobileNetV2:
        channels = backbone.conv2.conv.out_channels
        return _mobilenet_v2_names(backbone), 'classifier.1', channels
    style = getattr(backbone, 'style', None)
    if type(backbone) not in (ResNet, ResNeXt) or style != 'pytorch':
        kind = type(backbone).__name__ + (f" in style '{style}'" if style else '')
        raise ValueError(
            f"{kind} is no network of torchvision's; MobileNetV2, and ResNet and "
            "ResNeXt in style 'pytorch' can be converted"
        )
    same = re.compile(r'(conv|bn)1|layer\d\.\d+(\.((conv|bn)\d|downsample\.[01]))?')
    names = (name for name, _ in backbone.named_modules() if same.fullmatch(name))
    return {name: name for name in names}, 'fc', backbone.feat_dim


def _mobilenet_v2_names(backbone):
    blocks = re.compile(r'conv[12]|layer\d\.\d+')
    blocks = [(n, m) for n, m in backbone.named_modules() if blocks.fullmatch(n)]
    names = {}
    for number, (block, module) in enumerate(blocks):
        names[block] = theirs = f'features.{number}'
        layers = {block: theirs}
        if isinstance(module, InvertedResidual):
            first = ['expand_conv'] * module.with_expand_conv + ['depthwise_conv']
            layers = {f'{block}.{n}': f'{theirs}.conv.{i}' for i, n in enumerate(first)}
            names[f'{block}.linear_conv.conv'] = f'{theirs}.conv.{len(first)}'
            names[f'{block}.linear_conv.bn'] = f'{theirs}.conv.{len(first) + 1}'
        for layer, theirs in layers.items():
            names |= {f'{layer}.conv': f'{theirs}.0', f'{layer}.bn': f'{theirs}.1'}
    return names


def _prm_layers(backbone, names):
    """Names of a backbone's PRMs: {ours: the authors'}."""
    layers = {}
    modules = dict(backbone.named_modules())
    for name, module in modules.items():
        if not isinstance(module, PRM):
            continue
        block = '.'.join(name.split('.')[:2])
        inside, _, plugin = name[len(block) + 1 :].rpartition('.')
        theirs = f'{names.get(block)}.prm'
        if theirs in layers.values() or not _ends(modules[block], inside, plugin):
            raise ValueError(
                f'{name}: PRMLayer stands behind the last norm of a residual block, as '
                "at position='after_conv3', and once; this PRM does not"
            )
        if module.similarity == 'cosine' or not module.normalization:
            raise ValueError(f'{name}: PRMLayer has no such form: {module}')
        if module.theta is None:
            raise ValueError(f'{name}: PRMLayer always has the position encoding')
        layers[name] = theirs
    return layers


def _ends(block, inside, plugin):
    """Whether a plugin of a block's layer ``inside``, or of the block itself, runs on
    what the block adds to its shortcut."""
    if not inside:
        return plugin in getattr(block, 'after_conv3_plugin_names', ())
    last = getattr(block, 'norm3_name', getattr(block, 'norm2_name', 'linear_conv'))
    return inside in (last, 'linear_conv.bn')


def _infer(state, form):
    """Build the backbone that torchvision's or the authors' names are of."""
    groups, stages = 0, ''
    for key, value in state.items():
        match = re.fullmatch(r'(layer(\d)|features)\.\d+\.prm\.one', key)
        if match and form == 'prm-authors':
            groups = max(groups, value.numel())
            stages += match[2] or ''
    prm = dict(type='prm_mmdet.PRM', groups=groups)
    if 'features.0.0.weight' in state:
        cfg = dict(type='mmdet.MobileNetV2')
        at = r'layer\d\.\d+\.linear_conv'
    else:
        cfg = dict(type='mmdet.ResNet', depth=_depth(state))
        at = rf'layer[{stages}]\.\d+\.bn2'
        if cfg['depth'] >= 50 and groups:
            stages = tuple(f'{i}' in stages for i in range(1, 5))
            plugin = dict(cfg=prm, stages=stages, position='after_conv3')
            return MODELS.build(dict(cfg, plugins=[plugin]))
    backbone = MODELS.build(cfg)
    return attach_plugins(backbone, [dict(cfg=prm, at=at)] if groups else [])


def _depth(state):
    blocks = {match[0] for k in state if (match := re.match(r'layer\d\.\d+', k))}
    stages = tuple(sum(b.startswith(f'layer{i}') for b in blocks) for i in range(1, 5))
    basic = 'layer1.0.conv3.weight' not in state
    for depth, (block, counts) in ResNet.arch_settings.items():
        if counts == stages and (block is BasicBlock) == basic:
            return depth
    raise ValueError(
        "the names are none of torchvision's ResNet-18 to -152 and MobileNetV2; give "
        'the backbone that the weights are for'
    )
