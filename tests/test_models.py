"""Models: shapes of inputs and outputs, and what each argument changes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mnist_exp.models import CNN, MLP, Linear, ResNet, StridedCNN, WhitenedCNN, torchvision_model
from mnist_exp.models.networks import ACTIVATIONS, Block
from mnist_exp.models.summary import Row, Summary, memory_format, summarize
from mnist_exp.models.whitened_cnn import make_convolution


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
@pytest.mark.parametrize("model", [Linear, MLP, CNN, ResNet])
def test_images_become_logits(model: type[nn.Module], input_shape: tuple[int, int, int]) -> None:
    logits = model(input_shape=input_shape, classes=7)(torch.rand(5, *input_shape))
    assert logits.shape == (5, 7)


def test_the_default_mlp_is_the_baseline() -> None:
    layers = [
        (type(layer), getattr(layer, "out_features", None)) for layer in MLP((1, 28, 28), 10).layers
    ]
    assert layers == [
        (nn.Linear, 128),
        (nn.ReLU, None),
        (nn.Linear, 64),
        (nn.ReLU, None),
        (nn.Linear, 10),
    ]
    assert sum(p.numel() for p in MLP((1, 28, 28), 10).parameters()) == 109_386


def test_dropout_follows_each_hidden_layer_and_sleeps_in_evaluation() -> None:
    model = MLP((1, 8, 8), 10, hidden_sizes=[16, 16], dropout=0.5)
    assert sum(isinstance(layer, nn.Dropout) for layer in model.layers) == 2
    images = torch.rand(4, 1, 8, 8)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_no_hidden_layer_makes_an_mlp_linear() -> None:
    assert [type(layer) for layer in MLP((1, 8, 8), 10, hidden_sizes=[]).layers] == [nn.Linear]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_mlp_has_the_chosen_activation(name: str) -> None:
    layers = MLP((1, 8, 8), 10, activation=name).layers
    assert [type(layer) for layer in layers[1::2]] == [ACTIVATIONS[name]] * 2


def test_an_unknown_activation_is_refused_with_the_nearest() -> None:
    for word, near in (("gleu", "gelu"), ("ReLU", "relu"), ("leaky", "leaky_relu")):
        with pytest.raises(ValueError, match=rf"^activation={word}: .*; did you mean {near}\?$"):
            MLP((1, 8, 8), 10, activation=word)


def test_the_default_cnn_has_two_convolutions_and_two_dense_layers() -> None:
    model = CNN((1, 28, 28), 10)
    assert [type(layer) for layer in model.layers] == [
        *[nn.Conv2d, nn.ReLU, nn.MaxPool2d] * 2,
        nn.Flatten,
        nn.Linear,
        nn.ReLU,
        nn.Linear,
    ]
    assert sum(p.numel() for p in model.parameters()) == 206_922


def test_the_strided_cnn_crops_an_image_and_refuses_a_small_one() -> None:
    model = StridedCNN((1, 28, 28), 10).eval()
    assert sum(p.numel() for p in model.parameters()) == 209_354
    images = torch.rand(3, 1, 28, 28)
    framed = torch.nn.functional.pad(images[..., 2:-2, 2:-2], (2, 2, 2, 2), value=9.0)
    assert torch.equal(model(images), model(framed))
    assert StridedCNN((3, 12, 13), 4)(torch.rand(2, 3, 12, 13)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"11×28 .* 12×12"):
        StridedCNN((1, 11, 28), 10)


def test_an_image_too_small_to_be_pooled_is_refused_with_what_is_needed() -> None:
    assert CNN((1, 4, 5), 10)(torch.rand(2, 1, 4, 5)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"4×3 .* 2 .* 4×4"):
        CNN((1, 4, 3), 10)


def test_the_cnns_dropout_sleeps_in_evaluation() -> None:
    model = CNN((1, 8, 8), 10, channels=[4], hidden_size=16, dropout=0.5)
    images = torch.rand(4, 1, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_the_default_resnet_is_he_and_others_for_32_pixels_with_fourteen_layers() -> None:
    model = ResNet((3, 32, 32), 10)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    threes = [layer for layer in layers if layer.kernel_size == (3, 3)]
    assert len(threes) + 1 == 14  # the head is the other; shortcuts are not counted
    assert len(layers) - len(threes) == 2
    sides: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, output: sides.append(output.shape[-1]))
    model(torch.zeros(2, 3, 32, 32))
    assert sides == [32, 32, 16, 16, 8, 8]


def test_a_residual_block_starts_as_its_shortcut() -> None:
    images = torch.rand(4, 8, 6, 6)
    assert torch.equal(Block(8, 8)(images), images)
    wider = Block(8, 12, stride=2)
    shortcut = wider.shortcut(wider.norm1(images).relu())
    assert torch.equal(wider(images), shortcut)
    assert shortcut.shape == (4, 12, 3, 3)


def test_a_resnet_that_pools_halves_the_image_before_its_first_block() -> None:
    images = torch.rand(2, 3, 9, 8)
    model = ResNet((3, 9, 8), 10, channels=[4, 8], pool=True)
    stem = model.stem(images)
    assert stem.shape == (2, 4, 4, 4)
    assert torch.equal(stem[0, 0, 1, 2], model.stem[0](images)[0, 0, 2:4, 4:6].max())
    assert model(images).shape == (2, 10)


def test_a_resnet_takes_an_image_of_one_pixel_and_any_number_of_blocks() -> None:
    model = ResNet((2, 1, 1), 5, channels=[4, 8], blocks=3)
    assert len(model.blocks) == 6
    assert model.eval()(torch.rand(1, 2, 1, 1)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"^channels=\[\]: "):
        ResNet((1, 8, 8), 10, channels=[])


def test_whitened_patches_are_uncorrelated_and_have_equal_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(200, 3, 10, 10, generator=generator)
    images = F.avg_pool2d(noise, 3, 1)  # neighbors are alike
    model = WhitenedCNN((3, 8, 8), 10, channels=[8], patch=2)
    model.initialize_from(images)
    model.whiten.bias.data.zero_()
    white = model.whiten(images)
    half = white.shape[1] // 2
    assert torch.equal(white[:, :half], -white[:, half:])
    values = white[:, :half].transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(
        values @ values.T / values.shape[1], torch.eye(half).double(), atol=0.05, rtol=0
    )


def test_a_whitened_cnn_passes_its_input_on_and_trains_neither_whitening_nor_scales() -> None:
    images = torch.rand(2, 4, 6, 6)
    assert torch.equal(make_convolution(4, 9)(images)[:, :4], images)
    model = WhitenedCNN((3, 9, 8), 10, channels=[4, 8])
    assert model(torch.rand(2, 3, 9, 8)).shape == (2, 10)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    norms = {f"stages.{n}.norm{m}.weight" for n in (0, 1) for m in (1, 2)}
    assert frozen == {"whiten.weight", *norms}
    with pytest.raises(ValueError, match="9×9 is needed"):
        WhitenedCNN((1, 8, 28), 10)
    with pytest.raises(ValueError, match=r"^channels=\[\]: "):
        WhitenedCNN((1, 8, 8), 10, channels=[])


@pytest.mark.parametrize(
    ("wanted", "model", "last"),
    [
        ("auto", CNN, True),
        ("auto", ResNet, True),
        ("auto", MLP, False),
        (True, MLP, True),
        (False, CNN, False),
    ],
)
def test_channels_last_is_for_2d_convolutions_or_as_asked_for(
    wanted: bool | str, model: type[nn.Module], last: bool
) -> None:
    expected = torch.channels_last if last else torch.contiguous_format
    assert memory_format(wanted, model(input_shape=(1, 8, 8), classes=10)) is expected


def test_the_summary_lists_the_output_parameters_and_flops_of_every_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(480, 5))
    convolution, linear = 2 * 3 * 3 * 3 * 8 * 60, 2 * 480 * 5
    summary = summarize(model, (3, 10, 6))
    assert [tuple(row) for row in summary.rows] == [
        ("0", "Conv2d", (8, 10, 6), 224, convolution),
        ("1", "Flatten", (480,), 0, 0),
        ("2", "Linear", (5,), 2405, linear),
    ]
    assert summary.total == ("total", "Sequential", (5,), 2629, convolution + linear)
    assert model.training
    assert summary.table() == (
        "layer  kind        output  parameters  FLOP an image\n"
        "0      Conv2d      8×10×6         224         25,920\n"
        "1      Flatten     480              0              0\n"
        "2      Linear      5            2,405          4,800\n"
        "total  Sequential  5            2,629         30,720\n"
    )
    assert str(summary) == "2,629 parameters, 30,720 FLOP an image"


@pytest.mark.parametrize(
    ("flops", "text"),
    [
        (99_999, "99,999 FLOP"),
        (218_368, "0.2 MFLOP"),
        (53_314_816, "53.3 MFLOP"),
        (3_628_146_688, "3.6 GFLOP"),
    ],
)
def test_flops_have_a_suitable_unit(flops: int, text: str) -> None:
    summary = Summary([], Row("total", "MLP", (10,), 1000, flops))
    assert str(summary) == f"1,000 parameters, {text} an image"


class Scaled(nn.Module):
    """Has a parameter of its own, a layer that is called twice, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.unused = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.layers(images.flatten(1))) * self.scale


