"""What a plan says of its verdicts before anything is trained: which clauses, over how many seeds, on which patches."""

from collections.abc import Sequence

from dlth.pipeline.evidence.evidence import DENSE
from dlth.pipeline.judging.arm_comparison import SEEDS_FOR_ARMS
from dlth.pipeline.judging.verdicts import PAPER
from dlth.pipeline.studies.arms import Arm
from dlth.pipeline.studies.study_config import CompareConfig


def outlook(arms: Sequence[Arm], config: CompareConfig) -> tuple[str, ...]:
    """What will be judged, and what keeps it from being judged or makes it another question, in words."""
    kinds = {arm.key.arm for arm in arms}
    clauses = [str(clause) for clause in PAPER if {clause.first, clause.second} <= kinds]
    judged = f"judged: {', '.join(clauses)} (--margin {config.margin:g} points)" if clauses else "nothing is judged"
    why = "" if clauses else ": no two of the arms ticket, random and dense are there"
    notes = [judged + why]
    if len(config.seeds) < SEEDS_FOR_ARMS:
        notes.append(f"fewer than {SEEDS_FOR_ARMS} seeds decide nothing: --seeds {','.join(map(str, config.seeds))}")
    if blind := sorted({arm.key.arm for arm in arms if arm.key.arm != DENSE and not _sees_tickets(arm)}):
        notes.append(f"{', '.join(blind)}: judged on all patches, as there are no validation tickets (--val-tickets)")
    if config.match != "epochs":
        notes.append(f"--match {config.match}: arms spend what {_measure(kinds)} does, in epochs of their own")
    return tuple(notes)


def _sees_tickets(arm: Arm) -> bool:
    """Whether its models are evaluated on a selector's patches: of a file, or of the selector in the loop."""
    in_loop = arm.config.mode == "online" and (arm.config.selector or arm.config.selector_checkpoint)
    return arm.config.val_tickets is not None or bool(in_loop)


def _measure(kinds: set[str]) -> str:
    return "the dense arm" if DENSE in kinds else "the arm of the largest keep"
