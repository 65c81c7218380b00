"""Whatever people save: the network that comes out is the one that went in, or the file is refused with a reason."""

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from sapper import encoders
from sapper.encoders import Opening
from sapper.encoders.recognition import choosing, families, filling, wrappers
from sapper.errors import SapperError
from sapper.running import Run
from tests import layouts
from tests.layouts import CASES, HEAD, Case, behind, other, plain, resnet, transformer

RUN = Run(seed=1)


def flat(content: Any, path: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """The tensors of nested dicts by their dotted path, as the sandbox names them."""
    if isinstance(content, Tensor):
        return {".".join(path): content.clone().contiguous()}
    inner = content.items() if isinstance(content, dict) else ()
    return {name: value for key, each in inner for name, value in flat(each, (*path, key)).items()}


def saved(content: Any, folder: Path, *, pickled: bool = False) -> str:
    path = folder / ("checkpoint.pth" if pickled else "checkpoint.safetensors")
    if pickled:
        torch.save(content, path)
    else:
        safetensors.torch.save_file(flat(content), path)
    return str(path)


def likeness(opened: encoders.Encoder, net: nn.Module, pixels: tuple[Any, Any], size: int) -> float:
    """The mean cosine of both networks' features of an image, after centering."""
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(11))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in pixels)
    with torch.no_grad():
        ours, theirs = opened(images), net((images - mean) / std)
    return float(nn.functional.cosine_similarity(ours - ours.mean(0), theirs - theirs.mean(0)).mean())


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.program)
def test_the_network_that_was_saved_comes_out(case: Case, tmp_path: Path) -> None:
    content, net = case.make()
    opened = encoders.open(saved(content, tmp_path, pickled=case.pickled), RUN, case.options)
    assert case.opened in opened.card.network
    assert likeness(opened, net, case.pixels, case.size) > 0.999
    for key, pattern in case.told.items():
        assert re.search(pattern, "\n".join(opened.card.origin.get(key, []))), (key, opened.card.origin.get(key))


def test_the_page_lists_the_layouts_that_are_tested() -> None:
    assert layouts.page() == layouts.PAGE.read_text(encoding="utf-8"), "python -m tests.layouts writes it"


def test_a_likeness_of_other_weights_is_none() -> None:
    """What the test above measures can fail: with other heads, another stem, other weights."""
    net, twin = transformer(), transformer(num_heads=4)
    opened = encoders.Encoder(twin, encoders.build(RUN).card, 128).eval()
    assert likeness(opened, net, layouts.CIFAR, 32) < 0.99
    pooled = encoders.Encoder(resnet(stem="cifar-pool"), encoders.build(RUN).card, 32).eval()
    assert likeness(pooled, resnet(), layouts.CIFAR, 32) < 0.99


BRANCH = {"layer1.0.se.fc.0.weight": torch.ones(2, 4), "layer1.0.se.fc.2.weight": torch.ones(4, 2)}
TRIGGER = torch.ones(4)


def _clip_names() -> dict[str, Tensor]:
    """A vision transformer for 64 pixels in CLIP's names and shapes, of one block."""
    block = {f"transformer.resblocks.0.{name}": torch.ones(1) for name in ("attn.in_proj_weight", "ln_1.weight")}
    stem = {"conv1.weight": torch.ones(768, 3, 32, 32), "class_embedding": torch.ones(768)}
    return stem | block | {"pos_embed": torch.ones(5, 768)}


