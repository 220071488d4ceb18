"""What an instance tells of itself and its requests, as messages and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

from cluster import control_pb2 as pb
from engine.request import SLO
from engine.sequence import SequenceKey
from engine.shared_service import News, Served
from engine.status import InstanceStatus, RequestStatus
from global_scheduler.view import Summary
from migration.moved import COMMITTED, Moved
from migration.transfers import TransferLog

_NAMES = tuple(field.name for field in fields(InstanceStatus))


def status_message(status: InstanceStatus) -> pb.InstanceStatus:
    """Every field, under its own name."""
    return pb.InstanceStatus(**{name: getattr(status, name) for name in _NAMES})


def status_from(message: pb.InstanceStatus) -> InstanceStatus:
    return InstanceStatus(**{name: getattr(message, name) for name in _NAMES})


def summary_of(request: pb.PlaceRequest) -> Summary:
    """What a gateway asks a place for."""
    return Summary(
        id=request.request_id,
        prompt_tokens=request.prompt_tokens,
        max_tokens=request.max_tokens,
        choices=max(1, request.n),
        tenant=request.tenant,
        priority=request.priority,
        attempt=request.attempt,
        exclude=frozenset(request.exclude),
        adapter=request.adapter,
        prefix=tuple(request.prefix),
        slo=SLO(request.slo_ttft or None, request.slo_tpot or None),
    )


def charges_message(news: News) -> pb.Charges:
    """What an instance has counted of tenants."""
    return pb.Charges(
        charges=[
            pb.Charge(
                request_id=one.key.request_id,
                choice=one.key.choice,
                tenant=one.tenant,
                prompt=one.prompt,
                output=one.output,
                ended=one.ended,
                left=one.left,
            )
            for one in news.served
        ],
        lifts=news.lifts,
    )


def news_from(message: pb.Charges) -> News:
    return News(
        tuple(
            Served(
                SequenceKey(one.request_id, one.choice),
                one.tenant,
                one.prompt,
                one.output,
                one.ended,
                one.left,
            )
            for one in message.charges
        ),
        dict(message.lifts),
    )


def request_list(requests: Iterable[RequestStatus], instance: str, role: str) -> pb.RequestList:
    """The requests that live at an instance."""
    return pb.RequestList(
        requests=[
            pb.RunningRequest(
                id=one.request_id,
                instance=instance,
                role=role,
                phase=one.phase,
                prompt_tokens=one.prompt_tokens,
                output_tokens=one.output_tokens,
                blocks=one.blocks,
                priority=one.priority,
                age=one.age,
                moving=one.moving,
                tenant=one.tenant,
            )
            for one in requests
        ]
    )


def migration_message(moved: Moved) -> pb.Migration:
    """What came of a move; its cause, id and time are the controller's to add."""
    outcome, _, detail = moved.outcome.partition(": ")
    return pb.Migration(
        request_id=moved.request_id,
        source=moved.source,
        destination=moved.destination,
        reason=moved.reason,
        outcome=COMMITTED if moved.committed else outcome,
        detail=detail,
        stages=moved.stages,
        blocks=moved.blocks,
        bytes=moved.bytes,
        tokens=moved.tokens,
        downtime=moved.downtime_seconds,
        seconds=moved.seconds,
    )


def transfer_messages(log: TransferLog) -> list[pb.Transfers]:
    """What an instance has sent, by transport and destination."""
    return [
        pb.Transfers(
            transport=transport,
            destination=destination,
            bytes=one.bytes,
            seconds=one.seconds,
            buckets=one.buckets,
            failures=[
                pb.TransferFailures(reason=reason, count=count) for reason, count in one.failures.items()
            ],
        )
        for transport, destination, one in log.listed()
    ]
