"""What the sections of the config share: their base class and the types of their values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

Count = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Names = Annotated[tuple[str, ...], Field(strict=False)]
Resources = dict[str, Annotated[float, Field(ge=0)]]


class Section(BaseModel):
    """Values that never change; YAML types are taken literally ("2" is no integer)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


CONTRADICTION = "contradiction"


def contradiction(message: str) -> PydanticCustomError:
    """For a section's own validator to raise: its values are fine one by one, but not together."""
    return PydanticCustomError(CONTRADICTION, "{message}", {"message": message})
