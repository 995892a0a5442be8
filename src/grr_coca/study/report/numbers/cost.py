"""What each arm costs: parameters, FLOPs, seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from grr_coca.study.ledger import LedgerRow
from grr_coca.study.plan.plan import Plan, stage_names


@dataclass(frozen=True, kw_only=True)
class ArmCost:
    """Costs of one arm; `flops_per_pair` of one forward pass, captions as long as they can be.

    `training_flops`: of all steps of each stage; None where the rows do not have them.
    `seconds`: of training and evaluation of a stage, median over seeds and machines.
    """

    arm: str
    parameters: int
    image_encoder_parameters: int
    flops_per_pair: int
    training_flops: dict[str, int | None]
    seconds: dict[str, float]


def arm_costs(plan: Plan, rows: Sequence[LedgerRow]) -> tuple[ArmCost, ...]:
    """Costs of the arms that have rows, in the plan's order."""
    return tuple(_cost(plan, arm.name, rows) for arm in plan.arms if any(row.arm == arm.name for row in rows))


def _counted(rows: Sequence[LedgerRow]) -> int | None:
    """FLOPs of a stage's training, by the newest row that has them."""
    return next((row.training_flops for row in reversed(rows) if row.training_flops is not None), None)


def _cost(plan: Plan, arm: str, rows: Sequence[LedgerRow]) -> ArmCost:
    own = [row for row in rows if row.arm == arm]
    stages = {stage: [row for row in own if row.stage == stage] for stage in stage_names(plan)}
    return ArmCost(
        arm=arm,
        parameters=own[0].parameters,
        image_encoder_parameters=own[0].image_encoder_parameters,
        flops_per_pair=own[0].flops_per_pair,
        training_flops={stage: _counted(found) for stage, found in stages.items() if found},
        seconds={stage: median(row.seconds for row in found) for stage, found in stages.items() if found},
    )
