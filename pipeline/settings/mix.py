"""The `corpus.mix:` section of a recipe: how often sources are seen in pretraining, beside their own weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.settings.section import Section


class Mix(Section):
    """It changes the training stream alone; no text is prepared again for it."""

    temperature: Annotated[float, Field(ge=1.0, le=100.0)] = 1.0
    """Sources are seen in proportion to weight · tokens^(1/temperature): above 1 small ones are seen more often, as is
    usual between languages (mBERT 1.43, XLM-R 3.3, mT5 3.3); the largest keeps its weight."""
