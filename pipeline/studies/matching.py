"""How many epochs make an arm spend what the reference spends.

The reference is the dense arm, or where there is none the arm of the largest keep; it trains for the epochs that the
settings say. What its selector cost is taken off a ticket arm's part, as a share of the operations of the reference;
where a ticket arm is the reference itself, the others may spend what its selector cost too. A control is trained as
the tickets are that it stands beside, so it has their epochs.
The learning rate follows each arm's own epochs; the warm-up is the reference's, which a short run cuts: arms that
differed in it could not be judged.

By tokens an image costs its share of the patches *as it was asked for*, which is how the paper's scripts come to
350, 412, 489, 586 and 711 epochs for stage rates of 0.95 to 0.75: 300 over the rate's third power, in three digits.
Exact tokens (whole patches, class token) differ by a per cent or two. FLOPs and hours count what is really done.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from dlth.pipeline.evidence.arm_key import ArmKey
from dlth.pipeline.evidence.study_plan import StudyPlan
from dlth.pipeline.studies.arms import Arm
from dlth.pipeline.studies.grid import own_settings
from dlth.pipeline.studies.study_config import CompareConfig
from dlth.tickets import Budget, TicketHeader
from dlth.tickets.errors import InputError
from dlth.tickets.ranking.budget import exact_rate, share_left
from dlth.training.settings.fields import MAX_EPOCHS, NO_SCHEDULE


def nearest_epochs(spent: Callable[[int], float], budget: float) -> int:
    """The number of epochs, at least 1, that comes nearest to spending the budget; the larger of two that are as near.

    `spent(epochs)` rises with the epochs, from 0 for none.
    """
    low, high = 0, 1
    while spent(high) < budget and high < MAX_EPOCHS:
        low, high = high, min(2 * high, MAX_EPOCHS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) < budget else (low, middle)
    return max(1, low if budget - spent(low) < spent(high) - budget else high)


def nominal_share(keep: str | None, header: TicketHeader | None) -> Fraction:
    """The share of the patches as it was asked for: a run's own, else its ticket file's, which may be a stage rate."""
    if keep is not None:
        return Fraction(exact_rate(keep))
    if header is None:
        return Fraction(1)
    return share_of_stages(header) or Fraction(exact_rate(header.keep))


def share_of_stages(header: TicketHeader) -> Fraction | None:
    """What a file's stage rate leaves after all stages, in three digits; None where a share was asked for instead.

    The one of the two that was asked for is the shorter decimal: the other was worked out, to six digits.
    """
    stages = len(header.stage_tokens)
    if not stages or len(header.stage_keep) >= len(header.keep):
        return None
    made = Budget.from_stage_keep(header.stage_keep, header.grid.num_patches, stages, header.selector.fuse_tokens)
    return share_left(header.stage_keep, stages) if made.k == header.k else None


def matched(
    arms: Sequence[Arm], config: CompareConfig, charged: Mapping[ArmKey, float], known: StudyPlan | None
) -> tuple[Arm, ...]:
    """The arms with the epochs that the study's matching gives them; those with epochs of their own keep them.

    Args:
        arms: all of the study
        config: the study's
        charged: operations that a run of an arm is charged with for its selector
        known: the study's plan so far; hours are never measured alike twice, so what they came to then stays
    Raises:
        InputError: a selector that costs more than there is to spend
    """
    if config.match == "epochs":
        return tuple(arms)
    then = {run.arm: run.cost.epochs for run in known.runs} if known is not None and config.match == "hours" else {}
    charged = {arm.key: charged.get(arm.trained_as, 0.0) for arm in arms}
    references = {arm.key.variant: _reference(arms, arm.key.variant, charged) for arm in arms}
    return tuple(_matched(arm, references[arm.key.variant], config, charged, then) for arm in arms)


def _reference(arms: Sequence[Arm], variant: str, charged: Mapping[ArmKey, float]) -> Arm:
    """The arm of a variant that the others spend as much as: the dense one, else the first of the largest k, and of
    these one that is charged with nothing.
    """
    own = [arm for arm in arms if arm.key.variant == variant]
    return max(own, key=lambda arm: (arm.key.arm == "dense", arm.survey.record["k"], not charged.get(arm.key)))


def _matched(
    arm: Arm, reference: Arm, config: CompareConfig, charged: Mapping[ArmKey, float], then: Mapping[ArmKey, int]
) -> Arm:
    if "epochs" in own_settings(arm.cell, config):
        return arm
    if arm.trained_as in then:
        return arm.with_epochs(then[arm.trained_as], reference)
    if arm is reference:
        return arm
    epochs = reference.config.epochs
    budget = _spending(reference, config.match)(epochs)
    own, theirs = charged.get(arm.key, 0.0), charged.get(reference.key, 0.0)
    if own != theirs:
        left = 1 - (own - theirs) / reference.survey.work(epochs).flops
        if left <= 0:
            raise InputError(
                f"{arm.key}: the selector costs {own / 1e15:.4g} PFLOP, which is all that {reference.key} spends in"
                f" {epochs} epochs: charge the share of several runs (--selector-cost amortised --selector-runs N)"
            )
        budget *= left
    found = nearest_epochs(_spending(arm, config.match), budget)
    try:
        return arm.with_epochs(found, reference)
    except InputError as error:
        raise InputError(f"{arm.key}, matched with {found} epochs: {error}") from error


def _spending(arm: Arm, match: str) -> Callable[[int], float]:
    """What an arm spends in so many epochs: epochs of all patches, operations, or seconds."""
    found, falls = arm.survey, arm.config.keep_schedule != NO_SCHEDULE
    if match == "flops":
        return lambda epochs: found.work(epochs).flops
    if match == "hours":
        return lambda epochs: found.seconds(epochs, 0) or 0.0
    if falls:  # so the patches of each step are counted
        every = found.first_epochs[-1].images * found.record["num_patches"]
        return lambda epochs: found.work(epochs).patches / every
    header = arm.tickets.header if arm.tickets is not None else None
    share = Fraction(1) if arm.key.arm == "dense" else nominal_share(arm.config.keep, header)
    return lambda epochs: float(epochs * share)
