"""The mix: how often each source is passed over in pretraining, and the plan that follows from it, as a table.

Shares are of what is seen in training. A source of weight w is passed over w times while one of weight 1 is passed
over once; temperature and caps (`max_share`) change the weights by the sources' sizes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.errors import RecipeError
from pipeline.progress import log
from pipeline.recipe import Recipe

Plan = dict[str, dict[str, Any]]  # source → documents, bytes, (tokens,) weight, share, (epochs)


def mix_weights(recipe: Recipe, sizes: Mapping[str, int]) -> dict[str, float]:
    """The weight of each source, given their sizes in tokens (or, before they are known, bytes); names without a size
    are left out. Raises: RecipeError when the caps leave no mix."""
    stated = {one.name: one.weight for one in (*recipe.corpus.sources, *recipe.tokenize.imports)}
    weights = {name: stated.get(name, 1.0) for name, size in sizes.items() if size}
    if not weights:
        return {}
    temperature = recipe.corpus.mix.temperature
    if temperature != 1.0:
        largest = max(sizes[name] for name in weights)
        weights = {name: w * (sizes[name] / largest) ** (1 / temperature - 1) for name, w in weights.items()}
    caps = {one.name: one.max_share for one in recipe.corpus.sources if one.max_share is not None}
    return _capped(weights, sizes, caps)


def _capped(weights: dict[str, float], sizes: Mapping[str, int], caps: Mapping[str, float]) -> dict[str, float]:
    """The weights, lowered where a source's share is above its cap; the others keep theirs among each other."""
    amounts = {name: weight * sizes[name] for name, weight in weights.items()}
    held: dict[str, float] = {}
    while True:
        free = {name: amount for name, amount in amounts.items() if name not in held}
        room = 1 - sum(held.values())
        total = sum(free.values())
        above = {
            name: caps[name] for name, amount in free.items() if name in caps and amount * room > caps[name] * total
        }
        if not above:
            break
        held |= above
        if len(held) == len(amounts) or sum(held.values()) >= 1:
            told = ", ".join(f"{name} {cap:g}" for name, cap in sorted(held.items()))
            raise RecipeError(f"corpus.sources: max_share of {told} leave nothing to fill the mix with; raise one")
    # Amounts of the capped in the measure of the others, who have `room` of the mix.
    return weights | {name: cap / room * total / sizes[name] for name, cap in held.items()}


def mix_plan(
    sizes: Mapping[str, Mapping[str, int]], weights: Mapping[str, float], measure: str, budget: int | None = None
) -> Plan:
    """The plan by source. sizes: documents, bytes, tokens where known; measure: which of them weights multiply.
    budget: tokens of the whole training; None: epochs are not known yet."""
    total = sum(weights.get(name, 0.0) * size[measure] for name, size in sizes.items())
    plan: Plan = {}
    for name, size in sizes.items():
        share = weights.get(name, 0.0) * size[measure] / total if total else 0.0
        plan[name] = dict(size) | {"weight": weights.get(name, 0.0), "share": share}
        if budget is not None:
            plan[name]["epochs"] = budget * share / size["tokens"] if size["tokens"] else 0.0
    return plan


def tell_plan(stage: str, plan: Plan) -> None:
    """Print the plan, a line a source; nothing where there is one source alone and no epochs are known."""
    if len(plan) < 2 and not any("epochs" in row for row in plan.values()):
        return
    width = max(len(name) for name in plan)
    log.info(f"{stage}: the mix, by source")
    for name, row in plan.items():
        words = [f"{row[key]:>15,} {key}" for key in ("documents", "bytes", "tokens") if key in row]
        words += [f"weight {row['weight']:.3g}", f"{row['share']:6.1%} of what is seen"]
        words += [f"{row['epochs']:.3g} epochs"] if "epochs" in row else []
        log.info(f"  {name:<{width}} {', '.join(words)}")


def plan_by_bytes(recipe: Recipe, sources: Mapping[str, Mapping[str, Any]]) -> Plan:
    """The plan as far as text tells. sources: counts of the shard stage, by source."""
    sizes = {name: {key: part["train"][key] for key in ("documents", "bytes")} for name, part in sources.items()}
    return mix_plan(sizes, mix_weights(recipe, {name: size["bytes"] for name, size in sizes.items()}), "bytes")


def plan_by_tokens(recipe: Recipe, sources: Mapping[str, Mapping[str, int]]) -> Plan:
    """The plan of the recipe's token budget, without later phases. sources: counts of the tokenize stage (`train`)."""
    weights = mix_weights(recipe, {name: size["tokens"] for name, size in sources.items()})
    return mix_plan(sources, weights, "tokens", recipe.pretrain.tokens)
