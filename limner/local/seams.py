"""The places in ministack that the laptop builds on, checked at each start.

ministack is young and moves fast, and most of these are private names. So the version is pinned
exactly, and a start on any other one, or without one of the names, fails with a clear error before
anything runs half-corrected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from typing import Any, Final, TypeAlias

from limner.contracts.errors import LimnerError

VERSION: Final = "1.5.33"

# A module of ministack; they have no types.
Module: TypeAlias = Any

SEAMS: Final[Mapping[str, Sequence[str]]] = {
    "ministack.app": ("app", "SERVICE_HANDLERS"),
    "ministack.core.router": ("SERVICE_PATTERNS",),
    "ministack.core.lambda_runtime": ("_PYTHON_WORKER_SCRIPT",),
    "ministack.core.responses": ("request_scope",),
    "ministack.services.dynamodb": (
        "_tables",
        "stream_records_since",
        "stream_start_position",
    ),
    "ministack.services.lambda_svc": (
        "_apply_filter_criteria",
        "_dynamodb_stream_positions",
        "_dynamodb_stream_positions_lock",
        "_esm_wake",
        "_esms",
        "_execute_function",
        "_execution_record_for_config",
        "_get_func_record_for_qualifier",
        "_get_func_record_for_ref",
        "_init_stream_position",
        "_iter_all_esms",
        "_poll_dynamodb_streams",
        "_route_async_failure",
        "_send_ddb_stream_failure_record",
        "invoke_async_with_retry",
    ),
    "ministack.services.eventbridge": (
        "_SCHEDULER_TICK_INTERVAL",
        "_cron_next_fire",
        "_dispatch_to_lambda",
        "_dispatch_to_sqs",
        "_dispatch_to_stepfunctions",
        "_invoke_target",
        "_parse_cron_fields",
        "_parse_rate_seconds",
        "_pattern_event_view",
        "_put_events",
        "_rules",
        "_targets",
        "_tick_scheduled_rules",
        "new_uuid",
    ),
    "ministack.services.s3": (
        "_build_object_record",
        "_enforce_signed_post_policy",
        "_parse_multipart_form",
        "_post_object",
        "_resolve_object_checksums",
    ),
    "ministack.services.sqs": ("_act_send_message", "_queue_by_arn"),
    "ministack.services.cloudformation.provisioners": ("_RESOURCE_HANDLERS", "_physical_name"),
    "ministack.services.stepfunctions": (
        "_AWS_SDK_ERROR_CODE_OVERRIDES",
        "_AWS_SDK_ERROR_PREFIX",
        "_AWS_SDK_SERVICE_MAP",
        "_ExecutionError",
        "_SERVICE_DISPATCH",
        "_add_event",
        "_apply_input_path",
        "_apply_output_path",
        "_dispatch_aws_sdk_rest_xml",
        "_emit_execution_status_event",
        "_error_matches",
        "_eval_intrinsic_arg",
        "_evaluate_intrinsic",
        "_evaluate_rule",
        "_exec_intrinsic",
        "_execute_choice",
        "_execute_map",
        "_execute_parallel",
        "_execute_pass",
        "_execute_task",
        "_execute_wait",
        "_executions",
        "_fail_execution",
        "_fail_state_error",
        "_find_matching_retrier",
        "_invoke_resource",
        "_invoke_resource_with_timeout",
        "_parse_jsonpath_tokens",
        "_resolve_params_obj",
        "_resolve_path_or_ctx",
        "_resolve_state_machine_arn",
        "_run_execution",
        "_run_map_items",
        "_run_parallel_branches",
        "_run_sub_machine",
        "_scaled_sleep",
        "_start_execution",
        "_state_machines",
        "_state_query_language",
        "error_response_json",
        "get_account_id",
        "get_region",
        "json_response",
        "load_persisted_state",
        "now_iso",
    ),
}


def check(seams: Mapping[str, Sequence[str]] = SEAMS, version: str = VERSION) -> None:
    """Checks ministack's version and that each seam is there.

    Args:
        seams: Names by module.
        version: The only version that is accepted.

    Raises:
        LimnerError: ``LAPTOP_START_FAILED``, naming what does not fit and the fix.
    """
    try:
        installed = metadata.version("ministack")
    except metadata.PackageNotFoundError as error:
        raise LimnerError(
            "LAPTOP_START_FAILED",
            f"ministack is not installed: pip install ministack=={version} (limner[local]).",
        ) from error
    if installed != version:
        raise LimnerError(
            "LAPTOP_START_FAILED",
            f"ministack {installed} is installed, the laptop needs exactly {version}: "
            f"pip install ministack=={version}.",
        )
    missing = [
        f"{module}.{name}"
        for module, names in seams.items()
        for name in names
        if not hasattr(import_module(module), name)
    ]
    if missing:
        raise LimnerError(
            "LAPTOP_START_FAILED", f"ministack {installed} lacks {', '.join(missing)}."
        )
