"""The plan of the mix, from the furthest stage that has run: as trained, by tokens, or by bytes of text."""

from __future__ import annotations

from pipeline.corpus.mix import Plan, plan_by_bytes, plan_by_tokens
from pipeline.report.read import Run


def planned_mix(run: Run) -> Plan:
    """The plan by source; empty where no stage has run that tells it."""
    trained, tokens, text = (run.manifests.get(name) for name in ("pretrain", "tokenize", "shard"))
    if trained and trained.counts.get("mix"):
        found: Plan = trained.counts["mix"]
        return found
    if tokens and tokens.counts.get("train", {}).get("sources"):
        return plan_by_tokens(run.recipe, tokens.counts["train"]["sources"])
    return plan_by_bytes(run.recipe, text.counts["sources"]) if text else {}
