"""The shapes of answers. They document and are held against real answers by tests; they do not convert.

Rows leave the store typed and in the right shape, so running each through marshmallow again would cost more than
the query (1,000 rows: 8 ms against 1 ms).
"""

from __future__ import annotations

from typing import Any, Final

import marshmallow as ma
from marshmallow import fields

GPU_ID: Final = "GPU-5fd4f087-86f3-7a43-b711-4771313afc50"
TIME: Final = "2025-07-18T20:42:34.000Z"


class Document(ma.Schema):
    """A schema whose ``dump`` passes the answer on as it is."""

    class Meta:
        # Additions are no breach of the contract: clients must not refuse what they do not know.
        unknown = ma.EXCLUDE

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        return obj


def text(description: str, example: str | None = None, **kwargs: Any) -> fields.String:
    """A string field with description and example."""
    metadata: dict[str, Any] = {"description": description}
    if example is not None:
        metadata["example"] = example
    return fields.String(metadata=metadata, **kwargs)


def time_field(description: str, **kwargs: Any) -> fields.String:
    """A point in time, RFC 3339 in UTC with milliseconds."""
    return fields.String(metadata={"description": description, "format": "date-time", "example": TIME}, **kwargs)


def number(description: str, example: float | None = None, **kwargs: Any) -> fields.Float:
    metadata: dict[str, Any] = {"description": description}
    if example is not None:
        metadata["example"] = example
    return fields.Float(metadata=metadata, **kwargs)


def whole(description: str, example: int | None = None, **kwargs: Any) -> fields.Integer:
    metadata: dict[str, Any] = {"description": description}
    if example is not None:
        metadata["example"] = example
    return fields.Integer(metadata=metadata, **kwargs)


class PageSchema(Document):
    """What every page of a list tells about itself."""

    total = whole("Items in all; not told when paging by cursor", 247)
    page = whole("Number of this page, from 1; not told when paging by cursor", 1)
    page_size = whole("Items a page holds at most", 100, required=True)
    next_cursor = text("Cursor of the next page, null on the last one", allow_none=True)


class GpuSchema(Document):
    """A GPU, as its last known labels describe it."""

    id = text("Identity: the uuid, or hostname:index where there is none", GPU_ID, required=True)
    device = text("Device name in its host", "nvidia0")
    gpu_index = text("Index in its host", "0")
    model_name = text("Model", "NVIDIA H100 80GB HBM3")
    hostname = text("Host", "mtv5-dgx1-hgpu-031")
    cluster = text("Cluster, empty if not told", "")
    first_seen = time_field("Time of its first sample")
    last_seen = time_field("Time of its latest sample")
    status = text(
        "active: seen within 60 s; stale: within 1 h; lost: longer ago",
        "active",
        validate=ma.validate.OneOf(("active", "stale", "lost")),
    )


class LatestSchema(Document):
    """The latest value of one metric."""

    metric_name = text("Canonical metric name", "DCGM_FI_DEV_GPU_TEMP", required=True)
    value = number("Value in `unit`", 41.0, required=True)
    unit = text("Unit", "C")
    timestamp = time_field("Time of the sample", required=True)
    help = text("What the metric means", "GPU core temperature")


class GpuDetailSchema(GpuSchema):
    """One GPU with its latest values and attribution."""

    uuid = text("UUID, empty if not told", GPU_ID)
    container = text("Container that held it last", "")
    pod = text("Pod that held it last", "")
    namespace = text("Namespace of the pod", "")
    job = text("Job that held it last", "")
    labels = fields.Dict(keys=fields.String(), values=fields.String(), metadata={"description": "Every other label"})
    latest = fields.List(fields.Nested(LatestSchema), metadata={"description": "Latest value of every metric, by name"})


class GpuListSchema(PageSchema):
    """A page of GPUs."""

    gpus = fields.List(fields.Nested(GpuSchema), required=True)


class SampleSchema(Document):
    """One sample."""

    timestamp = time_field("When it was measured", required=True)
    metric_name = text("Canonical metric name", "DCGM_FI_DEV_GPU_UTIL", required=True)
    value = number("Value in the metric's unit", 87.0, required=True)
    device = text("Device name in its host", "nvidia0")
    hostname = text("Host", "mtv5-dgx1-hgpu-031")


class FleetSampleSchema(SampleSchema):
    """One sample of some GPU."""

    gpu_id = text("The GPU", GPU_ID, required=True)


class GpuTelemetrySchema(PageSchema):
    """Samples of one GPU."""

    gpu_id = text("The GPU", GPU_ID, required=True)
    telemetry = fields.List(fields.Nested(SampleSchema), required=True)


class TelemetrySchema(PageSchema):
    """Samples across GPUs."""

    telemetry = fields.List(fields.Nested(FleetSampleSchema), required=True)


class PointSchema(Document):
    """One point of a series: `value` by `agg`, with the extremes of what it stands for."""

    timestamp = time_field("Start of the step, or the sample's own time at raw resolution", required=True)
    value = number("Aggregate in the metric's unit", 41.0, allow_none=True)
    min = number("Smallest sample", 40.0, allow_none=True)
    max = number("Largest sample", 43.0, allow_none=True)


class OneSeriesSchema(Document):
    """One metric over time."""

    metric_name = text("Canonical metric name", "DCGM_FI_DEV_GPU_TEMP", required=True)
    unit = text("Unit", "C")
    kind = text("gauge or counter", "gauge")
    points = fields.List(fields.Nested(PointSchema), required=True)


