"""
The API reference as one page of plain HTML, made from the route table and its schemas.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from hashlib import sha256
from html import escape
from typing import Any

from gateway.endpoint import Endpoint
from gateway.idempotency_key import HEADER
from gateway.problems import GROUPS, PROBLEMS, ProblemKind

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; }
code, pre { font: 14px/1.4 ui-monospace, monospace; background: #8882; border-radius: 4px; }
code { padding: 0 .25em; } pre { padding: .75rem; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .5rem; }
th, td { border-top: 1px solid #8884; }
section { border-top: 3px solid #8884; margin-top: 2rem; }
nav li { list-style: none; } nav ul { padding: 0; }
.method { display: inline-block; min-width: 4.5em; font-weight: bold; }
:root { color-scheme: light dark; }
"""

_STYLE_HASH = base64.b64encode(sha256(STYLE.encode()).digest()).decode()
POLICY = f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; frame-ancestors 'none'"

INTRODUCTION = """
<p>Miliano moves money between wallets, exactly once. Send JSON in UTF-8. Amounts are integers in
the currency's minor unit: <code>1099</code> is 10.99 EUR. Times are RFC 3339 in UTC.</p>
<p><strong>Keys.</strong> Send <code>Authorization: Bearer mil_live_...</code>. Each endpoint
names the scope it needs.</p>
<p><strong>Once.</strong> Make an <code>Idempotency-Key</code> for each payment, store it, and
send it again with every retry: the money moves once, and every retry gets the same answer, with
<code>Idempotent-Replayed: true</code>. A key belongs to you and to the wallet that is debited
(for a deposit: credited), for ever.</p>
<table>
<tr><th>Reply</th><th>The money</th><th>After any crash</th></tr>
<tr><td>2xx <code>posted</code></td><td>moved, on disk, in both wallets</td>
<td>still moved, once</td></tr>
<tr><td>202 <code>pending</code></td><td>set aside in the source, on its way to another
shard</td><td>comes to <code>posted</code> or <code>rejected</code>, once; the same key, or a look
at the transfer, tells</td></tr>
<tr><td>409 and a reason</td><td>not moved; the refusal is recorded under its key</td>
<td>the same key gives the same refusal</td></tr>
<tr><td>400 401 403 413 415 422</td><td>not moved, nothing recorded</td>
<td>a retry is a first try</td></tr>
<tr><td>5xx, timeout, lost connection</td><td>unknown, or not applied where
<code>outcome</code> says so</td><td>the same key gives the one true outcome</td></tr>
</table>
<p>The same in a form for programs: <a href="/openapi.json">/openapi.json</a> (OpenAPI 3.1).</p>
"""

Json = dict[str, Any]


def reference_page(endpoints: Sequence[Endpoint], document: Json) -> str:
    """
    Write the page; *document* is the OpenAPI document of the same endpoints.
    """
    schemas: Json = document["components"]["schemas"]
    sections = "".join(_section(endpoint, document, schemas) for endpoint in endpoints)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Miliano API</title><style>{STYLE}</style></head><body><h1>Miliano API</h1>"
        f"{INTRODUCTION}{_contents(endpoints)}{sections}{_errors()}</body></html>"
    )


def _contents(endpoints: Iterable[Endpoint]) -> str:
    lines = (
        f'<li><a href="#{endpoint.name}"><code><span class="method">{endpoint.method}</span>'
        f"{escape(endpoint.path)}</code></a> {escape(endpoint.summary)}</li>"
        for endpoint in endpoints
    )
    return f"<nav><ul>{''.join(lines)}<li><a href='#errors'>Errors</a></li></ul></nav>"


