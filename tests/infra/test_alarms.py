"""Alarms: each on a metric that somebody emits, each with a sentence that says what to do."""

from collections.abc import Iterator
from typing import Any

from infra import observability
from infra.bundle import ROOT
from infra.publish import Synthesis
from infra.settings import StageSettings, laptop
from lambdas.shared import metrics

# Of AWS's documentation: "Monitoring Step Functions metrics using Amazon CloudWatch", "Lambda
# function metrics", "Available CloudWatch metrics for Amazon SQS", "Amazon SageMaker AI metrics".
PUBLISHED = {
    "AWS/States": {
        *("ExecutionTime", "ExecutionsFailed", "ExecutionsTimedOut", "ExecutionsAborted"),
        *("ExecutionsSucceeded", "ExecutionThrottled", "ExecutionsStarted"),
    },
    "AWS/Lambda": {"Errors", "Duration", "IteratorAge", "Throttles", "Invocations"},
    "AWS/SQS": {"ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"},
    "AWS/SageMaker": {
        *("ModelCacheHit", "LoadedModelCount", "ModelLoadingWaitTime", "ModelLoadingTime"),
        *("Invocations", "Invocation4XXErrors", "Invocation5XXErrors", "ModelLatency"),
    },
}


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


def ours(stage: str) -> set[str]:
    """What the functions write and the log filters count."""
    written = {value for name, value in vars(metrics).items() if name.isupper()}
    return {*written, f"{observability.REFUSED}-{stage}"} - {metrics.NAMESPACE, metrics.STAGE}


def test_every_alarm_looks_at_a_metric_that_exists(local: Synthesis, cloud: Synthesis) -> None:
    for made, name in ((local, laptop().stage), (cloud, "prod")):
        known = {**PUBLISHED, metrics.NAMESPACE: ours(name)}
        found = [pair for alarm in alarms(made) for pair in looked_at(alarm)]
        assert len(found) > 15
        for namespace, metric in found:
            assert metric in known[namespace], (namespace, metric)


def test_every_alarm_says_what_to_do_and_tells_somebody(stage: Synthesis) -> None:
    for alarm in alarms(stage):
        assert len(alarm["AlarmDescription"].split(". ")) >= 2, alarm["AlarmDescription"]
        assert len(alarm["AlarmActions"]) == 1


def test_silence_of_reconcile_is_an_alarm_and_no_other_silence(stage: Synthesis) -> None:
    loud = [a["MetricName"] for a in alarms(stage) if a["TreatMissingData"] == "breaching"]
    assert loud == [metrics.STUCK_REQUESTS]


def test_the_functions_emit_what_the_alarms_need() -> None:
    packages = [ROOT / "lambdas" / name for name in ("dispatch", "reconcile")]
    sources = "".join(path.read_text() for package in packages for path in package.glob("*.py"))
    for name in ("STUCK_REQUESTS", "OLDEST_QUEUED_AGE", "LAUNCHES_TODAY"):
        assert name in sources


def test_refused_calls_are_counted_in_every_machines_log(stage: Synthesis) -> None:
    filters = [
        item["Properties"]
        for item in stage.template["Resources"].values()
        if item["Type"] == "AWS::Logs::MetricFilter"
    ]
    assert len({str(item["LogGroupName"]) for item in filters}) == 2
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
