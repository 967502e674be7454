"""Faults, and the small worlds in which they are tried out.

``plan``         trouble on any boto3 call, at the one seam that all of them pass
``expressions``  DynamoDB's condition and update expressions, compiled
``dynamo``       the two tables in memory, with the interface of a boto3 client
``sites``        every write of the published machines and of the code, found by reading them
``machine``      a published machine, executed state by state in virtual time
"""
