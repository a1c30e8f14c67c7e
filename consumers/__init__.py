"""Collectors: from broker deliveries to rows in ClickHouse, exactly once."""
