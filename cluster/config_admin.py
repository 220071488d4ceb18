"""The settings of the admin port: the JSON API for operators, and the console."""

from __future__ import annotations

from pydantic import Field

from cluster.config_section import Count, Port, Section
from cluster.units import Duration


class AdminConfig(Section):
    """The admin port: `/admin/v1` and the console, with a token of their own."""

    host: str = Field("127.0.0.1", description="The address of the admin port.")
    port: Port = Field(0, description="The admin port. 0 takes a free one; `tandem console` tells which.")
    token: str | None = Field(
        None,
        repr=False,
        json_schema_extra={"secret": True},
        description="The secret that operators show. Null draws one at each start.",
    )
    session: Duration = Field(
        12 * 3600.0, gt=0, description="How long a browser stays logged in to the console."
    )
    samples: Count = Field(
        300, description="How many samples of the cluster's load are kept for the console's graphs."
    )
    sample_period: Duration = Field(2.0, gt=0, description="How often such a sample is taken.")