class SeriesSchema(Document):
    """Series of one GPU for charts."""

    gpu_id = text("The GPU", GPU_ID, required=True)
    start_time = time_field("First instant asked for", required=True)
    end_time = time_field("Last instant asked for", required=True)
    step_seconds = number("Seconds a point stands for; 0 = single samples", 60.0, required=True)
    agg = text("Aggregate of `value`", "avg", required=True)
    resolution = text("Where the numbers come from: raw, 1m or 1h", "raw", required=True)
    downsampled = fields.Boolean(metadata={"description": "True if max_points thinned the points out"})
    series = fields.List(fields.Nested(OneSeriesSchema), required=True)
    warnings = fields.List(fields.String(), metadata={"description": "What the answer leaves out, if anything"})


class FleetGpuSchema(Document):
    """One cell of the fleet."""

    id = text("The GPU", GPU_ID, required=True)
    gpu_index = text("Index in its host", "0")
    value = number("Latest value, null if none within an hour", 87.0, allow_none=True)
    status = text("active, stale or lost", "active")
    pod = text("Pod that holds it", "")
    namespace = text("Namespace of the pod", "")


class FleetHostSchema(Document):
    """One host of the fleet."""

    hostname = text("Host", "mtv5-dgx1-hgpu-031", required=True)
    gpus = fields.List(fields.Nested(FleetGpuSchema), required=True)


class FleetTotalsSchema(Document):
    """The fleet in numbers."""

    gpus = whole("GPUs ever seen", 247)
    hosts = whole("Hosts ever seen", 31)
    reporting = whole("Seen within 60 s", 247)
    stale = whole("Seen within 1 h", 0)
    lost = whole("Not seen for over 1 h", 0)
    allocated = whole("Reporting and held by a pod or job", 120)
    active = whole("Allocated and working (SM or engine active, or utilisation, above 5 %)", 100)
    idle_allocated = whole("Allocated but not working", 20)
    working = whole("Reporting and working, whether allocated or not", 110)
    power_watts = number("Power of the reporting GPUs, in W", 81_000.0, allow_none=True)
    mean_utilization = number("Mean GPU utilisation of the reporting GPUs, in %", 62.0, allow_none=True)


class FleetSchema(Document):
    """The whole fleet in one small answer."""

    metric_name = text("The metric of `value`", "DCGM_FI_DEV_GPU_UTIL", required=True)
    unit = text("Its unit", "%")
    timestamp = time_field("When this was true", required=True)
    totals = fields.Nested(FleetTotalsSchema, required=True)
    hosts = fields.List(fields.Nested(FleetHostSchema), required=True)


class HostSchema(Document):
    """A host with its GPUs counted."""

    name = text("Host", "mtv5-dgx1-hgpu-031", required=True)
    cluster = text("Cluster", "")
    gpus = whole("GPUs ever seen in it", 8, required=True)
    active = whole("Of these, seen within 60 s", 8)
    models = fields.List(fields.String(), metadata={"description": "Models in it"})
    first_seen = time_field("Time of its first sample")
    last_seen = time_field("Time of its latest sample")


class HostListSchema(PageSchema):
    """A page of hosts."""

    hosts = fields.List(fields.Nested(HostSchema), required=True)


class HostDetailSchema(HostSchema):
    """One host and its GPUs with their latest values."""

    gpu_list = fields.List(fields.Nested(GpuDetailSchema), required=True)


class MetricSchema(Document):
    """A metric of the catalogue, or one that was only seen."""

    name = text("Canonical name", "DCGM_FI_DEV_GPU_TEMP", required=True)
    unit = text("Unit of stored values", "C", required=True)
    kind = text("gauge or counter", "gauge")
    help = text("What it means", "GPU core temperature")
    aliases = fields.List(fields.String(), metadata={"description": "Other names that mean the same"})
    seen = fields.Boolean(metadata={"description": "True if the store holds samples of it"})


class MetricListSchema(Document):
    """Every metric known or seen."""

    metrics = fields.List(fields.Nested(MetricSchema), required=True)
    total = whole("Metrics in all", 60, required=True)


class GenericSchema(Document):
    """An object whose members the operation's description names."""

    class Meta:
        unknown = ma.INCLUDE


class EventSchema(Document):
    """Something that happened to a GPU or to the pipeline."""

    timestamp = time_field("When", required=True)
    kind = text("xid, gap or recovery", "xid", required=True)
    severity = text("info, warning or critical", "critical", required=True)
    gpu_id = text("The GPU, empty for the pipeline's events", GPU_ID)
    hostname = text("Host", "mtv5-dgx1-hgpu-031")
    code = whole("XID code, or null", 79, allow_none=True)
    message = text("What it means", "GPU has fallen off the bus")
    action = text("What to do", "reboot the node; repeated: replace the GPU")


class EventListSchema(PageSchema):
    """A page of events."""

    events = fields.List(fields.Nested(EventSchema), required=True)


class RejectSchema(Document):
    """A row that was refused, and why."""

    timestamp = text("The row's own time, as it came", TIME)
    rejected_at = time_field("When it was refused")
    reason = text("Why", "no_identity", required=True)
    gpu_id = text("What it said of the GPU", "")
    hostname = text("What it said of the host", "")
    metric_name = text("Its metric", "DCGM_FI_DEV_GPU_TEMP")
    value = text("Its value, as text", "nan")
    detail = text("What exactly was wrong", "")
    session = text("Session of the producer that sent it, in hexadecimal", "0000000000000007")
    seq = whole("Number of its batch in the session", 1)
    row = whole("Its place in the batch, from 0", 0)


class RejectListSchema(PageSchema):
    """A page of refused rows."""

    rejects = fields.List(fields.Nested(RejectSchema), required=True)
    reasons = fields.Dict(
        keys=fields.String(), values=fields.Integer(), metadata={"description": "Refused rows by reason"}
    )
