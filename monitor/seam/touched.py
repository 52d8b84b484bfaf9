"""Everything inside vLLM that the monitor touches, in one table. To support a version is to make its rows true.

``monitor.seam.symbols`` holds the table against source text: of the installed vLLM when an engine starts
(``supported.check_version`` and ``check``), and of the released ones with ``make compat``, which writes
docs/compatibility.md. Not in the table: the blocks of each model family, which ``monitor/residual.py`` declares and
which are verified on the loaded model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

How = Literal["wraps", "shadows", "calls", "answers", "reads"]
"""What the monitor does with it:

wraps    replaces it in its class or module, so it must be defined right there
shadows  replaces it on one object
calls    calls it: whatever else it takes must have a default
answers  implements it for vLLM to call
reads    reads these attributes, or the name itself
"""

Runner = Literal["both", "v1", "v2"]


@dataclass(frozen=True)
class Touched:
    """One row: ``place`` is ``module:name`` or ``module:Class.name``."""

    how: How
    place: str
    names: str
    """Attributes that are read; of a function, the parameters it must begin with, ``self`` aside."""
    why: str
    keywords: str = ""
    """Parameters that are passed or looked for by name."""
    exact: bool = False
    """Ours takes the named parameters and no others."""
    optional: bool = False
    """The monitor works without it: reported, and never a reason to refuse."""
    elsewhere: tuple[str, ...] = ()
    """Where other versions have it. The seam must know each of these places, too."""


_ENGINE = "vllm.v1.engine"
_WORKER = "vllm.v1.worker"

_PROCESSES = (
    Touched("reads", "vllm:__version__", "", "which vLLM this is"),
    Touched("calls", "vllm.entrypoints.cli.main:main", "", "`probewatch serve` becomes `vllm serve`"),
    Touched("reads", "vllm.plugins:DEFAULT_PLUGINS_GROUP", "", "how vLLM finds the monitor in every process"),
    Touched("reads", "vllm.plugins:ENDPOINT_PLUGINS_GROUP", "", "how the API server finds the routes"),
    Touched(
        "answers",
        "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.attach_router",
        "app",
        "adds the routes",
        exact=True,
    ),
    Touched(
        "answers",
        "vllm.plugins.endpoint_plugins.interface:EndpointPlugin.init_state",
        "engine_client, state, args",
        "the proof before readiness",
        exact=True,
    ),
    Touched(
        "reads",
        "vllm.plugins.endpoint_plugins.interface:EndpointPlugin",
        "name, required_tasks",
        "what an endpoint plugin declares",
    ),
    Touched(
        "wraps",
        "vllm.entrypoints.launchers.app:attach_endpoint_plugins",
        "app",
        "a server without the routes must not come up",
        elsewhere=("vllm.entrypoints.openai.api_server:_attach_endpoint_plugins",),
    ),
    Touched("reads", "vllm.platforms:current_platform", "", "the worker class of this platform"),
    Touched("calls", "vllm.platforms.interface:Platform.is_cpu", "", "the worker class of this platform"),
    Touched(
        "reads",
        "vllm.v1.metrics.prometheus:setup_multiprocess_prometheus",
        "",
        "sets the folder in which several API servers meet",
        optional=True,
    ),
    Touched(
        "reads",
        "vllm.entrypoints.launchers.launcher:serve_http",
        "",
        "puts uvicorn's server on the application's state: event streams end when it stops",
        optional=True,
        elsewhere=("vllm.entrypoints.launcher:serve_http",),
    ),
    Touched("reads", "vllm.envs:VLLM_USE_RUST_FRONTEND", "", "refused: no plugins there", optional=True),
    Touched(
        "reads",
        "vllm.entrypoints.common.cli_args:FrontendArgs",
        "host, port, chat_template",
        "refuses open evidence on a public host, and a foreign template; names the evidence file",
        optional=True,
        elsewhere=(
            "vllm.entrypoints.launchers.cli_args:FrontendArgs",
            "vllm.entrypoints.openai.cli_args:FrontendArgs",
        ),
    ),
)

_CONFIGURATION = (
    Touched(
        "reads",
        "vllm.config.vllm:VllmConfig",
        "additional_config, model_config, scheduler_config, parallel_config, compilation_config, load_config, "
        "speculative_config, kv_transfer_config",
        "the compile key, and what is refused",
    ),
    # Read with a default, yet required: taken for V1, a V2 runner would be read wrongly.
    Touched("reads", "vllm.config.vllm:VllmConfig", "use_v2_model_runner", "which runner vLLM chose"),
    Touched(
        "reads",
        "vllm.config.model:ModelConfig",
        "hf_text_config, hf_overrides, model, revision, runner_type, served_model_name",
        "the model the probes must fit, and its name in metrics",
    ),
    Touched(
        "reads", "vllm.config.scheduler:SchedulerConfig", "async_scheduling", "refused with drafts on V1"
    ),
    Touched(
        "reads",
        "vllm.config.parallel:ParallelConfig",
        "_api_process_count",
        "a change of probes waits until all API servers have started",
        optional=True,
    ),
    Touched("reads", "vllm.config.load:LoadConfig", "load_format", "dummy weights are refused"),
    Touched("reads", "vllm.config.compilation:CompilationConfig", "pass_config", "holds enable_sp"),
    Touched(
        "reads",
        "vllm.config.compilation:PassConfig",
        "enable_sp",
        "sequence parallelism is refused",
        optional=True,
    ),
    Touched(
        "reads",
        "vllm.config.parallel:ParallelConfig",
        "prefill_context_parallel_size, decode_context_parallel_size, enable_dbo, ubatch_size, "
        "use_sequence_parallel_moe",
        "these modes are refused",
        optional=True,
    ),
    Touched("reads", "vllm.config.model:ModelConfig", "is_moe", "part of that refusal", optional=True),
)

_IN_THE_WORKER = (
    Touched("wraps", f"{_WORKER}.gpu_worker:Worker.load_model", "", "installs the taps"),
    Touched(
        "wraps", f"{_WORKER}.gpu_worker:Worker.execute_model", "scheduler_output", "takes a step's scores"
    ),
    Touched("wraps", f"{_WORKER}.gpu_worker:Worker.sample_tokens", "", "attaches what became due"),
    Touched("wraps", f"{_WORKER}.gpu_worker:Worker.execute_dummy_batch", "", "forgets an idle rank's rows"),
    Touched("wraps", f"{_WORKER}.gpu_worker:Worker.compile_or_warm_up_model", "", "the canary"),
    Touched("wraps", f"{_WORKER}.cpu_worker:CPUWorker.compile_or_warm_up_model", "", "the canary, on CPU"),
    Touched("reads", f"{_WORKER}.gpu_worker:Worker", "model_runner, device, vllm_config", "what is tapped"),
    Touched(
        "reads", "vllm.model_executor.models.utils:PPMissingLayer", "", "a block of another pipeline stage"
    ),
    Touched("calls", "vllm.distributed.parallel_state:get_pp_group", "", "this worker's pipeline stage"),
    Touched("calls", "vllm.distributed.parallel_state:get_tp_group", "", "only rank 0 is read"),
    Touched(
        "reads",
        "vllm.distributed.parallel_state:GroupCoordinator",
        "world_size, is_last_rank, rank_in_group",
        "whose output vLLM reads",
    ),
    Touched("reads", "vllm.sequence:IntermediateTensors", "tensors", "scores travel between stages"),
    Touched("reads", "vllm.v1.kv_cache_interface:KVCacheConfig", "num_blocks, kv_cache_groups", "KV slots"),
    Touched("reads", "vllm.v1.kv_cache_interface:KVCacheGroupSpec", "kv_cache_spec", "KV slots"),
    Touched("reads", "vllm.v1.kv_cache_interface:FullAttentionSpec", "block_size", "every token has a slot"),
    Touched(
        "reads",
        "vllm.v1.kv_cache_interface:FullAttentionSpec",
        "sliding_window",
        "a window frees slots of living requests",
        optional=True,
    ),
    Touched(
        "reads",
        "vllm.v1.core.sched.output:SchedulerOutput",
        "total_num_scheduled_tokens, kv_cache_block_copies",
        "rows of a step, and scores that move",
    ),
    Touched(
        "reads",
        "vllm.v1.core.kv_cache_utils:KVCacheBlockCopy",
        "src_block_id, dst_block_id",
        "scores move with their blocks",
    ),
    Touched(
        "reads",
        "vllm.v1.outputs:ModelRunnerOutput",
        "req_ids, req_id_to_index, sampled_token_ids",
        "what was sampled, in which order",
    ),
    Touched(
        "wraps",
        "vllm.v1.outputs:AsyncModelRunnerOutput.get_output",
        "",
        "scores are ready when vLLM fetches the output; in the class of the runner's outputs",
        exact=True,
    ),
    Touched(
        "reads", "vllm.lora.request:LoRARequest", "lora_path, lora_int_id", "which adapter a request has"
    ),
)

_ON_THE_WAY = (
    Touched(
        "wraps",
        "vllm.v1.core.sched.scheduler:Scheduler.update_from_output",
        "scheduler_output, model_runner_output",
        "scores ride on the scheduler's outputs",
        exact=True,
    ),
    Touched("reads", f"{_ENGINE}:EngineCoreOutputs", "engine_index, outputs", "whose outputs, and for whom"),
    Touched(
        "reads",
        f"{_ENGINE}:EngineCoreOutput",
        "request_id, new_token_ids, finish_reason, kv_transfer_params",
        "what vLLM counts, and the carrier of the scores",
    ),
    Touched("reads", f"{_ENGINE}:EngineCoreOutput", "trace_headers", "a verdict in its request's trace"),
    Touched("reads", f"{_ENGINE}:FinishReason", "__str__", "why a sequence ended"),
)

_IN_THE_FRONT_END = (
    Touched("wraps", f"{_ENGINE}.async_llm:AsyncLLM.__init__", "", "gives the engine its accounting"),
    Touched("wraps", f"{_ENGINE}.llm_engine:LLMEngine.__init__", "", "the same for `LLM`"),
    Touched(
        "reads",
        f"{_ENGINE}.async_llm:AsyncLLM",
        "engine_core, output_processor, vllm_config",
        "what is accounted for",
    ),
    Touched(
        "reads",
        f"{_ENGINE}.llm_engine:LLMEngine",
        "engine_core, output_processor, vllm_config",
        "what is accounted for",
    ),
    Touched("calls", f"{_ENGINE}.async_llm:AsyncLLM.collective_rpc", "method", "asks workers for proof"),
    Touched("calls", f"{_ENGINE}.llm_engine:LLMEngine.collective_rpc", "method", "asks workers for proof"),
    Touched(
        "reads", f"{_ENGINE}.core_client:MPClient", "core_engines", "which engines there are to be asked"
    ),
    Touched(
        "calls",
        f"{_ENGINE}.core_client:AsyncMPClient._call_utility_async",
        "method",
        "asks the workers of every engine",
        keywords="engine",
    ),
    Touched(
        "shadows",
        f"{_ENGINE}.core_client:AsyncMPClient.get_output_async",
        "",
        "which engine outputs come from",
        exact=True,
    ),
    Touched(
        "reads",
        f"{_ENGINE}.core_client:MPClient",
        "engine_ranks_managed",
        "the engines behind a server",
        optional=True,
    ),
    Touched(
        "wraps",
        f"{_ENGINE}.output_processor:OutputProcessor.process_outputs",
        "engine_core_outputs",
        "accounts for every output",
    ),
    Touched(
        "wraps",
        f"{_ENGINE}.output_processor:OutputProcessor._finish_request",
        "req_state",
        "judges a finished sequence",
    ),
    Touched(
        "wraps", f"{_ENGINE}.output_processor:OutputProcessor.abort_requests", "", "judges an aborted one"
    ),
    Touched(
        "reads",
        f"{_ENGINE}.output_processor:OutputProcessor",
        "request_states, tokenizer",
        "the running requests, and their text",
    ),
    Touched("reads", f"{_ENGINE}.output_processor:OutputProcessorOutput", "request_outputs", "`LLM` replies"),
    Touched(
        "reads",
        f"{_ENGINE}.output_processor:RequestState",
        "request_id, external_req_id, parent_req, request_index, prompt_token_ids, prompt_len, streaming_input",
        "which response a sequence belongs to",
    ),
    Touched(
        "reads",
        f"{_ENGINE}.parallel_sampling:ParentRequest",
        "request_id, external_req_id, n",
        "choices of one request",
    ),
    Touched(
        "reads",
        "vllm.outputs:RequestOutput",
        "request_id, finished",
        "carries the verdict of `LLM`; the property `probewatch` and, where it has none, `__getstate__` are added",
    ),
    Touched(
        "calls",
        "vllm.tokenizers.protocol:TokenizerLike.decode",
        "ids",
        "the text of evidence",
        keywords="skip_special_tokens",
    ),
    Touched(
        "calls",
        "vllm.v1.core.sched.scheduler:Scheduler.finish_requests",
        "request_ids, finished_status",
        "a probe ends a sequence",
    ),
    Touched("reads", "vllm.v1.request:RequestStatus", "FINISHED_STOPPED", "a probe ends a sequence"),
    Touched("reads", "vllm.v1.engine:FinishReason", "STOP", "a probe ends a sequence"),
    Touched(
        "reads", "vllm.v1.engine:EngineCoreOutput", "stop_reason, new_logprobs", "a probe ends a sequence"
    ),
    Touched(
        "calls", "vllm.v1.outputs:LogprobsLists.slice_request", "req_idx, num_positions", "its last tokens"
    ),
    Touched(
        "reads", "vllm.v1.engine:EngineCoreOutput", "new_sampling_mask", "its last tokens", optional=True
    ),
    Touched(
        "calls",
        "vllm.v1.outputs:SamplingMaskLists.slice_request",
        "req_idx, num_positions",
        "its last tokens",
        optional=True,
    ),
    Touched(
        "reads", "vllm.v1.core.sched.output:SchedulerOutput", "finished_req_ids", "whose books are closed"
    ),
)

_STEERING = (
    Touched(
        "reads",
        "vllm.config.speculative:SpeculativeConfig",
        "enable_adaptive_verification",
        "refused: the rows of a step are known too late",
        optional=True,
    ),
    Touched(
        "wraps",
        f"{_ENGINE}.input_processor:InputProcessor.process_inputs",
        "",
        "what a request asks is checked, and steering goes into its prefix-cache key",
    ),
    Touched("reads", f"{_ENGINE}.async_llm:AsyncLLM", "input_processor", "admission knows the vectors"),
    Touched("reads", f"{_ENGINE}.llm_engine:LLMEngine", "input_processor", "admission knows the vectors"),
    Touched(
        "reads",
        f"{_ENGINE}:EngineCoreRequest",
        "sampling_params, cache_salt, resumable",
        "steering is part of the key",
    ),
    Touched(
        "calls",
        "vllm.exceptions:VLLMValidationError.__init__",
        "message",
        "a wish that cannot be met is the client's fault",
        keywords="parameter",
    ),
    Touched("reads", "vllm.sampling_params:SamplingParams", "extra_args", "what a request asks"),
    Touched(
        "reads", "vllm.v1.core.sched.output:SchedulerOutput", "scheduled_new_reqs", "what new requests ask"
    ),
    Touched(
        "reads",
        "vllm.v1.core.sched.output:SchedulerOutput",
        "scheduled_cached_reqs",
        "whether a step goes on from the one before",
    ),
    Touched(
        "reads",
        "vllm.v1.core.sched.output:CachedRequestData",
        "resumed_req_ids",
        "whether a step goes on from the one before",
    ),
    Touched(
        "reads",
        "vllm.v1.core.sched.output:NewRequestData",
        "req_id, sampling_params",
        "what new requests ask",
    ),
    Touched(
        "reads",
        "vllm.v1.core.sched.scheduler:Scheduler",
        "requests, running, kv_cache_manager, hash_block_size",
        "what a gate has steered is kept out of the prefix cache",
    ),
    Touched(
        "reads",
        "vllm.v1.core.kv_cache_manager:KVCacheManager",
        "block_pool, kv_cache_config",
        "the blocks that a gate has steered",
    ),
    Touched(
        "calls",
        "vllm.v1.core.kv_cache_manager:KVCacheManager.get_block_ids",
        "request_id",
        "the blocks that a gate has steered",
    ),
    Touched(
        "calls", "vllm.v1.core.block_pool:BlockPool.evict_blocks", "block_ids", "out of the prefix cache"
    ),
    Touched(
        "reads", "vllm.v1.request:Request", "block_hashes, cache_salt", "later blocks get names of their own"
    ),
    Touched("reads", "vllm.v1.core.block_pool:BlockPool", "blocks", "whether another request took one"),
    Touched(
        "reads", "vllm.v1.core.kv_cache_utils:KVCacheBlock", "ref_cnt", "whether another request took one"
    ),
    Touched("reads", "vllm.v1.request:Request", "request_id", "which request took one"),
    Touched("calls", "vllm.v1.request:Request.is_finished", "", "its blocks are known by id alone then"),
)

_OFFLINE = (
    Touched(
        "calls", "vllm.entrypoints.llm:LLM.__init__", "model", "`collect` and `score` run their own engine"
    ),
    Touched("reads", "vllm.entrypoints.llm:LLM", "llm_engine", "whose verdicts `score` reads"),
    Touched(
        "calls",
        "vllm.entrypoints.llm:LLM.generate",
        "prompts, sampling_params",
        "feeds transcripts",
        keywords="use_tqdm",
    ),
    Touched(
        "calls",
        "vllm.entrypoints.llm:LLM.collective_rpc",
        "method",
        "has the workers write a shard",
        keywords="args",
    ),
    Touched(
        "calls",
        "vllm.engine.arg_utils:EngineArgs.add_cli_args",
        "parser",
        "vLLM's options, as `vllm serve` has them",
    ),
    Touched("calls", "vllm.engine.arg_utils:EngineArgs.from_cli_args", "args", "vLLM's options"),
    Touched(
        "calls", "vllm.engine.arg_utils:EngineArgs.create_engine_config", "", "what collecting will cost"
    ),
    Touched("reads", "vllm.engine.arg_utils:FlexibleArgumentParser", "", "vLLM's options"),
    Touched(
        "reads",
        "vllm.config.model:ModelConfig",
        "dtype, max_model_len",
        "the type of a row, the longest chat",
    ),
    Touched(
        "reads",
        "vllm.config.scheduler:SchedulerConfig",
        "max_num_batched_tokens",
        "the memory that rows of a step take",
    ),
)

_V1 = (
    Touched(
        "shadows",
        f"{_WORKER}.gpu_model_runner:GPUModelRunner._prepare_inputs",
        "",
        "the rows of a step are settled: what is to be steered can be written",
    ),
    Touched("calls", f"{_WORKER}.gpu_model_runner:GPUModelRunner.get_model", "", "what is tapped"),
    Touched(
        "calls",
        f"{_WORKER}.gpu_model_runner:GPUModelRunner._dummy_run",
        "num_tokens",
        "the canary's rows",
        keywords="uniform_decode",
    ),
    Touched(
        "shadows",
        f"{_WORKER}.gpu_model_runner:GPUModelRunner.execute_model",
        "scheduler_output, intermediate_tensors",
        "scores travel between stages",
    ),
    Touched(
        "reads",
        f"{_WORKER}.gpu_model_runner:GPUModelRunner",
        "input_batch, kv_cache_config, lora_config, max_num_reqs, max_num_tokens, query_start_loc, "
        "uniform_decode_query_len, vllm_config",
        "the batch of a step",
    ),
    Touched(
        "reads",
        f"{_WORKER}.gpu_input_batch:InputBatch",
        "req_ids, num_reqs, block_table, num_computed_tokens_cpu, num_prompt_tokens, num_tokens_no_spec, "
        "lora_id_to_lora_request, request_lora_mapping",
        "whose rows a step holds",
    ),
    Touched("reads", f"{_WORKER}.block_table:MultiGroupBlockTable", "__getitem__", "the KV slots of rows"),
    Touched("reads", f"{_WORKER}.block_table:BlockTable", "block_table, block_size", "the KV slots of rows"),
    Touched("reads", "vllm.v1.utils:CpuGpuBuffer", "np", "both of these on the host"),
)

_V2 = (
    Touched(
        "shadows",
        f"{_WORKER}.gpu.model_runner:GPUModelRunner.prepare_inputs",
        "",
        "the rows of a step are settled: what is to be steered can be written",
    ),
    Touched("calls", f"{_WORKER}.gpu.model_runner:GPUModelRunner.get_model", "", "what is tapped"),
    Touched(
        "calls",
        f"{_WORKER}.gpu.model_runner:GPUModelRunner._dummy_run",
        "num_tokens",
        "the canary's rows",
        keywords="uniform_decode",
    ),
    Touched(
        "shadows",
        f"{_WORKER}.gpu.model_runner:GPUModelRunner.execute_model",
        "scheduler_output, intermediate_tensors",
        "scores travel between stages",
        keywords="dummy_run",
    ),
    Touched(
        "reads",
        f"{_WORKER}.gpu.model_runner:GPUModelRunner",
        "block_tables, decode_query_len, execute_model_state, kv_cache_config, lora_config, lora_state, "
        "max_num_reqs, max_num_tokens, req_states, vllm_config",
        "the batch of a step",
    ),
    Touched("reads", f"{_WORKER}.gpu.model_runner:ExecuteModelState", "input_batch", "the batch of a step"),
    Touched(
        "reads",
        f"{_WORKER}.gpu.input_batch:InputBatch",
        "req_ids, num_reqs, num_tokens, num_tokens_after_padding, idx_mapping_np, prefill_len_np, "
        "num_computed_tokens_np, num_scheduled_tokens, query_start_loc, positions",
        "whose rows a step holds",
    ),
    Touched(
        "reads",
        f"{_WORKER}.gpu.block_table:BlockTables",
        "slot_mappings, block_sizes, block_tables",
        "the KV slots of rows",
    ),
    Touched("reads", f"{_WORKER}.gpu.buffer_utils:StagedWriteTensor", "gpu", "a block table on the device"),
    Touched("reads", f"{_WORKER}.gpu.states:RequestState", "prompt_len", "where a prompt ends"),
    Touched("reads", f"{_WORKER}.gpu.buffer_utils:UvaBackedTensor", "np", "that length on the host"),
    Touched("reads", f"{_WORKER}.gpu.lora_utils:LoraState", "lora_ids, lora_requests", "adapters of a step"),
)

TOUCHED: Mapping[Runner, tuple[Touched, ...]] = {
    "both": (
        *_PROCESSES,
        *_CONFIGURATION,
        *_IN_THE_WORKER,
        *_ON_THE_WAY,
        *_IN_THE_FRONT_END,
        *_STEERING,
        *_OFFLINE,
    ),
    "v1": _V1,
    "v2": _V2,
}
"""By the model runner that needs it; ``both`` is needed by every engine."""
