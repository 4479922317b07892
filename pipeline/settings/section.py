"""What every section of a recipe is: a frozen, typed model, closed to unknown keys.

A field marked `no_effect()` changes how fast or where the work is done, never what comes out of it: it is left out
of a stage's key, so that changing it makes nothing run again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]
NonNegative = Annotated[float, Field(ge=0.0)]


def no_effect(default: Any, **constraints: Any) -> Any:
    """A field that does not change what a stage makes."""
    return Field(default, json_schema_extra={"affects": False}, **constraints)


class Section(BaseModel):
    """Base of every part of a recipe: frozen, and closed to unknown keys."""

    # No setting has a use for infinity or NaN: they would end in a traceback where they are first counted with.
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    def settings(self) -> dict[str, Any]:
        """The values that decide what a stage makes, as plain JSON types."""
        chosen: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("affects") is False:
                continue
            chosen[name] = _plain(getattr(self, name))
        return chosen


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.settings()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
