"""Rankers other than EViT's against slow references that read timm's own forward pass, and how one is chosen."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from makers.models import FAMILIES, WITHOUT_CLASS_TOKEN, tiny_vit
from torch import Tensor, nn

from dlth.tickets import Budget
from dlth.tickets.errors import InputError
from dlth.training import Selector
from dlth.training.models.class_attention import KEY, QUERY, VALUE
from dlth.training.models.weights_metadata import SelectionNote, WeightsFile, WeightsNote
from dlth.training.selectors.batch_ranker import BatchRanker
from dlth.training.selectors.chosen import choose
from dlth.training.selectors.cls_attention import CLS_ATTENTION
from dlth.training.selectors.feature_norm import FEATURE_NORM
from dlth.training.selectors.gradient import GRADIENT
from dlth.training.selectors.pool_attention import POOL_ATTENTION
from dlth.training.selectors.rankers import RANKERS, RankerSpec, default_ranker
from dlth.training.selectors.rollout import ROLLOUT
from dlth.training.selectors.score_ranker import Rule
from dlth.training.settings.fields import WHICH_RANKER

CPU = torch.device("cpu")
PLAIN = ("plain", "distilled", "registers", "clip", "eva02", "dinov3", "rope mixed", "rectangle", "sapiens2", "lvvit")
"""Families in which all that is read here differs: prefix tokens, norms of queries and keys, rotation, grid, groups."""


def images_for(vit: nn.Module, count: int = 3) -> Tensor:
    size = vit.patch_embed.img_size
    return torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(7))


def matrices(vit: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """timm's own forward pass with gradients: every block's softmax matrix [B, heads, N, N], and the logits."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].retain_grad()
        seen.append(inputs[0])

    hooks = []
    for block in vit.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_pre_hook(keep))
    logits = vit(images)
    for hook in hooks:
        hook.remove()
    return seen, logits


def scores(rule: Rule, vit: nn.Module, images: Tensor, block: int | None = None) -> Tensor:
    with torch.no_grad():
        return rule.scores(vit, images, rule.block(vit) if block is None else block)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", PLAIN)
def test_attention_and_rollout_are_those_of_timms_own_matrices(kind: str) -> None:
    """The class token's row of one block's matrix, and of the explicit product of all matrices with the residuals."""
    vit = tiny_vit(kind)
    images, n = images_for(vit), vit.num_prefix_tokens
    attention = [matrix.mean(dim=1) for matrix in matrices(vit, images)[0]]
    for block in (0, 3):
        close(scores(CLS_ATTENTION, vit, images, block), attention[block][:, 0, n:])
    product = torch.eye(attention[0].shape[1])
    for number, matrix in enumerate(attention):
        product = (0.5 * matrix + 0.5 * torch.eye(matrix.shape[1])) @ product
        if number in (0, 2, 3):
            close(scores(ROLLOUT, vit, images, number), product[:, 0, n:])
    assert (CLS_ATTENTION.block(vit), ROLLOUT.block(vit)) == (3, 3)


@pytest.mark.parametrize("kind", [name for name in PLAIN if name not in ("dinov3", "sapiens2", "eva02")])
@pytest.mark.parametrize("block", [1, 3])
def test_gradients_are_those_that_autograd_gives_unfused_attention(kind: str, block: int) -> None:
    """Attention times the gradient of each image's own largest logit, by hooks on timm's matrix, in a batch; also where
    nobody asks for gradients, as stage 1 does."""
    vit = tiny_vit(kind)
    images, n = images_for(vit), vit.num_prefix_tokens
    seen, logits = matrices(vit, images)
    for row in logits:
        row[row.argmax()].backward(retain_graph=True)
    theirs = (seen[block].grad * seen[block]).mean(dim=1)[:, 0, n:]
    vit.zero_grad()
    ours = scores(GRADIENT, vit, images, block)
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-3)
    with torch.inference_mode():
        assert torch.equal(GRADIENT.scores(vit, images + 0, block), ours)
    assert all(weight.grad is None for weight in vit.parameters())


