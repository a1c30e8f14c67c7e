"""Query parameters that several endpoints share, described once."""

from __future__ import annotations

from typing import Any, Final

import marshmallow as ma
from flask_smorest import Blueprint
from marshmallow import fields

from api.times import Duration, Time

PAGE_SIZE: Final = 100
PAGE_SIZE_MAX: Final = 1000
PAGE_MAX: Final = 1_000_000
"""Far above any fleet; deep pages cost the store what they skip, which the scan limit bounds: use cursors."""

FORMATS: Final = ("json", "csv", "ndjson", "arrow", "parquet")

# The library lets unknown query parameters pass whatever a schema says of them; ours say that they may not.
Blueprint.ARGUMENTS_PARSER.DEFAULT_UNKNOWN_BY_LOCATION = {
    **Blueprint.ARGUMENTS_PARSER.DEFAULT_UNKNOWN_BY_LOCATION,
    "query": None,
}


class Names(fields.Field):
    """Names separated by commas, or the parameter repeated; deserialises to a tuple without repeats."""

    def __init__(self, *, names_max: int = 100, **kwargs: Any) -> None:
        metadata = kwargs.setdefault("metadata", {})
        metadata.setdefault("type", "string")
        super().__init__(**kwargs)
        self._names_max = names_max

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> tuple[str, ...]:
        texts = value if isinstance(value, (list, tuple)) else [value]
        names = tuple(dict.fromkeys(part.strip() for text in texts for part in str(text).split(",") if part.strip()))
        if len(names) > self._names_max:
            raise ma.ValidationError(f"at most {self._names_max} names")
        if any("\0" in name for name in names):
            raise ma.ValidationError("a name holds no NUL character")
        return names


def plain(description: str, **kwargs: Any) -> fields.String:
    """A text parameter."""
    return fields.String(
        validate=[ma.validate.Length(min=1, max=512), ma.validate.ContainsNoneOf("\0")],
        metadata={"description": description},
        **kwargs,
    )


class Parameters(ma.Schema):
    """Base of all: a parameter that an endpoint does not know is refused, so that a misspelt filter never passes."""

    class Meta:
        unknown = ma.RAISE


class PageParameters(Parameters):
    """Paging by number."""

    page = fields.Integer(
        load_default=1,
        validate=ma.validate.Range(1, PAGE_MAX),
        metadata={"description": "Page number, from 1", "example": 1},
    )
    page_size = fields.Integer(
        validate=ma.validate.Range(1, PAGE_SIZE_MAX),
        metadata={"description": f"Items a page, default {PAGE_SIZE}", "example": PAGE_SIZE},
    )
    limit = fields.Integer(
        validate=ma.validate.Range(1, PAGE_SIZE_MAX),
        metadata={"description": "The same as page_size, for clients that say limit"},
    )

    @ma.post_load
    def _one_size(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        limit = data.pop("limit", None)
        data.setdefault("page_size", limit or PAGE_SIZE)
        return data


class FormatParameters(Parameters):
    """Another format than JSON, for clients that cannot set Accept."""

    format = fields.String(
        validate=ma.validate.OneOf(FORMATS), metadata={"description": "Answer in this format, instead of by Accept"}
    )


class RangeParameters(Parameters):
    """A range of time, both ends included."""

    start_time = Time(up=True, metadata={"description": "First instant (inclusive)", "example": "now-1h"})
    end_time = Time(metadata={"description": "Last instant (inclusive)", "example": "now"})

    @ma.validates_schema
    def _in_order(self, data: dict[str, Any], **kwargs: Any) -> None:
        start, end = data.get("start_time"), data.get("end_time")
        if start is not None and end is not None and start > end:
            raise ma.ValidationError("is before start_time: swap the two", "end_time")


class TelemetryParameters(PageParameters, RangeParameters, FormatParameters):
    """What samples are asked for."""

    metric_name = Names(
        metadata={
            "description": "Metric names, separated by commas; aliases are understood",
            "example": "DCGM_FI_DEV_GPU_TEMP",
        }
    )
    order = fields.String(
        load_default="asc",
        validate=ma.validate.OneOf(("asc", "desc")),
        metadata={"description": "Time order: asc (oldest first) or desc"},
    )
    cursor = plain("Where the page before ended (`next_cursor`); pages of any depth cost the same")


class FleetTelemetryParameters(TelemetryParameters):
    """Samples across GPUs."""

    gpu_id = Names(names_max=1000, metadata={"description": "GPU ids, separated by commas"})
    hostname = Names(metadata={"description": "Hosts, separated by commas"})
    namespace = plain("Only GPUs that a pod of this namespace held")
    pod = plain("Only GPUs that this pod held")


class SeriesParameters(RangeParameters, FormatParameters):
    """What a chart asks for."""

    metric_name = Names(
        required=True, metadata={"description": "Metric names, separated by commas", "example": "DCGM_FI_DEV_GPU_TEMP"}
    )
    step = Duration(
        metadata={
            "description": "Time that one point stands for, such as 30s, 5m or 1h; left out: chosen by max_points"
        }
    )
    agg = fields.String(
        load_default="avg",
        validate=ma.validate.OneOf(("avg", "min", "max", "sum", "count", "last", "p50", "p95", "p99", "rate")),
        metadata={"description": "How the samples of a step become one value; rate: increase a second, for counters"},
    )
    max_points = fields.Integer(
        load_default=500,
        validate=ma.validate.Range(2, 11_000),
        metadata={"description": "Points a series at most; extremes are kept in min and max"},
    )
    resolution = fields.String(
        load_default="auto",
        validate=ma.validate.OneOf(("auto", "raw", "1m", "1h")),
        metadata={"description": "Where numbers are taken from; auto picks by range and step"},
    )
