"""torchvision's and timm's VGGs, written down as plain torch modules with their published names (neither is installed).

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


def _features(configuration, width):
    layers, channels = [], 3
    for word in CFGS[configuration].split():
        if word == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        features = int(int(word) * width)
        layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU(inplace=True)]
        channels = features
    return nn.Sequential(*layers)


class TorchvisionVGG(nn.Module):
    def __init__(self, configuration, width=1.0, fc_width=4096, num_classes=1000, side=7):
        super().__init__()
        self.features = _features(configuration, width)
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
    def __init__(self, configuration, width=1.0, fc_width=4096, num_classes=1000, side=7):
        super().__init__()
        self.features = _features(configuration, width)
        self.pre_logits = _ConvMlp(int(512 * width), fc_width, side)
        self.head = nn.Sequential()
        self.head.add_module("global_pool", nn.AdaptiveAvgPool2d(1))
        self.head.add_module("flatten", nn.Flatten(1))
        self.head.add_module("fc", nn.Linear(fc_width, num_classes))

    def forward(self, x):
        return self.head(self.pre_logits(self.features(x)))


def randomised(net, seed=0):
    """Weights at which activations neither vanish nor explode, and biases that matter; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            std = (2 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def normalised(images_bxhxwx3):
    """torchvision's preprocessing of uint8 RGB: ToTensor, Normalize."""
    x = torch.from_numpy(images_bxhxwx3).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (x - mean) / std
