"""The networks of R3GAN: sizes, first weights, resampling, exact double backward, classes."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastgan.errors import UserError
from fastgan.networks import num_parameters
from fastgan.networks.r3gan import Downsample2, R3Block, R3Discriminator, R3Generator, Shape, Upsample2, stages_for


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers in any order."""
    torch.manual_seed(0)


def shake(net, std=0.3):
    """`net` with all weights drawn again, so that no block is the identity."""
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return net


def tiny_generator(channels=3, stages=(8, 6, 4), **options):
    return shake(R3Generator(5, channels, Shape(stages, **{"blocks": 1, "group_width": 4, **options})))


def tiny_discriminator(channels=3, stages=(8, 6, 4), **options):
    return shake(R3Discriminator(channels, Shape(stages, **{"blocks": 1, "group_width": 4, **options})))


WIDE = {"group_width": 32, "condition_width": 1000}


@pytest.mark.parametrize(
    ("stages", "options", "millions"),
    [
        pytest.param((768,) * 4, {}, (20.7, 20.7), id="StackedMNIST"),
        pytest.param((768,) * 4, {"condition_width": 10}, (20.8, 21.3), id="CIFAR-10"),
        pytest.param((768,) * 4 + (384,), {}, (22.4, 22.4), id="FFHQ-64"),
        pytest.param((768,) * 4 + (384, 192, 96), {}, (23.1, 23.0), id="FFHQ-256"),
        pytest.param((1536,) * 4, WIDE, (82.9, 86.6), id="ImageNet-32"),
        pytest.param((1536,) * 5, WIDE, (103.6, 107.2), id="ImageNet-64"),
    ],
)
def test_parameter_counts_are_the_papers(stages, options, millions):
    """G and D have the numbers of parameters of the paper's tables, to all the digits that it prints."""
    with torch.device("meta"):
        G, D = R3Generator(64, 3, Shape(stages, **options)), R3Discriminator(3, Shape(stages, **options))
    found = num_parameters(G) / 1e6, num_parameters(D) / 1e6
    assert found == pytest.approx(millions, abs=0.06)
    assert found == pytest.approx(millions, rel=0.01)


def test_groups_are_the_papers():
    """Widths 768, 384, 192 and 96 have 96, 48, 24 and 12 groups; 1536 has 96 of 32 channels; a narrow one has 1."""
    with torch.device("meta"):
        assert [R3Block(width, 8).grouped.groups for width in (768, 384, 192, 96, 4)] == [96, 48, 24, 12, 1]
        assert R3Block(1536, 8, group_width=32).grouped.groups == 96


@pytest.mark.parametrize("stem", [2, 4])
def test_stem(stem: int) -> None:
    """A stem leaves out the widest maps: images are so many times larger, and their pixels have one variance."""
    G, D = tiny_generator(1, (32, 16), base=(3, 5), stem=stem), tiny_discriminator(1, (32, 16), base=(3, 5), stem=stem)
    images = G(torch.randn(200, 5))
    assert images.shape == (200, 1, 6 * stem, 10 * stem) and D(images).shape == (200,)
    inner = R3Generator(5, 64, Shape((32, 16), base=(3, 5), stem=stem)).output(torch.randn(50, 16, 6, 10))
    assert inner[:, :, stem:-stem, stem:-stem].std().item() == pytest.approx(1, abs=0.1)


def test_ungrouped_blocks() -> None:
    """A group width of 0 gives one group, whatever the width."""
    assert R3Block(24, 2, group_width=0).grouped.groups == 1


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("image_size", [(28, 28), (32, 32), (96, 160)])
def test_shapes(image_size, channels):
    """G makes images of the size that `stages_for` was asked for, D one logit an image, at 1, 3 and 4 channels."""
    base, num_stages = stages_for(image_size)
    stages = (8, 8, 6, 6, 4, 4)[:num_stages]
    images = tiny_generator(channels, stages, base=base)(torch.randn(2, 5))
    assert images.shape == (2, channels, *image_size)
    assert tiny_discriminator(channels, stages, base=base)(images).shape == (2,)


