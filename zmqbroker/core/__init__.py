"""The broker's decisions, without I/O: events in, effects out.

Nothing here reads a clock, a socket or a file; time and randomness come in. The simulator and the server use the
same door, :meth:`zmqbroker.core.broker.Core.handle`.
"""
