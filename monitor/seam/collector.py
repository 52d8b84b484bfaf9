"""``probewatch collect`` inside vLLM's workers: the residual stream kept in the graph, filed, and written in shards.

Nothing of the serving monitor runs in such an engine, and no engine that serves can be started this way.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from monitor.errors import AttachError, CompatibilityError, TapError
from monitor.harvest import KEEP, Harvest
from monitor.refusal import file_reason
from monitor.seam import keep, supported, view_v1, view_v2
from monitor.seam.canary import is_read, require_taps
from monitor.seam.hooks import answering
from monitor.seam.layers import decoder_blocks, tapped_here, upstream
from monitor.seam.patching import add_method, wrap
from monitor.seam.pipeline import Relay, relay_through, stages
from monitor.seam.transfer import Transfer
from monitor.wire import CARRIER
from probes.collection import write_shard

logger = logging.getLogger("probewatch")


class Collector:
    """What one worker process holds."""

    def __init__(self, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)
        self._kept: keep.KeptRows
        self._here: list[int] = []
        self._proven = False
        self._harvest: Harvest | None = None
        """Only in the worker whose output vLLM reads: it holds the rows of all layers."""
        self._capture: Callable[[Any], Any]
        self._fault: Exception | None = None

    def seal(self, vllm_config: Any) -> None:
        """Makes the copies part of vLLM's compile key, before anything is compiled. Raises ``AttachError``."""
        supported.check(vllm_config)
        if vllm_config.speculative_config is not None:
            raise CompatibilityError("speculative decoding is on, and nothing is generated; leave it out")
        dtype = str(vllm_config.model_config.dtype)
        vllm_config.additional_config[CARRIER] = {"keep": [keep.SCHEMA, list(self._layers), dtype]}

    def attach(self, runner: Any, device: torch.device) -> None:
        """Puts a copy after each of the layers that this pipeline stage computes."""
        model_config = runner.vllm_config.model_config
        config = model_config.hf_text_config
        blocks = decoder_blocks(runner.get_model(), int(config.num_hidden_layers))
        keep.define_operation("CPU" if device.type == "cpu" else "CUDA")
        self._kept = keep.KeptRows(
            len(self._layers), int(runner.max_num_tokens), int(config.hidden_size), model_config.dtype, device
        )
        tapped = tapped_here(blocks, self._layers)
        self._here = [index for index, _, _ in tapped]
        for index, block, rule in tapped:
            keep.install(block, rule, self._kept.rows[index])
        if stages() > 1:
            relay = Relay([self._kept.rows], upstream(blocks, self._layers), len(self._here))
            relay_through(runner, relay, lambda: self._proven, lambda _: self._kept.silence(), self._fail)

    def prove(self, worker: Any) -> None:
        """From now on rows are kept. Raises ``TapError`` where the compiled model leaves one out."""
        require_taps(worker, self._kept, {index: self._layers[index] for index in self._here})
        if is_read():
            v2 = supported.runner_name(worker.vllm_config) == "v2"
            self._capture = functools.partial((view_v2 if v2 else view_v1).capture, group=0)
            rows_kept = self._kept.rows
            self._harvest = Harvest(self._layers, rows_kept.shape[2], rows_kept.dtype)
        self._proven = True

    def after_forward(self, runner: Any, scheduler_output: Any) -> None:
        """Files the step's rows. An error is told when the shard is written."""
        if self._harvest is None or not self._proven:
            return
        try:
            self._take(self._harvest, runner, scheduler_output)
        except Exception as error:
            self._fail(error)

    def _take(self, harvest: Harvest, runner: Any, scheduler_output: Any) -> None:
        harvest.forget(scheduler_output.finished_req_ids)
        for request in scheduler_output.scheduled_new_reqs:
            place = (getattr(request.sampling_params, "extra_args", None) or {}).get(KEEP)
            if place is not None:
                harvest.expect(request.req_id, *place)
        if not scheduler_output.total_num_scheduled_tokens:
            return
        capture = self._capture(runner)
        view = capture.settle(Transfer(capture.device).arrived())
        rows, places = harvest.locate(view)
        if len(rows):
            # Waits for the device: a copy beside the stream would need the memory a second time.
            found = self._kept.rows[:, torch.from_numpy(rows).to(self._kept.rows.device)].cpu()
            silent = [self._layers[i] for i in keep.silent(found)]
            if silent:
                raise TapError(
                    f"nothing was kept after layers {silent} in a step; this vLLM is not understood"
                )
            harvest.put(places, found)
        self._kept.silence()

    def _fail(self, error: Exception) -> None:
        if self._fault is None:
            logger.error("probewatch: a step could not be kept", exc_info=error)
            self._fault = error

    def begin(self, names: list[str], rows: list[int]) -> bool:
        """The requests that follow are those of one shard. False in a worker that files nothing."""
        self._fault = None
        if self._harvest is not None:
            self._harvest.begin(names, rows)
        return self._harvest is not None

    def write(self, path: str) -> str | None:
        """Writes the shard; its digest, None in a worker that files nothing. Raises what went wrong meanwhile."""
        if self._fault is not None:
            raise self._fault
        if self._harvest is None:
            return None
        return write_shard(Path(path), self._layers, self._harvest.finish())


def install(layers: Sequence[int]) -> None:
    """Wraps what collecting needs of vLLM in this process; harmless when called again."""
    supported.check_version()
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.worker.gpu_worker import Worker

    def load_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        self.probewatch = Collector(layers)
        _refusing(lambda: self.probewatch.seal(self.vllm_config))
        result = original(self, *args, **kwargs)
        _refusing(lambda: self.probewatch.attach(self.model_runner, self.device))
        return result

    def execute_model(original: Any, self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, scheduler_output, *args, **kwargs)
        self.probewatch.after_forward(self.model_runner, scheduler_output)
        return result

    def compile_or_warm_up_model(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        _refusing(lambda: self.probewatch.prove(self))
        return result

    wrap(Worker, "load_model", load_model)
    wrap(Worker, "execute_model", execute_model)
    for worker_class in supported.worker_classes():
        wrap(worker_class, "compile_or_warm_up_model", compile_or_warm_up_model)
    for name in ("begin", "write"):
        add_method(Worker, f"probewatch_{name}", answering(getattr(Collector, name)))
    wrap(AsyncLLM, "__init__", _never_serve)


def _refusing(step: Callable[[], None]) -> None:
    try:
        step()
    except AttachError as error:
        file_reason(str(error))
        raise


def _never_serve(original: Any, self: Any, *args: Any, **kwargs: Any) -> None:
    raise AttachError(
        f"PROBEWATCH_COLLECT={os.environ.get('PROBEWATCH_COLLECT')} belongs to `probewatch collect`, which serves "
        "nobody; unset it"
    )
