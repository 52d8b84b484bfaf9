"""What an output of ``LLM.generate`` and ``LLM.chat`` says of itself."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from monitor.engines import Engines
from monitor.records import Brief, reply
from monitor.response_ids import locate
from monitor.seam.patching import add_method
from monitor.wire import CARRIER

_BRIEFS = "_probewatch_briefs"


def tell(request_output: Any, engines: Engines) -> None:
    """``LLM.generate`` and ``LLM.chat``: the verdict rides on the ``RequestOutput``."""
    if request_output.finished:
        records = engines.recent.of(locate(str(request_output.request_id), "").response_id)
        if records:
            setattr(request_output, _BRIEFS, [Brief.of(record) for record in records])


def patch_request_output(output_class: type) -> None:
    """Gives ``RequestOutput`` the property ``probewatch``: of many probes it is a large dict, made when somebody reads
    it, or takes the output to another process."""

    def probewatch(self: Any) -> dict[str, Any]:
        briefs = vars(self).pop(_BRIEFS, None)
        if briefs is None:
            raise AttributeError("probewatch: this output has not ended, or nothing of it was scored")
        return reply(briefs)

    def state(self: Any) -> dict[str, Any]:
        if _BRIEFS in vars(self):
            _ = self.probewatch
        return dict(vars(self))

    told = cached_property(probewatch)
    told.__set_name__(output_class, CARRIER)
    setattr(output_class, CARRIER, told)
    if "__getstate__" not in vars(output_class):  # a later vLLM may have its own
        add_method(output_class, "__getstate__", state)
