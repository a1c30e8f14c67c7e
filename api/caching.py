"""Answers kept for a moment: many dashboards that ask the same within a second cost the store one query.

Kept is the finished body, with its validator, by everything that shapes it (path, parameters, format). It never
depends on who asks: what a key may do is decided before. flask-caching keeps it, in this process or in Redis.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from flask import Response, current_app, request
from flask_caching import Cache
from xxhash import xxh3_128_hexdigest

from api.settings import Settings
from telemetry import metrics

log = logging.getLogger(__name__)

ENTRIES_MAX: Final = 2000
BODY_BYTES_MAX: Final = 4 << 20
"""Larger bodies are not kept: memory stays below ENTRIES_MAX times what is usual, 100 kB."""
LOCKS: Final = 64
AWAY_SECONDS: Final = 5.0
"""How long a Redis that failed is not asked again."""


class AnswerCache:
    """The cache, its counters, and one lock for each of a few groups of keys so that one miss asks once."""

    def __init__(self, settings: Settings, registry: Any) -> None:
        self._seconds = settings.cache_seconds
        self._cache = Cache()
        self._config: dict[str, Any] = {"CACHE_DEFAULT_TIMEOUT": 1, "CACHE_KEY_PREFIX": "telemetry-api:"}
        if settings.redis_url:
            self._config.update(CACHE_TYPE="RedisCache", CACHE_REDIS_URL=settings.redis_url)
        else:
            self._config.update(CACHE_TYPE="SimpleCache", CACHE_THRESHOLD=ENTRIES_MAX)
        self._locks = [threading.Lock() for _ in range(LOCKS)]
        self._away_until = 0.0
        self.hits = 0
        self.misses = 0
        metrics.on_scrape(registry, self._samples)

    def init_app(self, app: Any) -> None:
        self._cache.init_app(app, self._config)
        app.extensions["answers"] = self

    def _samples(self) -> Any:
        yield "api_cache_hits_total", (), self.hits
        yield "api_cache_misses_total", (), self.misses

    def answer(self, key: str, seconds: float, make: Callable[[], Response]) -> Response:
        """The kept response for ``key``, if it is at most ``seconds`` (and the configured age) old; else a new one."""
        age_max = min(seconds, self._seconds) if seconds <= 1 else seconds * min(1.0, self._seconds)
        if age_max <= 0:
            return make()
        response = self._kept(key, age_max)
        if response is not None:
            return response
        with self._locks[hash(key) % LOCKS]:
            response = self._kept(key, age_max)
            if response is not None:
                return response
            self.misses += 1
            response = make()
            if response.status_code == 200 and not response.is_streamed and response.content_length is not None:
                if response.content_length <= BODY_BYTES_MAX:
                    add_etag(response)
                    entry = (time.time(), response.get_data(), list(response.headers.items()))
                    self._try(lambda: self._cache.set(key, entry, timeout=max(1, round(age_max + 1))))
            return response

    def _kept(self, key: str, age_max: float) -> Response | None:
        entry = self._try(lambda: self._cache.get(key))
        if entry is None or not 0 <= time.time() - entry[0] <= age_max:
            return None
        self.hits += 1
        return Response(entry[1], headers=entry[2])

    def _try(self, use: Callable[[], Any]) -> Any:
        """Without its cache the API is slower, not broken: a Redis that is away is left alone for a while."""
        if time.monotonic() < self._away_until:
            return None
        try:
            return use()
        except Exception as error:
            log.warning("the cache is away: answers are made anew", extra={"reason": str(error)})
            self._away_until = time.monotonic() + AWAY_SECONDS
            return None


def add_etag(response: Response) -> None:
    """The validator of a whole answer: a hash of its body.

    Not werkzeug's SHA-1, which lets go of the interpreter meanwhile and waits for it afterwards (see telemetry.ids).
    """
    response.set_etag(xxh3_128_hexdigest(response.get_data()))


def cached(seconds: float) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For a GET view: its answer is good for ``seconds``. Stands above ``blp.response``, so it sees responses."""

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(view)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            answers: AnswerCache = current_app.extensions["answers"]
            arguments = sorted((k, v) for k, v in request.args.items(multi=True) if k != "api_key")
            key = f"{request.script_root}{request.path}|{arguments}|{request.headers.get('Accept', '')}"
            return answers.answer(key, seconds, lambda: current_app.make_response(view(*args, **kwargs)))

        return wrapper

    return decorate