def test_image_sizes():
    """Sizes are halved, as far as it goes, to a smaller side of 3 to 7; another is refused, and a near one proposed."""
    for size, base, num_stages in (
        ((28, 28), (7, 7), 3),
        ((32, 32), (4, 4), 4),
        ((96, 160), (3, 5), 6),
        ((128, 128), (4, 4), 6),
        ((24, 24), (3, 3), 4),
        ((12, 18), (6, 9), 2),
        ((5, 9), (5, 9), 1),
    ):
        assert stages_for(size) == (base, num_stages)
    with pytest.raises(UserError, match=r"image_size is \(30, 32\).*\(32, 32\) would do"):
        stages_for((30, 32))
    for height in range(1, 70):
        for width in range(1, 70):
            try:
                (h, w), num_stages = stages_for((height, width))
            except UserError as error:
                proposed = str(error).rsplit("; (", 1)[1].split(")")[0]
                (h, w), _ = stages_for(tuple(int(side) for side in proposed.split(", ")))
            else:
                assert (h * 2 ** (num_stages - 1), w * 2 ** (num_stages - 1)) == (height, width)
            assert 3 <= min(h, w) <= 7


def test_refusals_name_value_and_remedy():
    """A width that the groups don't divide, a list of blocks of a wrong length, and missing labels are refused."""
    with pytest.raises(UserError, match=r"20 wide.*40 channels.*groups of 16; take a multiple of 8"):
        R3Discriminator(3, Shape((32, 20)))
    with pytest.raises(UserError, match=r"blocks is \(2, 2, 2\).*each of 2 stages"):
        R3Generator(4, 3, Shape((32, 32), blocks=(2, 2, 2)))
    with pytest.raises(UserError, match=r"labels is None.*10 classes"):
        tiny_discriminator(condition_width=10)(torch.randn(1, 3, 16, 16))


def test_blocks_start_as_the_identity():
    """At first every block gives its input, bit for bit, and no longer does once its last weights have moved."""
    G, D = R3Generator(5, 3, Shape((32, 16), blocks=(1, 3))), R3Discriminator(3, Shape((32, 16), blocks=(1, 3)))
    blocks = [module for net in (G, D) for module in net.modules() if isinstance(module, R3Block)]
    assert len(blocks) == 8
    for block in blocks:
        x = torch.randn(2, block.project.out_channels, 5, 3)
        assert torch.equal(block(x), x)
        assert not torch.equal(shake(block)(x), x)


def test_first_weights():
    """Standard deviations are gain / sqrt(fan in); inside blocks the gain is He's times L^(-1/4); biases are 0."""
    D = R3Discriminator(3, Shape((256, 256), blocks=(5, 3), condition_width=64))
    G = R3Generator(64, 3, Shape((256, 128), condition_width=10))
    inside = math.sqrt(2 / 1.04) * 8**-0.25
    block = next(module for module in D.modules() if isinstance(module, R3Block))
    for weight, std in (
        (block.expand.weight, inside / math.sqrt(256)),
        (block.grouped.weight, inside / math.sqrt(9 * 16)),
        (D.input.weight, 1 / math.sqrt(3)),
        (D.picture, 1 / 4),
        (D.features.weight, 1 / 16),
        (D.classes.weight, 1 / math.sqrt(64) / math.sqrt(256)),
        (G.picture, 1.0),
        (G.factors.weight, 1 / math.sqrt(128)),
        (G.output.weight, 1 / math.sqrt(128)),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.1)
    assert not any(value.any() for net in (G, D) for name, value in net.named_parameters() if name.endswith("bias"))


def test_resampling_is_the_filter():
    """Down and up equal depthwise (transposed) convolution with [1, 3, 3, 1] / 8 an axis, up times 4, and padding 0."""
    line = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    kernel = torch.outer(line, line).expand(3, 1, 4, 4)
    x = torch.randn(2, 3, 6, 10, dtype=torch.float64)
    down = F.conv2d(x, kernel, stride=2, padding=1, groups=3)
    torch.testing.assert_close(Downsample2().double()(x), down)
    up = F.conv_transpose2d(x, 4 * kernel, stride=2, padding=1, groups=3)
    torch.testing.assert_close(Upsample2().double()(x), up)


def test_resampling_keeps_constants():
    """A constant stays as it is, but in the outermost pixels: there it is 7/8 of it after down, 3/4 after up."""
    x = torch.full((1, 2, 12, 8), 3.0)
    for out, edge in ((Downsample2()(x), 7 / 8), (Upsample2()(x), 3 / 4)):
        assert (out[:, :, 1:-1, 1:-1] == 3).all()
        assert (out[:, :, 0, 1:-1] == 3 * edge).all() and (out[:, :, 1:-1, -1] == 3 * edge).all()


