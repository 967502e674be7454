"""The state machines of Limner, in Python, and their published form in ``workflows/asl``.

``workflows.asl`` reads the published form and needs no CDK; ``workflows.retries`` is plain data.
The modules that build states (``tasks``, ``onboard``) import aws_cdk, which starts a Node process.
"""
