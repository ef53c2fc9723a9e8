"""Model names, sizes, and who can select or drop patches."""

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from dlth.tickets.errors import InputError
from dlth.tickets.ranking.grid import Grid
from dlth.training import EViT, Selector, TicketViT
from dlth.training.models.registry import (
    FRIENDLY,
    build,
    check_can_drop,
    check_can_select,
    default_blocks,
    grid_of,
    image_size_of,
    patch_size_of,
    resolve,
)


def on_paper(name: str, **options: object) -> nn.Module:
    """A model without memory behind its weights: any size is made in an instant."""
    return timm.create_model(name, device="meta", **options)


@pytest.mark.parametrize("name", FRIENDLY)
def test_friendly_names_are_models_that_select_and_drop(name: str) -> None:
    """Each friendly name is a timm model, which can be selector and student."""
    with torch.device("meta"):
        vit = build(name)
    assert timm.is_model(resolve(name))
    assert check_can_select(vit) is check_can_drop(vit) is vit


def test_names() -> None:
    """Friendly names say which released weights they mean; timm's names stay."""
    assert resolve("deit_small") == "deit_small_patch16_224.fb_in1k"
    assert resolve("vit_tiny_patch16_384") == "vit_tiny_patch16_384"
    with pytest.raises(InputError, match="no model called 'deit_smal'; did you mean deit_small"):
        resolve("deit_smal")


def test_the_papers_width() -> None:
    """The width between DeiT-S and DeiT-B has heads of 64 like the others."""
    with torch.device("meta"):
        vit = build("deit_576", num_classes=10)
    assert (vit.embed_dim, vit.blocks[0].attn.num_heads, vit.blocks[0].attn.head_dim) == (576, 9, 64)
    assert vit.head.out_features == 10


def test_build_passes_sizes_on() -> None:
    """Image size, classes and drop path arrive; the grid follows."""
    vit = build(
        "deit_tiny", num_classes=3, img_size=64, drop_path=0.1, patch_size=8, embed_dim=32, num_heads=2, depth=4
    )
    assert (grid_of(vit), patch_size_of(vit)) == (Grid(8, 8), 8)
    assert vit.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    assert default_blocks(vit) == (1, 2, 3)
    assert build("deit_tiny", img_size=(32, 64)).patch_embed.grid_size == (2, 4)


@pytest.mark.parametrize(("depth", "blocks"), [(12, (3, 6, 9)), (16, (4, 8, 12)), (4, (1, 2, 3)), (2, (1,)), (1, (0,))])
def test_default_blocks(depth: int, blocks: tuple[int, ...]) -> None:
    """The paper's for its depths, and numbers that exist for all others."""
    vit = on_paper("vit_tiny_patch16_224", depth=depth)
    assert default_blocks(vit) == EViT(vit).blocks == Selector(vit).blocks == blocks


def test_arguments_a_model_does_not_take() -> None:
    """The message names the model and what it was given; a CNN is made for a size all the same, as it takes any."""
    with pytest.raises(InputError, match="resnet18 cannot be built with width=3, img_size=64"):
        build("resnet18", img_size=64, width=3)
    with torch.device("meta"):
        sized, plain = build("resnet18", img_size=(64, 96)), build("resnet18")
    assert (image_size_of(sized), image_size_of(plain)) == ((64, 96), (224, 224))


