"""torch's networks of the same descriptions, and LPIPS on one."""

from vgg_jax.features import LPIPS_LAYERS
from vgg_jax.models.description import with_inputs


def torch_network(torch, layers, row, is_dense=False):
    """Returns the torch module of a described network; densely, its FC layers are convolutions."""

    class Described(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = torch.nn.ModuleDict()
            channels = {"images": 3}
            for layer, (first, *_) in with_inputs(layers):
                c = channels[first]
                channels[layer.name] = outputs = layer.scaled_channels(row.width) if layer.channels else c
                if layer.kind == "conv":
                    part = torch.nn.Conv2d(
                        c, outputs, layer.kernel, layer.stride, layer.padding, groups=layer.groups, bias=layer.has_bias
                    )
                elif layer.kind == "batch_norm":
                    part = torch.nn.BatchNorm2d(c)
                elif layer.kind == "pool":
                    part = torch.nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=layer.is_ceil)
                elif layer.kind in ("fc", "head"):
                    channels[layer.name] = row.num_classes if layer.kind == "head" else row.fc_width
                    if is_dense:
                        part = torch.nn.Conv2d(c, channels[layer.name], layer.kernel)
                    else:
                        part = torch.nn.Linear(c * layer.kernel**2, channels[layer.name])
                else:
                    continue
                self.parts[layer.name] = part

        def forward(self, images, endpoints=()):
            outputs = {"images": images}
            for layer, (first, *others) in with_inputs(layers):
                x = outputs[first]
                if layer.name in self.parts:
                    x = self.parts[layer.name](x.flatten(1) if layer.is_fully_connected and not is_dense else x)
                elif layer.kind == "relu":
                    x = torch.relu(x)
                elif layer.kind == "mean":
                    x = x.mean((2, 3))
                elif layer.kind == "dropout":
                    x = torch.nn.functional.dropout(x, training=self.training)
                elif layer.kind == "add":
                    x = x + outputs[others[0]]
                elif layer.kind == "zero_pad":
                    added = layer.scaled_channels(row.width) - x.shape[1]
                    x = torch.nn.functional.pad(x[:, :, :: layer.stride, :: layer.stride], (0, 0, 0, 0, 0, added))
                outputs[layer.name] = x
                if endpoints and layer.name == endpoints[-1]:
                    return [outputs[name] for name in endpoints]
            return x

    return Described()


def torch_lpips(net, heads, x, y):
    """Returns LPIPS of images [B, 3, H, W] (Zhang et al. 2018), each seen by itself as in the package of that name."""
    distance = 0
    for of_x, of_y, head in zip(net(x, LPIPS_LAYERS), net(y, LPIPS_LAYERS), heads, strict=True):
        a, b = (maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10) for maps in (of_x, of_y))
        distance = distance + ((a - b).square() * head[:, None, None]).sum(1).mean((1, 2))
    return distance
