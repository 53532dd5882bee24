"""What a server has done, as Prometheus reads it: https://prometheus.io/docs/instrumenting/exposition_formats/."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds


class Counts:
    """Requests by route and status, and how long they took."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.labels: Counter[str] = Counter()
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.seconds = 0.0

    def request(self, route: str, status: int, seconds: float) -> None:
        self.requests[route, status] += 1
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def to_text(self, rows: int) -> str:
        lines = ["# TYPE weightsearch_requests_total counter"]
        for (route, status), count in sorted(self.requests.items()):
            lines.append(f'weightsearch_requests_total{{route="{route}",status="{status}"}} {count}')
        lines.append("# TYPE weightsearch_answers_total counter")
        lines += [f'weightsearch_answers_total{{label="{name}"}} {n}' for name, n in sorted(self.labels.items())]
        lines.append("# TYPE weightsearch_request_seconds histogram")
        total = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.buckets, strict=True):
            total += count
            lines.append(f'weightsearch_request_seconds_bucket{{le="{bound}"}} {total}')
        lines += [f"weightsearch_request_seconds_sum {self.seconds:.6f}", f"weightsearch_request_seconds_count {total}"]
        lines += ["# TYPE weightsearch_index_rows gauge", f"weightsearch_index_rows {rows}"]
        return "\n".join(lines) + "\n"