@pytest.mark.parametrize("kind", ["plain", "clip", "dinov3", "sapiens2", "siglip", "rotary mean"])
def test_feature_norms_are_those_of_the_tokens_that_a_block_gives(kind: str) -> None:
    """Read by a hook on timm's block, prefix tokens left out."""
    vit = tiny_vit(kind)
    images, seen = images_for(vit), {}
    for index, block in enumerate(vit.blocks):
        block.register_forward_hook(lambda module, inputs, out, index=index: seen.__setitem__(index, out))
    vit(images)
    after = {index: out[:, vit.num_prefix_tokens :].square().sum(dim=2).sqrt() for index, out in seen.items()}
    for index in (1, 3):
        close(scores(FEATURE_NORM, vit, images, index), after[index])
    assert FEATURE_NORM.block(vit) == 3


@pytest.mark.parametrize("kind", ["siglip", "pooling with class token"])
def test_a_pooling_heads_attention_is_what_it_pools_by(kind: str) -> None:
    """With one unit vector for each token as values, what the head gathers are its weights."""
    vit = tiny_vit(kind)
    images, pool, n = images_for(vit), vit.attn_pool, vit.num_prefix_tokens
    seen: list[Tensor] = []
    pool.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    vit(images)
    keys = pool.kv(seen[0]).chunk(2, dim=2)[0].unflatten(2, (2, -1)).transpose(1, 2)
    query = pool.q(pool.latent).unflatten(2, (2, -1)).transpose(1, 2).expand(len(images), -1, -1, -1)
    values = torch.eye(keys.shape[2]).expand(len(images), 2, -1, -1)
    weights = F.scaled_dot_product_attention(query, keys, values).mean(dim=1)[:, 0]
    close(scores(POOL_ATTENTION, vit, images), weights[:, len(weights[0]) - vit.patch_embed.num_patches :])
    assert (n == 0) == (kind == "siglip")
    with pytest.raises(InputError, match=r"behind the last block \(3\), not block 1"):
        scores(POOL_ATTENTION, vit, images, 1)


@pytest.mark.parametrize("product", [(KEY, QUERY), (QUERY, VALUE)], ids=["kq", "qv"])
@pytest.mark.parametrize("kind", ["plain", "dinov3", "sapiens2", "rope mixed"])
def test_other_products_score_and_leave_the_tokens_as_they_are(
    kind: str, product: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each stage the softmax of the class token's one part with every token's other part, of the queries, keys and
    values that timm hands to its attention when it runs the model as ever."""
    vit, n, parts = tiny_vit(kind), tiny_vit(kind).num_prefix_tokens, []
    images, attention = images_for(vit), F.scaled_dot_product_attention

    def listening(*qkv: Tensor, **options: object) -> Tensor:
        parts.append(qkv)
        return attention(*qkv, **options)

    with monkeypatch.context() as patched:
        patched.setattr(F, "scaled_dot_product_attention", listening)
        vit(images)
    selector = Selector(vit, 1, (1, 2), product=product)
    stages, _ = selector._forward(images, to_the_end=False)
    for block, stage in zip((1, 2), stages, strict=True):
        ours, theirs = (parts[block][part].repeat_interleave(2 // parts[block][part].shape[1], 1) for part in product)
        row = (ours[:, :, :1] @ theirs.transpose(2, 3) * vit.blocks[block].attn.scale).softmax(dim=3)
        expected = row.mean(dim=1)[:, 0, n:].sort(dim=1, descending=True, stable=True)
        close(stage.scores, expected.values)
        assert torch.equal(stage.patches, expected.indices)
    assert not torch.equal(selector.rank(images), Selector(vit, 1, (1, 2)).rank(images))


def spec(vit: nn.Module, **changes: object) -> RankerSpec:
    """What is asked of a ranker whose model is at hand."""
    values = {"options": {}, "weights": None, "images": {}, "blocks": None, "fuse_tokens": False, "flags": "--flags"}
    made = RankerSpec(**{"model": "vit_tiny_patch16_224", **values, "rates": {"keep": "0.5"}, **changes})
    made.__dict__["_loaded"] = vit, "here"
    return made


@pytest.mark.parametrize("kind", [*FAMILIES, *WITHOUT_CLASS_TOKEN])
def test_a_ranker_that_nobody_named_fits_the_model(kind: str) -> None:
    """EViT's where there is a class token, the pooling head's attention or feature norms otherwise, with the reason; it
    ranks every patch once, and the ticket of one stage is cut where the budget says."""
    vit = tiny_vit(kind)
    chosen = choose(None, spec(vit), CPU)
    expected = {"siglip": "pool-attention", "mean": "feature-norm", "rotary mean": "feature-norm"}
    without = "pool-attention" if kind == "pooling with class token" else "evit"
    assert chosen.name == expected.get(kind, without)
    assert ("cannot rank with this" in chosen.why) == (chosen.name != "evit")
    patches, gap = chosen.ranker.select(images_for(vit))
    num_patches = vit.patch_embed.num_patches
    assert (patches.sort(dim=1).values == torch.arange(num_patches)).all()
    assert (gap > 0).all()
    if chosen.name != "evit":
        assert chosen.ranker.info.blocks == (3,)
        assert chosen.ranker.budget == Budget.from_keep("0.5", num_patches, 1)


@pytest.mark.parametrize("name", RANKERS)
def test_every_ranker_is_a_ranker(name: str) -> None:
    """Ranking of batches as stage 1 does (inference mode, half precision) and alone: the same patches and gaps; FLOPs
    are counted; the settings' help names it."""
    vit = tiny_vit("siglip" if name == "pool-attention" else "plain")
    ranker = choose(name, spec(vit), CPU).ranker
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    patches, gap = BatchRanker(ranker, batch_size=2)(images)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ranker.frame.mean, ranker.frame.std))
    alone = ranker.select((images.float() / 255 - mean) / std)
    assert (torch.from_numpy(patches) == alone.patches).all()
    torch.testing.assert_close(torch.from_numpy(gap), alone.gap, atol=1e-6, rtol=1e-3)
    halves, gaps = BatchRanker(ranker, amp=True)(images)
    assert gaps.dtype == "float32"
    agreement = (halves[:, :8, None] == patches[:, None, :8]).any(1).mean()
    assert agreement > 0.8
    assert 0 < ranker.flops[0] < 1.6 * ranker.flops[1]
    assert name in WHICH_RANKER.replace(",", "").split()


