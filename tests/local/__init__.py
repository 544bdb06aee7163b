"""Tests of `deepseek_resilient.local`."""
