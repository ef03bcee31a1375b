"""A small StyleGAN2-like generator: styles modulate every convolution, noise adds what no style sets.

After Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (CVPR 2020), without path-length
regularisation and equalised learning rates. Attackers use it as a prior that the defence has never seen.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from crafter_pl.errors import UserError


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Modulated(nn.Module):
    """Convolution whose input channels are scaled by the style, its output brought back to unit size.

    Scaling the input and the output instead of the weight is the same function, and treats every sample with
    the same weights.
    """

    def __init__(self, cin: int, cout: int, kernel: int, style_dim: int, demodulate: bool = True) -> None:
        super().__init__()
        self.affine = nn.Linear(style_dim, cin)
        nn.init.normal_(self.affine.weight, std=style_dim**-0.5)
        nn.init.ones_(self.affine.bias)
        self.weight = nn.Parameter(torch.randn(cout, cin, kernel, kernel) * (cin * kernel**2) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(cout, 1, 1))
        self.demodulate = demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Maps ``(N, C, h, w)`` and styles ``(N, S)`` -> ``(N, C', h, w)``."""
        style = self.affine(w)
        y = F.conv2d(x * style[:, :, None, None], self.weight, padding=self.weight.shape[2] // 2)
        if not self.demodulate:
            return y + self.bias
        power = style.square() @ self.weight.square().sum((2, 3)).T
        scale = 2**0.5 * torch.rsqrt(power + 1e-8)  # the root of 2 makes up for what a leaky ReLU takes
        return torch.addcmul(self.bias, y, scale[:, :, None, None])


class _Layer(nn.Module):
    """Modulated 3x3 convolution, doubling the size or not, noise, leaky ReLU."""

    def __init__(self, cin: int, cout: int, side: int, style_dim: int, double: bool = False) -> None:
        super().__init__()
        self.convolution = Modulated(cin, cout, 3, style_dim)
        self.strength = nn.Parameter(torch.zeros(()))
        self.noise = nn.Buffer(torch.randn(side, side, generator=torch.Generator().manual_seed(side)))
        self.doubles = double

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = self.convolution(x, w)
        x = _double(x) if self.doubles else x
        noise = torch.randn_like(x[:, :1]) if self.training else self.noise
        return F.leaky_relu(x + self.strength * noise, 0.2)


class _Repeat(nn.Module):
    """One style ``(N, Z)`` -> the same for each modulated convolution, ``(N, L, Z)``."""

    def __init__(self, styles: int) -> None:
        super().__init__()
        self.styles = styles

    def forward(self, w: Tensor) -> Tensor:
        return w[:, None].repeat(1, self.styles, 1)


class _Mapping(nn.Module):
    """z ``(N, Z)`` -> one style for each modulated convolution, ``(N, L, Z)``, all alike."""

    def __init__(self, latent_dim: int, styles: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(4):
            linear = nn.Linear(latent_dim, latent_dim)
            nn.init.kaiming_normal_(linear.weight, 0.2)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers)
        self.repeat = _Repeat(styles)

    def forward(self, z: Tensor) -> Tensor:
        return self.repeat(self.layers(z))


class _Start(nn.Module):
    """Styles -> features at the smallest size, from a learned constant; the picture so far; the styles."""

    def __init__(self, channels: int, side: int, style_dim: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(1, channels, side, side))
        self.layer = _Layer(channels, channels, side, style_dim)
        self.picture = Modulated(channels, 3, 1, style_dim, demodulate=False)

    def forward(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.layer(self.constant.repeat(w.shape[0], 1, 1, 1), w[:, 0])
        return x, self.picture(x, w[:, 1]), w


class _Up(nn.Module):
    """The state at twice the size; the last one returns the picture, in [0, 1]."""

    def __init__(self, cin: int, cout: int, side: int, style_dim: int, first: int, last: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [_Layer(cin, cout, side, style_dim, double=True), _Layer(cout, cout, side, style_dim)]
        )
        self.picture = Modulated(cout, 3, 1, style_dim, demodulate=False)
        self.first, self.last = first, last

    def forward(self, x: Tensor, picture: Tensor, w: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = self.layers[0](x, w[:, self.first])
        x = self.layers[1](x, w[:, self.first + 1])
        picture = _double(picture) + self.picture(x, w[:, self.first + 2])
        return torch.sigmoid(picture) if self.last else (x, picture, w)


class _Chain(nn.Module):
    """Blocks one after another."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(blocks)

    def blocks(self) -> list[nn.Module]:
        """The stages, whose composition is `forward`.

        Every block takes what the one before it returns: the latent; the styles ``(N, L, Z)``; then features,
        the picture so far and the styles.
        """
        return list(self.parts)

    def forward(self, latent: Tensor) -> Tensor:
        """Draws the images of latents ``(N, Z)``."""
        state = latent
        for part in self.parts:
            state = part(*state) if isinstance(state, tuple) else part(state)
        return state


class StyleGenerator(_Chain):
    """Latent ``(N, Z)`` -> image ``(N, 3, S, S)`` in [0, 1] through styles.

    Mapping network of four layers, a learned constant, modulated 3x3 convolutions (two a picture size) with
    noise, and a picture that every size adds to. In eval mode the noise is a constant that the checkpoint
    holds, so that the picture depends on z alone; in training it is drawn anew.

    Args:
        latent_dim: Z, of z and of the styles w.
        image_size: S, a multiple of 8.
        width: channels at the full size; they double with every halving, up to 8 times.
    """

    def __init__(self, latent_dim: int = 500, image_size: int = 64, width: int = 32) -> None:
        if image_size % 8:
            raise UserError(f"image_size {image_size} does not fit style: it must be a multiple of 8")
        sides = [image_size]
        while sides[0] % 2 == 0 and sides[0] >= 8:
            sides.insert(0, sides[0] // 2)
        ups = len(sides) - 1
        channels = [width * min(2 ** (ups - k), 8) for k in range(len(sides))]
        styles = 2 + 3 * ups
        super().__init__(
            [
                _Mapping(latent_dim, styles),
                _Start(channels[0], sides[0], latent_dim),
                *(
                    _Up(channels[k - 1], channels[k], sides[k], latent_dim, first=3 * k - 1, last=k == ups)
                    for k in range(1, ups + 1)
                ),
            ]
        )
        self.latent_dim, self.styles = latent_dim, styles

    def latent_space(self, space: str) -> tuple[nn.Module, nn.Module]:
        """What takes z into a latent space, and what draws pictures from there.

        Args:
            space: ``z``; ``w``, the style, ``(N, Z)``; ``w+``, a style for each convolution, ``(N, L * Z)``.

        Raises:
            UserError: there is no such space.
        """
        mapping, *rest = self.parts
        assert isinstance(mapping, _Mapping)
        if space == "z":
            return nn.Identity(), self
        if space == "w":
            return mapping.layers, _Chain([mapping.repeat, *rest])
        if space == "w+":
            every = nn.Unflatten(1, (self.styles, self.latent_dim))
            return nn.Sequential(mapping, nn.Flatten()), _Chain([every, *rest])
        raise UserError(f"space {space!r}: a style generator has the latent spaces z, w and w+")
