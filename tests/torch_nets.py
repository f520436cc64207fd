"""torchvision's and timm's VGGs and torchvision's ResNets as plain torch modules with the published names.

Neither package is installed.
Import it only where torch is: `pytest.importorskip("torch", reason=NEEDS_TORCH)`.
"""

import torch
from torch import nn

# torchvision/models/vgg.py, `cfgs`.
CFGS = {
    "A": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "B": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "D": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "E": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}


def _features(configuration, width, batch_norm=False):
    layers, channels = [], 3
    for word in CFGS[configuration].split():
        if word == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        features = int(int(word) * width)
        norm = [nn.BatchNorm2d(features)] if batch_norm else []
        layers += [nn.Conv2d(channels, features, 3, padding=1), *norm, nn.ReLU(inplace=True)]
        channels = features
    return nn.Sequential(*layers)


class TorchvisionVGG(nn.Module):
    def __init__(self, configuration, width=1.0, fc_width=4096, num_classes=1000, side=7, batch_norm=False):
        super().__init__()
        self.features = _features(configuration, width, batch_norm)
        self.avgpool = nn.AdaptiveAvgPool2d((side, side))
        self.classifier = nn.Sequential(
            nn.Linear(int(512 * width) * side * side, fc_width),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(fc_width, fc_width),
            nn.ReLU(True),
            nn.Dropout(),
            nn.Linear(fc_width, num_classes),
        )

    def forward(self, x):
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class _ConvMlp(nn.Module):
    def __init__(self, channels, fc_width, side):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, fc_width, side)
        self.act1 = nn.ReLU(True)
        self.fc2 = nn.Conv2d(fc_width, fc_width, 1)
        self.act2 = nn.ReLU(True)

    def forward(self, x):
        return self.act2(self.fc2(self.act1(self.fc1(x))))


class TimmVGG(nn.Module):
    def __init__(self, configuration, width=1.0, fc_width=4096, num_classes=1000, side=7, batch_norm=False):
        super().__init__()
        self.features = _features(configuration, width, batch_norm)
        self.pre_logits = _ConvMlp(int(512 * width), fc_width, side)
        self.head = nn.Sequential()
        self.head.add_module("global_pool", nn.AdaptiveAvgPool2d(1))
        self.head.add_module("flatten", nn.Flatten(1))
        self.head.add_module("fc", nn.Linear(fc_width, num_classes))

    def forward(self, x):
        return self.head(self.pre_logits(self.features(x)))


class _Block(nn.Module):
    """torchvision's BasicBlock, or Bottleneck with the stride in its 3x3 convolution."""

    def __init__(self, inputs, width, stride, is_bottleneck):
        super().__init__()
        outputs = 4 * width if is_bottleneck else width
        plan = [(inputs, width, 3, stride), (width, width, 3, 1)]
        if is_bottleneck:
            plan = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        for i, (before, after, kernel, its_stride) in enumerate(plan, 1):
            setattr(self, f"conv{i}", nn.Conv2d(before, after, kernel, its_stride, kernel // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
        self.count, self.downsample = len(plan), None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.count + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.count else y
        return torch.relu(y + (self.downsample(x) if self.downsample else x))


class TorchvisionResNet(nn.Module):
    def __init__(self, depth, width=1.0, num_classes=1000):
        super().__init__()
        blocks = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
        channels, expansion = int(64 * width), 4 if depth >= 50 else 1
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = channels
        for stage, count in enumerate(blocks, 1):
            of_stage = []
            for i in range(count):
                of_stage.append(_Block(inputs, channels, 2 if stage > 1 and i == 0 else 1, depth >= 50))
                inputs = channels * expansion
            setattr(self, f"layer{stage}", nn.Sequential(*of_stage))
            channels *= 2
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


class _ZeroPad(nn.Module):
    """Option A of He et al. 2015: every second row and column, zeros for the new channels (no parameters)."""

    def __init__(self, added):
        super().__init__()
        self.added = added

    def forward(self, x):
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))


class CifarResNet(nn.Module):
    """ResNet-20 with the names of its usual ports, unlike torchvision's: `linear`, and with a projection `shortcut`."""

    def __init__(self, shortcut="A", channels=4, num_classes=5):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        inputs = channels
        for stage in range(1, 4):
            blocks = []
            for i in range(3):
                blocks.append(_Block(inputs, channels, 2 if stage > 1 and i == 0 else 1, False))
                if blocks[-1].downsample and shortcut == "A":
                    blocks[-1].downsample = _ZeroPad(channels - inputs)
                inputs = channels
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            channels *= 2
        self.linear = nn.Linear(inputs, num_classes)

    def state_dict(self, *args, **kwargs):
        return {k.replace("downsample", "shortcut"): v for k, v in super().state_dict(*args, **kwargs).items()}

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x))))))
        return self.linear(x.mean((2, 3)))


def randomised(net, seed=0):
    """Weights at which activations neither vanish nor explode, and biases that matter; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            std = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight += 1
                module.running_mean.copy_(0.1 * torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(1 + torch.rand(module.running_var.shape, generator=generator))
    return net.eval()


def normalised(images_bxhxwx3):
    """torchvision's preprocessing of uint8 RGB: ToTensor, Normalize."""
    x = torch.from_numpy(images_bxhxwx3).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (x - mean) / std