def _section(endpoint: Endpoint, document: Json, schemas: Json) -> str:
    operation = document["paths"][endpoint.path][endpoint.method.lower()]
    scope = f"<p>Scope: <code>{endpoint.scope}</code></p>" if endpoint.scope else ""
    parts = [
        f'<section id="{endpoint.name}"><h2>{escape(endpoint.summary)}</h2>',
        f"<pre>{endpoint.method} {escape(endpoint.path)}</pre>{scope}",
        _parameters(operation.get("parameters", [])),
    ]
    for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>Body, <code>{media_type}</code></h3>")
        parts.append(_fields(content["schema"], schemas))
    if endpoint.request is not None:
        parts.append(_example(endpoint))
    for status, description in endpoint.statuses.items():
        parts.append(f"<h3>{status}</h3><p>{escape(description)}</p>")
    if endpoint.response is not None:
        response = operation["responses"][str(next(iter(endpoint.statuses)))]
        parts.append(_fields(response["content"]["application/json"]["schema"], schemas))
    parts.append(_problems(endpoint))
    return "".join(parts) + "</section>"


def _parameters(parameters: Sequence[Json]) -> str:
    if not parameters:
        return ""
    rows = (
        (
            f"<code>{escape(parameter['name'])}</code>",
            parameter["in"] + (", required" if parameter["required"] else ""),
            _type_text(parameter["schema"]),
            escape(_description(parameter["schema"])),
        )
        for parameter in parameters
    )
    return "<h3>Parameters</h3>" + _table(rows)


def _fields(schema: Json, schemas: Json) -> str:
    """
    Write the fields of an object and, below it, of the objects it lists.
    """
    if "$ref" not in schema:
        return f"<p>{escape(schema['description'])}</p>"
    name = schema["$ref"].rpartition("/")[2]
    component = schemas[name]
    required = component.get("required", [])
    rows = []
    lists = []
    for field, field_schema in component.get("properties", {}).items():
        need = "required" if field in required else "optional"
        type_text, description = _type_text(field_schema), _description(field_schema)
        rows.append((f"<code>{escape(field)}</code>", need, type_text, escape(description)))
        items = field_schema.get("items", {})
        if "$ref" in items:
            lists.append(items)
    below = "".join(f"<p>Each of these:</p>{_fields(items, schemas)}" for items in lists)
    return f"<p>{escape(component.get('description', ''))}</p>{_table(rows)}{below}"


def _type_text(schema: Json) -> str:
    if "$ref" in schema:
        return escape(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type_text(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type_text(schema['items'])}"
    return escape(str(schema.get("type", "any")))


def _description(schema: Json) -> str:
    texts = [schema.get("description", "")]
    texts += [choice.get("description", "") for choice in schema.get("anyOf", [])]
    return " ".join(text for text in texts if text)


def _example(endpoint: Endpoint) -> str:
    lines = [f"curl -X {endpoint.method} https://.../{endpoint.path.removeprefix('/')} \\"]
    lines.append("  -H 'Authorization: Bearer mil_live_...' \\")
    if endpoint.idempotent:
        lines.append(f"  -H '{HEADER}: order-A-1' \\")
    lines.append(f"  -H 'Content-Type: {endpoint.media_types[0]}' \\")
    lines.append(f"  -d '{endpoint.example}'")
    return f"<pre>{escape(chr(10).join(lines))}</pre>"


def _problems(endpoint: Endpoint) -> str:
    links = " ".join(
        f'<a href="#{code}"><code>{PROBLEMS[code].status} {code}</code></a>'
        for code in sorted(endpoint.problem_codes, key=lambda code: (PROBLEMS[code].status, code))
    )
    return f"<h3>Problems</h3><p>{links}</p>"


def _errors() -> str:
    parts = ['<section id="errors"><h2>Errors</h2>']
    for heading, kinds in GROUPS:
        parts.append(f"<h3>{escape(heading)}</h3>{_table(_error_row(kind) for kind in kinds)}")
    return "".join(parts) + "</section>"


def _error_row(kind: ProblemKind) -> tuple[str, ...]:
    return (
        f'<code id="{kind.code}">{kind.code}</code>',
        str(kind.status),
        f"<code>{kind.outcome}</code>",
        escape(kind.title),
        escape(kind.detail),
    )


def _table(rows: Iterable[Sequence[str]]) -> str:
    lines = ("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{''.join(lines)}</table>"
