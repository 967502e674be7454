"""Alarms: each on a metric that somebody emits, each with a sentence that says what to do."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from infra import observability, prices
from infra.bundle import ROOT
from infra.publish import Synthesis, synthesize
from infra.settings import StageSettings, laptop
from lambdas.shared import metrics

# From memory of AWS's documentation: "Monitoring Step Functions metrics using Amazon CloudWatch",
# "Lambda function metrics", "Available CloudWatch metrics for Amazon SQS"; and from its page
# "CloudWatch Metrics for Multi-Model Endpoint Deployments". Nobody has seen these metrics in an
# account: the list keeps us from inventing names, not from remembering wrongly.
PUBLISHED = {
    "AWS/States": {
        *("ExecutionTime", "ExecutionsFailed", "ExecutionsTimedOut", "ExecutionsAborted"),
        *("ExecutionsSucceeded", "ExecutionThrottled", "ExecutionsStarted"),
    },
    "AWS/Lambda": {"Errors", "Duration", "IteratorAge", "Throttles", "Invocations"},
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"},
    "AWS/SageMaker": {
        *("ModelCacheHit", "ModelLoadingWaitTime", "ModelLoadingTime"),
        *("Invocations", "Invocation4XXErrors", "Invocation5XXErrors", "ModelLatency"),
    },
    "/aws/sagemaker/Endpoints": {"LoadedModelCount", "CPUUtilization", "MemoryUtilization"},
}
FUNCTIONS = {path.parent.name for path in (ROOT / "lambdas").glob("*/handler.py")}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """A stage whose schedules are as slow as the settings allow."""
    return synthesize(SLOW, tmp_path_factory.mktemp("slow"))


SLOW = StageSettings(stage="slow", kms=False, dispatch_minutes=60, reconcile_minutes=60)


def alarms(made: Synthesis) -> Iterator[dict[str, Any]]:
    for item in made.template["Resources"].values():
        if item["Type"] == "AWS::CloudWatch::Alarm":
            yield item["Properties"]


def looked_at(alarm: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "MetricName" in alarm:
        yield alarm["Namespace"], alarm["MetricName"]
    for entry in alarm.get("Metrics", []):
        if "MetricStat" in entry:
            metric = entry["MetricStat"]["Metric"]
            yield metric["Namespace"], metric["MetricName"]


def alarm_of(made: Synthesis, name: str) -> dict[str, Any]:
    (found,) = [
        item["Properties"]
        for logical, item in made.template["Resources"].items()
        if item["Type"] == "AWS::CloudWatch::Alarm"
        and f"Observability{name}" in logical[:-8]
        and logical[:-8].endswith(name)
    ]
    properties: dict[str, Any] = found
    return properties


def widgets(made: Synthesis) -> list[dict[str, Any]]:
    """The dashboard, with what CloudFormation fills in as text between angle brackets."""
    (board,) = [
        item["Properties"]["DashboardBody"]
        for item in made.template["Resources"].values()
        if item["Type"] == "AWS::CloudWatch::Dashboard"
    ]
    _, parts = board["Fn::Join"]
    body = "".join(
        part if isinstance(part, str) else f"<{next(iter(part.values()))}>".replace('"', "'")
        for part in parts
    )
    found: list[dict[str, Any]] = [widget["properties"] for widget in json.loads(body)["widgets"]]
    return found


def drawn(made: Synthesis) -> Iterator[tuple[str, str]]:
    """Namespace and name of each metric of the dashboard; "." is "as in the line before"."""
    for widget in widgets(made):
        before: list[Any] = []
        for line in widget.get("metrics", []):
            if isinstance(line[0], str):
                before = [b if a == "." else a for a, b in _beside(line, before)]
                yield before[0], before[1]


def _beside(line: list[Any], before: list[Any]) -> list[tuple[Any, Any]]:
    return [(a, before[at] if at < len(before) else None) for at, a in enumerate(line)]


def ours(stage: str) -> set[str]:
    """What the functions write and the log filters count."""
    written = {value for name, value in vars(metrics).items() if name.isupper()}
    names = {metrics.NAMESPACE, metrics.STAGE, metrics.FAULT}
    return {*written, f"{observability.REFUSED}-{stage}"} - names


def test_every_metric_that_is_looked_at_exists(local: Synthesis, cloud: Synthesis) -> None:
    for made, name in ((local, laptop().stage), (cloud, "prod")):
        known = {**PUBLISHED, metrics.NAMESPACE: ours(name)}
        rung = [pair for alarm in alarms(made) for pair in looked_at(alarm)]
        seen = list(drawn(made))
        assert len(rung) > 25
        assert len(seen) > 35
        for namespace, metric in [*rung, *seen]:
            assert metric in known[namespace], (namespace, metric)


def test_no_function_is_left_unwatched(stage: Synthesis) -> None:
    functions = {
        logical: item["Properties"]["Handler"].split(".")[1]
        for logical, item in stage.template["Resources"].items()
        if item["Type"] == "AWS::Lambda::Function"
    }
    assert set(functions.values()) == FUNCTIONS
    for metric in ("Errors", "Throttles"):
        watched = {
            functions[dimension["Value"]["Ref"]]
            for alarm in alarms(stage)
            for stat in [
                alarm,
                *(e["MetricStat"]["Metric"] for e in alarm.get("Metrics", []) if "MetricStat" in e),
            ]
            if stat.get("MetricName") == metric
            for dimension in stat["Dimensions"]
        }
        assert watched == FUNCTIONS, metric


def test_sums_take_silence_for_nothing(stage: Synthesis) -> None:
    """CloudWatch adds nothing up where one of the terms is missing."""
    sums = [
        (entry["Expression"], alarm["Metrics"])
        for alarm in alarms(stage)
        for entry in alarm.get("Metrics", [])
        if "Expression" in entry
    ]
    assert len(sums) == 4
    for expression, listed in sums:
        terms = [entry["Id"] for entry in listed if "MetricStat" in entry]
        assert expression == " + ".join(f"FILL({term}, 0)" for term in terms)


def test_failures_are_counted_by_whose_fault_they_are(cloud: Synthesis) -> None:
    alarm = alarm_of(cloud, "FailedOnboardings")
    counted = [e["MetricStat"]["Metric"] for e in alarm["Metrics"] if "MetricStat" in e]
    assert {metric["MetricName"] for metric in counted} == {metrics.FAILED_REQUESTS}
    dimensions = [{d["Name"]: d["Value"] for d in metric["Dimensions"]} for metric in counted]
    assert dimensions == [
        {metrics.STAGE: "prod", metrics.FAULT: fault} for fault in ("aws", "limner")
    ]


def test_an_execution_that_somebody_stopped_rings_no_alarm(stage: Synthesis) -> None:
    rung = {metric for alarm in alarms(stage) for _, metric in looked_at(alarm)}
    assert "ExecutionsAborted" not in rung
    assert {"ExecutionsTimedOut", "ExecutionsFailed", "ExecutionThrottled"} <= rung


# -- Alarms on what comes once a schedule ---------------------------------------------------------


def rings(alarm: Mapping[str, Any], points: Mapping[int, float], until_s: int) -> bool:
    """Whether an alarm on a maximum rings at any time, as CloudWatch puts it in words.

    Args:
        alarm: Its properties.
        points: Second to figure.
        until_s: The end of the story.
    """
    period, of = alarm["Period"], alarm["EvaluationPeriods"]
    beyond = []
    for start in range(0, until_s - period + 1, period):
        seen = [value for at, value in points.items() if start <= at < start + period]
        beyond.append(
            max(seen) >= alarm["Threshold"] if seen else alarm["TreatMissingData"] == "breaching"
        )
    windows = (beyond[at : at + of] for at in range(len(beyond) - of + 1))
    return any(sum(window) >= alarm["DatapointsToAlarm"] for window in windows)


DAY_S = 24 * 3600


def once(minutes: int, value: float, until_s: int = DAY_S) -> dict[int, float]:
    """A figure at each beat of a schedule, by turns a little early or late at a period's edge."""
    every = minutes * 60
    return {at + (at // every % 3) * 15 - 10: value for at in range(every, until_s, every)}


@pytest.mark.parametrize("made", ["cloud", "slow"])
def test_alarms_on_schedules_ring_at_trouble_and_at_nothing_else(
    made: str, request: pytest.FixtureRequest
) -> None:
    stage: Synthesis = request.getfixturevalue(made)
    settings = SLOW if made == "slow" else StageSettings(stage="prod")
    stuck, oldest = alarm_of(stage, "StuckRequests"), alarm_of(stage, "OldestQueued")
    reconcile, dispatch = settings.reconcile_minutes, settings.dispatch_minutes
    assert not rings(stuck, once(reconcile, 0), DAY_S)
    assert rings(stuck, once(reconcile, 2), DAY_S)
    assert rings(stuck, once(reconcile, 0, DAY_S // 2), DAY_S), "reconcile is silent"
    limit = settings.alarm_queue_minutes * 60
    assert not rings(oldest, once(dispatch, limit - 1), DAY_S)
    assert rings(oldest, once(dispatch, limit), DAY_S)
    assert rings(alarm_of(stage, "Launches"), once(dispatch, settings.daily_launches), DAY_S)
    for alarm in (stuck, oldest):
        # The longest that CloudWatch looks back, for periods below an hour.
        assert alarm["Period"] * alarm["EvaluationPeriods"] <= DAY_S
        assert alarm["Period"] % 60 == 0


# -- Spend, and how long states take --------------------------------------------------------------


def test_spend_is_on_the_dashboard_with_its_bound_and_the_date_of_its_prices(
    cloud: Synthesis,
) -> None:
    (spend,) = [w for w in widgets(cloud) if "at most" in w.get("title", "")]
    settings = StageSettings(stage="prod")
    assert prices.AS_OF in spend["title"]
    (expression,) = [line[0]["expression"] for line in spend["metrics"] if "expression" in line[0]]
    assert expression == f"launches * {prices.launch_at_most(settings)}"
    (bound,) = spend["annotations"]["horizontal"]
    assert bound["value"] == prices.day_at_most(settings)


def test_the_query_asks_about_no_state_that_a_batch_has_many_of(local: Synthesis) -> None:
    """Maps repeat a name for each request, and the log does not say whose."""
    for machine, states in observability.ONE_PER_EXECUTION.items():
        definition = local.machines[machine]["States"]
        assert set(states) <= set(definition)
        has_maps = any(state["Type"] == "Map" for state in definition.values())
        assert has_maps == bool(states), "all states, only where no Map is"
    saved = [
        item["Properties"]
        for item in local.template["Resources"].values()
        if item["Type"] == "AWS::Logs::QueryDefinition"
    ]
    assert len(saved) == 2
    for query in saved:
        assert "first to last event" in query["Name"]
        batch = "onboard_batch" in query["Name"]
        assert ('details.name in ["ClaimAll"' in query["QueryString"]) == batch
        assert len(query["LogGroupNames"]) == 1


def test_every_alarm_says_what_to_do_and_tells_somebody(stage: Synthesis) -> None:
    for alarm in alarms(stage):
        assert len(alarm["AlarmDescription"].split(". ")) >= 2, alarm["AlarmDescription"]
        assert len(alarm["AlarmActions"]) == 1


def test_silence_of_reconcile_is_an_alarm_and_no_other_silence(stage: Synthesis) -> None:
    loud = [a["MetricName"] for a in alarms(stage) if a["TreatMissingData"] == "breaching"]
    assert loud == [metrics.STUCK_REQUESTS]


def test_the_functions_emit_what_the_alarms_need() -> None:
    packages = [ROOT / "lambdas" / name for name in ("dispatch", "reconcile", "record_failure")]
    sources = "".join(path.read_text() for package in packages for path in package.glob("*.py"))
    for name in (
        *("STUCK_REQUESTS", "OLDEST_QUEUED_AGE", "LAUNCHES_TODAY", "THROTTLED"),
        "FAILED_REQUESTS",
    ):
        assert name in sources


def test_refused_calls_are_counted_in_every_machines_log(stage: Synthesis) -> None:
    filters = [
        item["Properties"]
        for item in stage.template["Resources"].values()
        if item["Type"] == "AWS::Logs::MetricFilter"
    ]
    assert len({str(item["LogGroupName"]) for item in filters}) == 3
    for item in filters:
        (made,) = item["MetricTransformations"]
        assert made["MetricNamespace"] == metrics.NAMESPACE
        assert made["MetricName"].startswith(observability.REFUSED)


def test_thresholds_come_from_the_settings(cloud: Synthesis) -> None:
    settings = StageSettings(stage="prod")
    thresholds = {alarm.get("MetricName"): alarm["Threshold"] for alarm in alarms(cloud)}
    assert thresholds[metrics.OLDEST_QUEUED_AGE] == settings.alarm_queue_minutes * 60
    assert thresholds["ModelCacheHit"] == settings.alarm_cache_hit_ratio
    assert thresholds[metrics.LAUNCHES_TODAY] == (
        settings.alarm_launch_share * settings.daily_launches
    )


def test_alarms_are_let_into_their_topic(stage: Synthesis) -> None:
    """The topic's own policy replaces the default one, which lets the account's alarms in."""
    (topic,) = {action["Ref"] for alarm in alarms(stage) for action in alarm["AlarmActions"]}
    allowed = [
        statement["Principal"]["Service"]
        for item in stage.template["Resources"].values()
        if item["Type"] == "AWS::SNS::TopicPolicy"
        and item["Properties"]["Topics"] == [{"Ref": topic}]
        for statement in item["Properties"]["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Allow"
    ]
    assert allowed == ["cloudwatch.amazonaws.com"]