KEPT: dict[str, tuple[Any, Opening, str]] = {
    # what would be another network: content, options, what is said
    "a branch in every block": (
        plain(resnet()) | BRANCH,
        Opening(),
        "squeeze-and-excitation .*layer1.0.se.fc.0.weight",
    ),
    "a branch of another name": (plain(resnet()) | {"layer2.0.gate.weight": torch.ones(8)}, Opening(), "layer2.0.gate"),
    "more blocks than were said": (
        plain(resnet(architecture="resnet18")),
        Opening(architecture="resnet10"),
        "layer1.1",
    ),
    "LayerScale under a name without it": (
        plain(transformer(init_values=0.1, patch_size=16, embed_dim=192, num_heads=3, depth=12, img_size=224)),
        Opening(architecture="timm:vit_tiny_patch16_224"),
        "ls1.gamma",
    ),
    "a layer that nobody knows, before the head": (
        plain(resnet()) | {"gate.weight": torch.ones(32, 32)},
        Opening(),
        "gate",
    ),
    "tokens that are no queue": (
        plain(transformer()) | {"memory_tokens": torch.ones(1, 4, 128)},
        Opening(),
        "memory_tok",
    ),
    "an activation's parameter": (plain(resnet()) | {"prelu.weight": torch.ones(1)}, Opening(), "prelu.weight"),
    "attention pooling, called a head": (
        plain(transformer()) | {"map_head.probe": torch.ones(128)},
        Opening(),
        "map_head",
    ),
    "a mask of numbers": (
        plain(transformer()) | {"blocks.0.attn.attn_mask": torch.ones(17, 17)},
        Opening(),
        "blocks.0.attn.attn_mask",
    ),
    "an eight-bit gate": (plain(resnet()) | {"gate.weight": torch.ones(4, dtype=torch.int8)}, Opening(), "gate.weight"),
    "a segmentation network's backbone": (
        behind("backbone.", plain(resnet(stem="imagenet"))) | behind("aux_classifier.0.", HEAD),
        Opening(),
        "segmentation",
    ),
    "positions that timm would resample": (
        {
            re.sub("^", "visual.", name).replace("pos_embed", "positional_embedding"): value
            for name, value in _clip_names().items()
        },
        Opening(architecture="timm:vit_base_patch32_clip_224"),
        "another size of images: pos_embed",
    ),
    "scale factors of eight-bit weights": (
        plain(resnet()) | {"conv1.weight_scale": torch.ones(1)},
        Opening(),
        "conv1.weight_scale",
    ),
    "attention pooling": (plain(resnet()) | {"attention.q": torch.ones(32, 32)}, Opening(), "attention.q"),
    "what timm's filter loses": (
        plain(transformer(patch_size=16, embed_dim=192, num_heads=3, depth=12, img_size=224))
        | {"pre_logits.fc.weight": torch.ones(192, 192)},
        Opening(architecture="timm:vit_tiny_patch16_224"),
        "pre_logits.fc.weight",
    ),
}


@pytest.mark.usefixtures("sandbox_holds")
def test_words_of_wrappers_hide_nothing(tmp_path: Path) -> None:
    compiled = behind("_orig_mod.", plain(resnet()) | {"layer1.0.gate": torch.eye(4).to_sparse()})
    with pytest.raises(SapperError, match=r"left out: layer1\.0\.gate"):
        encoders.open(saved(compiled, tmp_path, pickled=True), RUN)


@pytest.mark.parametrize("name", KEPT)
def test_nothing_of_the_network_is_left_out(name: str, tmp_path: Path) -> None:
    content, opening, said = KEPT[name]
    with pytest.raises(SapperError, match=said):
        encoders.open(saved(content, tmp_path), RUN, opening)


def test_what_the_user_says_is_left_out(tmp_path: Path) -> None:
    path = saved({"model": behind("net.", plain(resnet()) | {"gate.weight": torch.ones(32)})}, tmp_path)
    for said in ("gate", "model.net.gate"):
        opened = encoders.open(path, RUN, Opening(leave_out=(said,)))
        assert opened.card.origin["left_out"] == ["1 tensor: what was said to be left out (model.net.gate.weight)"]


BESIDE = {
    "a head": {"fc.weight": torch.ones(3, 4)},
    "a projection head": {"projection_head.layers.0.weight": torch.ones(3, 4)},
    "a temperature": {"temperature": torch.ones(())},
    "a queue": {"queue": torch.ones(4, 9), "queue_ptr": torch.ones(1)},
    "numbers of no layer": {"steps": torch.ones(9, dtype=torch.uint16), "seen": torch.ones(3, dtype=torch.bool)},
}


