"""The routes: pages rendered by the words of the terminal, and the same as JSON."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from weightsearch.checkpoints.metadata import interpret
from weightsearch.errors import WeightsearchError
from weightsearch.files import plain
from weightsearch.html_template import render_html
from weightsearch.search import wording
from weightsearch.search.answer import SCHEMA
from weightsearch.search.index import Index
from weightsearch.search.sweep import Seen, Sweep, ranked
from weightsearch.search.sweep import told as told_of
from weightsearch.server.asking import Desk, Told, temporary_folder
from weightsearch.server.counts import Counts
from weightsearch.server.guard import Guard
from weightsearch.server.options import ServeOptions
from weightsearch.server.pictures import Maps, graph, histogram
from weightsearch.server.schema import openapi

LETTERS_SHOWN = 500  # of what was searched for, to be mended
WORDS = {
    "good": "good",
    "middling": "middling",
    "bad": "bad",
    "early": "early",
    "unlike": "unlike anything known",
    "unknown": "unsure",
}  # what stands above an answer of that label
ICONS = {"good": "✔", "middling": "●", "bad": "✖", "early": "…", "unlike": "!", "unknown": "?"}


def create_app(index: Index | str | Path, options: ServeOptions | None = None) -> Starlette:
    """The ASGI application that answers from one index.

    Example:
        >>> from starlette.testclient import TestClient
        >>> TestClient(create_app("index"), base_url="http://localhost").get("/healthz").json()
        {'status': 'ok'}
    """
    options = options or ServeOptions()
    opened = index if isinstance(index, Index) else Index.open(index)
    return _app(_Pages(opened, options))


def _app(pages: _Pages) -> Starlette:
    options = pages.options
    routes = [
        Route("/", pages.home),
        Route("/ask", pages.ask, methods=["POST"]),
        Route("/examples/{name}", pages.example),
        Route("/checkpoints/{id}", pages.checkpoint),
        Route("/runs/{run:path}", pages.run),
        Route("/search", pages.search),
        Route("/api/query", pages.api_query, methods=["POST"]),
        Route("/api/checkpoints/{id}", pages.api_checkpoint),
        Route("/api/info", pages.api_info),
        Route("/api/schema", pages.api_schema),
        Route("/healthz", pages.health),
        Route("/metrics", pages.metrics),
        Mount("/static", StaticFiles(directory=str(files("weightsearch.server") / "static"))),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        pages.start()
        try:
            yield
        finally:
            pages.desk.readers.close()

    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[Middleware(Guard, options=options, counts=pages.counts)],
        exception_handlers={HTTPException: pages.failed, WeightsearchError: pages.failed},
    )


def serve(index: str | Path, options: ServeOptions, on_open: Callable[[], None] = lambda: None) -> None:
    """Serves until Ctrl-C; `on_open` is called once the index has been opened."""
    import uvicorn

    pages = _Pages(Index.open(index), options)
    on_open()
    pages.load()  # before uvicorn takes Ctrl-C, which would wait for it
    uvicorn.run(
        _app(pages), host=options.host, port=options.port, log_level="warning", server_header=False,
        timeout_keep_alive=5, h11_max_incomplete_event_size=32_768,
    )  # fmt: skip


class _Pages:
    def __init__(self, index: Index, options: ServeOptions) -> None:
        self.index = index
        self.options = options
        self.counts = Counts()
        self.desk = Desk(index, options)
        self.maps = Maps(index)
        examples = sorted((index.path / "examples").glob("*.pt"))
        self.examples = {path.stem: path for path in examples}

    def start(self) -> None:
        """Starts the processes that read files, and loads what the first question would wait for."""
        self.desk.readers.start()
        self.load()

    def load(self) -> None:
        for fingerprint in self.index.architectures:
            if self.index.store.count(fingerprint):
                self.index.store.load(fingerprint)
                self.maps.of(fingerprint)

    async def failed(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 422
        text = str(error.detail) if isinstance(error, HTTPException) else str(error).removeprefix("--where ")
        headers = dict(getattr(error, "headers", None) or {})
        if request.url.path.startswith("/api/"):
            return JSONResponse({"schema": SCHEMA, "error": text}, status, headers)
        asked = request.query_params.get("q", "")[:LETTERS_SHOWN]
        return self._page("serve_failed.html", status, headers, error=text, asked=asked)

    async def home(self, request: Request) -> Response:
        return self._page("serve_home.html")

    async def ask(self, request: Request) -> Response:
        """The card of one file; of several, the table of their runs, as a page or with `?as=csv` to keep."""
        with temporary_folder() as folder:
            sent = await self.desk.uploads(request, Path(folder))
            answered: dict[str, Told] = {}
            failures: list[tuple[str, str]] = []
            for number, (name, path) in enumerate(sent):
                try:
                    unique = name if name not in answered else f"{name} ({number})"
                    answered[unique] = await self._answered(path, name)
                except WeightsearchError as error:
                    if len(sent) == 1:
                        raise
                    failures.append((name, str(error)))
        as_csv = request.query_params.get("as") == "csv"
        if len(sent) == 1 and not as_csv:
            return self._card(*answered.values())
        table = _table_of(answered, failures)
        if as_csv:
            kept = {"Content-Disposition": 'attachment; filename="runs.csv"'}
            return Response(table.to_csv(), 200, kept, "text/csv; charset=utf-8")
        return self._page(
            "serve_table.html", table=table, answers=answered, icons=ICONS, words=WORDS, remarks=wording.remarks
        )

    async def example(self, request: Request) -> Response:
        path = self.examples.get(request.path_params["name"])
        if path is None:
            raise HTTPException(404, "there is no such example")
        return self._card(await self._answered(path, path.name))

    async def _answered(self, path: Path, name: str, **asked: Any) -> Told:
        told = await self.desk.answer_upload(path, name, **asked)
        self.counts.labels[told.answer.label] += 1
        return told

    async def checkpoint(self, request: Request) -> Response:
        return self._card(Told(await run_in_threadpool(self.desk.ask, id=request.path_params["id"]), None, {}))

    async def run(self, request: Request) -> Response:
        return await self._rows("run", request.path_params["run"])

    async def search(self, request: Request) -> Response:
        """By an id's beginning, a run's name, or an SQL condition."""
        text = request.query_params.get("q", "").strip()
        if text and len(text) >= 4 and not set(text) - set("0123456789abcdef"):
            return RedirectResponse(f"/checkpoints/{text}", 303)
        return await self._rows("condition" if set(text) & set("<>=(") else "run", text)

    async def _rows(self, by: str, text: str) -> Response:
        def find() -> list[dict[str, Any]]:
            with self.desk._one:
                return rows_of(self.index, by, text)

        rows = await run_in_threadpool(find)
        if not rows:
            raise HTTPException(404, f"no checkpoint of {by} {text}")
        recipes = [row["recipe"] for row in rows]
        alike = all(recipe == recipes[0] for recipe in recipes)  # then it stands once, above
        return self._page(
            "serve_rows.html",
            title=f"{by} {text}",
            asked=text,
            recipe=recipes[0] if alike else None,
            target=self.index.target.column,
            count=len(rows),
            rows=rows[: self.options.most_rows],
        )

    def _card(self, told: Told) -> Response:
        answer = told.answer
        sides = zip(wording.tables(answer)[1:], (answer.good, answer.bad), strict=True)
        return self._page(
            "serve_card.html",
            answer=answer,
            icon=ICONS[answer.label],
            word=WORDS[answer.label],
            about=wording.about(answer),
            warnings=wording.remarks(answer),
            sides=list(sides),
            layers=wording.layers_table(answer) if answer.layers else None,
            histogram=histogram(self.index, answer),
            map=self.maps.around(answer),
            relations=told.relations,
            graph=graph(told.relations),
        )

    def _page(self, template: str, status: int = 200, headers: dict[str, str] | None = None, **values: Any) -> Response:
        common = {"asked": "", "summary": self.index._summary(), "examples": list(self.examples)}
        text = render_html(template, **{**common, "recipe_text": wording.recipe_text, **values})
        return Response(text, status, headers, "text/html; charset=utf-8")

    async def api_query(self, request: Request) -> Response:
        """One object for a raw body, one a file for a form."""
        asked: dict[str, Any] = {
            key: request.query_params[key]
            for key in ("where", "good", "bad", "activation", "run")
            if key in request.query_params
        }
        try:
            asked["k"] = min(100, max(1, int(request.query_params.get("k", "10"))))
        except ValueError:
            raise HTTPException(400, "k: give a whole number") from None
        with temporary_folder() as folder:
            answers: list[dict[str, Any]] = []
            sent = await self.desk.uploads(request, Path(folder))
            for name, path in sent:
                try:
                    told = await self._answered(path, name, **asked)
                    relations = {} if told.relations is None else {"relations": told.relations}
                    answers.append({**told.answer.to_dict(), **relations})
                except WeightsearchError as error:
                    if len(sent) == 1:
                        raise
                    answers.append({"schema": SCHEMA, "path": name, "error": str(error)})
        return JSONResponse(answers[0] if len(answers) == 1 else answers)

    async def api_checkpoint(self, request: Request) -> Response:
        answer = await run_in_threadpool(self.desk.ask, id=request.path_params["id"])
        return JSONResponse(answer.to_dict())

    async def api_info(self, request: Request) -> Response:
        from weightsearch.index import info

        about = plain((await run_in_threadpool(info, self.index.path)).to_dict())
        return JSONResponse({**about, "schema": SCHEMA})

    async def api_schema(self, request: Request) -> Response:
        return JSONResponse(openapi(self.options))

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        rows = await run_in_threadpool(len, self.index)
        return PlainTextResponse(self.counts.to_text(rows), media_type="text/plain; version=0.0.4")


def _table_of(answered: Mapping[str, Told], failures: Sequence[tuple[str, str]]) -> Sweep:
    """The sweep's table of uploaded files: what they say of themselves, and what was answered about each."""
    seen = [Seen(name, name, told.answer.id, interpret(told.metadata, "file")) for name, told in answered.items()]
    return ranked(
        seen, lambda run: told_of(run, answered[run.path].answer), folder=f"{len(seen) + len(failures)} files",
        failures=failures,
    )  # fmt: skip


def rows_of(index: Index, by: str, text: str) -> list[dict[str, Any]]:
    """Rows of a run, or that pass an SQL condition, with run, epoch, accuracy and recipe."""
    from weightsearch.index import matching

    if not text:
        raise HTTPException(400, "search for an id, a run or a condition")
    wanted = set(matching(index.path, runs=[text]) if by == "run" else matching(index.path, where=text))
    rows = []
    for fingerprint in index.architectures:
        columns = index.table(fingerprint, ["id", "run", "epoch", "recipe"])
        values = index.accuracies(fingerprint)
        for i, id in enumerate(columns["id"]):
            if id in wanted:
                value, epoch = float(values[i]), float(columns["epoch"][i])
                rows.append(
                    {
                        "id": id,
                        "run": columns["run"][i],
                        "epoch": None if epoch != epoch else epoch,
                        "value": None if value != value else value,
                        "recipe": json.loads(columns["recipe"][i] or "{}"),
                    }
                )
    if by == "condition":  # the best first; a run's as they were added, by epochs
        quality = index.target.quality
        rows.sort(key=lambda row: (row["value"] is None, 0 if row["value"] is None else -quality(row["value"])))
    return rows


__all__ = ["create_app", "serve"]
