"""The `preflight:` section of a recipe: when a node is called bad before a job begins."""

from __future__ import annotations

from pydantic import PositiveFloat

from pipeline.settings.section import Fraction, NonNegative, Section, no_effect


class PreflightSettings(Section):
    """Thresholds of `pipeline preflight`. None of them changes what a stage makes."""

    wait_seconds: PositiveFloat = no_effect(60.0)
    """How long ranks wait for each other before those that have not come are named."""
    clock_seconds: NonNegative = no_effect(2.0)
    """Largest difference of a node's clock to rank 0's."""
    min_free_gb: NonNegative = no_effect(1.0)
    """GB (10⁹ bytes) that must be free in the run directory; with less in a node's /tmp a warning is given."""
    min_bandwidth: PositiveFloat | None = no_effect(None)
    """GB/s of bus bandwidth that an all-reduce over several nodes must reach, else pairs of nodes are measured and the
    slow ones named. null: 0.05 on CPUs, 5 on GPUs; links that are all equally slow are then a warning only."""
    min_speed: Fraction = no_effect(0.7)
    """Speed of a GPU's matrix product, as a share of the median of all, under which it is called slow (CPUs, which
    others may be using too: a warning)."""
