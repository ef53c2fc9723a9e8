"""A rotary table that is kept is the one that timm would have made."""

import torch

from dlth.training import TicketViT
from dlth.training.models.embedding import embed
from dlth.training.models.registry import build
from dlth.training.models.rotary_table import NAME, kept_table

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def test_a_kept_table_changes_no_bit_and_no_weight_and_serves_its_own_grid_alone() -> None:
    """Of DINOv3: logits of all patches are timm's own on the model's grid and on another; no file holds the table."""
    vit = build("vit_small_patch16_dinov3", **SMALL).eval()
    table = vit.get_buffer(NAME)
    assert torch.equal(table.view(torch.float32), vit.rope.get_embed(shape=[4, 4]))
    assert NAME not in vit.state_dict()
    for side in (32, 48):
        images, count = torch.randn(2, 3, side, side), (side // 8) ** 2
        everyone = torch.arange(count).expand(2, -1)
        kept = TicketViT(vit)(images, everyone)
        del vit._buffers[NAME]
        assert torch.equal(kept, TicketViT(vit)(images, everyone))
        torch.testing.assert_close(kept, vit(images))
        vit.register_buffer(NAME, table, persistent=False)


def test_a_table_that_training_moves_is_drawn_anew_and_others_are_not_kept() -> None:
    """Coordinates that training shifts are shifted; tables of fixed and learnt frequencies are the model's own."""
    moved = build("vit_small_patch16_dinov3", **SMALL, rope_shift_coords=0.5)
    images, everyone = torch.zeros(1, 3, 32, 32), torch.arange(16).expand(1, -1)
    tables = [embed(moved, images, everyone)[1] for _ in range(2)]
    assert not torch.equal(*tables)
    assert torch.equal(embed(moved.eval(), images)[1], moved.get_buffer(NAME).view(torch.float32))
    for name in ("eva02_tiny_patch14_224", "vit_small_patch16_rope_mixed_ape_224", "deit_tiny"):
        assert not hasattr(build(name, **SMALL), NAME)


def test_a_kept_table_stays_what_it_is_when_its_model_does_not() -> None:
    """It is not rounded with the weights, and serves the grid that it was made for alone, wherever its model is set."""
    vit = build("vit_small_patch16_dinov3", **SMALL).eval()
    made = {side: vit.rope.get_embed(shape=[side, side]) for side in (4, 6)}
    rounded = kept_table(vit.to(torch.bfloat16).to(torch.float32), (4, 4))
    assert rounded is not None
    assert torch.equal(rounded, made[4])
    vit.set_input_size(img_size=48)
    images, everyone = torch.zeros(1, 3, 48, 48), torch.arange(36).expand(1, -1)
    assert torch.equal(embed(vit, images, everyone)[1].flatten(0, -2), made[6])
