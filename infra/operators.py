"""How operators hear of trouble: a topic for alarms, and a budget."""

from __future__ import annotations

from aws_cdk import Aws
from aws_cdk import aws_budgets as budgets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from infra.settings import StageSettings


class Operators(Construct):
    """The topic of alarms, with the mail address of the settings, and the budget.

    The alarm on launches rings within minutes but counts jobs, not dollars. The budget counts
    dollars but hears of them hours later. AWS/Billing's metric is left out: it exists in us-east-1
    alone and says no more than the budget. A budget cannot see which stage a training job belongs
    to, so it counts SageMaker in the whole account: give each stage its own.

    Attributes:
        topic: Where alarms go.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        settings: StageSettings,
        key: kms.IKey | None = None,
    ) -> None:
        super().__init__(scope, construct_id)
        self.topic: sns.ITopic
        if settings.alarm_topic_arn:
            self.topic = sns.Topic.from_topic_arn(self, "Topic", settings.alarm_topic_arn)
        else:
            self.topic = sns.Topic(self, "Topic", enforce_ssl=True, master_key=key)
            # A policy of our own (TLS only) replaces the one that lets the account's alarms in.
            self.topic.add_to_resource_policy(
                iam.PolicyStatement(
                    sid="Alarms",
                    principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                    actions=["sns:Publish"],
                    resources=[self.topic.topic_arn],
                    conditions={"StringEquals": {"aws:SourceAccount": Aws.ACCOUNT_ID}},
                )
            )
            if settings.alarm_email:
                self.topic.add_subscription(subscriptions.EmailSubscription(settings.alarm_email))
        if settings.budget_usd:
            self._budget(settings.budget_usd, settings.alarm_email)

    def _budget(self, usd: int, mail: str) -> None:
        budget = budgets.CfnBudget
        subscriber = budget.SubscriberProperty(address=mail, subscription_type="EMAIL")
        budget(
            self,
            "Budget",
            budget=budget.BudgetDataProperty(
                budget_type="COST",
                time_unit="MONTHLY",
                budget_limit=budget.SpendProperty(amount=usd, unit="USD"),
                cost_filters={"Service": ["Amazon SageMaker"]},
            ),
            notifications_with_subscribers=[
                budget.NotificationWithSubscribersProperty(
                    notification=budget.NotificationProperty(
                        notification_type=kind,
                        comparison_operator="GREATER_THAN",
                        threshold=100,
                        threshold_type="PERCENTAGE",
                    ),
                    subscribers=[subscriber],
                )
                for kind in ("ACTUAL", "FORECASTED")
            ],
        )