def test_what_weights_record_of_their_stages_is_not_meant_for_one_stage() -> None:
    """Blocks and fused token of a trained selector are left to evit; the other ranker keeps as many patches."""
    selection = SelectionNote(blocks=(0, 1, 2), stage_keep="0.7", fuse_tokens=True)
    note = WeightsNote(model="vit_tiny_patch16_224", selection=selection)
    recorded = {"weights": WeightsFile("w", Path("w"), note), "blocks": (0, 1, 2), "fuse_tokens": True}
    rates = {"stage_keep": "0.7", "keep": None, "tokens": None}
    evit, rollout = (choose(n, spec(tiny_vit(), **recorded, rates=rates), CPU).ranker for n in ("evit", "rollout"))
    assert (rollout.info.blocks, rollout.info.fuse_tokens) == ((3,), False)
    assert rollout.budget == Budget.from_tokens(evit.budget.k, 16, 1)
    mine = choose("rollout", spec(tiny_vit(), **recorded | {"blocks": (2,)}, rates={"stage_keep": "0.5"}), CPU).ranker
    assert (mine.info.blocks, mine.budget.k) == ((2,), 8)


def test_a_ranker_that_asks_for_gradients_can_be_compiled() -> None:
    """Its backward pass breaks the graph and does not change a patch."""
    ranker = choose("gradient", spec(tiny_vit(depth=2)), CPU).ranker
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    compiled, _ = BatchRanker(ranker, torchcompile="eager", batch_size=2)(images)
    assert (compiled == BatchRanker(ranker)(images)[0]).all()


