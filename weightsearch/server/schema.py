"""The API as OpenAPI 3.1 describes it: https://spec.openapis.org/oas/v3.1.0."""

from __future__ import annotations

from typing import Any

from weightsearch.server.options import ServeOptions

LABELS = ["good", "middling", "bad", "early", "unlike", "unknown"]


def openapi(options: ServeOptions) -> dict[str, Any]:
    answer = {
        "type": "object",
        "required": ["schema", "path", "id", "label", "verdict", "predicted", "neighbours"],
        "properties": {"schema": {"const": 2}, "label": {"enum": LABELS}, "verdict": {"type": "string"}},
        "description": "As `weightsearch query --json` prints it.",
    }
    failure = {"type": "object", "required": ["schema", "error"]}

    def gives(schema: dict[str, Any], *failures: int) -> dict[str, Any]:
        told = {"application/json": {"schema": failure}}
        return {
            "200": {"description": "the answer", "content": {"application/json": {"schema": schema}}},
            **{str(status): {"description": "why not", "content": told} for status in failures},
        }

    def parameter(name: str, place: str, kind: str = "string") -> dict[str, Any]:
        return {"name": name, "in": place, "required": place == "path", "schema": {"type": kind}}

    body = {"schema": {"type": "string", "format": "binary", "maxLength": options.largest_upload}}
    form = {"schema": {"type": "object", "properties": {"file": {"type": "array", "items": body["schema"]}}}}
    asked = [parameter(name, "query") for name in ("name", "where", "good", "bad", "activation", "run")]
    return {
        "openapi": "3.1.0",
        "info": {"title": "weightsearch", "version": str(2)},
        "paths": {
            "/api/query": {
                "post": {
                    "summary": "What the index says of a checkpoint file",
                    "parameters": [*asked, parameter("k", "query", "integer")],
                    "requestBody": {"content": {"application/octet-stream": body, "multipart/form-data": form}},
                    "responses": gives(answer, 400, 408, 413, 422, 503),
                }
            },
            "/api/checkpoints/{id}": {
                "get": {
                    "summary": "What it says of an indexed one",
                    "parameters": [parameter("id", "path")],
                    "responses": gives(answer, 422),
                }
            },
            "/api/info": {"get": {"summary": "What the index holds", "responses": gives({"type": "object"})}},
        },
    }
