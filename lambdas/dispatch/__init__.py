"""Gives waiting requests to executions, within a rate, a budget of instances, and fairly."""
