"""The small networks: how their upsampling begins, and what may follow it."""

import torch
import torch.nn.functional as F

from fastgan.networks.dcgan import INIT_STD, Generator


def test_a_smooth_image():
    """It is the tanh of the other image's logits, filtered by [1, 2, 1] / 4 along both axes; no border is made up."""
    torch.manual_seed(0)
    smooth, plain = (Generator(8, 3, (8, 4), (4, 5), smooth=smooth).double() for smooth in (True, False))
    plain.load_state_dict(smooth.state_dict())  # the filter is no part of it
    z = torch.randn(2, 8, dtype=torch.float64)
    found, wanted = smooth(z), torch.atanh(plain(z))
    assert found.shape == wanted.shape == (2, 3, 16, 20)
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
    inside = F.conv2d(wanted, (taps * taps[:, None]).expand(3, 1, 3, 3), groups=3).tanh()
    torch.testing.assert_close(found[..., 1:-1, 1:-1], inside)
    for weight in smooth.parameters():
        assert (torch.autograd.grad(found.sum(), weight, retain_graph=True)[0] != 0).any()


def test_upsampling_begins_bilinear():
    """Before training an up convolution gives a 1x1 convolution's channels at twice the size, interpolated."""
    torch.manual_seed(0)
    G = Generator(8, 3, (32, 16), (4, 4))
    up, x = G.ups[0], torch.randn(2, 32, 5, 6)
    mixed = F.conv2d(x, up.weight[:, :, 1, 1].T[:, :, None, None])
    wanted = F.interpolate(mixed, scale_factor=2, mode="bilinear") * 16 / 9
    torch.testing.assert_close(up(x)[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1])
    assert abs(up.weight.std() / INIT_STD - 1) < 0.2
