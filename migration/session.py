"""One movement of a request between two instances: what each half does next, decided without doing it.

           source                                        destination
    WAITING    a place among the sessions
    RESERVING ─────────── RESERVE ──────────────▶ ASKING      its engine for blocks
    COPYING   ◀────────── RESERVED ────────────── RESERVED    under a lease
    COPYING   ─────────── COPY, COPY … ─────────▶ RESERVED    a stage, or a finished chunk, each
    FREEZING   the engine pauses the sequences
    FROZEN    ─────────── COPY (the rest) ──────▶ RESERVED
    COMMITTING ────────── COMMIT ───────────────▶ CLAIMING    move + 1 at the home gateway
                                                  ADOPTING
    GIVEN     ◀────────── COMMITTED ───────────── ADOPTED
    outgrown: RESERVE again, more blocks in all, answered as the first; damaged: RESEND, bounded
    either side, before COMMIT is sent: ABORT ──▶ source KEPT, destination CLOSED
    COMMITTING ─ no answer ─▶ DOUBT ─ claims move + 2 ─▶ granted: KEPT │ refused: GIVEN

Who owns the request, and who frees which blocks:

    source                 owner                 blocks at the source
    WAITING … FREEZING     source, running       its engine's, as of any request
    FROZEN                 source, paused        held; `Resume` gives them back to the engine
    COMMITTING, DOUBT      whom the home says    held, until `Resume` or `Release`
      and of a choice that ends meanwhile        freed by the engine: no COMMIT is sent after that
    KEPT                   source, running       its engine's
    GIVEN                  destination           freed by `Release`
    CANCELLED              nobody                freed by the engine that cancelled
    UNHEARD                nobody listens        freed by `Release`: the home was away for a whole lease

    destination            owner                 blocks at the destination
    ASKING                 source                none yet, or those reserved before the request grew
    ABANDONED              source                what the engine still brings is freed by `Free`
    RESERVED               source                the reservation's; lease, ABORT and loss free them
    CLAIMING               whom the home says    the reservation's
    ADOPTING, ADOPTED      destination           its engine's, as of any request
    CLOSED                 not the destination   freed by `Free`

A live migration copies what is full while the source decodes on, then what has filled meanwhile, and
so on; it freezes the request for the last copy when little is left, and gives up after so many stages.
A handoff is a movement whose live stages are the prompt's chunks: the engine pauses the sequences
itself when the prompt is done. A request that waits has nothing to copy. The home gateway settles a
COMMIT in doubt by compare-and-set on the epoch: a claim is granted if it is newer than the present
owner's, so the last claim wins and the other end's tokens are fenced. After Llumnix (OSDI'24), section 4.2.
"""

from __future__ import annotations

from migration.destination import Destination, DestinationState
from migration.events import Bounds, Timeouts
from migration.source import Source, SourceState

__all__ = ["Bounds", "Destination", "DestinationState", "Source", "SourceState", "Timeouts"]