def test_names_and_arguments_that_cannot_serve_say_why() -> None:
    """Whatever timm raises is an error of ours."""
    with pytest.raises(InputError, match=r"no weights 'x' of vit_tiny_patch16_224: there are augreg_in21k, .* no tag"):
        build("vit_tiny_patch16_224.x")
    with pytest.raises(InputError, match="cannot be built with norm_layer='nothing'"):
        build("deit_tiny", norm_layer="nothing")


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("vit_base_patch16_siglip_224", {}, "no class token .it pools by 'map'"),
        ("vit_base_patch16_reg4_gap_256", {}, "no class token .it pools by 'avg'"),
        ("vit_medium_patch16_rope_reg1_gap_256", {}, "no class token"),
        ("vit_tiny_patch16_224", {"global_pool": "avg"}, "head pools by 'avg' and never trained the class token"),
        ("vit_base_patch16_xp_224", {}, "blocks are of type ParallelScalingBlock"),
        ("vit_small_patch16_18x2_224", {}, "blocks are of type ParallelThingsBlock"),
        ("eva02_enormous_patch14_clip_224", {"depth": 1}, "blocks are of type EvaBlockPostNorm"),
        ("vit_tiny_patch16_224", {"attn_layer": "diff"}, "attention is of type DiffAttention"),
        ("beit_base_patch16_224", {}, "Beit cannot select patches: its relative position bias"),
        ("vit_relpos_base_patch16_cls_224", {}, "its relative position bias"),
        ("swin_tiny_patch4_window7_224", {}, "SwinTransformer cannot select patches: it attends within windows"),
        ("cait_xxs24_224", {}, "class token attends only after"),
        ("resnet18", {}, "ResNet cannot select patches: it is no plain vision transformer"),
    ],
    ids=lambda value: value if isinstance(value, str) and "_" in value and " " not in value else "",
)
def test_models_that_cannot_select(name: str, options: dict, reason: str) -> None:
    """Each refusal says why, and what can."""
    with pytest.raises(InputError, match=f"{reason}.*What can: .*LV-ViT.*deit_small"):
        Selector(on_paper(name, **options), blocks=(0,))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("beit_base_patch16_224", "Beit cannot drop patches: its relative position bias belongs to the full grid"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer cannot drop patches: it attends within windows.*LV-ViT.*V2"),
        ("samvit_base_patch16", "VisionTransformerSAM cannot drop patches"),
        ("resnet18", "ResNet cannot drop patches"),
    ],
)
def test_models_that_cannot_drop(name: str, reason: str) -> None:
    """Each refusal names the model's class and the reason."""
    with pytest.raises(InputError, match=reason):
        TicketViT(on_paper(name))


def test_a_model_that_computes_its_own_way_is_refused() -> None:
    """A subclass with another forward pass would be computed wrongly, so it is not taken for its parent."""

    class Other(timm.models.VisionTransformer):
        def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
            return super()._pos_embed(x) * 2

    with pytest.raises(InputError, match="Other cannot drop patches"):
        TicketViT(Other(img_size=32, embed_dim=32, depth=1, num_heads=2))


def test_weights_that_cannot_be_fetched() -> None:
    """Without a network the message says so and names the way out; nothing is trained on random weights unawares."""
    nobody = {"url": "http://127.0.0.1:9/none.pth", "hf_hub_id": None}
    with pytest.raises(InputError, match=r"deit_tiny_patch16_224\.fb_in1k could not be fetched.*--checkpoint FILE"):
        build("deit_tiny", pretrained=True, pretrained_cfg_overlay=nobody)


def test_a_hub_that_does_not_answer_is_asked_once_and_then_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No minutes of retries: an error at once that names both ways out, or the weights that an earlier call fetched."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"does not answer.*--checkpoint FILE.*--random-weights"):
        build("vit_tiny", pretrained=True)
    repository = tmp_path / "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    for name in ("refs", "snapshots/1"):
        (repository / name).mkdir(parents=True)
    (repository / "refs" / "main").write_text("1")
    fetched = timm.create_model("vit_tiny_patch16_224", depth=1)
    save_file(fetched.state_dict(), repository / "snapshots" / "1" / "model.safetensors")
    vit = build("vit_tiny", pretrained=True, depth=1)
    torch.testing.assert_close(vit.state_dict(), fetched.state_dict())


@pytest.mark.parametrize("name", ["deit_576", "vit_base_patch16_xp_224"])
def test_weights_that_were_never_released(name: str) -> None:
    """timm would go on with random weights and a warning; dlth stops."""
    with pytest.raises(InputError, match=f"no released weights for {name}"):
        build(name, pretrained=True)
