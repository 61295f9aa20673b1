"""The API's documentation as one page without scripts: a bench has no network to load any from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

router = APIRouter(include_in_schema=False)

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
details{border:1px solid #8886;border-radius:6px;margin:.5rem 0;padding:.5rem .8rem}
summary{cursor:pointer} code,pre{font:14px/1.4 ui-monospace,monospace}
pre{background:#8881;padding:.6rem;overflow:auto} th,td{text-align:left;padding:.1rem .8rem .1rem 0}
.method{display:inline-block;min-width:3.2rem;font-weight:700}:root{color-scheme:light dark}
"""
# Nothing may be loaded or run; the style stands in the page.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


@router.get("/docs")
async def get_docs(request: Request) -> HTMLResponse:
    """All routes and schemas, with examples."""
    page = render_docs(request.app.openapi())
    return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})


def render_docs(spec: Mapping[str, Any]) -> str:
    """An OpenAPI description as an HTML page."""
    info = spec["info"]
    title = f"{escape(info['title'])} {escape(info['version'])}"
    routes = "".join(_operations(spec))
    schemas = "".join(_schemas(spec))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{escape(info.get('description', ''))}</p>"
        '<p>Machine-readable: <a href="openapi.json">openapi.json</a></p>'
        f"<h2>Routes</h2>{routes}<h2>Schemas</h2>{schemas}</html>"
    )


def _operations(spec: Mapping[str, Any]) -> Iterator[str]:
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            yield (
                f'<details><summary><span class="method">{escape(method.upper())}</span> '
                f"<code>{escape(path)}</code> {escape(operation.get('summary', ''))}</summary>"
                f"<p>{escape(operation.get('description', ''))}</p>"
                f"{_parameters(operation)}{_body(operation)}{_responses(operation)}</details>"
            )


def _parameters(operation: Mapping[str, Any]) -> str:
    rows = [
        (f"{item['name']} ({item['in']})", _type_of(item["schema"]), item.get("description", ""))
        for item in operation.get("parameters", ())
    ]
    return _table(rows)


def _body(operation: Mapping[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    return "".join(
        f"<p>Body: {escape(kind)} {_type_of(item['schema'])}</p>" for kind, item in content.items()
    )


def _responses(operation: Mapping[str, Any]) -> str:
    rows = []
    for status, response in operation["responses"].items():
        kinds = [
            f"{escape(kind)} {_type_of(item.get('schema', {}))}"
            for kind, item in response.get("content", {}).items()
        ]
        rows.append((status, ", ".join(kinds), response.get("description", "")))
    return _table(rows)


def _schemas(spec: Mapping[str, Any]) -> Iterator[str]:
    for name, schema in sorted(spec.get("components", {}).get("schemas", {}).items()):
        rows = [
            (field, _type_of(item), item.get("description", ""))
            for field, item in schema.get("properties", {}).items()
        ]
        examples = "".join(
            f"<pre>{escape(json.dumps(example, indent=2))}</pre>"
            for example in schema.get("examples", ())
        )
        values = ", ".join(escape(str(value)) for value in schema.get("enum", ()))
        yield (
            f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>'
            f"<p>{escape(schema.get('description', ''))}</p>{_table(rows)}<p>{values}</p>"
            f"{examples}</details>"
        )


def _type_of(schema: Mapping[str, Any]) -> str:
    """A schema in a few words of HTML, links where it names another."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type_of(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type_of(schema.get('items', {}))}"
    return escape(str(schema.get("title" if "properties" in schema else "type", "")))


def _table(rows: list[tuple[str, str, str]]) -> str:
    """Rows of (text, HTML, text)."""
    cells = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{kind}<td>{escape(text)}"
        for name, kind, text in rows
    )
    return f"<table>{cells}</table>" if cells else ""
