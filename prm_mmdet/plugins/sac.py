"""Spatially-Aware Context.

Source: D. Ruan, Y. Shi, J. Wen, N. Zheng and M. Zheng, "Spatially-Aware Context Neural
Networks", IEEE Transactions on Image Processing 30, 2021.

Choices where the paper is silent:

- All 1x1 convolutions have biases. Eqs. 3 to 5 show none.
- ``transform`` ends with a convolution of zeros, as in GCNet. So a fresh block is the
  identity.
- The bottleneck transform has GC's hidden width, C / 16, and a plain batch
  normalisation. If the backbone sets ``norm_eval``, the running statistics of this
  normalisation are frozen. Untrained statistics then keep their initial values.
- If ``context`` is False (the paper's depth ablation), the block keeps the residual
  connection of Eq. 5.
"""

from __future__ import annotations

from mmdet.registry import MODELS as MMDET_MODELS
from mmengine.model import BaseModule, constant_init
from torch import Tensor, nn

from .. import ops
from ..registry import MODELS
from .checks import check_choice, check_input, check_positive_int


@MMDET_MODELS.register_module('SACBlock')
@MODELS.register_module(['SAC', 'SACBlock'])
class SAC(BaseModule):
    """Add to each position its own mixture of contexts gathered from all positions.

    In an OpenMMLab config this is ``prm_mmdet.SAC``, or ``SACBlock`` once the package
    is imported. Plain ``SAC`` is MMCV's Switchable Atrous Convolution.

    Args:
        in_channels (int): Channels C of the input.
        reduction (int): l; the block gathers K = max(1, C // l) contexts. Default: 32.
        softmax (bool): Whether the weights of the contexts are normalised by a softmax
            over the K contexts (the paper's Table II). Default: False.
        transform (str): 'conv', a 1x1 convolution (Eq. 5), or 'bottleneck': 1x1
            convolution to C / 16, batch normalisation, ReLU, 1x1 convolution back. The
            paper uses 'bottleneck' in blocks after the last 1x1 convolution of a
            residual block (Table III). Default: 'conv'.
        context (bool): False leaves only ``transform`` on the input, the paper's depth
            ablation (Table IV). Default: True.

    Parameters: ``attention`` and ``customization``, 1x1 convolutions from C to K with
    bias, and ``transform``: 2K(C + 1) + C(C + 1) numbers in the 'conv' form. These
    names are part of the keys in checkpoints, such as ``attention.weight``. In the
    'bottleneck' form, the layers of ``transform`` are numbered: ``transform.0.weight``
    and so on. If a name or the order changes, older checkpoints do not load.

    The block reads the weights of its convolutions instead of calling the convolutions.
    If a convolution has hooks, no bias or its own forward (an adapter, an older weight
    norm), the block calls all convolutions in the paper's order. This takes several
    times longer.

    Shape: (B, C, H, W) to (B, C, H, W), H and W at least 1.

    Raises:
        ValueError: An argument or the input does not fit; the message says which.
    """

    # The block's default name in a network, which is part of the keys in checkpoints.
    # 'sac' is not free: DetectoRS's bottleneck has an attribute of this name.
    _abbr_ = 'sac_block'

    def __init__(
        self,
        in_channels: int,
        reduction: int = 32,
        softmax: bool = False,
        transform: str = 'conv',
        context: bool = True,
    ):
        super().__init__()
        check_positive_int('SAC', in_channels=in_channels, reduction=reduction)
        check_choice('SAC', 'transform', transform, ('conv', 'bottleneck'))
        self.in_channels = in_channels
        self.softmax = softmax
        self.arguments = dict(
            reduction=reduction, softmax=softmax, transform=transform, context=context
        )
        self.attention = self.customization = None
        if context:
            contexts = max(1, in_channels // reduction)
            self.attention = nn.Conv2d(in_channels, contexts, 1)
            self.customization = nn.Conv2d(in_channels, contexts, 1)
        self.transform: nn.Conv2d | nn.Sequential
        if transform == 'conv':
            self.transform = nn.Conv2d(in_channels, in_channels, 1)
        else:
            hidden = max(1, in_channels // 16)
            self.transform = nn.Sequential(
                nn.Conv2d(in_channels, hidden, 1),
                nn.BatchNorm2d(hidden),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, in_channels, 1),
            )
        self._zero_last_convolution()

    def init_weights(self) -> None:
        """Set the last convolution to zero, so that the block starts as the identity.
        The backbone's ``init_cfg`` may have given the convolution other values."""
        super().init_weights()
        self._zero_last_convolution()

    def _zero_last_convolution(self):
        last = self.transform
        if isinstance(last, nn.Sequential):
            last = last[-1]
        constant_init(last, 0)

    def forward(self, x: Tensor) -> Tensor:
        check_input('SAC', x, self.in_channels)
        if self.attention is None:
            return x + self.transform(x).to(x.dtype)
        if isinstance(self.transform, nn.Conv2d):
            return self._mix(x, self.transform, residual=True)
        first, *rest = self.transform
        y = self._mix(x, first, residual=False)
        for layer in rest:
            y = layer(y)
        return x + y.to(x.dtype)

    def _mix(self, x, transform, residual):
        layers = (self.attention, self.customization, transform)
        if not all(map(is_plain, layers)):
            maps = (self.attention(x), self.customization(x))
            y = transform(ops.sac_context(x, *maps, self.softmax)).to(x.dtype)
            return x + y if residual else y
        parameters = []
        for layer in layers:
            parameters += [layer.weight.flatten(1), layer.bias]
        return ops.sac(x, *parameters, softmax=self.softmax, residual=residual)

    def extra_repr(self) -> str:
        switches = ', '.join(f'{k}={v!r}' for k, v in self.arguments.items())
        return f'{self.in_channels}, {switches}'


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is only a convolution with a weight and a bias. Hooks, adapters
    and older weight norms act only when a layer is called. A layer with one of them
    must be called, so the result is False."""
    return (
        getattr(type(layer), 'forward', None) is nn.Conv2d.forward
        and layer.bias is not None
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
    )
