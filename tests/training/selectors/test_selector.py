"""The selector against a slow reference that reads timm's whole attention matrix, image by image."""

import math
from collections.abc import Callable

import pytest
import torch
from makers.models import tiny_vit
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dlth.tickets.errors import InputError
from dlth.tickets.ranking.budget import Budget
from dlth.training import Selector, TicketViT
from dlth.training.models.registry import build

Make = Callable[..., nn.Module]


def images(count: int = 3, height: int = 32, width: int = 32) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(7))


def attention_matrix(block: nn.Module, tokens: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
    """The attention branch's result, and timm's own softmax matrix [heads, N, N] on the way."""
    seen: list[Tensor] = []
    block.attn.fused_attn = False
    hook = block.attn.attn_drop.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = block.norm1(tokens)
    out = block.attn(x, rope=rope) if rope is not None else block.attn(x)
    hook.remove()
    return out, seen[0][0]


def reference(vit: nn.Module, image: Tensor, budget: Budget, blocks: tuple[int, ...], fuse: bool) -> tuple:
    """EViT's rule, literally, for one image [3, H, W]: ranking, logits and each stage's scores by patch."""
    n, eva = vit.num_prefix_tokens, isinstance(vit, Eva)
    tokens = vit.patch_embed(image[None])
    tokens, rope = vit._pos_embed(tokens) if eva else (vit._pos_embed(tokens), None)
    tokens = vit.norm_pre(tokens)
    total = math.prod(vit.patch_embed.dynamic_feat_size(image.shape[1:]))
    here, fallen, stages = list(range(total)), [], []
    for index, block in enumerate(vit.blocks):
        table = None
        if rope is not None:
            table = (rope[index] if vit.rope_mixed else rope)[..., here, :]
        if index not in blocks:
            tokens = block(tokens, rope=table) if eva else block(tokens)
            continue
        out, matrix = attention_matrix(block, tokens, table)
        gamma = getattr(block, "gamma_1", None)
        tokens = tokens + (block.ls1(out) if not eva else out if gamma is None else gamma * out)
        scores = dict(zip(here, matrix[:, 0, n:].mean(0).tolist(), strict=True))
        stages.append(scores)
        order = sorted(here, key=lambda patch: (-scores[patch], patch))
        kept = order[: budget.stage_tokens[len(stages) - 1]]
        lost = order[len(kept) :]
        where = {patch: n + place for place, patch in enumerate(here)}
        parts = [tokens[:, :n], *(tokens[:, where[patch], None] for patch in kept)]
        if fuse and lost:
            parts.append(sum(tokens[:, where[patch], None] * scores[patch] for patch in lost))
        fallen = lost + fallen
        here = kept + ([total + len(stages)] if fuse and lost else [])
        tokens = torch.cat(parts, dim=1)
        branch = block.mlp(block.norm2(tokens))
        gamma = getattr(block, "gamma_2", None)
        tokens = tokens + (block.ls2(branch) if not eva else branch if gamma is None else gamma * branch)
    ranking = [patch for patch in kept + fallen if patch < total]
    return ranking, vit.forward_head(vit.norm(tokens)), stages


def assert_ranks_as_the_reference(vit: nn.Module, selector: Selector, batch: Tensor) -> None:
    selection, logits = selector.select(batch), selector.logits(batch)
    for row, image in enumerate(batch):
        budget = selector._budget_of(selection.patches.shape[1])
        with torch.no_grad():
            ranking, expected, stages = reference(vit, image, budget, selector.blocks, selector.fuse_tokens)
        assert selection.patches[row].tolist() == ranking
        torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-5, rtol=1e-4)
        if budget.k == len(ranking):
            assert selection.gap[row].isinf()
            continue
        last, after = ranking[budget.k - 1], ranking[budget.k]
        saw_both = [scores for scores in stages if last in scores and after in scores][-1]
        assert selection.gap[row].item() == pytest.approx(saw_both[last] - saw_both[after], abs=1e-6)  # float32


def test_every_family_ranks_as_the_reference(family: str) -> None:
    """Rankings, gaps and logits are those of EViT's rule applied to timm's own attention matrix."""
    vit = tiny_vit(family)
    side = {"dynamic": (40, 24), "padded": (37, 30), "dinov3 dynamic": (24, 40), "rectangle": (32, 48)}.get(
        family, (32, 32)
    )
    assert_ranks_as_the_reference(vit, Selector(vit, 0.7, (1, 2, 3)), images(2, *side))


