"""Admission: what a request asks of the monitor is checked, and steering becomes part of its prefix-cache key.

Every way into the engine leads through vLLM's ``InputProcessor``: HTTP, ``LLM.generate`` and ``LLM.chat``.
"""

from __future__ import annotations

from typing import Any

from monitor.arguments import STEER, cache_salt
from monitor.errors import RequestError
from monitor.seam.patching import wrap
from monitor.wire import CARRIER


def patch_input_processor(processor_class: type) -> None:
    """Wraps ``InputProcessor.process_inputs``; an error of the request's becomes HTTP 400."""
    from vllm.exceptions import VLLMValidationError

    def process_inputs(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        request = original(self, *args, **kwargs)
        arguments = getattr(request.sampling_params, "extra_args", None)
        if hasattr(self, CARRIER):
            try:
                salt = cache_salt(arguments or {}, getattr(self, CARRIER), request.cache_salt)
                if request.resumable and salt != request.cache_salt:
                    raise RequestError(
                        f"{STEER}: a session whose prompt grows cannot be steered; send it whole"
                    )
                request.cache_salt = salt
            except RequestError as error:
                # The only kind of error that vLLM's engine lets through as the client's own fault.
                raise VLLMValidationError(str(error), parameter="vllm_xargs") from error
        return request

    wrap(processor_class, "process_inputs", process_inputs)
