"""A durable, credit-based ZeroMQ message broker. Payload-agnostic: it reads headers, never bodies."""