@pytest.mark.parametrize("blocks", [(0,), (3,), (0, 1, 2, 3), (1, 3)], ids=str)
@pytest.mark.parametrize("fuse", [False, True], ids=["", "fused"])
@pytest.mark.parametrize("rate", [0.5, 0.85, 0.95])
def test_any_blocks_and_rates(blocks: tuple[int, ...], fuse: bool, rate: float) -> None:
    """The rule holds for one stage and for many, with fused tokens kept, dropped and fused again."""
    vit = tiny_vit("distilled")
    assert_ranks_as_the_reference(vit, Selector(vit, rate, blocks, fuse), images())


def test_gated_attention_and_separate_norm() -> None:
    """A gate on the attention's result is applied, with the kept tokens' own gates."""
    vit = tiny_vit("plain")
    for block in vit.blocks:
        block.attn.gate = nn.Linear(32, 32)
    assert_ranks_as_the_reference(vit, Selector(vit, 0.7, (1, 2)), images())


def test_rankings_are_permutations_and_prefixes_nest() -> None:
    """Every patch is ranked once, whatever the rate, and the selector says how many are the ticket."""
    vit = tiny_vit()
    for options in (
        {"keep": "0.7"},
        {"tokens": 9},
        {"stage_keep": 0.5},
        {"stage_keep": 1},
        {"keep": 0.4, "fuse_tokens": True},
    ):
        selector = Selector(vit, blocks=(1, 2, 3), **options)
        ranking = selector.rank(images())
        assert ranking.dtype == torch.int64
        assert (ranking.sort(dim=1).values == torch.arange(16)).all()
    assert Selector(vit, blocks=(1, 2, 3), keep="0.7").budget.k == 12
    assert Selector(vit, blocks=(1, 2, 3), tokens=9).budget.k == 9


def test_ties_go_to_the_lowest_patch() -> None:
    """Equal scores leave patches in their order, also where an earlier stage had ranked them otherwise."""
    vit = tiny_vit()
    with torch.no_grad():
        vit.blocks[3].attn.qkv.weight.zero_()
    selection = Selector(vit, 0.7, (1, 3)).select(images())
    survivors = selection.patches[:, :12]
    assert (survivors.diff(dim=1) > 0).all()
    assert (selection.gap == 0).all()
    with torch.no_grad():
        vit.blocks[1].attn.qkv.weight.zero_()
    assert (Selector(vit, 0.7, (1, 3)).rank(images()) == torch.arange(16)).all()


def test_scores_that_are_no_numbers_have_no_gap() -> None:
    """An image that a stage gives NaN for is told by its gap, also where nothing is cut; its neighbours keep theirs."""
    batch = images()
    for rate in (0.7, 1):
        selector = Selector(tiny_vit(), rate, (1, 3))
        expected = selector.select(batch)
        spoilt = batch.clone()
        spoilt[1, 0, 3, 5] = math.nan
        found = selector.select(spoilt)
        assert found.gap.isnan().tolist() == [False, True, False]
        assert torch.equal(found.gap[[0, 2]], expected.gap[[0, 2]])
        with torch.no_grad():
            selector.vit.blocks[0].mlp.fc1.weight.mul_(1e38)
        assert selector.select(batch).gap.isnan().all()


def test_nothing_cut_has_an_infinite_gap() -> None:
    """A ticket of all patches cannot be fragile."""
    assert Selector(tiny_vit(), stage_keep=1, blocks=(2,)).select(images()).gap.isinf().all()


def test_batch_size_does_not_matter() -> None:
    """An image's ranking is the same alone and in a batch."""
    selector = Selector(tiny_vit(), 0.7, (1, 2, 3))
    batch = images(6)
    alone = torch.cat([selector.rank(image[None]) for image in batch])
    assert (selector.rank(batch) == alone).all()


