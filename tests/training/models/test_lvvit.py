"""LV-ViT against values that the paper's released code computed, and what a run makes of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from makers import TESTS
from makers.models import tiny_vit
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from dlth.data.images.mixing import BatchMix, Mixing, batch_mix, mix_images, token_sources
from dlth.tickets import Grid
from dlth.tickets.errors import InputError
from dlth.training import LVViT, Selector, make_student
from dlth.training.evaluation.evaluate import evaluate
from dlth.training.models.registry import build, default_blocks
from dlth.training.models.student import Student
from dlth.training.models.token_logits import TokenLogits
from dlth.training.reporter import Reporter
from dlth.training.runs.loop import train
from dlth.training.runs.losses import cross_entropy, image_loss, token_label_loss
from dlth.training.settings.eval_config import EvalConfig
from dlth.training.settings.train_config import TrainConfig


class Golden:
    """The golden model, its normalised images, and what was computed of them."""

    def __init__(self) -> None:
        with safe_open(TESTS / "training" / "golden" / "lvvit_a.safetensors", "pt") as file:
            self.facts = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "num_classes")
        size = {name: int(self.facts[name]) for name in sizes} | {"mlp_ratio": float(self.facts["mlp_ratio"])}
        self.vit = LVViT(**size, skip=float(self.facts["skip_lam"]), stem_width=64).eval()
        weights = {name[6:]: value for name, value in self.tensors.items() if name.startswith("model.")}
        self.vit.load_state_dict(weights, strict=True)
        mean, std = (
            torch.tensor([float(x) for x in self.facts[name].split(",")]).view(3, 1, 1) for name in ("mean", "std")
        )
        self.images = (self.tensors["images"].float() / 255 - mean) / std
        self.ticket = self.tensors["ticket"]

    def close(self, found: Tensor, name: str) -> None:
        torch.testing.assert_close(found, self.tensors[name], atol=1e-5, rtol=1e-5)


@pytest.fixture
def golden() -> Golden:
    return Golden()


@torch.no_grad()
def test_golden_logits(golden: Golden) -> None:
    """With the published parameter names: evaluation logits on all patches and on the ticket; in training, logits of
    the class token and of each kept patch."""
    student = make_student(golden.vit)
    golden.close(student(golden.images), "student_dense_logits")
    golden.close(student(golden.images, golden.ticket), "student_sparse_logits")
    student.train()
    golden.vit.patch_embed.eval()  # the values were computed with batch norm in evaluation mode
    output = student(golden.images, golden.ticket)
    golden.close(output.cls, "student_train_cls_logits")
    golden.close(output.patches, "student_train_token_logits")


def test_golden_selection(golden: Golden) -> None:
    """Each stage keeps the authors' patches, the ticket is theirs, and so are the logits with dropping on."""
    selector = Selector(golden.vit, golden.facts["stage_keep"], [int(b) for b in golden.facts["blocks"].split(",")])
    ranking = selector.rank(golden.images)
    for stage, kept in enumerate(selector.budget.stage_tokens):
        assert torch.equal(ranking[:, :kept].sort().values, golden.tensors[f"stage{stage}_patches"].sort().values)
    assert torch.equal(ranking[:, : golden.ticket.shape[1]].sort().values, golden.ticket.sort().values)
    golden.close(selector.logits(golden.images), "selector_logits")


def test_golden_loss(golden: Golden) -> None:
    """The loss with token labels, which are dropped as the tokens are."""
    targets, patches = golden.tensors["targets"][:, :, 1], golden.tensors["targets"][:, :, 2:].mT
    kept = patches.take_along_dim(golden.ticket[..., None], dim=1)
    output = TokenLogits(golden.tensors["student_train_cls_logits"], golden.tensors["student_train_token_logits"])
    weights = float(golden.facts["dense_weight"]), float(golden.facts["cls_weight"])
    golden.close(token_label_loss(output, targets, kept, *weights).mean()[None], "token_label_loss")


def test_without_token_labels_each_patch_has_its_images_label() -> None:
    """So both heads learn: no weight is without a gradient, and half a weight halves the patches' part alone."""
    torch.manual_seed(0)
    vit = build("lvvit_tiny", img_size=32, embed_dim=24, depth=2, num_heads=2, num_classes=3, stem_width=8)
    student, targets = make_student(vit).train(), torch.eye(3)[[0, 2]]
    output = student(torch.randn(2, 3, 32, 32), torch.tensor([[0, 3], [1, 2]]))
    loss = image_loss(output, targets)
    labelled = token_label_loss(output, targets, targets[:, None].expand(-1, 2, -1))
    torch.testing.assert_close(loss, labelled)
    torch.testing.assert_close(loss - image_loss(output, targets, 0.5), 0.5 * (loss - image_loss(output, targets, 0.0)))
    loss.sum().backward()
    assert all(weight.grad is not None for weight in vit.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "blocks"),
    [
        ("tiny", 8.5, (3, 6, 9)),
        ("small", 26.2, (4, 8, 12)),
        ("medium", 55.8, (5, 10, 15)),
        ("large", 150.0, (6, 12, 18)),
    ],
)
def test_published_sizes(name: str, millions: float, blocks: tuple[int, ...]) -> None:
    """Each has its paper's parameters, the paper's selection blocks, and ImageNet's mean as its images'."""
    with torch.device("meta"):
        vit = build(f"lvvit_{name}")
    assert sum(weight.numel() for weight in vit.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)
    assert default_blocks(vit) == blocks
    assert vit.pretrained_cfg["mean"] == (0.485, 0.456, 0.406)