def test_ties_go_to_the_lower_patch_and_scores_that_are_no_numbers_give_no_ticket() -> None:
    """Equal scores keep the patches' order with a gap of 0; a NaN makes the image's gap NaN, and no other's."""
    vit = tiny_vit()
    made = choose("feature-norm", spec(vit), CPU).ranker
    flat = torch.tensor([[1.0, 3.0] * 8, [0.0, math.nan] * 8])
    ranker = dataclasses.replace(made, rule=Rule(lambda vit, images, block: flat, FEATURE_NORM.check))
    patches, gap = ranker.select(images_for(vit, 2))
    assert patches[0].tolist() == [*range(1, 16, 2), *range(0, 16, 2)]
    assert (gap[0].item(), math.isnan(gap[1])) == (2.0, True)
    assert ranker.select(images_for(vit, 2), Budget.from_tokens(3, 16, 1)).gap[0] == 0
    assert ranker.select(images_for(vit, 2), Budget.from_tokens(16, 16, 1)).gap[0] == math.inf
    with pytest.raises(InputError, match="budget for 9 patches does not fit images of 16"):
        ranker.select(images_for(vit, 2), Budget.from_tokens(3, 9, 1))


@pytest.mark.parametrize(
    ("name", "kind", "options", "changes", "message"),
    [
        ("evit", "siglip", {}, {}, r"no class token \(it pools by 'map'\).*What can.*pool-attention need no class"),
        ("rollout", "mean", {}, {}, r"no class token.*What can"),
        ("pool-attention", "plain", {}, {}, "no pooling head .*pools by 'token'.*feature-norm"),
        ("gradient", "plain", {"num_classes": 0}, {}, "predicts no class .*cls-attention or rollout"),
        ("gradient", "dinov3", {}, {}, "from the mean of the patches.*cls-attention or rollout"),
        ("rollout", "plain", {}, {"blocks": (1, 2)}, r"looks at one block, from 0 to 3, got \(1, 2\)"),
        ("rollout", "plain", {}, {"blocks": (4,)}, "looks at one block, from 0 to 3"),
        ("rollout", "plain", {}, {"fuse_tokens": True}, "fused tokens are for rankers that drop"),
        ("rolout", "plain", {}, {}, "no ranker called 'rolout'; did you mean rollout.*package.module:name"),
        ("nowhere.at_all:it", "plain", {}, {}, r"nowhere\.at_all cannot be imported .*\(ModuleNotFoundError"),
        ("math:it", "plain", {}, {}, "math has no 'it'"),
        ("math:pi", "plain", {}, {}, "neither a ranker nor what makes one"),
        ("math:sqrt", "plain", {}, {}, r"failed when called with a RankerSpec and a device \(TypeError"),
        ("operator:is_", "plain", {}, {}, "is a bool without frame, budget, info, device, flops, select"),
    ],
)
def test_what_cannot_rank_says_what_can(name: str, kind: str, options: dict, changes: dict, message: str) -> None:
    """Models, blocks and names that do not serve, and code of a user's that makes no ranker."""
    with pytest.raises(InputError, match=message):
        choose(name, spec(tiny_vit(kind, **options), **changes), CPU)


def test_a_model_of_no_known_family_says_what_can() -> None:
    """Not even by default."""
    with pytest.raises(InputError, match=r"Linear cannot select patches.*What can"):
        default_ranker(nn.Linear(1, 1))


OWN = """
import torch
from dlth.tickets import Budget, SelectorInfo
from dlth.training.models.frame import Frame
from dlth.training.selectors.patch_ranker import Selection

class Backwards:
    flops = (0, 0)

    def __init__(self, spec, device):
        vit, source = spec.load()
        self.frame, self.device = Frame.of(vit, **spec.images), device
        self.budget = Budget.of(self.frame.grid.num_patches, 1, **spec.rates)
        self.info = SelectorInfo("backwards", "", source, (0,))

    def select(self, images, budget=None):
        patches = torch.arange(self.frame.grid.num_patches).flip(0).expand(len(images), -1)
        return Selection(patches, torch.ones(len(images)))

def make(spec, device):
    return Backwards(spec, device)

class Twice(Backwards):
    def select(self, images, budget=None):
        return Selection(torch.zeros(len(images), 16, dtype=torch.int64), torch.ones(len(images)))

class Failing(Backwards):
    def select(self, images, budget=None):
        return {}["it"]

class Gapless(Backwards):
    def select(self, images, budget=None):
        return Selection(super().select(images).patches, torch.ones(()))

class Odd(Backwards):
    def select(self, images, budget=None):
        return what(*super().select(images), images)

def leave(*_):
    raise SystemExit(3)
"""
ODD = [
    ("lambda p, g, x: leave()", r"failed on a black image \(SystemExit: 3"),
    ("lambda p, g, x: (p, g) if len(x) == 1 else {}['it']", r"failed on 3 black images \(KeyError"),
    ("lambda p, g, x: (p[:1], g)", r"for 3 images it gave patches torch.int64 \[1, 16\], not each of 0 to 15 once"),
    ("lambda p, g, x: (p.repeat(2, 1), g)", r"torch.int64 \[2, 16\]"),
    ("lambda p, g, x: (p[:, :8], g)", r"torch.int64 \[1, 8\]"),
    ("lambda p, g, x: (p + 0.25, g)", r"torch.float32 \[1, 16\]"),
    ("lambda p, g, x: (p.numpy(), g)", "gave of type tuple"),
    ("lambda p, g, x: None", "gave of type NoneType"),
    ("lambda p, g, x: (p, g[:, None])", r"gaps of shape \[1, 1\] for one image, not \[1\], floating"),
    ("lambda p, g, x: (p, g + 0j)", r"gaps of shape \[1\] and torch.complex64"),
]
"""What a ranker may give, and what is said of it."""