def test_own_parameters_have_a_row_and_every_call_counts() -> None:
    summary = summarize(Scaled(), (1, 2, 2))
    assert [row[:4] for row in summary.rows] == [
        ("(model)", "Scaled", (4,), 4),
        ("layers.0", "Linear", (4,), 20),
        ("layers.1", "ReLU", (4,), 0),
        ("unused", "Linear", None, 10),
    ]
    assert (summary.total.parameters, summary.total.flops) == (34, 2 * 2 * 16)


def test_the_rows_of_a_deep_model_add_up_to_its_totals() -> None:
    summary = summarize(ResNet((1, 8, 8), 10), (1, 8, 8))
    assert [row.name for row in summary.rows[:3]] == ["stem", "blocks.0.norm1", "blocks.0.conv1"]
    assert sum(row.parameters for row in summary.rows) == summary.total.parameters
    assert sum(row.flops for row in summary.rows) == summary.total.flops


def test_flops_are_those_that_torch_counts() -> None:
    model = ResNet((1, 8, 8), 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 1, 8, 8))
    assert summarize(model, (1, 8, 8)).total.flops == counter.get_total_flops()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_model_of_torchvision_takes_any_channels_and_gives_the_classes(channels: int) -> None:
    model = torchvision_model((channels, 32, 32), 7, "resnet18")
    assert model.conv1.weight.shape == (64, channels, 7, 7)
    assert model.eval()(torch.rand(2, channels, 32, 32)).shape == (2, 7)
    assert bool(model.conv1.weight.isfinite().all())


def test_the_second_heads_of_torchvisions_models_are_left_out() -> None:
    model = torchvision_model((1, 32, 32), 10, "googlenet")
    assert model.train()(torch.rand(2, 1, 32, 32)).shape == (2, 10)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    for name, near in (("ResNet18", "resnet18"), ("vgg_11", "vgg11"), ("?", ".+")):
        with pytest.raises(ValueError, match=rf"^torchvision has no .*; did you mean {near}\?$"):
            torchvision_model((3, 32, 32), 10, name)