def test_new_heads_are_both_of_the_new_size() -> None:
    """`reset_classifier` changes both heads, and no classes leave the class token."""
    vit = LVViT(32, 16, 24, 1, 2, num_classes=7, stem_width=8).eval()
    vit.reset_classifier(3)
    assert (vit.head.out_features, vit.aux_head.out_features) == (3, 3)
    vit.reset_classifier(0)
    assert vit(torch.zeros(1, 3, 32, 32)).shape == (1, 24)


@pytest.mark.parametrize("side", [7, 0])
def test_an_odd_patch_is_refused(side: int) -> None:
    """The stem halves the image before it cuts patches."""
    with pytest.raises(InputError, match=f"patch_size must be even, got {side}"):
        LVViT(img_size=28, patch_size=side, stem_width=8)


MIXING = Mixing(cutmix_alpha=1.0, group=4, tokens=True)
GRID = Grid(4, 4)


def tiny(images: int = 6) -> tuple[Student, Tensor, Tensor, BatchMix]:
    """A student in training mode, normalised images, their patches, and how two groups of them mix."""
    torch.manual_seed(0)
    vit = build("lvvit_t", img_size=32, num_classes=3, patch_size=8, embed_dim=24, depth=2, num_heads=2, stem_width=8)
    mix = batch_mix(MIXING, (GRID.rows, GRID.cols), seed=1, epoch=0, step=0, start=0, stop=images)
    patches = torch.rand(images, 16).argsort(dim=1)[:, :5]
    return make_student(vit).train(), torch.randn(images, 3, 32, 32), patches, mix


def test_mixtoken_is_cutmix_by_whole_patches_where_a_stem_sees_one_patch() -> None:
    """With a plain ViT's stem, pasting tokens in a box equals pasting pixels in it, before any patch is dropped."""
    _, images, patches, mix = tiny()
    assert all(plan.kind == "cutmix" for plan in mix.plans)
    sources = token_sources(mix, GRID)
    assert (sources != torch.arange(6)[:, None]).any()
    vit = make_student(tiny_vit())
    for kept in (patches, None):
        torch.testing.assert_close(vit(images, kept, sources), vit(mix_images(images, mix), kept), atol=1e-5, rtol=1e-5)


def test_mixing_patches_labels_equals_pasting_logits_back() -> None:
    """The authors paste each image's token logits back into its own map; labels that are mixed as the tokens are, by
    patch index, give the same loss and gradients, and go on doing so when tokens are dropped."""
    student, images, patches, mix = tiny()
    sources, labels = token_sources(mix, GRID), torch.rand(6, 16, 3).softmax(dim=2)
    everything = torch.arange(16).expand(6, -1)
    mixed = labels.gather(0, sources[..., None].expand(-1, -1, 3))
    for kept in (everything, patches):
        output = student(images, kept, sources)
        ours = cross_entropy(output.patches, mixed.take_along_dim(kept[..., None], dim=1)).mean()
        theirs = []
        for image, places in enumerate(kept.tolist()):
            for token, place in enumerate(places):
                owner = int(sources[image, place])  # where its logits are pasted back
                theirs.append(cross_entropy(output.patches[image, token], labels[owner, place]))
        torch.testing.assert_close(ours, torch.stack(theirs).mean())


class KilledError(Exception):
    """Stands for the end of the process."""


class KilledAt(Reporter):
    """Ends a run after a step."""

    def stepped(self, record: Any) -> None:
        if record["step"] == 3:
            raise KilledError


def test_a_run_resumes_bit_for_bit_and_timm_loads_its_weights(make_run: Callable[..., TrainConfig]) -> None:
    """On tickets, with MixToken, an average and drop path: killed after a save, it ends as the unbroken run does, batch
    norm's statistics too; the weights fit timm's model, and give the run's own accuracies."""
    kwargs = {"patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "stem_width": 8}
    options = {"model": "lvvit_tiny", "model_kwargs": kwargs, "model_ema": True, "mix_token": 1.0, "drop_path": 0.1}
    whole, broken = make_run("whole", **options), make_run("broken", checkpoint_steps=2, **options)
    result = train(whole)
    with pytest.raises(KilledError):
        train(broken, reporter=KilledAt())
    train(broken.model_copy(update={"resume": "auto"}))
    for name in ("model.safetensors", "model_ema.safetensors"):
        one, two = (load_file(Path(config.out) / name) for config in (whole, broken))
        assert all(torch.equal(one[key], two[key]) for key in one | two)
        assert one["patch_embed.bn1.running_mean"].abs().max() > 0
    timm.create_model("lvvit_t", img_size=32, num_classes=4, **kwargs).load_state_dict(one, strict=True)
    val = {"val": whole.val, "val_tickets": whole.val_tickets, "workers": 0, "device": "cpu"}
    table = evaluate(EvalConfig(checkpoint=whole.out, **val)).table()
    assert {arm: row["top1"] for arm, row in table.items()} == {
        arm: row["top1"] for arm, row in result.evaluation["model"].items()
    }


def test_mixtoken_is_refused_where_no_tokens_can_be_mixed(make_run: Callable[..., TrainConfig]) -> None:
    """A CNN has none; and it does not stand beside mixup or cutmix."""
    with pytest.raises(InputError, match=r"--mix-token mixes embedded patches, which ResNet .* give --mix-token 0"):
        train(make_run(model="resnet18", model_kwargs={}, img_size=None, mix_token=1.0, arm="dense", tickets=None))
    with pytest.raises(InputError, match="takes the place of --mixup and --cutmix"):
        make_run(mix_token=1.0, cutmix=1.0)