@pytest.mark.parametrize(("what", "message"), ODD, ids=[what for what, _ in ODD])
def test_what_is_no_selection_is_refused(what: str, message: str) -> None:
    """Before any image is read, and for each batch: an error names the ranker, and nothing is cut or rounded."""
    code: dict[str, Any] = {"__name__": "mine"}
    exec(f"{OWN}\nwhat = lambda p, g, x: (p, g)", code)
    wanted, images = spec(tiny_vit()), torch.zeros(2, 3, 32, 32)
    odd = choose(code["Odd"](wanted, CPU), wanted, CPU).ranker
    assert odd.select(images).patches[:, 0].tolist() == [15, 15]
    code["what"] = eval(what, code)
    with pytest.raises(InputError, match=message):
        choose(code["Odd"](wanted, CPU), wanted, CPU)
    with pytest.raises(InputError, match="the ranker mine:Odd "):
        odd.select(images)


PART = """
def make(spec, device):
    made = Backwards(spec, device)
    made.{} = None
    return made
"""


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", r"cannot be imported .* \(SystemExit: 3"),
        ("def make(spec, device): raise SystemExit", r"called with a RankerSpec and a device \(SystemExit"),
        *((OWN + PART.format(part), f"has {part} of type None") for part in ("frame", "budget", "info", "device")),
        (f"{OWN}\nBackwards.flops = None", "has flops None, not two numbers"),
        (f"{OWN}\nBackwards.flops = property(lambda self: {{}}['it'])", r"does not say what it is \(KeyError"),
    ],
)
def test_code_that_makes_no_ranker_is_refused(
    code: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What leaves at import or in the maker, and parts that are not what `PatchRanker` says, are one error each."""
    name = f"mine_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=message):
        choose(f"{name}:make", spec(tiny_vit()), CPU)


def test_a_users_own_ranker_comes_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a maker, a class, or as an object; one that ranks no permutation is refused before any image is read."""
    (tmp_path / "my_rankers.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    wanted = spec(tiny_vit())
    for name in ("my_rankers:make", "my_rankers:Backwards"):
        chosen = choose(name, wanted, CPU)
        assert (chosen.name, chosen.ranker.select(torch.zeros(1, 3, 32, 32)).patches[0, 0]) == (name, 15)
    assert sys.path[-1] == str(tmp_path)
    again = choose(chosen.ranker, wanted, CPU)
    assert (again.ranker, again.name) == (chosen.ranker, "my_rankers:Backwards")
    with pytest.raises(InputError, match=r"my_rankers:Twice does not rank: .* not each of 0 to 15 once"):
        choose("my_rankers:Twice", wanted, CPU)
    with pytest.raises(InputError, match=r"my_rankers:Failing failed on a black image \(KeyError"):
        choose("my_rankers:Failing", wanted, CPU)
    with pytest.raises(InputError, match=r"gave gaps of shape \[\] for one image"):
        choose("my_rankers:Gapless", wanted, CPU)
