"""Tests, and the model directories, servers and proxies that tests and benchmarks share."""
