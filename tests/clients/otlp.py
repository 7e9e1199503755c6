"""A collector of spans: OTLP over HTTP with protobuf, read by OpenTelemetry's own messages for Python. Arguments: PORT, or 0.

Says `port N` when it listens, then a line of JSON for each request: the status that it was answered with, and its spans; or what is
wrong with it. Takes the status of later answers from standard input, a line each.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

status = 200
printing = threading.Lock()


def show(what):
    with printing:
        print(json.dumps(what) if isinstance(what, dict) else what, flush=True)


def check(message):
    """Nothing may be there that OTLP does not know."""
    if len(UnknownFieldSet(message)):
        raise ValueError(f"unknown fields in {message.DESCRIPTOR.full_name}")
    for field, value in message.ListFields():
        if field.message_type:
            for one in value if field.is_repeated else [value]:
                check(one)


def value(any_value):
    kind = any_value.WhichOneof("value")
    if kind not in ("string_value", "int_value", "bool_value"):
        raise ValueError(f"a value of kind {kind}")
    return getattr(any_value, kind)


def attributes(pairs):
    keys = [pair.key for pair in pairs]
    if len(set(keys)) != len(keys) or "" in keys:
        raise ValueError(f"keys that are not unique: {keys}")
    return {pair.key: value(pair.value) for pair in pairs}


def span(span, resource, scope):
    if len(span.trace_id) != 16 or len(span.span_id) != 8 or len(span.parent_span_id) not in (0, 8):
        raise ValueError("a number of the wrong length")
    if not any(span.trace_id) or not any(span.span_id) or not span.name or span.end_time_unix_nano < span.start_time_unix_nano:
        raise ValueError(f"no valid span: {span}")
    return {
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent": span.parent_span_id.hex() or None,
        "flags": span.flags,
        "name": span.name,
        "kind": Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        "start_ns": span.start_time_unix_nano,
        "end_ns": span.end_time_unix_nano,
        "attributes": attributes(span.attributes),
        "events": [
            {"at_ns": event.time_unix_nano, "name": event.name, "attributes": attributes(event.attributes)} for event in span.events
        ],
        "failed": span.status.code == Status.STATUS_CODE_ERROR,
        "error": span.status.message,
        "resource": resource,
        "scope": scope,
    }


def spans(body):
    request = ExportTraceServiceRequest.FromString(body)
    check(request)
    return [
        span(one, attributes(of.resource.attributes), f"{scope.scope.name} {scope.scope.version}")
        for of in request.resource_spans
        for scope in of.scope_spans
        for one in scope.spans
    ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        answered = status
        try:
            if (self.path, self.headers["Content-Type"]) != ("/v1/traces", "application/x-protobuf"):
                raise ValueError(f"{self.path} with {self.headers['Content-Type']}")
            show({"status": answered, "spans": spans(body)})
        except (ValueError, DecodeError) as error:
            answered = 400
            show({"wrong": f"{error}"})
        self.send_response(answered)
        answer = ExportTraceServiceResponse().SerializeToString()
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self):
        show({"wrong": f"GET {self.path}"})
        self.send_error(405)

    def log_message(self, *arguments):
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        # An agent that ends does not wait for its answer.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


server = Server(("127.0.0.1", int(sys.argv[1])), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
show(f"port {server.server_port}")
for line in sys.stdin:
    status = int(line)
    show({"answers": status})