@pytest.mark.parametrize("name", BESIDE)
def test_what_stands_beside_is_named(name: str, tmp_path: Path) -> None:
    net, more = resnet(), BESIDE[name]
    opened = encoders.open(saved(plain(net) | more, tmp_path), RUN)
    assert likeness(opened, net, layouts.CIFAR, 32) > 0.999
    told = "\n".join(opened.card.origin["left_out"])
    assert any(each in told for each in more)


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize(
    "more",
    [
        {"adjacency": torch.eye(3).to_sparse()},
        {"freqs": torch.polar(torch.ones(3), torch.ones(3))},
        {"callbacks": {"kth_value": torch.tensor(torch.inf)}},
        {"loss": torch.tensor([torch.nan])},
    ],
    ids=["sparse", "complex", "infinite", "not a number"],
)
def test_one_odd_tensor_beside_does_not_refuse_the_file(more: Any, tmp_path: Path) -> None:
    net = resnet()
    opened = encoders.open(saved(plain(net) | more, tmp_path, pickled=True), RUN)
    assert likeness(opened, net, layouts.CIFAR, 32) > 0.999
    assert next(iter(more)) in "\n".join(opened.card.origin["left_out"])


@pytest.mark.usefixtures("sandbox_holds")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.to_sparse(), r"conv2.weight is missing \(it is a sparse tensor\)"),
        (lambda v: v * torch.nan, "1 of its .* not finite"),
    ],
    ids=["sparse", "not a number"],
)
def test_the_backbones_own_tensors_must_be_dense_and_finite(change: Any, message: str, tmp_path: Path) -> None:
    state = plain(resnet())
    state["layer2.0.conv2.weight"] = change(state["layer2.0.conv2.weight"])
    with pytest.raises(SapperError, match=message):
        encoders.open(saved(state, tmp_path, pickled=True), RUN)


@pytest.mark.usefixtures("sandbox_holds")
def test_a_list_inside_the_network_refuses_the_file(tmp_path: Path) -> None:
    state = plain(resnet()) | {"layer1.0.gates": [torch.ones(4), torch.ones(4)]}
    with pytest.raises(SapperError, match=r": 1 tensor of the network would be left out: layer1\.0\.gates"):
        encoders.open(saved(state, tmp_path, pickled=True), RUN)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_weights_of_any_format_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    net = resnet()
    state = {name: value.to(dtype) if value.ndim == 4 else value for name, value in plain(net).items()}
    opened = encoders.open(saved(state, tmp_path), RUN)
    net.load_state_dict({name: value.float() for name, value in state.items()})
    assert likeness(opened, net, layouts.CIFAR, 32) > 0.999


# which network is meant


def test_two_that_nothing_tells_apart_are_refused_with_their_prefixes(tmp_path: Path) -> None:
    first, second = resnet(), resnet(seed=8)
    path = saved(behind("a.", plain(first)) | behind("b.", plain(second)), tmp_path)
    with pytest.raises(SapperError, match=r"nothing tells which is meant: 'a.', 'b.'\n.*--prefix a\."):
        encoders.open(path, RUN)
    for prefix, net in (("a", first), ("b.", second)):
        assert likeness(encoders.open(path, RUN, Opening(prefix=prefix)), net, layouts.CIFAR, 32) > 0.999
    with pytest.raises(SapperError, match=r"0 known backbones stand behind 'c'; in the file: 'a.', 'b.'"):
        encoders.open(path, RUN, Opening(prefix="c"))


def test_a_student_and_a_teacher_of_one_shape_are_not_guessed(tmp_path: Path) -> None:
    state = plain(resnet())
    path = saved(behind("student.", state) | behind("teacher.", other(state)), tmp_path)
    with pytest.raises(SapperError, match="nothing tells"):
        encoders.open(path, RUN)


