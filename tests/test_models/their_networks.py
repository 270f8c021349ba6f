"""Networks with torchvision's names and the PRM authors' block, written from what is
known of both, to compare what converted weights compute."""

import math

import torch
from torch import nn


class PRMLayer(nn.Module):
    """The authors' block, with their parameters' names and shapes.

    Args:
        groups (int): Heads.
        ddof (int): What the standard deviation's divisor is less than N: theirs is 1,
            the paper's 0.
    """

    def __init__(self, groups, ddof=0):
        super().__init__()
        self.ddof = ddof
        self.weight = nn.Parameter(torch.randn(1, groups, 1, 1))
        self.bias = nn.Parameter(torch.randn(1, groups, 1, 1))
        self.one = nn.Parameter(torch.randn(1, groups, 1))
        self.zero = nn.Parameter(torch.randn(1, groups, 1))
        self.theta = nn.Parameter(torch.rand(1, 2, 1, 1))
        self.scale = nn.Parameter(torch.rand(1) + 0.5)

    def forward(self, x):
        b, _, h, w = x.shape
        slabs = x.reshape(b, self.one.shape[1], -1, h * w)
        at = slabs.sum(2).argmax(2)  # (B, g)
        query = slabs.gather(3, at[:, :, None, None].expand(-1, -1, slabs.shape[2], 1))
        positions = torch.arange(h * w)
        axes = []
        for axis, place in enumerate((lambda i: i // w, lambda i: i % w)):
            away = (place(positions) - place(at)[..., None]).abs()
            z = away * self.theta[0, axis, 0, 0] / self.scale
            axes.append((-(z**2) / 2).exp() / self.scale / math.sqrt(2 * math.pi))
        near = (slabs * query).sum(2) * (axes[0] + axes[1]) / 2
        mean = (slabs * slabs.mean(3, keepdim=True)).sum(2)
        similarity = self.zero * near + self.one * mean
        similarity = similarity - similarity.mean(2, keepdim=True)
        deviation = similarity.std(2, keepdim=True, correction=self.ddof)
        normalized = (similarity / (deviation + 1e-5)).view(b, -1, 1, h, w)
        gate = self.weight[..., None] * normalized + self.bias[..., None]
        return (slabs.view(b, -1, slabs.shape[2], h, w) * gate.sigmoid()).view_as(x)


class Residual(nn.Module):
    def __init__(self, channels, width, out, stride, groups):
        super().__init__()
        kernels = [(width, 3, stride), (out, 3, 1)]
        if out > width:
            kernels = [(width, 1, 1), (width, 3, stride), (out, 1, 1)]
        before = channels
        for i, (after, kernel, step) in enumerate(kernels, 1):
            conv = nn.Conv2d(before, after, kernel, step, kernel // 2, bias=False)
            self.add_module(f'conv{i}', conv)
            self.add_module(f'bn{i}', nn.BatchNorm2d(after))
            before = after
        self.count = len(kernels)
        self.prm = PRMLayer(groups) if groups else nn.Identity()
        self.downsample = nn.Sequential()
        if channels != out or stride > 1:
            self.downsample.append(nn.Conv2d(channels, out, 1, stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(out))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f'bn{i}')(getattr(self, f'conv{i}')(y))
            y = y.relu() if i < self.count else self.prm(y)
        return (y + self.downsample(x)).relu()


class ResNet(nn.Module):
    """ResNet-18 or -50 with ``width`` channels in its stem; features, then logits."""

    def __init__(self, depth, groups=0, width=64):
        super().__init__()
        blocks, expansion = {18: ((2, 2, 2, 2), 1), 50: ((3, 4, 6, 3), 4)}[depth]
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        channels = width
        for i, count in enumerate(blocks):
            stage = nn.Sequential()
            for j in range(count):
                out = width * 2**i * expansion
                stride = 2 if i and not j else 1
                stage.append(Residual(channels, width * 2**i, out, stride, groups))
                channels = out
            self.add_module(f'layer{i + 1}', stage)
        self.fc = nn.Linear(channels, 10)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.bn1(self.conv1(x)).relu(), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x, self.fc(x.mean((2, 3)))


def _conv_bn_relu(channels, out, kernel, stride=1, groups=1):
    conv = nn.Conv2d(
        channels, out, kernel, stride, kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out), nn.ReLU6())


class InvertedResidual(nn.Module):
    def __init__(self, channels, out, stride, expand, groups):
        super().__init__()
        hidden = channels * expand
        self.conv = nn.Sequential()
        if expand > 1:
            self.conv.append(_conv_bn_relu(channels, hidden, 1))
        self.conv.append(_conv_bn_relu(hidden, hidden, 3, stride, hidden))
        self.conv.append(nn.Conv2d(hidden, out, 1, bias=False))
        self.conv.append(nn.BatchNorm2d(out))
        self.prm = PRMLayer(groups) if groups else nn.Identity()
        self.shortcut = stride == 1 and channels == out

    def forward(self, x):
        y = self.prm(self.conv(x))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """The last map, then logits."""

    def __init__(self, groups=0):
        super().__init__()
        self.features = nn.Sequential(_conv_bn_relu(3, 32, 3, 2))
        channels = 32
        for expand, out, count, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 2),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            for i in range(count):
                step = 1 if i else stride
                block = InvertedResidual(channels, out, step, expand, groups)
                self.features.append(block)
                channels = out
        self.features.append(_conv_bn_relu(320, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(1280, 10))

    def forward(self, x):
        x = self.features(x)
        return x, self.classifier(x.mean((2, 3)))


def randomized(network):
    """Weights that a trained network could have."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
            for value in (module.bias, module.running_mean):
                nn.init.normal_(value, std=0.2)
            module.num_batches_tracked += 7
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return network.eval()