def test_up_is_four_times_the_adjoint_of_down():
    """<up(x), y> = 4 <x, down(y)> for any x and y."""
    x, y = torch.randn(2, 3, 3, 5, dtype=torch.float64), torch.randn(2, 3, 6, 10, dtype=torch.float64)
    up, down = Upsample2().double(), Downsample2().double()
    assert (up(x) * y).sum().item() == pytest.approx(4 * (x * down(y)).sum().item())


@pytest.mark.parametrize("num_classes", [0, 3])
def test_gradients_of_d_to_second_order(num_classes):
    """gradcheck and, along random directions, gradgradcheck of logits to the images and every weight, in float64."""
    D = tiny_discriminator(2, (2, 3), base=(2, 1), group_width=2, condition_width=num_classes).double()
    names, weights = zip(*D.named_parameters(), strict=True)
    labels = torch.tensor([2, 0]) if num_classes else None
    inputs = (torch.randn(2, 2, 4, 2, dtype=torch.float64, requires_grad=True), *weights)

    def logits(images, *weights):
        return torch.func.functional_call(D, dict(zip(names, weights, strict=True)), (images, labels))

    assert torch.autograd.gradcheck(logits, inputs)
    assert torch.autograd.gradgradcheck(logits, inputs, fast_mode=True)


@pytest.mark.slow
def test_penalty_inside_func_grad():
    """R1 through torch.func.grad has the gradient that autograd's create_graph has, and that differences confirm."""
    D = tiny_discriminator(2, (2, 4), base=(3, 2), condition_width=3).double()
    images, labels = torch.randn(3, 2, 6, 4, dtype=torch.float64), torch.tensor([0, 2, 1])
    names, weights = zip(*D.named_parameters(), strict=True)

    def r1(*weights):
        named = dict(zip(names, weights, strict=True))
        gradient = torch.func.grad(lambda x: torch.func.functional_call(D, named, (x, labels)).sum())(images)
        return gradient.square().sum()

    assert torch.autograd.gradcheck(r1, weights)
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(D(x, labels).sum(), x, create_graph=True)
    wanted = torch.autograd.grad(gradient.square().sum(), weights, materialize_grads=True)
    torch.testing.assert_close(torch.autograd.grad(r1(*weights), weights, materialize_grads=True), wanted)


def test_labels_change_the_output():
    """The class decides, image by image, G's images and D's logits."""
    z, images = torch.randn(1, 5).expand(4, -1), torch.randn(1, 3, 16, 16).expand(4, -1, -1, -1)
    labels = torch.tensor([0, 1, 2, 1])
    for out in (tiny_generator(condition_width=3)(z, labels), tiny_discriminator(condition_width=3)(images, labels)):
        torch.testing.assert_close(out[1], out[3])
        assert all((out[i] - out[j]).abs().max() > 1e-4 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_images_of_a_batch_do_not_mix():
    """Each output is that of its input alone."""
    G, D = tiny_generator(condition_width=3), tiny_discriminator(condition_width=3)
    z, labels = torch.randn(4, 5), torch.tensor([0, 1, 2, 1])
    images = G(z, labels)
    torch.testing.assert_close(G(z[2:3], labels[2:3]), images[2:3])
    torch.testing.assert_close(D(images[2:3], labels[2:3]), D(images, labels)[2:3])


@pytest.mark.parametrize("channels", [1, 3])
def test_activations_are_channels_last(channels):
    """In networks that are channels last no block or resampling gets or gives another layout, for grey images too."""
    G, D = (
        net.to(memory_format=torch.channels_last) for net in (tiny_generator(channels), tiny_discriminator(channels))
    )
    seen = []
    for module in (*G.modules(), *D.modules()):
        if isinstance(module, R3Block | Downsample2 | Upsample2):
            module.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0], output)))
    G(torch.randn(2, 5))
    D(torch.randn(2, channels, 16, 16))
    assert len(seen) == 20
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


def test_state_round_trip():
    """A network that takes over another's state computes the same; the state is the parameters alone."""
    z, images, labels = torch.randn(2, 5), torch.randn(2, 3, 16, 16), torch.tensor([0, 2])
    for make, x in ((tiny_generator, z), (tiny_discriminator, images)):
        first, second = make(condition_width=3), make(condition_width=3)
        assert first.state_dict().keys() == dict(first.named_parameters()).keys()
        assert not torch.equal(first(x, labels), second(x, labels))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x, labels), second(x, labels))
