"""Benchmarks: `python -m tests.benchmarks.<steps | ragged | startup | embedding>`, one question per script.

Peers are extras (`pip install -e .[bench]`); one that is not installed is said to be, and left out.
"""
