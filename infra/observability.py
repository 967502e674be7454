"""The dashboard, and alarms that each say what to do.

Every metric here is published by AWS under the documented name, or written by our own functions
(``lambdas.shared.metrics``) or log filters; a test compares. Step Functions publishes no metric of
a single state: the p95 of each state comes from a query over the machines' logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from infra.parts import EndpointRef
from infra.serving import VARIANT
from infra.settings import StageSettings
from lambdas.shared import metrics as ours

PERIOD: Final = Duration.minutes(5)
HOUR: Final = Duration.hours(1)
REFUSED: Final = "TrainingCallsRefused"

# CreateTrainingJob that was refused: throttled, over quota, or not allowed. Both ways to call it.
_REFUSED_CALLS: Final = (
    '{ $.type = "TaskSubmitFailed" && $.details.resourceType = "sagemaker" }',
    '{ $.type = "TaskFailed" && $.details.resourceType = "aws-sdk:sagemaker" }',
)
_LISTED: Final = cloudwatch.TreatMissingData
# Logs Insights: how long each visit to a state took, and the p95 of that.
STATES_P95: Final = (
    "filter ispresent(details.name)",
    "stats (max(@timestamp) - min(@timestamp)) / 1000 as seconds by execution_arn, details.name",
    "stats pct(seconds, 95) as p95_s, count(*) as visits by details.name",
    "sort p95_s desc",
)


@dataclass(frozen=True)
class Watched:
    """What is looked at.

    Attributes:
        machines: Each machine by the name that people know it by.
        machine_logs: Their logs.
        functions: Each function by name.
        stream_reader: The function that reads the requests table's stream.
        dead_letters: The queue of dead letters.
        endpoint: The multi-model endpoint.
    """

    machines: Mapping[str, sfn.IStateMachine]
    machine_logs: Mapping[str, logs.ILogGroup]
    functions: Mapping[str, lambda_.IFunction]
    stream_reader: lambda_.IFunction
    dead_letters: sqs.IQueue
    endpoint: EndpointRef


@dataclass(frozen=True)
class Rule:
    """One alarm.

    Attributes:
        name: Its construct id.
        metric: What it looks at.
        threshold: Where it rings.
        todo: What to do when it rings: the alarm's description.
        below: Whether it rings below the threshold, not from it on.
        periods: Periods that it looks at.
        of_them: How many of these must be beyond the threshold.
        silence_is_bad: Whether a missing figure counts as one beyond the threshold.
    """

    name: str
    metric: cloudwatch.IMetric
    threshold: float
    todo: str
    below: bool = False
    periods: int = 1
    of_them: int = 1
    silence_is_bad: bool = field(default=False)


class Observability(Construct):
    """Alarms to one topic, and one dashboard."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        watched: Watched,
        alarms_topic: sns.ITopic,
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._watched = watched
        for name, group in watched.machine_logs.items():
            self._count_refused_calls(name, group)
        action = actions.SnsAction(alarms_topic)
        self.alarms = [self._alarm(rule, action) for rule in self._rules()]
        self._dashboard()
        logs.QueryDefinition(
            self,
            "StatesQuery",
            query_definition_name=f"{settings.stack_name}/p95 of each state",
            query_string=logs.QueryString(
                filter_statements=["ispresent(details.name)"],
                stats_statements=[part.removeprefix("stats ") for part in STATES_P95[1:3]],
                sort="p95_s desc",
            ),
            log_groups=list(watched.machine_logs.values()),
        )

    # -- alarms -----------------------------------------------------------------------------------

    def _rules(self) -> Sequence[Rule]:
        return [*self._about_requests(), *self._about_training(), *self._about_plumbing()]

    def _about_requests(self) -> Sequence[Rule]:
        settings, watched = self._settings, self._watched
        ended_badly = {
            f"{name}_{how}": metric(period=HOUR)
            for name, machine in watched.machines.items()
            for how, metric in (
                ("failed", machine.metric_failed),
                ("timed_out", machine.metric_timed_out),
                ("aborted", machine.metric_aborted),
            )
        }
        return [
            Rule(
                "StuckRequests",
                self._own(ours.STUCK_REQUESTS),
                1,
                "Requests stood still, or reconcile does not run. Look at reconcile's log: it"
                " names each request and what it did; no log means that its schedule is off.",
                periods=3,
                of_them=3,
                silence_is_bad=True,
            ),
            Rule(
                "OldestQueued",
                self._own(ours.OLDEST_QUEUED_AGE),
                settings.alarm_queue_minutes * 60,
                "Requests wait too long. If HoldersInUse is at its limit, raise"
                " LIMNER_MAX_INSTANCES and SageMaker's quota; else look at dispatch's log.",
                periods=3,
                of_them=2,
            ),
            Rule(
                "FailedOnboardings",
                cloudwatch.MathExpression(
                    expression=" + ".join(ended_badly), using_metrics=ended_badly, period=HOUR
                ),
                settings.alarm_failures_per_hour,
                "Onboardings fail. `limner status` of one of them names code, fault and fix;"
                " redeploy the last good version if the fault is limner's.",
            ),
        ]

    def _about_training(self) -> Sequence[Rule]:
        settings, watched = self._settings, self._watched
        slow = [
            Rule(
                f"Slow{name.title().replace('_', '')}",
                machine.metric_time(statistic="p95", period=HOUR),
                settings.alarm_onboard_minutes * 60_000,
                "Onboardings take too long. The saved query 'p95 of each state' tells which state;"
                " a slow FineTune mostly waits for machines: add instance types.",
            )
            for name, machine in watched.machines.items()
        ]
        return [
            *slow,
            Rule(
                "TrainingCallsRefused",
                self._own(REFUSED, dimensions=False),
                10,
                "SageMaker refuses CreateTrainingJob. Lower LIMNER_LAUNCHES_PER_SECOND, or have"
                " the quota raised that the execution's history names (rate: L-21A1652A).",
                periods=3,
                of_them=2,
            ),
            Rule(
                "Launches",
                self._own(ours.LAUNCHES_TODAY, statistic="Maximum"),
                settings.alarm_launch_share * settings.daily_launches,
                "The day's launches are nearly used up. If users are the reason, raise"
                " LIMNER_DAILY_LAUNCHES; if not, disable dispatch's schedule and find the loop.",
            ),
        ]

    def _about_plumbing(self) -> Sequence[Rule]:
        settings, watched = self._settings, self._watched
        errors = [
            Rule(
                f"Errors{name.title().replace('_', '')}",
                function.metric_errors(period=PERIOD),
                1,
                f"{name} has raised an error. Its log has the exception; what it could not do is"
                " repeated, and lies among the dead letters in the end.",
                periods=3,
                of_them=2,
            )
            for name, function in watched.functions.items()
        ]
        return [
            *errors,
            Rule(
                "DeadLetters",
                watched.dead_letters.metric_approximate_number_of_messages_visible(
                    period=PERIOD, statistic="Maximum"
                ),
                1,
                "Events could not be handled. Read the messages of the queue FailedEventsQueueUrl,"
                " mend the cause, then redrive or delete them (docs/deploy.md).",
            ),
            Rule(
                "StreamAge",
                watched.stream_reader.metric(
                    "IteratorAge", statistic="Maximum", period=PERIOD, unit=None
                ),
                300_000,
                "dispatch lags behind the requests table's stream. Look for its errors and"
                " throttles; the schedule starts requests meanwhile.",
                periods=3,
                of_them=3,
            ),
            Rule(
                "CacheHits",
                self._endpoint("ModelCacheHit", "Average"),
                settings.alarm_cache_hit_ratio,
                "Models are loaded again and again. Take endpoint machines with more memory, or"
                " raise LIMNER_ENDPOINT_INSTANCES so that each serves fewer models.",
                below=True,
                periods=6,
                of_them=4,
            ),
            Rule(
                "EndpointErrors",
                self._endpoint("Invocation5XXErrors", "Sum"),
                5,
                "The endpoint answers 5xx. Its log group /aws/sagemaker/Endpoints has the reason;"
                " a bad image is undone by deploying the last good one.",
                periods=3,
                of_them=2,
            ),
        ]

    def _alarm(self, rule: Rule, action: actions.SnsAction) -> cloudwatch.Alarm:
        compare = cloudwatch.ComparisonOperator
        alarm = cloudwatch.Alarm(
            self,
            rule.name,
            metric=rule.metric,
            threshold=rule.threshold,
            alarm_description=rule.todo,
            comparison_operator=(
                compare.LESS_THAN_THRESHOLD
                if rule.below
                else compare.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
            ),
            evaluation_periods=rule.periods,
            datapoints_to_alarm=rule.of_them,
            treat_missing_data=(
                _LISTED.BREACHING if rule.silence_is_bad else _LISTED.NOT_BREACHING
            ),
        )
        alarm.add_alarm_action(action)
        return alarm

    def _count_refused_calls(self, name: str, group: logs.ILogGroup) -> None:
        for number, pattern in enumerate(_REFUSED_CALLS):
            logs.MetricFilter(
                self,
                f"Refused{name.title().replace('_', '')}{number}",
                log_group=group,
                filter_pattern=logs.FilterPattern.literal(pattern),
                metric_namespace=ours.NAMESPACE,
                metric_name=self._of_stage(REFUSED),
                metric_value="1",
            )

    # -- metrics ----------------------------------------------------------------------------------

    def _of_stage(self, name: str) -> str:
        """A filter of the log cannot add a fixed dimension, so the stage is in the name."""
        return f"{name}-{self._settings.stage}"

    def _own(
        self, name: str, *, statistic: str = "Maximum", dimensions: bool = True
    ) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=ours.NAMESPACE,
            metric_name=name if dimensions else self._of_stage(name),
            dimensions_map={ours.STAGE: self._settings.stage} if dimensions else None,
            statistic=statistic if dimensions else "Sum",
            period=PERIOD,
        )

    def _endpoint(self, name: str, statistic: str) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace="AWS/SageMaker",
            metric_name=name,
            dimensions_map={"EndpointName": self._watched.endpoint.name, "VariantName": VARIANT},
            statistic=statistic,
            period=PERIOD,
        )

    # -- dashboard --------------------------------------------------------------------------------

    def _dashboard(self) -> None:
        watched, settings = self._watched, self._settings
        board = cloudwatch.Dashboard(self, "Dashboard", dashboard_name=settings.stack_name)
        board.add_widgets(
            _graph(
                "Queue",
                self._own(ours.QUEUE_DEPTH),
                self._own(ours.HOLDERS_IN_USE),
                right=[self._own(ours.OLDEST_QUEUED_AGE)],
            ),
            _graph(
                "Launches",
                self._own(ours.LAUNCHED, statistic="Sum"),
                self._own(ours.THROTTLED, statistic="Sum"),
                right=[self._own(ours.LAUNCHES_TODAY)],
            ),
            _graph(
                "Repairs",
                self._own(ours.STUCK_REQUESTS),
                self._own(ours.REPAIRED_REQUESTS, statistic="Sum"),
            ),
        )
        board.add_widgets(
            *(
                _graph(
                    f"Machine {name}",
                    machine.metric_succeeded(period=PERIOD),
                    machine.metric_failed(period=PERIOD),
                    machine.metric_timed_out(period=PERIOD),
                    machine.metric_aborted(period=PERIOD),
                    right=[machine.metric_time(statistic="p95", period=PERIOD)],
                )
                for name, machine in watched.machines.items()
            ),
            _graph("CreateTrainingJob refused", self._own(REFUSED, dimensions=False)),
        )
        board.add_widgets(
            cloudwatch.LogQueryWidget(
                title="p95 of each state in seconds",
                log_group_names=[group.log_group_name for group in watched.machine_logs.values()],
                query_lines=list(STATES_P95),
                view=cloudwatch.LogQueryVisualizationType.TABLE,
                width=12,
                height=8,
            ),
            _graph(
                "Functions, p95",
                *(
                    function.metric_duration(statistic="p95", period=PERIOD, label=name)
                    for name, function in watched.functions.items()
                ),
                right=[
                    function.metric_errors(period=PERIOD, label=f"{name} errors")
                    for name, function in watched.functions.items()
                ],
            ),
        )
        board.add_widgets(
            _graph(
                "Endpoint",
                self._endpoint("Invocations", "Sum"),
                self._endpoint("Invocation4XXErrors", "Sum"),
                self._endpoint("Invocation5XXErrors", "Sum"),
                right=[self._endpoint("ModelLatency", "p95")],
            ),
            _graph(
                "Models in memory",
                self._endpoint("LoadedModelCount", "Average"),
                right=[
                    self._endpoint("ModelCacheHit", "Average"),
                    self._endpoint("ModelLoadingWaitTime", "p95"),
                ],
            ),
            _graph(
                "Dead letters and stream",
                watched.dead_letters.metric_approximate_number_of_messages_visible(period=PERIOD),
                right=[
                    watched.stream_reader.metric("IteratorAge", statistic="Maximum", period=PERIOD)
                ],
            ),
        )
        board.add_widgets(
            cloudwatch.AlarmStatusWidget(title="Alarms", alarms=self.alarms, width=24, height=3)
        )


def _graph(
    title: str, *left: cloudwatch.IMetric, right: Sequence[cloudwatch.IMetric] = ()
) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=list(left), right=list(right), width=8)
