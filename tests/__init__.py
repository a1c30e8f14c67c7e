"""Tests, by layer: unit, contract, simulation, integration, e2e, chaos."""
