"""Measurements of time, memory and quality. They report; the tests assert."""
