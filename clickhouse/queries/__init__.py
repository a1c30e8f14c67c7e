"""Questions to the store: a function each, typed answers, values bound by the server.

``presence``   is a batch stored (R13)?        ``gpus``       which GPUs are there, what is their latest value?
``telemetry``  the rows of a GPU, in order     ``stats``      how much is stored
"""

from clickhouse.queries.presence import Probe, presence, presence_of_rejects

__all__ = ["Probe", "presence", "presence_of_rejects"]
