"""Alerts over time: since when each fires, who silenced it, and who is told.

Rules are evaluated when somebody asks (at most every FRESH_SECONDS) and, where a webhook or an Alertmanager is
configured, by a thread. Silences outlive a restart in the state directory.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
import urllib3

from api.alerts.evaluate import Evaluator, Firing
from api.errors import Problem
from api.times import format_ms
from clickhouse.errors import StoreError

log = logging.getLogger(__name__)

FRESH_SECONDS: Final = 10.0
NOTIFY_TIMEOUT_SECONDS: Final = 5.0
SEVERITY_ORDER: Final = {"critical": 0, "warning": 1, "info": 2}


def alert_id(firing: Firing) -> str:
    """The same for the same rule and GPU (or host), whenever it fires."""
    text = f"{firing.rule.name}\0{firing.gpu_id}\0{firing.hostname if not firing.gpu_id else ''}"
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class Alerts:
    """The alerts of this process. Thread-safe."""

    def __init__(
        self,
        evaluator: Evaluator,
        *,
        state_file: Path | None = None,
        webhook: str = "",
        alertmanager: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._evaluator = evaluator
        self._state_file = state_file
        self._webhook = webhook
        self._alertmanager = alertmanager.rstrip("/")
        self._clock = clock
        self._lock = threading.Lock()
        self._evaluating = threading.Lock()
        self._current: dict[str, dict[str, Any]] = {}
        self._warnings: list[str] = []
        self._evaluated = 0.0
        self._silences: dict[str, dict[str, Any]] = self._load()
        self._http = urllib3.PoolManager(timeout=NOTIFY_TIMEOUT_SECONDS, retries=False)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float) -> None:
        """Evaluate and notify every ``seconds``, if anybody is to be told."""
        if seconds > 0 and (self._webhook or self._alertmanager):
            self._thread = threading.Thread(target=self._run, args=(seconds,), name="alerts", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(1.0)

    def _run(self, seconds: float) -> None:
        while not self._stopping.wait(seconds):
            try:
                self.refresh()
            except StoreError as error:
                log.warning("alert rules were not evaluated", extra={"reason": str(error)})
            except Exception:
                log.exception("alert rules were not evaluated")

    def current(self) -> tuple[list[dict[str, Any]], list[str]]:
        """(alerts, the worst first; warnings), not older than FRESH_SECONDS. Raises StoreError."""
        with self._evaluating:
            # Ten dashboards that ask at once cost one evaluation.
            if self._clock() - self._evaluated > FRESH_SECONDS:
                self.refresh()
        with self._lock:
            alerts = [self._with_silence(alert) for alert in self._current.values()]
            warnings = list(self._warnings)
        alerts.sort(key=lambda a: (SEVERITY_ORDER[a["severity"]], a["hostname"], a["rule"], a["gpu_id"]))
        return alerts, warnings

    def refresh(self) -> None:
        """Evaluate all rules now and tell whoever is to be told."""
        firing, warnings = self._evaluator.evaluate()
        now_ms = int(self._clock() * 1000)
        with self._lock:
            before = self._current
            self._current = {}
            for one in firing:
                key = alert_id(one)
                since_ms = min(one.since_ms, before[key]["since_ms"]) if key in before else one.since_ms
                self._current[key] = _document(key, one, since_ms)
            self._warnings = warnings
            self._evaluated = self._clock()
            began = [alert for key, alert in self._current.items() if key not in before]
            ended = [alert for key, alert in before.items() if key not in self._current]
            self._silences = {k: s for k, s in self._silences.items() if s["until_ms"] > now_ms}
            told = [alert for alert in began + ended if self._with_silence(alert)["state"] != "silenced"]
        if self._webhook and told:
            states = {alert["id"]: "firing" for alert in began} | {alert["id"]: "resolved" for alert in ended}
            self._post(self._webhook, {"alerts": [{**alert, "state": states[alert["id"]]} for alert in told]})
        if self._alertmanager and self._current:
            self._post(f"{self._alertmanager}/api/v2/alerts", [_for_alertmanager(a) for a in self._current.values()])

    def silence(self, key: str, *, until_ms: int, comment: str, author: str) -> dict[str, Any]:
        """Silence an alert that fires; a 404 problem for any other. The alert as it is now."""
        with self._lock:
            alert = self._current.get(key)
            if alert is None:
                raise Problem(404, f"no alert {key!r} fires; GET /api/v1/alerts lists those that do")
            self._silences[key] = {"until_ms": until_ms, "comment": comment, "author": author}
            self._save()
            return self._with_silence(alert)

    def end_silence(self, key: str) -> None:
        """Take a silence back; a 404 problem if there is none."""
        with self._lock:
            if self._silences.pop(key, None) is None:
                raise Problem(404, f"the alert {key!r} is not silenced")
            self._save()

    def _with_silence(self, alert: dict[str, Any]) -> dict[str, Any]:
        silence = self._silences.get(alert["id"])
        silenced = silence is not None and silence["until_ms"] > self._clock() * 1000
        found = {name: value for name, value in alert.items() if name != "since_ms"}
        found["state"] = "silenced" if silenced else "firing"
        found["silence"] = (
            {
                "until": format_ms(silence["until_ms"]),
                "comment": silence["comment"],
                "author": silence["author"],
            }
            if silence is not None and silenced
            else None
        )
        return found

    def _load(self) -> dict[str, dict[str, Any]]:
        if self._state_file is None or not self._state_file.exists():
            return {}
        try:
            found = orjson.loads(self._state_file.read_bytes())
        except (OSError, orjson.JSONDecodeError) as error:
            log.error("silences cannot be read and are forgotten", extra={"reason": str(error)})
            return {}
        return found if isinstance(found, dict) else {}

    def _save(self) -> None:
        if self._state_file is None:
            return
        part = self._state_file.with_suffix(".part")
        part.write_bytes(orjson.dumps(self._silences))
        os.replace(part, self._state_file)

    def _post(self, url: str, body: Any) -> None:
        try:
            answer = self._http.request(
                "POST", url, body=orjson.dumps(body), headers={"Content-Type": "application/json"}
            )
            if answer.status >= 300:
                log.warning("alerts were not taken", extra={"status": answer.status})
        except urllib3.exceptions.HTTPError as error:
            log.warning("alerts could not be sent", extra={"reason": str(error)})


def _document(key: str, firing: Firing, since_ms: int) -> dict[str, Any]:
    rule = firing.rule
    return {
        "id": key,
        "rule": rule.name,
        "severity": firing.severity or rule.severity,
        "summary": firing.summary or rule.summary,
        "action": firing.action or rule.action,
        "gpu_id": firing.gpu_id,
        "hostname": firing.hostname,
        "since": format_ms(since_ms),
        "since_ms": since_ms,
        "evidence": {"metrics": list(rule.metrics), "values": firing.values},
    }


def _for_alertmanager(alert: dict[str, Any]) -> dict[str, Any]:
    labels = {"alertname": alert["rule"], "severity": alert["severity"]}
    labels |= {name: alert[name] for name in ("gpu_id", "hostname") if alert[name]}
    annotations = {"summary": alert["summary"], "action": alert["action"]}
    annotations["values"] = orjson.dumps(alert["evidence"]["values"]).decode()
    return {"labels": labels, "annotations": annotations, "startsAt": alert["since"]}