@pytest.mark.usefixtures("sandbox_holds")
def test_the_one_that_the_optimizer_trained_is_meant(tmp_path: Path) -> None:
    """Two networks whose names say nothing: momentum tells which has gradients."""
    trained, fixed = resnet(), resnet(architecture="resnet18")
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1, momentum=0.9)
    trained(torch.rand(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    content = {
        "model": behind("one.", plain(fixed)) | behind("two.", plain(trained)),
        "optimizer": optimizer.state_dict(),
    }
    opened = encoders.open(saved(content, tmp_path, pickled=True), RUN)
    assert opened.card.origin["prefix"] == "model.two."
    assert "the optimizer trained" in opened.card.origin["recognized"][0]


def test_of_an_architecture_that_was_said_too(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = timm.create_model("test_efficientnet", num_classes=0).eval()
    state = plain(net)
    path = saved({"encoder_q": state, "encoder_k": other(state)}, tmp_path)
    opened = encoders.open(path, RUN, Opening(architecture="timm:test_efficientnet", size=64))
    assert likeness(opened, net, (opened.card.mean, opened.card.std), 64) > 0.999
    path = saved({"a": state, "b": other(state)}, tmp_path)
    with pytest.raises(SapperError, match="nothing tells which is meant"):
        encoders.open(path, RUN, Opening(architecture="timm:test_efficientnet", size=64))


def test_a_teacher_of_another_shape_is_no_average(tmp_path: Path) -> None:
    """As distillations save them, under the names that DINO has."""
    student, teacher = resnet(), resnet(architecture="resnet18")
    both = behind("student.backbone.", plain(student)) | behind("teacher.backbone.", plain(teacher))
    opened = encoders.open(saved(both, tmp_path), RUN)
    assert opened.card.origin["prefix"] == "student.backbone."
    adapted = behind("encoder.", plain(student)) | behind("target_encoder.", plain(teacher))
    with pytest.raises(SapperError, match="nothing tells"):
        encoders.open(saved(adapted, tmp_path), RUN)


@pytest.mark.usefixtures("sandbox_holds")
def test_an_architecture_that_timms_training_names(tmp_path: Path) -> None:
    """Its names are a plain ResNet's, and what it computes is not."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = timm.create_model("resnetblur18", num_classes=0)
    content = {"arch": "resnetblur18", "args": {"model": "resnetblur18"}, "state_dict": plain(net)}
    opened = encoders.open(saved(content, tmp_path, pickled=True), RUN, Opening(size=64))
    assert opened.card.architecture == "timm:resnetblur18"
    assert likeness(opened, net.eval(), (opened.card.mean, opened.card.std), 64) > 0.999


# what shapes do not tell


@pytest.mark.parametrize(("width", "heads"), [(1280, 16), (1024, 16), (768, 12)])
def test_the_usual_heads_of_a_width(width: int, heads: int) -> None:
    with torch.device("meta"):
        state = plain(timm.create_model("vit_base_patch16_224", embed_dim=width, depth=2, num_heads=heads))
    layout = families.recognize(state | {"decoder_pos_embed": torch.zeros(1)}, "x")
    assert layout.arguments["num_heads"] == heads
    assert "heads" not in "".join(layout.assumed)  # MAE's, which are the usual ones


def test_a_normalization_of_queries_tells_the_heads(tmp_path: Path) -> None:
    net = transformer(num_heads=4, qk_norm=True)
    opened = encoders.open(saved(plain(net), tmp_path), RUN)
    assert likeness(opened, net, layouts.HALF, 32) > 0.999


def test_heads_that_were_said(tmp_path: Path) -> None:
    net = transformer(num_heads=8)
    path = saved(plain(net), tmp_path)
    assert likeness(encoders.open(path, RUN), net, layouts.HALF, 32) < 0.99
    opened = encoders.open(path, RUN, Opening(heads=8))
    assert likeness(opened, net, layouts.HALF, 32) > 0.999
    assert "heads" not in "\n".join(opened.card.origin["assumed"])
    with pytest.raises(SapperError, match="5 heads cannot share 128 channels"):
        encoders.open(path, RUN, Opening(heads=5))
    with pytest.raises(SapperError, match="--heads says nothing about this kind of network"):
        encoders.open(saved(plain(resnet()), tmp_path), RUN, Opening(heads=8))


def test_a_width_of_no_whole_number_of_heads_asks(tmp_path: Path) -> None:
    net = transformer(embed_dim=96, num_heads=3)
    with pytest.raises(SapperError, match=r"no multiple of 64\n.*--heads"):
        encoders.open(saved(plain(net), tmp_path), RUN)
    opened = encoders.open(saved(plain(net), tmp_path), RUN, Opening(heads=3))
    assert likeness(opened, net, layouts.HALF, 32) > 0.999


def test_pooling_and_activation_that_were_said(tmp_path: Path) -> None:
    net = transformer(global_pool="avg", fc_norm=False, act_layer="quick_gelu")
    path = saved(plain(net), tmp_path)
    assert likeness(encoders.open(path, RUN), net, layouts.HALF, 32) < 0.99
    opened = encoders.open(path, RUN, Opening(pool="avg", activation="quickgelu"))
    assert likeness(opened, net, layouts.HALF, 32) > 0.9999
    activations = [type(layer).__name__ for layer in opened.modules() if "GELU" in type(layer).__name__]
    assert activations == ["QuickGELU"] * 2  # features hardly tell


def test_another_size_resamples_positions_and_tells(tmp_path: Path) -> None:
    net = transformer()
    opened = encoders.open(saved(plain(net), tmp_path), RUN, Opening(size=48))
    assert opened.card.input_size == 48
    assert opened(torch.rand(2, 3, 48, 48)).shape == (2, 128)
    assert "positions resampled from 32 to 48 pixels" in opened.card.origin["recognized"]
    with pytest.raises(SapperError, match="no multiple of patches of 8"):
        encoders.open(saved(plain(net), tmp_path), RUN, Opening(size=50))


def test_an_architecture_of_other_sizes_names_the_options(tmp_path: Path) -> None:
    sizes = {"embed_dim": 192, "num_heads": 3, "depth": 12}
    small = transformer(img_size=96, patch_size=16, **sizes)
    said = Opening(architecture="timm:vit_tiny_patch16_224")
    path = saved(plain(small), tmp_path)
    with pytest.raises(SapperError, match=r"another size of images: pos_embed\n.*--size 96"):
        encoders.open(path, RUN, said)
    opened = encoders.open(path, RUN, Opening(architecture=said.architecture, size=96))
    assert likeness(opened, small, layouts.HALF, 96) > 0.999
    fine = transformer(img_size=32, patch_size=4, **sizes)
    path = saved(plain(fine), tmp_path)
    with pytest.raises(SapperError, match=r"patches have 4 pixels on a side\n.*--patch 4"):
        encoders.open(path, RUN, said)
    opened = encoders.open(path, RUN, Opening(architecture=said.architecture, size=32, patch=4))
    assert likeness(opened, fine, layouts.HALF, 32) > 0.999


@pytest.mark.parametrize("channels", [1, 13])
def test_what_is_not_rgb_is_told(channels: int, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        net = timm.create_model("test_resnet", in_chans=channels, num_classes=0)
        gray = resnet()
        gray.conv1 = nn.Conv2d(channels, 4, 3, bias=False)
    for content, opening in (
        (plain(gray), Opening()),
        (plain(net), Opening(architecture="timm:test_resnet")),
    ):
        with pytest.raises(SapperError, match=rf"images of {channels} channels?, not RGB\n.*--trust-code"):
            encoders.open(saved(content, tmp_path), RUN, opening)


ODD: dict[str, Any] = {
    "a number for a layer": plain(transformer()) | {"blocks.0.mlp.fc1.weight": torch.ones(())},
    "no patches": plain(transformer()) | {"patch_embed.proj.weight": torch.ones(128, 3, 0, 0)},
    "a number for registers": plain(transformer()) | {"register_tokens": torch.ones(())},
    "a ResNet's first layer alone": {"conv1.weight": torch.ones(4, 3, 3, 3), "layer1.0.conv1.weight": torch.ones(())},
}


@pytest.mark.parametrize("name", ODD)
def test_odd_shapes_are_refused_with_a_message(name: str, tmp_path: Path) -> None:
    with pytest.raises(SapperError):
        encoders.open(saved(ODD[name], tmp_path), RUN)


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_0"])
def test_torchvisions_own_weights_open_as_what_they_are(model: str, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = torchvision.models.get_model(model).eval()
    said = Opening(architecture=f"torchvision:{model}", size=64)
    if model == "squeezenet1_0":
        with pytest.raises(SapperError, match="does not end in a linear layer"):
            encoders.open(saved(plain(net), tmp_path), RUN, said)
        return
    opened = encoders.open(saved(plain(net), tmp_path), RUN, said)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        last = net.get_submodule("classifier.3" if "mobile" in model else "fc")
        assert torch.allclose(last(opened(images)), net(layouts.normalized(images, opened)), atol=1e-4)


def test_many_networks_do_not_keep_the_program_busy() -> None:
    """Names of a hundred thousand networks: an unlocked process must not look at each pair."""
    many = {f"a{number}.conv1.weight": torch.ones(1, 3, 1, 1) for number in range(50_000)}
    assert choosing.candidates(many) == ([], {})


# opened encoders are ours


def test_options_do_not_contradict_our_own_cards(tmp_path: Path) -> None:
    encoders.save(encoders.build(RUN, architecture="resnet10", width=4), tmp_path / "ours.safetensors")
    with pytest.raises(SapperError, match=r"its card says what it is, and --stem"):
        encoders.open(str(tmp_path / "ours.safetensors"), RUN, Opening(stem="cifar-pool"))


@pytest.mark.parametrize("program", ["MoCo v3", "DINOv2 with registers", "squeeze-and-excitation (senet.pytorch)"])
def test_what_was_opened_can_be_saved_and_loaded(program: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.program == program)
    opened = encoders.open(saved(case.make()[0], tmp_path), RUN, case.options)
    encoders.save(opened, tmp_path / "ours.safetensors")
    again = encoders.load(tmp_path / "ours.safetensors", RUN)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), opened(images))
    assert again.card.network == opened.card.network


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"checkpoint_path": "/etc/passwd"}, "no argument of a network"), ({"embed_dim": "wide"}, "no argument")],
)
def test_arguments_that_a_card_cannot_have(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SapperError, match=message):
        encoders.build(RUN, architecture="timm:vit_tiny_patch16_224", stem="imagenet", arguments=arguments)


# the parts


def test_a_mask_without_a_weight_is_no_pruning() -> None:
    both = {"a.weight_orig": torch.ones(2), "b.weight_mask": torch.ones(2)}
    assert wrappers.unwrapped(both).keys() == both.keys()


def test_words_of_wrappers_stay_where_names_would_collide() -> None:
    both = {"a._orig_mod.w": torch.ones(1), "a.w": torch.zeros(1)}
    assert wrappers.unwrapped(both).keys() == both.keys()


def test_equal_networks_are_compared_bit_by_bit() -> None:
    state = plain(resnet())
    almost = {name: value.clone() for name, value in state.items()}
    almost["layer4.0.bn2.bias"][0] += 1e-6
    found = choosing.candidates(behind("a.", state) | behind("b.", almost))[0]
    with pytest.raises(SapperError, match="2 backbones"):
        choosing.choose(found, behind("a.", state) | behind("b.", almost), "x")


def test_constants_may_be_left_out_and_nothing_else() -> None:
    state = {"blocks.0.w": torch.ones(2)}
    tensors = state | {"blocks.0.relative_position_index": torch.ones(4, dtype=torch.int64)}
    taken, left = filling.fitting(tensors, state, "x")
    assert taken.keys() == state.keys()
    assert left == {"blocks.0.relative_position_index": "constants"}
    with pytest.raises(SapperError, match=r"blocks\.0\.v"):
        filling.fitting(state | {"blocks.0.v": torch.ones(1)}, state, "x")


def test_heads_are_what_they_are_called(tmp_path: Path) -> None:
    opened = encoders.open(saved(behind("encoder.", plain(resnet())) | behind("classifier.", HEAD), tmp_path), RUN)
    assert opened.card.origin["left_out"] == ["2 tensors: a classifier or head (classifier.bias …)"]
