"""Simulated federations: scenarios, data sets, engines, studies and reports."""

from fedlora.threads import wait_without_spinning

wait_without_spinning()
