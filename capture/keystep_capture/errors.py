"""Every error Keystep raises on purpose.

KeystepError
├── ConfigError        a setting is unknown, missing or out of range
├── WireError          bytes or messages that break docs/wire.md
│   ├── ProtocolError      another major version of the protocol
│   └── RefusedError       the server refused a hello; says why
├── DeviceError        a headset (or its simulator) broke its protocol or went silent
├── VideoError         encoded video that cannot be decoded
├── ModelError         a model file is missing, corrupt or not what its manifest says
├── ShapeError         an array does not have the documented shape or type
├── DataError          a file of a data set, procedure or recording is not as documented
├── NotFoundError      a session, device or key step that does not exist
└── StateError         what was asked cannot be done in this state (a closed session, say)
    ├── NoAnswerError      a server that should be there does not answer, or not now
    └── ChangedError       what was to be changed is no longer what the caller has seen

Messages say what was expected, what came and, where something can be done, what to do.
"""


class KeystepError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(KeystepError, ValueError):
    """A setting is unknown, missing or out of range."""


class WireError(KeystepError, ValueError):
    """A message breaks the wire protocol; `reason` is a short machine-readable word."""

    def __init__(self, message: str, reason: str = "malformed") -> None:
        super().__init__(message)
        self.reason = reason


class ProtocolError(WireError):
    """The other side speaks another major version of the protocol."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="protocol_version")


class RefusedError(WireError):
    """The server refused this client for good; reconnecting will not help."""


class DeviceError(KeystepError, RuntimeError):
    """A headset broke its protocol, closed a stream or went silent."""


class VideoError(KeystepError, ValueError):
    """Encoded video that cannot be decoded."""


class ModelError(KeystepError, RuntimeError):
    """A model file is missing, corrupt or differs from its manifest."""


class ShapeError(KeystepError, ValueError):
    """An array does not have the documented shape or type."""


class DataError(KeystepError, ValueError):
    """A file of a data set, procedure or recording is not as documented."""


class NotFoundError(KeystepError, LookupError):
    """A session, device, procedure or key step that does not exist."""


class StateError(KeystepError, RuntimeError):
    """What was asked cannot be done in the present state."""


class NoAnswerError(StateError):
    """A server does not answer, or cannot at this moment; asking again may help."""


class ChangedError(StateError):
    """What was to be changed is no longer what the caller has seen."""
