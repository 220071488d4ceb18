"""The settings of who may come in: certificates of each port, limits of tenants, and what is left open."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.config_section import Names, Section

PerTenant = dict[str, Annotated[int, Field(ge=1)]]


class HttpTls(Section):
    """The certificate of a port for people and programs, and whose certificates it asks them for."""

    certificate: str | None = Field(
        None, description="A PEM file: the certificate, then its chain. Null serves plain HTTP."
    )
    key: str | None = Field(None, description="The PEM file of its private key.")
    authority: str | None = Field(
        None,
        description="A PEM file of authorities. Only clients that one of them has signed for come in then.",
    )


class ClusterTls(Section):
    """Certificates on both sides of every connection inside the cluster: control, push and transfer."""

    certificate: str | None = Field(
        None, description="A PEM file: the certificate that every process shows. Null encrypts nothing."
    )
    key: str | None = Field(None, description="The PEM file of its private key.")
    authority: str | None = Field(
        None, description="A PEM file of the authority that has signed the certificates of all processes."
    )
    name: str = Field(
        "tandem", min_length=1, description="The DNS name that the certificate of each process has."
    )


class TenantLimits(Section):
    """What one tenant may have of all gateways together. `"*"` stands for each tenant that is not named."""

    requests: PerTenant = Field({}, description="Requests per minute, such as `{acme: 60, '*': 600}`.")
    tokens: PerTenant = Field({}, description="Tokens per minute, of prompts and answers.")
    concurrent: PerTenant = Field({}, description="Requests at the same time.")
    priority: PerTenant = Field(
        {},
        description="The highest `priority` that a tenant may ask for; 0 without an entry. Without API keys "
        "everybody may ask for any.",
    )


class SecurityConfig(Section):
    """Who may come in. A port that others can reach needs a key, a token or client certificates."""

    exposed: Names = Field(
        (),
        description="Host settings, such as `gateway.host`, that may listen beyond this machine although "
        "nothing protects them. Anybody who reaches the port may use it.",
    )
    gateway_tls: HttpTls = HttpTls()
    admin_tls: HttpTls = HttpTls()
    cluster_tls: ClusterTls = ClusterTls()
    tenants: TenantLimits = TenantLimits()
