"""The Lambda functions: ``handler`` parses, calls and formats, ``logic`` decides and is pure.

The functions use boto3, which the Lambda runtime brings along, the standard library, and the
modules of ``limner.contracts`` that need nothing else. So the bundle is this folder and that one.
"""
