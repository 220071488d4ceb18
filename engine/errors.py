"""The one tree of exceptions. Each leaf maps to one HTTP status and names what to change.

TandemError
├── RequestError            the caller can mend it             4xx
│   ├── InvalidParameter        400  invalid_value
│   ├── UnsupportedParameter    400  unsupported_parameter
│   ├── ContextLengthExceeded   400  context_length_exceeded
│   ├── RequestTooLarge         413  request_too_large
│   ├── UnsupportedMediaType    415  unsupported_media_type
│   ├── InvalidKey              401  invalid_api_key
│   ├── NotFound                404  not_found
│   │   └── ModelNotFound       404  model_not_found
│   ├── Conflict                409  conflict
│   ├── DeadlineExceeded        408  timeout
│   └── RateLimited             429  tenant_quota, Retry-After
├── CapacityError           trying later helps                 503, Retry-After
│   ├── Overloaded              503  overloaded
│   ├── NoPrefillInstance       503  no_prefill_instance
│   ├── NoDecodeInstance        503  no_decode_instance
│   └── Draining                503  draining
├── TooLate                 it would miss its objective: no retry here   503, Retry-After
├── RefusedError            the operator asked for what is not allowed   409
├── Unreachable             nothing answers at the control address       503
├── MovementError           a movement between instances failed          500
│   ├── TransferFailed
│   ├── HandshakeRefused
│   └── Fenced                  a newer epoch owns the request
├── InstanceDied            an instance ended while it was needed        500
└── SetupError              a start that cannot work           500, CLI exit 2
    ├── ConfigError             the YAML says something wrong
    └── ModelFileError          a model file is missing or broken
"""

from __future__ import annotations

import math


class TandemError(Exception):
    """Base of all. `status` and `code` are what the gateway answers; `param` is a dotted path."""

    status = 500
    kind = "server_error"
    code = "server_error"
    retry_after: int | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class RequestError(TandemError):
    status = 400
    kind = "invalid_request_error"
    code = "invalid_request"


class InvalidParameter(RequestError):
    code = "invalid_value"


class UnsupportedParameter(RequestError):
    code = "unsupported_parameter"


class ContextLengthExceeded(RequestError):
    code = "context_length_exceeded"


class RequestTooLarge(RequestError):
    status = 413
    code = "request_too_large"


class UnsupportedMediaType(RequestError):
    status = 415
    code = "unsupported_media_type"


class InvalidKey(RequestError):
    status = 401
    kind = "authentication_error"
    code = "invalid_api_key"


class NotFound(RequestError):
    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class Conflict(RequestError):
    status = 409
    code = "conflict"


class DeadlineExceeded(RequestError):
    status = 408
    kind = "timeout"
    code = "timeout"


class RateLimited(RequestError):
    """`wait` is in seconds."""

    status = 429
    kind = "rate_limit_exceeded"
    code = "tenant_quota"
    retry_after = 1

    def __init__(self, message: str, *, param: str | None = None, wait: float = 1.0) -> None:
        super().__init__(message, param=param)
        self.retry_after = max(1, math.ceil(wait))


class CapacityError(TandemError):
    status = 503
    kind = "overloaded"
    code = "overloaded"
    retry_after = 1


class Overloaded(CapacityError):
    pass


class NoPrefillInstance(CapacityError):
    code = "no_prefill_instance"
    retry_after = 5


class NoDecodeInstance(CapacityError):
    code = "no_decode_instance"
    retry_after = 5


class Draining(CapacityError):
    code = "draining"
    retry_after = 5


class TooLate(TandemError):
    status = 503
    kind = "overloaded"
    code = "too_late"
    retry_after = 1


class RefusedError(TandemError):
    status = 409
    kind = "invalid_request_error"
    code = "refused"


class Unreachable(TandemError):
    status = 503
    code = "unreachable"


class MovementError(TandemError):
    code = "movement_failed"


class TransferFailed(MovementError):
    code = "transfer_failed"


class HandshakeRefused(MovementError):
    code = "handshake_refused"


class Fenced(MovementError):
    code = "fenced"


class InstanceDied(TandemError):
    code = "instance_died"


class SetupError(TandemError):
    code = "setup_error"


class ConfigError(SetupError):
    code = "config_error"


class ModelFileError(SetupError):
    code = "model_file_error"