@pytest.mark.parametrize("how", ["autocast", "bfloat16 weights"])
def test_scores_are_float32_whatever_the_blocks_run_in(how: str) -> None:
    """In bf16 blocks the gap stays float32 and finer than bf16, no row ties, and tickets hardly change."""
    selector = Selector(tiny_vit(num_classes=5), 0.7, (1, 2, 3))
    batch = images(16)
    exact = selector.select(batch)
    if how == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = selector.select(batch)
    else:
        selector.vit.to(torch.bfloat16)
        rough = selector.select(batch.to(torch.bfloat16))
    k = selector.budget.k
    assert rough.gap.dtype == torch.float32
    assert (rough.gap > 0).all()
    assert (rough.gap != rough.gap.to(torch.bfloat16).float()).any()
    both = [
        len(set(a.tolist()) & set(b.tolist())) for a, b in zip(exact.patches[:, :k], rough.patches[:, :k], strict=True)
    ]
    assert sum(both) / (16 * k) > 0.85


@pytest.mark.parametrize("family_name", ["plain", "dinov3"])
@pytest.mark.parametrize("fuse", [False, True], ids=["", "fused"])
def test_compiles_into_one_graph(family_name: str, fuse: bool) -> None:
    """`torch.compile(selector.select, fullgraph=True)` gives the same rankings."""
    if fuse and family_name == "dinov3":
        with pytest.raises(InputError, match="a fused token has no position"):
            Selector(tiny_vit(family_name), 0.7, (1, 2), fuse)
        return
    selector = Selector(tiny_vit(family_name), 0.7, (1, 2, 3), fuse)
    torch._dynamo.reset()
    compiled = torch.compile(selector.select, backend="eager", fullgraph=True)(images())
    assert (compiled.patches == selector.rank(images())).all()


def test_a_ranking_can_be_trained_on() -> None:
    """What the selector returns may index a student whose gradients are wanted (the online mode)."""
    selector = Selector(tiny_vit(), 0.7, (1, 2, 3))
    student = TicketViT(tiny_vit(seed=1).train())
    student(images(), selector.rank(images())[:, :5]).sum().backward()
    assert student.vit.patch_embed.proj.weight.grad is not None
    assert all(weight.grad is None for weight in selector.vit.parameters())


@pytest.mark.parametrize(("rate", "gflop"), [(0.7, 5.11), (0.8, 5.66), (0.888, 6.21), (0.9, 6.28)])
def test_nothing_after_the_last_scores_is_computed(rate: float, gflop: float) -> None:
    """Counted FLOPs of DeiT-S at 224 px, the patch embedding included, are those of the method's early exit."""
    with torch.device("meta"):
        vit, image = build("deit_small"), torch.zeros(1, 3, 224, 224)
    counter = FlopCounterMode(display=False)
    with counter:
        Selector(vit, rate).rank(image)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, abs=0.005)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": (3, 6, 9)}, r"numbers from 0 to 3 .*the model has 4 blocks.*got \(3, 6, 9\)"),
        ({"blocks": ()}, "one or more numbers"),
        ({"blocks": (2, 1)}, "rising"),
        ({"blocks": (1, 1)}, "rising"),
        ({"blocks": (1,), "keep": 0.5, "tokens": 3}, "not both"),
        ({"blocks": (1,), "stage_keep": None}, "one of them must say"),
        ({"blocks": (1,), "stage_keep": 1.5}, "stage keep must be above 0 and at most 1"),
        ({"blocks": (1,), "tokens": 17}, "from 1 to 16"),
    ],
    ids=str,
)
def test_senseless_options_are_refused(options: dict, message: str) -> None:
    """Blocks that the model lacks and rates outside (0, 1] are named at once."""
    with pytest.raises(InputError, match=message):
        Selector(tiny_vit(), **options)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(1, 3, 48, 48), "images of 48x48 pixels do not fit a model of 32x32"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "must be normalised floats"),
        (torch.zeros(3, 32, 32), "must be normalised floats"),
    ],
    ids=["size", "bytes", "no batch"],
)
def test_images_that_do_not_fit_are_refused(batch: Tensor, message: str) -> None:
    """The message shows both sides."""
    with pytest.raises(InputError, match=message):
        Selector(tiny_vit(), blocks=(1,)).rank(batch)


def test_training_mode_is_refused() -> None:
    """A selector whose dropout is on would rank at random."""
    selector = Selector(tiny_vit().train(), blocks=(1,))
    assert not selector.vit.training
    selector.vit.train()
    with pytest.raises(InputError, match="in training mode"):
        selector.rank(images())
