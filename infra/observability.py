"""The dashboard, and alarms that each say what to do.

Every metric here is published by AWS under the documented name, or written by our own functions
(``lambdas.shared.metrics``) or log filters; a test compares. Step Functions publishes no metric of
a single state: how long states take comes from a query over the machines' logs.

Figures that come once a schedule are looked at in periods no shorter than that schedule: in a
shorter one, silence would be the rule.
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

from infra import prices
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
# States that an execution may be asked about: those of the machine of batches that stand outside
# of its Maps. Inside, one name is a state of every request, and the log does not say of which.
# Workers are asked nothing: their one state lasts as long as there is work.
ONE_PER_EXECUTION: Final = {
    "onboard": (),
    "onboard_batch": ("ClaimAll", "PackTasks", "FineTuneBatch", "CollectResults", "FinishAll"),
}
FIRST_TO_LAST: Final = "first to last event of each state in an execution"
# Whose faults are an operator's business; a photo that is too small is not.
_OPERATORS_FAULTS: Final = ("aws", "limner")
# Instance metrics of endpoints are in another namespace than their invocations ("CloudWatch Metrics
# for Multi-Model Endpoint Deployments" in the SageMaker developer guide).
_OF_ENDPOINTS: Final = "AWS/SageMaker"
_OF_INSTANCES: Final = "/aws/sagemaker/Endpoints"


def first_to_last(states: Sequence[str]) -> tuple[str, Sequence[str], str]:
    """Filter, statistics and order of a query: from a state's first event to its last.

    In one execution, all retries, loops and waits between them included. Single visits cannot be
    told apart: events point at the event before, which is not the state's entry.

    Args:
        states: The states; all of them if empty.
    """
    listed = ", ".join(f'"{name}"' for name in states)
    return (
        f"details.name in [{listed}]" if states else "ispresent(details.name)",
        (
            "(max(@timestamp) - min(@timestamp)) / 1000 as seconds by execution_arn, details.name",
            "pct(seconds, 95) as p95_s, count(*) as executions by details.name",
        ),
        "p95_s desc",
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
        for name in ONE_PER_EXECUTION:
            self._save_query(name, watched.machine_logs[name])

    # -- alarms -----------------------------------------------------------------------------------

    def _rules(self) -> Sequence[Rule]:
        return [*self._about_requests(), *self._about_training(), *self._about_plumbing()]

    def _about_requests(self) -> Sequence[Rule]:
        settings, machines = self._settings, self._watched.machines
        failed = [self._failed(fault) for fault in _OPERATORS_FAULTS]
        # Not the failed executions of `onboard`: they are failed requests, each counted above with
        # whose fault it was. Not the stopped ones: somebody wanted that.
        unsettled = [
            machines["onboard"].metric_timed_out(period=HOUR),
            machines["onboard_batch"].metric_timed_out(period=HOUR),
            machines["onboard_batch"].metric_failed(period=HOUR),
        ]
        return [
            Rule(
                "StuckRequests",
                self._own(ours.STUCK_REQUESTS, period=self._once(settings.reconcile_minutes)),
                1,
                "Requests stood still, or reconcile does not run. Look at reconcile's log: it"
                " names each request and what it did; no log means that its schedule is off.",
                periods=3,
                of_them=3,
                silence_is_bad=True,
            ),
            Rule(
                "OldestQueued",
                self._own(ours.OLDEST_QUEUED_AGE, period=self._once(settings.dispatch_minutes)),
                settings.alarm_queue_minutes * 60,
                "Requests wait too long. If HoldersInUse is at its limit, raise"
                " LIMNER_MAX_INSTANCES and SageMaker's quota; else look at dispatch's log.",
                periods=3,
                of_them=2,
            ),
            Rule(
                "FailedOnboardings",
                _sum(HOUR, *failed),
                settings.alarm_failures_per_hour,
                "Onboardings fail, and not by their users' fault. `limner status` of one of them"
                " names code, fault and fix; redeploy the last good version if it is limner's.",
            ),
            Rule(
                "UnsettledExecutions",
                _sum(HOUR, *unsettled),
                1,
                "A batch could not settle all of its requests, or an execution ran out of time."
                " Its history says why; reconcile takes care of the requests.",
            ),
        ]

    def _about_training(self) -> Sequence[Rule]:
        settings, watched = self._settings, self._watched
        slow = [
            Rule(
                f"Slow{name.title().replace('_', '')}",
                machine.metric_time(statistic="p95", period=HOUR),
                settings.alarm_onboard_minutes * 60_000,
                "Onboardings take too long. The saved query of that machine tells which state;"
                " a slow FineTune mostly waits for machines: add instance types.",
            )
            for name, machine in watched.machines.items()
            if name in ONE_PER_EXECUTION
        ]
        return [
            *slow,
            Rule(
                "WorkersFailed",
                watched.machines["worker"].metric_failed(period=HOUR),
                3,
                "Workers do not come up, or fall over; their requests get jobs instead, later. The"
                " execution says why. LIMNER_WORKERS=0 does without them.",
            ),
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
                self._own(ours.LAUNCHES_TODAY, period=self._once(settings.dispatch_minutes)),
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
            *self._about_throttles(),
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

    def _about_throttles(self) -> Sequence[Rule]:
        watched = self._watched
        functions = [f.metric_throttles(period=PERIOD) for f in watched.functions.values()]
        machines = [m.metric_throttled(period=PERIOD) for m in watched.machines.values()]
        return [
            Rule(
                "FunctionsThrottled",
                _sum(PERIOD, *functions),
                1,
                "Lambda refuses calls of functions. Look at the dashboard for which; have the"
                " account's concurrency raised (L-B99A9384), or find who uses it up.",
                periods=3,
                of_them=2,
            ),
            Rule(
                "ExecutionsThrottled",
                _sum(PERIOD, *machines),
                1,
                "Step Functions slows the states of executions down. They go on by themselves;"
                " have the account's quota of state transitions raised if it lasts.",
                periods=3,
                of_them=2,
            ),
            Rule(
                "StartsThrottled",
                self._own(ours.THROTTLED, statistic="Sum"),
                10,
                "Step Functions refuses StartExecution. Lower LIMNER_LAUNCHES_PER_SECOND, or find"
                " out who else starts executions in this account.",
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

    @staticmethod
    def _once(minutes: int) -> Duration:
        """A period that something which runs every so many minutes runs in."""
        return Duration.minutes(max(minutes, PERIOD.to_minutes()))

    def _failed(self, fault: str, period: Duration = HOUR) -> cloudwatch.Metric:
        """Requests that failed by somebody's fault; record_failure counts them, batch or not."""
        return cloudwatch.Metric(
            namespace=ours.NAMESPACE,
            metric_name=ours.FAILED_REQUESTS,
            dimensions_map={ours.STAGE: self._settings.stage, ours.FAULT: fault},
            statistic="Sum",
            period=period,
            label=fault,
        )

    def _own(
        self,
        name: str,
        *,
        statistic: str = "Maximum",
        dimensions: bool = True,
        period: Duration = PERIOD,
    ) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=ours.NAMESPACE,
            metric_name=name if dimensions else self._of_stage(name),
            dimensions_map={ours.STAGE: self._settings.stage} if dimensions else None,
            statistic=statistic if dimensions else "Sum",
            period=period,
        )

    def _endpoint(
        self, name: str, statistic: str, namespace: str = _OF_ENDPOINTS
    ) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=namespace,
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
                    machine.metric_throttled(period=PERIOD),
                    right=[machine.metric_time(statistic="p95", period=PERIOD)],
                )
                for name, machine in watched.machines.items()
            ),
            _graph("CreateTrainingJob refused", self._own(REFUSED, dimensions=False)),
        )
        board.add_widgets(
            _graph(
                "Failed requests, by whose fault",
                *(self._failed(fault, PERIOD) for fault in ("caller", *_OPERATORS_FAULTS)),
            ),
            self._spend(),
        )
        board.add_widgets(
            *(
                cloudwatch.LogQueryWidget(
                    title=f"{name}: p95 of {FIRST_TO_LAST}, in seconds",
                    log_group_names=[group.log_group_name],
                    query_lines=_lines(*first_to_last(ONE_PER_EXECUTION[name])),
                    view=cloudwatch.LogQueryVisualizationType.TABLE,
                    width=8,
                    height=8,
                )
                for name, group in watched.machine_logs.items()
                if name in ONE_PER_EXECUTION
            ),
            _graph(
                "Functions, p95",
                *(
                    function.metric_duration(statistic="p95", period=PERIOD, label=name)
                    for name, function in watched.functions.items()
                ),
                right=[
                    *(
                        function.metric_errors(period=PERIOD, label=f"{name} errors")
                        for name, function in watched.functions.items()
                    ),
                    *(
                        function.metric_throttles(period=PERIOD, label=f"{name} throttles")
                        for name, function in watched.functions.items()
                    ),
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
                self._endpoint("LoadedModelCount", "Average", _OF_INSTANCES),
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

    def _spend(self) -> cloudwatch.GraphWidget:
        """What today's launches can have cost: the bill is lower, but it comes a day later.

        Of the queue alone: what an app starts by itself or by an event passes no gate.
        """
        settings = self._settings
        launch = prices.launch_at_most(settings)
        at_most = cloudwatch.MathExpression(
            expression=f"launches * {launch}",
            using_metrics={
                "launches": self._own(
                    ours.LAUNCHES_TODAY, period=self._once(settings.dispatch_minutes)
                )
            },
            period=self._once(settings.dispatch_minutes),
            label=f"today's launches of the queue x {launch} at most",
        )
        return cloudwatch.GraphWidget(
            title=f"Training today at most, {prices.CURRENCY} (prices of {prices.AS_OF})",
            left=[at_most],
            left_annotations=[
                cloudwatch.HorizontalAnnotation(
                    value=prices.day_at_most(settings),
                    label="all machines of LIMNER_MAX_INSTANCES, day and night",
                )
            ],
            width=12,
        )

    def _save_query(self, name: str, group: logs.ILogGroup) -> None:
        only, statistics, order = first_to_last(ONE_PER_EXECUTION[name])
        logs.QueryDefinition(
            self,
            f"StatesQuery{name.title().replace('_', '')}",
            query_definition_name=f"{self._settings.stack_name}/{name}, p95 of {FIRST_TO_LAST}",
            query_string=logs.QueryString(
                filter_statements=[only], stats_statements=list(statistics), sort=order
            ),
            log_groups=[group],
        )


def _lines(only: str, statistics: Sequence[str], order: str) -> list[str]:
    return [f"filter {only}", *(f"stats {part}" for part in statistics), f"sort {order}"]


def _sum(period: Duration, *metrics: cloudwatch.IMetric) -> cloudwatch.MathExpression:
    """The sum of metrics that are silent while nothing happens: silence is 0, not unknown."""
    named = {f"m{number}": metric for number, metric in enumerate(metrics)}
    return cloudwatch.MathExpression(
        expression=" + ".join(f"FILL({name}, 0)" for name in named),
        using_metrics=named,
        period=period,
    )


def _graph(
    title: str, *left: cloudwatch.IMetric, right: Sequence[cloudwatch.IMetric] = ()
) -> cloudwatch.GraphWidget:
    return cloudwatch.GraphWidget(title=title, left=list(left), right=list(right), width=8)
