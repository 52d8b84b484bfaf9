"""Where the monitor enters vLLM's ``OutputProcessor``: its methods wrapped around an ``OutputTap``; and what outputs
carry where there is no server."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

from monitor.engines import Engines
from monitor.records import Brief, reply
from monitor.response_ids import locate
from monitor.seam.outputs import OutputTap
from monitor.seam.patching import add_method, wrap
from monitor.wire import CARRIER

_BRIEFS = "_probewatch_briefs"


def patch_output_processor(processor_class: type) -> None:
    """Wraps ``OutputProcessor.process_outputs``, ``_finish_request`` and ``abort_requests``."""

    def process_outputs(original: Any, self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        tap: OutputTap | None = getattr(self, CARRIER, None)
        if tap is not None:
            tap.take(engine_core_outputs, self.request_states)
        result = original(self, engine_core_outputs, *args, **kwargs)
        if tap is not None:
            for request_output in result.request_outputs:
                try:
                    _attach_offline(request_output, tap.engines)
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


def _attach_offline(request_output: Any, engines: Engines) -> None:
    """``LLM.generate`` and ``LLM.chat``: the verdict rides on the ``RequestOutput``."""
    if request_output.finished:
        records = engines.recent.of(locate(str(request_output.request_id), "").response_id)
        if records:
            setattr(request_output, _BRIEFS, [Brief.of(record) for record in records])


def patch_request_output(output_class: type) -> None:
    """Gives ``RequestOutput`` the property ``probewatch``: of many probes it is a large dict, made when somebody reads
    it, or takes the output to another process."""

    def probewatch(self: Any) -> dict[str, Any]:
        briefs = vars(self).get(_BRIEFS)
        if briefs is None:
            raise AttributeError("probewatch: this output has not ended, or nothing of it was scored")
        return reply(briefs)

    def state(self: Any) -> dict[str, Any]:
        if _BRIEFS in vars(self):
            _ = self.probewatch
        return {name: one for name, one in vars(self).items() if name != _BRIEFS}

    told = cached_property(probewatch)
    told.__set_name__(output_class, CARRIER)
    setattr(output_class, CARRIER, told)
    add_method(output_class, "__getstate__", state)
