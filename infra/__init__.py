"""The CDK app: settings, one construct per capability, a thin stack, and what is published of it.

Importing this package makes sure that aws_cdk, which is a Node program at heart, finds a Node.
"""

from infra.node import find_node

find_node()
