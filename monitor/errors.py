"""What can go wrong in the monitor. Every message is one line: what, the value found, the remedy."""


def printable(text: str) -> str:
    """One line that cannot drive a terminal, whoever chose the text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class MonitorError(Exception):
    """Base of every error the monitor raises on purpose."""

    def __str__(self) -> str:
        return printable(super().__str__())  # it may quote a path or a name from outside


class ConfigurationError(MonitorError):
    """A setting is missing, malformed or contradicts another."""


class AttachError(MonitorError):
    """The monitor cannot be attached to this model or this engine configuration."""


class TapError(AttachError):
    """A tap does not deliver the residual stream it promises."""


class CompatibilityError(AttachError):
    """This vLLM lacks something the monitor builds on, or runs in an unsupported mode."""


class CollectError(MonitorError):
    """Activations cannot be collected, or transcripts not be scored, by an engine run for it."""


class EvidenceError(MonitorError):
    """The evidence file cannot be opened, written or read."""


class AuditError(MonitorError):
    """The audit log cannot be opened, written or read."""


class ServerError(MonitorError):
    """A running server cannot be reached, refuses, or answers something else than expected."""


class RequestError(MonitorError, ValueError):
    """A request asks for something that does not exist; the client gets HTTP 400."""
