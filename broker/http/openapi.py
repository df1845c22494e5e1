"""The OpenAPI document: from the declarations of `broker.admin`, so that it says what is served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec
from msgspec.structs import fields

from broker import __version__
from broker.admin.operations import Nothing, Operation
from broker.http.login import LoginRequest, WhoAmI
from broker.http.operations import PREFIX
from broker.http.problems import PROBLEM_TYPE, Problem
from broker.http.shapes import Shape

_REF: Final = "#/components/schemas/{name}"

_DESCRIPTION: Final = """What operators see and steer, of the whole cluster and from any node.

Requests carry an API key (`Authorization: Bearer rk_NAME_SECRET`, or HTTP Basic with name and secret), or the cookie of
a login and, where they change something, its `X-CSRF-Token`. A key has one of three scopes, and each may do what those
before it may: viewer, operator, admin. `x-rookery-scope` says which one an operation needs.

What fails is answered with `application/problem+json`. Parts of paths are percent-encoded one by one: the client id
`a/b` is `a%2Fb`."""


def document(operations: Iterable[Operation[Any]]) -> dict[str, Any]:
    """The document, as JSON has it."""
    shapes = [Shape(operation) for operation in operations]
    arguments = [shape.query or shape.body for shape in shapes]
    known = [struct for struct in arguments if struct is not None]
    known += [shape.operation.arguments for shape in shapes]
    results = [shape.operation.result for shape in shapes if shape.operation.result is not Nothing]
    types = [*known, *results, LoginRequest, WhoAmI, Problem]
    references, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    by_type = dict(zip(map(id, types), references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for shape in shapes:
        path = re.sub(r":path}", "}", shape.operation.path)
        paths.setdefault(path, {})[shape.operation.method.lower()] = _operation(shape, by_type, schemas)
    paths.update(_login_paths(by_type))
    made: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Rookery",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": PREFIX}],
        "security": [{"key": []}, {"basic": []}, {"login": []}],
        "tags": [{"name": subject} for subject in dict.fromkeys(shape.operation.subject for shape in shapes)],
        "paths": paths,
        "components": {"responses": _responses(by_type), "securitySchemes": _schemes()},
    }
    made["components"]["schemas"] = {name: schemas[name] for name in sorted(_used(made, schemas))}
    return made


def _operation(shape: Shape, by_type: dict[int, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    operation = shape.operation
    made: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.subject],
        "summary": operation.summary,
        "description": " ".join(operation.description.split()),
        "x-rookery-scope": operation.scope,
        "responses": {**_answer(operation, by_type), **_FAILURES},
    }
    parameters = [
        _in_path(operation, name, _properties(operation.arguments, by_type, schemas)) for name in operation.path_names
    ]
    if shape.query is not None:
        required = schemas[_name(by_type[id(shape.query)])].get("required", [])
        for name, schema in _properties(shape.query, by_type, schemas).items():
            parameters.append(
                {"name": name, "in": "query", "required": name in required, "schema": _not_null(schema)}
                | _explained(schema)
            )
    if parameters:
        made["parameters"] = parameters
    if shape.body is not None:
        required = any(field.required for field in fields(shape.body))
        content = {"application/json": {"schema": by_type[id(shape.body)]}}
        made["requestBody"] = {"required": required, "content": content}
    if operation.events:
        made["x-rookery-events"] = True
    return made


def _in_path(operation: Operation[Any], name: str, properties: dict[str, Any]) -> dict[str, Any]:
    schema = _not_null(properties[name])
    if schema.get("type") == "string" and "pattern" not in schema:
        schema = {"minLength": 1, **schema}
    made = {"name": name, "in": "path", "required": True, "schema": schema} | _explained(schema)
    if f"{{{name}:path}}" in operation.path:
        made.setdefault("description", "The rest of the path: slashes may be written as they are.")
    return made


def _explained(schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": schema["description"]} if "description" in schema else {}


def _not_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Text in a URL cannot be null: who does not want it leaves it out."""
    schema = {name: value for name, value in schema.items() if name != "default" or value is not None}
    options = [option for option in schema.get("anyOf", []) if option != {"type": "null"}]
    if len(options) == 1:
        rest = {name: value for name, value in schema.items() if name != "anyOf"}
        return {**options[0], **rest}
    return schema


def _properties(struct: type[msgspec.Struct], by_type: dict[int, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    found = schemas[_name(by_type[id(struct)])].get("properties", {})
    assert isinstance(found, dict)
    return found


def _name(reference: dict[str, Any]) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


def _answer(operation: Operation[Any], by_type: dict[int, Any]) -> dict[str, Any]:
    if operation.status == 204:
        return {"204": {"description": "Done."}}
    schema = by_type[id(operation.result)]
    if operation.events:
        content = {"text/event-stream": {"schema": {"type": "string"}, "x-rookery-item": schema}}
        return {
            "200": {"description": f"Events called `{operation.subject}`, each with JSON as data.", "content": content}
        }
    return {str(operation.status): {"description": "Done.", "content": {"application/json": {"schema": schema}}}}


_FAILURES: Final = {"4XX": {"$ref": "#/components/responses/Refused"}, "5XX": {"$ref": "#/components/responses/Failed"}}


def _responses(by_type: dict[int, Any]) -> dict[str, Any]:
    content = {PROBLEM_TYPE: {"schema": by_type[id(Problem)]}}
    return {
        "Refused": {"description": "The request cannot be carried out as it is.", "content": content},
        "Failed": {"description": "The cluster cannot answer now, or the server has a defect.", "content": content},
    }


def _schemes() -> dict[str, Any]:
    return {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key: rk_NAME_SECRET."},
        "basic": {"type": "http", "scheme": "basic", "description": "Name and secret of an API key."},
        "login": {"type": "apiKey", "in": "cookie", "name": "rookery_login", "description": "See POST /login."},
    }


def _login_paths(by_type: dict[int, Any]) -> dict[str, Any]:
    who = {"description": "Done.", "content": {"application/json": {"schema": by_type[id(WhoAmI)]}}}
    asked = {"required": True, "content": {"application/json": {"schema": by_type[id(LoginRequest)]}}}
    return {
        "/login": {
            "post": {
                "operationId": "auth.login",
                "tags": ["auth"],
                "summary": "Log in: a secret for a cookie",
                "security": [],
                "requestBody": asked,
                "responses": {"200": who, **_FAILURES},
            }
        },
        "/logout": {
            "post": {
                "operationId": "auth.logout",
                "tags": ["auth"],
                "summary": "End the login of the cookie",
                "responses": {"204": {"description": "Done."}, **_FAILURES},
            }
        },
        "/whoami": {
            "get": {
                "operationId": "auth.whoami",
                "tags": ["auth"],
                "summary": "Who asks, and what he may",
                "responses": {"200": who, **_FAILURES},
            }
        },
    }


def _used(made: Any, schemas: dict[str, Any]) -> set[str]:
    """Names of the schemas that the document refers to, by others as well."""
    found: set[str] = set()
    pending = [made]
    while pending:
        each = pending.pop()
        if isinstance(each, list):
            pending.extend(each)
        elif isinstance(each, dict):
            reference = each.get("$ref", "")
            if isinstance(reference, str) and reference.startswith("#/components/schemas/"):
                name = _name(each)
                if name not in found:
                    found.add(name)
                    pending.append(schemas[name])
            pending.extend(each.values())
    return found
