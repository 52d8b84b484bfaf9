"""Where the monitor enters vLLM's ``OutputProcessor``: its methods wrapped around an ``OutputTap``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from monitor.seam.outputs import OutputTap
from monitor.seam.patching import wrap
from monitor.seam.request_output import tell
from monitor.wire import CARRIER


def patch_output_processor(processor_class: type) -> None:
    """Wraps ``OutputProcessor.process_outputs``, ``_finish_request`` and ``abort_requests``."""

    def process_outputs(original: Any, self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        tap: OutputTap | None = getattr(self, CARRIER, None)
        if tap is not None:
            tap.take(engine_core_outputs, self.request_states)
        result = original(self, engine_core_outputs, *args, **kwargs)
        if tap is not None:
            for output in result.request_outputs:
                try:
                    tell(output, tap.engines)
                except Exception as error:
                    tap.failed(error)
        return result

    def finish_request(original: Any, self: Any, req_state: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, req_state, *args, **kwargs)
        _settle(self, [req_state.request_id])
        return result

    def abort_requests(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        aborted = original(self, *args, **kwargs)
        _settle(self, aborted, "abort")
        return aborted

    wrap(processor_class, "process_outputs", process_outputs)
    wrap(processor_class, "_finish_request", finish_request)
    wrap(processor_class, "abort_requests", abort_requests)


def _settle(processor: Any, request_ids: Iterable[str], reason: str | None = None) -> None:
    tap: OutputTap | None = getattr(processor, CARRIER, None)
    if tap is not None:
        for request_id in request_ids:
            tap.finished(request_id, reason)
